"""
What both ways to the API know of aiohttp: how its connections misbehave, and what its failures mean.

Every failure of aiohttp becomes a `TransportError` that says whether the request may have been sent.
None of its exceptions is kept as a cause: most carry the request's headers, and so the key.
"""

import asyncio
import os
import select
import socket
import ssl
from typing import Final, Protocol, TypeGuard

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError
from multidict import CIMultiDictProxy

from postpress_async import errors
from postpress_async._version import __version__
from postpress_async._wire import MAX_ANSWER, Answer, Request
from postpress_async.errors import Applied

HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # nothing to unpack is nothing that can explode
    "Content-Type": "application/json",
    "User-Agent": f"postpress-async/{__version__}",
}

FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""What aiohttp raises, its pure-Python parser too, and we: a `TimeoutError` is an `OSError`."""

NO_LIMITS: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""A transport has its own timer, one for all that is in flight."""


class Transport(Protocol):
    """What a session needs to talk to the API."""

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Answer:
        """
        The answer to *request*, whole, within *timeout* seconds.

        Raises:
            TransportError: No answer came; its `applied` tells whether the request may have arrived.
            AnswerError: A success came whose body is too large, or an answer that is not HTTP. Another answer
                is returned without its body if that cannot be read: its status says enough.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection; what is in flight ends with `ConnectionLostError`."""
        ...


def headers_over(connector: aiohttp.BaseConnector) -> dict[str, str]:
    """`HEADERS`, and that a connection will not be used again, where the connector never does."""
    # The server then closes it: whoever does so first has a port in TIME_WAIT for each, of which we have few.
    return HEADERS | {"Connection": "close"} if connector.force_close else HEADERS


class NotHttpError(ValueError):
    """The rest of the answer is none: the same as if it had come in one piece."""


class SpoiltError(aiohttp.ClientConnectionError):
    """The connection ended, or said something, before the request: not a byte of it was written."""


class TooLargeError(ValueError):
    """The answer is over `MAX_ANSWER`; *status* is its status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


# --- Connections ---------------------------------------------------------------------------------


def is_clean(protocol: ResponseHandler | None) -> TypeGuard[ResponseHandler]:
    """
    Whether nothing came over a connection before the request that is about to be sent, not even its end.

    aiohttp takes bytes that waited on an idle connection for the answer to the next request. They are
    nobody's: a late answer to another account's request, or one that was put there.
    """
    return (
        protocol is not None
        and (transport := protocol.transport) is not None
        and not transport.is_closing()
        and not protocol.should_close
        and not has_news(transport)
    )


async def settle(protocol: ResponseHandler | None) -> ResponseHandler:
    """
    *protocol*, which was not clean, if the loop finds nothing amiss when it reads what has arrived.

    Over TLS that may be a ticket, which is no part of an answer.

    Raises:
        SpoiltError: Something came, or the connection has ended.
    """
    if protocol is None or (_is_plain(protocol.transport) and has_news(protocol.transport)):
        raise SpoiltError  # half a line would be taken for the beginning of the next answer
    # The loop reads in its next turn, after the tasks that are due in it.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if protocol.should_close or not protocol.is_connected():
        raise SpoiltError
    return protocol


def _is_plain(transport: asyncio.BaseTransport | None) -> bool:
    return transport is not None and transport.get_extra_info("ssl_object") is None


def has_news(transport: asyncio.BaseTransport | None) -> bool:
    """Whether bytes or an end have arrived that the event loop has not read yet."""
    place = None if transport is None else transport.get_extra_info("socket")
    if place is None:
        return False
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([place], [], [], 0)[0])
    poll = select.poll()
    poll.register(place, select.POLLIN)
    return bool(poll.poll(0))


# --- Answers -------------------------------------------------------------------------------------


async def read_body(content: aiohttp.StreamReader, protocol: ResponseHandler | None, status: int) -> bytes:
    """
    The whole body.

    Raises:
        TooLargeError: It is over `MAX_ANSWER`; the rest is not read, and the connection not to be used again.
    """
    if content.is_eof() and content.total_bytes <= MAX_ANSWER:
        return content.read_nowait()
    end_with_its_connection(content, protocol)
    parts, size = [], 0
    try:
        async for part in content.iter_any():
            size += len(part)
            if size > MAX_ANSWER:
                raise TooLargeError(status)
            parts.append(part)
    except aiohttp.ClientPayloadError as error:
        if _was_broken_off(protocol, error):
            raise NotHttpError from None
        raise
    return b"".join(parts)


def check_lengths(headers: CIMultiDictProxy[str]) -> None:
    """Raise `NotHttpError` where there are two: which is meant, nobody knows, and aiohttp takes one."""
    if len(headers.getall("Content-Length", ())) > 1:
        raise NotHttpError


def end_with_its_connection(content: aiohttp.StreamReader, protocol: ResponseHandler | None) -> None:
    """
    See to it that reading *content* ends when its connection does.

    aiohttp closes the connection on a chunk that is none, and forgets to tell whoever reads the body.
    """
    if protocol is None or (closed := protocol.closed) is None:
        return  # the answer is whole already, or the connection has ended and has told

    def told(closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # looked at, or asyncio logs that nobody did
        if not content.is_eof() and content.exception() is None:
            content.set_exception(NotHttpError())  # a connection that broke would have been told

    closed.add_done_callback(told)


def _was_broken_off(protocol: ResponseHandler | None, error: aiohttp.ClientPayloadError) -> bool:
    """Whether it was aiohttp that ended the connection, over what it read, and not the other side."""
    if protocol is not None and isinstance(protocol.exception(), HttpProcessingError):
        return True
    cause = error.__cause__
    # A body that ends too early is one whose encoding is wrong, for aiohttp.
    return isinstance(cause, HttpProcessingError) and not isinstance(cause, PayloadEncodingError)


def refusal_of(status: int, headers: CIMultiDictProxy[str]) -> Answer | None:
    """
    The answer without its body; None for a success, which is not believed before its body has been read.

    An answer that is not a success is classified by its status, whatever happens to its body afterwards.
    """
    return answer_of(status, headers, b"") if status >= 300 else None


def answer_of(status: int, headers: CIMultiDictProxy[str], body: bytes) -> Answer:
    """The response, with the headers that say how long to wait."""
    if status == 200:
        return Answer(200, body)
    return Answer(status, body, _one_of(headers, "Retry-After"), _one_of(headers, "Date"))


def _one_of(headers: CIMultiDictProxy[str], name: str) -> str | None:
    # Two different values are no value: which one was meant cannot be known.
    values = set(headers.getall(name, ()))
    return values.pop() if len(values) == 1 else None


# --- Failures ------------------------------------------------------------------------------------


def failure_of(
    error: Exception, host: str, *, sent: bool, closed: bool, timeout: float | None
) -> errors.PostPressError:
    """
    Ours for one of `FAILURES`; to be raised where that one is not being handled, lest it be on the chain.

    Args:
        error: What came.
        host: Host and port of the base URL, for the message.
        sent: Whether the API may have the request.
        closed: Whether the session was closed before the response was complete.
        timeout: The seconds of the attempt if they are over, else None.
    """
    if closed:
        failure: errors.PostPressError = errors.ConnectionLostError(
            "the session was closed before the response arrived"
        )
    elif timeout is not None:
        missing = f"response from {host}" if sent else f"connection to {host}"
        failure = errors.AttemptTimeoutError(f"no {missing} within {timeout:.3g} s")
    else:
        failure = translated(error, host)
    if sent and isinstance(failure, errors.ConnectionLostError | errors.AttemptTimeoutError):
        failure.applied = Applied.UNKNOWN
    return failure


def translated(error: Exception, host: str) -> errors.PostPressError:
    """Ours for one of aiohttp's, with no more of its text than is known to hold no secret."""
    if isinstance(error, TooLargeError):
        return errors.AnswerError(f"the answer is over {MAX_ANSWER // 1024} KiB", error.status)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return errors.TlsError(f"no secure connection to {host}: {_tls_fact(error)}")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError) and not isinstance(error, UnicodeDecodeError):
        return errors.ConnectError(f"no connection to {host}: its name cannot be looked up")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return errors.ConnectError(f"no connection to {host} in time")
    if isinstance(error, TimeoutError):
        return errors.AttemptTimeoutError(f"no response from {host} in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.ConnectError(
            f"no connection to {host}: {_reason(error.os_error) or 'the host did not answer'}"
        )
    if isinstance(error, SpoiltError):
        return errors.ConnectionLostError(f"the connection to {host} was lost before it was used")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError | ValueError):
        return errors.AnswerError("the answer is not HTTP", None)
    if isinstance(error, aiohttp.ClientPayloadError):
        return errors.ConnectionLostError(f"the connection to {host} was lost in the middle of the response")
    fact = f"the connection to {host} was lost before a response arrived"
    reason = _reason(error) if isinstance(error, OSError) else None
    return errors.ConnectionLostError(f"{fact}: {reason}" if reason else fact)


def _reason(error: OSError) -> str | None:
    """The system's own words for *error*; asyncio puts the address into the text of some."""
    if isinstance(error, socket.gaierror):
        return error.strerror
    return None if error.errno is None else os.strerror(error.errno)


def _tls_fact(error: Exception) -> str:
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return getattr(inner, "verify_message", None) or getattr(inner, "reason", None) or type(inner).__name__
