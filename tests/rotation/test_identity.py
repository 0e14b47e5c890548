"""Which inputs and pools a journal accepts: the same rows in any format, and edits of an unfinished run."""

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
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation._row_digest import RowsDigest, text_of
from postpress_async.rotation._rows import Refusal, Row, rows_of
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._preflight import known_row_count
from postpress_async.sandbox import Sandbox
from postpress_async.session import PostPressSession
from tests.support.command_line import JOURNAL, run, states
from tests.support.journals import crash_copy
from tests.support.rotations import query
from tests.support.rotations import run as run_rotation

pytestmark = pytest.mark.slow

US, DE = ManagedProxy(country="US"), ManagedProxy(country="DE")
ROTATE = ("rotate", "fleet.csv", "--sandbox")
COUNT = 40


def lines() -> list[str]:
    return ["account_id,country", *(f"acc_{n},US" for n in range(COUNT))]


def write_fleet(folder: Path, text: str = "") -> None:
    (folder / "fleet.csv").write_bytes((text or "\n".join(lines()) + "\n").encode())


# --- The rows of a file ---


def csv_text(*, end: str = "\n", quote: str = "", note: str = "", separator: str = ",") -> str:
    header = separator.join(["account_id", "country", *(["note"] if note else [])])
    body = (separator.join([f"{quote}acc_{n}{quote}", "US", *([note] if note else [])]) for n in range(COUNT))
    return end.join([header, *body, ""])


@pytest.mark.parametrize(
    "saved_text",
    [
        pytest.param(csv_text(end="\r\n"), id="CRLF"),
        pytest.param("\ufeff" + csv_text(), id="byte-order mark"),
        pytest.param(csv_text(note="checked"), id="ignored column"),
        pytest.param(csv_text() + "\n\n", id="empty lines at the end"),
        pytest.param(csv_text(quote='"'), id="quotes"),
        pytest.param(csv_text(separator=";"), id="semicolons"),
        pytest.param(
            "country,account_id\n" + "".join(f"us,acc_{n}\n" for n in range(COUNT)), id="order of columns"
        ),
        pytest.param("\ufeff" + csv_text(end="\r\n", note="x", separator=";") + "\r\n", id="several at once"),
    ],
)
def test_run_is_resumed_although_a_spreadsheet_changed_the_form_of_the_file(folder, saved_text) -> None:
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    write_fleet(folder, saved_text)

    done = run(*ROTATE)

    assert (done.returncode, states(folder / JOURNAL)) == (0, {"patched": COUNT}), done.stderr
    assert "the sandbox received 30 requests" in done.stdout


EDITS: list[Any] = [
    pytest.param(
        lambda lines: [*lines[:5], "acc_x,US", *lines[6:]],
        "row 5 is another account: acc_x instead of acc_4; 1 account removed; 1 row more",
        41,
        id="another account",
    ),
    pytest.param(lambda lines: [*lines, "acc_x,US", "acc_y,US"], "2 rows more", 42, id="rows appended"),
    pytest.param(
        lambda lines: lines[:-1], "row 40 is not acc_39; 1 account removed", 39, id="last row removed"
    ),
    pytest.param(
        lambda lines: [lines[0], *lines[2:]],
        "row 1 is another account: acc_1 instead of acc_0; 1 account removed",
        40,
        id="first row removed",
    ),
    pytest.param(lambda lines: [lines[0], "", *lines[1:]], "row 1 is not acc_0", 40, id="blank row"),
    pytest.param(
        lambda lines: [lines[0], *lines[:0:-1]],
        "row 1 is another account: acc_39 instead of acc_0",
        40,
        id="order reversed",
    ),
    pytest.param(
        lambda lines: [*lines[:30], "acc_29,DE", *lines[31:]],
        "a row has another change",
        40,
        id="other change",
    ),
]


@pytest.mark.parametrize(("edit", "fact", "patched"), EDITS)
def test_unfinished_run_continues_with_an_edited_input(folder, edit, fact, patched) -> None:
    """
    Each account is patched once, even an account that was patched and then removed from the input. The edit
    is reported only once.
    """
    write_fleet(folder)
    run(*ROTATE, "--limit", "20")
    write_fleet(folder, "\n".join(edit(lines())) + "\n")

    dry, resumed, repeated = run(*ROTATE, "--dry-run"), run(*ROTATE), run(*ROTATE)

    assert (resumed.returncode, repeated.returncode) == (0, 0), resumed.stderr
    assert f"the input was edited since the last run: {fact}" in resumed.stdout
    assert "edited" not in repeated.stdout
    assert states(folder / JOURNAL) == {"patched": patched}
    assert f"the sandbox received {patched - 20} requests" in resumed.stdout
    assert f"; {patched - 20} would be sent" in dry.stdout
    assert query(folder / JOURNAL, "SELECT count(DISTINCT account_id) FROM outcomes") == [(patched,)]


@pytest.mark.parametrize(("edit", "fact", "patched"), EDITS)
def test_complete_run_rejects_an_edited_input_and_sends_nothing(folder, edit, fact, patched) -> None:
    """The command cannot know whether the accounts are to be rotated again."""
    write_fleet(folder)
    run(*ROTATE)
    write_fleet(folder, "\n".join(edit(lines())) + "\n")

    real, dry = run(*ROTATE), run(*ROTATE, "--dry-run")

    assert real.returncode == dry.returncode == 2
    assert f"{JOURNAL} belongs to another input ({fact}" in real.stderr
    assert "add --every 0s" in real.stderr
    assert real.stderr == dry.stderr
    assert "requests" not in real.stdout


def test_unfinished_run_rejects_another_change_of_a_patched_account(folder) -> None:
    write_fleet(folder)
    run(*ROTATE, "--limit", "20")
    write_fleet(folder, "\n".join([*lines()[:5], "acc_4,DE", *lines()[6:]]) + "\n")

    done = run(*ROTATE)

    assert done.returncode == 2
    assert "another change" in done.stderr
    assert "acc_4 asks for another change than the one that was" in done.stderr
    assert "use its old row again to resume the run" in done.stderr


def test_file_that_was_saved_in_another_form_is_checked_once(folder) -> None:
    """Later runs recognize the new bytes, so they need not read and check all rows again."""
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    write_fleet(folder, csv_text(end="\r\n"))
    run(*ROTATE, "--limit", "10")

    with Fleet.open(folder / "fleet.csv") as fleet:
        assert known_row_count(folder / JOURNAL, reader_of(fleet).digest) == COUNT


def test_same_rows_in_another_format_are_the_same_input(folder) -> None:
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    (folder / "fleet.jsonl").write_text(
        "".join(f'{{"country": "US", "id": "acc_{n}"}}\n' for n in range(COUNT))
    )

    done = run("rotate", "fleet.jsonl", "--sandbox", "--journal", JOURNAL)

    assert (done.returncode, states(folder / JOURNAL)) == (0, {"patched": COUNT}), done.stderr


def test_journal_without_a_digest_of_the_rows_requires_the_same_bytes(folder) -> None:
    """Older versions stored only a digest of the file."""
    write_fleet(folder)
    run(*ROTATE, "--limit", "10")
    with closing(sqlite3.connect(JOURNAL)) as connection, connection:
        connection.execute("UPDATE runs SET rows = NULL, pool = NULL")

    write_fleet(folder, csv_text(end="\r\n"))
    other = run(*ROTATE)
    write_fleet(folder)
    same = run(*ROTATE)

    assert (other.returncode, same.returncode) == (2, 0), same.stderr
    assert "belongs to another input" in other.stderr
    assert states(folder / JOURNAL) == {"patched": COUNT}


async def test_fleet_that_was_not_surveyed_is_recognized_by_its_rows(folder, sandbox) -> None:
    write_fleet(folder)
    async with sandbox.session() as session:
        for text in (csv_text(), csv_text(end="\r\n", note="x")):
            write_fleet(folder, text)
            with Fleet.open("fleet.csv") as fleet:
                async with session.rotate(fleet, journal=JOURNAL, limit=20) as rotation:
                    await rotation.run()

    assert sandbox.record.requests == COUNT
    assert states(folder / JOURNAL) == {"patched": COUNT}


def test_rows_with_the_same_texts_in_other_fields_have_different_hashes() -> None:
    def custom(**fields: str) -> CustomProxy:
        return CustomProxy(host="h.example", port=1, **fields)

    changes: list[ProxyChange | None] = [
        None,
        US,
        DE,
        ManagedProxy(ip="203.0.113.1"),
        ManagedProxy(country="US", ip="203.0.113.1"),
        custom(),
        custom(protocol="http"),
        custom(username="a"),
        custom(password="a"),
        custom(username="a", password="b"),
        custom(username="a+b"),
        custom(password="b"),
    ]
    texts = [text_of(Row(0, None, "acc_1", change)) for change in changes]
    texts.append(text_of(Refusal(0, None, None, "acc_1", "port out of range", "")))
    texts.append(text_of(Row(0, None, "acc_2", US)))

    assert len(set(texts)) == len(texts)


def test_digest_depends_on_ordinals_but_not_on_lines() -> None:
    def digest(*rows: Row) -> bytes:
        rows_digest = RowsDigest()
        for row in rows:
            rows_digest.add(row)
        return rows_digest.digest()

    first, second = Row(0, 2, "acc_1", US), Row(1, 3, "acc_2", US)
    moved = Row(2, 4, "acc_2", US)

    assert digest(first, second) == digest(Row(0, None, "acc_1", US), second)
    assert len({digest(), digest(first), digest(first, second), digest(first, moved)}) == 4


# --- The pool of a complete run ---


def write_pool(folder: Path, name: str, *hosts: str) -> str:
    (folder / name).write_text("".join(f"{host}.example.net:8080\n" for host in hosts))
    return name


def pool_options(folder: Path, *hosts: str) -> tuple[str, ...]:
    """Write a fleet without changes and a list of *hosts*, and return the options for that list."""
    (folder / "fleet.csv").write_text("account_id\n" + "".join(f"acc_{n}\n" for n in range(4)))
    return ("--pool", write_pool(folder, "-".join(hosts) + ".txt", *hosts))


def test_complete_run_rejects_another_pool(folder) -> None:
    """With exit code 0, the user would assume that the accounts have the new proxies."""
    run(*ROTATE, *pool_options(folder, "a", "b"))

    for command in (ROTATE, (*ROTATE, "--dry-run")):
        done = run(*command, *pool_options(folder, "c", "d"))
        assert (done.returncode, done.stdout) == (2, "")
        assert "complete" in done.stderr
        assert "another pool (or --country). Nothing was sent. To rotate all accounts again" in (done.stderr)


@pytest.mark.parametrize("option", [("--assign", "sticky"), ("--accounts-per-proxy", "3")])
def test_complete_run_rejects_another_kind_of_assignment(folder, option) -> None:
    pool = pool_options(folder, "a", "b")
    run(*ROTATE, *pool)

    assert run(*ROTATE, *pool, *option).returncode == 2


@pytest.mark.parametrize("country", ["US", "DE"])
def test_complete_run_rejects_another_default_country(folder, country) -> None:
    pool_options(folder, "a")
    run(*ROTATE, "--country", "US")

    done = run(*ROTATE, "--country", country)

    assert done.returncode == (0 if country == "US" else 2), done.stderr


def test_complete_run_says_first_that_nothing_was_sent_and_when_it_was_completed(folder) -> None:
    pool = pool_options(folder, "a", "b")
    run(*ROTATE, *pool)
    query(folder / JOURNAL, "UPDATE outcomes SET settled_at = 1795215600 + ordinal")

    done = run(*ROTATE, *pool, env={"TZ": "UTC"})

    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == (
        f"nothing was sent: the rotation in {JOURNAL} was completed at 2026-11-20 23:00:03 UTC. To send "
        "these accounts again, add --every 0s (or --every 20h to a nightly job)"
    )
    assert "the sandbox received 0 requests" in done.stdout


def test_unfinished_run_accepts_an_extended_pool_and_then_requires_it(folder) -> None:
    """A run whose pool is exhausted advises the user to add proxies."""
    small_pool, large_pool = pool_options(folder, "a"), pool_options(folder, "a", "b")
    limit = ("--accounts-per-proxy", "2")

    first, second, third = (run(*ROTATE, *pool, *limit) for pool in (small_pool, large_pool, large_pool))

    assert [done.returncode for done in (first, second, third)] == [1, 0, 0], second.stderr
    assert third.stdout.startswith("nothing was sent")
    assert run(*ROTATE, *small_pool, *limit).returncode == 2


def test_retry_failed_accepts_another_pool(folder) -> None:
    pool, other = pool_options(folder, "a"), pool_options(folder, "b")
    run(*ROTATE, *pool)
    query(
        folder / JOURNAL,
        "UPDATE outcomes SET state = 'failed', applied = 'no', status = 404 WHERE ordinal = 0",
    )

    retry = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox", *other)
    nightly = run(*ROTATE, *pool)

    assert (retry.returncode, nightly.returncode) == (0, 0), retry.stderr
    assert "the sandbox received 1 request" in retry.stdout


async def test_entering_a_complete_rotation_with_another_pool_raises(tmp_path, sandbox) -> None:
    accounts = [f"acc_{n}" for n in range(4)]

    def pool(host: str) -> ProxyPool:
        return ProxyPool([CustomProxy(host=host, port=1)])

    async with sandbox.session() as session:
        async with session.rotate(accounts, journal=tmp_path / "j", pool=pool("a.example")) as rotation:
            await rotation.run()
        async with session.rotate(accounts, journal=tmp_path / "j", pool=pool("a.example")) as complete:
            await complete.run()
        with pytest.raises(JournalError, match="used another pool"):
            async with session.rotate(accounts, journal=tmp_path / "j", pool=pool("b.example")):
                pass

    assert rotation.completed_at is None
    assert complete.completed_at is not None
    assert sandbox.record.requests == 4


def test_journal_contains_no_password_of_a_pool(folder) -> None:
    write_fleet(folder, "account_id\nacc_1\n")
    (folder / "p.txt").write_text("p.example.net:8080:user:hunter2\n")
    pool = ProxyPool.read("p.txt")
    run(*ROTATE, "--pool", "p.txt")

    content = (folder / JOURNAL).read_bytes()

    assert b"hunter2" not in content
    assert pool.digest not in content


# --- Mappings and pairs ---

Changes = Mapping[str, ProxyChange] | list[tuple[str, ProxyChange]] | Iterator[Any] | AsyncIterator[Any]
Form = Callable[[dict[str, ProxyChange]], Changes]


async def async_pairs(changes: dict[str, ProxyChange]) -> AsyncIterator[tuple[str, ProxyChange]]:
    for pair in changes.items():
        yield pair


FORMS: list[Any] = [
    pytest.param(dict, id="mapping"),
    pytest.param(lambda changes: list(changes.items()), id="list"),
    pytest.param(lambda changes: iter(changes.items()), id="iterator"),
    pytest.param(async_pairs, id="asynchronous"),
]


def changes_to(change: ProxyChange, count: int = 200) -> dict[str, ProxyChange]:
    return {f"acc_{number}": change for number in range(count)}


async def killed_run(session: PostPressSession, changes: Changes, journal: Path, outcomes: int) -> Path:
    """Return a copy of the journal as it would be if the run was killed after *outcomes* outcomes."""
    async with session.rotate(changes, journal=journal, in_flight=20) as rotation:
        for _ in range(outcomes):
            await anext(rotation)
        return crash_copy(journal)


@pytest.mark.parametrize("form", FORMS)
async def test_killed_run_is_not_resumed_with_another_change(tmp_path, sandbox, form: Form) -> None:
    """With the same idempotency key, the API would return the proxy of the first country."""
    async with sandbox.session() as session:
        copy = await killed_run(session, form(changes_to(US)), tmp_path / "j", 50)
        requests_before = sandbox.record.requests

        with pytest.raises(JournalError, match=r"row 1 \(acc_0\) is another account or asks for another"):
            await run_rotation(session.rotate(form(changes_to(DE)), journal=copy))
        assert sandbox.record.requests == requests_before
        rotation = await run_rotation(session.rotate(form(changes_to(US)), journal=copy))

    assert rotation.summary.states == {State.PATCHED: 200}


@pytest.mark.parametrize("form", FORMS)
async def test_row_hashes_of_accounts_in_flight_are_on_disk(tmp_path, form: Form) -> None:
    """The run is killed after it has sent requests and before the first outcome is recorded."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        sent, may_respond = asyncio.Event(), asyncio.Event()

        async def update(account_id: str, *_: object) -> Any:
            sent.set()
            await may_respond.wait()
            return AccountPatched(account_id)

        rotation = session.rotate(form(changes_to(US)), journal=tmp_path / "j", in_flight=3)
        rotation._context = evolve(rotation._context, update=update)
        async with rotation:
            await sent.wait()
            copy = crash_copy(tmp_path / "j")
            may_respond.set()
            rotation.stop()
        with pytest.raises(JournalError, match="asks for another change"):
            async with session.rotate(form(changes_to(DE)), journal=copy) as other:
                await other.run()

    assert states(copy) == {}
    assert sandbox.record.requests == 0


async def test_another_change_in_a_later_row_is_rejected_before_the_first_row_is_sent(
    tmp_path, sandbox
) -> None:
    async with sandbox.session() as session:
        copy = await killed_run(session, changes_to(US), tmp_path / "j", 20)
        before = sandbox.record.requests
        with pytest.raises(JournalError, match=r"row 151 \(acc_150\)"):
            async with session.rotate(changes_to(US) | {"acc_150": DE}, journal=copy):
                pass

    assert sandbox.record.requests == before


async def test_rows_can_be_added_to_a_mapping(tmp_path, sandbox) -> None:
    async with sandbox.session() as session:
        for count in (30, 50):
            async with session.rotate(changes_to(US, count), journal=tmp_path / "j") as rotation:
                await rotation.run()
        assert rotation.input_edit == "20 rows more"
        with pytest.raises(JournalError, match="row 41 "):
            async with session.rotate(changes_to(US, 50) | {"acc_40": DE}, journal=tmp_path / "j"):
                pass

    assert sandbox.record.requests == 50


async def test_mapping_must_have_the_rows_of_the_file_that_started_the_journal(folder, sandbox) -> None:
    write_fleet(folder)
    async with sandbox.session() as session:
        with Fleet.open("fleet.csv") as fleet:
            async with session.rotate(fleet, journal=JOURNAL, limit=10) as rotation:
                await rotation.run()
        for other in (changes_to(DE, COUNT), changes_to(US, COUNT + 1), iter(changes_to(US, COUNT).items())):
            with pytest.raises(JournalError, match="belongs to"):
                async with session.rotate(other, journal=JOURNAL):
                    pass
        async with session.rotate(changes_to(US, COUNT), journal=JOURNAL) as rotation:
            await rotation.run()

    assert sandbox.record.requests == COUNT


async def test_stored_row_hashes_match_their_ordinals_despite_a_gap(tmp_path) -> None:
    """Hashes are stored in blocks of consecutive ordinals."""
    rows = list(rows_of(changes_to(US, 100).items()))
    journal = Journal(tmp_path / "j", by_row=True)
    first = journal.row_hashes()
    for row in (*rows[:10], *rows[11:20]):
        first.check(row)
    await first.on_disk()
    second = journal.row_hashes()
    await second.check_all(rows)
    await second.on_disk()
    third = journal.row_hashes()
    for row in rows:
        third.check(row)
    new_hashes = third._put_blocks
    await journal.aclose()

    assert new_hashes == 0


def test_journal_contains_no_password_of_a_mapping(tmp_path) -> None:
    """Each journal hashes its rows with its own key, so a password cannot be looked up by its hash either."""

    async def rotate(journal: Path) -> list[bytes]:
        change = CustomProxy(host="h.example", port=1, password="hunter2")
        async with Sandbox() as sandbox, sandbox.session() as session:
            async with session.rotate({"acc_1": change}, journal=journal) as rotation:
                await rotation.run()
        return [hashes for (hashes,) in query(journal, "SELECT hashes FROM changes")]

    first, second = (asyncio.run(rotate(tmp_path / name)) for name in ("a", "b"))

    assert b"hunter2" not in (tmp_path / "a").read_bytes()
    assert [len(hashes) for hashes in first] == [4]
    assert first != second
