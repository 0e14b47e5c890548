"""
A model of the API that counts: what it was sent under which key, what it applied, and what it answered.

It is the truth that a campaign compares journals with. A request has its own task here, which goes on if the
client is killed or hangs up: what was sent may still be applied. Every trouble is drawn from a seed.
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
PAGE: Final = b"<html><body><h1>A page of something in front of the API</h1></body></html>"

KEY_TYPE: Final = "errors/missing_credentials"
"""A 401 that can only be about the API key."""
GENERIC_TYPE: Final = "errors/invalid_credentials"
"""A 401 that an account may get too: only its frequency tells that it is about the API key."""

REFUSALS: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422, 429, 501})
"""Statuses by which an answer says that this request applied nothing, with or without an envelope."""
REFUSING_TYPES: Final = {
    "errors/provider_error": 500,
    "errors/proxy_error": 502,
    "errors/no_client_session": 503,
    "errors/no_channel": 503,
    "errors/no_handler": 503,
    "errors/network_down": 503,
    "errors/service_unavailable": 503,
}
"""Types of other statuses that say the same."""
UNKNOWN_TYPES: Final = {"errors/unexpected_error": 500, "errors/request_timeout": 504}
"""Types that leave open whether the request was applied."""


@frozen(kw_only=True)
class Gateway:
    """
    A page without an envelope, from something in front of the API that knows nothing of idempotency keys.

    Attributes:
        status: Its HTTP status.
        share: Share of the requests that get it, from 0 to 1.
        seconds: How long, from the first request of the run.
    """

    status: int
    share: float = 1.0
    seconds: float = 1e9


@frozen(kw_only=True)
class Conditions:
    """
    What the requests of one run meet. Shares are from 0 to 1; the default is a healthy service.

    Attributes:
        unreachable: Share for which no connection is made.
        dropped: Share that is lost on the way to the API.
        unanswered: Share whose answer is lost on the way back, whatever was done.
        silent: Of the lost ones, the share for which nothing is heard at all until the attempt times out.
        throttled: Share that gets a 429 in front of the store of keys.
        unavailable: Share that gets a listed 503 there.
        erring: Share that gets an error of `REFUSING_TYPES` or `UNKNOWN_TYPES`, and is not applied.
        half_done: Share that is applied, and gets an error of `UNKNOWN_TYPES`.
        slow: Share whose execution takes up to 20 s.
        gateway: The page of something in front of the API; None for nothing.
        key_fails_after: Requests of the run after which the API key is refused; None if it is accepted.
        key_error: The type of that refusal.
        away: Accounts that are disconnected for this run.
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
    key_fails_after: int | None = None
    key_error: str = KEY_TYPE
    away: frozenset[str] = frozenset()


@frozen(kw_only=True)
class Traits:
    """
    What the service is like in all runs of a sequence.

    Attributes:
        honours_keys: Whether a change is applied once for each Idempotency-Key, or once for each request.
        stores_errors: Whether an error is replayed under its key, as a success is.
        looks_up_first: Whether accounts are looked up in front of the store of keys, or behind it.
        unknown: Accounts that do not exist.
        unsupported: Accounts whose provider cannot do it.
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
    One request and what became of it.

    Attributes:
        number: Its place among all requests of the sequence, from 1.
        run: The run that sent it, from 1.
        account_id: The account.
        key: The Idempotency-Key; None if there was none.
        change: The body.
        sent_at: Seconds by the loop's clock.
        applied_at: When its change was applied; None if it was not. A replay applies nothing.
        is_settled: Whether its fate is decided. Until then it may still be applied.
        status: Status of the answer; None if it never got one.
        type: Type of the error answer, if it has an envelope.
        from_behind: Whether the answer came from behind the store of keys.
        by_key_check: Whether it is the refusal of the API key.
        heard: Whether the answer reached the client.
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
    from_behind: bool = False
    by_key_check: bool = False
    heard: bool = False

    @property
    def is_managed(self) -> bool:
        return "proxy" not in self.change

    @property
    def may_be_applied(self) -> bool:
        """Whether it was applied, or still may be."""
        return self.applied_at is not None or not self.is_settled

    @property
    def is_refused(self) -> bool:
        """Whether the answer said that nothing was applied."""
        return self.heard and (self.status in REFUSALS or self.type in REFUSING_TYPES)

    def __str__(self) -> str:
        key = "no key" if self.key is None else f"key ...{self.key[-6:]}"
        applied = "" if self.applied_at is None else f", applied at {self.applied_at:.2f} s"
        if self.status is None:
            answer = "no answer" if self.is_settled else "still at the server"
        else:
            where = "behind" if self.from_behind else "in front of"
            answer = f"{self.status} {self.type or ''} from {where} the keys, "
            answer += "heard" if self.heard else "not heard"
        sent = f"request {self.number}, run {self.run}, sent at {self.sent_at:.2f} s"
        return f"{sent}, {key}, {json.dumps(self.change)}{applied}: {answer}"


@frozen
class Reply:
    """An answer as the server gives it."""

    status: int
    body: bytes
    type: str | None = None
    from_behind: bool = False
    by_key_check: bool = False
    retry_after: str | None = None


@define(eq=False)
class CountingServer:
    """
    The API, as `Traits` and the current `Conditions` say.

    Attributes:
        run: The run whose requests come now.
        requests: All requests, in the order in which they were sent.
        by_account: The same for each account.
        handed_out: Managed proxies handed out to each account.
        replayed: Requests that got the answer of an earlier one.
        on_request: Called with the number of requests of this run, at each of them.
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
    _of_run: int = field(default=0, init=False)
    _began: float = field(default=0.0, init=False)
    _made: int = field(default=0, init=False)
    _stored: dict[tuple[str, str], asyncio.Future[Reply]] = field(factory=dict, init=False)
    _tasks: set[asyncio.Task[Any]] = field(factory=set, init=False)
    _chance: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(f"server {self.seed}")

    def begin_run(self, conditions: Conditions) -> None:
        """The requests that come from now on are those of the next run."""
        self.run += 1
        self.conditions = conditions
        self._of_run = 0

    def sent_in(self, run: int) -> list[Request]:
        """The requests of one run."""
        return [request for request in self.requests if request.run == run]

    def may_be_applied(self, account_id: str) -> bool:
        """Whether anything that was ever sent for the account was applied, or still may be."""
        return any(request.may_be_applied for request in self.by_account.get(account_id, ()))

    async def settle(self) -> None:
        """Return when nothing is under way here."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def take(
        self, account_id: str, key: str | None, body: bytes, api_key: str
    ) -> "tuple[Request, asyncio.Task[Reply | None]]":
        """A request arrives; its answer, or None if that is lost. Cancel the task and nobody is answered."""
        now = asyncio.get_running_loop().time()
        request = Request(len(self.requests) + 1, self.run, account_id, key, json.loads(body), now)
        self.requests.append(request)
        self.by_account[account_id].append(request)
        self._of_run += 1
        if self._of_run == 1:
            self._began = now
        # The conditions are those of its own run, even if it arrives after that run has died.
        task = asyncio.create_task(self._serve(request, self.conditions, self._of_run, api_key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.on_request is not None:
            self.on_request(self._of_run)
        return request, task

    def draw(self, share: float) -> bool:
        """True in that share of the calls."""
        return share > 0 and self._chance.random() < share

    async def _travel(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 1.0) * self.latency)

    async def _serve(
        self, request: Request, conditions: Conditions, number: int, api_key: str
    ) -> Reply | None:
        await self._travel()
        reply = None
        if not self.draw(conditions.dropped):
            reply = self._in_front(request, conditions, number, api_key)
            if reply is None:
                reply = await self._behind(request, conditions)
            request.status, request.type = reply.status, reply.type
            request.from_behind, request.by_key_check = reply.from_behind, reply.by_key_check
        request.is_settled = True
        await self._travel()
        if reply is None or self.draw(conditions.unanswered):
            if self.draw(conditions.silent):
                await asyncio.sleep(600)
            return None
        return reply

    # --- In front of the store of keys ---

    def _in_front(self, request: Request, conditions: Conditions, number: int, api_key: str) -> Reply | None:
        gateway = conditions.gateway
        if (
            gateway is not None
            and request.sent_at - self._began < gateway.seconds
            and self.draw(gateway.share)
        ):
            return Reply(gateway.status, PAGE)
        fails_after = conditions.key_fails_after
        if api_key != API_KEY or (fails_after is not None and number > fails_after):
            return self._error(conditions.key_error, 401, by_key_check=True)
        if self.draw(conditions.throttled):
            return self._error("errors/too_many_requests", 429, retry_after="1")
        if self.draw(conditions.unavailable):
            return self._error(
                self._chance.choice(["errors/service_unavailable", "errors/network_down"]), 503
            )
        return self._look_up(request, conditions) if self.traits.looks_up_first else None

    def _look_up(self, request: Request, conditions: Conditions, *, behind: bool = False) -> Reply | None:
        if request.account_id in self.traits.unknown:
            return self._error("errors/resource_not_found", 404, behind=behind)
        if request.account_id in self.traits.unsupported:
            return self._error("errors/feature_not_implemented", 501, behind=behind)
        if request.account_id in conditions.away:
            return self._error("errors/disconnected_account", 401, behind=behind)
        return None

    # --- Behind it ---

    async def _behind(self, request: Request, conditions: Conditions) -> Reply:
        if request.key is None or not self.traits.honours_keys:
            return await self._execute(request, conditions)
        identity = request.account_id, request.key
        if (stored := self._stored.get(identity)) is not None:
            self.replayed += 1
            return await asyncio.shield(stored)
        future = self._stored[identity] = asyncio.get_running_loop().create_future()
        reply = await self._execute(request, conditions)
        if reply.status != 200 and not self.traits.stores_errors:
            # What was applied is never applied again under this key, whatever the first answer said.
            if request.applied_at is None:
                del self._stored[identity]
            else:
                future.set_result(_patched(request.account_id))
                return reply
        future.set_result(reply)
        return reply

    async def _execute(self, request: Request, conditions: Conditions) -> Reply:
        await (asyncio.sleep(self._chance.uniform(1, 20)) if self.draw(conditions.slow) else self._travel())
        if (refusal := self._look_up(request, conditions, behind=True)) is not None:
            return refusal
        proxy = request.change.get("proxy")
        if proxy is not None and f"{proxy['host']}:{proxy['port']}" in self.traits.dead_proxies:
            return self._error("errors/proxy_error", 502, behind=True)
        if self.draw(conditions.erring):
            type_, status = self._chance.choice([*REFUSING_TYPES.items(), *UNKNOWN_TYPES.items()])
            if type_ != "errors/proxy_error":  # which would speak against a proxy that works
                return self._error(type_, status, behind=True)
        request.applied_at = asyncio.get_running_loop().time()
        if request.is_managed:
            self.handed_out[request.account_id] += 1
        if self.draw(conditions.half_done):
            type_, status = self._chance.choice([*UNKNOWN_TYPES.items()])
            return self._error(type_, status, behind=True)
        return _patched(request.account_id)

    def _error(
        self,
        type_: str,
        status: int,
        *,
        behind: bool = False,
        by_key_check: bool = False,
        retry_after: str | None = None,
    ) -> Reply:
        self._made += 1
        envelope = {"type": type_, "title": "An error", "status": status, "instance": f"req_{self._made:06}"}
        return Reply(status, json.dumps(envelope).encode(), type_, behind, by_key_check, retry_after)


def _patched(account_id: str) -> Reply:
    body = {"object": "AccountPatched", "account_id": account_id}
    return Reply(200, json.dumps(body).encode(), from_behind=True)


class Wire:
    """
    A session's transport to a `CountingServer` in the same loop, in place of aiohttp and a socket.

    Attributes:
        is_cut: The process at this end was killed: nothing is sent or heard any more.
    """

    def __init__(self, server: CountingServer, api_key: str) -> None:
        self.is_cut = False
        self._server: Final = server
        self._api_key: Final = api_key

    async def send(self, request: WireRequest, idempotency_key: str | None, timeout: float) -> Response:
        """See `postpress_async.Transport.send`."""
        if self.is_cut or self._server.draw(self._server.conditions.unreachable):
            raise errors.ConnectError("no connection: refused by the campaign")
        sent, task = self._server.take(request.account_id, idempotency_key, request.body, self._api_key)
        # The server's task goes on, whatever ends this one.
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            raise _unknown(errors.AttemptTimeoutError(f"no answer in {timeout:.3g} s"))
        if self.is_cut or (reply := task.result()) is None:
            raise _unknown(errors.ConnectionLostError("the connection was lost before an answer came"))
        sent.heard = True
        return Response(reply.status, reply.body, reply.retry_after)

    async def aclose(self) -> None:
        """Nothing is open here."""


def _unknown(error: errors.TransportError) -> errors.TransportError:
    error.applied = Applied.UNKNOWN
    return error


def change_of(change: Mapping[str, Any]) -> str:
    """A body in one spelling, to be compared."""
    return json.dumps(change, sort_keys=True)
