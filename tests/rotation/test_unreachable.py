"""A host that was never reached: a mistyped name, a closed port, another host's certificate."""

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
from postpress_async.rotation._outcome import patched_outcome
from postpress_async.sandbox import Sandbox
from tests.support import KEY
from tests.support.command_line import run
from tests.support.virtual_world import World, in_virtual_time, now, world

US = ManagedProxy(country="US")
REFUSED = errors.ConnectError("no connection to api.example.com: Connection refused")


def changes(count: int) -> dict[str, ManagedProxy]:
    return {f"acc_{number}": US for number in range(count)}


def first_reason(monitor: FailureMonitor, *failures: errors.PostPressError) -> tuple[int, str] | None:
    for count, error in enumerate(failures, 1):
        if (reason := monitor.attempt_failed(error)) is not None:
            return count, reason
    return None


@pytest.mark.parametrize("count", [1, 4, 500])
@pytest.mark.parametrize("in_flight", [1, 5, 100])
def test_a_host_that_was_never_reached_stops_the_rotation_within_seconds(in_flight, count) -> None:
    """However few are in flight at once. Otherwise the pace would wait for the end of an outage."""

    @in_virtual_time
    async def played() -> None:
        at: World
        async with world(Pace(in_flight=in_flight), retry=RetryPolicy(attempts=6)) as at:
            await at.server.outage("refused")
            began = now()
            async with at.session.rotate(changes(count), halt="never") as rotation:
                await rotation.run()

            assert now() - began < 10.0
            assert at.server.url.split("/")[2] in (rotation.summary.halted or "")
            assert "Connection refused" in (rotation.summary.halted or "")
            assert rotation.summary.states == {State.SKIPPED: count}

    played()


@in_virtual_time
async def test_a_host_that_was_reached_before_is_waited_for() -> None:
    """An outage of a host that worked before is waited out."""
    at: World
    async with world(Pace(in_flight=10)) as at:
        async with at.session.rotate(changes(500), in_flight=10) as rotation:
            for _ in range(30):
                await anext(rotation)
            await at.server.outage("refused")
            began = now()
            while now() < began + 120.0:
                await asyncio.sleep(1.0)
            await at.server.recover()
            await rotation.run()

        assert rotation.summary.halted is None
        assert rotation.summary.patched == 500


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_host_that_an_earlier_run_reached_is_not_a_mistyped_name(tmp_path, resumed, policy) -> None:
    """In such an outage, each account is skipped after its attempts, and the rotation does not halt."""
    journal = tmp_path / "run.sqlite3"
    retry = evolve(policy, attempts=6)
    async with Sandbox() as sandbox:
        async with PostPressSession(sandbox.api_key, base_url=sandbox.url) as session:
            async with session.rotate(changes(3), journal=journal, limit=1) as rotation:
                await rotation.run()

    journal = journal if resumed else tmp_path / "another.sqlite3"
    async with PostPressSession(sandbox.api_key, base_url=sandbox.url, retry=retry) as session:
        async with session.rotate(changes(3), journal=journal, halt="never") as rotation:
            await rotation.run()

    assert (rotation.summary.halted is None) is resumed
    assert rotation.summary.states[State.SKIPPED] == (2 if resumed else 3)


def _not_connected() -> errors.PostPressError:
    error = errors.AttemptTimeoutError("no connection to h within 30 s")
    error.applied = Applied.NO
    return error


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(REFUSED, id="refused"),
        pytest.param(errors.ConnectError("no connection to h: Name or service not known"), id="unknown name"),
        pytest.param(errors.TlsError("no secure connection to h: self-signed certificate"), id="TLS"),
        pytest.param(_not_connected(), id="no connection in time"),
    ],
)
def test_the_sentence_names_host_and_reason(error) -> None:
    met = first_reason(FailureMonitor(Halt()), *[error] * 100)

    words = f"{error.args[0]} (20 attempts, none successful): check the base URL and the network"
    assert met == (MAX_FAILED_CONNECTS, words)


def _lost() -> errors.PostPressError:
    return errors.ConnectionLostError("the connection was lost before an answer came")


def _unanswered() -> errors.PostPressError:
    return errors.AttemptTimeoutError("no answer in 30 s")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(errors.ApiError.of(503, errors.Problem()), id="an answer"),
        pytest.param(_lost(), id="a lost connection"),
        pytest.param(_unanswered(), id="a request without an answer"),
    ],
)
def test_one_connection_is_enough(other) -> None:
    assert first_reason(FailureMonitor(Halt()), other, *[REFUSED] * 100) is None


def test_an_account_that_was_patched_is_a_connection() -> None:
    monitor = FailureMonitor(Halt())
    monitor.observe(patched_outcome(0, None, "acc_1", 1, 0.1))

    assert first_reason(monitor, *[REFUSED] * 100) is None


async def test_a_person_who_stopped_it_is_not_told_so(free_port) -> None:
    """The exit code is that of the signal."""
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
def test_the_command_ends_with_its_own_code_and_names_host_and_reason(
    tmp_path, monkeypatch, free_port
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.csv").write_text("account_id,country\n" + "".join(f"acc_{n},US\n" for n in range(60)))
    environment = {"POSTPRESS_API_KEY": KEY, "POSTPRESS_BASE_URL": f"http://127.0.0.1:{free_port}/v1"}

    done = run("rotate", "fleet.csv", env=environment)

    assert done.returncode == 3
    assert f"halted: no connection to 127.0.0.1:{free_port}: Connection refused (20 attempts" in done.stderr
    status = json.loads(run("status", "fleet.csv.rotation.sqlite3", "--json").stdout)
    assert status["states"] == {"patched": 0, "failed": 0, "unknown": 0, "skipped": 60}
    assert f"127.0.0.1:{free_port}" in status["halted"]
