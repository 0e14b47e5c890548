"""
A transport over aiohttp's connections, without `ClientSession`.

It takes half the CPU time, but tools that mock or instrument `ClientSession` do not see its requests. Each
request is formatted from a template and written at once; aiohttp's parser reads the response. Because this
uses undocumented parts of aiohttp, `find_incompatibility` first tests whether they work as expected.
"""

import asyncio
import inspect
import logging
import ssl
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from attrs import field, frozen
from yarl import URL

from postpress_async import errors
from postpress_async._http import responses
from postpress_async._http.connections import Connector, check_idle, is_reusable
from postpress_async._http.session_transport import AiohttpTransport
from postpress_async._http.transport import (
    NO_TIMEOUTS,
    Request,
    Response,
    Transport,
    account_path,
    headers_for,
)
from postpress_async._timeouts import TimeoutGroup
from postpress_async.secret import Secret

_log = logging.getLogger("postpress_async.transport")


def make_lean_transport(
    base_url: URL,
    api_key: Secret,
    *,
    tls: ssl.SSLContext | None = None,
    connector: aiohttp.BaseConnector | None = None,
    trust_env: bool = False,
) -> Transport:
    """Create a `LeanTransport`; if aiohttp is incompatible, warn and create an `AiohttpTransport`."""
    if (incompatibility := find_incompatibility()) is None:
        return LeanTransport(base_url, api_key, tls=tls, connector=connector)
    _log.warning(
        "aiohttp %s is incompatible with the lean transport (%s): using ClientSession instead",
        aiohttp.__version__,
        incompatibility,
    )
    return AiohttpTransport(base_url, api_key, tls=tls, connector=connector, trust_env=trust_env)


class LeanTransport:
    """Sends requests over the connections of an aiohttp connector, which is created on the first request."""

    _endpoint: aiohttp.ClientRequest  # has no secrets; the connector takes the address from it
    _template: "RequestTemplate"

    def __init__(
        self,
        base_url: URL,
        api_key: Secret,
        *,
        tls: ssl.SSLContext | None = None,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        self._base_url: Final = base_url
        self._api_key: Final = api_key
        self._tls: Final = tls
        self._callers_connector: Final = connector
        self._connector: aiohttp.BaseConnector | None = None
        self._timeouts: Final = TimeoutGroup()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        connector = self._connector or self._open()
        if connector.closed:
            raise errors.SessionClosedError("the session's connector is closed: create a new session")
        connection, response, error_without_body, sent = None, None, None, False
        timer = self._timeouts.within(timeout)
        try:
            with timer:
                connection = await connector.connect(self._endpoint, [], NO_TIMEOUTS)
                protocol = connection.protocol
                if not is_reusable(protocol):
                    protocol = await check_idle(protocol)
                sent = True  # from here on, an error's `applied` may be UNKNOWN
                self._template.write(protocol, request, idempotency_key)
                head, content = await read_head(protocol)
                error_without_body = responses.error_response(head.code, head.headers)
                response = await read_response(protocol, head, content)
                return response
        except responses.FAILURES as error:
            if error_without_body is not None:
                return error_without_body
            failure = responses.failure_of(
                error,
                self._base_url.host_port_subcomponent or "",
                sent=sent,
                closed=self._timeouts.ended,
                timeout=timeout if timer.expired else None,
            )
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 - frames of the traceback hold the API key
        finally:
            if connection is not None:
                if response is None:
                    connection.close()
                else:
                    connection.release()
        # Raised outside the handler, so that aiohttp's exception is not its context.
        try:
            raise failure
        finally:
            del failure  # a frame of the traceback would refer to the exception: a reference cycle

    def _open(self) -> aiohttp.BaseConnector:
        if self._timeouts.ended:
            raise errors.SessionClosedError("the session is closed and cannot be reopened: create a new one")
        self._endpoint = aiohttp.ClientRequest("PATCH", self._base_url, loop=asyncio.get_running_loop())
        self._connector = self._callers_connector or Connector(self._tls)
        headers = {"Host": self._endpoint.headers["Host"], "X-API-KEY": self._api_key.reveal()}
        self._template = RequestTemplate.of(self._base_url, headers | headers_for(self._connector))
        return self._connector

    async def aclose(self) -> None:
        self._timeouts.end()  # also ends requests that are connecting or use the caller's connector
        if self._connector is not None and self._callers_connector is None:
            await self._connector.close()


@frozen
class RequestTemplate:
    """The bytes of every request before and after the account id, including the API key."""

    before: bytes = field(repr=False)
    after: bytes = field(repr=False)

    @classmethod
    def of(cls, base_url: URL, headers: Mapping[str, str]) -> "RequestTemplate":
        path, query = account_path(base_url)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        after = f"{query} HTTP/1.1\r\n{lines}Content-Length: "
        return cls(f"PATCH {path}".encode("ascii"), after.encode("ascii"))

    def write(self, protocol: ResponseHandler, request: Request, idempotency_key: str | None) -> None:
        """Write *request*, and prepare *protocol* to parse the response."""
        account_id, body, key_header = request.account_id.encode("ascii"), request.body, b""
        if idempotency_key is not None:
            key_header = b"\r\nIdempotency-Key: " + idempotency_key.encode("ascii")
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        assert protocol.transport is not None  # noqa: S101 - the connection is open
        protocol.transport.write(
            b"%b%b%b%d%b\r\n\r\n%b" % (self.before, account_id, self.after, len(body), key_header, body)
        )


async def read_head(protocol: ResponseHandler) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
    """Read the head of the response, skipping 1xx responses, and return it with the stream of the body."""
    while True:
        head, content = await protocol.read()
        if not 100 <= head.code < 200 or head.code == 101:  # no response follows a 101 (Switching Protocols)
            return head, content


async def read_response(
    protocol: ResponseHandler, head: RawResponseMessage, content: aiohttp.StreamReader
) -> Response:
    responses.check_lengths(head.headers)
    body = await responses.read_body(content, protocol, head.code)
    return responses.make_response(head.code, head.headers, body)


# --- Self-test -----------------------------------------------------------------------------------


def find_incompatibility() -> str | None:
    """Return what does not work with the installed aiohttp, or None. Uses no event loop and no network."""
    try:
        inspect.signature(aiohttp.BaseConnector.connect).bind(None, None, [], NO_TIMEOUTS)
        return run_self_test()
    except Exception as error:  # a future version of aiohttp may raise anything
        return f"{type(error).__name__} in the self-test"


def run_self_test() -> str | None:
    """Write a request to a `NullTransport` and read a response. Returns what went wrong, or None."""
    no_loop: Any = object()  # nothing waits, so the loop is not used
    protocol, transport = ResponseHandler(no_loop), NullTransport()
    protocol.connection_made(transport)
    if not is_reusable(protocol):
        return "a new connection is not usable"
    template = RequestTemplate(b"PATCH /", b" HTTP/1.1\r\nContent-Length: ")
    template.write(protocol, Request("a", "", b"{}", Secret("k")), "i")
    if transport.written != b"PATCH /a HTTP/1.1\r\nContent-Length: 2\r\nIdempotency-Key: i\r\n\r\n{}":
        return "a request is not written"
    protocol.data_received(_TEST_RESPONSE)
    reading = _read_all(protocol)
    try:
        reading.send(None)
    except StopIteration as returned:
        if returned.value != Response(429, b"[]", "1"):
            return "a response is not read"
    else:  # it waits for more data
        reading.close()
        return "a complete response is not recognized"
    if not is_reusable(protocol):
        return "a connection cannot be reused"
    protocol.data_received(_TEST_RESPONSE)
    return "an unexpected response is not detected" if is_reusable(protocol) else None


async def _read_all(protocol: ResponseHandler) -> Response:
    return await read_response(protocol, *await read_head(protocol))


_TEST_RESPONSE: Final = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n[]"
)


class NullTransport(asyncio.Transport):
    """Stores what is written instead of sending it."""

    written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False
