"""
A transport over aiohttp's connections, without `ClientSession`.

It takes half the CPU time, but tools that mock or instrument `ClientSession` do not see its requests.
"""

import asyncio
import logging
import ssl
from typing import Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from postpress_async import errors
from postpress_async._http.connections import Connector, check_idle, is_reusable
from postpress_async._http.exchange import RequestTemplate, find_incompatibility, read_head, read_response
from postpress_async._http.failures import FAILURES, failure_of
from postpress_async._http.responses import error_response
from postpress_async._http.session_transport import AiohttpTransport
from postpress_async._http.transport import NO_TIMEOUTS, Request, Response, Transport, headers_for
from postpress_async._timeouts import TimeoutGroup
from postpress_async.secret import Secret

_log = logging.getLogger("postpress_async.transport")


def make_lean_transport(
    base_url: URL,
    api_key: Secret,
    *,
    tls: ssl.SSLContext | None = None,
    connector: aiohttp.BaseConnector | None = None,
    trust_env: bool = False,
) -> Transport:
    """Create a `LeanTransport`; if aiohttp is incompatible, warn and create an `AiohttpTransport`."""
    if (incompatibility := find_incompatibility()) is None:
        return LeanTransport(base_url, api_key, tls=tls, connector=connector)
    _log.warning(
        "aiohttp %s is incompatible with the lean transport (%s): using ClientSession instead",
        aiohttp.__version__,
        incompatibility,
    )
    return AiohttpTransport(base_url, api_key, tls=tls, connector=connector, trust_env=trust_env)


class LeanTransport:
    """
    Sends requests over the connections of an aiohttp connector, which is created on the first request.

    It writes the bytes itself, so `applied` of an error is UNKNOWN only if the request was passed to the
    socket.
    """

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
        self._callers_connector: Final = connector
        self._connector: aiohttp.BaseConnector | None = None
        self._endpoint: _Endpoint
        self._template: RequestTemplate
        self._timeouts: Final = TimeoutGroup()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        """See `Transport.send`."""
        connector = self._connector or self._open()
        if connector.closed:
            raise errors.SessionClosedError("the session's connector is closed: create a new session")
        connection, response, bare_error, sent = None, None, None, False
        limit = self._timeouts.within(timeout)
        try:
            with limit:
                connection = await connector.connect(self._endpoint, [], NO_TIMEOUTS)
                protocol = connection.protocol
                if not is_reusable(protocol):
                    protocol = await check_idle(protocol)
                sent = True
                self._template.write(protocol, request, idempotency_key)
                head, content = await read_head(protocol)
                bare_error = error_response(head.code, head.headers)
                response = await read_response(protocol, head, content)
                return response
        except FAILURES as error:
            if bare_error is not None:
                return bare_error
            failure = failure_of(
                error,
                self._base_url.host_port_subcomponent or "",
                sent=sent,
                closed=self._timeouts.ended,
                timeout=timeout if limit.expired else None,
            )
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 - frames of the traceback hold the API key
        finally:
            if connection is not None:
                connection.release() if response is not None else connection.close()
        # Raised outside the handler, so that aiohttp's exception is not its context.
        try:
            raise failure
        finally:
            del failure  # a frame of the traceback would refer to the exception: a reference cycle

    def _open(self) -> aiohttp.BaseConnector:
        if self._timeouts.ended:
            raise errors.SessionClosedError("the session is closed and cannot be reopened: create a new one")
        self._endpoint = _Endpoint("PATCH", self._base_url, loop=asyncio.get_running_loop())
        self._connector = self._callers_connector or Connector(self._tls)
        host, headers = self._endpoint.headers["Host"], headers_for(self._connector)
        self._template = RequestTemplate.of(self._base_url, host, self._api_key, headers)
        return self._connector

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._timeouts.end()  # also ends requests that are connecting or use the caller's connector
        if self._connector is not None and self._callers_connector is None:
            await self._connector.close()


class _Endpoint(aiohttp.ClientRequest):
    """A request without secrets, from which the connector takes the address."""

    _key: ConnectionKey | None = None

    @property
    def connection_key(self) -> ConnectionKey:
        if self._key is None:
            self._key = super().connection_key
        return self._key
