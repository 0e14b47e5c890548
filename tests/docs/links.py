"""In docstrings, a public name between single backticks becomes a link to where the reference has it."""

import re
from typing import Any

import griffe

from tests.docs.names import homes

_NAMED = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?![`\]])")


class Links(griffe.Extension):
    """Sees each object before its docstring is read."""

    def __init__(self) -> None:
        self._homes = homes()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Link what its docstring names."""
        if obj.docstring is not None:
            obj.docstring.value = _NAMED.sub(lambda found: self._linked(found, obj), obj.docstring.value)

    def _linked(self, found: re.Match[str], obj: griffe.Object) -> str:
        name = found[1].removeprefix("postpress_async.")
        near = obj if obj.is_class else obj.parent
        own = f"{near.name}.{name}" if near is not None and near.is_class else name
        home = self._homes.get(own) or self._homes.get(name) or self._homes.get(f"errors.{name}")
        return found[0] if home is None or home == obj.path else f"[`{found[1]}`][{home}]"
