"""The canary: which accounts go first, and what the journal records if the run ends during the canary."""

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async import Fleet, PostPressSession, events
from postpress_async.rotation import Halt, Rotation, State
from postpress_async.rotation._row_source import draw
from postpress_async.rotation.journal._database import FIRST_WATERMARK
from postpress_async.sandbox import Sandbox
from tests.support.rotations import query

ROWS = 1_000


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,country\n" + "".join(f"acc_{n},US\n" for n in range(ROWS)))
    return path


async def rotate(session: PostPressSession, path: Path, **options: Any) -> Rotation:
    with Fleet.open(path) as fleet:
        fleet.survey()
        async with session.rotate(fleet, **options) as rotation:
            await rotation.run()
    return rotation


def states(journal: Path) -> Counter[str]:
    return Counter(dict(query(journal, "SELECT state, count(*) FROM latest GROUP BY state")))


@settings(derandomize=True, deadline=None)
@given(
    count=st.integers(0, 30),
    done=st.lists(st.sampled_from([0, 1]), max_size=60).map(bytes),
    new_rows=st.integers(0, 10),
    seed=st.integers(0, 3),
)
def test_drawn_rows_are_distinct_and_not_done(count: int, done: bytes, new_rows: int, seed: int) -> None:
    total = len(done) + new_rows
    not_done = {n for n in range(total) if n >= len(done) or not done[n]}

    drawn = draw(count, total, done, seed)

    assert drawn == sorted(set(drawn) & not_done)
    assert len(drawn) == min(count, len(not_done))
    assert drawn == draw(count, total, done, seed)


def test_rows_are_drawn_evenly() -> None:
    """Even if only few rows of a large fleet are left to send."""
    done = bytes(0 if n % 100 == 7 else 1 for n in range(1_000_000))

    drawn = draw(1_000, 1_000_000, done, 1)

    assert all(n % 100 == 7 for n in drawn)
    tenths = Counter(n // 100_000 for n in drawn)
    assert all(60 < tenths[tenth] < 140 for tenth in range(10))


async def test_canary_is_drawn_from_the_whole_fleet(fleet: Path, tmp_path: Path) -> None:
    started: list[int] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.CallStarted):
            started.append(int(event.account_id.removeprefix("acc_")))

    async with Sandbox() as sandbox, sandbox.session(on_event=observe) as session:
        rotation = await rotate(session, fleet, journal=tmp_path / "j", halt=Halt(canary=50))

    canary, others = started[:50], started[50:]
    assert {n // 250 for n in canary} == {0, 1, 2, 3}  # it has rows from each quarter of the fleet
    assert sorted(others) == sorted(set(range(ROWS)) - set(canary))
    assert rotation.summary.complete
    assert rotation.summary.canary_passed
    assert states(tmp_path / "j") == {"patched": ROWS}


async def test_no_other_account_is_sent_after_a_failed_canary_and_the_next_run_sends_them(
    fleet: Path, tmp_path: Path
) -> None:
    async with Sandbox(accounts=[]) as sandbox, sandbox.session() as session:
        rotation = await rotate(session, fleet, journal=tmp_path / "j", halt=Halt(canary=20))

        assert "of the canary's 20 accounts failed" in (rotation.summary.halted or "")
        assert not rotation.summary.canary_passed
        assert sandbox.record.requests <= 20
        failed = rotation.summary.states[State.FAILED]
        assert states(tmp_path / "j") == {"failed": failed, "skipped": ROWS - failed}

    async with Sandbox() as sandbox, sandbox.session() as session:
        rotation = await rotate(session, fleet, journal=tmp_path / "j", halt=Halt(canary=20))

    assert sandbox.record.requests == ROWS - failed
    assert states(tmp_path / "j") == {"failed": failed, "patched": ROWS - failed}


async def test_only_the_canary_is_in_doubt_if_the_run_is_killed_during_the_canary(
    fleet: Path, tmp_path: Path
) -> None:
    """
    The rows of the canary are anywhere in the fleet, so a watermark alone would put all rows before them in
    doubt.
    """
    journal, copy = tmp_path / "j", tmp_path / "killed"
    async with Sandbox(latency=60.0) as sandbox, sandbox.session() as session:
        task = asyncio.create_task(
            rotate(session, fleet, journal=journal, halt=Halt(canary=20), in_flight=50)
        )
        while sandbox.record.requests < 20:
            await asyncio.sleep(0.01)
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{journal}{suffix}", f"{copy}{suffix}")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async with Sandbox() as sandbox, sandbox.session() as session:
        rotation = await rotate(session, fleet, journal=copy, on_unknown="report", halt=Halt(canary=20))

    # Besides the canary, the rows below the first watermark are in doubt, as after any kill.
    unknown = rotation.summary.states[State.UNKNOWN]
    assert 20 <= unknown <= 20 + FIRST_WATERMARK
    assert states(copy) == {"patched": ROWS - unknown, "unknown": unknown}


async def test_accounts_in_doubt_stay_in_doubt_if_the_canary_is_stopped(fleet: Path, tmp_path: Path) -> None:
    """An earlier run may have sent all accounts, so none of them may be recorded as skipped."""
    journal = tmp_path / "j"
    async with Sandbox() as sandbox, sandbox.session() as session:
        await rotate(session, fleet, journal=journal)
        query(journal, "UPDATE outcomes SET state = 'unknown', applied = 'unknown'")
        with Fleet.open(fleet) as opened:
            opened.survey()
            async with session.rotate(opened, journal=journal, halt=Halt(canary=20)) as rotation:
                rotation.stop()

    assert sandbox.record.requests == ROWS
    assert states(journal) == {"unknown": ROWS}


async def test_invalid_rows_in_the_canary_are_replaced_by_valid_rows(tmp_path: Path) -> None:
    """Every third row is invalid, and rows 60 to 119 are duplicates."""
    path = tmp_path / "fleet.csv"
    rows = [f"acc_{n % 60},{'US' if n % 3 else 'XX'}\n" for n in range(120)]
    path.write_text("account_id,country\n" + "".join(rows))
    async with Sandbox() as sandbox, sandbox.session() as session:
        rotation = await rotate(session, path, halt=Halt(canary=30))

    assert rotation.summary.canary_passed
    assert sandbox.record.sends("acc_1") == 1
    assert rotation.summary.states == {State.PATCHED: 40, State.SKIPPED: 80}
