"""The adaptive concurrency limit."""

import random

from hypothesis import given
from hypothesis import strategies as st

from postpress_async.pace._concurrency_limiter import CUBIC_BETA, MAX_INITIAL_LIMIT, ConcurrencyLimiter


def succeed(
    limiter: ConcurrencyLimiter,
    now: float,
    responses: int,
    latency: float = 0.05,
    in_flight: int | None = None,
) -> float:
    """Record successful *responses* that arrive as fast as the limit allows. Returns the time after them."""
    for _ in range(responses):
        now += latency / limiter.value
        used = int(limiter.value) if in_flight is None else in_flight
        limiter.record_response(now - latency, used, now, True)
    return now


def test_slow_start_reaches_the_maximum_within_seven_round_trips() -> None:
    limiter = ConcurrencyLimiter(1000, 20)

    now = succeed(limiter, 0.0, 1000)

    assert limiter.value == 1000
    assert now < 7 * 0.05


def test_limit_before_the_first_response_is_at_most_a_hundred() -> None:
    """A service that handles 200 requests would reject 800 of 1,000 before its first response."""
    assert ConcurrencyLimiter(1000, 1000).value == MAX_INITIAL_LIMIT


def test_slow_start_ends_when_the_latency_doubles() -> None:
    """From then on, more requests in flight only make the queue of the service longer."""
    limiter = ConcurrencyLimiter(1000, 20)
    now = succeed(limiter, 0.0, 60)
    limit_before = limiter.value

    succeed(limiter, now, 500, latency=0.15)

    assert limiter.value <= 2 * limit_before


def test_limit_does_not_grow_if_few_requests_are_in_flight() -> None:
    """Otherwise an hour of low load would later allow 1,000 requests at once, which was never tested."""
    limiter = ConcurrencyLimiter(1000, 20)

    succeed(limiter, 0.0, 10_000, in_flight=3)

    assert limiter.value == 20


def limit_after_overload(share: float) -> float:
    """The limit after 60 requests, of which a random *share* gets an overload signal."""
    limiter, chance, now = ConcurrencyLimiter(50, 50), random.Random(2), 10.0
    for _ in range(60):
        now += 0.001
        if chance.random() < share:
            limiter.record_overload(now - 0.05, now)
        else:
            limiter.record_response(now - 0.05, 50, now, True)
    return limiter.value


def test_few_overload_signals_do_not_lower_the_limit() -> None:
    """If every overload signal lowered the limit, random 503s would push it to its minimum."""
    assert limit_after_overload(0.05) == 50


def test_many_overload_signals_lower_the_limit_once() -> None:
    assert limit_after_overload(0.5) == 50 * CUBIC_BETA


def test_limit_recovers_if_lowering_it_does_not_reduce_the_overload_signals() -> None:
    """Otherwise a service that rejects a third of requests at any load would get one request at a time."""
    limiter = ConcurrencyLimiter(50, 50)
    chance, now = random.Random(3), 10.0
    for _ in range(20_000):
        now += 0.05 / limiter.value
        if chance.random() < 0.3:
            limiter.record_overload(now - 0.05, now)
        else:
            limiter.record_response(now - 0.05, int(limiter.value), now, True)

    assert limiter.value > 35


def test_limit_grows_again_after_the_service_became_permanently_slower() -> None:
    """The baseline latency expires, and is measured again within two minutes."""
    limiter = ConcurrencyLimiter(1000, 20)
    now = succeed(limiter, 0.0, 100)
    now = succeed(limiter, now, 200, latency=0.25)
    limit_before = limiter.value

    while now < 120:
        now = succeed(limiter, now, 1, latency=0.25)

    assert limiter.value > 2 * limit_before


EVENTS = ("timed response", "untimed response", "overload", "pause", "resume")


@given(
    maximum=st.integers(1, 300),
    start=st.integers(1, 400),
    history=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.floats(0.0, 3.0), st.floats(0.0, 40.0)), max_size=200
    ),
)
def test_limit_is_between_one_and_the_maximum_after_any_events(
    maximum: int, start: int, history: list[tuple[str, float, float]]
) -> None:
    limiter, now = ConcurrencyLimiter(maximum, start), 0.0
    for event, wait, latency in history:
        now += wait
        for _ in range(7):  # so that windows of 20 responses end
            match event:
                case "timed response":
                    limiter.record_response(now - latency, int(limiter.value), now, True)
                case "untimed response":
                    limiter.record_response(now - latency, int(limiter.value), now, False)
                case "overload":
                    limiter.record_overload(now - latency, now)
                case "pause":
                    limiter.pause(now - latency)
                case "resume":
                    limiter.resume(now, 60.0)

            assert 1 <= limiter.value <= maximum
