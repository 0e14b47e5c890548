"""How connections come about, and what is left of one that does not: nothing, on any event loop."""

import asyncio
import gc
import importlib
import os
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from postpress_async import ManagedProxy, Pace, PostPressSession, RetryPolicy
from postpress_async._connector import Connector
from postpress_async.errors import Applied, ConnectError
from postpress_async.sandbox import Server
from tests.conftest import KEY
from tests.fault_server import CONNECTIONS, FaultServer

US = ManagedProxy(country="US")
LOOPS = ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(sys.platform == "win32", reason="none"))]


def run(name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """*main* in a loop of that kind; nothing may stay open after it."""
    factory = importlib.import_module(name).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(0))  # uvloop keeps what its first loop opens
    before = numbers()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    gc.collect()
    assert numbers() <= before


def stale() -> list[socket.socket]:
    """A session's sockets that would close, when they are collected, what is no longer theirs."""
    every = [thing for thing in gc.get_objects() if type(thing) is socket.socket]
    ours = [one for one in every if one.proto == socket.IPPROTO_TCP]  # those that the server accepts say 0
    return [one for one in ours if one.fileno() >= 0 and not is_open(one.fileno())]


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def numbers() -> int:
    """Files and sockets that the process has open; 0 where the system does not say."""
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """A stale socket is to be found, not to close another test's."""
    gc.collect()
    gc.disable()
    yield
    for one in stale():
        one.detach()
    gc.enable()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What a server shows, and the file of those to trust."""
    authority, place = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(place))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context, place


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_that_is_cancelled_at_any_moment_leaves_nothing(
    loop: str, secure: bool, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """
    No socket, and no answer for the next call.

    uvloop forgets to tell a socket that is handed to it that it has closed it, if the call is cancelled in
    that very turn. Collected later, it closes what has its number by then: another call's connection.
    """
    context, place = certificate

    async def main() -> None:
        with FaultServer(context if secure else None) as server:
            turns, ended = 0, False
            while not ended:
                async with PostPressSession(
                    KEY, base_url=server.url, ssl=place if secure else None, pace=Pace(adaptive=False)
                ) as session:
                    call = asyncio.create_task(session.update_proxy("acc_1", US))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    ended = call.done()
                    call.cancel()
                    with suppress(asyncio.CancelledError):
                        await call
                    assert (await session.update_proxy("acc_2", US)).account_id == "acc_2"
                assert stale() == []
                turns = turns + 1 if turns < 40 else turns * 2

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["reset before the request", "closed before the request"])
def test_a_connection_that_breaks_at_once_leaves_no_socket(
    loop: str, name: str, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """The same moment, met from the other side."""
    context, place = certificate

    async def main() -> None:
        with FaultServer(context) as server:
            server.play(CONNECTIONS[name])
            async with PostPressSession(
                KEY, base_url=server.url, ssl=place, retry=RetryPolicy(attempts=1), pace=Pace(adaptive=False)
            ) as session:
                calls = (session.update_proxy(f"acc_{number}", US) for number in range(50))
                await asyncio.gather(*calls, return_exceptions=True)
            assert stale() == []

    run(loop, main)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_asyncio_reads_little_at_once(
    secure: bool, certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for 256 KiB comes from the system and goes back to it, at each read: a sixth of a whole call."""
    context, place = certificate
    made: list[Any] = []
    connect = Connector._wrap_create_connection

    async def noted(self: Connector, *args: Any, **options: Any) -> Any:
        connection = await connect(self, *args, **options)
        made.append(connection[0])
        return connection

    async def main() -> None:
        with FaultServer(context if secure else None) as server:
            async with PostPressSession(KEY, base_url=server.url, ssl=place if secure else None) as session:
                await session.update_proxy("acc_1", US)

    monkeypatch.setattr(Connector, "_wrap_create_connection", noted)
    run("asyncio", main)

    [transport] = made
    reader = transport._ssl_protocol if secure else transport
    assert reader.max_size <= 64 * 1024


@pytest.mark.parametrize("loop", LOOPS)
def test_too_many_open_files_are_no_connection_and_pass(loop: str) -> None:
    """Another part of the program may use them all up; once it has let go, the session goes on."""
    resource = pytest.importorskip("resource")

    async def main() -> None:
        with FaultServer() as server:
            policy = RetryPolicy(attempts=2, first_wait=0.001)
            async with PostPressSession(KEY, base_url=server.url, retry=policy) as session:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                lowest = os.open(os.devnull, os.O_RDONLY)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                try:
                    with pytest.raises(ConnectError) as caught:
                        await session.update_proxy("acc_1", US)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

                assert (len(caught.value.attempts), caught.value.applied) == (2, Applied.NO)
                assert (await session.update_proxy("acc_1", US)).account_id == "acc_1"
            assert server.count() == {"acc_1": 1}

    run(loop, main)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
@pytest.mark.parametrize("loop", LOOPS)
def test_this_machine_may_be_reached_over_ipv6(loop: str) -> None:
    """Where the brackets of an address are lost on the way, or kept, another host is meant."""

    async def main() -> None:
        server = Server()
        await server.start("::1")
        try:
            assert server.url.startswith("http://[::1]:")
            async with PostPressSession(server.api_key, base_url=server.url) as session:
                assert (await session.update_proxy("acc_1", US)).account_id == "acc_1"
        finally:
            await server.aclose()

    run(loop, main)


@pytest.mark.parametrize("transport", ["session", "lean"])
@pytest.mark.parametrize("force_close", [True, False])
async def test_a_server_is_told_of_a_connection_that_will_not_be_used_again(transport, force_close) -> None:
    """Else this machine closes each first, and keeps a port in TIME_WAIT for it; there are 28,000 of them."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readuntil(b"}")
                body = b'{"object":"AccountPatched","account_id":"acc_1"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with aiohttp.TCPConnector(force_close=force_close) as own:
            for connector in (own, None):
                async with PostPressSession(
                    KEY, base_url=url, connector=connector, transport=transport
                ) as session:
                    await session.update_proxy("acc_1", US)
                    await session.update_proxy("acc_1", US)

    told = [b"connection: close" in head.lower() for head in heads]
    assert told == [force_close, force_close, False, False]
