"""
How much CPU time does a call need, compared with other ways to make it?

Each call is a PATCH that succeeds at once over a keep-alive connection on loopback. The peers are this
package's session, with both transports, and other libraries, each used as its users would. All send the same
body to the same server, which is `canned_server` or nginx.

Each peer has a process of its own, because memory that another peer has used changes the cost of aiohttp's
reads. The peers take turns, so that anything that slows the machine slows them all. The CPU time is the user
and system time of the peer's process; the server has its own core. The output has the median and range of
each figure, the ratios to plain aiohttp, and the cost of the layers above the transport::

    python -m benchmarks.peers [--servers canned nginx] [--loops asyncio uvloop] [--in-flight 8 64 500]
                               [--rounds 15] [--requests 800] [--peers session hand]
"""

import argparse
import asyncio
import gc
import json
import operator
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any, Final, Literal, TypeAlias

import aiohttp
import aiohttp_retry
import stamina
import tenacity
import uvloop
from attrs import evolve, frozen
from yarl import URL

from benchmarks.nginx import nginx_server
from postpress_async import CustomProxy, Pace, PostPressSession
from tests.support.canned_server import canned_server, two_cores

Call: TypeAlias = Callable[[str], Awaitable[object]]
"""Makes the call for an account id."""

Opener: TypeAlias = Callable[[str, int], AsyncIterator[Call]]
"""Opens a client for a base URL and a concurrency, and yields its `Call`."""

Round: TypeAlias = Callable[[list[str]], Awaitable[object]]
"""Makes the calls for a list of account ids."""
Transport: TypeAlias = Literal["session", "lean"]

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
SERVERS: Final = {"canned": canned_server, "nginx": nginx_server}

ROTATION_LENGTH: Final = 10
"""
A round of a rotation has this many times the requests of other rounds.

Otherwise the milliseconds for opening and closing its journal would count too much.
"""

PEERS: Final[dict[str, Callable[[str, int], AbstractAsyncContextManager[Round]]]] = {}
"""The peers by name. Each is called with the base URL and the concurrency, and yields its `Round`."""


def peer(name: str) -> Callable[[Opener], Opener]:
    """Register a peer whose `Call` is made by concurrent workers."""

    def register(open_peer: Opener) -> Opener:
        open_client = asynccontextmanager(open_peer)

        @asynccontextmanager
        async def open_workers(base: str, in_flight: int) -> AsyncIterator[Round]:
            async with open_client(base, in_flight) as call:

                async def work(account_ids: Iterator[str]) -> None:
                    for account_id in account_ids:  # the workers share the iterator
                        await call(account_id)

                async def run_round(account_ids: list[str]) -> None:
                    shared_ids = iter(account_ids)
                    async with asyncio.TaskGroup() as group:
                        for _ in range(in_flight):
                            group.create_task(work(shared_ids))

                yield run_round

        PEERS[name] = open_workers
        return open_peer

    return register


# --- This package --------------------------------------------------------------------------------


def _session(base: str, in_flight: int, transport: Transport = "session") -> PostPressSession:
    pace = Pace(in_flight=max(100, in_flight))  # everything else is the default
    return PostPressSession(KEY, base_url=base, pace=pace, transport=transport)


def _register_session(suffix: str, transport: Transport) -> None:
    @peer(f"this session{suffix}")
    async def update_proxy(base: str, in_flight: int) -> AsyncIterator[Call]:
        async with _session(base, in_flight, transport) as session:
            yield lambda account_id: session.update_proxy(account_id, CHANGE)

    @peer(f"its transport alone{suffix}")
    async def transport_alone(base: str, in_flight: int) -> AsyncIterator[Call]:
        async with _session(base, in_flight, transport) as session:
            send, request = session._context.transport.send, session._context.encode_request("acc_0", CHANGE)
            yield lambda account_id: send(evolve(request, account_id=account_id), "key-1", 30.0)


_register_session("", "session")
_register_session(", lean", "lean")


@asynccontextmanager
async def rotation(base: str, in_flight: int) -> AsyncIterator[Round]:
    with tempfile.TemporaryDirectory() as folder:
        async with _session(base, in_flight) as session:

            async def run_round(account_ids: list[str]) -> None:
                journal = Path(folder, f"{account_ids[0]}.sqlite3")
                pairs = [(account_id, CHANGE) for account_id in account_ids]
                async with session.rotate(pairs, journal=journal, in_flight=in_flight) as outcomes:
                    async for outcome in outcomes:
                        assert outcome.error is None

            yield run_round


PEERS["a rotation with its journal"] = rotation


# --- aiohttp -------------------------------------------------------------------------------------


@peer("aiohttp by hand")
async def by_hand(base: str, in_flight: int) -> AsyncIterator[Call]:
    connector = aiohttp.TCPConnector(limit=max(100, in_flight))
    async with aiohttp.ClientSession(headers={"X-API-KEY": KEY}, connector=connector) as session:

        async def call(account_id: str) -> Any:
            async with session.patch(f"{base}/accounts/{account_id}", json=BODY) as response:
                response.raise_for_status()
                return await response.json()

        yield call


_by_hand = asynccontextmanager(by_hand)


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


# --- openai-python -------------------------------------------------------------------------------


async def _with_openai(base: str, client_name: str) -> AsyncIterator[Call]:
    import openai  # not at the top of the module, so that the other peers do not use memory for it

    class Patched(openai.BaseModel):
        object: str
        account_id: str

    async with openai.AsyncOpenAI(
        api_key=KEY,
        base_url=base,
        default_headers={"X-API-KEY": KEY},
        http_client=getattr(openai, client_name)(),
    ) as client:

        async def call(account_id: str) -> Patched:
            return await client.patch(f"/accounts/{account_id}", body=BODY, cast_to=Patched)

        yield call


@peer("openai-python on aiohttp")
async def openai_on_aiohttp(base: str, _in_flight: int) -> AsyncIterator[Call]:
    async for call in _with_openai(base, "DefaultAioHttpClient"):
        yield call


@peer("openai-python on httpx")
async def openai_on_httpx(base: str, _in_flight: int) -> AsyncIterator[Call]:
    async for call in _with_openai(base, "DefaultAsyncHttpxClient"):
        yield call


# --- The minimum ---------------------------------------------------------------------------------


class _UncheckedProtocol(asyncio.Protocol):
    """A connection that takes any received data for the response."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.response: asyncio.Future[bytes]

    def data_received(self, data: bytes) -> None:
        self.response.set_result(data)


@peer("asyncio.Protocol, no checks")
async def without_checks(base: str, _in_flight: int) -> AsyncIterator[Call]:
    loop, url = asyncio.get_running_loop(), URL(base)
    head = (
        f"PATCH {url.raw_path}/accounts/%s HTTP/1.1\r\nHost: {url.authority}\r\nX-API-KEY: {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BYTES)}\r\n\r\n"
    )
    idle: list[_UncheckedProtocol] = []

    async def call(account_id: str) -> bytes:
        if idle:
            protocol = idle.pop()
        else:
            _, protocol = await loop.create_connection(_UncheckedProtocol, str(url.host), url.port or 80)
        protocol.response = loop.create_future()
        protocol.transport.write((head % account_id).encode() + BYTES)
        response = await protocol.response
        idle.append(protocol)
        return response

    yield call
    for protocol in idle:
        protocol.transport.close()


# --- Measurement ---------------------------------------------------------------------------------


@frozen
class Cost:
    """
    The cost of a round.

    Attributes:
        cpu: Microseconds of CPU time per request.
        rate: Requests per second.
    """

    cpu: float
    rate: float


async def _run_peer(name: str, base: str, in_flight: int, requests: int) -> None:
    """Measure a round for each line of standard input, and print its `Cost` as JSON."""
    warm_up = max(100, in_flight)  # opens connections that the server has closed
    measured = requests * ROTATION_LENGTH if PEERS[name] is rotation else requests
    number = 0
    gc.collect()
    gc.freeze()  # keeps the libraries' own objects out of garbage collection during the rounds
    async with PEERS[name](base, in_flight) as run_round:
        while sys.stdin.readline():
            for count in (warm_up, measured):
                account_ids = [f"acc_{n:08}" for n in range(number, number + count)]
                number += count
                gc.collect()
                wall, cpu = time.perf_counter(), time.process_time()
                await run_round(account_ids)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            print(json.dumps([cpu / count * 1e6, count / wall]), flush=True)


def measure(
    names: list[str], base: str, in_flight: int, loop: str, rounds: int, requests: int
) -> dict[str, list[Cost]]:
    """Measure all peers in turn, and return a `Cost` for each round."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    with ExitStack() as stack:
        processes = {}
        for name in names:
            words = [sys.executable, "-m", "benchmarks.peers", "--run", name, base]
            words += ["--in-flight", str(in_flight), "--loops", loop, "--requests", str(requests)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[name] = stack.enter_context(process)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                pipe = processes[name]
                assert pipe.stdin is not None
                assert pipe.stdout is not None
                if name not in costs:
                    continue
                pipe.stdin.write("round\n")
                pipe.stdin.flush()
                if line := pipe.stdout.readline():
                    costs[name].append(Cost(*json.loads(line)))
                else:  # the peer's process has ended, and printed its error
                    del costs[name]
                    print(f"  {name:30} failed")
        for process in processes.values():
            process.stdin.close()  # type: ignore[union-attr]
    return costs


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):8.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _compare(
    costs: dict[str, list[Cost]], name: str, other: str, compare: Callable[[float, float], float]
) -> str:
    # Compare rounds with the same number, because anything that slows the machine affects both.
    if name not in costs or other not in costs:
        return ""
    pairs = zip(costs[name], costs[other], strict=True)
    return _spread([compare(cost.cpu, other_cost.cpu) for cost, other_cost in pairs], 2)


def print_costs(costs: dict[str, list[Cost]]) -> None:
    """Print the costs of each peer, the ratios to plain aiohttp, and the cost of the layers."""
    for name, rounds in costs.items():
        cpu = _spread([cost.cpu for cost in rounds], 1)
        print(f"  {name:30} {cpu:32} {_spread([cost.rate for cost in rounds], 0)}")
    for base in ("aiohttp by hand", "aiohttp, leanest"):
        if base in costs:
            print(f"\n  ratio of the CPU time to that of {base}")
            for name in costs:
                print(f"  {name:30} {_compare(costs, name, base, operator.truediv)}")
    print()
    for suffix in ("", ", lean"):
        layers = _compare(costs, f"this session{suffix}", f"its transport alone{suffix}", operator.sub)
        print(f"  {f'the layers alone{suffix}, us':30} {layers}")
    ratio = _compare(costs, "a rotation with its journal", "this session", operator.truediv)
    print(f"  {'rotation / update_proxy':30} {ratio}\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="See the module.")
    installed = [name for name in SERVERS if name != "nginx" or which("nginx")]
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=installed)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64])
    parser.add_argument("--loops", nargs="+", choices=["asyncio", "uvloop"], default=["asyncio", "uvloop"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=800, help="Requests of each peer per round.")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[""],
        metavar="PATTERN",
        help="Regular expressions for names of peers. Default: all.",
    )
    parser.add_argument("--run", nargs=2, metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    started, cores = time.monotonic(), two_cores()
    if cores is not None:
        os.sched_setaffinity(0, {cores[0]})
    if options.run:
        factory = uvloop.new_event_loop if options.loops == ["uvloop"] else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            name, base = options.run
            runner.run(_run_peer(name, base, options.in_flight[0], options.requests))
        return 0

    names = [name for name in PEERS if any(re.search(pattern, name) for pattern in options.peers)]
    for server in options.servers:
        with SERVERS[server](None if cores is None else cores[1]) as base:
            for loop in options.loops:
                for in_flight in options.in_flight:
                    print(
                        f"{server}, {loop}, {in_flight} in flight: "
                        "CPU us per request, requests per second; median (range)"
                    )
                    print_costs(measure(names, base, in_flight, loop, options.rounds, options.requests))
    seconds = time.monotonic() - started
    print(f"{options.rounds} rounds of {options.requests:,} requests, {seconds:.0f} s in all")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}")
    pinned = "client and server on one core each" if cores is not None else "not pinned to cores"
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {pinned}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
