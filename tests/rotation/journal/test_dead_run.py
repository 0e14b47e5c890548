"""After a run was killed, every reader of its journal reports the accounts that may have been sent."""

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
from tests.support.journals import NIGHT, crash_copy, execute_sql, outcome, refused, write

US = ManagedProxy(country="US")
FLEET = 2_000


def rows(count: int = FLEET) -> Iterator[Row | Refusal]:
    return (Row(ordinal, None, f"acc_{ordinal:06}", US) for ordinal in range(count))


class Api:
    """Patches every account, and records for each ordinal whether it was sent as one in doubt."""

    def __init__(self) -> None:
        self.received: dict[int, bool] = {}

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        self.received[int(account_id.removeprefix("acc_"))] = keys.in_doubt
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
        journal=lambda: Journal(path, on_failed=on_failed, on_unknown=on_unknown, every=every),
    )


async def complete(path: Path, **options: object) -> Api:
    """Run to the end, and return the API that received the accounts."""
    api = Api()
    async with rotation(path, api, **options) as running:  # type: ignore[arg-type]
        await running.run()
    return api


async def die_after(path: Path, outcomes: int, **options: object) -> tuple[Path, Api]:
    """Return the journal and the API of a run that is killed after this number of outcomes."""
    api, completed = Api(), 0
    async with rotation(path, api, **options) as running:  # type: ignore[arg-type]
        async for _ in running:
            completed += 1
            if completed == outcomes:
                copy, received = crash_copy(path), dict(api.received)
                break
    api.received = received
    return copy, api


def all_states(path: Path) -> dict[int, tuple[str, str | None]]:
    """State and applied of each account by ordinal, read from the table without the package."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT ordinal, state, applied FROM outcomes"
        return {ordinal: (state, applied) for ordinal, state, applied in connection.execute(query)}


def latest_states(path: Path) -> dict[int, tuple[str, str | None]]:
    """As `all_states`, but of the latest run only."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT ordinal, state, applied FROM latest"
        return {ordinal: (state, applied) for ordinal, state, applied in connection.execute(query)}


UNSENT = ("skipped", "no")
IN_DOUBT = ("unknown", "unknown")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_account_that_a_killed_run_sent_does_not_stay_skipped(path: Path) -> None:
    """A limited run skips accounts, then a full run sends them and is killed."""
    await complete(path, limit=100)
    copy, api = await die_after(path, 60)

    states = all_states(copy)

    assert len(api.received) >= 60
    assert {states[ordinal] for ordinal in api.received} <= {("patched", None), IN_DOUBT}
    assert states[FLEET - 1] == UNSENT  # above the watermark


async def test_statistics_export_and_status_report_accounts_maybe_sent_by_a_killed_run(
    path: Path, tmp_path
) -> None:
    await complete(path, limit=100)
    copy, _ = await die_after(path, 60)
    unknown = {ordinal for ordinal, state in all_states(copy).items() if state == IN_DOUBT}

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


async def test_failed_account_that_a_killed_run_sent_again_is_unknown(path: Path) -> None:
    """The recorded error response belongs to an earlier request."""
    write(path, [outcome(n, State.FAILED, status=400, scope="request") for n in range(FLEET)], total=FLEET)
    copy, api = await die_after(path, 10, on_failed="retry")

    states = all_states(copy)

    assert api.received
    assert {states[ordinal] for ordinal in api.received} <= {("patched", None), IN_DOUBT}


async def test_invalid_row_is_never_in_doubt(path: Path) -> None:
    write(path, [refused(0), *(outcome(n, State.SKIPPED) for n in range(1, FLEET))], total=FLEET)
    journal = Journal(path)
    copy = crash_copy(path)
    await journal.aclose()

    states = all_states(copy)

    assert (states[0], states[1]) == (UNSENT, IN_DOUBT)


@pytest.mark.parametrize("finite", [True, False], ids=["finite", "endless"])
async def test_accounts_that_a_run_did_not_send_are_skipped_when_it_ends(path, finite) -> None:
    await complete(path, limit=100)
    await complete(path, limit=1, finite=finite)

    states = all_states(path)

    assert {ordinal for ordinal, state in states.items() if state != UNSENT} == set(range(101))


async def test_accounts_that_a_stopped_run_did_not_send_are_skipped(path: Path) -> None:
    await complete(path, limit=100)
    async with rotation(path, Api()) as stopped:
        stopped.stop()
        await stopped.run()

    assert {ordinal for ordinal, state in all_states(path).items() if state != UNSENT} == set(range(100))


async def test_accounts_that_a_cancelled_run_did_not_send_are_skipped(path: Path) -> None:
    await complete(path, limit=100)
    with pytest.raises(KeyError):
        async with rotation(path, Api()):
            raise KeyError

    assert {ordinal for ordinal, state in all_states(path).items() if state != UNSENT} == set(range(100))


@pytest.mark.parametrize("on_unknown", ["retry", "report"])
async def test_run_sends_accounts_below_its_own_watermark_without_doubt(path, on_unknown) -> None:
    """The run itself sets these accounts to unknown, in the table from which it reads the outcomes."""
    await complete(path, limit=100)
    api = await complete(path, on_unknown=on_unknown)

    assert set(api.received) == set(range(100, FLEET))
    assert set(api.received.values()) == {False}


async def test_next_run_sends_accounts_that_a_killed_run_may_have_sent_as_in_doubt(path: Path) -> None:
    await complete(path, limit=100)
    copy, _ = await die_after(path, 60)
    in_doubt = {ordinal for ordinal, state in all_states(copy).items() if state == IN_DOUBT}

    api = await complete(copy)

    assert {ordinal for ordinal, is_in_doubt in api.received.items() if is_in_doubt} == in_doubt
    assert {state for state, _ in all_states(copy).values()} == {"patched"}


async def test_account_that_was_sent_with_an_unknown_outcome_stays_unknown_when_the_run_ends(
    path: Path,
) -> None:
    """Accounts that are unknown only because the run could have sent them become skipped again."""
    write(path, [outcome(n, State.SKIPPED) for n in range(3)], total=3)
    journal = Journal(path)
    journal.record(outcome(1, State.UNKNOWN))
    await journal.aclose()

    assert [state for state, _ in all_states(path).values()] == ["skipped", "unknown", "skipped"]


async def test_export_warns_of_unrecorded_accounts_until_the_run_is_resumed(path: Path) -> None:
    copy, _ = await die_after(path, 60)
    with JournalReader(copy) as view:
        count = collect_statistics(view, stage_of(view), NIGHT).maybe_sent

    before = CliRunner().invoke(cli, ["export", str(copy)])
    await complete(copy)
    after = CliRunner().invoke(cli, ["export", str(copy)])

    assert count
    fact = f"up to {count:,} more accounts may have been sent by a run that was killed"
    assert before.stderr == f"{fact}. Resume the run to list them\n"
    assert after.stderr == ""


async def test_statistics_of_an_earlier_run_ignore_that_a_later_run_was_killed(path: Path) -> None:
    await complete(path, limit=100, finite=False)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET state = 'complete', began = 1.0, total = NULL")
    copy, _ = await die_after(path, 60, every=0.0)

    with JournalReader(copy, run=1) as view:
        first = collect_statistics(view, stage_of(view), NIGHT)
    with JournalReader(copy) as view:
        latest = collect_statistics(view, stage_of(view), NIGHT)

    assert (first.stage, first.maybe_sent) == (Stage.ENDED, 0)
    assert latest.stage is Stage.DIED
    assert latest.maybe_sent


async def test_state_of_an_assignment_is_unknown_if_a_killed_run_may_have_changed_it(path: Path) -> None:
    """The latest known assignment comes from an earlier run, but the killed run may have changed it."""
    write(path, [outcome(n, assignment="u@p1:80") for n in range(FLEET)], total=FLEET, began=1.0)
    execute_sql(path, "UPDATE runs SET state = 'complete'")
    await complete(path, limit=100, every=0.0)
    copy, _ = await die_after(path, 60)
    in_doubt = {f"acc_{ordinal:06}" for ordinal, state in latest_states(copy).items() if state == IN_DOUBT}

    with JournalReader(copy) as view:
        assigned = {entry.account_id: entry for entry in assignments_of(view)}

    assert in_doubt
    assert len(assigned) == FLEET
    assert {name for name, entry in assigned.items() if entry.state == State.UNKNOWN} == in_doubt
    assert {assigned[name].assignment for name in in_doubt} == {"u@p1:80"}


async def test_advice_counts_managed_proxies_whose_key_may_have_expired(path: Path) -> None:
    outcomes = [outcome(n, State.UNKNOWN, assignment="managed US") for n in range(3)]
    write(path, [*outcomes, outcome(3, State.UNKNOWN, assignment="u@p1:80")], total=4, began=NIGHT)

    with JournalReader(path) as view:
        within_lifetime = advice("j", collect_statistics(view, stage_of(view), NIGHT + 3_600))
        expired = advice("j", collect_statistics(view, stage_of(view), NIGHT + 90_000))

    assert "except" not in within_lifetime
    assert "except 3 accounts that may have got a managed proxy more than 24 hours ago" in expired
    assert "`postpress-async export j --state unknown`" in expired


@pytest.mark.slow
async def test_status_of_a_killed_first_run_shows_how_many_accounts_it_may_have_sent(path: Path) -> None:
    """The journal has no outcomes of these accounts, so the number comes from the watermark."""
    copy, api = await die_after(path, 60)
    patched = len(all_states(copy))

    text = (await asyncio.to_thread(run, "status", copy)).stdout
    status = json.loads((await asyncio.to_thread(run, "status", copy, "--json")).stdout)

    assert len(api.received) - patched <= status["maybe_sent"] < FLEET // 2
    sentence = f"up to {status['maybe_sent']:,} more accounts may have been sent by a run that was killed"
    assert sentence in text


async def test_accounts_maybe_sent_by_a_killed_run_are_reported_until_completed(path: Path) -> None:
    """A limited run in between reaches none of these accounts, so they are still reported after it."""
    copy, _ = await die_after(path, 60)
    await complete(copy, limit=1, finite=False)
    with JournalReader(copy) as view:
        before = collect_statistics(view, stage_of(view), NIGHT).maybe_sent
    await complete(copy)
    with JournalReader(copy) as view:
        after = collect_statistics(view, stage_of(view), NIGHT).maybe_sent

    assert before
    assert after == 0
