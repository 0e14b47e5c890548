"""
Nights of the campaign: several runs on one journal, with `--every`, `--keep`, `--on` and `rollback`.

Between them the fleet's file is edited and saved again, the pool changes, and hours or days pass.
`draw_nights` draws such a sequence from a seed. The checks compare what the journal says of all its runs with
what the server knows; `expected_run` and `may_refuse` say what a command must do.
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
NO_RUN: Final = -1

SAVED: Final[tuple[Callable[[str], bytes], ...]] = (
    str.encode,
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.encode("utf-8-sig"),
    lambda text: (text + "\n").encode(),
    lambda text: text.replace("\n", ",x\n").replace(",x", ",note", 1).encode(),
)
"""The same rows as spreadsheets save them: with CRLF, a byte-order mark, an empty line or a column more."""


# --- What a sequence is --------------------------------------------------------------------------


def draw_nights(seed: int, accounts: int | None = None) -> Sequence:
    """The nights of this *seed*; with another number of *accounts* if given."""
    dice = random.Random(f"nights {seed}")
    drawn = draw(seed, accounts or dice.randint(10, 60))
    # A new run sends an account in doubt under a new key: only a service that knows the keys bounds doubles.
    drawn = evolve(drawn, idempotency=True, from_file=dice.random() < 0.8)
    if drawn.accounts_per_proxy is not None:
        drawn = evolve(drawn, accounts_per_proxy=2 * drawn.accounts_per_proxy)  # rows are appended
    steps: list[Step] = []
    fleet, pool, unused = list(drawn.accounts), drawn.pool, iter(range(1_000))
    # Nights on which nothing is left, so that more of them are followed by others.
    is_calm = dice.random() < 0.5
    for number in range(dice.randint(3, 8)):
        # The troubles and the end of one of the other campaign's runs; most nights have few.
        step = dice.choice(draw(dice.randrange(10**9), len(fleet)).steps)
        if dice.random() < 0.6:
            step = Step(end=step.end, at=step.at, delay=step.delay, in_flight=step.in_flight)
        if dice.random() < (0.8 if is_calm else 0.2):
            step = Step(in_flight=step.in_flight)
        if number and dice.random() < 0.5:
            fleet = _edited(dice, fleet, unused)
        if number and dice.random() < 0.4:
            fleet = [_on_next_port(account) for account in fleet]
        if pool and dice.random() < 0.6:
            pool = tuple(dice.sample(pool, len(pool)))
        step = evolve(
            step,
            on_failed="report" if dice.random() < 0.8 else "retry",
            rest=dice.choice([1.0, HOUR, 24 * HOUR, 24 * HOUR]),
            accounts=tuple(fleet),
            pool=pool,
            saved_as=dice.randrange(len(SAVED)),
        )
        steps.append(evolve(step, **_command(dice, number, fleet, pool)))
    return evolve(drawn, steps=tuple(steps), is_nights=True)


def _command(
    dice: random.Random, number: int, fleet: list[Account], pool: tuple[CustomProxy, ...]
) -> dict[str, Any]:
    chance = dice.random()
    if number and chance < 0.25:
        own = [account.change for account in fleet if isinstance(account.change, CustomProxy)]
        if proxies := [*pool, *pool, *own[:3]]:
            return {"on": tuple({proxy.host for proxy in dice.choices(proxies, k=2)})}
    if number and chance < 0.5:
        return {"back": dice.choice([0.0, dice.random()])}
    keep = dice.choice([None, None, None, 1, 2, 5])
    return {"every": None if chance > 0.9 else dice.choice([0.0, EVERY, EVERY]), "keep": keep}


def _on_next_port(account: Account) -> Account:
    change = account.change
    if not isinstance(change, CustomProxy):
        return account
    return evolve(account, change=evolve(change, port=change.port + 1))


def _edited(dice: random.Random, fleet: list[Account], unused: Iterator[int]) -> list[Account]:
    """The fleet with rows appended, removed, reordered, inserted, or with another change."""
    fleet = list(fleet)
    new = [Account(f"new_{next(unused):03}", dice.choice(fleet).change) for _ in range(dice.randint(1, 5))]
    match dice.choice(["append", "append", "remove", "reorder", "insert", "change"]):
        case "append":
            fleet += new
        case "remove" if len(fleet) > 5:
            for _ in range(dice.randint(1, 4)):
                fleet.pop(dice.randrange(len(fleet)))
        case "reorder":
            dice.shuffle(fleet)
        case "insert":
            for account in new:
                fleet.insert(dice.randrange(len(fleet)), account)
        case "change":
            for index in dice.sample(range(len(fleet)), min(len(fleet), 5)):
                if isinstance(fleet[index].change, ManagedProxy):
                    change = ManagedProxy(country=dice.choice(COUNTRIES))
                    fleet[index] = Account(fleet[index].account_id, change)
    return fleet


# --- What a command must do ----------------------------------------------------------------------


def intent_of(case: Case, journal: Path, step: Step, now: float) -> tuple[Intent, Any, Selection | None]:
    """
    What a command of *step* is about, the changes of a rollback (otherwise None), and its selection.

    The changes are empty if there is nothing to roll back.
    """
    reading = case.reading
    accounts = step.accounts or case.accounts
    if not step.takes_some or not reading.latest:
        return Intent(accounts, expected=expected_run(case, step, None, now)), None, None
    with JournalReader(journal) as view:
        if step.back is None:
            selection = Selection.of(step.on)
            assert selection is not None
            with suppress(JournalError):  # no account matches: the command says so
                select(selection, view)
            taken = frozenset(selection.accounts or ())
            intent = Intent(accounts, taken, expected_run(case, step, None, now))
            return intent, None, selection
        to = _back_to(case, step)
        proxies = {proxy: None for fleet in (case.sequence.accounts, accounts) for proxy in _proxies(fleet)}
        lists = [*proxies, *case.sequence.pool]
        plan = plan_rollback(view, to, ProxyPool(lists) if lists else ())
    behind = frozenset(account.account_id for account in plan.left_behind)
    rows = tuple(Account(account_id, change) for account_id, change in plan.changes.items())
    expected = expected_run(case, step, to, now)
    return Intent(rows, None, expected, to, behind), plan.changes, plan.selection


def _back_to(case: Case, step: Step) -> int:
    """The run to which a rollback goes back; that of an unfinished one if there is one."""
    if case.intent.back_to is not None and case.runs[case.first - 1].step.back == step.back:
        return case.intent.back_to
    runs = sorted(case.reading.runs)
    return runs[int((step.back or 0) * (len(runs) - 1))]


def selection_of(step: Step, to: int | None) -> str | None:
    """What the journal says of the accounts that a run of *step* takes; None for all."""
    if step.on:
        return f"accounts on {', '.join(sorted(set(step.on)))}"
    return None if to is None else f"rollback to run {to}"


def expected_run(case: Case, step: Step, to: int | None, now: float) -> int:
    """The number of the run that *step* starts or resumes, or `NO_RUN` if the command must be refused."""
    reading, on_unknown = case.reading, step.on_unknown or case.sequence.on_unknown
    number, selection = reading.latest, selection_of(step, to)
    if not number:
        return 1 if selection is None else NO_RUN
    latest, is_complete = reading.runs[number], is_over(reading, step, on_unknown)
    if selection is not None:
        # What is left of a run of some accounts is sent under the keys that it began with.
        is_left = any(record.state in {State.UNKNOWN, State.SKIPPED} for record in reading.table.values())
        if latest["selection"] == selection and (not is_complete or is_left):
            return number
        return number + 1 if is_complete else NO_RUN
    if not is_complete:
        return number if latest["selection"] is None else NO_RUN
    if step.every is None:
        return number if latest["selection"] is None else NO_RUN
    began = max((run["began"] or 0 for run in reading.runs.values() if run["selection"] is None), default=0)
    return number + (began + step.every <= now)


def is_over(reading: Reading, step: Step, on_unknown: OnUnknown) -> bool:
    """Whether the latest run is complete, or has nothing left that *step* would send."""
    done = {State.PATCHED, State.FAILED, State.UNKNOWN}
    done -= {State.FAILED} if step.on_failed == "retry" else set()
    done -= {State.UNKNOWN} if on_unknown == "retry" else set()
    total = reading.status["total"]  # None if no run came to record it
    left = (inf if total is None else total) - sum(r.state in done for r in reading.table.values())
    return bool(reading.runs[reading.latest]["state"] == "complete" or left <= 0)


def may_refuse(case: Case, step: Step, message: str) -> bool:
    """Whether a command may be refused with this *message* although its run could be started or resumed."""
    reading, accounts = case.before, case.intent.accounts
    is_complete = bool(reading.latest) and is_over(reading, step, step.on_unknown or case.sequence.on_unknown)
    if step.on and ("has no accounts on" in message or "the input has none of" in message):
        return True  # `check_selection` knows whether an account is on it
    if "had another pool" in message:
        return is_complete and step.every is None
    if "belongs to another input" not in message:
        return False
    if step.takes_some or is_complete:
        return True
    if accounts[: len(case.accounts)] == case.accounts:
        return False  # rows were appended at most
    was_killed = any(run.died for run in case.runs_of_latest)
    changes = {account.account_id: account.change for account in case.accounts}
    is_changed = any(changes.get(a.account_id, a.change) != a.change for a in accounts)
    return was_killed or is_changed or not case.sequence.from_file


# --- What the journal says of its runs -----------------------------------------------------------


def _proxies(accounts: tuple[Account, ...]) -> Iterator[CustomProxy]:
    return (account.change for account in accounts if isinstance(account.change, CustomProxy))


def label_of(change: dict[str, Any]) -> str:
    """The assignment that a request asks for."""
    if (proxy := change.get("proxy")) is None:
        return f"managed {change['country']}"
    user = f"{proxy['username']}@" if "username" in proxy else ""
    return f"{user}{proxy['host']}:{proxy['port']}"


def _held(case: Case, account_id: str, until: int | None = None) -> str | None:
    """What the account has, or had before the run *until*, as the server knows."""
    applied = [
        request
        for request in case.server.by_account.get(account_id, ())
        if request.applied_at is not None and (until is None or request.run < until)
    ]
    # By when they were sent, as in `check_patched`: no client knows that a slow one was applied late.
    return label_of(applied[-1].change) if applied else None


def audit(case: Case, journal: Path) -> list[Finding]:
    """`campaign_audit.audit`, and what is to be said of several runs."""
    if case.run.was_refused or case.run.left_alone:
        return campaign_audit.audit(case, journal, (check_nothing_happened,))
    return campaign_audit.audit(case, journal, (*campaign_audit.CHECKS, *CHECKS))


def check_nothing_happened(case: Case) -> Iterator[Finding]:
    """A command that was refused, or that left a complete run alone, had a cause, and changed nothing."""
    run, before, after, expected = case.run, case.before, case.reading, case.intent.expected
    if sent := case.server.sent_in(run.number):
        yield Finding("refused, but sent", sent[0].account_id, str(run.error))
    # Pairs are compared after failed accounts were made ready to be sent again, and after doubts were dated.
    from_file = case.sequence.from_file
    is_ready = run.step.on_failed == "retry" and not from_file
    if not is_ready and _recorded(before, dated=from_file) != _recorded(after, dated=from_file):
        yield Finding("refused, but the journal has changed", None, str(run.error))
    if run.left_alone and (
        expected != before.latest
        or not is_over(before, run.step, run.step.on_unknown or case.sequence.on_unknown)
    ):
        yield Finding("a run that is due was left alone", None, str(run.step))
    if run.was_refused and expected != NO_RUN and not may_refuse(case, run.step, str(run.error)):
        yield Finding("refused without a cause", None, f"{run.error}: {run.step}")


def _recorded(reading: Reading, *, dated: bool) -> list[list[Any]]:
    """The outcomes and assignments of all runs; without their times if they are not *dated*."""
    rows = [row if dated else (*row[:12], *row[13:]) for run in reading.outcomes.values() for row in run]
    lines = [line if dated else {**line, "settled_at": None} for line in reading.assignments]
    return [rows, lines]


def check_number(case: Case) -> Iterator[Finding]:
    """A command starts a run exactly if one is due, and otherwise resumes the latest one."""
    reading, expected = case.reading, case.intent.expected
    if expected == NO_RUN and case.run.opened:
        yield Finding("not refused", None, str(case.run.step))
    elif reading.latest != expected and case.run.opened:
        yield Finding("wrong run", None, f"run {reading.latest} instead of {expected}: {case.run.step}")


def check_past(case: Case) -> Iterator[Finding]:
    """What the journal says of earlier runs never changes."""
    before, after = case.before, case.reading
    if case.run.number == case.first:  # it started a run
        keep = case.run.step.keep
        if keep is not None and not case.run.step.takes_some and len(after.runs) > keep:
            yield Finding("too many runs are kept", None, f"{list(after.runs)}, with keep={keep}")
    for run in before.runs:
        was = (before.runs[run], before.outcomes[run])
        if run < after.latest and run in after.runs and was != (after.runs[run], after.outcomes[run]):
            yield Finding("an earlier run has changed", None, f"run {run}")


def check_fresh_keys(case: Case) -> Iterator[Finding]:
    """No run uses an idempotency key of an earlier one."""
    keys = {request.key for request in case.server.requests if request.run < case.first}
    for request in case.server.sent_in(case.run.number):
        if request.key in keys:
            yield Finding("key of an earlier run", request.account_id, str(request))


def check_history(case: Case) -> Iterator[Finding]:
    """`history` lists the runs, with the counts of their outcomes."""
    reading = case.reading
    began = [number for number, run in reading.runs.items() if run["began"] is not None]
    if [run["number"] for run in reading.history] != began:
        yield Finding("history lists other runs", None, f"{reading.history} instead of {began}")
        return
    for run in reading.history:
        states = Counter(row[4] for row in reading.outcomes[run["number"]])
        if Counter(run["states"]) != states:
            yield Finding("history counts wrong", None, f"{run}, but {states}")


def check_assignments(case: Case) -> Iterator[Finding]:
    """An account has what `export --assignments` says that it was patched to."""
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
        if (held := _held(case, account_id)) != line["assignment"]:
            yield Finding("assignment that is not so", account_id, f"{line}, but it has {held}")


def check_selection(case: Case) -> Iterator[Finding]:
    """A run of the accounts on a proxy takes all of them that are in the input, and no others."""
    step = case.runs[case.first - 1].step
    if not step.on or case.reading.latest != case.intent.expected:
        return
    # A run that died recorded no assignment of some accounts.
    latest = {row[3]: row for run in sorted(case.start.outcomes) for row in case.start.outcomes[run]}
    known = {account_id for account_id, row in latest.items() if row[4] == State.PATCHED}
    # What --on-unknown report records of a killed run, although nothing was sent.
    doubts = {
        id_ for id_, row in latest.items() if row[4:6] == (State.UNKNOWN, 0) and _is_on(row[13], step.on)
    }
    for account in case.accounts:
        held, sent = _held(case, account.account_id, case.first), case.sent(account.account_id)
        is_on = _is_on(held, step.on)
        is_on_if_sent = account.account_id in doubts
        if sent and not is_on and not is_on_if_sent and not _may_be_on(case, account.account_id, step.on):
            yield Finding("another account was taken", account.account_id, f"{step.on}, but it has {held}")
        is_known = account.account_id in known
        is_taken = case.taken is not None and account.account_id in case.taken
        if is_on and is_known and not is_taken:
            yield Finding("an account was left out", account.account_id, f"{step.on}, and it has {held}")


def _may_be_on(case: Case, account_id: str, hosts: tuple[str, ...]) -> bool:
    """Whether a request that the client is not certain about asked for one of the *hosts*."""
    for request in reversed(case.server.by_account.get(account_id, ())):
        has_died = request.run < case.first and case.runs[request.run - 1].died
        if request.run >= case.first or (request.is_refused and not has_died):
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
    """A run of some accounts counts the other accounts of a proxy, too."""
    cap = case.sequence.accounts_per_proxy
    if cap is None or not case.run.step.on:
        return
    held = Counter(_held(case, account.account_id) for account in case.accounts)
    assigned = {record.proxy for _, record in case.records if record is not None and record.proxy}
    for label in assigned & {proxy.host + f":{proxy.port}" for proxy in case.sequence.pool}:
        if held[label] > cap:
            yield Finding("proxy over its cap", None, f"{label} has {held[label]} accounts, {cap} allowed")


def check_rollback(case: Case) -> Iterator[Finding]:
    """After a rollback, each account has what it had, unless the plan says that it cannot go back."""
    if (
        case.intent.back_to is None
        or not case.run.opened
        or case.reading.runs[case.reading.latest]["state"] != "complete"
    ):
        return
    until = case.first_of.get(case.intent.back_to + 1, case.first)
    for account_id in case.server.by_account:
        had = _held(case, account_id, until)
        if had is None or account_id in case.intent.left_behind:
            continue
        states = {record.account_id: record.state for record in case.reading.table.values()}
        if states.get(account_id, State.PATCHED) == State.PATCHED and (now := _held(case, account_id)) != had:
            yield Finding("not rolled back", account_id, f"it had {had}, and has {now}")


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
