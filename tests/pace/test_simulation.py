"""The real session against the real sandbox, aiohttp on both sides, in virtual time."""

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
    HOLDS,
    PROXY,
    Far,
    Hold,
    World,
    dripping,
    end_others,
    in_virtual_time,
    now,
    world,
)

pytestmark = pytest.mark.slow

ACCOUNTS = 600
"""Enough for every claim except those about a limit that must settle before conditions change."""

MORE_ACCOUNTS = {
    "ten times slower for 20 s, queue 150": 5500,
    "ten times slower for 20 s, queue endless": 5500,
}


FULL_LENGTH = {"two sessions, tier of 100/s"}
"""Claims that hold of 20,000 accounts and not of some hundred: two sessions take a minute to share a tier."""

SMALL = [scenario for scenario in ALL.values() if scenario.name not in FULL_LENGTH]

NETWORK = {
    *("calm", "out for 20 s: refused", "out for 20 s: 503-html", "out from the start for 20 s: 503"),
    *("silent for 20 s, 2 s attempts", "flapping, 3 s and 3 s: refused", "bursts of HTML 502s, 1 s in 5"),
    *("2% dropped, 2% lost, 2% torn", "a single call, out for an hour: silent"),
    *("3% 429 whatever the rate", "Retry-After: 2 on 5% 503s"),
}
"""Scenarios that need something of the transport: each way to fail, each header that is read."""

BY_TRANSPORT = [
    *(pytest.param("session", scenario, id=f"session-{scenario.name}") for scenario in SMALL),
    *(pytest.param("lean", ALL[name], id=f"lean-{name}") for name in sorted(NETWORK)),
]


@pytest.mark.parametrize(("transport", "scenario"), BY_TRANSPORT)
def test_overloaded_service(transport: Any, scenario: Scenario) -> None:
    """It costs no more seconds, requests and accounts than the table of the simulation claims."""
    result = measure(scenario, MORE_ACCOUNTS.get(scenario.name, ACCOUNTS), transport=transport)
    print(f"{HEAD}\n{line(scenario, result)}")

    assert broken(scenario, result) == []


def test_a_scenario_repeats_exactly(transport: Any) -> None:
    """A figure that cannot be had again cannot be argued about."""
    scenario = ALL["5% service_unavailable, 10% dead"]

    assert measure(scenario, 300, 7, transport) == measure(scenario, 300, 7, transport)
    assert measure(scenario, 300, 7, transport) != measure(scenario, 300, 8, transport)


# --- What may hold a call up ---


@pytest.mark.parametrize("attempt_timeout", [3.0, 30.0])
@pytest.mark.parametrize(("hold", "pace"), HOLDS, ids=lambda value: getattr(value, "__name__", ""))
@in_virtual_time
async def test_a_call_ends_at_its_deadline(hold: Hold, pace: Pace, attempt_timeout: float) -> None:
    """Whatever holds it up, at most a tenth of a second later."""
    async with world(pace) as at:
        await hold(at)
        began = now()

        with pytest.raises(PostPressError):
            await at.call(retry=RetryPolicy(deadline=10.0, attempts=99, attempt_timeout=attempt_timeout))

        assert now() - began <= 10.1
        await end_others()


@in_virtual_time
async def test_a_call_ends_at_its_deadline_though_bytes_drip_in() -> None:
    """The deadline is that of the whole answer."""
    async with dripping() as at:
        with pytest.raises(errors.AttemptTimeoutError):
            await at.call(retry=RetryPolicy(deadline=10.0))

        assert 9.0 <= now() <= 10.1


@in_virtual_time
async def test_a_call_ends_at_its_deadline_while_it_connects() -> None:
    """Nothing was sent, and the error says so."""
    async with world(connector=Far) as at:
        with pytest.raises(errors.AttemptTimeoutError) as caught:
            await at.call(retry=RetryPolicy(deadline=10.0))

        assert 9.0 <= now() <= 10.1
        assert caught.value.applied is errors.Applied.NO


@pytest.mark.parametrize("name", ["retry", "wait", "stop", "after", "before_sleep"])
@in_virtual_time
async def test_a_call_ends_at_its_deadline_though_a_strategy_takes_its_time(name: str) -> None:
    """A strategy of the caller's may be a coroutine function, and ask a service that is out itself."""

    async def slow(_state: object) -> bool:
        await asyncio.sleep(100.0)
        return False

    async with world() as at:
        await at.server.outage("503")
        options: dict[str, Any] = {name: slow}
        with pytest.raises(errors.ServiceUnavailableError):
            await at.call(retry=RetryPolicy(deadline=10.0, **options))

        assert 9.0 <= now() <= 10.1


@in_virtual_time
async def test_a_call_ends_at_its_deadline_before_its_first_attempt() -> None:
    """Where the callback that comes before it takes its time."""

    async def slow(_state: object) -> None:
        await asyncio.sleep(100.0)

    async with world() as at:
        with pytest.raises(errors.DeadlineError):
            await at.call(retry=RetryPolicy(deadline=10.0, before=slow, retry=lambda _error: True))

        assert 9.0 <= now() <= 10.1


async def cancel_and_look(at: World, after: float) -> None:
    """Cancel a call, and see that nothing of it is left a tenth of a second later."""
    slow = RetryPolicy(attempts=99, deadline=1000.0, wait=lambda _state: 50.0)
    before = at.left()
    call = at.call(retry=slow)
    await asyncio.sleep(after)
    assert not call.done()

    call.cancel()
    await asyncio.sleep(0.1)

    assert call.cancelled()
    # Others may have come or gone at the slots meanwhile, but one that is left would show.
    assert at.left()["calls"] == before["calls"]
    await end_others()
    await asyncio.sleep(0.1)
    assert set(at.left().values()) == {0}


@pytest.mark.parametrize("after", [0.0, 0.01, 1.5])
@pytest.mark.parametrize(("hold", "pace"), HOLDS, ids=lambda value: getattr(value, "__name__", ""))
@in_virtual_time
async def test_cancelling_frees_everything(hold: Hold, pace: Pace, after: float) -> None:
    """Whatever it was doing: within 100 ms, and the session goes on."""
    async with world(pace) as at:
        await hold(at)
        await cancel_and_look(at, after)
        await at.server.recover()
        await asyncio.sleep(10)

        done = await asyncio.gather(*(at.call(f"acc_new_{number}") for number in range(50)))

        assert len(done) == 50
        assert set(at.left().values()) == {0}


@in_virtual_time
async def test_cancelling_frees_everything_while_connecting_or_reading() -> None:
    """A connection that is half made, or half read, is not kept for the next one."""
    async with world(connector=Far) as at:
        await cancel_and_look(at, 1.0)
    async with dripping() as at:
        await cancel_and_look(at, 1.0)


# --- Latency ---


@in_virtual_time
async def test_latency_is_measured_from_the_first_attempt() -> None:
    """Hundreds of accounts wait for a low rate; each is answered within 50 ms of its request."""
    async with world(Pace(in_flight=100, rate=20.0)) as at:
        async with at.session.rotate({f"acc_{number}": PROXY for number in range(200)}) as rotation:
            figures = ProgressStats(200, rotation, at.session)
            outcomes = [outcome async for outcome in rotation]
        for outcome in outcomes:
            figures.add(outcome)
        took = now()
    settled = [event for _, event in at.events if isinstance(event, events.AccountSettled)]
    calls = [event for _, event in at.events if isinstance(event, events.CallEnded)]

    assert took == pytest.approx(10.0, abs=0.2)
    assert [outcome.elapsed for outcome in outcomes] == [pytest.approx(0.05, abs=0.002)] * 200
    assert [event.elapsed for event in settled] == [pytest.approx(0.05, abs=0.002)] * 200
    assert [event.elapsed for event in calls] == [pytest.approx(0.05, abs=0.002)] * 200
    assert "p50 50 ms p95 50 ms" in figures.pace()


@in_virtual_time
async def test_latency_includes_retries_and_their_waits() -> None:
    """Also the wait for the pace before a retry, and the other proxies of a pool before the last one."""
    waits = RetryPolicy(wait=lambda _state: 2.0)
    dead, pool = CustomProxy(host="dead.example.com", port=8080), [PROXY]
    async with world(retry=waits) as at:
        at.server.faults.script("acc_0", "errors/provider_error", 200)
        at.server.faults.script("acc_1", *["errors/proxy_error"] * 2, 200)
        async with at.session.rotate(["acc_0", "acc_1"], pool=ProxyPool([dead, *pool])) as rotation:
            elapsed = {outcome.account_id: outcome.elapsed async for outcome in rotation}
    ended = [event.elapsed for _, event in at.events if isinstance(event, events.CallEnded)]

    assert elapsed == {"acc_0": pytest.approx(2.1, abs=0.01), "acc_1": pytest.approx(2.15, abs=0.01)}
    assert sorted(ended) == [pytest.approx(0.05, abs=0.01), *[pytest.approx(2.1, abs=0.01)] * 2]


@in_virtual_time
async def test_a_call_that_was_never_sent_took_no_time() -> None:
    """Its wait for the pace is no latency of the service."""
    async with world(Pace(in_flight=1, adaptive=False)) as at:
        await at.server.outage("silent")
        first = at.call("acc_0")
        with pytest.raises(errors.DeadlineError):
            await at.call(retry=RetryPolicy(deadline=10.0))
        first.cancel()
    ended = {event.account_id: event.elapsed for _, event in at.events if isinstance(event, events.CallEnded)}

    assert ended["acc_x"] == 0.0


# --- Observers that raise ---


class StopNowError(BaseException):
    """What a signal's handler may raise anywhere, an observer included."""


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
async def test_an_observer_that_raises_leaves_nothing_taken(
    kind: type[events.Event], error: type[BaseException]
) -> None:
    """No slot, no account's turn, and no pause that does not end: the session goes on."""
    raising, raised = True, 0

    def observe(event: events.Event) -> None:
        nonlocal raised
        if raising and isinstance(event, kind):
            raised += 1
            raise error

    async with world(Pace(in_flight=10), on_event=observe) as at:
        await at.server.outage("503")
        calls = [at.call(f"acc_{number % 20}") for number in range(40)]
        await asyncio.sleep(20)
        await at.server.recover()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(10)
        raising = False

        done = await asyncio.gather(*(at.call(f"acc_new_{number}") for number in range(50)))

        assert raised
        assert len(done) == 50
        assert not at.session.paused
        assert set(at.left().values()) == {0}


# --- Many calls ---


def slot_waits(recorded: list[tuple[float, events.Event]], began: float) -> list[tuple[float, float, bool]]:
    """When each attempt was due, how long it then waited, and whether it is a retry; in the order of due."""
    due: dict[str, float] = {}
    waits = []
    for when, event in recorded:
        if isinstance(event, events.RetryScheduled):
            due[event.account_id] = when + event.wait
        elif isinstance(event, events.AttemptStarted):
            since = due.get(event.account_id, began)
            waits.append((since, when - since, event.number > 1))
    return sorted(waits)


@pytest.mark.parametrize("share", [0, 2, 5], ids=["new calls only", "some retries", "many retries"])
@pytest.mark.parametrize("adaptive", [True, False])
@in_virtual_time
async def test_slots_are_given_fairly(adaptive: bool, share: int) -> None:
    """No call waits over four times the mean of its neighbours, retry or not."""
    async with world(Pace(in_flight=10, adaptive=adaptive)) as at:
        for number in range(0, 600 if share else 0, 10 // share if share else 1):
            at.server.faults.script(f"acc_{number}", "errors/provider_error", 200)
        began = now()
        await asyncio.gather(*(at.call(f"acc_{number}") for number in range(600)))
        of_all = slot_waits(at.events, began)

    for retries in (False, True):
        waits = [wait for _, wait, is_retry in of_all if is_retry is retries]
        if not retries:
            waits.sort()  # all were due at once: neighbours are those that were let in beside it
        for index, wait in enumerate(waits):
            beside = waits[max(0, index - 25) : index + 26]
            assert wait <= max(0.1, 4 * sum(beside) / len(beside))
    # And who came first goes first.
    started = [event for _, event in at.events if isinstance(event, events.AttemptStarted)]
    firsts = [event.account_id for event in started if event.number == 1]
    assert firsts == [f"acc_{number}" for number in range(600)]


@in_virtual_time
async def test_a_thousand_calls_at_once_each_get_their_own_answer() -> None:
    """And their own history: nothing of a call is kept where another could find it."""
    faults = ["errors/provider_error", "errors/network_down", "errors/proxy_error"]
    async with world(Pace(in_flight=1000, start=1000)) as at:
        for number in range(1000):
            ends = "errors/wrong_account" if number % 5 == 0 else 200
            at.server.faults.script(f"acc_{number}", *faults[: number % 4], ends)
        calls = [at.call(f"acc_{number}") for number in range(1000)]
        answers = await asyncio.gather(*calls, return_exceptions=True)

    for number, answer in enumerate(answers):
        assert not isinstance(answer, BaseException) or isinstance(answer, PostPressError)
        assert answer.account_id == f"acc_{number}"
        codes = [attempt.error for attempt in answer.attempts]
        last = "errors/wrong_account" if number % 5 == 0 else None
        assert codes == [*faults[: number % 4], last]
        assert isinstance(answer, errors.WrongAccountError) is (last is not None)
        assert [attempt.number for attempt in answer.attempts] == list(range(1, len(codes) + 1))


# --- What looks like an outage but is not ---


@in_virtual_time
async def test_a_rotation_ends_though_its_last_accounts_get_nothing_but_503s() -> None:
    """A service that is out looks the same: patience has an end, in hours."""
    policy = RetryPolicy(also_on=(errors.NoClientSessionError,))
    sick = [f"acc_sick_{number}" for number in range(40)]
    async with world(retry=policy) as at:
        for account_id in sick:
            at.server.faults.script(account_id, *[Fault(type="errors/no_client_session")] * 1000)
        well = [f"acc_{number}" for number in range(40)]
        changes = [(name, PROXY) for name in well + sick]
        async with asyncio.timeout(6 * 3600), at.session.rotate(changes) as rotation:
            states = {outcome.account_id: outcome.state async for outcome in rotation}

    assert states == dict.fromkeys(well, State.PATCHED) | dict.fromkeys(sick, State.FAILED)
