"""
The campaign: seeded sequences of runs on one journal, audited after every run.

A sequence runs in one process and in virtual time, with the real session, rotation and journal, against a
`CountingServer`. A kill takes the journal's files as they lie there; what was sent goes on at the server.

Play one sequence again, with all that happened to the accounts that it is about:

    python -m tests.support.campaign --seed 17

Play 300 of them, and count what they find by kind:

    python -m tests.support.campaign --sequences 300
"""

import argparse
import asyncio
import csv
import io
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol
from unittest.mock import patch

from attrs import define, evolve, field, fields, has

from postpress_async import Fleet, Pace, PostPressSession, ProxyPool, RetryPolicy, Rotation
from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.rotation import State
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._recovery import OnUnknown
from tests.support import stepped_loop
from tests.support.campaign_audit import Case, Finding, RunReport
from tests.support.campaign_machine import Disk, machine, session_over
from tests.support.campaign_nights import SAVED, audit, draw_nights, intent_of
from tests.support.campaign_plan import Account, End, Sequence, Step, draw, healthy
from tests.support.campaign_reading import copy_journal
from tests.support.counting_server import API_KEY, Conditions, CountingServer, CountingTransport

LONGEST: Final = 8 * 3600.0
"""Virtual seconds that a run may take. An outage is waited out for up to four hours."""
RETRIES: Final = 3
"""Healthy runs with `on_failed="retry"` at the end of a sequence, at most."""


# --- One sequence --------------------------------------------------------------------------------


@define
class Player:
    """
    Plays a sequence, and audits it after every run.

    Attributes:
        sequence: What to play.
        folder: Where its journals go: another one after each kill.
        case: The sequence so far.
        findings: What the audits found, each kind once for each account.
        journal: The journal that the next run goes on with.
    """

    sequence: Sequence
    folder: Path
    case: Case = field(init=False)
    findings: list[tuple[int, Finding]] = field(factory=list, init=False)
    journal: Path = field(init=False)
    _fleet: tuple[Account, ...] = field(init=False)
    _seen: set[tuple[str, str | None]] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        server = CountingServer(self.sequence.seed, self.sequence.traits)
        self.case = Case(self.sequence, server, accounts=self.sequence.accounts)
        self._fleet = self.sequence.accounts
        self.journal = self.folder / "journal-0.sqlite3"

    def play(self) -> list[tuple[int, Finding]]:
        """The findings, each with the number of the run after which it was made."""
        random.seed(self.sequence.seed)  # of which backoffs and probes are drawn
        try:
            stepped_loop.run(self._play())
        except stepped_loop.HangError as error:
            self._note([Finding("hangs", None, str(error))])
        return self.findings

    async def _play(self) -> None:
        for step in self.sequence.steps:
            await self._play_run(step)
        # The key works again, the service is healthy: nothing may have been lost, and nothing is doubled.
        on_unknown: OnUnknown | None = "retry" if self.sequence.idempotency else None
        await self._play_run(self._same(healthy("report", on_unknown=on_unknown)))
        if self.sequence.is_nights:
            last = self.sequence.steps[-1]
            await self._play_run(evolve(healthy("report"), every=0.0, accounts=last.accounts, pool=last.pool))
        for _ in range(RETRIES):
            await self._play_run(self._same(healthy("retry", on_unknown=on_unknown)))
            if self._is_done():
                break
        self.case.is_last = True
        self._note(audit(self.case, self.journal))
        await self.case.server.settle()

    def _is_done(self) -> bool:
        good = self.case.refused_for_good
        return all(
            record is not None
            and (record.state in {State.PATCHED, State.UNKNOWN} or account.account_id in good)
            for account, record in self.case.records
        )

    def _same(self, step: Step) -> Step:
        """*step*, for the accounts of the journal's latest run."""
        opening = self.case.runs[self.case.first - 1].step if self.case.runs else Step()
        return evolve(step, on=opening.on, back=opening.back, accounts=self._fleet, pool=opening.pool)

    async def _play_run(self, step: Step) -> None:
        case = self.case
        intent, changes, selection = intent_of(case, self.journal, step, time.time())
        if changes is not None and not changes:
            return  # a rollback has nothing to do
        case.intent = intent
        report = RunReport(len(case.runs) + 1, step, opened=False)
        case.runs.append(report)
        case.server.begin_run(step.conditions)
        with ExitStack() as stack:
            if changes is None:
                changes, selection = self._input(step, stack), Selection.of(step.on)
            stack.enter_context(_noting_open(report))
            await self._run(step, report, changes, selection)
        self._note(audit(case, self.journal))
        if report.opened and not report.left_alone and step.back is None:
            self._fleet = intent.accounts
        await asyncio.sleep(step.rest)

    def _note(self, found: list[Finding]) -> None:
        for finding in found:
            if (seen := (finding.kind, finding.account_id)) not in self._seen:
                self._seen.add(seen)
                self.findings.append((self.case.run.number, finding))

    async def _run(self, step: Step, report: RunReport, changes: Any, selection: Selection | None) -> None:
        loop, server = asyncio.get_running_loop(), self.case.server
        wire = CountingTransport(server, API_KEY)
        session = session_over(
            wire,
            retry=RetryPolicy(attempts=step.attempts),
            pace=Pace(in_flight=step.in_flight),
            idempotency=self.sequence.idempotency,
        )
        rotation = session.rotate(
            changes,
            journal=self.journal,
            halt=step.halt,
            pool=None if step.back is not None else self._pool(step),
            limit=step.limit,
            on_unknown=step.on_unknown or self.sequence.on_unknown,
            on_failed=step.on_failed,
            every=step.every,
            keep=step.keep,
            on=selection or (),
        )
        task = asyncio.create_task(_drive(session, rotation, report))

        def end() -> None:
            if task.done() or step.end is End.NATURAL:
                return
            report.ended, report.stopped_at = step.end, len(report.outcomes)
            if step.end is End.DISK_FULL:
                Disk.is_full = True
            elif step.end is End.KILL:
                self._kill(wire)
                task.cancel()
            elif step.end is End.STOP:
                rotation.stop()
            elif step.stop_before_cancel:
                rotation.stop()
                loop.call_later(0.01, task.cancel)
            else:
                task.cancel()

        def on_request(number: int) -> None:
            if number == step.at:
                loop.call_later(step.delay, end)

        server.on_request = on_request
        if step.at == 0:
            if step.end is End.DISK_FULL:
                end()
            else:
                loop.call_later(step.delay, end)  # the task opens the journal before
        done, _ = await asyncio.wait({task}, timeout=LONGEST)
        server.on_request = None
        if not done:
            self._note([Finding("hangs", None, f"not over after {LONGEST / 3600:g} hours")])
            task.cancel()
            await asyncio.wait({task}, timeout=LONGEST)
        Disk.is_full = False
        self._conclude(report, rotation, task)

    def _conclude(self, report: RunReport, rotation: Rotation, task: "asyncio.Task[None]") -> None:
        if report.ended is End.KILL:
            return
        error = None if task.cancelled() else task.exception()
        if report.ended is End.DISK_FULL and error is None:
            report.ended = End.NATURAL  # it was full too late to matter
        elif report.ended is End.CANCEL and not task.cancelled():
            report.ended = End.STOP if report.step.stop_before_cancel else End.NATURAL
        if isinstance(error, JournalError) and rotation._core.journal is None:
            report.opened = False  # the journal was opened to compare its rows
        report.error, report.summary, report.edit = error, rotation.summary, rotation.input_edit
        if report.ended is End.DISK_FULL and isinstance(error, JournalNotWritableError):
            report.error = None

    def _kill(self, wire: CountingTransport) -> None:
        wire.is_cut = True
        copy = self.folder / f"journal-{self.case.run.number}.sqlite3"
        copy_journal(self.journal, copy)
        self.journal = copy

    def _pool(self, step: Step) -> ProxyPool | None:
        sequence = self.sequence
        # A fleet without an account for the pool is refused one.
        if all(account.change is not None for account in self.case.intent.accounts):
            return None
        cap = sequence.accounts_per_proxy
        return ProxyPool(step.pool or sequence.pool, assign=sequence.assign, accounts_per_proxy=cap)

    def _input(self, step: Step, stack: ExitStack) -> Any:
        accounts = self.case.intent.accounts
        if not self.sequence.from_file:
            return [(account.account_id, account.change) for account in accounts]
        path = self.folder / "fleet.csv"
        write_fleet(accounts, path, step.saved_as)
        pooled = any(account.change is None for account in accounts)
        fleet = stack.enter_context(Fleet.open(path, pooled=pooled))
        fleet.survey()
        return fleet


@contextmanager
def _noting_open(report: RunReport) -> Iterator[None]:
    """Note in *report* when the run has opened its journal."""
    open_journal = Journal.open

    def opened(*words: Any, **options: Any) -> Journal:
        journal = open_journal(*words, **options)
        report.opened = True
        report.left_alone = (
            journal.check.next_run_at is not None
        )  # here, since a killed run does not say so itself
        return journal

    with patch.object(Journal, "open", opened):
        yield


async def _drive(session: PostPressSession, rotation: Rotation, report: RunReport) -> None:
    async with session, rotation:
        async for outcome in rotation:
            report.outcomes.append(outcome)


def write_fleet(accounts: Iterable[Account], path: Path, saved_as: int = 0) -> None:
    """The accounts as a CSV file, saved in one of the ways of `SAVED`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["account_id", "country", "host", "port", "username", "password"])
    for account in accounts:
        body = account.body or {}
        proxy = body.get("proxy", {})
        cells = [proxy.get(name, "") for name in ("host", "port", "username", "password")]
        table.writerow([account.account_id, body.get("country", ""), *cells])
    path.write_bytes(SAVED[saved_as](text.getvalue()))


def play(sequence: Sequence) -> Player:
    """*sequence*, played."""
    with machine(), TemporaryDirectory(dir=_memory()) as folder:
        player = Player(sequence, Path(folder))
        player.play()
        return player


def _memory() -> str | None:
    # A journal is flushed to the disk with each commit, and what this is about is not the disk.
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


# --- What is said of it --------------------------------------------------------------------------


class Played(Protocol):
    """A sequence that was played, in virtual time or by commands."""

    @property
    def sequence(self) -> Sequence: ...
    @property
    def case(self) -> Case: ...
    @property
    def findings(self) -> list[tuple[int, Finding]]: ...


def describe(player: Played, *, histories: int = 3) -> str:
    """The seed, the steps and the findings of a sequence, and the histories of a few accounts."""
    sequence, case = player.sequence, player.case
    shared = ("idempotency", "on_unknown", "assign", "accounts_per_proxy", "from_file")
    lines = [
        f"seed {sequence.seed}: {len(sequence.accounts)} accounts, {len(player.findings)} findings",
        f"  {sequence.traits}, {len(sequence.pool)} proxies in the pool",
        f"  {', '.join(f'{name}={getattr(sequence, name)!r}' for name in shared)}",
    ]
    for run in case.runs:
        summary = "" if run.summary is None else f"; {run.summary}"
        halted = (
            "" if run.summary is None or run.summary.halted is None else f"; halted: {run.summary.halted}"
        )
        lines.append(f"  run {run.number} ended by {run.ended}{summary}{halted}")
        lines.append(f"    {_without_defaults(run.step)}")
    for kind, count in Counter(finding.kind for _, finding in player.findings).items():
        number, first = next((n, f) for n, f in player.findings if f.kind == kind)
        about = "" if first.account_id is None else f"{first.account_id}: "
        lines.append(f"  FOUND {kind} ({count} times), first after run {number}: {about}{first.text}")
    # One account for each kind.
    ids = {finding.kind: finding.account_id for _, finding in player.findings if finding.account_id}
    for account_id in list(dict.fromkeys(ids.values()))[:histories]:
        lines.append(f"  {account_id} was sent:")
        lines += [f"    {request}" for request in case.server.by_account.get(str(account_id), [])]
    return "\n".join(lines)


def _without_defaults(value: Any) -> str:
    """A short repr of an attrs object, without what is as always."""
    if isinstance(value, tuple) and value and not isinstance(value[0], str):
        return f"<{len(value)}>"
    if not has(type(value)):
        return repr(value)
    default = type(value)() if isinstance(value, Step | Conditions) else None
    parts = {field.name: getattr(value, field.name) for field in fields(type(value))}
    shown = [
        f"{name}={_without_defaults(part)}"
        for name, part in parts.items()
        if default is None or part != getattr(default, name)
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def how_to_repeat(seed: int, found: list[tuple[int, Finding]]) -> str:
    """The command that plays a sequence again, with as few accounts as still find the first kind."""
    kind = found[0][1].kind
    for accounts in (3, 6, 12, 25, 50):
        if any(finding.kind == kind for _, finding in play(draw(seed, accounts)).findings):
            return f"python -m tests.support.campaign --seed {seed} --accounts {accounts}"
    return f"python -m tests.support.campaign --seed {seed}"


def tabulate(found: dict[str, list[int]], sequences: int) -> str:
    """The kinds by how many of the sequences found them, each with the first seeds."""
    lines = [f"{'kind':52} {'sequences':>9}  seeds"]
    for kind, seeds in sorted(found.items(), key=lambda item: -len(item[1])):
        lines.append(f"{kind:52} {len(seeds):9}  {', '.join(map(str, seeds[:4]))}")
    return "\n".join([*lines, f"{sequences} sequences"])


def _features(case: Case) -> Iterator[str]:
    """What happened in the sequence, to be counted."""
    yield from ["runs of journals"] * len(case.first_of)
    for run in case.runs:
        if run.was_refused or run.left_alone:
            yield "refused" if run.was_refused else "left alone"
        elif run.opened:
            yield "--on" if run.step.on else "rollback" if run.step.back is not None else "rotate"
        if run.edit is not None:
            yield "edited inputs taken"


def main() -> int:
    """Play what the command line asks for; 1 if something was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.campaign", description="Play sequences of the campaign, and audit them."
    )
    parser.add_argument("--seed", type=int, help="Play this one sequence, and describe it.")
    parser.add_argument("--nights", action="store_true", help="Of the nights.")
    parser.add_argument("--accounts", type=int, help="With this number of accounts.")
    parser.add_argument(*("--sequences",), type=int, default=300, help="Play this number of each kind. [300]")
    parser.add_argument("--first", type=int, default=1, help="The seed of the first of them. [1]")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        player = play((draw_nights if options.nights else draw)(options.seed, options.accounts))
        print(describe(player))
        return int(bool(player.findings))
    found: dict[str, list[int]] = defaultdict(list)
    reached: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.sequences):
        for kind_of_sequence in [draw_nights] if options.nights else [draw, draw_nights]:
            player = play(kind_of_sequence(seed, options.accounts))
            for kind in dict.fromkeys(finding.kind for _, finding in player.findings):
                found[kind].append(seed)
            server = player.case.server
            reached.update(f"ended by {run.ended}" for run in player.case.runs)
            reached.update(_features(player.case))
            reached += Counter(requests=len(server.requests), replays=server.replayed)
    print(tabulate(found, options.sequences))
    print(", ".join(f"{count:,} {name}" for name, count in reached.items()))
    print(f"{time.monotonic() - began:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
