"""
Bytes out, bytes back: the client side's only aiohttp.

Every failure of aiohttp becomes a `TransportError` that says whether the request may have been sent.
None of its exceptions is kept as a cause: most carry the request's headers, and so the key.
"""

import asyncio
import select
import ssl
from typing import Final, Protocol

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError
from aiohttp.payload import BytesPayload
from yarl import URL

from postpress_async import errors
from postpress_async._connector import Connector
from postpress_async._version import __version__
from postpress_async._wire import MAX_ANSWER, Answer, Request
from postpress_async.errors import Applied
from postpress_async.secret import Secret

_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # nothing to unpack is nothing that can explode
    "Content-Type": "application/json",
    "User-Agent": f"postpress-async/{__version__}",
}


_FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""What aiohttp raises; the second is its pure-Python parser's. A `TimeoutError` is an `OSError`."""


class Transport(Protocol):
    """What a session needs to talk to the API."""

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Answer:
        """
        The answer to *request*, whole, within *timeout* seconds.

        Raises:
            TransportError: No answer came; its `applied` tells whether the request may have arrived.
            AnswerError: An answer came that is too large or is not HTTP.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection; what is in flight ends with `ConnectionLostError`."""
        ...


class AiohttpTransport:
    """The API through an `aiohttp.ClientSession`, made in the event loop that first sends."""

    def __init__(
        self,
        base_url: URL,
        api_key: Secret,
        *,
        tls: ssl.SSLContext | None = None,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._tls = tls
        self._connector = connector
        self._session: aiohttp.ClientSession | None = None
        self._limits: set[asyncio.Timeout] = set()
        self._closed = False

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Answer:
        """See `Transport.send`."""
        session = self._session or self._open()
        body = _Body(request.body)
        if session.closed:
            raise errors.SessionClosedError("its connector is closed: make a new session")
        try:
            async with asyncio.timeout(timeout) as limit:
                self._limits.add(limit)
                return await self._exchange(session, request.account_id, idempotency_key, body)
        except _FAILURES as error:
            failure: errors.PostPressError
            if self._closed:
                failure = errors.ConnectionLostError("the session was closed meanwhile")
                maybe_sent = body.sent
            elif limit.expired():
                failure = errors.AttemptTimeoutError(f"no answer in {timeout:.3g} s")
                maybe_sent = body.sent
            else:
                failure = _translated(error)
                maybe_sent = not (body.refused or isinstance(error, _SpoiltError))
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 - else on it is the frame that has the headers
        finally:
            self._limits.discard(limit)
        # Raised outside the handler, so that aiohttp's exception is not on its chain.
        if maybe_sent and isinstance(failure, errors.ConnectionLostError | errors.AttemptTimeoutError):
            failure.applied = Applied.UNKNOWN
        try:
            raise failure
        finally:
            del failure  # an exception that a frame of its own traceback names is a cycle

    async def _exchange(
        self, session: aiohttp.ClientSession, account_id: str, idempotency_key: str | None, body: "_Body"
    ) -> Answer:
        # Here and not in `send`: its frame is on the tracebacks of our errors, which some print with locals.
        headers = {"X-API-KEY": self._api_key.reveal(), **_HEADERS}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        url = self._base_url.joinpath("accounts", account_id, encoded=True)
        if self._base_url.query_string:
            url = url.with_query(self._base_url.query)
        async with session.request(
            "PATCH", url, data=body, headers=headers, allow_redirects=False
        ) as response:
            if len(response.headers.getall("Content-Length", ())) > 1:
                response.close()
                raise _NotHttpError  # which of the two is meant, nobody knows: aiohttp takes one of them
            protocol = None if response.connection is None else response.connection.protocol
            _end_with_its_connection(response)
            parts, size = [], 0
            try:
                async for part in response.content.iter_any():
                    size += len(part)
                    if size > MAX_ANSWER:
                        response.close()  # not read to its end, so never used again
                        raise _TooLargeError(response.status)
                    parts.append(part)
            except aiohttp.ClientPayloadError as error:
                if _was_broken_off(protocol, error):
                    raise _NotHttpError from None
                raise
            waits = response.headers.getall("Retry-After", [])
            # Two different values are no value: which one was meant cannot be known.
            retry_after = waits[0] if len(set(waits)) == 1 else None
            return Answer(response.status, b"".join(parts), retry_after)

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=self._connector or Connector(self._tls),
            connector_owner=self._connector is None,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `send` has the one timer
            request_class=_Request,
        )
        return self._session

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._closed = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(-1.0)  # also of those that still connect, or use a connector of the caller's
        if self._session is not None:
            await self._session.close()


def _end_with_its_connection(response: aiohttp.ClientResponse) -> None:
    """
    See to it that reading *response* ends when its connection does.

    aiohttp closes the connection on a chunk that is none, and forgets to tell whoever reads the body.
    """
    protocol = None if response.connection is None else response.connection.protocol
    if protocol is None or (closed := protocol.closed) is None:
        return  # the answer is whole already, or the connection has ended and has told
    content = response.content

    def told(closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # looked at, or asyncio logs that nobody did
        if not content.is_eof() and content.exception() is None:
            content.set_exception(_NotHttpError())  # a connection that broke would have been told

    closed.add_done_callback(told)


def _was_broken_off(protocol: ResponseHandler | None, error: aiohttp.ClientPayloadError) -> bool:
    """Whether it was aiohttp that ended the connection, over what it read, and not the other side."""
    if protocol is not None and isinstance(protocol.exception(), HttpProcessingError):
        return True
    cause = error.__cause__
    # A body that ends too early is one whose encoding is wrong, for aiohttp.
    return isinstance(cause, HttpProcessingError) and not isinstance(cause, PayloadEncodingError)


class _NotHttpError(ValueError):
    """The rest of the answer is none: the same as if it had come in one piece."""


class _Request(aiohttp.ClientRequest):
    """
    A request that is sent over a connection only where nothing came before it.

    aiohttp takes bytes that waited on an idle connection for the answer to the next request. They are
    nobody's: a late answer to another account's request, or one that was put there.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """The answer to this request, and to no other."""
        protocol = conn.protocol
        if protocol is not None and protocol.is_connected() and _has_news(protocol.transport):
            assert protocol.transport is not None  # noqa: S101 - it is connected
            if protocol.transport.get_extra_info("ssl_object") is None:
                raise _SpoiltError
            # They may be TLS's own. The loop reads them in its next turn, after the tasks that are due in it.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if protocol is None or protocol.should_close or not protocol.is_connected():
            raise _SpoiltError
        return await super().send(conn)


class _SpoiltError(aiohttp.ClientConnectionError):
    """The connection ended, or said something, before the request: not a byte of it was written."""


def _has_news(transport: asyncio.BaseTransport | None) -> bool:
    """Whether bytes or an end have arrived that the event loop has not read yet."""
    place = None if transport is None else transport.get_extra_info("socket")
    if place is None:
        return False
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([place], [], [], 0)[0])
    poll = select.poll()
    poll.register(place, select.POLLIN)
    return bool(poll.poll(0))


class _Body(BytesPayload):
    """
    A body that knows whether it was handed to the socket: from then on the API may have it.

    Attributes:
        sent: It was, or may have been.
        refused: It was not, for certain.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/json")
        self.sent = False
        self.refused = False

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        try:
            await super().write_with_length(writer, content_length)
        except aiohttp.ClientConnectionResetError:
            self.refused = True  # by a connection that was closing already: not a byte left
            raise
        except BaseException:
            self.sent = True
            raise
        self.sent = True


class _TooLargeError(ValueError):
    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


def _translated(error: Exception) -> errors.PostPressError:
    """Ours for one of aiohttp's, with no more of its text than is known to hold no secret."""
    if isinstance(error, _TooLargeError):
        return errors.AnswerError(f"the answer is over {MAX_ANSWER // 1024} KiB", error.status)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return errors.TlsError(f"no secure connection: {_tls_fact(error)}")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError) and not isinstance(error, UnicodeDecodeError):
        return errors.ConnectError("no connection: the host's name cannot be looked up")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return errors.ConnectError("no connection in time")
    if isinstance(error, TimeoutError):
        return errors.AttemptTimeoutError("no answer in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.ConnectError(f"no connection: {error.os_error.strerror or 'the host did not answer'}")
    if isinstance(error, _SpoiltError):
        return errors.ConnectionLostError("the connection had ended, or was out of step, before it was used")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError | ValueError):
        return errors.AnswerError("the answer is not HTTP", None)
    if isinstance(error, aiohttp.ClientPayloadError):
        return errors.ConnectionLostError("the connection broke in the middle of the answer")
    return errors.ConnectionLostError("the connection was lost before an answer came")


def _tls_fact(error: Exception) -> str:
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return getattr(inner, "verify_message", None) or getattr(inner, "reason", None) or type(inner).__name__
