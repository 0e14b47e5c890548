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

from postpress_async import Outcome
from postpress_async.errors import Applied, JournalError
from postpress_async.rotation import State
from postpress_async.rotation._outcome import patched_outcome
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


def numbers(path: Path, now: float = NIGHT) -> Statistics:
    with JournalReader(path) as view:
        return collect_statistics(view, stage_of(view), now)


def accounts(path: Path) -> list[str]:
    with JournalReader(path) as view:
        return [read.account_id for read in view.outcomes()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the index of SQLite's log, which its readers share."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


# --- What is read ---


def test_an_outcome_is_read_as_it_was_written(path) -> None:
    """All thirteen columns: an outcome that is not shown cannot be corrected."""
    written = [outcome(0), outcome(1, FAILED, assignment="line 3"), outcome(2, UNKNOWN), refused(3)]
    write(path, written)

    with JournalReader(path) as view:
        assert list(view.outcomes()) == written


def test_the_states_asked_for_come_in_the_order_of_the_input(path) -> None:
    write(path, (outcome(n, (PATCHED, FAILED, UNKNOWN)[n % 3]) for n in range(10_000)))

    with JournalReader(path) as view:
        read = [read.ordinal for read in view.outcomes([UNKNOWN, FAILED])]
    assert read == [n for n in range(10_000) if n % 3]


def test_a_slow_reader_holds_up_no_run(path) -> None:
    """`export | less` may stay open all night; a log that cannot be folded in grows by gigabytes."""
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


def test_at_one_moment_nothing_changes(path) -> None:
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


def test_nothing_is_written_to_or_beside_a_journal(path, tmp_path) -> None:
    """SQLite's own read-only mode leaves two files beside it."""
    write(path, [outcome(0)])
    before = contents(tmp_path)

    assert accounts(path) == ["acc_000000"]
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["run.sqlite3"]


@pytest.mark.slow
def test_a_run_is_seen_while_it_goes_on(path) -> None:
    """From another terminal; the run's lock is its own afterwards, too."""
    with RunProcess(path):
        for _ in range(2):
            found = numbers(path)
            assert (found.stage, found.states) == (Stage.UNDER_WAY, {PATCHED: 20})
        with pytest.raises(JournalError, match="in use by another run"):
            Journal.open(path)


@pytest.mark.slow
async def test_a_program_may_look_at_its_own_journal(path) -> None:
    """A file that is closed lets go of the locks its process has on it: the view must not."""
    journal = Journal.open(path)
    journal.record(outcome(0))
    await journal.record_generation(0, 1)

    assert (await asyncio.to_thread(numbers, path)).stage is Stage.UNDER_WAY
    program = f"from postpress_async.rotation.journal import Journal; Journal.open({str(path)!r})"
    other = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert "in use by another run" in other.stderr
    await journal.aclose()
    assert numbers(path).stage is Stage.ENDED


@pytest.mark.slow
def test_outcomes_of_a_killed_run_are_read_without_changing_the_journal(path, tmp_path) -> None:
    """The next run corrects it; a reader that did so would race with it."""
    with RunProcess(path) as run:
        run.kill()
        before = contents(tmp_path)
        found = numbers(path)

    assert (found.stage, found.states) == (Stage.DIED, {PATCHED: 20})
    assert contents(tmp_path) == before
    assert path.with_name("run.sqlite3-wal").stat().st_size > 0


@pytest.mark.slow
def test_a_journal_that_was_copied_without_its_index_is_read(path, tmp_path) -> None:
    """`cp run.sqlite3*` of a killed run may lack the -shm, and SQLite would make one."""
    with RunProcess(path) as run:
        run.kill()
    path.with_name("run.sqlite3-shm").unlink()
    before = sorted(os.listdir(tmp_path))

    assert len(accounts(path)) == 20
    assert sorted(os.listdir(tmp_path)) == before
    assert not list(Path(tempfile.gettempdir()).glob("postpress-*/journal"))


def test_a_journal_whose_log_is_gone_is_read_as_far_as_it_goes(path) -> None:
    write(path, [outcome(0)])
    writer = sqlite3.connect(path)
    writer.execute("UPDATE runs SET total = 1")
    writer.commit()
    log = path.with_name("run.sqlite3-wal")
    kept = path.read_bytes()
    writer.close()
    path.write_bytes(kept)
    log.unlink(missing_ok=True)

    assert accounts(path) == ["acc_000000"]


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """One in which this process may write nothing, even where it is root's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        if os.geteuid() == 0 or os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="permissions are other ones there")
@pytest.mark.parametrize("killed", [False, True], ids=["of a run that ended", "of one that was killed"])
def test_a_journal_in_a_read_only_folder_is_read(read_only_folder, killed) -> None:
    """A backup, or another user's."""
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
        os.seteuid(65_534)  # nobody: root is stopped by no permission
    with pytest.raises(PermissionError):
        (read_only_folder / "probe").touch()

    assert len(accounts(path)) == 20
    assert numbers(path).stage is (Stage.DIED if killed else Stage.ENDED)


@pytest.mark.slow
def test_a_link_to_a_journal_is_followed_to_its_lock(path, tmp_path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(path)
    with RunProcess(path):
        assert numbers(link).stage is Stage.UNDER_WAY


def test_a_run_that_begins_meanwhile_is_noticed(path) -> None:
    """A journal without a writer is read without locks, so it must not mix two runs."""
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
        pytest.param(lambda path: None, "No such file", id="nothing"),
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
            id="one from the future",
        ),
        pytest.param(
            lambda path: execute_sql(write(path, []), "DROP TABLE outcomes"),
            "no such table",
            id="one cut short",
        ),
    ],
)
def test_file_that_is_not_a_journal_is_refused_in_a_sentence(path, tmp_path, make, fact) -> None:
    make(path)
    before = sorted(os.listdir(tmp_path))

    with pytest.raises(JournalError, match=fact) as caught:
        JournalReader(path)
    assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


class FullDisk(sqlite3.Connection):
    """It takes so many statements, and no more."""

    left = 0

    def _has_room(self) -> None:
        FullDisk.left -= 1
        if FullDisk.left < 0:
            raise sqlite3.OperationalError("database or disk is full")

    def execute(self, *words: Any) -> sqlite3.Cursor:
        self._has_room()
        return super().execute(*words)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        self._has_room()
        return super().executescript(script)


@pytest.mark.parametrize("room", range(13))
async def test_reader_of_a_journal_cut_short_by_a_full_disk_gets_advice(path, monkeypatch, room) -> None:
    """There is a file, with our mark on it or without: "no such table" is SQLite's trouble, and no advice."""
    FullDisk.left = room
    with monkeypatch.context() as patched:
        patched.setattr("sqlite3.connect", partial(sqlite3.connect, factory=FullDisk))
        with pytest.raises(JournalError):
            Journal.open(path)

    try:
        message = advice(str(path), numbers(path))
    except JournalError as error:
        message = str(error)

    assert re.search("the same (command|rotation) again", message)
    assert "no such table" not in message
    await Journal.open(path).aclose()  # and that command goes on


def test_a_journal_that_is_only_being_made_is_looked_at_later(path) -> None:
    """Between its first page and its tables."""
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
def test_a_value_that_cannot_be_is_refused_in_a_sentence(path, damage) -> None:
    """SQLite keeps any text in any column; a traceback tells an operator nothing."""
    write(path, [outcome(0, FAILED), outcome(1)])
    execute_sql(path, f"UPDATE outcomes SET {damage} WHERE ordinal = 0")

    with pytest.raises(JournalError, match="is damaged") as caught:
        accounts(path)
    assert str(path) in str(caught.value)
    with suppress(JournalError):
        numbers(path)


def test_unprintable_characters_are_escaped(path) -> None:
    """A journal may come from someone else, and end on a terminal."""
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
def test_a_damaged_journal_is_read_or_refused_in_a_sentence(tmp_path_factory, cut, flip) -> None:
    """A disk that lost its tail, or a bit of its middle: never a traceback."""
    path = tmp_path_factory.mktemp("damaged") / "run.sqlite3"
    write(path, (outcome(n, FAILED if n % 5 else PATCHED) for n in range(60)))
    whole = path.read_bytes()
    offset = int(cut * (len(whole) - 1))
    path.write_bytes(
        whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :] if flip else whole[:offset]
    )

    with suppress(JournalError):
        numbers(path)
    with suppress(JournalError):
        accounts(path)


# --- In numbers ---


def test_each_account_is_counted_once(path) -> None:
    states = [PATCHED] * 5 + [FAILED] * 3 + [UNKNOWN] * 2 + [SKIPPED]
    write(path, [*(outcome(n, state) for n, state in enumerate(states)), refused(20)], total=30)

    found = numbers(path)

    assert found.states == {PATCHED: 5, FAILED: 3, UNKNOWN: 2, SKIPPED: 2}
    assert (found.refused, found.settled, found.accounts) == (1, 11, 30)
    assert [(error.error_type, error.scope, error.accounts) for error in found.errors] == [
        ("errors/resource_not_found", "account", 3),
        ("errors/request_timeout", "service", 2),
        ("port out of range", "request", 1),
    ]
    assert (found.first, found.last) == (NIGHT, NIGHT + 0.9)
    assert found.rate == pytest.approx(10 / 0.9)


def test_only_the_most_common_errors_are_listed_separately(path) -> None:
    """Types come from outside: a million different ones must not become a million lines."""
    write(path, (outcome(n, FAILED, error_type=f"errors/{n % 250}") for n in range(1_000)))

    found = numbers(path)

    assert len(found.errors) == 100
    assert found.more_errors == 1_000 - 400


@pytest.mark.parametrize(
    ("outcomes", "run_entries", "stage"),
    [
        pytest.param([outcome(0)], {}, Stage.ENDED, id="all settled"),
        pytest.param([outcome(0)], {"total": 1}, Stage.ENDED, id="all of a known total"),
        pytest.param([outcome(0)], {"total": 2}, Stage.STOPPED, id="one has no row"),
        pytest.param([outcome(0), outcome(1, SKIPPED)], {}, Stage.STOPPED, id="one was left out"),
        pytest.param([outcome(0), refused(1)], {"total": 2}, Stage.ENDED, id="one was refused"),
        pytest.param([outcome(0)], {"halted": "too many"}, Stage.HALTED, id="it halted"),
        pytest.param([outcome(0)], {"under way": 1}, Stage.DIED, id="it never said that it ended"),
        pytest.param([], {"total": 0}, Stage.ENDED, id="nothing to do"),
        pytest.param([], {}, Stage.STOPPED, id="it never began"),
    ],
)
def test_stage_of_the_last_run(path, outcomes, run_entries, stage) -> None:
    write(path, outcomes, **run_entries)

    assert numbers(path).stage is stage


async def test_the_rate_and_the_time_left_are_of_the_last_minute(path) -> None:
    """An average over a night with an outage in it promises an end that never comes."""
    journal = Journal.open(path)
    for n in range(1_200):
        journal.record(outcome(n))  # ten a second
    await journal.record_generation(0, 1)
    execute_sql(path, "UPDATE runs SET total = 1800")
    last = NIGHT + 119.9

    found = numbers(path, now=last)
    assert found.rate == pytest.approx(10, rel=0.01)
    assert found.seconds_left == pytest.approx(60, rel=0.01)
    assert numbers(path, now=last + 300).rate is None
    assert numbers(path, now=last + 300).seconds_left is None
    await journal.aclose()


async def test_a_run_of_seconds_has_a_rate_too(path) -> None:
    """A minute has not passed: by sixty, ten seconds at full speed would look like a sixth of it."""
    journal = Journal.open(path)
    for n in range(100):
        journal.record(outcome(n))
    await journal.record_generation(0, 1)

    assert numbers(path, now=NIGHT + 10).rate == pytest.approx(10, rel=0.01)
    await journal.aclose()


async def test_accounts_in_doubt_after_a_dead_run_are_still_to_be_sent(path) -> None:
    """A later run marks as unknown what was left out before: that is not settled."""
    write(path, [outcome(0), outcome(1, UNKNOWN), outcome(2, SKIPPED)], total=3, **{"under way": 1})
    journal = Journal.open(path)

    found = numbers(path)

    assert found.states == {PATCHED: 1, UNKNOWN: 2}
    assert (found.unsent, found.settled) == (1, 2)
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
        pytest.param([refused(0)], {}, "--state skipped", id="refused rows"),
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

    assert words in advice(path.name, numbers(path))


def test_next_step_names_the_folder_of_the_command(path, tmp_path) -> None:
    """The night runs in a folder of its own, and the paths of its command are relative."""
    folder = tmp_path / "my nights"
    found = numbers(write(path, [outcome(0, UNKNOWN)], command=COMMAND, folder=str(folder)))

    assert f"(`cd '{folder}' && {COMMAND}`)" in advice(str(path), found)


def test_no_command_is_suggested_if_the_journal_has_none(path) -> None:
    """A run that was started in Python cannot be continued by a command."""
    found = numbers(write(path, [outcome(0, UNKNOWN)]))

    assert advice(str(path), found) == "start the same rotation again: it sends the accounts that are unknown"


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
def test_a_command_that_no_run_noted_is_not_told(path, text) -> None:
    """A journal may come from someone else, and an operator pastes the command that it names."""
    found = numbers(write(path, [outcome(0, UNKNOWN)], command=text))

    assert found.command is None


@pytest.mark.slow
def test_a_copy_that_had_to_be_made_is_its_owner_s(path) -> None:
    """A journal names accounts; on a shared machine, the folder for temporary files is everybody's."""
    with RunProcess(path) as run:
        run.kill()
    path.with_name("run.sqlite3-shm").unlink()

    with JournalReader(path) as view:
        [(_, _, copy)] = view.ask("PRAGMA database_list")
        assert stat.S_IMODE(Path(copy).parent.stat().st_mode) == 0o700
    assert not Path(copy).exists()


def test_patched_is_what_a_summary_says_too(path) -> None:
    """One word for one thing: the journal's counts are the rotation's."""
    written = [
        patched_outcome(0, 2, "acc_0", 1, 0.1),
        Outcome(1, 3, "acc_1", State.SKIPPED, applied=Applied.NO),
    ]
    write(path, written)

    assert numbers(path).states == {PATCHED: 1, SKIPPED: 1}
