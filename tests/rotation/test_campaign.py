"""
Sequences of runs, kills, stops, wrong keys, gateways and full disks on one journal, audited after every run.

The audit compares the table, `status --json` and `export` with what a counting server knows: no record is
false, no managed proxy is handed out twice, no account is lost, and no run hangs. The second half of this
module falsifies journals and breaks rules of the package, and proves that the audit notices this.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from postpress_async import ManagedProxy, Outcome, RotationSummary
from postpress_async.errors import Applied
from postpress_async.rotation import Halt, State, _account_task, _core
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._failure_monitor import FailureMonitor
from postpress_async.rotation._outcome import count_outcome
from postpress_async.rotation._outcome_queue import OutcomeQueue
from postpress_async.rotation._pool._allocator import ProxyAllocator
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal._recovery import DONE
from tests.support import campaign_commands
from tests.support.campaign import Player, describe, how_to_repeat, play
from tests.support.campaign_audit import audit
from tests.support.campaign_commands import describe_commands
from tests.support.campaign_machine import machine
from tests.support.campaign_nights import EVERY, draw_nights
from tests.support.campaign_plan import Account, End, Sequence, Step, draw, small
from tests.support.counting_server import Conditions, Traits
from tests.support.journals import execute_sql, patched_outcome

pytestmark = pytest.mark.slow

SEQUENCES = int(os.environ.get("POSTPRESS_TEST_CAMPAIGN", "40"))
NIGHTS = int(os.environ.get("POSTPRESS_TEST_CAMPAIGN_NIGHTS", "15"))
COMMANDS = int(os.environ.get("POSTPRESS_TEST_CAMPAIGN_COMMANDS", "3"))


@pytest.mark.parametrize("seed", range(1, SEQUENCES + 1))
def test_sequence_of_runs_in_virtual_time_breaks_no_rule(seed: int) -> None:
    player = play(draw(seed))

    if player.findings:
        pytest.fail(f"{describe(player)}\nrepeat: {how_to_repeat(seed, player.findings)}", pytrace=False)


# Two seeds in which --on selects an account that is not on the proxy, because the journal cannot know it:
# 20010: the killed run received the error response for its change, but died before it recorded it.
# 30073: --on-unknown report recorded it as unknown, but the killed run had not sent it.
@pytest.mark.parametrize("seed", [*range(1, NIGHTS + 1), 20010, 30073])
def test_sequence_of_nights_in_virtual_time_breaks_no_rule(seed: int) -> None:
    """Several journal runs have ``--every``, ``--keep``, ``--on``, edited inputs and rollbacks."""
    player = play(draw_nights(seed))

    if player.findings:
        repeat = f"python -m tests.support.campaign --nights --seed {seed}"
        pytest.fail(f"{describe(player)}\nrepeat: {repeat}", pytrace=False)


async def test_sequences_of_commands_break_no_rule(tmp_path: Path) -> None:
    """Commands are real processes, which are killed by SIGKILL and use a real socket."""
    two_at_a_time = asyncio.Semaphore(2)

    async def play_commands(seed: int) -> str | None:
        folder = tmp_path / str(seed)
        folder.mkdir()
        async with two_at_a_time:
            player = await campaign_commands.play(seed, folder)
        return describe_commands(player) if player.findings else None

    descriptions = await asyncio.gather(*(play_commands(seed) for seed in range(1, COMMANDS + 1)))

    if texts := [text for text in descriptions if text is not None]:
        pytest.fail("\n".join(texts), pytrace=False)


@pytest.mark.parametrize("seed", [15, 137, 139])
async def test_sequence_of_commands_over_several_nights_breaks_no_rule(seed: int, tmp_path: Path) -> None:
    player = await campaign_commands.play(seed, tmp_path, nights=True)

    if player.findings:
        pytest.fail(describe_commands(player), pytrace=False)


# --- The audit itself ----------------------------------------------------------------------------


KILLED_THEN_STOPPED = (
    Step(end=End.KILL, after_requests=8, delay=0.06, in_flight=4),
    Step(end=End.STOP, after_requests=3, in_flight=4),
    Step(end=End.CANCEL, after_requests=4, delay=0.01, in_flight=4),
)


def test_audit_of_a_sequence_without_failures_finds_nothing() -> None:
    """This is the baseline for the mutations below."""
    player = play(small(*KILLED_THEN_STOPPED))

    assert player.findings == [], describe(player)
    assert [run.ended for run in player.case.runs][:3] == [End.KILL, End.STOP, End.CANCEL]
    assert len(player.case.server.handed_out) == 17  # all managed accounts except the one that does not exist


def test_run_with_another_input_that_is_killed_before_it_is_due_changes_nothing() -> None:
    """The journal still describes the accounts of the latest journal run."""
    more = (Account("acc_new", ManagedProxy(country="US")), *small().accounts)

    player = play(
        small(
            Step(every=EVERY),
            Step(every=EVERY, accounts=more, end=End.KILL, pause=2 * EVERY),
            Step(every=EVERY, accounts=more),
        )
    )

    assert player.findings == [], describe(player)
    assert [run.left_alone for run in player.case.runs][:3] == [False, True, False]


def test_audit_does_not_require_a_halt_for_failures_after_a_stop() -> None:
    """The stopped run only waits for the requests in flight."""
    traits = Traits(unknown=frozenset(f"acc_{number:03}" for number in range(10)))

    player = play(
        small(Step(halt=Halt(failures=5), end=End.STOP, after_requests=10, in_flight=10), traits=traits)
    )

    assert player.findings == [], describe(player)
    assert player.case.runs[0].summary is not None
    assert player.case.runs[0].summary.states[State.FAILED] == 10


def test_audit_allows_a_refused_command_to_set_the_times_of_accounts_in_doubt() -> None:
    """Pairs are compared one by one after the journal is open, and opening it sets these times."""
    more = (Account("acc_new", ManagedProxy(country="US")), *small().accounts)

    player = play(
        small(
            Step(limit=10),
            Step(end=End.KILL, after_requests=3, pause=60.0),
            Step(accounts=more),
            on_unknown="report",
            is_nights=True,
        )
    )

    assert player.findings == [], describe(player)
    assert player.case.runs[2].was_refused


def test_same_seed_repeats_every_request_at_the_same_virtual_time() -> None:
    first, second = play(draw(8, 30)), play(draw(8, 30))

    assert [str(run.ended) for run in first.case.runs] == [str(run.ended) for run in second.case.runs]
    requests_of_first, requests_of_second = (
        [(request.account_id, request.sent_at, request.status) for request in player.case.server.requests]
        for player in (first, second)
    )
    assert requests_of_first == requests_of_second


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Player]:
    """A sequence that was played to its end without findings, with its journal."""
    with machine():
        player = Player(small(), tmp_path)
        assert player.play() == []
        yield player


FALSIFICATIONS = {
    "refused account is patched": (
        "UPDATE outcomes SET state = 'patched', status = 200, applied = NULL WHERE account_id = 'acc_017'",
        "patched, but not applied",
    ),
    "another proxy of the pool is assigned": (
        "UPDATE outcomes SET assignment = 'p9.example.net:8080' WHERE account_id = 'acc_024'",
        "patched, but not applied",
    ),
    "applied change is failed": (
        "UPDATE outcomes SET state = 'failed', applied = 'no' WHERE account_id = 'acc_003'",
        "failed with applied = no, but applied",
    ),
    "applied change is skipped": (
        "UPDATE outcomes SET state = 'skipped', applied = 'no' WHERE account_id = 'acc_003'",
        "skipped with applied = no, but applied",
    ),
    "managed account is failed in doubt": (
        "UPDATE outcomes SET state = 'failed', applied = 'unknown' WHERE account_id = 'acc_003'",
        "failed, but a managed proxy is in doubt",
    ),
    "refused account is unknown": (
        "UPDATE outcomes SET state = 'unknown', applied = 'unknown' WHERE account_id = 'acc_017'",
        "unknown, but everything was refused",
    ),
    "row is missing": ("DELETE FROM outcomes WHERE account_id = 'acc_003'", "sent, but without a row"),
    "row belongs to another account": (
        "UPDATE outcomes SET account_id = 'acc_999' WHERE account_id = 'acc_003'",
        "rows of other accounts",
    ),
    "total is wrong": ("UPDATE runs SET total = 31", "wrong total"),
    "account is left skipped": (
        "UPDATE outcomes SET state = 'skipped', applied = 'unknown' WHERE account_id = 'acc_020'",
        "lost: skipped",
    ),
}


@pytest.mark.parametrize(("statement", "kind"), FALSIFICATIONS.values(), ids=FALSIFICATIONS)
def test_audit_notices_a_falsified_journal(finished: Player, statement: str, kind: str) -> None:
    """`status` and `export` read the falsified table, so the readers agree."""
    execute_sql(finished.journal, statement)

    assert kind in {finding.kind for finding in audit(finished.case, finished.journal)}


def test_audit_notices_an_export_that_omits_a_row(finished: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    from postpress_async.rotation.journal._reading import JournalReader

    outcomes = JournalReader.outcomes
    monkeypatch.setattr(JournalReader, "outcomes", lambda *args: list(outcomes(*args))[1:])

    assert "readers disagree" in {finding.kind for finding in audit(finished.case, finished.journal)}


def test_audit_notices_a_journal_that_cannot_be_read(finished: Player) -> None:
    finished.journal.write_bytes(b"")

    assert "journal cannot be read" in {finding.kind for finding in audit(finished.case, finished.journal)}


Mutation = Callable[[pytest.MonkeyPatch], object]


def another_key_each_time(patch: pytest.MonkeyPatch) -> None:
    count = iter(range(10**6))
    patch.setattr(RowKeys, "current", property(lambda _: f"key-{next(count)}"))


def the_same_key_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RowKeys, "current", property(lambda self: "key"))


def cancelled_is_skipped(patch: pytest.MonkeyPatch) -> None:
    def skipped(task: AccountTask) -> Outcome:
        return Outcome(*task._row_id, State.SKIPPED, applied=Applied.NO)

    patch.setattr(AccountTask, "_cancelled", skipped)


def failed_is_patched(patch: pytest.MonkeyPatch) -> None:
    def patched(ordinal: int, line: int | None, account_id: str, *_fields: Any, **_other: Any) -> Outcome:
        return patched_outcome(ordinal, line, account_id, 1, 0.1)

    patch.setattr(_account_task, "failed_outcome", patched)


def patched_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(DONE, "retry", "state = 'failed'")


def end_is_not_signalled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutcomeQueue, "end", lambda self: None)


def no_halt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FailureMonitor, "observe", lambda self, outcome: None)


def no_proxy_is_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProxyAllocator, "_count", lambda self, index, accounts: None)


def summary_counts_twice(patch: pytest.MonkeyPatch) -> None:
    def count_twice(summary: RotationSummary, outcome: Outcome) -> None:
        count_outcome(summary, outcome)
        count_outcome(summary, outcome)

    patch.setattr(_core, "count_outcome", count_twice)


REFUSING = Step(conditions=Conditions(disconnected=frozenset(f"acc_{number:03}" for number in range(10))))
MUTATIONS: dict[str, tuple[Mutation, Sequence, str]] = {
    "new key for each request": (
        another_key_each_time,
        small(*KILLED_THEN_STOPPED),
        "managed proxies handed out twice",
    ),
    "new key for each request in doubt": (
        another_key_each_time,
        small(*KILLED_THEN_STOPPED),
        "new key while in doubt",
    ),
    "one key for two proxies of a failover": (
        the_same_key_for_all,
        small(traits=Traits(dead_proxies=frozenset({"p0.example.net:8080"})), accounts_per_proxy=None),
        "one key for two changes",
    ),
    "cancelled requests in flight are skipped": (
        cancelled_is_skipped,
        small(Step(end=End.CANCEL, after_requests=10, delay=0.01)),
        "skipped with applied = no, but applied",
    ),
    "failed account is patched": (failed_is_patched, small(), "patched, but not applied"),
    "patched account is sent again": (patched_is_sent_again, small(), "sent again after patched"),
    "end of the run is not signalled": (end_is_not_signalled, small(), "hangs"),
    "failures do not halt": (no_halt, small(evolve(REFUSING, halt=Halt(failures=5))), "halt not reported"),
    "refused key does not halt": (
        no_halt,
        small(Step(conditions=Conditions(api_key_fails_after=0))),
        "refused key not reported",
    ),
    "proxy is never full": (no_proxy_is_full, small(accounts_per_proxy=1), "proxy over its cap"),
    "summary counts twice": (summary_counts_twice, small(), "wrong summary"),
    "service ignores keys": (
        lambda patch: patch.setattr(
            "tests.support.counting_server.CountingServer._reply_after_keys", _execute_always
        ),
        small(*KILLED_THEN_STOPPED),
        "managed proxies handed out twice",
    ),
}


async def _execute_always(server: Any, request: Any, conditions: Conditions) -> Any:
    return await server._execute(request, conditions)


@pytest.mark.parametrize(("mutate", "sequence", "kind"), MUTATIONS.values(), ids=MUTATIONS)
def test_audit_notices_a_broken_rule(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutation, sequence: Sequence, kind: str
) -> None:
    """Each mutation breaks one rule of the package, or of the service."""
    mutate(monkeypatch)

    assert kind in {finding.kind for _, finding in play(sequence).findings}
