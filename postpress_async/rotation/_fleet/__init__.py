"""
The fleet: the accounts of a rotation, and the change for each.

It is read from CSV, JSON Lines or Parquet, from an SQL query, or from a frame. Every row is validated; a
refusal names the line, the column and the reason. A fleet can be read several times, so all rows can be
validated before anything is sent.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from functools import cached_property
from typing import Final, Self, TypeAlias

from attrs import Factory, define

from postpress_async._converter import as_change
from postpress_async.errors import FleetError
from postpress_async.models import ManagedProxy, ProxyChange, ProxyChangeLike
from postpress_async.rotation._column_names import PARTS, TAG, field_of
from postpress_async.rotation._faults import Faults
from postpress_async.rotation._fleet._csv import CsvTable
from postpress_async.rotation._fleet._file import PARQUET, FleetFile
from postpress_async.rotation._fleet._frame import Frame, FrameTable
from postpress_async.rotation._fleet._jsonl import JsonLines
from postpress_async.rotation._fleet._parquet import ParquetTable
from postpress_async.rotation._fleet._query import QueryTable
from postpress_async.rotation._fleet._row import RowReader, cell_columns
from postpress_async.rotation._pool_needs import Pooled, PoolNeeds
from postpress_async.rotation._row_digest import RowsDigest
from postpress_async.rotation._rows import Refusal, Row, uses_pool
from postpress_async.rotation._selection import Selection

_Source: TypeAlias = FleetFile | QueryTable | FrameTable
_Table: TypeAlias = CsvTable | JsonLines | ParquetTable | QueryTable | FrameTable


@define
class Survey:
    """
    The result of reading a whole fleet once.

    Attributes:
        rows: Number of valid rows.
        managed: Number of valid rows that order a managed proxy.
        pooled: Number of valid rows that get a proxy from the pool.
        tags: Number of these rows by the tag of their pool, which is None if there is only one.
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
        """How many of the valid rows get which kind of proxy, in words."""
        kinds = (
            (self.rows - self.managed - self.pooled, "with a proxy of their own"),
            (self.managed, "with a managed proxy"),
            (self.pooled, "with one of the pool"),
        )
        return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)


class Fleet:
    """
    A fleet: named columns, and a row for each account.

    The columns are ``account_id``; ``proxy`` (in any form that a list of proxies can have), or ``host``,
    ``port``, ``protocol``, ``username`` and ``password``; ``country`` and ``ip``. Case, ``_``, ``-`` and
    spaces in names are ignored, and common other names such as ``id``, ``account``, ``user``, ``pass`` and
    ``proxy_host`` are recognized. An empty cell is a missing value. Spaces around a cell are removed, except
    in passwords.

    Attributes:
        name: The file's name without its folder; or ``<stdin>``, ``<query>`` or ``<frame>``.
        pooled: Whether rows with only an account get a proxy from the rotation's pool.
        needs: Internal. What that pool needs from them.
        counted: Number of rows, including refused ones; None before a `survey`.
        selection: Internal. The accounts whose rows it yields; None for all.
    """

    def __init__(
        self, file: _Source, table: _Table, default: ProxyChangeLike | None, *, needs: PoolNeeds | None
    ) -> None:
        """Use `open`, `open_query` or `of` instead."""
        self.name: Final[str] = file.name
        self.needs: Final = needs
        self.pooled: Final = needs is not None
        self.counted: int | None = None
        self._file = file
        self._table = table
        self._default = None if default is None else as_change(default)
        self._uses_pool: bool | None = None
        self._rows_digest: bytes | None = None
        self.selection: Selection | None = None

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        default: ProxyChangeLike | None = None,
        pooled: Pooled = False,
        pool_by: str = TAG,
    ) -> Self:
        """
        Open the fleet in a file.

        Parquet is recognized by its first bytes, CSV and JSON Lines by the extension, or without one by the
        first character. Standard input, and anything else that can be read only once, is copied to a private
        temporary file.

        Args:
            source: A path, or ``-`` for standard input.
            default: The change for rows with only an account; if None, such rows are refused.
            pooled: Whether such rows get their proxies from the pool of ``session.rotate``. If it has
                templates, or there are several pools by tag, pass the pool or the mapping here as well. The
                columns that they need order no managed proxy.
            pool_by: The column with the tag of a row's pool, if there are several.

        Raises:
            ValueError: Both *default* and *pooled* are given, or the default is wrong, or the pool needs a
                column that describes the account or its own proxy.
            FleetError: The file cannot be read, has another format, or has no rows.
        """
        needs, columns = _needs(default, pooled, pool_by)
        file = FleetFile(source)
        try:
            fleet = cls(file, _table(file, columns), default, needs=needs)
            _require_rows(fleet)
            return fleet
        except BaseException:
            file.close()
            raise

    @classmethod
    def open_query(
        cls,
        url: str,
        query: str,
        *,
        default: ProxyChangeLike | None = None,
        pooled: Pooled = False,
        pool_by: str = TAG,
    ) -> Self:
        """
        Open the fleet that an SQL query returns: ``SELECT id AS account_id, country FROM ...``.

        This requires the extra ``sql`` and the database's driver. The query runs once, and all rows are
        copied to a private temporary file; it blocks, so use `asyncio.to_thread` in an event loop. Use
        ``ORDER BY``, so that a second run recognizes its input.

        SQLite is opened read-only, and the query cannot attach another file. PostgreSQL, MySQL and MariaDB
        run the query in a read-only transaction, which cannot change tables; use an account with read access
        only to prevent other effects, such as ``COPY ... TO`` and ``INTO OUTFILE``. In other databases, the
        transaction is rolled back.

        Args:
            url: An SQLAlchemy URL, such as ``postgresql+psycopg://user:password@host/name``.
            query: SQL in the database's dialect, without parameters.
            default: As for `open`.
            pooled: As for `open`.
            pool_by: As for `open`.

        Raises:
            FleetError: The query fails, its columns are not a fleet's, or it returns no rows. The message
                contains neither the password nor values of rows.
        """
        needs, columns = _needs(default, pooled, pool_by)
        table = QueryTable(url, query, columns)
        try:
            fleet = cls(table, table, default, needs=needs)
            _require_rows(fleet)
            return fleet
        except BaseException:
            table.close()
            raise

    @classmethod
    def of(
        cls,
        frame: Frame,
        *,
        default: ProxyChangeLike | None = None,
        pooled: Pooled = False,
        pool_by: str = TAG,
    ) -> Self:
        """
        Open the fleet in a pandas or polars *frame*, which may have no rows.

        The frame is read again in each pass, so it must not change. The line of a row is its number from 1,
        regardless of the index. A port may be a float without a fraction.

        Raises:
            FleetError: The frame is lazy, or its columns are not a fleet's.
        """
        needs, columns = _needs(default, pooled, pool_by)
        table = FrameTable(frame, columns)
        return cls(table, table, default, needs=needs)

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Unknown columns. For JSON Lines: the first twenty of those read so far."""
        return self._table.ignored_columns

    @cached_property
    def digest(self) -> bytes:
        """
        SHA-256 over the file's bytes, or the values of a query or frame, and the default.

        If a journal has the same digest, the rows need not be compared. The default's password is left out,
        because changing it does not change the rows.
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
    def is_surveyed(self) -> bool:
        """Whether `survey` has read all rows."""
        return self._rows_digest is not None

    @property
    def rows_digest(self) -> bytes:
        """
        SHA-256 over the ordinal, the account and the change of each row; calls `survey` if necessary.

        By it, a journal recognizes its input in any format.
        """
        if self._rows_digest is None:
            self.survey()
            assert self._rows_digest is not None  # noqa: S101 - the survey sets it
        return self._rows_digest

    def error(self, fact: str) -> FleetError:
        """Return an error about this fleet."""
        return self._file.error(fact)

    def rows(self, done: bytes = b"") -> Generator[Row | Refusal, None, None]:
        """
        Yield each row, or its refusal, from the first row on.

        Memory use does not grow with the file, except for about 40 bytes per account to find duplicates.

        Args:
            done: One byte per ordinal; rows with a nonzero byte are skipped. See `Journal.done`.

        Raises:
            FleetError: The file changed, or cannot be read to its end.
        """
        rows = self._table.rows(RowReader(self._default, pooled=self.needs or False, done=done))
        if self.selection is None:
            return rows
        takes = self.selection.takes
        return (row for row in rows if takes(row.account_id))

    def only(self, selection: Selection) -> Self:
        """Internal. Return this fleet without the accounts that *selection* does not take."""
        if self.selection is selection:
            return self
        fleet = type(self)(self._file, self._table, self._default, needs=self.needs)
        fleet.selection = selection
        return fleet

    def survey(self, on_refusal: Callable[[Refusal], object] | None = None) -> Survey:
        """
        Read and check the whole fleet once.

        A file must not change afterwards: a later pass fails at the first block that differs.

        Args:
            on_refusal: Called with each refused row, in order. The survey keeps only their number and a few
                lines of each kind of fault.

        Raises:
            FleetError: The file changed, or cannot be read to its end.
        """
        if isinstance(self._file, FleetFile):
            self._file.sha256()
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
        """
        Whether any row gets a proxy from the pool, or no row is valid.

        Before a `survey`, this reads rows up to the first that gets one.

        Raises:
            FleetError: The file changed, or cannot be read.
        """
        if self._uses_pool is None:
            with closing(self.rows()) as rows:
                self._uses_pool = uses_pool(rows)
        return self._uses_pool

    def close(self) -> None:
        """Delete the temporary copy, if there is one. The fleet cannot be read afterwards."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_rows(fleet: Fleet) -> None:
    """Raise `FleetError` if *fleet* has no rows, or if reading the first one fails."""
    with closing(fleet.rows()) as rows:
        if next(rows, None) is None:
            raise fleet.error("has no rows: it needs a line for each account")


def _needs(
    default: ProxyChangeLike | None, pooled: Pooled, pool_by: str
) -> tuple[PoolNeeds | None, tuple[str, ...]]:
    """What the pool needs from the rows, and the columns of their cells."""
    if pooled is not False and default is not None:
        raise ValueError("default and pooled cannot be combined")
    needs = PoolNeeds.of(pooled, field_of(pool_by))
    if needs is not None and (
        names := {"", "account_id", "proxy", *PARTS}.intersection((*needs.names, needs.by))
    ):
        fact = f"a pool can be chosen by a column of its own, or country or ip, got {min(names)!r}"
        raise ValueError(f"{fact}: rename the column in the fleet, and in pool_by or the template")
    return needs, cell_columns(() if needs is None else needs.names)


def _table(file: FleetFile, columns: tuple[str, ...]) -> CsvTable | JsonLines | ParquetTable:
    name = file.name.lower()
    if file.starts_with(PARQUET):
        return ParquetTable(file, columns)
    if name.endswith((".parquet", ".pq")):
        file.refuse_other_formats()
        raise file.error("is not Parquet, although its name says so: write it again, or rename it")
    if name.endswith((".csv", ".tsv")):
        return CsvTable(file, columns)
    if name.endswith((".jsonl", ".ndjson", ".json-lines", ".jsonlines")):
        return JsonLines(file, columns)
    with closing(file.lines()) as lines:
        first = next(filter(None, map(str.strip, lines)), "")
    if first.startswith("["):
        raise file.error("is one JSON array: write one object per line, as jq -c '.[]' does")
    return JsonLines(file, columns) if first.startswith("{") else CsvTable(file, columns)


def _without_password(change: ProxyChange) -> list[str | int | None]:
    if isinstance(change, ManagedProxy):
        return ["managed", change.country, change.ip]
    return ["custom", change.host, change.port, change.protocol, change.username]
