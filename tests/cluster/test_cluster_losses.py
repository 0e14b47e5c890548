"""Clusters of real processes: what one machine does, and what is left when workers or schedulers die."""

import asyncio
import bisect
import gc
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import evolve

from postpress_async.cluster import _coordinator
from postpress_async.rotation.journal._reading import JournalView
from postpress_async.rotation.journal._statistics import Statistics, collect_statistics, stage_of
from postpress_async.sandbox import Sandbox
from tests.support.cluster_world import World, sent_times, settled, until, write_fleet

pytestmark = pytest.mark.slow

LONG = "POSTPRESS_TEST_CLUSTER" in os.environ
"""Whether `nox -s cluster` runs them: as many accounts, and as long, as the claims are about."""

long = pytest.mark.skipif(not LONG, reason="takes minutes: nox -s cluster")

IN_FLIGHT = 40
BATCH = 100
"""Outcomes of a worker that it may not have told yet when it is killed: of a quarter of a second."""

SAME = "ordinal, line, account_id, state, attempts, status, error_type, scope, applied, assignment"
"""What of an outcome is the same on every run: all but times, and the sandbox's own numbers."""


def rows(journal: Path) -> list[Any]:
    connection = sqlite3.connect(journal)
    found = connection.execute(f"SELECT {SAME} FROM outcomes ORDER BY ordinal").fetchall()
    connection.close()
    return found


def numbers(journal: Path) -> Statistics:
    """What the report is made of, but for its times."""
    with JournalView(journal) as view:
        found = collect_statistics(view, stage_of(view), 0.0)
    return evolve(found, began=None, first=None, last=None, rate=None)


def command(*words: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "postpress_async", *map(str, words)]


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, cwd=folder)


# --- On one machine ---


def test_two_workers_leave_the_journal_and_the_exit_code_of_one_process(tmp_path: Path) -> None:
    """Retries, failures, keys and what is unknown: the sandbox's faults come by account, not by time."""
    fleet, _ = write_fleet(tmp_path, 20_000 if LONG else 2_000)
    ends, journals, reports = [], [], []
    for name, more in (("one", []), ("two", ["--cluster", "local:2"])):
        journal = tmp_path / f"{name}.sqlite3"
        done = run(tmp_path, "rotate", fleet, "--sandbox", "--profile", "flaky", "--journal", journal, *more)
        ends.append((done.returncode, done.stdout.splitlines()[-1]))
        journals.append(rows(journal))
        reports.append(numbers(journal))

    assert ends[0] == ends[1]
    assert ends[0][0] == 1
    assert journals[0] == journals[1]
    alone, shared = (evolve(report, command=None, retry_command=None) for report in reports)
    assert alone == shared
    assert reports[0].errors
    print(f"exit code {ends[0][0]}, {reports[0].states}, {reports[0].errors}: of both")


def test_a_pool_s_dead_proxies_are_found_out_by_all_workers_together(tmp_path: Path) -> None:
    """No account ends on one, and each of them is quarantined once."""
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("account_id\n" + "".join(f"acc_{number}\n" for number in range(1_000)))
    pool = tmp_path / "pool.txt"
    pool.write_text("".join(f"10.0.0.{number}:3128:user:secret\n" for number in range(1, 21)))

    words = ["rotate", fleet, "--pool", pool, "--sandbox", "--dead-proxies", 3, "--cluster", "local:2"]
    done = run(tmp_path, *words)

    assert done.returncode == 0, done.stderr
    assert "3 proxies of the pool did not work" in done.stderr
    found = rows(tmp_path / "fleet.csv.rotation.sqlite3")
    assert {row[-1].split("@")[1] for row in found}.isdisjoint(f"10.0.0.{n}:3128" for n in (1, 2, 3))


async def test_ctrl_c_drains_the_workers_as_it_drains_a_process(tmp_path: Path) -> None:
    """A terminal signals the workers too: they leave that to the command."""
    fleet, names = write_fleet(tmp_path, 3_000)
    async with Sandbox(latency=0.05) as sandbox:
        environment = {**os.environ, "POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
        process = await asyncio.create_subprocess_exec(
            *command("rotate", fleet, "--cluster", "local:2"),
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: sandbox.record.requests > 500 or process.returncode is not None)
            os.killpg(process.pid, signal.SIGINT)
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

        assert process.returncode == 130, errors
        assert b"Traceback" not in errors
        states = settled(tmp_path / "fleet.csv.rotation.sqlite3")
        assert len(states) == len(names)
        patched = {name for name in names if states[name] == "patched"}
        assert patched == {name for name in names if sandbox.record.sends(name)}, output
        assert set(states.values()) == {"patched", "skipped"}


# --- Under losses ---


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(latency=0.1) as made:
        yield made


def assert_settled(sandbox: Sandbox, names: list[str], journal: Path) -> None:
    """Each account is patched, and has been handed out one managed proxy."""
    assert settled(journal) == dict.fromkeys(names, "patched")
    assert sandbox.record.managed_handed_out == len(names)


async def ended_well(process: asyncio.subprocess.Process) -> None:
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_all_workers_are_killed_in_turn_and_others_join_late(tmp_path: Path, sandbox: Sandbox) -> None:
    """What is sent twice is what was in flight on the dead, and what they had not told yet."""
    fleet, names = write_fleet(tmp_path, 3_000)
    async with World(tmp_path, sandbox) as world:
        first, second = await world.start_worker(), await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 800)
        await world.start_worker()
        first.send_signal(signal.SIGKILL)
        sent = sandbox.record.requests
        await until(lambda: sandbox.record.requests > sent + 500)
        second.send_signal(signal.SIGKILL)
        await ended_well(process)

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert times[2] + times[3] <= 2 * (IN_FLIGHT + BATCH)
        assert set(times) <= {1, 2, 3}


async def test_a_worker_that_freezes_is_given_up_and_sends_nothing_more_when_it_thaws(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """Its rows are others' by then, and it cannot know."""
    fleet, names = write_fleet(tmp_path, 6_000)
    async with World(tmp_path, sandbox) as world:
        frozen, _ = await world.start_worker(), await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 800)
        frozen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > _coordinator.SILENT + 1)
        frozen.send_signal(signal.SIGCONT)
        await ended_well(process)

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert 0 < times[2] <= IN_FLIGHT + BATCH
        assert set(times) <= {1, 2}


async def test_the_command_is_killed_and_its_workers_send_nothing_more(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """What they go on sending, the same command sends again: they stop with the line to it."""
    fleet, names = write_fleet(tmp_path, 2_000)
    async with World(tmp_path, sandbox) as world:
        await world.start_worker()
        await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 800)
        process.kill()
        await process.wait()
        await ended_well(await world.rotate(fleet, "--in-flight", str(IN_FLIGHT)))

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert times[2] <= 2 * (IN_FLIGHT + BATCH)
        assert set(times) <= {1, 2}


@long
async def test_the_scheduler_is_killed_and_the_same_command_goes_on(tmp_path: Path, sandbox: Sandbox) -> None:
    """The command ends by itself, with what it knows on the disk."""
    fleet, names = write_fleet(tmp_path, 3_000)
    async with World(tmp_path, sandbox) as world:
        await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 500)
        assert world.scheduler is not None
        world.scheduler.send_signal(signal.SIGKILL)
        _, errors = await process.communicate()
        assert process.returncode == 3
        assert b"the cluster's scheduler does not respond any more" in errors

        await world.start_scheduler()
        await world.start_worker()
        await ended_well(await world.rotate(fleet, "--in-flight", str(IN_FLIGHT)))

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert times[2] <= IN_FLIGHT + BATCH
        assert set(times) <= {1, 2}


async def test_no_secret_is_in_what_dask_logs(tmp_path: Path, sandbox: Sandbox) -> None:
    """At its most talkative: neither passwords of proxies nor the key, on either side."""
    fleet = tmp_path / "fleet.csv"
    secrets = [f"pw-secret-{number}" for number in range(50)]
    lines = [f"acc_{n},socks5://u:{secret}@p.example.com:1080\n" for n, secret in enumerate(secrets)]
    fleet.write_text("account_id,proxy\n" + "".join(lines))
    sandbox.script("acc_7", "errors/invalid_proxy_credentials")
    async with World(tmp_path, sandbox, logging="debug") as world:
        await world.start_worker()
        process = await world.rotate(fleet, "--json", "-v")
        output, errors = await process.communicate()
        logs = world.logs()

    assert process.returncode == 1, errors
    assert b"postpress-" in logs  # they do tell of the shards
    written = logs + output + errors + world.journal.read_bytes()
    assert [secret for secret in [*secrets, sandbox.api_key] if secret.encode() in written] == []


# --- The rate ---


async def test_the_rate_is_one_for_all_workers(tmp_path: Path) -> None:
    """Never above it by more than a hundredth; as near below it as the machine's load lets it be."""
    rate, seconds = (1_000, 20) if LONG else (100, 6)
    fleet, _ = write_fleet(tmp_path, rate * seconds)
    arrivals: list[float] = []
    async with Sandbox() as sandbox, World(tmp_path, sandbox) as world:
        note = sandbox.record.note_arrival

        def arrived() -> None:
            arrivals.append(time.monotonic())
            note()

        sandbox.record.note_arrival = arrived  # type: ignore[method-assign]
        await world.start_worker()
        await world.start_worker()
        with without_pauses():
            await ended_well(await world.rotate(fleet, "--rate", str(rate)))

    began = arrivals[0] + 1.0
    edges = [bisect.bisect_left(arrivals, began + second) for second in range(int(arrivals[-1] - began) + 1)]
    rates = [after - before for before, after in pairwise(edges)]
    print(rate, rates)
    assert max(rates) <= rate * 1.01 + 2
    assert sum(rates) / len(rates) >= rate * 0.8
    if LONG:
        assert min(rates) >= rate * 0.95


# --- A network that is cut ---


@contextmanager
def without_pauses() -> Iterator[None]:
    """The API is in this process, and its collector would stop it for a tenth of a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def another_host(name: str = "postpress-w") -> Iterator[list[str]]:
    """
    A network namespace with an address of its own, 10.77.0.2; this machine is 10.77.0.1, and 10.78.0.1.

    Gives the words before a command that is to run there.
    """

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    there = ["ip", "netns", "exec", name]
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine allows no network namespaces: {error}")
    try:
        ip("link", "add", "postpress0", "type", "veth", "peer", "name", "postpress1", "netns", name)
        ip("addr", "add", "10.77.0.1/24", "dev", "postpress0")
        ip("addr", "add", "10.78.0.1/32", "dev", "postpress0")
        ip("link", "set", "postpress0", "up")
        for words in (
            "addr add 10.77.0.2/24 dev postpress1",
            "link set postpress1 up",
            "link set lo up",
            "route add 10.78.0.1/32 via 10.77.0.1",
        ):
            subprocess.run([*there, "ip", *words.split()], check=True)
        yield there
    finally:
        ip("netns", "delete", name)  # and its end of the cable, which takes ours along


def cut(there: list[str], what: str = "add") -> None:
    """No word of that host reaches this one's first address any more; or, by ``delete``, does again."""
    subprocess.run([*there, "ip", "route", what, "blackhole", "10.77.0.1/32"], check=True)


@asynccontextmanager
async def reached_by_tls(sandbox: Sandbox, host: str, folder: Path) -> AsyncIterator[str]:
    """The sandbox's URL for other hosts; ``ca.pem`` in *folder* is what they have to trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    port = int(sandbox.url.split(":")[2].split("/")[0])

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
        except OSError:
            pass
        finally:
            target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(relay, host, 0, ssl=context)
    try:
        yield f"https://{host}:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


@long
async def test_a_worker_is_cut_off_for_half_a_minute_and_nothing_is_lost(tmp_path: Path) -> None:
    """It still reaches the API: it must stop by itself, and others send what it may have sent once more."""
    fleet, names = write_fleet(tmp_path, 9_000)
    with another_host() as there:
        async with (
            Sandbox(latency=0.02) as sandbox,
            reached_by_tls(sandbox, "10.78.0.1", tmp_path) as url,
            World(tmp_path, sandbox, host="10.77.0.1") as world,
        ):
            trust = {"POSTPRESS_API_KEY": sandbox.api_key, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
            await world.start_worker(prefix=there, env=trust)
            await world.start_worker(env=trust)
            words = ["--base-url", url, "--in-flight", str(IN_FLIGHT), "--rate", "200"]
            process = await world.rotate(fleet, *words)
            await until(lambda: sandbox.record.requests > 1_000)
            cut(there)
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > 30.0)
            assert process.returncode is None
            cut(there, "delete")
            await ended_well(process)

            times = sent_times(sandbox, names)
            print(times)
            assert_settled(sandbox, names, world.journal)
            assert set(times) <= {1, 2}
