"""The write-ahead watermark: after a crash, only accounts below it are in doubt."""

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
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._database import FIRST_WATERMARK, SET_WATERMARK
from postpress_async.rotation.journal._watermark import SendWatermark
from postpress_async.sandbox import Sandbox
from tests.support.journals import crash_copy, patched_outcome, recorded_states

US = ManagedProxy(country="US")
FLEET = 1_024


def rows(count: int = FLEET) -> Iterator[Row]:
    return (Row(ordinal, None, f"acc_{ordinal}", US) for ordinal in range(count))


def run_value(journal: Path, name: str) -> float:
    with closing(sqlite3.connect(journal)) as connection:
        [(value,)] = connection.execute("SELECT value FROM run WHERE name = ?", (name,))
    return float(value)


class Api:
    """
    Patches every account.

    Attributes:
        received: For each ordinal, whether it was sent as one in doubt.
        premature: Ordinals that were sent although the watermark on disk was not above them, each with that
            watermark.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.received: dict[int, bool] = {}
        self.premature: list[tuple[int, float]] = []

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        ordinal = int(account_id.removeprefix("acc_"))
        self.received[ordinal] = keys.in_doubt
        watermark = run_value(self.journal, "reached")
        if watermark <= ordinal:
            self.premature.append((ordinal, watermark))
        await asyncio.sleep(0)
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))


def rotation(api: Api, count: int = FLEET) -> Rotation:
    journal = api.journal
    return Rotation(api, rows(count), in_flight=20, finite=True, journal=lambda: Journal(journal))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_each_account_is_below_the_watermark_on_disk_when_it_is_sent(path: Path) -> None:
    """The fake API reads the watermark at each request, through another connection."""
    api = Api(path)
    async with rotation(api) as running:
        await running.run()

    assert (len(api.received), api.premature) == (FLEET, [])


async def test_only_accounts_below_the_watermark_are_in_doubt_after_a_crash(path: Path) -> None:
    """The next run sends the other accounts without doubt, and does not send completed accounts."""
    first = Api(path)
    async with rotation(first) as killed_run:
        async for outcome in killed_run:
            if outcome.ordinal == 50:
                copy = crash_copy(path)
                break
    watermark = int(run_value(copy, "reached"))

    second = Api(copy)
    async with rotation(second) as next_run:
        await next_run.run()

    in_doubt = {ordinal for ordinal, is_in_doubt in second.received.items() if is_in_doubt}
    assert watermark < FLEET
    assert in_doubt <= set(range(watermark))
    assert second.received.keys() - in_doubt == set(range(watermark, FLEET))
    assert second.premature == []
    assert next_run.summary.patched == FLEET


async def test_accounts_stay_in_doubt_if_the_next_run_stops_before_it_reaches_them(path: Path) -> None:
    """The normal end of the next run does not end the doubts that the killed run left."""
    async with rotation(Api(path)) as killed_run:
        async for _ in killed_run:
            copy = crash_copy(path)
            break
    stopped = rotation(Api(copy))
    async with stopped:
        stopped.stop()
        await stopped.run()

    patched = stopped.summary.patched
    assert patched + stopped.summary.states[State.UNKNOWN] == run_value(copy, "doubtful")
    assert stopped.summary.states[State.SKIPPED] == FLEET - run_value(copy, "doubtful")
    last = Api(copy)
    async with rotation(last) as third:
        await third.run()
    assert patched + sum(last.received.values()) == run_value(copy, "doubtful")


async def test_run_that_ended_normally_leaves_no_account_in_doubt(path: Path) -> None:
    """The input may be endless, so the rows that the run did not reach have no outcome."""
    api = Api(path)
    journal = api.journal
    async with Rotation(api, rows(), in_flight=20, limit=30, journal=lambda: Journal(journal)) as running:
        await running.run()
    async with rotation(second := Api(path)) as next_run:
        await next_run.run()

    assert len(second.received) == FLEET - 30
    assert not any(second.received.values())


async def test_close_that_is_cancelled_still_records_the_end_of_the_run(path: Path) -> None:
    """A second Ctrl-C may arrive while the last outcomes are committed. No account may be in doubt then."""
    journal = Journal(path)
    journal.record(patched_outcome(0, None, "acc_0", 1, 0.1))
    closing_task = asyncio.create_task(journal.aclose())
    await asyncio.sleep(0)
    closing_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing_task

    again = Journal(path)
    assert (again.in_doubt_below, recorded_states(again)) == (0, {State.PATCHED: 1})
    await again.aclose()


async def test_accounts_skipped_above_the_watermark_stay_skipped(path: Path) -> None:
    """A run that is killed right after its start has sent no account above its watermark."""
    stopped = rotation(Api(path))
    async with stopped:
        stopped.stop()
        await stopped.run()
    killed = Journal(path)
    copy = crash_copy(path)
    await killed.aclose()

    journal = Journal(copy)
    counts = recorded_states(journal)
    await journal.aclose()
    assert counts == {State.UNKNOWN: FIRST_WATERMARK, State.SKIPPED: FLEET - FIRST_WATERMARK}


async def test_crash_without_idempotency_keys_leaves_only_accounts_below_the_watermark_unknown(
    path: Path,
) -> None:
    """Without a key, a managed change that may have been sent is not sent again. All other accounts are."""
    changes = {f"acc_{number}": US for number in range(FLEET)}
    async with Sandbox() as sandbox, sandbox.session(idempotency=False) as session:
        async with session.rotate(changes, journal=path, in_flight=4) as killed_run:
            async for _ in killed_run:
                copy = crash_copy(path)
                break
        before = sandbox.record.requests
        async with session.rotate(changes, journal=copy, in_flight=50) as next_run:
            summary = await next_run.run()

    assert summary.states[State.UNKNOWN] + summary.patched == FLEET
    assert summary.states[State.UNKNOWN] <= FIRST_WATERMARK
    assert sandbox.record.requests - before >= FLEET - FIRST_WATERMARK


async def test_all_accounts_are_in_doubt_if_the_journal_has_no_watermark(path: Path) -> None:
    """A version without watermarks may have written it, so any account may have been sent."""
    await Journal(path).aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM run WHERE name = 'reached'")

    for _ in range(2):  # the normal end of the first run does not end these doubts
        journal = Journal(path)
        assert (journal.in_doubt_below, journal.watermark.safe_below) == (float("inf"), FIRST_WATERMARK // 2)
        await journal.aclose()


async def test_watermark_that_is_not_a_number_raises_a_journal_error(path: Path) -> None:
    await Journal(path).aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE run SET value = 'far' WHERE name = 'reached'")

    with pytest.raises(JournalError, match="is damaged \\(reached is not a number\\): name another journal"):
        Journal(path)


class FakeWriter:
    """A journal's writer, but the test decides when it commits, and whether the commit fails."""

    def __init__(self) -> None:
        self.watermarks: list[object] = []
        self.commits: list[asyncio.Future[None]] = []
        self.has_failed = False

    def put(self, statement: object, row: tuple[object, ...]) -> None:
        self.check()
        if statement == SET_WATERMARK:
            self.watermarks += row

    def flush(self) -> asyncio.Future[None]:
        self.commits.append(asyncio.get_running_loop().create_future())
        return self.commits[-1]

    def check(self) -> None:
        if self.has_failed:
            raise JournalNotWritableError("full")

    def commit(self) -> None:
        self.commits.pop(0).set_result(None)


async def test_watermark_advances_early_and_its_step_doubles_if_a_row_has_to_wait(path: Path) -> None:
    writer = FakeWriter()
    watermark = SendWatermark(writer, FIRST_WATERMARK)  # type: ignore[arg-type]
    half = FIRST_WATERMARK // 2

    assert watermark.safe_below == half
    await watermark.advance(half)  # returns at once, but writes the next step
    assert writer.watermarks == [2 * FIRST_WATERMARK]
    await watermark.advance(FIRST_WATERMARK - 1)  # still below the watermark on disk
    writer.commit()
    await asyncio.sleep(0)
    assert watermark.safe_below == 2 * FIRST_WATERMARK - half

    waiting = asyncio.gather(*(watermark.advance(2 * FIRST_WATERMARK + number) for number in range(10)))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert writer.watermarks == [2 * FIRST_WATERMARK, 3 * FIRST_WATERMARK]  # one write for all ten rows
    writer.commit()
    await waiting
    # The next step is twice as long, and already written.
    assert writer.watermarks[2:] == [5 * FIRST_WATERMARK]


async def test_rotation_waits_only_until_the_step_is_long_enough_for_a_slow_disk(path: Path) -> None:
    """The step grows until the rows that are sent during a commit fit in half of it."""
    writer, rows_per_commit = FakeWriter(), 1_000
    watermark = SendWatermark(writer, FIRST_WATERMARK)  # type: ignore[arg-type]
    waiting_ordinals, write_started_at = [], 0
    for ordinal in range(40_000):
        row = asyncio.create_task(watermark.advance(ordinal))
        await asyncio.sleep(0)
        if writer.commits and not write_started_at:
            write_started_at = ordinal
        if not row.done():
            waiting_ordinals.append(ordinal)
        if writer.commits and (not row.done() or ordinal - write_started_at >= rows_per_commit):
            writer.commit()
            write_started_at = 0
        await row

    assert waiting_ordinals == [64, 128, 256, 512, 1024]
    assert watermark.safe_below > 40_000


async def test_step_becomes_shorter_again_after_one_slow_commit(path: Path) -> None:
    """After one slow commit, later crashes must not leave more rows in doubt than necessary."""
    writer = FakeWriter()
    watermark = SendWatermark(writer, 0, 100)  # type: ignore[arg-type]
    late = asyncio.create_task(watermark.advance(0))
    await asyncio.sleep(0)
    writer.commit()
    await late
    ahead = []
    for ordinal in range(20_000):
        await watermark.advance(ordinal)
        while writer.commits:
            writer.commit()
            await asyncio.sleep(0)
        ahead.append(writer.watermarks[-1] - ordinal)  # type: ignore[operator]

    assert max(ahead[:5_000]) == 300  # one and a half steps, and the step has doubled from 100 to 200
    assert max(ahead[-5_000:]) == 150


async def test_cancelled_row_does_not_cancel_the_commit_that_other_rows_wait_for(path: Path) -> None:
    writer = FakeWriter()
    watermark = SendWatermark(writer, 0)  # type: ignore[arg-type]
    cancelled, waiting = (asyncio.create_task(watermark.advance(number)) for number in (0, 1))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    writer.commit()
    await waiting

    assert cancelled.cancelled()


async def test_row_that_arrives_between_a_commit_and_its_callback_does_not_loop_forever(path: Path) -> None:
    """The event loop has not called the callback yet, and cannot as long as `advance` does not yield."""
    writer = FakeWriter()
    watermark = SendWatermark(writer, 0)  # type: ignore[arg-type]
    first = asyncio.create_task(watermark.advance(0))
    await asyncio.sleep(0)
    writer.commit()
    await watermark.advance(0)
    await first

    assert watermark.safe_below > 0


async def test_accounts_above_the_watermark_are_not_sent_if_it_cannot_be_written(path: Path) -> None:
    """With a full disk, accounts above the watermark raise the error, and so do later ones."""
    writer = FakeWriter()
    watermark = SendWatermark(writer, 0)  # type: ignore[arg-type]
    waiting = asyncio.create_task(watermark.advance(0))
    await asyncio.sleep(0)
    writer.has_failed = True
    writer.commit()

    for late in (waiting, asyncio.create_task(watermark.advance(1))):
        with pytest.raises(JournalNotWritableError):
            await late
