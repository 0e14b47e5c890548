"""Statistics of a journal: progress, outcomes, how the last run ended, and what to do next."""

import math
import os
import shlex
from collections import Counter
from enum import StrEnum
from typing import Final

from attrs import frozen

from postpress_async.errors import Scope
from postpress_async.rotation._outcome import KEY_EXPIRED, KEY_LIFETIME, MANAGED, State
from postpress_async.rotation.journal._reading import LATEST, JournalReader, printable
from postpress_async.rotation.journal._recovery import may_have_sent

LISTED: Final = 100
"""Number of error types to list, most frequent first: they come from the API, which may send any number."""

SENT: Final = "attempts > 0"
"""SQL condition for accounts that were sent. The others were refused, or the run had ended."""

_SUMS: Final = f"""
    SELECT count(*) FILTER (WHERE {SENT}),
        count(*) FILTER (WHERE state = 'skipped' AND NOT {SENT} AND scope = 'request'),
        count(*) FILTER (WHERE state = 'unknown' AND NOT {SENT}),
        count(*) FILTER (WHERE state = 'skipped' AND NOT {SENT} AND error_type IS NULL),
        count(*) FILTER (
            WHERE state = 'unknown' AND settled_at < ?
            AND (assignment LIKE '{MANAGED}%' OR error_type = '{KEY_EXPIRED}')
        ),
        count(error_type),
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
    DIED = "died"  # it was killed, or its machine failed: accounts in flight were not recorded
    HALTED = "halted"  # it stopped by itself
    STOPPED = "stopped"  # it was stopped before every account was sent
    ENDED = "ended"


_SUMMARIES: Final = {
    Stage.UNDER_WAY: "a run is in progress",
    Stage.DIED: "the last run was killed, or its machine stopped",
    Stage.HALTED: "the last run halted",
    Stage.STOPPED: "the last run was stopped before all accounts were sent",
    Stage.ENDED: "the run has ended",
}


@frozen
class ErrorCount:
    """How many accounts ended with an error type and scope (None if the journal has no scope for it)."""

    error_type: str
    scope: Scope | None
    accounts: int


@frozen(kw_only=True)
class Statistics:
    """Statistics of a journal. Times are Unix times; what is not known is None."""

    stage: Stage
    halted: str | None  # why it stopped by itself
    selection: str | None  # the accounts that the latest run takes, in words; None if it takes all
    total: int | None  # accounts that the latest run takes
    began: float | None  # when the first run began
    states: Counter[State]  # accounts by state
    refused: int  # accounts whose rows are invalid
    unsent: int  # accounts that are unknown only because a later run died, and that are sent again
    expired: int
    """Accounts that are unknown, and for which the API may have forgotten the idempotency key of a managed
    proxy, by the default of ``--key-lifetime``."""
    maybe_sent: int | None  # most accounts without an outcome that a run that was killed may have sent
    errors: tuple[ErrorCount, ...]  # the most frequent ones, in this order
    more_errors: int  # accounts with an error that is not listed
    first: float | None  # when the first account was settled, other than skipped
    last: float | None  # when the last one was
    rate: float | None
    """Accounts settled per second: in the last minute of a run under way, otherwise over all of it."""
    command: str | None  # command line of the last run, if it was not started from Python
    retry_command: str | None  # the one that sends its failed accounts again
    folder: str | None  # working directory of both
    leaves_unknown: bool  # whether the last run did not send accounts whose outcome was unknown

    @property
    def summary(self) -> str:
        """How the last run ended, or that it has not, with the reason if it stopped by itself."""
        reason = f": {self.halted}" if self.halted else ""
        return f"{_SUMMARIES[self.stage]}{reason}"

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


def stage_of(view: JournalReader) -> Stage:
    """Whether a run is under way, died or ended. Call it before the reader's `at_one_moment`."""
    if (state := view.run()["state"]) != "running":
        return {"halted": Stage.HALTED, "interrupted": Stage.STOPPED}.get(state, Stage.ENDED)
    marked = "SELECT 1 FROM run WHERE name = 'under way'"
    if not view.ask(marked):
        return Stage.ENDED
    if view.is_written():
        return Stage.UNDER_WAY
    # The run may have ended between the two queries.
    return Stage.DIED if view.ask(marked) else Stage.ENDED


def collect_statistics(view: JournalReader, stage: Stage, now: float) -> Statistics:
    """The journal's statistics at the Unix time *now*, with the *stage* that `stage_of` returned."""
    run = view.run()
    total, began, halted = _number(run.get("total")), _number(run.get("began")), run.get("halted")
    folder = run.get("folder")
    sql = "SELECT state, count(*) FROM latest GROUP BY state"
    states = view.read(lambda rows: Counter({State(state): n for state, n in rows}), sql)
    [(*counts, first, last)] = view.ask(_SUMS, now - KEY_LIFETIME)
    sent, refused, unsent, left_out, expired, all_errors = counts
    errors = view.read(_error_counts, _ERRORS, LISTED)
    first, last = _number(first), _number(last)
    # If the disk was full when the journal was created, no run has ever begun.
    never = began is None and total is None and not states
    if stage is Stage.ENDED and halted is not None:
        stage = Stage.HALTED
    elif stage is Stage.ENDED and (left_out or (total or 0) > states.total() or never):
        stage = Stage.STOPPED
    rate = None if first is None or last is None or last <= first else sent / (last - first)
    return Statistics(
        stage=stage,
        halted=printable(str(halted)) if stage is Stage.HALTED else None,
        selection=view.text(run.get("selection")),
        total=None if total is None else int(total),
        began=began,
        states=states,
        refused=refused,
        unsent=unsent,
        expired=expired,
        maybe_sent=maybe_sent(view, stage),
        errors=errors,
        more_errors=all_errors - sum(error.accounts for error in errors),
        first=first,
        last=last,
        rate=_recent_rate(view, now) if stage is Stage.UNDER_WAY else rate,
        command=_command(run.get("command")),
        retry_command=_command(run.get("retry_command")),
        folder=folder if isinstance(folder, str) and folder.isprintable() else None,
        leaves_unknown=run.get("on_unknown") == "report",
    )


def maybe_sent(view: JournalReader, stage: Stage) -> int | None:
    """Most accounts without an outcome that a run that was killed may have sent; None if not known."""
    most = may_have_sent(view.ask, view.run(), died=stage is Stage.DIED)
    return None if most == math.inf else int(most)


def _error_counts(rows: list[tuple[str, str | None, int]]) -> tuple[ErrorCount, ...]:
    return tuple(
        ErrorCount(printable(type_), None if scope is None else Scope(scope), accounts)
        for type_, scope, accounts in rows
    )


def _recent_rate(view: JournalReader, now: float) -> float | None:
    def rate(rows: list[tuple[int, int, float]]) -> float | None:
        [(recent, earlier, oldest)] = rows
        if not recent:
            return None
        # If the run began less than a minute ago, divide by the time since then.
        return recent / (60.0 if earlier else max(1.0, now - oldest))

    return view.read(rate, _RECENT, {"now": now})


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


def advice(journal: str, statistics: Statistics, *, seen: bool = False) -> str:
    """The next step in a sentence, with the recorded command; *seen* is whether the report shows it."""
    name, states = shlex.quote(journal), statistics.states
    command = _with_folder(statistics.command, statistics.folder)
    again = f"run the same command again ({command})" if command else "start the same rotation again"
    if statistics.stage is Stage.UNDER_WAY:
        return f"nothing; look again with `postpress-async status {name}`"
    if statistics.stage is Stage.HALTED:
        return f"correct what halted it, then {again}: it goes on from here"
    if statistics.stage is not Stage.ENDED:
        return f"{again}: it goes on from here"
    if states[State.UNKNOWN] and statistics.leaves_unknown:
        option = "--on-unknown report" if command else 'on_unknown="report"'
        return (
            f"look at the accounts whose outcome is unknown (`postpress-async export {name} --state unknown` "
            f"lists them); to send them, {again} without {option}"
        )
    if states[State.UNKNOWN] or states[State.SKIPPED] > statistics.refused:
        left = " and ".join(state for state in (State.UNKNOWN, State.SKIPPED) if states[state])
        return f"{again}: it sends what is {left}{_but_expired(name, statistics.expired)}"
    if states[State.FAILED]:
        why = "" if seen else f"see which accounts failed and why with `postpress-async report {name}`; "
        retry = _with_folder(statistics.retry_command, statistics.folder)
        send = f"run {retry}" if retry else 'start the same rotation again with on_failed="retry"'
        return f"{why}once the causes are corrected, {send}: it sends the failed accounts again"
    if statistics.refused:
        listed = f"`postpress-async export {name} --state skipped`"
        return f"correct the rows that were refused ({listed} lists them), and rotate them as another fleet"
    return "nothing; every account was patched"


def _but_expired(name: str, expired: int) -> str:
    if not expired:
        return ""
    accounts = "1 account" if expired == 1 else f"{expired:,} accounts"
    return (
        f", except {accounts} that may have got a managed proxy more than 24 hours ago (see --key-lifetime): "
        f"check them in the dashboard (`postpress-async export {name} --state unknown` lists them)"
    )


def _with_folder(command: str | None, folder: str | None) -> str | None:
    """*command* in backticks, after a `cd` if it ran in another *folder* than the present one."""
    if command is None:
        return None
    if folder is not None and not _is_here(folder):
        command = f"cd {shlex.quote(folder)} && {command}"
    return f"`{command}`"


def _is_here(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # it was deleted, or the journal comes from another machine
        return False
