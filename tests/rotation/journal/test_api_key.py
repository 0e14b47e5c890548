"""A journal belongs to one API key: other keys are refused unless `accept_new_key` is given."""

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
    """Rotate with this key, which the sandbox accepts, and return the number of requests it received."""
    sandbox.server.api_key = api_key
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


async def test_replaced_key_needs_the_option_once_and_the_old_key_is_then_refused(sandbox, journal) -> None:
    """The new key is recorded even if nothing is sent because the next run is not due."""
    await rotate(sandbox, journal, "pp_old")

    assert await rotate(sandbox, journal, "pp_new", accept_new_key=True, every=72_000.0) == 0
    assert await rotate(sandbox, journal, "pp_new", every=0.0) == len(CHANGES)
    assert await rotate(sandbox, journal, "pp_new") == 0
    with pytest.raises(JournalError, match="another API key"):
        await rotate(sandbox, journal, "pp_old", every=0.0)


async def test_right_key_after_a_wrong_one_needs_no_option(sandbox, journal) -> None:
    """The wrong key has patched no account, so the journal does not belong to it."""
    async with PostPressSession("pp_wrong", base_url=sandbox.url) as session:
        async with session.rotate(CHANGES, journal=journal) as rotation:
            await rotation.run()
    assert rotation.summary.key_refused

    assert await rotate(sandbox, journal, "pp_right") == len(CHANGES)


async def test_journal_without_a_recorded_key_belongs_to_the_next_key(sandbox, journal) -> None:
    """Earlier versions recorded no key. A cluster whose workers have the key does not record it either."""
    await rotate(sandbox, journal, "pp_one")
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE runs SET api_key = NULL")

    await rotate(sandbox, journal, "pp_two")

    with pytest.raises(JournalError, match="another API key"):
        await rotate(sandbox, journal, "pp_one")


async def test_journal_stores_only_a_salted_hash_of_the_key(journal) -> None:
    """Each journal has its own salt, so a list of hashed guesses would fit only one journal."""
    other = journal.with_name("other.sqlite3")
    hashes = []
    for path in (write(journal, [outcome(0)]), write(other, [outcome(0)])):
        await Journal(path, api_key=Secret("pp_live_0123456789")).aclose()
        with closing(sqlite3.connect(path)) as connection:
            [(stored_hash,)] = connection.execute("SELECT api_key FROM runs")
        hashes.append(stored_hash)
        assert b"pp_live" not in path.read_bytes()

    assert [len(value) for value in hashes] == [32, 32]
    assert hashes[0] != hashes[1]


async def test_wrong_new_key_is_detected_although_the_old_key_has_worked(sandbox, journal) -> None:
    """The few remaining accounts must not be recorded as failed: the run halts for the key."""
    await rotate(sandbox, journal, "pp_old", limit=2)
    sandbox.server.api_key = "pp_new"

    async with PostPressSession("pp_mistyped", base_url=sandbox.url) as session:
        async with session.rotate(CHANGES, journal=journal, accept_new_key=True) as rotation:
            await rotation.run()

    assert rotation.summary.key_refused
    assert rotation.summary.states == {State.PATCHED: 2, State.SKIPPED: 3, State.FAILED: 0}
