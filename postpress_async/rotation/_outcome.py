"""The outcome of each account, all outcomes of ``session.update_many``, and the counts of a rotation."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from attrs import Factory, define, field, frozen

from postpress_async.errors import Applied, PostPressError, Scope

MANAGED: Final = "managed "
"""The beginning of an assignment that is a managed proxy."""

LINE_PREFIX: Final = re.compile(r"line [0-9]+ ")
"""The beginning of an assignment in journals of older versions, if it is a proxy of a pool."""


def label_of(assignment: str | None) -> str | None:
    """The label of the proxy that an assignment names; None for a managed proxy or no assignment."""
    return None if assignment is None or assignment.startswith(MANAGED) else assignment


NO_PROXY_LEFT: Final = "no proxy left"
"""The error type of an account for which the pool had no proxy left."""


KEY_EXPIRED: Final = "idempotency key expired"
"""The error type of an account in doubt that is not sent again, because that could order a second proxy."""

KEY_LIFETIME: Final = 86_400.0
"""Default seconds for which the API is assumed to know an idempotency key."""


class State(StrEnum):
    """The result for one account."""

    PATCHED = "patched"
    """The API confirmed the change."""
    FAILED = "failed"
    """The change was refused and this run applied nothing. See `Outcome.applied` for earlier runs."""
    UNKNOWN = "unknown"
    """The change may have been applied or not."""
    SKIPPED = "skipped"
    """
    It was not sent, or got no response about the account before the run ended; or its row was refused. An
    error of scope KEY says nothing about the account.
    """


@frozen(slots=False)  # one per account, and a frozen class with slots takes twice as long to create
class Outcome:
    """
    The result for one account.

    Attributes:
        ordinal: Position in the input, from 0; the key in the journal.
        line: Line in the input file, from 1; None if the input is not a file.
        account_id: The account, as in the row; empty if the row has no valid one.
        state: The result.
        attempts: Requests sent for the account in this run; if read from a journal, in all runs.
        status: HTTP status of the last response; None if there was none.
        error_type: Type of the last error: the API's, or the name of its class, or why the row was not sent.
        scope: What the last error is about.
        applied: Whether the change may have been applied; None if patched.
        instance: ID of the failed request, to quote to support.
        elapsed: Seconds from the start of the first attempt in this run to the end, including backoff,
            retries and other proxies; 0 if there was no attempt.
        settled_at: Unix time in seconds at which the account was completed.
        assignment: What was asked for last: a proxy's label such as ``user@p1.example.net:3128``, or
            ``managed US`` or ``managed 203.0.113.42``; None if nothing was sent.
        error: Why it was not patched; None if it was, or if read from a journal, which does not store it.
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
        """The label of the proxy that was used or tried last; None for a managed proxy."""
        return label_of(self.assignment)

    @property
    def is_refused(self) -> bool:
        """Whether its row is invalid, so that no run sends it."""
        return self.state is State.SKIPPED and not self.attempts and self.scope is Scope.REQUEST


def patched_outcome(
    ordinal: int,
    line: int | None,
    account_id: str,
    attempts: int,
    elapsed: float,
    assignment: str | None = None,
) -> Outcome:
    """The outcome of an account that has its new proxy."""
    return Outcome(
        ordinal, line, account_id, State.PATCHED, attempts, 200, elapsed=elapsed, assignment=assignment
    )


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
    The outcome of an account whose last call ended with *error*, which says whether the change was applied.

    Args:
        attempts: Requests of all calls; if None, those of *error*.
        cut_short: Whether another attempt would have followed if the run had not ended.
        final: Whether a refusal makes the state `FAILED` even though an earlier run may have applied the
            change. Otherwise every later run would send the account again.
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


def outcome_without_proxy(
    ordinal: int, line: int | None, account_id: str, *, in_doubt: bool = False
) -> Outcome:
    """The outcome if the pool had no proxy left; *in_doubt* if an earlier run may have sent the account."""
    return Outcome(
        ordinal,
        line,
        account_id,
        State.UNKNOWN if in_doubt else State.SKIPPED,
        error_type=NO_PROXY_LEFT,
        scope=Scope.PROXY,
        applied=Applied.UNKNOWN if in_doubt else Applied.NO,
    )


@define
class RotationSummary:
    """
    The counts of a rotation, including earlier runs on the same journal where not said otherwise.

    Attributes:
        states: Accounts by state.
        errors: Accounts of this run by error type.
        resumed: Accounts that earlier runs had completed.
        attempts: Requests sent in this run.
        elapsed: Duration of this run in seconds.
        halted: Why the run stopped by itself, as a sentence; None if it did not.
        key_refused: Whether it stopped because the API refused the API key.
        stopped: Whether `Rotation.stop` was called, or the block was left early.
        quarantined: Proxies of the pool that are quarantined, whether in this run or before.
        without_proxy: Accounts of this run for which the pool had no proxy left.
        refused: Invalid rows in this run.
        canary_passed: Whether this run had a canary, and it passed.
        unconsumed: Outcomes of this run that the caller did not iterate over because it left the block early.
            Rows that were not taken from the input have none.
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
        """All accounts."""
        return self.states.total()

    @property
    def patched(self) -> int:
        """Accounts that have their new proxy."""
        return self.states[State.PATCHED]

    @property
    def complete(self) -> bool:
        """Whether every account was patched."""
        return self.patched == self.total and not self.halted and not self.stopped

    def __str__(self) -> str:
        counts = [f"{self.states[state]:,} {state}" for state in State if self.states[state]]
        accounts = "1 account" if self.total == 1 else f"{self.total:,} accounts"
        resumed = f" ({self.resumed:,} of them in an earlier run)" if self.resumed else ""
        return f"{accounts}: {', '.join(counts) or 'none'} in {self.elapsed:.1f} s{resumed}"


class Results(Mapping[str, Outcome]):
    """
    The outcome of each account, by account id, in the order of the changes.

    An outcome other than patched has an `error`, which is what `PostPressSession.update_proxy` would raise.
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
        """Accounts whose change may have been applied: no response came."""
        return self._in_state(State.UNKNOWN)

    @property
    def skipped(self) -> tuple[Outcome, ...]:
        """Accounts that got no response, and whose change was certainly not applied."""
        return self._in_state(State.SKIPPED)

    @property
    def ok(self) -> bool:
        """Whether every account was patched."""
        return len(self.patched) == len(self)

    def raise_for_failures(self) -> None:
        """
        Do nothing if every account was patched.

        Raises:
            ExceptionGroup: Otherwise; it has one `PostPressError` for each other account.
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
    """Add an account of this run to *summary*."""
    summary.states[outcome.state] += 1
    summary.attempts += outcome.attempts
    if outcome.error_type is not None:
        summary.errors[outcome.error_type] += 1
        summary.refused += outcome.is_refused
        if outcome.error_type == NO_PROXY_LEFT:
            summary.without_proxy += 1
