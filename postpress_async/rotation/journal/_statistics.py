"""Statistics of a journal: its rotation's progress, the outcomes, and how the last run ended."""

import math
import shlex
from collections import Counter
from enum import StrEnum
from typing import Any, Final

from attrs import frozen

from postpress_async.errors import Scope
from postpress_async.rotation._outcome import KEY_EXPIRED, KEY_LIFETIME, MANAGED, State
from postpress_async.rotation.journal._reading import LATEST, JournalView, printable

LISTED: Final = 100
"""Number of error types to list, most frequent first: they come from the API, which may send any number."""

SENT: Final = "attempts > 0"
"""SQL condition for accounts that were sent. The others were refused, or the run had ended."""

_STATES: Final = "SELECT state, count(*) FROM latest GROUP BY state"
_SUMS: Final = f"""
    SELECT count(*) FILTER (WHERE {SENT}),
        count(*) FILTER (WHERE state = 'skipped' AND NOT {SENT} AND scope = 'request'),
        count(*) FILTER (WHERE state = 'unknown' AND NOT {SENT}),
        count(*) FILTER (WHERE state = 'skipped' AND NOT {SENT} AND error_type IS NULL),
        count(*) FILTER (
            WHERE state = 'unknown' AND settled_at < ?
            AND (assignment LIKE '{MANAGED}%' OR error_type = '{KEY_EXPIRED}')
        ),
        min(settled_at) FILTER (WHERE {SENT} AND state != 'skipped'),
        max(settled_at) FILTER (WHERE {SENT} AND state != 'skipped')
    FROM latest
"""
_ERRORS: Final = """
    SELECT error_type, scope, count(*) AS accounts FROM latest WHERE error_type IS NOT NULL
    GROUP BY error_type, scope ORDER BY accounts DESC, error_type, scope LIMIT ?
"""
_RECENT: Final = f"""
    SELECT count(*) FILTER (WHERE settled_at > :now - 60),
        count(*) FILTER (WHERE settled_at <= :now - 60),
        min(settled_at) FILTER (WHERE settled_at > :now - 60)
    FROM latest WHERE settled_at > :now - 120 AND {SENT}
"""


class Stage(StrEnum):
    """How the last run on a journal ended, or that it has not."""

    UNDER_WAY = "under way"
    DIED = "died"
    """The process was killed, or its machine failed: accounts in flight were not recorded."""
    HALTED = "halted"
    """It stopped by itself."""
    STOPPED = "stopped"
    """It was stopped before every account was sent."""
    ENDED = "ended"


@frozen
class ErrorCount:
    """How many accounts ended with an error type and scope (None if the journal has no scope for it)."""

    error_type: str
    scope: Scope | None
    accounts: int


@frozen(kw_only=True)
class Statistics:
    """
    Statistics of a journal.

    Attributes:
        stage: How the last run ended.
        halted: Why it stopped by itself; None if it did not.
        total: Number of rows in the input; None if not recorded.
        began: Unix time at which the first run began; None if not recorded.
        states: Accounts by state.
        sent: Accounts for which a request was sent.
        refused: Accounts whose rows are invalid.
        unsent: Accounts that are unknown only because a later run died, and that are sent again.
        expired: Accounts that are unknown, and for which the API may have forgotten the idempotency key of a
            managed proxy (by the default of ``--key-lifetime``).
        maybe_sent: Most accounts without an outcome that a run that was killed may have sent; None if not
            known.
        errors: The most frequent errors, in this order.
        more_errors: Accounts with an error that is not listed.
        first: Unix time at which the first account was settled, other than skipped; None if there is no such
            account.
        last: Unix time of the last one.
        rate: Accounts settled per second: in the last minute of a run that is under way, otherwise over the
            whole time. None without any.
        command: Command line of the last run; None if it was started from Python.
        retry_command: Command line that sends its failed accounts again.
        folder: Working directory of both.
        leaves_unknown: Whether the last run did not send accounts whose outcome was unknown.
    """

    stage: Stage
    halted: str | None
    total: int | None
    began: float | None
    states: Counter[State]
    sent: int
    refused: int
    unsent: int
    expired: int
    maybe_sent: int | None
    errors: tuple[ErrorCount, ...]
    more_errors: int
    first: float | None
    last: float | None
    rate: float | None
    command: str | None
    retry_command: str | None
    folder: str | None
    leaves_unknown: bool

    @property
    def accounts(self) -> int:
        """Number of rows in the input; if not recorded, number of accounts with an outcome."""
        return max(self.total or 0, self.states.total())

    @property
    def settled(self) -> int:
        """Number of accounts that need no more requests for now."""
        known = self.states[State.PATCHED] + self.states[State.FAILED] + self.states[State.UNKNOWN]
        return known - self.unsent + self.refused

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all are settled, at this rate; None if no run is under way, or not known."""
        if self.stage is not Stage.UNDER_WAY or self.total is None or not self.rate:
            return None
        return max(0, self.total - self.settled) / self.rate


def stage_of(view: JournalView) -> Stage:
    """
    Whether a run is under way, died or ended; `collect_statistics` tells how it ended.

    Call it before the view's `at_one_moment`.
    """
    if (state := view.run()["state"]) != "running":
        return {"halted": Stage.HALTED, "interrupted": Stage.STOPPED}.get(state, Stage.ENDED)
    marked = "SELECT 1 FROM run WHERE name = 'under way'"
    if not view.ask(marked):
        return Stage.ENDED
    if view.is_written():
        return Stage.UNDER_WAY
    # It may have ended between the two queries.
    return Stage.DIED if view.ask(marked) else Stage.ENDED


def collect_statistics(view: JournalView, stage: Stage, now: float) -> Statistics:
    """
    The journal's statistics at the Unix time *now*, with the *stage* that `stage_of` returned.

    Raises:
        JournalError: The journal is damaged.
    """
    run = view.run()
    total, began, halted = _number(run.get("total")), _number(run.get("began")), run.get("halted")
    folder = run.get("folder")
    states = view.read(lambda rows: Counter({State(state): n for state, n in rows}), _STATES)
    sent, refused, unsent, left_out, expired, first, last = view.read(_sums, _SUMS, now - KEY_LIFETIME)
    errors = view.read(_error_counts, _ERRORS, LISTED)
    [(all_errors,)] = view.ask("SELECT count(*) FROM latest WHERE error_type IS NOT NULL")
    if stage is Stage.ENDED and halted is not None:
        stage = Stage.HALTED
    # If the disk was full when the journal was created, no run has ever begun.
    never = began is None and total is None and not states
    if stage is Stage.ENDED and (left_out or (total or 0) > states.total() or never):
        stage = Stage.STOPPED
    return Statistics(
        stage=stage,
        halted=printable(str(halted)) if stage is Stage.HALTED else None,
        total=None if total is None else int(total),
        began=began,
        states=states,
        sent=sent,
        refused=refused,
        unsent=unsent,
        expired=expired,
        maybe_sent=maybe_sent(view, stage),
        errors=errors,
        more_errors=all_errors - sum(error.accounts for error in errors),
        first=first,
        last=last,
        rate=_recent_rate(view, now) if stage is Stage.UNDER_WAY else _rate(sent, first, last),
        command=_command(run.get("command")),
        retry_command=_command(run.get("retry_command")),
        folder=folder if isinstance(folder, str) and folder.isprintable() else None,
        leaves_unknown=run.get("on_unknown") == "report",
    )


def maybe_sent(view: JournalView, stage: Stage) -> int | None:
    """Most accounts without an outcome that a run that was killed may have sent; None if not known."""
    run = view.run()
    total = _number(run.get("total"))
    below = _ordinal(run.get("doubtful", 0))
    if stage is Stage.DIED:
        below = max(below, _ordinal(run.get("reached", math.inf)))
    if not below:
        return 0
    [(known, recorded)] = view.ask("SELECT count(*) FILTER (WHERE ordinal < ?), count(*) FROM latest", below)
    most = min(
        below - known, math.inf if total is None else total - recorded
    )  # a blank row has an ordinal, and never an outcome
    return None if most == math.inf else max(0, int(most))


def _ordinal(value: object) -> float:
    return value if isinstance(value, int | float) and value >= 0 else math.inf


def _sums(rows: list[Any]) -> tuple[int, int, int, int, int, float | None, float | None]:
    [(*counts, first, last)] = rows
    if not all(moment is None or _number(moment) is not None for moment in (first, last)):
        raise ValueError("an invalid time")
    sent, refused, unsent, left_out, expired = counts
    return sent, refused, unsent, left_out, expired, first, last


def _error_counts(rows: list[tuple[str, str | None, int]]) -> tuple[ErrorCount, ...]:
    return tuple(
        ErrorCount(printable(type_), None if scope is None else Scope(scope), accounts)
        for type_, scope, accounts in rows
    )


def _recent_rate(view: JournalView, now: float) -> float | None:
    def rate(rows: list[tuple[int, int, float]]) -> float | None:
        [(recent, earlier, oldest)] = rows
        if not recent:
            return None
        # If the run began less than a minute ago, divide by the time since then.
        return recent / (60.0 if earlier else max(1.0, now - oldest))

    return view.read(rate, _RECENT, {"now": now})


def _rate(sent: int, first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None or last <= first else sent / (last - first)


def _command(value: object) -> str | None:
    """*value* if it is a single command of this program: a journal may come from someone else."""
    if not (isinstance(value, str) and value.isprintable()):
        return None
    try:
        words = shlex.split(value)
    except ValueError:  # a quote is not closed
        return None
    return value if words[:1] == ["postpress-async"] and shlex.join(words) == value else None


def _number(value: object) -> float | None:
    """*value* if it can be a number of accounts or a time."""
    return value if isinstance(value, int | float) and 0 <= value <= LATEST else None
