"""The runs of a journal, the accounts that they changed, and the plan of a rollback to an earlier run."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from attrs import frozen

from postpress_async.errors import JournalError
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation._outcome import LINE_PREFIX, MANAGED, State
from postpress_async.rotation._pool import PooledProxy
from postpress_async.rotation._selection import Selection
from postpress_async.rotation._template import placeholders
from postpress_async.rotation.journal._database import starts_of
from postpress_async.rotation.journal._input_check import resumes
from postpress_async.rotation.journal._reading import JournalReader

_RUNS: Final = """
    SELECT id, began, ended, state, selection, halted, total, starts, command, counts FROM runs
    WHERE began NOT NULL AND id = coalesce(?, id) ORDER BY id
"""
_COUNTS: Final = "SELECT state, count(*), sum(attempts) FROM outcomes WHERE run = ? GROUP BY state"
_CHANGES: Final = """
    SELECT run, settled_at, state, assignment, attempts, error_type, applied FROM outcomes
    WHERE account_id = ? AND run = coalesce(?, run) ORDER BY run
"""
_ASSIGNED: Final = """
    SELECT ordinal, line, account_id, assignment, state, settled_at FROM outcomes
    WHERE run = ? AND (state = 'patched' AND assignment NOT NULL OR state = 'unknown') {} ORDER BY ordinal
"""
_CHANGED: Final = """
    SELECT account_id, CASE state WHEN 'patched' THEN assignment END FROM outcomes
    WHERE run > ? AND run < ? AND state IN ('patched', 'unknown') ORDER BY run DESC, ordinal
"""
_ONLY_ORDINALS: Final = "AND ordinal IN (SELECT value FROM json_each(?))"
_MAX_MARKS: Final = 100_000_000  # a larger total can only come from a damaged file
_MAX_UNMARKED_SHARE: Final = 1 / 8  # above this share, reading all rows is faster than selecting some


@frozen(kw_only=True)
class Start:
    """One start of a run, or one time that it was resumed. Values that are not known are None."""

    began: float  # Unix time
    operator: str | None
    host: str | None
    version: str | None
    command: str | None  # also None if it was started from Python


@frozen(kw_only=True)
class Run:
    """A run of a journal. Times are Unix times. Values that are not known are None."""

    number: int  # from 1
    began: float
    ended: float | None  # also None if it is under way or was killed
    state: str  # running, complete, halted, interrupted or killed
    selection: str | None  # description of the accounts in the run; None for all
    halted: str | None  # why it stopped by itself
    total: int | None  # number of accounts in the run
    states: Counter[State]  # number of accounts by state
    requests: int  # number of requests sent
    starts: tuple[Start, ...]  # the first start, then each time that it was resumed


class AccountChange(NamedTuple):
    """The outcome of an account in one run. The attributes are those of `Outcome`; *run* is a number."""

    run: int
    settled_at: float
    state: State
    assignment: str | None
    attempts: int
    error_type: str | None
    applied: str | None


class Assigned(NamedTuple):  # not attrs: creating a tuple takes a third of the time
    """An account's latest assignment. The state is "unknown" if it may not have been applied."""

    account_id: str
    assignment: str
    state: str  # "patched" or "unknown"; writing 1,000,000 `State`s takes half a second longer
    run: int
    settled_at: float


def runs_of(view: JournalReader, run: int | None = None) -> list[Run]:
    """Return the runs in the journal, oldest first; only number *run* if given."""
    is_written = view.is_written()

    def convert(rows: list[Any]) -> list[Run]:
        runs = []
        for number, began, ended, state, selection, halted, total, starts, command, stored_counts in rows:
            # The counts are stored when a run ends.
            counts = view.ask(_COUNTS, number) if stored_counts is None else json.loads(stored_counts)
            if state == "running" and not is_written:
                state, ended = "killed", None
            # Early versions recorded the first start only, in other columns.
            entries = starts_of(starts) or [{"began": began, "command": command}]
            runs.append(
                Run(
                    number=int(number),
                    began=float(began),
                    ended=None if ended is None or state == "running" else float(ended),
                    state=state,
                    selection=view.text(selection),
                    halted=view.text(halted),
                    total=total,
                    states=Counter({State(name): accounts for name, accounts, _ in counts}),
                    requests=sum(requests for _, _, requests in counts),
                    starts=tuple(_start(view, entry) for entry in entries),
                )
            )
        return runs

    return view.read(convert, _RUNS, run)


def _start(view: JournalReader, entry: dict[str, Any]) -> Start:
    names = ("operator", "host", "version", "command")
    return Start(began=float(entry["began"]), **{name: view.text(entry.get(name)) for name in names})


def changes_of(view: JournalReader, account_id: str, run: int | None = None) -> list[AccountChange]:
    """Return the account's outcome in each run, oldest first; only in number *run* if given."""

    def convert(rows: list[Any]) -> list[AccountChange]:
        return [
            AccountChange(int(run), float(settled_at), State(state), *map(view.text, rest))
            for run, settled_at, state, *rest in rows
        ]

    return view.read(convert, _CHANGES, account_id, run)


def assignments_of(
    view: JournalReader, *, before: int | None = None, possible: bool = False
) -> Iterator[Assigned]:
    """
    Yield the latest assignment of each account, from the newest run to the oldest.

    Only runs with a number below *before* are read. If *possible*, yield every assignment that the account
    may have: after one that may not have been applied, the next older one, too.
    """
    finished: set[int] = set()  # hashes of account ids, which take half the memory of the ids
    in_doubt: set[int] = set()  # hashes of accounts that a later run may have changed
    # For each input, by its digest: which rows a later run has patched. Older runs need not read those rows.
    patched: dict[bytes, bytearray] = {}
    runs = "SELECT id, rows, total FROM runs WHERE id < coalesce(?, id + 1) ORDER BY id DESC"
    for run, digest, total in view.ask(runs, before):
        marks = bytearray()
        if digest is not None and type(total) is int and 0 < total < _MAX_MARKS:
            marks = patched.setdefault(digest, bytearray(total))
        for ordinal, line, account_id, assignment, state, settled_at in _unmarked_rows(view, run, marks):
            key = hash(account_id)
            if assignment is None:
                in_doubt.add(key)
                continue
            is_patched = state == "patched"
            # An account that was removed from the input has no line, and another may have its ordinal.
            if is_patched and line is not None and 0 <= ordinal < len(marks):
                marks[ordinal] = True
            if key not in finished:
                if is_patched or not possible:
                    finished.add(key)
                yield Assigned(
                    view.text(account_id),
                    view.text(assignment),
                    "patched" if is_patched and key not in in_doubt else "unknown",
                    run,
                    settled_at,
                )


def _unmarked_rows(view: JournalReader, run: int, marks: bytearray) -> Iterator[Any]:
    """Yield the rows of `_ASSIGNED` whose ordinals are not marked; all rows if that is faster."""
    [(last,)] = view.ask("SELECT max(ordinal) FROM outcomes WHERE run = ?", run)
    if last is None or last >= len(marks) or marks.count(False) > len(marks) * _MAX_UNMARKED_SHARE:
        return view.stream(_ASSIGNED.format(""), run)
    unmarked = [ordinal for ordinal, is_marked in enumerate(marks) if not is_marked]
    return view.stream(_ASSIGNED.format(_ONLY_ORDINALS), run, json.dumps(unmarked))


def select(selection: Selection, view: JournalReader) -> None:
    """Store in *selection* its accounts, and the number of others by assignment; raise if it has none."""
    run = view.run()
    # An unfinished run of this selection is resumed. Otherwise a new run starts.
    selection.run = run["id"] + (not resumes(view.ask, run, selection.text))
    selected, in_doubt = set[str](), dict[str, str]()
    for entry in assignments_of(view, before=selection.run, possible=True):
        account_id = entry.account_id
        if account_id in selected:
            continue
        latest = in_doubt.pop(account_id, entry.assignment)
        if selection.matches(entry.assignment):
            selected.add(account_id)
        elif entry.state == State.PATCHED:
            selection.outside[latest] += 1
        else:
            in_doubt[account_id] = latest
    selection.outside.update(in_doubt.values())
    selection.accounts = selected
    if not selected:
        raise JournalError(
            f"nothing was sent: {view.path} has no {selection.text}. `postpress-async export "
            f"{view.quoted_path} --assignments` lists what each account has"
        )


@frozen
class LeftBehind:
    """An account that a rollback cannot change. It has the attributes of a `Refusal` that events need."""

    account_id: str
    reason: str
    advice: str
    line: None = None
    column: None = None

    def __str__(self) -> str:
        return f"{self.account_id}: {self.reason}: {self.advice}"


@frozen
class RollbackPlan:
    """The changes of a rollback. The selection identifies its run."""

    selection: Selection
    changes: dict[str, ProxyChange]  # without accounts that already have the earlier assignment
    left_behind: list[LeftBehind]


def plan_rollback(view: JournalReader, to: int, proxies: Iterable[PooledProxy]) -> RollbackPlan:
    """
    Plan how each account gets back the assignment that it had after run number *to*.

    A custom proxy is looked up in *proxies* by its label. A managed proxy is ordered again, for the same
    country or IP address. If the latest run is an unfinished rollback to the same run, the plan is the same.

    Raises:
        JournalError: There is no earlier run with this number.
    """
    selection = Selection(f"rollback to run {to}")
    run = view.run()
    selection.run = number = run["id"] + (not resumes(view.ask, run, selection.text))
    if not view.ask("SELECT 1 FROM runs WHERE id = ? AND id < ?", to, number):
        raise JournalError(
            f"{view.path} has no run {to} to go back to: `postpress-async history {view.quoted_path}` "
            "lists its runs"
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
    country = next((word for word in words if word.isalpha()), None)
    ip = next((word for word in words if not word.isalpha()), None)
    return ManagedProxy(country=country, ip=ip)
