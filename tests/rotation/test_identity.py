"""A journal accepts the same rows and pool, in any format."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from postpress_async import AccountPatched, CustomProxy, Fleet, ManagedProxy, ProxyPool
from postpress_async.errors import JournalError
from postpress_async.models import ProxyChange
from postpress_async.rotation import State
from postpress_async.rotation._row_digest import RowsDigest, text_of
from postpress_async.rotation._rows import Refusal, Row, rows_of
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Sandbox
from postpress_async.session import PostPressSession
from tests.support.command_line import JOURNAL, run, states
from tests.support.journals import crash_copy

pytestmark = pytest.mark.slow

US, DE = ManagedProxy(country="US"), ManagedProxy(country="DE")
ROTATE = ("rotate", "fleet.csv", "--sandbox")
COUNT = 40


def lines(count: int = COUNT, country: str = "US") -> list[str]:
    return ["account_id,country", *(f"acc_{n},{country}" for n in range(count))]


def write_fleet(folder: Path, text: str = "", **how: Any) -> None:
    (folder / "fleet.csv").write_bytes((text or "\n".join(lines(**how)) + "\n").encode())


# --- The rows of a file ---


def rows(*, end: str = "\n", quote: str = "", note: str = "", separator: str = ",") -> str:
    header = separator.join(["account_id", "country", *(["note"] if note else [])])
    body = (separator.join([f"{quote}acc_{n}{quote}", "US", *([note] if note else [])]) for n in range(COUNT))
    return end.join([header, *body, ""])


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(rows(end="\r\n"), id="CRLF"),
        pytest.param("\ufeff" + rows(), id="byte-order mark"),
        pytest.param(rows(note="checked"), id="ignored column"),
        pytest.param(rows() + "\n\n", id="empty lines at the end"),
        pytest.param(rows(quote='"'), id="quotes"),
        pytest.param(rows(separator=";"), id="semicolons"),
        pytest.param(
            "country,account_id\n" + "".join(f"us,acc_{n}\n" for n in range(COUNT)), id="order of columns"
        ),
        pytest.param("\ufeff" + rows(end="\r\n", note="x", separator=";") + "\r\n", id="all of it"),
    ],
)
def test_a_file_that_a_spreadsheet_saved_again_is_resumed(folder, saved) -> None:
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    write_fleet(folder, saved)

    done = run(*ROTATE)

    assert (done.returncode, states(folder / JOURNAL)) == (0, {"patched": COUNT}), done.stderr
    assert "the sandbox received 30 requests" in done.stdout


EDITS: list[Any] = [
    pytest.param(
        lambda old: [*old[:5], "acc_x,US", *old[6:]],
        "row 5 is another account: acc_x instead of acc_4; 1 account removed; 1 row more",
        41,
        id="another account",
    ),
    pytest.param(lambda old: [*old, "acc_x,US", "acc_y,US"], "2 rows more", 42, id="rows appended"),
    pytest.param(lambda old: old[:-1], "row 40 is not acc_39; 1 account removed", 39, id="last row removed"),
    pytest.param(
        lambda old: [old[0], *old[2:]],
        "row 1 is another account: acc_1 instead of acc_0; 1 account removed",
        40,
        id="first row removed",
    ),
    pytest.param(lambda old: [old[0], "", *old[1:]], "row 1 is not acc_0", 40, id="blank row"),
    pytest.param(
        lambda old: [old[0], *old[:0:-1]],
        "row 1 is another account: acc_39 instead of acc_0",
        40,
        id="order reversed",
    ),
    pytest.param(
        lambda old: [*old[:30], "acc_29,DE", *old[31:]], "a row has another change", 40, id="other change"
    ),
]


@pytest.mark.parametrize(("edit", "fact", "patched"), EDITS)
def test_edited_input_is_taken_into_an_unfinished_run(folder, edit, fact, patched) -> None:
    """Each account is patched once, even if it was removed later; the edit is reported once."""
    write_fleet(folder)
    run(*ROTATE, "--limit", "20")
    write_fleet(folder, "\n".join(edit(lines())) + "\n")

    dry, done, again = run(*ROTATE, "--dry-run"), run(*ROTATE), run(*ROTATE)

    assert (done.returncode, again.returncode) == (0, 0), done.stderr
    assert f"the input was edited since the last run: {fact}" in done.stdout
    assert "edited" not in again.stdout
    assert states(folder / JOURNAL) == {"patched": patched}
    assert f"the sandbox received {patched - 20} requests" in done.stdout
    assert f"; {patched - 20} would be sent" in dry.stdout
    with closing(sqlite3.connect(JOURNAL)) as connection:
        found = connection.execute("SELECT count(DISTINCT account_id) FROM outcomes").fetchone()
    assert found == (patched,)


@pytest.mark.parametrize(("edit", "fact", "patched"), EDITS)
def test_complete_run_refuses_an_edited_input(folder, edit, fact, patched) -> None:
    """And nothing is sent: whether the accounts are to be rotated again is not known."""
    write_fleet(folder)
    run(*ROTATE)
    write_fleet(folder, "\n".join(edit(lines())) + "\n")

    real, dry = run(*ROTATE), run(*ROTATE, "--dry-run")

    assert real.returncode == dry.returncode == 2
    assert f"{JOURNAL} belongs to another input ({fact}" in real.stderr
    assert "add --every 0s" in real.stderr
    assert real.stderr == dry.stderr
    assert "requests" not in real.stdout


def test_another_change_of_a_patched_account_is_refused(folder) -> None:
    """The journal knows what the account was given."""
    write_fleet(folder)
    run(*ROTATE, "--limit", "20")
    write_fleet(folder, "\n".join([*lines()[:5], "acc_4,DE", *lines()[6:]]) + "\n")

    done = run(*ROTATE)

    assert done.returncode == 2
    assert "another change" in done.stderr
    assert "acc_4 asks for another change than the one that was" in done.stderr
    assert "use its old row again to resume the run" in done.stderr


def test_a_fleet_in_another_format_is_the_same_input(folder) -> None:
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    (folder / "fleet.jsonl").write_text(
        "".join(f'{{"country": "US", "id": "acc_{n}"}}\n' for n in range(COUNT))
    )

    done = run("rotate", "fleet.jsonl", "--sandbox", "--journal", JOURNAL)

    assert (done.returncode, states(folder / JOURNAL)) == (0, {"patched": COUNT}), done.stderr


def test_a_journal_that_knows_the_bytes_alone_goes_on_with_these(folder) -> None:
    """A version without a digest of the rows began it."""
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    with closing(sqlite3.connect(JOURNAL)) as connection, connection:
        connection.execute("UPDATE runs SET rows = NULL, pool = NULL")
        connection.execute("DELETE FROM run WHERE name = 'key'")
        connection.execute("DROP TABLE changes")
        connection.execute("DROP TABLE covered")

    write_fleet(folder, rows(end="\r\n"))
    other = run(*ROTATE)
    write_fleet(folder)
    same = run(*ROTATE)

    assert (other.returncode, same.returncode) == (2, 0), same.stderr
    assert "belongs to another input" in other.stderr
    assert states(folder / JOURNAL) == {"patched": COUNT}


async def test_a_fleet_in_python_is_known_by_its_rows_too(folder, sandbox) -> None:
    """The fleet was not surveyed before."""
    write_fleet(folder)
    async with sandbox.session() as session:
        for text in (rows(), rows(end="\r\n", note="x")):
            write_fleet(folder, text)
            with Fleet.open("fleet.csv") as fleet:
                async with session.rotate(fleet, journal=JOURNAL, limit=20) as rotation:
                    await rotation.run()

    assert sandbox.record.requests == COUNT
    assert states(folder / JOURNAL) == {"patched": COUNT}


def test_rows_of_the_same_words_in_other_places_are_others() -> None:
    """The digest separates words, so text cannot move from one to the next."""

    def own(**parts: str) -> CustomProxy:
        return CustomProxy(host="h.example", port=1, **parts)

    changes: list[ProxyChange | None] = [
        None,
        US,
        DE,
        ManagedProxy(ip="203.0.113.1"),
        ManagedProxy(country="US", ip="203.0.113.1"),
        own(),
        own(protocol="http"),
        own(username="a"),
        own(password="a"),
        own(username="a", password="b"),
        own(username="a+b"),
        own(password="b"),
    ]
    texts = [text_of(Row(0, None, "acc_1", change)) for change in changes]
    texts.append(text_of(Refusal(0, None, None, "acc_1", "port out of range", "")))
    texts.append(text_of(Row(0, None, "acc_2", US)))

    assert len(set(texts)) == len(texts)


def test_a_digest_of_rows_knows_their_places() -> None:
    def digest(*rows: Row) -> bytes:
        made = RowsDigest()
        for row in rows:
            made.add(row)
        return made.digest()

    first, second = Row(0, 2, "acc_1", US), Row(1, 3, "acc_2", US)
    moved = Row(2, 4, "acc_2", US)

    assert digest(first, second) == digest(Row(0, None, "acc_1", US), second)
    assert len({digest(), digest(first), digest(first, second), digest(first, moved)}) == 4


# --- The pool of a rotation that is complete ---


def write_pool(folder: Path, name: str, *hosts: str) -> str:
    (folder / name).write_text("".join(f"{host}.example.net:8080\n" for host in hosts))
    return name


def pooled(folder: Path, *hosts: str) -> tuple[str, ...]:
    (folder / "fleet.csv").write_text("account_id\n" + "".join(f"acc_{n}\n" for n in range(4)))
    return ("--pool", write_pool(folder, "-".join(hosts) + ".txt", *hosts))


def test_a_complete_rotation_is_not_said_to_have_another_pool(folder) -> None:
    """Before, the exit code was 0, as if the accounts had the new proxies."""
    run(*ROTATE, *pooled(folder, "a", "b"))

    for words in (ROTATE, (*ROTATE, "--dry-run")):
        done = run(*words, *pooled(folder, "c", "d"))
        assert (done.returncode, done.stdout) == (2, "")
        assert "complete" in done.stderr
        assert "another pool (or --country). Nothing was sent. To rotate these accounts again" in (
            done.stderr
        )


@pytest.mark.parametrize("option", [("--assign", "sticky"), ("--accounts-per-proxy", "3")])
def test_a_complete_rotation_is_not_said_to_be_assigned_otherwise(folder, option) -> None:
    pool = pooled(folder, "a", "b")
    run(*ROTATE, *pool)

    assert run(*ROTATE, *pool, *option).returncode == 2


@pytest.mark.parametrize("country", ["US", "DE"])
def test_a_complete_rotation_is_not_said_to_have_another_default(folder, country) -> None:
    pooled(folder, "a")
    run(*ROTATE, "--country", "US")

    done = run(*ROTATE, "--country", country)

    assert done.returncode == (0 if country == "US" else 2), done.stderr


def test_a_complete_rotation_says_first_that_nothing_was_sent_and_when_it_was_complete(folder) -> None:
    pool = pooled(folder, "a", "b")
    run(*ROTATE, *pool)
    with closing(sqlite3.connect(JOURNAL)) as connection, connection:
        connection.execute("UPDATE outcomes SET settled_at = 1795215600 + ordinal")

    done = run(*ROTATE, *pool, env={"TZ": "UTC"})

    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == (
        f"nothing was sent: the rotation in {JOURNAL} was completed at 2026-11-20 23:00:03 UTC. To send "
        "these accounts again, add --every 0s (or --every 20h to a nightly job)"
    )
    assert "the sandbox received 0 requests" in done.stdout


def test_an_unfinished_rotation_goes_on_with_an_edited_list_and_then_knows_that_one(folder) -> None:
    """A pool that ran dry says: add proxies."""
    few, more = pooled(folder, "a"), pooled(folder, "a", "b")
    full = ("--accounts-per-proxy", "2")

    begun, ended, again = (run(*ROTATE, *pool, *full) for pool in (few, more, more))

    assert [done.returncode for done in (begun, ended, again)] == [1, 0, 0], ended.stderr
    assert again.stdout.startswith("nothing was sent")
    assert run(*ROTATE, *few, *full).returncode == 2


def test_accounts_that_failed_may_be_sent_again_with_another_pool(folder) -> None:
    pool, other = pooled(folder, "a"), pooled(folder, "b")
    run(*ROTATE, *pool)
    with closing(sqlite3.connect(JOURNAL)) as connection, connection:
        connection.execute(
            "UPDATE outcomes SET state = 'failed', applied = 'no', status = 404 WHERE ordinal = 0"
        )

    again = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox", *other)
    nightly = run(*ROTATE, *pool)

    assert (again.returncode, nightly.returncode) == (0, 0), again.stderr
    assert "the sandbox received 1 request" in again.stdout


async def test_in_python_a_complete_journal_refuses_another_pool_on_entering(tmp_path, sandbox) -> None:
    accounts = [f"acc_{n}" for n in range(4)]

    def pool(host: str) -> ProxyPool:
        return ProxyPool([CustomProxy(host=host, port=1)])

    async with sandbox.session() as session:
        async with session.rotate(accounts, journal=tmp_path / "j", pool=pool("a.example")) as rotation:
            await rotation.run()
        first = rotation.completed_at
        async with session.rotate(accounts, journal=tmp_path / "j", pool=pool("a.example")) as again:
            await again.run()
        with pytest.raises(JournalError, match="used another pool"):
            async with session.rotate(accounts, journal=tmp_path / "j", pool=pool("b.example")):
                pass

    assert first is None
    assert again.completed_at is not None
    assert sandbox.record.requests == 4


def test_no_password_of_a_pool_can_be_found_in_the_journal(folder) -> None:
    write_fleet(folder, "account_id\nacc_1\n")
    (folder / "p.txt").write_text("p.example.net:8080:user:hunter2\n")
    pool = ProxyPool.read("p.txt")
    run(*ROTATE, "--pool", "p.txt")

    content = (folder / JOURNAL).read_bytes()

    assert b"hunter2" not in content
    assert pool.digest not in content


# --- The changes of a mapping, of pairs, of what is read once ---

Changes = Mapping[str, ProxyChange] | list[tuple[str, ProxyChange]] | Iterator[Any] | AsyncIterator[Any]
Form = Callable[[dict[str, ProxyChange]], Changes]


async def _asynchronous(changes: dict[str, ProxyChange]) -> AsyncIterator[tuple[str, ProxyChange]]:
    for pair in changes.items():
        yield pair


FORMS: list[Any] = [
    pytest.param(dict, id="mapping"),
    pytest.param(lambda changes: list(changes.items()), id="list"),
    pytest.param(lambda changes: iter(changes.items()), id="iterator"),
    pytest.param(_asynchronous, id="asynchronous"),
]


def changes(change: ProxyChange, count: int = 200) -> dict[str, ProxyChange]:
    return {f"acc_{number}": change for number in range(count)}


async def killed_run(session: PostPressSession, input_: Changes, journal: Path, settled: int) -> Path:
    """The journal as a run leaves it that is killed after so many outcomes."""
    async with session.rotate(input_, journal=journal, in_flight=20) as dying:
        for _ in range(settled):
            await anext(dying)
        return crash_copy(journal)


@pytest.mark.parametrize("form", FORMS)
async def test_a_killed_run_is_not_resumed_with_another_change(tmp_path, sandbox, form: Form) -> None:
    """A managed proxy of another country under the same key: the API would answer with the first one."""
    async with sandbox.session() as session:
        copy = await killed_run(session, form(changes(US)), tmp_path / "j", 50)
        before = sandbox.record.requests

        with pytest.raises(JournalError, match=r"row 1 \(acc_0\) is another account or asks for another"):
            async with session.rotate(form(changes(DE)), journal=copy) as rotation:
                await rotation.run()
        refused = sandbox.record.requests - before
        async with session.rotate(form(changes(US)), journal=copy) as rotation:
            await rotation.run()

    assert refused == 0
    assert rotation.summary.states == {State.PATCHED: 200}


@pytest.mark.parametrize("form", FORMS)
async def test_accounts_in_flight_have_their_row_hash_on_the_disk(tmp_path, form: Form) -> None:
    """The run was killed after sending, before the first response was recorded."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        arrived, over = asyncio.Event(), asyncio.Event()
        seen: list[str] = []

        async def update(account_id: str, *_: object) -> Any:
            seen.append(account_id)
            arrived.set()
            await over.wait()
            return AccountPatched(account_id)

        rotation = session.rotate(form(changes(US)), journal=tmp_path / "j", in_flight=3)
        rotation._context = evolve(rotation._context, update=update)
        async with rotation:
            await arrived.wait()
            copy = crash_copy(tmp_path / "j")
            over.set()
            rotation.stop()
        with pytest.raises(JournalError, match="asks for another change"):
            async with session.rotate(form(changes(DE)), journal=copy) as other:
                await other.run()

    assert seen
    assert states(copy) == {}
    assert sandbox.record.requests == 0


async def test_a_change_in_a_later_row_of_a_mapping_is_refused_before_the_first_is_sent(
    tmp_path, sandbox
) -> None:
    async with sandbox.session() as session:
        copy = await killed_run(session, changes(US), tmp_path / "j", 20)
        before = sandbox.record.requests
        with pytest.raises(JournalError, match=r"row 151 \(acc_150\)"):
            async with session.rotate(changes(US) | {"acc_150": DE}, journal=copy):
                pass

    assert sandbox.record.requests == before


async def test_rows_may_be_added_to_a_mapping(tmp_path, sandbox) -> None:
    async with sandbox.session() as session:
        for count in (30, 50):
            async with session.rotate(changes(US, count), journal=tmp_path / "j") as rotation:
                await rotation.run()
        assert rotation.input_edit == "20 rows more"
        with pytest.raises(JournalError, match="row 41 "):
            async with session.rotate(changes(US, 50) | {"acc_40": DE}, journal=tmp_path / "j"):
                pass

    assert sandbox.record.requests == 50


async def test_mapping_is_compared_with_the_file_that_started_the_journal(folder, sandbox) -> None:
    write_fleet(folder)
    async with sandbox.session() as session:
        with Fleet.open("fleet.csv") as fleet:
            async with session.rotate(fleet, journal=JOURNAL, limit=10) as rotation:
                await rotation.run()
        for other in (changes(DE, COUNT), changes(US, COUNT + 1), iter(changes(US, COUNT).items())):
            with pytest.raises(JournalError, match="belongs to"):
                async with session.rotate(other, journal=JOURNAL):
                    pass
        async with session.rotate(changes(US, COUNT), journal=JOURNAL) as rotation:
            await rotation.run()

    assert sandbox.record.requests == COUNT


async def test_a_row_that_was_taken_and_not_sent_has_no_hash_that_another_one_gets(tmp_path) -> None:
    """Hashes in blocks, with a gap: each is that of its own ordinal."""
    rows = list(rows_of(changes(US, 100).items()))
    journal = Journal.open(tmp_path / "j", by_row=True)
    compare = journal.row_hashes()
    for row in (*rows[:10], *rows[11:20]):
        compare.check(row)
    await compare.on_disk()
    checked = journal.row_hashes()
    await checked.check_all(rows)
    await checked.on_disk()
    again = journal.row_hashes()
    for row in rows:
        again.check(row)
    put = again._put_blocks
    await journal.aclose()

    assert put == 0


def test_no_password_of_a_mapping_is_in_the_journal(tmp_path) -> None:
    """Nor is it in a hash that anyone could look up: each journal has a key of its own."""

    async def rotate(journal: Path) -> list[bytes]:
        change = CustomProxy(host="h.example", port=1, password="hunter2")
        async with Sandbox() as sandbox, sandbox.session() as session:
            async with session.rotate({"acc_1": change}, journal=journal) as rotation:
                await rotation.run()
        with closing(sqlite3.connect(journal)) as connection:
            return [hashes for (hashes,) in connection.execute("SELECT hashes FROM changes")]

    first, second = (asyncio.run(rotate(tmp_path / name)) for name in ("a", "b"))

    assert b"hunter2" not in (tmp_path / "a").read_bytes()
    assert [len(hashes) for hashes in first] == [4]
    assert first != second
