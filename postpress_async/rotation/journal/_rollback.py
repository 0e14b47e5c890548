"""The changes that give each account of a journal the assignment that it had after an earlier run."""

from collections.abc import Iterable, Mapping
from typing import Final

from attrs import frozen

from postpress_async.errors import JournalError
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation._outcome import LINE_PREFIX, MANAGED, State
from postpress_async.rotation._pool import PooledProxy
from postpress_async.rotation._selection import Selection
from postpress_async.rotation._template import placeholders
from postpress_async.rotation.journal._history import assignments_of
from postpress_async.rotation.journal._input_check import resumes
from postpress_async.rotation.journal._reading import JournalReader

_CHANGED: Final = """
    SELECT account_id, CASE state WHEN 'patched' THEN assignment END FROM outcomes
    WHERE run > ? AND run < ? AND state IN ('patched', 'unknown') ORDER BY run DESC, ordinal
"""


@frozen
class LeftBehind:
    """An account that cannot go back. It has the fields of a `Refusal` that events need."""

    account_id: str
    reason: str
    advice: str
    line: None = None
    column: None = None

    def __str__(self) -> str:
        return f"{self.account_id}: {self.reason}: {self.advice}"


@frozen
class RollbackPlan:
    """What a rollback does; its selection identifies its run."""

    selection: Selection
    changes: dict[str, ProxyChange]  # without accounts that still have the assignment
    left_behind: list[LeftBehind]  # accounts that cannot go back


def plan_rollback(view: JournalReader, to: int, proxies: Iterable[PooledProxy]) -> RollbackPlan:
    """
    Plan how each account gets the assignment that it had after run number *to*, with *proxies* of your own.

    A managed proxy is ordered again, for the same country or ip. If the latest run is an unfinished rollback
    to the same run, the plan is the one that it began with. Without such a run, `JournalError` is raised.
    """
    selection = Selection(f"rollback to run {to}")
    run = view.run()
    selection.run = number = run["id"] + (not resumes(view.ask, run, selection.text))
    if not view.ask("SELECT 1 FROM runs WHERE id = ? AND id < ?", to, number):
        raise JournalError(
            f"{view.path} has no run {to} to go back to: `postpress-async history {view.word}` lists its runs"
        )
    present: dict[str, str | None] = {}  # None if the account is in doubt
    for account_id, assignment in view.stream(_CHANGED, to, number):
        present.setdefault(account_id, assignment)
    earlier = {
        entry.account_id: entry
        for entry in assignments_of(view, before=to + 1)
        if entry.account_id in present
    }
    by_label = {pooled.label: pooled.proxy for pooled in proxies}
    changes: dict[str, ProxyChange] = {}
    left_behind: list[LeftBehind] = []
    for account_id, assignment in present.items():
        entry = earlier.get(account_id)
        if entry is None or entry.state != State.PATCHED:
            fact = "no known proxy" if entry is None else "an unknown outcome"
            left_behind.append(LeftBehind(account_id, f"it had {fact} after run {to}", "rotate it instead"))
        elif entry.assignment != assignment:
            change = _change_of(entry.assignment, by_label)
            if isinstance(change, CustomProxy) and placeholders(change):
                reason = f"the journal does not know which session of {entry.assignment} it had"
                left_behind.append(LeftBehind(account_id, reason, "rotate it instead"))
            elif change is None:
                reason = f"its proxy {entry.assignment} is in no list"
                left_behind.append(LeftBehind(account_id, reason, "add a list that has it with --pool"))
            else:
                changes[account_id] = change
    return RollbackPlan(selection, changes, left_behind)


def _change_of(assignment: str, proxies: Mapping[str, ProxyChange]) -> ProxyChange | None:
    if not assignment.startswith(MANAGED):
        return proxies.get(LINE_PREFIX.sub("", assignment, 1))
    words = assignment.removeprefix(MANAGED).split()
    country, ip = (next((w for w in words if w.isalpha() is named), None) for named in (True, False))
    return ManagedProxy(country=country, ip=ip)
