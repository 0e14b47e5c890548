"""
A model of the API that records each request: its idempotency key, whether it was applied, and the response.

A campaign (`campaign.py`) compares journals with these records. Each request is handled by its own task. The
task continues if the client is killed or disconnects, because a request that was sent may still be applied. A
seed decides the faults.
"""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field, frozen

from postpress_async import errors
from postpress_async._http.transport import Request as WireRequest
from postpress_async._http.transport import Response
from postpress_async.errors import Applied

API_KEY: Final = "pp_test_key_of_the_campaign"
PAGE: Final = b"<html><body><h1>A page of a gateway in front of the API</h1></body></html>"

API_KEY_TYPE: Final = "errors/missing_credentials"
"""A 401 that always means that the API key is wrong."""
AMBIGUOUS_401_TYPE: Final = "errors/invalid_credentials"
"""A 401 that may concern a single account. If all accounts get it, the API key is wrong."""

REFUSALS: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422, 429, 501})
"""Statuses that mean that the request was not applied, even without an envelope."""
REFUSING_TYPES: Final = {
    "errors/provider_error": 500,
    "errors/proxy_error": 502,
    "errors/no_client_session": 503,
    "errors/no_channel": 503,
    "errors/no_handler": 503,
    "errors/network_down": 503,
    "errors/service_unavailable": 503,
}
"""Types that mean that the request was not applied, although their statuses alone do not mean it."""
UNKNOWN_TYPES: Final = {"errors/unexpected_error": 500, "errors/request_timeout": 504}
"""Types after which it is unknown whether the request was applied, with their statuses."""


@frozen(kw_only=True)
class Gateway:
    """
    A gateway in front of the API, which responds with an HTML page and does not know idempotency keys.

    Attributes:
        status: The HTTP status of the page.
        share: Share of the requests that get the page, from 0 to 1; the others reach the API.
        seconds: How long the gateway responds, from the first request of a run.
    """

    status: int
    share: float = 1.0
    seconds: float = 1e9


@frozen(kw_only=True)
class Conditions:
    """
    The faults during one run. By default, the API works without faults.

    The shares are from 0 to 1, and refer to the requests of the run. A gateway comes first. The API then
    checks the API key, limits the rate, looks up the idempotency key, and executes the request.

    Attributes:
        unreachable: Share for which no connection can be opened.
        dropped: Share that is lost on the way to the API.
        unanswered: Share whose response is lost on the way back.
        silent: Share of the lost requests and responses after which the connection stays open, so that the
            attempt times out. For the others, the connection is closed.
        throttled: Share that gets a 429 before the idempotency key is looked up.
        unavailable: Share that gets a 503 (service_unavailable or network_down) before that.
        erring: Share that is not applied and gets an error of `REFUSING_TYPES` or `UNKNOWN_TYPES`.
        half_done: Share that is applied but gets an error of `UNKNOWN_TYPES`.
        slow: Share whose execution takes up to 20 s.
        gateway: A gateway that responds instead of the API, or None.
        api_key_fails_after: Requests of the run after which the API key is rejected; None for never.
        api_key_error: Type of the error response that rejects the API key.
        disconnected: Accounts that are disconnected during this run.
    """

    unreachable: float = 0.0
    dropped: float = 0.0
    unanswered: float = 0.0
    silent: float = 0.0
    throttled: float = 0.0
    unavailable: float = 0.0
    erring: float = 0.0
    half_done: float = 0.0
    slow: float = 0.0
    gateway: Gateway | None = None
    api_key_fails_after: int | None = None
    api_key_error: str = API_KEY_TYPE
    disconnected: frozenset[str] = frozenset()


@frozen(kw_only=True)
class Traits:
    """
    The properties of the API that stay the same in all runs.

    Attributes:
        honours_keys: Whether a change is applied once per idempotency key; otherwise, once per request.
        stores_errors: Whether an error response is stored and replayed for a repeated key, as successes are.
        looks_up_first: Whether the account is looked up before the idempotency key; otherwise, after it.
        unknown: Accounts that do not exist.
        unsupported: Accounts whose provider does not support the change.
        dead_proxies: ``host:port`` of the proxies that do not work.
    """

    honours_keys: bool = True
    stores_errors: bool = True
    looks_up_first: bool = True
    unknown: frozenset[str] = frozenset()
    unsupported: frozenset[str] = frozenset()
    dead_proxies: frozenset[str] = frozenset()

    @property
    def refused_for_good(self) -> frozenset[str]:
        """Accounts that no run can patch."""
        return self.unknown | self.unsupported


@define(eq=False)
class Request:
    """
    A request, and its outcome. Times are in seconds of the event loop's clock.

    Attributes:
        number: Number of the request in all runs, from 1.
        run: Number of the run that sent it, from 1.
        account_id: The account.
        key: The idempotency key, or None.
        change: The body.
        sent_at: When the request was sent.
        applied_at: When the change was applied; None if it was not, such as for a replayed response.
        is_settled: Whether the API has finished with the request. Until then, it may still be applied.
        status: Status of the response; None without a response.
        type: Type of the error response, if it has an envelope.
        is_after_key_lookup: Whether the response was sent after the idempotency key was looked up.
        by_api_key_check: Whether the response rejects the API key.
        is_received: Whether the response reached the client.
    """

    number: int
    run: int
    account_id: str
    key: str | None
    change: dict[str, Any]
    sent_at: float
    applied_at: float | None = None
    is_settled: bool = False
    status: int | None = None
    type: str | None = None
    is_after_key_lookup: bool = False
    by_api_key_check: bool = False
    is_received: bool = False

    @property
    def is_managed(self) -> bool:
        return "proxy" not in self.change

    @property
    def may_be_applied(self) -> bool:
        """Whether the request was applied, or still may be."""
        return self.applied_at is not None or not self.is_settled

    @property
    def is_refused(self) -> bool:
        """Whether the client received a response which means that nothing was applied."""
        return self.is_received and (self.status in REFUSALS or self.type in REFUSING_TYPES)

    def __str__(self) -> str:
        key = "no key" if self.key is None else f"key ...{self.key[-6:]}"
        applied = "" if self.applied_at is None else f", applied at {self.applied_at:.2f} s"
        if self.status is None:
            response = "no response" if self.is_settled else "still at the server"
        else:
            when = "after" if self.is_after_key_lookup else "before"
            response = f"{self.status} {self.type or ''} {when} the key was looked up, "
            response += "received" if self.is_received else "not received"
        sent = f"request {self.number}, run {self.run}, sent at {self.sent_at:.2f} s"
        return f"{sent}, {key}, {json.dumps(self.change)}{applied}: {response}"


@frozen
class Reply:
    """A response, and what `Request` records about it."""

    status: int
    body: bytes
    type: str | None = None
    is_after_key_lookup: bool = False
    by_api_key_check: bool = False
    retry_after: str | None = None


@define(eq=False)
class CountingServer:
    """
    The API, with `Traits` and the `Conditions` of the current run.

    Attributes:
        seed: Seed of the random choices.
        traits: The properties that stay the same in all runs.
        latency: Longest delay of a request or response in the network, in seconds.
        conditions: The faults of the current run.
        run: Number of the current run.
        requests: All requests, in the order in which they were sent.
        by_account: The requests of each account.
        handed_out: Number of managed proxies that each account got.
        replayed: Number of requests that got a stored response.
        on_request: Called for each request, with the number of requests of the run so far.
    """

    seed: int
    traits: Traits
    latency: float = 0.02
    conditions: Conditions = field(factory=Conditions, init=False)
    run: int = field(default=0, init=False)
    requests: list[Request] = field(factory=list, init=False)
    by_account: dict[str, list[Request]] = field(factory=lambda: defaultdict(list), init=False)
    handed_out: Counter[str] = field(factory=Counter, init=False)
    replayed: int = field(default=0, init=False)
    on_request: Callable[[int], object] | None = field(default=None, init=False)
    _requests_of_run: int = field(default=0, init=False)
    _run_started: float = field(default=0.0, init=False)
    _error_count: int = field(default=0, init=False)
    _stored: dict[tuple[str, str], asyncio.Future[Reply]] = field(factory=dict, init=False)
    _tasks: set[asyncio.Task[Any]] = field(factory=set, init=False)
    _random: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(f"server {self.seed}")

    def begin_run(self, conditions: Conditions) -> None:
        """Start the next run, which all requests from now on belong to."""
        self.run += 1
        self.conditions = conditions
        self._requests_of_run = 0

    def sent_in(self, run: int) -> list[Request]:
        """Return the requests of one run."""
        return [request for request in self.requests if request.run == run]

    def may_be_applied(self, account_id: str) -> bool:
        """Whether any request for the account was applied, or still may be."""
        return any(request.may_be_applied for request in self.by_account.get(account_id, ()))

    async def settle(self) -> None:
        """Wait until all requests are finished."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def take(
        self, account_id: str, key: str | None, body: bytes, api_key: str
    ) -> "tuple[Request, asyncio.Task[Reply | None]]":
        """Accept a request. The result of the task is the response, or None if the response is lost."""
        now = asyncio.get_running_loop().time()
        request = Request(len(self.requests) + 1, self.run, account_id, key, json.loads(body), now)
        self.requests.append(request)
        self.by_account[account_id].append(request)
        self._requests_of_run += 1
        if self._requests_of_run == 1:
            self._run_started = now
        # The request keeps the conditions of its run, even if that run is killed before the request arrives.
        task = asyncio.create_task(self._serve(request, self.conditions, self._requests_of_run, api_key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.on_request is not None:
            self.on_request(self._requests_of_run)
        return request, task

    def draw(self, share: float) -> bool:
        """Return True with the probability *share*."""
        return share > 0 and self._random.random() < share

    async def _delay(self) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 1.0) * self.latency)

    async def _serve(
        self, request: Request, conditions: Conditions, number: int, api_key: str
    ) -> Reply | None:
        await self._delay()
        reply = None
        if not self.draw(conditions.dropped):
            reply = self._reply_before_keys(request, conditions, number, api_key)
            if reply is None:
                reply = await self._reply_after_keys(request, conditions)
            request.status, request.type = reply.status, reply.type
            request.is_after_key_lookup, request.by_api_key_check = (
                reply.is_after_key_lookup,
                reply.by_api_key_check,
            )
        request.is_settled = True
        await self._delay()
        if reply is None or self.draw(conditions.unanswered):
            if self.draw(conditions.silent):
                await asyncio.sleep(600)  # longer than any attempt's timeout
            return None
        return reply

    # --- Before the idempotency key is looked up ---

    def _reply_before_keys(
        self, request: Request, conditions: Conditions, number: int, api_key: str
    ) -> Reply | None:
        gateway = conditions.gateway
        if (
            gateway is not None
            and request.sent_at - self._run_started < gateway.seconds
            and self.draw(gateway.share)
        ):
            return Reply(gateway.status, PAGE)
        fails_after = conditions.api_key_fails_after
        if api_key != API_KEY or (fails_after is not None and number > fails_after):
            return self._error(conditions.api_key_error, 401, by_api_key_check=True)
        if self.draw(conditions.throttled):
            return self._error("errors/too_many_requests", 429, retry_after="1")
        if self.draw(conditions.unavailable):
            return self._error(
                self._random.choice(["errors/service_unavailable", "errors/network_down"]), 503
            )
        return self._check_account(request, conditions) if self.traits.looks_up_first else None

    def _check_account(
        self, request: Request, conditions: Conditions, *, after_key_lookup: bool = False
    ) -> Reply | None:
        if request.account_id in self.traits.unknown:
            return self._error("errors/resource_not_found", 404, after_key_lookup=after_key_lookup)
        if request.account_id in self.traits.unsupported:
            return self._error("errors/feature_not_implemented", 501, after_key_lookup=after_key_lookup)
        if request.account_id in conditions.disconnected:
            return self._error("errors/disconnected_account", 401, after_key_lookup=after_key_lookup)
        return None

    # --- The idempotency key is looked up, and the request executed ---

    async def _reply_after_keys(self, request: Request, conditions: Conditions) -> Reply:
        if request.key is None or not self.traits.honours_keys:
            return await self._execute(request, conditions)
        identity = request.account_id, request.key
        if (stored := self._stored.get(identity)) is not None:
            self.replayed += 1
            return await asyncio.shield(stored)
        future = self._stored[identity] = asyncio.get_running_loop().create_future()
        reply = await self._execute(request, conditions)
        if reply.status != 200 and not self.traits.stores_errors:
            # If the change was applied, a repeated request gets a success and does not apply it again.
            if request.applied_at is None:
                del self._stored[identity]
            else:
                future.set_result(_patched(request.account_id))
                return reply
        future.set_result(reply)
        return reply

    async def _execute(self, request: Request, conditions: Conditions) -> Reply:
        if self.draw(conditions.slow):
            await asyncio.sleep(self._random.uniform(1, 20))
        else:
            await self._delay()
        if (refusal := self._check_account(request, conditions, after_key_lookup=True)) is not None:
            return refusal
        proxy = request.change.get("proxy")
        if proxy is not None and f"{proxy['host']}:{proxy['port']}" in self.traits.dead_proxies:
            return self._error("errors/proxy_error", 502, after_key_lookup=True)
        if self.draw(conditions.erring):
            errors = REFUSING_TYPES | UNKNOWN_TYPES
            del errors["errors/proxy_error"]  # this proxy works
            type_, status = self._random.choice([*errors.items()])
            return self._error(type_, status, after_key_lookup=True)
        request.applied_at = asyncio.get_running_loop().time()
        if request.is_managed:
            self.handed_out[request.account_id] += 1
        if self.draw(conditions.half_done):
            type_, status = self._random.choice([*UNKNOWN_TYPES.items()])
            return self._error(type_, status, after_key_lookup=True)
        return _patched(request.account_id)

    def _error(
        self,
        type_: str,
        status: int,
        *,
        after_key_lookup: bool = False,
        by_api_key_check: bool = False,
        retry_after: str | None = None,
    ) -> Reply:
        self._error_count += 1
        envelope = {
            "type": type_,
            "title": "An error",
            "status": status,
            "instance": f"req_{self._error_count:06}",
        }
        return Reply(
            status, json.dumps(envelope).encode(), type_, after_key_lookup, by_api_key_check, retry_after
        )


def _patched(account_id: str) -> Reply:
    body = {"object": "AccountPatched", "account_id": account_id}
    return Reply(200, json.dumps(body).encode(), is_after_key_lookup=True)


class CountingTransport:
    """
    A session's transport to a `CountingServer` in the same event loop, without a network.

    Attributes:
        is_cut: Whether the session's process counts as killed, so that it sends and receives nothing more.
    """

    def __init__(self, server: CountingServer, api_key: str) -> None:
        self.is_cut = False
        self._server: Final = server
        self._api_key: Final = api_key

    async def send(self, request: WireRequest, idempotency_key: str | None, timeout: float) -> Response:
        if self.is_cut or self._server.draw(self._server.conditions.unreachable):
            raise errors.ConnectError("no connection")
        sent, task = self._server.take(request.account_id, idempotency_key, request.body, self._api_key)
        # `wait` does not cancel the server's task, even if this task is cancelled.
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            raise _unknown(errors.AttemptTimeoutError(f"no response within {timeout:.3g} s"))
        if self.is_cut or (reply := task.result()) is None:
            raise _unknown(errors.ConnectionLostError("the connection was lost before a response arrived"))
        sent.is_received = True
        return Response(reply.status, reply.body, reply.retry_after)

    async def aclose(self) -> None:
        """Do nothing: there is no connection to close."""


def _unknown(error: errors.TransportError) -> errors.TransportError:
    error.applied = Applied.UNKNOWN
    return error


def canonical_json(change: Mapping[str, Any]) -> str:
    """Return the JSON of a body with sorted names, so that bodies can be compared."""
    return json.dumps(change, sort_keys=True)
