"""The statistics in the progress display of a rotation."""

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


def test_rate_does_not_count_accounts_that_are_skipped_when_the_run_stops(clock: SimpleNamespace) -> None:
    rotation: Any = SimpleNamespace(summary=RotationSummary(), retrying=0, proxies_failing=False)
    session: Any = SimpleNamespace(paused=False)
    stats = ProgressStats(1_000, rotation, session)
    stats.rate()
    rotation.summary.states[State.PATCHED] = 60
    rotation.summary.states[State.SKIPPED] = 940
    clock.now += 3.0

    assert stats.rate() == 20.0
    assert stats.completed == 1_000
