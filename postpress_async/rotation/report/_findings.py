"""The data of a report, read from a journal in one snapshot. Its size does not grow with the fleet."""

from collections import Counter
from collections.abc import Iterable
from math import floor, log10
from typing import Final

from attrs import frozen

from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation.journal._reading import JournalView, printable
from postpress_async.rotation.journal._statistics import SENT, Stage, Statistics, collect_statistics

BARS: Final = 96
"""Maximum number of bars in the chart over time."""
RANKED: Final = 15
"""Maximum number of listed proxies, and of listed slow accounts."""
NOT_PATCHED: Final = "(state IN ('failed', 'unknown') OR state = 'skipped' AND error_type IS NOT NULL)"
"""SQL condition for accounts that are listed. Accounts not sent before the run ended are only counted."""

_WIDTHS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
_DAY: Final = 86_400
_PER_DECADE: Final = 10  # bars of the latency distribution per factor of ten
_SHORTEST: Final = 0.001


@frozen
class Bar:
    """The number of accounts completed in one state during the time step that starts at Unix time *at*."""

    at: float
    state: State
    accounts: int


@frozen
class Latency:
    """
    The distribution of the seconds per account, from the first attempt to the end, including backoff.

    Attributes:
        p50: Median, to three digits.
        p95: 95th percentile, to three digits.
        longest: Maximum, to three digits.
        buckets: Lower edge, upper edge and number of accounts.
    """

    p50: float
    p95: float
    longest: float
    buckets: tuple[tuple[float, float, int], ...]


@frozen
class ProxyCount:
    """
    The counts of one proxy.

    Attributes:
        proxy: Label of the proxy.
        accounts: Accounts that had it as their last proxy.
        not_patched: Accounts among these that were not patched, for any reason.
        failures: Accounts for which it failed; most of them then got another proxy from the pool.
        quarantined: Whether the pool quarantined it.
    """

    proxy: str
    accounts: int
    not_patched: int
    failures: int
    quarantined: bool


@frozen(kw_only=True)
class Findings:
    """
    The content of the page.

    Attributes:
        numbers: The counts of the journal.
        requests: Requests of all runs, except those that a killed run did not record.
        bars: Accounts over time.
        step: Width of a bar in seconds.
        latency: None if nothing was sent.
        proxies: Proxies by descending number of failures.
        more_proxies: Number of further proxies with failures.
        slowest: Accounts by descending duration.
        not_patched: Number of accounts to list; the page may not have space for all of them.
    """

    numbers: Statistics
    requests: int
    bars: tuple[Bar, ...]
    step: float
    latency: Latency | None
    proxies: tuple[ProxyCount, ...]
    more_proxies: int
    slowest: tuple[Outcome, ...]
    not_patched: int


def find(view: JournalView, stage: Stage, now: float) -> Findings:
    """
    Read the journal at Unix time *now*; *stage* is the result of `stage_of`.

    Call it within `JournalView.at_one_moment`, so that the counts are consistent.

    Raises:
        JournalError: The journal is damaged.
    """
    numbers = collect_statistics(view, stage, now)
    first, last = view.read(_span, _SPAN)
    step = _step(first, last)
    proxies, more_proxies = _proxies(view)
    slowest = view.ask(f"SELECT * FROM latest WHERE {SENT} ORDER BY elapsed DESC LIMIT ?", RANKED)  # noqa: S608
    [(requests,)] = view.ask("SELECT coalesce(sum(attempts), 0) FROM latest")
    [(not_patched,)] = view.ask(f"SELECT count(*) FROM latest WHERE {NOT_PATCHED}")  # noqa: S608
    return Findings(
        numbers=numbers,
        requests=requests,
        bars=_bars(view, first, step),
        step=step,
        latency=_latency(elapsed for (elapsed,) in view.stream(_ELAPSED)),
        proxies=proxies,
        more_proxies=more_proxies,
        slowest=tuple(view.outcome(row) for row in slowest),
        not_patched=not_patched,
    )


_ELAPSED: Final = f"SELECT elapsed FROM latest WHERE {SENT} AND elapsed < 1e9"  # noqa: S608
_SPAN: Final = f"SELECT coalesce(min(settled_at), 0), coalesce(max(settled_at), 0) FROM latest WHERE {SENT}"  # noqa: S608
_BARS: Final = f"""
    SELECT CAST((settled_at - :start) / :step AS INTEGER) AS bar, state, count(*) FROM latest
    WHERE {SENT} GROUP BY bar, state ORDER BY bar
"""  # noqa: S608
_PROXIES: Final = f"""
    WITH ended AS (
        SELECT assignment AS proxy, count(*) AS accounts, count(*) FILTER (WHERE {NOT_PATCHED}) AS bad,
            count(*) FILTER (WHERE scope = 'proxy') AS own
        FROM latest WHERE assignment IS NOT NULL GROUP BY assignment
    ), named AS (SELECT proxy FROM ended WHERE own > 0 UNION SELECT label FROM proxies)
    SELECT named.proxy, coalesce(accounts, 0), coalesce(bad, 0) AS bad, coalesce(failures, own, 0) AS failed,
        quarantined_at IS NOT NULL AS out, count(*) OVER () AS every
    FROM named LEFT JOIN ended USING (proxy) LEFT JOIN proxies ON label = named.proxy
    ORDER BY failed DESC, bad DESC, out DESC, as_counted(named.proxy) LIMIT ?
"""  # noqa: S608


def _span(rows: list[tuple[float, float]]) -> tuple[float, float]:
    [(first, last)] = rows
    return float(first), float(last)


def _step(first: float, last: float) -> float:
    span = last - first
    for width in _WIDTHS:
        if span / width < BARS:
            return width
    return _DAY * (1 + span // (BARS * _DAY))


def _bars(view: JournalView, start: float, step: float) -> tuple[Bar, ...]:
    def read(rows: list[tuple[int, str, int]]) -> tuple[Bar, ...]:
        return tuple(Bar(start + number * step, State(state), accounts) for number, state, accounts in rows)

    # Align the bars with full minutes or hours.
    start = start // step * step
    return view.read(read, _BARS, {"start": start, "step": step})


def _latency(seconds: Iterable[float]) -> Latency | None:
    # Rounding to three digits limits the number of distinct values to a few thousand.
    counted = Counter(_three_digits(elapsed) for elapsed in seconds)
    if not counted:
        return None
    ordered = sorted(counted.items())
    buckets: Counter[int] = Counter()
    for elapsed, accounts in ordered:
        buckets[floor(log10(elapsed) * _PER_DECADE + 1e-9)] += accounts
    edges = ((10 ** (n / _PER_DECADE), 10 ** ((n + 1) / _PER_DECADE), buckets[n]) for n in sorted(buckets))
    return Latency(_percentile(ordered, 0.50), _percentile(ordered, 0.95), ordered[-1][0], tuple(edges))


def _three_digits(seconds: float) -> float:
    return float(f"{max(_SHORTEST, seconds):.3g}")


def _percentile(ordered: list[tuple[float, int]], share: float) -> float:
    left = share * sum(accounts for _, accounts in ordered)
    for value, accounts in ordered:
        left -= accounts
        if left <= 0:
            return value
    return ordered[-1][0]


def _proxies(view: JournalView) -> tuple[tuple[ProxyCount, ...], int]:
    def read(rows: list[tuple[str, int, int, int, int, int]]) -> tuple[tuple[ProxyCount, ...], int]:
        ranked = tuple(
            ProxyCount(printable(proxy), accounts, bad, failed, bool(out))
            for proxy, accounts, bad, failed, out, _ in rows
        )
        return ranked, rows[0][-1] - len(rows) if rows else 0

    return view.read(read, _PROXIES, RANKED)
