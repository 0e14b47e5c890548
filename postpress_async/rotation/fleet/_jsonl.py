"""A fleet as JSON Lines: one object a line, with the columns as its keys."""

import json
from collections.abc import Generator
from contextlib import closing
from itertools import chain
from typing import Any, Final

from postpress_async.models import FieldError
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet._file import FleetFile
from postpress_async.rotation.fleet._row import COLUMNS, ONE_FORM, PARTS, Cells, RowReader, meaning, shown

_MOST_IGNORED: Final = 20


class JsonLines:
    """
    The rows of a JSON Lines file.

    ``proxy`` may also be an object with the keys host, port, protocol, username and password.
    """

    def __init__(self, file: FleetFile) -> None:
        self._file = file
        self._ignored: dict[str, str] = {}

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Keys that are none of ours: those met so far, and the first twenty of them."""
        return tuple(self._ignored.values())

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        """Each line that is not blank as a row, or why it is refused."""
        with closing(self._file.lines()) as blocks:
            for ordinal, text in enumerate(chain.from_iterable(blocks)):
                if not text.isspace() and (row := self._read(reader, ordinal, text)) is not None:
                    yield row

    def _read(self, reader: RowReader, ordinal: int, text: str) -> Row | Refusal | None:
        line = ordinal + 1
        values = _read_object(text)
        if isinstance(values, FieldError):
            return Refusal.of(values, ordinal, line)
        given: dict[str, object] = {}
        try:
            self._take(values, COLUMNS, given)
            cells = self._cells(given)
        except FieldError as error:
            account_id = given.get("account_id", "")
            if not isinstance(account_id, str):
                return Refusal.of(error, ordinal, line)
            return reader.refuse(ordinal, line, account_id, error)
        return reader.read(ordinal, line, cells)

    def _take(self, values: dict[str, Any], columns: tuple[str, ...], given: dict[str, object]) -> None:
        """Put what *values* has for *columns* into *given*, under the columns' own names."""
        for key, value in values.items():
            column = key if key in columns else meaning(key)
            if column not in columns:
                if len(self._ignored) < _MOST_IGNORED and key not in self._ignored:
                    self._ignored[key] = shown(key)
            elif column in given:
                raise FieldError(column, "a key stands twice", "leave one of them out")
            elif value is not None:
                given[column] = value

    def _cells(self, given: dict[str, object]) -> Cells:
        if isinstance(proxy := given.get("proxy"), dict):
            for name in PARTS:
                if name in given:
                    raise FieldError(name, "proxy given twice", ONE_FORM)
            del given["proxy"]
            self._take(proxy, PARTS, given)
            if "host" not in given:  # an empty object is a mistake, not a wish for the default
                raise FieldError("host", "host missing", "give the proxy's host name or address")
        account_id, *rest = [
            value if type(value := given.get(name, "")) is str else _cell(name, value) for name in COLUMNS
        ]
        proxy, host, port, protocol, username, password, country, ip = rest
        return account_id, proxy, host, port, protocol, username, password, country, ip


def _cell(column: str, value: object) -> str:
    if column == "proxy":
        advice = "it is a URL, or an object with host and port"
        raise FieldError(column, "proxy not text", advice)
    if column != "port":
        raise FieldError(column, f"{column} not text", f"it is a string, not {type(value).__name__}")
    if type(value) is not int:  # True is an int, and 1e3 is a float
        raise FieldError(column, "port not an integer", "it is a whole number from 1 to 65535")
    if value < 0:
        raise FieldError(column, "port out of range", "it is 1 to 65535")
    return str(value)


class _KeyTwiceError(ValueError):
    pass


def _read_object(text: str) -> dict[str, Any] | FieldError:
    """
    The object that *text* is, or what is wrong with it.

    A fault is told, not raised: the exceptions of `json` hold the whole text, which may have a password.
    """
    try:
        text = text.strip(" \t\r\n")
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            value = None
    except _KeyTwiceError:
        return FieldError(None, "a key stands twice", "leave one of them out")
    except (ValueError, RecursionError):  # malformed, a NaN, 5,000 digits, 5,000 brackets
        value = None
    if isinstance(value, dict):
        return value
    return FieldError(
        None, "not a JSON object", 'write one a line, such as {"account_id": "acc_1", "country": "US"}'
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _KeyTwiceError
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_each_once, parse_constant=_no_constant)
