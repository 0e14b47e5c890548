"""Failures of both transports: what a failed attempt raises, and how connections and transports close."""

import asyncio
import errno
import gc
import select
import socket
import ssl
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses
from multidict import CIMultiDict
from yarl import URL

from postpress_async import ManagedProxy, PostPressSession, RetryPolicy, errors
from postpress_async._http.connections import UnusableConnectionError, has_unread_data
from postpress_async._http.lean_transport import LeanTransport
from postpress_async._http.responses import NotHttpError, fail_when_closed, failure_of, translate
from postpress_async._http.session_transport import AiohttpTransport, _Body
from postpress_async._settings import read_base_url
from postpress_async.secret import Secret
from tests.support import KEY
from tests.support.fault_server import FAULTS, FaultServer
from tests.support.wire import make_request

US = ManagedProxy(country="US")
HOST = "api.example.com"


class FailingWriter:
    """A stream writer whose writes raise *error*."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def write(self, chunk: bytes) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "sent", "certainly_unsent"),
    [
        pytest.param(aiohttp.ClientConnectionResetError(), False, True, id="connection was closing before"),
        pytest.param(BrokenPipeError(), True, False, id="connection lost during the write"),
        pytest.param(asyncio.CancelledError(), True, False, id="cancelled during the write"),
    ],
)
async def test_body_records_whether_it_may_have_been_sent(
    error: BaseException, sent: bool, certainly_unsent: bool
) -> None:
    body = _Body(b"{}")
    with pytest.raises(type(error)):
        await body.write_with_length(FailingWriter(error), None)  # type: ignore[arg-type] # only `write` is used

    assert (body.sent, body.certainly_unsent) == (sent, certainly_unsent)


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (aiohttp.ConnectionTimeoutError(), errors.ConnectError),
        (aiohttp.SocketTimeoutError(), errors.AttemptTimeoutError),
        (TimeoutError(), errors.AttemptTimeoutError),
        (aiohttp.InvalidURL("http://a..b"), errors.ConnectError),
        (UnicodeError("label empty or too long"), errors.ConnectError),
        (aiohttp.ServerDisconnectedError(), errors.ConnectionLostError),
        (ConnectionResetError(), errors.ConnectionLostError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_exception_of_aiohttp_is_translated(error: Any, error_class: type[errors.PostPressError]) -> None:
    """Some of these can only be raised with the caller's own connector, which may have timeouts."""
    assert type(translate(error, HOST)) is error_class


def connector_error(error: OSError) -> aiohttp.ClientConnectorError:
    """Create the exception that aiohttp raises if *error* prevents opening a connection."""
    request = aiohttp.ClientRequest("PATCH", URL("https://api.example.com"), loop=asyncio.new_event_loop())
    request.loop.close()
    return aiohttp.ClientConnectorError(request.connection_key, error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(
            connector_error(OSError(errno.ECONNREFUSED, "Connect call failed ('203.0.113.1', 443)")),
            "no connection to api.example.com: Connection refused",
            id="refused",
        ),
        pytest.param(
            connector_error(socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
            "no connection to api.example.com: Name or service not known",
            id="unknown host",
        ),
        pytest.param(
            connector_error(OSError("Multiple exceptions: ...")),
            "no connection to api.example.com: the host did not respond",
            id="several addresses that fail for different reasons",
        ),
        pytest.param(
            aiohttp.ConnectionTimeoutError(),
            "no connection to api.example.com in time",
            id="no connection in time",
        ),
        pytest.param(
            aiohttp.InvalidURL("http://a..b"),
            "no connection to api.example.com: its name cannot be resolved",
            id="invalid host name",
        ),
        pytest.param(ssl.SSLError(1, "x"), "no secure connection to api.example.com: SSLError", id="TLS"),
        pytest.param(TimeoutError(), "no response from api.example.com in time", id="no response in time"),
        pytest.param(
            ConnectionResetError(errno.ECONNRESET, "[Errno 104] peer"),
            "the connection to api.example.com was lost before a response arrived: Connection reset by peer",
            id="reset",
        ),
        pytest.param(
            aiohttp.ServerDisconnectedError(),
            "the connection to api.example.com was lost before a response arrived",
            id="closed",
        ),
        pytest.param(
            aiohttp.ClientPayloadError(),
            "the connection to api.example.com was lost in the middle of the response",
            id="closed during the body",
        ),
        pytest.param(
            UnusableConnectionError(),
            "the connection to api.example.com was lost before it was used",
            id="lost while idle",
        ),
    ],
)
def test_transport_error_names_the_host_and_the_reason(error: Any, message: str) -> None:
    """They show an operator that the base URL is mistyped, for example."""
    assert translate(error, HOST).args[0] == message


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (True, "no response from api.example.com within 0.1 s. The change may have been applied."),
        (False, "no connection to api.example.com within 0.1 s"),
    ],
    ids=["sent", "not sent"],
)
def test_timeout_error_distinguishes_a_missing_connection_from_a_missing_response(
    sent: bool, message: str
) -> None:
    assert str(failure_of(TimeoutError(), HOST, sent=sent, closed=False, timeout=0.1)) == message


@pytest.mark.parametrize("transport", ["session", "lean"])
async def test_connect_error_names_a_port_that_is_not_the_default(
    unused_tcp_port: int, transport: Any
) -> None:
    url = f"http://localhost:{unused_tcp_port}/v1"
    async with PostPressSession(KEY, base_url=url, transport=transport) as session:
        with pytest.raises(errors.ConnectError, match=f"no connection to localhost:{unused_tcp_port}: Conn"):
            await session.update_proxy("acc_1", US, retry=RetryPolicy(attempts=1))


async def test_query_of_the_base_url_is_part_of_each_request_s_url() -> None:
    """The API's quickstart uses a base URL with ``?port=N``."""
    with FaultServer() as server:
        async with PostPressSession(KEY, base_url=f"{server.url}?port=8080") as session:
            await session.update_proxy("acc_1", US)

        assert server.seen[0].head.startswith(b"PATCH /v1/accounts/acc_1?port=8080 HTTP/1.1\r\n")


@pytest.mark.parametrize("second_length", ["51", "9"], ids=["equal", "different"])
async def test_response_with_two_content_lengths_is_rejected(
    api: aioresponses, session: PostPressSession, second_length: str
) -> None:
    """aiohttp's pure-Python parser uses the first value, but a gateway may have used the second."""
    lengths = CIMultiDict([("Content-Length", "51"), ("Content-Length", second_length)])
    body = {"object": "AccountPatched", "account_id": "acc_1"}
    api.patch("https://api.postpress.ai/v1/accounts/acc_1", payload=body, headers=lengths)

    with pytest.raises(errors.AnswerError, match="not HTTP"):
        await session.update_proxy("acc_1", US)


async def test_transport_can_be_closed_again_while_it_closes() -> None:
    """The request in flight ends with a single `ConnectionLostError`."""
    with FaultServer() as server:
        server.play(FAULTS["silence after the request"])
        transport = AiohttpTransport(URL(server.url), Secret(KEY))
        call = asyncio.create_task(transport.send(make_request("acc_1"), None, 5.0))
        while not server.seen:
            await asyncio.sleep(0)
        closing = asyncio.create_task(transport.aclose())
        await asyncio.sleep(0)  # `closing` cancels the request
        await asyncio.sleep(0)  # the request handles the cancellation
        assert transport._timeouts.ended
        await transport.aclose()
        await closing

        with pytest.raises(errors.ConnectionLostError, match="session was closed"):
            await call


def test_asyncio_transport_without_a_socket_has_no_unread_data() -> None:
    """Test doubles and mocks have no socket."""
    assert not has_unread_data(None)
    assert not has_unread_data(asyncio.BaseTransport())


async def test_unread_data_is_detected_on_a_system_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows only has `select`."""
    monkeypatch.delattr(select, "poll", raising=False)
    with FaultServer() as server:
        async with PostPressSession(KEY, base_url=server.url, retry=RetryPolicy(first_wait=0.001)) as session:
            server.play(FAULTS["an unsolicited response while idle"])
            await session.update_proxy("acc_bad", US)
            server.play(None)
            server.push()
            await session.update_proxy("acc_next", US)

        assert server.count()["acc_next"] == 1


@pytest.mark.parametrize("cancelled", [True, False], ids=["future cancelled", "connection lost"])
async def test_reading_a_body_fails_when_the_connection_closes(cancelled: bool) -> None:
    """Otherwise reading would wait for the rest of the body until the attempt times out."""
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    content = aiohttp.StreamReader(SimpleNamespace(), 64, loop=asyncio.get_running_loop())  # type: ignore[arg-type]
    fail_when_closed(content, SimpleNamespace(closed=closed))  # type: ignore[arg-type]

    if cancelled:
        closed.cancel()
    else:
        closed.set_exception(aiohttp.ClientConnectionError())
    await asyncio.sleep(0)
    with pytest.raises(NotHttpError):
        await content.readany()


async def test_complete_body_does_not_fail_when_its_connection_closes() -> None:
    """After the last byte, aiohttp has returned the connection to the pool, so the body has none."""
    content = aiohttp.StreamReader(SimpleNamespace(), 64, loop=asyncio.get_running_loop())  # type: ignore[arg-type]

    fail_when_closed(content, None)
    fail_when_closed(content, SimpleNamespace(closed=None))  # type: ignore[arg-type]

    await asyncio.sleep(0)
    assert content.exception() is None


@pytest.mark.parametrize("transport_class", [AiohttpTransport, LeanTransport])
@pytest.mark.parametrize("used", [True, False], ids=["used before", "never used"])
async def test_closed_transport_does_not_reopen(transport_class: Any, used: bool) -> None:
    """A connection that is opened after closing would never be closed."""
    with FaultServer() as server:
        transport = transport_class(read_base_url(server.url), Secret(KEY))
        if used:
            await transport.send(make_request("acc_1"), None, 5.0)
        await transport.aclose()

        with pytest.raises(errors.SessionClosedError):
            await transport.send(make_request("acc_2"), None, 5.0)
        assert server.connections == used


@pytest.mark.parametrize("transport_class", [AiohttpTransport, LeanTransport])
async def test_failure_is_not_part_of_a_reference_cycle(transport_class: Any) -> None:
    """Otherwise the error, and all that its traceback refers to, would stay in memory until a collection."""
    with FaultServer() as server:
        transport = transport_class(read_base_url(server.url), Secret(KEY))
        await transport.send(make_request("acc_0"), None, 5.0)
        server.play(FAULTS["silence after the request"])
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                task = asyncio.create_task(transport.send(make_request("acc_1"), None, 0.01))
                await asyncio.wait([task])
                assert isinstance(task.exception(), errors.AttemptTimeoutError)
                del task
            await asyncio.sleep(0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = [item for item in gc.garbage if isinstance(item, errors.PostPressError)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        await transport.aclose()

    assert found == []
