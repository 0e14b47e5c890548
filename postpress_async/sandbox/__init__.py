"""
The API on loopback, for trying out and for tests: no key, no account, no bill.

`Sandbox` is the face; what it serves is written from the API's page alone, in `server` and below.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from postpress_async.sandbox.faults import Fault, Faults, Profile
from postpress_async.sandbox.record import Record
from postpress_async.sandbox.server import Outage, Server
from postpress_async.session import PostPressSession

__all__ = ["Fault", "Profile", "Record", "Sandbox", "Server", "own_accounts"]

API_KEY: Final = "pp_test_sandbox"
"""The key that a sandbox takes. It opens nothing else."""


def own_accounts(count: int = 1_000) -> list[str]:
    """The ids of the sandbox's own accounts, for a first run without a fleet: always the same."""
    return [f"acc_sandbox_{number:06}" for number in range(1, count + 1)]


def told_of(sandbox: "Sandbox") -> str:
    """Where it is and what it was asked, for whoever looks at it in a test that failed."""
    try:
        place = sandbox.url
    except RuntimeError:
        return "not entered yet"
    asked = sandbox.record.requests
    return f"{place}, {asked:,} {'request' if asked == 1 else 'requests'}"


class Sandbox:
    """
    A server of the API on a free port of this machine, for as long as ``async with`` lasts.

    Every account exists unless *accounts* names those that do. What it was asked is in `record`.

    Args:
        accounts: The ids that exist; None for every well-formed one.
        profile: steady, flaky, overloaded, outage or hostile: which faults come by chance.
        seed: Of that chance. The same seed gives the same faults, in whatever order requests come.
        latency: Seconds that an answer takes.
        rate: Requests per second beyond which it answers 429; None for no limit.
        dead_proxies: ``host:port`` of proxies that do not work, or a predicate over the proxy object.
        port: 0 for any that is free.

    Raises:
        ValueError: One of them would not do what was meant by it; OSError, on entering it: the port is taken.
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
        self._port: Final = port

    @property
    def url(self) -> str:
        """The base URL; RuntimeError before it is entered."""
        return self.server.url

    @property
    def api_key(self) -> str:
        """The key it takes."""
        return self.server.api_key

    @property
    def record(self) -> Record:
        """What it was asked, and what it did."""
        return self.server.record

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {told_of(self)}>"

    def session(self, **options: Any) -> PostPressSession:
        """A session for this sandbox; *options* are those of `PostPressSession`."""
        return PostPressSession(self.api_key, base_url=self.url, **options)

    def script(
        self, account_id: str, *answers: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """
        Answer the account's next requests so, one each: a type such as ``"errors/proxy_error"``, 200,
        ``"drop"`` (no answer, nothing done), ``"lost"`` (done, no answer), ``"hang"``, or a `Fault`.
        All that come after them get *then*; where it is None, what the profile says.

        Raises:
            ValueError: There is no such answer, or no such id; nothing is scripted then.
        """
        self.server.faults.script(account_id, *answers, then=then)

    def proxy_of(self, account_id: str) -> Mapping[str, Any] | None:
        """The body last applied to the account; None where none was."""
        return self.record.proxy_of(account_id)

    def sends(self, account_id: str) -> int:
        """How many requests arrived for the account."""
        return self.record.sends(account_id)

    async def outage(self, kind: Outage) -> None:
        """Be unwell until `recover`: ``refused``, ``503``, ``503-html``, ``504``, ``silent`` or ``slow``."""
        await self.server.outage(kind)

    async def recover(self) -> None:
        """End the outage, if there is one."""
        await self.server.recover()

    async def __aenter__(self) -> Self:
        await self.server.start(port=self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.server.aclose()
