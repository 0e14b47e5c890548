"""
What can be watched, as small frozen values handed to ``PostPressSession(on_event=...)``.

An observer is called in the event loop, between two steps of the call that it watches: it should be
quick, and must not block. One that raises disturbs no call: the log has its traceback at its first mistake,
its tenth, its hundredth and so on. No event holds a secret.
"""

from collections.abc import Callable
from typing import TypeAlias

from attrs import frozen

from postpress_async.errors import Applied, PostPressError, Scope


@frozen
class CallStarted:
    """
    A call of `update_proxy`, or of a rotation, begins; it may have to wait before its first attempt.

    What is told until its `CallEnded` about it is told in its own task, `PauseBegan` and `PauseEnded` apart:
    an observer can know it by `asyncio.current_task`.

    Attributes:
        url: Where its requests go. The account's id is in it, and no secret.
    """

    account_id: str
    url: str


@frozen
class CallEnded:
    """
    A call is over. This is always its last event.

    Attributes:
        attempts: Requests that it sent.
        elapsed: Seconds from the start of its first attempt to its end. Retries and all waits before them are
            included, the wait before the first attempt is not; 0 if there was no attempt.
        error: What it raised; None on success, and where it was given up.
        given_up: Whether it was cancelled, or a mistake of a strategy ended it. An attempt that was under way
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
    """An attempt has its answer, or its error (None on success), after *elapsed* seconds."""

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
    """The service is out: all calls of the session pause, but for probes."""


@frozen
class PauseEnded:
    """A probe was answered after *elapsed* seconds of pause: the calls go on."""

    elapsed: float


@frozen
class ProxyQuarantined:
    """A pool's proxy failed its accounts: no other gets it in this run. *proxy* is its label in the list."""

    proxy: str


@frozen(slots=False)  # as an `Outcome` is, and for the same reason
class AccountSettled:
    """
    A rotation is done with an account: its *state* is patched, failed, unknown or skipped.

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
