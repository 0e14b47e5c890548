"""
When to try again, and after how long.

The strategies are tenacity's, and so is the vocabulary. Its loop is not: it keeps the state of one call
on an object that thousands of tasks share, and it costs on every success what only a failure needs.
`Retrying` asks the same strategies and keeps nothing between calls.
"""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import tenacity
from attrs import field, fields, frozen
from tenacity.asyncio import AsyncRetrying

from postpress_async.errors import RETRYABLE_STATUSES, Applied, PostPressError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LONGEST_RETRY_AFTER = 120.0
"""Seconds of Retry-After beyond which a call gives up at once, and leaves them on the error."""


class Call(Protocol[T_co]):
    """
    What can be tried again: each time it is called is an attempt.

    Attributes:
        began: When its deadline began to count, by the event loop's clock.
        patient: Whether the seconds of a Retry-After, and of a wait after an attempt that was not
            *counted*, are no part of its deadline.
        counted: Whether the attempt that failed last uses one up.
    """

    began: float
    patient: bool
    counted: bool

    async def __call__(self) -> T_co:
        """One attempt; raise `PostPressError` where it failed."""
        ...

    def may_repeat(self, error: PostPressError) -> bool:
        """Whether another attempt could do no harm; asked after the policy has said yes."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let that time pass."""
        ...

    async def ask(self, strategy: Awaitable[T]) -> T:
        """Wait for an asynchronous strategy's answer, no longer than the call may go on."""
        ...


class FullJitter(tenacity.wait.wait_base):
    """
    A wait before attempt *n + 1* drawn from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))`` seconds.

    Source: "full jitter" in M. Brooker, *Exponential Backoff and Jitter* (AWS Architecture Blog, 2015).
    tenacity's `wait_random_exponential` draws the same, from the module `random`; this one takes its
    *chance* from outside, so that a run can be repeated.
    """

    def __init__(self, first_wait: float, max_wait: float, chance: random.Random | None = None) -> None:
        self.first_wait = first_wait
        self.max_wait = max_wait
        self._random = (chance or random).random  # its quality is no matter of security

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        # 2.0 ** 1024 is an OverflowError; a product that is too large is merely infinite.
        edge = self.first_wait * 2.0 ** min(retry_state.attempt_number - 1, 1000)
        return self._random() * min(self.max_wait, edge)


def _positive(_instance: object, attribute: Any, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{attribute.name} is a number of seconds above 0, not {value!r}")


def _count(_instance: object, _attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"attempts is a whole number from 1, the first one included, not {value!r}")


def _strategy(_instance: object, attribute: Any, value: object) -> None:
    if not callable(value) and (value is not None or attribute.name == "sleep"):
        raise ValueError(f"{attribute.name} is called, as tenacity's strategies are; {value!r} cannot be")


def _as_tuple(kinds: Iterable[type[PostPressError]]) -> tuple[type[PostPressError], ...]:
    return kinds if isinstance(kinds, type) else tuple(kinds)  # type: ignore[return-value]  # pyright: ignore[reportReturnType] # told by `_kinds`


def _kinds(_instance: object, attribute: Any, value: tuple[type, ...]) -> None:
    if isinstance(value, type):
        raise ValueError(
            f"{attribute.name} takes classes of postpress_async.errors in a tuple: write ({value.__name__},)"
        )
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, PostPressError)):
            raise ValueError(f"{attribute.name} takes classes of postpress_async.errors, not {kind!r}")


@frozen(kw_only=True)
class RetryPolicy:
    """
    Full-jitter exponential backoff under three caps; one immutable value, shared by any number of calls.

    The wait before attempt *n + 1* is drawn from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))``
    seconds; a Retry-After is a floor under it. A wait that would overrun *deadline* is not begun.
    The last error is raised unchanged.

    Attributes:
        attempts: Attempts in all, the first included; from 1.
        attempt_timeout: Seconds for one attempt, from its connection to the last byte of its answer.
        deadline: Seconds for all attempts and waits of a call together; `math.inf` for none.
        first_wait: Upper edge of the first wait, in seconds.
        max_wait: Upper edge of any wait, in seconds.
        also_on: Classes of errors that are retried although they say they are not retryable.
        never_on: Classes of errors that are not retried although they say they are; beats *also_on*.
        wait: A tenacity wait strategy in place of the full jitter.
        stop: A tenacity stop strategy in place of *attempts*; the deadline holds all the same.
        sleep: Called with the seconds of each backoff. A test may record them and return at once: they count
            against *deadline* as if they had been slept.

    Raises:
        ValueError: A number is not as said above.
    """

    attempts: int = field(default=4, validator=_count)
    attempt_timeout: float = field(default=30.0, validator=_positive)
    deadline: float = field(default=120.0, validator=_positive)
    first_wait: float = field(default=0.5, validator=_positive)
    max_wait: float = field(default=20.0, validator=_positive)
    also_on: tuple[type[PostPressError], ...] = field(default=(), converter=_as_tuple, validator=_kinds)
    never_on: tuple[type[PostPressError], ...] = field(default=(), converter=_as_tuple, validator=_kinds)
    wait: Callable[[tenacity.RetryCallState], float | Awaitable[float]] | None = field(
        default=None, validator=_strategy
    )
    stop: Callable[[tenacity.RetryCallState], bool | Awaitable[bool]] | None = field(
        default=None, validator=_strategy
    )
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, validator=_strategy)
    _retrying: "Retrying" = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # Made once, after the numbers have been checked; a frozen value is set this one way.
        object.__setattr__(self, "_retrying", Retrying.of(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # What was made of it is made again there: older tenacitys hold a lock in it, which cannot travel.
        given = {each.name: getattr(self, each.name) for each in fields(RetryPolicy) if each.init}
        return partial(type(self), **given), ()

    def retries(self, error: BaseException) -> bool:
        """Whether *error* is worth another attempt, were there attempts and time left."""
        if not isinstance(error, PostPressError) or isinstance(error, self.never_on):
            return False
        return error.retryable or isinstance(error, self.also_on)

    def explain(self, error: BaseException) -> str:
        """A sentence that says whether *error* is retried, and why; for a log, or for a person who asks."""
        name = error.code if isinstance(error, PostPressError) else type(error).__name__
        if not isinstance(error, PostPressError):
            return f"{name} is not retried: it is no error of a call, but of the program."
        if isinstance(error, self.never_on):
            return f"{name} is not retried: never_on says so."
        if not self.retries(error):
            return f"{name} is not retried: {_why_not(error)}"
        if (asked := error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            limit = f"more than {LONGEST_RETRY_AFTER:g} s"
            return f"{name} is not retried now: the answer asks to wait {asked:g} s, {limit}."
        why = "such errors often pass" if error.retryable else "also_on says so"
        stop = (
            f"up to {self.attempts} attempts" if self.stop is None else "until its stop strategy says enough"
        )
        return f"{name} is retried: {why}; {stop}, within {self.deadline:g} s."

    def run(self, call: Call[T]) -> Coroutine[Any, Any, T]:
        """The result of the first attempt that succeeds, or the error of the last that did not."""
        return self._retrying(call)


class Retrying(AsyncRetrying):
    """tenacity's strategies, asked about one call without keeping anything of it."""

    _before_deadline: Callable[[tenacity.RetryCallState], bool]

    @classmethod
    def of(cls, policy: RetryPolicy) -> "Retrying":
        """The strategies that *policy* names."""
        # `_answer` waits for those that are coroutine functions, which tenacity's types do not foresee.
        stop: Any = policy.stop or tenacity.stop_after_attempt(policy.attempts)
        wait: Any = policy.wait or FullJitter(policy.first_wait, policy.max_wait)
        made = cls(
            stop=stop,
            wait=wait,
            retry=tenacity.retry_if_exception(policy.retries),
        )
        made._before_deadline = tenacity.stop_before_delay(policy.deadline)
        return made

    async def __call__(self, fn: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Try *fn*, a `Call`; see `RetryPolicy.run`."""
        try:
            return await fn(*args, **kwargs)
        except PostPressError as error:
            failure = error
        try:
            return await self._again(failure, fn, args, kwargs)
        finally:
            del failure  # an exception that a frame of its own traceback names is a cycle

    async def _again(self, failure: PostPressError, call: Any, args: Any, kwargs: Any) -> Any:
        clock = asyncio.get_running_loop().time
        state = tenacity.RetryCallState(self, call, args, kwargs)
        try:
            while True:
                state.set_exception((type(failure), failure, failure.__traceback__))
                # The loop's clock, not the system's that tenacity took: a test can bend it.
                state.start_time, state.outcome_timestamp = call.began, clock()
                if not call.counted:
                    state.attempt_number -= 1
                if not self.retry(state) or not call.may_repeat(failure):  # the policy's own, never a user's
                    raise failure
                asked, wait = failure.retry_after or 0.0, self.wait(state)
                if not isinstance(wait, _PLAIN):
                    wait = await _answer(call, wait)
                state.upcoming_sleep = max(asked, wait)
                if call.patient:
                    state.start_time += asked if call.counted else state.upcoming_sleep
                stop: Any = self.stop(state)
                if not isinstance(stop, _PLAIN):
                    stop = await _answer(call, stop)
                if stop or asked > LONGEST_RETRY_AFTER or self._before_deadline(state):
                    raise failure
                state.idle_for += state.upcoming_sleep
                await call.wait(state.upcoming_sleep)
                state.prepare_for_next_attempt()
                try:
                    return await call(*args, **kwargs)
                except PostPressError as error:
                    failure = error
        finally:
            state.outcome = None
            del failure


def _why_not(error: PostPressError) -> str:
    if error.status in RETRYABLE_STATUSES:
        return f"its type is none that passes, although its status, {error.status}, is one that may."
    if error.applied is Applied.UNKNOWN:
        return "the change may have been applied, and sending it again could not tell."
    return f"sent again, it would get the same answer; it speaks against the {error.scope}."


_PLAIN = (int, float)  # of a strategy that answers at once; bool is an int


async def _answer(call: Any, given: Any) -> Any:
    # A user's strategy may be a coroutine function, as with tenacity itself.
    return await call.ask(given) if inspect.isawaitable(given) else given
