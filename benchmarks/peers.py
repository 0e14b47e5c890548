"""
How much CPU time does a call need, compared with other ways to make it?

Each call is a PATCH that succeeds at once over a keep-alive connection on loopback. This session with both
transports and its peers, each written as its users write it, send the same body to the same server, in turn
in one run. The CPU time is that of this process, user and system; the server has its own process and core.
The output has every figure with its range, and the ratios to the call written by hand::

    python -m benchmarks.peers [--in-flight 8 64 500] [--rounds 15] [--requests 800] [--loops asyncio uvloop]
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, TypeAlias

import aiohttp
import aiohttp_retry
import openai
import stamina
import tenacity
import uvloop
from attrs import frozen
from yarl import URL

from postpress_async import CustomProxy, Pace, PostPressSession
from tests.support.canned_server import canned_server, two_cores

Call: TypeAlias = Callable[[str], Awaitable[object]]

KEY: Final = "pp_bench_0123456789abcdef0123456789abcdef"
PROXY: Final = {
    "host": "proxy.example.com",
    "port": 8080,
    "protocol": "socks5",
    "username": "u",
    "password": "p",
}
BODY: Final = {"proxy": PROXY}
BYTES: Final = json.dumps(BODY, separators=(",", ":")).encode()
CHANGE: Final = CustomProxy(**PROXY)  # type: ignore[arg-type] # validated at run time
LIBRARIES: Final = (
    "postpress-async aiohttp yarl multidict attrs cattrs tenacity uvloop aiohttp-retry stamina openai httpx2"
).split()


@frozen
class Peer:
    """A way to make the call. *open* gets the base URL and the concurrency, and yields the call."""

    name: str
    open: Callable[[str, int], Any]


PEERS: Final[dict[str, Peer]] = {}


def peer(name: str) -> Callable[[Callable[[str, int], AsyncIterator[Call]]], None]:
    def register(open_peer: Callable[[str, int], AsyncIterator[Call]]) -> None:
        PEERS[name] = Peer(name, asynccontextmanager(open_peer))

    return register


# --- This session ---


@peer("this session")
async def ours(base: str, in_flight: int) -> AsyncIterator[Call]:
    async with PostPressSession(KEY, base_url=base, pace=_pace(in_flight)) as session:
        yield lambda account_id: session.update_proxy(account_id, CHANGE)


@peer("this session, lean")
async def ours_lean(base: str, in_flight: int) -> AsyncIterator[Call]:
    async with PostPressSession(KEY, base_url=base, pace=_pace(in_flight), transport="lean") as session:
        yield lambda account_id: session.update_proxy(account_id, CHANGE)


def _pace(in_flight: int) -> Pace:
    return Pace(in_flight=max(100, in_flight))  # everything else is the default


# --- aiohttp ---


@peer("aiohttp by hand")
async def by_hand(base: str, in_flight: int) -> AsyncIterator[Call]:
    connector = aiohttp.TCPConnector(limit=max(100, in_flight))
    async with aiohttp.ClientSession(headers={"X-API-KEY": KEY}, connector=connector) as session:

        async def call(account_id: str) -> Any:
            async with session.patch(f"{base}/accounts/{account_id}", json=BODY) as response:
                response.raise_for_status()
                return await response.json()

        yield call


@peer("aiohttp, leanest")
async def leanest(base: str, in_flight: int) -> AsyncIterator[Call]:
    async with aiohttp.ClientSession(
        headers={"X-API-KEY": KEY, "Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(limit=max(100, in_flight)),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
    ) as session:

        async def call(account_id: str) -> bytes:
            url = URL(f"{base}/accounts/{account_id}", encoded=True)
            async with session.patch(url, data=BYTES, allow_redirects=False) as response:
                return await response.read()

        yield call


@peer("aiohttp + aiohttp_retry")
async def with_aiohttp_retry(base: str, in_flight: int) -> AsyncIterator[Call]:
    connector = aiohttp.TCPConnector(limit=max(100, in_flight))
    async with (
        aiohttp.ClientSession(headers={"X-API-KEY": KEY}, connector=connector) as session,
        aiohttp_retry.RetryClient(
            session, retry_options=aiohttp_retry.ExponentialRetry(attempts=4)
        ) as client,
    ):

        async def call(account_id: str) -> Any:
            async with client.patch(f"{base}/accounts/{account_id}", json=BODY) as response:
                response.raise_for_status()
                return await response.json()

        yield call


@peer("aiohttp + tenacity")
async def with_tenacity(base: str, in_flight: int) -> AsyncIterator[Call]:
    async with _by_hand(base, in_flight) as plain:

        @tenacity.retry(
            stop=tenacity.stop_after_attempt(4),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
            retry=tenacity.retry_if_exception_type((aiohttp.ClientError, TimeoutError)),
        )
        async def call(account_id: str) -> Any:
            return await plain(account_id)

        yield call


@peer("aiohttp + stamina")
async def with_stamina(base: str, in_flight: int) -> AsyncIterator[Call]:
    async with _by_hand(base, in_flight) as plain:

        @stamina.retry(on=(aiohttp.ClientError, TimeoutError), attempts=4)
        async def call(account_id: str) -> Any:
            return await plain(account_id)

        yield call


def _by_hand(base: str, in_flight: int) -> Any:
    return PEERS["aiohttp by hand"].open(base, in_flight)


# --- openai-python ---


class Patched(openai.BaseModel):
    object: str
    account_id: str


async def _with_openai(base: str, http_client: Any) -> AsyncIterator[Call]:
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=base, default_headers={"X-API-KEY": KEY}, http_client=http_client
    ) as client:

        async def call(account_id: str) -> Patched:
            return await client.patch(f"/accounts/{account_id}", body=BODY, cast_to=Patched)

        yield call


@peer("openai-python on aiohttp")
async def openai_on_aiohttp(base: str, _in_flight: int) -> AsyncIterator[Call]:
    async for call in _with_openai(base, openai.DefaultAioHttpClient()):
        yield call


@peer("openai-python on httpx")
async def openai_on_httpx(base: str, _in_flight: int) -> AsyncIterator[Call]:
    async for call in _with_openai(base, openai.DefaultAsyncHttpxClient()):
        yield call


# --- The floor ---


class _Bare(asyncio.Protocol):
    """A connection that takes any received data as the response."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.answer: asyncio.Future[bytes]

    def data_received(self, data: bytes) -> None:
        self.answer.set_result(data)


@peer("asyncio.Protocol, no checks")
async def bare(base: str, _in_flight: int) -> AsyncIterator[Call]:
    loop, url = asyncio.get_running_loop(), URL(base)
    head = (
        f"PATCH {url.raw_path}/accounts/%s HTTP/1.1\r\nHost: {url.authority}\r\nX-API-KEY: {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BYTES)}\r\n\r\n"
    )
    idle: list[_Bare] = []

    async def call(account_id: str) -> bytes:
        if idle:
            wire = idle.pop()
        else:
            _, wire = await loop.create_connection(_Bare, str(url.host), url.port or 80)
        wire.answer = loop.create_future()
        wire.transport.write((head % account_id).encode() + BYTES)
        answer = await wire.answer
        idle.append(wire)
        return answer

    yield call
    for wire in idle:
        wire.transport.close()


# --- Measurement ---


@frozen
class Cost:
    """The cost of a round: CPU time in microseconds per request, and requests per second."""

    cpu: float
    rate: float


async def _play(call: Call, account_ids: Iterator[str], in_flight: int) -> None:
    async def worker() -> None:
        for account_id in account_ids:  # the workers share the iterator
            await call(account_id)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())


async def measure(
    names: list[str], base: str, in_flight: int, rounds: int, requests: int
) -> dict[str, list[Cost]]:
    """Measure all peers in turn, and return a `Cost` for each round."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    number = 0

    def ids(count: int) -> Iterator[str]:
        nonlocal number
        number += count
        return iter([f"acc_{n:08}" for n in range(number - count, number)])

    async with AsyncExitStack() as stack:
        calls = {name: await stack.enter_async_context(PEERS[name].open(base, in_flight)) for name in names}
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if name not in costs:
                    continue
                try:
                    # Reopen idle connections that were closed, before measuring.
                    await _play(calls[name], ids(max(100, in_flight)), in_flight)
                    todo = ids(requests)
                    gc.collect()
                    wall, cpu = time.perf_counter(), time.process_time()
                    await _play(calls[name], todo, in_flight)
                    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                except ExceptionGroup as group:  # a peer's timeout, if the machine is busy
                    del costs[name]
                    print(f"  {name:30} failed: {group.exceptions[0]!r}")
                else:
                    costs[name].append(Cost(cpu / requests * 1e6, requests / wall))
    return costs


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):8.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_costs(costs: dict[str, list[Cost]]) -> None:
    """Print a row for each peer, then the ratios to the two plain aiohttp peers."""
    for name, rounds in costs.items():
        cpu = _spread([cost.cpu for cost in rounds], 1)
        print(f"  {name:30} {cpu:32} {_spread([cost.rate for cost in rounds], 0)}")
    bases = [name for name in ("aiohttp by hand", "aiohttp, leanest") if name in costs]
    if bases:
        print(f"\n  {'CPU, as a ratio to':30} " + " ".join(f"{name:>18}" for name in bases))
        for name, rounds in costs.items():
            # Compare rounds with the same number, since anything that slows the machine affects both.
            ratios = [
                statistics.median(a.cpu / b.cpu for a, b in zip(rounds, costs[other], strict=True))
                for other in bases
            ]
            print(f"  {name:30} " + " ".join(f"{ratio:18.2f}" for ratio in ratios))
    print(flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="See the module.")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[8, 64, 500])
    parser.add_argument("--loops", nargs="+", choices=["asyncio", "uvloop"], default=["asyncio", "uvloop"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=800, help="Requests of each peer per round.")
    parser.add_argument("--peers", nargs="+", default=[""], help="Patterns of peers' names. Default: all.")
    options = parser.parse_args(arguments)
    names = [name for name in PEERS if any(re.search(part, name) for part in options.peers)]

    started, cores = time.monotonic(), two_cores()
    if cores is not None:
        os.sched_setaffinity(0, {cores[0]})
    gc.collect()
    gc.freeze()  # keeps the libraries' own objects out of garbage collection during the rounds
    with canned_server(None if cores is None else cores[1]) as base:
        for loop in options.loops:
            factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
            for in_flight in options.in_flight:
                print(
                    f"{loop}, {in_flight} in flight: CPU us per request, requests per second; median (range)"
                )
                with asyncio.Runner(loop_factory=factory) as runner:
                    costs = runner.run(measure(names, base, in_flight, options.rounds, options.requests))
                print_costs(costs)
    seconds = time.monotonic() - started
    print(f"{options.rounds} rounds of {options.requests:,} requests, {seconds:.0f} s in all")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}")
    pinned = "client and server on one core each" if cores is not None else "not pinned to cores"
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {pinned}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
