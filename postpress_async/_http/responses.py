"""Reads the body of a response and the headers that the package uses."""

import asyncio

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError
from multidict import CIMultiDictProxy

from postpress_async._http.codec import MAX_RESPONSE_SIZE
from postpress_async._http.transport import Response


class NotHttpError(ValueError):
    """The rest of the response is not HTTP."""


class TooLargeError(ValueError):
    """The response is larger than `MAX_RESPONSE_SIZE`; *status* is its HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


async def read_body(content: aiohttp.StreamReader, protocol: ResponseHandler | None, status: int) -> bytes:
    """Read the whole body; raise `TooLargeError`, or `NotHttpError` if it is malformed."""
    if content.is_eof() and content.total_bytes <= MAX_RESPONSE_SIZE:
        return content.read_nowait()
    fail_when_closed(content, protocol)
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
    """Raise `NotHttpError` if there is more than one Content-Length header; aiohttp would use one of them."""
    if len(headers.getall("Content-Length", ())) > 1:
        raise NotHttpError


def fail_when_closed(content: aiohttp.StreamReader, protocol: ResponseHandler | None) -> None:
    """
    Make reads of *content* fail when its connection closes.

    On a malformed chunk, aiohttp closes the connection without notifying the reader of the body.
    """
    if protocol is None or (closed := protocol.closed) is None:
        return  # the response is complete, or the connection has closed and notified the reader

    def on_closed(closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # retrieve it, or asyncio logs that it was never retrieved
        if not content.is_eof() and content.exception() is None:
            content.set_exception(NotHttpError())  # a lost connection would have set an exception

    closed.add_done_callback(on_closed)


def _is_parser_error(protocol: ResponseHandler | None, error: aiohttp.ClientPayloadError) -> bool:
    """Whether aiohttp closed the connection because it read malformed data."""
    if protocol is not None and isinstance(protocol.exception(), HttpProcessingError):
        return True
    cause = error.__cause__
    # PayloadEncodingError means that the body is incomplete, not malformed.
    return isinstance(cause, HttpProcessingError) and not isinstance(cause, PayloadEncodingError)


def error_response(status: int, headers: CIMultiDictProxy[str]) -> Response | None:
    """Return an error response without its body; None for a success, whose body must be read and checked."""
    return make_response(status, headers, b"") if status >= 300 else None


def make_response(status: int, headers: CIMultiDictProxy[str], body: bytes) -> Response:
    """Create the response; unless it is a 200, with Retry-After and the Date that it may refer to."""
    if status == 200:
        return Response(200, body)
    return Response(status, body, _single_value(headers, "Retry-After"), _single_value(headers, "Date"))


def _single_value(headers: CIMultiDictProxy[str], name: str) -> str | None:
    # If two values differ, it is unknown which one is right, so use neither.
    values = set(headers.getall(name, ()))
    return values.pop() if len(values) == 1 else None
