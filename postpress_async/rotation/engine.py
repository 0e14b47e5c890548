"""
Many accounts, each settled once.

A rotation is n workers on one shared iterator, and one more for each account that waits to be retried:
the input is read only as it is worked, so memory does not grow with the fleet. Of the session it needs
one function, so that a stub of a few lines tests it.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias

from postpress_async import events
from postpress_async._idempotency import Keys
from postpress_async.errors import Applied, PostPressError, SessionClosedError
from postpress_async.models import AccountPatched, ProxyChange
from postpress_async.rotation.halt import KeyHalt
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.outcome import Outcome, RotationSummary, State
from postpress_async.rotation.plan import Refusal, Row
from postpress_async.rotation.resume import DONE, OpenRows, RowKeys, Source

RESTING: Final = 10
"""Accounts that may back off at once, for each that may be in flight: memory stays bounded in an outage."""


Resting: TypeAlias = Callable[[bool], object]


class Update(Protocol):
    """What a rotation needs of a session."""

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: Keys, resting: Resting, /
    ) -> AccountPatched:
        """
        Update one account, or raise `PostPressError`.

        *resting* is called with True when it begins to back off, and with False when it goes on.
        """
        ...


class Rotation:
    """
    A rotation under way, made by ``session.rotate``: enter it, and iterate over what settles.

    Leaving the block before the last outcome stops the rotation: nothing new is sent, and what is in
    flight settles and is journaled. Leaving it by an exception (cancellation, a second Ctrl-C) gives up
    what is in flight, which is then ``unknown``. The next run on the same journal goes on from there.

    Attributes:
        summary: The numbers so far; final once the block is left.
    """

    def __init__(
        self,
        update: Update,
        rows: Source,
        *,
        in_flight: int,
        journal: Callable[[], Journal] | None = None,
        finite: bool = False,
        observer: events.Observer | None = None,
    ) -> None:
        self.summary: Final = RotationSummary()
        self._update: Final = update
        self._in_flight: Final = in_flight
        self._open_journal: Final = journal
        self._finite: Final = finite
        self._observer: Final = observer
        self._source: Final = rows
        self._settled: asyncio.Queue[Outcome | None] = asyncio.Queue(maxsize=in_flight)
        self._group: Final = asyncio.TaskGroup()
        self._journal: Journal | None = None
        self._run = secrets.token_hex(12)
        self._workers = 0
        self._resting = 0  # of the workers
        self._exhausted = False
        self._stopping = False
        self._heard = True  # whether somebody still wants outcomes
        self._broken: Exception | None = None
        self._key_error: str | None = None
        self._takers: set[asyncio.Task[None]] = set()
        self._entered = False
        self._began = 0.0
        self._halt = KeyHalt()

    # --- What a user calls ---

    def stop(self) -> None:
        """Send nothing new; what is in flight settles, and the iteration ends after it."""
        self._stopping = True
        self.summary.stopped = True
        for task in tuple(self._takers):
            if task is not asyncio.current_task():  # the input itself may say so
                task.cancel()  # it waits for an input that may never come

    async def run(self) -> RotationSummary:
        """Settle every account, for whoever does not care to look at each outcome."""
        async for _ in self:
            pass
        return self.summary

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if not self._entered:
            raise RuntimeError("a rotation is entered first: async with session.rotate(...) as rotation")
        outcome = await self._settled.get()
        if outcome is not None:
            return outcome
        self._settled.put_nowait(None)  # for whoever asks again
        if self._broken is not None:
            raise self._broken
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a rotation is entered once: make another one with session.rotate")
        self._entered = True
        self._began = time.monotonic()
        try:
            if self._open_journal is not None:
                self._journal = self._open_journal()
                self._take_up(self._journal)
            self._rows = OpenRows(self._source, self._journal)
            await self._group.__aenter__()
        except BaseException:
            if self._journal is not None:
                await self._journal.aclose()
            raise
        for _ in range(self._in_flight):
            self._hire()
        return self

    def _take_up(self, journal: Journal) -> None:
        self._run = journal.run
        done = journal.counts()
        for state in DONE:
            self.summary.states[state] = done[state]
        self.summary.resumed = self.summary.total
        self._halt = KeyHalt(works=done[State.PATCHED] > 0)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._workers and kind is None:
                self.stop()
            self._heard = False
            draining = asyncio.create_task(self._drain())  # more may wait to put than the queue holds
            try:
                await self._end_workers(kind, error, trace)
            finally:
                draining.cancel()
            if kind is None and self._finite and self._stopping and self._broken is None:
                await self._skip_the_rest()
            if self._key_error is not None and self._journal is not None:
                self._journal.reopen(self._key_error)
        finally:
            self.summary.elapsed = time.monotonic() - self._began
            self._settled = asyncio.Queue()
            self._settled.put_nowait(None)  # for whoever still asks
            if self._journal is not None:
                await self._journal.aclose()
        if kind is None and self._broken is not None:
            raise self._broken

    async def _drain(self) -> None:
        while True:
            await self._settled.get()

    async def _end_workers(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if error is None or group.exceptions != (error,):
                raise
            # The block's own exception goes on as it is, not wrapped with nothing.

    # --- The workers ---

    async def _work(self) -> None:
        try:
            while not self._stopping and self._workers - self._resting <= self._in_flight:
                if (taken := await self._take()) is None:
                    self._exhausted = True
                    break
                await self._tell(await self._settle(*taken))
        except PostPressError as error:  # of the journal; those of accounts are outcomes
            self._break(error)
        finally:
            self._workers -= 1
            if not self._workers:
                await self._deliver(None)

    async def _take(self) -> tuple[Row | Refusal, bool] | None:
        """The next row, if the input has one and nobody stops the rotation while it is waited for."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a worker is one
        self._takers.add(task)
        try:
            return await self._rows.take()
        except asyncio.CancelledError:
            if not self._stopping or task.uncancel():
                raise
            return None
        except Exception as error:  # the input is the caller's: what it raises ends the rotation as it is
            self._break(error)
            return None
        finally:
            self._takers.discard(task)

    def _break(self, error: Exception) -> None:
        """Send nothing more; what is in flight settles, and then *error* is raised."""
        self._broken = self._broken or error
        self._stopping = True

    def _hire(self) -> None:
        self._workers += 1
        self._group.create_task(self._work(), name="rotation-worker")

    def _rest(self, began: bool) -> None:
        """A worker whose call backs off is none: another one takes its place meanwhile."""
        self._resting += 1 if began else -1
        room = self._workers < (1 + RESTING) * self._in_flight
        if began and room and not self._stopping and not self._exhausted:
            self._hire()

    async def _settle(self, row: Row | Refusal, maybe_sent: bool) -> Outcome:
        if isinstance(row, Refusal):
            return Outcome.refused(row.ordinal, row.line, row.account_id, row.reason)
        began = time.monotonic()
        keys = RowKeys(self._run, row, self._journal, in_doubt=maybe_sent)
        try:
            patched = await self._update(row.account_id, row.change, keys, self._rest)
        except PostPressError as error:
            if maybe_sent and not error.attempts:
                error.applied = Applied.UNKNOWN  # nothing was learned of what an earlier run may have sent
            return Outcome.failed(row.ordinal, row.line, row.account_id, error, time.monotonic() - began)
        except BaseException:  # cancelled, or a mistake of a strategy or an input of the caller's
            # Given up while it may have been on its way.
            elapsed = time.monotonic() - began
            self._record(Outcome.given_up(row.ordinal, row.line, row.account_id, elapsed))
            raise
        elapsed = time.monotonic() - began
        return Outcome.patched(row.ordinal, row.line, row.account_id, len(patched.attempts), elapsed)

    async def _tell(self, outcome: Outcome) -> None:
        self._record(outcome)
        if self._journal is not None:
            await self._journal.room()
        if not self._stopping and (reason := self._halt.sees(outcome)) is not None:
            self._stopping = True
            self.summary.halted = reason
            self.summary.key_refused = True
            self._key_error = outcome.error_type
        if isinstance(outcome.error, SessionClosedError):
            self._break(outcome.error)  # the others would get no further
        await self._deliver(outcome)

    def _record(self, outcome: Outcome) -> None:
        self.summary.count(outcome)
        if self._journal is not None:
            self._journal.record(outcome)
        if self._observer is not None:
            settled = events.AccountSettled(
                outcome.account_id,
                outcome.ordinal,
                outcome.state,
                outcome.attempts,
                outcome.elapsed,
                outcome.error_type,
                outcome.scope,
                outcome.applied,
            )
            events.tell(self._observer, settled)

    async def _deliver(self, outcome: Outcome | None) -> None:
        if self._heard:
            await self._settled.put(outcome)

    async def _skip_the_rest(self) -> None:
        """Give every account that was not sent its row too."""
        while (taken := await self._rows.take()) is not None:
            row, maybe_sent = taken
            if not maybe_sent:  # what is in doubt keeps what the journal says of it, or does not say
                self._record(Outcome.skipped(row.ordinal, row.line, row.account_id or ""))
            if self._journal is not None:
                await self._journal.room()
