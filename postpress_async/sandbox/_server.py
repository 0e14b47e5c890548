"""
A local fake of the API, written from the API reference alone.

The server checks, in this order: whether an outage is simulated (`Server.outage`), the API key, the rate
limit, the path, the method, the account id, whether the account exists, the body, the fault chosen for the
request, the Idempotency-Key, and the capacity. The first check that fails decides the response.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from contextlib import suppress
from math import ceil
from typing import Any, Final, Literal, Self, get_args

from aiohttp import web
from attrs import evolve

from postpress_async.sandbox._faults import HANG, Fault, Faults, handles_normally, is_outcome
from postpress_async.sandbox._limits import ConcurrencyLimit, IdempotencyStore, TokenBucket
from postpress_async.sandbox._listener import Listener
from postpress_async.sandbox._record import Record, Recorder
from postpress_async.sandbox._responses import Envelope, ErrorResponses, Response, deliver, success
from postpress_async.sandbox._rules import (
    MAX_BODY_SIZE,
    Json,
    RequestError,
    account_segment,
    read_account_id,
    read_change,
)

Outage = Literal["refused", "503", "503-html", "504", "silent", "slow"]

_OUTAGE_FAULTS: Final = {
    "503": Fault(type="errors/service_unavailable"),
    "503-html": Fault(status=503, headers={"Content-Type": "text/html"}, body=b"<html><h1>503</h1></html>"),
    "504": Fault(type="errors/request_timeout", latency=1.0),
    "silent": HANG,
}

_HOST_PORT: Final = re.compile(r"[^\s/@]+:[0-9]+")


class Server:
    """
    ``PATCH /v1/accounts/{id}`` on loopback; ``async with Server() as server:`` starts and closes it.

    The response of an executed change, success or error, is stored by account and Idempotency-Key. The
    responses of failed checks are not stored, nor is any 429 or 503. A repeated request goes through the same
    checks and faults, and then gets the stored response, byte for byte. A request is executed even if its
    client disconnects.

    Args:
        api_key: The only valid API key, sent as ``X-API-KEY`` or, without that header, as a Bearer token.
        accounts: The account ids that exist; None if every well-formed id exists.
        faults: Chooses the fault of each request; None for no faults.
        latency: Seconds that an execution takes. Rejections are immediate.
        rate: Requests per second that the key may send; None for no limit.
        burst: Capacity of the rate limit's token bucket.
        retry_after: Whether the 429s of the rate limit have Retry-After.
        capacity: Maximum number of concurrent executions; None for no limit.
        queue: Maximum number of requests that wait to be executed; further ones get a 503 at once.
        dead_proxies: Proxies that do not work, so that a change to one gets a 502 and is not applied: their
            ``host:port``, or a predicate that gets the proxy object of the body.
        envelope: Format of errors: ``page`` for the format of the API reference, or ``quickstart``.
        stores_errors: Whether a failed execution is stored under its Idempotency-Key.
        stored: Maximum number of stored responses; beyond it, the oldest is dropped.
        keep_alive: Seconds after which an idle connection is closed.
        clock: Returns the time in seconds, for the rate limit and profiles; None for the loop's clock.

    Raises:
        ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        api_key: str = "pp_test_sandbox",
        accounts: Iterable[str] | None = None,
        faults: Faults | None = None,
        latency: float = 0.0,
        rate: float | None = None,
        burst: int = 20,
        retry_after: bool = True,
        capacity: int | None = None,
        queue: int = 0,
        dead_proxies: Container[str] | Callable[[Mapping[str, Any]], bool] = (),
        envelope: Envelope = "page",
        stores_errors: bool = True,
        stored: int = 1_000_000,
        keep_alive: float = 3600.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check(accounts, latency, dead_proxies)
        self.api_key = api_key
        self.faults: Faults = faults or Faults()
        self.latency = latency
        self._recorder: Final = Recorder()
        self.record: Record = self._recorder
        self._accounts = None if accounts is None else frozenset(accounts)
        self._rate_limit = None if rate is None else TokenBucket(rate, burst, self._now)
        self._retry_after = retry_after
        self._executions = ConcurrencyLimit(capacity, queue)
        self._dead_proxies = dead_proxies
        self._errors = ErrorResponses(envelope)
        self._idempotency = IdempotencyStore(stored, stores_errors=stores_errors)
        self._keep_alive = keep_alive
        self._clock = clock
        self._listener: Listener | None = None
        self._outage: Outage | None = None
        self._slowdown = 1.0
        self._first_request_at: float | None = None
        self._request_counts: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT/v1``, which never changes after `start`; raises RuntimeError before it."""
        return f"{self._started().origin}/v1"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """
        Start listening, on an IP address and a port; port 0 means any free one.

        Raises:
            RuntimeError: The server was started before.
            OSError: The port is in use.
        """
        if self._listener is not None:
            raise RuntimeError("this server was started before; create a new one")
        listener = Listener(self._handle, host, port, self._keep_alive)
        await listener.open()
        self._listener = listener

    async def aclose(self) -> None:
        """Stop at once: abort all connections and cancel all executions. Further calls have no effect."""
        if self._listener is not None:
            await self._listener.cut_off()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._listener.shutdown(timeout=0.1)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def outage(self, kind: Outage, *, factor: float = 10.0) -> None:
        """
        Simulate an outage until `recover`. It replaces the current outage, if any.

        Requests that are already being executed continue, but ``refused`` loses their responses.

        Args:
            kind: ``refused`` (abort all connections and accept no new ones), ``503`` (error envelope),
                ``503-html`` (HTML page), ``504`` (request_timeout after 1 s), ``silent`` (no response) or
                ``slow`` (executions take *factor* times the latency).
            factor: Only for ``slow``.

        Raises:
            RuntimeError: The server was not started.
            ValueError: The kind is unknown.
        """
        listener = self._started()
        if kind not in get_args(Outage):
            raise ValueError(f"kind must be one of {', '.join(get_args(Outage))}, got {kind!r}")
        await self.recover()
        self._outage, self._slowdown = kind, factor if kind == "slow" else 1.0
        if kind == "refused":
            await listener.cut_off()

    async def recover(self) -> None:
        """End the current outage, if any. After ``refused``, the server listens on the same port again."""
        if self._outage == "refused":
            await self._started().open()
        self._outage, self._slowdown = None, 1.0

    def _started(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("this server was not started yet")
        return self._listener

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        response = None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - aiohttp handles requests in tasks
        self._tasks.add(task)
        self._recorder.note_arrival()
        try:
            response = await self._respond(request)
        except RequestError as error:
            response = self._errors.make(error.type, error.detail)
        except ConnectionError:
            pass  # the client disconnected before it had sent the whole body
        finally:
            self._tasks.discard(task)
            self._recorder.note_end(response)
        return await deliver(request, response)

    async def _respond(self, request: web.BaseRequest) -> Response | None:
        """Return the response, or None to drop the connection. Raise `RequestError` if a check fails."""
        segment = account_segment(request.raw_path)
        if segment is not None:
            with suppress(RequestError):  # raised below, because other checks come first
                self._recorder.note_send(read_account_id(segment))
        if self._first_request_at is None:
            self._first_request_at = self._now()
        if (outage := _OUTAGE_FAULTS.get(self._outage or "")) is not None:
            return await self._inject(outage, request)
        self._check_key(request.headers)
        if self._rate_limit is not None and (wait := self._rate_limit.take()):
            headers = {"Retry-After": str(ceil(wait))} if self._retry_after else {}
            return self._errors.make("errors/too_many_requests", headers=headers)
        if segment is None:
            raise RequestError("errors/resource_not_found", "There is no such path.")
        if request.method != "PATCH":
            return self._errors.make("errors/method_not_allowed", headers={"Allow": "PATCH"})
        account_id = read_account_id(segment)
        if self._accounts is not None and account_id not in self._accounts:
            raise RequestError("errors/resource_not_found")
        change = read_change(await _read_body(request), request.content_type)
        nth = self._request_counts[account_id] = self._request_counts.get(account_id, 0) + 1
        elapsed = self._now() - self._first_request_at
        fault = self.faults.draw(account_id, nth, elapsed=elapsed, executing=self._executions.active)
        key = request.headers.get("Idempotency-Key")
        if handles_normally(fault) or is_outcome(fault):
            return await self._execute_once(account_id, change, key, fault)
        if not fault.executes:
            return await self._inject(fault, request)
        await self._execute_once(account_id, change, key, Fault(latency=fault.latency))
        return await self._inject(evolve(fault, latency=0.0), request)

    def _now(self) -> float:
        return (self._clock or asyncio.get_running_loop().time)()

    def _check_key(self, headers: Mapping[str, str]) -> None:
        api_key = headers.get("X-API-KEY")
        if api_key is None:
            scheme, _, token = headers.get("Authorization", "").partition(" ")
            api_key = token.strip() if scheme.lower() == "bearer" else ""
        if not api_key:
            raise RequestError("errors/missing_credentials")
        if api_key != self.api_key:
            raise RequestError("errors/invalid_credentials")

    async def _inject(self, fault: Fault, request: web.BaseRequest) -> Response | None:
        """Act like a gateway in front of the API: respond, drop the connection, or never respond."""
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.ends == "never":
            await self._started().wait_disconnected(request)
        return self._errors.from_fault(fault) if fault.ends == "answered" else None

    async def _execute_once(self, account_id: str, change: Json, key: str | None, fault: Fault) -> Response:
        """Execute the change, or wait for the earlier execution with this key and return its response."""
        if key and (earlier := await self._idempotency.find(account_id, key, change)) is not None:
            self._recorder.replayed += 1
            return earlier
        if self._executions.is_full:
            raise RequestError("errors/service_unavailable")
        work = self._execute(account_id, change, fault)
        return await (self._idempotency.run(account_id, key, change, work) if key else work)

    async def _execute(self, account_id: str, change: Json, fault: Fault) -> Response:
        async with self._executions:
            if seconds := self.latency * self._slowdown + fault.latency:
                await asyncio.sleep(seconds)
            if is_outcome(fault):
                return self._errors.from_fault(fault)
            if "proxy" in change and self._is_dead(change["proxy"]):
                return self._errors.make("errors/proxy_error")
            self._recorder.note_change(account_id, change)
        return success(account_id)

    def _is_dead(self, proxy: Mapping[str, Any]) -> bool:
        if callable(self._dead_proxies):
            return self._dead_proxies(proxy)
        return f"{proxy['host']}:{int(proxy['port'])}" in self._dead_proxies


def _check(accounts: object, latency: object, dead_proxies: object) -> None:
    # A string would pass as a collection of its characters.
    if isinstance(accounts, str):
        raise ValueError(f"accounts must be a collection of ids, got the string {accounts!r}")
    if isinstance(dead_proxies, str):
        raise ValueError("dead_proxies must be a collection of host:port or a predicate, got a string")
    if not isinstance(latency, int | float) or not latency >= 0:
        raise ValueError(f"latency must be 0 or more seconds, got {latency!r}")
    if isinstance(dead_proxies, Collection):
        for entry in dead_proxies:
            if not isinstance(entry, str) or not _HOST_PORT.fullmatch(entry):
                # The entry is not shown, since a URL may contain a password.
                raise ValueError("each entry of dead_proxies must be host:port, without scheme or user name")


async def _read_body(request: web.BaseRequest) -> bytes:
    too_large = RequestError("errors/content_too_large", f"A body must have at most {MAX_BODY_SIZE} bytes.")
    if (request.content_length or 0) > MAX_BODY_SIZE:
        raise too_large
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:  # aiohttp's own limit, for a body without Content-Length
        raise too_large from None
    except web.RequestPayloadError:
        raise RequestError("errors/malformed_request", "The body is incomplete.") from None
    if len(body) > MAX_BODY_SIZE:
        raise too_large
    return body
