"""
One request and its answer over a connection of aiohttp's, without its `ClientSession`.

A request is one write, made of parts that are the same for all and of four that are not; an answer is read by
aiohttp's own parser. Both use what aiohttp does not document: `fault` looks whether all of it is as expected.
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

from postpress_async._network import NO_LIMITS, answer_of, check_lengths, is_clean, read_body
from postpress_async._wire import Answer, Request
from postpress_async.secret import Secret


@frozen
class Head:
    """What all requests of a session have before the account id, and after it; the API key is in it."""

    before: bytes = field(repr=False)
    after: bytes = field(repr=False)

    @classmethod
    def of(cls, base_url: URL, host: str, api_key: Secret, headers: Mapping[str, str]) -> "Head":
        """That of the requests to *base_url*, whose server is called *host*, with these *headers* too."""
        before = f"PATCH {(base_url / 'accounts' / '').raw_path}"
        query = f"?{base_url.raw_query_string}" if base_url.raw_query_string else ""
        every = {"Host": host, "X-API-KEY": api_key.reveal(), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in every.items())
        after = f"{query} HTTP/1.1\r\n{lines}Content-Length: "
        return cls(before.encode("ascii"), after.encode("ascii"))

    def write(self, protocol: ResponseHandler, request: Request, idempotency_key: str | None) -> None:
        """Hand *request* to the connection, and see to it that its answer will be parsed."""
        key = b"" if idempotency_key is None else b"\r\nIdempotency-Key: " + idempotency_key.encode("ascii")
        body = request.body
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        assert protocol.transport is not None  # noqa: S101 - it is clean
        protocol.transport.write(
            b"%b%b%b%d%b\r\n\r\n%b"
            % (self.before, request.account_id.encode("ascii"), self.after, len(body), key, body)
        )


async def read_head(protocol: ResponseHandler) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
    """
    The head of the answer, and its body, which is still to be read.

    Raises:
        BaseException: One of `_network.FAILURES`. The connection is out of step.
    """
    while True:
        head, content = await protocol.read()
        if not 100 <= head.code < 200 or head.code == 101:
            return head, content


async def read_answer(
    protocol: ResponseHandler, head: RawResponseMessage, content: aiohttp.StreamReader
) -> Answer:
    """The answer, whole; it raises what `read_head` does."""
    check_lengths(head.headers)
    return answer_of(head.code, head.headers, await read_body(content, protocol, head.code))


# --- Is aiohttp as expected? ---------------------------------------------------------------------


def fault() -> str | None:
    """What of aiohttp is not as it is used here; None where all is. It needs neither loop nor network."""
    try:
        inspect.signature(aiohttp.BaseConnector.connect).bind(None, None, [], NO_LIMITS)
        return _rehearse()
    except Exception as error:  # whatever a version that is not written yet may raise
        return f"{type(error).__name__} in the rehearsal"


def _rehearse() -> str | None:
    """An exchange with nobody: what is wrong with it."""
    nothing: Any = object()  # in place of a loop: where nothing waits, nothing is asked of it
    protocol, wire = ResponseHandler(nothing), _NoWire()
    protocol.connection_made(wire)
    if not is_clean(protocol):
        return "a new connection is not clean"
    Head(b"PATCH /", b" HTTP/1.1\r\nContent-Length: ").write(protocol, Request("a", b"{}"), "i")
    if wire.written != b"PATCH /a HTTP/1.1\r\nContent-Length: 2\r\nIdempotency-Key: i\r\n\r\n{}":
        return "a request is not written"
    protocol.data_received(_ANSWER)
    reading = _read_whole(protocol)
    try:
        reading.send(None)
    except StopIteration as ended:
        if ended.value != Answer(429, b"[]", "1"):
            return "an answer is not read"
    else:
        reading.close()
        return "an answer that is there is waited for"
    if not is_clean(protocol):
        return "a connection serves only once"
    protocol.data_received(_ANSWER)
    return "an answer that nobody asked for goes unnoticed" if is_clean(protocol) else None


async def _read_whole(protocol: ResponseHandler) -> Answer:
    return await read_answer(protocol, *await read_head(protocol))


_ANSWER: Final = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n[]"
)


class _NoWire(asyncio.Transport):
    """Leads nowhere."""

    written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False
