"""How far a rotation is: a bar on a terminal, a line now and then in a pipe; always on standard error."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import click
import rich.progress
from rich.console import Console

from postpress_async.rotation import RotationSummary, State

REDRAW: Final = 0.1
"""Seconds between two looks at the numbers: no eye is quicker, and a rotation settles thousands a second."""


class Progress:
    """Shows the numbers of *summary* until all *total* accounts are settled."""

    def __init__(self, total: int, summary: RotationSummary) -> None:
        self._total = total
        self._summary = summary
        self._bar: _Bar | _Lines = _Bar(total) if _is_terminal() else _Lines(total)
        self._due = 0.0

    def update(self) -> None:
        """Note that the numbers have changed; cheap enough to be called for each account."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + REDRAW
            self._bar.show(self._summary)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.show(self._summary)
        self._bar.stop()


class _Bar:
    def __init__(self, total: int) -> None:
        self._progress = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[told]}"),
            rich.progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total, told="")

    def start(self) -> None:
        self._progress.start()

    def show(self, summary: RotationSummary) -> None:
        self._progress.update(self._task, completed=summary.total, told=_told(summary))

    def stop(self) -> None:
        self._progress.stop()


class _Lines:
    """At each tenth of the way."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._tenths = 0

    def start(self) -> None:
        pass

    def show(self, summary: RotationSummary) -> None:
        tenths = 10 * summary.total // max(1, self._total)
        if tenths > self._tenths:
            self._tenths = tenths
            with suppress(OSError):  # nobody may read it any more; the rotation goes on
                click.echo(f"{summary.total:,} of {self._total:,}: {_told(summary)}", err=True)

    def stop(self) -> None:
        pass


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _told(summary: RotationSummary) -> str:
    told = [f"{summary.states[state]:,} {state}" for state in State if summary.states[state]]
    return ", ".join(told)
