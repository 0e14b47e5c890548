"""A fleet as a table: comma, semicolon or tab between the cells, and a header that names the columns."""

import csv
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain
from operator import itemgetter
from typing import Final, TypeAlias

from attrs import evolve, frozen

from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet._file import FleetFile
from postpress_async.rotation.fleet._header import KNOWN, read_header
from postpress_async.rotation.fleet._row import COLUMNS, Cells, RowReader, meaning

# Of one record: the lines, first and last, and the cells; None where its quotes are wrong.
_Record: TypeAlias = tuple[int, int, list[str] | None]

_DELIMITERS: Final = ",;\t"
_QUOTES: Final = "write a quote inside quotes twice, and put nothing after the closing one"
# A line of such words alone is a header and no row: a proxy of one's own has a port or a URL.
_WORDS: Final = re.compile(r"(?:[^\W\d]|[ _-])*")


@frozen
class _Header:
    """
    Where the columns are.

    Attributes:
        width: How many cells the header has.
        ignored: The names that mean nothing here.
        pick: Gives a row's `Cells`; the row is to be *width* cells long and to have an empty one after them.
    """

    width: int
    ignored: tuple[str, ...]
    pick: Callable[[list[str]], Cells]


class CsvTable:
    """
    The rows of a CSV file, as RFC 4180 has them.

    Attributes:
        ignored_columns: Names in the header that are none of ours.
    """

    def __init__(self, file: FleetFile) -> None:
        """Raise `FleetError` if its header cannot be read or has no account_id."""
        self._file = file
        with closing(file.lines()) as blocks:
            self.ignored_columns = self._begin(blocks)[0].ignored

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        """Each row that is not blank, or why it is refused."""
        with closing(self._file.lines()) as blocks:
            header, records = self._begin(blocks)
            for ordinal, (begins, ends, cells) in enumerate(records):
                row = _read(header, reader, ordinal, begins, cells)
                if ends > begins and isinstance(row, Refusal):
                    # Rows can be lost in it, where a quote was meant as a letter.
                    lines = f"lines {begins} to {ends} are one row, by their quotes"
                    row = evolve(row, advice=f"{row.advice}; {lines}")
                if row is not None:
                    yield row

    def _begin(self, blocks: Iterator[list[str]]) -> tuple[_Header, Iterator[_Record]]:
        lines, skipped = chain.from_iterable(blocks), 0
        for line in lines:
            if line.strip(" \t\r\n,;"):
                break
            skipped += 1
        else:
            raise self._file.error("has no rows: it needs a header, and a line for each account")
        records = self._records(chain((line,), lines), _delimiter(line), skipped)
        first = next(records)[2]
        if first is None:
            raise self._file.error_in(skipped + 1, f"has wrong quotes: {_QUOTES}")
        return self._read_header(first), records

    def _records(self, lines: Iterator[str], delimiter: str, skipped: int) -> Generator[_Record, None, None]:
        # strict: else a quote that is never closed would swallow the rest of the file in silence.
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        begins = skipped + 1
        while True:
            try:
                cells, fault = next(reader), ""
            except StopIteration:
                return
            except csv.Error as error:
                cells, fault = None, str(error)  # its words are fixed ones
            if "limit" in fault:
                size = csv.field_size_limit() // 1024
                raise self._file.error_in(begins, f"has a cell of over {size} KiB: is a quote never closed?")
            if "end of data" in fault:
                raise self._file.error_in(begins, f"opens a quote that is never closed: {_QUOTES}")
            ends = skipped + reader.line_num
            yield begins, ends, cells
            begins = ends + 1

    def _read_header(self, names: list[str]) -> _Header:
        # What is no header may be a row, and have a password, which no error is to show.
        if "account_id" not in map(meaning, names) and not all(map(_WORDS.fullmatch, names)):
            raise self._file.error(f"has no header with an account_id: begin it with a line of {KNOWN}")
        header = read_header(names, self._file.error)
        # A column that is not there is read from the empty cell after the last.
        places = (header.places.get(name, header.width) for name in COLUMNS)
        pick: Callable[[list[str]], Cells] = itemgetter(*places)
        return _Header(header.width, header.ignored, pick)


def _delimiter(header: str) -> str:
    """The one of `_DELIMITERS` that makes the most of our columns out of *header*, or else the most names."""

    def gain(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([header], delimiter=delimiter))
        except csv.Error:
            return 0, 0
        return sum(meaning(name) is not None for name in names), len(names)

    return max(_DELIMITERS, key=gain)


def _read(
    header: _Header, reader: RowReader, ordinal: int, line: int, cells: list[str] | None
) -> Row | Refusal | None:
    """The row, or why it is refused; None where it is blank."""
    if cells is None:
        return Refusal(ordinal, line, None, None, "quotes not doubled", _QUOTES)
    if len(cells) > header.width:
        if not any(map(str.strip, cells)):
            return None
        # No account_id: the cells have moved, and a piece of a password may be in its place.
        advice = f"it has {len(cells)} for {header.width} columns; put quotes around what holds a delimiter"
        return Refusal(ordinal, line, None, None, "more cells than the header", advice)
    cells.extend([""] * (header.width + 1 - len(cells)))
    picked = header.pick(cells)
    if (not picked[0] or picked[0].isspace()) and not any(map(str.strip, cells)):
        return None
    return reader.read(ordinal, line, picked)
