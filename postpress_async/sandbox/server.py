"""
A fake of the API on loopback, written from the API's page alone.

What is checked, in this order: the weather (`Server.outage`), the key, the rate, the path and the
method, the account id, whether the account exists, the body, the fault drawn for the request, the
Idempotency-Key, the capacity. The first that fails gives the answer.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from math import ceil
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

from aiohttp import web
from attrs import evolve

from postpress_async.sandbox.answers import Answer, Errors, Form, patched, write
from postpress_async.sandbox.faults import HANG, Fault, Faults
from postpress_async.sandbox.limits import Bucket, Slots
from postpress_async.sandbox.listener import Listener
from postpress_async.sandbox.openapi import read_document
from postpress_async.sandbox.record import Record
from postpress_async.sandbox.replays import Replays
from postpress_async.sandbox.rules import (
    LARGEST_BODY,
    Json,
    Refusal,
    account_segment,
    read_account_id,
    read_change,
)

Outage = Literal["refused", "503", "503-html", "504", "silent", "slow"]

_WEATHER: Final = {
    "503": Fault(type="errors/service_unavailable"),
    "503-html": Fault(status=503, headers={"Content-Type": "text/html"}, body=b"<html><h1>503</h1></html>"),
    "504": Fault(type="errors/request_timeout", latency=1.0),
    "silent": HANG,
}


_PLACE: Final = re.compile(r"[^\s/@]+:[0-9]+")


class Server:
    """
    ``PATCH /v1/accounts/{id}`` on loopback; ``async with Server() as server:`` starts and closes it.

    An answer is stored under the account and the Idempotency-Key (there is one API key) once its
    change was executed, errors that the execution came to included. What is refused before that is
    not stored: 400s, 401s and 404s of the checks above, every 429 and every 503. So a replay may
    itself be refused or dropped; if it is not, it gets the stored answer, the same to the byte. A
    request whose client hangs up is carried out all the same.

    ``GET /v1/api-json`` gives the OpenAPI document, to anybody and in any weather. It is about the API and
    no call of it: it has no place in the record.

    Args:
        api_key: The one key that is accepted, as ``X-API-KEY`` or, where that is absent, as Bearer token.
        accounts: The ids that exist; None for every well-formed one.
        faults: Who gets which fault; None for none.
        latency: Seconds that an execution takes. Refusals come at once.
        rate: Requests per second that the key may send; None for no limit.
        burst: How far the rate may be run ahead of.
        retry_after: Whether the 429s of the rate carry Retry-After.
        capacity: Executions at once; None for no limit.
        queue: How many more may wait for one; beyond that it is 503 at once.
        dead_proxies: Proxies that answer 502 and are not applied: ``host:port`` of each, or a
            predicate over the body's proxy object.
        envelope: The page's form of errors, or the other one of the quickstart.
        stores_errors: Whether an error is stored under its Idempotency-Key as a success is.
        stored: How many answers are stored; beyond it the oldest is forgotten.
        keep_alive: Seconds after which an idle connection is closed.
        clock: Gives the time in seconds for the rate and for profiles; None for the loop's.

    Raises:
        ValueError: One of them would not do what was meant by it.
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
        envelope: Form = "page",
        stores_errors: bool = True,
        stored: int = 1_000_000,
        keep_alive: float = 3600.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check(accounts, latency, dead_proxies)
        self.api_key = api_key
        self.faults: Faults = faults or Faults()
        self.latency = latency
        self.record: Record = Record()
        self._accounts = None if accounts is None else frozenset(accounts)
        self._bucket = None if rate is None else Bucket(rate, burst, self._now)
        self._retry_after = retry_after
        self._slots = Slots(capacity, queue)
        self._dead_proxies = dead_proxies
        self._errors = Errors(envelope)
        self._form: Form = envelope
        self._replays = Replays(stored, errors=stores_errors)
        self._keep_alive = keep_alive
        self._clock = clock
        self._listener: Listener | None = None
        self._weather: Outage | None = None
        self._slowness = 1.0
        self._first_at: float | None = None
        self._drawn: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT/v1``, the same from `start` on; RuntimeError before."""
        return f"{self._started().origin}/v1"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """
        Listen; once in a server's life.

        Args:
            host: An address, not a name: looking one up would need a thread.
            port: 0 for any that is free.

        Raises:
            RuntimeError: It was started before.
            OSError: The port is taken.
        """
        if self._listener is not None:
            raise RuntimeError("this server was started before: make a new one")
        listener = Listener(self._handle, host, port, self._keep_alive)
        await listener.open()
        self._listener = listener

    async def aclose(self) -> None:
        """Stop at once: connections are aborted, executions under way are not finished. May be repeated."""
        if self._listener is None:
            return
        await self._listener.cut_off()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._listener.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def outage(self, kind: Outage, *, factor: float = 10.0) -> None:
        """
        Be unwell until `recover`; another kind takes the place of the last.

        Requests already past the door are carried out; ``refused`` cuts off their answers.

        Args:
            kind: ``refused`` (connections are aborted and none is accepted); ``503`` (in an envelope) or
                ``503-html`` at once; ``504`` (request_timeout) after 1 s; ``silent`` (never an answer);
                ``slow`` (executions take *factor* times the latency).
            factor: For ``slow`` only.

        Raises:
            RuntimeError: The server was not started.
            ValueError: There is no such kind.
        """
        listener = self._started()
        if kind not in get_args(Outage):
            raise ValueError(f"no outage {kind!r}: it is one of {', '.join(get_args(Outage))}")
        await self.recover()
        self._weather = kind
        self._slowness = factor if kind == "slow" else 1.0
        if kind == "refused":
            await listener.cut_off()

    async def recover(self) -> None:
        """End the outage, if there is one; after ``refused``, listen on the same port as before."""
        if self._weather == "refused":
            await self._started().open()
        self._weather = None
        self._slowness = 1.0

    def _started(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("this server was not started yet")
        return self._listener

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = read_document(request.method, request.path, self._form)
        if answer is not None:
            return await write(request, answer)
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        self.record.note_arrival()
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            answer = self._errors.make(refusal.type, refusal.detail)
        except ConnectionError:
            pass  # the client hung up half way through its body
        finally:
            self._tasks.discard(task)
            self.record.note_end(*((None, None) if answer is None else (answer.status, answer.type)))
        return await write(request, answer)

    async def _answer(self, request: web.BaseRequest) -> Answer | None:
        """The answer, or None where the connection is dropped instead; a `Refusal` is an answer too."""
        segment = account_segment(request.raw_path)
        account_id, bad_id = None, None
        if segment is not None:
            try:
                account_id = read_account_id(segment)
                self.record.note_send(account_id)
            except Refusal as refusal:
                bad_id = refusal  # raised in its turn
        if self._first_at is None:
            self._first_at = self._now()
        if (weather := _WEATHER.get(self._weather or "")) is not None:
            return await self._play(weather, request)
        self._check_key(request.headers)
        if self._bucket is not None and (wait := self._bucket.take()):
            headers = {"Retry-After": str(ceil(wait))} if self._retry_after else {}
            return self._errors.make("errors/too_many_requests", headers=headers)
        if segment is None:
            raise Refusal("errors/resource_not_found", "There is no such path.")
        if request.method != "PATCH":
            return self._errors.make("errors/method_not_allowed", headers={"Allow": "PATCH"})
        if account_id is None:
            raise bad_id or Refusal("errors/invalid_resource_identifier")
        if self._accounts is not None and account_id not in self._accounts:
            raise Refusal("errors/resource_not_found")
        change = read_change(await _read_body(request), request.content_type)
        nth = self._drawn[account_id] = self._drawn.get(account_id, 0) + 1
        elapsed = self._now() - self._first_at
        fault = self.faults.draw(account_id, nth, elapsed=elapsed, executing=self._slots.taken)
        key = request.headers.get("Idempotency-Key")
        if fault.is_none or fault.is_outcome:
            return await self._execute_once(account_id, change, key, fault)
        if not fault.executes:
            return await self._play(fault, request)
        await self._execute_once(account_id, change, key, Fault(latency=fault.latency))
        return await self._play(evolve(fault, latency=0.0), request)

    def _now(self) -> float:
        return (self._clock or asyncio.get_running_loop().time)()

    def _check_key(self, headers: Mapping[str, str]) -> None:
        given = headers.get("X-API-KEY")
        if given is None:
            scheme, _, token = headers.get("Authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else ""
        if not given:
            raise Refusal("errors/missing_credentials")
        if given != self.api_key:
            raise Refusal("errors/invalid_credentials")

    async def _play(self, fault: Fault, request: web.BaseRequest) -> Answer | None:
        """What a gateway in front of the API does: answer by itself, drop the connection, or be silent."""
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.ends == "never":
            await self._started().gone(request)
        return self._errors.of(fault) if fault.ends == "answered" else None

    async def _execute_once(self, account_id: str, change: Json, key: str | None, fault: Fault) -> Answer:
        """Execute; or give the answer of the execution that had this Idempotency-Key, once it has ended."""
        known = self._replays.find(account_id, key, change) if key else None
        if known is not None:
            self.record.replayed += 1
            return await known.result()
        if self._slots.full:
            raise Refusal("errors/service_unavailable")
        work = self._execute(account_id, change, fault)
        return await (self._replays.run(account_id, key, change, work) if key else work)

    async def _execute(self, account_id: str, change: Json, fault: Fault) -> Answer:
        async with self._slots:
            if takes := self.latency * self._slowness + fault.latency:
                await asyncio.sleep(takes)
            if fault.is_outcome:
                return self._errors.of(fault)
            if "proxy" in change and self._is_dead(change["proxy"]):
                return self._errors.make("errors/proxy_error")
            self.record.note_change(account_id, change)
        return patched(account_id)

    def _is_dead(self, proxy: Mapping[str, Any]) -> bool:
        if callable(self._dead_proxies):
            return self._dead_proxies(proxy)
        return f"{proxy['host']}:{int(proxy['port'])}" in self._dead_proxies


def _check(accounts: object, latency: object, dead_proxies: object) -> None:
    # Text is a collection of letters: no account would exist, and every part of it be a dead proxy.
    if isinstance(accounts, str):
        raise ValueError(f"accounts is a list of ids, not text: [{accounts!r}]")
    if isinstance(dead_proxies, str):
        raise ValueError(f"dead_proxies is a list of host:port, not text: [{dead_proxies!r}]")
    if not isinstance(latency, int | float) or not latency >= 0:
        raise ValueError(f"latency is seconds from 0, not {latency!r}")
    if isinstance(dead_proxies, Collection):
        for place in dead_proxies:
            if not isinstance(place, str) or not _PLACE.fullmatch(place):
                raise ValueError(f"{place!r} is not host:port, and so no proxy's")


async def _read_body(request: web.BaseRequest) -> bytes:
    too_large = Refusal("errors/content_too_large", f"A body has at most {LARGEST_BODY} bytes.")
    if (request.content_length or 0) > LARGEST_BODY:
        raise too_large
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:  # aiohttp's own limit, for a body of no announced length
        raise too_large from None
    except web.RequestPayloadError:
        raise Refusal("errors/malformed_request", "The body does not arrive whole.") from None
    if len(body) > LARGEST_BODY:
        raise too_large
    return body
