"""
Sequences of runs, kills, stops, wrong keys, gateways and full disks on one journal, audited after every run.

The audit compares the table, `status --json` and `export` with what a counting server knows: no false record,
no double, nothing lost, nothing that hangs. The second half of this module shows that it can fail.
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
from postpress_async.rotation._outcome import count_outcome, patched_outcome
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
from tests.support.journals import change

pytestmark = pytest.mark.slow

SEQUENCES = int(os.environ.get("POSTPRESS_TEST_CAMPAIGN", "40"))
NIGHTS = int(os.environ.get("POSTPRESS_TEST_CAMPAIGN_NIGHTS", "15"))
COMMANDS = int(os.environ.get("POSTPRESS_TEST_CAMPAIGN_COMMANDS", "3"))


@pytest.mark.parametrize("seed", range(1, SEQUENCES + 1))
def test_no_sequence_leaves_a_false_record_a_double_or_a_loss(seed: int) -> None:
    """In virtual time, with the real session, rotation and journal."""
    player = play(draw(seed))

    if player.findings:
        pytest.fail(f"{describe(player)}\nrepeat: {how_to_repeat(seed, player.findings)}", pytrace=False)


# In 20010, --on takes an account whose refusal the run before heard, but died before it recorded it.
# In 30073, it takes one that --on-unknown report has recorded, which the killed run did not send after all.
@pytest.mark.parametrize("seed", [*range(1, NIGHTS + 1), 20010, 30073])
def test_no_sequence_of_nights_does_either(seed: int) -> None:
    """Several runs on one journal, with ``--every``, ``--keep``, ``--on``, edited inputs and rollbacks."""
    player = play(draw_nights(seed))

    if player.findings:
        repeat = f"python -m tests.support.campaign --nights --seed {seed}"
        pytest.fail(f"{describe(player)}\nrepeat: {repeat}", pytrace=False)


async def test_no_sequence_of_commands_does_either(tmp_path: Path) -> None:
    """Real processes that are killed by SIGKILL, over a real socket; two at a time."""
    at_once = asyncio.Semaphore(2)

    async def played(seed: int) -> str | None:
        folder = tmp_path / str(seed)
        folder.mkdir()
        async with at_once:
            player = await campaign_commands.play(seed, folder)
        return describe_commands(player) if player.findings else None

    found = await asyncio.gather(*(played(seed) for seed in range(1, COMMANDS + 1)))

    if texts := [text for text in found if text is not None]:
        pytest.fail("\n".join(texts), pytrace=False)


@pytest.mark.parametrize("seed", [15, 137, 139])
async def test_nights_of_commands_break_no_rule(seed: int, tmp_path: Path) -> None:
    """The nights have ``--every``, ``--keep``, ``--on``, ``rollback``, re-saved files and kills."""
    player = await campaign_commands.play(seed, tmp_path, nights=True)

    if player.findings:
        pytest.fail(describe_commands(player), pytrace=False)


# --- The campaign can fail -----------------------------------------------------------------------


KILLED_THEN_STOPPED = (
    Step(end=End.KILL, at=8, delay=0.06, in_flight=4),
    Step(end=End.STOP, at=3, in_flight=4),
    Step(end=End.CANCEL, at=4, delay=0.01, in_flight=4),
)


def test_a_sequence_without_troubles_finds_nothing() -> None:
    """The baseline for the mutations below."""
    player = play(small(*KILLED_THEN_STOPPED))

    assert player.findings == [], describe(player)
    assert [run.ended for run in player.case.runs][:3] == [End.KILL, End.STOP, End.CANCEL]
    assert len(player.case.server.handed_out) == 17  # all managed ones but the account that does not exist


def test_a_command_that_is_killed_while_it_leaves_a_run_alone_changes_nothing() -> None:
    """The next run is not due, so the journal goes on to be about the accounts of the latest run."""
    more = (Account("acc_new", ManagedProxy(country="US")), *small().accounts)

    player = play(
        small(
            Step(every=EVERY),
            Step(every=EVERY, accounts=more, end=End.KILL, rest=2 * EVERY),
            Step(every=EVERY, accounts=more),
        )
    )

    assert player.findings == [], describe(player)
    assert [run.left_alone for run in player.case.runs][:3] == [False, True, False]


def test_failures_after_a_stop_need_not_halt() -> None:
    """The operator has ended the run, and only waits for the requests in flight."""
    traits = Traits(unknown=frozenset(f"acc_{number:03}" for number in range(10)))

    player = play(small(Step(halt=Halt(failures=5), end=End.STOP, at=10, in_flight=10), traits=traits))

    assert player.findings == [], describe(player)
    assert player.case.runs[0].summary is not None
    assert player.case.runs[0].summary.states[State.FAILED] == 10


def test_a_killed_run_may_be_dated_by_a_command_that_is_refused() -> None:
    """Pairs are compared one by one, once the journal is open."""
    more = (Account("acc_new", ManagedProxy(country="US")), *small().accounts)

    player = play(
        small(
            Step(limit=10),
            Step(end=End.KILL, at=3, rest=60.0),
            Step(accounts=more),
            on_unknown="report",
            is_nights=True,
        )
    )

    assert player.findings == [], describe(player)
    assert player.case.runs[2].was_refused


def test_a_sequence_is_repeated_by_its_seed() -> None:
    """Every request, under the same conditions, at the same virtual second."""
    first, second = play(draw(8, 30)), play(draw(8, 30))

    assert [str(run.ended) for run in first.case.runs] == [str(run.ended) for run in second.case.runs]
    sent = [
        [(r.account_id, r.sent_at, r.status) for r in player.case.server.requests]
        for player in (first, second)
    ]
    assert sent[0] == sent[1]


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Player]:
    """A sequence that was played to its end and finds nothing; its journal is still there."""
    with machine():
        player = Player(small(), tmp_path)
        assert player.play() == []
        yield player


FALSE = {
    "patched that was refused": (
        "UPDATE outcomes SET state = 'patched', status = 200, applied = NULL WHERE account_id = 'acc_017'",
        "patched, but not applied",
    ),
    "another proxy of the pool": (
        "UPDATE outcomes SET assignment = 'p9.example.net:8080' WHERE account_id = 'acc_024'",
        "patched, but not applied",
    ),
    "failed that was applied": (
        "UPDATE outcomes SET state = 'failed', applied = 'no' WHERE account_id = 'acc_003'",
        "failed with applied = no, but applied",
    ),
    "skipped that was applied": (
        "UPDATE outcomes SET state = 'skipped', applied = 'no' WHERE account_id = 'acc_003'",
        "skipped with applied = no, but applied",
    ),
    "failed in doubt": (
        "UPDATE outcomes SET state = 'failed', applied = 'unknown' WHERE account_id = 'acc_003'",
        "failed, but a managed proxy is in doubt",
    ),
    "unknown that was refused": (
        "UPDATE outcomes SET state = 'unknown', applied = 'unknown' WHERE account_id = 'acc_017'",
        "unknown, but everything was refused",
    ),
    "a row that is missing": ("DELETE FROM outcomes WHERE account_id = 'acc_003'", "sent, but without a row"),
    "a row of another account": (
        "UPDATE outcomes SET account_id = 'acc_999' WHERE account_id = 'acc_003'",
        "rows of other accounts",
    ),
    "another total": ("UPDATE runs SET total = 31", "wrong total"),
    "an account that nobody got": (
        "UPDATE outcomes SET state = 'skipped', applied = 'unknown' WHERE account_id = 'acc_020'",
        "lost: skipped",
    ),
}


@pytest.mark.parametrize(("statement", "kind"), FALSE.values(), ids=FALSE)
def test_a_falsified_journal_is_noticed(finished: Player, statement: str, kind: str) -> None:
    """The table says what is not so; the two other readers repeat it."""
    change(finished.journal, statement)

    assert kind in {finding.kind for finding in audit(finished.case, finished.journal)}


def test_a_reader_that_disagrees_is_noticed(finished: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that leaves out a row."""
    from postpress_async.rotation.journal._reading import JournalReader

    outcomes = JournalReader.outcomes
    monkeypatch.setattr(JournalReader, "outcomes", lambda *words: list(outcomes(*words))[1:])

    assert "readers disagree" in {finding.kind for finding in audit(finished.case, finished.journal)}


def test_a_journal_that_cannot_be_read_is_noticed(finished: Player) -> None:
    """Requests were sent, so there has to be one."""
    finished.journal.write_bytes(b"")

    assert "journal cannot be read" in {finding.kind for finding in audit(finished.case, finished.journal)}


Break = Callable[[pytest.MonkeyPatch], object]


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


def nobody_hears_of_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutcomeQueue, "end", lambda self: None)


def no_halt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FailureMonitor, "observe", lambda self, outcome: None)


def no_proxy_is_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProxyAllocator, "_count", lambda self, index, accounts: None)


def the_summary_counts_twice(patch: pytest.MonkeyPatch) -> None:
    def twice(summary: RotationSummary, outcome: Outcome) -> None:
        count_outcome(summary, outcome)
        count_outcome(summary, outcome)

    patch.setattr(_core, "count_outcome", twice)


REFUSING = Step(conditions=Conditions(away=frozenset(f"acc_{number:03}" for number in range(10))))
BROKEN: dict[str, tuple[Break, Sequence, str]] = {
    "a key for each request": (
        another_key_each_time,
        small(*KILLED_THEN_STOPPED),
        "managed proxies handed out twice",
    ),
    "a key for each request, in doubt": (
        another_key_each_time,
        small(*KILLED_THEN_STOPPED),
        "fresh key while in doubt",
    ),
    "one key for a row and its failover": (
        the_same_key_for_all,
        small(traits=Traits(dead_proxies=frozenset({"p0.example.net:8080"})), accounts_per_proxy=None),
        "one key for two changes",
    ),
    "what was in flight is skipped": (
        cancelled_is_skipped,
        small(Step(end=End.CANCEL, at=10, delay=0.01)),
        "skipped with applied = no, but applied",
    ),
    "a failure is patched": (failed_is_patched, small(), "patched, but not applied"),
    "patched is sent again": (patched_is_sent_again, small(), "sent again after patched"),
    "an end that nobody hears of": (nobody_hears_of_the_end, small(), "hangs"),
    "failures do not halt": (no_halt, small(evolve(REFUSING, halt=Halt(failures=5))), "halt not reported"),
    "a refused key does not halt": (
        no_halt,
        small(Step(conditions=Conditions(key_fails_after=0))),
        "refused key not reported",
    ),
    "a proxy is never full": (no_proxy_is_full, small(accounts_per_proxy=1), "proxy over its cap"),
    "a summary that counts twice": (the_summary_counts_twice, small(), "summary is wrong"),
    "a service that ignores keys": (
        lambda patch: patch.setattr("tests.support.counting_server.CountingServer._behind", _execute_always),
        small(*KILLED_THEN_STOPPED),
        "managed proxies handed out twice",
    ),
}


async def _execute_always(server: Any, request: Any, conditions: Conditions) -> Any:
    return await server._execute(request, conditions)


@pytest.mark.parametrize(("broken", "sequence", "kind"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_noticed(
    monkeypatch: pytest.MonkeyPatch, broken: Break, sequence: Sequence, kind: str
) -> None:
    """Each mutation breaks one rule of the package."""
    broken(monkeypatch)

    assert kind in {finding.kind for _, finding in play(sequence).findings}
