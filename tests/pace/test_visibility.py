"""What a user sees of a session's pace: statistics, events, log messages, and `BusyError`."""

import asyncio
import logging
import math

import pytest

from postpress_async import Pace, errors, events
from postpress_async._cli.progress import ProgressStats
from postpress_async.models import SessionStats
from tests.support.simulated_service import Scenario
from tests.support.simulation import measure
from tests.support.virtual_world import PROXY, in_virtual_time, world


@in_virtual_time
async def test_stats_show_requests_in_flight_and_waiting_calls() -> None:
    async with world(Pace(in_flight=2, adaptive=False, rate=1000)) as env:
        calls = [env.call(f"acc_{number}") for number in range(10)]
        await asyncio.sleep(0.01)

        stats = env.session.stats()
        await asyncio.gather(*calls)

    assert stats == SessionStats(in_flight=2, waiting=8, limit=2, rate=1000, breaker="closed")


@in_virtual_time
async def test_stats_show_the_circuit_breaker() -> None:
    """It is open in an outage, half-open while a probe is in flight, and closed afterwards."""
    async with world(Pace(in_flight=10)) as env:
        await env.server.outage("504")
        calls = [env.call(f"acc_{number}") for number in range(40)]
        states = set()
        for _ in range(400):
            await asyncio.sleep(0.01)
            states.add(env.session.stats().breaker)
        await env.server.recover()
        await asyncio.gather(*calls, return_exceptions=True)

        assert states == {"closed", "open", "half-open"}
        assert env.session.stats().breaker == "closed"
        assert env.session.stats().rate is None


@in_virtual_time
async def test_call_beyond_max_waiting_fails_at_once() -> None:
    """Nothing is sent for that call, and the calls that wait are not affected."""
    async with world(Pace(in_flight=1, adaptive=False, max_waiting=2)) as env:
        calls = [env.call(f"acc_{number}") for number in range(3)]
        await asyncio.sleep(0.01)

        with pytest.raises(errors.BusyError, match=r"too many calls wait.*Pace\.max_waiting") as caught:
            await env.call("acc_3")

        assert asyncio.get_running_loop().time() == pytest.approx(0.01)
        assert caught.value.applied is errors.Applied.NO
        assert caught.value.account_id == "acc_3"
        assert len(await asyncio.gather(*calls)) == 3


@in_virtual_time
async def test_max_waiting_does_not_apply_to_retries_and_rotations() -> None:
    async with world(Pace(in_flight=1, adaptive=False, max_waiting=1)) as env:
        env.server.faults.script("acc_0", "errors/provider_error", 200)
        async with env.session.rotate(
            {f"acc_{number}": PROXY for number in range(9)}, in_flight=9
        ) as rotation:
            outcomes = [outcome async for outcome in rotation]

    assert [outcome.state for outcome in outcomes] == ["patched"] * 9


@in_virtual_time
async def test_changes_of_limit_and_rate_are_logged_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The limit is logged at level DEBUG, and the rate at INFO."""
    caplog.set_level(logging.DEBUG, "postpress_async.pace")
    async with world(Pace(in_flight=50)) as env:
        for number in range(0, 300, 4):
            env.server.faults.script(f"acc_{number}", "errors/too_many_requests", 200)
        await asyncio.gather(*(env.call(f"acc_{number}") for number in range(300)))
    limits = [event.limit for _, event in env.events if isinstance(event, events.LimitChanged)]
    rates = [event.rate for _, event in env.events if isinstance(event, events.RateChanged)]
    records = {record.levelno: record for record in caplog.records}

    assert limits == sorted(set(limits))
    assert 45 <= limits[-1] <= 50
    assert all(rate is not None and 1 <= rate < math.inf for rate in rates)
    assert rates
    assert records[logging.DEBUG].getMessage() == f"the concurrency limit is now {limits[-1]}"
    assert records[logging.INFO].getMessage().startswith("the rate limit is now ")


@in_virtual_time
async def test_waits_for_the_rate_limit_are_shown_separately_from_latency() -> None:
    async with world(Pace(in_flight=100, rate=20.0)) as env:
        async with env.session.rotate({f"acc_{number}": PROXY for number in range(200)}) as rotation:
            progress, shown = ProgressStats(200, rotation, env.session), list[str]()
            async for outcome in rotation:
                progress.add(outcome)
                shown.append(progress.pace())
    waited = [event.waited for _, event in env.events if isinstance(event, events.CallEnded)]

    assert max(waited) == pytest.approx(5.0, abs=0.5)  # 100 calls wait for 20 requests per second
    assert "p50 50 ms" in shown[50]
    assert "queued " in shown[50]


def test_rotation_patches_all_accounts_although_the_service_is_overloaded_at_first() -> None:
    """At first, most requests get a 503, and each account has only two attempts."""
    server, policy = {"capacity": 5, "queue": 0}, {"attempts": 2}
    scenario = Scenario("5 at once", 2.0, 100, server=server, policy=policy, in_flight=100, initial_limit=100)

    result = measure(scenario, 300)

    assert result.lost == 0
    assert result.patched == 300
