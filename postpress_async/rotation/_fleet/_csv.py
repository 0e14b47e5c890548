"""A fleet as CSV: a header, then rows of cells separated by commas, semicolons or tabs."""

import csv
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from operator import itemgetter
from typing import Final, TypeAlias

from attrs import evolve

from postpress_async.rotation._column_names import column_of
from postpress_async.rotation._fleet._columns import KNOWN, read_header
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._fleet._row import Cells, RowReader
from postpress_async.rotation._rows import Refusal, Row

_QUOTES: Final = 'in a quoted cell, write "" for each quote, and end the cell after the closing quote'
# A cell that may be the name of a column has only letters, spaces, _ and -. A row with a password also has a
# port or a URL, so not all of its cells match.
_WORDS: Final = re.compile(r"(?:[^\W\d]|[ _-])*")

_Record: TypeAlias = tuple[int, int, list[str] | None]
"""First line, last line and cells of a record; None instead of the cells if its quotes are wrong."""


class CsvTable:
    """The rows of a CSV file (RFC 4180)."""

    def __init__(self, file: FleetFile, columns: Sequence[str]) -> None:
        """Raise `FleetError` if the header cannot be read or has no account_id."""
        self.file = file
        with closing(file.lines()) as lines:
            names, _ = self._split(lines)
        positions, self.ignored_columns = read_header(names, file.error, columns)
        self._width = len(names)
        # `_read` appends an empty cell to each row. Columns that the header lacks refer to it.
        self._pick: Callable[[list[str]], Cells] = itemgetter(
            *(positions.get(name, self._width) for name in columns)
        )

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        with closing(self.file.lines()) as lines:
            _, records = self._split(lines)
            for ordinal, (first, last, cells) in enumerate(records):
                row = self._read(reader, ordinal, first, cells)
                if last > first and isinstance(row, Refusal):
                    # A quote that was meant literally joins the following lines to this row.
                    span = f"lines {first} to {last} are one row because of their quotes"
                    row = evolve(row, advice=f"{row.advice}; {span}")
                if row is not None:
                    yield row

    def _split(self, lines: Iterator[str]) -> tuple[list[str], Iterator[_Record]]:
        """Return the names in the header, and an iterator of the records after it."""
        # A blank row of a spreadsheet consists of delimiters.
        nonblank = ((n, line) for n, line in enumerate(lines, start=1) if line.strip(" \t\r\n,;"))
        header = next(nonblank, None)
        if header is None:
            raise self.file.error("has no rows: it needs a header, and a line for each account")
        number, line = header
        records = self._records(chain((line,), lines), _delimiter(line), number)
        names = next(records)[2]
        if names is None:
            raise self.file.error(f"has wrong quotes: {_QUOTES}", number)
        # `read_header` shows unknown names. A line that is not a header may be a row with a password.
        if "account_id" not in map(column_of, names) and not all(map(_WORDS.fullmatch, names)):
            raise self.file.error(
                f"has no header with account_id: start it with a line of column names, from {KNOWN}"
            )
        return names, records

    def _records(self, lines: Iterator[str], delimiter: str, first: int) -> Generator[_Record, None, None]:
        """Yield the records of *lines*, of which the first is line *first* of the file."""
        # Without `strict`, an unclosed quote would silently swallow the rest of the file.
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        skipped = first - 1
        while True:
            try:
                cells, fault = next(reader), ""
            except StopIteration:
                return
            except csv.Error as error:
                cells, fault = None, str(error)  # the csv module's own text, never the file's
            if "limit" in fault:
                size = csv.field_size_limit() // 1024
                raise self.file.error(f"has a cell of over {size} KiB: is a quote never closed?", first)
            if "end of data" in fault:
                raise self.file.error(f"opens a quote that is never closed: {_QUOTES}", first)
            last = skipped + reader.line_num
            yield first, last, cells
            first = last + 1

    def _read(
        self, reader: RowReader, ordinal: int, line: int, cells: list[str] | None
    ) -> Row | Refusal | None:
        """Return the row, or its refusal; None if it is blank."""
        if cells is None:
            return Refusal(ordinal, line, None, None, "quotes not doubled", _QUOTES)
        missing = self._width - len(cells)
        if missing < 0:
            if not any(map(str.strip, cells)):
                return None
            # Do not name the account: the cells have shifted, so its cell may contain part of a password.
            counts = f"it has {len(cells)} for {self._width} columns"
            advice = f"{counts}; put quotes around cells that contain a delimiter, or remove the extra cells"
            return Refusal(ordinal, line, None, None, "more cells than the header", advice)
        cells.extend([""] * (missing + 1))
        picked = self._pick(cells)
        if (not picked[0] or picked[0].isspace()) and not any(map(str.strip, cells)):
            return None
        return reader.read(ordinal, line, picked)


def _delimiter(header: str) -> str:
    """The delimiter that splits *header* into the most known columns, or on a tie into the most names."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([header], delimiter=delimiter))
        except csv.Error:
            return 0, 0
        return sum(column_of(name) is not None for name in names), len(names)

    return max(",;\t", key=score)
