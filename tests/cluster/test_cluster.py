"""Clusters of real processes: the same results as on one machine, and losses of workers and schedulers."""

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
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import evolve

from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._statistics import Statistics, collect_statistics, stage_of
from postpress_async.sandbox import Sandbox
from tests.support.cluster_world import World, free_port, sent_times, settled, until, write_fleet

pytestmark = pytest.mark.slow

LONG = "POSTPRESS_TEST_CLUSTER" in os.environ
"""Whether the tests run at full length, as `nox -s cluster` runs them."""

long = pytest.mark.skipif(not LONG, reason="takes minutes: nox -s cluster")

IN_FLIGHT = 40
UNREPORTED = 100
"""Upper bound of the calls that a worker has ended and not reported: those of a quarter of a second."""

COLUMNS = "ordinal, line, account_id, state, attempts, status, error_type, scope, applied, assignment"
"""The columns that are the same in every run: all except times and the sandbox's ids of requests."""


def rows(journal: Path) -> list[Any]:
    connection = sqlite3.connect(journal)
    found = connection.execute(f"SELECT {COLUMNS} FROM outcomes ORDER BY ordinal").fetchall()
    connection.close()
    return found


def numbers(journal: Path) -> Statistics:
    """The numbers of the report, without times."""
    with JournalReader(journal) as view:
        found = collect_statistics(view, stage_of(view), 0.0)
    return evolve(found, began=None, first=None, last=None, rate=None)


def command(*words: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "postpress_async", *map(str, words)]


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, cwd=folder)


# --- Compared with one machine ---


@pytest.mark.parametrize("pooled", [False, True], ids=["flaky service", "dead proxies and caps"])
def test_two_workers_leave_the_journal_and_exit_code_of_one_process(tmp_path: Path, pooled: bool) -> None:
    """The faults of the sandbox depend on the account, not on time."""
    count = 20_000 if LONG else 500
    fleet, _ = write_fleet(tmp_path, count)
    options: list[object] = ["--profile", "flaky"]
    if pooled:
        fleet.write_text("account_id\n" + "".join(f"acc_{number}\n" for number in range(count)))
        pool = tmp_path / "pool.txt"
        pool.write_text("".join(f"10.0.0.{number}:3128:user:secret\n" for number in range(1, 21)))
        options = ["--pool", pool, "--dead-proxies", 3, "--accounts-per-proxy", count // 17 + 1]
    ends, journals, reports = [], [], []
    for name, more in (("one", []), ("two", ["--cluster", "local:2"])):
        journal = tmp_path / f"{name}.sqlite3"
        done = run(tmp_path, "rotate", fleet, "--sandbox", *options, "--journal", journal, *more)
        ends.append((done.returncode, done.stdout.splitlines()[0].partition(" in ")[0], done.stderr))
        journals.append(rows(journal))
        reports.append(numbers(journal))

    assert ends[0][:2] == ends[1][:2], ends
    if pooled:
        # Which account meets a dead proxy depends on the order of the responses.
        assert [ends[n][0] for n in range(2)] == [0, 0]
        assert "3 proxies of the pool did not work" in ends[1][2]
        used = [row[-1].split("@")[1] for row in journals[1]]
        assert {f"10.0.0.{n}:3128" for n in range(4, 21)} == set(used)
        assert max(map(used.count, set(used))) <= count // 17 + 1
        return
    assert ends[0][0] == 1
    assert journals[0] == journals[1]
    alone, shared = (evolve(report, command=None, retry_command=None) for report in reports)
    assert alone == shared
    assert reports[0].errors


async def test_fleet_with_tags_and_a_template_moves_and_goes_back(tmp_path: Path) -> None:
    """A night, then one of the accounts on a single host, and back again."""
    names = [f"acc_{number}" for number in range(200)]
    tags = "".join(f"{name},{('US', 'DE')[number % 2]}\n" for number, name in enumerate(names))
    (tmp_path / "fleet.csv").write_text(f"account_id,pool\n{tags}")
    (tmp_path / "old.txt").write_text("us1.example:80:user:secret\nus2.example:80:user:secret\n")
    (tmp_path / "new.txt").write_text("us3.example:80:user:secret\n")
    (tmp_path / "de.txt").write_text("de.example:7777:c-{account_id}-s{try}:secret\n")
    rotate: list[object] = ["rotate", "fleet.csv", "--cluster", "local:2", "--pool", "DE=de.txt", "--pool"]
    async with Sandbox() as sandbox:

        def proxy_of(account_id: str) -> Any:
            body = sandbox.proxy_of(account_id)
            return {} if body is None else body["proxy"]

        async def hosts_after(*words: object) -> Counter[str]:
            environment = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
            process = await asyncio.create_subprocess_exec(
                *command(*words), env=os.environ | environment, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
            )
            await wait_for_success(process)
            return Counter(proxy_of(name)["host"] for name in names)

        first = await hosts_after(*rotate, "US=old.txt")
        second = await hosts_after(*rotate, "US=new.txt", "--on", "us1.example")
        back = ["rollback", "fleet.csv.rotation.sqlite3", "--to", 1, "--pool", "old.txt", "--skip-bad"]
        third = await hosts_after(*back, "--cluster", "local:2")

    assert first == third == {"us1.example": 50, "us2.example": 50, "de.example": 100}
    assert second == {"us3.example": 50, "us2.example": 50, "de.example": 100}
    assert [proxy_of(name)["username"] for name in names[1::2]] == [f"c-{name}-s0" for name in names[1::2]]
    assert sandbox.record.requests == 200 + 50 + 50


async def test_ctrl_c_completes_the_requests_in_flight(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the workers, too; they leave it to the command."""
    fleet, names = write_fleet(tmp_path, 2_000)
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
            await until(lambda: sandbox.record.requests > 300 or process.returncode is not None)
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
    """Each account is patched, and got one managed proxy."""
    assert settled(journal) == dict.fromkeys(names, "patched")
    assert sandbox.record.managed_handed_out == len(names)


async def worker_processes(client: Any) -> dict[str, str]:
    """The running workers by address, with the directory that Dask creates for each process."""
    workers = (await client.scheduler.identity())["workers"]
    return {
        address: facts["local_directory"]
        for address, facts in workers.items()
        if facts["status"] == "running"
    }


async def wait_for_success(process: asyncio.subprocess.Process) -> None:
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_workers_are_killed_in_turn_while_another_one_joins(tmp_path: Path, sandbox: Sandbox) -> None:
    """Only what they had in flight or not reported is sent twice."""
    fleet, names = write_fleet(tmp_path, 3_000 if LONG else 1_500)
    async with World(tmp_path, sandbox) as world:
        first, second = await world.start_worker(), await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 300)
        await world.start_worker()
        first.send_signal(signal.SIGKILL)
        sent = sandbox.record.requests
        await until(lambda: sandbox.record.requests > sent + 300)
        second.send_signal(signal.SIGKILL)
        await wait_for_success(process)

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert times[2] + times[3] <= 2 * (IN_FLIGHT + UNREPORTED)
        assert set(times) <= {1, 2, 3}


async def test_worker_that_restarts_at_its_address_sends_nothing_of_its_predecessor(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """The scheduler gives it the same shards, and the suspended command does not notice the loss."""
    fleet, names = write_fleet(tmp_path, 1_500)
    async with World(tmp_path, sandbox) as world:
        await world.start_worker("--nanny", "--worker-port", str(free_port()))
        process = await world.rotate(fleet, "--in-flight", "15")  # so that shards are completed in parts
        await until(lambda: sandbox.record.requests > 600)
        process.send_signal(signal.SIGSTOP)
        completed = settled(world.journal)
        async with world.client() as client:
            before = await worker_processes(client)
            [pid] = (await client.run(os.getpid)).values()
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(60.0):
                while await worker_processes(client) in ({}, before) or any(
                    (await client.processing()).values()
                ):
                    await asyncio.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        await wait_for_success(process)

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert [name for name in completed if sandbox.record.sends(name) > 1] == []
        assert 0 < times[2] <= IN_FLIGHT + UNREPORTED
        assert set(times) <= {1, 2}


@long
async def test_worker_that_freezes_for_20_s_is_lost_and_sends_nothing_more(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """Others have its accounts by then."""
    fleet, names = write_fleet(tmp_path, 12_000)
    async with World(tmp_path, sandbox) as world:
        frozen, _ = await world.start_worker(), await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 800)
        frozen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 20.0)
        frozen.send_signal(signal.SIGCONT)
        await wait_for_success(process)

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert 0 < times[2] <= IN_FLIGHT + UNREPORTED
        assert set(times) <= {1, 2}


async def test_command_is_killed_and_its_workers_send_nothing_more(tmp_path: Path, sandbox: Sandbox) -> None:
    """The same command sends them again, so workers stop when the scheduler loses the command."""
    fleet, names = write_fleet(tmp_path, 1_000)
    async with World(tmp_path, sandbox) as world:
        await world.start_worker()
        await world.start_worker()
        process = await world.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await until(lambda: sandbox.record.requests > 400)
        process.kill()
        await process.wait()
        await wait_for_success(await world.rotate(fleet, "--in-flight", str(IN_FLIGHT)))

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert times[2] <= 2 * (IN_FLIGHT + UNREPORTED)
        assert set(times) <= {1, 2}


@long
async def test_scheduler_is_killed_and_the_same_command_resumes_the_run(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """The command ends by itself, and its journal has what was reported."""
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
        await wait_for_success(await world.rotate(fleet, "--in-flight", str(IN_FLIGHT)))

        times = sent_times(sandbox, names)
        print(times)
        assert_settled(sandbox, names, world.journal)
        assert times[2] <= IN_FLIGHT + UNREPORTED
        assert set(times) <= {1, 2}


async def test_no_secret_is_in_what_dask_logs(tmp_path: Path, sandbox: Sandbox) -> None:
    """Not even at level DEBUG: no password of a proxy, and no API key, on either side."""
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
    assert b"postpress-" in logs  # the shards
    written = logs + output + errors + world.journal.read_bytes()
    assert [secret for secret in [*secrets, sandbox.api_key] if secret.encode() in written] == []


# --- The rate ---


@long
async def test_rate_limits_all_workers_together(tmp_path: Path) -> None:
    """At most 1% above it in any second, and on an idle machine at most 3% below it."""
    rate, seconds = 1_000, 20
    fleet, _ = write_fleet(tmp_path, rate * seconds)
    arrivals: list[float] = []
    async with Sandbox() as sandbox, World(tmp_path, sandbox) as world:
        recorder: Any = sandbox.record
        note = recorder.note_arrival

        def arrived() -> None:
            arrivals.append(time.monotonic())
            note()

        recorder.note_arrival = arrived
        await world.start_worker()
        await world.start_worker()
        with without_pauses():
            await wait_for_success(await world.rotate(fleet, "--rate", str(rate)))

    began = arrivals[0] + 1.0
    edges = [bisect.bisect_left(arrivals, began + second) for second in range(int(arrivals[-1] - began) + 1)]
    rates = [after - before for before, after in pairwise(edges)]
    print(rate, rates)
    assert max(rates) <= rate * 1.01 + 2
    assert min(rates) >= rate * 0.95


# --- A network that is interrupted ---


@contextmanager
def without_pauses() -> Iterator[None]:
    """Suspend the garbage collector, which would stop the API in this process for a tenth of a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def another_host(name: str = "postpress-w") -> Iterator[list[str]]:
    """
    Create a network namespace with the address 10.77.0.2. This machine has 10.77.0.1 and 10.78.0.1 there.

    Yields the words that run a command in it.
    """

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    prefix = ["ip", "netns", "exec", name]
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
            subprocess.run([*prefix, "ip", *words.split()], check=True)
        yield prefix
    finally:
        ip("netns", "delete", name)  # and with it both ends of the cable


def cut(prefix: list[str], action: str = "add") -> None:
    """Drop all packets from that host to this one's first address; ``delete`` ends that."""
    subprocess.run([*prefix, "ip", "route", action, "blackhole", "10.77.0.1/32"], check=True)


@asynccontextmanager
async def reached_by_tls(sandbox: Sandbox, host: str, folder: Path) -> AsyncIterator[str]:
    """Yield the sandbox's URL for other hosts, which must trust ``ca.pem`` in *folder*."""
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
async def test_worker_without_connection_to_the_scheduler_for_30_s(tmp_path: Path) -> None:
    """The worker still reaches the API, and sends at most its window. Others send these accounts again."""
    fleet, names = write_fleet(tmp_path, 9_000)
    with another_host() as prefix:
        async with (
            Sandbox(latency=0.02) as sandbox,
            reached_by_tls(sandbox, "10.78.0.1", tmp_path) as url,
            World(tmp_path, sandbox, host="10.77.0.1") as world,
        ):
            trust = {"POSTPRESS_API_KEY": sandbox.api_key, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
            await world.start_worker(prefix=prefix, env=trust)
            await world.start_worker(env=trust)
            words = ["--base-url", url, "--in-flight", str(IN_FLIGHT), "--rate", "200"]
            process = await world.rotate(fleet, *words)
            await until(lambda: sandbox.record.requests > 1_000)
            cut(prefix)
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > 30.0)
            assert process.returncode is None
            cut(prefix, "delete")
            await wait_for_success(process)

            times = sent_times(sandbox, names)
            print(times)
            assert_settled(sandbox, names, world.journal)
            assert times[2] <= 2 * IN_FLIGHT + UNREPORTED
            assert set(times) <= {1, 2}
