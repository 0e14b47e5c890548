"""The journal's file: locked under every name, whole or refused, and what happens if it cannot be written."""

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
from postpress_async.rotation._outcome import patched_outcome
from postpress_async.rotation.journal import Journal, _writer
from postpress_async.rotation.journal._reading import JournalReader
from tests.support.journals import RunProcess, outcome, recorded_states

US = ManagedProxy(country="US")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def opened_elsewhere(path: Path) -> str:
    """The error of another process that opens the journal at *path* for a run."""
    code = f"from postpress_async.rotation.journal import Journal; Journal.open({str(path)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


async def record(journal: Journal, count: int, first: int = 0) -> None:
    """Have *count* accounts recorded, and return when they are on the disk."""
    for ordinal in range(first, first + count):
        journal.record(outcome(ordinal))
    if count:
        await journal._writer.committed()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


# --- The lock ---


@pytest.mark.slow
async def test_second_run_under_another_name_is_refused(path, tmp_path) -> None:
    """Two runs under two hard links would write two logs for one file, and damage it."""
    journal = Journal.open(path)
    other = tmp_path / "other.sqlite3"
    other.hardlink_to(path)

    assert "JournalNotWritableError: " in opened_elsewhere(other)
    assert f"{other} is in use by another run" in opened_elsewhere(other)
    with pytest.raises(JournalNotWritableError, match="in use by another run"):
        Journal.open(other)
    await journal.aclose()


@pytest.mark.slow
async def test_lock_does_not_depend_on_a_file_beside_the_journal(path, tmp_path) -> None:
    journal = Journal.open(path)
    for beside in set(tmp_path.iterdir()) - {path, Path(f"{path}-wal"), Path(f"{path}-shm")}:
        beside.unlink()

    assert "in use by another run" in opened_elsewhere(path)
    await journal.aclose()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks that outlive another descriptor")
async def test_lock_outlives_a_copy_that_the_program_makes_of_its_journal(path, tmp_path) -> None:
    """Closing a file releases the process's POSIX locks on it."""
    journal = Journal.open(path)
    shutil.copyfile(path, tmp_path / "backup")

    assert "in use by another run" in opened_elsewhere(path)
    await journal.aclose()


async def test_lock_is_released_when_the_journal_is_closed_and_a_view_of_it_is_open(path) -> None:
    journal = Journal.open(path)
    with JournalReader(path) as view:
        assert view.is_written()
        await journal.aclose()

        assert not view.is_written()
        await Journal.open(path).aclose()


_FORKS = """
import os, sys, time
from postpress_async.rotation.journal import Journal
Journal.open(sys.argv[1])
if (child := os.fork()) == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_forked_child_does_not_hold_the_lock_of_its_dead_parent(path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _FORKS, str(path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait()
    try:
        assert opened_elsewhere(path) == ""
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


async def test_journal_with_two_names_is_refused(path, tmp_path) -> None:
    """The -wal is beside one name, so a run that uses the other name would miss it."""
    await Journal.open(path).aclose()
    (tmp_path / "other.sqlite3").hardlink_to(path)

    with pytest.raises(
        JournalError, match=r"run\.sqlite3 is one of 2 names .* Delete the names that have no -wal"
    ):
        Journal.open(path)


@pytest.mark.slow
def test_run_killed_under_one_name_is_not_resumed_under_another(path, tmp_path) -> None:
    other = tmp_path / "other.sqlite3"
    with RunProcess(path):
        other.hardlink_to(path)
    path.unlink()

    with pytest.raises(JournalError, match=r"other\.sqlite3 is incomplete: other\.sqlite3-wal is missing"):
        Journal.open(other)


# --- A file without its -wal ---


@pytest.mark.parametrize("recorded", [0, 20])
async def test_file_copied_without_its_log_is_refused(path, tmp_path, recorded) -> None:
    """From the first request on: the file alone would be taken for a new journal, or for an older state."""
    journal = Journal.open(path)
    await record(journal, recorded)
    copy = tmp_path / "copy.sqlite3"
    shutil.copyfile(path, copy)
    await journal.aclose()

    for open_it in (Journal.open, JournalReader):
        with pytest.raises(JournalError, match=r"copy\.sqlite3-wal is missing.* Put it back"):
            open_it(copy)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.sqlite3", "run.sqlite3"]


@pytest.mark.slow
async def test_empty_log_in_place_of_a_lost_one_leaves_each_account_in_doubt(path) -> None:
    """The way out that the refusal names."""
    with RunProcess(path):
        pass
    path.with_name("run.sqlite3-wal").write_bytes(b"")

    for _ in range(2):  # and it is needed once only
        journal = Journal.open(path)
        assert journal.in_doubt_below == float("inf")
        await journal.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("log", [b"", b"not a log of SQLite's" * 10], ids=["empty", "another file's"])
async def test_rows_that_were_skipped_before_a_lost_log_are_in_doubt_under_their_keys(path, log) -> None:
    """The lost commits may say that they were sent since; a renewed key would order a second proxy."""
    journal = Journal.open(path)
    for ordinal in range(100):  # more than the watermark of a run covers at first
        journal.record(outcome(ordinal, State.SKIPPED, attempts=ordinal % 2))
    await journal.aclose()
    with RunProcess(path):
        pass
    path.with_name("run.sqlite3-wal").write_bytes(log)
    path.with_name("run.sqlite3-shm").unlink()
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as file:
        keys_of_the_dead_run = file.execute("SELECT ordinal, generation FROM generations").fetchall()

    with pytest.raises(JournalError, match="is missing, or is not its own"):
        JournalReader(path)
    journal = Journal.open(path)

    assert recorded_states(journal) == {State.UNKNOWN: 100}
    assert [(ordinal, used) for ordinal, (used, _) in journal.generations()] == keys_of_the_dead_run
    await journal.aclose()


@pytest.mark.slow
async def test_killed_journal_that_another_program_folded_is_resumed(path) -> None:
    """The sqlite3 shell deletes the -wal of a dead run once all of it is in the file."""
    with RunProcess(path):
        pass
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("SELECT count(*) FROM outcomes").fetchone()
    assert not path.with_name("run.sqlite3-wal").exists()

    journal = Journal.open(path)
    assert recorded_states(journal) == {State.PATCHED: 20}
    await journal.aclose()


@pytest.mark.slow
async def test_killed_journal_that_was_refused_for_another_reason_is_resumed_later(path) -> None:
    """Any refusal, for example of another fleet, closes the database."""
    await Journal.open(path, digest=b"one input").aclose()
    with RunProcess(path):
        pass
    with pytest.raises(JournalError, match="another input"):
        Journal.open(path, digest=b"another")

    journal = Journal.open(path, digest=b"one input")
    assert recorded_states(journal) == {State.PATCHED: 20}
    await journal.aclose()


class Photographed(sqlite3.Connection):
    """Copies the journal before and after each statement: what a kill would leave at that moment."""

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
    Photographed.path, Photographed.copies = path, []
    with monkeypatch.context() as patched:
        patched.setattr("sqlite3.connect", partial(sqlite3.connect, factory=Photographed))
        yield Photographed.copies


@pytest.mark.slow
def test_journal_is_accepted_whenever_its_run_was_killed(path, tmp_path, copies, monkeypatch) -> None:
    """While it is made, opened again, folded in and closed: a refusal here would stop an honest night."""
    monkeypatch.setattr(_writer, "COMMITS_PER_CHECKPOINT", 2)

    async def run(first: int) -> None:
        journal = Journal.open(path)
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
        journal = Journal.open(killed)
        assert journal.in_doubt_below <= 64
        asyncio.run(journal.aclose())


async def test_log_is_checkpointed_at_intervals(path, tmp_path, monkeypatch) -> None:
    """The -wal stays small, and a lost one costs little."""
    monkeypatch.setattr(_writer, "COMMITS_PER_CHECKPOINT", 8)
    log, largest = path.with_name("run.sqlite3-wal"), 0
    journal = Journal.open(path)
    for group in range(64):
        await record(journal, 10, 10 * group)
        largest = max(largest, log.stat().st_size)

    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as alone:
        [(folded,)] = alone.execute("SELECT count(*) FROM outcomes")
    await journal.aclose()
    assert folded >= 640 - 80
    assert largest < 300_000


# --- A file that is deleted, or cannot be written ---


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_lost_journal_is_not_followed_by_the_advice_to_run_again(path, replaced) -> None:
    """The same command would begin a new journal, and order each managed proxy a second time."""
    journal = Journal.open(path)
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


async def test_journal_that_is_deleted_after_its_last_row_is_lost_too(path) -> None:
    journal = Journal.open(path)
    await record(journal, 3)
    path.unlink()

    with pytest.raises(JournalNotWritableError, match="the journal is lost, with the outcomes of 3 accounts"):
        await journal.aclose()


async def fail(journal: Journal, path: Path, count: int) -> str:
    """The message if the outcomes of *count* accounts cannot be recorded."""
    with closing(sqlite3.connect(path)) as breaker:
        breaker.execute("DROP TABLE outcomes")
    for ordinal in range(count):
        journal.record(outcome(ordinal))
    with pytest.raises(JournalNotWritableError) as caught:
        await journal.aclose()
    return str(caught.value)


async def test_accounts_that_could_not_be_recorded_are_all_listed_beside_the_journal(path) -> None:
    listed = path.with_name("run.sqlite3-unrecorded.txt")
    message = await fail(Journal.open(path), path, 40)

    assert "the outcome of 40 accounts could not be recorded (acc_000000, " in message
    assert f"and 35 more); all of them are listed in {listed}" in message
    assert listed.read_text().split() == [f"acc_{number:06}" for number in range(40)]
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600


async def test_accounts_are_named_in_the_message_if_they_cannot_be_listed(path, tmp_path) -> None:
    """The list is never written through a link."""
    target = tmp_path / "precious"
    target.write_text("kept")
    path.with_name("run.sqlite3-unrecorded.txt").symlink_to(target)

    message = await fail(Journal.open(path), path, 40)

    assert all(f"acc_{number:06}" in message for number in range(40))
    assert "there is no list of them: " in message
    assert target.read_text() == "kept"


async def test_commit_waits_30_seconds_for_another_program_that_writes(path) -> None:
    journal = Journal.open(path)
    [(milliseconds,)] = journal._writer._connection.execute("PRAGMA busy_timeout")
    await journal.aclose()

    assert milliseconds == 30_000


async def test_sending_pauses_while_another_program_holds_the_write_lock(path) -> None:
    """Sending continues afterwards; meanwhile few accounts are sent without being recorded."""
    sent: list[str] = []

    async def update(account_id: str, *_: object) -> AccountPatched:
        sent.append(account_id)
        await asyncio.sleep(0)
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))

    rows = (Row(ordinal, None, f"acc_{ordinal}", US) for ordinal in range(5_000))
    opener = partial(Journal.open, path, in_flight=20)
    other = sqlite3.connect(path, isolation_level=None)
    async with Rotation(update, rows, in_flight=20, finite=True, journal=opener) as rotation:
        under_way = asyncio.create_task(rotation.run())
        other.execute("BEGIN IMMEDIATE")
        before = -1
        while before != len(sent):  # nothing but the commit is waited for any more
            before = len(sent)
            for _ in range(100):
                await asyncio.sleep(0)
        held = len(sent)
        other.execute("COMMIT")
        await under_way
    other.close()

    assert held == 64  # the rows that the file had announced
    assert rotation.summary.patched == 5_000


# --- How much is sent and not recorded ---


@pytest.mark.parametrize(("in_flight", "together"), [(1, 16), (100, 50), (1_000, 500), (None, 1_000)])
async def test_commit_begins_when_half_of_what_is_in_flight_waits_for_it(
    path, monkeypatch, in_flight, together
) -> None:
    """And not only after a time that has nothing to do with the number of accounts in flight."""
    monkeypatch.setattr(_writer, "COMMIT_EVERY", 3_600.0)
    journal = Journal.open(path, in_flight=in_flight)
    view = JournalReader(path)
    for ordinal in range(together):
        journal.record(outcome(ordinal))

    await until(lambda: view.ask("SELECT count(*) FROM outcomes") == [(together,)])
    view.close()
    await journal.aclose()


async def test_commit_begins_at_once_if_it_is_waited_for(path, monkeypatch) -> None:
    monkeypatch.setattr(_writer, "COMMIT_EVERY", 3_600.0)
    journal = Journal.open(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))

    await asyncio.wait_for(journal.record_generation(0, 1), 10)

    await journal.aclose()


async def test_rotation_waits_for_a_disk_that_is_five_commits_behind(path, monkeypatch) -> None:
    journal = Journal.open(path, in_flight=100)
    monkeypatch.setattr(journal._writer, "_commit", lambda _: None)
    journal._writer._rows = [("", ())] * 250
    assert not journal._writer.is_behind

    journal._writer._rows = [("", ())] * 251

    assert journal._writer.is_behind
    journal._writer._rows = []
    await journal.aclose()
