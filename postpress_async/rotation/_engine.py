"""
The rotation itself: updates each account of the input once.

A bounded number of workers share one iterator over the input, plus one more worker for each account in
backoff. The input is read only as fast as it is processed, so memory does not grow with its length.
`AccountRunner` updates a single account. Of the session it needs a single function, which tests can replace
with a stub.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

from attrs import evolve

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import Applied, NotSentError, PostPressError, Scope, SessionClosedError
from postpress_async.rotation._account_task import AccountRunner, Update
from postpress_async.rotation._canary import draw_canary
from postpress_async.rotation._canary_gate import CanaryGate
from postpress_async.rotation._failure_monitor import FailureMonitor
from postpress_async.rotation._halt import Halt
from postpress_async.rotation._outcome import (
    Outcome,
    RotationSummary,
    State,
    count_outcome,
    not_sent_error,
    settled_event,
)
from postpress_async.rotation._outcome_queue import OutcomeQueue
from postpress_async.rotation._outcome_sink import OutcomeSink
from postpress_async.rotation._pending_rows import InputRows, PendingRow, PendingRows
from postpress_async.rotation._pool import PooledProxy, ProxyPool
from postpress_async.rotation._pool._allocator import ProxyAllocator, Quarantine, unix_clock
from postpress_async.rotation._pool._tags import pools_of
from postpress_async.rotation._pool_needs import Tag
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._row_source import RowSource
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._row_hashes import RowHashes
from postpress_async.rotation.journal._watermark import SendWatermark

_log = logging.getLogger("postpress_async.rotation")

BACKING_OFF: Final = 10
"""Accounts that may back off at once for each that may be in flight; bounds the memory used in an outage."""


class Rotation:
    """
    A running rotation, made by ``session.rotate``: enter it with ``async with``, then iterate over its
    outcomes.

    Leaving the block early stops the rotation: nothing new is sent, and requests in flight complete and are
    journaled. Leaving it by an exception, such as a cancellation, also cancels the requests in flight, whose
    outcome is then ``unknown``. The next run on the same journal continues from there.

    Args:
        drain: Whether every row gets an outcome even if the rotation is stopped or halts.

    Attributes:
        summary: The counts so far; final once the block is left.
        total: Number of accounts; None if not known beforehand.
        completed_at: Unix time at which earlier runs completed the last account; None if they left accounts
            to send, if there is no journal, and before the block is entered.
        next_run_at: Unix time from which the next run is due, if the latest one is complete and *every* was
            given; otherwise None.
        input_edit: What is new in the input since an earlier run, such as ``3 rows more``; otherwise None.
        notes: Internal. What `Journal.begin` stores about the command line.
    """

    def __init__(
        self,
        update: Update,
        rows: InputRows,
        *,
        in_flight: int,
        journal: Callable[[], Journal | Awaitable[Journal]] | None = None,
        finite: bool = False,
        total: int | None = None,
        halt: Halt | None = None,
        pool: ProxyPool | Mapping[str, ProxyPool] | None = None,
        limit: int | None = None,
        drain: bool = False,
        waits: WaitGroup | None = None,
        observer: SafeObserver[events.Event] | None = None,
    ) -> None:
        self.summary: Final = RotationSummary()
        self.total: Final = total
        self.completed_at: float | None = None
        self.next_run_at: float | None = None
        self.input_edit: str | None = None
        self.notes: Mapping[str, str] = {}
        self._in_flight: Final = in_flight
        self._open_journal: Final = journal
        self._finite: Final = finite
        self._drain: Final = drain
        self._halt: Final = halt or Halt()
        self._pools: Final = pools_of(pool)
        self._waits: Final = waits or WaitGroup()
        self._observer: Final = observer
        self._input: Final = rows
        self._allocators: Final[dict[Tag, ProxyAllocator]] = {}
        self._runner = AccountRunner(
            update=update,
            waits=self._waits,
            pools=self._allocators,
            on_backoff=self._on_backoff,
            on_attempt_failed=self._on_attempt_failed,
            on_cancelled=self._on_cancelled,
            can_resume=not drain,
        )
        self._outcomes = OutcomeQueue(in_flight)
        self._group: Final = asyncio.TaskGroup()
        self._journal: OutcomeSink | None = None
        self._row_hashes: RowHashes | None = None
        self._watermark: SendWatermark | None = None
        self._run = ""
        self._workers = self._backing_off = 0  # workers, and how many of them back off
        self._stopping = self._leaves_doubts = False  # the latter: rows in doubt are left to the operator
        self._error: Exception | None = None
        self._failed: Final[Counter[tuple[str | None, Applied | None]]] = Counter()
        self._entered = False
        self._started_at = 0.0
        self._monitor = FailureMonitor(self._halt)
        self._canary_gate: Final = CanaryGate(self._halt.canary, limit)
        self._row_source: Final = RowSource(self._canary_gate)

    # --- Public methods ---

    @property
    def retrying(self) -> int:
        """Accounts that are backing off now."""
        return self._backing_off

    @property
    def proxies_failing(self) -> bool:
        """Whether accounts wait because most proxies of a pool fail at the same time."""
        return any(allocator.paused for allocator in self._allocators.values())

    def stop(self) -> None:
        """Send nothing more, not even retries. Iteration ends once the requests in flight are completed."""
        self.summary.stopped = True
        self._end_sending()

    async def run(self) -> RotationSummary:
        """Process all accounts without looking at each outcome, and return the summary."""
        async for _ in self:
            pass
        return self.summary

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if not self._entered:
            raise RuntimeError("enter the rotation first: async with session.rotate(...) as rotation")
        if (outcome := await self._outcomes.get()) is not None:
            return outcome
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a rotation cannot be entered twice: make a new one with session.rotate")
        self._entered = True
        self._started_at = time.monotonic()
        try:
            await self._open()
            await self._group.__aenter__()
        except BaseException:
            if self._journal is not None:
                await self._journal.aclose()
            raise
        for _ in range(self._in_flight):
            self._start_worker()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._workers and kind is None:
                self.stop()
            self.summary.unconsumed += self._outcomes.abandon()
            try:
                await self._group.__aexit__(kind, error, trace)
            except BaseExceptionGroup as group:
                if error is None or group.exceptions != (error,):
                    raise
                # Nothing else failed, so let the block's own exception through without a group around it.
            if kind is None and self._finite and self._error is None and not self._row_source.exhausted:
                await self._skip_unread_rows()
            if self._error is None:
                self._record_halt()
        finally:
            self.summary.elapsed = time.monotonic() - self._started_at
            self._outcomes.end()
            if self._journal is not None:
                self._record_end(failed=kind is not None)
                await self._journal.aclose()
        if kind is None and self._error is not None:
            raise self._error

    # --- Start and end ---

    async def _open(self) -> None:
        """Open the journal, if any, and the input."""
        self._run = secrets.token_hex(12)  # not in __init__: forked processes must not share it
        clock = unix_clock()
        for tag, pool in self._pools.items():
            self._allocators[tag] = ProxyAllocator(
                pool,
                may_wait=self._waits.waits_out_outages,
                on_proxy=self._on_proxy,
                observer=self._observer,
                clock=clock,
            )
        journal = None
        if self._open_journal is not None:
            opened = self._open_journal()
            self._journal = journal = await opened if isinstance(opened, Awaitable) else opened
            self._resume(journal)
        # If the run is complete and the next is not due, the input may be another one, and is not read.
        leaves_alone = journal is not None and journal.next_run_at is not None
        source: InputRows = iter(()) if leaves_alone else self._input
        source, canary = await draw_canary(source, journal, self._halt.canary, self.total)
        rows = PendingRows(source, journal, canary)
        self._row_hashes = rows.hashes
        self._row_source.read = rows.next

    def _resume(self, journal: Journal) -> None:
        self._run, self._watermark = journal.run, journal.watermark
        self._leaves_doubts = journal.leaves_doubts
        self.completed_at, self.next_run_at = journal.completed_at, journal.next_run_at
        self.input_edit = journal.input_edit
        done = journal.done_counts()
        self.summary.states.update(done)
        self.summary.resumed = done.total()
        key_works = done[State.PATCHED] > 0 and journal.same_key
        connected = done[State.PATCHED] + done[State.FAILED] > 0
        self._monitor = FailureMonitor(self._halt, key_works=key_works, connected=connected)
        if self._allocators:
            accounts, quarantines = journal.proxies(), journal.quarantines()
            for allocator in self._allocators.values():
                allocator.resume(accounts, quarantines)
            self._count_quarantined()
        journal.begin(self.total, self.notes)

    def _end_sending(self) -> None:
        self._stopping = True
        self._waits.end()
        if not self._drain:
            self._row_source.close()

    def _abort(self, error: Exception) -> None:
        """Send nothing more, and raise *error* once the requests in flight are completed."""
        self._error = self._error or error
        self._end_sending()

    def _halt_for(self, reason: str) -> None:
        self.summary.halted = reason
        self.summary.key_refused = self._monitor.key_refused
        _log.warning("rotation halted: %s", reason, extra={"halted": reason})
        self._end_sending()

    def _record_halt(self) -> None:
        """Halt for reasons that only the whole run shows, and record the halt."""
        ended_early = self.summary.stopped or self.summary.halted is not None
        reason = None if self.summary.key_refused else self._monitor.at_end()
        # A refused key is more important than why the run ended early; an unreachable host is not.
        if reason is not None and (self._monitor.key_refused or not ended_early):
            self._halt_for(reason)
        if (key_error := self._monitor.key_error) is not None:
            self._reopen(key_error)
        if self._journal is not None and self.summary.halted is not None:
            self._journal.halted(self.summary.halted)

    def _record_end(self, *, failed: bool) -> None:
        """Tell the journal whether the run was stopped before the last row of its input."""
        is_done = self._row_source.exhausted and not self.summary.stopped and self._error is None
        if self._journal is not None and (failed or not is_done):
            self._journal.interrupted()

    def _reopen(self, error_type: str) -> None:
        """Have the next run send the accounts that failed only because of the API key."""
        states = self.summary.states
        for applied, state in ((Applied.NO, State.SKIPPED), (Applied.UNKNOWN, State.UNKNOWN)):
            if count := self._failed[error_type, applied]:
                states[State.FAILED] -= count
                states[state] += count
        if self._journal is not None:
            self._journal.reopen(error_type)

    async def _skip_unread_rows(self) -> None:
        """Record an outcome for each row that was not read."""
        count = 0
        while (pending := await self._row_source.read()) is not None:
            count += 1
            if count % 500 == 0:
                await asyncio.sleep(0)  # there may be millions, and other tasks must run
            self._record_unsent(pending)
            if self._journal is not None:
                await self._journal.room()

    # --- Workers ---

    def _start_worker(self) -> None:
        self._workers += 1
        self._group.create_task(self._work(), name="rotation-worker")

    async def _work(self) -> None:
        try:
            while self._goes_on and self._workers - self._backing_off <= self._in_flight:
                if (pending := await self._next_row()) is None:
                    break
                if (row := await self._prepare(pending)) is not None:
                    if self._row_hashes is not None:
                        await self._row_hashes.on_disk()
                    keys = RowKeys(self._run, pending, self._journal)
                    await self._complete(await self._runner.run(row, keys))
        # From the journal, the caller's retry strategy or their pool. Errors of accounts are outcomes.
        except Exception as error:
            self._abort(error)
        finally:
            self._workers -= 1
            if not self._workers:
                self._outcomes.end()

    @property
    def _goes_on(self) -> bool:
        return self._drain or not self._stopping

    async def _next_row(self) -> PendingRow | None:
        try:
            return await self._row_source.next()
        except Exception as error:  # the input is the caller's code, and may raise anything
            self._abort(error)
            return None

    async def _prepare(self, pending: PendingRow) -> Row | None:
        """Declare in the journal that the row may be sent. If it must not be, complete it and return None."""
        row = pending.row
        if isinstance(row, Refusal):
            error = NotSentError(f"not sent: {row}")
            error.account_id = row.account_id
            outcome = Outcome(
                row.ordinal,
                row.line,
                row.account_id or "",
                State.SKIPPED,
                error_type=row.reason,
                scope=Scope.REQUEST,
                applied=Applied.NO,
                error=error,
            )
        elif pending.leave_in_doubt or (self._drain and self._stopping):
            outcome = pending.unsent_outcome()
        else:
            if self._watermark is not None and row.ordinal >= self._watermark.safe_below:
                await self._watermark.advance(row.ordinal)
            return row
        # A recorded outcome says since when the account is in doubt: keep it.
        await self._complete(outcome, recorded=pending.leave_in_doubt and pending.recorded)
        return None

    async def _complete(self, outcome: Outcome, *, recorded: bool = False) -> None:
        """Record *outcome* unless it is, halt if necessary, and hand it to the code that iterates."""
        self._record(outcome, recorded=recorded)
        if self._journal is not None:
            await self._journal.room()
        self._check_halt(outcome)
        if isinstance(outcome.error, SessionClosedError):
            self._abort(outcome.error)  # all further calls would fail as well
        self._publish(outcome)
        await self._outcomes.wait_for_room()

    def _publish(self, outcome: Outcome) -> None:
        """Give *outcome* to the code that iterates, with an error if the account was not patched."""
        if outcome.error is None and outcome.state is not State.PATCHED:
            deadline_passed = self._waits.ends_at <= asyncio.get_running_loop().time()
            halted, stopped = self.summary.halted, self._stopping
            error = not_sent_error(outcome, halted, deadline_passed=deadline_passed, stopped=stopped)
            outcome = evolve(outcome, error=error)
        if not self._outcomes.put(outcome):
            self.summary.unconsumed.append(outcome)

    def _check_halt(self, outcome: Outcome) -> None:
        tried, reason = self._monitor.tried, self._monitor.observe(outcome)
        if self._stopping:  # a request in flight may still show that the key is refused
            if reason is not None and self._monitor.key_refused and not self.summary.key_refused:
                self._halt_for(reason)
        elif reason is not None:
            self._halt_for(reason)
        elif not self._canary_gate.is_open:
            self.summary.canary_passed = passed = self._monitor.canary_passed
            self._canary_gate.completed(tried=self._monitor.tried > tried, passed=passed)
            if passed:
                _log.info("the canary passed: the other accounts follow", extra={"canary": "passed"})

    def _record(self, outcome: Outcome, *, recorded: bool = False) -> None:
        count_outcome(self.summary, outcome)
        if self._journal is not None and not recorded:
            self._journal.record(outcome)
        if outcome.state is State.FAILED:
            self._failed[outcome.error_type, outcome.applied] += 1
        if self._observer is not None:
            self._observer(settled_event(outcome))

    def _record_unsent(self, pending: PendingRow) -> None:
        outcome = pending.unsent_outcome()
        if pending.recorded:
            self.summary.states[outcome.state] += 1
        else:
            self._record(outcome)

    # --- Callbacks of the runner ---

    def _on_cancelled(self, outcome: Outcome) -> None:
        self._record(outcome)
        self._publish(outcome)

    def _on_backoff(self, backing_off: bool) -> None:
        """A worker in backoff does not count against the limit: start another one."""
        self._backing_off += 1 if backing_off else -1
        may_start = self._workers < (1 + BACKING_OFF) * self._in_flight
        if backing_off and may_start and not self._stopping and not self._row_source.exhausted:
            self._start_worker()

    def _on_attempt_failed(self, error: PostPressError) -> None:
        if not self._stopping and (reason := self._monitor.attempt_failed(error)) is not None:
            self._halt_for(reason)

    def _on_proxy(self, proxy: PooledProxy, quarantine: Quarantine | None, failed: bool) -> None:
        self._count_quarantined()
        if self._journal is not None:
            self._journal.record_proxy(proxy.label, quarantine, failed=failed)

    def _count_quarantined(self) -> None:
        self.summary.quarantined = sum(allocator.quarantined for allocator in self._allocators.values())
