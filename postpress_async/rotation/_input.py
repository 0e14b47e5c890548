"""Everything that ``session.rotate`` takes, as one kind of value."""

import asyncio
import os
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from functools import partial
from typing import Any, Final, Self, TypeAlias

from attrs import frozen

from postpress_async.models import ProxyChange
from postpress_async.rotation._pending_rows import Source
from postpress_async.rotation._row_digest import RowsDigest
from postpress_async.rotation._rows import Change, Refusal, Row, arows_of, rows_of, uses_pool
from postpress_async.rotation.fleet import Fleet
from postpress_async.rotation.fleet._frame import Frame, is_frame
from postpress_async.rotation.journal import Journal, OnFailed, OnUnknown
from postpress_async.rotation.journal._input_check import NO_POOL
from postpress_async.rotation.journal._preflight import known_row_count
from postpress_async.rotation.pool import ProxyPool

Changes: TypeAlias = (
    Iterable[Change]
    | AsyncIterable[Change]
    | Mapping[str, ProxyChange | None]
    | Fleet
    | Frame  # of pandas or polars
)
"""What ``session.rotate`` takes."""

_UNUSED: Final = "no row of the fleet would use the pool"


@frozen
class Given:
    """
    The accounts of a rotation.

    Attributes:
        rows: Each with its change, checked.
        finite: Whether they come to an end for certain, so that all of them can be told of.
        total: How many there are; None where that is not known beforehand.
        fleet: What a journal knows again by all of its rows; None if it must compare them one by one.
        again: Gives all rows from the first; None if they can be read only once.
    """

    rows: Source
    finite: bool
    total: int | None
    fleet: Fleet | None = None
    again: Callable[[], Iterator[Row | Refusal]] | None = None

    @classmethod
    def of(cls, changes: Changes, *, pooled: bool) -> Self:
        """
        What *changes* hold; accounts may be left to a pool where they are *pooled*.

        Raises:
            ValueError: A fleet leaves them to a pool, and there is none; or there is a pool, and no account
                is left to it, as far as that can be known without using the accounts up.
            FleetError: A frame has other columns than a fleet's.
        """
        if is_frame(changes):
            changes = Fleet.of(changes, pooled=pooled)
        if isinstance(changes, Fleet):
            if changes.pooled and not pooled:
                raise ValueError("the fleet was opened for a pool: pass pool, or give its rows a default")
            if pooled and not changes.pooled:
                raise ValueError(f"{_UNUSED}: open it with pooled=True, or leave pool out")
            if pooled and not changes.uses_pool():
                raise ValueError(f"{_UNUSED}: each row names a change of its own; leave pool out")
            return cls(changes.rows, finite=True, total=changes.counted, fleet=changes)
        # A mapping is an iterable too, of its keys: type checkers cannot know that these are none of ours.
        pairs: Any = changes.items() if isinstance(changes, Mapping) else changes
        if isinstance(pairs, AsyncIterable):
            return cls(arows_of(pairs, pooled=pooled), finite=False, total=None)
        # Not of an iterator: it would have no pairs left.
        if pooled and isinstance(changes, Collection) and not uses_pool(rows_of(pairs, pooled=True)):
            raise ValueError("no account would use the pool: each names a change of its own; leave pool out")
        total = len(changes) if isinstance(changes, Sized) else None
        again = None
        if total is not None and not isinstance(pairs, Iterator):
            again = partial(rows_of, pairs, pooled=pooled)
        return cls(rows_of(pairs, pooled=pooled), finite=total is not None, total=total, again=again)

    def kept_in(
        self,
        path: str | os.PathLike[str] | None,
        *,
        target: str,
        on_unknown: OnUnknown,
        on_failed: OnFailed,
        in_flight: int | None = None,
        pool: ProxyPool | None = None,
    ) -> Callable[[], Awaitable[Journal]] | None:
        """
        What opens the journal of these accounts at *path*; None where none is to be kept.

        Commits are sized by *in_flight*, the accounts in flight at once; None if workers elsewhere have them.

        Raises:
            ValueError: Neither "retry" nor "report" was chosen.
        """
        for name, choice in (("on_unknown", on_unknown), ("on_failed", on_failed)):
            if choice not in {"retry", "report"}:
                raise ValueError(f'{name} is "retry" or "report", not {choice!r}')
        if path is None:
            return None
        digest = None if self.fleet is None else self.fleet.digest
        pairs = None if self.again is None else _Pairs(self.again, self.total)
        return partial(
            self._open,
            path,
            digest=digest,
            target=target,
            on_unknown=on_unknown,
            on_failed=on_failed,
            in_flight=in_flight,
            rows=self.fleet or pairs,
            by_row=self.fleet is None,
            pool=NO_POOL if pool is None else pool.digest,
        )

    async def _open(self, path: str | os.PathLike[str], **options: Any) -> Journal:
        total = self.total
        if self.fleet is not None:
            await asyncio.to_thread(_survey, self.fleet, path)
            total = self.fleet.counted
        journal = Journal.open(path, total=total, **options)
        try:
            if self.again is not None and journal.by_row:
                await journal.row_hashes().check_all(self.again())
        except BaseException:
            await journal.aclose()
            raise
        return journal


@frozen
class _Pairs:
    """Pairs that can be read again, as a journal compares them with what it was begun with."""

    rows: Callable[[], Iterator[Row | Refusal]]
    counted: int | None

    @property
    def rows_digest(self) -> bytes:
        """See `KnownInput`."""
        digest = RowsDigest()
        for row in self.rows():
            digest.add(row)
        return digest.digest()


def _survey(fleet: Fleet, path: str | os.PathLike[str]) -> None:
    """Read all rows of *fleet* for their digest, if the journal will ask for it."""
    if not fleet.is_surveyed and known_row_count(path, fleet.digest) is None:
        fleet.survey()


def check_count(name: str, number: int | None) -> None:
    """Raise `ValueError` for a number of accounts that is none; None stands for no such number."""
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"{name} is a whole number from 1, not {number!r}")
