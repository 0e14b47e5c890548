"""Converts any input of ``session.rotate`` to rows, and creates the rotation."""

import asyncio
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sized
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Self, TypeAlias, TypedDict, Unpack

from attrs import evolve, frozen

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import JournalError
from postpress_async.models import ProxyChangeLike
from postpress_async.rotation._account_task import Update
from postpress_async.rotation._engine import Executor, Rotation
from postpress_async.rotation._fleet import Fleet, reader_of
from postpress_async.rotation._fleet._frame import Frame, is_frame
from postpress_async.rotation._fleet._reader import FleetReader
from postpress_async.rotation._halt import Halt, as_halt
from postpress_async.rotation._pending_rows import InputRows
from postpress_async.rotation._pool import ProxyPool
from postpress_async.rotation._pool._tags import Pools, argument_of, digest_of, pools_of, without_selected
from postpress_async.rotation._pool_needs import Pooled, PoolNeeds
from postpress_async.rotation._row_digest import RowsDigest
from postpress_async.rotation._rows import (
    Change,
    Refusal,
    Row,
    arows_of,
    check_changes,
    check_pool_is_used,
    pairs_of,
    rows_of,
)
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._history import select
from postpress_async.rotation.journal._preflight import known_row_count
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown
from postpress_async.secret import Secret

Changes: TypeAlias = (
    Iterable[Change]
    | AsyncIterable[Change]
    | Mapping[str, ProxyChangeLike | str | None]
    | Fleet
    | Frame  # of pandas or polars
)
"""The inputs that ``session.rotate`` accepts."""


class JournalOptions(TypedDict, total=False):
    """The options of ``session.rotate`` that are passed on to its journal."""

    on_unknown: OnUnknown
    on_failed: OnFailed
    every: float | None
    keep: int | None
    accept_new_key: bool
    key_lifetime: float


class RotateOptions(JournalOptions, total=False):
    """The options that ``session.rotate`` and a rotation on a cluster have in common."""

    journal: str | os.PathLike[str] | None
    halt: str | int | Halt | None
    pool: ProxyPool | Mapping[str, ProxyPool] | None
    limit: int | None
    on: Collection[str] | Selection


_UNUSED_POOL: Final = "no row of the fleet would use the pool"


@frozen
class RotationInput:
    """The rows of a rotation."""

    rows: InputRows
    finite: bool  # whether the input certainly ends, so that all rows can be recorded if the run ends early
    total: int | None  # number of rows; None if not known beforehand
    # The input if it is a fleet, which a journal recognizes by a digest. Otherwise None, and the journal
    # compares the rows one by one.
    fleet: FleetReader | None = None
    # Returns all rows, from the first; None if they can be read only once.
    reread: Callable[[], Iterator[Row | Refusal]] | None = None
    selection: Selection | None = None  # the accounts whose rows these are; None for all accounts

    @classmethod
    def of(cls, changes: Changes, *, pooled: Pooled) -> Self:
        """
        Convert any input. *pooled* is the pool of the rotation, or several pools by tag.

        Raises `ValueError` if the fleet was opened for another pool, no account would use the pool, a tag has
        no pool, or a change is wrong. Pairs are checked only if they are in a collection: checking an
        iterator would consume it.
        """
        if is_frame(changes):
            changes = Fleet.of(changes, pooled=pooled)
        needs = PoolNeeds.of(pooled)
        if isinstance(changes, Fleet):
            fleet = reader_of(changes)
            if fleet.needs is not None and needs is None:
                raise ValueError("the fleet was opened for a pool: pass pool, or give it a default change")
            if needs is not None:
                _check_pooled(fleet, needs)
            return cls(fleet.rows, finite=True, total=fleet.counted, fleet=fleet)
        pairs = pairs_of(changes)
        if isinstance(pairs, AsyncIterable):
            return cls(arows_of(pairs, pooled=pooled), finite=False, total=None)
        read = partial(rows_of, pairs, pooled=pooled)
        if isinstance(changes, Collection):
            check_changes(pairs, pooled=pooled)
            if needs is not None:
                check_pool_is_used(read())
        total = len(changes) if isinstance(changes, Sized) else None
        rereadable = total is not None and not isinstance(pairs, Iterator)
        return cls(read(), finite=total is not None, total=total, reread=read if rereadable else None)

    def only(self, selection: Selection | None) -> "RotationInput":
        """Return only the rows of the accounts in *selection*, which may be filled later; None for all."""
        if selection is None:
            return self
        if self.fleet is not None:
            fleet = self.fleet.only(selection)
            return evolve(self, rows=fleet.rows, total=fleet.counted, fleet=fleet, selection=selection)
        if selection.accounts is None and selection.run is not None:  # selects all rows of this input
            return evolve(self, selection=selection)

        takes = selection.takes

        def selected(rows: Any) -> Any:
            if isinstance(rows, AsyncIterable):
                return (row async for row in rows if takes(row.account_id))
            return (row for row in rows if takes(row.account_id))

        reread = None if (read := self.reread) is None else lambda: selected(read())
        return evolve(self, rows=selected(self.rows), total=None, reread=reread, selection=selection)

    def journal_opener(
        self,
        path: str | os.PathLike[str] | None,
        *,
        target: str,
        in_flight: int | None = None,
        pools: Pools = MappingProxyType({}),
        api_key: Secret | None = None,
        **options: Unpack[JournalOptions],
    ) -> Callable[[], Awaitable[Journal]] | None:
        """
        Return a function that opens the journal at *path* for these rows; None without a path.

        *in_flight* is the concurrency limit, which determines the size of commits; None on a cluster.
        """
        _check_journal_options(options)
        every, keep = options.get("every"), options.get("keep")
        if path is None:
            if every is not None or keep is not None or self.selection is not None:
                raise ValueError("every, keep and on require a journal")
            return None
        if every is not None and self.selection is not None:
            raise ValueError("on cannot be combined with every: it starts a new run if none is unfinished")
        fleet, reread, selection = self.fleet, self.reread, self.selection

        async def open_journal() -> Journal:
            total, digest = self.total, None
            if selection is not None and selection.run is None:
                await asyncio.to_thread(_select, selection, path)
            if fleet is not None:
                await asyncio.to_thread(_survey, fleet, path)
                total, digest = fleet.counted, fleet.digest
            elif selection is not None and reread is not None:
                total = sum(1 for _ in reread())
            if selection is not None and total == 0:
                raise JournalError(f"nothing was sent: the input has none of the {selection.text} in {path}")
            journal = Journal(
                path,
                total=total,
                digest=digest,
                rows=fleet or (None if reread is None else _Pairs(reread, self.total)),
                by_row=fleet is None,
                target=target,
                in_flight=in_flight,
                pool=digest_of(pools),
                selection=selection,
                api_key=api_key,
                **options,
            )
            try:
                if reread is not None and journal.by_row:
                    hashes = journal.row_hashes()
                    await hashes.check_all(reread())
                    # With the hashes, the total reaches the disk before any new row is sent.
                    journal.record_total(total)
                    await hashes.on_disk()
            except BaseException:
                await journal.aclose()
                raise
            return journal

        return open_journal


def make_rotation(
    update: Update,
    changes: Changes,
    *,
    in_flight: int,
    target: str,
    api_key: Secret | None,
    waits: WaitGroup,
    observer: SafeObserver[events.Event] | None,
    executor: Executor | None = None,
    journal: str | os.PathLike[str] | None = None,
    halt: str | int | Halt | None = None,
    pool: ProxyPool | Mapping[str, ProxyPool] | None = None,
    limit: int | None = None,
    on: Collection[str] | Selection = (),
    **options: Unpack[JournalOptions],
) -> Rotation:
    """
    Create a rotation. See ``session.rotate`` for the errors and for the arguments not listed here.

    Args:
        in_flight: Accounts processed at once; an *executor* may change the number later.
        target: The base URL to which requests are sent.
        api_key: The API key, which the journal compares with that of earlier runs; None if only other
            processes have it.
        executor: Carries out the calls; None if this process carries them out.
    """
    check_count("limit", limit)
    selection = Selection.of(on)
    pools = without_selected(pools_of(pool), selection)
    rotation_input = RotationInput.of(changes, pooled=pool or False).only(selection)
    opener = rotation_input.journal_opener(
        journal,
        target=target,
        in_flight=in_flight if executor is None else None,
        pools=pools,
        api_key=api_key,
        **options,
    )
    return Rotation(
        update,
        rotation_input.rows,
        in_flight=in_flight,
        journal=opener,
        finite=rotation_input.finite,
        total=rotation_input.total,
        halt=as_halt(halt),
        pool=argument_of(pools),
        limit=limit,
        waits=waits,
        observer=observer,
        executor=executor,
    )


def _check_journal_options(options: JournalOptions) -> None:
    for name in ("on_unknown", "on_failed"):
        choice = options.get(name, "retry")
        if choice not in {"retry", "report"}:
            raise ValueError(f'{name} must be "retry" or "report", got {choice!r}')
    check_count("keep", options.get("keep"))
    every = options.get("every")
    if every is not None and not every >= 0:
        raise ValueError(f"every must be a number of seconds from 0, got {every!r}")
    key_lifetime = options.get("key_lifetime", 1.0)
    if not key_lifetime > 0:
        raise ValueError(f"key_lifetime must be a number of seconds above 0, got {key_lifetime!r}")


def _check_pooled(fleet: FleetReader, needs: PoolNeeds) -> None:
    if fleet.needs is None:
        raise ValueError(f"{_UNUSED_POOL}: open it with pooled=True, or leave pool out")
    if fleet.needs.columns != needs.columns:
        raise ValueError(
            "the fleet was opened for another pool: open it with pooled=pool, and pass the same pool"
        )
    if needs.names and fleet.counted is None:
        faults = [fault for fault in fleet.survey().faults if fault.first.column in fleet.needs.names]
        if faults:
            raise ValueError(f"{fleet.name}: {'; '.join(fault.sentence() for fault in faults)}")
    if not fleet.uses_pool():
        raise ValueError(f"{_UNUSED_POOL}: each row names a change of its own; leave pool out")


@frozen
class _Pairs:
    """A `KnownInput` of pairs in memory."""

    rows: Callable[[], Iterator[Row | Refusal]]
    counted: int | None

    @property
    def rows_digest(self) -> bytes:
        digest = RowsDigest()
        for row in self.rows():
            digest.add(row)
        return digest.digest()


def _select(selection: Selection, path: str | os.PathLike[str]) -> None:
    with JournalReader(path) as view:
        select(selection, view)


def _survey(fleet: FleetReader, path: str | os.PathLike[str]) -> None:
    """Read all rows of *fleet* to compute their digest, unless the journal does not need it."""
    if fleet.counted is None and known_row_count(path, fleet.digest) is None:
        fleet.survey()


def check_count(name: str, number: int | None) -> None:
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
