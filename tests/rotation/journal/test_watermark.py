"""A crash leaves in doubt only accounts below the watermark of the dead run."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from postpress_async import AccountPatched, ManagedProxy, Rotation
from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Row, State
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._outcome import patched_outcome
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._database import FIRST_WATERMARK, SET_WATERMARK
from postpress_async.rotation.journal._watermark import SendWatermark
from postpress_async.sandbox import Sandbox
from tests.support.journals import crash_copy, recorded_states

US = ManagedProxy(country="US")
FLEET = 1_024


def rows(count: int = FLEET) -> Iterator[Row]:
    return (Row(ordinal, None, f"acc_{ordinal}", US) for ordinal in range(count))


def run_value(journal: Path, name: str) -> float:
    with closing(sqlite3.connect(journal)) as connection:
        [(value,)] = connection.execute("SELECT value FROM run WHERE name = ?", (name,))
    return float(value)


class Api:
    """Patches what it is sent; remembers in which state of doubt that came, and what the disk said then."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.doubts: dict[int, bool] = {}
        self.beyond: list[tuple[int, float]] = []

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        ordinal = int(account_id.removeprefix("acc_"))
        self.doubts[ordinal] = keys.in_doubt
        if (reached := run_value(self.journal, "reached")) <= ordinal:
            self.beyond.append((ordinal, reached))
        await asyncio.sleep(0)
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))


def rotation(api: Api, count: int = FLEET) -> Rotation:
    journal = api.journal
    return Rotation(api, rows(count), in_flight=20, finite=True, journal=lambda: Journal.open(journal))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_nothing_is_sent_that_the_disk_has_not_said_before(path: Path) -> None:
    """The one thing that all else rests on: it is looked up at each request, through another connection."""
    api = Api(path)
    async with rotation(api) as under_way:
        await under_way.run()

    assert (len(api.doubts), api.beyond) == (FLEET, [])


async def test_a_crash_leaves_in_doubt_what_was_in_reach(path: Path) -> None:
    """The next run knows that the rest was not sent; completed accounts are not sent again."""
    first = Api(path)
    async with rotation(first) as dying:
        async for outcome in dying:
            if outcome.ordinal == 50:
                copy = crash_copy(path)
                break
    reached = run_value(copy, "reached")

    second = Api(copy)
    async with rotation(second) as next_run:
        await next_run.run()

    assert reached < FLEET
    assert {ordinal for ordinal, doubt in second.doubts.items() if doubt} <= set(range(int(reached)))
    assert {ordinal for ordinal, doubt in second.doubts.items() if not doubt} == set(
        range(int(reached), FLEET)
    )
    assert second.beyond == []
    assert next_run.summary.patched == FLEET


async def test_a_crash_is_remembered_until_its_doubts_are_settled(path: Path) -> None:
    """The next run may end before it comes to them; that it ended well says nothing of the one before."""
    async with rotation(Api(path)) as dying:
        async for _ in dying:
            copy = crash_copy(path)
            break
    stopped = rotation(Api(copy))
    async with stopped:
        stopped.stop()
        await stopped.run()

    settled = stopped.summary.patched
    assert settled + stopped.summary.states[State.UNKNOWN] == run_value(copy, "doubtful")
    assert stopped.summary.states[State.SKIPPED] == FLEET - run_value(copy, "doubtful")
    last = Api(copy)
    async with rotation(last) as third:
        await third.run()
    assert settled + sum(last.doubts.values()) == run_value(copy, "doubtful")


async def test_a_run_that_ended_well_leaves_nothing_in_doubt(path: Path) -> None:
    """An endless input is not read to its end, so that its rows have no word in the journal."""
    api = Api(path)
    journal = api.journal
    async with Rotation(
        api, rows(), in_flight=20, limit=30, journal=lambda: Journal.open(journal)
    ) as under_way:
        await under_way.run()
    async with rotation(second := Api(path)) as next_run:
        await next_run.run()

    assert len(second.doubts) == FLEET - 30
    assert not any(second.doubts.values())


async def test_a_close_that_is_cancelled_leaves_nothing_in_doubt(path: Path) -> None:
    """A second Ctrl-C while the last rows are committed: they are, and the next run may believe them."""
    journal = Journal.open(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))
    closing_ = asyncio.create_task(journal.aclose())
    await asyncio.sleep(0)
    closing_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing_

    again = Journal.open(path)
    assert (again.in_doubt_below, recorded_states(again)) == (0, {State.PATCHED: 1})
    await again.aclose()


async def test_accounts_skipped_beyond_the_watermark_stay_skipped(path: Path) -> None:
    """The run that died after it could not have sent it."""
    stopped = rotation(Api(path))
    async with stopped:
        stopped.stop()
        await stopped.run()
    held = Journal.open(path)
    copy = crash_copy(path)
    await held.aclose()

    journal = Journal.open(copy)
    counts = recorded_states(journal)
    await journal.aclose()
    assert counts == {State.UNKNOWN: FIRST_WATERMARK, State.SKIPPED: FLEET - FIRST_WATERMARK}


async def test_without_idempotency_keys_a_crash_costs_hundreds_and_not_the_fleet(path: Path) -> None:
    """A managed change that may have been sent is not sent again there; all other accounts are."""
    changes = {f"acc_{number}": US for number in range(FLEET)}
    async with Sandbox() as sandbox, sandbox.session(idempotency=False) as session:
        async with session.rotate(changes, journal=path, in_flight=4) as dying:
            async for _ in dying:
                copy = crash_copy(path)
                break
        before = sandbox.record.requests
        async with session.rotate(changes, journal=copy, in_flight=50) as next_run:
            summary = await next_run.run()

    assert summary.states[State.UNKNOWN] + summary.patched == FLEET
    assert summary.states[State.UNKNOWN] <= FIRST_WATERMARK
    assert sandbox.record.requests - before >= FLEET - FIRST_WATERMARK


async def test_a_journal_that_knows_no_reach_leaves_all_in_doubt(path: Path) -> None:
    """A version without watermarks started it, so any account may have been sent."""
    await Journal.open(path).aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM run WHERE name = 'reached'")

    for _ in range(2):  # that the first of these runs ended well says nothing of those before it
        journal = Journal.open(path)
        assert (journal.in_doubt_below, journal.watermark.safe_below) == (float("inf"), FIRST_WATERMARK // 2)
        await journal.aclose()


async def test_a_reach_that_is_no_number_is_damage(path: Path) -> None:
    """The value is compared with every ordinal; a damaged one must not cause a traceback."""
    await Journal.open(path).aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE run SET value = 'far' WHERE name = 'reached'")

    with pytest.raises(JournalError, match="is damaged \\(reached is not a number\\): name another journal"):
        Journal.open(path)


class Disk:
    """A journal's writer, of which a test says when it commits, and whether."""

    def __init__(self) -> None:
        self.put_in: list[object] = []
        self.promises: list[asyncio.Future[None]] = []
        self.has_failed = False

    def put(self, statement: object, row: tuple[object, ...]) -> None:
        self.check()
        if statement == SET_WATERMARK:
            self.put_in += row

    def flush(self) -> asyncio.Future[None]:
        self.promises.append(asyncio.get_running_loop().create_future())
        return self.promises[-1]

    def check(self) -> None:
        if self.has_failed:
            raise JournalNotWritableError("full")

    def commit(self) -> None:
        self.promises.pop(0).set_result(None)


async def test_a_reach_is_extended_before_it_is_needed(path: Path) -> None:
    """Half a stride ahead nobody waits; who comes to its end does, and then the stride was too short."""
    disk = Disk()
    watermark = SendWatermark(disk, FIRST_WATERMARK)  # type: ignore[arg-type]
    half = FIRST_WATERMARK // 2

    assert watermark.safe_below == half
    await watermark.advance(half)  # at once
    assert disk.put_in == [2 * FIRST_WATERMARK]
    await watermark.advance(FIRST_WATERMARK - 1)  # still before what is kept
    disk.commit()
    await asyncio.sleep(0)
    assert watermark.safe_below == 2 * FIRST_WATERMARK - half

    waiting = asyncio.gather(*(watermark.advance(2 * FIRST_WATERMARK + number) for number in range(10)))
    await asyncio.sleep(0)
    assert (waiting.done(), disk.put_in) == (
        False,
        [2 * FIRST_WATERMARK, 3 * FIRST_WATERMARK],
    )  # one word for all ten
    disk.commit()
    await waiting
    assert disk.put_in[2:] == [5 * FIRST_WATERMARK]  # the next stride is twice as long, and under way already


async def test_a_rotation_that_is_faster_than_the_disk_waits_a_few_times(path: Path) -> None:
    """The stride grows until the rows that are sent during a commit fit in half of it."""
    disk, sent_in_a_commit = Disk(), 1_000
    watermark = SendWatermark(disk, FIRST_WATERMARK)  # type: ignore[arg-type]
    waited, asked_at = [], 0
    for ordinal in range(40_000):
        row = asyncio.create_task(watermark.advance(ordinal))
        await asyncio.sleep(0)
        if disk.promises and not asked_at:
            asked_at = ordinal
        if not row.done():
            waited.append(ordinal)
        if disk.promises and (not row.done() or ordinal - asked_at >= sent_in_a_commit):
            disk.commit()
            asked_at = 0
        await row

    assert waited == [64, 128, 256, 512, 1024]
    assert watermark.safe_below > 40_000


async def test_a_watermark_that_was_late_once_comes_down_again(path: Path) -> None:
    """One slow flush of the disk must not leave thousands of rows in doubt for the rest of the night."""
    disk = Disk()
    watermark = SendWatermark(disk, 0, 100)  # type: ignore[arg-type]
    late = asyncio.create_task(watermark.advance(0))
    await asyncio.sleep(0)
    disk.commit()
    await late
    ahead = []
    for ordinal in range(20_000):
        await watermark.advance(ordinal)
        while disk.promises:
            disk.commit()
            await asyncio.sleep(0)
        ahead.append(disk.put_in[-1] - ordinal)  # type: ignore[operator]

    assert max(ahead[:5_000]) == 300  # one and a half times twice the shortest stride
    assert max(ahead[-5_000:]) == 150


async def test_one_that_gives_up_waiting_leaves_the_others_to_it(path: Path) -> None:
    """A cancelled account must not take what its neighbours wait for along."""
    disk = Disk()
    watermark = SendWatermark(disk, 0)  # type: ignore[arg-type]
    gone, stays = (asyncio.create_task(watermark.advance(number)) for number in (0, 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    disk.commit()
    await stays

    assert gone.cancelled()


async def test_waiter_that_arrives_between_a_commit_and_its_notification_does_not_spin(path: Path) -> None:
    """The promise is kept, its callback not yet called, and the loop must get a turn to call it."""
    disk = Disk()
    watermark = SendWatermark(disk, 0)  # type: ignore[arg-type]
    first = asyncio.create_task(watermark.advance(0))
    await asyncio.sleep(0)
    disk.commit()
    await watermark.advance(0)
    await first

    assert watermark.safe_below > 0


async def test_accounts_beyond_the_watermark_are_not_sent_if_it_cannot_be_written(path: Path) -> None:
    """With a full disk, accounts beyond the watermark wait, and so do later ones."""
    disk = Disk()
    watermark = SendWatermark(disk, 0)  # type: ignore[arg-type]
    waiting = asyncio.create_task(watermark.advance(0))
    await asyncio.sleep(0)
    disk.has_failed = True
    disk.commit()

    for late in (waiting, asyncio.create_task(watermark.advance(1))):
        with pytest.raises(JournalNotWritableError):
            await late
