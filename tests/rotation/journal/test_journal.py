"""The journal: what is on disk, who may write it, and what happens if writing fails."""

import asyncio
import os
import sqlite3
import stat
import threading
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postpress_async import Outcome, errors
from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.rotation import State
from postpress_async.rotation._outcome import failed_outcome
from postpress_async.rotation.journal import Journal, row_of
from postpress_async.rotation.journal._writer import BACKLOG, MAX_ROWS
from tests.support.journals import patched_outcome, recorded_states


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def states(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    counts = dict(connection.execute("SELECT state, count(*) FROM outcomes GROUP BY state"))
    connection.close()
    return counts


def drop_outcomes(path: Path) -> None:
    """Make every later commit of an outcome fail."""
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE outcomes")
    connection.close()


async def test_closing_the_journal_writes_all_outcomes_to_the_disk(path) -> None:
    journal = Journal(path)
    for ordinal in range(500):
        journal.record(patched_outcome(ordinal, ordinal + 2, f"acc_{ordinal}", 1, 0.1))
    await journal.aclose()

    assert states(path) == {"patched": 500}
    assert not path.with_name("run.sqlite3-wal").exists()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 72, 73, 200])
async def test_any_number_of_rows_is_written_completely_and_in_order(path, count) -> None:
    """The writer splits the rows over INSERT statements of several sizes."""
    refused = errors.ApiError.of(400, errors.Problem("errors/invalid_parameters", instance="req_1"))
    written = [
        patched_outcome(ordinal, None, f"acc_{ordinal}", 1 + ordinal % 3, ordinal / 7, f"label {ordinal}")
        if ordinal % 3
        else failed_outcome(ordinal, ordinal + 2, f"acc_{ordinal}", refused, ordinal / 7)
        for ordinal in range(count)
    ]
    journal = Journal(path)
    for outcome in written:
        journal.record(outcome)
    await journal.aclose()

    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT * FROM latest ORDER BY ordinal").fetchall()
    connection.close()
    assert rows == list(map(row_of, written))


async def test_journal_can_be_read_while_a_run_writes_it(path) -> None:
    journal = Journal(path)
    journal.record(patched_outcome(0, 2, "acc_1", 1, 0.1))
    await journal.record_generation(0, 1)  # returns after the outcome is committed, too

    assert states(path) == {"patched": 1}
    await journal.aclose()


async def test_only_the_owner_can_read_the_file(path) -> None:
    await Journal(path).aclose()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_later_outcome_of_an_account_replaces_the_earlier_one(path) -> None:
    journal = Journal(path)
    journal.record(Outcome(0, None, "acc_1", State.SKIPPED, applied=errors.Applied.NO))
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await journal.aclose()

    assert states(path) == {"patched": 1}


async def test_attempts_of_an_account_add_up_each_time_the_run_is_resumed(path) -> None:
    for _ in range(2):
        journal = Journal(path)
        journal.record(
            Outcome(0, None, "acc_1", State.UNKNOWN, 1, applied=errors.Applied.UNKNOWN, elapsed=0.1)
        )
        await journal.aclose()
    journal = Journal(path)
    journal.record(patched_outcome(0, None, "acc_1", 3, 0.1))
    await journal.aclose()

    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT state, attempts, applied FROM outcomes"
        assert connection.execute(query).fetchall() == [("patched", 5, None)]


async def test_attempts_of_a_failed_account_that_is_sent_again_add_up(path) -> None:
    refused = errors.ApiError.of(400, errors.Problem("errors/invalid_parameters", instance="req_1"))
    journal = Journal(path)
    journal.record(failed_outcome(0, None, "acc_1", refused, 0.1, attempts=2))
    await journal.aclose()
    journal = Journal(path, on_failed="retry")
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await journal.aclose()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT attempts FROM outcomes").fetchall() == [(3,)]


async def test_token_entries_and_generations_are_read_when_the_run_is_resumed(path) -> None:
    journal = Journal(path)
    journal.record(patched_outcome(3, None, "acc_3", 1, 0.1))
    journal.record(Outcome(5, None, "acc_5", State.UNKNOWN, 1, applied=errors.Applied.UNKNOWN, elapsed=0.1))
    await journal.record_generation(5, 2)
    await journal.aclose()

    again = Journal(path)
    assert again.run == journal.run
    assert list(again.generations()) == [(5, (2, None))]
    done, in_doubt = ("acc_3", State.PATCHED, True, True), ("acc_5", State.UNKNOWN, True, False)
    assert [(n, entry[:4]) for n, entry in again.entries()] == [(3, done), (5, in_doubt)]
    assert [(n, entry[:4]) for n, entry in again.entries(skip_done=True)] == [(5, in_doubt)]
    assert again.done() == b"\0\0\0\1"
    assert recorded_states(again) == {State.PATCHED: 1, State.UNKNOWN: 1}
    await again.aclose()


async def test_shorter_input_does_not_reduce_the_recorded_total(path) -> None:
    """A wrong input is refused at its first row, after its total was recorded."""
    for total in (2000, 1000):
        journal = Journal(path)
        journal.record(patched_outcome(0, 2, "acc_0", 1, 0.1))
        journal.begin(total)
        await journal.aclose()

    connection = sqlite3.connect(path)
    assert connection.execute("SELECT total FROM runs").fetchone() == (2000,)
    connection.close()


async def test_error_for_a_locked_journal_does_not_suggest_another_journal(path, monkeypatch) -> None:
    """With another journal, a run would send the accounts that are recorded in this one again."""
    journal = Journal(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))
    await journal.aclose()
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))

    with pytest.raises(JournalNotWritableError) as caught:
        Journal(path)

    assert str(caught.value) == (
        f"{path} cannot be written (database is locked): fix that, then run the same command again"
    )
    lock.close()


async def test_total_is_recorded_when_the_journal_is_created_and_then_kept(path) -> None:
    """If the run is cancelled before it begins, `status` still shows the number of accounts."""
    await Journal(path, total=2000).aclose()
    await Journal(path, total=3000).aclose()  # refused later, when its rows are compared

    connection = sqlite3.connect(path)
    assert connection.execute("SELECT total FROM runs").fetchone() == (2000,)
    connection.close()


async def test_journal_that_another_run_has_open_is_refused(path) -> None:
    journal = Journal(path)
    with pytest.raises(JournalError, match="in use by another run"):
        Journal(path)
    await journal.aclose()
    await Journal(path).aclose()


async def test_journal_of_another_input_is_refused(path) -> None:
    await Journal(path, digest=b"one input").aclose()

    with pytest.raises(JournalError, match="belongs to another input"):
        Journal(path, digest=b"another")
    await Journal(path, digest=b"one input").aclose()


async def test_journal_without_a_target_gets_the_first_one_and_refuses_others_from_then_on(path) -> None:
    await Journal(path).aclose()
    await Journal(path, target="https://one.example").aclose()

    with pytest.raises(
        JournalError, match=r"to a rotation for https://one\.example, not for https://two\.example"
    ):
        Journal(path, target="https://two.example")


async def test_plain_digest_of_the_input_is_not_in_the_journal(path) -> None:
    """From the digest of a file with one row, the password in that row could be guessed."""
    await Journal(path, digest=b"the digest of a fleet").aclose()

    assert b"the digest of a fleet" not in path.read_bytes()


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        pytest.param(lambda path: path.write_text("account_id\nacc_1\n"), "not a database", id="a text file"),
        pytest.param(lambda path: path.mkdir(), "cannot be written", id="a directory"),
        pytest.param(lambda path: path.symlink_to("/dev/null"), "symbolic link", id="a symbolic link"),
        pytest.param(os.mkfifo, "not a regular file", id="a pipe"),
        pytest.param(
            lambda path: sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close(),
            "not a journal",
            id="another database",
        ),
    ],
)
def test_error_for_a_file_that_is_not_a_journal_says_why_and_what_to_do(path, make, fact) -> None:
    make(path)

    with pytest.raises(JournalError, match=fact) as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert "name another journal" in str(caught.value)


def test_missing_folder_is_refused(tmp_path) -> None:
    with pytest.raises(JournalError, match="is not a directory"):
        Journal(tmp_path / "nowhere" / "run.sqlite3")


async def test_outcome_queued_while_the_file_is_found_deleted_is_reported_as_lost(path, monkeypatch) -> None:
    """No further commit follows, so nothing else would report this outcome."""
    journal = Journal(path)
    check_started, outcome_is_queued = threading.Event(), threading.Event()

    def identity_of_deleted_file(_: Path) -> None:
        check_started.set()
        outcome_is_queued.wait()

    monkeypatch.setattr("postpress_async.rotation.journal._writer._identity", identity_of_deleted_file)
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await asyncio.to_thread(check_started.wait)
    journal.record(patched_outcome(1, None, "acc_2", 1, 0.1))
    outcome_is_queued.set()

    with pytest.raises(JournalNotWritableError, match=r"2 accounts could not be recorded \(acc_1, acc_2\)"):
        await journal.aclose()


async def test_failed_commit_is_reported_and_no_more_outcomes_are_accepted(path) -> None:
    """The rotation must stop, because it cannot record what it sends."""
    journal = Journal(path)
    drop_outcomes(path)
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))

    with pytest.raises(JournalNotWritableError, match=r"1 account could not be recorded \(acc_1\)"):
        await journal.record_generation(0, 1)
    with pytest.raises(JournalNotWritableError):
        journal.record(patched_outcome(1, None, "acc_2", 1, 0.1))
    with pytest.raises(JournalNotWritableError, match=r"2 accounts could not be recorded \(acc_1, acc_2\)"):
        await journal.aclose()
    await asyncio.to_thread(lambda: None)
    assert "postpress-journal" not in {thread.name for thread in threading.enumerate()}


async def test_full_disk_raises_an_error_and_keeps_the_outcomes_committed_before(path) -> None:
    """The error of SQLite also ends a wait for a commit."""
    journal = Journal(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))
    await journal.record_generation(0, 1)
    [(pages,)] = journal._writer._connection.execute("PRAGMA page_count")
    journal._writer._connection.execute(f"PRAGMA max_page_count = {pages}")

    async def fill() -> None:
        for ordinal in range(1, 2_000):  # on a slow machine, `record` may raise before the last one
            journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
        await journal.record_generation(1, 1)

    with pytest.raises(
        JournalNotWritableError, match=r"run\.sqlite3: database or disk is full; the outcome of "
    ):
        await asyncio.wait_for(fill(), 10)
    with pytest.raises(JournalNotWritableError, match=r"Free the disk .* run the same command again"):
        await journal.aclose()
    again = Journal(path)
    kept = sum(recorded_states(again).values())
    entries = [account for _, (account, *_) in again.entries()]
    await again.aclose()
    assert 1 <= kept < 2_000
    assert entries == [f"acc_{number}" for number in range(kept)]


async def test_writer_thread_survives_any_error_of_a_commit(path) -> None:
    """SQLite cannot store half of a surrogate pair, so Python raises an error that is not SQLite's."""
    journal = Journal(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1, "a label\ud800"))

    with pytest.raises(JournalNotWritableError, match=r"surrogates not allowed; .* recorded \(acc_0\)"):
        await asyncio.wait_for(journal.record_generation(0, 1), 10)
    with pytest.raises(JournalNotWritableError, match="surrogates not allowed"):
        await journal.aclose()
    assert states(path) == {}


async def test_journal_that_is_deleted_during_the_run_raises_an_error(path) -> None:
    """SQLite would still write to the deleted file, but nobody could read it."""
    journal = Journal(path)
    path.unlink()
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))

    with pytest.raises(JournalError, match="deleted or replaced"):
        await journal.aclose()


def test_existing_file_that_is_not_a_journal_is_not_changed(path) -> None:
    """The file may be the fleet, given by mistake."""
    path.write_bytes(b"a")

    with pytest.raises(JournalError, match="was not changed"):
        Journal(path)
    assert path.read_bytes() == b"a"
    assert os.listdir(path.parent) == [path.name]


async def test_backlog_of_uncommitted_outcomes_is_bounded_and_all_are_written(path) -> None:
    journal = Journal(path)
    longest = 0
    for ordinal in range(20_000):
        journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
        await journal.limit_backlog()
        longest = max(longest, len(journal._writer._rows))
    await journal.aclose()

    assert longest <= BACKLOG * MAX_ROWS
    assert states(path) == {"patched": 20_000}


@pytest.mark.slow
@settings(max_examples=60)
@given(cut=st.floats(0.0, 1.0), flip=st.booleans())
def test_damaged_journal_is_read_or_raises_a_journal_error(tmp_path_factory, cut, flip) -> None:
    """The file is cut off at any place, or any byte is changed."""
    path = tmp_path_factory.mktemp("damaged") / "run.sqlite3"

    async def write() -> None:
        journal = Journal(path, digest=b"input")
        for ordinal in range(50):
            journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
        await journal.aclose()

    async def read() -> list[str]:
        journal = Journal(path, digest=b"input")
        try:
            journal.done_counts()
            return [account for _, (account, *_) in journal.entries()]
        finally:
            await journal.aclose()

    asyncio.run(write())
    whole = path.read_bytes()
    offset = int(cut * (len(whole) - 1))
    path.write_bytes(
        whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :] if flip else whole[:offset]
    )
    with suppress(JournalError):
        accounts = asyncio.run(read())
        assert flip or set(accounts) <= {f"acc_{ordinal}" for ordinal in range(50)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[bytes, bytes]:
    """The contents of a journal and its -wal, as a killed run leaves them."""
    path = tmp_path_factory.mktemp("killed") / "run.sqlite3"

    async def main() -> tuple[bytes, bytes]:
        journal = Journal(path, digest=b"input")
        for ordinal in range(50):
            journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
            if ordinal % 10 == 9:
                await journal.record_generation(ordinal, 1)
        contents = path.read_bytes(), path.with_name("run.sqlite3-wal").read_bytes()
        await journal.aclose()
        return contents

    return asyncio.run(main())


@pytest.mark.slow
@settings(max_examples=60)
@given(cut=st.floats(0.0, 1.0), flip=st.booleans(), where=st.sampled_from(["", "-wal"]))
@example(cut=1.0, flip=False, where="-wal")
@example(cut=0.0, flip=False, where="-wal")
def test_damaged_journal_of_a_killed_run_is_recovered_or_raises_a_journal_error(
    tmp_path_factory, killed, cut, flip, where
) -> None:
    """Most outcomes may be in the -wal alone. All commits before the damage must be recovered from it."""
    path = tmp_path_factory.mktemp("left") / "run.sqlite3"
    path.write_bytes(killed[0])
    path.with_name("run.sqlite3-wal").write_bytes(killed[1])
    file = path.with_name(f"run.sqlite3{where}")
    whole = file.read_bytes()
    offset = int(cut * (len(whole) - flip))
    file.write_bytes(
        whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :] if flip else whole[:offset]
    )

    async def read() -> list[tuple[int, str, State]]:
        journal = Journal(path, digest=b"input")
        try:
            journal.done_counts()
            return [(ordinal, account, state) for ordinal, (account, state, *_) in journal.entries()]
        finally:
            await journal.aclose()

    message = ""
    entries: list[tuple[int, str, State]] = []
    try:
        entries = asyncio.run(read())
    except JournalError as error:
        message = str(error)
    if where == "-wal":  # unlike the file itself, it has checksums
        assert len(entries) == 50 or offset < len(whole)
        assert message == ""
        assert entries == [(n, f"acc_{n}", State.PATCHED) for n in range(len(entries))]
    assert not message or (str(path) in message and message.isprintable())


async def test_outcome_queued_during_a_commit_that_fails_is_reported_as_lost(path, monkeypatch) -> None:
    """A full disk may report its error late, while further responses arrive."""
    journal = Journal(path)
    drop_outcomes(path)
    commit = journal._writer._commit
    commit_started, outcome_is_queued = threading.Event(), threading.Event()

    def slow_commit(rows) -> None:
        commit_started.set()
        outcome_is_queued.wait(10)
        commit(rows)

    monkeypatch.setattr(journal._writer, "_commit", slow_commit)
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await asyncio.to_thread(commit_started.wait, 10)
    journal.record(patched_outcome(1, None, "acc_2", 1, 0.1))
    outcome_is_queued.set()

    with pytest.raises(JournalNotWritableError, match=r"2 accounts could not be recorded \(acc_1, acc_2\)"):
        await journal.aclose()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="requires /proc")
async def test_journal_that_is_refused_is_closed(path) -> None:
    await Journal(path).aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM runs")

    with pytest.raises(JournalError, match="is damaged") as error:
        Journal(path)

    open_files = set()
    for handle in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor with which `listdir` read the folder is closed again
            open_files.add(os.readlink(f"/proc/self/fd/{handle}"))
    assert open_files.isdisjoint({str(path), f"{path}-wal"})
    del error  # until here, its traceback kept the failed constructor's variables alive


async def test_counts_of_a_run_are_recorded_when_it_ends_and_removed_when_it_is_resumed(path) -> None:
    """With these counts, `history` need not read the outcomes of every run."""

    def counts() -> str | None:
        with closing(sqlite3.connect(path)) as connection:
            [(recorded,)] = connection.execute("SELECT counts FROM runs")
        return None if recorded is None else str(recorded)

    journal = Journal(path, total=2)
    journal.record(patched_outcome(0, 2, "acc_0", 3, 0.1))
    await journal.aclose()
    assert counts() == '[["patched", 1, 3]]'

    again = Journal(path, total=2)
    assert counts() is None
    await again.aclose()
    assert counts() == '[["patched", 1, 3]]'
