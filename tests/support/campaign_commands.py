"""
Sequences of real commands: processes, a socket, SIGKILL, and a limit on file sizes in place of a full disk.

There are fewer of them than in virtual time (`campaign`), because each command takes half a second to start.
They meet no failures that are retried, because backoffs would pass in real time. The server and the audit are
the same.

For nights, the clock of the commands is set ahead. A command has no ``--every`` while a journal run is
unfinished: otherwise one command would finish that run and start the next, but the server counts requests by
command.
"""

import argparse
import asyncio
import os
import random
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from aiohttp import web
from attrs import define, evolve, field

from postpress_async import CustomProxy
from postpress_async._cli import exit_codes
from postpress_async.errors import JournalError
from postpress_async.rotation import State
from tests.support.campaign import describe, write_fleet
from tests.support.campaign_audit import Case, Finding, RunReport
from tests.support.campaign_nights import audit, draw_nights, intent_of, is_finished
from tests.support.campaign_plan import Account, End, Sequence, Step, draw
from tests.support.command_line import CLOCK_AHEAD
from tests.support.counting_server import API_KEY, API_KEY_TYPE, Conditions, CountingServer, Gateway

_LAST_NIGHT: Final[dict[str, Any]] = {
    "conditions": Conditions(),
    "end": End.NATURAL,
    "every": 0.0,
    "keep": None,
    "on": (),
    "rollback_to": None,
    "on_failed": "report",
}
LONGEST: Final = 60.0
"""Seconds that a command may take. On an idle machine it takes one second."""


@asynccontextmanager
async def listening(server: CountingServer) -> AsyncIterator[str]:
    """Serve *server* on a real socket, and yield its base URL."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        account_id, body = request.path.rsplit("/", 1)[-1], await request.read()
        key, api_key = request.headers.get("Idempotency-Key"), request.headers.get("X-API-KEY", "")
        sent, task = server.take(account_id, key, body, api_key)
        reply = await asyncio.shield(task)
        if request.transport is None:
            return web.Response()  # the client was killed
        if reply is None:  # the response is lost
            request.transport.abort()
            return web.Response()
        sent.is_received = True
        headers = {} if reply.retry_after is None else {"Retry-After": reply.retry_after}
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


def draw_commands(seed: int) -> Sequence:
    """Draw the sequence of this *seed*, without anything that takes long in real time."""
    rng = random.Random(f"commands {seed}")
    drawn = draw(seed, accounts=rng.randint(60, 150))
    traits = evolve(drawn.traits, dead_proxies=frozenset())
    steps = tuple(_step(rng, len(drawn.accounts)) for _ in range(rng.randint(1, 3)))
    # Without keys, most accounts of a killed run stay unknown. Sequences in virtual time cover this case.
    return evolve(drawn, traits=traits, steps=steps, idempotency=True, assign="round-robin")


def draw_night_commands(seed: int) -> Sequence:
    """Draw the nights of this *seed*, with failures and ends as in `draw_commands`, but the right key."""
    rng = random.Random(f"commands of nights {seed}")
    drawn = draw_nights(seed, accounts=rng.randint(30, 60))
    steps: list[Step] = []
    for night in drawn.steps[:3]:
        step = _step(rng, len(drawn.accounts))
        if len(steps) == 2 and seed % 2:
            night = evolve(night, rollback_to=0.0, on=(), every=None, keep=None)
        names = "every keep on rollback_to accounts pool file_format pause".split()
        step = evolve(step, limit=None, **{name: getattr(night, name) for name in names})
        is_wrong_key = step.conditions.api_key_fails_after == 0
        steps.append(
            evolve(
                step,
                conditions=Conditions() if is_wrong_key else step.conditions,
                end=End.NATURAL if step.end is End.DISK_FULL else step.end,
                on_failed="report" if step.every is not None or step.is_partial else step.on_failed,
            )
        )
    traits = evolve(drawn.traits, dead_proxies=frozenset())
    return evolve(
        drawn, traits=traits, steps=tuple(steps), on_unknown="retry", assign="round-robin", from_file=True
    )


def _step(rng: random.Random, accounts: int) -> Step:
    conditions = Conditions()
    match rng.choice(["healthy", "healthy", "wrong key", "revoked key", "gateway"]):
        case "wrong key":
            conditions = Conditions(api_key_fails_after=0)
        case "revoked key":
            conditions = Conditions(api_key_fails_after=rng.randint(1, accounts))
        case "gateway":
            conditions = Conditions(gateway=Gateway(status=rng.choice([400, 401, 403, 404])))
    return Step(
        conditions=conditions,
        end=rng.choices([End.KILL, End.NATURAL, End.STOP, End.DISK_FULL], [6, 2, 1, 1])[0],
        after_requests=rng.randint(1, accounts),
        delay=rng.choice([0.0, rng.uniform(0, 0.1)]),
        limit=rng.randint(1, accounts) if rng.random() < 0.2 else None,
        in_flight=rng.randint(5, 40),
        on_failed=rng.choice(["report", "report", "retry"]),
    )


@define
class CommandPlayer:
    """
    Plays a sequence with commands, and audits it after each command.

    Attributes:
        sequence: The sequence to play.
        folder: Folder of the fleet, the proxy list and the journal.
        case: The state of the sequence.
        findings: The findings, each with the number of the run that was audited.
        commands: The command lines so far.
        ahead: Seconds by which the clock of the commands is ahead.
    """

    sequence: Sequence
    folder: Path
    case: Case = field(init=False)
    findings: list[tuple[int, Finding]] = field(factory=list, init=False)
    commands: list[str] = field(factory=list, init=False)
    ahead: float = field(default=0.0, init=False)
    _fleet: tuple[Account, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        server = CountingServer(self.sequence.seed, self.sequence.traits, latency=0.01)
        self.case = Case(self.sequence, server, accounts=self.sequence.accounts)
        self._fleet = self.sequence.accounts

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite3"

    async def play(self) -> list[tuple[int, Finding]]:
        """Play the sequence and return the findings."""
        async with listening(self.case.server) as url:
            for step in self.sequence.steps:
                await self._run(step, url)
            await self._run(self.case.for_latest_run(Step(in_flight=40), self._fleet), url)
            if self.sequence.is_nights:
                await self._run(evolve(self.sequence.steps[-1], **_LAST_NIGHT), url)
            if any(record is None or record.state == State.FAILED for _, record in self.case.records):
                await self._run(
                    self.case.for_latest_run(Step(in_flight=40, on_failed="retry"), self._fleet), url
                )
            self.case.is_last = True
            self._add_findings(audit(self.case, self.journal))
        return self.findings

    def _add_findings(self, findings: list[Finding]) -> None:
        known = {(finding.kind, finding.account_id) for _, finding in self.findings}
        new = [finding for finding in findings if (finding.kind, finding.account_id) not in known]
        self.findings += [(self.case.run.number, finding) for finding in new]

    async def _run(self, step: Step, url: str) -> None:
        case, server = self.case, self.case.server
        if step.every is not None and case.reading.latest and not is_finished(case.reading, step, "retry"):
            step = evolve(step, every=None, keep=None)
        case.intent, changes, _ = intent_of(case, self.journal, step, time.time() + self.ahead)
        if changes is not None and not changes:
            return  # there is nothing to roll back
        report = RunReport(len(case.runs) + 1, step)
        case.runs.append(report)
        # For a wrong key, the command gets another one. For a revoked key, the server starts to refuse it.
        is_wrong = step.conditions.api_key_fails_after == 0
        server.begin_run(evolve(step.conditions, api_key_fails_after=None) if is_wrong else step.conditions)
        key = "pp_test_a_wrong_key" if is_wrong else API_KEY
        process = await self._start(step, url, key)
        loop = asyncio.get_running_loop()

        def end() -> None:
            if process.returncode is None and step.end in {End.KILL, End.STOP}:
                report.ended = step.end
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL if step.end is End.KILL else signal.SIGTERM)

        server.on_request = lambda number: (
            loop.call_later(step.delay, end) if number == step.after_requests else None
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), LONGEST)
        except TimeoutError:
            self._add_findings(
                [Finding("hangs", None, f"{self.commands[-1]} has not ended after {LONGEST:g} s")]
            )
            process.kill()
            output, errors = await process.communicate()
        server.on_request = None
        await server.settle()
        code = process.returncode
        if step.end is End.DISK_FULL and code == exit_codes.HALTED:
            report.ended = End.DISK_FULL
        if report.ended is End.KILL and code != -signal.SIGKILL:
            report.ended = End.NATURAL  # it ended before the signal arrived
        report.opened = code != exit_codes.BAD_INPUT
        report.error = None if report.opened else JournalError(errors.decode())
        report.left_alone = b"the next is due at" in output
        self.ahead += step.pause
        if not (self.journal.exists() or server.requests):
            return  # it was killed before it created a journal or sent a request
        self._add_findings(audit(case, self.journal))
        self._add_findings(self._check_exit(report, code, errors.decode()))
        if report.opened and not report.left_alone and step.rollback_to is None:
            self._fleet = case.intent.accounts

    async def _start(self, step: Step, url: str, key: str) -> asyncio.subprocess.Process:
        args = self._words(step)
        self.commands.append(" ".join(["postpress-async", *args]))
        options: dict[str, Any] = {}
        if step.end is End.DISK_FULL:
            options["preexec_fn"] = _limit_file_size(step.after_requests * 1_000)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLOCK_AHEAD, str(self.ahead), *args),
            cwd=self.folder,
            env={**os.environ, "POSTPRESS_API_KEY": key, "POSTPRESS_BASE_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **options,
        )

    def _words(self, step: Step) -> list[str]:
        """Write the files for *step*, and return the arguments of its command."""
        accounts, options = self.case.intent.accounts, list[str]()
        pool: list[CustomProxy] = []
        if step.rollback_to is not None:
            args = ["rollback", self.journal.name, "--to", str(self.case.intent.rollback_run), "--skip-bad"]
            fleets = (*self.sequence.accounts, *(step.accounts or ()))
            pool = [account.change for account in fleets if isinstance(account.change, CustomProxy)]
            pool = list(dict.fromkeys([*pool, *self.sequence.pool]))
        else:
            write_fleet(accounts, self.folder / "fleet.csv", step.file_format)
            args = ["rotate", "fleet.csv", "--journal", self.journal.name]
            if step.on_failed == "retry" and self.journal.exists():
                args = ["retry-failed", self.journal.name, "fleet.csv"]
            if any(account.change is None for account in accounts):
                pool = list(step.pool or self.sequence.pool)
                cap = self.sequence.accounts_per_proxy
                options += [] if cap is None else ["--accounts-per-proxy", str(cap)]
            options += [] if step.every is None else ["--every", f"{step.every:.0f}s"]
            options += [] if step.keep is None else ["--keep", str(step.keep)]
            options += [word for host in step.on for word in ("--on", host)]
        if pool:
            _write_pool(pool, self.folder / "proxies.txt")
            options += ["--pool", "proxies.txt"]
        options += [] if step.limit is None else ["--limit", str(step.limit)]
        return [
            *args,
            "--in-flight",
            str(step.in_flight),
            "--halt",
            "never",
            "--on-unknown",
            "retry",
            *options,
        ]

    def _check_exit(self, report: RunReport, code: int | None, errors: str) -> list[Finding]:
        if "Traceback" in errors:
            return [Finding("traceback", None, errors)]
        if report.ended is End.STOP and code != exit_codes.INTERRUPTED and self._is_finished():
            if code == -signal.SIGTERM:
                return []  # the signal arrived while the process exited
            report.ended = End.NATURAL
        refused = [r for r in self.case.server.sent_in(report.number) if r.by_api_key_check]
        if report.ended is End.KILL:
            expected = -signal.SIGKILL
        elif report.left_alone:
            expected = exit_codes.ALL_PATCHED
        elif report.ended is End.DISK_FULL:
            expected = exit_codes.HALTED
        elif any(request.type == API_KEY_TYPE for request in refused):
            expected = exit_codes.KEY_REFUSED
        elif report.ended is End.STOP:
            expected = exit_codes.INTERRUPTED
        elif report.was_refused and ("another API key" in errors or self.sequence.is_nights):
            expected = exit_codes.BAD_INPUT  # for nights, `audit` checks whether the refusal was right
        else:
            return self._check_natural_exit(code)
        return [] if code == expected else [_wrong_exit(code, expected, errors)]

    def _is_finished(self) -> bool:
        """Whether the latest run has ended by itself."""
        done = {State.PATCHED, State.FAILED}
        return self.case.reading.status["run"] == "halted" or all(
            record is not None and record.state in done for _, record in self.case.records
        )

    def _check_natural_exit(self, code: int | None) -> list[Finding]:
        patched = all(record is not None and record.state == State.PATCHED for _, record in self.case.records)
        # A 401 for every account looks like a refused key.
        may_blame_key = any(
            request.status == 401 for request in self.case.server.sent_in(self.case.run.number)
        )
        expected = exit_codes.ALL_PATCHED if patched else exit_codes.SOME_LEFT
        if code == expected or (may_blame_key and code == exit_codes.KEY_REFUSED):
            return []
        return [_wrong_exit(code, expected, "")]


async def play(seed: int, folder: Path, *, nights: bool = False) -> CommandPlayer:
    """Play the sequence of this *seed* in *folder*, and return its player."""
    sequence = draw_night_commands(seed) if nights else draw_commands(seed)
    player = CommandPlayer(sequence, folder)
    await player.play()
    return player


def describe_commands(player: CommandPlayer) -> str:
    """Describe a sequence, its findings and command lines, and how to play it again."""
    lines = [describe(player), *(f"  $ {command}" for command in player.commands)]
    nights = " --nights" if player.sequence.is_nights else ""
    repeat = f"python -m tests.support.campaign_commands{nights} --seed {player.sequence.seed}"
    return "\n".join([*lines, f"repeat: {repeat}"])


def main() -> int:
    """Play the sequence of the command line; return 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.campaign_commands", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--nights", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        player = asyncio.run(play(options.seed, Path(folder), nights=options.nights))
        print(describe_commands(player))
    return int(bool(player.findings))


def _write_pool(proxies: Iterable[CustomProxy], path: Path) -> None:
    lines = []
    for proxy in proxies:
        password = "" if proxy.password is None else f":{proxy.username}:{proxy.password.reveal()}"
        lines.append(f"{proxy.host}:{proxy.port}{password}\n")
    path.write_text("".join(lines))


def _wrong_exit(code: int | None, expected: int, errors: str) -> Finding:
    return Finding("wrong exit code", None, f"{code}, not {expected}: {errors[-500:]}")


def _limit_file_size(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


if __name__ == "__main__":
    sys.exit(main())
