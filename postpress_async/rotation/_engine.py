"""
The rotation itself: updates each account of the input once.

A limited number of workers, plus one more for each account in backoff, share one iterator over the input. The
input is read only as fast as it is processed, so memory does not grow with its length. Each worker updates
one account at a time with an `AccountTask`. The rotation calls only one function of the session, `Update`,
which tests can replace with a stub.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Protocol, Self

from attrs import evolve, frozen

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import PostPressError
from postpress_async.rotation._account_task import AccountContext, AccountTask, Update
from postpress_async.rotation._core import RotationCore
from postpress_async.rotation._halt import Halt
from postpress_async.rotation._outcome import Outcome, RotationSummary
from postpress_async.rotation._outcome_queue import OutcomeQueue
from postpress_async.rotation._pending_rows import InputRows, PendingRow, PendingRows, refused_outcome
from postpress_async.rotation._pool import ProxyPool
from postpress_async.rotation._pool._tags import pools_of
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._row_source import RowSource, draw_canary
from postpress_async.rotation._rows import Refusal
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._row_hashes import RowHashes

EXECUTOR_QUEUE_SIZE: Final = 2_000  # outcomes in the queue: those of an `Executor` arrive in large groups
BACKING_OFF_PER_IN_FLIGHT: Final = 10  # accounts in backoff for each in flight; limits memory in an outage


@frozen
class Engine:
    """The functions and settings of a rotation that its `Executor` uses."""

    resize: Callable[[int], None]  # changes the number of accounts that may be in flight
    # Returns once the row hashes are on disk. The executor must await it before it sends accounts, so that a
    # later run recognizes their rows.
    rows_on_disk: Callable[[], Awaitable[None]]
    abort: Callable[[Exception], None]  # sends nothing more, and makes the rotation raise the given error
    leaves_doubts: bool  # whether an account that may have been sent must not be sent again


class Executor(Protocol):
    """Carries out the calls of a rotation in other processes."""

    @property
    def update(self) -> Update:
        """The function that updates an account."""

    @property
    def waits(self) -> WaitGroup:
        """The group in which the calls wait. When it ends, the other processes start no further attempt."""

    async def start(self, engine: Engine, /) -> None:
        """Called before the first call."""

    async def whole_error(self, error: PostPressError, /) -> PostPressError:
        """
        Return the complete error; *error* has only its main facts.

        An outcome is recorded at once with *error*, and later handed to the caller with the complete error.
        """

    async def aclose(self) -> None:
        """Called after the last call."""


class Rotation:
    """
    A running rotation, made by ``session.rotate``. Enter it with ``async with``, then iterate over its
    outcomes.

    Leaving the block early stops the rotation: nothing new is sent, and requests in flight complete and are
    journaled. Leaving the block with an exception, such as a cancellation, also cancels the requests in
    flight; the outcome of their accounts is then ``unknown``. The next run on the same journal continues from
    there.

    Args:
        drain: Whether every row gets an outcome even if the rotation is stopped or halts.
        executor: Carries out the calls; None if this process carries them out.

    Attributes:
        summary: The counts so far; final once the block is left.
        total: Number of accounts; None if not known beforehand.
        completed_at: Unix time at which earlier runs completed the last account; None if they left accounts
            to send, if there is no journal, and before the block is entered.
        next_run_at: Unix time from which the next run is due, if the latest run is complete and *every* was
            given; otherwise None.
        input_edit: How the input differs from that of an earlier run, such as ``3 rows more``; None if it
            does not differ.
        notes: Internal. Facts about the command line that `Journal.begin` stores.
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
        executor: Executor | None = None,
    ) -> None:
        halt = halt or Halt()
        self._core: Final = RotationCore(
            halt=halt,
            pools=pools_of(pool),
            drain=drain,
            waits=waits or WaitGroup(),
            observer=observer,
            row_source=RowSource(halt.canary, limit),
            outcomes=OutcomeQueue(in_flight if executor is None else EXECUTOR_QUEUE_SIZE),
        )
        self.summary: Final = self._core.summary
        self.total: Final = total
        self.completed_at: float | None = None
        self.next_run_at: float | None = None
        self.input_edit: str | None = None
        self.notes: Mapping[str, str] = {}
        self._in_flight = in_flight
        self._executor: Final = executor
        self._open_journal: Final = journal
        self._finite: Final = finite
        self._input: Final = rows
        self._context = AccountContext(
            update=update,
            waits=self._core.waits,
            pools=self._core.allocators,
            on_backoff=self._on_backoff,
            on_attempt_failed=self._core.on_attempt_failed,
            on_cancelled=self._core.on_cancelled,
            can_resume=not drain,
        )
        self._group: Final = asyncio.TaskGroup()
        self._row_hashes: RowHashes | None = None
        self._run = ""
        self._workers = 0
        self._backing_off = 0  # workers whose account is in backoff
        self._publishing = 0  # recorded outcomes that still wait for their complete error
        self._entered = False
        self._started_at = 0.0

    # --- Public methods ---

    @property
    def retrying(self) -> int:
        """Number of accounts that are backing off now."""
        return self._backing_off

    @property
    def proxies_failing(self) -> bool:
        """Whether accounts wait because most proxies of a pool fail at the same time."""
        return any(allocator.paused for allocator in self._core.allocators.values())

    def stop(self) -> None:
        """Send nothing more, not even retries. Iteration ends once the requests in flight are completed."""
        self.summary.stopped = True
        self._core.end_sending()

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
        if (outcome := await self._core.outcomes.get()) is not None:
            return outcome
        if self._core.error is not None:
            raise self._core.error
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a rotation cannot be entered twice: make a new one with session.rotate")
        self._entered = True
        self._started_at = time.monotonic()
        try:
            await self._open()
            if self._executor is not None:
                journal = self._core.journal
                leaves_doubts = journal is not None and journal.leaves_unknown
                engine = Engine(self._resize, self._rows_on_disk, self._core.abort, leaves_doubts)
                await self._executor.start(engine)
            await self._group.__aenter__()
        except BaseException:
            await self._close()
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
            self.summary.unconsumed += self._core.outcomes.abandon()
            try:
                await self._group.__aexit__(kind, error, trace)
            except BaseExceptionGroup as group:
                if error is None or group.exceptions != (error,):
                    raise
                # Nothing else failed: let the block's own exception through without a group around it.
            has_failed = kind is not None or self._core.error is not None
            if self._finite and not has_failed and not self._core.row_source.exhausted:
                await self._core.skip_unread_rows()
        finally:
            self.summary.elapsed = time.monotonic() - self._started_at
            self._core.outcomes.end()
            try:
                self._core.record_end(failed=kind is not None)
            finally:
                await self._close()
        if kind is None and self._core.error is not None:
            raise self._core.error

    # --- Start and end ---

    async def _close(self) -> None:
        try:
            if self._executor is not None:
                await self._executor.aclose()
        finally:
            if self._core.journal is not None:
                await self._core.journal.aclose()

    async def _open(self) -> None:
        self._run = secrets.token_hex(12)  # not in __init__, so that forked processes do not share it
        self._core.open_pools()
        source, journal = self._input, None
        if self._open_journal is not None:
            opened = self._open_journal()
            journal = await opened if isinstance(opened, Awaitable) else opened
            self._core.resume(journal)
            self._run, self.input_edit = journal.run, journal.check.difference
            self.completed_at, self.next_run_at = journal.check.completed_at, journal.check.next_run_at
            journal.begin(self.total, self.notes)
            if self.next_run_at is not None:
                source = iter(())  # the next run is not due: send nothing, and do not compare the input
        source, canary = await draw_canary(source, journal, self._core.halt.canary, self.total)
        rows = PendingRows(source, journal, canary)
        self._row_hashes = rows.hashes
        self._core.row_source.read = rows.next

    # --- Workers ---

    def _start_worker(self) -> None:
        self._workers += 1
        self._group.create_task(self._work(), name="rotation-worker")

    async def _work(self) -> None:
        try:
            while self._core.takes_rows and self._workers - self._backing_off <= self._in_flight:
                if (pending := await self._core.row_source.next()) is None:
                    break
                await self._process(pending)
        # Raised by the input, the journal, or the caller's retry strategy or pool. An error of an account is
        # not raised but becomes its outcome.
        except Exception as error:
            self._core.abort(error)
        finally:
            self._workers -= 1
            self._end_outcomes()

    async def _process(self, pending: PendingRow) -> None:
        """Declare in the journal that the row may be sent, and send it; or record why it is not sent."""
        row, journal = pending.row, self._core.journal
        if isinstance(row, Refusal):
            await self._complete(refused_outcome(row))
        elif pending.leave_in_doubt or (self._core.drain and self._core.stopping):
            # Keep a recorded outcome: it shows since when the account has been in doubt.
            recorded = pending.leave_in_doubt and pending.recorded
            await self._complete(pending.unsent_outcome(), recorded=recorded)
        else:
            if journal is not None and row.ordinal >= journal.watermark.safe_below:
                await journal.watermark.advance(row.ordinal)
            if self._executor is None:  # an executor awaits this once for many rows
                await self._rows_on_disk()
            keys = RowKeys.of(self._run, pending, None if journal is None else journal.record_generation)
            await self._complete(await AccountTask(self._context, row, keys).run())

    async def _rows_on_disk(self) -> None:
        if self._row_hashes is not None:
            await self._row_hashes.on_disk()

    def _end_outcomes(self) -> None:
        if not self._workers and not self._publishing:
            self._core.outcomes.end()

    def _resize(self, in_flight: int) -> None:
        """Start workers up to the new number. Excess workers end after their account."""
        self._in_flight = in_flight
        while self._may_start_worker and self._workers - self._backing_off < in_flight:
            self._start_worker()

    @property
    def _may_start_worker(self) -> bool:
        # With no worker left, the rotation is about to end.
        has_room = 0 < self._workers < (1 + BACKING_OFF_PER_IN_FLIGHT) * self._in_flight
        return has_room and not self._core.stopping and not self._core.row_source.exhausted

    # --- Outcomes ---

    async def _complete(self, outcome: Outcome, *, recorded: bool = False) -> None:
        self._core.complete(outcome, recorded=recorded)
        await self._core.wait_for_journal()
        if outcome.error is None or self._executor is None:
            self._core.publish(outcome)
        else:
            self._publishing += 1
            self._group.create_task(self._publish_with_whole_error(self._executor, outcome, outcome.error))
        await self._core.outcomes.wait_for_room()

    async def _publish_with_whole_error(
        self, executor: Executor, outcome: Outcome, error: PostPressError
    ) -> None:
        try:
            outcome = evolve(outcome, error=await executor.whole_error(error))
        finally:
            self._core.publish(outcome)
            self._publishing -= 1
            self._end_outcomes()

    def _on_backoff(self, backing_off: bool) -> None:
        """A worker in backoff does not count against the limit: start another one."""
        self._backing_off += 1 if backing_off else -1
        if backing_off and self._may_start_worker:
            self._start_worker()
