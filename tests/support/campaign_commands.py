"""
The campaign's sequences of real commands: processes, a socket, SIGKILL, a full disk by a limit on file sizes.

They are fewer than those in virtual time (`campaign`), since each command takes half a second to start. They
meet no troubles that are retried, since backoffs would pass in real time. Server and audit are the same.

Nights are played with a clock that is ahead. There, ``--every`` is left out while a run is unfinished, since
one command would finish it and start the next, and the server counts by command.
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
from tests.support.campaign_nights import audit, draw_nights, intent_of, is_over
from tests.support.campaign_plan import Account, End, Sequence, Step, draw
from tests.support.command_line import CLOCK_AHEAD
from tests.support.counting_server import API_KEY, KEY_TYPE, Conditions, CountingServer, Gateway

_AT_THE_END: Final[dict[str, Any]] = {
    "conditions": Conditions(),
    "end": End.NATURAL,
    "every": 0.0,
    "keep": None,
    "on": (),
    "back": None,
    "on_failed": "report",
}
LONGEST: Final = 60.0
"""Seconds that a command may take; on an idle machine it takes one."""


@asynccontextmanager
async def listening(server: CountingServer) -> AsyncIterator[str]:
    """The base URL of *server* on a real socket."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        account_id, body = request.path.rsplit("/", 1)[-1], await request.read()
        key, api_key = request.headers.get("Idempotency-Key"), request.headers.get("X-API-KEY", "")
        sent, task = server.take(account_id, key, body, api_key)
        reply = await asyncio.shield(task)
        if request.transport is None:
            return web.Response()  # the client was killed
        if reply is None:
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
    """The sequence of this *seed*, with what takes long in real time left out."""
    dice = random.Random(f"commands {seed}")
    drawn = draw(seed, accounts=dice.randint(60, 150))
    traits = evolve(drawn.traits, dead_proxies=frozenset())
    steps = tuple(_step(dice, len(drawn.accounts)) for _ in range(dice.randint(1, 3)))
    # Without keys a killed run leaves most accounts to the operator; virtual time is enough for that.
    return evolve(drawn, traits=traits, steps=steps, idempotency=True, assign="round-robin")


def draw_night_commands(seed: int) -> Sequence:
    """The nights of this *seed*, with the troubles and ends of `draw_commands`, but the right key."""
    dice = random.Random(f"commands of nights {seed}")
    drawn = draw_nights(seed, accounts=dice.randint(30, 60))
    steps: list[Step] = []
    for night in drawn.steps[:3]:
        step = _step(dice, len(drawn.accounts))
        if len(steps) == 2 and seed % 2:
            night = evolve(night, back=0.0, on=(), every=None, keep=None)
        names = "every keep on back accounts pool saved_as rest".split()
        step = evolve(step, limit=None, **{name: getattr(night, name) for name in names})
        is_wrong_key = step.conditions.key_fails_after == 0
        steps.append(
            evolve(
                step,
                conditions=Conditions() if is_wrong_key else step.conditions,
                end=End.NATURAL if step.end is End.DISK_FULL else step.end,
                on_failed="report" if step.every is not None or step.takes_some else step.on_failed,
            )
        )
    traits = evolve(drawn.traits, dead_proxies=frozenset())
    return evolve(
        drawn, traits=traits, steps=tuple(steps), on_unknown="retry", assign="round-robin", from_file=True
    )


def _step(dice: random.Random, accounts: int) -> Step:
    conditions = Conditions()
    match dice.choice(["healthy", "healthy", "wrong key", "revoked key", "gateway"]):
        case "wrong key":
            conditions = Conditions(key_fails_after=0)
        case "revoked key":
            conditions = Conditions(key_fails_after=dice.randint(1, accounts))
        case "gateway":
            conditions = Conditions(gateway=Gateway(status=dice.choice([400, 401, 403, 404])))
    return Step(
        conditions=conditions,
        end=dice.choices([End.KILL, End.NATURAL, End.STOP, End.DISK_FULL], [6, 2, 1, 1])[0],
        at=dice.randint(1, accounts),
        delay=dice.choice([0.0, dice.uniform(0, 0.1)]),
        limit=dice.randint(1, accounts) if dice.random() < 0.2 else None,
        in_flight=dice.randint(5, 40),
        on_failed=dice.choice(["report", "report", "retry"]),
    )


@define
class CommandPlayer:
    """
    Plays a sequence by commands, and audits it after each.

    Attributes:
        sequence: What to play.
        folder: Where the fleet, the list of proxies and the journal go.
        case: The sequence so far.
        findings: Each with the number of the run after which it was found.
        commands: The command lines, as they were given.
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
        """The findings, each with the number of the run after which it was made."""
        async with listening(self.case.server) as url:
            for step in self.sequence.steps:
                await self._run(step, url)
            await self._run(self._same(Step(in_flight=40)), url)
            if self.sequence.is_nights:
                await self._run(evolve(self.sequence.steps[-1], **_AT_THE_END), url)
            if any(record is None or record.state == State.FAILED for _, record in self.case.records):
                await self._run(self._same(Step(in_flight=40, on_failed="retry")), url)
            self.case.is_last = True
            self._note(audit(self.case, self.journal))
        return self.findings

    def _same(self, step: Step) -> Step:
        """*step*, for the accounts of the journal's latest run."""
        opening = self.case.runs[self.case.first - 1].step if self.case.runs else Step()
        return evolve(step, on=opening.on, back=opening.back, accounts=self._fleet, pool=opening.pool)

    def _note(self, found: list[Finding]) -> None:
        known = {(finding.kind, finding.account_id) for _, finding in self.findings}
        fresh = [finding for finding in found if (finding.kind, finding.account_id) not in known]
        self.findings += [(self.case.run.number, finding) for finding in fresh]

    async def _run(self, step: Step, url: str) -> None:
        case, server = self.case, self.case.server
        if step.every is not None and case.reading.latest and not is_over(case.reading, step, "retry"):
            step = evolve(step, every=None, keep=None)
        case.intent, changes, _ = intent_of(case, self.journal, step, time.time() + self.ahead)
        if changes is not None and not changes:
            return  # a rollback has nothing to do
        report = RunReport(len(case.runs) + 1, step)
        case.runs.append(report)
        # A wrong key is given to the command; a revoked one is the server's doing.
        is_wrong = step.conditions.key_fails_after == 0
        server.begin_run(evolve(step.conditions, key_fails_after=None) if is_wrong else step.conditions)
        key = "pp_test_a_wrong_key" if is_wrong else API_KEY
        process = await self._start(step, url, key)
        loop = asyncio.get_running_loop()

        def end() -> None:
            if process.returncode is None and step.end in {End.KILL, End.STOP}:
                report.ended = step.end
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL if step.end is End.KILL else signal.SIGTERM)

        server.on_request = lambda number: loop.call_later(step.delay, end) if number == step.at else None
        try:
            output, errors = await asyncio.wait_for(process.communicate(), LONGEST)
        except TimeoutError:
            self._note([Finding("hangs", None, f"{self.commands[-1]} is not over after {LONGEST:g} s")])
            process.kill()
            output, errors = await process.communicate()
        server.on_request = None
        await server.settle()
        code = process.returncode
        if step.end is End.DISK_FULL and code == exit_codes.HALTED:
            report.ended = End.DISK_FULL
        if report.ended is End.KILL and code != -signal.SIGKILL:
            report.ended = End.NATURAL  # it had ended before the signal came
        report.opened = code != exit_codes.BAD_INPUT
        report.error = None if report.opened else JournalError(errors.decode())
        report.left_alone = b"the next is due at" in output
        self.ahead += step.rest
        if not (self.journal.exists() or server.requests):
            return  # killed before there was anything to audit
        self._note(audit(case, self.journal))
        self._note(self._check_exit(report, code, errors.decode()))
        if report.opened and not report.left_alone and step.back is None:
            self._fleet = case.intent.accounts

    async def _start(self, step: Step, url: str, key: str) -> asyncio.subprocess.Process:
        words = self._words(step)
        self.commands.append(" ".join(["postpress-async", *words]))
        options: dict[str, Any] = {}
        if step.end is End.DISK_FULL:
            options["preexec_fn"] = _no_file_over(step.at * 1_000)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLOCK_AHEAD, str(self.ahead), *words),
            cwd=self.folder,
            env={**os.environ, "POSTPRESS_API_KEY": key, "POSTPRESS_BASE_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **options,
        )

    def _words(self, step: Step) -> list[str]:
        """The command of *step*, for files that are written here."""
        accounts, options = self.case.intent.accounts, list[str]()
        pool: list[CustomProxy] = []
        if step.back is not None:
            words = ["rollback", self.journal.name, "--to", str(self.case.intent.back_to), "--skip-bad"]
            fleets = (*self.sequence.accounts, *(step.accounts or ()))
            pool = [account.change for account in fleets if isinstance(account.change, CustomProxy)]
            pool = list(dict.fromkeys([*pool, *self.sequence.pool]))
        else:
            write_fleet(accounts, self.folder / "fleet.csv", step.saved_as)
            words = ["rotate", "fleet.csv", "--journal", self.journal.name]
            if step.on_failed == "retry" and self.journal.exists():
                words = ["retry-failed", self.journal.name, "fleet.csv"]
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
            *words,
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
        if report.ended is End.STOP and code != exit_codes.INTERRUPTED and self._is_over():
            if code == -signal.SIGTERM:
                return []  # the signal came while the process exited
            report.ended = End.NATURAL
        refused = [r for r in self.case.server.sent_in(report.number) if r.by_key_check]
        if report.ended is End.KILL:
            right = -signal.SIGKILL
        elif report.left_alone:
            right = exit_codes.ALL_PATCHED
        elif report.ended is End.DISK_FULL:
            right = exit_codes.HALTED
        elif any(request.type == KEY_TYPE for request in refused):
            right = exit_codes.KEY_REFUSED
        elif report.ended is End.STOP:
            right = exit_codes.INTERRUPTED
        elif report.was_refused and ("another API key" in errors or self.sequence.is_nights):
            right = exit_codes.BAD_INPUT  # `audit` knows whether nights had a cause
        else:
            return self._check_natural_exit(code)
        return [] if code == right else [_wrong_exit(code, right, errors)]

    def _is_over(self) -> bool:
        """Whether the latest run has ended by itself."""
        settled = {State.PATCHED, State.FAILED}
        return self.case.reading.status["run"] == "halted" or all(
            record is not None and record.state in settled for _, record in self.case.records
        )

    def _check_natural_exit(self, code: int | None) -> list[Finding]:
        patched = all(record is not None and record.state == State.PATCHED for _, record in self.case.records)
        # A page with a 401 for every account looks like the refusal of the key.
        may_blame_key = any(
            request.status == 401 for request in self.case.server.sent_in(self.case.run.number)
        )
        right = exit_codes.ALL_PATCHED if patched else exit_codes.SOME_LEFT
        if code == right or (may_blame_key and code == exit_codes.KEY_REFUSED):
            return []
        return [_wrong_exit(code, right, "")]


async def play(seed: int, folder: Path, *, nights: bool = False) -> CommandPlayer:
    """The sequence of this *seed*, played in *folder*."""
    player = CommandPlayer((draw_night_commands if nights else draw_commands)(seed), folder)
    await player.play()
    return player


def describe_commands(player: CommandPlayer) -> str:
    """What the sequence was, its command lines, what was found, and how to play it again."""
    lines = [describe(player), *(f"  $ {command}" for command in player.commands)]
    nights = " --nights" if player.sequence.is_nights else ""
    repeat = f"python -m tests.support.campaign_commands{nights} --seed {player.sequence.seed}"
    return "\n".join([*lines, f"repeat: {repeat}"])


def main() -> int:
    """Play the one sequence that the command line names; 1 if something was found."""
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


def _wrong_exit(code: int | None, right: int, errors: str) -> Finding:
    return Finding("wrong exit code", None, f"{code}, not {right}: {errors[-500:]}")


def _no_file_over(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


if __name__ == "__main__":
    sys.exit(main())
