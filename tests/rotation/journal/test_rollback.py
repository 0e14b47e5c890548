"""Which change a rollback plans for each account, and which accounts cannot go back."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from postpress_async import CustomProxy, ManagedProxy, Outcome
from postpress_async.errors import JournalError
from postpress_async.rotation import State
from postpress_async.rotation._pool import as_pooled
from postpress_async.rotation.journal import OUTCOME, row_of
from postpress_async.rotation.journal._database import connect
from postpress_async.rotation.journal._history import RollbackPlan, plan_rollback
from postpress_async.rotation.journal._reading import JournalReader
from tests.support.journals import outcome

PROXIES = [CustomProxy(host=f"p{number}.example.net", port=8080, password="hunter2") for number in range(4)]
P0, P1, P2, P3 = (as_pooled(proxy).label for proxy in PROXIES)


def write_runs(path: Path, *runs: Sequence[Outcome], selection: str | None = None) -> Path:
    """Write a journal of complete runs, the latest with this *selection*."""
    connection, _ = connect(path)
    with connection:
        connection.execute("DELETE FROM runs")
        for number, outcomes in enumerate(runs, 1):
            latest = selection if number == len(runs) else None
            connection.execute(
                "INSERT INTO runs (id, token, state, selection, began) VALUES (?, 't', 'complete', ?, 1.0)",
                (number, latest),
            )
            connection.executemany(OUTCOME.sql[1], ((*row_of(outcome), number) for outcome in outcomes))
    connection.close()
    return path


def patched(*assignments: str | None) -> list[Outcome]:
    """Return a patched outcome for each account, in order, except those whose assignment is None."""
    return [
        outcome(number, assignment=assignment)
        for number, assignment in enumerate(assignments)
        if assignment is not None
    ]


def plan(path: Path, to: int, proxies: Sequence[CustomProxy] = PROXIES) -> RollbackPlan:
    with JournalReader(path) as view:
        return plan_rollback(view, to, map(as_pooled, proxies))


def test_each_account_gets_the_assignment_that_it_had_after_the_run(tmp_path) -> None:
    journal = write_runs(tmp_path / "j", patched(P0, P1, "managed US"), patched(P2, P3, P2))

    result = plan(journal, 1)

    assert result.changes == {
        "acc_000000": PROXIES[0],
        "acc_000001": PROXIES[1],
        "acc_000002": ManagedProxy(country="US"),
    }
    assert result.left_behind == []
    assert (result.selection.text, result.selection.run) == ("rollback to run 1", 3)


def test_account_with_a_proxy_made_from_a_template_cannot_go_back(tmp_path) -> None:
    """The journal has the template, but not the number of failovers that is part of the session's name."""
    gateway = CustomProxy(
        host="gw.example.net", port=7777, username="c-{account_id}-{try}", password="hunter2"
    )
    label = as_pooled(gateway).label
    journal = write_runs(tmp_path / "j", patched(label, P0), patched(P1, P1))

    result = plan(journal, 1, [*PROXIES, gateway])

    assert list(result.changes) == ["acc_000001"]
    assert [str(account) for account in result.left_behind] == [
        f"acc_000000: the journal does not know which session of {label} it had: rotate it instead"
    ]


@pytest.mark.parametrize(
    ("assignment", "change"),
    [
        ("managed DE", ManagedProxy(country="DE")),
        ("managed 203.0.113.42", ManagedProxy(ip="203.0.113.42")),
        ("managed DE 203.0.113.42", ManagedProxy(country="DE", ip="203.0.113.42")),
        ("line 7 p0.example.net:8080", PROXIES[0]),
    ],
)
def test_recorded_assignment_becomes_the_change_that_it_describes(tmp_path, assignment, change) -> None:
    journal = write_runs(tmp_path / "j", patched(assignment), patched(P3))

    assert plan(journal, 1).changes == {"acc_000000": change}


def test_assignment_after_a_run_may_come_from_an_older_run(tmp_path) -> None:
    """Run 2 covered only the first account."""
    journal = write_runs(tmp_path / "j", patched(P0, P1), patched(P2), patched(P3, P3))

    assert plan(journal, 2).changes == {"acc_000000": PROXIES[2], "acc_000001": PROXIES[1]}


def test_account_that_already_has_the_assignment_is_not_sent(tmp_path) -> None:
    journal = write_runs(tmp_path / "j", patched(P0, P1), patched(P2, P2), patched(P0, None))

    assert plan(journal, 1).changes == {"acc_000001": PROXIES[1]}


def test_account_that_failed_in_the_later_run_is_not_sent(tmp_path) -> None:
    failed = outcome(0, State.FAILED, assignment=P2)
    journal = write_runs(tmp_path / "j", patched(P0), [failed])

    result = plan(journal, 1)

    assert (result.changes, result.left_behind) == ({}, [])


def test_account_in_doubt_is_sent_even_if_it_may_have_the_same_assignment(tmp_path) -> None:
    journal = write_runs(tmp_path / "j", patched(P0), [outcome(0, State.UNKNOWN, assignment=P0)])

    assert plan(journal, 1).changes == {"acc_000000": PROXIES[0]}


def test_accounts_that_cannot_go_back_are_listed_with_the_reason(tmp_path) -> None:
    unknown = outcome(2, State.UNKNOWN, assignment=P0)
    journal = write_runs(tmp_path / "j", [*patched(P0), unknown], patched(P3, P3, P3))

    result = plan(journal, 1, PROXIES[1:])

    assert result.changes == {}
    assert [str(account) for account in result.left_behind] == [
        "acc_000000: its proxy p0.example.net:8080 is in no list: add a list that has it with --pool",
        "acc_000001: it had no known proxy after run 1: rotate it instead",
        "acc_000002: it had an unknown outcome after run 1: rotate it instead",
    ]


@pytest.mark.parametrize("to", [3, 9])
def test_rollback_to_a_run_that_does_not_exist_is_refused(tmp_path, to) -> None:
    journal = write_runs(tmp_path / "j", patched(P0), patched(P3))

    with pytest.raises(JournalError, match=f"has no run {to} to go back to"):
        plan(journal, to)


def test_resumed_rollback_has_the_same_plan_as_before(tmp_path) -> None:
    """Its rows stay the same, so accounts in doubt keep their idempotency keys."""
    rollback = [outcome(0, assignment=P0), outcome(1, State.UNKNOWN, assignment=P1)]
    journal = write_runs(
        tmp_path / "j", patched(P0, P1), patched(P2, P3), rollback, selection="rollback to run 1"
    )

    result = plan(journal, 1)

    assert result.selection.run == 3
    assert result.changes == {"acc_000000": PROXIES[0], "acc_000001": PROXIES[1]}
