"""The rate limiter: a ceiling, and the rate learned from 429s."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async.pace._rate_limiter import BURST, RateLimiter


def send_waiting_requests(limiter: RateLimiter, start: float, end: float) -> int:
    """Send requests that wait only for the rate limiter. Returns how many were sent."""
    now, sent = start, 0
    while now < end:
        if limiter.try_acquire(now):
            sent += 1
        else:
            now = limiter.ready_at
    return sent


# --- The ceiling ---


@given(per_second=st.floats(0.1, 5000.0), gaps=st.lists(st.floats(0.0, 2.0), max_size=100))
def test_no_interval_has_more_requests_than_the_rate_and_the_burst_allow(
    per_second: float, gaps: list[float]
) -> None:
    limiter, now, times = RateLimiter(per_second), 0.0, list[float]()
    for gap in gaps:
        now += gap
        times += [now for _ in range(30) if limiter.try_acquire(now)]

    for first, start in enumerate(times):
        for last in range(first, len(times), 7):
            allowed = (times[last] - start + BURST) * per_second + 1
            assert last - first + 1 <= allowed + 1e-6  # rounding


def test_ceiling_is_used_to_the_full() -> None:
    assert send_waiting_requests(RateLimiter(100), 0.0, 100.0) == pytest.approx(10_000, abs=3)


def test_late_timers_do_not_lower_the_throughput() -> None:
    """Each timer fires some milliseconds late."""
    limiter, now, sent = RateLimiter(100), 0.0, 0
    while now < 100:
        now = max(now, limiter.ready_at) + 0.004
        sent += limiter.try_acquire(now)

    assert sent > 9_900


# --- The learned rate ---


def throttle(limiter: RateLimiter, sent: float, now: float) -> None:
    """Record 30 429s at once, which are more than occur by chance."""
    for _ in range(30):
        limiter.record_throttled(sent, now)


def measured_limiter() -> RateLimiter:
    """A rate limiter without a ceiling that has served 100 requests from second 10 to second 11."""
    limiter = RateLimiter(None)
    limiter.record_served(10.0)
    limiter.served = 100
    return limiter


def test_rate_is_learned_from_the_requests_that_were_served() -> None:
    limiter = measured_limiter()
    assert not limiter.active
    limiter.record_served(11.0)
    limiter.served = 200

    throttle(limiter, 11.9, 12.0)

    assert limiter.active
    assert limiter.value == pytest.approx(90)


def test_several_429s_of_one_burst_lower_the_rate_once() -> None:
    limiter = measured_limiter()

    throttle(limiter, 10.9, 11.0)

    assert limiter.value == pytest.approx(90)


def test_single_429_does_not_lower_the_rate_while_the_tier_is_unknown() -> None:
    """It may concern a single account. A tier that is exceeded gives many 429s."""
    limiter = measured_limiter()
    limiter.record_throttled(10.9, 11.0)
    assert not limiter.active

    throttle(limiter, 10.9, 11.0)
    send_waiting_requests(limiter, 11.0, 12.0)
    rate_before = limiter.value
    limiter.served = 190
    limiter.record_throttled(11.9, 12.0)

    assert limiter.value == rate_before > 190


def test_single_429_lowers_the_rate_at_the_limit_of_a_known_tier() -> None:
    limiter = measured_limiter()
    throttle(limiter, 10.9, 11.0)
    send_waiting_requests(limiter, 11.0, 12.0)
    limiter.served = 190
    throttle(limiter, 11.9, 12.0)
    assert limiter.value == pytest.approx(0.9 * 95), "190 requests were served in two seconds"

    send_waiting_requests(limiter, 12.0, 17.0)
    limiter.record_served(16.0)
    limiter.served += 95
    assert limiter.value == pytest.approx(95, rel=0.02)
    limiter.record_throttled(16.9, 17.0)

    assert limiter.value == pytest.approx(0.9 * 95, rel=0.02)


def test_rate_grows_fast_after_the_first_decrease() -> None:
    """The first estimate may be far too low, so the rate doubles until the next 429s."""
    limiter = measured_limiter()
    throttle(limiter, 10.9, 11.0)

    send_waiting_requests(limiter, 11.0, 14.0)

    assert limiter.value > 400


def test_rate_does_not_grow_while_no_request_waits_for_it() -> None:
    """Without load, the limit of the tier cannot be tested."""
    limiter = measured_limiter()
    throttle(limiter, 10.9, 11.0)
    for second in range(12, 3600):
        assert limiter.try_acquire(float(second))

    assert limiter.value == pytest.approx(90)


# --- 429s that do not depend on the rate ---


def test_rate_is_restored_if_a_trial_shows_that_it_is_not_the_cause() -> None:
    """One request in 20 gets a 429, at 100 requests per second and at the lower rate of the trial."""
    limiter, chance, now = measured_limiter(), random.Random(1), 10.0
    limiter.served = 0
    while not limiter.active:
        now += 0.01
        if chance.random() < 0.05:
            limiter.record_throttled(now, now)
        else:
            limiter.served += 1
    assert 0.6 * 95 <= limiter.value <= 0.8 * 95

    sent_in_trial = 0
    while limiter.active:
        now = max(now, limiter.ready_at)
        assert limiter.try_acquire(now)
        sent_in_trial += 1
        if chance.random() < 0.05:
            limiter.record_throttled(now, now)
        else:
            limiter.served += 1

    assert sent_in_trial <= 200


def test_second_trial_has_no_higher_rate_than_the_first() -> None:
    """The ceiling is 10 requests per second, and every seventh request gets a 429."""
    limiter, now, sample_at = RateLimiter(10.0), 0.0, 0.0
    rates = list[float]()
    for number in range(400):
        now = max(now, limiter.ready_at)
        assert limiter.try_acquire(now)
        if number % 7 == 6:
            limiter.record_throttled(now, now)
        else:
            limiter.served += 1
            if now >= sample_at:
                sample_at = limiter.record_served(now)
        rates.append(round(limiter.value, 3))

    assert set(rates) == {7.0, 10.0}
    assert rates[-1] == 10.0


def simulate(share: float, tier: float = math.inf) -> tuple[RateLimiter, list[int]]:
    """
    Offer 1,000 requests per second for 60 s.

    Args:
        share: Share of requests that get a 429 at random.
        tier: Requests per second beyond which all requests get a 429.

    Returns:
        The rate limiter, and the number of requests that it admitted in each second.
    """
    limiter, chance, sample_at = RateLimiter(None), random.Random(1), 0.0
    admitted = [0] * 60
    tokens = 20.0  # of the tier
    for millisecond in range(60_000):
        now = millisecond / 1000
        tokens = min(20.0, tokens + tier / 1000)
        if limiter.active and not limiter.try_acquire(now):
            continue
        admitted[int(now)] += 1
        if chance.random() < share or tokens < 1:
            limiter.record_throttled(now, now + 0.001)
            continue
        tokens -= 1
        limiter.served += 1
        if now >= sample_at:
            sample_at = limiter.record_served(now)
    return limiter, admitted


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1.0), (0.03, 0.95), (0.1, 0.9), (0.3, 0.5)])
def test_429s_at_any_rate_cost_little_throughput(share: float, kept: float) -> None:
    """For example those of a limit per account: a lower rate does not lower their share."""
    _, admitted = simulate(share)

    assert sum(admitted) >= kept * 60_000


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_429s_at_any_rate_do_not_limit_the_rate_in_the_end(share: float) -> None:
    _, admitted = simulate(share)

    assert min(admitted[50:]) >= 990


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_tier_is_learned_although_other_429s_occur_at_any_rate(share: float) -> None:
    limiter, admitted = simulate(share, tier=100.0)

    assert 80 <= limiter.value <= 140
    assert 0.9 * 5_000 <= sum(admitted[10:]) <= 1.3 * 5_000
