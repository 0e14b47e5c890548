"""
When an attempt is retried, and after how many seconds.

The strategies are tenacity's. Its loop is not used: it keeps the state of one call on an object that
thousands of tasks share, and costs on every success what only a failure needs. `Retrying` asks the same
strategies and keeps nothing between calls.
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
"""Seconds. If the Retry-After is longer, the call gives up at once; `PostPressError.retry_after` has it."""


class Call(Protocol[T_co]):
    """
    An operation that can be retried. Calling it makes one attempt.

    Attributes:
        started: Time of the event loop from which the deadline counts.
        counts_as_attempt: Whether the last attempt uses up one of the policy's.
    """

    started: float
    counts_as_attempt: bool

    async def __call__(self) -> T_co:
        """Make one attempt. Raises `PostPressError` if it fails."""
        ...

    def may_retry(self, error: PostPressError) -> bool:
        """Whether another attempt does no harm. Asked after the policy allowed it."""
        ...

    def excluded(self, error: PostPressError, backoff: float) -> float:
        """Seconds of a *backoff* after *error* that do not count against the deadline."""
        ...

    async def wait(self, seconds: float) -> None:
        """Back off for *seconds*."""
        ...

    async def wait_for(self, strategy: Awaitable[T]) -> T:
        """Await an asynchronous strategy, but not beyond the deadline."""
        ...


class FullJitter(tenacity.wait.wait_base):
    """
    A backoff after attempt *n*, drawn from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))`` seconds.

    Source: "full jitter" in M. Brooker, *Exponential Backoff and Jitter* (AWS Architecture Blog, 2015).
    tenacity's `wait_random_exponential` draws from the same range, but always from the module `random`. This
    class accepts a generator, *chance*, so that a run can be repeated.
    """

    def __init__(self, first_wait: float, max_wait: float, chance: random.Random | None = None) -> None:
        self.first_wait = first_wait
        self.max_wait = max_wait
        self._random = (chance or random).random  # not used for security

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        # 2.0 ** 1024 raises OverflowError; a product that is too large is infinite.
        upper = self.first_wait * 2.0 ** min(retry_state.attempt_number - 1, 1000)
        return self._random() * min(self.max_wait, upper)


def _positive(_instance: object, attribute: Any, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{attribute.name} must be a number of seconds above 0, got {value!r}")


def _count(_instance: object, _attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"attempts must be an integer from 1, including the first attempt, got {value!r}")


def _strategy(_instance: object, attribute: Any, value: object) -> None:
    if not callable(value) and (value is not None or attribute.name == "sleep"):
        raise ValueError(f"{attribute.name} must be callable, as tenacity's strategies are, got {value!r}")


def _as_tuple(kinds: Iterable[type[PostPressError]]) -> tuple[type[PostPressError], ...]:
    return kinds if isinstance(kinds, type) else tuple(kinds)  # type: ignore[return-value]  # pyright: ignore[reportReturnType] # rejected by `_kinds`


def _kinds(_instance: object, attribute: Any, value: tuple[type, ...]) -> None:
    if isinstance(value, type):
        raise ValueError(
            f"{attribute.name} must be a tuple of classes of postpress_async.errors: "
            f"write ({value.__name__},)"
        )
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, PostPressError)):
            raise ValueError(f"{attribute.name} must have classes of postpress_async.errors, got {kind!r}")


@frozen(kw_only=True)
class RetryPolicy:
    """
    Exponential backoff with full jitter, limited by attempts, a deadline and a longest wait.

    The wait after attempt *n* is drawn from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))`` seconds, but is
    at least the Retry-After. A wait that would exceed *deadline* does not begin. The last error is raised
    unchanged. A policy is immutable and can be shared by any number of calls.

    Attributes:
        attempts: Most attempts, including the first; from 1.
        attempt_timeout: Seconds for one attempt, from connecting to the last byte of the response.
        deadline: Seconds for all attempts and waits of a call together; `math.inf` for no deadline.
        first_wait: Upper end of the first wait, in seconds.
        max_wait: Upper end of all waits, in seconds.
        also_on: Classes of errors to retry although their `retryable` is False.
        never_on: Classes of errors not to retry although their `retryable` is True; overrides *also_on*.
        wait: A tenacity wait strategy in place of the full jitter.
        stop: A tenacity stop strategy in place of *attempts*; the deadline still applies.
        sleep: Called with the seconds of each backoff. A test may record them and return at once: they count
            against *deadline* as if they had been slept.

    Raises:
        ValueError: A value is out of its range or of the wrong type.
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
        # Made once, after validation. A frozen instance can only be set in this way.
        object.__setattr__(self, "_retrying", Retrying.of(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from its arguments: older versions of tenacity keep a lock in `_retrying`.
        arguments = {a.name: getattr(self, a.name) for a in fields(RetryPolicy) if a.init}
        return partial(type(self), **arguments), ()

    def retries(self, error: BaseException) -> bool:
        """Whether *error* is retried, if attempts and time are left."""
        if not isinstance(error, PostPressError) or isinstance(error, self.never_on):
            return False
        return error.retryable or isinstance(error, self.also_on)

    def explain(self, error: BaseException) -> str:
        """A sentence that says whether and why *error* is retried, for logs and people."""
        name = error.code if isinstance(error, PostPressError) else type(error).__name__
        if not isinstance(error, PostPressError):
            return f"{name} is not retried: it is not an error of a call."
        if isinstance(error, self.never_on):
            return f"{name} is not retried: never_on has its class."
        if not self.retries(error):
            return f"{name} is not retried: {_why_not(error)}"
        if (retry_after := error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            limit = f"more than {LONGEST_RETRY_AFTER:g} s"
            return f"{name} is not retried now: the response asks to wait {retry_after:g} s, {limit}."
        why = "it is often temporary" if error.retryable else "also_on has its class"
        stop = f"up to {self.attempts} attempts" if self.stop is None else "until the stop strategy ends it"
        return f"{name} is retried: {why}; {stop}, within {self.deadline:g} s."

    def run(self, call: Call[T]) -> Coroutine[Any, Any, T]:
        """Run attempts until one succeeds. Returns its result, or raises the error of the last attempt."""
        return self._retrying(call)


class Retrying(AsyncRetrying):
    """Runs one call with tenacity's strategies, and keeps no state of it."""

    _before_deadline: Callable[[tenacity.RetryCallState], bool]

    @classmethod
    def of(cls, policy: RetryPolicy) -> "Retrying":
        """The strategies of *policy*."""
        # `_resolve` awaits strategies that are coroutine functions; tenacity's types do not allow for them.
        stop: Any = policy.stop or tenacity.stop_after_attempt(policy.attempts)
        wait: Any = policy.wait or FullJitter(policy.first_wait, policy.max_wait)
        retrying = cls(
            stop=stop,
            wait=wait,
            retry=tenacity.retry_if_exception(policy.retries),
        )
        retrying._before_deadline = tenacity.stop_before_delay(policy.deadline)
        return retrying

    async def __call__(self, fn: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Run *fn*, a `Call`; see `RetryPolicy.run`."""
        try:
            return await fn(*args, **kwargs)
        except PostPressError as error:
            failure = error
        try:
            return await self._retry(failure, fn, args, kwargs)
        finally:
            del failure  # an exception held by a frame of its own traceback is a reference cycle

    async def _retry(self, failure: PostPressError, call: Any, args: Any, kwargs: Any) -> Any:
        clock = asyncio.get_running_loop().time
        state = tenacity.RetryCallState(self, call, args, kwargs)
        try:
            while True:
                state.set_exception((type(failure), failure, failure.__traceback__))
                # The loop's clock instead of tenacity's, so that tests can use virtual time.
                state.start_time, state.outcome_timestamp = call.started, clock()
                if not call.counts_as_attempt:
                    state.attempt_number -= 1
                if not self.retry(state) or not call.may_retry(failure):  # always the policy's own strategy
                    raise failure
                retry_after, wait = failure.retry_after or 0.0, self.wait(state)
                if not isinstance(wait, _PLAIN):
                    wait = await _resolve(call, wait)
                state.upcoming_sleep = max(retry_after, wait)
                state.start_time += call.excluded(failure, state.upcoming_sleep)
                stop: Any = self.stop(state)
                if not isinstance(stop, _PLAIN):
                    stop = await _resolve(call, stop)
                if stop or retry_after > LONGEST_RETRY_AFTER or self._before_deadline(state):
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
        return f"its type is not temporary, although its status, {error.status}, may be."
    if error.applied is Applied.UNKNOWN:
        return "the change may have been applied, and sending it again would not show whether it was."
    return f"a retry would get the same response; the cause is the {error.scope}."


_PLAIN = (int, float)  # results of synchronous strategies; bool is an int


async def _resolve(call: Any, result: Any) -> Any:
    # A user's strategy may be a coroutine function, as with tenacity itself.
    return await call.wait_for(result) if inspect.isawaitable(result) else result
