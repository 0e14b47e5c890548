"""Converts values of JSON or of a typed column to the text of cells."""

from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any, Final

from postpress_async.models import FieldError
from postpress_async.rotation._column_names import field_of, may_be_number, printable_name

_MOST_IGNORED: Final = 20


class KeyReader:
    """Reads the known keys of mappings, and records the first twenty unknown ones."""

    def __init__(self) -> None:
        self._ignored: dict[str, str] = {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """The unknown keys so far, safe to print."""
        return tuple(self._ignored.values())

    def read(self, values: Mapping[Any, object], columns: tuple[str, ...], found: dict[str, object]) -> None:
        """
        Add the values of *columns* to *found*, except for missing ones.

        Raises:
            FieldError: Two keys stand for the same column, or *found* already has it.
        """
        for key, value in values.items():
            column = field_of(key) if isinstance(key, str) else ""
            if column not in columns:
                if len(self._ignored) < _MOST_IGNORED:
                    self._ignored.setdefault(str(key), printable_name(str(key)))
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
    The text of a value that is not missing: a string, or an int for a port.

    Raises:
        FieldError: The value has another type.
    """
    if isinstance(value, str):  # a subclass, such as numpy's, becomes a plain str
        return str(value)
    if column == "proxy":
        raise FieldError(column, "proxy not text", "must be a URL, or an object with host and port")
    if column != "port":
        if may_be_number(column) and type(value) is int:
            return str(value)
        raise FieldError(column, f"{column} not text", f"must be a string, got {type(value).__name__}")
    if type(value) is not int:  # True is an int
        raise FieldError(column, "port not an integer", "must be a whole number from 1 to 65535")
    if value < 0:
        raise FieldError(column, "port out of range", "must be a whole number from 1 to 65535")
    return str(min(value, 10**9))  # still out of range; Python refuses to convert 5,000 digits
