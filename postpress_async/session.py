"""The session: one object that gives accounts new proxies, from any number of tasks at once."""

import asyncio
import logging
import os
import random
import ssl as tls
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self

import aiohttp

from postpress_async import events
from postpress_async._call.context import CallContext, CallHooks
from postpress_async._call.idempotency import FixedKey, FreshKeys, KeyGenerator, Keys, check_key
from postpress_async._call.keyed_lock import KeyedLock
from postpress_async._call.tracker import CallTracker, WaitGroup
from postpress_async._call.update import UpdateCall
from postpress_async._http.lean_transport import make_lean_transport
from postpress_async._http.session_transport import AiohttpTransport
from postpress_async._http.transport import Transport
from postpress_async._safe_observer import SafeObserver
from postpress_async._settings import make_tls, read_api_key, read_base_url, target_of
from postpress_async.errors import ConfigurationError
from postpress_async.events import Observer
from postpress_async.models import AccountPatched, ProxyChange
from postpress_async.pace import Pace
from postpress_async.pace._pacer import Pacer
from postpress_async.retry import RetryPolicy
from postpress_async.secret import Secret

if TYPE_CHECKING:
    from postpress_async.rotation import Halt, ProxyPool, Rotation
    from postpress_async.rotation._input import Changes
    from postpress_async.rotation.journal import OnFailed, OnUnknown

_TRANSPORTS: Final[dict[str, Callable[..., Transport]]] = {
    "session": AiohttpTransport,
    "lean": make_lean_transport,
}
_log = logging.getLogger("postpress_async.pace")


class PostPressSession:
    """
    The PostPress API, as seen from asyncio.

    It may be made outside the event loop, and belongs to the loop that first uses it. Close it with
    ``async with`` or `aclose`; a closed session does not reopen.

    Args:
        api_key: The key of the dashboard; else the environment's ``POSTPRESS_API_KEY``.
        base_url: https, or http to this machine; else ``POSTPRESS_BASE_URL``, else PostPress's own.
        retry: How each call is retried; `update_proxy` takes another one for a single call.
        pace: How many requests are in flight at once, over all calls.
        idempotency: Whether an ``Idempotency-Key`` goes with each request. Without it, a managed change
            whose outcome is unknown is not sent a second time.
        ssl: A context that checks certificates, or a PEM file of those to trust; else the system's.
        connector: An aiohttp connector of your own, which stays yours to close and then has its own TLS.
        transport: ``"session"``: through `aiohttp.ClientSession`, which can be mocked. ``"lean"``: over its
            connections alone, for about half the CPU; where this aiohttp is not as that needs it, a warning
            in the log says so, and it is ``"session"`` after all.
        on_event: Called with each of `postpress_async.events`.

    Raises:
        ConfigurationError: The key, the base URL or the certificates cannot be used.
    """

    def __init__(
        self,
        api_key: str | Secret | None = None,
        *,
        base_url: str | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable, as is the pace
        pace: Pace = Pace(),  # noqa: B008
        idempotency: bool = True,
        ssl: tls.SSLContext | str | os.PathLike[str] | None = None,
        connector: aiohttp.BaseConnector | None = None,
        transport: Literal["session", "lean"] = "session",
        on_event: Observer | None = None,
    ) -> None:
        if transport not in _TRANSPORTS:
            raise ConfigurationError(f'there is no transport {transport!r}: it is "session" or "lean"')
        key = read_api_key(api_key)
        url = read_base_url(base_url)
        # The system's certificates take 20 ms to load, and plain http to this machine needs none.
        context = make_tls(ssl) if ssl is not None or url.scheme == "https" else None
        self._target: Final = target_of(url)
        self._retry: Final = retry
        self._pace: Final = pace
        self._idempotency: Final = idempotency
        self._key_maker: Final = KeyGenerator()
        self._tracker: Final = CallTracker()
        observer = None if on_event is None else SafeObserver(on_event)
        self._context: Final = CallContext(
            _TRANSPORTS[transport](url, key, tls=context, connector=connector),
            key,
            Pacer(pace, random=random.random, on_pause=_Pauses(observer).told),
            KeyedLock(),
            self._tracker,
            observer,
            url,
        )

    @property
    def paused(self) -> bool:
        """Whether all calls pause now, but for probes: the service is out."""
        return self._context.pacer.paused

    async def update_proxy(
        self,
        account_id: str,
        change: ProxyChange,
        *,
        retry: RetryPolicy | None = None,
        idempotency_key: str | None = None,
    ) -> AccountPatched:
        """
        Give one account the proxy that *change* describes.

        Updates of one account on one session run one after another, in the order of the calls. So the last
        call made is the last applied, unless an earlier one was cancelled or timed out: the API may still
        apply that one later.

        Args:
            account_id: 1 to 256 of ``A-Z a-z 0-9 . _ ~ -``.
            change: A `CustomProxy` or a `ManagedProxy`.
            retry: In place of the session's policy.
            idempotency_key: Kept for every attempt, in place of the session's own keys; visible ASCII.

        Raises:
            ValueError: The id or the key cannot be sent. Nothing was.
            ApiError: The API refused; the class says what, `scope` whose fault it is.
            TransportError: No answer came.
            AnswerError: An answer came that cannot be believed.
            DeadlineError: The deadline passed before anything was sent.
            ConfigurationError: The session is closed, or belongs to another event loop.
        """
        if idempotency_key is not None:
            keys: Keys = FixedKey(check_key(idempotency_key))
        else:
            keys = FreshKeys(self._key_maker) if self._idempotency else FixedKey(None)
        with self._tracker:
            return await UpdateCall(self._context, account_id, change, keys, retry or self._retry).run()

    def rotate(
        self,
        changes: "Changes",
        *,
        journal: str | os.PathLike[str] | None = None,
        in_flight: int | None = None,
        halt: "str | int | Halt | None" = None,
        pool: "ProxyPool | None" = None,
        limit: int | None = None,
        on_unknown: "OnUnknown" = "retry",
        on_failed: "OnFailed" = "report",
    ) -> "Rotation":
        """
        A rotation of many accounts: enter it with ``async with``, iterate over its outcomes.

        Args:
            changes: Pairs of account id and change, from any iterable (also asynchronous, also a
                mapping), read as they are worked; or a `Fleet`; or a pandas or polars frame with a fleet's
                columns, see `Fleet.of`. A wrong pair is an outcome, no exception. With a *pool*, an account
                id alone will do.
            journal: The SQLite file that remembers what is settled. A run that was stopped or killed goes
                on where it was, with the same changes in the same order.
            in_flight: Accounts worked on at once, from 1; else the pace's.
            halt: When to stop by itself: ``"5%"`` of the latest 200 accounts failed, or 100 accounts did,
                or ``"never"``; or a `Halt`, which may have a canary. ``"50%"`` where it is None.
            pool: Where accounts that name no change get their proxy from, and the next one if it fails.
            limit: Accounts that are taken in this run at most, from 1; None for all.
            on_unknown: Whether accounts whose outcome is unknown after an earlier run are sent again under
                the same key (``"retry"``), or left as they are (``"report"``); those that a killed run may
                have sent included.
            on_failed: Whether accounts that failed in an earlier run are left as they are (``"report"``), or
                sent again under fresh keys (``"retry"``).

        Raises:
            ValueError: An argument is not as said above; the fleet needs a pool and there is none; or no
                account would use the *pool* (known for a fleet, a frame, and any collection of accounts).
            JournalError: On entering it: the journal is in use, of another input, or cannot be written.
        """
        # Here, since most programs that call one account at a time never come here: see `__init__`.
        from postpress_async.rotation import Halt, Rotation
        from postpress_async.rotation._input import Given, check_count

        check_count("in_flight", in_flight)
        check_count("limit", limit)
        given = Given.of(changes, pooled=pool is not None)
        at_once = in_flight or self._pace.in_flight
        opener = given.kept_in(
            journal,
            target=self._target,
            on_unknown=on_unknown,
            on_failed=on_failed,
            in_flight=at_once,
            pool=pool,
        )
        return Rotation(
            self._run_call,
            given.rows,
            in_flight=at_once,
            journal=opener,
            finite=given.finite,
            total=given.total,
            halt=Halt.of(halt),
            pool=pool,
            limit=limit,
            waits=self._new_wait_group(),
            observer=self._context.observer,
        )

    async def _run_call(
        self, account_id: str, change: ProxyChange, keys: Keys, hooks: CallHooks | None = None, /
    ) -> AccountPatched:
        """Not for callers: one call under keys of a rotation, on any machine, or of the command context."""
        if not self._idempotency:
            keys = FixedKey(None, keys.in_doubt)
        with self._tracker:
            call = UpdateCall(
                self._context,
                account_id,
                change,
                keys,
                self._retry,
                hooks,  # pyright: ignore[reportArgumentType] # it takes what is in slots for methods
            )
            return await call.run()

    def _new_wait_group(self) -> WaitGroup:
        """Not for callers: where the calls of one rotation wait."""
        return self._tracker.child()

    async def aclose(self, timeout: float = 5.0) -> None:
        """
        Close the session for good. Closing it again does nothing.

        Calls under way have *timeout* seconds to end; those that then still wait or retry raise their
        last error or `SessionClosedError`, and those in flight raise `ConnectionLostError`.
        """
        try:
            await self._tracker.close(timeout)
        finally:
            self._tracker.end()
            await self._context.transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nobody waits for what is still under way.
        await self.aclose(0.0 if kind is not None else 5.0)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled or copied: create a new one where it is needed")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._tracker.ended else 'open'}>"


class _Pauses:
    """Tells of pauses. It does not know the session: with a cycle, one left open is not told of at once."""

    def __init__(self, observer: SafeObserver[events.Event] | None) -> None:
        self._observer: Final = observer
        self._began = 0.0

    def told(self, began: bool) -> None:
        """See `Pacer`."""
        now = asyncio.get_running_loop().time()
        if began:
            self._began = now
            _log.warning("the service is out: all calls pause, but for probes", extra={"paused": True})
            event: events.Event = events.PauseBegan()
        else:
            elapsed = now - self._began
            told = "the service is back after %.1f s: the calls go on"
            _log.warning(told, elapsed, extra={"paused": False, "elapsed": elapsed})
            event = events.PauseEnded(elapsed)
        if self._observer is not None:
            self._observer(event)
