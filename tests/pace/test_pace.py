"""The pace's parts by a clock in the hand, and the calls that wait for it."""

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async.pace import Pace
from postpress_async.pace._circuit_breaker import (
    FAILURE_THRESHOLD,
    MAX_PROBE_INTERVAL,
    MAX_PROBES,
    MIN_PROBE_INTERVAL,
    PROBE_INTERVAL_SHARE,
    CircuitBreaker,
)
from postpress_async.pace._concurrency_limiter import CUBIC_BETA, MAX_INITIAL_LIMIT, ConcurrencyLimiter
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pacer import Pacer, Permit, PermitFuture
from postpress_async.pace._rate_limiter import BURST, RateLimiter
from tests.support.pace_world import acquire
from tests.support.virtual_loop import VirtualLoop, run

SIGNS = list(LoadSignal)


def half() -> float:
    return 0.5


def pacer(clock: Callable[[], float] | None = None, **options: Any) -> Pacer:
    return Pacer(Pace(**options), clock=clock, random=random.Random(1).random)


class Clock:
    """Time that passes when a test advances it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


# The value


@pytest.mark.parametrize(
    ("options", "field"),
    [
        pytest.param({"in_flight": 0}, "in_flight", id="none in flight"),
        pytest.param({"in_flight": True}, "in_flight", id="a truth is no number"),
        pytest.param({"in_flight": 1.5}, "in_flight", id="one and a half"),
        pytest.param({"start": 0}, "start", id="a start of none"),
        pytest.param({"rate": 0}, "rate", id="a rate of nothing"),
        pytest.param({"rate": -1.0}, "rate", id="a rate backwards"),
        pytest.param({"rate": math.inf}, "rate", id="an endless rate"),
        pytest.param({"rate": math.nan}, "rate", id="a rate that is no number"),
        pytest.param({"rate": "10"}, "rate", id="a rate in words"),
        pytest.param({"rate": True}, "rate", id="a true rate"),
        pytest.param({"adaptive": 1}, "adaptive", id="adaptive is yes or no"),
    ],
)
def test_a_pace_that_cannot_be_names_its_field(options: dict[str, Any], field: str) -> None:
    """It is reported before anything is sent, with what to write instead."""
    with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
        Pace(**options)


def test_a_pace_is_a_value() -> None:
    """It is a default argument: sessions that share one must share nothing."""
    assert Pace() == Pace(in_flight=100, adaptive=True, rate=None, start=20)
    assert Pace(in_flight=5).start == 5
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Pace().rate = 1.0  # type: ignore[misc]


# The limit


def grow(
    limit: ConcurrencyLimiter, now: float, answers: int, latency: float = 0.05, in_flight: int | None = None
) -> float:
    """*answers* that patched, as fast as the limit lets them."""
    for _ in range(answers):
        now += latency / limit.value
        limit.record_response(now - latency, int(limit.value) if in_flight is None else in_flight, now, True)
    return now


def test_slow_start_doubles_until_the_most() -> None:
    """A thousand in flight are reached within six round trips."""
    limit = ConcurrencyLimiter(1000, 20)

    now = grow(limit, 0.0, 1000)

    assert limit.value == 1000
    assert now < 7 * 0.05


def test_no_more_than_a_hundred_go_before_there_is_an_answer() -> None:
    """A service that takes 200 would refuse 800 of a thousand before it answers the first."""
    assert ConcurrencyLimiter(1000, 1000).value == MAX_INITIAL_LIMIT


def test_slow_start_ends_where_answers_take_twice_as_long() -> None:
    """Then more in flight only make the queue longer."""
    limit = ConcurrencyLimiter(1000, 20)
    now = grow(limit, 0.0, 60)
    reached = limit.value

    grow(limit, now, 500, latency=0.15)

    assert limit.value <= 2 * reached


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    """Else an idle hour would allow a thousand at once to a service that was never asked for fifty."""
    limit = ConcurrencyLimiter(1000, 20)

    grow(limit, 0.0, 10_000, in_flight=3)

    assert limit.value == 20


def test_a_tenth_refused_is_no_overload_and_a_half_is() -> None:
    """If every overload signal reduced the limit, random 503s would push it to its minimum."""
    few, many = ConcurrencyLimiter(50, 50), ConcurrencyLimiter(50, 50)
    chance = random.Random(2)
    for limit, share in ((few, 0.05), (many, 0.5)):
        now = 10.0
        for _ in range(60):
            now += 0.001
            if chance.random() < share:
                limit.record_overload(now - 0.05, now)
            else:
                limit.record_response(now - 0.05, 50, now, True)

    assert few.value == 50
    assert many.value == 50 * CUBIC_BETA


def test_refusals_that_no_cut_ends_do_not_end_the_limit() -> None:
    """A service that answers a third with 503 whatever the load would else be asked one at a time."""
    limit = ConcurrencyLimiter(50, 50)
    chance, now = random.Random(3), 10.0
    for _ in range(20_000):
        now += 0.05 / limit.value
        if chance.random() < 0.3:
            limit.record_overload(now - 0.05, now)
        else:
            limit.record_response(now - 0.05, int(limit.value), now, True)

    assert limit.value > 35


def test_outdated_latency_is_measured_again() -> None:
    """A service that got five times slower for good is asked for more again within a minute or two."""
    limit = ConcurrencyLimiter(1000, 20)
    now = grow(limit, 0.0, 100)
    now = grow(limit, now, 200, latency=0.25)
    stuck = limit.value

    while now < 120:
        now = grow(limit, now, 1, latency=0.25)

    assert limit.value > 2 * stuck


Events = st.lists(
    st.tuples(st.sampled_from("snrpd"), st.floats(0.0, 3.0), st.floats(0.0, 40.0)), max_size=200
)


@given(most=st.integers(1, 300), start=st.integers(1, 400), events=Events)
def test_the_limit_never_leaves_its_bounds(
    most: int, start: int, events: list[tuple[str, float, float]]
) -> None:
    """Whatever the answers and whenever they come: at least 1, at most what the user said."""
    limit, now = ConcurrencyLimiter(most, start), 0.0
    for kind, wait, latency in events:
        now += wait
        for _ in range(7):
            match kind:
                case "s":
                    limit.record_response(now - latency, int(limit.value), now, True)
                case "n":
                    limit.record_response(now - latency, int(limit.value), now, False)
                case "r":
                    limit.record_overload(now - latency, now)
                case "p":
                    limit.pause(now - latency)
                case "d":
                    limit.resume(now, 60.0)

            assert 1 <= limit.value <= most


# The breaker


def open_breaker(now: float = 10.0) -> CircuitBreaker:
    breaker = CircuitBreaker(FAILURE_THRESHOLD, half)
    for _ in range(FAILURE_THRESHOLD):
        breaker.record_overload(now - 1, 0.05, now)
    assert breaker.is_open
    return breaker


def test_circuit_opens_on_twenty_overload_signals_in_a_row() -> None:
    """Nineteen may be chance."""
    breaker = CircuitBreaker(FAILURE_THRESHOLD, half)

    assert not any(breaker.record_overload(9.0, 0.05, 10.0) for _ in range(FAILURE_THRESHOLD - 1))
    assert breaker.record_overload(9.0, 0.05, 10.0)


def test_a_crowd_is_no_outage() -> None:
    """A full service refuses many in a row, and answers others all the time."""
    breaker = CircuitBreaker(FAILURE_THRESHOLD, half)
    for batch in range(20):
        now = 10 + batch * 0.05
        for _ in range(10):
            breaker.record_success(now)
        for _ in range(30):
            assert not breaker.record_overload(now, 0.05, now + 0.005)


def test_a_service_that_hardly_answers_is_out() -> None:
    """One answer in ten would use up the attempts of two accounts in three."""
    breaker, now = CircuitBreaker(FAILURE_THRESHOLD, half), 10.0
    for number in range(200):
        now += 0.01
        if number % 10:
            breaker.record_overload(now - 0.05, 0.05, now)
        else:
            breaker.record_success(now)
        if breaker.is_open:
            return
    pytest.fail("it stayed open")


def test_the_pause_is_a_share_of_the_outage() -> None:
    """The end of an outage is found within a twentieth of its length."""
    breaker, now, pauses = open_breaker(), 10.0, []
    while now < 3600:
        pauses.append((now - 10, breaker.probe_at - now))
        now = breaker.probe_at
        breaker.start_probe(now)
        breaker.end_probe(False, now)

    for outage, pause in pauses:
        assert 0.75 * MIN_PROBE_INTERVAL <= pause <= 1.25 * MAX_PROBE_INTERVAL
        assert pause == pytest.approx(
            min(max(outage * PROBE_INTERVAL_SHARE, MIN_PROBE_INTERVAL), MAX_PROBE_INTERVAL), rel=0.3, abs=0.06
        )
    assert len(pauses) < 900


def test_a_probe_that_is_cancelled_lets_the_next_one_go() -> None:
    """Otherwise the circuit would stay open forever."""
    breaker = open_breaker()
    breaker.start_probe(20.0)
    assert not breaker.may_probe(20.0)

    assert not breaker.end_probe(None, 20.1)
    assert breaker.may_probe(20.1)


def test_probes_that_hang_do_not_hold_up_the_next() -> None:
    """With attempts of 30 s a single probe could miss the end of an outage by that."""
    breaker, now, sent = open_breaker(), 10.0, 0
    while breaker.next_probe_at is not None:
        now = max(now, breaker.next_probe_at)
        assert breaker.may_probe(now)
        breaker.start_probe(now)
        sent += 1

    assert sent == MAX_PROBES
    breaker.end_probe(False, now)
    assert breaker.next_probe_at is not None


def test_an_answered_probe_opens_the_gate() -> None:
    """The service is back, and nobody need wait any longer."""
    breaker = open_breaker(10.0)
    breaker.start_probe(11.0)

    assert breaker.end_probe(True, 12.5)
    assert not breaker.is_open
    assert breaker.probe_at == math.inf


def test_retry_after_keeps_the_circuit_open() -> None:
    """At most two minutes: the header may be anybody's mistake."""
    short, long = CircuitBreaker(FAILURE_THRESHOLD, half), CircuitBreaker(FAILURE_THRESHOLD, half)

    assert short.on_retry_after(30, 10.0, key_wide=True)
    assert long.on_retry_after(86400, 10.0, key_wide=True)
    assert 40 <= short.probe_at <= 42
    assert 130 <= long.probe_at <= 136


def test_one_overload_response_among_many_does_not_open_the_circuit() -> None:
    """A 503 with a Retry-After on one in a hundred would else stop everyone all the time."""
    breaker = CircuitBreaker(FAILURE_THRESHOLD, half)
    breaker.record_overload(9.95, 0.05, 10.0)
    assert not breaker.on_retry_after(30, 10.0, key_wide=False)

    breaker.record_overload(9.95, 0.05, 10.0)
    breaker.record_overload(9.95, 0.05, 10.0)
    assert breaker.on_retry_after(30, 10.0, key_wide=False)


# The rate


def sends(rate: RateLimiter, now: float, until: float) -> list[float]:
    """When requests go that all wait for the rate alone."""
    times = []
    while now < until:
        if rate.try_acquire(now):
            times.append(now)
        else:
            now = rate.ready_at
    return times


@given(per_second=st.floats(0.1, 5000.0), gaps=st.lists(st.floats(0.0, 2.0), max_size=100))
def test_the_rate_is_never_exceeded(per_second: float, gaps: list[float]) -> None:
    """In any span of time: the rate times the span, and the burst."""
    rate, now, times = RateLimiter(per_second), 0.0, []
    for gap in gaps:
        now += gap
        times += [now for _ in range(30) if rate.try_acquire(now)]

    for i, first in enumerate(times):
        for j in range(i, len(times), 7):
            assert j - i + 1 <= (times[j] - first + BURST) * per_second + 1 + 1e-6


def test_a_known_rate_is_used_to_the_full() -> None:
    """A ceiling that cost a tenth of itself would be no ceiling but a lower rate."""
    assert len(sends(RateLimiter(100), 0.0, 100.0)) == pytest.approx(10_000, abs=3)


def test_a_late_timer_costs_nothing() -> None:
    """Timers fire a few milliseconds late, each of them."""
    rate, now, count = RateLimiter(100), 0.0, 0
    while now < 100:
        now = max(now, rate.ready_at) + 0.004
        count += rate.try_acquire(now)

    assert count > 9_900


def refuse(rate: RateLimiter, sent: float, now: float) -> None:
    """Record a burst of 429s, more than come by chance."""
    for _ in range(30):
        rate.record_throttled(sent, now)


def unlimited() -> RateLimiter:
    """A rate limiter without a ceiling that has served 100 requests from second 10 to second 11."""
    rate = RateLimiter(None)
    rate.record_served(10.0)
    rate.served = 100
    return rate


def test_429s_teach_the_rate() -> None:
    """From what was served, not from what was asked."""
    rate = unlimited()
    assert not rate.active
    rate.record_served(11.0)
    rate.served = 200

    refuse(rate, 11.9, 12.0)

    assert rate.active
    assert rate.value == pytest.approx(90)


def test_the_429s_of_one_burst_slow_once() -> None:
    """They all speak of the same second."""
    rate = unlimited()

    refuse(rate, 10.9, 11.0)

    assert rate.value == pytest.approx(90)


def test_one_429_slows_only_at_the_limit_of_a_known_tier() -> None:
    """Before that it may be one account's, and a tier refuses many at once."""
    rate = unlimited()
    rate.record_throttled(10.9, 11.0)
    assert not rate.active
    refuse(rate, 10.9, 11.0)
    sends(rate, 11.0, 12.0)
    search = rate.value
    rate.served = 190
    rate.record_throttled(11.9, 12.0)
    assert rate.value == search > 190
    refuse(rate, 11.9, 12.0)
    assert rate.value == pytest.approx(0.9 * 95), "190 were served in two seconds"

    sends(rate, 12.0, 17.0)
    rate.record_served(16.0)
    rate.served += 95
    assert rate.value == pytest.approx(95, rel=0.02)
    rate.record_throttled(16.9, 17.0)

    assert rate.value == pytest.approx(0.9 * 95, rel=0.02)


def test_a_learned_rate_comes_back() -> None:
    """The first guess may be far too low: it doubles until the next 429s."""
    rate = unlimited()
    refuse(rate, 10.9, 11.0)

    sends(rate, 11.0, 14.0)

    assert rate.value > 400


def test_a_rate_that_nobody_waits_for_stays() -> None:
    """An idle hour tells nothing of the tier."""
    rate = unlimited()
    refuse(rate, 10.9, 11.0)
    for second in range(12, 3600):
        assert rate.try_acquire(float(second))

    assert rate.value == pytest.approx(90)


def play(share: float, tier: float = math.inf) -> tuple[RateLimiter, list[int]]:
    """
    Offer 1,000 requests a second for 60 s. A *share* of them gets a 429 at random, and so does what is beyond
    a *tier* of so many a second.

    Returns:
        The rate, and the requests of each second.
    """
    rate, chance, marked, seconds = RateLimiter(None), random.Random(1), 0.0, [0] * 60
    tokens = 20.0
    for millisecond in range(60_000):
        now = millisecond / 1000
        tokens = min(20.0, tokens + tier / 1000)
        if rate.active and not rate.try_acquire(now):
            continue
        seconds[int(now)] += 1
        if chance.random() < share or tokens < 1:
            rate.record_throttled(now, now + 0.001)
            continue
        tokens -= 1
        rate.served += 1
        if now >= marked:
            marked = rate.record_served(now)
    return rate, seconds


def test_a_rate_that_is_not_the_cause_is_restored() -> None:
    """A trial of a lower rate gets as many 429s, of requests that were sent in it."""
    rate, chance = unlimited(), random.Random(1)
    rate.served, now = 0, 10.0
    while not rate.active:  # 100 requests a second, one in 20 refused
        now += 0.01
        if chance.random() < 0.05:
            rate.record_throttled(now, now)
        else:
            rate.served += 1
    assert 0.6 * 95 <= rate.value <= 0.8 * 95

    sent = 0
    while rate.active:
        now = max(now, rate.ready_at)
        assert rate.try_acquire(now)
        sent += 1
        if chance.random() < 0.05:
            rate.record_throttled(now, now)
        else:
            rate.served += 1

    assert sent <= 200


def test_a_second_trial_has_no_higher_rate_than_the_first() -> None:
    """Of 10 requests a second, every seventh is refused."""
    rate, now, marked = RateLimiter(10.0), 0.0, 0.0
    rates = list[float]()
    for number in range(400):
        now = max(now, rate.ready_at)
        assert rate.try_acquire(now)
        if number % 7 == 6:
            rate.record_throttled(now, now)
        else:
            rate.served += 1
            marked = rate.record_served(now) if now >= marked else marked
        rates.append(round(rate.value, 3))

    assert set(rates) == {7.0, 10.0}
    assert rates[-1] == 10.0


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1.0), (0.03, 0.95), (0.1, 0.9), (0.3, 0.5)])
def test_429s_that_come_at_any_rate_do_not_slow(share: float, kept: float) -> None:
    """As of a limit per account: a lower rate does not lower their share."""
    _, seconds = play(share)

    assert sum(seconds) >= kept * 60_000
    assert share > 0.1 or min(seconds[50:]) >= 990


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_a_tier_is_learned_though_other_429s_come_at_any_rate(share: float) -> None:
    """Its own come on top of them."""
    rate, seconds = play(share, tier=100.0)

    assert 80 <= rate.value <= 140
    assert 0.9 * 5_000 <= sum(seconds[10:]) <= 1.3 * 5_000


# The pacer


def test_a_call_enters_at_once_while_there_is_room() -> None:
    """Without a loop, a timer or a future."""
    clock = Clock()
    pace = pacer(clock, in_flight=2)

    permits = [pace.try_acquire(), pace.try_acquire()]
    assert all(permits)
    assert pace.try_acquire() is None
    assert pace.in_flight == 2
    assert permits[0] is not None
    pace.release(permits[0], LoadSignal.SUCCESS)
    assert pace.try_acquire() is not None


@pytest.mark.parametrize("adaptive", [True, False])
def test_who_waited_longest_goes_first(adaptive: bool) -> None:
    """And retries before new calls, but for one turn in eight."""

    async def main() -> list[str]:
        pace, order = pacer(in_flight=1, adaptive=adaptive), []

        async def call(name: str, retry: bool) -> None:
            permit = await acquire(pace, retry=retry)
            order.append(name)
            await asyncio.sleep(0.01)
            pace.release(permit, LoadSignal.SUCCESS)

        permit = await acquire(pace)
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(call(f"new {number}", False))
                group.create_task(call(f"retry {number}", True))
            await asyncio.sleep(0)
            pace.release(permit, LoadSignal.SUCCESS)
        return order

    order = run(main())

    assert [name for name in order if "new" in name] == [f"new {number}" for number in range(10)]
    assert [name for name in order if "retry" in name] == [f"retry {number}" for number in range(10)]
    assert order.index("new 0") == 7
    assert order.index("retry 9") == 10


def test_a_turn_that_comes_with_the_cancellation_is_handed_on() -> None:
    """The future has its permit, and the task is cancelled before it wakes: the slot must not be lost."""

    async def main() -> None:
        pace = pacer(in_flight=1)
        permit = await acquire(pace)
        first = asyncio.create_task(acquire(pace))
        second = asyncio.create_task(acquire(pace))
        await asyncio.sleep(0)
        pace.release(permit, LoadSignal.SUCCESS)
        first.cancel()

        assert isinstance(await second, Permit)
        assert first.cancelled()
        assert pace.in_flight == 1

    run(main())


@pytest.mark.parametrize("phase", ["before it was sent", "while it was out"])
def test_cancelled_probe_does_not_keep_the_circuit_open(phase: str) -> None:
    """The next one who waits is the probe."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pace = pacer(in_flight=40)
        open_circuit(pace)
        first, second = asyncio.create_task(acquire(pace)), asyncio.create_task(acquire(pace))
        if phase == "while it was out":
            permit = await first
            assert permit.probe
            pace.release(permit, LoadSignal.NONE)
        else:
            await asyncio.sleep(0.01)
            pace._breaker.probe_at = loop.time()
            pace._admit()
            assert pace.in_flight == 1
            first.cancel()
        began = loop.time()
        probe = await second
        assert loop.time() - began < 0.01
        assert pace.release(probe, LoadSignal.SUCCESS)
        assert not pace.paused
        assert pace.in_flight == 0

    run(main())


def open_circuit(pace: Pacer) -> None:
    """Open the circuit: twenty permits, all refused."""
    permits = [pace.try_acquire() for _ in range(20)]
    for permit in permits:
        assert permit is not None
        permit.sent -= 1.0  # long ago
        pace.release(permit, LoadSignal.OVERLOAD)
    assert pace.paused


def test_overload_signals_while_open_use_up_no_attempt() -> None:
    """An outage costs time, not accounts."""
    clock, pauses = Clock(), list[bool]()
    pace = Pacer(Pace(in_flight=50, start=50), clock=clock, random=half, on_pause=pauses.append)
    permits = [pace.try_acquire() for _ in range(40)]
    clock.now += 1

    counted = [pace.release(permit, LoadSignal.OVERLOAD) for permit in permits if permit]

    assert counted == [True] * 19 + [False] * 21
    assert pace.paused
    assert pauses == [True]
    assert pace.try_acquire() is None


@pytest.mark.parametrize("began", [True, False], ids=["the pause begins", "the pause ends"])
def test_an_on_pause_that_raises_leaves_no_slot_taken(began: bool) -> None:
    """Ctrl-C may come while it runs: the request is over all the same, and so is its slot."""

    def interrupted(begins: bool) -> None:
        if begins is began:
            raise KeyboardInterrupt

    clock = Clock()
    pace = Pacer(Pace(in_flight=50, start=50), clock=clock, random=half, on_pause=interrupted)
    permits = [pace.try_acquire() for _ in range(20)]
    clock.now += 1
    raised = 0
    for permit in permits:
        assert permit is not None
        try:
            pace.release(permit, LoadSignal.OVERLOAD)
        except KeyboardInterrupt:
            raised += 1
    assert (pace.paused, raised) == (True, int(began))
    assert pace.in_flight == 0
    if began:
        return

    clock.now += 10
    pace._breaker.start_probe(clock.now)
    pace._permits += 1
    with pytest.raises(KeyboardInterrupt):
        pace.release(Permit(clock.now, pace._breaker.generation, probe=True), LoadSignal.SUCCESS)

    assert not pace.paused
    assert pace.in_flight == 0


def test_waiting_calls_proceed_when_a_probe_succeeds() -> None:
    """One call at a time finds out for all; the others neither ask nor wait longer than they must."""

    async def main() -> None:
        pace = pacer(in_flight=40)
        open_circuit(pace)
        clock = asyncio.get_running_loop().time
        arrived = clock()
        probe = await acquire(pace)
        others = [asyncio.create_task(acquire(pace)) for _ in range(9)]

        assert probe.probe
        assert 0.05 <= clock() - arrived <= 0.2
        await asyncio.sleep(3.0)
        answered = clock()
        pace.release(probe, LoadSignal.SUCCESS)
        permits = await asyncio.gather(*others)
        assert clock() == pytest.approx(answered, abs=0.01)
        patient = [permit.sent for permit in permits if not permit.probe]
        assert patient == [pytest.approx(answered, abs=0.01)] * (9 + 1 - MAX_PROBES)

    run(main())


def test_a_refused_request_keeps_its_slot_for_the_time_of_an_answer() -> None:
    """Refusals in 5 ms would else let a small excess ask ten times as often as the rest."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pace = pacer(in_flight=1)
        permit = await acquire(pace)
        await asyncio.sleep(0.005)
        pace.release(permit, LoadSignal.OVERLOAD)

        assert pace.in_flight == 0
        await acquire(pace)
        assert loop.time() == pytest.approx(0.1, abs=0.002)  # nothing is known yet: 100 ms

    run(main())


def test_without_adaptive_refusals_change_nothing() -> None:
    """Who says so wants exactly so many in flight."""
    pace = pacer(Clock(), in_flight=30, adaptive=False)
    for _ in range(100):
        permits = [pace.try_acquire() for _ in range(30)]
        assert pace.try_acquire() is None
        assert all(pace.release(permit, LoadSignal.OVERLOAD, 60.0) for permit in permits if permit)

    assert pace.limit == 30
    assert not pace.paused


def test_waiters_share_one_timer() -> None:
    """aiolimiter woke every waiter at each tick; a thousand waiters at 100/s are 100 timers a second."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        pace = pacer(in_flight=1000, start=1000, rate=100.0, adaptive=False)

        async def call() -> None:
            pace.release(await acquire(pace), LoadSignal.SUCCESS)

        before = loop.timers
        await asyncio.gather(*(call() for _ in range(1000)))
        return loop.timers - before

    assert run(main()) <= 1010


def test_a_pacer_belongs_to_one_loop() -> None:
    """A future of one loop, woken from another, never wakes."""
    pace = pacer(lambda: 0.0, in_flight=1)
    pace.try_acquire()

    async def wait() -> None:
        await asyncio.wait_for(acquire(pace), 0.1)

    with pytest.raises(TimeoutError):
        run(wait())
    with pytest.raises(RuntimeError, match="another event loop"):
        run(wait())


class Strict(Pacer):
    """Looks at the limit whenever a call is let in: later, others may have lowered it."""

    def try_acquire(self) -> Permit | None:
        permit = super().try_acquire()
        assert permit is None or (self._permits <= self.limit and not self.paused)
        return permit

    def _next(self) -> PermitFuture:
        assert self._permits < (self._pace.in_flight if self.paused else self.limit)
        return super()._next()


Calls = st.lists(
    st.tuples(
        st.floats(0.0, 0.5),  # when it comes
        st.sampled_from(SIGNS),
        st.floats(0.0, 0.3),  # how long its answer takes
        st.one_of(st.none(), st.floats(0.0, 1.0)),  # when it is cancelled
        st.booleans(),
        st.one_of(st.none(), st.floats(0.0, 5.0)),  # Retry-After
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(
    calls=Calls,
    in_flight=st.integers(1, 6),
    adaptive=st.booleans(),
    rate=st.one_of(st.none(), st.floats(5.0, 500.0)),
)
def test_no_turn_is_lost(calls: list[Any], in_flight: int, adaptive: bool, rate: float | None) -> None:
    """With any refusals and cancellations, all calls get in, never too many at once, and no slot leaks."""

    async def main() -> None:
        pace = Strict(Pace(in_flight=in_flight, adaptive=adaptive, rate=rate), random=random.Random(1).random)
        out = 0

        async def call(
            come: float, signal: LoadSignal, takes: float, retry: bool, asked: float | None
        ) -> None:
            nonlocal out
            await asyncio.sleep(come)
            permit = pace.try_acquire() or await acquire(pace, retry=retry)
            out += 1
            assert out <= pace.in_flight <= in_flight  # some have their permit, and have not woken yet
            try:
                await asyncio.sleep(takes)
            except asyncio.CancelledError:
                signal = LoadSignal.NONE
                raise
            finally:
                out -= 1
                pace.release(permit, signal, asked)

        loop, tasks = asyncio.get_running_loop(), []
        for come, signal, takes, cancelled, retry, asked in calls:
            task = asyncio.create_task(call(come, signal, takes, retry, asked))
            tasks.append(task)
            if cancelled is not None:
                loop.call_later(cancelled, task.cancel)
        done = await asyncio.gather(*tasks, return_exceptions=True)

        assert not [end for end in done if end and not isinstance(end, asyncio.CancelledError)]
        assert pace.in_flight == pace.waiting == 0
        await asyncio.sleep(130)
        permit = await acquire(pace)
        pace.release(permit, LoadSignal.SUCCESS)
        assert not pace.paused
        await asyncio.sleep(1)
        assert pace._permits == 0 or pace._held
        assert pace._timer is None

    run(main())
