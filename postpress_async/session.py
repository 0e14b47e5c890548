"""The session, which updates the proxies of accounts from any number of tasks."""

import asyncio
import math
import os
import random
import ssl as tls
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self

import aiohttp
from yarl import URL

from postpress_async._call.arguments import suggest_change
from postpress_async._call.context import CallContext, CallHooks
from postpress_async._call.idempotency import FixedKey, FreshKeys, Keys, check_key
from postpress_async._call.keyed_lock import KeyedLock
from postpress_async._call.pace_reports import PaceReports, shown_rate
from postpress_async._call.tracker import CallTracker
from postpress_async._call.update import UpdateCall
from postpress_async._converter import as_change
from postpress_async._http.lean_transport import make_lean_transport
from postpress_async._http.session_transport import AiohttpTransport
from postpress_async._http.transport import Transport
from postpress_async._safe_observer import SafeObserver
from postpress_async._settings import make_tls, read_api_key, read_base_url, target_of
from postpress_async.errors import ConfigurationError, SessionClosedError
from postpress_async.events import Observer
from postpress_async.models import AccountPatched, ProxyChange, ProxyChangeLike, SessionStats
from postpress_async.pace import Pace
from postpress_async.pace._pacer import Pacer
from postpress_async.retry import RetryPolicy, check_policy, check_seconds
from postpress_async.secret import Secret

if TYPE_CHECKING:
    from postpress_async.rotation import Halt, ProxyPool, Results, Rotation
    from postpress_async.rotation._input import Changes
    from postpress_async.rotation._rows import Change
    from postpress_async.rotation._selection import Selection
    from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown

_TRANSPORTS: Final[dict[str, Callable[..., Transport]]] = {
    "session": AiohttpTransport,
    "lean": make_lean_transport,
}


class PostPressSession:
    """
    A client of the PostPress API for asyncio.

    It may be created outside the event loop, and belongs to the loop that first uses it. Close it with
    ``async with`` or `aclose`; a closed session cannot be reopened.

    Args:
        api_key: The API key from the dashboard; if None, the environment variable ``POSTPRESS_API_KEY``.
        base_url: An https URL, or http to this machine; if None, the environment variable
            ``POSTPRESS_BASE_URL``, or the URL of PostPress.
        retry: When calls are retried; `update_proxy` accepts another policy for a single call.
        pace: Limits of concurrency and rate for all calls together.
        idempotency: Whether to send an ``Idempotency-Key`` with each request. Without it, a managed proxy
            whose outcome is unknown is not requested again.
        same_account: ``"queue"`` runs the updates of an account one after another, in the order of the calls.
            With ``"latest"``, only the newest change is sent next: a call that waits for an earlier update of
            its account raises `SupersededError` as soon as a newer call is made. An update that has started
            is not interrupted.
        trust_env: Whether to use the proxy of the environment (``HTTPS_PROXY``, ``NO_PROXY``) and the
            credentials of ``~/.netrc``, as aiohttp does. Requires ``transport="session"``.
        allow_http: Host names to which http is allowed, besides this machine; for example a mock in a
            container network. The API key can be read on the way, so a warning is logged.
        ssl: A context that checks certificates, or a PEM file of trusted certificates; if None, the system's.
        connector: An aiohttp connector with its own TLS settings. The session does not close it.
        transport: ``"session"`` uses `aiohttp.ClientSession`, which tests can mock. ``"lean"`` uses only
            aiohttp's connections, and takes about half the CPU time; if the installed aiohttp is incompatible
            with it, a warning is logged and ``"session"`` is used. Or pass a `Transport` of your own, without
            *trust_env*, *ssl* and *connector*; the session closes it.
        on_event: Called with each event of `postpress_async.events`.

    Raises:
        ConfigurationError: The key, the base URL or the certificates cannot be used.
    """

    def __init__(
        self,
        api_key: str | Secret | None = None,
        *,
        base_url: str | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable, like Pace
        pace: Pace = Pace(),  # noqa: B008
        idempotency: bool = True,
        same_account: Literal["queue", "latest"] = "queue",
        trust_env: bool = False,
        allow_http: Iterable[str] = (),
        ssl: tls.SSLContext | str | os.PathLike[str] | None = None,
        connector: aiohttp.BaseConnector | None = None,
        transport: Literal["session", "lean"] | Transport = "session",
        on_event: Observer | None = None,
    ) -> None:
        if same_account not in {"queue", "latest"}:
            raise ConfigurationError(f'same_account must be "queue" or "latest", got {same_account!r}')
        for name, value, kind in (("retry", retry, RetryPolicy), ("pace", pace, Pace)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"{name} must be a {kind.__name__}, got {value!r}")
        key = read_api_key(api_key)
        url = read_base_url(base_url, allow_http=allow_http)
        self._target: Final = target_of(url)
        self._retry: Final = retry
        self._pace: Final = pace
        self._idempotency: Final = idempotency
        self._tracker: Final = CallTracker()
        observer = None if on_event is None else SafeObserver(on_event)
        reports = PaceReports(observer)
        self._context: Final = CallContext(
            _make_transport(transport, url, key, ssl=ssl, connector=connector, trust_env=trust_env),
            key,
            Pacer(pace, random=random.random, on_pause=reports.on_pause, on_change=reports.on_change),
            KeyedLock(latest=same_account == "latest"),
            self._tracker,
            observer,
            url,
        )

    @property
    def paused(self) -> bool:
        """Whether the service is down, so that all calls except probes wait."""
        return self._context.pacer.paused

    def stats(self) -> SessionStats:
        """The state of the session's pace at this moment."""
        pacer = self._context.pacer
        return SessionStats(
            in_flight=pacer.in_flight,
            waiting=pacer.waiting,
            limit=pacer.limit,
            rate=shown_rate(pacer.rate),
            breaker=pacer.breaker_state,
        )

    @suggest_change
    async def update_proxy(
        self,
        account_id: str,
        change: ProxyChangeLike,
        *,
        retry: RetryPolicy | None = None,
        idempotency_key: str | None = None,
    ) -> AccountPatched:
        """
        Set the proxy of one account to *change*, by default in up to 4 attempts within 120 s.

        Updates of one account run one after another, in the order of the calls, unless the session has
        ``same_account="latest"``. So the change of the last call is applied last, with one exception: if an
        earlier call was cancelled or timed out, the API may still apply its change later.

        Args:
            account_id: 1 to 256 of ``A-Z a-z 0-9 . _ ~ -``.
            change: A `CustomProxy` or a `ManagedProxy`, or plain data such as ``{"country": "US"}``; see
                `ProxyChangeLike`.
            retry: Overrides the session's policy, for example its deadline.
            idempotency_key: Sent with every attempt, instead of generated keys; visible ASCII characters.

        Raises:
            FieldError: The account id or the change is invalid. Nothing was sent.
            ValueError: Another argument is invalid. Nothing was sent.
            ApiError: An error response; see its class and `scope`.
            TransportError: There was no response.
            AnswerError: The response is invalid.
            DeadlineError: The deadline passed before anything was sent.
            BusyError: More calls wait than `Pace.max_waiting` allows. Nothing was sent.
            SupersededError: A newer update of the account was made before anything was sent.
            ConfigurationError: The session is closed, or belongs to another event loop.
        """
        if idempotency_key is not None:
            keys: Keys = FixedKey(check_key(idempotency_key))
        else:
            keys = FreshKeys() if self._idempotency else FixedKey(None)
        with self._tracker:
            policy = self._retry if retry is None else check_policy(retry)
            return await UpdateCall(self._context, account_id, as_change(change), keys, policy).run()

    async def update_many(
        self,
        changes: "Mapping[str, ProxyChangeLike | str | None] | Iterable[Change]",
        *,
        deadline: float | None = None,
        retry: RetryPolicy | None = None,
        in_flight: int | None = None,
        pool: "ProxyPool | Mapping[str, ProxyPool] | None" = None,
    ) -> "Results":
        """
        Set the proxies of many accounts concurrently, and return the outcome of each.

        A failed account does not raise an exception, unless you call `Results.raise_for_failures`. For more
        accounts than fit in memory, or to resume after a crash, use `rotate`.

        Args:
            changes: A mapping of account ids to changes, or pairs of account id and change. With a *pool*,
                account ids alone are enough.
            deadline: Maximum number of seconds that the method takes, above 0. Accounts that were not sent by
                then are ``skipped``, and those in flight are ``unknown``. With None, only the policy's
                deadline for each account applies.
            retry: Overrides the session's policy.
            in_flight: Maximum number of accounts processed at once; if None, `Pace.in_flight`.
            pool: Assigns proxies to accounts without a change, and replaces proxies that fail. It may be
                several pools by tag, as for `rotate`.

        Raises:
            FieldError: An account id or a change is invalid. The error names the account. Nothing was sent.
            ValueError: An argument is invalid, an account occurs twice with different changes, or no account
                would use the *pool*. Nothing was sent.
            ConfigurationError: The session is closed, or belongs to another event loop.
        """
        from postpress_async.rotation import Halt, Outcome, Results, Rotation
        from postpress_async.rotation._input import check_count
        from postpress_async.rotation._pool._tags import pools_of
        from postpress_async.rotation._rows import distinct_rows

        check_count("in_flight", in_flight)
        pools_of(pool)  # raises ValueError if it is invalid
        if deadline is not None:
            check_seconds("deadline", deadline)
        if retry is not None:
            check_policy(retry)
        rows = distinct_rows(changes, pooled=False if pool is None else pool)
        with self._tracker:
            ends_at = math.inf if deadline is None else self._tracker.clock() + deadline
            rotation = Rotation(
                partial(self._run_call, retry=retry),
                iter(rows),
                in_flight=min(in_flight or self._pace.in_flight, max(len(rows), 1)),
                halt=Halt(failures="never"),
                pool=pool,
                drain=True,
                waits=self._tracker.child(waits_out_outages=False, ends_at=ends_at),
                observer=self._context.observer,
            )
            timer = None if deadline is None else asyncio.get_running_loop().call_at(ends_at, rotation.stop)
            outcomes: dict[str, Outcome] = {}
            try:
                # If the session is closed meanwhile, the outcomes say so: with `drain`, each row has one.
                with suppress(SessionClosedError):
                    async with rotation:
                        async for outcome in rotation:
                            outcomes[outcome.account_id] = outcome
            finally:
                if timer is not None:
                    timer.cancel()
        return Results({row.account_id: outcomes[row.account_id] for row in rows})

    def rotate(
        self,
        changes: "Changes",
        *,
        journal: str | os.PathLike[str] | None = None,
        in_flight: int | None = None,
        halt: "str | int | Halt | None" = None,
        pool: "ProxyPool | Mapping[str, ProxyPool] | None" = None,
        limit: int | None = None,
        on_unknown: "OnUnknown" = "retry",
        on_failed: "OnFailed" = "report",
        every: float | None = None,
        keep: int | None = None,
        on: "Collection[str] | Selection" = (),
        accept_new_key: bool = False,
        key_lifetime: float = 86_400.0,
    ) -> "Rotation":
        """
        Create a rotation of many accounts. Enter it with ``async with``, and iterate over its outcomes.

        A rotation can record its runs in a *journal*. A run takes each account once, and ends with an outcome
        for each account. If it is interrupted, the next rotation with this journal resumes it.

        Args:
            changes: Pairs of account id and change from an iterable, an async iterable or a mapping, read as
                needed; or a `Fleet`; or a pandas or polars frame with the columns of a fleet, see `Fleet.of`.
                An invalid pair from a stream, and an invalid account id, become outcomes instead of
                exceptions. With a *pool*, account ids alone are enough.
            journal: The SQLite file that records the runs. To resume a run, pass the same changes in the same
                order.
            in_flight: Maximum number of accounts processed at once; if None, `Pace.in_flight`.
            halt: When to abort. ``"5%"``: when 5% of the latest 200 accounts have failed. ``100``: when 100
                accounts have failed. ``"never"``: not at all. Or a `Halt`, which may have a canary stage.
                None means ``"50%"``.
            pool: Assigns proxies to accounts without a change, and replaces proxies that fail. It may be
                several pools by tag, such as ``{"US": pool, "DE": pool}``: then the tag of an account says
                which pool its proxies come from. The tag takes the place of the change, as in
                ``("acc_1", "US")``, or is in a column of the `Fleet`, which must be opened with the same
                ``pooled=``.
            limit: Maximum number of accounts to process now, at least 1; None for all.
            on_unknown: What to do with accounts whose outcome is unknown after an earlier run, or that a
                killed run may have sent: ``"retry"`` sends them again with the same idempotency key,
                ``"report"`` leaves them as they are.
            on_failed: What to do with accounts that failed in an earlier run: ``"report"`` leaves them as
                they are, ``"retry"`` sends them again with new idempotency keys.
            every: A new run of all accounts starts if the journal's latest run of all accounts is complete
                and began at least this many seconds ago: 20 * 3600 for a nightly job, 0 for always. An
                unfinished run is resumed in any case. With None, no second run starts.
            keep: Number of runs that the journal keeps, at least 1; None for all.
            on: Update only the accounts that, according to the journal, have or may have one of these
                proxies: ``HOST``, ``HOST:PORT``, ``USER@HOST``, or a network such as ``10.1.1.0/24``. They
                are a separate run, which is resumed if it is unfinished. The accounts that are left out still
                count towards the *pool*'s ``accounts_per_proxy``.
            accept_new_key: Whether the journal may belong to another API key. Set it once if the key was
                replaced by a new one of the same workspace.
            key_lifetime: Seconds for which the API is assumed to remember an idempotency key. If the outcome
                of a managed proxy is unknown for longer, the proxy is not requested again, and the account is
                reported as unknown.

        Raises:
            ValueError: An argument is invalid; a change in a collection is invalid; the fleet requires a
                pool; or no account would use the *pool* (checked for a fleet, a frame, or any collection).
            JournalError: When the rotation is entered: the journal is in use, belongs to another input or API
                key, or cannot be written; no account matches *on*; or a run of other accounts is
                unfinished.
        """
        # Imported here, because programs that update single accounts do not need it.
        from postpress_async.rotation._input import check_count, make_rotation

        check_count("in_flight", in_flight)
        return make_rotation(
            self._run_call,
            changes,
            in_flight=in_flight or self._pace.in_flight,
            target=self._target,
            api_key=self._context.api_key,
            waits=self._tracker.child(),
            observer=self._context.observer,
            journal=journal,
            halt=halt,
            pool=pool,
            limit=limit,
            on=on,
            on_unknown=on_unknown,
            on_failed=on_failed,
            every=every,
            keep=keep,
            accept_new_key=accept_new_key,
            key_lifetime=key_lifetime,
        )

    async def _run_call(
        self,
        account_id: str,
        change: ProxyChange,
        keys: Keys,
        hooks: CallHooks | None = None,
        /,
        *,
        retry: RetryPolicy | None = None,
    ) -> AccountPatched:
        """Make one call with idempotency keys from a rotation or the command line."""
        if not self._idempotency:
            keys = FixedKey(None, keys.in_doubt)
        with self._tracker:
            return await UpdateCall(
                self._context, account_id, change, keys, retry or self._retry, hooks
            ).run()

    async def aclose(self, timeout: float = 5.0) -> None:
        """
        Close the session for good.

        Open calls have *timeout* seconds to end. After that, calls that wait or back off raise their last
        error, or `SessionClosedError` if they had no attempt; calls in flight raise `ConnectionLostError`.
        Closing a closed session does nothing. A second call during the first one's wait may shorten it.
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
        # After an error, do not wait for open calls.
        await self.aclose(0.0 if kind is not None else 5.0)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled or copied: create a new one where it is needed")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._tracker.closing else 'open'}>"


def _make_transport(
    transport: str | Transport,
    url: URL,
    key: Secret,
    *,
    ssl: tls.SSLContext | str | os.PathLike[str] | None,
    connector: aiohttp.BaseConnector | None,
    trust_env: bool,
) -> Transport:
    if trust_env and transport != "session":
        raise ConfigurationError(f'trust_env requires transport="session", got {transport!r}')
    if isinstance(transport, str) and transport in _TRANSPORTS:
        if ssl is not None and connector is not None:
            raise ConfigurationError("ssl cannot be combined with connector: set it in the connector instead")
        # Loading the system's certificates takes 20 ms, and http needs none.
        context = make_tls(ssl) if ssl is not None or url.scheme == "https" else None
        return _TRANSPORTS[transport](url, key, tls=context, connector=connector, trust_env=trust_env)
    if isinstance(transport, str | type) or not isinstance(transport, Transport):
        choices = '"session", "lean" or an object with the methods send and aclose'
        raise ConfigurationError(f"transport must be {choices}, got {transport!r}")
    for name, value in (("ssl", ssl), ("connector", connector)):
        if value is not None:
            raise ConfigurationError(f'{name} requires transport="session" or "lean", got {transport!r}')
    return transport
