"""The circuit breaker."""

import math

import pytest

from postpress_async.pace._circuit_breaker import (
    FAILURE_THRESHOLD,
    MAX_PROBE_INTERVAL,
    MAX_PROBES,
    MIN_PROBE_INTERVAL,
    PROBE_INTERVAL_SHARE,
    CircuitBreaker,
)


def closed_breaker() -> CircuitBreaker:
    return CircuitBreaker(FAILURE_THRESHOLD, random=lambda: 0.5)


def open_breaker() -> CircuitBreaker:
    """A breaker that opened at second 10."""
    breaker = closed_breaker()
    for _ in range(FAILURE_THRESHOLD):
        breaker.record_overload(9.0, 0.05, 10.0)
    assert breaker.is_open
    return breaker


def test_circuit_opens_after_twenty_overload_signals_in_a_row() -> None:
    breaker = closed_breaker()

    assert not any(breaker.record_overload(9.0, 0.05, 10.0) for _ in range(FAILURE_THRESHOLD - 1))
    assert breaker.record_overload(9.0, 0.05, 10.0)


def test_circuit_stays_closed_while_an_overloaded_service_also_answers() -> None:
    """It gives 30 overload signals in a row, but ten responses every 0.05 s."""
    breaker = closed_breaker()
    for batch in range(20):
        now = 10 + batch * 0.05
        for _ in range(10):
            breaker.record_success(now)
        for _ in range(30):
            assert not breaker.record_overload(now, 0.05, now + 0.005)


def test_circuit_opens_if_only_one_request_in_ten_succeeds() -> None:
    """Otherwise two accounts in three would use up all their attempts."""
    breaker, now = closed_breaker(), 10.0
    for number in range(200):
        now += 0.01
        if number % 10:
            breaker.record_overload(now - 0.05, 0.05, now)
        else:
            breaker.record_success(now)
        if breaker.is_open:
            return
    pytest.fail("the breaker stayed closed")


def test_time_between_probes_is_a_share_of_the_outage() -> None:
    """The end of an outage is detected within about a twentieth of its length."""
    breaker, now = open_breaker(), 10.0
    probes = list[tuple[float, float]]()  # the length of the outage so far, and the time to the next probe
    while now < 3600:
        probes.append((now - 10, breaker.probe_at - now))
        now = breaker.probe_at
        breaker.start_probe(now)
        breaker.end_probe(False, now)

    for outage, interval in probes:
        assert 0.75 * MIN_PROBE_INTERVAL <= interval <= 1.25 * MAX_PROBE_INTERVAL
        assert interval == pytest.approx(
            min(max(outage * PROBE_INTERVAL_SHARE, MIN_PROBE_INTERVAL), MAX_PROBE_INTERVAL), rel=0.3, abs=0.06
        )
    assert len(probes) < 900


def test_another_probe_may_be_sent_after_a_cancelled_one() -> None:
    """Otherwise the circuit could stay open for ever."""
    breaker = open_breaker()
    breaker.start_probe(20.0)
    assert breaker.next_probe_at > 20.0

    assert not breaker.end_probe(None, 20.1)
    assert breaker.next_probe_at == 20.1


def test_further_probes_are_sent_while_others_hang() -> None:
    """With a timeout of 30 s, a single probe that hangs would delay the detection by 30 s."""
    breaker, now, sent = open_breaker(), 10.0, 0
    while breaker.next_probe_at < math.inf:
        now = max(now, breaker.next_probe_at)
        breaker.start_probe(now)
        sent += 1

    assert sent == MAX_PROBES
    breaker.end_probe(False, now)
    assert breaker.next_probe_at < math.inf


def test_successful_probe_closes_the_circuit() -> None:
    breaker = open_breaker()
    breaker.start_probe(11.0)

    assert breaker.end_probe(True, 12.5)
    assert not breaker.is_open
    assert breaker.probe_at == math.inf


def test_retry_after_delays_the_next_probe() -> None:
    breaker = closed_breaker()

    assert breaker.on_retry_after(30, 10.0, key_wide=True)
    assert 40 <= breaker.probe_at <= 42


def test_retry_after_of_a_day_is_cut_to_two_minutes() -> None:
    """A header that is wrong must not stop the session for a day."""
    breaker = closed_breaker()

    assert breaker.on_retry_after(86400, 10.0, key_wide=True)
    assert 130 <= breaker.probe_at <= 136


def test_retry_after_of_a_503_opens_the_circuit_only_after_three_in_a_row() -> None:
    """Otherwise a 503 with a Retry-After on one request in a hundred would stop all calls."""
    breaker = closed_breaker()
    breaker.record_overload(9.95, 0.05, 10.0)
    assert not breaker.on_retry_after(30, 10.0, key_wide=False)

    breaker.record_overload(9.95, 0.05, 10.0)
    breaker.record_overload(9.95, 0.05, 10.0)
    assert breaker.on_retry_after(30, 10.0, key_wide=False)
