"""Values with types, of JSON or of a column, as the text of cells."""

from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any, Final

from postpress_async.models import FieldError
from postpress_async.rotation._fleet._row import meaning, shown

_MOST_IGNORED: Final = 20


class KeyReader:
    """Reads mappings by the meaning of their keys, and notes the first twenty keys without one."""

    def __init__(self) -> None:
        self._ignored: dict[str, str] = {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """The keys without a meaning so far, safe to print."""
        return tuple(self._ignored.values())

    def read(self, values: Mapping[Any, object], columns: tuple[str, ...], found: dict[str, object]) -> None:
        """
        Add the values of *columns* to *found*, by column; missing values are left out.

        Raises:
            FieldError: Two keys mean the same column, or *found* has it.
        """
        for key, value in values.items():
            column = meaning(key) if isinstance(key, str) else None
            if column not in columns:
                if len(self._ignored) < _MOST_IGNORED:
                    self._ignored.setdefault(str(key), shown(str(key)))
            elif column in found:
                raise FieldError(column, "duplicate key", "remove one of them")
            elif not is_missing(value):
                found[column] = value


def is_missing(value: object) -> bool:
    """Whether *value* is None or NaN."""
    if value is None or isinstance(value, str):
        return value is None
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float | Real) and value != value


def cell_text(column: str, value: object) -> str:
    """
    The text of a cell with a value that is not missing: a string, or an int for a port.

    Raises:
        FieldError: The value has another type.
    """
    if isinstance(value, str):  # also of numpy's type
        return str(value)
    if column == "proxy":
        raise FieldError(column, "proxy not text", "it is a URL, or an object with host and port")
    if column != "port":
        raise FieldError(column, f"{column} not text", f"it is a string, not {type(value).__name__}")
    if type(value) is not int:  # True is an int
        raise FieldError(column, "port not an integer", "it is a whole number from 1 to 65535")
    if value < 0:
        raise FieldError(column, "port out of range", "it is 1 to 65535")
    return str(min(value, 10**9))  # out of range too; Python refuses to write 5,000 digits
