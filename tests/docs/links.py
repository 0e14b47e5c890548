"""
What the reference adds to what it reads from the source.

A public name between single backticks becomes a link to where the reference has it, and a class of attrs
gets the constructor that attrs writes for it.
"""

import ast
import re
from typing import Any

import griffe

from tests.docs.names import homes

_EITHER = griffe.ParameterKind.positional_or_keyword
_ATTRS = re.compile(r"(attrs\.)?(frozen|define)\b")
_NAMED = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?![`\]])")


class Links(griffe.Extension):
    """Sees each object before its docstring is read."""

    def __init__(self) -> None:
        self._homes = homes()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Link what its docstring names; what is not for callers is left out, as what has none is."""
        if obj.docstring is not None and obj.docstring.value.startswith("Not for callers"):
            obj.docstring = None
        if obj.docstring is not None:
            obj.docstring.value = _NAMED.sub(lambda found: self._linked(found, obj), obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Write the constructor of *cls*, if attrs does."""
        made = next((str(d.value) for d in cls.decorators if _ATTRS.match(str(d.value))), None)
        if made is None or "__init__" in cls.members:
            return
        kind = griffe.ParameterKind.keyword_only if "kw_only" in made else _EITHER
        parameters = [griffe.Parameter("self", kind=_EITHER)]
        for name, field in cls.attributes.items():
            default, written = _default_of(str(field.value or ""))
            if "instance-attribute" in field.labels and written:
                parameters.append(
                    griffe.Parameter(name, annotation=field.annotation, kind=kind, default=default)
                )
        init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls)
        init.lineno, init.endlineno = cls.lineno, cls.endlineno  # its source is the class
        cls.set_member("__init__", init)

    def _linked(self, found: re.Match[str], obj: griffe.Object) -> str:
        name = found[1].removeprefix("postpress_async.")
        near = obj if obj.is_class else obj.parent
        own = f"{near.name}.{name}" if near is not None and near.is_class else name
        home = self._homes.get(own) or self._homes.get(name) or self._homes.get(f"errors.{name}")
        return found[0] if home is None or home == obj.path else f"[`{found[1]}`][{home}]"


def _default_of(value: str) -> tuple[str | None, bool]:
    """The default that an attribute's *value* says, and whether the constructor takes it at all."""
    call = ast.parse(value, mode="eval").body if value else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) not in {"field", "Factory"}:
        return value or None, True
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    made = "factory" in given or ast.unparse(call.func) == "Factory"
    return "..." if made else given.get("default"), given.get("init") != "False"
