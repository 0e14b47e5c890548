"""A journal in numbers: how far its rotation is, what came of it, and what became of the last run."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from attrs import frozen

from postpress_async.errors import Scope
from postpress_async.rotation._outcome import State
from postpress_async.rotation.journal.reading import LATEST, JournalView, printable

LISTED: Final = 100
"""Error types that are told apart, the commonest first; types come from outside, and may be any number."""

SENT: Final = "attempts > 0"
"""In SQL: what was sent. The rest was refused for its row, or the run had ended."""


class Stage(StrEnum):
    """What became of the last run on a journal."""

    UNDER_WAY = "under way"
    DIED = "died"
    """It was killed, or its machine went down: what it had in flight is not in the journal."""
    HALTED = "halted"
    """It stopped by itself."""
    STOPPED = "stopped"
    """It was told to stop, and not every account was sent."""
    ENDED = "ended"


@frozen
class ErrorCount:
    """So many accounts ended with an error of this type and scope (None where the journal has none)."""

    error_type: str
    scope: Scope | None
    accounts: int


@frozen(kw_only=True)
class Numbers:
    """
    A journal in numbers.

    Attributes:
        stage: What became of the last run.
        halted: Why it stopped by itself, if it did.
        total: Rows of the input; None where the journal does not know.
        began: Unix time at which the first run began; None where the journal does not know.
        states: Accounts by state.
        sent: Accounts of which a request was sent.
        refused: Accounts whose rows say nothing that could be sent.
        unsent: Accounts that are unknown only because a later run died, and that are sent again.
        maybe_sent: Accounts that the journal has no outcome of, and that a run that was killed may have
            sent, at most; None if it is not known how many.
        errors: The commonest errors, those first.
        more_errors: Accounts with an error that is not among these.
        first: Unix time at which the first account was settled, other than skipped; None without one.
        last: The same of the last one.
        rate: Accounts a second that were settled in the last minute of a run that is under way; over the
            whole time of any other. None where nothing was.
        command: The command line of the last run; None if it had none, as from Python.
        retry_command: The one that sends again what failed in it.
        folder: The working directory of both.
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
    maybe_sent: int | None
    errors: tuple[ErrorCount, ...]
    more_errors: int
    first: float | None
    last: float | None
    rate: float | None
    command: str | None = None
    retry_command: str | None = None
    folder: str | None = None
    leaves_unknown: bool = False

    @property
    def accounts(self) -> int:
        """Rows of the input; where the journal does not know, those it has an outcome of."""
        return max(self.total or 0, self.states.total())

    @property
    def settled(self) -> int:
        """Accounts that the rotation is done with for now."""
        known = self.states[State.PATCHED] + self.states[State.FAILED] + self.states[State.UNKNOWN]
        return known - self.unsent + self.refused

    @property
    def seconds_left(self) -> float | None:
        """Until all are settled, at this rate; None where no run is under way, or nothing tells."""
        if self.stage is not Stage.UNDER_WAY or self.total is None or not self.rate:
            return None
        return max(0, self.total - self.settled) / self.rate


def stage_of(view: JournalView) -> Stage:
    """Whether a run is under way, died, or ended in whatever way; asked before `count`, at no one moment."""
    marked = "SELECT 1 FROM run WHERE name = 'under way'"
    if not view.ask(marked):
        return Stage.ENDED
    if view.is_written():
        return Stage.UNDER_WAY
    # It may have ended between the two looks.
    return Stage.DIED if view.ask(marked) else Stage.ENDED


def count(view: JournalView, stage: Stage, now: float) -> Numbers:
    """
    The journal in numbers, at the Unix time *now*, where `stage_of` has told *stage*.

    Raises:
        JournalError: It is damaged.
    """
    told = dict(view.ask("SELECT name, value FROM run"))
    total, began, halted = _number(told.get("total")), _number(told.get("began")), told.get("halted")
    folder = told.get("folder")
    states = view.read(lambda rows: Counter({State(state): n for state, n in rows}), _STATES)
    sent, refused, unsent, left_out, first, last = view.read(_sums, _SUMS)
    errors, more = _errors(view)
    if stage is Stage.ENDED and halted is not None:
        stage = Stage.HALTED
    # Where the disk was full when it was made, no run has ever begun.
    never = began is None and total is None and not states
    if stage is Stage.ENDED and (left_out or (total or 0) > states.total() or never):
        stage = Stage.STOPPED
    return Numbers(
        stage=stage,
        halted=printable(str(halted)) if stage is Stage.HALTED else None,
        total=None if total is None else int(total),
        began=began,
        states=states,
        sent=sent,
        refused=refused,
        unsent=unsent,
        maybe_sent=_maybe_sent(view, stage, told, math.inf if total is None else total - states.total()),
        errors=errors,
        more_errors=more,
        first=first,
        last=last,
        rate=_recent_rate(view, now) if stage is Stage.UNDER_WAY else _rate(sent, first, last),
        command=_command(told.get("command")),
        retry_command=_command(told.get("retry command")),
        folder=folder if isinstance(folder, str) and folder.isprintable() else None,
        leaves_unknown=told.get("on unknown") == "report",
    )


def _maybe_sent(view: JournalView, stage: Stage, told: Mapping[str, object], missing: float) -> int | None:
    """How many ordinals below the watermarks of runs that died have no outcome; *missing* are in all."""
    below = _ordinal(told.get("doubtful", 0))
    if stage is Stage.DIED:
        below = max(below, _ordinal(told.get("reached", math.inf)))
    if not below:
        return 0
    [(known,)] = view.ask("SELECT count(*) FROM outcomes WHERE ordinal < ?", below)
    most = min(below - known, missing)  # a blank row has an ordinal, and never an outcome
    return None if most == math.inf else max(0, int(most))


def _ordinal(value: object) -> float:
    return value if isinstance(value, int | float) and value >= 0 else math.inf


_STATES: Final = "SELECT state, count(*) FROM outcomes GROUP BY state"
_SUMS: Final = f"""
    SELECT count(*) FILTER (WHERE {SENT}),
        count(*) FILTER (WHERE state = 'skipped' AND NOT {SENT} AND scope = 'request'),
        count(*) FILTER (WHERE state = 'unknown' AND NOT {SENT}),
        count(*) FILTER (WHERE state = 'skipped' AND NOT {SENT} AND error_type IS NULL),
        min(settled_at) FILTER (WHERE {SENT} AND state != 'skipped'),
        max(settled_at) FILTER (WHERE {SENT} AND state != 'skipped')
    FROM outcomes
"""  # noqa: S608 - the text is ours
_ERRORS: Final = """
    SELECT error_type, scope, count(*) AS accounts FROM outcomes WHERE error_type IS NOT NULL
    GROUP BY error_type, scope ORDER BY accounts DESC, error_type, scope LIMIT ?
"""
_RECENT: Final = f"""
    SELECT count(*) FILTER (WHERE settled_at > :now - 60),
        count(*) FILTER (WHERE settled_at <= :now - 60),
        min(settled_at) FILTER (WHERE settled_at > :now - 60)
    FROM outcomes WHERE settled_at > :now - 120 AND {SENT}
"""  # noqa: S608


def _sums(rows: list[Any]) -> tuple[int, int, int, int, float | None, float | None]:
    [(*counts, first, last)] = rows
    if not all(moment is None or _number(moment) is not None for moment in (first, last)):
        raise ValueError("a time that is none")
    sent, refused, unsent, left_out = counts
    return sent, refused, unsent, left_out, first, last


def _errors(view: JournalView) -> tuple[tuple[ErrorCount, ...], int]:
    def read(rows: list[tuple[str, str | None, int]]) -> tuple[ErrorCount, ...]:
        return tuple(
            ErrorCount(printable(type_), None if scope is None else Scope(scope), accounts)
            for type_, scope, accounts in rows
        )

    listed = view.read(read, _ERRORS, LISTED)
    [(every,)] = view.ask("SELECT count(*) FROM outcomes WHERE error_type IS NOT NULL")
    return listed, every - sum(error.accounts for error in listed)


def _recent_rate(view: JournalView, now: float) -> float | None:
    def read(rows: list[tuple[int, int, float]]) -> float | None:
        [(recent, earlier, oldest)] = rows
        if not recent:
            return None
        # A run that goes on for less than a minute has not had a minute.
        return recent / (60.0 if earlier else max(1.0, now - oldest))

    return view.read(read, _RECENT, {"now": now})


def _rate(sent: int, first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None or last <= first else sent / (last - first)


def _command(value: object) -> str | None:
    """*value*, if it is a command of ours and nothing else: a journal may come from someone else."""
    if not (isinstance(value, str) and value.isprintable()):
        return None
    try:
        words = shlex.split(value)
    except ValueError:  # a quote is never closed
        return None
    return value if words[:1] == ["postpress-async"] and shlex.join(words) == value else None


def _number(value: object) -> float | None:
    """*value*, if it is a number that could be one of accounts, or a time."""
    return value if isinstance(value, int | float) and 0 <= value <= LATEST else None
