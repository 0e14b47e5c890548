"""Readers of a journal: consistent while it is written, after a crash, and if it is damaged."""

import asyncio
import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async.errors import JournalError
from postpress_async.rotation import State
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._database import APPLICATION_ID
from postpress_async.rotation.journal._file import JournalFile
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._statistics import (
    Stage,
    Statistics,
    advice,
    collect_statistics,
    stage_of,
)
from tests.support.journals import NIGHT, RunProcess, execute_sql, outcome, refused, write

PATCHED, FAILED, UNKNOWN, SKIPPED = State


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def statistics(path: Path, now: float = NIGHT) -> Statistics:
    with JournalReader(path) as view:
        return collect_statistics(view, stage_of(view), now)


def account_ids(path: Path) -> list[str]:
    with JournalReader(path) as view:
        return [read.account_id for read in view.outcomes()]


def contents(folder: Path) -> dict[str, bytes]:
    """The files in the folder by name, except the -shm, which readers also write."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


# --- What is read ---


def test_outcome_is_read_with_all_attributes_as_it_was_written(path) -> None:
    written = [outcome(0), outcome(1, FAILED, assignment="line 3"), outcome(2, UNKNOWN), refused(3)]
    write(path, written)

    with JournalReader(path) as view:
        assert list(view.outcomes()) == written


def test_outcomes_of_given_states_are_read_in_the_order_of_the_input(path) -> None:
    write(path, (outcome(n, (PATCHED, FAILED, UNKNOWN)[n % 3]) for n in range(10_000)))

    with JournalReader(path) as view:
        read = [read.ordinal for read in view.outcomes([UNKNOWN, FAILED])]
    assert read == [n for n in range(10_000) if n % 3]


def test_slow_reader_does_not_block_checkpoints(path) -> None:
    """`export | less` may stay open for hours. Without checkpoints, the -wal would grow by gigabytes."""
    write(path, (outcome(n) for n in range(10_000)))
    writer = sqlite3.connect(path)
    writer.execute("UPDATE outcomes SET attempts = 2 WHERE ordinal = 9999")
    writer.commit()
    with JournalReader(path) as view:
        outcomes = view.outcomes()
        next(outcomes)

        busy, *_ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert sum(1 for _ in outcomes) == 9_999
    writer.close()


def test_queries_at_one_moment_do_not_see_later_changes(path) -> None:
    """The numbers of one report must not contradict each other."""
    write(path, [outcome(0)])
    writer = sqlite3.connect(path)
    writer.execute("UPDATE outcomes SET attempts = 2")
    writer.commit()
    with JournalReader(path) as view, view.at_one_moment():
        writer.execute("DELETE FROM outcomes")
        writer.commit()

        assert view.ask("SELECT count(*) FROM outcomes") == [(1,)]
    writer.close()


# --- Where and when ---


def test_reading_writes_nothing_to_or_beside_the_journal(path, tmp_path) -> None:
    """SQLite's own read-only mode leaves two files beside the database."""
    write(path, [outcome(0)])
    before = contents(tmp_path)

    assert account_ids(path) == ["acc_000000"]
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["run.sqlite3"]


@pytest.mark.slow
def test_journal_is_read_while_another_process_writes_it_and_its_lock_is_kept(path) -> None:
    with RunProcess(path):
        for _ in range(2):
            result = statistics(path)
            assert (result.stage, result.states) == (Stage.UNDER_WAY, {PATCHED: 20})
        with pytest.raises(JournalError, match="in use by another run"):
            Journal(path)


@pytest.mark.slow
async def test_program_can_read_its_own_journal_without_releasing_the_lock(path) -> None:
    """Closing any descriptor of a file releases the process's POSIX locks on it, so a reader must not."""
    journal = Journal(path)
    journal.record(outcome(0))
    await journal.record_generation(0, 1)

    assert (await asyncio.to_thread(statistics, path)).stage is Stage.UNDER_WAY
    program = f"from postpress_async.rotation.journal import Journal; Journal({str(path)!r})"
    other = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert "in use by another run" in other.stderr
    await journal.aclose()
    assert statistics(path).stage is Stage.ENDED


@pytest.mark.slow
def test_outcomes_of_a_killed_run_are_read_without_changing_the_journal(path, tmp_path) -> None:
    """The next run recovers the journal. A reader that did so, too, would compete with that run."""
    with RunProcess(path) as run:
        run.kill()
        before = contents(tmp_path)
        result = statistics(path)

    assert (result.stage, result.states) == (Stage.DIED, {PATCHED: 20})
    assert contents(tmp_path) == before
    assert path.with_name("run.sqlite3-wal").stat().st_size > 0


@pytest.mark.slow
def test_journal_without_its_shm_file_is_read_and_the_file_is_not_created(path, tmp_path) -> None:
    """A copy of a killed run's journal may lack the -shm, which SQLite would create."""
    with RunProcess(path) as run:
        run.kill()
    path.with_name("run.sqlite3-shm").unlink()
    before = sorted(os.listdir(tmp_path))

    assert len(account_ids(path)) == 20
    assert sorted(os.listdir(tmp_path)) == before
    assert not list(Path(tempfile.gettempdir()).glob("postpress-*/journal"))


def test_journal_without_the_log_of_another_program_is_read_as_at_the_last_checkpoint(path) -> None:
    """Another program writes no mark for a needed -wal, so its loss cannot be detected."""
    write(path, [outcome(0)])
    writer = sqlite3.connect(path)
    writer.execute("UPDATE runs SET total = 1")
    writer.commit()
    log = path.with_name("run.sqlite3-wal")
    without_log = path.read_bytes()
    writer.close()
    path.write_bytes(without_log)
    log.unlink(missing_ok=True)

    assert account_ids(path) == ["acc_000000"]


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that a test may make read-only. Afterwards, its permissions and the user are restored."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="requires POSIX permissions")
@pytest.mark.parametrize("killed", [False, True], ids=["run ended", "run killed"])
def test_journal_in_a_read_only_folder_is_read(read_only_folder, killed) -> None:
    path = read_only_folder / "run.sqlite3"
    if killed:
        with RunProcess(path):
            pass
    else:
        write(path, (outcome(n) for n in range(20)))
    for file in read_only_folder.iterdir():
        file.chmod(0o444)
    read_only_folder.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65_534)  # the user nobody, because permissions do not restrict root
    with pytest.raises(PermissionError):
        (read_only_folder / "probe").touch()

    assert len(account_ids(path)) == 20
    assert statistics(path).stage is (Stage.DIED if killed else Stage.ENDED)


@pytest.mark.slow
def test_reader_follows_a_symbolic_link_and_sees_the_lock_of_a_run(path, tmp_path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(path)
    with RunProcess(path):
        assert statistics(link).stage is Stage.UNDER_WAY


def test_reader_raises_an_error_if_a_run_starts_to_write_meanwhile(path) -> None:
    """A journal that no run has open is read without locks, so the result could mix old and new rows."""
    write(path, [outcome(0)])
    with JournalReader(path) as view:
        execute_sql(path, "UPDATE outcomes SET account_id = 'acc_other'")
        os.utime(path, ns=(1, 1))

        with pytest.raises(JournalError, match="run the same command again"):
            list(view.outcomes())


def test_journal_deleted_while_read_is_reported(path) -> None:
    write(path, [outcome(0)])
    with JournalReader(path) as view:
        path.unlink()

        with pytest.raises(JournalError, match="is gone"):
            list(view.outcomes())


# --- Files that are not journals ---


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        pytest.param(lambda path: None, "No such file", id="no file"),
        pytest.param(
            lambda path: path.touch(), "is empty: .* give the same command again", id="an empty file"
        ),
        pytest.param(lambda path: path.write_text("account_id\nacc_1\n"), "not a database", id="a text file"),
        pytest.param(lambda path: path.mkdir(), "not a regular file", id="a directory"),
        pytest.param(os.mkfifo, "not a regular file", id="a pipe"),
        pytest.param(
            lambda path: sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close(),
            "not a journal",
            id="another database",
        ),
        pytest.param(
            lambda path: execute_sql(write(path, []), "PRAGMA user_version = 3"),
            "newer postpress-async",
            id="a newer version's",
        ),
        pytest.param(
            lambda path: execute_sql(write(path, []), "DROP TABLE outcomes"),
            "no such table",
            id="no outcomes table",
        ),
    ],
)
def test_error_for_a_file_that_is_not_a_journal_names_it_and_nothing_is_written(
    path, tmp_path, make, fact
) -> None:
    make(path)
    before = sorted(os.listdir(tmp_path))

    with pytest.raises(JournalError, match=fact) as caught:
        JournalReader(path)
    assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


class FullDisk(sqlite3.Connection):
    """Raises the error of a full disk after `statements_left` more statements."""

    statements_left = 0

    def _count(self) -> None:
        FullDisk.statements_left -= 1
        if FullDisk.statements_left < 0:
            raise sqlite3.OperationalError("database or disk is full")

    def execute(self, *words: Any) -> sqlite3.Cursor:
        self._count()
        return super().execute(*words)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        self._count()
        return super().executescript(script)


@pytest.mark.parametrize("statements", range(13))
async def test_reader_of_an_incomplete_journal_after_a_full_disk_says_what_to_do(
    path, monkeypatch, statements
) -> None:
    """The error of SQLite, "no such table", would not help the operator."""
    FullDisk.statements_left = statements
    with monkeypatch.context() as patched:
        patched.setattr("sqlite3.connect", partial(sqlite3.connect, factory=FullDisk))
        with pytest.raises(JournalError):
            Journal(path)

    try:
        message = advice(str(path), statistics(path))
    except JournalError as error:
        message = str(error)

    assert re.search("the same (command|rotation) again", message)
    assert "no such table" not in message
    await Journal(path).aclose()  # that command works


def test_error_for_a_journal_that_is_being_created_suggests_to_try_again(path) -> None:
    """A run holds the lock, and has not created the tables yet."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.close()
    file = JournalFile.open(path, os.O_RDWR)
    file.lock()

    with pytest.raises(JournalError, match="being created by a run: try again"):
        JournalReader(path)
    file.close()


@pytest.mark.parametrize(
    "damage",
    [
        *("state = 'done'", "scope = 'nobody'", "applied = 'maybe'", "status = 'OK'", "attempts = 'two'"),
        *("line = 'first'", "elapsed = 'long'", "elapsed = 9e999", "settled_at = 1e300"),
        *("settled_at = 'today'", "account_id = x'00'", "account_id = CAST(x'ff' AS TEXT)"),
        "error_type = CAST(x'c328' AS TEXT)",
    ],
)
def test_invalid_value_in_any_column_raises_a_journal_error(path, damage) -> None:
    """SQLite accepts any type in any column."""
    write(path, [outcome(0, FAILED), outcome(1)])
    execute_sql(path, f"UPDATE outcomes SET {damage} WHERE ordinal = 0")

    with pytest.raises(JournalError, match="is damaged") as caught:
        account_ids(path)
    assert str(path) in str(caught.value)
    with suppress(JournalError):
        statistics(path)


def test_unprintable_characters_are_escaped(path) -> None:
    """A journal may come from someone else, and its texts are printed on a terminal."""
    write(path, [outcome(0, FAILED, account_id="\x1b[2Jacc", instance="a\nb", error_type="errors/\u202egpj")])

    with JournalReader(path) as view:
        [read] = view.outcomes()
    assert (read.account_id, read.instance, read.error_type) == (
        "\\x1b[2Jacc",
        "a\\nb",
        "errors/\\u202egpj",
    )


@settings(max_examples=80)
@given(cut=st.floats(0.0, 1.0), flip=st.booleans())
def test_reader_of_a_damaged_journal_raises_only_journal_errors(tmp_path_factory, cut, flip) -> None:
    """The file is cut off at any place, or any byte is changed."""
    path = tmp_path_factory.mktemp("damaged") / "run.sqlite3"
    write(path, (outcome(n, FAILED if n % 5 else PATCHED) for n in range(60)))
    whole = path.read_bytes()
    offset = int(cut * (len(whole) - 1))
    path.write_bytes(
        whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :] if flip else whole[:offset]
    )

    with suppress(JournalError):
        statistics(path)
    with suppress(JournalError):
        account_ids(path)


# --- Statistics ---


def test_statistics_count_states_errors_and_the_rate(path) -> None:
    states = [PATCHED] * 5 + [FAILED] * 3 + [UNKNOWN] * 2 + [SKIPPED]
    write(path, [*(outcome(n, state) for n, state in enumerate(states)), refused(20)], total=30)

    result = statistics(path)

    assert result.states == {PATCHED: 5, FAILED: 3, UNKNOWN: 2, SKIPPED: 2}
    assert (result.refused, result.settled, result.accounts) == (1, 11, 30)
    assert [(error.error_type, error.scope, error.accounts) for error in result.errors] == [
        ("errors/resource_not_found", "account", 3),
        ("errors/request_timeout", "service", 2),
        ("port out of range", "request", 1),
    ]
    assert (result.first, result.last) == (NIGHT, NIGHT + 0.9)
    assert result.rate == pytest.approx(10 / 0.9)


def test_only_the_most_frequent_error_types_are_listed(path) -> None:
    """The API chooses the types: a million different ones must not become a million lines."""
    write(path, (outcome(n, FAILED, error_type=f"errors/{n % 250}") for n in range(1_000)))

    result = statistics(path)

    assert len(result.errors) == 100
    assert result.more_errors == 1_000 - 400


@pytest.mark.parametrize(
    ("outcomes", "run_entries", "stage"),
    [
        pytest.param([outcome(0)], {}, Stage.ENDED, id="all patched"),
        pytest.param([outcome(0)], {"total": 1}, Stage.ENDED, id="all patched, total known"),
        pytest.param([outcome(0)], {"total": 2}, Stage.STOPPED, id="one without an outcome"),
        pytest.param([outcome(0), outcome(1, SKIPPED)], {}, Stage.STOPPED, id="one skipped"),
        pytest.param([outcome(0), refused(1)], {"total": 2}, Stage.ENDED, id="one invalid row"),
        pytest.param([outcome(0)], {"halted": "too many"}, Stage.HALTED, id="halted"),
        pytest.param([outcome(0)], {"under way": 1}, Stage.DIED, id="no end recorded"),
        pytest.param([], {"total": 0}, Stage.ENDED, id="no accounts"),
        pytest.param([], {}, Stage.STOPPED, id="never began"),
    ],
)
def test_stage_of_the_last_run(path, outcomes, run_entries, stage) -> None:
    write(path, outcomes, **run_entries)

    assert statistics(path).stage is stage


async def test_rate_and_remaining_time_of_a_run_are_those_of_the_last_minute(path) -> None:
    """An average over the whole run would be wrong for hours after an outage."""
    journal = Journal(path)
    for n in range(1_200):
        journal.record(outcome(n))  # ten per second
    await journal.record_generation(0, 1)
    execute_sql(path, "UPDATE runs SET total = 1800")
    last = NIGHT + 119.9

    result = statistics(path, now=last)
    assert result.rate == pytest.approx(10, rel=0.01)
    assert result.seconds_left == pytest.approx(60, rel=0.01)
    assert statistics(path, now=last + 300).rate is None
    assert statistics(path, now=last + 300).seconds_left is None
    await journal.aclose()


async def test_rate_of_a_run_that_began_seconds_ago_is_not_divided_by_a_minute(path) -> None:
    journal = Journal(path)
    for n in range(100):
        journal.record(outcome(n))
    await journal.record_generation(0, 1)

    assert statistics(path, now=NIGHT + 10).rate == pytest.approx(10, rel=0.01)
    await journal.aclose()


async def test_accounts_that_are_unknown_only_because_a_run_may_send_them_are_not_settled(path) -> None:
    write(path, [outcome(0), outcome(1, UNKNOWN), outcome(2, SKIPPED)], total=3, **{"under way": 1})
    journal = Journal(path)

    result = statistics(path)

    assert result.states == {PATCHED: 1, UNKNOWN: 2}
    assert (result.in_doubt, result.settled) == (1, 2)
    await journal.aclose()


COMMAND = "postpress-async rotate fleet.csv --pool 'my list.txt'"
RETRY = "postpress-async retry-failed fleet.csv.rotation.sqlite3 fleet.csv --pool 'my list.txt'"


@pytest.mark.parametrize(
    ("outcomes", "run_entries", "words"),
    [
        pytest.param([outcome(0)], {}, "nothing; every account", id="all patched"),
        pytest.param([outcome(0, FAILED)], {}, f"run `{RETRY}`: it sends the failed", id="failed"),
        pytest.param(
            [outcome(0, UNKNOWN)], {}, f"(`{COMMAND}`): it sends the accounts that are unknown", id="unknown"
        ),
        pytest.param([outcome(0, SKIPPED)], {}, f"(`{COMMAND}`): it continues", id="stopped"),
        pytest.param([refused(0)], {}, "--state skipped", id="invalid rows"),
        pytest.param(
            [], {"halted": "x"}, f"halted it, then run the same command again (`{COMMAND}`)", id="halted"
        ),
        pytest.param([], {"under way": 1}, f"(`{COMMAND}`): it continues", id="killed"),
    ],
)
def test_next_step_includes_the_command(tmp_path, monkeypatch, outcomes, run_entries, words) -> None:
    monkeypatch.chdir(tmp_path)
    notes = {"command": COMMAND, "retry_command": RETRY, "folder": str(tmp_path)}
    path = write(tmp_path / "fleet.csv.rotation.sqlite3", outcomes, **notes, **run_entries)

    assert words in advice(path.name, statistics(path))


def test_next_step_names_the_folder_of_the_command(path, tmp_path) -> None:
    """The paths in the command are relative to that folder."""
    folder = tmp_path / "my fleet"
    result = statistics(write(path, [outcome(0, UNKNOWN)], command=COMMAND, folder=str(folder)))

    assert f"(`cd '{folder}' && {COMMAND}`)" in advice(str(path), result)


def test_next_step_has_no_command_if_the_run_was_started_in_python(path) -> None:
    result = statistics(write(path, [outcome(0, UNKNOWN)]))

    assert (
        advice(str(path), result) == "start the same rotation again: it sends the accounts that are unknown"
    )


@pytest.mark.parametrize(
    "text",
    [
        "postpress-async rotate x; rm -rf y",
        "rm -rf y",
        "postpress-async rotate $(rm y)",
        "postpress-async '",
        b"x",
    ],
)
def test_recorded_command_that_is_not_one_command_of_this_program_is_ignored(path, text) -> None:
    """A journal may come from someone else, and operators paste the command that is suggested."""
    result = statistics(write(path, [outcome(0, UNKNOWN)], command=text))

    assert result.command is None


@pytest.mark.slow
def test_temporary_copy_of_a_journal_is_readable_by_its_owner_only_and_deleted(path) -> None:
    """All users of a machine share the folder for temporary files."""
    with RunProcess(path) as run:
        run.kill()
    path.with_name("run.sqlite3-shm").unlink()

    with JournalReader(path) as view:
        [(_, _, copy)] = view.ask("PRAGMA database_list")
        assert stat.S_IMODE(Path(copy).parent.stat().st_mode) == 0o700
    assert not Path(copy).exists()
