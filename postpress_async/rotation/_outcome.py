"""What came of each account, and of all of them."""

import time
from collections import Counter
from enum import StrEnum
from typing import Final, Self

from attrs import Factory, define, field, frozen

from postpress_async.errors import Applied, PostPressError, Scope

NO_PROXY_LEFT: Final = "no proxy left"
"""The error type of an account for which the pool had no proxy."""


class State(StrEnum):
    """Where an account stands when a rotation is done with it."""

    PATCHED = "patched"
    """The API said so."""
    FAILED = "failed"
    """It was refused, and this run applied nothing; `Outcome.applied` says if an earlier one may have."""
    UNKNOWN = "unknown"
    """It failed in a way that leaves open whether the change was applied."""
    SKIPPED = "skipped"
    """
    It was not sent, or got no answer about the account, before the run ended; or its row was refused. An
    error of scope KEY is no answer about the account.
    """


_PATCHED: Final = State.PATCHED  # a global is read in a tenth of the time of an enumeration's member


@frozen(slots=False)  # one is made for each account, and slots of a frozen value take twice as long to set
class Outcome:
    """
    What came of one account.

    Attributes:
        ordinal: Its place in the input, from 0; the journal's key.
        line: Its line in the file, from 1; None where the input was no file.
        account_id: The account, as the row has it.
        state: Where it stands.
        attempts: Requests sent for it in this run; in those of a journal, in all runs.
        status: HTTP status of the last answer, if one came.
        error_type: The API's type of the last error, the name of its class, or why it was not sent.
        scope: Whose fault the last error was.
        applied: Whether the change may have been applied all the same; None where it was patched.
        instance: The id of the failed request, to quote to support.
        elapsed: Seconds from the start of its first attempt in this run to its end. Retries, other proxies
            and all waits before them are included, the wait before the first attempt is not; 0 if there was
            no attempt.
        settled_at: Unix time of that end, in seconds.
        proxy: The pool's label of the proxy that it got or that was tried last. Where its row had a proxy
            of its own, that one's label, and only if it failed.
        error: The error itself. Not kept in the journal.
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
    proxy: str | None = None
    error: PostPressError | None = None

    @property
    def is_refused(self) -> bool:
        """Whether its row says nothing that could be sent, in whichever run."""
        return self.state is State.SKIPPED and not self.attempts and self.scope is Scope.REQUEST

    @classmethod
    def patched(
        cls,
        ordinal: int,
        line: int | None,
        account_id: str,
        attempts: int,
        elapsed: float,
        proxy: str | None = None,
    ) -> Self:
        """The account has its new proxy."""
        return cls(ordinal, line, account_id, _PATCHED, attempts, 200, elapsed=elapsed, proxy=proxy)

    @classmethod
    def failed(
        cls,
        ordinal: int,
        line: int | None,
        account_id: str,
        error: PostPressError,
        elapsed: float,
        *,
        proxy: str | None = None,
        earlier: int = 0,
        cut_short: bool = False,
        settled: bool = False,
    ) -> Self:
        """
        The call ended with *error*, which tells whether the change was sent, and may have been applied.

        Args:
            proxy: The label of the proxy that was tried last.
            earlier: Requests sent with other proxies before.
            cut_short: Whether it would have been tried again, had the run not ended.
            settled: Whether a refusal is final although the change may have been applied: it is a custom
                proxy, which a later request sets again, and all doubt is about an earlier run. Otherwise it
                would be sent in every run.
        """
        # Neither the lack of an answer nor a refusal of the API key says anything about the account.
        open_ = error.status is None or cut_short or error.scope is Scope.KEY
        if error.applied is Applied.UNKNOWN and (open_ or not settled):
            state = State.UNKNOWN
        else:
            state = State.SKIPPED if open_ else State.FAILED
        return cls(
            ordinal,
            line,
            account_id,
            state,
            earlier + len(error.attempts),
            error.status,
            error.code,
            error.scope,
            error.applied,
            getattr(error, "instance", None),
            elapsed,
            proxy=proxy,
            error=error,
        )

    @classmethod
    def given_up(
        cls, ordinal: int, line: int | None, account_id: str, elapsed: float, proxy: str | None = None
    ) -> Self:
        """The run was told to end at once while the account's request may have been on its way."""
        return cls(
            ordinal,
            line,
            account_id,
            State.UNKNOWN,
            1,
            applied=Applied.UNKNOWN,
            elapsed=elapsed,
            proxy=proxy,
        )

    @classmethod
    def skipped(cls, ordinal: int, line: int | None, account_id: str, attempts: int = 0) -> Self:
        """The run ended before the account was sent, or after *attempts* that certainly applied nothing."""
        return cls(ordinal, line, account_id, State.SKIPPED, attempts, applied=Applied.NO)

    @classmethod
    def left_in_doubt(cls, ordinal: int, line: int | None, account_id: str) -> Self:
        """An earlier run may have sent the account, and this one did not."""
        return cls(ordinal, line, account_id, State.UNKNOWN, applied=Applied.UNKNOWN)

    @classmethod
    def without_proxy(
        cls, ordinal: int, line: int | None, account_id: str, *, in_doubt: bool = False
    ) -> Self:
        """The pool had no proxy left for it; it is *in_doubt* where an earlier run may have sent it."""
        return cls(
            ordinal,
            line,
            account_id,
            State.UNKNOWN if in_doubt else State.SKIPPED,
            error_type=NO_PROXY_LEFT,
            scope=Scope.PROXY,
            applied=Applied.UNKNOWN if in_doubt else Applied.NO,
        )

    @classmethod
    def refused(cls, ordinal: int, line: int | None, account_id: str | None, reason: str) -> Self:
        """Its row says nothing that could be sent."""
        return cls(
            ordinal,
            line,
            account_id or "",
            State.SKIPPED,
            error_type=reason,
            scope=Scope.REQUEST,
            applied=Applied.NO,
        )


@define
class RotationSummary:
    """
    The numbers of a rotation, those of earlier runs on the same journal included.

    Attributes:
        states: How many accounts stand where.
        errors: How many failed with which error type.
        resumed: How many had been settled before this run began.
        attempts: Requests sent in this run.
        elapsed: Seconds that this run took.
        halted: Why it stopped by itself, in a sentence; None where it did not.
        key_refused: Whether it stopped because the API key may not do this.
        stopped: Whether it was told to stop.
        quarantined: How many of the pool's proxies were taken out in this run.
        without_proxy: For how many accounts the pool had none left.
        refused: For how many rows there was nothing that could be sent.
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

    @property
    def total(self) -> int:
        """Accounts in all."""
        return self.states.total()

    @property
    def patched(self) -> int:
        """Accounts that have their new proxy."""
        return self.states[State.PATCHED]

    @property
    def complete(self) -> bool:
        """Whether every account was patched."""
        return self.patched == self.total and not self.halted and not self.stopped

    def count(self, outcome: Outcome) -> None:
        """Add one account of this run."""
        self.states[outcome.state] += 1
        self.attempts += outcome.attempts
        if outcome.error_type is not None:
            self.errors[outcome.error_type] += 1
            self.refused += outcome.is_refused
            if outcome.error_type == NO_PROXY_LEFT:
                self.without_proxy += 1

    def __str__(self) -> str:
        told = [f"{self.states[state]:,} {state}" for state in State if self.states[state]]
        accounts = "1 account" if self.total == 1 else f"{self.total:,} accounts"
        words = f"{accounts}: {', '.join(told) or 'none'} in {self.elapsed:.1f} s"
        if self.resumed:
            words += f" ({self.resumed:,} of them in an earlier run)"
        return words
