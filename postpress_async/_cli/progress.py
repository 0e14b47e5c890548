"""How far a rotation is: a bar on a terminal, a line now and then in a pipe; always on standard error."""

import asyncio
import sys
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Protocol, Self

import rich.progress
from rich.console import Console, Group, RenderableType
from rich.text import Text

from postpress_async._cli.output import tell
from postpress_async.rotation import Outcome, Rotation, State

REDRAW: Final = 0.1
"""Seconds between two looks at the numbers: no eye is quicker, and a rotation settles thousands a second."""

LATEST: Final = 2_000
"""Accounts, the latest settled ones, that the percentiles are of."""

RECENTLY: Final = 10.0
"""Seconds over which the rate is taken."""


class Paused(Protocol):
    """What is asked of a session."""

    @property
    def paused(self) -> bool:
        """Whether all calls pause."""
        ...


class Figures:
    """
    What is known of a rotation at a moment.

    Args:
        total: Accounts in all, refused rows included.
        rotation: Whose summary is read.
        session: Asked whether all calls pause.
    """

    def __init__(self, total: int, rotation: Rotation, session: Paused) -> None:
        self.total: Final = total
        self._rotation: Final = rotation
        self._session: Final = session
        self._elapsed: Final[deque[float]] = deque(maxlen=LATEST)
        self._marks: Final[deque[tuple[float, int]]] = deque()

    @property
    def done(self) -> int:
        """Accounts that are settled, in this run or before."""
        return self._rotation.summary.total

    def add(self, outcome: Outcome) -> None:
        """Count a settled account. Its latency counts if it was sent: from its first attempt to its end."""
        if outcome.attempts:
            self._elapsed.append(outcome.elapsed)

    def rate(self) -> float:
        """Accounts a second, over the last seconds."""
        now = time.monotonic()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] > RECENTLY:  # a pipe looks seldom
            self._marks.popleft()
        since, before = self._marks[0]
        return (self.done - before) / (now - since) if now > since else 0.0

    def counts(self) -> str:
        """Accounts by state, and what is under way."""
        summary, rotation = self._rotation.summary, self._rotation
        words = [f"{summary.states[state]:,} {state}" for state in State if summary.states[state]]
        if rotation.retrying:
            words.append(f"{rotation.retrying:,} retrying")
        if summary.quarantined:
            words.append(f"{summary.quarantined:,} proxies out")
        return ", ".join(words)

    def pace(self) -> str:
        """How fast, how long one takes, and how long yet."""
        words, rate = [], self.rate()
        if rate:
            words.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        if self._elapsed:
            slow = sorted(self._elapsed)
            half, most = slow[len(slow) // 2], slow[len(slow) * 95 // 100]
            words.append(f"p50 {_seconds(half)} p95 {_seconds(most)}")
        if rate and self.done < self.total:
            words.append(f"{_clock((self.total - self.done) / rate)} left")
        if self._session.paused:
            words.append("PAUSED: the service is out")
        return ", ".join(words)


class Progress:
    """Shows the figures of *rotation*, from the event loop, until all *total* accounts are settled."""

    def __init__(self, total: int, rotation: Rotation, session: Paused) -> None:
        self._figures: Final = Figures(total, rotation, session)
        self._shown: _Bar | _Lines = _Bar(self._figures) if _is_terminal() else _Lines(self._figures)
        self._timer: asyncio.TimerHandle | None = None
        self.update: Final = self._figures.add
        """Note that an account was settled; cheap enough to be called for each."""

    def __enter__(self) -> Self:
        self._shown.start()
        self._tick()
        return self

    def _tick(self) -> None:
        # By the clock and not by what settles: in an outage nothing does, and that is what is to be seen.
        self._shown.show()
        self._timer = asyncio.get_running_loop().call_later(REDRAW, self._tick)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._shown.show()
        self._shown.stop()


class _Bar:
    """Drawn by rich, which prints whatever else is written meanwhile above it."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._progress = _ThreeLines(
            figures,
            rich.progress.BarColumn(bar_width=None),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            expand=True,
            auto_refresh=False,  # rich would do so from a thread of its own, while the figures change
        )
        self._task = self._progress.add_task("", total=figures.total)

    def start(self) -> None:
        with suppress(OSError):
            self._progress.start()

    def show(self) -> None:
        with suppress(OSError):
            self._progress.update(self._task, completed=self._figures.done, refresh=True)

    def stop(self) -> None:
        with suppress(OSError):
            self._progress.stop()


class _ThreeLines(rich.progress.Progress):
    """The bar, and the figures below it, in lines that fit 80 columns."""

    def __init__(self, figures: Figures, *columns: rich.progress.ProgressColumn, **options: Any) -> None:
        self._figures = figures
        super().__init__(*columns, **options)

    def get_renderable(self) -> RenderableType:
        return Group(*self.get_renderables(), Text(self._figures.counts()), Text(self._figures.pace()))


class _Lines:
    """At each tenth of the way, and at least once a minute."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._tenths = 0
        self._told_at = time.monotonic()

    def start(self) -> None:
        pass

    def show(self) -> None:
        total, done = self._figures.total, self._figures.done
        tenths, now = 10 * done // max(1, total), time.monotonic()
        if tenths > self._tenths or now - self._told_at > 60:
            self._tenths, self._told_at = tenths, now
            told = ", ".join(filter(None, (self._figures.counts(), self._figures.pace())))
            tell(f"{done:,} of {total:,}: {told}")

    def stop(self) -> None:
        pass


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
