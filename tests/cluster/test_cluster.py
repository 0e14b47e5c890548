"""Clusters of real processes: the results of a single machine, also if workers or schedulers are killed."""

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
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import evolve

from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._statistics import Statistics, collect_statistics, stage_of
from postpress_async.sandbox import Sandbox
from tests.support.cluster_world import (
    ClusterProcesses,
    accounts_by_requests,
    free_port,
    recorded_states,
    wait_until,
    write_fleet,
)

pytestmark = pytest.mark.slow

LONG = "POSTPRESS_TEST_CLUSTER" in os.environ
"""Whether to run the tests at full length, as `nox -s cluster` does."""

long = pytest.mark.skipif(not LONG, reason="takes minutes: nox -s cluster")

IN_FLIGHT = 40
"""Concurrency limit of each worker. Its requests take 0.1 s, so it ends about 400 calls per second."""

UNREPORTED = 100
"""Maximum number of calls that a worker ended without reporting them: those of a quarter of a second."""

COLUMNS = "ordinal, line, account_id, state, attempts, status, error_type, scope, applied, assignment"
"""The columns of an outcome that do not differ between runs, as times and request ids do."""


def recorded_rows(journal: Path) -> list[Any]:
    with closing(sqlite3.connect(journal)) as connection:
        return connection.execute(f"SELECT {COLUMNS} FROM outcomes ORDER BY ordinal").fetchall()


def statistics_without_times(journal: Path) -> Statistics:
    """What the report shows, except times, which differ between runs."""
    with JournalReader(journal) as view:
        statistics = collect_statistics(view, stage_of(view), 0.0)
    return evolve(statistics, began=None, first=None, last=None, rate=None)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "postpress_async", *map(str, arguments)]


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, cwd=folder)


# --- Compared with one machine ---


def first_line_without_duration(output: str) -> str:
    """For example, "500 accounts: 490 patched" if the line is "500 accounts: 490 patched in 3 s"."""
    return output.splitlines()[0].partition(" in ")[0]


def test_flaky_service_gives_two_workers_the_same_journal_and_exit_code_as_one_process(
    tmp_path: Path,
) -> None:
    """The sandbox's faults depend on the account and not on time, so the outcomes can be compared."""
    fleet, _ = write_fleet(tmp_path, 20_000 if LONG else 500)
    one, two = tmp_path / "one.sqlite3", tmp_path / "two.sqlite3"
    options = ["rotate", fleet, "--sandbox", "--profile", "flaky", "--journal"]

    alone = run(tmp_path, *options, one)
    shared = run(tmp_path, *options, two, "--cluster", "local:2")

    assert (alone.returncode, shared.returncode) == (1, 1), (alone, shared)
    assert first_line_without_duration(alone.stdout) == first_line_without_duration(shared.stdout)
    assert recorded_rows(one) == recorded_rows(two)
    statistics = statistics_without_times(one)
    assert statistics.errors
    assert evolve(statistics, command=None, retry_command=None) == evolve(
        statistics_without_times(two), command=None, retry_command=None
    )


def test_two_workers_avoid_dead_proxies_and_respect_the_cap_of_each_proxy(tmp_path: Path) -> None:
    count = 20_000 if LONG else 500
    cap = count // 17 + 1  # the 17 working proxies suffice for all accounts
    (tmp_path / "fleet.csv").write_text("account_id\n" + "".join(f"acc_{n}\n" for n in range(count)))
    (tmp_path / "pool.txt").write_text("".join(f"10.0.0.{n}:3128:user:secret\n" for n in range(1, 21)))
    journal = tmp_path / "journal.sqlite3"
    options = ["--pool", "pool.txt", "--dead-proxies", 3, "--accounts-per-proxy", cap]

    done = run(
        tmp_path, "rotate", "fleet.csv", "--sandbox", *options, "--journal", journal, "--cluster", "local:2"
    )

    assert done.returncode == 0, done
    assert "3 proxies of the pool did not work" in done.stderr
    used = Counter(row[-1].split("@")[1] for row in recorded_rows(journal))
    assert set(used) == {f"10.0.0.{n}:3128" for n in range(4, 21)}
    assert max(used.values()) <= cap


async def test_tagged_fleet_is_moved_off_a_host_and_rolled_back(tmp_path: Path) -> None:
    """Three commands: rotate all accounts, rotate those on one host, and roll back to the first run."""
    account_ids = [f"acc_{number}" for number in range(200)]
    rows = "".join(
        f"{account_id},{('US', 'DE')[number % 2]}\n" for number, account_id in enumerate(account_ids)
    )
    (tmp_path / "fleet.csv").write_text(f"account_id,pool\n{rows}")
    (tmp_path / "old.txt").write_text("us1.example:80:user:secret\nus2.example:80:user:secret\n")
    (tmp_path / "new.txt").write_text("us3.example:80:user:secret\n")
    (tmp_path / "de.txt").write_text("de.example:7777:c-{account_id}-s{try}:secret\n")
    rotate: list[object] = ["rotate", "fleet.csv", "--cluster", "local:2", "--pool", "DE=de.txt", "--pool"]
    async with Sandbox() as sandbox:

        def proxy_of(account_id: str) -> Any:
            body = sandbox.proxy_of(account_id)
            return {} if body is None else body["proxy"]

        async def hosts_after(*arguments: object) -> Counter[str]:
            environment = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
            process = await asyncio.create_subprocess_exec(
                *command(*arguments),
                env=os.environ | environment,
                cwd=tmp_path,
                stderr=asyncio.subprocess.PIPE,
            )
            await wait_for_success(process)
            return Counter(proxy_of(account_id)["host"] for account_id in account_ids)

        first = await hosts_after(*rotate, "US=old.txt")
        second = await hosts_after(*rotate, "US=new.txt", "--on", "us1.example")
        back = ["rollback", "fleet.csv.rotation.sqlite3", "--to", 1, "--pool", "old.txt", "--skip-bad"]
        third = await hosts_after(*back, "--cluster", "local:2")

    assert first == third == {"us1.example": 50, "us2.example": 50, "de.example": 100}
    assert second == {"us3.example": 50, "us2.example": 50, "de.example": 100}
    assert [proxy_of(account_id)["username"] for account_id in account_ids[1::2]] == [
        f"c-{account_id}-s0" for account_id in account_ids[1::2]
    ]
    assert sandbox.record.requests == 200 + 50 + 50


async def test_ctrl_c_completes_the_requests_in_flight(tmp_path: Path) -> None:
    """A terminal also sends SIGINT to the workers, which ignore it: the command tells them to stop."""
    fleet, account_ids = write_fleet(tmp_path, 2_000)
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
            await wait_until(lambda: sandbox.record.requests > 300 or process.returncode is not None)
            os.killpg(process.pid, signal.SIGINT)
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

        assert process.returncode == 130, errors
        assert b"Traceback" not in errors
        states = recorded_states(tmp_path / "fleet.csv.rotation.sqlite3")
        assert len(states) == len(account_ids)
        patched = {account_id for account_id in account_ids if states[account_id] == "patched"}
        assert patched == {account_id for account_id in account_ids if sandbox.record.sends(account_id)}, (
            output
        )
        assert set(states.values()) == {"patched", "skipped"}


# --- Under losses ---


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(latency=0.1) as sandbox:
        yield sandbox


def assert_patched_once(sandbox: Sandbox, account_ids: list[str], journal: Path) -> None:
    """Assert that each account is patched, and that the API ordered one managed proxy for it."""
    assert recorded_states(journal) == dict.fromkeys(account_ids, "patched")
    assert sandbox.record.managed_handed_out == len(account_ids)


async def worker_processes(client: Any) -> dict[str, str]:
    """The directory that Dask creates for each worker process, by the address of the running worker."""
    workers = (await client.scheduler.identity())["workers"]
    return {
        address: facts["local_directory"]
        for address, facts in workers.items()
        if facts["status"] == "running"
    }


async def wait_for_success(process: asyncio.subprocess.Process) -> None:
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_killed_workers_cost_at_most_their_unreported_calls(tmp_path: Path, sandbox: Sandbox) -> None:
    """Two workers are killed one after the other, while a third one joins."""
    fleet, account_ids = write_fleet(tmp_path, 3_000 if LONG else 1_500)
    async with ClusterProcesses(tmp_path, sandbox) as cluster:
        first, second = await cluster.start_worker(), await cluster.start_worker()
        process = await cluster.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await wait_until(lambda: sandbox.record.requests > 300)
        await cluster.start_worker()
        first.send_signal(signal.SIGKILL)
        sent = sandbox.record.requests
        await wait_until(lambda: sandbox.record.requests > sent + 300)
        second.send_signal(signal.SIGKILL)
        await wait_for_success(process)

        by_requests = accounts_by_requests(sandbox, account_ids)
        assert_patched_once(sandbox, account_ids, cluster.journal)
        assert by_requests[2] + by_requests[3] <= 2 * (IN_FLIGHT + UNREPORTED)
        assert set(by_requests) <= {1, 2, 3}


async def test_worker_that_restarts_at_the_same_address_does_not_run_the_old_shards(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """The scheduler assigns the old shards to it while the command is suspended and notices no loss."""
    fleet, account_ids = write_fleet(tmp_path, 1_500)
    async with ClusterProcesses(tmp_path, sandbox) as cluster:
        await cluster.start_worker("--nanny", "--worker-port", str(free_port()))
        async with cluster.client() as client:
            await client.wait_for_workers(1)
            before = await worker_processes(client)
            [worker_pid] = (await client.run(os.getpid)).values()
            # Few requests in flight, so that shards are partly completed.
            process = await cluster.rotate(fleet, "--in-flight", "15")
            await wait_until(lambda: sandbox.record.requests > 600)
            process.send_signal(signal.SIGSTOP)
            os.kill(worker_pid, signal.SIGKILL)
            completed = recorded_states(cluster.journal)
            async with asyncio.timeout(60.0):
                while await worker_processes(client) in ({}, before) or any(
                    (await client.processing()).values()
                ):
                    await asyncio.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        await wait_for_success(process)

        by_requests = accounts_by_requests(sandbox, account_ids)
        assert_patched_once(sandbox, account_ids, cluster.journal)
        assert [account_id for account_id in completed if sandbox.record.sends(account_id) > 1] == []
        assert 0 < by_requests[2] <= IN_FLIGHT + UNREPORTED
        assert set(by_requests) <= {1, 2}


@long
async def test_worker_that_freezes_for_20_s_sends_no_accounts_after_it_continues(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """By then, another worker has sent its accounts."""
    fleet, account_ids = write_fleet(tmp_path, 12_000)
    async with ClusterProcesses(tmp_path, sandbox) as cluster:
        frozen, _ = await cluster.start_worker(), await cluster.start_worker()
        process = await cluster.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await wait_until(lambda: sandbox.record.requests > 800)
        frozen.send_signal(signal.SIGSTOP)
        await asyncio.sleep(20.0)
        frozen.send_signal(signal.SIGCONT)
        await wait_for_success(process)

        by_requests = accounts_by_requests(sandbox, account_ids)
        assert_patched_once(sandbox, account_ids, cluster.journal)
        assert 0 < by_requests[2] <= IN_FLIGHT + UNREPORTED
        assert set(by_requests) <= {1, 2}


async def test_workers_stop_sending_when_the_command_is_killed(tmp_path: Path, sandbox: Sandbox) -> None:
    """Otherwise they and a resumed run would send the same accounts."""
    fleet, account_ids = write_fleet(tmp_path, 1_000)
    async with ClusterProcesses(tmp_path, sandbox) as cluster:
        await cluster.start_worker()
        await cluster.start_worker()
        process = await cluster.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await wait_until(lambda: sandbox.record.requests > 400)
        process.kill()
        await process.wait()
        await wait_for_success(await cluster.rotate(fleet, "--in-flight", str(IN_FLIGHT)))

        by_requests = accounts_by_requests(sandbox, account_ids)
        assert_patched_once(sandbox, account_ids, cluster.journal)
        assert by_requests[2] <= 2 * (IN_FLIGHT + UNREPORTED)
        assert set(by_requests) <= {1, 2}


@long
async def test_run_ends_when_the_scheduler_is_killed_and_can_be_resumed(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    fleet, account_ids = write_fleet(tmp_path, 3_000)
    async with ClusterProcesses(tmp_path, sandbox) as cluster:
        await cluster.start_worker()
        process = await cluster.rotate(fleet, "--in-flight", str(IN_FLIGHT))
        await wait_until(lambda: sandbox.record.requests > 500)
        assert cluster.scheduler is not None
        cluster.scheduler.send_signal(signal.SIGKILL)
        _, errors = await process.communicate()
        assert process.returncode == 3
        assert b"the cluster's scheduler does not respond any more" in errors

        await cluster.start_scheduler()
        await cluster.start_worker()
        await wait_for_success(await cluster.rotate(fleet, "--in-flight", str(IN_FLIGHT)))

        by_requests = accounts_by_requests(sandbox, account_ids)
        assert_patched_once(sandbox, account_ids, cluster.journal)
        assert by_requests[2] <= IN_FLIGHT + UNREPORTED
        assert set(by_requests) <= {1, 2}


async def test_no_proxy_password_or_api_key_is_logged_or_recorded(tmp_path: Path, sandbox: Sandbox) -> None:
    """Neither side logs them, even if Dask logs at level DEBUG."""
    fleet = tmp_path / "fleet.csv"
    secrets = [f"pw-secret-{number}" for number in range(50)]
    lines = [f"acc_{n},socks5://u:{secret}@p.example.com:1080\n" for n, secret in enumerate(secrets)]
    fleet.write_text("account_id,proxy\n" + "".join(lines))
    sandbox.script("acc_7", "errors/invalid_proxy_credentials")
    async with ClusterProcesses(tmp_path, sandbox, logging="debug") as cluster:
        await cluster.start_worker()
        process = await cluster.rotate(fleet, "--json", "-v")
        output, errors = await process.communicate()
        logs = cluster.logs()

    assert process.returncode == 1, errors
    assert b"postpress-" in logs  # Dask logged the keys of the shards
    written = logs + output + errors + cluster.journal.read_bytes()
    assert [secret for secret in [*secrets, sandbox.api_key] if secret.encode() in written] == []


# --- The rate ---


@long
async def test_rate_limits_all_workers_together(tmp_path: Path) -> None:
    """In any second, the workers together send at most 1% more than the rate, and at most 5% less."""
    rate, seconds = 1_000, 20
    fleet, _ = write_fleet(tmp_path, rate * seconds)
    arrivals: list[float] = []
    async with Sandbox() as sandbox, ClusterProcesses(tmp_path, sandbox) as cluster:
        record: Any = sandbox.record
        note_arrival = record.note_arrival

        def note_time_of_arrival() -> None:
            arrivals.append(time.monotonic())
            note_arrival()

        record.note_arrival = note_time_of_arrival
        await cluster.start_worker()
        await cluster.start_worker()
        with without_garbage_collection():
            await wait_for_success(await cluster.rotate(fleet, "--rate", str(rate)))

    began = arrivals[0] + 1.0  # without the first second, in which the workers get their shares
    seconds_measured = int(arrivals[-1] - began)
    sent_by = [bisect.bisect_left(arrivals, began + second) for second in range(seconds_measured + 1)]
    rates = [after - before for before, after in pairwise(sent_by)]
    print(rate, rates)
    assert max(rates) <= rate * 1.01 + 2  # 2: requests at the borders of a second
    assert min(rates) >= rate * 0.95


# --- A network that is interrupted ---


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Exempt existing objects from garbage collection, which would stop the sandbox for 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def another_host(name: str = "postpress-w") -> Iterator[list[str]]:
    """
    Create a network namespace with the address 10.77.0.2, where this machine is 10.77.0.1 and 10.78.0.1.

    Yields the prefix of a command that is to run in the namespace.
    """

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

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
        for arguments in (
            "addr add 10.77.0.2/24 dev postpress1",
            "link set postpress1 up",
            "link set lo up",
            "route add 10.78.0.1/32 via 10.77.0.1",
        ):
            subprocess.run([*prefix, "ip", *arguments.split()], check=True)
        yield prefix
    finally:
        ip("netns", "delete", name)  # also deletes both ends of the veth cable


@contextmanager
def connection_cut(prefix: list[str]) -> Iterator[None]:
    """Drop all packets from the other host to 10.77.0.1, where the scheduler is."""
    route = ["blackhole", "10.77.0.1/32"]
    subprocess.run([*prefix, "ip", "route", "add", *route], check=True)
    yield
    subprocess.run([*prefix, "ip", "route", "delete", *route], check=True)


@asynccontextmanager
async def tls_proxy(sandbox: Sandbox, host: str, folder: Path) -> AsyncIterator[str]:
    """Forward TLS connections to the sandbox. Yields the URL; clients must trust ``ca.pem`` in *folder*."""
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
async def test_worker_without_the_scheduler_for_30_s_sends_no_more_than_its_window(tmp_path: Path) -> None:
    """The worker still reaches the API, and the other worker sends the same accounts again."""
    fleet, account_ids = write_fleet(tmp_path, 9_000)
    with another_host() as prefix:
        async with (
            Sandbox(latency=0.02) as sandbox,
            tls_proxy(sandbox, "10.78.0.1", tmp_path) as url,
            ClusterProcesses(tmp_path, sandbox, host="10.77.0.1") as cluster,
        ):
            trust = {"POSTPRESS_API_KEY": sandbox.api_key, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
            await cluster.start_worker(prefix=prefix, env=trust)
            await cluster.start_worker(env=trust)
            arguments = ["--base-url", url, "--in-flight", str(IN_FLIGHT), "--rate", "200"]
            process = await cluster.rotate(fleet, *arguments)
            await wait_until(lambda: sandbox.record.requests > 1_000)
            with connection_cut(prefix):
                await asyncio.sleep(30.0)
                assert process.returncode is None
            await wait_for_success(process)

            by_requests = accounts_by_requests(sandbox, account_ids)
            assert_patched_once(sandbox, account_ids, cluster.journal)
            assert by_requests[2] <= 2 * IN_FLIGHT + UNREPORTED
            assert set(by_requests) <= {1, 2}
