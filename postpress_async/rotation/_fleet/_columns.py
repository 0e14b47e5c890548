"""
A fleet as columns of values, for Parquet, queries and frames.

Each column is converted to text as a whole, because most of its values have the same type. Then the rows are
read like those of a text file.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from numbers import Real
from typing import Any, Final, SupportsInt, TypeAlias, cast

from attrs import frozen

from postpress_async.models import FieldError
from postpress_async.rotation._column_names import PARTS, may_be_number
from postpress_async.rotation._fleet._row import ONE_FORM, RowReader
from postpress_async.rotation._fleet._values import KeyReader, cell_text, is_missing
from postpress_async.rotation._rows import Refusal, Row, refusal_of

BATCH: Final = 1024
"""Number of rows in memory at once."""

_TEXT_TYPES: Final = {str, type(None)}

Values: TypeAlias = Mapping[str, Sequence[object]]
"""The values of some rows, by the name of the column; None, NaN and the like are missing values."""


@frozen
class Batch:
    """
    The text of some rows, by column.

    Attributes:
        columns: The cells of each of `cell_columns`; empty strings for missing values.
        faults: The error of each row with an invalid value, by index in the batch.
    """

    columns: Sequence[Sequence[str]]
    faults: Mapping[int, FieldError]


def read_batches(batches: Iterable[Batch], reader: RowReader) -> Generator[Row | Refusal, None, None]:
    """Yield each row, or its refusal. The line of a row is its number, from 1."""
    line = 0
    for batch in batches:
        for index, cells in enumerate(zip(*batch.columns, strict=True)):
            line += 1
            fault = batch.faults.get(index)
            if fault is None:
                if (row := reader.read(line - 1, line, cells)) is not None:
                    yield row
            elif fault.field == "account_id":
                yield refusal_of(fault, line - 1, line)
            else:
                yield reader.refuse(line - 1, line, cells[0], fault)


class BatchMaker:
    """
    Converts values to text, a batch of rows at a time.

    A port may be a number, even a float without a fraction, because pandas converts integers to floats if
    values are missing. A proxy may be a mapping with host, port, protocol, username and password, as in JSON
    Lines. A mapping with only nulls is a missing value, because a struct column cannot omit its fields.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns: Final = columns
        self.keys: Final = KeyReader()

    def make(self, values: Values, size: int) -> Batch:
        """Return the `Batch` of *size* rows with *values*."""
        faults: dict[int, FieldError] = {}
        # The first fault of a row is reported, and that of the account before all others.
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
        parts: dict[str, list[object]] = {
            name: list(values[name]) if name in values else [None] * size for name in PARTS
        }
        for index, proxy in enumerate(proxies):
            if not isinstance(proxy, Mapping):
                continue
            proxies[index] = None
            try:
                found = self._parts(proxy)
                if duplicate := next((n for n in PARTS if found and not is_missing(parts[n][index])), None):
                    raise FieldError(duplicate, "proxy given twice", ONE_FORM)
            except FieldError as fault:
                faults.setdefault(index, fault)
                continue
            for name, value in found.items():
                parts[name][index] = value
        return {**values, "proxy": proxies, **parts}

    def _parts(self, proxy: Mapping[Any, object]) -> dict[str, object]:
        found: dict[str, object] = {}
        self.keys.read(proxy, PARTS, found)
        if "host" not in found and (found or not proxy):  # an empty mapping is an error
            raise FieldError("host", "host missing", "give the proxy's host name or address")
        return found


def _texts(column: str, values: Sequence[object], faults: dict[int, FieldError]) -> list[str]:
    def convert(index: int, value: object) -> str:
        try:
            return _text(column, value)
        except FieldError as fault:
            faults.setdefault(index, fault)
            return ""

    # A million rows have nine million values, nearly all of them text or None.
    if set(map(type, values)) <= _TEXT_TYPES:
        return [value or "" for value in cast("Sequence[str | None]", values)]
    return ["" if value is None else convert(index, value) for index, value in enumerate(values)]


def _text(column: str, value: object) -> str:
    if column == "port" and type(value) is int and 0 <= value < 10**9:
        return str(value)
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
