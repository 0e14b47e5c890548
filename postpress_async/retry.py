"""When a call is retried, and after how many seconds: the settings of a `tenacity.AsyncRetrying`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import tenacity
from attrs import field, fields, frozen
from tenacity import RetryCallState
from tenacity.asyncio import AsyncRetrying

from postpress_async.errors import RETRYABLE_STATUSES, Applied, PostPressError

Callback: TypeAlias = Callable[[Any], Any]
Predicate: TypeAlias = Callable[[Any], bool | Awaitable[bool]]

LONGEST_RETRY_AFTER = 120.0
"""Seconds. If the Retry-After is longer, the call gives up at once; `PostPressError.retry_after` has it."""


def check_seconds(name: str, value: object) -> None:
    """Raise `ValueError` unless *value* is a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")


def check_policy(retry: object) -> "RetryPolicy":
    """Return *retry*, or raise `ValueError` unless it is a policy."""
    if not isinstance(retry, RetryPolicy):
        raise ValueError(f"retry must be a RetryPolicy, such as RetryPolicy(attempts=3), got {retry!r}")
    return retry


def _positive(_instance: object, attribute: Any, value: float) -> None:
    check_seconds(attribute.name, value)


def _count(_instance: object, _attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"attempts must be an integer from 1, including the first attempt, got {value!r}")


_EXAMPLES = {
    "retry": ", such as tenacity.retry_if_exception_type(errors.ProxyError)",
    "wait": ", such as tenacity.wait_fixed(5)",
    "stop": ", such as tenacity.stop_after_attempt(3)",
}


def _strategy(_instance: object, attribute: Any, value: object) -> None:
    if isinstance(value, type) and issubclass(value, BaseException):  # a class is callable, too
        kind = value.__name__
        raise ValueError(f"retry must be a strategy: write tenacity.retry_if_exception_type({kind})")
    if isinstance(value, tenacity.BaseRetrying):  # callable, too: it would call the error, and retry that
        kind = type(value).__name__
        raise ValueError(f"{attribute.name} must be one strategy, not {kind}: pass its retry, wait and stop")
    if isinstance(value, type):
        raise ValueError(f"{attribute.name} must be a strategy, not its class: write {value.__name__}(...)")
    if not callable(value) and (value is not None or attribute.name == "sleep"):
        example = _EXAMPLES.get(attribute.name, "")
        raise ValueError(
            f"{attribute.name} must be callable, as tenacity's strategies are{example}, got {value!r}"
        )


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

    tenacity decides, from the first failure on. Its strategies and callbacks, coroutine functions included,
    work as it documents them. Each call has an `AsyncRetrying` of its own: a callback finds its `statistics`
    at ``retry_state.retry_object``, and the account id at ``retry_state.args[0]``. The last error is raised
    unchanged. A policy is immutable and can be shared by any number of calls.

    Whatever the strategies say, a wait is at least the Retry-After, a wait that would exceed *deadline* does
    not begin, and a managed proxy is not requested again if that might assign a second one.

    Attributes:
        attempts: Most attempts, including the first; from 1.
        attempt_timeout: Seconds for one attempt, from connecting to the last byte of the response.
        deadline: Seconds for all attempts and waits of a call together; `math.inf` for no deadline.
        first_wait: Upper end of the first wait, in seconds.
        max_wait: Upper end of all waits, in seconds.
        also_on: Classes of errors to retry, whatever their `retryable` and *retry* say.
        never_on: Classes of errors not to retry; overrides *also_on* and *retry*.
        retry: A tenacity retry strategy, or a predicate of the error, in place of the error's `retryable`.
        wait: A tenacity wait strategy in place of its `wait_random_exponential`, which draws the wait after
            attempt *n* from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))`` seconds.
        stop: A tenacity stop strategy in place of *attempts*; the deadline still applies.
        before: Called before each attempt, such as `tenacity.before_log`.
        after: Called after each attempt that is to be retried, such as `tenacity.after_log`.
        before_sleep: Called before each backoff, such as `tenacity.before_sleep_log`.
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
    retry: tenacity.retry_base | Predicate | None = field(default=None, validator=_strategy)
    wait: Callable[[RetryCallState], float | Awaitable[float]] | None = field(
        default=None, validator=_strategy
    )
    stop: Callable[[RetryCallState], bool | Awaitable[bool]] | None = field(default=None, validator=_strategy)
    before: Callback | None = field(default=None, validator=_strategy)
    after: Callback | None = field(default=None, validator=_strategy)
    before_sleep: Callback | None = field(default=None, validator=_strategy)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, validator=_strategy)
    _retrying: AsyncRetrying = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        wait = self.wait or tenacity.wait_random_exponential(multiplier=self.first_wait, max=self.max_wait)
        settings: dict[str, Any] = {
            "retry": self._wants_retry,
            "wait": partial(_at_least_retry_after, wait),
            "stop": self.stop or tenacity.stop_after_attempt(self.attempts),
            "before": self.before,
            "after": self.after,
            "before_sleep": self.before_sleep,
            "sleep": self.sleep,
            "retry_error_callback": _reraise,
        }
        # Made once, after validation. A frozen instance can only be set in this way.
        object.__setattr__(self, "_retrying", _Retrying(**settings))

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from its arguments: older versions of tenacity keep a lock in `_retrying`.
        arguments = {a.name: getattr(self, a.name) for a in fields(RetryPolicy) if a.init}
        return partial(type(self), **arguments), ()

    def retries(self, error: BaseException) -> bool:
        """
        Whether *error* is retried, if attempts and time are left.

        Raises:
            TypeError: *retry* awaits something, which only a call can wait for.
        """
        if not isinstance(error, PostPressError):
            return False
        state = RetryCallState(self._retrying, None, (), {})
        state.set_exception((type(error), error, error.__traceback__))
        answer = self._wants_retry(state)
        try:
            answer.send(None)
        except StopIteration as stop:
            return bool(stop.value)
        answer.close()
        raise TypeError("the retry strategy waits for something: only a call can ask it")

    def explain(self, error: BaseException) -> str:
        """A sentence that says whether and why *error* is retried, for logs and people."""
        name = error.code if isinstance(error, PostPressError) else type(error).__name__
        if not isinstance(error, PostPressError):
            return f"{name} is not retried: it is not an error of a call."
        if isinstance(error, self.never_on):
            return f"{name} is not retried: never_on has its class."
        also = isinstance(error, self.also_on)
        if not also and self.retry is None and not error.retryable:
            return f"{name} is not retried: {_why_not(error)}"
        if (retry_after := error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            limit = f"more than {LONGEST_RETRY_AFTER:g} s"
            return f"{name} is not retried now: the response asks to wait {retry_after:g} s, {limit}."
        why = ": also_on has its class" if also else ": it is often temporary"
        if self.retry is not None and not also:
            why = " if the retry strategy says so"
        stop = f"up to {self.attempts} attempts" if self.stop is None else "until the stop strategy ends it"
        return f"{name} is retried{why}; {stop}, within {self.deadline:g} s."

    async def _wants_retry(self, state: RetryCallState) -> bool:
        error = _error_of(state)
        if isinstance(error, self.never_on):
            return False
        if isinstance(error, self.also_on):
            return True
        if self.retry is None:
            return bool(error.retryable)
        about = state if isinstance(self.retry, tenacity.retry_base) else error
        return bool(await _ask(self.retry, about))


class _Retrying(AsyncRetrying):
    """An `AsyncRetrying` that does not inspect each of its steps at each failure, which doubles its time."""

    def _add_action_func(self, fn: Callback) -> None:
        self.iter_state.actions.append(partial(_ask, fn))


def new_retrying(
    policy: RetryPolicy, may_retry: Callable[[Any], bool], stop: Callable[[RetryCallState], bool]
) -> AsyncRetrying:
    """
    The `AsyncRetrying` of one call, whose `iter` raises the last error itself once the call ends.

    The policy and *may_retry* must both want a retry. The policy's stop strategy or *stop* may end the call.
    """
    retrying = policy._retrying  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def should_retry(state: RetryCallState) -> bool:
        return await _ask(retrying.retry, state) and may_retry(_error_of(state))

    async def should_stop(state: RetryCallState) -> bool:
        return bool(await _ask(retrying.stop, state)) or stop(state)

    return retrying.copy(retry=should_retry, stop=should_stop)


async def _ask(strategy: Callback, about: Any) -> Any:
    # A strategy may be a coroutine function.
    answer = strategy(about)
    return await answer if inspect.isawaitable(answer) else answer


async def _at_least_retry_after(wait: Callback, state: RetryCallState) -> float:
    seconds = float(await _ask(wait, state))
    if not seconds >= 0:  # also if it is NaN
        raise ValueError(f"the wait strategy must return a number of seconds from 0, got {seconds}")
    return max(seconds, _error_of(state).retry_after or 0.0)


def _error_of(state: RetryCallState) -> Any:
    # A `PostPressError`: nothing else is retried.
    assert state.outcome is not None  # noqa: S101 - an attempt was made
    return state.outcome.exception()


def _reraise(state: RetryCallState) -> None:
    # tenacity itself would make a `RetryError`, whose frames are a reference cycle.
    raise _error_of(state)


def _why_not(error: PostPressError) -> str:
    if error.status in RETRYABLE_STATUSES:
        return f"its type is not temporary, although its status, {error.status}, may be."
    if error.applied is Applied.UNKNOWN:
        return "the change may have been applied, and sending it again would not show whether it was."
    return f"a retry would get the same response; the cause is the {error.scope}."
