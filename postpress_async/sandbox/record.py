"""What a sandbox server saw and did."""

from collections import Counter
from typing import Any

from postpress_async.sandbox.rules import Json


class Record:
    """
    Counts for a test or a report to read; the server alone writes them.

    Attributes:
        requests: All arrivals, whatever became of them; but for those that ask for the API's document.
        by_status: Answers sent, by HTTP status; replays too.
        by_type: Errors sent in an envelope, by type.
        unanswered: Requests that were dropped, or left hanging.
        patched_accounts: How often a change was applied to each account.
        managed_handed_out: Managed proxies given, one for each managed change that was executed.
        replayed: Answers given from the store of an Idempotency-Key.
        in_flight: Requests being handled now, those included whose client hung up.
        most_in_flight: The most that `in_flight` ever was.
    """

    def __init__(self) -> None:
        self.requests: int = 0
        self.by_status: Counter[int] = Counter()
        self.by_type: Counter[str] = Counter()
        self.unanswered: int = 0
        self.patched_accounts: Counter[str] = Counter()
        self.managed_handed_out: int = 0
        self.replayed: int = 0
        self.in_flight: int = 0
        self.most_in_flight: int = 0
        self._sends: dict[str, int] = {}
        self._proxies: dict[str, Json] = {}

    def __repr__(self) -> str:
        facts = self.as_dict() | {"by_status": dict(self.by_status)}
        told = ", ".join(f"{name}={value}" for name, value in facts.items())
        return f"<{type(self).__name__} {told}>"

    def sends(self, account_id: str) -> int:
        """How many requests arrived for the account, refused ones included."""
        return self._sends.get(account_id, 0)

    def proxy_of(self, account_id: str) -> Json | None:
        """The body last applied to the account, its password included; None where none was."""
        return self._proxies.get(account_id)

    def as_dict(self) -> dict[str, Any]:
        """The totals, fit for JSON; no account and no secret is in them."""
        return {
            "requests": self.requests,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "by_type": dict(sorted(self.by_type.items())),
            "unanswered": self.unanswered,
            "patched_accounts": len(self.patched_accounts),
            "applied": self.patched_accounts.total(),
            "managed_handed_out": self.managed_handed_out,
            "replayed": self.replayed,
            "most_in_flight": self.most_in_flight,
        }

    def note_arrival(self) -> None:
        """A request came; `note_end` must follow."""
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def note_send(self, account_id: str) -> None:
        """The request that came is for this account."""
        self._sends[account_id] = self._sends.get(account_id, 0) + 1

    def note_change(self, account_id: str, change: Json) -> None:
        """The change was applied."""
        self.patched_accounts[account_id] += 1
        self._proxies[account_id] = change
        if "proxy" not in change:
            self.managed_handed_out += 1

    def note_end(self, status: int | None, type_: str | None) -> None:
        """A request was answered, or ended without an answer where the status is None."""
        self.in_flight -= 1
        if status is None:
            self.unanswered += 1
            return
        self.by_status[status] += 1
        if type_ is not None:
            self.by_type[type_] += 1
