"""The dependencies that all calls of a session share, and the callbacks of a call's owner."""

from typing import Protocol

from attrs import field, frozen
from yarl import URL

from postpress_async import events
from postpress_async._call.keyed_lock import KeyedLock
from postpress_async._call.tracker import CallTracker, WaitGroup
from postpress_async._http import codec
from postpress_async._http.transport import Request, Transport, account_path
from postpress_async._safe_observer import SafeObserver
from postpress_async.errors import PostPressError
from postpress_async.models import ProxyChange
from postpress_async.pace._pacer import Pacer
from postpress_async.secret import Secret


@frozen
class CallContext:
    """The dependencies that all calls of a session share."""

    transport: Transport
    api_key: Secret
    pacer: Pacer
    locks: KeyedLock
    tracker: CallTracker
    observer: SafeObserver[events.Event] | None
    base_url: URL
    _url_parts: tuple[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        path, query = account_path(self.base_url)
        object.__setattr__(self, "_url_parts", (f"{self.base_url.origin()}{path}", query))

    def encode_request(self, account_id: str, change: ProxyChange) -> Request:
        """See `codec.encode_request`. A valid account id needs no escaping in the URL."""
        before, after = self._url_parts
        return codec.encode_request(account_id, change, f"{before}{account_id}{after}", self.api_key)


class CallHooks(Protocol):
    """The callbacks of a call's owner, such as a rotation. The call runs them in its own task."""

    @property
    def waits(self) -> WaitGroup:
        """The group of the call's waits, with which the owner can end all of them at once."""
        ...

    def on_call_started(self) -> object:
        """Called when the call starts. No request is in flight before `on_attempt_started`."""
        ...

    def on_attempt_started(self, now: float, /) -> object:
        """Called before a request is sent. *now* is the time by the event loop's clock, in seconds."""
        ...

    def on_attempt_failed(self, error: PostPressError, /) -> object:
        """Called after a failed attempt. `error.applied` does not yet include earlier attempts."""
        ...

    def on_backoff(self, backing_off: bool, /) -> object:
        """Called with True when a backoff begins, and with False when it ends."""
        ...

    def should_give_up(self, error: PostPressError, /) -> bool:
        """Whether the owner wants no further attempt, although the policy would make one."""
        ...
