"""
The campaign: seeded sequences of runs on one journal, audited after every run.

A sequence runs in one process and in virtual time, with the real session, rotation and journal, against a
`CountingServer`. A simulated kill copies the journal's files as they are on disk, and the next run uses the
copy. The server still processes requests that were sent before the kill.

Play one sequence again, and print its findings and the requests of a few accounts:

    python -m tests.support.campaign --seed 17

Play 300 sequences of each kind, and count the findings by kind:

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
from tests.support.campaign_nights import FILE_FORMATS, audit, draw_nights, intent_of
from tests.support.campaign_plan import Account, End, Sequence, Step, draw, healthy
from tests.support.campaign_reading import copy_journal
from tests.support.counting_server import API_KEY, Conditions, CountingServer, CountingTransport

LONGEST: Final = 8 * 3600.0
"""Virtual seconds that a run may take. A rotation waits up to four hours for the end of an outage."""
SECOND_CTRL_C_AFTER: Final = 0.01
"""Virtual seconds between a stop and the cancellation that follows it."""
RETRIES: Final = 3
"""Maximum number of healthy runs with `on_failed="retry"` at the end of a sequence."""


# --- One sequence --------------------------------------------------------------------------------


@define
class Player:
    """
    Plays a sequence, and audits it after every run.

    Attributes:
        sequence: The sequence to play.
        folder: Folder of the journals; each kill creates another one.
        case: The state of the sequence.
        findings: Each with the number of the run that was audited; each kind once for each account.
        journal: The journal that the next run uses.
    """

    sequence: Sequence
    folder: Path
    case: Case = field(init=False)
    findings: list[tuple[int, Finding]] = field(factory=list, init=False)
    journal: Path = field(init=False)
    _fleet: tuple[Account, ...] = field(init=False)  # input of the latest run that was no rollback
    _seen: set[tuple[str, str | None]] = field(factory=set, init=False)  # kind and account of all findings

    def __attrs_post_init__(self) -> None:
        server = CountingServer(self.sequence.seed, self.sequence.traits)
        self.case = Case(self.sequence, server, accounts=self.sequence.accounts)
        self._fleet = self.sequence.accounts
        self.journal = self.folder / "journal-0.sqlite3"

    def play(self) -> list[tuple[int, Finding]]:
        """Play the sequence and return the findings."""
        random.seed(self.sequence.seed)  # the package draws backoffs and probes from `random`
        try:
            stepped_loop.run(self._play())
        except stepped_loop.HangError as error:
            self._add_findings([Finding("hangs", None, str(error))])
        return self.findings

    async def _play(self) -> None:
        for step in self.sequence.steps:
            await self._play_run(step)
        # From here on, the key works and the service is healthy, so every account must be settled at the end.
        on_unknown: OnUnknown | None = "retry" if self.sequence.idempotency else None
        await self._play_run(self.case.for_latest_run(healthy("report", on_unknown=on_unknown), self._fleet))
        if self.sequence.is_nights:
            last = self.sequence.steps[-1]
            await self._play_run(evolve(healthy("report"), every=0.0, accounts=last.accounts, pool=last.pool))
        for _ in range(RETRIES):
            await self._play_run(
                self.case.for_latest_run(healthy("retry", on_unknown=on_unknown), self._fleet)
            )
            if self._is_done():
                break
        self.case.is_last = True
        self._add_findings(audit(self.case, self.journal))
        await self.case.server.settle()

    def _is_done(self) -> bool:
        """Whether another run with `on_failed="retry"` would change nothing."""
        refused_for_good = self.case.refused_for_good
        return all(
            record is not None
            and (record.state in {State.PATCHED, State.UNKNOWN} or account.account_id in refused_for_good)
            for account, record in self.case.records
        )

    async def _play_run(self, step: Step) -> None:
        case = self.case
        intent, changes, selection = intent_of(case, self.journal, step, time.time())
        if changes is not None and not changes:
            return  # there is nothing to roll back
        case.intent = intent
        report = RunReport(len(case.runs) + 1, step, opened=False)
        case.runs.append(report)
        case.server.begin_run(step.conditions)
        with ExitStack() as stack:
            if changes is None:
                changes, selection = self._input(step, stack), Selection.of(step.on)
            stack.enter_context(_report_open(report))
            await self._run(step, report, changes, selection)
        self._add_findings(audit(case, self.journal))
        if report.opened and not report.left_alone and step.rollback_to is None:
            self._fleet = intent.accounts
        await asyncio.sleep(step.pause)

    def _add_findings(self, findings: list[Finding]) -> None:
        for finding in findings:
            kind_and_account = finding.kind, finding.account_id
            if kind_and_account not in self._seen:
                self._seen.add(kind_and_account)
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
            pool=None if step.rollback_to is not None else self._pool(step),
            limit=step.limit,
            on_unknown=step.on_unknown or self.sequence.on_unknown,
            on_failed=step.on_failed,
            every=step.every,
            keep=step.keep,
            on=selection or (),
        )
        task = asyncio.create_task(_consume(session, rotation, report))

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
                loop.call_later(SECOND_CTRL_C_AFTER, task.cancel)
            else:
                task.cancel()

        def on_request(number: int) -> None:
            if number == step.after_requests:
                loop.call_later(step.delay, end)

        server.on_request = on_request
        if step.after_requests == 0:
            if step.end is End.DISK_FULL:
                end()
            else:
                loop.call_later(step.delay, end)  # the task opens the journal first
        done, _ = await asyncio.wait({task}, timeout=LONGEST)
        server.on_request = None
        if not done:
            self._add_findings([Finding("hangs", None, f"has not ended after {LONGEST / 3600:g} hours")])
            task.cancel()
            await asyncio.wait({task}, timeout=LONGEST)
        Disk.is_full = False
        self._conclude(report, rotation, task)

    def _conclude(self, report: RunReport, rotation: Rotation, task: "asyncio.Task[None]") -> None:
        if report.ended is End.KILL:
            return
        error = None if task.cancelled() else task.exception()
        if report.ended is End.DISK_FULL and error is None:
            report.ended = End.NATURAL  # nothing was written after the disk was full
        elif report.ended is End.CANCEL and not task.cancelled():
            report.ended = End.STOP if report.step.stop_before_cancel else End.NATURAL
        if isinstance(error, JournalError) and rotation._core.journal is None:
            report.opened = False  # the journal was only opened to compare the rows, which were refused
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
        # A pool that no account would use is an error.
        if all(account.change is not None for account in self.case.intent.accounts):
            return None
        cap = sequence.accounts_per_proxy
        return ProxyPool(step.pool or sequence.pool, assign=sequence.assign, accounts_per_proxy=cap)

    def _input(self, step: Step, stack: ExitStack) -> Any:
        accounts = self.case.intent.accounts
        if not self.sequence.from_file:
            return [(account.account_id, account.change) for account in accounts]
        path = self.folder / "fleet.csv"
        write_fleet(accounts, path, step.file_format)
        pooled = any(account.change is None for account in accounts)
        fleet = stack.enter_context(Fleet.open(path, pooled=pooled))
        fleet.survey()
        return fleet


@contextmanager
def _report_open(report: RunReport) -> Iterator[None]:
    """Store in *report* whether the run opens its journal, and whether it leaves a complete run alone."""

    def opened(*args: Any, **options: Any) -> Journal:
        journal = Journal(*args, **options)
        report.opened = True
        # Stored at once, because a killed run cannot report it.
        report.left_alone = journal.check.next_run_at is not None
        return journal

    with patch("postpress_async.rotation._input.Journal", opened):
        yield


async def _consume(session: PostPressSession, rotation: Rotation, report: RunReport) -> None:
    async with session, rotation:
        async for outcome in rotation:
            report.outcomes.append(outcome)


def write_fleet(accounts: Iterable[Account], path: Path, file_format: int = 0) -> None:
    """Write the accounts to a CSV file, in the format with this index in `FILE_FORMATS`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["account_id", "country", "host", "port", "username", "password"])
    for account in accounts:
        body = account.body or {}
        proxy = body.get("proxy", {})
        cells = [proxy.get(name, "") for name in ("host", "port", "username", "password")]
        table.writerow([account.account_id, body.get("country", ""), *cells])
    path.write_bytes(FILE_FORMATS[file_format](text.getvalue()))


def play(sequence: Sequence) -> Player:
    """Play *sequence* in virtual time, and return its player."""
    with machine(), TemporaryDirectory(dir=_memory()) as folder:
        player = Player(sequence, Path(folder))
        player.play()
        return player


def _memory() -> str | None:
    # Each commit flushes the journal to the disk, so a folder in memory makes the campaign faster.
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


# --- Descriptions --------------------------------------------------------------------------------


class PlayedSequence(Protocol):
    """A sequence that was played, in virtual time or by commands."""

    @property
    def sequence(self) -> Sequence: ...
    @property
    def case(self) -> Case: ...
    @property
    def findings(self) -> list[tuple[int, Finding]]: ...


def describe(player: PlayedSequence, *, histories: int = 3) -> str:
    """Describe a sequence: its seed, steps and findings, and the requests of up to *histories* accounts."""
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
        lines.append(f"    {_short_repr(run.step)}")
    for kind, count in Counter(finding.kind for _, finding in player.findings).items():
        number, first = next(entry for entry in player.findings if entry[1].kind == kind)
        about = "" if first.account_id is None else f"{first.account_id}: "
        lines.append(f"  FOUND {kind} ({count} times), first after run {number}: {about}{first.text}")
    # One account for each kind of finding.
    ids = {finding.kind: finding.account_id for _, finding in player.findings if finding.account_id}
    for account_id in list(dict.fromkeys(ids.values()))[:histories]:
        lines.append(f"  {account_id} was sent:")
        lines += [f"    {request}" for request in case.server.by_account.get(str(account_id), [])]
    return "\n".join(lines)


def _short_repr(value: Any) -> str:
    """Return a short repr of an attrs object, without attributes that have their default values."""
    if isinstance(value, tuple) and value and not isinstance(value[0], str):
        return f"<{len(value)}>"
    if not has(type(value)):
        return repr(value)
    default = type(value)() if isinstance(value, Step | Conditions) else None
    parts = {field.name: getattr(value, field.name) for field in fields(type(value))}
    shown = [
        f"{name}={_short_repr(part)}"
        for name, part in parts.items()
        if default is None or part != getattr(default, name)
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def how_to_repeat(seed: int, findings: list[tuple[int, Finding]]) -> str:
    """Return the command that repeats the first kind of finding with as few accounts as possible."""
    kind = findings[0][1].kind
    for accounts in (3, 6, 12, 25, 50):
        if any(finding.kind == kind for _, finding in play(draw(seed, accounts)).findings):
            return f"python -m tests.support.campaign --seed {seed} --accounts {accounts}"
    return f"python -m tests.support.campaign --seed {seed}"


def tabulate(seeds_by_kind: dict[str, list[int]], sequences: int) -> str:
    """Return a table of the kinds of findings: the number of sequences, and the first seeds."""
    lines = [f"{'kind':52} {'sequences':>9}  seeds"]
    for kind, seeds in sorted(seeds_by_kind.items(), key=lambda item: -len(item[1])):
        lines.append(f"{kind:52} {len(seeds):9}  {', '.join(map(str, seeds[:4]))}")
    return "\n".join([*lines, f"{sequences} sequences"])


def _features(case: Case) -> Iterator[str]:
    """Yield what happened in the sequence, so that it can be counted."""
    yield from ["journal runs"] * len(case.first_runs)
    for run in case.runs:
        if run.was_refused or run.left_alone:
            yield "refused" if run.was_refused else "left alone"
        elif run.opened:
            yield "--on" if run.step.on else "rollback" if run.step.rollback_to is not None else "rotate"
        if run.edit is not None:
            yield "edited inputs accepted"


def main() -> int:
    """Play the sequences of the command line; return 1 if there are findings."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.campaign", description="Play sequences of the campaign, and audit them."
    )
    parser.add_argument("--seed", type=int, help="Play only this sequence, and describe it.")
    parser.add_argument("--nights", action="store_true", help="Play only sequences of nights.")
    parser.add_argument("--accounts", type=int, help="Number of accounts in each sequence.")
    parser.add_argument("--sequences", type=int, default=300, help="Number of sequences of each kind. [300]")
    parser.add_argument("--first", type=int, default=1, help="Seed of the first sequence. [1]")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        player = play((draw_nights if options.nights else draw)(options.seed, options.accounts))
        print(describe(player))
        return int(bool(player.findings))
    seeds_by_kind: dict[str, list[int]] = defaultdict(list)
    features: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.sequences):
        for draw_sequence in [draw_nights] if options.nights else [draw, draw_nights]:
            player = play(draw_sequence(seed, options.accounts))
            for kind in dict.fromkeys(finding.kind for _, finding in player.findings):
                seeds_by_kind[kind].append(seed)
            server = player.case.server
            features.update(f"ended by {run.ended}" for run in player.case.runs)
            features.update(_features(player.case))
            features += Counter(requests=len(server.requests), replays=server.replayed)
    print(tabulate(seeds_by_kind, options.sequences))
    print(", ".join(f"{count:,} {name}" for name, count in features.items()))
    print(f"{time.monotonic() - began:.0f} s")
    return int(bool(seeds_by_kind))


if __name__ == "__main__":
    sys.exit(main())
