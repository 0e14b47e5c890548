"""
The fleet: the accounts of a rotation, and the change for each.

A fleet is read from CSV, JSON Lines or Parquet, from an SQL query, or from a pandas or polars frame. Every
row is validated. The `Refusal` of an invalid row names the line, the column and the reason. A fleet can be
read several times, so all rows can be validated before anything is sent.
"""

import os
from collections.abc import Callable, Generator
from functools import partial
from typing import Final, Self

from postpress_async.models import ProxyChangeLike
from postpress_async.rotation._column_names import TAG
from postpress_async.rotation._fleet._frame import Frame, FrameTable
from postpress_async.rotation._fleet._query import QueryTable
from postpress_async.rotation._fleet._reader import FleetReader, Survey, open_file
from postpress_async.rotation._pool_needs import Pooled
from postpress_async.rotation._rows import Refusal, Row

__all__ = ["Fleet", "Survey"]


class Fleet:
    """
    A fleet: named columns, and a row for each account.

    The columns are:

    - ``account_id``, which is required;
    - ``proxy``, in any form that a list of proxies can have;
    - ``host``, ``port``, ``protocol``, ``username`` and ``password`` instead of ``proxy``;
    - ``country`` and ``ip`` of a managed proxy.

    Case, ``_``, ``-`` and spaces in column names are ignored. Common other names such as ``id``, ``account``,
    ``user``, ``pass`` and ``proxy_host`` are recognized. An empty cell is a missing value. Spaces around a
    cell are removed, except in passwords.

    Attributes:
        name: The file's name without its folder; or ``<stdin>``, ``<query>`` or ``<frame>``.
    """

    def __init__(self, reader: FleetReader) -> None:
        """Use `open`, `open_query` or `of` instead."""
        self.name: Final[str] = reader.name
        self._reader = reader

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

        Parquet is recognized by its first bytes. CSV and JSON Lines are recognized by the file extension
        or, without one, by the first character. Standard input, and anything else that can be read only once,
        is copied to a private temporary file.

        Args:
            source: A path, or ``-`` for standard input.
            default: The change for rows with only an account; if None, such rows are refused.
            pooled: Whether such rows get their proxies from the pool of ``session.rotate``. If the pool has
                templates, or there are several pools by tag, pass the same pool or mapping here. A column
                that a pool needs, such as ``country``, then does not order a managed proxy.
            pool_by: If there are several pools, the column that contains the tag of a row's pool.

        Raises:
            ValueError: Both *default* and *pooled* are given; or the default is invalid; or the pool needs a
                column that describes the account or the proxy in a row, such as ``account_id`` or ``host``.
            FleetError: The file cannot be read, has another format, or has no rows.
        """
        return cls(FleetReader.open(partial(open_file, source), default, pooled, pool_by))

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
        copied to a private temporary file. This method blocks, so call it with `asyncio.to_thread` in an
        event loop. Use ``ORDER BY``: a later run recognizes the same input only in the same order.

        SQLite is opened read-only, and the query cannot attach another file. PostgreSQL, MySQL and MariaDB
        run the query in a read-only transaction, which cannot change tables. To prevent other effects, such
        as ``COPY ... TO`` and ``INTO OUTFILE``, use a database account with read access only. In other
        databases, the transaction is rolled back.

        Args:
            url: An SQLAlchemy URL, such as ``postgresql+psycopg://user:password@host/name``.
            query: SQL in the database's dialect, without parameters.
            default: As for `open`.
            pooled: As for `open`.
            pool_by: As for `open`.

        Raises:
            FleetError: The query fails, its columns are not those of a fleet, or it returns no rows. The
                message contains neither the password nor values of rows.
        """
        return cls(FleetReader.open(partial(QueryTable, url, query), default, pooled, pool_by))

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

        The frame is read again in each pass, so it must not change. The line of a row is its position in the
        frame, from 1, regardless of the index. A port may be a float without a fraction.

        Raises:
            FleetError: The frame is lazy, or its columns are not those of a fleet.
        """
        open_table = partial(FrameTable, frame)
        return cls(FleetReader.open(open_table, default, pooled, pool_by, may_be_empty=True))

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Unknown columns. For JSON Lines: the first twenty of those read so far."""
        return self._reader.ignored_columns

    def rows(self, done: bytes = b"") -> Generator[Row | Refusal, None, None]:
        """
        Yield each row, or its `Refusal`, starting from the first row.

        Memory use does not grow with the file, except for about 40 bytes per account to find duplicates.

        Args:
            done: One byte per row, at the index of its ordinal. Rows with a nonzero byte are skipped.

        Raises:
            FleetError: The file changed, or cannot be read to its end.
        """
        return self._reader.rows(done)

    def survey(self, on_refusal: Callable[[Refusal], object] | None = None) -> Survey:
        """
        Read and check the whole fleet once.

        A file must not change afterwards: a later pass fails at the first block that differs.

        Args:
            on_refusal: Called with the `Refusal` of each invalid row, in order. The survey itself keeps only
                their number and a few lines of each kind of fault.

        Raises:
            FleetError: The file changed, or cannot be read to its end.
        """
        return self._reader.survey(on_refusal)

    def close(self) -> None:
        """Delete the temporary copy, if there is one. The fleet cannot be read afterwards."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reader_of(fleet: Fleet) -> FleetReader:
    """Return the reader of *fleet*, which only the rotation uses; `Fleet` has the methods for users."""
    return fleet._reader  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
