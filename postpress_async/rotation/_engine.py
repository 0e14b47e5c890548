"""
Many accounts, each settled once.

A rotation is n workers on one shared iterator, and one more for each account that waits to be retried:
the input is read only as it is worked, so memory does not grow with the fleet. What becomes of one
account is `errand`'s; of the session it needs one function, so that a stub of a few lines tests it.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import Applied, PostPressError, SessionClosedError
from postpress_async.rotation._account_task import Settler, Update
from postpress_async.rotation._canary_gate import Admission
from postpress_async.rotation._halt import Halt, Halts
from postpress_async.rotation._outcome import Outcome, RotationSummary, State
from postpress_async.rotation._outcome_queue import Outlet
from postpress_async.rotation._outcome_sink import Notes
from postpress_async.rotation._pending_rows import OpenRow, OpenRows, RowKeys, Source
from postpress_async.rotation._row_source import Intake
from postpress_async.rotation._rows import Refusal
from postpress_async.rotation.journal import Journal, Reach
from postpress_async.rotation.pool import PooledProxy, ProxyPool

_log = logging.getLogger("postpress_async.rotation")

RESTING: Final = 10
"""Accounts that may back off at once, for each that may be in flight: memory stays bounded in an outage."""


class Rotation:
    """
    A rotation under way, made by ``session.rotate``: enter it, and iterate over what settles.

    Leaving the block before the last outcome stops the rotation: nothing new is sent, and what is in
    flight settles and is journaled. Leaving it by an exception (cancellation, a second Ctrl-C) gives up
    what is in flight, which is then ``unknown``. The next run on the same journal goes on from there.

    Attributes:
        summary: The numbers so far; final once the block is left.
        total: Accounts in all, where that is known beforehand.
        notes: Not for callers: what the journal is to say of the command line, see `Journal.begin`.
    """

    def __init__(
        self,
        update: Update,
        rows: Source,
        *,
        in_flight: int,
        journal: Callable[[], Journal | Awaitable[Journal]] | None = None,
        finite: bool = False,
        total: int | None = None,
        halt: Halt | None = None,
        pool: ProxyPool | None = None,
        limit: int | None = None,
        waits: WaitGroup | None = None,
        observer: SafeObserver[events.Event] | None = None,
    ) -> None:
        self.summary: Final = RotationSummary()
        self.total: Final = total
        self.notes: Mapping[str, str] = {}
        self._in_flight: Final = in_flight
        self._open_journal: Final = journal
        self._finite: Final = finite
        self._halt: Final = halt or Halt()
        self._pool: Final = pool
        self._waits: Final = waits or WaitGroup()
        self._observer: Final = observer
        self._source: Final = rows
        self._settler = Settler(
            update, self._waits, self._rest, self._attempt_failed, pool, self._found, self._record
        )
        self._outlet = Outlet(in_flight)
        self._group: Final = asyncio.TaskGroup()
        self._journal: Notes | None = None
        self._reach: Reach | None = None
        self._completed_at: float | None = None
        self._run = ""
        self._workers = 0
        self._resting = 0  # of the workers
        self._stopping = False
        self._leaves_doubts = False  # whether what may have been sent is left to the operator
        self._broken: Exception | None = None
        self._failed: Final[Counter[tuple[str | None, Applied | None]]] = Counter()
        self._entered = False
        self._began = 0.0
        self._halts = Halts(self._halt)
        self._admission: Final = Admission(self._halt.canary, limit)
        self._intake: Final = Intake(self._admission)

    # --- What a user calls ---

    @property
    def completed_at(self) -> float | None:
        """
        Unix time at which the last account was settled, if earlier runs have left nothing to send.

        None before the rotation is entered, and if there is no journal or something is left.
        """
        return self._completed_at

    @property
    def retrying(self) -> int:
        """Accounts that back off now."""
        return self._resting

    def stop(self) -> None:
        """Send nothing more, no retry either; what is in flight settles, and the iteration ends after it."""
        self.summary.stopped = True
        self._end_sending()

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
        if (outcome := await self._outlet.get()) is not None:
            return outcome
        if self._broken is not None:
            raise self._broken
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a rotation is entered once: make another one with session.rotate")
        self._entered = True
        self._began = time.monotonic()
        try:
            await self._open()
            await self._group.__aenter__()
        except BaseException:
            if self._journal is not None:
                await self._journal.aclose()
            raise
        for _ in range(self._in_flight):
            self._hire()
        return self

    async def _open(self) -> None:
        """Have a journal, if there is to be one, and rows."""
        self._run = secrets.token_hex(12)  # not earlier: processes forked since then must not share it
        journal = None
        if self._open_journal is not None:
            opened = self._open_journal()
            self._journal = journal = await opened if isinstance(opened, Awaitable) else opened
            self._take_up(journal)
        self._intake.rows = OpenRows(self._source, journal)

    def _take_up(self, journal: Journal) -> None:
        self._run, self._reach = journal.run, journal.reach
        self._leaves_doubts = journal.leaves_doubts
        self._completed_at = None if journal.completed is None else journal.completed.at
        done = journal.done_counts()
        self.summary.states.update(done)
        self.summary.resumed = done.total()
        works = done[State.PATCHED] > 0
        connected = works or done[State.FAILED] > 0
        self._halts = Halts(self._halt, key_works=works, connected=connected)
        if self._pool is not None:
            self._pool.resume(journal.proxies())
        journal.begin(self.total, self.notes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._workers and kind is None:
                self.stop()
            self._outlet.leave()
            await self._end_workers(kind, error, trace)
            if kind is None and self._finite and self._broken is None and not self._intake.exhausted:
                await self._skip_the_rest()
            if self._broken is None:
                self._note_halt()
        finally:
            self.summary.elapsed = time.monotonic() - self._began
            self._outlet.end()
            if self._journal is not None:
                await self._journal.aclose()
        if kind is None and self._broken is not None:
            raise self._broken

    def _note_halt(self) -> None:
        """Decide what only the whole run shows, and have the accounts sent again that a bad key failed."""
        ended_early = self.summary.stopped or self.summary.halted is not None
        reason = None if self.summary.key_refused else self._halts.at_end()
        # A refused key matters more than why the run ended early; an unreachable host does not.
        if reason is not None and (self._halts.key_refused or not ended_early):
            self._halt_for(reason)
        if (key_error := self._halts.key_error) is not None:
            self._reopen(key_error)
        if self._journal is not None and self.summary.halted is not None:
            self._journal.halted(self.summary.halted)

    def _reopen(self, error_type: str) -> None:
        states = self.summary.states
        for applied, state in ((Applied.NO, State.SKIPPED), (Applied.UNKNOWN, State.UNKNOWN)):
            if count := self._failed[error_type, applied]:
                states[State.FAILED] -= count
                states[state] += count
        if self._journal is not None:
            self._journal.reopen(error_type)

    async def _end_workers(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if error is None or group.exceptions != (error,):
                raise
            # The block's own exception goes on as it is, not wrapped with nothing.

    def _end_sending(self) -> None:
        self._stopping = True
        self._waits.end()
        self._intake.end()

    def _break(self, error: Exception) -> None:
        """Send nothing more; what is in flight settles, and then *error* is raised."""
        self._broken = self._broken or error
        self._end_sending()

    # --- The workers ---

    async def _work(self) -> None:
        try:
            while not self._stopping and self._workers - self._resting <= self._in_flight:
                if (taken := await self._take()) is None:
                    break
                if isinstance(row := taken.row, Refusal):
                    outcome = Outcome.refused(row.ordinal, row.line, row.account_id, row.reason)
                elif taken.left:
                    outcome = Outcome.left_in_doubt(row.ordinal, row.line, row.account_id)
                else:
                    if self._reach is not None and row.ordinal >= self._reach.near:
                        await self._reach.extend(row.ordinal)
                    if self._intake.rows.changes is not None:
                        await self._intake.rows.changes.on_disk()
                    outcome = await self._settler.settle(row, RowKeys(self._run, taken, self._journal))
                await self._tell(outcome)
        except PostPressError as error:  # of the journal; those of accounts are outcomes
            self._break(error)
        finally:
            self._workers -= 1
            if not self._workers:
                self._outlet.end()

    async def _take(self) -> OpenRow | None:
        """The next row, if the input has one and nobody stops the rotation while it is waited for."""
        try:
            return await self._intake.take() if self._intake.may_wait() else self._intake.take_at_once()
        except Exception as error:  # the input is the caller's: what it raises ends the rotation as it is
            self._break(error)
            return None

    def _hire(self) -> None:
        self._workers += 1
        self._group.create_task(self._work(), name="rotation-worker")

    def _rest(self, began: bool) -> None:
        """A worker whose call backs off is none: another one takes its place meanwhile."""
        self._resting += 1 if began else -1
        room = self._workers < (1 + RESTING) * self._in_flight
        if began and room and not self._stopping and not self._intake.exhausted:
            self._hire()

    async def _tell(self, outcome: Outcome) -> None:
        self._record(outcome)
        if self._journal is not None and self._journal.is_behind:
            await self._journal.room()
        self._judge(outcome)
        if isinstance(outcome.error, SessionClosedError):
            self._break(outcome.error)  # the others would get no further
        self._outlet.put(outcome)
        if self._outlet.is_full:
            await self._outlet.has_room()

    def _judge(self, outcome: Outcome) -> None:
        """Halt if it is enough; otherwise let the others in, if they waited for the canary."""
        tried, reason = self._halts.tried, self._halts.sees(outcome)
        if self._stopping:  # what was in flight may still show that the key is refused
            if reason is not None and self._halts.key_refused and not self.summary.key_refused:
                self._halt_for(reason)
        elif reason is not None:
            self._halt_for(reason)
        elif not self._admission.is_open:
            self._admission.settled(tried=self._halts.tried > tried, lives=self._halts.canary_lives)

    def _halt_for(self, reason: str) -> None:
        self.summary.halted = reason
        self.summary.key_refused = self._halts.key_refused
        _log.warning("the rotation halts: %s", reason, extra={"halted": reason})
        self._end_sending()

    def _attempt_failed(self, error: PostPressError) -> None:
        if not self._stopping and (reason := self._halts.attempt_failed(error)) is not None:
            self._halt_for(reason)

    def _record(self, outcome: Outcome) -> None:
        self.summary.count(outcome)
        if self._journal is not None:
            self._journal.record(outcome)
        if outcome.state is State.FAILED:
            self._failed[outcome.error_type, outcome.applied] += 1
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
            self._observer(settled)

    def _found(self, proxy: PooledProxy, quarantined: bool) -> None:
        """A proxy of the pool failed an account."""
        self.summary.quarantined += quarantined
        if self._journal is not None:
            self._journal.proxy_failed(proxy.label, quarantined=quarantined)
        if quarantined:
            told = "%s failed its accounts: no other gets it in this run"
            _log.warning(told, proxy.label, extra={"proxy": proxy.label})
        if quarantined and self._observer is not None:
            self._observer(events.ProxyQuarantined(proxy.label))

    async def _skip_the_rest(self) -> None:
        """Give every account that was not sent its row too."""
        count = 0
        while (taken := await self._intake.rows.take()) is not None:
            count += 1
            if count % 500 == 0:
                await asyncio.sleep(0)  # there may be millions, and somebody who cannot wait for them
            if (outcome := taken.outcome_unsent()) is None:
                self.summary.states[taken.state_unsent] += 1
            else:
                self._record(outcome)
            if self._journal is not None and self._journal.is_behind:
                await self._journal.room()
