"""An `UpdateCall` with a stubbed transport, on an event loop whose clock only moves when tests advance it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve, field
from yarl import URL

from postpress_async import CustomProxy, Pace, RetryPolicy
from postpress_async._call.context import CallContext
from postpress_async._call.idempotency import FreshKeys, Keys
from postpress_async._call.keyed_lock import KeyedLock
from postpress_async._call.tracker import CallTracker
from postpress_async._call.update import UpdateCall
from postpress_async._http.transport import Request, Response
from postpress_async.errors import ApiError, PostPressError, Problem
from postpress_async.models import AccountPatched, ProxyChange
from postpress_async.pace._pacer import Pacer
from postpress_async.secret import Secret
from tests.support import KEY

PROXY = CustomProxy(host="proxy.example.com", port=8080)
DONE = AccountPatched("acc_1")
START = 1000.0


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when a test calls `advance`."""

    now = START

    def time(self) -> float:
        return self.now


def advance(seconds: float) -> None:
    """Advance the clock of the running `ManualLoop`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ManualLoop)
    loop.now += seconds


def answer(status: int, type_: str = "", retry_after: float | None = None) -> Callable[[], ApiError]:
    """Return a function that creates a new error for a response with this status, type and Retry-After."""
    return lambda: ApiError.of(status, Problem(type_), retry_after)


BUSY = answer(503, "errors/service_unavailable")


class UncountedPacer(Pacer):
    """A pacer during an outage that it knows of, so that attempts do not count."""

    def release(self, *args: Any) -> bool:
        super().release(*args)
        return False


class RotationHooks:
    """The hooks of a call of a rotation, which waits for the end of an outage."""

    def __init__(self, tracker: CallTracker) -> None:
        self.waits = tracker.child()

    def on_call_started(self) -> None: ...
    def on_attempt_started(self, now: float, /) -> None: ...
    def on_attempt_failed(self, error: PostPressError, /) -> None: ...
    def on_backoff(self, backing_off: bool, /) -> None: ...
    def should_give_up(self, error: PostPressError, /) -> bool:
        return False


@define(eq=False)
class StubApi:
    """
    A transport with prepared responses, which can also make a call.

    Attributes:
        answers: Results of the requests: `DONE`, or a function that creates an error. The last repeats.
        latency: Seconds that each request takes.
        initial_delay: Seconds from the start of the call to its first attempt.
        waits_out_outages: Whether the call waits for the end of an outage, like a call of a rotation.
        counts_attempts: Whether attempts count against the policy's number of attempts.
        pacer: Class of the pacer, unless attempts do not count.
        change: The change of the call.
        keys: The idempotency keys of the call.
        request_count: Number of requests so far.
        backoffs: Seconds of each backoff so far.
        ended_at: Times at which the requests ended.
        context: What the call depends on.
    """

    answers: list[Any]
    latency: float = 0.0
    initial_delay: float = 0.0
    waits_out_outages: bool = False
    counts_attempts: bool = True
    pacer: type[Pacer] = Pacer
    change: ProxyChange = PROXY
    keys: Keys = field(factory=FreshKeys)
    request_count: int = 0
    backoffs: list[float] = field(factory=list)
    ended_at: list[float] = field(factory=list)
    context: CallContext = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.context = context_of(self, self.pacer if self.counts_attempts else UncountedPacer)

    async def send(self, request: Request, _key: str | None, _timeout: float) -> Response:
        reply = self.answers[min(self.request_count, len(self.answers) - 1)]
        self.request_count += 1
        advance(self.latency)
        self.ended_at.append(asyncio.get_running_loop().time())
        if reply is DONE:
            return Response(
                200, b'{"object":"AccountPatched","account_id":"%s"}' % request.account_id.encode()
            )
        raise reply()

    async def aclose(self) -> None: ...

    async def back_off(self, seconds: float) -> None:
        self.backoffs.append(seconds)
        advance(seconds)

    async def call(self, policy: RetryPolicy) -> AccountPatched:
        """Make a call to this API."""
        with self.context.tracker:
            hooks = RotationHooks(self.context.tracker) if self.waits_out_outages else None
            call = UpdateCall(self.context, "acc_1", self.change, self.keys, policy, hooks)
            advance(self.initial_delay)
            return await call.run()


def context_of(transport: Any, pacer: type[Pacer] = Pacer) -> CallContext:
    """Create the context of calls over *transport*."""
    return CallContext(
        transport,
        Secret(KEY),
        pacer(Pace(adaptive=False), random=lambda: 0.5),
        KeyedLock(),
        CallTracker(),
        observer=None,
        base_url=URL("http://127.0.0.1:1"),
    )


def play(policy: RetryPolicy, api: StubApi) -> AccountPatched:
    """Return the result of one call with *policy*. `StubApi.back_off` replaces asyncio's sleep."""
    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        return runner.run(api.call(evolve(policy, sleep=api.back_off)))


def failed(policy: RetryPolicy, api: StubApi, kind: type[PostPressError] = PostPressError) -> Any:
    """Return the error of one call with *policy*."""
    with pytest.raises(kind) as caught:
        play(policy, api)
    return caught.value
