"""Reads a fleet in any format, for `Fleet` and for the rotation."""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from functools import cached_property
from typing import Self, TypeAlias

from attrs import Factory, define, evolve, field

from postpress_async._converter import as_change
from postpress_async.models import ManagedProxy, ProxyChange, ProxyChangeLike
from postpress_async.rotation._column_names import PARTS, field_of
from postpress_async.rotation._faults import Faults
from postpress_async.rotation._fleet._columns import read_batches
from postpress_async.rotation._fleet._csv import CsvTable
from postpress_async.rotation._fleet._file import PARQUET, FleetFile
from postpress_async.rotation._fleet._frame import FrameTable
from postpress_async.rotation._fleet._jsonl import JsonLines
from postpress_async.rotation._fleet._parquet import ParquetTable
from postpress_async.rotation._fleet._query import QueryTable
from postpress_async.rotation._fleet._row import RowReader, cell_columns
from postpress_async.rotation._pool_needs import Pooled, PoolNeeds
from postpress_async.rotation._row_digest import RowsDigest
from postpress_async.rotation._rows import Refusal, Row, uses_pool
from postpress_async.rotation._selection import Selection

Table: TypeAlias = CsvTable | JsonLines | ParquetTable | QueryTable | FrameTable


@define
class Survey:
    """
    The result of reading a whole fleet once.

    Attributes:
        rows: Number of valid rows.
        managed: Number of valid rows that order a managed proxy.
        pooled: Number of valid rows that get a proxy from the pool.
        tags: The same number for each pool, by its tag; the tag is None if there is only one pool.
        faults: The refused rows, by kind of fault.
    """

    rows: int = 0
    managed: int = 0
    pooled: int = 0
    tags: Counter[str | None] = Factory(Counter)
    faults: Faults[Refusal] = Factory(Faults[Refusal])

    @property
    def refused(self) -> int:
        """Number of refused rows."""
        return self.faults.count

    @property
    def kinds(self) -> str:
        """The number of valid rows by kind of proxy, such as ``5 with a managed proxy``."""
        kinds = (
            (self.rows - self.managed - self.pooled, "with a proxy of their own"),
            (self.managed, "with a managed proxy"),
            (self.pooled, "with a proxy from the pool"),
        )
        return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)


@define(eq=False, slots=False)
class FleetReader:
    """Reads the rows of a fleet. The methods that `Fleet` also has are documented there."""

    _table: Table
    _default: ProxyChange | None
    needs: PoolNeeds | None  # what the pool needs from rows with only an account; None without a pool
    selection: Selection | None = None  # the accounts whose rows are read; None for all
    counted: int | None = field(default=None, init=False)  # valid and refused rows; None before a `survey`
    _uses_pool: bool | None = field(default=None, init=False)  # None before it is known
    _rows_digest: bytes | None = field(default=None, init=False)

    @classmethod
    def open(
        cls,
        open_table: Callable[[tuple[str, ...]], Table],
        default: ProxyChangeLike | None,
        pooled: Pooled,
        pool_by: str,
        *,
        may_be_empty: bool = False,
    ) -> Self:
        """Open a table by calling *open_table* with the columns to read; see `Fleet.open`."""
        if pooled is not False and default is not None:
            raise ValueError("default and pooled cannot be combined")
        needs = PoolNeeds.of(pooled, field_of(pool_by))
        names = () if needs is None else needs.names
        reserved = {"", "account_id", "proxy", *PARTS}
        if needs is not None and (wrong := reserved.intersection((*names, needs.by))):
            fact = (
                f"the column {min(wrong)!r} has a fixed meaning and cannot choose a pool or fill a template"
            )
            raise ValueError(f"{fact}: rename the column in the fleet, and in pool_by or the template")
        change = None if default is None else as_change(default)
        reader = cls(open_table(cell_columns(names)), change, needs)
        try:
            with closing(reader.rows()) as rows:
                if not may_be_empty and next(rows, None) is None:
                    raise reader._file.error("has no rows: it needs a line for each account")
        except BaseException:
            reader.close()
            raise
        return reader

    @property
    def _file(self) -> FleetFile | FrameTable:
        return self._table if isinstance(self._table, FrameTable) else self._table.file

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        return self._table.ignored_columns

    @cached_property
    def digest(self) -> bytes:
        """
        SHA-256 of the file's content, or the values of a query or frame, and the options that affect rows.

        If a journal has the same digest, the rows need not be compared. The default's password is left out,
        because an input with another password is still the same input.
        """
        digest = self._file.sha256()
        if self.needs is not None:
            digest.update(b"\0pool" + (repr(self.needs).encode() if self.needs.names else b""))
        if self._default is not None:
            digest.update(b"\0" + json.dumps(_without_password(self._default)).encode())
        if self.selection is not None:
            digest.update(f"\0{self.selection.run} {self.selection.text}".encode())
        return digest.digest()

    @property
    def rows_digest(self) -> bytes:
        """The `RowsDigest` of all rows, with which a journal recognizes the same input in another format."""
        if self._rows_digest is None:
            self.survey()
            assert self._rows_digest is not None  # noqa: S101 - the survey sets it
        return self._rows_digest

    def rows(self, done: bytes = b"") -> Generator[Row | Refusal, None, None]:
        reader, table = RowReader(self._default, self.needs, done), self._table
        if isinstance(table, CsvTable | JsonLines):
            rows = table.rows(reader)
        else:
            rows = read_batches(table.batches(), reader)
        if self.selection is None:
            return rows
        takes = self.selection.takes
        return (row for row in rows if takes(row.account_id))

    def only(self, selection: Selection) -> "FleetReader":
        return self if self.selection is selection else evolve(self, selection=selection)

    def survey(self, on_refusal: Callable[[Refusal], object] | None = None) -> Survey:
        if isinstance(self._file, FleetFile):
            self._file.sha256()  # from now on, a pass fails if the file has changed
        survey, digest = Survey(), RowsDigest()
        for row in self.rows():
            digest.add(row)
            if isinstance(row, Row):
                survey.rows += 1
                survey.managed += isinstance(row.change, ManagedProxy)
                if row.change is None:
                    survey.pooled += 1
                    survey.tags[row.tag] += 1
            else:
                survey.faults.add(row)
                if on_refusal is not None:
                    on_refusal(row)
        self.counted = survey.rows + survey.refused
        self._uses_pool = survey.pooled > 0 or not survey.rows
        self._rows_digest = digest.digest()
        return survey

    def uses_pool(self) -> bool:
        """Whether any row gets a proxy from the pool, or no row is valid. Without a `survey`, reads rows."""
        if self._uses_pool is None:
            with closing(self.rows()) as rows:
                self._uses_pool = uses_pool(rows)
        return self._uses_pool

    def close(self) -> None:
        self._file.close()


def open_file(
    source: str | os.PathLike[str], columns: tuple[str, ...]
) -> CsvTable | JsonLines | ParquetTable:
    file = FleetFile(source)
    try:
        return _format_of(file)(file, columns)
    except BaseException:
        file.close()
        raise


def _format_of(file: FleetFile) -> type[CsvTable | JsonLines | ParquetTable]:
    name = file.name.lower()
    if file.first_bytes().startswith(PARQUET):
        return ParquetTable
    if name.endswith((".parquet", ".pq")):
        raise file.error("is not Parquet, although its name says so: write it again, or rename it")
    if name.endswith((".csv", ".tsv")):
        return CsvTable
    if name.endswith((".jsonl", ".ndjson", ".json-lines", ".jsonlines")):
        return JsonLines
    with closing(file.lines()) as lines:
        first = next(filter(None, map(str.strip, lines)), "")
    if first.startswith("["):
        raise file.error("is one JSON array: write one object per line, as jq -c '.[]' does")
    return JsonLines if first.startswith("{") else CsvTable


def _without_password(change: ProxyChange) -> list[str | int | None]:
    if isinstance(change, ManagedProxy):
        return ["managed", change.country, change.ip]
    return ["custom", change.host, change.port, change.protocol, change.username]
