"""
The campaign's sequences of real commands: processes, a socket, SIGKILL, a full disk by a limit on file sizes.

They are fewer than those in virtual time (`campaign`), since each command takes half a second to start. They
meet no troubles that are retried, since backoffs would pass in real time. Server and audit are the same.
"""

import argparse
import asyncio
import os
import random
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from aiohttp import web
from attrs import define, evolve, field

from postpress_async._cli import exit_codes
from postpress_async.rotation import State
from tests.support.campaign import describe, write_fleet
from tests.support.campaign_audit import Case, Finding, RunReport, audit
from tests.support.campaign_plan import End, Sequence, Step, draw
from tests.support.counting_server import API_KEY, KEY_TYPE, Conditions, CountingServer, Gateway

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
        sent.heard = True
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
    """

    sequence: Sequence
    folder: Path
    case: Case = field(init=False)
    findings: list[tuple[int, Finding]] = field(factory=list, init=False)
    commands: list[str] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        server = CountingServer(self.sequence.seed, self.sequence.traits, latency=0.01)
        self.case = Case(self.sequence, server, accounts=self.sequence.accounts)

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite3"

    async def play(self) -> list[tuple[int, Finding]]:
        """The findings, each with the number of the run after which it was made."""
        write_fleet(self.sequence.accounts, self.folder / "fleet.csv")
        proxies = (f"{proxy.host}:{proxy.port}\n" for proxy in self.sequence.pool)
        (self.folder / "proxies.txt").write_text("".join(proxies))
        async with listening(self.case.server) as url:
            for step in self.sequence.steps:
                await self._run(step, url)
            await self._run(Step(in_flight=40), url)
            if any(record is None or record.state == State.FAILED for _, record in self.case.records):
                await self._run(Step(in_flight=40, on_failed="retry"), url)
            self.case.is_last = True
            self._note(audit(self.case, self.journal))
        return self.findings

    def _note(self, found: list[Finding]) -> None:
        known = {(finding.kind, finding.account_id) for _, finding in self.findings}
        fresh = [finding for finding in found if (finding.kind, finding.account_id) not in known]
        self.findings += [(self.case.run.number, finding) for finding in fresh]

    async def _run(self, step: Step, url: str) -> None:
        report = RunReport(len(self.case.runs) + 1, step)
        self.case.runs.append(report)
        server = self.case.server
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
            _, errors = await asyncio.wait_for(process.communicate(), LONGEST)
        except TimeoutError:
            self._note([Finding("hangs", None, f"{self.commands[-1]} is not over after {LONGEST:g} s")])
            process.kill()
            _, errors = await process.communicate()
        server.on_request = None
        await server.settle()
        code = process.returncode
        if step.end is End.DISK_FULL and code == exit_codes.HALTED:
            report.ended = End.DISK_FULL
        if report.ended is End.KILL and code != -signal.SIGKILL:
            report.ended = End.NATURAL  # it had ended before the signal came
        if not (self.journal.exists() or server.requests):
            return  # killed before there was anything to audit
        self._note(audit(self.case, self.journal))
        self._note(self._check_exit(report, code, errors.decode()))

    async def _start(self, step: Step, url: str, key: str) -> asyncio.subprocess.Process:
        words = ["rotate", "fleet.csv", "--journal", self.journal.name]
        if step.on_failed == "retry" and self.journal.exists():
            words = ["retry-failed", self.journal.name, "fleet.csv"]
        words += ["--in-flight", str(step.in_flight), "--halt", "never", "--on-unknown", "retry"]
        if self.sequence.pool:
            words += ["--pool", "proxies.txt"]
        if self.sequence.accounts_per_proxy is not None:
            words += ["--accounts-per-proxy", str(self.sequence.accounts_per_proxy)]
        if step.limit is not None:
            words += ["--limit", str(step.limit)]
        self.commands.append(" ".join(["postpress-async", *words]))
        options: dict[str, Any] = {}
        if step.end is End.DISK_FULL:
            options["preexec_fn"] = _no_file_over(step.at * 1_000)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "postpress_async", *words),
            cwd=self.folder,
            env={**os.environ, "POSTPRESS_API_KEY": key, "POSTPRESS_BASE_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **options,
        )

    def _check_exit(self, report: RunReport, code: int | None, errors: str) -> list[Finding]:
        if "Traceback" in errors:
            return [Finding("traceback", None, errors)]
        refused = [r for r in self.case.server.sent_in(report.number) if r.by_key_check]
        if report.ended is End.KILL:
            right = -signal.SIGKILL
        elif report.ended is End.DISK_FULL:
            right = exit_codes.HALTED
        elif any(request.type == KEY_TYPE for request in refused):
            right = exit_codes.KEY_REFUSED
        elif report.ended is End.STOP:
            right = exit_codes.INTERRUPTED
        elif "another API key" in errors and not self.case.server.sent_in(report.number):
            right = exit_codes.BAD_INPUT
        else:
            return self._check_natural_exit(code)
        return [] if code == right else [_wrong_exit(code, right, errors)]

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


async def play(seed: int, folder: Path) -> CommandPlayer:
    """The sequence of this *seed*, played in *folder*."""
    player = CommandPlayer(draw_commands(seed), folder)
    await player.play()
    return player


def describe_commands(player: CommandPlayer) -> str:
    """What the sequence was, its command lines, what was found, and how to play it again."""
    lines = [describe(player), *(f"  $ {command}" for command in player.commands)]
    return "\n".join(
        [*lines, f"repeat: python -m tests.support.campaign_commands --seed {player.sequence.seed}"]
    )


def main() -> int:
    """Play the one sequence that the command line names; 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.campaign_commands", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        player = asyncio.run(play(options.seed, Path(folder)))
        print(describe_commands(player))
    return int(bool(player.findings))


def _wrong_exit(code: int | None, right: int, errors: str) -> Finding:
    return Finding("wrong exit code", None, f"{code}, not {right}: {errors[-500:]}")


def _no_file_over(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


if __name__ == "__main__":
    sys.exit(main())
