"""What is known about a request that failed, in cases that need a stub."""

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


class Writer:
    """What a body is written to: fails with *error*."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def write(self, chunk: bytes) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "sent", "refused"),
    [
        pytest.param(aiohttp.ClientConnectionResetError(), False, True, id="closing already"),
        pytest.param(BrokenPipeError(), True, False, id="broken meanwhile"),
        pytest.param(asyncio.CancelledError(), True, False, id="given up meanwhile"),
    ],
)
async def test_a_body_knows_whether_it_may_have_left(error: BaseException, sent: bool, refused: bool) -> None:
    """Only a connection that was closing before the first byte is certain to have taken none."""
    body = _Body(b"{}")
    with pytest.raises(type(error)):
        await body.write_with_length(Writer(error), None)  # type: ignore[arg-type] # all it needs of one

    assert (body.sent, body.refused) == (sent, refused)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aiohttp.ConnectionTimeoutError(), errors.ConnectError),
        (aiohttp.SocketTimeoutError(), errors.AttemptTimeoutError),
        (TimeoutError(), errors.AttemptTimeoutError),
        (aiohttp.InvalidURL("http://a..b"), errors.ConnectError),
        (UnicodeError("label empty or too long"), errors.ConnectError),
        (aiohttp.ServerDisconnectedError(), errors.ConnectionLostError),
        (ConnectionResetError(), errors.ConnectionLostError),
    ],
    ids=lambda failure: failure.__name__ if isinstance(failure, type) else type(failure).__name__,
)
def test_a_failure_of_aiohttp_is_one_of_ours(error: Any, kind: type[errors.PostPressError]) -> None:
    """Also those that only a connector of the caller's, with timeouts of its own, lets through."""
    assert type(translate(error, HOST)) is kind


def refused_connection(error: OSError) -> aiohttp.ClientConnectorError:
    request = aiohttp.ClientRequest("PATCH", URL("https://api.example.com"), loop=asyncio.new_event_loop())
    request.loop.close()
    return aiohttp.ClientConnectorError(request.connection_key, error)


@pytest.mark.parametrize(
    ("error", "fact"),
    [
        pytest.param(
            refused_connection(OSError(errno.ECONNREFUSED, "Connect call failed ('203.0.113.1', 443)")),
            "no connection to api.example.com: Connection refused",
            id="refused",
        ),
        pytest.param(
            refused_connection(socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
            "no connection to api.example.com: Name or service not known",
            id="a mistyped host",
        ),
        pytest.param(
            refused_connection(OSError("Multiple exceptions: ...")),
            "no connection to api.example.com: the host did not respond",
            id="several addresses, several reasons",
        ),
        pytest.param(
            aiohttp.ConnectionTimeoutError(),
            "no connection to api.example.com in time",
            id="no connection in time",
        ),
        pytest.param(
            aiohttp.InvalidURL("http://a..b"),
            "no connection to api.example.com: its name cannot be resolved",
            id="a name that is not valid",
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
            id="closed in the body",
        ),
        pytest.param(
            UnusableConnectionError(),
            "the connection to api.example.com was lost before it was used",
            id="lost while idle",
        ),
    ],
)
def test_a_transport_error_names_the_host_and_the_reason(error: Any, fact: str) -> None:
    """Both are what an operator with a mistyped base URL has to see."""
    assert translate(error, HOST).args[0] == fact


@pytest.mark.parametrize(
    ("sent", "fact"),
    [
        (True, "no response from api.example.com within 0.1 s. The change may have been applied."),
        (False, "no connection to api.example.com within 0.1 s"),
    ],
    ids=["sent", "not sent"],
)
def test_a_timeout_says_what_did_not_come(sent: bool, fact: str) -> None:
    """Whether the host cannot be reached or does not answer are different things to look at."""
    assert str(failure_of(TimeoutError(), HOST, sent=sent, closed=False, timeout=0.1)) == fact


@pytest.mark.parametrize("transport", ["session", "lean"])
async def test_the_host_in_a_message_is_the_base_url_s(unused_tcp_port: int, transport: Any) -> None:
    """The message has the port if it is not the scheme's default."""
    url = f"http://localhost:{unused_tcp_port}/v1"
    async with PostPressSession(KEY, base_url=url, transport=transport) as session:
        with pytest.raises(errors.ConnectError, match=f"no connection to localhost:{unused_tcp_port}: Conn"):
            await session.update_proxy("acc_1", US, retry=RetryPolicy(attempts=1))


async def test_the_quickstart_s_port_goes_with_each_request() -> None:
    """``?port=N`` tells its own server from others."""
    with FaultServer() as server:
        async with PostPressSession(KEY, base_url=f"{server.url}?port=8080") as session:
            await session.update_proxy("acc_1", US)

        assert server.seen[0].head.startswith(b"PATCH /v1/accounts/acc_1?port=8080 HTTP/1.1\r\n")


@pytest.mark.parametrize("second", ["51", "9"], ids=["agree", "differ"])
async def test_response_with_two_lengths_is_rejected(
    api: aioresponses, session: PostPressSession, second: str
) -> None:
    """aiohttp's parser in Python uses the first one, and a gateway may use the other."""
    lengths = CIMultiDict([("Content-Length", "51"), ("Content-Length", second)])
    body = {"object": "AccountPatched", "account_id": "acc_1"}
    api.patch("https://api.postpress.ai/v1/accounts/acc_1", payload=body, headers=lengths)

    with pytest.raises(errors.AnswerError, match="not HTTP"):
        await session.update_proxy("acc_1", US)


async def test_a_transport_may_be_closed_while_it_closes() -> None:
    """Two owners, or one who lost patience: what is in flight ends once, as a lost connection."""
    with FaultServer() as server:
        server.play(FAULTS["silence after the request"])
        transport = AiohttpTransport(URL(server.url), Secret(KEY))
        call = asyncio.create_task(transport.send(make_request("acc_1"), None, 5.0))
        while not server.seen:
            await asyncio.sleep(0)
        first = asyncio.create_task(transport.aclose())
        await asyncio.sleep(0)  # it has told the call to end
        await asyncio.sleep(0)  # and the call is ending
        assert transport._timeouts.ended
        await transport.aclose()
        await first

        with pytest.raises(errors.ConnectionLostError, match="session was closed"):
            await call


def test_a_transport_without_a_socket_has_no_news() -> None:
    """A double's, or one of another kind than TCP."""
    assert not has_unread_data(None)
    assert not has_unread_data(asyncio.BaseTransport())


async def test_news_are_heard_where_there_is_no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has `select` alone."""
    monkeypatch.delattr(select, "poll", raising=False)
    with FaultServer() as server:
        async with PostPressSession(KEY, base_url=server.url, retry=RetryPolicy(first_wait=0.001)) as session:
            server.play(FAULTS["an unasked answer while idle"])
            await session.update_proxy("acc_bad", US)
            server.play(None)
            server.push()
            await session.update_proxy("acc_next", US)

        assert server.count()["acc_next"] == 1


@pytest.mark.parametrize("cancelled", [True, False], ids=["nobody waits for it any more", "it ended"])
async def test_a_body_ends_with_its_connection(cancelled: bool) -> None:
    """Reading it would wait for the rest until the attempt times out."""
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    content = aiohttp.StreamReader(SimpleNamespace(), 64, loop=asyncio.get_running_loop())  # type: ignore[arg-type]
    fail_when_closed(content, SimpleNamespace(closed=closed))  # type: ignore[arg-type]

    closed.cancel() if cancelled else closed.set_exception(aiohttp.ClientConnectionError())
    await asyncio.sleep(0)
    with pytest.raises(NotHttpError):
        await content.readany()


async def test_a_body_whose_connection_was_given_back_needs_no_watching() -> None:
    """aiohttp gives it back with the answer's last byte: nothing will end that has not."""
    content = aiohttp.StreamReader(SimpleNamespace(), 64, loop=asyncio.get_running_loop())  # type: ignore[arg-type]

    fail_when_closed(content, None)
    fail_when_closed(content, SimpleNamespace(closed=None))  # type: ignore[arg-type]

    await asyncio.sleep(0)
    assert content.exception() is None


@pytest.mark.parametrize("kind", [AiohttpTransport, LeanTransport])
@pytest.mark.parametrize("used", [True, False], ids=["used before", "never used"])
async def test_closed_transport_does_not_reopen(kind: Any, used: bool) -> None:
    """A connection that is opened after closing would never be closed."""
    with FaultServer() as server:
        transport = kind(read_base_url(server.url), Secret(KEY))
        if used:
            await transport.send(make_request("acc_1"), None, 5.0)
        await transport.aclose()

        with pytest.raises(errors.SessionClosedError):
            await transport.send(make_request("acc_2"), None, 5.0)
        assert server.connections == used


@pytest.mark.parametrize("kind", [AiohttpTransport, LeanTransport])
async def test_a_failure_leaves_no_garbage(kind: Any) -> None:
    """An exception that its own traceback leads back to waits for a collection, with all that it holds."""
    with FaultServer() as server:
        transport = kind(read_base_url(server.url), Secret(KEY))
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
