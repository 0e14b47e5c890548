"""The interface of transports."""

from typing import Final, Protocol, runtime_checkable

import aiohttp
from attrs import define, field
from yarl import URL

from postpress_async._version import __version__
from postpress_async.secret import Secret

HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # no compression, so no decompression bombs
    "Content-Type": "application/json",
    "User-Agent": f"postpress-async/{__version__}",
}

NO_TIMEOUTS: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""No timeouts in aiohttp, because a transport has one timer for all requests in flight."""


@define
class Request:
    """
    The PATCH request of one call, the same for all attempts.

    Attributes:
        account_id: The account to change.
        url: The URL of the account.
        body: The change as JSON, with the proxy's password.
        api_key: The API key.
        password: The proxy's password; None if it has none.
    """

    account_id: str
    url: str
    body: bytes = field(repr=False)
    api_key: Secret
    password: Secret | None = None

    def headers(self, idempotency_key: str | None) -> dict[str, str]:
        """The headers, with the API key in plain text, and without ``Host`` and ``Content-Length``."""
        headers = HEADERS | {"X-API-KEY": self.api_key.reveal()}
        return headers if idempotency_key is None else headers | {"Idempotency-Key": idempotency_key}


@define
class Response:
    """
    A complete response.

    Attributes:
        status: The HTTP status.
        body: The body, not compressed.
        retry_after: The header ``Retry-After``; None without one.
        date: The header ``Date``, the server's time if *retry_after* is a date; None without one.
    """

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None = field(default=None, repr=False)
    date: str | None = field(default=None, repr=False)


@runtime_checkable
class Transport(Protocol):
    """
    Sends requests. Implement it to use an HTTP client other than aiohttp, or to fake the API in tests.

    Pass an object with these methods as ``PostPressSession(transport=...)``. The session retries, decodes
    responses and closes the transport. It does not enforce the timeout of `send`. An exception that is not
    listed there ends the call, and its caller receives it.
    """

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        """
        Send *request* and return the complete response within *timeout* seconds. Follow no redirect.

        If the body of an error response cannot be read, return the response with an empty body: its status is
        enough.

        Raises:
            ConnectError: No connection could be opened, so nothing was sent.
            AttemptTimeoutError: No response arrived in time. Set the error's `applied` to NO if nothing was
                sent.
            ConnectionLostError: The connection was lost before the response was complete. Set the error's
                `applied` to NO if nothing was sent.
            AnswerError: The body of a success is too large, or the response is not HTTP.
            SessionClosedError: The transport is closed.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Requests in flight raise `ConnectionLostError`."""
        ...


def account_path(base_url: URL) -> tuple[str, str]:
    """Return the parts of an account's URL before and after the account id: the path and the query."""
    query = base_url.raw_query_string
    return (base_url / "accounts" / "").raw_path, query and f"?{query}"


def headers_for(connector: aiohttp.BaseConnector) -> dict[str, str]:
    """`HEADERS`, with ``Connection: close`` if *connector* never reuses a connection."""
    # With that header, the server closes the connection first. Otherwise closed connections would stay in the
    # state TIME_WAIT on the client, and use up its ports.
    return HEADERS | {"Connection": "close"} if connector.force_close else HEADERS
