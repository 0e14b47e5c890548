"""
A fleet as columns of values: what Parquet, the answer of a query and a frame have in common.

Their values have types, and a column has many of one: they are made into text by the column, and then
read by the row, as those of a text file are.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from numbers import Real
from typing import Any, Final, SupportsInt, TypeAlias, cast

from attrs import frozen

from postpress_async.models import FieldError
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet._row import COLUMNS, ONE_FORM, PARTS, Cells, RowReader, meaning, shown

BATCH: Final = 1024
"""Rows that are in memory at once."""

_PLAIN: Final = {str, type(None)}

Values: TypeAlias = Mapping[str, Sequence[object]]
"""Some rows' values for each of `COLUMNS` that is there; None, NaN and the like are not given."""

_MOST_IGNORED: Final = 20


@frozen
class Batch:
    """
    Some rows, by the column.

    Attributes:
        columns: The rows' text for each of `COLUMNS`, as `Cells` have it.
        faults: What is wrong with a row whose values could not be made into text, by its place in the batch.
    """

    columns: Sequence[Sequence[str]]
    faults: Mapping[int, FieldError]


def read_batches(batches: Iterable[Batch], reader: RowReader) -> Generator[Row | Refusal, None, None]:
    """Each row, or why it is refused. Its line is its number, from 1."""
    line = 0
    for batch in batches:
        for index, cells in enumerate(cast("Iterator[Cells]", zip(*batch.columns, strict=True))):
            line += 1
            fault = batch.faults.get(index)
            if fault is None:
                if (row := reader.read(line - 1, line, cells)) is not None:
                    yield row
            elif fault.field == "account_id":
                yield Refusal.of(fault, line - 1, line)
            else:
                yield reader.refuse(line - 1, line, cells[0], fault)


class BatchMaker:
    """
    Makes values into text, some rows at a time.

    A port may be a number, and one with a fraction of zero too: pandas makes floats of a column with
    gaps. A proxy may be a mapping with host, port, protocol, username and password, as in JSON Lines; one
    of nothing but nulls is not given, for a column of them has no other way to say so.

    Attributes:
        ignored: Keys of such mappings that are none of ours: the first twenty.
    """

    def __init__(self) -> None:
        self.ignored: dict[str, str] = {}

    def make(self, values: Values, size: int) -> Batch:
        """The `Batch` of *size* rows with *values*."""
        faults: dict[int, FieldError] = {}
        # Of several faults of a row the first is told, and the account's before all.
        columns: list[Sequence[str]] = [_texts("account_id", values["account_id"], faults)]
        if any(isinstance(proxy, Mapping) for proxy in values.get("proxy", ())):
            values = self._spread(values, size, faults)
        nothing = [""] * size
        columns += [_texts(name, values[name], faults) if name in values else nothing for name in COLUMNS[1:]]
        return Batch(columns, faults)

    def _spread(self, values: Values, size: int, faults: dict[int, FieldError]) -> Values:
        """*values* with what proxies that are mappings say, in the columns of the parts."""
        proxies = list(values["proxy"])
        parts: dict[str, list[object]] = {
            name: list(values[name]) if name in values else [None] * size for name in PARTS
        }
        for index, proxy in enumerate(proxies):
            if not isinstance(proxy, Mapping):
                continue
            proxies[index] = None
            try:
                given = self._parts(proxy)
                if twice := next((n for n in PARTS if given and not _is_missing(parts[n][index])), None):
                    raise FieldError(twice, "proxy given twice", ONE_FORM)
            except FieldError as fault:
                faults.setdefault(index, fault)
                continue
            for name, value in given.items():
                parts[name][index] = value
        return {**values, "proxy": proxies, **parts}

    def _parts(self, proxy: Mapping[Any, object]) -> dict[str, object]:
        given: dict[str, object] = {}
        for key, value in proxy.items():
            column = meaning(key) if isinstance(key, str) else None
            if column not in PARTS:
                if len(self.ignored) < _MOST_IGNORED:
                    self.ignored.setdefault(str(key), shown(str(key)))
            elif column in given:
                raise FieldError(column, "a key stands twice", "leave one of them out")
            elif not _is_missing(value):
                given[column] = value
        # All null is none: a struct cannot leave its fields out. An empty one is a mistake.
        if "host" not in given and (given or not proxy):
            raise FieldError("host", "host missing", "give the proxy's host name or address")
        return given


def _texts(column: str, values: Sequence[object], faults: dict[int, FieldError]) -> list[str]:
    def odd(index: int, value: object) -> str:
        try:
            return _text(column, value)
        except FieldError as fault:
            faults.setdefault(index, fault)
            return ""

    # A million rows have nine million of them, nearly all text or None.
    if set(map(type, values)) <= _PLAIN:
        return [value or "" for value in cast("Sequence[str | None]", values)]
    return ["" if value is None else odd(index, value) for index, value in enumerate(values)]


def _text(column: str, value: object) -> str:
    if column == "port" and type(value) is int and 0 <= value < 10**9:
        return str(value)
    if isinstance(value, str):  # perhaps of numpy's kind
        return str(value)
    if _is_missing(value):
        return ""
    if column in {"host", "ip"} and isinstance(value, IPv4Address | IPv6Address):  # PostgreSQL's inet
        return str(value)
    if column == "proxy":
        raise FieldError(column, "proxy not text", "it is a URL, or an object with host and port")
    if column != "port":
        raise FieldError(column, f"{column} not text", f"it is a string, not {type(value).__name__}")
    number = _whole(value)
    if number is None:
        raise FieldError(column, "port not an integer", "it is a whole number from 1 to 65535")
    if number < 0:
        raise FieldError(column, "port out of range", "it is 1 to 65535")
    return str(min(number, 10**9))  # out of range too; Python does not write 5,000 digits


def _is_missing(value: object) -> bool:
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, float | Real) and value != value)  # NaN


def _whole(value: object) -> int | None:
    """The whole number that *value* is; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, float | Real | Decimal):
        return None
    try:
        number = int(cast(SupportsInt, value))  # every Real that there is has __int__
    except (ValueError, OverflowError):  # infinite
        return None
    return number if number == value else None
