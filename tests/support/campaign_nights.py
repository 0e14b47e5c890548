"""
Sequences of nights: several journal runs, with `--every`, `--keep`, `--on` and `rollback`.

Between the nights, the fleet's file is edited and saved again, the pool changes, and hours or days pass.
`draw_nights` draws a sequence from a seed. The checks compare all runs in the journal with what the server
knows. `expected_run` and `may_refuse` define what a command must do.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from postpress_async import CustomProxy, ManagedProxy, ProxyPool
from postpress_async.errors import JournalError
from postpress_async.rotation import State
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal._history import plan_rollback, select
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._recovery import OnUnknown
from tests.support import campaign_audit
from tests.support.campaign_audit import Case, Check, Finding, Intent
from tests.support.campaign_plan import COUNTRIES, Account, Sequence, Step, draw
from tests.support.campaign_reading import Reading

HOUR: Final = 3_600.0
EVERY: Final = 20 * HOUR
# Indexes in a row of the table ``outcomes``.
_ACCOUNT_ID, _STATE, _ATTEMPTS, _SETTLED_AT, _ASSIGNMENT = 3, 4, 5, 12, 13
NO_RUN: Final = -1
"""The expected run of a command that must be refused."""

FILE_FORMATS: Final[tuple[Callable[[str], bytes], ...]] = (
    str.encode,
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.encode("utf-8-sig"),
    lambda text: (text + "\n").encode(),
    lambda text: text.replace("\n", ",x\n").replace(",x", ",note", 1).encode(),
)
"""Formats in which spreadsheets save the same rows: plain, or with CRLF, a byte-order mark, an empty line or
another column."""


# --- Drawing a sequence --------------------------------------------------------------------------


def draw_nights(seed: int, accounts: int | None = None) -> Sequence:
    """Draw the sequence of nights of this *seed*, with this number of *accounts* if given."""
    rng = random.Random(f"nights {seed}")
    drawn = draw(seed, accounts or rng.randint(10, 60))
    # With keys, because a new run sends an account in doubt under a new key.
    drawn = evolve(drawn, idempotency=True, from_file=rng.random() < 0.8)
    if drawn.accounts_per_proxy is not None:
        drawn = evolve(drawn, accounts_per_proxy=2 * drawn.accounts_per_proxy)  # rows are appended
    steps: list[Step] = []
    fleet, pool, unused = list(drawn.accounts), drawn.pool, iter(range(1_000))
    # In half of the sequences, most runs complete, so that more journal runs follow.
    is_calm = rng.random() < 0.5
    for number in range(rng.randint(3, 8)):
        # A run of another sequence, but usually without its failures.
        step = rng.choice(draw(rng.randrange(10**9), len(fleet)).steps)
        if rng.random() < 0.6:
            step = Step(
                end=step.end, after_requests=step.after_requests, delay=step.delay, in_flight=step.in_flight
            )
        if rng.random() < (0.8 if is_calm else 0.2):
            step = Step(in_flight=step.in_flight)
        if number and rng.random() < 0.5:
            fleet = _edited(rng, fleet, unused)
        if number and rng.random() < 0.4:
            fleet = [_on_next_port(account) for account in fleet]
        if pool and rng.random() < 0.6:
            pool = tuple(rng.sample(pool, len(pool)))
        step = evolve(
            step,
            on_failed="report" if rng.random() < 0.8 else "retry",
            pause=rng.choice([1.0, HOUR, 24 * HOUR, 24 * HOUR]),
            accounts=tuple(fleet),
            pool=pool,
            file_format=rng.randrange(len(FILE_FORMATS)),
        )
        steps.append(evolve(step, **_command(rng, number, fleet, pool)))
    return evolve(drawn, steps=tuple(steps), is_nights=True)


def _command(
    rng: random.Random, number: int, fleet: list[Account], pool: tuple[CustomProxy, ...]
) -> dict[str, Any]:
    chance = rng.random()
    if number and chance < 0.25:
        own = [account.change for account in fleet if isinstance(account.change, CustomProxy)]
        if proxies := [*pool, *pool, *own[:3]]:
            return {"on": tuple({proxy.host for proxy in rng.choices(proxies, k=2)})}
    if number and chance < 0.5:
        return {"rollback_to": rng.choice([0.0, rng.random()])}
    keep = rng.choice([None, None, None, 1, 2, 5])
    return {"every": None if chance > 0.9 else rng.choice([0.0, EVERY, EVERY]), "keep": keep}


def _on_next_port(account: Account) -> Account:
    change = account.change
    if not isinstance(change, CustomProxy):
        return account
    return evolve(account, change=evolve(change, port=change.port + 1))


def _edited(rng: random.Random, fleet: list[Account], unused: Iterator[int]) -> list[Account]:
    """Return the fleet with rows appended, removed, reordered, inserted or changed."""
    fleet = list(fleet)
    new = [Account(f"new_{next(unused):03}", rng.choice(fleet).change) for _ in range(rng.randint(1, 5))]
    match rng.choice(["append", "append", "remove", "reorder", "insert", "change"]):
        case "append":
            fleet += new
        case "remove" if len(fleet) > 5:
            for _ in range(rng.randint(1, 4)):
                fleet.pop(rng.randrange(len(fleet)))
        case "reorder":
            rng.shuffle(fleet)
        case "insert":
            for account in new:
                fleet.insert(rng.randrange(len(fleet)), account)
        case "change":
            for index in rng.sample(range(len(fleet)), min(len(fleet), 5)):
                if isinstance(fleet[index].change, ManagedProxy):
                    change = ManagedProxy(country=rng.choice(COUNTRIES))
                    fleet[index] = Account(fleet[index].account_id, change)
    return fleet


# --- What a command must do ----------------------------------------------------------------------


def intent_of(case: Case, journal: Path, step: Step, now: float) -> tuple[Intent, Any, Selection | None]:
    """
    Return what a run of *step* must do, the changes of a rollback, and the selection.

    The changes are None if the run is no rollback, and empty if there is nothing to roll back.
    """
    reading = case.reading
    accounts = step.accounts or case.accounts
    if not step.is_partial or not reading.latest:
        return Intent(accounts, expected_run=expected_run(case, step, None, now)), None, None
    with JournalReader(journal) as view:
        if step.rollback_to is None:
            selection = Selection.of(step.on)
            assert selection is not None
            with suppress(JournalError):  # no account matches, so the command is refused
                select(selection, view)
            selected = frozenset(selection.accounts or ())
            intent = Intent(accounts, selected, expected_run(case, step, None, now))
            return intent, None, selection
        to = _rollback_target(case, step)
        fleets = (*case.sequence.accounts, *accounts)
        custom = [account.change for account in fleets if isinstance(account.change, CustomProxy)]
        proxies = list(dict.fromkeys(custom)) + list(case.sequence.pool)
        plan = plan_rollback(view, to, ProxyPool(proxies) if proxies else ())
    left_behind = frozenset(account.account_id for account in plan.left_behind)
    rows = tuple(Account(account_id, change) for account_id, change in plan.changes.items())
    expected = expected_run(case, step, to, now)
    return Intent(rows, None, expected, to, left_behind), plan.changes, plan.selection


def _rollback_target(case: Case, step: Step) -> int:
    """Return the journal run to which a rollback goes back. A resumed rollback keeps its target."""
    if (
        case.intent.rollback_run is not None
        and case.runs[case.first_run - 1].step.rollback_to == step.rollback_to
    ):
        return case.intent.rollback_run
    runs = sorted(case.reading.runs)
    return runs[int((step.rollback_to or 0) * (len(runs) - 1))]


def selection_of(step: Step, to: int | None) -> str | None:
    """Return the selection that the journal records for a run of *step*; None for all accounts."""
    if step.on:
        return f"accounts on {', '.join(sorted(set(step.on)))}"
    return None if to is None else f"rollback to run {to}"


def expected_run(case: Case, step: Step, to: int | None, now: float) -> int:
    """Return the journal run that *step* must start or resume, or `NO_RUN` if it must be refused."""
    reading = case.reading
    number, selection = reading.latest, selection_of(step, to)
    if not number:
        return 1 if selection is None else NO_RUN
    latest = reading.runs[number]
    is_complete = is_finished(reading, step, step.on_unknown or case.sequence.on_unknown)
    if selection is not None:
        # The remaining accounts of a selection are sent under the keys of its journal run.
        has_remaining = any(
            record.state in {State.UNKNOWN, State.SKIPPED} for record in reading.table.values()
        )
        if latest["selection"] == selection and (not is_complete or has_remaining):
            return number
        return number + 1 if is_complete else NO_RUN
    if not is_complete:
        return number if latest["selection"] is None else NO_RUN
    if step.every is None:
        return number if latest["selection"] is None else NO_RUN
    began = max((run["began"] or 0 for run in reading.runs.values() if run["selection"] is None), default=0)
    return number + (began + step.every <= now)


def is_finished(reading: Reading, step: Step, on_unknown: OnUnknown) -> bool:
    """Whether the latest journal run is complete, or has no account that *step* would send."""
    done = {State.PATCHED, State.FAILED, State.UNKNOWN}
    done -= {State.FAILED} if step.on_failed == "retry" else set()
    done -= {State.UNKNOWN} if on_unknown == "retry" else set()
    total = reading.status["total"]  # None if every run died before it was recorded
    remaining = (inf if total is None else total) - sum(r.state in done for r in reading.table.values())
    return bool(reading.runs[reading.latest]["state"] == "complete" or remaining <= 0)


def may_refuse(case: Case, step: Step, message: str) -> bool:
    """Whether a command may be refused with this *message* although `expected_run` names a run."""
    reading, accounts = case.previous, case.intent.accounts
    is_complete = bool(reading.latest) and is_finished(
        reading, step, step.on_unknown or case.sequence.on_unknown
    )
    if step.on and ("has no accounts on" in message or "the input has none of" in message):
        return True  # `check_selection` checks whether accounts are on the proxy
    if "used another pool" in message:
        return is_complete and step.every is None
    if "belongs to another input" not in message:
        return False
    if step.is_partial or is_complete:
        return True
    if accounts[: len(case.accounts)] == case.accounts:
        return False  # at most, rows were appended
    was_killed = any(run.died for run in case.runs_of_latest)
    changes = {account.account_id: account.change for account in case.accounts}
    is_changed = any(changes.get(a.account_id, a.change) != a.change for a in accounts)
    return was_killed or is_changed or not case.sequence.from_file


# --- The checks ----------------------------------------------------------------------------------


def label_of(change: dict[str, Any]) -> str:
    """Return the assignment that a request asks for."""
    proxy = change.get("proxy")
    if proxy is None:
        return f"managed {change['country']}"
    user = f"{proxy['username']}@" if "username" in proxy else ""
    return f"{user}{proxy['host']}:{proxy['port']}"


def _assignment_held(case: Case, account_id: str, until: int | None = None) -> str | None:
    """Return the account's assignment at the server, or its assignment before the run *until*."""
    applied = [
        request
        for request in case.server.by_account.get(account_id, ())
        if request.applied_at is not None and (until is None or request.run < until)
    ]
    # By the order of sending, as in `check_patched`: a client cannot know in which order they were applied.
    return label_of(applied[-1].change) if applied else None


def audit(case: Case, journal: Path) -> list[Finding]:
    """Run `campaign_audit.audit` with the checks for several journal runs, too."""
    if case.run.was_refused or case.run.left_alone:
        return campaign_audit.audit(case, journal, (check_nothing_happened,))
    return campaign_audit.audit(case, journal, (*campaign_audit.CHECKS, *CHECKS))


def check_nothing_happened(case: Case) -> Iterator[Finding]:
    """A command that was refused or left a complete run alone had a reason to do so, and changed nothing."""
    run, before, after, expected = case.run, case.previous, case.reading, case.intent.expected_run
    requests = case.server.sent_in(run.number)
    if requests:
        yield Finding("refused, but sent", requests[0].account_id, str(run.error))
    # Pairs are compared after the journal was opened for the run. That reopens failed accounts and sets the
    # times of accounts in doubt, although the run is refused.
    from_file = case.sequence.from_file
    reopens_failed = run.step.on_failed == "retry" and not from_file
    has_changed = _recorded(before, with_times=from_file) != _recorded(after, with_times=from_file)
    if has_changed and not reopens_failed:
        yield Finding("refused, but the journal has changed", None, str(run.error))
    if run.left_alone and (
        expected != before.latest
        or not is_finished(before, run.step, run.step.on_unknown or case.sequence.on_unknown)
    ):
        yield Finding("a run that is due was left alone", None, str(run.step))
    if run.was_refused and expected != NO_RUN and not may_refuse(case, run.step, str(run.error)):
        yield Finding("refused without a cause", None, f"{run.error}: {run.step}")


def _recorded(reading: Reading, *, with_times: bool) -> list[list[Any]]:
    """Return the outcomes and assignments of all runs."""
    rows = [row for outcomes in reading.outcomes.values() for row in outcomes]
    lines = list(reading.assignments)
    if not with_times:
        rows = [(*row[:_SETTLED_AT], *row[_SETTLED_AT + 1 :]) for row in rows]
        lines = [{**line, "settled_at": None} for line in lines]
    return [rows, lines]


def check_number(case: Case) -> Iterator[Finding]:
    """A command starts a journal run if one is due, and otherwise resumes the latest one."""
    reading, expected = case.reading, case.intent.expected_run
    if expected == NO_RUN and case.run.opened:
        yield Finding("not refused", None, str(case.run.step))
    elif reading.latest != expected and case.run.opened:
        yield Finding("wrong run", None, f"run {reading.latest} instead of {expected}: {case.run.step}")


def check_past(case: Case) -> Iterator[Finding]:
    """The journal's earlier runs do not change, and `--keep` deletes the oldest ones."""
    before, after = case.previous, case.reading
    if case.run.number == case.first_run:  # it started a journal run
        keep = case.run.step.keep
        if keep is not None and not case.run.step.is_partial and len(after.runs) > keep:
            yield Finding("too many runs are kept", None, f"{list(after.runs)}, with keep={keep}")
    for run in before.runs:
        if run == after.latest or run not in after.runs:
            continue
        if (before.runs[run], before.outcomes[run]) != (after.runs[run], after.outcomes[run]):
            yield Finding("an earlier run has changed", None, f"run {run}")


def check_fresh_keys(case: Case) -> Iterator[Finding]:
    """No journal run uses an idempotency key of an earlier one."""
    keys = {request.key for request in case.server.requests if request.run < case.first_run}
    for request in case.server.sent_in(case.run.number):
        if request.key in keys:
            yield Finding("key of an earlier run", request.account_id, str(request))


def check_history(case: Case) -> Iterator[Finding]:
    """`history` lists the journal's runs with the right number of accounts by state."""
    reading = case.reading
    began = [number for number, run in reading.runs.items() if run["began"] is not None]
    if [run["number"] for run in reading.history] != began:
        yield Finding("history lists other runs", None, f"{reading.history} instead of {began}")
        return
    for run in reading.history:
        states = Counter(row[_STATE] for row in reading.outcomes[run["number"]])
        if Counter(run["states"]) != states:
            yield Finding("wrong counts in history", None, f"{run}, but {states}")


def check_assignments(case: Case) -> Iterator[Finding]:
    """An account that `export --assignments` lists as patched has that assignment at the server."""
    reading = case.reading
    rows = {record.account_id for record in reading.table.values()}
    unrecorded = {
        account.account_id
        for ordinal, account in enumerate(case.accounts)
        if ordinal < reading.may_be_sent and account.account_id not in rows
    }
    for line in reading.assignments:
        account_id = line["account_id"]
        if line["state"] != State.PATCHED or account_id in unrecorded:
            continue
        held = _assignment_held(case, account_id)
        if held != line["assignment"]:
            yield Finding("wrong assignment", account_id, f"{line}, but it has {held}")


def check_selection(case: Case) -> Iterator[Finding]:
    """A run with `--on` sends all accounts of the input that are on the proxies, and no others."""
    step = case.runs[case.first_run - 1].step
    if not step.on or case.reading.latest != case.intent.expected_run:
        return
    # A run that died has not recorded the assignments of some accounts, so `--on` cannot select these.
    start = case.reading_at_start
    latest = {row[_ACCOUNT_ID]: row for run in sorted(start.outcomes) for row in start.outcomes[run]}
    known = {account_id for account_id, row in latest.items() if row[_STATE] == State.PATCHED}
    # `--on-unknown report` records accounts of a killed run as unknown, although they may not have been sent.
    in_doubt = {
        account_id
        for account_id, row in latest.items()
        if row[_STATE] == State.UNKNOWN and row[_ATTEMPTS] == 0 and _is_on(row[_ASSIGNMENT], step.on)
    }
    for account in case.accounts:
        held, sent = _assignment_held(case, account.account_id, case.first_run), case.sent(account.account_id)
        is_on = _is_on(held, step.on)
        is_on_if_sent = account.account_id in in_doubt
        if sent and not is_on and not is_on_if_sent and not _may_be_on(case, account.account_id, step.on):
            yield Finding(
                "an account was sent that is not selected",
                account.account_id,
                f"{step.on}, but it has {held}",
            )
        is_known = account.account_id in known
        is_selected = case.selected is not None and account.account_id in case.selected
        if is_on and is_known and not is_selected:
            yield Finding("an account was left out", account.account_id, f"{step.on}, and it has {held}")


def _may_be_on(case: Case, account_id: str, hosts: tuple[str, ...]) -> bool:
    """Whether a request whose outcome the client may not know asked for one of the *hosts*."""
    for request in reversed(case.server.by_account.get(account_id, ())):
        has_died = request.run < case.first_run and case.runs[request.run - 1].died
        if request.run >= case.first_run or (request.is_refused and not has_died):
            continue
        if _host(label_of(request.change)) in hosts:
            return True
        if request.status == 200 and request.is_received and not has_died:
            return False
    return False


def _is_on(label: str | None, hosts: tuple[str, ...]) -> bool:
    return label is not None and _host(label) in hosts


def _host(label: str) -> str:
    return label.rpartition("@")[2].partition(":")[0]


def check_caps_outside(case: Case) -> Iterator[Finding]:
    """In a run with `--on`, accounts outside the selection count for the limit of a proxy, too."""
    cap = case.sequence.accounts_per_proxy
    if cap is None or not case.run.step.on:
        return
    held = Counter(_assignment_held(case, account.account_id) for account in case.accounts)
    assigned = {record.proxy for _, record in case.records if record is not None and record.proxy}
    for label in assigned & {proxy.host + f":{proxy.port}" for proxy in case.sequence.pool}:
        if held[label] > cap:
            yield Finding("proxy over its cap", None, f"{label} has {held[label]} accounts, {cap} allowed")


def check_rollback(case: Case) -> Iterator[Finding]:
    """After a complete rollback, each account has its earlier assignment, unless it cannot go back."""
    if (
        case.intent.rollback_run is None
        or not case.run.opened
        or case.reading.runs[case.reading.latest]["state"] != "complete"
    ):
        return
    until = case.first_runs.get(case.intent.rollback_run + 1, case.first_run)
    for account_id in case.server.by_account:
        had = _assignment_held(case, account_id, until)
        if had is None or account_id in case.intent.left_behind:
            continue
        states = {record.account_id: record.state for record in case.reading.table.values()}
        held = _assignment_held(case, account_id)
        if states.get(account_id, State.PATCHED) == State.PATCHED and held != had:
            yield Finding("not rolled back", account_id, f"it had {had}, and has {held}")


CHECKS: Final[tuple[Check, ...]] = (
    check_number,
    check_past,
    check_fresh_keys,
    check_history,
    check_assignments,
    check_selection,
    check_caps_outside,
    check_rollback,
)
