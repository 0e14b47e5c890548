"""The sandbox: a server with a fixed API key, and sessions that are connected to it."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Final, Self

from postpress_async.sandbox._faults import Fault, Faults, Profile
from postpress_async.sandbox._record import Record
from postpress_async.sandbox._server import Outage, Server
from postpress_async.session import PostPressSession

API_KEY: Final = "pp_test_sandbox"  # the real API does not accept it


def own_accounts(count: int = 1_000) -> list[str]:
    """The account ids of a sandbox fleet: the first *count* of ``acc_sandbox_000001`` and so on."""
    return [f"acc_sandbox_{number:06}" for number in range(1, count + 1)]


class ServerAccess:
    """The methods of `Sandbox` that `SandboxThread` also has, because they do not wait."""

    def __init__(self, server: Server) -> None:
        self._server: Final = server

    @property
    def url(self) -> str:
        """The base URL; raises RuntimeError before the sandbox is started."""
        return self._server.url

    @property
    def api_key(self) -> str:
        """The API key that the sandbox accepts."""
        return self._server.api_key

    @property
    def record(self) -> Record:
        """Counters of what the sandbox received and did. A response is counted before it is sent."""
        return self._server.record

    def __repr__(self) -> str:
        # pytest shows the repr if a test fails.
        try:
            requests = self.record.requests
            state = f"{self.url}, {requests:,} {'request' if requests == 1 else 'requests'}"
        except RuntimeError:
            state = "not started"
        return f"<{type(self).__name__} {state}>"

    def session(self, **options: Any) -> PostPressSession:
        """Create a session for this sandbox; *options* are those of `PostPressSession`."""
        return PostPressSession(self.api_key, base_url=self.url, **options)

    def proxy_of(self, account_id: str) -> Mapping[str, Any] | None:
        """The request body last applied to the account, password included; None if no change was applied."""
        return self.record.proxy_of(account_id)

    def sends(self, account_id: str) -> int:
        """Number of requests received for the account."""
        return self.record.sends(account_id)


class Sandbox(ServerAccess):
    """
    A local fake of the API that serves on loopback while its ``async with`` block runs.

    The random faults of a profile are:

    - ``steady``: No faults.
    - ``flaky``: 2% provider_error, 1% service_unavailable, 1% request_timeout (half of them executed) and
      0.5% dropped connections (half of them executed). 1% of the accounts do not exist.
    - ``overloaded``: Latency grows with the number of executing requests. Above 30, some requests get a 503
      or 429; from 100, all requests do.
    - ``outage``: An outage begins 1 to 3 s after the first request and lasts 10 to 20 s. All requests get a
      503 (a quarter of the requests as HTML) or a dropped connection.
    - ``hostile``: A fifth of the responses are malformed, contradictory or missing. Most of these requests
      are executed.

    Args:
        accounts: The account ids that exist; None if every well-formed id exists.
        profile: The random faults.
        seed: Seed of the random faults. The same seed gives the same faults, in any order of requests.
        latency: Seconds that an update takes.
        rate: Maximum requests per second, above which the response is a 429; None for no limit.
        dead_proxies: ``host:port`` of proxies that do not work, or a predicate over the proxy object.
        port: 0 for any free port.

    Raises:
        ValueError: An argument is invalid; the message names it.
        OSError: The port is in use. Raised when the block is entered.
    """

    def __init__(
        self,
        *,
        accounts: Iterable[str] | None = None,
        profile: Profile = "steady",
        seed: int = 0,
        latency: float = 0.0,
        rate: float | None = None,
        dead_proxies: Container[str] | Callable[[Mapping[str, Any]], bool] = (),
        port: int = 0,
    ) -> None:
        self.server: Final = Server(
            api_key=API_KEY,
            accounts=accounts,
            faults=Faults(profile, seed),
            latency=latency,
            rate=rate,
            dead_proxies=dead_proxies,
        )
        super().__init__(self.server)
        self._port: Final = port

    def script(
        self, account_id: str, *responses: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """
        Append responses for the account's next requests, one per request.

        Args:
            responses: Each is an error type such as ``"errors/proxy_error"``, 200 (handle the request
                normally), ``"drop"`` (no response, change not applied), ``"lost"`` (no response, change
                applied), ``"hang"`` (the request never ends) or a `Fault`.
            then: The response to all later requests. None keeps the *then* of an earlier call; if there is
                none, the profile decides.

        Raises:
            ValueError: A response or the account id is invalid. The script is unchanged.
        """
        self.server.faults.script(account_id, *responses, then=then)

    async def outage(self, kind: Outage) -> None:
        """
        Simulate an outage until `recover`.

        Args:
            kind: ``refused`` (no connections), ``503``, ``503-html`` (an HTML page), ``504`` (after 1 s),
                ``silent`` (no responses) or ``slow`` (ten times the latency).

        Raises:
            ValueError: The kind is unknown.
        """
        await self.server.outage(kind)

    async def recover(self) -> None:
        """End the current outage, if any."""
        await self.server.recover()

    async def __aenter__(self) -> Self:
        await self.server.start(port=self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.aclose()
