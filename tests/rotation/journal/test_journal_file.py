"""The journal's file: its lock, a missing -wal, errors of writing, and the size of commits."""

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from postpress_async import AccountPatched, ManagedProxy, Rotation
from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.models import Attempt
from postpress_async.rotation import Row, State
from postpress_async.rotation.journal import Journal, _writer
from postpress_async.rotation.journal._database import FIRST_WATERMARK
from postpress_async.rotation.journal._reading import JournalReader
from tests.support.journals import RunProcess, outcome, patched_outcome, recorded_states

US = ManagedProxy(country="US")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def stderr_of_other_process(path: Path) -> str:
    """Open the journal at *path* in another process, and return that process's standard error."""
    code = f"from postpress_async.rotation.journal import Journal; Journal({str(path)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


async def record(journal: Journal, count: int, first: int = 0) -> None:
    """Record *count* accounts from ordinal *first*, and return when they are on disk."""
    for ordinal in range(first, first + count):
        journal.record(outcome(ordinal))
    if count:
        await journal._writer.committed()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


# --- The lock ---


@pytest.mark.slow
async def test_second_run_under_another_hard_link_is_refused(path, tmp_path) -> None:
    """Two runs under two hard links would write two -wal files for one database, and damage it."""
    journal = Journal(path)
    other = tmp_path / "other.sqlite3"
    other.hardlink_to(path)

    assert "JournalNotWritableError: " in stderr_of_other_process(other)
    assert f"{other} is in use by another run" in stderr_of_other_process(other)
    with pytest.raises(JournalNotWritableError, match="in use by another run"):
        Journal(other)
    await journal.aclose()


@pytest.mark.slow
async def test_lock_does_not_depend_on_a_file_beside_the_journal(path, tmp_path) -> None:
    journal = Journal(path)
    for beside in set(tmp_path.iterdir()) - {path, Path(f"{path}-wal"), Path(f"{path}-shm")}:
        beside.unlink()

    assert "in use by another run" in stderr_of_other_process(path)
    await journal.aclose()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has open file description locks")
async def test_lock_is_kept_if_the_program_copies_its_journal(path, tmp_path) -> None:
    """Copying closes a descriptor of the file, which would release a POSIX lock of this process."""
    journal = Journal(path)
    shutil.copyfile(path, tmp_path / "backup")

    assert "in use by another run" in stderr_of_other_process(path)
    await journal.aclose()


async def test_lock_is_released_when_the_journal_is_closed_although_a_reader_is_open(path) -> None:
    journal = Journal(path)
    with JournalReader(path) as view:
        assert view.is_written()
        await journal.aclose()

        assert not view.is_written()
        await Journal(path).aclose()


_FORKING_PROGRAM = """
import os, sys, time
from postpress_async.rotation.journal import Journal
Journal(sys.argv[1])
if (child := os.fork()) == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires os.fork")
def test_forked_child_does_not_hold_the_lock_of_its_dead_parent(path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _FORKING_PROGRAM, str(path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait()
    try:
        assert stderr_of_other_process(path) == ""
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


async def test_journal_with_two_names_is_refused(path, tmp_path) -> None:
    """The -wal is beside only one of the names, so a run that uses the other name would not find it."""
    await Journal(path).aclose()
    (tmp_path / "other.sqlite3").hardlink_to(path)

    with pytest.raises(
        JournalError, match=r"run\.sqlite3 is one of 2 names .* Delete the names that have no -wal"
    ):
        Journal(path)


@pytest.mark.slow
def test_run_killed_under_one_name_is_not_resumed_under_another(path, tmp_path) -> None:
    other = tmp_path / "other.sqlite3"
    with RunProcess(path):
        other.hardlink_to(path)
    path.unlink()

    with pytest.raises(JournalError, match=r"other\.sqlite3 is incomplete: other\.sqlite3-wal is missing"):
        Journal(other)


# --- A file without its -wal ---


@pytest.mark.parametrize("recorded", [0, 20])
async def test_file_copied_without_its_log_is_refused(path, tmp_path, recorded) -> None:
    """Without the -wal, SQLite would show an empty or an older journal."""
    journal = Journal(path)
    await record(journal, recorded)
    copy = tmp_path / "copy.sqlite3"
    shutil.copyfile(path, copy)
    await journal.aclose()

    for open_journal in (Journal, JournalReader):
        with pytest.raises(JournalError, match=r"copy\.sqlite3-wal is missing.* Put it back"):
            open_journal(copy)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.sqlite3", "run.sqlite3"]


@pytest.mark.slow
async def test_empty_log_in_place_of_a_lost_one_leaves_each_account_in_doubt(path) -> None:
    """The error for a missing -wal suggests this."""
    with RunProcess(path):
        pass
    path.with_name("run.sqlite3-wal").write_bytes(b"")

    for _ in range(2):  # the empty -wal need not be created again for the next run
        journal = Journal(path)
        assert journal.in_doubt_below == float("inf")
        await journal.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("log", [b"", b"not a log of SQLite's" * 10], ids=["empty", "another file's"])
async def test_skipped_accounts_are_in_doubt_and_keep_their_keys_if_the_log_is_lost(path, log) -> None:
    """The lost commits may have recorded that they were sent. A new key could order a second proxy."""
    journal = Journal(path)
    for ordinal in range(100):  # more than the first watermark
        journal.record(outcome(ordinal, State.SKIPPED, attempts=ordinal % 2))
    await journal.aclose()
    with RunProcess(path):
        pass
    path.with_name("run.sqlite3-wal").write_bytes(log)
    path.with_name("run.sqlite3-shm").unlink()
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as file:
        generations = file.execute("SELECT ordinal, generation FROM generations").fetchall()

    with pytest.raises(JournalError, match="is missing, or belongs to another journal"):
        JournalReader(path)
    journal = Journal(path)

    assert recorded_states(journal) == {State.UNKNOWN: 100}
    assert [(ordinal, used) for ordinal, (used, _) in journal.generations()] == generations
    await journal.aclose()


@pytest.mark.slow
async def test_run_is_resumed_after_another_program_merged_the_log_into_the_file(path) -> None:
    """The sqlite3 shell copies the -wal of a dead run into the file, and deletes it."""
    with RunProcess(path):
        pass
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("SELECT count(*) FROM outcomes").fetchone()
    assert not path.with_name("run.sqlite3-wal").exists()

    journal = Journal(path)
    assert recorded_states(journal) == {State.PATCHED: 20}
    await journal.aclose()


@pytest.mark.slow
async def test_killed_run_is_resumed_after_another_input_was_refused(path) -> None:
    """The refusal closes the database, which merges the -wal into the file."""
    await Journal(path, digest=b"one input").aclose()
    with RunProcess(path):
        pass
    with pytest.raises(JournalError, match="another input"):
        Journal(path, digest=b"another")

    journal = Journal(path, digest=b"one input")
    assert recorded_states(journal) == {State.PATCHED: 20}
    await journal.aclose()


class CopyingConnection(sqlite3.Connection):
    """Copies the journal's files before and after each statement, as a kill then would leave them."""

    path: Path
    copies: list[dict[str, bytes]]

    def execute(self, *words: Any) -> sqlite3.Cursor:
        self._copy()
        try:
            return super().execute(*words)
        finally:
            self._copy()

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        try:
            return super().executescript(script)
        finally:
            self._copy()

    @classmethod
    def _copy(cls) -> None:
        files = {end: Path(f"{cls.path}{end}") for end in ("", "-wal", "-journal")}
        cls.copies.append({end: file.read_bytes() for end, file in files.items() if file.exists()})


@pytest.fixture
def copies(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, bytes]]]:
    CopyingConnection.path, CopyingConnection.copies = path, []
    with monkeypatch.context() as patched:
        patched.setattr("sqlite3.connect", partial(sqlite3.connect, factory=CopyingConnection))
        yield CopyingConnection.copies


@pytest.mark.slow
def test_journal_can_be_opened_whenever_its_run_was_killed(path, tmp_path, copies, monkeypatch) -> None:
    """The kills happen while the journal is created, opened again, checkpointed and closed."""
    monkeypatch.setattr(_writer, "COMMITS_PER_CHECKPOINT", 2)

    async def run(first: int) -> None:
        journal = Journal(path)
        for group in range(first, first + 30, 10):
            await record(journal, 10, group)
        await journal.aclose()

    for first in (0, 30):
        asyncio.run(run(first))
    finished = list(copies)

    assert len(finished) > 100
    for number, copy in enumerate(finished):
        killed = tmp_path / f"killed-{number}.sqlite3"
        for end, content in copy.items():
            Path(f"{killed}{end}").write_bytes(content)
        journal = Journal(killed)
        assert journal.in_doubt_below <= FIRST_WATERMARK
        asyncio.run(journal.aclose())


async def test_log_is_checkpointed_at_intervals(path, monkeypatch) -> None:
    """The -wal stays small, and few outcomes are lost if it is lost."""
    monkeypatch.setattr(_writer, "COMMITS_PER_CHECKPOINT", 8)
    log, largest = path.with_name("run.sqlite3-wal"), 0
    journal = Journal(path)
    for group in range(64):
        await record(journal, 10, 10 * group)
        largest = max(largest, log.stat().st_size)

    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as file:
        [(checkpointed,)] = file.execute("SELECT count(*) FROM outcomes")
    await journal.aclose()
    assert checkpointed >= 64 * 10 - 8 * 10
    assert largest < 300_000


# --- A file that is deleted, or cannot be written ---


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_error_for_a_lost_journal_does_not_suggest_the_same_command(path, replaced) -> None:
    """The same command would create a new journal, and order each managed proxy a second time."""
    journal = Journal(path)
    await record(journal, 12)
    path.unlink()
    if replaced:
        path.touch()
    journal.record(outcome(12))

    with pytest.raises(JournalNotWritableError) as caught:
        await journal.aclose()
    message = str(caught.value)
    assert "so the journal is lost, with the outcomes of 12 accounts; the outcome of 1 account" in message
    assert "Before the next run, put the file and its -wal back" in message
    assert "run the same command again" not in message


async def test_journal_that_is_deleted_after_the_last_commit_is_reported_as_lost(path) -> None:
    journal = Journal(path)
    await record(journal, 3)
    path.unlink()

    with pytest.raises(JournalNotWritableError, match="the journal is lost, with the outcomes of 3 accounts"):
        await journal.aclose()


async def fail(journal: Journal, path: Path, count: int) -> str:
    """Make the commits of *count* outcomes fail, and return the message."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE outcomes")
    for ordinal in range(count):
        journal.record(outcome(ordinal))
    with pytest.raises(JournalNotWritableError) as caught:
        await journal.aclose()
    return str(caught.value)


async def test_accounts_that_could_not_be_recorded_are_all_listed_beside_the_journal(path) -> None:
    listed = path.with_name("run.sqlite3-unrecorded.txt")
    message = await fail(Journal(path), path, 40)

    assert "the outcome of 40 accounts could not be recorded (acc_000000, " in message
    assert f"and 35 more); all of them are listed in {listed}" in message
    assert listed.read_text().split() == [f"acc_{number:06}" for number in range(40)]
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600


async def test_all_accounts_are_in_the_message_if_the_list_cannot_be_written(path, tmp_path) -> None:
    """The list is never written through a symbolic link."""
    target = tmp_path / "precious"
    target.write_text("kept")
    path.with_name("run.sqlite3-unrecorded.txt").symlink_to(target)

    message = await fail(Journal(path), path, 40)

    assert all(f"acc_{number:06}" in message for number in range(40))
    assert "there is no list of them: " in message
    assert target.read_text() == "kept"


async def test_commit_waits_30_seconds_for_another_program_that_writes(path) -> None:
    journal = Journal(path)
    [(milliseconds,)] = journal._writer._connection.execute("PRAGMA busy_timeout")
    await journal.aclose()

    assert milliseconds == 30_000


async def test_sending_pauses_while_another_program_holds_the_write_lock(path) -> None:
    """The rotation sends only the accounts below the watermark on disk, and continues after the lock."""
    sent: list[str] = []

    async def update(account_id: str, *_: object) -> AccountPatched:
        sent.append(account_id)
        await asyncio.sleep(0)
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))

    rows = (Row(ordinal, None, f"acc_{ordinal}", US) for ordinal in range(5_000))
    opener = partial(Journal, path, in_flight=20)
    other = sqlite3.connect(path, isolation_level=None)
    async with Rotation(update, rows, in_flight=20, finite=True, journal=opener) as rotation:
        run = asyncio.create_task(rotation.run())
        other.execute("BEGIN IMMEDIATE")
        before = -1
        while before != len(sent):  # until the rotation only waits for the commit
            before = len(sent)
            for _ in range(100):
                await asyncio.sleep(0)
        sent_during_lock = len(sent)
        other.execute("COMMIT")
        await run
    other.close()

    assert sent_during_lock == FIRST_WATERMARK
    assert rotation.summary.patched == 5_000


# --- The size of commits ---


@pytest.mark.parametrize(("in_flight", "rows"), [(1, 16), (100, 50), (1_000, 500), (None, 1_000)])
async def test_commit_starts_when_half_as_many_rows_as_in_flight_wait(
    path, monkeypatch, in_flight, rows
) -> None:
    """It does not wait for `COMMIT_EVERY`, which this test sets to an hour."""
    monkeypatch.setattr(_writer, "COMMIT_EVERY", 3_600.0)
    journal = Journal(path, in_flight=in_flight)
    view = JournalReader(path)
    for ordinal in range(rows):
        journal.record(outcome(ordinal))

    await wait_until(lambda: view.ask("SELECT count(*) FROM outcomes") == [(rows,)])
    view.close()
    await journal.aclose()


async def test_commit_starts_at_once_if_a_task_waits_for_it(path, monkeypatch) -> None:
    monkeypatch.setattr(_writer, "COMMIT_EVERY", 3_600.0)
    journal = Journal(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))

    await asyncio.wait_for(journal.record_generation(0, 1), 10)

    await journal.aclose()


async def test_writer_is_behind_if_the_rows_of_five_commits_wait(path, monkeypatch) -> None:
    journal = Journal(path, in_flight=100)
    monkeypatch.setattr(journal._writer, "_commit", lambda _: None)
    journal._writer._rows = [("", ())] * 250
    assert not journal._writer.is_behind

    journal._writer._rows = [("", ())] * 251

    assert journal._writer.is_behind
    journal._writer._rows = []
    await journal.aclose()
