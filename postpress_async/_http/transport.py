"""The interface of a transport, and what both transports send."""

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

NO_LIMITS: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""A transport has its own timer, one for all requests in flight."""


class Transport(Protocol):
    """Sends requests to the API."""

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        """
        Send *request* and return the complete response, within *timeout* seconds.

        An error response is returned without its body if the body cannot be read: its status is enough.

        Raises:
            TransportError: There was no response; `applied` says whether the request may have arrived.
            AnswerError: The body of a success is too large, or the response is not HTTP.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Requests in flight end with `ConnectionLostError`."""
        ...


def headers_over(connector: aiohttp.BaseConnector) -> dict[str, str]:
    """`HEADERS`, with ``Connection: close`` if *connector* never reuses a connection."""
    # The server then closes it. The side that closes first keeps a port in TIME_WAIT, and we have few ports.
    return HEADERS | {"Connection": "close"} if connector.force_close else HEADERS
