"""Bytes out, bytes back, by way of aiohttp's `ClientSession`: the transport that people can mock."""

import ssl
from typing import Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from aiohttp.payload import BytesPayload
from yarl import URL

from postpress_async import errors
from postpress_async._deadlines import Deadlines
from postpress_async._network import (
    FAILURES,
    HEADERS,
    NO_LIMITS,
    SpoiltError,
    answer_of,
    failure_of,
    is_clean,
    make_connector,
    read_body,
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
            closed = self._deadlines.ended
            failure = failure_of(
                error,
                sent=body.sent
                if closed or limit.expired
                else not (body.refused or isinstance(error, SpoiltError)),
                closed=closed,
                timeout=timeout if limit.expired else None,
            )
        # Raised outside the handler, so that aiohttp's exception is not on its chain.
        try:
            raise failure
        finally:
            del failure  # an exception that a frame of its own traceback names is a cycle

    async def _exchange(
        self, session: aiohttp.ClientSession, account_id: str, idempotency_key: str | None, body: "_Body"
    ) -> Answer:
        # Here and not in `send`: its frame is on the tracebacks of our errors, which some print with locals.
        headers = {"X-API-KEY": self._api_key.reveal(), **HEADERS}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        url = self._base_url.joinpath("accounts", account_id, encoded=True)
        if self._base_url.query_string:
            url = url.with_query(self._base_url.query)
        async with session.request(
            "PATCH", url, data=body, headers=headers, allow_redirects=False
        ) as response:
            protocol = None if response.connection is None else response.connection.protocol
            try:
                content = await read_body(response.content, protocol, response.status)
            except BaseException:
                response.close()  # not read to its end, so never used again
                raise
            return answer_of(response.status, response.headers, content)

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=self._connector or make_connector(self._tls),
            connector_owner=self._connector is None,
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


class _Request(aiohttp.ClientRequest):
    """A request that is sent over a connection only where nothing came before it."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """The answer to this request, and to no other."""
        if not is_clean(conn.protocol):
            await settle(conn.protocol)
        return await super().send(conn)


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
