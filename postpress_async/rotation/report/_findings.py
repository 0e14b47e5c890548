"""The data of a report, read from a journal in one snapshot. Its size does not grow with the fleet."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from math import floor, log10
from typing import Final

from attrs import frozen

from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation.journal._reading import LATEST, JournalReader, printable
from postpress_async.rotation.journal._statistics import SENT, Stage, Statistics, collect_statistics

BARS: Final = 96  # maximum number of bars in the chart over time
RANKED: Final = 15  # maximum number of listed proxies, and of listed slow accounts
NOT_PATCHED: Final = "(state IN ('failed', 'unknown') OR state = 'skipped' AND error_type IS NOT NULL)"
"""SQL condition for the accounts to list. Accounts that were not sent before the run ended are not listed."""

_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
_DAY: Final = 86_400


@frozen
class Bar:
    """The number of accounts that were completed in one state during one time step."""

    start: float  # Unix time
    state: State
    accounts: int


@frozen
class Latency:
    """The distribution of the seconds per account, including backoff, rounded to three digits."""

    p50: float
    p95: float
    longest: float
    buckets: list[tuple[float, float, int]]  # lower edge, upper edge, number of accounts


@frozen
class ProxyCount:
    proxy: str
    accounts: int  # number of accounts whose last proxy it was
    not_patched: int  # how many of these accounts were not patched, for any reason
    failures: int  # number of accounts for which it failed; most of them then got another proxy
    quarantined: bool


@frozen(kw_only=True)
class Findings:
    statistics: Statistics
    requests: int  # number in all runs, without those that a killed run did not record
    bars: list[Bar]  # accounts over time
    step: float  # width of a bar in seconds
    latency: Latency | None  # None if nothing was sent
    proxies: list[ProxyCount]  # by descending number of failures
    more_proxies: int  # number of further proxies with failures
    slowest: list[Outcome]  # by descending duration
    not_patched: int  # number of accounts to list; the page may not have space for all of them


# A damaged journal may have an infinite time.
_ELAPSED: Final = f"SELECT elapsed FROM latest WHERE {SENT} AND elapsed < 1e9"  # noqa: S608
_SLOWEST: Final = f"SELECT * FROM latest WHERE {SENT} ORDER BY elapsed DESC LIMIT ?"  # noqa: S608
_SPAN: Final = f"SELECT coalesce(min(settled_at), 0), coalesce(max(settled_at), 0) FROM latest WHERE {SENT}"  # noqa: S608
_TOTALS: Final = f"SELECT coalesce(sum(attempts), 0), count(*) FILTER (WHERE {NOT_PATCHED}) FROM latest"  # noqa: S608
_BARS: Final = f"""
    SELECT CAST((settled_at - :start) / :step AS INTEGER) AS bar, state, count(*) FROM latest
    WHERE {SENT} GROUP BY bar, state ORDER BY bar
"""  # noqa: S608
_PROXIES: Final = f"""
    WITH ended AS (
        SELECT assignment AS proxy, count(*) AS accounts,
            count(*) FILTER (WHERE {NOT_PATCHED}) AS not_patched,
            count(*) FILTER (WHERE scope = 'proxy') AS last_failures
        FROM latest WHERE assignment IS NOT NULL GROUP BY assignment
    ), failing AS (SELECT proxy FROM ended WHERE last_failures > 0 UNION SELECT label FROM proxies)
    SELECT failing.proxy, coalesce(accounts, 0), coalesce(not_patched, 0) AS not_patched,
        coalesce(failures, last_failures, 0) AS failed, quarantined_at IS NOT NULL AS quarantined,
        count(*) OVER () AS total
    FROM failing LEFT JOIN ended USING (proxy) LEFT JOIN proxies ON label = failing.proxy
    ORDER BY failed DESC, not_patched DESC, quarantined DESC, as_counted(failing.proxy) LIMIT ?
"""  # noqa: S608


def find(view: JournalReader, stage: Stage, now: float) -> Findings:
    """
    Read the journal at Unix time *now*; *stage* is the result of `stage_of`.

    Call it within `JournalReader.at_one_moment`, so that the counts are consistent.
    """
    start, step = view.read(_time_axis, _SPAN)
    proxies, more_proxies = view.read(_proxies, _PROXIES, RANKED)
    [(requests, not_patched)] = view.ask(_TOTALS)
    return Findings(
        statistics=collect_statistics(view, stage, now),
        requests=requests,
        bars=view.read(
            lambda rows: [Bar(start + bar * step, State(state), accounts) for bar, state, accounts in rows],
            _BARS,
            {"start": start, "step": step},
        ),
        step=step,
        latency=_latency(elapsed for (elapsed,) in view.stream(_ELAPSED)),
        proxies=proxies,
        more_proxies=more_proxies,
        slowest=[view.outcome(row) for row in view.ask(_SLOWEST, RANKED)],
        not_patched=not_patched,
    )


def _time_axis(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """The start and the width of the first bar."""
    [(first, last)] = rows
    if not 0 <= first <= last <= LATEST:
        raise ValueError("an invalid time")
    span = last - first
    step = next((step for step in _STEPS if span / step < BARS), _DAY * (1 + span // (BARS * _DAY)))
    return first // step * step, step  # aligned with full minutes or hours


def _latency(seconds: Iterable[float]) -> Latency | None:
    # Rounding to three digits limits the number of distinct values to a few thousand.
    counted = sorted(Counter(float(f"{max(0.001, elapsed):.3g}") for elapsed in seconds).items())
    if not counted:
        return None
    values = [elapsed for elapsed, _ in counted]
    totals = list(accumulate(accounts for _, accounts in counted))
    p50, p95 = (values[bisect_left(totals, share * totals[-1])] for share in (0.50, 0.95))
    buckets: Counter[int] = Counter()  # ten for each power of ten
    for elapsed, accounts in counted:
        # The small term keeps a time at the edge of a bucket in this bucket, despite rounding errors.
        buckets[floor(log10(elapsed) * 10 + 1e-9)] += accounts
    edges = [(10 ** (n / 10), 10 ** ((n + 1) / 10), accounts) for n, accounts in buckets.items()]
    return Latency(p50, p95, values[-1], edges)


def _proxies(rows: list[tuple[str, int, int, int, int, int]]) -> tuple[list[ProxyCount], int]:
    proxies = [
        ProxyCount(printable(proxy), accounts, not_patched, failures, bool(quarantined))
        for proxy, accounts, not_patched, failures, quarantined, _ in rows
    ]
    total = rows[0][-1] if rows else 0  # every row has the total
    return proxies, total - len(rows)
