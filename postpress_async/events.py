"""
Events of a session, which are passed to the observer of ``PostPressSession(on_event=...)``.

The observer runs in the event loop, inside the call that it observes, so it must be fast and must not block.
Its exceptions do not affect calls; the first, tenth, hundredth and so on is logged with its traceback. Events
never contain secrets.
"""

from collections.abc import Callable
from typing import TypeAlias

from attrs import frozen

from postpress_async.errors import Applied, PostPressError, Scope


@frozen
class CallStarted:
    """
    A call of `update_proxy` or of a rotation started. It may wait before its first attempt.

    All events of a call are emitted in its task, so an observer can match them by `asyncio.current_task`.
    `PauseBegan`, `PauseEnded`, `LimitChanged` and `RateChanged` do not belong to a call.

    Attributes:
        url: The URL of the call's requests. Contains the account id but no secret.
    """

    account_id: str
    url: str


@frozen
class CallEnded:
    """
    A call ended. This is always its last event.

    Attributes:
        attempts: Number of attempts that ended with a response or an error.
        elapsed: Seconds from the start of the first attempt to the end of the call, including backoff; 0 if
            there was no attempt.
        error: The error that the call raised; None if it succeeded or *given_up* is true.
        given_up: Whether the call was cancelled, or ended by an exception that is not a `PostPressError`. An
            attempt in flight then has no `AttemptEnded`.
        waited: Seconds for which the call waited until the session's limits allowed its attempts.
    """

    account_id: str
    attempts: int
    elapsed: float
    error: PostPressError | None
    given_up: bool = False
    waited: float = 0.0


@frozen
class AttemptStarted:
    """A request is about to be sent. *number* is 1 for a call's first attempt."""

    account_id: str
    number: int


@frozen
class AttemptEnded:
    """An attempt ended after *elapsed* seconds. *error* is None if it succeeded."""

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
    """
    All calls except probes wait, because the service is down (the circuit breaker opened), or because most
    proxies of a rotation's pool fail at the same time.
    """


@frozen
class PauseEnded:
    """A probe succeeded *elapsed* seconds after `PauseBegan`, so calls continue."""

    elapsed: float


@frozen
class LimitChanged:
    """The concurrency limit changed by a tenth or more, to *limit* requests in flight."""

    limit: int


@frozen
class RateChanged:
    """The rate limit changed by a tenth or more, to *rate* requests per second; None means unlimited."""

    rate: float | None


@frozen
class ProxyQuarantined:
    """A proxy of a pool failed too often, so it is not assigned during a cool-down. *proxy* is its label."""

    proxy: str


@frozen(slots=False)  # with slots, creating an event takes twice as long
class AccountSettled:
    """
    A rotation has the outcome of an account: its *state* is patched, failed, unknown or skipped.

    Attributes:
        elapsed: Seconds from the start of the account's first attempt to its outcome.
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
    | LimitChanged
    | RateChanged
    | ProxyQuarantined
    | AccountSettled
)

Observer: TypeAlias = Callable[[Event], object]
