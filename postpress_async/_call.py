"""One update on its way: its attempts, its keys, and what may have been applied by now."""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from attrs import evolve, field, frozen
from yarl import URL

from postpress_async import _wire, events
from postpress_async._guarded import Guarded
from postpress_async._idempotency import Keys
from postpress_async._lifetime import Lifetime, Waits
from postpress_async._network import Transport
from postpress_async._turns import Turns
from postpress_async.errors import (
    AnswerError,
    ApiError,
    Applied,
    DeadlineError,
    PostPressError,
    SessionClosedError,
)
from postpress_async.models import AccountPatched, Attempt, ManagedProxy, ProxyChange
from postpress_async.pace import Pacer, Sign, Ticket, Turn, sign_of
from postpress_async.retry import RetryPolicy
from postpress_async.secret import Secret

_log = logging.getLogger("postpress_async.calls")

P = ParamSpec("P")
T = TypeVar("T")


# A global is read in a tenth of the time of an enumeration's member.
_SUCCESS, _NONE = Sign.SUCCESS, Sign.NONE

PATIENCE: Final = 4 * 3600.0
"""Seconds after its first attempt until which a call of a rotation sits an outage out."""


@frozen
class Line:
    """What the calls of one session share."""

    transport: Transport
    api_key: Secret
    pacer: Pacer
    turns: Turns
    lifetime: Lifetime
    observer: Guarded[events.Event] | None
    base_url: URL
    _around_id: tuple[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        before = self.base_url.with_query(None).joinpath("accounts", "")
        after = self.base_url.raw_query_string
        object.__setattr__(self, "_around_id", (str(before), after and f"?{after}"))

    def url_of(self, account_id: str) -> str:
        """Where the account's requests go, for whoever watches; an id has nothing to be escaped."""
        before, after = self._around_id
        return f"{before}{account_id}{after}"


class Errand(Protocol):
    """
    Whoever sent a call on its way: a rotation, which is told of its rests and may call it back.

    Attributes:
        in_flight: Whether an attempt of the call may be in flight; set by the call.
    """

    in_flight: bool

    @property
    def waits(self) -> Waits:
        """Where the call is to wait, so that all of a rotation's can be woken."""
        ...

    def rests(self, began: bool, /) -> object:
        """The call begins to back off, or goes on."""
        ...

    def attempt_failed(self, error: PostPressError, /) -> object:
        """An attempt of the call ended with *error*, whose `applied` is about this attempt alone."""
        ...

    def is_hopeless(self, error: PostPressError, /) -> bool:
        """Whether another attempt, which the policy would make, is no use."""
        ...

    def begins(self, now: float, /) -> object:
        """The call's first attempt begins at *now*, in seconds by the event loop's clock."""
        ...


class UpdateCall:
    """
    The update of one account, as a `retry.Call`.

    It knows which idempotency key the next attempt needs. If no answer came, it is the same key. After an
    answer it is a fresh one, so that a stored error is not replayed; unless the change is a managed proxy
    and in doubt, since a second request may hand out, and bill, a second proxy.

    The call is in doubt once an attempt, or an earlier run, may have applied the change. Only a success ends
    that: a refusal says nothing about an earlier attempt, since it may come from something in front of the
    store of keys, such as a gateway or the check of the API key.

    Attributes:
        patient: Whether time that the pace or the service asks for is no part of the deadline, nor that of
            attempts that are not *counted* and of the waits after them. So it is on an *errand* of a
            rotation.
        counted: Whether the last attempt uses one up; see `Pacer.leave`.
    """

    # All attributes are set at once: one that is found on the class takes three times as long to read.
    __slots__ = (
        *("_answered", "_attempts", "_clock", "_failure", "_first_sent", "_in_doubt", "_keys"),
        *("_errand", "_line", "_managed", "_policy", "_renew", "_replayed", "_request", "_ticket", "_waits"),
        *("began", "counted", "patient"),
    )

    def __init__(
        self,
        line: Line,
        account_id: str,
        change: ProxyChange,
        keys: Keys,
        policy: RetryPolicy,
        errand: Errand | None = None,
    ) -> None:
        self._request: Final = _wire.patch_account(account_id, change)
        self._clock: Final = line.lifetime.clock
        self.began = self._clock()
        self._first_sent = math.inf
        self._line: Final = line
        self._keys: Final = keys
        self._policy: Final = policy
        self.patient = errand is not None
        self.counted = True
        self._errand: Final = errand
        if errand is not None:
            errand.in_flight = False
        self._waits: Final[Waits] = line.lifetime if errand is None else errand.waits
        self._managed: Final = isinstance(change, ManagedProxy)
        self._attempts: tuple[Attempt, ...] = ()
        self._ticket: Ticket | None = None  # of the first attempt
        self._failure: PostPressError | None = None
        self._answered: tuple[str | None, str] | None = None  # the key and the instance of the last answer
        self._in_doubt = keys.in_doubt  # whether an attempt, or an earlier run, may have applied it
        self._replayed = False  # whether the last answer, an unknown one, is what its key got before
        self._renew = False  # whether the next attempt needs a fresh key

    def run(self) -> Coroutine[Any, Any, AccountPatched]:
        """
        The account patched, after the updates of the same account that were asked for before.

        Raises:
            PostPressError: The error of the last attempt, with the history of all; or what kept the
                first one from being made.
        """
        return self._run() if self._line.observer is None else self._watched(self._line.observer)

    async def _watched(self, observer: Guarded[events.Event]) -> AccountPatched:
        account_id = self._request.account_id
        observer(events.CallStarted(account_id, self._line.url_of(account_id)))
        error: PostPressError | None = None
        attempts, given_up = 0, False
        try:
            patched = await self._run()
            attempts = len(patched.attempts)
            return patched
        except PostPressError as failure:
            error, attempts = failure, len(failure.attempts)
            raise
        except BaseException:
            given_up, attempts = True, len(self._attempts)
            raise
        finally:
            elapsed = max(0.0, self._clock() - self._first_sent)  # 0 if there was no attempt
            observer(events.CallEnded(account_id, attempts, elapsed, error, given_up))
            del error  # an exception that a frame of its own traceback names is a cycle

    async def _run(self) -> AccountPatched:
        if self._managed and self._in_doubt and self._keys.current is None:
            raise self._unsayable()
        turns, account_id = self._line.turns, self._request.account_id
        if not turns.take_at_once(account_id):
            await self._patiently(turns.take, account_id)
        try:
            # The first permit is waited for here, not in the attempt: a call that waits then keeps two
            # coroutines alive instead of seven, and there may be 100,000 such calls.
            if (ticket := self._line.pacer.try_enter()) is None:
                came, turn = self._clock(), self._join_queue()
                try:
                    ticket = await turn
                finally:
                    self._leave_queue(turn, came, ticket)
                if ticket is None:
                    raise self._out_of_time()
            self._ticket = ticket
            return await self._policy.run(self)
        finally:
            turns.give(account_id)
            self._failure = None  # its traceback holds this frame

    async def __call__(self) -> AccountPatched:
        """One attempt, when the session's pace allows it."""
        line, request = self._line, self._request
        ticket = self._ticket or line.pacer.try_enter() or await self._enter()
        self._ticket = None
        began, sign, asked, number = ticket.sent, _NONE, None, 0
        try:
            left = self.began + self._policy.deadline - began
            if left <= 0 or self._waits.ended:
                raise self._out_of_time()
            number, unix_time = self._begin(began), time.time()
            answer = await line.transport.send(
                request, self._keys.current, min(self._policy.attempt_timeout, left)
            )
            elapsed = self._clock() - began
            attempts = (*self._attempts, Attempt(number, unix_time, elapsed, None, answer.status))
            patched = _wire.read_patched(answer, request, line.api_key, attempts)
            sign = _SUCCESS
            if line.observer is not None:
                ended = events.AttemptEnded(request.account_id, number, elapsed, 200, None)
                line.observer(ended)
            return patched
        except PostPressError as error:
            sign, asked = sign_of(error), error.retry_after
            if number:
                self._failed(
                    error, Attempt(number, unix_time, self._clock() - began, error.code, error.status)
                )
            raise
        finally:
            self.counted = line.pacer.leave(ticket, sign, asked)
            if self.patient and not self.counted:
                self.began += self._clock() - began

    async def _enter(self) -> Ticket:
        """The ticket of a retry."""
        came, turn, ticket = self._clock(), self._join_queue(), None
        try:
            ticket = await turn
        finally:
            self._leave_queue(turn, came, ticket)
        if ticket is None:
            raise self._out_of_time()
        return ticket

    def _join_queue(self) -> Turn:
        """The future of a ticket; its result is None once the call may not go on."""
        turn = self._line.pacer.queue(retry=bool(self._attempts))
        self._waits.wake(turn, math.inf if self.patient else self.began + self._policy.deadline)
        return turn

    def _leave_queue(self, turn: Turn, came: float, ticket: Ticket | None) -> None:
        self._waits.leave(turn)
        if ticket is None:
            self._line.pacer.withdraw(turn, retry=bool(self._attempts))
        elif self.patient:
            self.began += self._clock() - came

    def _begin(self, began: float) -> int:
        """The number of the attempt that begins now."""
        number = len(self._attempts) + 1
        if number == 1:
            self._first_sent = began
            if self._errand is not None:
                self._errand.begins(began)
        if self._errand is not None:
            self._errand.in_flight = True
        if self._line.observer is not None:
            self._line.observer(events.AttemptStarted(self._request.account_id, number))
        return number

    def _failed(self, error: PostPressError, attempt: Attempt) -> None:
        self._attempts = (*self._attempts, attempt)
        error.account_id, error.attempts = self._request.account_id, self._attempts
        if self._errand is not None:
            self._errand.attempt_failed(error)
        self._learn(error)
        if self._line.observer is not None:
            ended = events.AttemptEnded(
                self._request.account_id, attempt.number, attempt.elapsed, error.status, error
            )
            self._line.observer(ended)

    def may_repeat(self, error: PostPressError) -> bool:
        """Whether another attempt is of use, and could neither double a managed proxy nor come too late."""
        if self._errand is not None and self._errand.is_hopeless(error):
            return False
        if self._waits.ended or self._has_waited_long():
            return False
        if not self._managed or not self._in_doubt:
            return True
        return self._keys.current is not None and not self._replayed

    async def wait(self, seconds: float) -> None:
        """Back off; the next attempt's key is made first, and journaled where keys are."""
        assert self._failure is not None  # noqa: S101 - nothing waits before the first failure
        self._log_retry(self._failure, seconds)
        if self._line.observer is not None:
            number = len(self._attempts)
            told = events.RetryScheduled(self._request.account_id, number, seconds, self._failure)
            self._line.observer(told)
        *before, last = self._attempts
        self._attempts = (*before, evolve(last, wait=seconds))
        if self._errand is not None:
            self._errand.rests(True)
        try:
            if self._renew:
                await self._keys.renew()
                self._renew = False
            if self.patient:
                self.began += (self._failure.retry_after or 0.0) if self.counted else seconds
            slept_from = self._clock()
            await self._patiently(self._policy.sleep, seconds)
            # A sleep that a test records takes no time: the deadline counts what the policy asked for.
            if (not_slept := seconds - (self._clock() - slept_from)) > 0:
                self.began -= not_slept
                self._first_sent -= not_slept
        finally:
            if self._errand is not None:
                self._errand.rests(False)

    def _log_retry(self, error: PostPressError, seconds: float) -> None:
        if _log.isEnabledFor(logging.INFO):
            account_id, number = self._request.account_id, len(self._attempts)
            said = {"account_id": account_id, "attempt": number, "error_type": error.code}
            said |= {"status": error.status, "wait": seconds, "instance": getattr(error, "instance", None)}
            told = "%s: attempt %d failed with %s; the next one follows in %.2f s"
            _log.info(told, account_id, number, error.code, seconds, extra=said)

    def _has_waited_long(self) -> bool:
        # An outage uses up neither attempts nor the deadline of a patient call; this alone ends it, where
        # what looks like an outage is all that the last accounts will ever be answered.
        return self.patient and self._clock() - self._first_sent > PATIENCE

    async def ask(self, strategy: Awaitable[T]) -> T:
        """What an asynchronous strategy answers, while the call may go on."""
        return await self._patiently(lambda: strategy)

    def _learn(self, error: PostPressError) -> None:
        """Record on the error what is known about the whole call, and decide which key comes next."""
        self._failure = error
        unknown = error.applied is Applied.UNKNOWN
        self._replayed = unknown and self._is_replay(getattr(error, "instance", None))
        self._in_doubt = self._in_doubt or unknown
        if self._in_doubt:
            error.applied = Applied.UNKNOWN
        answered = isinstance(error, ApiError | AnswerError)
        self._renew = answered and not (self._managed and self._in_doubt)

    def _is_replay(self, instance: str | None) -> bool:
        before, self._answered = self._answered, None
        if not instance or instance.startswith("/"):  # a path names no single request
            return False
        self._answered = (self._keys.current, instance)
        return self._keys.current is not None and self._answered == before

    async def _patiently(self, wait: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
        """Wait, but no longer than the call may go on."""
        until = math.inf if self.patient else self.began + self._policy.deadline
        try:
            with self._waits.wait(until):
                return await wait(*args, **options)
        except TimeoutError:
            pass
        raise self._out_of_time()

    def _unsayable(self) -> PostPressError:
        # An earlier run may have sent it, and without a key a second request may hand out a second proxy.
        error = DeadlineError("an earlier run may have sent it, and without idempotency it is not sent again")
        error.account_id, error.applied = self._request.account_id, Applied.UNKNOWN
        return error

    def _out_of_time(self) -> PostPressError:
        if self._failure is not None:
            return self._failure
        if self._line.lifetime.ended:
            error: PostPressError = SessionClosedError("the session was closed before the change was sent")
        elif self._waits.ended:
            error = DeadlineError("the rotation was stopped before it was sent")
        else:
            error = DeadlineError(f"its deadline of {self._policy.deadline:g} s passed before it was sent")
        error.account_id = self._request.account_id
        if self._in_doubt:
            error.applied = Applied.UNKNOWN
        return error
