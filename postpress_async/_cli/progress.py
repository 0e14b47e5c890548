"""Shows the progress of a rotation on standard error: a bar on a terminal, otherwise an occasional line."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.text import Text

from postpress_async._cli.terminal import by_state, write_stderr
from postpress_async._fields import counted
from postpress_async.rotation import Outcome, Rotation, State
from postpress_async.rotation.journal._times import duration
from postpress_async.session import PostPressSession

if TYPE_CHECKING:
    from postpress_async.cluster import Cluster

_REDRAW_INTERVAL: Final = 0.1  # seconds
_MAX_LINE_INTERVAL: Final = 60.0  # seconds
_MAX_LATENCIES: Final = 2_000  # the percentiles are those of the latest accounts
_RATE_WINDOW: Final = 10.0  # seconds


class ProgressStats:
    """Statistics of a running rotation of *total* accounts, including invalid rows."""

    def __init__(self, total: int, rotation: Rotation, sender: "PostPressSession | Cluster") -> None:
        self.total: Final = total
        self._rotation: Final = rotation
        self._sender: Final = sender
        self._latencies: Final[deque[float]] = deque(maxlen=_MAX_LATENCIES)
        self._samples: Final[deque[tuple[float, int]]] = deque()

    @property
    def completed(self) -> int:
        """Accounts completed in this run or before it."""
        return self._rotation.summary.total

    def add(self, outcome: Outcome) -> None:
        """Record the latency of a completed account, from its first attempt to its end."""
        if outcome.attempts:
            self._latencies.append(outcome.elapsed)

    def rate(self) -> float:
        """Accounts completed per second over the last 10 s; skipped accounts do not count."""
        now = time.monotonic()
        completed = self.completed - self._rotation.summary.states[State.SKIPPED]
        self._samples.append((now, completed))
        # Keep one sample that is older than the window.
        while len(self._samples) > 2 and now - self._samples[1][0] > _RATE_WINDOW:
            self._samples.popleft()
        first_at, first_completed = self._samples[0]
        return (completed - first_completed) / (now - first_at) if now > first_at else 0.0

    def counts(self) -> str:
        """The numbers of accounts in each state, of accounts being retried, and of quarantined proxies."""
        summary, retrying = self._rotation.summary, self._rotation.retrying
        words = [by_state(summary.states)]
        if retrying:
            words.append(f"{retrying:,} retrying")
        if summary.quarantined:
            words.append(f"{counted(summary.quarantined, 'proxy', 'proxies')} quarantined")
        return ", ".join(filter(None, words))

    def pace(self) -> str:
        """The rate, latency, waiting time and remaining time, and whether the run is paused."""
        words, rate = [], self.rate()
        if rate:
            words.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        if self._latencies:
            latencies = sorted(self._latencies)
            p50, p95 = (latencies[len(latencies) * percent // 100] for percent in (50, 95))
            words.append(f"p50 {_seconds(p50)} p95 {_seconds(p95)}")
        if rate and isinstance(self._sender, PostPressSession) and (waiting := self._sender.stats().waiting):
            # Little's law: the mean time that an account waits for the limits of the session.
            words.append(f"queued {_seconds(waiting / rate)}")
        if rate and self.completed < self.total:
            words.append(f"{duration(max(1.0, (self.total - self.completed) / rate))} left")
        if self._sender.paused:
            words.append("PAUSED: the service is down")
        if self._rotation.proxies_failing:
            words.append("PAUSED: most proxies fail")
        return ", ".join(words)


@contextmanager
def show_progress(stats: ProgressStats) -> Iterator[None]:
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    with _bar(stats) if is_terminal else nullcontext(_line_writer(stats)) as draw:
        # Draw in a task, not after each account: during an outage, no account is completed.
        redrawing = asyncio.create_task(_redraw(draw))
        try:
            yield
        finally:
            redrawing.cancel()
            draw()


async def _redraw(draw: Callable[[], None]) -> None:
    while True:
        draw()
        await asyncio.sleep(_REDRAW_INTERVAL)


@contextmanager
def _bar(stats: ProgressStats) -> Iterator[Callable[[], None]]:
    """Show a bar with two lines of statistics below; yield the function that redraws them."""
    bar = Progress(BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), expand=True)
    task = bar.add_task("", total=stats.total)
    # rich's automatic refresh runs in a thread, which would read the statistics while they change.
    live = Live(console=Console(stderr=True), auto_refresh=False)

    def draw() -> None:
        bar.update(task, completed=stats.completed)
        with suppress(OSError):
            live.start()
            live.update(Group(bar.get_renderable(), Text(stats.counts()), Text(stats.pace())), refresh=True)

    try:
        yield draw
    finally:
        with suppress(OSError):
            live.stop()


def _line_writer(stats: ProgressStats) -> Callable[[], None]:
    """Return a function that writes a line after each tenth of the accounts, and at least once a minute."""
    tenths, written_at = 0, time.monotonic()

    def draw() -> None:
        nonlocal tenths, written_at
        total, completed, now = stats.total, stats.completed, time.monotonic()
        completed_tenths = 10 * completed // max(1, total)
        if completed_tenths > tenths or now - written_at > _MAX_LINE_INTERVAL:
            tenths, written_at = completed_tenths, now
            details = ", ".join(filter(None, (stats.counts(), stats.pace())))
            write_stderr(f"{completed:,} of {total:,}: {details}")

    return draw


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
