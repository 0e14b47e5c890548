"""
How many microseconds does each part of a call take?

Only the journal uses the disk, and nothing uses the network. Comparing runs shows what a change costs::

    pytest benchmarks/test_micro.py [--benchmark-compare]
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import evolve

from postpress_async import (
    CustomProxy,
    Fleet,
    ManagedProxy,
    Outcome,
    Pace,
    PostPressSession,
    RetryPolicy,
    errors,
)
from postpress_async._http.codec import Response, decode_response, encode_request
from postpress_async._timeouts import TimeoutGroup
from postpress_async.models import AccountPatched
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pacer import Pacer
from postpress_async.rotation import Journal
from postpress_async.rotation._rows import rows_of
from postpress_async.secret import Secret

T = TypeVar("T")

KEY = Secret("pp_bench_0123456789abcdef0123456789abcdef")
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, protocol="socks5", username="u", password="p")
MANAGED = ManagedProxy(country="US")
REQUEST = encode_request("acc_00000001", CUSTOM)
PATCHED = b'{"object":"AccountPatched","account_id":"acc_00000001"}'
REFUSED = b'{"type":"errors/proxy_error","title":"Bad gateway","detail":"It does not work.","status":502}'


def result_of(coroutine: Awaitable[T]) -> T:
    """The result of a coroutine that never waits, without an event loop."""
    try:
        coroutine.__await__().send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits")


@pytest.fixture
def in_a_loop() -> Iterator[None]:
    """Provides a running loop for code that only calls asyncio.get_running_loop."""
    with asyncio.Runner() as runner:
        asyncio._set_running_loop(runner.get_loop())
        yield
        asyncio._set_running_loop(None)


# --- The wire -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [CUSTOM, MANAGED], ids=["custom", "managed"])
def test_encode_a_request(benchmark: Any, change: Any) -> None:
    """This includes validating the id."""
    assert benchmark(encode_request, "acc_00000001", change).account_id == "acc_00000001"


@pytest.mark.parametrize("body", [PATCHED, PATCHED + b" "], ids=["expected bytes", "parsed as JSON"])
def test_decode_a_success(benchmark: Any, body: bytes) -> None:
    """Nearly all responses have exactly the expected bytes, which are not parsed."""
    assert benchmark(decode_response, Response(200, body), REQUEST, KEY) == AccountPatched("acc_00000001")


def test_decode_an_error(benchmark: Any) -> None:
    """This includes cleaning its text."""

    def read() -> errors.PostPressError | None:
        try:
            decode_response(Response(502, REFUSED), REQUEST, KEY)
        except errors.PostPressError as error:
            return error
        return None

    assert type(benchmark(read)) is errors.ProxyError


# --- Retry --------------------------------------------------------------------------------------


class Call:
    """A `retry.Call` that succeeds after a number of failures."""

    counts_as_attempt = True

    def __init__(self, failures: int = 0) -> None:
        self.started = time.monotonic()
        self.failures = failures

    async def __call__(self) -> int:
        if self.failures:
            self.failures -= 1
            raise errors.ConnectError("no connection")
        return 200

    def excluded(self, error: errors.PostPressError, backoff: float) -> float:
        return 0.0

    def may_retry(self, error: errors.PostPressError) -> bool:
        return True

    async def wait(self, seconds: float) -> None: ...

    async def wait_for(self, strategy: Awaitable[T]) -> T:
        return await strategy


async def _awaited(call: Call) -> int:
    return await call()


@pytest.mark.parametrize("through", [_awaited, RetryPolicy().run], ids=["by itself", "through the policy"])
@pytest.mark.benchmark(group="success at the first attempt")
def test_success_at_the_first_attempt(benchmark: Any, through: Callable[[Call], Awaitable[int]]) -> None:
    """The difference is the cost of the retry layer for nearly every call."""
    call = Call()
    assert benchmark(lambda: result_of(through(call))) == 200


async def _by_hand(call: Call) -> int:
    for _ in range(3):
        try:
            return await call()
        except errors.ConnectError:
            await call.wait(0.0)
    return await call()


@pytest.mark.parametrize("through", [_by_hand, RetryPolicy().run], ids=["by hand", "through the policy"])
@pytest.mark.benchmark(group="success at the third attempt, without backoff")
@pytest.mark.usefixtures("in_a_loop")
def test_success_at_the_third_attempt(benchmark: Any, through: Callable[[Call], Awaitable[int]]) -> None:
    """Compared with a retry loop written by hand."""
    assert benchmark(lambda: result_of(through(Call(2)))) == 200


# --- Pace and time ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pace", [Pace(), Pace(adaptive=False), Pace(rate=1e9)], ids=["adaptive", "fixed", "rate"]
)
def test_acquire_and_release_a_permit(benchmark: Any, pace: Pace) -> None:
    """No other call is waiting."""
    ticks = itertools.count()
    pacer = Pacer(pace, clock=lambda: next(ticks) * 1e-4, random=lambda: 0.5)

    def once() -> bool:
        permit = pacer.try_acquire()
        assert permit is not None
        return pacer.release(permit, LoadSignal.SUCCESS)

    assert benchmark(once)


def test_a_deadline_that_does_not_expire(benchmark: Any) -> None:
    """`asyncio.timeout` takes five times as long."""
    timeouts = TimeoutGroup()
    with asyncio.Runner() as runner:

        async def measure() -> None:
            def once() -> None:
                with timeouts.within(30.0):
                    pass

            benchmark(once)

        runner.run(measure())
    assert len(timeouts) == 0


# --- A whole call, and the parts of a rotation ---------------------------------------------------


def test_a_call_without_its_transport(benchmark: Any) -> None:
    """All layers of `update_proxy`, with a transport that answers at once."""

    class Stub:
        async def send(self, *_: object) -> Response:
            return Response(200, PATCHED)

        async def aclose(self) -> None: ...

    async def measure() -> None:
        async with PostPressSession(KEY, base_url="http://127.0.0.1:1/v1") as session:
            session._context = evolve(session._context, transport=Stub())  # type: ignore[misc]
            done = benchmark(lambda: result_of(session.update_proxy("acc_00000001", CUSTOM)))
            assert done.account_id == "acc_00000001"

    with asyncio.Runner() as runner:
        runner.run(measure())


def test_convert_a_pair_to_a_row(benchmark: Any) -> None:
    """The pairs come from the caller's iterable."""
    rows = rows_of((f"acc_{number:08}", CUSTOM) for number in itertools.count())
    assert benchmark(next, rows).change is CUSTOM


@pytest.mark.parametrize("proxy", ["socks5://u:p@proxy.example.com:8080", ""], ids=["a URL", "a country"])
def test_read_a_row_of_a_csv_file(benchmark: Any, tmp_path: Path, proxy: str) -> None:
    """The file is read repeatedly."""
    country = "" if proxy else "US"
    lines = (f"acc_{number:08},{proxy},{country}\n" for number in range(20_000))
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,proxy,country\n" + "".join(lines))
    with Fleet.open(path) as fleet:
        rows = itertools.chain.from_iterable(fleet.rows() for _ in itertools.count())
        assert benchmark(next, rows).account_id.startswith("acc_")


def test_record_an_outcome_in_the_journal(benchmark: Any, tmp_path: Path) -> None:
    """Only the event loop's part is measured; another thread writes to the disk."""
    ordinals = itertools.count()

    async def measure() -> int:
        journal = Journal.open(tmp_path / "run.sqlite3")
        try:

            def once() -> None:
                journal.record(Outcome.patched(next(ordinals), None, "acc_00000001", 1, 0.1))

            benchmark.pedantic(once, rounds=100, iterations=1000, warmup_rounds=1)
        finally:
            await journal.aclose()
        return next(ordinals)

    assert asyncio.run(measure()) > 100_000
