"""All readers of a journal report a killed run correctly, before the next one starts."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from postpress_async import AccountPatched, ManagedProxy, Rotation
from postpress_async._cli import cli
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Halt, Row, State
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._export import write_jsonl
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._rows import Refusal
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._history import assignments_of
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown
from postpress_async.rotation.journal._statistics import Stage, advice, collect_statistics, stage_of
from tests.support.command_line import run
from tests.support.journals import NIGHT, change, killed, outcome, refused, write

US = ManagedProxy(country="US")
FLEET = 2_000


def rows(count: int = FLEET) -> Iterator[Row | Refusal]:
    return (Row(ordinal, None, f"acc_{ordinal:06}", US) for ordinal in range(count))


class Api:
    """Patches what it is sent, and remembers whether that was in doubt."""

    def __init__(self) -> None:
        self.doubts: dict[int, bool] = {}

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        self.doubts[int(account_id.removeprefix("acc_"))] = keys.in_doubt
        await asyncio.sleep(0)
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))


def rotation(
    path: Path,
    api: Api,
    *,
    finite: bool = True,
    limit: int | None = None,
    on_failed: OnFailed = "report",
    on_unknown: OnUnknown = "retry",
    every: float | None = None,
) -> Rotation:
    return Rotation(
        api,
        rows(),
        in_flight=20,
        finite=finite,
        total=FLEET,
        limit=limit,
        halt=Halt(failures="never"),
        journal=lambda: Journal.open(path, on_failed=on_failed, on_unknown=on_unknown, every=every),
    )


async def ended(path: Path, **options: object) -> Api:
    """What a run that ends well has sent."""
    api = Api()
    async with rotation(path, api, **options) as under_way:  # type: ignore[arg-type]
        await under_way.run()
    return api


async def dead(path: Path, at: int, **options: object) -> tuple[Path, Api]:
    """The journal as a run leaves it that is killed after the outcome number *at*, and what it had sent."""
    api, settled = Api(), 0
    async with rotation(path, api, **options) as dying:  # type: ignore[arg-type]
        async for _ in dying:
            settled += 1
            if settled == at:
                copy, sent = killed(path), dict(api.doubts)
                break
    api.doubts = sent
    return copy, api


def table(path: Path) -> dict[int, tuple[str, str | None]]:
    """State and applied of each account, as the table itself has them."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT ordinal, state, applied FROM outcomes"
        return {ordinal: (state, applied) for ordinal, state, applied in connection.execute(query)}


def latest_of(path: Path) -> dict[int, tuple[str, str | None]]:
    """The same of the latest run only."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT ordinal, state, applied FROM latest"
        return {ordinal: (state, applied) for ordinal, state, applied in connection.execute(query)}


UNSENT = ("skipped", "no")
IN_DOUBT = ("unknown", "unknown")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_no_account_that_a_dead_run_sent_reads_as_skipped(path: Path) -> None:
    """A limited run skipped it, a full run sent it and was killed, and no run has come since."""
    await ended(path, limit=100)
    copy, api = await dead(path, 60)

    found = table(copy)

    states = {found[ordinal] for ordinal in api.doubts}
    assert len(api.doubts) >= 60
    assert states <= {("patched", None), IN_DOUBT}
    assert found[FLEET - 1] == UNSENT  # beyond the watermark


async def test_each_reader_reports_accounts_maybe_sent_by_a_dead_run(path: Path, tmp_path) -> None:
    await ended(path, limit=100)
    copy, _ = await dead(path, 60)
    unknown = {ordinal for ordinal, what in table(copy).items() if what == IN_DOUBT}

    with JournalReader(copy) as view:
        numbers = collect_statistics(view, stage_of(view), NIGHT)
        with (tmp_path / "export.jsonl").open("wb") as file:
            write_jsonl(view.outcomes(), file)
    exported = [json.loads(line) for line in (tmp_path / "export.jsonl").read_text().splitlines()]
    status = json.loads((await asyncio.to_thread(run, "status", copy, "--json")).stdout)

    assert unknown
    assert numbers.states[State.UNKNOWN] == status["states"]["unknown"] == len(unknown)
    assert {row["applied"] for row in exported if row["state"] == "unknown"} == {"unknown"}
    assert sum(row["state"] == "unknown" for row in exported) == len(unknown)


async def test_an_account_that_failed_and_is_sent_again_by_a_dead_run_is_unknown(path: Path) -> None:
    """The recorded refusal belongs to an earlier request."""
    write(path, [outcome(n, State.FAILED, status=400, scope="request") for n in range(FLEET)], total=FLEET)
    copy, api = await dead(path, 10, on_failed="retry")

    found = table(copy)

    assert api.doubts
    assert {found[ordinal] for ordinal in api.doubts} <= {("patched", None), IN_DOUBT}


async def test_a_row_that_was_refused_stays_so(path: Path) -> None:
    """Nothing was sent for it, and nothing could be."""
    write(path, [refused(0), *(outcome(n, State.SKIPPED) for n in range(1, FLEET))], total=FLEET)
    held = Journal.open(path)
    copy = killed(path)
    await held.aclose()

    found = table(copy)

    assert (found[0], found[1]) == (UNSENT, IN_DOUBT)


@pytest.mark.parametrize("finite", [True, False], ids=["finite", "endless"])
async def test_accounts_that_a_run_did_not_send_are_skipped_again_after_it_ended_well(path, finite) -> None:
    await ended(path, limit=100)
    await ended(path, limit=1, finite=finite)

    found = table(path)

    assert {ordinal for ordinal, what in found.items() if what != UNSENT} == set(range(101))


async def test_accounts_that_a_stopped_run_did_not_send_are_skipped_again(path: Path) -> None:
    await ended(path, limit=100)
    async with rotation(path, Api()) as stopped:
        stopped.stop()
        await stopped.run()

    assert {ordinal for ordinal, what in table(path).items() if what != UNSENT} == set(range(100))


async def test_accounts_that_a_cancelled_run_did_not_send_are_skipped_again(path: Path) -> None:
    await ended(path, limit=100)
    with pytest.raises(KeyError):
        async with rotation(path, Api()):
            raise KeyError

    assert {ordinal for ordinal, what in table(path).items() if what != UNSENT} == set(range(100))


@pytest.mark.parametrize("on_unknown", ["retry", "report"])
async def test_a_run_does_not_doubt_accounts_that_it_may_send_itself(path, on_unknown) -> None:
    """A run marks accounts as possibly sent in the table from which it reads its rows."""
    await ended(path, limit=100)
    api = await ended(path, on_unknown=on_unknown)

    assert set(api.doubts) == set(range(100, FLEET))
    assert set(api.doubts.values()) == {False}


async def test_the_next_run_is_in_doubt_about_what_a_dead_run_may_have_sent(path: Path) -> None:
    await ended(path, limit=100)
    copy, _ = await dead(path, 60)
    in_doubt = {ordinal for ordinal, what in table(copy).items() if what == IN_DOUBT}

    api = await ended(copy)

    assert {ordinal for ordinal, doubt in api.doubts.items() if doubt} == in_doubt
    assert {what for what, _ in table(copy).values()} == {"patched"}


async def test_accounts_maybe_sent_by_a_dead_run_of_an_earlier_version_are_in_doubt(path: Path) -> None:
    """The earlier version recorded them as skipped, even if they had been sent."""
    write(path, [outcome(n, State.SKIPPED) for n in range(3)], **{"total": 3, "under way": 1, "reached": 2})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS covered")

    journal = Journal.open(path)
    entries = [state for _, (_, state, *_) in journal.entries()]
    await journal.aclose()

    assert entries == [State.UNKNOWN, State.UNKNOWN, State.SKIPPED]


async def test_an_unknown_outcome_of_a_run_stays_unknown_when_it_ends(path: Path) -> None:
    """The account is unknown by its outcome, not only because the run may send it."""
    write(path, [outcome(n, State.SKIPPED) for n in range(3)], total=3)
    journal = Journal.open(path)
    journal.record(outcome(1, State.UNKNOWN))
    await journal.aclose()

    assert [what for what, _ in table(path).values()] == ["skipped", "unknown", "skipped"]


async def test_export_says_how_many_accounts_have_no_line_yet(path: Path) -> None:
    copy, _ = await dead(path, 60)
    with JournalReader(copy) as view:
        count = collect_statistics(view, stage_of(view), NIGHT).maybe_sent

    done = CliRunner().invoke(cli, ["export", str(copy)])
    await ended(copy)
    after = CliRunner().invoke(cli, ["export", str(copy)])

    assert count
    fact = f"up to {count:,} more accounts may have been sent by a run that was killed"
    assert done.stderr == f"{fact}. Resume the run to list them\n"
    assert after.stderr == ""


async def test_doubts_of_a_dead_run_are_not_those_of_the_runs_before_it(path: Path) -> None:
    """A report of an earlier run says nothing about accounts of a later one."""
    await ended(path, limit=100, finite=False)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET state = 'complete', began = 1.0, total = NULL")
    copy, _ = await dead(path, 60, every=0.0)

    with JournalReader(copy, run=1) as view:
        first = collect_statistics(view, stage_of(view), NIGHT)
    with JournalReader(copy) as view:
        latest = collect_statistics(view, stage_of(view), NIGHT)

    assert (first.stage, first.maybe_sent) == (Stage.ENDED, 0)
    assert latest.stage is Stage.DIED
    assert latest.maybe_sent


async def test_assignment_of_an_account_in_doubt_reads_as_unknown(path: Path) -> None:
    """The latest known assignment is an earlier run's, and the dead run may have made another."""
    write(path, [outcome(n, assignment="u@p1:80") for n in range(FLEET)], total=FLEET, began=1.0)
    change(path, "UPDATE runs SET state = 'complete'")
    await ended(path, limit=100, every=0.0)
    copy, _ = await dead(path, 60)
    in_doubt = {f"acc_{ordinal:06}" for ordinal, what in latest_of(copy).items() if what == IN_DOUBT}

    with JournalReader(copy) as view:
        assigned = {entry.account_id: entry for entry in assignments_of(view)}

    assert in_doubt
    assert len(assigned) == FLEET
    assert {name for name, entry in assigned.items() if entry.state == State.UNKNOWN} == in_doubt
    assert {assigned[name].assignment for name in in_doubt} == {"u@p1:80"}


async def test_status_names_managed_changes_that_are_too_old_to_send(path: Path) -> None:
    outcomes = [outcome(n, State.UNKNOWN, assignment="managed US") for n in range(3)]
    write(path, [*outcomes, outcome(3, State.UNKNOWN, assignment="u@p1:80")], total=4, began=NIGHT)

    with JournalReader(path) as view:
        young = advice("j", collect_statistics(view, stage_of(view), NIGHT + 3_600))
        old = advice("j", collect_statistics(view, stage_of(view), NIGHT + 90_000))

    assert "except" not in young
    assert "except 3 accounts that may have got a managed proxy more than 24 hours ago" in old
    assert "`postpress-async export j --state unknown`" in old


@pytest.mark.slow
async def test_a_dead_first_run_says_how_many_accounts_it_may_have_sent(path: Path) -> None:
    """The journal has no rows of these accounts yet, but it has the watermark of the run."""
    copy, api = await dead(path, 60)
    patched = len(table(copy))

    text = (await asyncio.to_thread(run, "status", copy)).stdout
    status = json.loads((await asyncio.to_thread(run, "status", copy, "--json")).stdout)

    assert len(api.doubts) - patched <= status["maybe_sent"] < FLEET // 2
    sentence = f"up to {status['maybe_sent']:,} more accounts may have been sent by a run that was killed"
    assert sentence in text


async def test_accounts_maybe_sent_by_a_dead_run_are_reported_until_completed(path: Path) -> None:
    """Also after a run that came to none of these accounts."""
    copy, _ = await dead(path, 60)
    await ended(copy, limit=1, finite=False)
    with JournalReader(copy) as view:
        before = collect_statistics(view, stage_of(view), NIGHT).maybe_sent
    await ended(copy)
    with JournalReader(copy) as view:
        after = collect_statistics(view, stage_of(view), NIGHT).maybe_sent

    assert before
    assert after == 0
