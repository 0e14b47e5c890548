"""Reading the body of a response, and the headers of it that matter."""

import asyncio

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError
from multidict import CIMultiDictProxy

from postpress_async._http.codec import MAX_RESPONSE_SIZE, Response


class NotHttpError(ValueError):
    """The rest of the response is not HTTP."""


class TooLargeError(ValueError):
    """The response is larger than `MAX_RESPONSE_SIZE`; *status* is its status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


async def read_body(content: aiohttp.StreamReader, protocol: ResponseHandler | None, status: int) -> bytes:
    """
    Read the whole body.

    Raises:
        TooLargeError: It is larger than `MAX_RESPONSE_SIZE`. The rest is not read, so the connection must not
            be reused.
    """
    if content.is_eof() and content.total_bytes <= MAX_RESPONSE_SIZE:
        return content.read_nowait()
    end_with_connection(content, protocol)
    parts, size = [], 0
    try:
        async for part in content.iter_any():
            size += len(part)
            if size > MAX_RESPONSE_SIZE:
                raise TooLargeError(status)
            parts.append(part)
    except aiohttp.ClientPayloadError as error:
        if _is_parser_error(protocol, error):
            raise NotHttpError from None
        raise
    return b"".join(parts)


def check_lengths(headers: CIMultiDictProxy[str]) -> None:
    """Raise `NotHttpError` if there are several Content-Length headers, of which aiohttp would use one."""
    if len(headers.getall("Content-Length", ())) > 1:
        raise NotHttpError


def end_with_connection(content: aiohttp.StreamReader, protocol: ResponseHandler | None) -> None:
    """
    End the reading of *content* when its connection ends.

    On a malformed chunk, aiohttp closes the connection but does not notify the reader of the body.
    """
    if protocol is None or (closed := protocol.closed) is None:
        return  # the response is complete, or the connection has ended and notified the reader

    def on_closed(closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # retrieved, otherwise asyncio logs that it never was
        if not content.is_eof() and content.exception() is None:
            content.set_exception(NotHttpError())  # a lost connection would have set an exception

    closed.add_done_callback(on_closed)


def _is_parser_error(protocol: ResponseHandler | None, error: aiohttp.ClientPayloadError) -> bool:
    """Whether aiohttp ended the connection because of what it read, and not the other side."""
    if protocol is not None and isinstance(protocol.exception(), HttpProcessingError):
        return True
    cause = error.__cause__
    # If a body ends too early, aiohttp raises PayloadEncodingError.
    return isinstance(cause, HttpProcessingError) and not isinstance(cause, PayloadEncodingError)


def error_response(status: int, headers: CIMultiDictProxy[str]) -> Response | None:
    """
    The response without its body; None for a success, whose body must be read and checked.

    An error response is classified by its status, even if its body cannot be read.
    """
    return make_response(status, headers, b"") if status >= 300 else None


def make_response(status: int, headers: CIMultiDictProxy[str], body: bytes) -> Response:
    """The response, with the headers that say how long to wait."""
    if status == 200:
        return Response(200, body)
    return Response(status, body, _single_value(headers, "Retry-After"), _single_value(headers, "Date"))


def _single_value(headers: CIMultiDictProxy[str], name: str) -> str | None:
    # Of two different values, neither is used: it is unknown which one is meant.
    values = set(headers.getall(name, ()))
    return values.pop() if len(values) == 1 else None
