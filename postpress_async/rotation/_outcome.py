"""The outcome of each account, all outcomes of ``session.update_many``, and the counts of a rotation."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from attrs import Factory, define, field, frozen

from postpress_async._fields import counted
from postpress_async.errors import Applied, PostPressError, Scope

MANAGED: Final = "managed "  # start of an assignment that is a managed proxy
LINE_PREFIX: Final = re.compile(r"line [0-9]+ ")  # start of a pool's assignment in journals of older versions
NO_PROXY_LEFT: Final = "no proxy left"  # error type of an account for which the pool had no proxy left
KEY_LIFETIME: Final = 86_400.0  # default for the seconds that the API is assumed to remember a key
# The error type of an account in doubt that is not sent again. The API may have forgotten the idempotency
# key, so a second request could order a second managed proxy.
KEY_EXPIRED: Final = "idempotency key expired"


def label_of(assignment: str | None) -> str | None:
    """The label of the proxy that an assignment names; None for a managed proxy or no assignment."""
    return None if assignment is None or assignment.startswith(MANAGED) else assignment


class State(StrEnum):
    """The result for one account."""

    PATCHED = "patched"
    """The API confirmed the change."""
    FAILED = "failed"
    """The API refused the change, and this run did not apply it. `Outcome.applied` covers earlier runs."""
    UNKNOWN = "unknown"
    """The change may or may not have been applied."""
    SKIPPED = "skipped"
    """
    The row is invalid, the change was not sent, or the run ended before a response about the account came. An
    error of scope KEY is not about the account, so it also gives this state.
    """


@frozen(slots=False)  # one per account, and a frozen class with slots takes twice as long to create
class Outcome:
    """
    The result for one account.

    Attributes:
        ordinal: Position in the input, from 0; the key in the journal.
        line: Line in the input file, from 1; None if the input is not a file.
        account_id: The account, as in the row; empty if the row has no valid account id.
        state: The result.
        attempts: Requests sent for the account in this run; if read from a journal, in all runs.
        status: HTTP status of the last response; None if there was no response.
        error_type: The API's type of the last error, or the name of its class if the API gave none; for a row
            that was not sent, the reason.
        scope: What the last error is about.
        applied: Whether the change may have been applied; None if patched.
        instance: ID of the failed request, to quote to support.
        elapsed: Seconds from the start of the first attempt in this run to the end, including backoff,
            retries and other proxies; 0 if there was no attempt.
        settled_at: Unix time in seconds at which the account was completed.
        assignment: The proxy that was requested last: its label, such as ``user@p1.example.net:3128``; or
            ``managed US`` or ``managed 203.0.113.42``. None if nothing was sent.
        error: Why the account was not patched; None if it was patched. Also None if the outcome was read from
            a journal, which does not store errors.
    """

    ordinal: int
    line: int | None
    account_id: str
    state: State
    attempts: int = 0
    status: int | None = None
    error_type: str | None = None
    scope: Scope | None = None
    applied: Applied | None = None
    instance: str | None = None
    elapsed: float = 0.0
    settled_at: float = field(factory=time.time)
    assignment: str | None = None
    error: PostPressError | None = None

    @property
    def proxy(self) -> str | None:
        """The label of the custom proxy that was requested last; None if there was none."""
        return label_of(self.assignment)

    @property
    def is_refused(self) -> bool:
        """Whether the row is invalid, so that no run sends it."""
        return self.state is State.SKIPPED and not self.attempts and self.scope is Scope.REQUEST


def failed_outcome(
    ordinal: int,
    line: int | None,
    account_id: str,
    error: PostPressError,
    elapsed: float,
    *,
    attempts: int | None = None,
    assignment: str | None = None,
    cut_short: bool = False,
    final: bool = False,
) -> Outcome:
    """
    The outcome of an account whose last call ended with *error*; `error.applied` is about all its requests.

    Args:
        attempts: Requests of all calls of the account; None for only the requests of *error*.
        cut_short: Whether another attempt would have followed if the run had not ended.
        final: Whether an error response makes the state `FAILED` even if the change may have been applied by
            an earlier run. In the state `UNKNOWN`, every later run would send the account again.
    """
    # Without a response, or with a refused API key, nothing is known about the account.
    undecided = error.status is None or cut_short or error.scope is Scope.KEY
    if error.applied is Applied.UNKNOWN and (undecided or not final):
        state = State.UNKNOWN
    else:
        state = State.SKIPPED if undecided else State.FAILED
    return Outcome(
        ordinal,
        line,
        account_id,
        state,
        len(error.attempts) if attempts is None else attempts,
        error.status,
        error.code,
        error.scope,
        error.applied,
        getattr(error, "instance", None),
        elapsed,
        assignment=assignment,
        error=error,
    )


@define
class RotationSummary:
    """
    The counts of a rotation. Unless an attribute says "this run", earlier runs on the journal are included.

    Attributes:
        states: Number of accounts by state.
        errors: Number of accounts of this run by error type.
        resumed: Number of accounts that earlier runs had completed.
        attempts: Number of requests sent in this run.
        elapsed: Duration of this run in seconds.
        halted: Why this run stopped by itself, as a sentence; None if it did not.
        key_refused: Whether this run stopped because the API refused the API key.
        stopped: Whether `Rotation.stop` was called in this run, or the block was left early.
        quarantined: Number of proxies that are quarantined, no matter in which run they were quarantined.
        without_proxy: Number of accounts of this run for which the pool had no proxy left.
        refused: Number of invalid rows in this run.
        canary_passed: Whether this run had a canary, and it passed.
        unconsumed: Outcomes of this run that the caller did not iterate over because it left the block early.
            Rows that were not read from the input have no outcome.
    """

    states: Counter[State] = Factory(Counter)
    errors: Counter[str] = Factory(Counter)
    resumed: int = 0
    attempts: int = 0
    elapsed: float = 0.0
    halted: str | None = None
    key_refused: bool = False
    stopped: bool = False
    quarantined: int = 0
    without_proxy: int = 0
    refused: int = 0
    canary_passed: bool = False
    unconsumed: list[Outcome] = field(factory=list, repr=False)

    @property
    def total(self) -> int:
        """Number of accounts in all states."""
        return self.states.total()

    @property
    def patched(self) -> int:
        """Number of accounts that have their new proxy."""
        return self.states[State.PATCHED]

    @property
    def complete(self) -> bool:
        """Whether every account was patched."""
        return self.patched == self.total and not self.halted and not self.stopped

    def __str__(self) -> str:
        counts = [f"{self.states[state]:,} {state}" for state in State if self.states[state]]
        resumed = f" ({self.resumed:,} of them in an earlier run)" if self.resumed else ""
        accounts = counted(self.total, "account")
        return f"{accounts}: {', '.join(counts) or 'none'} in {self.elapsed:.1f} s{resumed}"


class Results(Mapping[str, Outcome]):
    """
    The outcome of each account, by account id, in the order of the changes.

    If an account was not patched, its outcome has an `error`: the one that `PostPressSession.update_proxy`
    would raise.
    """

    def __init__(self, outcomes: Mapping[str, Outcome]) -> None:
        self._outcomes: Final = outcomes

    def __getitem__(self, account_id: str) -> Outcome:
        return self._outcomes[account_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    @property
    def patched(self) -> tuple[Outcome, ...]:
        """Accounts that have their new proxy."""
        return self._in_state(State.PATCHED)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Accounts whose change was refused."""
        return self._in_state(State.FAILED)

    @property
    def unknown(self) -> tuple[Outcome, ...]:
        """Accounts whose change may or may not have been applied, because no response came."""
        return self._in_state(State.UNKNOWN)

    @property
    def skipped(self) -> tuple[Outcome, ...]:
        """Accounts that got no response, and whose change was not applied."""
        return self._in_state(State.SKIPPED)

    @property
    def ok(self) -> bool:
        """Whether every account was patched."""
        return len(self.patched) == len(self)

    def raise_for_failures(self) -> None:
        """
        Raise an error if an account was not patched.

        Raises:
            ExceptionGroup: It contains one `PostPressError` for each account that was not patched.
        """
        failures: list[PostPressError] = [outcome.error for outcome in self.values() if outcome.error]
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(self)} accounts were not patched", failures)

    def _in_state(self, state: State) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.values() if outcome.state is state)

    def __repr__(self) -> str:
        counts = [f"{len(found)} {state}" for state in State if (found := self._in_state(state))]
        return f"<{type(self).__name__}: {', '.join(counts) or 'empty'}>"


def count_outcome(summary: RotationSummary, outcome: Outcome) -> None:
    summary.states[outcome.state] += 1
    summary.attempts += outcome.attempts
    if outcome.error_type is not None:
        summary.errors[outcome.error_type] += 1
        summary.refused += outcome.is_refused
        if outcome.error_type == NO_PROXY_LEFT:
            summary.without_proxy += 1
