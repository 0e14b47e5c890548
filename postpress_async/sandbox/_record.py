"""Counters of what a sandbox server received and did."""

from collections import Counter
from typing import Any

from postpress_async.sandbox._responses import Response
from postpress_async.sandbox._rules import Json


class Record:
    """
    Counters for tests and reports.

    Attributes:
        requests: Requests received.
        by_status: Responses sent, by HTTP status. Replays count.
        by_type: Error envelopes sent, by error type.
        unanswered: Requests that were dropped or never answered.
        patched_accounts: Number of applied changes, by account.
        managed_handed_out: Number of managed proxies assigned, one for each executed order.
        replayed: Responses that repeated the stored response of an Idempotency-Key.
        in_flight: Requests being handled now, including those whose client has disconnected.
        most_in_flight: Highest value that `in_flight` ever had.
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
        self._sends: Counter[str] = Counter()
        self._proxies: dict[str, Json] = {}

    def __repr__(self) -> str:
        totals = self.as_dict() | {"by_status": dict(self.by_status)}
        fields = ", ".join(f"{name}={value}" for name, value in totals.items())
        return f"<{type(self).__name__} {fields}>"

    def sends(self, account_id: str) -> int:
        """Number of requests received for the account, including rejected requests."""
        return self._sends[account_id]

    def proxy_of(self, account_id: str) -> Json | None:
        """The request body last applied to the account, password included; None if no change was applied."""
        return self._proxies.get(account_id)

    def as_dict(self) -> dict[str, Any]:
        """The totals as JSON values, without account ids or secrets."""
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


class Recorder(Record):
    """The `Record` that the server updates."""

    def note_arrival(self) -> None:
        """Count a received request. `note_end` must follow."""
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def note_send(self, account_id: str) -> None:
        self._sends[account_id] += 1

    def note_change(self, account_id: str, change: Json) -> None:
        self.patched_accounts[account_id] += 1
        self._proxies[account_id] = change
        if "proxy" not in change:
            self.managed_handed_out += 1

    def note_end(self, response: Response | None) -> None:
        """Count the end of a request; *response* is None if the request gets no response."""
        self.in_flight -= 1
        if response is None:
            self.unanswered += 1
            return
        self.by_status[response.status] += 1
        if response.type is not None:
            self.by_type[response.type] += 1
