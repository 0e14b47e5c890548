"""
Translates aiohttp's exceptions into errors of this package.

aiohttp's exceptions are never kept as causes: most hold the request's headers, which contain the API key.
"""

import os
import socket
import ssl
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from postpress_async import errors
from postpress_async._http.codec import MAX_RESPONSE_SIZE
from postpress_async._http.connections import UnusableConnectionError
from postpress_async._http.responses import TooLargeError
from postpress_async.errors import Applied

FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""What aiohttp, its pure-Python parser and `_http` raise; includes `TimeoutError`, which is an `OSError`."""


def failure_of(
    error: Exception, host: str, *, sent: bool, closed: bool, timeout: float | None
) -> errors.PostPressError:
    """
    Translate one of `FAILURES`. Raise the result outside the handler, so that *error* is not its context.

    *sent* says whether the API may have received the request, *closed* whether the session was closed
    meanwhile. *timeout* is that of the attempt, if it has expired.
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
    """Translate an exception of aiohttp. Only text that cannot contain a secret is copied."""
    if isinstance(error, TooLargeError):
        fact = f"the response is larger than {MAX_RESPONSE_SIZE // 1024} KiB"
        return errors.AnswerError(fact, error.status)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return errors.TlsError(f"no secure connection to {host}: {_tls_reason(error)}")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError) and not isinstance(error, UnicodeDecodeError):
        return errors.ConnectError(f"no connection to {host}: its name cannot be resolved")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return errors.ConnectError(f"no connection to {host} in time")
    if isinstance(error, TimeoutError):
        return errors.AttemptTimeoutError(f"no response from {host} in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        fact = _reason(error.os_error) or "the host did not answer"
        return errors.ConnectError(f"no connection to {host}: {fact}")
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
    """The system's text for *error*. asyncio adds the address to the text of some errors."""
    if isinstance(error, socket.gaierror):
        return error.strerror
    return None if error.errno is None else os.strerror(error.errno)


def _tls_reason(error: Exception) -> str:
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return getattr(inner, "verify_message", None) or getattr(inner, "reason", None) or type(inner).__name__
