"""The API key of a journal: all runs are of one workspace, and other keys are refused."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from postpress_async import CustomProxy, PostPressSession
from postpress_async.errors import JournalError
from postpress_async.rotation import State
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Sandbox
from postpress_async.secret import Secret
from tests.support.journals import outcome, write

CHANGES = {f"acc_{number}": CustomProxy(host="p.example.net", port=8080) for number in range(5)}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def rotate(sandbox: Sandbox, journal: Path, api_key: str, **options: object) -> int:
    """Rotate with this key, and return how many requests the sandbox received."""
    sandbox.server.api_key = api_key  # the key of a workspace, as the API sees it
    before = sandbox.record.requests
    async with PostPressSession(api_key, base_url=sandbox.url) as session:
        async with session.rotate(CHANGES, journal=journal, **options) as rotation:  # type: ignore[arg-type]
            await rotation.run()
    return sandbox.record.requests - before


@pytest.mark.parametrize("every", [None, 0.0], ids=["the same run", "a new run"])
async def test_another_key_is_refused_before_anything_is_sent(sandbox, journal, every) -> None:
    await rotate(sandbox, journal, "pp_workspace_one")
    before = sandbox.record.requests

    with pytest.raises(JournalError, match=r"another API key.*--accept-new-key"):
        await rotate(sandbox, journal, "pp_workspace_two", every=every)

    assert sandbox.record.requests == before


async def test_a_replaced_key_is_accepted_once(sandbox, journal) -> None:
    """Also while the next run is not due, and by all runs that follow."""
    await rotate(sandbox, journal, "pp_old")

    assert await rotate(sandbox, journal, "pp_new", accept_new_key=True, every=72_000.0) == 0
    assert await rotate(sandbox, journal, "pp_new", every=0.0) == len(CHANGES)
    assert await rotate(sandbox, journal, "pp_new") == 0
    with pytest.raises(JournalError, match="another API key"):
        await rotate(sandbox, journal, "pp_old", every=0.0)


async def test_right_key_after_a_wrong_one_needs_no_option(sandbox, journal) -> None:
    """With a wrong key nothing is patched, so the journal does not belong to it."""
    async with PostPressSession("pp_wrong", base_url=sandbox.url) as session:
        async with session.rotate(CHANGES, journal=journal) as rotation:
            await rotation.run()
    assert rotation.summary.key_refused

    assert await rotate(sandbox, journal, "pp_right") == len(CHANGES)


async def test_journal_without_a_key_accepts_the_next_one(sandbox, journal) -> None:
    """Earlier versions wrote such journals, and so do clusters whose workers have the key."""
    await rotate(sandbox, journal, "pp_one")
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET api_key = NULL")

    await rotate(sandbox, journal, "pp_two")

    with pytest.raises(JournalError, match="another API key"):
        await rotate(sandbox, journal, "pp_one")


async def test_journal_has_no_key_that_could_be_read_or_guessed_fast(journal) -> None:
    """The same key has another hash in each journal, and no bytes of it are in the file."""
    other = journal.with_name("other.sqlite3")
    hashes = []
    for path in (write(journal, [outcome(0)]), write(other, [outcome(0)])):
        await Journal.open(path, api_key=Secret("pp_live_0123456789")).aclose()
        with closing(sqlite3.connect(path)) as connection:
            hashes += connection.execute("SELECT api_key FROM runs").fetchone()
        assert b"pp_live" not in path.read_bytes()

    assert [len(value) for value in hashes] == [32, 32]
    assert hashes[0] != hashes[1]


async def test_wrong_new_key_is_detected_although_another_one_has_worked(sandbox, journal) -> None:
    """All of the few remaining accounts are refused, so the cause is the key."""
    await rotate(sandbox, journal, "pp_old", limit=2)
    sandbox.server.api_key = "pp_new"

    async with PostPressSession("pp_mistyped", base_url=sandbox.url) as session:
        async with session.rotate(CHANGES, journal=journal, accept_new_key=True) as rotation:
            await rotation.run()

    assert rotation.summary.key_refused
    assert +rotation.summary.states == {State.PATCHED: 2, State.SKIPPED: 3}
