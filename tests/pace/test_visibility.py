"""What an operator sees of a session's pace: its state, changes, waits, and calls that are turned away."""

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
async def test_stats_are_those_of_this_moment() -> None:
    """In a burst of ten calls, two are in flight and the others wait."""
    async with world(Pace(in_flight=2, adaptive=False, rate=1000)) as at:
        calls = [at.call(f"acc_{number}") for number in range(10)]
        await asyncio.sleep(0.01)

        stats = at.session.stats()
        await asyncio.gather(*calls)

    assert stats == SessionStats(in_flight=2, waiting=8, limit=2, rate=1000, breaker="closed")


@in_virtual_time
async def test_stats_show_the_circuit_breaker() -> None:
    """It is open in an outage, half-open while a probe is in flight, and closed afterwards."""
    async with world(Pace(in_flight=10)) as at:
        await at.server.outage("504")
        calls = [at.call(f"acc_{number}") for number in range(40)]
        states = set()
        for _ in range(400):
            await asyncio.sleep(0.01)
            states.add(at.session.stats().breaker)
        await at.server.recover()
        await asyncio.gather(*calls, return_exceptions=True)

        assert states == {"closed", "open", "half-open"}
        assert at.session.stats().breaker == "closed"
        assert at.session.stats().rate is None


@in_virtual_time
async def test_one_call_more_than_may_wait_fails_at_once() -> None:
    """Nothing was sent, no time passes, and the calls that wait are not affected."""
    async with world(Pace(in_flight=1, adaptive=False, max_waiting=2)) as at:
        calls = [at.call(f"acc_{number}") for number in range(3)]
        await asyncio.sleep(0.01)

        with pytest.raises(errors.BusyError, match=r"too many calls wait.*Pace\.max_waiting") as caught:
            await at.call("acc_3")

        assert asyncio.get_running_loop().time() == pytest.approx(0.01)
        assert caught.value.applied is errors.Applied.NO
        assert caught.value.account_id == "acc_3"
        assert len(await asyncio.gather(*calls)) == 3


@in_virtual_time
async def test_a_retry_and_a_rotation_wait_however_many_do() -> None:
    """Only new calls of `update_proxy` are turned away."""
    async with world(Pace(in_flight=1, adaptive=False, max_waiting=1)) as at:
        at.server.faults.script("acc_0", "errors/provider_error", 200)
        async with at.session.rotate(
            {f"acc_{number}": PROXY for number in range(9)}, in_flight=9
        ) as rotation:
            outcomes = [outcome async for outcome in rotation]

    assert [outcome.state for outcome in outcomes] == ["patched"] * 9


@in_virtual_time
async def test_changes_of_the_limit_and_rate_are_logged_and_events(caplog: pytest.LogCaptureFixture) -> None:
    """The limit at DEBUG, the rate at INFO, each with its value."""
    caplog.set_level(logging.DEBUG, "postpress_async.pace")
    async with world(Pace(in_flight=50)) as at:
        for number in range(0, 300, 4):
            at.server.faults.script(f"acc_{number}", "errors/too_many_requests", 200)
        await asyncio.gather(*(at.call(f"acc_{number}") for number in range(300)))
    limits = [event.limit for _, event in at.events if isinstance(event, events.LimitChanged)]
    rates = [event.rate for _, event in at.events if isinstance(event, events.RateChanged)]
    records = {record.levelno: record for record in caplog.records}

    assert limits == sorted(set(limits))
    assert 45 <= limits[-1] <= 50
    assert all(rate is not None and 1 <= rate < math.inf for rate in rates)
    assert rates
    assert records[logging.DEBUG].getMessage() == f"the concurrency limit is now {limits[-1]}"
    assert records[logging.INFO].getMessage().startswith("the rate limit is now ")


@in_virtual_time
async def test_waits_for_the_rate_are_not_latency() -> None:
    """They are a value of their own in the events and the progress."""
    async with world(Pace(in_flight=100, rate=20.0)) as at:
        async with at.session.rotate({f"acc_{number}": PROXY for number in range(200)}) as rotation:
            figures, seen = ProgressStats(200, rotation, at.session), list[str]()
            async for outcome in rotation:
                figures.add(outcome)
                seen.append(figures.pace())
    waited = [event.waited for _, event in at.events if isinstance(event, events.CallEnded)]

    assert max(waited) == pytest.approx(5.0, abs=0.5)  # a hundred wait for 20 per second
    assert "p50 50 ms" in seen[50]
    assert "queued " in seen[50]


def test_a_rotation_loses_no_account_to_overload() -> None:
    """Most of its requests are refused at first, more often than an account has attempts."""
    server, policy = {"capacity": 5, "queue": 0}, {"attempts": 2}
    scenario = Scenario("5 at once", 2.0, 100, server=server, policy=policy, in_flight=100, start=100)

    result = measure(scenario, 300)

    assert result.lost == 0
    assert result.patched == 300
