"""Opening connections, and cleaning up after failed ones, on asyncio and uvloop."""

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
from postpress_async._http.connections import Connector
from postpress_async.errors import Applied, ConnectError
from postpress_async.sandbox import Server
from tests.support import KEY
from tests.support.fault_server import CONNECTIONS, FaultServer

US = ManagedProxy(country="US")
LOOPS = [
    "asyncio",
    pytest.param(
        "uvloop", marks=pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run here")
    ),
]


def run(name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *main* in a loop of this kind, and check that no file descriptor stays open."""
    factory = importlib.import_module(name).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(0))  # uvloop's first loop opens descriptors that stay open
    before = open_descriptors()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    gc.collect()
    assert open_descriptors() <= before


def stale_sockets() -> list[socket.socket]:
    """A session's socket objects whose file descriptor is closed, though they do not know it."""
    sockets = [thing for thing in gc.get_objects() if type(thing) is socket.socket]
    clients = [sock for sock in sockets if sock.proto == socket.IPPROTO_TCP]  # 0 for accepted sockets
    return [sock for sock in clients if sock.fileno() >= 0 and not is_open(sock.fileno())]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def open_descriptors() -> int:
    """Number of the process's open file descriptors; 0 if the system has no /proc."""
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    """Keeps stale sockets, so that they are found and do not close another test's descriptors."""
    gc.collect()
    gc.disable()
    yield
    for sock in stale_sockets():
        sock.detach()
    gc.enable()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context, and the file of the authority that clients trust."""
    authority, ca_file = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context, ca_file


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_cancelled_in_any_loop_iteration_leaves_no_socket(
    loop: str, secure: bool, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """
    Nor does the next call get its response.

    If a call is cancelled in the iteration in which uvloop gets its socket, uvloop closes the descriptor but
    not the socket object, which later closes the descriptor of another connection.
    """
    context, ca_file = certificate

    async def main() -> None:
        with FaultServer(context if secure else None) as server:
            iterations, ended = 0, False
            while not ended:
                async with PostPressSession(
                    KEY, base_url=server.url, ssl=ca_file if secure else None, pace=Pace(adaptive=False)
                ) as session:
                    call = asyncio.create_task(session.update_proxy("acc_1", US))
                    for _ in range(iterations):
                        await asyncio.sleep(0)
                    ended = call.done()
                    call.cancel()
                    with suppress(asyncio.CancelledError):
                        await call
                    assert (await session.update_proxy("acc_2", US)).account_id == "acc_2"
                assert stale_sockets() == []
                iterations = iterations + 1 if iterations < 40 else iterations * 2

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["reset before the request", "closed before the request"])
def test_a_connection_that_the_server_closes_at_once_leaves_no_socket(
    loop: str, name: str, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """The connection fails in the same iteration as above, but because of the server."""
    context, ca_file = certificate

    async def main() -> None:
        with FaultServer(context) as server:
            server.play(CONNECTIONS[name])
            async with PostPressSession(
                KEY,
                base_url=server.url,
                ssl=ca_file,
                retry=RetryPolicy(attempts=1),
                pace=Pace(adaptive=False),
            ) as session:
                calls = (session.update_proxy(f"acc_{number}", US) for number in range(50))
                await asyncio.gather(*calls, return_exceptions=True)
            assert stale_sockets() == []

    run(loop, main)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_asyncio_allocates_small_read_buffers(
    secure: bool, certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocating 256 KiB from the system for each read takes a sixth of a whole call's time."""
    context, ca_file = certificate
    transports: list[Any] = []
    connect = Connector._wrap_create_connection

    async def recording(self: Connector, *args: Any, **options: Any) -> Any:
        connection = await connect(self, *args, **options)
        transports.append(connection[0])
        return connection

    async def main() -> None:
        with FaultServer(context if secure else None) as server:
            async with PostPressSession(KEY, base_url=server.url, ssl=ca_file if secure else None) as session:
                await session.update_proxy("acc_1", US)

    monkeypatch.setattr(Connector, "_wrap_create_connection", recording)
    run("asyncio", main)

    [transport] = transports
    reader = transport._ssl_protocol if secure else transport
    assert reader.max_size <= 64 * 1024


@pytest.mark.parametrize("loop", LOOPS)
def test_too_many_open_files_are_a_connect_error(loop: str) -> None:
    """Another part of the program may use all descriptors. When it has closed them, calls succeed again."""
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


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_base_url_may_have_an_ipv6_address(loop: str) -> None:
    """Losing or keeping the brackets in the wrong place would name another host."""

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
async def test_connection_close_is_sent_if_the_connection_is_not_reused(transport, force_close) -> None:
    """Otherwise the client closes first, and keeps one of its 28,000 ports in TIME_WAIT for each request."""
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
        async with aiohttp.TCPConnector(force_close=force_close) as custom:
            for connector in (custom, None):
                async with PostPressSession(
                    KEY, base_url=url, connector=connector, transport=transport
                ) as session:
                    await session.update_proxy("acc_1", US)
                    await session.update_proxy("acc_1", US)

    has_close = [b"connection: close" in head.lower() for head in heads]
    assert has_close == [force_close, force_close, False, False]
