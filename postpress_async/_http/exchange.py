"""
Sends a request and reads its response over a connection of aiohttp, without `ClientSession`.

A request is a single write, made from a template; aiohttp's parser reads the response. Both use undocumented
parts of aiohttp, so `find_incompatibility` tests whether they work as expected.
"""

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from attrs import field, frozen
from yarl import URL

from postpress_async._http.connections import is_reusable
from postpress_async._http.responses import check_lengths, make_response, read_body
from postpress_async._http.transport import NO_TIMEOUTS, Request, Response
from postpress_async.secret import Secret


@frozen
class RequestTemplate:
    """The bytes of every request before and after the account id. They contain the API key."""

    before: bytes = field(repr=False)
    after: bytes = field(repr=False)

    @classmethod
    def of(cls, base_url: URL, host: str, api_key: Secret, headers: Mapping[str, str]) -> "RequestTemplate":
        """Create the template for requests to *base_url* with ``Host: host`` and *headers*."""
        before = f"PATCH {(base_url / 'accounts' / '').raw_path}"
        query = f"?{base_url.raw_query_string}" if base_url.raw_query_string else ""
        all_headers = {"Host": host, "X-API-KEY": api_key.reveal(), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
        after = f"{query} HTTP/1.1\r\n{lines}Content-Length: "
        return cls(before.encode("ascii"), after.encode("ascii"))

    def write(self, protocol: ResponseHandler, request: Request, idempotency_key: str | None) -> None:
        """Write *request*, and prepare *protocol* to parse the response."""
        key = b"" if idempotency_key is None else b"\r\nIdempotency-Key: " + idempotency_key.encode("ascii")
        body = request.body
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        assert protocol.transport is not None  # noqa: S101 - it is reusable
        protocol.transport.write(
            b"%b%b%b%d%b\r\n\r\n%b"
            % (self.before, request.account_id.encode("ascii"), self.after, len(body), key, body)
        )


async def read_head(protocol: ResponseHandler) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
    """Read the head of the response, skipping 1xx ones, and return it with the stream of the body."""
    while True:
        head, content = await protocol.read()
        if not 100 <= head.code < 200 or head.code == 101:
            return head, content


async def read_response(
    protocol: ResponseHandler, head: RawResponseMessage, content: aiohttp.StreamReader
) -> Response:
    """Read the body. Returns the complete response; raises the same as `read_head`."""
    check_lengths(head.headers)
    return make_response(head.code, head.headers, await read_body(content, protocol, head.code))


# --- Self-test -----------------------------------------------------------------------------------


def find_incompatibility() -> str | None:
    """Return what does not work with the installed aiohttp, or None. Uses no event loop and no network."""
    try:
        inspect.signature(aiohttp.BaseConnector.connect).bind(None, None, [], NO_TIMEOUTS)
        return self_test()
    except Exception as error:  # a future version of aiohttp may raise anything
        return f"{type(error).__name__} in the self-test"


def self_test() -> str | None:
    """Run one exchange over a `NullTransport`. Returns what went wrong, or None."""
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
    except StopIteration as ended:
        if ended.value != Response(429, b"[]", "1"):
            return "a response is not read"
    else:
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
