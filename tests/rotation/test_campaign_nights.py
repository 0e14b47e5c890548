"""
Proves that the audit of several journal runs notices falsified journals and broken rules of the package.

`test_campaign` plays the random sequences of nights.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from postpress_async import CustomProxy
from postpress_async.errors import JournalError
from postpress_async.rotation import _input
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal import _input_check, _recovery
from postpress_async.rotation.journal._history import RollbackPlan, plan_rollback, runs_of, select
from postpress_async.rotation.journal._reading import JournalReader
from tests.support import campaign_nights
from tests.support.campaign import Player, describe, play
from tests.support.campaign_audit import Case, RunReport
from tests.support.campaign_machine import machine
from tests.support.campaign_nights import EVERY, audit
from tests.support.campaign_plan import End, Sequence, Step, small
from tests.support.campaign_reading import copy_journal
from tests.support.journals import execute_sql

pytestmark = pytest.mark.slow


def nights(*steps: Step, **other: Any) -> Sequence:
    return small(*steps, from_file=True, is_nights=True, **other)


OTHER_POOL = tuple(CustomProxy(host=f"q{number}.example.net", port=8080) for number in range(3))
ROTATED = (Step(every=0.0), Step(every=0.0, pool=OTHER_POOL))
MOVED = (*ROTATED, Step(on=("q0.example.net", "q1.example.net"), pool=OTHER_POOL))
ROLLED_BACK = (*ROTATED, Step(rollback_to=0.0))


@pytest.mark.parametrize(("steps", "runs"), [(ROTATED, 3), (ROLLED_BACK, 4)], ids=["rotated", "rolled back"])
def test_audit_of_nights_without_failures_finds_nothing(steps: tuple[Step, ...], runs: int) -> None:
    """This is the baseline for the mutations below."""
    player = play(nights(*steps))

    assert player.findings == [], describe(player)
    assert player.case.reading.latest == runs


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Player:
    """Nights that were played to their end without findings, with their journal."""
    with machine():
        player = Player(nights(*MOVED), tmp_path_factory.mktemp("nights"))
        assert player.play() == [], describe(player)
    return player


@pytest.fixture
def finished(played: Player, tmp_path: Path) -> tuple[Case, Path]:
    """A copy of `played` that a test can falsify: its case and its journal."""
    case, journal = played.case, tmp_path / "journal.sqlite3"
    copy_journal(played.journal, journal)
    return evolve(case, first_runs=dict(case.first_runs), patched_by=dict(case.patched_by)), journal


FALSIFICATIONS = {
    "outcome of an earlier run is missing": (
        "DELETE FROM outcomes WHERE run = 1 AND account_id = 'acc_003'",
        {"an earlier run has changed", "wrong counts in history"},
    ),
    "total of an earlier run is wrong": (
        "UPDATE runs SET total = 31 WHERE id = 2",
        {"an earlier run has changed"},
    ),
    "start of an earlier run is wrong": (
        "UPDATE runs SET starts = replace(starts, 'operator', 'user') WHERE id = 1",
        {"an earlier run has changed"},
    ),
    "counts of an earlier run are wrong": (
        """UPDATE runs SET counts = '[["patched", 30, 30]]' WHERE id = 1""",
        {"an earlier run has changed", "wrong counts in history"},
    ),
    "two assignments are swapped": (
        """UPDATE outcomes SET assignment = (
            SELECT assignment FROM outcomes AS other
            WHERE other.run = outcomes.run AND other.ordinal = 43 - outcomes.ordinal
        ) WHERE run = (SELECT max(id) FROM runs) AND ordinal IN (20, 23)""",
        {"wrong assignment"},
    ),
    "number of the run is wrong": (
        "UPDATE runs SET id = 9 WHERE id = (SELECT max(id) FROM runs)",
        {"wrong run"},
    ),
}


@pytest.mark.parametrize(("statement", "kinds"), FALSIFICATIONS.values(), ids=FALSIFICATIONS)
def test_audit_notices_a_falsified_journal(
    finished: tuple[Case, Path], statement: str, kinds: set[str]
) -> None:
    case, journal = finished
    execute_sql(journal, statement)

    assert kinds <= {finding.kind for finding in audit(case, journal)}


def test_audit_notices_a_history_that_omits_a_run(
    finished: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = import_module("postpress_async._cli.history")
    monkeypatch.setattr(history, "runs_of", lambda view, run: runs_of(view, run)[1:])

    assert "history lists other runs" in {finding.kind for finding in audit(*finished)}


@pytest.fixture
def left_alone(finished: tuple[Case, Path]) -> tuple[Case, Path]:
    """`finished` after a command that has left the complete run alone, because no other is due."""
    case, journal = finished
    case.runs = [*case.runs, RunReport(case.run.number + 1, Step(every=EVERY), left_alone=True)]
    assert audit(case, journal) == []
    return finished


def test_audit_notices_that_a_command_without_a_due_run_changed_the_journal(
    left_alone: tuple[Case, Path],
) -> None:
    case, journal = left_alone
    execute_sql(journal, "DELETE FROM outcomes WHERE account_id = 'acc_003'")

    found = audit(case, journal)

    assert "refused, but the journal has changed" in {finding.kind for finding in found}


def test_audit_notices_that_a_command_without_a_due_run_sent_a_request(
    left_alone: tuple[Case, Path],
) -> None:
    case, journal = left_alone
    requests = [*case.server.requests, evolve(case.server.requests[0], run=case.run.number)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case.server, "requests", requests)
        found = audit(case, journal)

    assert "refused, but sent" in {finding.kind for finding in found}


Mutation = Callable[[pytest.MonkeyPatch], object]


def every_run_has_one_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("postpress_async.rotation.journal._database.secrets.token_hex", lambda _size: "token")


def all_runs_are_kept(patch: pytest.MonkeyPatch) -> None:
    start_run = _recovery.start_run
    patch.setattr(
        "postpress_async.rotation.journal.start_run", lambda connection, _keep: start_run(connection, None)
    )


def no_run_is_due(patch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def time() -> float:
            return 0.0

    patch.setattr(_input_check, "time", Clock)


def everything_is_refused(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise JournalError("no reason")

    patch.setattr(_input_check, "_check_selection", refuse)


def unfinished_runs_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_input_check, "_check_selection", lambda *_, **__: None)


def every_proxy_matches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Selection, "matches", lambda self, assignment: True)


def only_one_proxy_matches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Selection, "matches", lambda self, assignment: assignment.startswith("q0."))


def accounts_outside_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    def select_without_others(selection: Selection, view: JournalReader) -> None:
        select(selection, view)
        selection.outside.clear()

    patch.setattr(_input, "select", select_without_others)


def rollback_omits_an_account(patch: pytest.MonkeyPatch) -> None:
    def plan_without_last_account(*args: Any) -> RollbackPlan:
        plan = plan_rollback(*args)
        plan.changes.popitem()
        return plan

    patch.setattr(campaign_nights, "plan_rollback", plan_without_last_account)


MUTATIONS: dict[str, tuple[Mutation, Sequence, str]] = {
    "runs have the same keys": (every_run_has_one_token, nights(*ROTATED), "key of an earlier run"),
    "--keep keeps all": (
        all_runs_are_kept,
        nights(*ROTATED, Step(every=0.0, keep=2)),
        "too many runs are kept",
    ),
    "no run is due": (
        no_run_is_due,
        nights(Step(every=EVERY, pause=2 * EVERY), Step(every=EVERY)),
        "a run that is due was left alone",
    ),
    "every start is refused": (everything_is_refused, nights(Step()), "refused without a cause"),
    "unfinished run is not finished first": (
        unfinished_runs_are_ignored,
        nights(
            *ROTATED, Step(every=0.0, pool=OTHER_POOL, end=End.STOP, after_requests=3, in_flight=3), MOVED[-1]
        ),
        "not refused",
    ),
    "--on selects all accounts": (
        every_proxy_matches,
        nights(*MOVED),
        "an account was sent that is not selected",
    ),
    "--on omits accounts": (only_one_proxy_matches, nights(*MOVED), "an account was left out"),
    "--on ignores other accounts": (
        accounts_outside_are_not_counted,
        nights(Step(), Step(on=("p0.example.net",), pool=small().pool[1:]), accounts_per_proxy=2),
        "proxy over its cap",
    ),
    "rollback omits an account": (
        rollback_omits_an_account,
        nights(*ROLLED_BACK),
        "not rolled back",
    ),
}


@pytest.mark.parametrize(("mutate", "sequence", "kind"), MUTATIONS.values(), ids=MUTATIONS)
def test_audit_notices_a_broken_rule(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutation, sequence: Sequence, kind: str
) -> None:
    """Each mutation breaks one rule about several journal runs."""
    mutate(monkeypatch)

    assert kind in {finding.kind for _, finding in play(sequence).findings}
