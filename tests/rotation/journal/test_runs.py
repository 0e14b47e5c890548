"""When a run is complete, and when the next run starts."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from postpress_async import ManagedProxy, PostPressSession
from postpress_async.rotation._input import RotationInput
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Sandbox
from tests.support.journals import crash_copy

CHANGES = [(f"acc_{number}", ManagedProxy(country="US")) for number in range(5)]
DAY = 86_400.0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def rotate(sandbox: Sandbox, journal: Path, changes: object = CHANGES, **options: object) -> int:
    """Rotate, and return the number of requests that the sandbox received."""
    before = sandbox.record.requests
    async with PostPressSession(sandbox.api_key, base_url=sandbox.url) as session:
        async with session.rotate(changes, journal=journal, **options) as rotation:  # type: ignore[arg-type]
            await rotation.run()
    return sandbox.record.requests - before


def states_and_totals(journal: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(journal)) as connection:
        return connection.execute("SELECT state, total FROM runs ORDER BY id").fetchall()


@pytest.mark.parametrize("state", ["interrupted", "halted", "running"])
async def test_run_stopped_after_its_last_account_counts_as_complete(sandbox, journal, state) -> None:
    """Nothing is left to resume, so the next run starts when it is due."""
    await rotate(sandbox, journal)
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET state = ?, began = began - ?", (state, DAY))

    assert await rotate(sandbox, journal, every=20 * 3600.0) == len(CHANGES)
    assert [state for state, _ in states_and_totals(journal)][1:] == ["complete"]


async def test_run_stopped_after_its_last_account_is_not_repeated_before_the_next_is_due(
    sandbox, journal
) -> None:
    await rotate(sandbox, journal)
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET state = 'interrupted'")

    assert await rotate(sandbox, journal, every=20 * 3600.0) == 0


async def test_total_is_on_disk_before_appended_pairs_are_sent(sandbox, journal) -> None:
    """Otherwise the journal of a run that is killed early would hide accounts that may have been sent."""
    await rotate(sandbox, journal, CHANGES[:3])
    appended = RotationInput.of(CHANGES, pooled=False)
    open_journal = appended.journal_opener(journal, target="", on_unknown="retry", on_failed="report")
    assert open_journal is not None
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET target = ''")
    opened = await open_journal()

    assert states_and_totals(crash_copy(journal)) == [("running", 5)]
    await opened.aclose()


async def test_shorter_input_after_a_run_that_sent_nothing_replaces_the_total(sandbox, journal) -> None:
    """With the larger total of the first input, the run would never be complete."""
    opened = Journal(journal, by_row=True, total=9)
    copy = crash_copy(journal)
    await opened.aclose()

    await rotate(sandbox, copy)

    assert states_and_totals(copy) == [("complete", 5)]


async def test_other_pairs_do_not_change_the_total_while_the_next_run_is_not_due(sandbox, journal) -> None:
    """With the total of other pairs, the complete run would look unfinished, and no run would become due."""
    await rotate(sandbox, journal, CHANGES[:3])

    assert await rotate(sandbox, journal, every=20 * 3600.0) == 0
    assert await rotate(sandbox, journal, CHANGES[::-1], every=20 * 3600.0) == 0
    assert states_and_totals(journal) == [("complete", 3)]
