"""One update of an account: its attempts, its idempotency keys and its deadline."""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from attrs import define, evolve, field
from tenacity import RetryCallState

from postpress_async import events
from postpress_async._call.context import CallContext, CallHooks
from postpress_async._call.idempotency import Keys
from postpress_async._call.keyed_lock import KeyedLock
from postpress_async._call.tracker import WaitGroup
from postpress_async._http import codec
from postpress_async._http.transport import Request
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import (
    AnswerError,
    ApiError,
    Applied,
    BusyError,
    DeadlineError,
    PostPressError,
    SessionClosedError,
    SupersededError,
)
from postpress_async.models import AccountPatched, Attempt, ManagedProxy, ProxyChange
from postpress_async.pace._load_signal import LoadSignal, load_signal_of
from postpress_async.pace._pacer import Permit, PermitFuture
from postpress_async.retry import LONGEST_RETRY_AFTER, RetryPolicy, new_retrying

_log = logging.getLogger("postpress_async.calls")

MAX_OUTAGE: Final = 4 * 3600.0  # seconds from its first attempt for which a call waits out an outage


@define(eq=False)
class UpdateCall:
    """
    The update of one account: its attempts, and the rules that apply whatever its `RetryPolicy` says.

    Idempotency keys: if an attempt gets no response, the next attempt reuses its key. After an error
    response, the next attempt has a new key, because the API would replay the stored response for the old
    one. The exception is a managed proxy whose outcome is unknown: it keeps its key, because a request with a
    new key might assign, and bill, a second proxy.

    Unknown outcomes: a call is in doubt once an attempt, or an earlier run, may have applied the change.
    Only a success ends the doubt. An error response does not, because a gateway or the check of the API key
    may have sent it, and these do not know the earlier request.

    Deadline: it counts from `_started`. If the call waits out outages (see `WaitGroup`), some time does
    not count: waiting for a permit or a Retry-After, attempts that do not count, and the backoff after them.
    `_extend_deadline` then moves `_started` forward.
    """

    _context: CallContext
    _account_id: str
    _change: ProxyChange
    _keys: Keys
    _policy: RetryPolicy
    _hooks: CallHooks | None = None
    _request: Request = field(init=False)
    _clock: Callable[[], float] = field(init=False)
    _waits: WaitGroup = field(init=False)
    _started: float = field(init=False)
    _first_sent: float = math.inf
    _waited: float = 0.0  # for permits, in seconds
    _was_overloaded: bool = False  # the last attempt failed because the service refuses many requests
    _attempt_counts: bool = True  # the last attempt counts as one of the policy's; see `Pacer.release`
    _attempts: tuple[Attempt, ...] = ()
    _last_error: PostPressError | None = None
    _last_response: tuple[str | None, str] | None = None  # the idempotency key and the instance
    _in_doubt: bool = field(init=False)
    _replayed: bool = False  # the API replayed the response that it had stored for the idempotency key
    _needs_new_key: bool = False

    def __attrs_post_init__(self) -> None:
        context, hooks = self._context, self._hooks
        self._request = context.encode_request(self._account_id, self._change)
        self._clock = context.tracker.clock
        self._waits = context.tracker if hooks is None else hooks.waits
        self._started = self._clock()
        self._in_doubt = self._keys.in_doubt
        if hooks is not None:
            hooks.on_call_started()

    def run(self) -> Coroutine[Any, Any, AccountPatched]:
        """Update the account, after earlier updates of the same account. Raises the last attempt's error."""
        return self._run() if self._context.observer is None else self._run_observed(self._context.observer)

    async def _run_observed(self, observer: SafeObserver[events.Event]) -> AccountPatched:
        observer(events.CallStarted(self._account_id, self._request.url))
        error: PostPressError | None = None
        given_up = False
        try:
            return await self._run()
        except PostPressError as failure:
            error = failure
            raise
        except BaseException:
            given_up = True
            raise
        finally:
            attempts = len(self._attempts)
            elapsed = max(0.0, self._clock() - self._first_sent)  # 0 if there was no attempt
            observer(events.CallEnded(self._account_id, attempts, elapsed, error, given_up, self._waited))
            del error  # an exception in a frame of its own traceback is a reference cycle

    async def _run(self) -> AccountPatched:
        if self._in_doubt and self._is_managed and self._keys.current is None:
            # Without a key, the API might assign a second managed proxy.
            fact = "an earlier run may have sent this change; without idempotency keys it is not sent again"
            raise self._with_call_facts(DeadlineError(fact))
        locks = self._context.locks
        if not locks.try_acquire(self._account_id):
            await self._wait_for_lock(locks)
        state: RetryCallState | None = None
        try:
            if self._policy.before is not None:
                state = self._new_state()
            while True:
                if state is not None:  # most calls succeed at once, and need no tenacity
                    await self._wait_for_next_attempt(state)
                permit = self._context.pacer.try_acquire() or await self._wait_for_permit()
                timeout = self._timeout_of_attempt(permit)
                try:
                    return await self._attempt(permit, timeout)
                except PostPressError as error:
                    state = state or self._new_state()
                    self._set_outcome(state, error)
        finally:
            locks.release(self._account_id)
            # These have the last error, whose traceback has this frame: break the reference cycle.
            self._last_error = None
            if state is not None:
                state.outcome = None
                state.retry_object.iter_state.reset()

    def _new_state(self) -> RetryCallState:
        retrying = new_retrying(self._policy, self._may_retry, self._must_stop)
        retrying.begin()
        # Count from the start of the call. The loop's clock is used so that tests can have virtual time.
        retrying.statistics["start_time"] -= self._clock() - self._started
        return RetryCallState(retrying, self.run, (self._account_id, self._change), {})

    async def _wait_for_next_attempt(self, state: RetryCallState) -> None:
        """Back off as tenacity decides; raise the last error if there is no next attempt."""
        retrying: Any = state.retry_object
        if self._waits.ended and state.outcome is not None:
            # There is no next attempt, but tenacity calls the hook `should_give_up`, which tells the owner
            # that a retry would have followed.
            await retrying.iter(state)
        await self._wait_for(self._back_off_or_raise, retrying, state)

    async def _back_off_or_raise(self, retrying: Any, state: RetryCallState) -> None:
        if state.outcome is not None:
            seconds: float = await retrying.iter(state)
            state.prepare_for_next_attempt()
            await self._back_off(seconds)
        if self._policy.before is not None:
            await retrying.iter(state)

    def _set_outcome(self, state: RetryCallState, error: PostPressError) -> None:
        state.set_exception((type(error), error, error.__traceback__))
        state.start_time, state.outcome_timestamp = self._started, self._clock()
        if not self._attempt_counts:
            state.attempt_number -= 1
        elif self._was_overloaded and self._waits.waits_out_outages:
            # The pace slows down instead, see `Pacer.overloaded`. The backoff is at least that of attempt 1.
            state.attempt_number = max(1, state.attempt_number - 1)

    def _timeout_of_attempt(self, permit: Permit) -> float:
        seconds_left = self._seconds_left(permit.sent)
        if seconds_left <= 0 or self._waits.ended:
            self._context.pacer.release(permit, LoadSignal.NONE)
            raise self._out_of_time_error()
        return min(self._policy.attempt_timeout, seconds_left)

    async def _attempt(self, permit: Permit, timeout: float) -> AccountPatched:
        """Make one attempt, and release its permit."""
        context, request = self._context, self._request
        number, started, unix_time = len(self._attempts) + 1, permit.sent, time.time()
        signal, retry_after = LoadSignal.NONE, None
        try:
            if number == 1:
                self._first_sent = started
            if self._hooks is not None:
                self._hooks.on_attempt_started(started)
            if context.observer is not None:
                context.observer(events.AttemptStarted(request.account_id, number))
            response = await context.transport.send(request, self._keys.current, timeout)
            elapsed = self._clock() - started
            attempts = (*self._attempts, Attempt(number, unix_time, elapsed, None, response.status))
            patched = codec.decode_response(response, request, attempts)
            signal, self._attempts = LoadSignal.SUCCESS, attempts
            if context.observer is not None:
                context.observer(events.AttemptEnded(request.account_id, number, elapsed, 200, None))
            return patched
        except PostPressError as error:
            signal, retry_after = load_signal_of(error), error.retry_after
            elapsed = self._clock() - started
            self._record_failure(error, Attempt(number, unix_time, elapsed, error.code, error.status))
            raise
        finally:
            self._attempt_counts = context.pacer.release(permit, signal, retry_after)
            self._was_overloaded = signal is LoadSignal.OVERLOAD and context.pacer.overloaded
            if not self._attempt_counts:
                self._extend_deadline(self._clock() - started)

    async def _wait_for_lock(self, locks: KeyedLock) -> None:
        try:
            await self._wait_for(locks.acquire, self._account_id)
        except SupersededError as error:
            self._with_call_facts(error)
            raise

    async def _wait_for_permit(self) -> Permit:
        pacer, queued_at, retry = self._context.pacer, self._clock(), bool(self._attempts)
        if pacer.is_full and not retry and not self._waits.waits_out_outages:
            advice = "try again later, or raise Pace.max_waiting"
            raise self._with_call_facts(BusyError(f"too many calls wait to be sent: {advice}"))
        future: PermitFuture = pacer.enqueue(retry=retry)
        self._waits.complete_at(future, self._wait_deadline())
        permit = None
        try:
            permit = await future
        finally:
            self._waits.discard(future)
            self._waited += self._clock() - queued_at
            if permit is None:
                pacer.withdraw(future, retry=retry)
        if permit is None:
            raise self._out_of_time_error()
        self._extend_deadline(self._clock() - queued_at)
        return permit

    def _record_failure(self, error: PostPressError, attempt: Attempt) -> None:
        """Record on *error* what is known about the whole call; decide whether the next key is a new one."""
        self._attempts = (*self._attempts, attempt)
        error.account_id, error.attempts = self._account_id, self._attempts
        if self._hooks is not None:
            self._hooks.on_attempt_failed(error)
        self._last_error = error
        unknown = error.applied is Applied.UNKNOWN
        self._replayed = unknown and self._is_replay(getattr(error, "instance", None))
        self._in_doubt = self._in_doubt or unknown
        if self._in_doubt:
            error.applied = Applied.UNKNOWN
        has_response = isinstance(error, ApiError | AnswerError)
        self._needs_new_key = has_response and not (self._is_managed and self._in_doubt)
        if self._context.observer is not None:
            number, elapsed = attempt.number, attempt.elapsed
            ended = events.AttemptEnded(self._account_id, number, elapsed, error.status, error)
            self._context.observer(ended)

    def _is_replay(self, instance: str | None) -> bool:
        """Whether the previous response had the same idempotency key and the same *instance*."""
        previous, self._last_response = self._last_response, None
        if not instance or instance.startswith("/"):  # a path does not identify a single request
            return False
        self._last_response = (self._keys.current, instance)
        return self._keys.current is not None and self._last_response == previous

    # --- Rules in addition to the policy -----------------------------------------------------------

    @property
    def _is_managed(self) -> bool:
        return isinstance(self._change, ManagedProxy)

    def _may_retry(self, error: PostPressError) -> bool:
        """Whether another attempt makes sense and cannot assign a second managed proxy."""
        if self._hooks is not None and self._hooks.should_give_up(error):
            return False
        if self._waits.ended:
            return False
        # An outage uses up neither attempts nor the deadline. This limit ends the call if its account gets
        # nothing but responses that look like an outage.
        if self._waits.waits_out_outages and self._clock() - self._first_sent > MAX_OUTAGE:
            return False
        if not self._is_managed or not self._in_doubt:
            return True
        return self._keys.current is not None and not self._replayed

    def _must_stop(self, state: RetryCallState) -> bool:
        """Whether the Retry-After is too long, or the backoff would exceed the deadline."""
        error, backoff = self._last_error, state.upcoming_sleep
        assert error is not None  # noqa: S101 - there was an attempt
        counted_backoff = backoff - self._uncounted_backoff(error, backoff)
        is_too_late = counted_backoff >= self._seconds_left(self._clock())
        return is_too_late or (error.retry_after or 0.0) > LONGEST_RETRY_AFTER

    def _uncounted_backoff(self, error: PostPressError, backoff: float) -> float:
        """Seconds of a *backoff* after *error* that do not count against the deadline."""
        if not self._waits.waits_out_outages:
            return 0.0
        return (error.retry_after or 0.0) if self._attempt_counts else backoff

    async def _back_off(self, seconds: float) -> None:
        """Generate and journal a new key if the next attempt needs one, then wait for *seconds*."""
        assert self._last_error is not None  # noqa: S101 - there is no backoff before the first failure
        self._log_retry(self._last_error, seconds)
        if self._context.observer is not None:
            number = len(self._attempts)
            event = events.RetryScheduled(self._account_id, number, seconds, self._last_error)
            self._context.observer(event)
        *earlier, last = self._attempts
        self._attempts = (*earlier, evolve(last, wait=seconds))
        if self._hooks is not None:
            self._hooks.on_backoff(True)
        try:
            if self._needs_new_key:
                await self._keys.renew()
                self._needs_new_key = False
            self._extend_deadline(self._uncounted_backoff(self._last_error, seconds))
            slept_from = self._clock()
            await self._policy.sleep(seconds)
            # A test's `sleep` may return at once, but the backoff must still count against the deadline.
            not_slept = seconds - (self._clock() - slept_from)
            if not_slept > 0:
                self._started -= not_slept
                self._first_sent -= not_slept
        finally:
            if self._hooks is not None:
                self._hooks.on_backoff(False)

    def _log_retry(self, error: PostPressError, seconds: float) -> None:
        account_id, number = self._account_id, len(self._attempts)
        extra = {"account_id": account_id, "attempt": number, "error_type": error.code}
        extra |= {"status": error.status, "wait": seconds, "instance": getattr(error, "instance", None)}
        message = "%s: attempt %d failed with %s; the next one follows in %.2f s"
        _log.info(message, account_id, number, error.code, seconds, extra=extra)

    # --- The deadline ----------------------------------------------------------------------------

    def _extend_deadline(self, seconds: float) -> None:
        """Do not count *seconds* against the deadline, if the call waits out outages."""
        if self._waits.waits_out_outages:
            self._started += seconds

    def _seconds_left(self, now: float) -> float:
        return min(self._started + self._policy.deadline, self._waits.ends_at) - now

    def _wait_deadline(self) -> float:
        if self._waits.waits_out_outages:
            return math.inf
        return self._started + self._policy.deadline

    async def _wait_for(self, wait: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            with self._waits.until(self._wait_deadline()):
                return await wait(*args)
        except TimeoutError:
            pass
        # Raised outside of the `except` block, so that the `TimeoutError` does not become its context.
        raise self._out_of_time_error()

    def _with_call_facts(self, error: PostPressError) -> PostPressError:
        """Add the account, and whether it is in doubt, to an *error* that is raised instead of an attempt."""
        error.account_id = self._account_id
        if self._in_doubt:
            error.applied = Applied.UNKNOWN
        return error

    def _out_of_time_error(self) -> PostPressError:
        if self._last_error is not None:
            return self._last_error
        if self._context.tracker.ended:
            return self._with_call_facts(
                SessionClosedError("the session was closed before the change was sent")
            )
        if self._waits.ends_at <= self._clock():
            end = "the deadline passed"
        elif self._waits.ended:
            end = "the rotation was stopped"
        else:
            end = f"the deadline of {self._policy.deadline:g} s passed"
        return self._with_call_facts(DeadlineError(f"{end} before the change was sent"))
