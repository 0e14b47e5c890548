"""The lean transport: its requests, its connections, and its fallback if aiohttp is incompatible."""

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
from postpress_async._http import lean_transport, responses
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


# --- Requests ------------------------------------------------------------------------------------


async def test_bytes_of_a_request() -> None:
    """The transport writes the request itself, so no library ensures that it is valid."""
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


async def test_no_idempotency_key_header_is_sent_with_idempotency_off() -> None:
    with FaultServer() as server:
        async with lean(server.url, idempotency=False) as session:
            await session.update_proxy("acc_1", US)

        assert server.seen[0].header("Idempotency-Key") is None


@pytest.mark.parametrize(
    ("base_url", "request_line", "host"),
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
async def test_request_line_and_host_are_those_of_the_base_url(
    base_url: str, request_line: str, host: str
) -> None:
    """Both transports send the same Host header."""
    url, null_transport = read_base_url(base_url), lean_transport.NullTransport()
    protocol = ResponseHandler(asyncio.get_running_loop())
    protocol.connection_made(null_transport)
    transport = LeanTransport(url, Secret(KEY))
    await transport._open().close()
    transport._template.write(protocol, make_request(), None)
    session_transport = AiohttpTransport(url, Secret(KEY))
    client_session = session_transport._open()

    lines = null_transport.written.decode().split("\r\n")
    assert lines[0] == request_line
    assert lines[1] == f"Host: {host}"
    assert client_session.headers["Host"] == host
    await session_transport.aclose()


async def test_host_header_with_an_ipv6_address(unused_tcp_port: int, transport: Any) -> None:
    """The address has brackets in the URL and in the Host header, but not for the socket."""
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


# --- Connections ---------------------------------------------------------------------------------


async def test_connection_is_reused(transport: Any) -> None:
    """Opening a connection takes longer than a call."""
    with FaultServer() as server:
        async with PostPressSession(KEY, base_url=server.url, transport=transport) as session:
            for number in range(20):
                await session.update_proxy(f"acc_{number}", US)

        assert server.connections == 1


async def test_connection_limit_of_the_caller_s_connector_holds(transport: Any) -> None:
    with FaultServer() as server:
        async with (
            aiohttp.TCPConnector(limit=2) as connector,
            PostPressSession(
                KEY, base_url=server.url, connector=connector, pace=Pace(in_flight=50), transport=transport
            ) as session,
        ):
            await asyncio.gather(*(session.update_proxy(f"acc_{number}", US) for number in range(50)))

        assert server.connections == 2


async def test_tls_context_of_the_caller_s_connector_is_used(transport: Any) -> None:
    """Callers pass a connector to trust a private CA, for example."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    with FaultServer(server_context) as server:
        async with (
            aiohttp.TCPConnector(ssl=client_context) as connector,
            PostPressSession(
                KEY, base_url=server.url, connector=connector, retry=POLICY, transport=transport
            ) as session,
        ):
            await session.update_proxy("acc_1", US)
        async with PostPressSession(KEY, base_url=server.url, retry=POLICY, transport=transport) as session:
            with pytest.raises(errors.TlsError):
                await session.update_proxy("acc_2", US)

        assert [seen.account_id for seen in server.seen] == ["acc_1"]


async def test_connection_is_released_after_every_kind_of_failure(transport: Any) -> None:
    """A connection that is not released counts against the connector's limit forever."""
    faults = [
        "silence during the body",
        "garbage after the body",
        "closed during a header",
        "a 101",
        "endless 1xx",
    ]
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
                for number, fault in enumerate(faults):
                    server.script(f"acc_{number}", [FAULTS[fault]])
                    with pytest.raises(errors.PostPressError):
                        await session.update_proxy(f"acc_{number}", US)
                assert len(connector._acquired) == 0
                await session.update_proxy("acc_ok", US)

            assert len(connector._acquired) == 0


class FailingConnector(aiohttp.TCPConnector):
    """A connector that raises *error* instead of connecting."""

    error: BaseException

    async def connect(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (aiohttp.ServerDisconnectedError(), errors.ConnectionLostError),
        (ConnectionResetError(), errors.ConnectionLostError),
        (TimeoutError(), errors.AttemptTimeoutError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
async def test_change_is_not_applied_if_the_attempt_fails_before_the_request_is_written(
    error: BaseException, error_class: type[errors.PostPressError]
) -> None:
    """With `ClientSession`, the outcome would be unknown, because it does not report how far it got."""
    connector = FailingConnector()
    connector.error = error
    async with connector:
        async with lean("http://localhost:1/v1", connector=connector) as session:
            with pytest.raises(error_class) as caught:
                await session.update_proxy("acc_1", US)

    assert caught.value.applied is errors.Applied.NO


# --- Incompatible versions of aiohttp ------------------------------------------------------------


def test_installed_aiohttp_is_compatible() -> None:
    """Otherwise the tests of the lean transport would test the fallback."""
    assert find_incompatibility() is None


def _method_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ResponseHandler, "set_response_params")


def _read_returns_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: ResponseHandler) -> Any:
        return "a message"

    monkeypatch.setattr(ResponseHandler, "read", read)


def _read_waits_for_more_data(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: ResponseHandler) -> Any:
        await asyncio.sleep(0)

    monkeypatch.setattr(ResponseHandler, "read", read)


def _received_data_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "data_received", lambda *_: None)


def _connect_has_other_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: Any, request: Any) -> Any: ...

    monkeypatch.setattr(aiohttp.BaseConnector, "connect", connect)


def _unexpected_response_is_not_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "should_close", False)


def _new_connection_is_not_reusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "should_close", True)


def _used_connection_is_not_reusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseHandler, "should_close", property(lambda self: self._payload is not None))


def _request_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_transport.NullTransport, "write", lambda self, data: None)


def _response_has_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "make_response", lambda status, headers, body: body)


@pytest.mark.parametrize(
    "change_aiohttp",
    [
        _method_is_missing,
        _read_returns_another_type,
        _read_waits_for_more_data,
        _received_data_is_not_parsed,
        _connect_has_other_parameters,
        _unexpected_response_is_not_detected,
        _new_connection_is_not_reusable,
        _used_connection_is_not_reusable,
        _request_is_not_written,
        _response_has_another_type,
    ],
    ids=lambda function: function.__name__.strip("_").replace("_", " "),
)
def test_client_session_is_used_if_aiohttp_is_incompatible(
    change_aiohttp: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning is logged. A new version of aiohttp may change its undocumented parts without notice."""
    change_aiohttp(monkeypatch)

    with caplog.at_level(logging.WARNING, "postpress_async.transport"):
        session = lean("http://localhost:1/v1")

    assert isinstance(session._context.transport, AiohttpTransport)
    [record] = caplog.records
    assert (record.name, record.levelname) == ("postpress_async.transport", "WARNING")
    assert f"aiohttp {aiohttp.__version__} is incompatible with the lean transport (" in record.getMessage()


def test_nothing_is_logged_if_aiohttp_is_compatible(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        session = lean("http://localhost:1/v1")

    assert isinstance(session._context.transport, LeanTransport)
    assert caplog.records == []
