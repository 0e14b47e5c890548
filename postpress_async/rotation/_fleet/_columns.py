"""
A fleet as named columns of values, for JSON Lines, Parquet, queries and frames.

Each column of a batch is converted to text as a whole, because most of its values have the same type. Then
the rows of text are read like those of a CSV file.
"""

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from numbers import Real
from typing import Any, Final, SupportsInt, TypeAlias, cast

from attrs import frozen

from postpress_async.errors import FleetError
from postpress_async.models import FieldError
from postpress_async.rotation._column_names import COLUMNS, PARTS, field_of, may_be_number, printable_name
from postpress_async.rotation._fleet._row import ONE_FORM, RowReader
from postpress_async.rotation._rows import Refusal, Row

BATCH: Final = 1024  # rows in memory at once
KNOWN: Final = ", ".join(COLUMNS)  # for messages
_MAX_NAMES: Final = 20  # unknown names to show
_TOO_LARGE_PORT: Final = 10**9
_TEXT_TYPES: Final = {str, type(None)}

Values: TypeAlias = Mapping[str, Sequence[object]]
"""The values of some rows, by the name of the column; None, NaN and the like are missing values."""


def read_header(
    names: Sequence[str], error: Callable[[str], FleetError], columns: Sequence[str] = COLUMNS
) -> tuple[dict[str, int], tuple[str, ...]]:
    """
    Return the index in *names* of each of *columns* that it contains, and the unknown names, safe to print.

    Raise the exception that *error* creates if two names mean the same column, or if account_id or a column
    that the pool needs is missing.
    """
    positions: dict[str, int] = {}
    ignored: list[str] = []
    for index, name in enumerate(names):
        column = field_of(name)
        if column not in columns:
            ignored.append(printable_name(name))
        elif column in positions:
            both = f"{printable_name(names[positions[column]])} and {printable_name(name)}"
            raise error(f"has two columns for {column}, {both}: remove one of them")
        else:
            positions[column] = index
    if "account_id" not in positions:
        found = ", ".join(filter(None, map(printable_name, names[:_MAX_NAMES]))) or "columns without a name"
        advice = f"rename one of them; the known columns are {KNOWN}"
        raise error(f"has no column account_id, only {found}: {advice}")
    if missing := next((name for name in columns[len(COLUMNS) :] if name not in positions), None):
        raise error(f"has no column {printable_name(missing)}, which the pool needs: add it")
    return positions, tuple(filter(None, ignored))


class KeyReader:
    """Reads the known keys of mappings, and records the first twenty unknown ones, safe to print."""

    def __init__(self) -> None:
        self._ignored: dict[str, str] = {}

    @property
    def ignored(self) -> tuple[str, ...]:
        return tuple(self._ignored.values())

    def read(self, values: Mapping[Any, object], columns: tuple[str, ...], found: dict[str, object]) -> None:
        """Add the values of *columns* that are not missing to *found*; raise `FieldError` for a duplicate."""
        for key, value in values.items():
            column = field_of(key) if isinstance(key, str) else ""
            if column not in columns:
                if len(self._ignored) < _MAX_NAMES:
                    self._ignored.setdefault(str(key), printable_name(str(key)))
            elif column in found:
                raise FieldError(column, "duplicate key", "remove one of them")
            elif not is_missing(value):
                found[column] = value


@frozen
class Batch:
    """The text of some rows, by column."""

    columns: Sequence[Sequence[str]]  # for each of `cell_columns`, its cells; "" for missing values
    faults: Mapping[int, FieldError]  # the error of each row with an invalid value, by index in the batch

    def encode(self) -> bytes:
        """Return a line of JSON with the columns and the faults."""
        faults = [[index, *fault.args] for index, fault in self.faults.items()]
        return json.dumps([self.columns, faults], separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Batch":
        columns, faults = json.loads(line)
        return cls(columns, {index: FieldError(*fault) for index, *fault in faults})


def read_batches(batches: Iterable[Batch], reader: RowReader) -> Generator[Row | Refusal, None, None]:
    """Yield each row, or its refusal. The line of a row is its position in all batches, from 1."""
    line = 0
    for batch in batches:
        for index, cells in enumerate(zip(*batch.columns, strict=True)):
            line += 1
            fault = batch.faults.get(index)
            if fault is None:
                if (row := reader.read(line - 1, line, cells)) is not None:
                    yield row
            else:
                yield reader.refuse(line - 1, line, None if fault.field == "account_id" else cells[0], fault)


class BatchMaker:
    """
    Converts values to text, a batch of rows at a time.

    A port may be a number, even a float without a fraction, because pandas converts integers to floats if
    values are missing. A proxy may be a mapping with host, port, protocol, username and password, as in JSON
    Lines. A mapping with only nulls is a missing value, because a struct column of Parquet has a value for
    every field in every row.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns: Final = columns
        self.keys: Final = KeyReader()

    def make(self, values: Values, size: int) -> Batch:
        faults: dict[int, FieldError] = {}
        # Only the first fault of a row is reported, and a fault of the account has priority.
        columns: list[Sequence[str]] = [_texts("account_id", values["account_id"], faults)]
        if any(isinstance(proxy, Mapping) for proxy in values.get("proxy", ())):
            values = self._spread(values, size, faults)
        empty = [""] * size
        columns += [
            _texts(name, values[name], faults) if name in values else empty for name in self._columns[1:]
        ]
        return Batch(columns, faults)

    def _spread(self, values: Values, size: int, faults: dict[int, FieldError]) -> Values:
        """Move the values of proxies that are mappings to the columns of `PARTS`."""
        proxies = list(values["proxy"])
        parts = {name: list(values.get(name) or [None] * size) for name in PARTS}
        for index, proxy in enumerate(proxies):
            if not isinstance(proxy, Mapping):
                continue
            proxies[index] = None
            found: dict[str, object] = {}
            try:
                self.keys.read(proxy, PARTS, found)
                if "host" not in found and (found or not proxy):  # an empty mapping is an error
                    raise FieldError("host", "host missing", "give the proxy's host name or address")
                for name in PARTS:
                    if found and not is_missing(parts[name][index]):
                        raise FieldError(name, "proxy given twice", ONE_FORM)
            except FieldError as fault:
                faults.setdefault(index, fault)
                continue
            for name, value in found.items():
                parts[name][index] = value
        return {**values, "proxy": proxies, **parts}


def _texts(column: str, values: Sequence[object], faults: dict[int, FieldError]) -> list[str]:
    """The text of each value of a column. Errors of invalid values are added to *faults*, by index."""
    # A million rows have nine million values, nearly all of them text or None.
    if set(map(type, values)) <= _TEXT_TYPES:
        return [value or "" for value in cast("Sequence[str | None]", values)]
    texts = [""] * len(values)
    for index, value in enumerate(values):
        try:
            texts[index] = _text(column, value)
        except FieldError as fault:
            faults.setdefault(index, fault)
    return texts


def _text(column: str, value: object) -> str:
    if is_missing(value):
        return ""
    if column in {"host", "ip"} and isinstance(value, IPv4Address | IPv6Address):  # PostgreSQL's inet
        return str(value)
    if may_be_number(column) and not isinstance(value, bool) and isinstance(value, float | Real | Decimal):
        value = _whole(value)
    return cell_text(column, value)


def _whole(value: object) -> object:
    """The int that *value* equals, or *value* itself if it has a fraction or is infinite."""
    try:
        number = int(cast(SupportsInt, value))  # every Real has __int__
    except (ValueError, OverflowError):
        return value
    return number if number == value else value


def is_missing(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, str):  # for speed: most values are text, and the check of `Real` is slow
        return False
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float | Real) and value != value


def cell_text(column: str, value: object) -> str:
    """Return the text of a *value* that is not missing; raise `FieldError` if *column* has no such type."""
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
    # A larger number would be out of range too, and Python refuses to convert 5,000 digits to text.
    return str(min(value, _TOO_LARGE_PORT))
