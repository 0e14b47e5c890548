# ruff: noqa: E501 - each scenario of the table is one line
"""The scenarios of the simulation: outages, overload and errors of the service, each with its claims."""

import math
from collections.abc import Callable

from postpress_async.sandbox._faults import LOST, NONE, Fault
from postpress_async.sandbox._server import Outage
from tests.support.simulated_service import Disruption, Request, Scenario

PROVIDER = Fault(type="errors/provider_error")
PROXY = Fault(type="errors/proxy_error")
UNAVAILABLE = Fault(type="errors/service_unavailable", latency=0.05)
UNAVAILABLE_FOR_2_S = Fault(type="errors/service_unavailable", latency=0.05, retry_after=2)
OUT_FOR_5_S = Fault(type="errors/service_unavailable", retry_after=5)
STRAY_429 = Fault(type="errors/too_many_requests")
STRAY_429_FOR_10_S = Fault(type="errors/too_many_requests", retry_after=10)
NO_CLIENT = Fault(type="errors/no_client_session", latency=0.05)
HTML_502 = Fault(
    status=502, headers={"Content-Type": "text/html"}, body=b"<html><h1>502 Bad Gateway</h1></html>"
)
DROP = Fault(ends="dropped", latency=0.05)
CUT_OFF = Fault(status=200, body=b'{"object": "AccountPatched"', cut=True, executes=True)


def share(of: float, fault: Fault) -> Callable[[Request], Fault]:
    """A share of the requests gets the fault. A retry may succeed."""
    return lambda request: fault if request.chance < of else NONE


def one_of(of: float, *faults: Fault) -> Callable[[Request], Fault]:
    """A share of the requests gets the first fault, the same share the second, and so on."""
    return lambda request: faults[int(request.chance / of)] if request.chance < of * len(faults) else NONE


def tenth(account: int) -> bool:
    """Whether the account is among a fixed tenth of all accounts."""
    return account % 10 == 3


def hundredth(account: int) -> bool:
    """Whether the account is among a fixed hundredth of all accounts."""
    return account % 100 == 7


def for_ever(fault: Fault) -> Callable[[Request], Fault]:
    """A fixed hundredth of the accounts gets the fault for every request."""
    return lambda request: fault if hundredth(request.account) else NONE


def outage(kind: Outage | Fault, seconds: float = 20.0, start: float = 5.0) -> tuple[Disruption, ...]:
    return (Disruption(start, start + seconds, kind),)


def flapping(kind: Outage | Fault, up: float, down: float, until: float = 300.0) -> tuple[Disruption, ...]:
    """The service works for *up* seconds and then does not for *down* seconds, again and again."""
    times = int(until / (up + down))
    return tuple(Disruption(n * (up + down) + up, (n + 1) * (up + down), kind) for n in range(times))


def slow(*steps: tuple[float, float, float]) -> tuple[Disruption, ...]:
    """A step is a start and an end in seconds, and the factor of the latency between them."""
    return tuple(Disruption(start, end, "slow", factor) for start, end, factor in steps)


def _out(kind: Outage, within: float) -> Scenario:
    return Scenario(f"out for 20 s: {kind}", within, 2000, 1.02, disruptions=outage(kind), in_flight=100)


def _tier(name: str, *, retry_after: bool = False, ceiling: float | None = None) -> Scenario:
    return Scenario(
        f"tier of 100/s{name}", 1.03, 100, 1.01, server={"rate": 100, "burst": 20, "retry_after": retry_after},
        burst=20, max_throttled_share=0.0 if ceiling else 0.006, max_rate=ceiling,
    )  # fmt: skip


CAPACITY_50 = {"capacity": 50, "queue": 150}
CAPACITY_50_ENDLESS_QUEUE = {"capacity": 50, "queue": 1_000_000}
SHORT_TIMEOUT = {"attempt_timeout": 2.0}

# fmt: off
TABLE = [
    Scenario("30% passing proxy_error", 1.12, choose_fault=share(0.3, PROXY)),
    Scenario("30% passing provider_error", 1.12, choose_fault=share(0.3, PROVIDER)),
    Scenario("10% dead proxies", 1.12, dead=tenth),
    _out("refused", 1.04),
    _out("503", 1.04),
    _out("503-html", 1.04),
    _out("504", 1.07),
    Scenario("50 at once, started at 20", 1.03, max_request_ratio=1.01, server=CAPACITY_50, in_flight=1000),
    Scenario("50 at once, started at 1,000", 1.03, max_request_ratio=1.01, server=CAPACITY_50, in_flight=1000, initial_limit=1000),
    Scenario("ten times slower for 20 s, queue 150", 1.03, max_request_ratio=1.03, server=CAPACITY_50, policy=SHORT_TIMEOUT, disruptions=slow((5, 25, 10)), in_flight=400, min_calm_seconds=5),
    Scenario("ten times slower for 20 s, queue endless", 1.03, max_request_ratio=1.03, server=CAPACITY_50_ENDLESS_QUEUE, policy=SHORT_TIMEOUT, disruptions=slow((5, 25, 10)), in_flight=400, min_calm_seconds=5),
    _tier(""),
    _tier(", Retry-After", retry_after=True),
    _tier(", rate=100", ceiling=100),
    Scenario("5% provider_error, 10% dead", 1.12, choose_fault=share(0.05, PROVIDER), dead=tenth),
    Scenario("5% service_unavailable, 10% dead", 1.17, choose_fault=share(0.05, UNAVAILABLE), dead=tenth),
]
"""The scenarios for which the pace was designed."""

MORE = [
    Scenario("calm", 1.02, max_request_ratio=1.0),
    *(Scenario(f"{of:.0%} 429 whatever the rate", within, choose_fault=share(of, STRAY_429)) for of, within in ((0.01, 1.1), (0.03, 1.12), (0.1, 1.4), (0.3, 2.0))),
    Scenario("1% 429 whatever the rate, Retry-After: 10", 2.0, choose_fault=share(0.01, STRAY_429_FOR_10_S)),
    Scenario("3% 429 whatever the rate, after 10 s", 1.1, choose_fault=lambda r: STRAY_429 if r.account >= 10_000 and r.chance < 0.03 else NONE),
    Scenario("tier of 100/s, 2% 429 whatever the rate", 1.07, 100, 1.06, server={"rate": 100, "burst": 20}, burst=20, choose_fault=share(0.02, STRAY_429)),
    Scenario("silent for 20 s, 2 s attempts", 1.1, 2000, 1.02, disruptions=outage("silent"), policy=SHORT_TIMEOUT, in_flight=100),
    Scenario("out from the start for 20 s: 503", 1.06, 2000, 1.02, disruptions=outage("503", start=0), in_flight=100),
    Scenario("flapping, 3 s and 3 s: 503", 1.15, max_request_ratio=1.06, disruptions=flapping("503", 3, 3)),
    Scenario("flapping, 3 s and 3 s: refused", 1.15, max_request_ratio=1.06, disruptions=flapping("refused", 3, 3)),
    Scenario("bursts of HTML 502s, 1 s in 5", 1.25, max_request_ratio=1.15, disruptions=flapping(HTML_502, 4, 1)),
    Scenario("half the capacity for 20 s", 1.05, max_request_ratio=1.02, server=CAPACITY_50, disruptions=slow((5, 25, 2)), in_flight=400),
    Scenario("slow ramp to 10 times, 2 s attempts", 1.15, max_request_ratio=1.03, server=CAPACITY_50_ENDLESS_QUEUE, policy=SHORT_TIMEOUT, in_flight=400, disruptions=slow(*((2.0 * n, 2.0 * n + 2, float(n)) for n in range(2, 10)), (20, 1e6, 10))),
    Scenario("recovery into half the capacity", 1.07, max_request_ratio=1.04, server={"capacity": 50, "queue": 50}, max_lost=10, in_flight=400, disruptions=(Disruption(5, 25, "refused"), Disruption(25, 35, "slow", 2))),
    Scenario("Retry-After: 2 on 5% 503s", 1.4, choose_fault=share(0.05, UNAVAILABLE_FOR_2_S)),
    Scenario("out for 20 s: 503, Retry-After: 5", 1.2, 2000, 1.02, disruptions=outage(OUT_FOR_5_S), in_flight=100),
    Scenario("two sessions, tier of 100/s", 1.05, 100, 1.02, server={"rate": 100, "burst": 20}, burst=20, sessions=2, max_throttled_share=0.015),
    Scenario("two sessions, 50 at once", 1.05, max_request_ratio=1.02, server=CAPACITY_50, in_flight=1000, sessions=2),
    Scenario("2% dropped, 2% lost, 2% torn", 1.15, choose_fault=one_of(0.02, DROP, LOST, CUT_OFF)),
    Scenario("15% 503 for ever", 1.3, choose_fault=share(0.15, UNAVAILABLE)),
    Scenario("1% of accounts 503 no_client_session", 1.05, max_request_ratio=1.0, choose_fault=for_ever(NO_CLIENT), hopeless=hundredth),
    Scenario("1% of accounts 503 for ever", math.inf, choose_fault=for_ever(UNAVAILABLE), hopeless=hundredth),
    Scenario("out for an hour: 503", 1.01, 2000, 1.06, disruptions=outage("503", 3600), in_flight=100),
    Scenario("out for an hour: refused", 1.01, 2000, 1.06, disruptions=outage("refused", 3600), in_flight=100),
    Scenario("out for an hour: silent", 1.01, 2000, 1.06, disruptions=outage("silent", 3600), in_flight=100),
    *(Scenario(f"12 accounts, out for an hour: {kind}", 1.01, disruptions=outage(kind, 3600, start=0), accounts=12) for kind in ("503", "silent")),
    *(Scenario(f"a single call, out for an hour: {kind}", 1 + 0.1 / 120, 2000, math.inf, disruptions=outage(kind, 3600), in_flight=100, single=True) for kind in ("503", "refused", "silent")),
]
"""Further scenarios."""
# fmt: on

ALL = {scenario.name: scenario for scenario in (*TABLE, *MORE)}
