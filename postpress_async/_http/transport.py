"""The interface of transports, and the headers that all of them send."""

from typing import Final, Protocol

import aiohttp

from postpress_async._http.codec import Request, Response
from postpress_async._version import __version__

HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # no compression, so no decompression bombs
    "Content-Type": "application/json",
    "User-Agent": f"postpress-async/{__version__}",
}

NO_TIMEOUTS: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""No timeouts in aiohttp: a transport has one timer for all requests in flight."""


class Transport(Protocol):
    """Sends requests to the API."""

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        """
        Send *request* and return the complete response, within *timeout* seconds.

        An error response is returned without its body if the body cannot be read: its status is enough.

        Raises:
            TransportError: There was no response; `applied` says whether the change may have been applied.
            AnswerError: The body of a success is too large, or the response is not HTTP.
            SessionClosedError: The transport or its connector is closed.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Requests in flight end with `ConnectionLostError`."""
        ...


def headers_for(connector: aiohttp.BaseConnector) -> dict[str, str]:
    """`HEADERS`, with ``Connection: close`` if *connector* never reuses a connection."""
    # The server then closes first, so TIME_WAIT does not use up the client's ports.
    return HEADERS | {"Connection": "close"} if connector.force_close else HEADERS
