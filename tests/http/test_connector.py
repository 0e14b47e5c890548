"""Opening connections, and cleaning up after failures, with asyncio and uvloop."""

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


def run(loop: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *main* in an event loop of the module *loop*, and check that no file descriptor stays open."""
    factory = importlib.import_module(loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(0))  # uvloop's first loop opens descriptors that stay open
    before = open_descriptors()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    gc.collect()
    assert open_descriptors() <= before


def stale_sockets() -> list[socket.socket]:
    """Sockets of clients that are not marked as closed, although their file descriptor is closed."""
    sockets = [item for item in gc.get_objects() if type(item) is socket.socket]
    clients = [sock for sock in sockets if sock.proto == socket.IPPROTO_TCP]  # 0 for accepted sockets
    return [sock for sock in clients if sock.fileno() >= 0 and not is_open(sock.fileno())]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def open_descriptors() -> int:
    """Return the number of the process's open file descriptors, or 0 if the system has no /proc."""
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    """Keep stale sockets in memory, so that tests find them and they close no other test's descriptors."""
    gc.collect()
    gc.disable()
    yield
    for sock in stale_sockets():
        sock.detach()
    gc.enable()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context, and the file with the CA certificate that clients must trust."""
    authority, ca_file = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context, ca_file


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("loop", LOOPS)
def test_call_cancelled_in_any_loop_iteration_leaves_no_socket_and_no_response(
    loop: str, secure: bool, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """
    A remaining response would be taken for the next call's. A remaining socket could close a connection.

    If a call is cancelled in the iteration in which uvloop receives its socket, uvloop closes the descriptor
    but not the socket object. That closes the descriptor again later, when another connection may have it.
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
                # A call takes more iterations if the machine is slow, so soon take larger steps.
                iterations = iterations + 1 if iterations < 40 else iterations * 2

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fault", ["reset before the request", "closed before the request"])
def test_connection_that_the_server_closes_at_once_leaves_no_socket(
    loop: str, fault: str, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """The connection may fail in the iteration in which uvloop receives the socket."""
    context, ca_file = certificate

    async def main() -> None:
        with FaultServer(context) as server:
            server.play(CONNECTIONS[fault])
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
    """Allocating asyncio's default of 256 KiB for each read takes a sixth of a call's CPU time."""
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
def test_lack_of_file_descriptors_is_a_connect_error_until_some_are_closed(loop: str) -> None:
    """Another part of the program may have used all file descriptors."""
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
def test_base_url_with_an_ipv6_address(loop: str) -> None:
    """The address has brackets in the URL and in the Host header, but not for the socket."""

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
    """
    Then the server closes the connection first.

    If the client did, each request would keep one of its ports (28,000 on Linux) in the state TIME_WAIT.
    """
    heads: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readuntil(b"}")
                body = b'{"object":"AccountPatched","account_id":"acc_1"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
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
