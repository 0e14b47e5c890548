"""Statistics of a journal: progress, outcomes, how the last run ended, and the next step."""

import math
import os
import shlex
from collections import Counter
from enum import StrEnum
from typing import Final

from attrs import frozen

from postpress_async._fields import counted
from postpress_async.errors import Scope
from postpress_async.rotation._outcome import KEY_EXPIRED, KEY_LIFETIME, MANAGED, State
from postpress_async.rotation.journal._reading import LATEST, JournalReader, printable
from postpress_async.rotation.journal._recovery import may_have_sent

MAX_ERRORS: Final = 100  # error types to list, the most frequent ones: the API may send any number
SENT: Final = "attempts > 0"  # SQL condition for sent accounts; others are invalid, or the run ended first

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
    """Whether the last run of a journal is under way, or how it ended."""

    UNDER_WAY = "under way"
    DIED = "died"  # it was killed or its machine failed, so accounts in flight were not recorded
    HALTED = "halted"  # it stopped by itself
    STOPPED = "stopped"  # it was stopped before every account was sent
    ENDED = "ended"  # it reached its last account


_SUMMARIES: Final = {
    Stage.UNDER_WAY: "a run is in progress",
    Stage.DIED: "the last run was killed, or its machine stopped",
    Stage.HALTED: "the last run halted",
    Stage.STOPPED: "the last run was stopped before all accounts were sent",
    Stage.ENDED: "the run has ended",
}


@frozen
class ErrorCount:
    """The number of accounts with an error type and scope."""

    error_type: str
    scope: Scope | None  # None if the journal has no scope for the error
    accounts: int


@frozen(kw_only=True)
class Statistics:
    """Statistics of a journal's latest run. Times are Unix times. Values that are not known are None."""

    stage: Stage
    halted: str | None  # why the run stopped by itself
    selection: str | None  # description of the accounts in the run; None for all
    total: int | None  # number of accounts in the run
    began: float | None  # first start of the run
    states: Counter[State]  # number of accounts by state
    refused: int  # accounts whose rows are invalid
    in_doubt: int  # accounts of an earlier, dead run that are unknown, and without a request since
    expired: int
    """Unknown accounts with a managed proxy whose idempotency key is older than the default of
    ``--key-lifetime``, so that the API may have forgotten it."""
    maybe_sent: int | None  # upper bound of the accounts without an outcome that a killed run may have sent
    errors: tuple[ErrorCount, ...]  # the most frequent errors, most frequent first
    more_errors: int  # accounts with an error that is not in `errors`
    first: float | None  # time of the first outcome other than skipped
    last: float | None  # time of the last outcome other than skipped
    rate: float | None
    """Outcomes per second: in the last minute if the run is under way, otherwise in the whole run."""
    command: str | None  # command line of the last start; None if it was started from Python
    retry_command: str | None  # command line that sends failed accounts again
    folder: str | None  # working directory of both commands
    leaves_unknown: bool  # whether the run only reported accounts in doubt, and did not send them

    @property
    def summary(self) -> str:
        """The stage as a sentence, with the reason if the run stopped by itself."""
        reason = f": {self.halted}" if self.halted else ""
        return f"{_SUMMARIES[self.stage]}{reason}"

    @property
    def accounts(self) -> int:
        """Number of accounts in the run; at least the number of those with an outcome."""
        return max(self.total or 0, self.states.total())

    @property
    def settled(self) -> int:
        """Number of accounts that need no further request in this run."""
        known = self.states[State.PATCHED] + self.states[State.FAILED] + self.states[State.UNKNOWN]
        return known - self.in_doubt + self.refused

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all accounts are settled at this rate; None if not known or not under way."""
        if self.stage is not Stage.UNDER_WAY or self.total is None or not self.rate:
            return None
        return max(0, self.total - self.settled) / self.rate


def stage_of(view: JournalReader) -> Stage:
    """
    Return the stage of the latest run.

    Call this outside `JournalReader.at_one_moment`, which would hide a change between its two reads.
    """
    if (state := view.run()["state"]) != "running":
        return {"halted": Stage.HALTED, "interrupted": Stage.STOPPED}.get(state, Stage.ENDED)
    under_way_mark = "SELECT 1 FROM run WHERE name = 'under way'"
    if not view.ask(under_way_mark):
        return Stage.ENDED
    if view.is_written():
        return Stage.UNDER_WAY
    # The mark may have been read just before a run ended normally, so read it again.
    return Stage.DIED if view.ask(under_way_mark) else Stage.ENDED


def collect_statistics(view: JournalReader, stage: Stage, now: float) -> Statistics:
    """Return the statistics at the Unix time *now*. The *stage* comes from `stage_of`."""
    run = view.run()
    total, began, halted = _number(run.get("total")), _number(run.get("began")), run.get("halted")
    folder = run.get("folder")
    sql = "SELECT state, count(*) FROM latest GROUP BY state"
    states = view.read(lambda rows: Counter({State(state): n for state, n in rows}), sql)
    [(*counts, first, last)] = view.ask(_SUMS, now - KEY_LIFETIME)
    sent, refused, in_doubt, not_reached, expired, all_errors = counts
    errors = view.read(_error_counts, _ERRORS, MAX_ERRORS)
    first, last = _number(first), _number(last)
    # True if the disk was full when the journal was created.
    never_began = began is None and total is None and not states
    if stage is Stage.ENDED and halted is not None:
        stage = Stage.HALTED
    elif stage is Stage.ENDED and (not_reached or (total or 0) > states.total() or never_began):
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
        in_doubt=in_doubt,
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
    """Upper bound of the accounts without an outcome that a killed run may have sent; None if not known."""
    accounts = may_have_sent(view.ask, view.run(), died=stage is Stage.DIED)
    return None if accounts == math.inf else int(accounts)


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
        # If the first outcome is less than a minute old, divide by the time since that outcome.
        return recent / (60.0 if earlier else max(1.0, now - oldest))

    return view.read(rate, _RECENT, {"now": now})


def _command(value: object) -> str | None:
    """Return *value* if it is a command of this program. A foreign journal must not suggest another one."""
    if not (isinstance(value, str) and value.isprintable()):
        return None
    try:
        words = shlex.split(value)
    except ValueError:  # an unclosed quote
        return None
    return value if words[:1] == ["postpress-async"] and shlex.join(words) == value else None


def _number(value: object) -> float | None:
    """Return *value* if it can be a number of accounts or a time, otherwise None."""
    return value if isinstance(value, int | float) and 0 <= value <= LATEST else None


def advice(journal: str, statistics: Statistics, *, seen: bool = False) -> str:
    """Return the next step as a sentence; *seen* if the reader already sees which accounts failed and why."""
    name, states = shlex.quote(journal), statistics.states
    command = _with_folder(statistics.command, statistics.folder)
    again = f"run the same command again ({command})" if command else "start the same rotation again"
    if statistics.stage is Stage.UNDER_WAY:
        return f"nothing; look again with `postpress-async status {name}`"
    if statistics.stage is Stage.HALTED:
        return f"correct what halted it, then {again}: it continues from here"
    if statistics.stage is not Stage.ENDED:
        return f"{again}: it continues from here"
    if states[State.UNKNOWN] and statistics.leaves_unknown:
        option = "--on-unknown report" if command else 'on_unknown="report"'
        return (
            f"look at the accounts whose outcome is unknown (`postpress-async export {name} --state unknown` "
            f"lists them); to send them, {again} without {option}"
        )
    skipped = states[State.SKIPPED] - statistics.refused
    if states[State.UNKNOWN] or skipped:
        counts = {State.UNKNOWN: states[State.UNKNOWN], State.SKIPPED: skipped}
        unfinished = " and ".join(state for state, count in counts.items() if count)
        exceptions = _except_expired(name, statistics.expired)
        return f"{again}: it sends the accounts that are {unfinished}{exceptions}"
    if states[State.FAILED]:
        first = "" if seen else f"see which accounts failed and why with `postpress-async report {name}`; "
        command = _with_folder(statistics.retry_command, statistics.folder)
        retry = f"run {command}" if command else 'start the same rotation again with on_failed="retry"'
        return f"{first}once the causes are corrected, {retry}: it sends the failed accounts again"
    if statistics.refused:
        listed = f"`postpress-async export {name} --state skipped`"
        return f"correct the rows that were refused ({listed} lists them), and rotate them as another fleet"
    return "nothing; every account was patched"


def _except_expired(name: str, expired: int) -> str:
    if not expired:
        return ""
    accounts = counted(expired, "account")
    return (
        f", except {accounts} that may have got a managed proxy more than 24 hours ago (see --key-lifetime): "
        f"check them in the dashboard (`postpress-async export {name} --state unknown` lists them)"
    )


def _with_folder(command: str | None, folder: str | None) -> str | None:
    """Return *command* in backticks, after a `cd` if it ran in a *folder* other than the current one."""
    if command is None:
        return None
    if folder is not None and not _is_here(folder):
        command = f"cd {shlex.quote(folder)} && {command}"
    return f"`{command}`"


def _is_here(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # the folder was deleted, or the journal comes from another machine
        return False
