"""The lean transport: its bytes, its pool, and what it does with an incompatible aiohttp."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.client_proto import ResponseHandler

from postpress_async import ManagedProxy, Pace, PostPressSession, RetryPolicy, errors
from postpress_async._http import lean_transport
from postpress_async._http.lean_transport import LeanTransport, find_incompatibility
from postpress_async._http.session_transport import AiohttpTransport
from postpress_async._settings import read_base_url
from postpress_async._version import __version__
from postpress_async.secret import Secret
from tests.support import KEY
from tests.support.fault_server import FAULTS, FaultServer
from tests.support.wire import make_request

US = ManagedProxy(country="US")
POLICY = RetryPolicy(attempts=1)


def lean(url: str, **options: Any) -> PostPressSession:
    return PostPressSession(KEY, base_url=url, transport="lean", **{"retry": POLICY, **options})


# --- What is sent --------------------------------------------------------------------------------


async def test_a_request_is_these_bytes() -> None:
    """All bytes are compared, because no library checks them before they are sent."""
    with FaultServer() as server:
        async with lean(server.url) as session:
            await session.update_proxy("acc_1", US, idempotency_key="i-1")

        [seen] = server.seen
    assert seen.head == (
        f"PATCH /v1/accounts/acc_1 HTTP/1.1\r\nHost: localhost:{server.port}\r\nX-API-KEY: {KEY}\r\n"
        "Accept: application/json\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\n"
        f"User-Agent: postpress-async/{__version__}\r\nContent-Length: 16\r\nIdempotency-Key: i-1"
    ).encode("ascii")
    assert seen.body == b'{"country":"US"}'


async def test_without_idempotency_no_key_is_sent() -> None:
    """Not even an empty one."""
    with FaultServer() as server:
        async with lean(server.url, idempotency=False) as session:
            await session.update_proxy("acc_1", US)

        assert server.seen[0].header("Idempotency-Key") is None


@pytest.mark.parametrize(
    ("base_url", "line", "host"),
    [
        ("https://api.postpress.ai/v1", "PATCH /v1/accounts/acc_1 HTTP/1.1", "api.postpress.ai"),
        ("https://api.postpress.ai", "PATCH /accounts/acc_1 HTTP/1.1", "api.postpress.ai"),
        ("https://h.example:8443/a/b/", "PATCH /a/b/accounts/acc_1 HTTP/1.1", "h.example:8443"),
        ("https://h.example/v1?port=80", "PATCH /v1/accounts/acc_1?port=80 HTTP/1.1", "h.example"),
        ("http://[::1]:8080/v1", "PATCH /v1/accounts/acc_1 HTTP/1.1", "[::1]:8080"),
        ("http://127.0.0.1/v1", "PATCH /v1/accounts/acc_1 HTTP/1.1", "127.0.0.1"),
        ("https://h.example/a%20b", "PATCH /a%20b/accounts/acc_1 HTTP/1.1", "h.example"),
    ],
)
async def test_the_base_url_is_where_it_should_be(base_url: str, line: str, host: str) -> None:
    """Both ways to the API ask for the same thing of the same host."""
    url, wire = read_base_url(base_url), lean_transport.NullTransport()
    protocol = ResponseHandler(asyncio.get_running_loop())
    protocol.connection_made(wire)
    transport = LeanTransport(url, Secret(KEY))
    await transport._open().close()
    transport._template.write(protocol, make_request(), None)
    through_session = AiohttpTransport(url, Secret(KEY))
    opened = through_session._open()

    lines = wire.written.decode().split("\r\n")
    assert lines[0] == line
    assert lines[1] == f"Host: {host}"
    assert opened.headers["Host"] == host
    await through_session.aclose()


async def test_an_address_of_ipv6_is_reached(unused_tcp_port: int, transport: Any) -> None:
    """In brackets in the URL and in the Host, bare for the socket."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = b'{"object": "AccountPatched", "account_id": "acc_1"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(serve, "::1", unused_tcp_port)
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with (
        server,
        PostPressSession(KEY, base_url=f"http://[::1]:{unused_tcp_port}", transport=transport) as session,
    ):
        await session.update_proxy("acc_1", US)

    assert f"\r\nHost: [::1]:{unused_tcp_port}\r\n".encode() in heads[0]


# --- Its connections -----------------------------------------------------------------------------


async def test_a_connection_is_used_again(transport: Any) -> None:
    """A handshake for each call would cost more than the call."""
    with FaultServer() as server:
        async with PostPressSession(KEY, base_url=server.url, transport=transport) as session:
            for number in range(20):
                await session.update_proxy(f"acc_{number}", US)

        assert server.connections == 1


async def test_a_connector_s_own_limit_holds(transport: Any) -> None:
    """A caller who shares a connector among sessions means its numbers."""
    with FaultServer() as server:
        async with (
            aiohttp.TCPConnector(limit=2) as connector,
            PostPressSession(
                KEY, base_url=server.url, connector=connector, pace=Pace(in_flight=50), transport=transport
            ) as session,
        ):
            await asyncio.gather(*(session.update_proxy(f"acc_{number}", US) for number in range(50)))

        assert server.connections == 2


async def test_a_connector_s_own_tls_is_used(transport: Any) -> None:
    """A user passes a connector for a reason, such as a pinned or a client certificate."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(theirs)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with FaultServer(theirs) as server:
        async with (
            aiohttp.TCPConnector(ssl=trusting) as connector,
            PostPressSession(
                KEY, base_url=server.url, connector=connector, retry=POLICY, transport=transport
            ) as session,
        ):
            await session.update_proxy("acc_1", US)
        async with PostPressSession(KEY, base_url=server.url, retry=POLICY, transport=transport) as session:
            with pytest.raises(errors.TlsError):
                await session.update_proxy("acc_2", US)

        assert [seen.account_id for seen in server.seen] == ["acc_1"]


async def test_nothing_is_acquired_after_a_call_however_it_ended(transport: Any) -> None:
    """A connection that is not released is lost to the pool."""
    names = ["silence in the body", "garbage after the body", "closed in a header", "a 101", "endless 1xx"]
    brief = RetryPolicy(attempts=1, attempt_timeout=0.1)
    with FaultServer() as server:
        async with aiohttp.TCPConnector() as connector:
            async with PostPressSession(
                KEY,
                base_url=server.url,
                connector=connector,
                retry=brief,
                pace=Pace(adaptive=False),
                transport=transport,
            ) as session:
                for number, name in enumerate(names):
                    server.script(f"acc_{number}", [FAULTS[name]])
                    with pytest.raises(errors.PostPressError):
                        await session.update_proxy(f"acc_{number}", US)
                assert len(connector._acquired) == 0
                await session.update_proxy("acc_ok", US)

            assert len(connector._acquired) == 0


class Refusing(aiohttp.TCPConnector):
    """Fails with *error* in place of connecting."""

    error: BaseException

    async def connect(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aiohttp.ServerDisconnectedError(), errors.ConnectionLostError),
        (ConnectionResetError(), errors.ConnectionLostError),
        (TimeoutError(), errors.AttemptTimeoutError),
    ],
    ids=lambda failure: failure.__name__ if isinstance(failure, type) else type(failure).__name__,
)
async def test_before_the_write_nothing_was_applied(
    error: BaseException, kind: type[errors.PostPressError]
) -> None:
    """Through ClientSession such an error leaves a doubt; here it is known that nothing was handed over."""
    connector = Refusing()
    connector.error = error
    async with connector:
        async with lean("http://localhost:1/v1", connector=connector) as session:
            with pytest.raises(kind) as caught:
                await session.update_proxy("acc_1", US)

    assert caught.value.applied is errors.Applied.NO


# --- Where aiohttp is another --------------------------------------------------------------------


def test_this_aiohttp_is_as_expected() -> None:
    """Otherwise all sessions would use ClientSession, unnoticed, at twice the CPU time."""
    assert find_incompatibility() is None


def _lacks_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ResponseHandler, "set_response_params")


def _reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: ResponseHandler) -> Any:
        return "a message"

    monkeypatch.setattr(ResponseHandler, "read", read)


def _waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: ResponseHandler) -> Any:
        await asyncio.sleep(0)

    monkeypatch.setattr(ResponseHandler, "read", read)


def _parses_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "data_received", lambda *_: None)


def _connects_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: Any, request: Any) -> Any: ...

    monkeypatch.setattr(aiohttp.BaseConnector, "connect", connect)


def _notices_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "should_close", False)


def _closes_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "should_close", True)


def _closes_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "should_close", property(lambda self: self._payload is not None))


def _writes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_transport.NullTransport, "write", lambda self, data: None)


def _answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_transport, "make_response", lambda status, headers, body: body)


@pytest.mark.parametrize(
    "change",
    [
        _lacks_the_parser,
        _reads_otherwise,
        _waits,
        _parses_no_more,
        _connects_otherwise,
        _notices_nothing,
        _closes_always,
        _closes_after_one,
        _writes_otherwise,
        _answers_otherwise,
    ],
    ids=lambda change: change.__name__.strip("_").replace("_", " "),
)
def test_another_aiohttp_is_noticed(
    change: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Undocumented parts may change: the session then uses ClientSession, and logs one warning."""
    change(monkeypatch)

    with caplog.at_level(logging.WARNING, "postpress_async.transport"):
        session = lean("http://localhost:1/v1")

    assert isinstance(session._context.transport, AiohttpTransport)
    [record] = caplog.records
    assert (record.name, record.levelname) == ("postpress_async.transport", "WARNING")
    assert f"aiohttp {aiohttp.__version__} is incompatible with the lean transport (" in record.getMessage()


def test_nothing_is_logged_with_a_compatible_aiohttp(caplog: pytest.LogCaptureFixture) -> None:
    """A log record per session would be noise."""
    with caplog.at_level(logging.DEBUG):
        session = lean("http://localhost:1/v1")

    assert isinstance(session._context.transport, LeanTransport)
    assert caplog.records == []
