"""
How many microseconds does each part of a call take?

No benchmark uses the network, and only those of a file or the journal use the disk. Compare two runs to see
what a change of the code costs::

    pytest benchmarks/test_micro.py [--benchmark-compare]
"""

import asyncio
import itertools
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from postpress_async import (
    CustomProxy,
    Fleet,
    ManagedProxy,
    Pace,
    PostPressSession,
    RetryPolicy,
    errors,
)
from postpress_async._http.codec import decode_response, encode_request
from postpress_async._http.transport import Response
from postpress_async._timeouts import TimeoutGroup
from postpress_async.models import AccountPatched
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pacer import Pacer
from postpress_async.rotation._rows import rows_of
from postpress_async.rotation.journal import Journal
from postpress_async.secret import Secret
from tests.support.journals import patched_outcome

T = TypeVar("T")

KEY = Secret("pp_bench_0123456789abcdef0123456789abcdef")
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, protocol="socks5", username="u", password="p")
MANAGED = ManagedProxy(country="US")
URL = "https://api.postpress.ai/v1/accounts/acc_00000001"
REQUEST = encode_request("acc_00000001", CUSTOM, URL, KEY)
PATCHED = b'{"object":"AccountPatched","account_id":"acc_00000001"}'
PROXY_ERROR = b'{"type":"errors/proxy_error","title":"Bad gateway","detail":"It does not work.","status":502}'


def result_of(coroutine: Awaitable[T]) -> T:
    """Return the result of a coroutine that never waits, without an event loop."""
    try:
        coroutine.__await__().send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits")


# --- Requests and responses ---------------------------------------------------------------------


@pytest.mark.parametrize("change", [CUSTOM, MANAGED], ids=["custom", "managed"])
def test_encode_a_request(benchmark: Any, change: Any) -> None:
    """This includes checking the account id."""
    assert benchmark(encode_request, "acc_00000001", change, URL, KEY).account_id == "acc_00000001"


@pytest.mark.parametrize("body", [PATCHED, PATCHED + b" "], ids=["expected bytes", "parsed as JSON"])
def test_decode_a_success(benchmark: Any, body: bytes) -> None:
    """A body that has exactly the expected bytes, as nearly all have, is not parsed."""
    assert benchmark(decode_response, Response(200, body), REQUEST) == AccountPatched("acc_00000001")


def test_decode_an_error(benchmark: Any) -> None:
    """This includes cleaning its texts."""

    def decode() -> errors.PostPressError | None:
        try:
            decode_response(Response(502, PROXY_ERROR), REQUEST)
        except errors.PostPressError as error:
            return error
        return None

    assert type(benchmark(decode)) is errors.ProxyError


# --- Pace and timeouts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pace", [Pace(), Pace(adaptive=False), Pace(rate=1e9)], ids=["adaptive", "fixed", "rate"]
)
def test_acquire_and_release_a_permit(benchmark: Any, pace: Pace) -> None:
    """No other call waits for a permit."""
    ticks = itertools.count()
    pacer = Pacer(pace, clock=lambda: next(ticks) * 1e-4, random=lambda: 0.5)

    def once() -> bool:
        permit = pacer.try_acquire()
        assert permit is not None
        return pacer.release(permit, LoadSignal.SUCCESS)

    assert benchmark(once)


def test_a_timeout_that_does_not_expire(benchmark: Any) -> None:
    timeouts = TimeoutGroup()
    with asyncio.Runner() as runner:

        async def measure() -> None:
            def once() -> None:
                with timeouts.within(30.0):
                    pass

            benchmark(once)

        runner.run(measure())
    assert len(timeouts._open) == 0


# --- A whole call, and the parts of a rotation ---------------------------------------------------


class StubTransport:
    """Responds at once: *failures* times with an error, then with a success, and so on."""

    def __init__(self, failures: int) -> None:
        self._succeeds = itertools.cycle([False] * failures + [True])

    async def send(self, *_: object) -> Response:
        if next(self._succeeds):
            return Response(200, PATCHED)
        raise errors.ConnectError("no connection")

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("failures", [0, 2])
def test_a_call_without_its_transport(benchmark: Any, failures: int) -> None:
    """The call passes through all layers of `update_proxy` except the transport."""

    async def sleep(_seconds: float) -> None: ...

    async def measure() -> None:
        policy, pace = RetryPolicy(sleep=sleep, deadline=1e9), Pace(adaptive=not failures)
        stub = StubTransport(failures)
        async with PostPressSession(
            KEY, base_url="http://127.0.0.1:1/v1", retry=policy, pace=pace, transport=stub
        ) as session:
            done = benchmark(lambda: result_of(session.update_proxy("acc_00000001", CUSTOM)))
            assert len(done.attempts) == failures + 1

    with asyncio.Runner() as runner:
        runner.run(measure())


def test_convert_a_pair_to_a_row(benchmark: Any) -> None:
    """Changes that a caller passes as an iterable of pairs are converted."""
    rows = rows_of((f"acc_{number:08}", CUSTOM) for number in itertools.count())
    assert benchmark(next, rows).change is CUSTOM


@pytest.mark.parametrize("proxy", ["socks5://u:p@proxy.example.com:8080", ""], ids=["a URL", "a country"])
def test_read_a_row_of_a_csv_file(benchmark: Any, tmp_path: Path, proxy: str) -> None:
    """When the file ends, it is read again."""
    country = "" if proxy else "US"
    lines = (f"acc_{number:08},{proxy},{country}\n" for number in range(20_000))
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,proxy,country\n" + "".join(lines))
    with Fleet.open(path) as fleet:
        rows = itertools.chain.from_iterable(fleet.rows() for _ in itertools.count())
        assert benchmark(next, rows).account_id.startswith("acc_")


def test_record_an_outcome_in_the_journal(benchmark: Any, tmp_path: Path) -> None:
    """Only the work of the event loop's thread is measured. Another thread writes to the disk."""
    ordinals = itertools.count()

    async def measure() -> int:
        journal = Journal(tmp_path / "run.sqlite3")
        try:

            def once() -> None:
                journal.record(patched_outcome(next(ordinals), None, "acc_00000001", 1, 0.1))

            benchmark.pedantic(once, rounds=100, iterations=1000, warmup_rounds=1)
        finally:
            await journal.aclose()
        return next(ordinals)

    assert asyncio.run(measure()) > 100_000
