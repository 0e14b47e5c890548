"""Bytes out, bytes back, by way of aiohttp's `ClientSession`: the transport that people can mock."""

import asyncio
import inspect
import ssl
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from aiohttp.payload import BytesPayload
from yarl import URL

from postpress_async import errors
from postpress_async._connector import Connector
from postpress_async._deadlines import Deadlines
from postpress_async._network import (
    FAILURES,
    NO_LIMITS,
    SpoiltError,
    answer_of,
    check_lengths,
    failure_of,
    headers_over,
    is_clean,
    read_body,
    refusal_of,
    settle,
)
from postpress_async._wire import Answer, Request
from postpress_async.secret import Secret


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
        self._base_url: Final = base_url
        self._path: Final = (base_url / "accounts" / "").raw_path
        self._api_key: Final = api_key
        self._tls: Final = tls
        self._connector: Final = connector
        self._session: aiohttp.ClientSession | None = None
        self._deadlines: Final = Deadlines()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Answer:
        """See `Transport.send`."""
        session = self._session or self._open()
        body = _Body(request.body)
        if session.closed:
            raise errors.SessionClosedError("its connector is closed: make a new session")
        limit = self._deadlines.within(timeout)
        try:
            with limit:
                return await self._exchange(session, request.account_id, idempotency_key, body)
        except FAILURES as error:
            if body.refusal is not None:
                return body.refusal
            closed = self._deadlines.ended
            failure = failure_of(
                error,
                self._base_url.host_port_subcomponent or "",
                sent=body.sent
                if closed or limit.expired
                else not (body.refused or isinstance(error, SpoiltError)),
                closed=closed,
                timeout=timeout if limit.expired else None,
            )
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 - else on it is the frame that has the headers
        # Raised outside the handler, so that aiohttp's exception is not on its chain.
        try:
            raise failure
        finally:
            del failure  # an exception that a frame of its own traceback names is a cycle

    async def _exchange(
        self, session: aiohttp.ClientSession, account_id: str, idempotency_key: str | None, body: "_Body"
    ) -> Answer:
        # Here and not in `send`: its frame is on the tracebacks of our errors, which some print with locals.
        headers = {"X-API-KEY": self._api_key.reveal()}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        url = self._base_url.with_path(f"{self._path}{account_id}", encoded=True, keep_query=True)
        response = await session.request("PATCH", url, data=body, headers=headers, allow_redirects=False)
        body.refusal = refusal_of(response.status, response.headers)
        try:
            check_lengths(response.headers)
            protocol = None if response.connection is None else response.connection.protocol
            content = await read_body(response.content, protocol, response.status)
        except BaseException:
            response.close()  # not read to its end, so never used again
            raise
        if not response.closed:
            response.release()
        return answer_of(response.status, response.headers, content)

    def _open(self) -> aiohttp.ClientSession:
        if self._deadlines.ended:
            raise errors.SessionClosedError("the session is closed and does not reopen: make a new one")
        connector = self._connector or Connector(self._tls)
        self._session = aiohttp.ClientSession(
            connector=connector,
            connector_owner=self._connector is None,
            headers={"Host": self._base_url.host_port_subcomponent or "", **headers_over(connector)},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=NO_LIMITS,
            request_class=_Request,
        )
        return self._session

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._deadlines.end()  # also of those that still connect, or use a connector of the caller's
        if self._session is not None:
            await self._session.close()


_AS_KNOWN: Final = {
    *("self", "method", "url", "writer", "continue100", "timer", "request_info", "traces", "loop"),
    *("session", "stream_writer"),
} == set(inspect.signature(aiohttp.ClientResponse.__init__).parameters)
"""Whether a response is made as `_Request` makes one. It is no part of what aiohttp documents."""


class _Request(aiohttp.ClientRequest):
    """A request that is sent over a connection only where nothing came before it."""

    # These do what aiohttp's own do with such headers and such a body, without looking for what is not there.

    def update_headers(self, headers: Any) -> None:
        """Take the session's headers, which were made for this one request, as they are."""
        self.headers = headers

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """None: all were given."""

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        """Take a `_Body`, and say how long it is."""
        self._body = body
        self.headers["Content-Length"] = str(body.size)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """The answer to this request, and to no other."""
        protocol = conn.protocol
        if not is_clean(protocol):
            protocol = await settle(protocol)
        if not _AS_KNOWN or self._body is None:
            return await super().send(conn)
        # aiohttp writes a body in a task of its own, for it may be long. This one is a single write.
        writer = StreamWriter(protocol, self.loop)
        await writer.write_headers(f"PATCH {self.url.raw_path_qs} HTTP/1.1", self.headers)
        await self._body.write_with_length(writer, None)
        await writer.write_eof()
        assert self._session is not None  # noqa: S101 - it is what made this request
        return aiohttp.ClientResponse(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=[],
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )


class _Body(BytesPayload):
    """
    A body that knows whether it was handed to the socket: from then on the API may have it.

    Attributes:
        sent: It was, or may have been.
        refused: It was not, for certain.
        refusal: What the head of the answer says, if that is enough; see `refusal_of`.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/json")
        self.sent = False
        self.refused = False
        self.refusal: Answer | None = None

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
