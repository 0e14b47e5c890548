"""Progress of a rotation on standard error: a bar on a terminal, otherwise a line from time to time."""

import asyncio
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final, Protocol, Self

import rich.progress
from rich.console import Console, Group, RenderableType
from rich.text import Text

from postpress_async._cli.output import counted, write_stderr
from postpress_async.rotation import Outcome, Rotation, State
from postpress_async.session import PostPressSession

_REDRAW_INTERVAL: Final = 0.1  # seconds

_MAX_LATENCIES: Final = 2_000  # of the latest accounts, for the percentiles

_RATE_WINDOW: Final = 10.0  # seconds


class Sender(Protocol):
    """The part of a session or cluster that the progress display needs."""

    @property
    def paused(self) -> bool:
        """Whether all calls wait because the service is down."""
        ...


class ProgressStats:
    """Statistics of a running rotation of *total* accounts, including invalid rows."""

    def __init__(self, total: int, rotation: Rotation, sender: Sender) -> None:
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
        """Accounts completed per second over the last 10 s, without skipped ones."""
        now = time.monotonic()
        completed = self.completed - self._rotation.summary.states[State.SKIPPED]
        self._samples.append((now, completed))
        # Keep one sample from before the window.
        while len(self._samples) > 2 and now - self._samples[1][0] > _RATE_WINDOW:
            self._samples.popleft()
        since, before = self._samples[0]
        return (completed - before) / (now - since) if now > since else 0.0

    def counts(self) -> str:
        """Accounts by state, accounts being retried, and quarantined proxies."""
        summary, rotation = self._rotation.summary, self._rotation
        words = [f"{summary.states[state]:,} {state}" for state in State if summary.states[state]]
        if rotation.retrying:
            words.append(f"{rotation.retrying:,} retrying")
        if summary.quarantined:
            words.append(f"{counted(summary.quarantined, 'proxy', 'proxies')} quarantined")
        return ", ".join(words)

    def pace(self) -> str:
        """Rate, latency, time that accounts wait for the limits, and time left."""
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
            words.append(f"{_clock((self.total - self.completed) / rate)} left")
        if self._sender.paused:
            words.append("PAUSED: the service is down")
        if self._rotation.proxies_failing:
            words.append("PAUSED: most proxies fail")
        return ", ".join(words)


class Progress:
    """Shows the progress of *rotation*, which has *total* accounts, during the block."""

    def __init__(self, total: int, rotation: Rotation, sender: Sender) -> None:
        stats = ProgressStats(total, rotation, sender)
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._display: Final = _Bar(stats) if is_terminal else _Lines(stats)
        self._timer: asyncio.TimerHandle | None = None
        self.update: Final = stats.add
        """Record a completed account, without redrawing."""

    def __enter__(self) -> Self:
        self._tick()
        return self

    def _tick(self) -> None:
        # On a timer rather than in `update`, because it must also show an outage, in which no account is
        # completed.
        self._display.show()
        self._timer = asyncio.get_running_loop().call_later(_REDRAW_INTERVAL, self._tick)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._display.show()
        self._display.stop()


class _Bar:
    """A progress bar drawn by rich, which prints other output above it."""

    def __init__(self, stats: ProgressStats) -> None:
        self._stats = stats
        self._progress = _ThreeLines(
            stats,
            rich.progress.BarColumn(bar_width=None),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            expand=True,
            auto_refresh=False,  # rich would refresh in a thread, while the statistics change
        )
        self._task = self._progress.add_task("", total=stats.total)

    def show(self) -> None:
        with suppress(OSError):
            self._progress.start()
            self._progress.update(self._task, completed=self._stats.completed, refresh=True)

    def stop(self) -> None:
        with suppress(OSError):
            self._progress.stop()


class _ThreeLines(rich.progress.Progress):
    """The bar with two lines of statistics below it."""

    def __init__(self, stats: ProgressStats, *columns: rich.progress.ProgressColumn, **options: Any) -> None:
        self._stats = stats
        super().__init__(*columns, **options)

    def get_renderable(self) -> RenderableType:
        return Group(*self.get_renderables(), Text(self._stats.counts()), Text(self._stats.pace()))


class _Lines:
    """Writes a line after each tenth of the accounts, and at least once a minute."""

    def __init__(self, stats: ProgressStats) -> None:
        self._stats = stats
        self._tenths = 0
        self._written_at = time.monotonic()

    def show(self) -> None:
        total, completed = self._stats.total, self._stats.completed
        tenths, now = 10 * completed // max(1, total), time.monotonic()
        if tenths > self._tenths or now - self._written_at > 60:
            self._tenths, self._written_at = tenths, now
            details = ", ".join(filter(None, (self._stats.counts(), self._stats.pace())))
            write_stderr(f"{completed:,} of {total:,}: {details}")

    def stop(self) -> None:
        pass


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
