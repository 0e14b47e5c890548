"""
Additions to the reference that mkdocstrings builds from the source.

A public name in single backticks becomes a link to its reference, and a class of attrs gets the constructor
that attrs generates.
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
    """Changes objects before mkdocstrings parses their docstrings."""

    def __init__(self) -> None:
        self._homes = homes()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Add links to the docstring. Objects that are not for callers lose theirs, which hides them."""
        if obj.docstring is not None and obj.docstring.value.startswith("Not for callers"):
            obj.docstring = None
        if obj.docstring is not None:
            obj.docstring.value = _NAMED.sub(lambda match: self._link(match, obj), obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Add the constructor of *cls* if attrs generates it."""
        decorator = next((str(d.value) for d in cls.decorators if _ATTRS.match(str(d.value))), None)
        if decorator is None or "__init__" in cls.members:
            return
        kind = griffe.ParameterKind.keyword_only if "kw_only" in decorator else _EITHER
        parameters = [griffe.Parameter("self", kind=_EITHER)]
        for name, field in cls.attributes.items():
            default, in_constructor = _default_of(str(field.value or ""))
            if "instance-attribute" in field.labels and in_constructor:
                parameters.append(
                    griffe.Parameter(name, annotation=field.annotation, kind=kind, default=default)
                )
        init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls)
        init.lineno, init.endlineno = cls.lineno, cls.endlineno  # "show source" shows the class
        cls.set_member("__init__", init)

    def _link(self, match: re.Match[str], obj: griffe.Object) -> str:
        name = match[1].removeprefix("postpress_async.")
        enclosing = obj if obj.is_class else obj.parent
        member = f"{enclosing.name}.{name}" if enclosing is not None and enclosing.is_class else name
        home = self._homes.get(member) or self._homes.get(name) or self._homes.get(f"errors.{name}")
        return match[0] if home is None or home == obj.path else f"[`{match[1]}`][{home}]"


def _default_of(value: str) -> tuple[str | None, bool]:
    """The default in an attribute's *value*, and whether the attribute is an argument of the constructor."""
    call = ast.parse(value, mode="eval").body if value else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) not in {"field", "Factory"}:
        return value or None, True
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    has_factory = "factory" in keywords or ast.unparse(call.func) == "Factory"
    return "..." if has_factory else keywords.get("default"), keywords.get("init") != "False"
