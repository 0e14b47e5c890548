"""
Events, which are passed to ``PostPressSession(on_event=...)``.

An observer is called in the event loop, during the call that it observes. It should be fast, and must not
block. Exceptions that it raises do not affect calls: the first, tenth, hundredth ... is logged with its
traceback. Events never contain secrets.
"""

from collections.abc import Callable
from typing import TypeAlias

from attrs import frozen

from postpress_async.errors import Applied, PostPressError, Scope


@frozen
class CallStarted:
    """
    A call of `update_proxy`, or of a rotation, starts. It may have to wait before its first attempt.

    All events of a call are sent in its task, so an observer can match them by `asyncio.current_task`.
    `PauseBegan` and `PauseEnded` do not belong to a call.

    Attributes:
        url: The URL of its requests. It contains the account id, and no secret.
    """

    account_id: str
    url: str


@frozen
class CallEnded:
    """
    A call ended. This is always its last event.

    Attributes:
        attempts: Number of requests sent.
        elapsed: Seconds from the start of its first attempt to its end. Retries and all waits before them are
            included, the wait before the first attempt is not; 0 if there was no attempt.
        error: The error that it raised; None on success, and if it was given up.
        given_up: Whether it was cancelled, or ended by an exception of a strategy. An attempt in flight
            then has no `AttemptEnded`.
    """

    account_id: str
    attempts: int
    elapsed: float
    error: PostPressError | None
    given_up: bool = False


@frozen
class AttemptStarted:
    """A request is about to be sent. *number* is 1 for a call's first attempt."""

    account_id: str
    number: int


@frozen
class AttemptEnded:
    """An attempt ended after *elapsed* seconds, with *error* or (None) success."""

    account_id: str
    number: int
    elapsed: float
    status: int | None
    error: PostPressError | None


@frozen
class RetryScheduled:
    """Attempt *number* failed with *error*; the next one is due in *wait* seconds."""

    account_id: str
    number: int
    wait: float
    error: PostPressError


@frozen
class PauseBegan:
    """The service is down: all calls of the session wait, except for probes (the circuit breaker opened)."""


@frozen
class PauseEnded:
    """A probe succeeded after *elapsed* seconds: calls continue (the circuit breaker closed)."""

    elapsed: float


@frozen
class ProxyQuarantined:
    """A proxy of a pool failed too often and is not assigned again in this run. *proxy* is its label."""

    proxy: str


@frozen(slots=False)  # like `Outcome`, for the same reason
class AccountSettled:
    """
    An account of a rotation is completed: its *state* is patched, failed, unknown or skipped.

    Attributes:
        elapsed: As in `Outcome`: seconds from the start of its first attempt to its end.
    """

    account_id: str
    ordinal: int
    state: str
    attempts: int
    elapsed: float
    error_type: str | None = None
    scope: Scope | None = None
    applied: Applied | None = None


Event: TypeAlias = (
    CallStarted
    | CallEnded
    | AttemptStarted
    | AttemptEnded
    | RetryScheduled
    | PauseBegan
    | PauseEnded
    | ProxyQuarantined
    | AccountSettled
)

Observer: TypeAlias = Callable[[Event], object]
