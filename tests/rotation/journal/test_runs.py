"""When a run of a journal is complete, and the next one starts."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from postpress_async import ManagedProxy, PostPressSession
from postpress_async.rotation._input import RotationInput
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Sandbox
from tests.support.journals import killed

CHANGES = [(f"acc_{number}", ManagedProxy(country="US")) for number in range(5)]
DAY = 86_400.0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def rotate(sandbox: Sandbox, journal: Path, changes: object = CHANGES, **options: object) -> int:
    """Rotate, and return how many requests the sandbox received."""
    before = sandbox.record.requests
    async with PostPressSession(sandbox.api_key, base_url=sandbox.url) as session:
        async with session.rotate(changes, journal=journal, **options) as rotation:  # type: ignore[arg-type]
            await rotation.run()
    return sandbox.record.requests - before


def facts(journal: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(journal)) as connection:
        return connection.execute("SELECT state, total FROM runs ORDER BY id").fetchall()


@pytest.mark.parametrize("state", ["interrupted", "halted", "running"])
async def test_run_that_ended_with_its_last_account_does_not_delay_the_next(sandbox, journal, state) -> None:
    """The run was stopped or killed after its last account, so nothing is left to resume."""
    await rotate(sandbox, journal)
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET state = ?, began = began - ?", (state, DAY))

    assert await rotate(sandbox, journal, every=20 * 3600.0) == len(CHANGES)
    assert [state for state, _ in facts(journal)][1:] == ["complete"]


async def test_run_that_ended_with_its_last_account_is_left_alone_until_then(sandbox, journal) -> None:
    await rotate(sandbox, journal)
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET state = 'interrupted'")

    assert await rotate(sandbox, journal, every=20 * 3600.0) == 0


async def test_total_is_on_disk_before_appended_pairs_are_sent(sandbox, journal) -> None:
    """Otherwise a run that was killed early would hide accounts that it may have sent."""
    await rotate(sandbox, journal, CHANGES[:3])
    appended = RotationInput.of(CHANGES, pooled=False)
    open_journal = appended.journal_opener(journal, target="", on_unknown="retry", on_failed="report")
    assert open_journal is not None
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET target = ''")
    opened = await open_journal()

    assert facts(killed(journal)) == [("running", 5)]
    await opened.aclose()


async def test_another_list_after_a_run_that_sent_nothing_has_its_own_total(sandbox, journal) -> None:
    """Counted with the rows of the list before it, the run would never be complete."""
    opened = Journal.open(journal, by_row=True, total=9)
    again = killed(journal)
    await opened.aclose()

    await rotate(sandbox, again)

    assert facts(again) == [("complete", 5)]


async def test_other_pairs_do_not_change_a_run_that_is_left_alone(sandbox, journal) -> None:
    """Counted with rows that it never had, the run would not be complete, and the next one not due."""
    await rotate(sandbox, journal, CHANGES[:3])

    assert await rotate(sandbox, journal, every=20 * 3600.0) == 0
    assert await rotate(sandbox, journal, CHANGES[::-1], every=20 * 3600.0) == 0
    assert facts(journal) == [("complete", 3)]
