"""
Reads responses, and translates aiohttp's exceptions into those of `postpress_async.errors`.

aiohttp's exceptions are never kept as causes: most refer to the request's headers, which contain the API key.
"""

import asyncio
import os
import socket
import ssl
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError
from multidict import CIMultiDictProxy

from postpress_async import errors
from postpress_async._http.codec import MAX_RESPONSE_SIZE
from postpress_async._http.connections import UnusableConnectionError
from postpress_async._http.transport import Response
from postpress_async.errors import Applied


class NotHttpError(ValueError):
    """The response is malformed."""


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
    """Raise `NotHttpError` if there are several Content-Length headers, of which aiohttp would use one."""
    if len(headers.getall("Content-Length", ())) > 1:
        raise NotHttpError


def fail_when_closed(content: aiohttp.StreamReader, protocol: ResponseHandler | None) -> None:
    """
    Make reads of *content* fail when its connection closes.

    On a malformed chunk, aiohttp closes the connection without notifying the reader of the body.
    """
    if protocol is None or (closed := protocol.closed) is None:
        return  # the response is complete, or the connection was lost and aiohttp has notified the reader

    def on_closed(closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # retrieve it, or asyncio logs that it was never retrieved
        if not content.is_eof() and content.exception() is None:
            # If the connection had been lost, aiohttp would have set another exception before.
            content.set_exception(NotHttpError())

    closed.add_done_callback(on_closed)


def _is_parser_error(protocol: ResponseHandler | None, error: aiohttp.ClientPayloadError) -> bool:
    """Whether *error* means that the body is malformed; otherwise it is incomplete."""
    if protocol is not None and isinstance(protocol.exception(), HttpProcessingError):
        return True
    cause = error.__cause__
    # aiohttp raises PayloadEncodingError for an incomplete body only.
    return isinstance(cause, HttpProcessingError) and not isinstance(cause, PayloadEncodingError)


def error_response(status: int, headers: CIMultiDictProxy[str]) -> Response | None:
    """Return an error response without its body; None for a success, whose body must be read and checked."""
    return make_response(status, headers, b"") if status >= 300 else None


def make_response(status: int, headers: CIMultiDictProxy[str], body: bytes) -> Response:
    """Create the response, with the headers Retry-After and Date if it is an error."""
    if status == 200:
        return Response(200, body)
    return Response(status, body, _single_value(headers, "Retry-After"), _single_value(headers, "Date"))


def _single_value(headers: CIMultiDictProxy[str], name: str) -> str | None:
    # If there are several different values, use none, because it is unknown which is right.
    values = set(headers.getall(name, ()))
    return values.pop() if len(values) == 1 else None


# --- Failures ------------------------------------------------------------------------------------

FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""
What aiohttp, its pure-Python parser and this package raise for a failed attempt.

`OSError` includes `TimeoutError`; `ValueError` includes `NotHttpError` and `TooLargeError`.
"""


def failure_of(
    error: Exception, host: str, *, sent: bool, closed: bool, timeout: float | None
) -> errors.PostPressError:
    """
    Translate one of `FAILURES`. Raise the result outside the handler, so that *error* is not its context.

    *sent* tells whether the API may have received the request, and *closed* whether the session was closed
    during the attempt. *timeout* is the attempt's timeout in seconds if it has expired, otherwise None.
    """
    failure: errors.PostPressError
    if closed:
        failure = errors.ConnectionLostError("the session was closed before the response arrived")
    elif timeout is not None:
        missing = f"response from {host}" if sent else f"connection to {host}"
        failure = errors.AttemptTimeoutError(f"no {missing} within {timeout:.3g} s")
    else:
        failure = translate(error, host)
    if not sent and isinstance(failure, errors.ConnectionLostError | errors.AttemptTimeoutError):
        failure.applied = Applied.NO
    return failure


def translate(error: Exception, host: str) -> errors.PostPressError:
    """Translate an exception of aiohttp, copying only text that cannot contain a secret."""
    if isinstance(error, TooLargeError):
        message = f"the response is larger than {MAX_RESPONSE_SIZE // 1024} KiB"
        return errors.AnswerError(message, error.status)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return errors.TlsError(f"no secure connection to {host}: {_tls_reason(error)}")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError) and not isinstance(error, UnicodeDecodeError):
        return errors.ConnectError(f"no connection to {host}: its name cannot be resolved")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return errors.ConnectError(f"no connection to {host} in time")
    if isinstance(error, TimeoutError):
        return errors.AttemptTimeoutError(f"no response from {host} in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = _reason(error.os_error) or "the host did not respond"
        return errors.ConnectError(f"no connection to {host}: {cause}")
    if isinstance(error, UnusableConnectionError):
        return errors.ConnectionLostError(f"the connection to {host} was lost before it was used")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError | ValueError):
        return errors.AnswerError("the response is not HTTP", None)
    if isinstance(error, aiohttp.ClientPayloadError):
        return errors.ConnectionLostError(f"the connection to {host} was lost in the middle of the response")
    message = f"the connection to {host} was lost before a response arrived"
    reason = _reason(error) if isinstance(error, OSError) else None
    return errors.ConnectionLostError(f"{message}: {reason}" if reason else message)


def _reason(error: OSError) -> str | None:
    """Return the system's text for *error*, without the address that asyncio adds to some texts."""
    if isinstance(error, socket.gaierror):  # its errno is not one of the system's error numbers
        return error.strerror
    return None if error.errno is None else os.strerror(error.errno)


def _tls_reason(error: Exception) -> str:
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return getattr(inner, "verify_message", None) or getattr(inner, "reason", None) or type(inner).__name__
