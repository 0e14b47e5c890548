"""The default transport. It uses aiohttp's `ClientSession`, which tests can mock."""

import asyncio
import ssl
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from aiohttp.payload import BytesPayload
from yarl import URL

from postpress_async import errors
from postpress_async._http import responses
from postpress_async._http.connections import Connector, UnusableConnectionError, check_idle, is_reusable
from postpress_async._http.transport import NO_TIMEOUTS, Request, Response, account_path, headers_for
from postpress_async._timeouts import TimeoutGroup
from postpress_async.secret import Secret


class AiohttpTransport:
    """Sends requests through an `aiohttp.ClientSession`, which is created on the first request."""

    def __init__(
        self,
        base_url: URL,
        api_key: Secret,
        *,
        tls: ssl.SSLContext | None = None,
        connector: aiohttp.BaseConnector | None = None,
        trust_env: bool = False,
    ) -> None:
        self._base_url: Final = base_url
        self._path, _ = account_path(base_url)
        self._api_key: Final = api_key
        self._tls: Final = tls
        self._connector: Final = connector
        self._trust_env: Final = trust_env
        self._session: aiohttp.ClientSession | None = None
        self._timeouts: Final = TimeoutGroup()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        session = self._session or self._open()
        if session.closed:
            raise errors.SessionClosedError("the session's connector is closed: create a new session")
        body = _Body(request.body)
        timer = self._timeouts.within(timeout)
        try:
            with timer:
                return await self._exchange(session, request.account_id, idempotency_key, body)
        except responses.FAILURES as error:
            if body.error_without_body is not None:
                return body.error_without_body
            closed = self._timeouts.ended
            if closed or timer.expired:
                sent = body.sent
            else:
                # Other errors of aiohttp do not tell whether the request was sent, so it may have been.
                sent = not (body.certainly_unsent or isinstance(error, UnusableConnectionError))
            failure = responses.failure_of(
                error,
                self._base_url.host_port_subcomponent or "",
                sent=sent,
                closed=closed,
                timeout=timeout if timer.expired else None,
            )
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 - a frame of the traceback holds the API key
        # Raised outside the handler, so that aiohttp's exception is not its context.
        try:
            raise failure
        finally:
            del failure  # a frame of the traceback would refer to the exception: a reference cycle

    async def _exchange(
        self, session: aiohttp.ClientSession, account_id: str, idempotency_key: str | None, body: "_Body"
    ) -> Response:
        # Not in `send`: its frame is in the tracebacks of errors, whose local variables some tools print.
        headers = {"X-API-KEY": self._api_key.reveal()}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        url = self._base_url.with_path(f"{self._path}{account_id}", encoded=True, keep_query=True)
        response = await session.request("PATCH", url, data=body, headers=headers, allow_redirects=False)
        body.error_without_body = responses.error_response(response.status, response.headers)
        try:
            responses.check_lengths(response.headers)
            protocol = None if response.connection is None else response.connection.protocol
            content = await responses.read_body(response.content, protocol, response.status)
        except BaseException:
            response.close()  # it was not read completely, so the connection must not be reused
            raise
        if not response.closed:
            response.release()
        return responses.make_response(response.status, response.headers, content)

    def _open(self) -> aiohttp.ClientSession:
        if self._timeouts.ended:
            raise errors.SessionClosedError("the session is closed and cannot be reopened: create a new one")
        connector = self._connector or Connector(self._tls)
        self._session = aiohttp.ClientSession(
            connector=connector,
            connector_owner=self._connector is None,
            headers={"Host": self._base_url.host_port_subcomponent or "", **headers_for(connector)},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=self._trust_env,
            timeout=NO_TIMEOUTS,
            request_class=_Request,
        )
        return self._session

    async def aclose(self) -> None:
        self._timeouts.end()  # also ends requests that are connecting or use the caller's connector
        if self._session is not None:
            await self._session.close()


class _Request(aiohttp.ClientRequest):
    """A request that checks its connection before it is sent."""

    # aiohttp's `update_` methods support many kinds of headers and bodies. Replacing them saves 5 us each.

    def update_headers(self, headers: Any) -> None:
        self.headers = headers

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """Do nothing: the session and `_exchange` have set all headers."""

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        self._body = body
        self.headers["Content-Length"] = str(body.size)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if not is_reusable(conn.protocol):
            await check_idle(conn.protocol)
        return await super().send(conn)


class _Body(BytesPayload):
    """The body of a request, which also records how far the attempt got."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/json")
        # Whether the request was, or may have been, passed to the socket. The API may have received it.
        self.sent = False
        self.certainly_unsent = False  # whether the request was certainly not passed to the socket
        # The response without its body, once its head has arrived and shows an error.
        self.error_without_body: Response | None = None

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        try:
            await super().write_with_length(writer, content_length)
        except aiohttp.ClientConnectionResetError:
            self.certainly_unsent = True  # the connection was already closing
            raise
        except BaseException:
            self.sent = True
            raise
        self.sent = True
