"""The figures that the progress of a rotation shows."""

from types import SimpleNamespace
from typing import Any

import pytest

from postpress_async._cli import progress
from postpress_async._cli.progress import ProgressStats
from postpress_async.rotation import RotationSummary, State


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_rows_that_are_skipped_at_a_stop_do_not_raise_the_rate(clock: SimpleNamespace) -> None:
    """At --rate 20, a run that was stopped showed 53 accounts per second."""
    rotation: Any = SimpleNamespace(summary=RotationSummary(), retrying=0, proxies_failing=False)
    stats = ProgressStats(1_000, rotation, SimpleNamespace(paused=False))
    stats.rate()
    rotation.summary.states[State.PATCHED] = 60
    rotation.summary.states[State.SKIPPED] = 940
    clock.now += 3.0

    assert stats.rate() == 20.0
    assert stats.completed == 1_000
