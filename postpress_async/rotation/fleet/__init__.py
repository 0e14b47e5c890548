"""
The file that names a rotation's accounts and what each is to get.

CSV, JSON Lines or Parquet, from a path or standard input; the answer of a SQL query; a frame in Python.
Every row is checked as a model would be, and what is wrong is told by line, column and reason. All of
them can be read any number of times, so that all rows are checked before a byte is sent.
"""

import json
import os
from collections.abc import Callable, Generator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from attrs import Factory, define

from postpress_async.errors import FleetError
from postpress_async.models import ManagedProxy, ProxyChange
from postpress_async.rotation._faults import Faults
from postpress_async.rotation._row_digest import RowsDigest
from postpress_async.rotation._rows import Refusal, Row, uses_pool
from postpress_async.rotation.fleet._csv import CsvTable
from postpress_async.rotation.fleet._file import PARQUET, FleetFile
from postpress_async.rotation.fleet._frame import Frame, FrameTable
from postpress_async.rotation.fleet._jsonl import JsonLines
from postpress_async.rotation.fleet._parquet import ParquetTable
from postpress_async.rotation.fleet._row import RowReader
from postpress_async.rotation.fleet._sql import QueryTable

if TYPE_CHECKING:
    import hashlib

_TABLES: Final = (".csv", ".tsv")
_PARQUETS: Final = (".parquet", ".pq")
_JSON_LINES: Final = (".jsonl", ".ndjson", ".json-lines", ".jsonlines")


F = TypeVar("F", bound="Fleet")


class Table(Protocol):
    """Rows in some format, read by a `RowReader` as often as they are asked for."""

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Names of columns that are none of ours."""
        ...

    def rows(self, reader: RowReader, /) -> Generator[Row | Refusal, None, None]:
        """Each row, or why it is refused."""
        ...


class Origin(Protocol):
    """What a table is made from: a file, or a table that has no other."""

    @property
    def name(self) -> str:
        """Of a file, without its folder; or what stands for it."""
        ...

    def error(self, fact: str, /) -> FleetError:
        """The error that says *fact* of it."""
        ...

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """The hash over its content, ready to take more."""
        ...

    def close(self) -> None:
        """Delete the copy, if there is one."""
        ...


@define
class Survey:
    """
    What one reading of a whole fleet found.

    Attributes:
        rows: How many rows can be sent.
        managed: How many of them order a managed proxy.
        pooled: How many of them get a proxy of the pool.
        faults: The other rows, by kind of fault.
    """

    rows: int = 0
    managed: int = 0
    pooled: int = 0
    faults: Faults[Refusal] = Factory(Faults[Refusal])

    @property
    def refused(self) -> int:
        """How many rows cannot be sent."""
        return self.faults.count

    @property
    def kinds(self) -> str:
        """What the rows that can be sent get, in words and numbers."""
        kinds = (
            (self.rows - self.managed - self.pooled, "with a proxy of their own"),
            (self.managed, "with a managed proxy"),
            (self.pooled, "with one of the pool"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in kinds if count)


class Fleet:
    """
    A fleet: columns with names, and a row for each account.

    The columns are ``account_id``; ``proxy`` (a URL) or ``host``, ``port``, ``protocol``, ``username``
    and ``password``; ``country`` and ``ip``. Names are taken in any case, with ``_``, ``-`` or spaces,
    and so are ``id``, ``account``, ``user``, ``pass``, ``proxy_host`` and the like. An empty cell is not
    given. Spaces around a cell are dropped, but for a password's.

    Attributes:
        name: The file's name without its folder; or ``<stdin>``, ``<query>`` or ``<frame>``.
        pooled: Whether rows that name nothing but an account are left to a rotation's pool.
        counted: How many rows there are, refused ones included; None before a `survey`.
    """

    def __init__(self, file: Origin, table: Table, default: ProxyChange | None, *, pooled: bool) -> None:
        """Not for callers: use `open`, `open_query` or `of`."""
        if pooled and default is not None:
            raise ValueError("rows that name nothing get either the default, or a proxy of the pool")
        self.name: Final = file.name
        self.pooled: Final = pooled
        self.counted: int | None = None
        self._file = file
        self._table = table
        self._default = default
        self._digest: bytes | None = None
        self._uses_pool: bool | None = None
        self._rows_digest: bytes | None = None

    @classmethod
    def open(
        cls, source: str | os.PathLike[str], *, default: ProxyChange | None = None, pooled: bool = False
    ) -> Self:
        """
        The fleet in the file *source*; ``-`` is standard input.

        Parquet is known by its first bytes. CSV and JSON Lines are told apart by the file's extension, or
        else by the first character.
        Standard input, and whatever can be read only once, is copied to a private temporary file.

        Args:
            source: A path, or ``-``.
            default: What a row gets that names nothing but an account; without it, such a row is refused.
            pooled: Whether such a row gets its proxy from the pool that ``session.rotate`` is given.

        Raises:
            ValueError: It has a default, and is pooled too.
            FleetError: It cannot be read, is of another format, or has no rows.
        """
        file = FleetFile(source)
        try:
            return _begun(cls(file, _table(file), default, pooled=pooled))
        except BaseException:
            file.close()
            raise

    @classmethod
    def open_query(
        cls, url: str, query: str, *, default: ProxyChange | None = None, pooled: bool = False
    ) -> Self:
        """
        The fleet that a SQL *query* gives: ``SELECT id AS account_id, country FROM ...``.

        It takes the extra ``sql`` and the database's driver. It is asked once and read to its end into a
        private temporary file: in an event loop, call it by `asyncio.to_thread`. With ``ORDER BY`` a second
        run knows its input again.

        SQLite is opened read-only, and attaches no other file. PostgreSQL, MySQL and MariaDB run the query
        in a read-only transaction, which changes no table; use an account that may only read to exclude
        what is outside of tables, such as ``COPY ... TO`` and ``INTO OUTFILE``. Other databases run the query
        as it is, and the transaction is rolled back.

        Args:
            url: SQLAlchemy's, such as ``postgresql+psycopg://user:password@host/name``.
            query: As the database takes it, without parameters.
            default: As `open` has it.
            pooled: As `open` has it.

        Raises:
            FleetError: It cannot be asked, gives other columns than a fleet's, or no rows. Neither the
                password nor a value of a row is part of it.
        """
        table = QueryTable(url, query)
        try:
            return _begun(cls(table, table, default, pooled=pooled))
        except BaseException:
            table.close()
            raise

    @classmethod
    def of(cls, frame: Frame, *, default: ProxyChange | None = None, pooled: bool = False) -> Self:
        """
        The fleet in a pandas or polars *frame*, which may have no rows.

        It is no copy: the frame is read anew for each pass, and is to stay as it is. The line of a row is
        its number from 1, whatever the index says. Missing values are not given, and whole floats are ports.

        Raises:
            FleetError: It is lazy, or its columns are not a fleet's.
        """
        table = FrameTable(frame)
        return cls(table, table, default, pooled=pooled)

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Columns that are none of ours. Of JSON Lines: those met so far, twenty at most."""
        return self._table.ignored_columns

    @property
    def digest(self) -> bytes:
        """
        SHA-256 over the file's bytes, or a table's values, and what rows get that name nothing.

        A journal that was begun with the same one need not look at the rows. The default's password is no
        part of it: it says nothing about which rows there are.
        """
        if self._digest is None:
            digest = self._file.sha256()
            if self.pooled:
                digest.update(b"\0pool")
            if self._default is not None:
                digest.update(b"\0" + json.dumps(_shape(self._default)).encode())
            self._digest = digest.digest()
        return self._digest

    @property
    def is_surveyed(self) -> bool:
        """Whether all rows were read once."""
        return self._rows_digest is not None

    @property
    def rows_digest(self) -> bytes:
        """
        SHA-256 over the rows: the place, the account and the change of each.

        A journal knows its input by it, in whatever format it comes. It takes a `survey`, if there was none.
        """
        if self._rows_digest is None:
            self.survey()
            assert self._rows_digest is not None  # noqa: S101 - the survey made it
        return self._rows_digest

    def error(self, fact: str) -> FleetError:
        """The error that says *fact* of this fleet."""
        return self._file.error(fact)

    def rows(self, done: bytes = b"") -> Generator[Row | Refusal, None, None]:
        """
        Each row, or why it is refused; from the beginning every time.

        Memory does not grow with the file, but for some 40 bytes an account, to find those named twice.

        Args:
            done: A byte that is not 0 for each ordinal that is to be left out, as a journal has them.

        Raises:
            FleetError: On the way: the file changed, or is not what it began as.
        """
        return self._table.rows(RowReader(self._default, pooled=self.pooled, done=done))

    def survey(self, on_refusal: Callable[[Refusal], object] | None = None) -> Survey:
        """
        Read and check the whole fleet once.

        A file must stay as it is from now on: a later reading stops before the first block that is another.

        Args:
            on_refusal: Called with each row that cannot be sent, in the file's order. The survey itself keeps
                only their number and a few lines for each kind of fault.

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
                survey.pooled += row.change is None
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
        Whether a row gets a proxy of the pool; also if no row at all can be sent.

        Without a `survey`, rows are read up to the first that does.

        Raises:
            FleetError: The file changed, or cannot be read.
        """
        if self._uses_pool is None:
            with closing(self.rows()) as rows:
                self._uses_pool = uses_pool(rows)
        return self._uses_pool

    def close(self) -> None:
        """Delete the copy of what was no file. Nothing can be read after it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _begun(fleet: F) -> F:
    """*fleet*, if it has a row: most that is wrong with a file shows by the first one."""
    with closing(fleet.rows()) as rows:
        if next(rows, None) is None:
            raise fleet.error("has no rows: it needs a line for each account")
    return fleet


def _table(file: FleetFile) -> Table:
    if file.begins(PARQUET):
        return ParquetTable(file)
    if file.name.lower().endswith(_PARQUETS):
        file.refuse_other_formats()
        raise file.error("is no Parquet, as its name says it is: write it again, or name it by its format")
    return JsonLines(file) if _is_json_lines(file) else CsvTable(file)


def _is_json_lines(file: FleetFile) -> bool:
    name = file.name.lower()
    if name.endswith(_TABLES + _JSON_LINES):
        return name.endswith(_JSON_LINES)
    with closing(file.lines()) as blocks:
        first = next((text for lines in blocks for line in lines if (text := line.strip())), "")
    if first.startswith("["):
        raise file.error("is one JSON array: write an object a line, as jq -c '.[]' does")
    return first.startswith("{")


def _shape(change: ProxyChange) -> list[str | int | None]:
    if isinstance(change, ManagedProxy):
        return ["managed", change.country, change.ip]
    return ["custom", change.host, change.port, change.protocol, change.username]
