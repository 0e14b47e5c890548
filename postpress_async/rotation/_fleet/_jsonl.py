"""A fleet as JSON Lines: one object per line, with the columns as its keys."""

import json
from collections.abc import Generator
from contextlib import closing
from typing import Any, Final

from postpress_async.models import FieldError
from postpress_async.rotation._column_names import PARTS
from postpress_async.rotation._fleet._columns import KeyReader, cell_text
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._fleet._row import ONE_FORM, Cells, RowReader
from postpress_async.rotation._rows import Refusal, Row, refusal_of


class JsonLines:
    """The rows of a JSON Lines file, in which ``proxy`` may also be an object with `PARTS` as keys."""

    def __init__(self, file: FleetFile, columns: tuple[str, ...]) -> None:
        self.file = file
        self._columns = columns
        self._keys = KeyReader()

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        return self._keys.ignored

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        with closing(self.file.lines()) as lines:
            for ordinal, text in enumerate(lines):
                if not text.isspace() and (row := self._read(reader, ordinal, text)) is not None:
                    yield row

    def _read(self, reader: RowReader, ordinal: int, text: str) -> Row | Refusal | None:
        line = ordinal + 1
        values = _read_object(text)
        if isinstance(values, FieldError):
            return refusal_of(values, ordinal, line)
        found: dict[str, object] = {}
        try:
            self._keys.read(values, self._columns, found)
            cells = self._cells(found)
        except FieldError as error:
            account_id = found.get("account_id", "")
            return reader.refuse(ordinal, line, account_id if isinstance(account_id, str) else None, error)
        return reader.read(ordinal, line, cells)

    def _cells(self, found: dict[str, object]) -> Cells:
        if isinstance(proxy := found.get("proxy"), dict):
            for name in PARTS:
                if name in found:
                    raise FieldError(name, "proxy given twice", ONE_FORM)
            del found["proxy"]
            self._keys.read(proxy, PARTS, found)
            if "host" not in found:  # an empty object is an error, not a missing value
                raise FieldError("host", "host missing", "give the proxy's host name or address")
        values = ((name, found.get(name, "")) for name in self._columns)
        return tuple(value if type(value) is str else cell_text(name, value) for name, value in values)


def _read_object(text: str) -> dict[str, Any] | FieldError:
    """Parse *text*. Errors are returned: a raised one would be chained to one that contains a password."""
    try:
        text = text.strip(" \t\r\n")
        value, end = _DECODER.raw_decode(text)
    except KeyError:
        return FieldError(None, "duplicate key", "remove one of them")
    except (ValueError, RecursionError):  # malformed, NaN, an integer of 5,000 digits, 5,000 brackets
        value, end = None, 0
    if isinstance(value, dict) and end == len(text):
        return value
    example = '{"account_id": "acc_1", "country": "US"}'
    return FieldError(None, "not a JSON object", f"write one per line, such as {example}")


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise KeyError("duplicate key")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_to_dict, parse_constant=_refuse_constant)
