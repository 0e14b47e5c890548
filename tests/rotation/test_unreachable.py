"""A host that was never reached halts the rotation: a mistyped name, a closed port, a wrong certificate."""

import asyncio
import json
import socket
from contextlib import closing

import pytest
from attrs import evolve

from postpress_async import ManagedProxy, Pace, PostPressSession, RetryPolicy, errors
from postpress_async.errors import Applied
from postpress_async.rotation import State
from postpress_async.rotation._failure_monitor import MAX_FAILED_CONNECTS, FailureMonitor
from postpress_async.rotation._halt import Halt
from postpress_async.sandbox import Sandbox
from tests.support import KEY
from tests.support.command_line import run
from tests.support.journals import patched_outcome
from tests.support.rotations import US
from tests.support.rotations import run as run_rotation
from tests.support.virtual_world import in_virtual_time, now
from tests.support.virtual_world import world as virtual_world

REFUSED = errors.ConnectError("no connection to api.example.com: Connection refused")


def changes(count: int) -> dict[str, ManagedProxy]:
    return {f"acc_{number}": US for number in range(count)}


def first_halt(monitor: FailureMonitor, *failures: errors.PostPressError) -> tuple[int, str] | None:
    """Return after how many *failures* the monitor halts, and the reason; None if it does not halt."""
    for count, error in enumerate(failures, 1):
        if (reason := monitor.attempt_failed(error)) is not None:
            return count, reason
    return None


@pytest.mark.parametrize("count", [1, 4, 500])
@pytest.mark.parametrize("in_flight", [1, 5, 100])
@in_virtual_time
async def test_rotation_halts_within_10_seconds_if_the_host_was_never_reached(in_flight, count) -> None:
    """Otherwise the rotation would wait for the end of an outage, however few accounts are in flight."""
    async with virtual_world(Pace(in_flight=in_flight), retry=RetryPolicy(attempts=6)) as world:
        await world.server.outage("refused")
        started_at = now()
        rotation = await run_rotation(world.session.rotate(changes(count), halt="never"))

        assert now() - started_at < 10.0
        assert world.server.url.split("/")[2] in (rotation.summary.halted or "")
        assert "Connection refused" in (rotation.summary.halted or "")
        assert rotation.summary.states == {State.SKIPPED: count}


@in_virtual_time
async def test_rotation_waits_for_a_host_that_was_reached_before() -> None:
    async with virtual_world(Pace(in_flight=10)) as world:
        async with world.session.rotate(changes(500), in_flight=10) as rotation:
            for _ in range(30):
                await anext(rotation)
            await world.server.outage("refused")
            await asyncio.sleep(120.0)
            await world.server.recover()
            await rotation.run()

        assert rotation.summary.halted is None
        assert rotation.summary.patched == 500


@pytest.mark.parametrize("resumed", [False, True])
async def test_rotation_does_not_halt_if_an_earlier_run_reached_the_host(tmp_path, resumed, policy) -> None:
    """Each account is skipped after its attempts, as in any outage."""
    journal = tmp_path / "run.sqlite3"
    retry = evolve(policy, attempts=6)
    async with Sandbox() as sandbox:
        async with PostPressSession(sandbox.api_key, base_url=sandbox.url) as session:
            await run_rotation(session.rotate(changes(3), journal=journal, limit=1))

    journal = journal if resumed else tmp_path / "another.sqlite3"
    async with PostPressSession(sandbox.api_key, base_url=sandbox.url, retry=retry) as session:
        rotation = await run_rotation(session.rotate(changes(3), journal=journal, halt="never"))

    assert (rotation.summary.halted is None) is resumed
    assert rotation.summary.states[State.SKIPPED] == (2 if resumed else 3)


def connect_timeout() -> errors.PostPressError:
    error = errors.AttemptTimeoutError("no connection to h within 30 s")
    error.applied = Applied.NO
    return error


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(REFUSED, id="refused"),
        pytest.param(errors.ConnectError("no connection to h: Name or service not known"), id="unknown name"),
        pytest.param(errors.TlsError("no secure connection to h: self-signed certificate"), id="TLS"),
        pytest.param(connect_timeout(), id="no connection in time"),
    ],
)
def test_reason_of_the_halt_names_the_error(error) -> None:
    halt = first_halt(FailureMonitor(Halt()), *[error] * 100)

    reason = f"{error.args[0]} (20 attempts, none successful): check the base URL and the network"
    assert halt == (MAX_FAILED_CONNECTS, reason)


def connection_lost() -> errors.PostPressError:
    return errors.ConnectionLostError("the connection was lost before an answer came")


def attempt_timeout() -> errors.PostPressError:
    return errors.AttemptTimeoutError("no answer in 30 s")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(errors.ApiError.of(503, errors.Problem()), id="a response"),
        pytest.param(connection_lost(), id="a lost connection"),
        pytest.param(attempt_timeout(), id="a request without a response"),
    ],
)
def test_rotation_does_not_halt_after_one_successful_connection(other) -> None:
    assert first_halt(FailureMonitor(Halt()), other, *[REFUSED] * 100) is None


def test_patched_account_counts_as_a_successful_connection() -> None:
    monitor = FailureMonitor(Halt())
    monitor.observe(patched_outcome(0, None, "acc_1", 1, 0.1))

    assert first_halt(monitor, *[REFUSED] * 100) is None


async def test_rotation_that_was_stopped_is_not_also_halted_as_unreachable(free_port) -> None:
    """The user stopped the rotation, so the exit code must be the one for an interrupt."""
    url = f"http://127.0.0.1:{free_port}/v1"
    async with PostPressSession(KEY, base_url=url, retry=RetryPolicy(first_wait=60.0)) as session:
        async with session.rotate(changes(1)) as rotation:
            while not rotation.retrying:
                await asyncio.sleep(0)
            rotation.stop()
            await rotation.run()

    assert rotation.summary.halted is None


@pytest.fixture
def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.slow
def test_command_exits_with_3_and_names_the_host_and_the_error(tmp_path, monkeypatch, free_port) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.csv").write_text("account_id,country\n" + "".join(f"acc_{n},US\n" for n in range(60)))
    environment = {"POSTPRESS_API_KEY": KEY, "POSTPRESS_BASE_URL": f"http://127.0.0.1:{free_port}/v1"}

    done = run("rotate", "fleet.csv", env=environment)

    assert done.returncode == 3
    assert f"halted: no connection to 127.0.0.1:{free_port}: Connection refused (20 attempts" in done.stderr
    status = json.loads(run("status", "fleet.csv.rotation.sqlite3", "--json").stdout)
    assert status["states"] == {"patched": 0, "failed": 0, "unknown": 0, "skipped": 60}
    assert f"127.0.0.1:{free_port}" in status["halted"]
