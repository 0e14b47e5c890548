"""The real session and sandbox with aiohttp on both sides, in virtual time."""

import asyncio
from typing import Any

import pytest

from benchmarks.simulation import HEAD, line
from postpress_async import CustomProxy, Pace, PostPressError, ProxyPool, RetryPolicy, errors, events
from postpress_async._cli.progress import ProgressStats
from postpress_async.rotation import State
from postpress_async.sandbox._faults import Fault
from tests.support.simulated_service import Scenario, broken
from tests.support.simulation import measure
from tests.support.simulation_scenarios import ALL
from tests.support.virtual_world import (
    DELAYS,
    PROXY,
    Delay,
    SlowConnector,
    World,
    cancel_all_calls,
    dripping,
    in_virtual_time,
    now,
    world,
)

pytestmark = pytest.mark.slow

ACCOUNTS = 600
"""Number of accounts, unless a scenario requires more."""

MORE_ACCOUNTS = {
    "ten times slower for 20 s, queue 150": 5500,
    "ten times slower for 20 s, queue endless": 5500,
}
"""Scenarios in which the concurrency limit must settle before the service changes."""

NOT_SHORTENED = {"two sessions, tier of 100/s"}
"""Scenarios that require 20,000 accounts and do not run here. Two sessions take a minute to share a tier."""

SCENARIOS = [scenario for scenario in ALL.values() if scenario.name not in NOT_SHORTENED]

NETWORK = {
    *("calm", "out for 20 s: refused", "out for 20 s: 503-html", "out from the start for 20 s: 503"),
    *("silent for 20 s, 2 s attempts", "flapping, 3 s and 3 s: refused", "bursts of HTML 502s, 1 s in 5"),
    *("2% dropped, 2% lost, 2% torn", "a single call, out for an hour: silent"),
    *("3% 429 whatever the rate", "Retry-After: 2 on 5% 503s"),
}
"""Scenarios that test the transport: each kind of failure, and each header that it reads."""

BY_TRANSPORT = [
    *(pytest.param("session", scenario, id=f"session-{scenario.name}") for scenario in SCENARIOS),
    *(pytest.param("lean", ALL[name], id=f"lean-{name}") for name in sorted(NETWORK)),
]


@pytest.mark.parametrize(("transport", "scenario"), BY_TRANSPORT)
def test_scenario_meets_its_claims(transport: Any, scenario: Scenario) -> None:
    """The claims limit the makespan, the requests and the failed accounts."""
    result = measure(scenario, MORE_ACCOUNTS.get(scenario.name, ACCOUNTS), transport=transport)
    print(f"{HEAD}\n{line(scenario, result)}")

    assert broken(scenario, result) == []


def test_same_seed_gives_exactly_the_same_result(transport: Any) -> None:
    scenario = ALL["5% service_unavailable, 10% dead"]

    assert measure(scenario, 300, 7, transport) == measure(scenario, 300, 7, transport)
    assert measure(scenario, 300, 7, transport) != measure(scenario, 300, 8, transport)


# --- Deadlines and cancellation of calls that take long ---


@pytest.mark.parametrize("attempt_timeout", [3.0, 30.0])
@pytest.mark.parametrize(("delay", "pace"), DELAYS, ids=lambda value: getattr(value, "__name__", ""))
@in_virtual_time
async def test_call_ends_at_its_deadline(delay: Delay, pace: Pace, attempt_timeout: float) -> None:
    """It ends at most a tenth of a second later, whatever delays it."""
    async with world(pace) as env:
        await delay(env)
        started = now()

        with pytest.raises(PostPressError):
            await env.call(retry=RetryPolicy(deadline=10.0, attempts=99, attempt_timeout=attempt_timeout))

        assert now() - started <= 10.1
        await cancel_all_calls()


@in_virtual_time
async def test_call_ends_at_its_deadline_while_a_slow_response_arrives() -> None:
    async with dripping() as env:
        with pytest.raises(errors.AttemptTimeoutError):
            await env.call(retry=RetryPolicy(deadline=10.0))

        assert 9.0 <= now() <= 10.1


@in_virtual_time
async def test_call_ends_at_its_deadline_while_it_connects() -> None:
    """The error tells that nothing was sent."""
    async with world(connector=SlowConnector) as env:
        with pytest.raises(errors.AttemptTimeoutError) as caught:
            await env.call(retry=RetryPolicy(deadline=10.0))

        assert 9.0 <= now() <= 10.1
        assert caught.value.applied is errors.Applied.NO


@pytest.mark.parametrize("name", ["retry", "wait", "stop", "after", "before_sleep"])
@in_virtual_time
async def test_call_ends_at_its_deadline_while_a_retry_strategy_waits(name: str) -> None:
    """A strategy may be a coroutine function, and for example wait for another service."""

    async def slow(_state: object) -> bool:
        await asyncio.sleep(100.0)
        return False

    async with world() as env:
        await env.server.outage("503")
        options: dict[str, Any] = {name: slow}
        with pytest.raises(errors.ServiceUnavailableError):
            await env.call(retry=RetryPolicy(deadline=10.0, **options))

        assert 9.0 <= now() <= 10.1


@in_virtual_time
async def test_call_ends_at_its_deadline_while_the_callback_before_its_first_attempt_waits() -> None:

    async def slow(_state: object) -> None:
        await asyncio.sleep(100.0)

    async with world() as env:
        with pytest.raises(errors.DeadlineError):
            await env.call(retry=RetryPolicy(deadline=10.0, before=slow, retry=lambda _error: True))

        assert 9.0 <= now() <= 10.1


async def assert_cancelling_frees_everything(env: World, after: float) -> None:
    """Cancel a call *after* some seconds, and check that it uses no resources 0.1 s later."""
    policy = RetryPolicy(attempts=99, deadline=1000.0, wait=lambda _state: 50.0)
    before = env.left()
    call = env.call(retry=policy)
    await asyncio.sleep(after)
    assert not call.done()

    call.cancel()
    await asyncio.sleep(0.1)

    assert call.cancelled()
    # Of the other resources, the calls of a `Delay` may use more or fewer by now.
    assert env.left()["calls"] == before["calls"]
    await cancel_all_calls()
    await asyncio.sleep(0.1)
    assert set(env.left().values()) == {0}


@pytest.mark.parametrize("after", [0.0, 0.01, 1.5])
@pytest.mark.parametrize(("delay", "pace"), DELAYS, ids=lambda value: getattr(value, "__name__", ""))
@in_virtual_time
async def test_cancelled_call_frees_everything(delay: Delay, pace: Pace, after: float) -> None:
    """It takes at most 0.1 s, and later calls of the session succeed."""
    async with world(pace) as env:
        await delay(env)
        await assert_cancelling_frees_everything(env, after)
        await env.server.recover()
        await asyncio.sleep(10)

        patched = await asyncio.gather(*(env.call(f"acc_new_{number}") for number in range(50)))

        assert len(patched) == 50
        assert set(env.left().values()) == {0}


@in_virtual_time
async def test_call_that_is_cancelled_while_connecting_frees_its_connection() -> None:
    async with world(connector=SlowConnector) as env:
        await assert_cancelling_frees_everything(env, 1.0)


@in_virtual_time
async def test_call_that_is_cancelled_while_reading_frees_its_connection() -> None:
    async with dripping() as env:
        await assert_cancelling_frees_everything(env, 1.0)


# --- Latency ---


@in_virtual_time
async def test_latency_does_not_include_the_wait_for_the_first_permit() -> None:
    """200 accounts wait for up to 10 s because of the rate limit, but each response takes 0.05 s."""
    async with world(Pace(in_flight=100, rate=20.0)) as env:
        async with env.session.rotate({f"acc_{number}": PROXY for number in range(200)}) as rotation:
            progress = ProgressStats(200, rotation, env.session)
            outcomes = [outcome async for outcome in rotation]
        for outcome in outcomes:
            progress.add(outcome)
        makespan = now()
    settled = [event for _, event in env.events if isinstance(event, events.AccountSettled)]
    calls = [event for _, event in env.events if isinstance(event, events.CallEnded)]

    assert makespan == pytest.approx(10.0, abs=0.2)
    assert [outcome.elapsed for outcome in outcomes] == [pytest.approx(0.05, abs=0.002)] * 200
    assert [event.elapsed for event in settled] == [pytest.approx(0.05, abs=0.002)] * 200
    assert [event.elapsed for event in calls] == [pytest.approx(0.05, abs=0.002)] * 200
    assert "p50 50 ms p95 50 ms" in progress.pace()


@in_virtual_time
async def test_latency_includes_retries_backoff_and_earlier_proxies_of_the_pool() -> None:
    policy = RetryPolicy(wait=lambda _state: 2.0)
    pool = ProxyPool([CustomProxy(host="dead.example.com", port=8080), PROXY])
    async with world(retry=policy) as env:
        env.server.faults.script("acc_0", "errors/provider_error", 200)
        env.server.faults.script("acc_1", *["errors/proxy_error"] * 2, 200)
        async with env.session.rotate(["acc_0", "acc_1"], pool=pool) as rotation:
            elapsed = {outcome.account_id: outcome.elapsed async for outcome in rotation}
    ended = [event.elapsed for _, event in env.events if isinstance(event, events.CallEnded)]

    assert elapsed == {"acc_0": pytest.approx(2.1, abs=0.01), "acc_1": pytest.approx(2.15, abs=0.01)}
    assert sorted(ended) == [pytest.approx(0.05, abs=0.01), *[pytest.approx(2.1, abs=0.01)] * 2]


@in_virtual_time
async def test_elapsed_time_of_a_call_that_was_never_sent_is_zero() -> None:
    """The wait for a permit is not latency of the service."""
    async with world(Pace(in_flight=1, adaptive=False)) as env:
        await env.server.outage("silent")
        first = env.call("acc_0")
        with pytest.raises(errors.DeadlineError):
            await env.call(retry=RetryPolicy(deadline=10.0))
        first.cancel()
    ended = {
        event.account_id: event.elapsed for _, event in env.events if isinstance(event, events.CallEnded)
    }

    assert ended["acc_x"] == 0.0


# --- Observers that raise ---


class StopNowError(BaseException):
    """Raised by a signal handler that runs while an observer runs."""


EVENTS = [
    events.CallStarted,
    events.AttemptStarted,
    events.AttemptEnded,
    events.RetryScheduled,
    events.PauseBegan,
    events.PauseEnded,
    events.CallEnded,
]


@pytest.mark.parametrize("error", [asyncio.CancelledError, StopNowError], ids=lambda error: error.__name__)
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@in_virtual_time
async def test_observer_that_raises_leaves_no_resource_in_use(
    kind: type[events.Event], error: type[BaseException]
) -> None:
    """All permits and locks are released, pauses end, and later calls of the session succeed."""
    raising, raised = True, 0

    def observe(event: events.Event) -> None:
        nonlocal raised
        if raising and isinstance(event, kind):
            raised += 1
            raise error

    async with world(Pace(in_flight=10), on_event=observe) as env:
        await env.server.outage("503")
        calls = [env.call(f"acc_{number % 20}") for number in range(40)]
        await asyncio.sleep(20)
        await env.server.recover()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(10)
        raising = False

        patched = await asyncio.gather(*(env.call(f"acc_new_{number}") for number in range(50)))

        assert raised
        assert len(patched) == 50
        assert not env.session.paused
        assert set(env.left().values()) == {0}


# --- Many calls ---


def permit_waits(
    recorded: list[tuple[float, events.Event]], started: float
) -> tuple[list[float], list[float]]:
    """The seconds that first attempts and retries waited for permits, each in the order of due times."""
    due: dict[str, float] = {}
    first_attempts, retries = list[tuple[float, float]](), list[tuple[float, float]]()
    for recorded_at, event in recorded:
        if isinstance(event, events.RetryScheduled):
            due[event.account_id] = recorded_at + event.wait
        elif isinstance(event, events.AttemptStarted):
            since = due.get(event.account_id, started)
            (retries if event.number > 1 else first_attempts).append((since, recorded_at - since))
    return [wait for _, wait in sorted(first_attempts)], [wait for _, wait in sorted(retries)]


@pytest.mark.parametrize("failing", [0, 120, 300], ids=["no retries", "some retries", "many retries"])
@pytest.mark.parametrize("adaptive", [True, False])
@in_virtual_time
async def test_permits_are_granted_fairly(adaptive: bool, failing: int) -> None:
    """No attempt waits longer than four times the mean of the 50 attempts around it, or 0.1 s."""
    async with world(Pace(in_flight=10, adaptive=adaptive)) as env:
        for number in range(failing):
            env.server.faults.script(f"acc_{number * 600 // failing}", "errors/provider_error", 200)
        started = now()
        await asyncio.gather(*(env.call(f"acc_{number}") for number in range(600)))
        first_attempts, retries = permit_waits(env.events, started)

    first_attempts.sort()  # all were due at the same time, so compare those that started at similar times
    for waits in (first_attempts, retries):
        for index, wait in enumerate(waits):
            around = waits[max(0, index - 25) : index + 26]
            assert wait <= max(0.1, 4 * sum(around) / len(around))
    attempts = [event for _, event in env.events if isinstance(event, events.AttemptStarted)]
    order = [event.account_id for event in attempts if event.number == 1]
    assert order == [f"acc_{number}" for number in range(600)], (
        "first attempts start in the order of the calls"
    )


@in_virtual_time
async def test_a_thousand_concurrent_calls_get_their_own_result_and_attempts() -> None:
    faults = ["errors/provider_error", "errors/network_down", "errors/proxy_error"]
    async with world(Pace(in_flight=1000, start=1000)) as env:
        for number in range(1000):
            last = "errors/wrong_account" if number % 5 == 0 else 200
            env.server.faults.script(f"acc_{number}", *faults[: number % 4], last)
        calls = [env.call(f"acc_{number}") for number in range(1000)]
        results = await asyncio.gather(*calls, return_exceptions=True)

    for number, result in enumerate(results):
        assert not isinstance(result, BaseException) or isinstance(result, PostPressError)
        assert result.account_id == f"acc_{number}"
        last_error = "errors/wrong_account" if number % 5 == 0 else None
        assert [attempt.error for attempt in result.attempts] == [*faults[: number % 4], last_error]
        assert isinstance(result, errors.WrongAccountError) is (last_error is not None)
        numbers = [attempt.number for attempt in result.attempts]
        assert numbers == list(range(1, len(numbers) + 1))


@in_virtual_time
async def test_rotation_ends_although_its_last_accounts_always_get_503s() -> None:
    """That looks like an outage, which a rotation waits out, but only for some hours."""
    policy = RetryPolicy(also_on=(errors.NoClientSessionError,))
    failing = [f"acc_failing_{number}" for number in range(40)]
    working = [f"acc_{number}" for number in range(40)]
    async with world(retry=policy) as env:
        for account_id in failing:
            env.server.faults.script(account_id, *[Fault(type="errors/no_client_session")] * 1000)
        changes = [(account_id, PROXY) for account_id in working + failing]
        async with asyncio.timeout(6 * 3600), env.session.rotate(changes) as rotation:
            states = {outcome.account_id: outcome.state async for outcome in rotation}

    assert states == dict.fromkeys(working, State.PATCHED) | dict.fromkeys(failing, State.FAILED)
