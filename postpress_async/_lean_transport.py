"""
Bytes out, bytes back, over aiohttp's connections without its `ClientSession`.

It takes half the CPU, and nothing that mocks `ClientSession` sees it.
"""

import asyncio
import logging
import ssl
from typing import Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from postpress_async import errors
from postpress_async._connector import Connector
from postpress_async._deadlines import Deadlines
from postpress_async._exchange import Head, fault, read_answer, read_head
from postpress_async._network import (
    FAILURES,
    NO_LIMITS,
    Transport,
    failure_of,
    headers_over,
    is_clean,
    refusal_of,
    settle,
)
from postpress_async._transport import AiohttpTransport
from postpress_async._wire import Answer, Request
from postpress_async.secret import Secret

_log = logging.getLogger("postpress_async.transport")


def make_lean(
    base_url: URL,
    api_key: Secret,
    *,
    tls: ssl.SSLContext | None = None,
    connector: aiohttp.BaseConnector | None = None,
) -> Transport:
    """A `LeanTransport`; an `AiohttpTransport`, and a warning, where this aiohttp is not as that needs it."""
    if (found := fault()) is None:
        return LeanTransport(base_url, api_key, tls=tls, connector=connector)
    _log.warning(
        "aiohttp %s is not as the lean transport needs it (%s): going through its ClientSession",
        aiohttp.__version__,
        found,
    )
    return AiohttpTransport(base_url, api_key, tls=tls, connector=connector)


class LeanTransport:
    """
    The API over a connector of aiohttp's, made in the event loop that first sends.

    It writes the bytes itself, and so knows whether it did: an error's `applied` is UNKNOWN if, and only if,
    the request was handed to the socket.
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
        self._given: Final = connector
        self._connector: aiohttp.BaseConnector | None = None
        self._place: _Place
        self._head: Head
        self._deadlines: Final = Deadlines()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Answer:
        """See `Transport.send`."""
        connector = self._connector or self._open()
        if connector.closed:
            raise errors.SessionClosedError("its connector is closed: make a new session")
        connection, answer, refusal, sent = None, None, None, False
        limit = self._deadlines.within(timeout)
        try:
            with limit:
                connection = await connector.connect(self._place, [], NO_LIMITS)
                protocol = connection.protocol
                if not is_clean(protocol):
                    protocol = await settle(protocol)
                sent = True
                self._head.write(protocol, request, idempotency_key)
                head, content = await read_head(protocol)
                refusal = refusal_of(head.code, head.headers)
                answer = await read_answer(protocol, head, content)
                return answer
        except FAILURES as error:
            if refusal is not None:
                return refusal
            failure = failure_of(
                error,
                self._base_url.host_port_subcomponent or "",
                sent=sent,
                closed=self._deadlines.ended,
                timeout=timeout if limit.expired else None,
            )
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 - else on it are frames that have the key
        finally:
            if connection is not None:
                connection.release() if answer is not None else connection.close()
        # Raised outside the handler, so that aiohttp's exception is not on its chain.
        try:
            raise failure
        finally:
            del failure  # an exception that a frame of its own traceback names is a cycle

    def _open(self) -> aiohttp.BaseConnector:
        if self._deadlines.ended:
            raise errors.SessionClosedError("the session is closed and does not reopen: make a new one")
        self._place = _Place("PATCH", self._base_url, loop=asyncio.get_running_loop())
        self._connector = self._given or Connector(self._tls)
        host, headers = self._place.headers["Host"], headers_over(self._connector)
        self._head = Head.of(self._base_url, host, self._api_key, headers)
        return self._connector

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._deadlines.end()  # also of those that still connect, or use a connector of the caller's
        if self._connector is not None and self._given is None:
            await self._connector.close()


class _Place(aiohttp.ClientRequest):
    """Where to connect to: all that a connector asks a request for. It holds no secret."""

    _key: ConnectionKey | None = None

    @property
    def connection_key(self) -> ConnectionKey:
        if self._key is None:
            self._key = super().connection_key
        return self._key
