"""The part of a rotation that does not depend on where its calls run: journal, pools, halts, outcomes."""

import asyncio
import logging
from collections import Counter
from operator import attrgetter

from attrs import Factory, define, evolve, fields

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import Applied, DeadlineError, NotSentError, PostPressError, SessionClosedError
from postpress_async.rotation._column_names import Tag
from postpress_async.rotation._failure_monitor import FailureMonitor
from postpress_async.rotation._halt import Halt
from postpress_async.rotation._outcome import Outcome, RotationSummary, State, count_outcome
from postpress_async.rotation._outcome_queue import OutcomeQueue
from postpress_async.rotation._pool import PooledProxy
from postpress_async.rotation._pool._allocator import ProxyAllocator, Quarantine, unix_clock
from postpress_async.rotation._pool._tags import Pools
from postpress_async.rotation._row_source import RowSource
from postpress_async.rotation.journal import Journal

_log = logging.getLogger("postpress_async.rotation")
# Returns the attributes of an `Outcome` that an `AccountSettled` event has as well, in their order.
_event_fields = attrgetter(*(field.name for field in fields(events.AccountSettled)))


@define(eq=False, kw_only=True)
class RotationCore:
    """Records the outcomes of a rotation, decides when it ends, and hands the outcomes to the caller."""

    halt: Halt
    pools: Pools
    drain: bool  # whether rows are taken even after the rotation was stopped or has halted
    waits: WaitGroup  # the waits of the calls
    observer: SafeObserver[events.Event] | None
    row_source: RowSource
    outcomes: OutcomeQueue  # over which the caller iterates
    summary: RotationSummary = Factory(RotationSummary)
    journal: Journal | None = None  # None without a journal, and before it is opened
    allocators: dict[Tag, ProxyAllocator] = Factory(dict)  # filled by `open_pools`
    stopping: bool = False  # nothing new is sent
    error: Exception | None = None  # the error that aborted the rotation
    _failed: Counter[tuple[str | None, Applied | None]] = Factory(Counter)  # by error type and `applied`
    _monitor: FailureMonitor = Factory(lambda core: FailureMonitor(core.halt), takes_self=True)

    def open_pools(self) -> None:
        """Create the allocators, which use the clock of the running event loop."""
        clock = unix_clock()
        for tag, pool in self.pools.items():
            self.allocators[tag] = ProxyAllocator(
                pool,
                may_wait=self.waits.waits_out_outages,
                on_proxy=self._on_proxy,
                observer=self.observer,
                clock=clock,
            )

    def resume(self, journal: Journal) -> None:
        self.journal = journal
        done = journal.done_counts()
        self.summary.states.update(done)
        self.summary.resumed = done.total()
        key_works = done[State.PATCHED] > 0 and journal.check.same_key
        connected = done[State.PATCHED] + done[State.FAILED] > 0
        self._monitor = FailureMonitor(self.halt, key_works=key_works, connected=connected)
        if self.allocators:
            accounts, quarantines = journal.proxies(), journal.quarantines()
            for allocator in self.allocators.values():
                allocator.resume(accounts, quarantines)
            self._count_quarantined()

    async def wait_for_journal(self) -> None:
        """Wait while too many outcomes are not on disk yet."""
        if self.journal is not None:
            await self.journal.limit_backlog()

    # --- Outcomes ---

    def complete(self, outcome: Outcome, *, recorded: bool = False) -> None:
        """Record *outcome* unless it is *recorded* already, and halt if necessary."""
        self._record(outcome, recorded=recorded)
        self._check_halt(outcome)
        if isinstance(outcome.error, SessionClosedError):
            self.abort(outcome.error)  # all further calls would fail, too

    def publish(self, outcome: Outcome) -> None:
        """Hand *outcome* to the code that iterates. If the account was not patched, add an error."""
        if outcome.error is None and outcome.state is not State.PATCHED:
            error = self._not_sent_error(outcome)
            error.account_id, error.scope = outcome.account_id, outcome.scope or error.scope
            error.applied = outcome.applied or error.applied
            outcome = evolve(outcome, error=error)
        if not self.outcomes.put(outcome):
            self.summary.unconsumed.append(outcome)

    def _not_sent_error(self, outcome: Outcome) -> PostPressError:
        """Make the error of an account that was not patched although no call raised an error."""
        if outcome.error_type is not None:
            return NotSentError(f"not sent: {outcome.error_type}")
        if self.summary.halted is not None:
            return NotSentError(f"not sent, because the rotation was halted: {self.summary.halted}")
        if self.waits.ends_at <= asyncio.get_running_loop().time():
            return DeadlineError("the deadline passed before the change was sent")
        if outcome.attempts:
            return NotSentError("the rotation was cancelled before the response came")
        if self.stopping:
            return NotSentError("not sent, because the rotation was stopped")
        return NotSentError('not sent: an earlier run may have sent it, and on_unknown is "report"')

    def on_cancelled(self, outcome: Outcome) -> None:
        self._record(outcome)
        self.publish(outcome)

    def _record(self, outcome: Outcome, *, recorded: bool = False) -> None:
        count_outcome(self.summary, outcome)
        if self.journal is not None and not recorded:
            self.journal.record(outcome)
        if outcome.state is State.FAILED:
            self._failed[outcome.error_type, outcome.applied] += 1
        if self.observer is not None:
            self.observer(events.AccountSettled(*_event_fields(outcome)))

    async def skip_unread_rows(self) -> None:
        count = 0
        while (pending := await self.row_source.read()) is not None:
            count += 1
            if count % 500 == 0:
                await asyncio.sleep(0)  # let other tasks run: there may be millions of rows
            outcome = pending.unsent_outcome()
            if pending.recorded:
                self.summary.states[outcome.state] += 1
            else:
                self._record(outcome)
            await self.wait_for_journal()

    # --- The end ---

    @property
    def takes_rows(self) -> bool:
        return self.drain or not self.stopping

    def end_sending(self) -> None:
        """Send nothing more, not even retries."""
        self.stopping = True
        self.waits.end()
        if not self.drain:
            self.row_source.close()

    def abort(self, error: Exception) -> None:
        """Send nothing more, and raise *error* once the requests in flight are completed."""
        self.error = self.error or error
        self.end_sending()

    def on_attempt_failed(self, error: PostPressError) -> None:
        if not self.stopping and (reason := self._monitor.attempt_failed(error)) is not None:
            self._halt_for(reason)

    def _check_halt(self, outcome: Outcome) -> None:
        tried_before = self._monitor.tried
        reason = self._monitor.observe(outcome)
        if reason is not None:
            # Even after the end of sending, a request in flight may show that the API key is refused.
            if not self.stopping or (self._monitor.key_refused and not self.summary.key_refused):
                self._halt_for(reason)
        elif not self.stopping and not self.row_source.is_open:
            if self._monitor.canary_passed:
                self.summary.canary_passed = True
                self.row_source.open()
                _log.info("the canary passed: the other accounts follow", extra={"canary": "passed"})
            elif self._monitor.tried == tried_before:
                self.row_source.extend_canary()

    def _halt_for(self, reason: str) -> None:
        self.summary.halted = reason
        self.summary.key_refused = self._monitor.key_refused
        _log.warning("rotation halted: %s", reason, extra={"halted": reason})
        self.end_sending()

    def record_end(self, *, failed: bool) -> None:
        """Record the end in the journal, and halt for a reason that only the whole run shows."""
        if self.error is None:
            self._record_halt(ended_early=failed or self.summary.stopped or self.summary.halted is not None)
        is_done = self.row_source.exhausted and not self.summary.stopped and self.error is None
        if self.journal is not None and (failed or not is_done):
            self.journal.record_interruption()

    def _record_halt(self, *, ended_early: bool) -> None:
        reason = None if self.summary.key_refused else self._monitor.at_end()
        # A refused key replaces an earlier reason for the end of the run; an unreachable host does not.
        if reason is not None and (self._monitor.key_refused or not ended_early):
            self._halt_for(reason)
        if (refusal_type := self._monitor.key.refusal_type) is not None:
            self._reopen(refusal_type)
        if self.journal is not None and self.summary.halted is not None:
            self.journal.record_halt(self.summary.halted)

    def _reopen(self, error_type: str) -> None:
        """Let the next run send the accounts that failed only because of the API key."""
        states = self.summary.states
        for applied, state in ((Applied.NO, State.SKIPPED), (Applied.UNKNOWN, State.UNKNOWN)):
            if count := self._failed[error_type, applied]:
                states[State.FAILED] -= count
                states[state] += count
        if self.journal is not None:
            self.journal.reopen(error_type)

    # --- Quarantines ---

    def _on_proxy(self, proxy: PooledProxy, quarantine: Quarantine | None, failed: bool) -> None:
        self._count_quarantined()
        if self.journal is not None:
            self.journal.record_proxy(proxy.label, quarantine, failed=failed)

    def _count_quarantined(self) -> None:
        self.summary.quarantined = sum(allocator.quarantined for allocator in self.allocators.values())
