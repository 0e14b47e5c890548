"""The retry policy: which errors are retried, how often, and after how many seconds. It uses tenacity."""

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
"""Seconds. A call whose Retry-After is longer fails at once; `PostPressError.retry_after` has the value."""


def check_seconds(name: str, value: object) -> None:
    """Raise `ValueError` unless *value* is a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")


def check_policy(retry: object) -> "RetryPolicy":
    """Return *retry*, or raise `ValueError` unless it is a policy."""
    if not isinstance(retry, RetryPolicy):
        raise ValueError(f"retry must be a RetryPolicy, such as RetryPolicy(attempts=3), got {retry!r}")
    return retry


def _validate_seconds(_instance: object, attribute: Any, value: float) -> None:
    check_seconds(attribute.name, value)


def _validate_attempts(_instance: object, _attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"attempts must be an integer from 1, including the first attempt, got {value!r}")


_EXAMPLES = {
    "retry": ", such as tenacity.retry_if_exception_type(errors.ProxyError)",
    "wait": ", such as tenacity.wait_fixed(5)",
    "stop": ", such as tenacity.stop_after_attempt(3)",
}


def _validate_strategy(_instance: object, attribute: Any, value: object) -> None:
    # Classes and `AsyncRetrying` objects are callable, but not strategies.
    if isinstance(value, type) and issubclass(value, BaseException):
        kind = value.__name__
        raise ValueError(f"retry must be a strategy: write tenacity.retry_if_exception_type({kind})")
    if isinstance(value, tenacity.BaseRetrying):
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
    return kinds if isinstance(kinds, type) else tuple(kinds)  # type: ignore[return-value]  # pyright: ignore[reportReturnType] # rejected by `_validate_classes`


def _validate_classes(_instance: object, attribute: Any, value: tuple[type, ...]) -> None:
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
    Exponential backoff with full jitter, limited by a number of attempts, a deadline and a longest wait.

    After a failed attempt, tenacity decides whether and when to retry. Its strategies and callbacks work as
    tenacity documents them, and may be coroutine functions. Each call has its own `AsyncRetrying`: a callback
    finds the call's `statistics` at ``retry_state.retry_object``, and the account id at
    ``retry_state.args[0]``. The last error is raised unchanged. A policy is immutable, and any number of
    calls can share it.

    Three rules apply whatever the strategies return: a wait is never shorter than the Retry-After; a wait
    that would exceed *deadline* does not begin, and the call fails at once; and a managed proxy is not
    requested again if that might assign a second one.

    Attributes:
        attempts: Most attempts, including the first; at least 1.
        attempt_timeout: Seconds for one attempt, from connecting to the last byte of the response.
        deadline: Seconds for all attempts and waits of a call together; `math.inf` for no deadline.
        first_wait: Longest first wait, in seconds.
        max_wait: Longest wait, in seconds.
        also_on: Classes of errors to retry; overrides *retry* and the error's `retryable`.
        never_on: Classes of errors not to retry; overrides *also_on* and *retry*.
        retry: A tenacity retry strategy, or a predicate of the error, to use instead of its `retryable`.
        wait: A tenacity wait strategy. The default, `wait_random_exponential`, draws the wait after attempt
            *n* from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))`` seconds.
        stop: A tenacity stop strategy, to use instead of *attempts*. The deadline still applies.
        before: Called before each attempt, such as `tenacity.before_log`.
        after: Called after each attempt that is to be retried, such as `tenacity.after_log`.
        before_sleep: Called before each backoff, such as `tenacity.before_sleep_log`.
        sleep: Called with the seconds of each backoff. A test may record the seconds and return at once: the
            backoff still counts against *deadline*.

    Raises:
        ValueError: A value is out of its range or of the wrong type.
    """

    attempts: int = field(default=4, validator=_validate_attempts)
    attempt_timeout: float = field(default=30.0, validator=_validate_seconds)
    deadline: float = field(default=120.0, validator=_validate_seconds)
    first_wait: float = field(default=0.5, validator=_validate_seconds)
    max_wait: float = field(default=20.0, validator=_validate_seconds)
    also_on: tuple[type[PostPressError], ...] = field(
        default=(), converter=_as_tuple, validator=_validate_classes
    )
    never_on: tuple[type[PostPressError], ...] = field(
        default=(), converter=_as_tuple, validator=_validate_classes
    )
    retry: tenacity.retry_base | Predicate | None = field(default=None, validator=_validate_strategy)
    wait: Callable[[RetryCallState], float | Awaitable[float]] | None = field(
        default=None, validator=_validate_strategy
    )
    stop: Callable[[RetryCallState], bool | Awaitable[bool]] | None = field(
        default=None, validator=_validate_strategy
    )
    before: Callback | None = field(default=None, validator=_validate_strategy)
    after: Callback | None = field(default=None, validator=_validate_strategy)
    before_sleep: Callback | None = field(default=None, validator=_validate_strategy)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, validator=_validate_strategy)
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
        # There is no other way to set an attribute of a frozen instance.
        object.__setattr__(self, "_retrying", _Retrying(**settings))

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle only the arguments: in older versions of tenacity, `_retrying` has a lock.
        arguments = {item.name: getattr(self, item.name) for item in fields(RetryPolicy) if item.init}
        return partial(type(self), **arguments), ()

    def retries(self, error: BaseException) -> bool:
        """
        Whether *error* is retried, if attempts and time are left.

        Raises:
            TypeError: *retry* awaits something, which is possible only during a call.
        """
        if not isinstance(error, PostPressError):
            return False
        state = RetryCallState(self._retrying, None, (), {})
        state.set_exception((type(error), error, error.__traceback__))
        decision = self._wants_retry(state)
        try:
            decision.send(None)
        except StopIteration as stop:
            return bool(stop.value)
        decision.close()
        raise TypeError("the retry strategy awaits something, which is possible only during a call")

    def explain(self, error: BaseException) -> str:
        """A sentence for logs and people that says whether *error* is retried, and why."""
        if not isinstance(error, PostPressError):
            return f"{type(error).__name__} is not retried: it is not an error of a call."
        name = error.code
        if isinstance(error, self.never_on):
            return f"{name} is not retried: never_on has its class."
        in_also_on = isinstance(error, self.also_on)
        if not in_also_on and self.retry is None and not error.retryable:
            return f"{name} is not retried: {_why_not(error)}"
        if (retry_after := error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            limit = f"more than {LONGEST_RETRY_AFTER:g} s"
            return f"{name} is not retried now: the response asks to wait {retry_after:g} s, {limit}."
        if in_also_on:
            why = ": also_on has its class"
        elif self.retry is not None:
            why = " if the retry strategy says so"
        else:
            why = ": it is often temporary"
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
        is_strategy = isinstance(self.retry, tenacity.retry_base)  # otherwise a predicate of the error
        return bool(await _call(self.retry, state if is_strategy else error))


class _Retrying(AsyncRetrying):
    """
    An `AsyncRetrying` that handles a failure in half the time.

    For each failure, tenacity inspects whether each strategy is a coroutine function. This class calls the
    strategy, and awaits the result if that is awaitable.
    """

    def _add_action_func(self, fn: Callback) -> None:
        self.iter_state.actions.append(partial(_call, fn))


def new_retrying(
    policy: RetryPolicy, may_retry: Callable[[Any], bool], stop: Callable[[RetryCallState], bool]
) -> AsyncRetrying:
    """
    Return the `AsyncRetrying` of one call. If there is no further attempt, its `iter` raises the last error.

    An error is retried only if the policy and *may_retry* both allow it, and neither the policy's stop
    strategy nor *stop* ends the call.
    """
    retrying = policy._retrying  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def should_retry(state: RetryCallState) -> bool:
        return await _call(retrying.retry, state) and may_retry(_error_of(state))

    async def should_stop(state: RetryCallState) -> bool:
        return bool(await _call(retrying.stop, state)) or stop(state)

    return retrying.copy(retry=should_retry, stop=should_stop)


async def _call(strategy: Callback, argument: Any) -> Any:
    """Call *strategy*, which may be a coroutine function."""
    result = strategy(argument)
    return await result if inspect.isawaitable(result) else result


async def _at_least_retry_after(wait: Callback, state: RetryCallState) -> float:
    seconds = float(await _call(wait, state))
    if not seconds >= 0:  # negative, or NaN
        raise ValueError(f"the wait strategy must return a number of seconds from 0, got {seconds}")
    return max(seconds, _error_of(state).retry_after or 0.0)


def _error_of(state: RetryCallState) -> Any:
    # A `PostPressError`: other exceptions do not reach tenacity.
    assert state.outcome is not None  # noqa: S101 - an attempt was made
    return state.outcome.exception()


def _reraise(state: RetryCallState) -> None:
    # By default, tenacity raises a `RetryError`, and its traceback is part of a reference cycle.
    raise _error_of(state)


def _why_not(error: PostPressError) -> str:
    if error.status in RETRYABLE_STATUSES:
        return f"its type is not temporary, although its status, {error.status}, may be."
    if error.applied is Applied.UNKNOWN:
        return "the change may have been applied, and sending it again would not show whether it was."
    return f"a retry would get the same response; the cause is the {error.scope}."
