"""The journal: what is on disk, who may write it, and errors of writing."""

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
from postpress_async.rotation._outcome import failed_outcome, patched_outcome
from postpress_async.rotation.journal import Journal, row_of
from tests.support.journals import recorded_states


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def states(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT state, count(*) FROM outcomes GROUP BY state"))
    connection.close()
    return found


async def test_closing_the_journal_writes_all_outcomes_to_the_disk(path) -> None:
    journal = Journal.open(path)
    for ordinal in range(500):
        journal.record(patched_outcome(ordinal, ordinal + 2, f"acc_{ordinal}", 1, 0.1))
    await journal.aclose()

    assert states(path) == {"patched": 500}
    assert not path.with_name("run.sqlite3-wal").exists()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 72, 73, 200])
async def test_every_row_is_written_however_many_one_statement_takes(path, count) -> None:
    """Rows are put together in statements of several sizes: none is left over, and none is another's."""
    refused = errors.ApiError.of(400, errors.Problem("errors/invalid_parameters", instance="req_1"))
    written = [
        patched_outcome(ordinal, None, f"acc_{ordinal}", 1 + ordinal % 3, ordinal / 7, f"label {ordinal}")
        if ordinal % 3
        else failed_outcome(ordinal, ordinal + 2, f"acc_{ordinal}", refused, ordinal / 7)
        for ordinal in range(count)
    ]
    journal = Journal.open(path)
    for outcome in written:
        journal.record(outcome)
    await journal.aclose()

    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT * FROM latest ORDER BY ordinal").fetchall()
    connection.close()
    assert rows == list(map(row_of, written))


async def test_it_can_be_read_while_it_is_written(path) -> None:
    """`status` from another terminal must not wait for the night to end."""
    journal = Journal.open(path)
    journal.record(patched_outcome(0, 2, "acc_1", 1, 0.1))
    await journal.record_generation(0, 1)  # returns once all before it is committed

    assert states(path) == {"patched": 1}
    await journal.aclose()


async def test_only_its_owner_can_read_it(path) -> None:
    await Journal.open(path).aclose()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_later_outcome_takes_the_place_of_an_earlier_one(path) -> None:
    """One row for each account: what was skipped or unknown is sent again."""
    journal = Journal.open(path)
    journal.record(Outcome(0, None, "acc_1", State.SKIPPED, applied=errors.Applied.NO))
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await journal.aclose()

    assert states(path) == {"patched": 1}


async def test_attempts_of_an_account_add_up_over_the_runs(path) -> None:
    for _ in range(2):
        journal = Journal.open(path)
        journal.record(
            Outcome(0, None, "acc_1", State.UNKNOWN, 1, applied=errors.Applied.UNKNOWN, elapsed=0.1)
        )
        await journal.aclose()
    journal = Journal.open(path)
    journal.record(patched_outcome(0, None, "acc_1", 3, 0.1))
    await journal.aclose()

    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT state, attempts, applied FROM outcomes"
        assert connection.execute(query).fetchall() == [("patched", 5, None)]


async def test_attempts_of_an_account_that_failed_are_counted_when_it_is_sent_again(path) -> None:
    refused = errors.ApiError.of(400, errors.Problem("errors/invalid_parameters", instance="req_1"))
    journal = Journal.open(path)
    journal.record(failed_outcome(0, None, "acc_1", refused, 0.1, attempts=2))
    await journal.aclose()
    journal = Journal.open(path, on_failed="retry")
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await journal.aclose()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT attempts FROM outcomes").fetchall() == [(3,)]


async def test_it_remembers_run_entries_and_generations(path) -> None:
    journal = Journal.open(path)
    journal.record(patched_outcome(3, None, "acc_3", 1, 0.1))
    journal.record(Outcome(5, None, "acc_5", State.UNKNOWN, 1, applied=errors.Applied.UNKNOWN, elapsed=0.1))
    await journal.record_generation(5, 2)
    await journal.aclose()

    again = Journal.open(path)
    assert again.run == journal.run
    assert list(again.generations()) == [(5, (2, None))]
    done, doubt = ("acc_3", State.PATCHED, True, True), ("acc_5", State.UNKNOWN, True, False)
    assert [(n, entry[:4]) for n, entry in again.entries()] == [(3, done), (5, doubt)]
    assert [(n, entry[:4]) for n, entry in again.entries(skip_done=True)] == [(5, doubt)]
    assert again.done() == b"\0\0\0\1"
    assert recorded_states(again) == {State.PATCHED: 1, State.UNKNOWN: 1}
    await again.aclose()


async def test_a_shorter_input_makes_no_journal_shorter(path) -> None:
    """A wrong one is refused at its first row, and the journal still tells how many accounts it is of."""
    for total in (2000, 1000):
        journal = Journal.open(path)
        journal.record(patched_outcome(0, 2, "acc_0", 1, 0.1))
        journal.begin(total)
        await journal.aclose()

    connection = sqlite3.connect(path)
    assert connection.execute("SELECT total FROM runs").fetchone() == (2000,)
    connection.close()


async def test_a_journal_that_another_program_has_locked_is_not_replaced(path, monkeypatch) -> None:
    """With another journal, the accounts that are recorded in this one would be sent again."""
    journal = Journal.open(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))
    await journal.aclose()
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))

    with pytest.raises(JournalNotWritableError) as caught:
        Journal.open(path)

    assert str(caught.value) == (
        f"{path} cannot be written (database is locked): fix that, then run the same command again"
    )
    lock.close()


async def test_the_total_is_recorded_when_the_journal_is_created(path) -> None:
    """A run that is cancelled before it begins leaves a journal whose status knows the number of accounts."""
    await Journal.open(path, total=2000).aclose()
    await Journal.open(path, total=3000).aclose()  # refused later, when its rows are compared

    connection = sqlite3.connect(path)
    assert connection.execute("SELECT total FROM runs").fetchone() == (2000,)
    connection.close()


async def test_a_journal_in_use_is_refused(path) -> None:
    """Two runs on one journal would each believe the other's accounts to be theirs."""
    journal = Journal.open(path)
    with pytest.raises(JournalError, match="in use by another run"):
        Journal.open(path)
    await journal.aclose()
    await Journal.open(path).aclose()


async def test_a_journal_of_another_input_is_refused(path) -> None:
    await Journal.open(path, digest=b"one input").aclose()

    with pytest.raises(JournalError, match="belongs to another input"):
        Journal.open(path, digest=b"another")
    await Journal.open(path, digest=b"one input").aclose()


async def test_a_journal_begun_without_a_target_takes_the_first_that_is_named(path) -> None:
    """Nothing was settled anywhere else; and from then on it is of that one."""
    await Journal.open(path).aclose()
    await Journal.open(path, target="https://one.example").aclose()

    with pytest.raises(
        JournalError, match=r"to a rotation for https://one\.example, not for https://two\.example"
    ):
        Journal.open(path, target="https://two.example")


async def test_the_input_s_digest_is_not_in_it(path) -> None:
    """A file of one row could be guessed from its digest, and the row has a password in it."""
    await Journal.open(path, digest=b"the digest of a fleet").aclose()

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
def test_file_that_is_not_a_journal_is_refused_in_a_sentence(path, make, fact) -> None:
    make(path)

    with pytest.raises(JournalError, match=fact) as caught:
        Journal.open(path)
    assert str(path) in str(caught.value)
    assert "name another journal" in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(JournalError, match="is not a directory"):
        Journal.open(tmp_path / "nowhere" / "run.sqlite3")


async def test_outcomes_queued_during_a_failed_commit_are_reported_too(path, monkeypatch) -> None:
    """Before, they waited for a next commit that never came, and were not reported."""
    journal = Journal.open(path)
    begun, goes_on = threading.Event(), threading.Event()

    def deleted(_: Path) -> None:
        begun.set()
        goes_on.wait()

    monkeypatch.setattr("postpress_async.rotation.journal._writer._identity", deleted)
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await asyncio.to_thread(begun.wait)
    journal.record(patched_outcome(1, None, "acc_2", 1, 0.1))
    goes_on.set()

    with pytest.raises(JournalNotWritableError, match=r"2 accounts could not be recorded \(acc_1, acc_2\)"):
        await journal.aclose()


async def test_failed_commit_is_reported_and_no_more_outcomes_are_accepted(path) -> None:
    """A full disk: the rotation must stop sending what it cannot record."""
    journal = Journal.open(path)
    breaker = sqlite3.connect(path)
    breaker.execute("DROP TABLE outcomes")
    breaker.close()
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))

    with pytest.raises(JournalNotWritableError, match=r"1 account could not be recorded \(acc_1\)"):
        await journal.record_generation(0, 1)
    with pytest.raises(JournalNotWritableError):
        journal.record(patched_outcome(1, None, "acc_2", 1, 0.1))
    with pytest.raises(JournalNotWritableError, match=r"2 accounts could not be recorded \(acc_1, acc_2\)"):
        await journal.aclose()
    await asyncio.to_thread(lambda: None)
    assert "postpress-journal" not in {thread.name for thread in threading.enumerate()}


async def test_full_disk_error_lists_unrecorded_outcomes_and_keeps_the_recorded(path) -> None:
    """SQLite's own word for it; who waits for a commit is woken, and the rows before it are whole."""
    journal = Journal.open(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))
    await journal.record_generation(0, 1)
    [(pages,)] = journal._writer._connection.execute("PRAGMA page_count")
    journal._writer._connection.execute(f"PRAGMA max_page_count = {pages}")

    async def fill() -> None:
        for ordinal in range(
            1, 2_000
        ):  # on a slow machine the first of them are refused before the last come
            journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
        await journal.record_generation(1, 1)

    with pytest.raises(
        JournalNotWritableError, match=r"run\.sqlite3: database or disk is full; the outcome of "
    ):
        await asyncio.wait_for(fill(), 10)
    with pytest.raises(JournalNotWritableError, match=r"Free the disk .* run the same command again"):
        await journal.aclose()
    again = Journal.open(path)
    kept = sum(recorded_states(again).values())
    entries = [account for _, (account, *_) in again.entries()]
    await again.aclose()
    assert 1 <= kept < 2_000
    assert entries == [f"acc_{number}" for number in range(kept)]


async def test_writer_thread_survives_any_error_of_a_commit(path) -> None:
    """Half of a surrogate pair is a text that SQLite cannot have; nothing may look as if it were recorded."""
    journal = Journal.open(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1, "a label\ud800"))

    with pytest.raises(JournalNotWritableError, match=r"surrogates not allowed; .* recorded \(acc_0\)"):
        await asyncio.wait_for(journal.record_generation(0, 1), 10)
    with pytest.raises(JournalNotWritableError, match="surrogates not allowed"):
        await journal.aclose()
    assert states(path) == {}


async def test_a_journal_that_is_deleted_under_way_is_noticed(path) -> None:
    """Rows could still be written to the deleted file, but never be read."""
    journal = Journal.open(path)
    path.unlink()
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))

    with pytest.raises(JournalError, match="deleted or replaced"):
        await journal.aclose()


def test_existing_file_that_is_not_a_journal_is_not_changed(path) -> None:
    """The file may be the fleet, named by mistake."""
    path.write_bytes(b"a")

    with pytest.raises(JournalError, match="was not changed"):
        Journal.open(path)
    assert path.read_bytes() == b"a"
    assert os.listdir(path.parent) == [path.name]


async def test_it_waits_for_the_disk_when_that_is_far_behind(path) -> None:
    """Memory stays bounded: at most some thousand rows wait."""
    journal = Journal.open(path)
    for ordinal in range(20_000):
        journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
        await journal.limit_backlog()
    await journal.aclose()

    assert states(path) == {"patched": 20_000}


@pytest.mark.slow
@settings(max_examples=60)
@given(cut=st.floats(0.0, 1.0), flip=st.booleans())
def test_a_damaged_journal_is_recovered_or_refused_in_a_sentence(tmp_path_factory, cut, flip) -> None:
    """A disk that lost its tail, or a bit of its middle: never a traceback, never a wrong account."""
    path = tmp_path_factory.mktemp("damaged") / "run.sqlite3"

    async def write() -> None:
        journal = Journal.open(path, digest=b"input")
        for ordinal in range(50):
            journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
        await journal.aclose()

    async def read() -> list[str]:
        journal = Journal.open(path, digest=b"input")
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
    """A journal's file and its -wal as a killed run leaves them."""
    path = tmp_path_factory.mktemp("killed") / "run.sqlite3"

    async def main() -> tuple[bytes, bytes]:
        journal = Journal.open(path, digest=b"input")
        for ordinal in range(50):
            journal.record(patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1))
            if ordinal % 10 == 9:
                await journal.record_generation(ordinal, 1)
        left = path.read_bytes(), path.with_name("run.sqlite3-wal").read_bytes()
        await journal.aclose()
        return left

    return asyncio.run(main())


@pytest.mark.slow
@settings(max_examples=60)
@given(cut=st.floats(0.0, 1.0), flip=st.booleans(), where=st.sampled_from(["", "-wal"]))
@example(cut=1.0, flip=False, where="-wal")
@example(cut=0.0, flip=False, where="-wal")
def test_journal_of_a_killed_run_is_recovered_or_refused_in_a_sentence(
    tmp_path_factory, killed, cut, flip, where
) -> None:
    """Most of a night may be in the -wal alone: what is whole of it counts, from the first row on."""
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
        journal = Journal.open(path, digest=b"input")
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
    if where == "-wal":  # which has a checksum on each page, as the file itself has not
        assert len(entries) == 50 or offset < len(whole)
        assert message == ""
        assert entries == [(n, f"acc_{n}", State.PATCHED) for n in range(len(entries))]
    assert not message or (str(path) in message and message.isprintable())


async def test_outcomes_queued_while_a_commit_failed_are_reported_too(path, monkeypatch) -> None:
    """A disk that is full may take its time to say so, and the answers come in meanwhile."""
    journal = Journal.open(path)
    breaker = sqlite3.connect(path)
    breaker.execute("DROP TABLE outcomes")
    breaker.close()
    commit = journal._writer._commit
    begun, go_on = threading.Event(), threading.Event()

    def slowly(rows) -> None:
        begun.set()
        go_on.wait(10)
        commit(rows)

    monkeypatch.setattr(journal._writer, "_commit", slowly)
    journal.record(patched_outcome(0, None, "acc_1", 1, 0.1))
    await asyncio.to_thread(begun.wait, 10)
    journal.record(patched_outcome(1, None, "acc_2", 1, 0.1))
    go_on.set()

    with pytest.raises(JournalNotWritableError, match=r"2 accounts could not be recorded \(acc_1, acc_2\)"):
        await journal.aclose()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no list of open files here")
async def test_a_journal_that_is_refused_is_let_go_of(path) -> None:
    """A user who names another one, or deletes this one, may do so while the program runs."""
    await Journal.open(path).aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM runs")

    with pytest.raises(JournalError, match="is damaged") as refusal:
        Journal.open(path)

    held = set()
    for handle in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one by which the folder is read is closed again
            held.add(os.readlink(f"/proc/self/fd/{handle}"))
    assert held.isdisjoint({str(path), f"{path}-wal"})
    del refusal


async def test_counts_of_a_run_are_recorded_when_it_ends_and_removed_when_it_resumes(path) -> None:
    """`history` of a hundred runs of a million accounts must not read them all."""

    def counts() -> str | None:
        with closing(sqlite3.connect(path)) as connection:
            [(recorded,)] = connection.execute("SELECT counts FROM runs")
        return None if recorded is None else str(recorded)

    journal = Journal.open(path, total=2)
    journal.record(patched_outcome(0, 2, "acc_0", 3, 0.1))
    await journal.aclose()
    assert counts() == '[["patched", 1, 3]]'

    again = Journal.open(path, total=2)
    assert counts() is None
    await again.aclose()
    assert counts() == '[["patched", 1, 3]]'
