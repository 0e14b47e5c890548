"""Inputs that are edited between the runs of a rotation: nothing is lost, and nothing is sent twice."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from attrs import define, field
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from postpress_async import Fleet, Pace, RetryPolicy, Rotation
from postpress_async.errors import JournalError
from postpress_async.rotation import State
from tests.support import stepped_loop
from tests.support.campaign_machine import machine, session_over
from tests.support.campaign_reading import copy_journal
from tests.support.counting_server import (
    API_KEY,
    Conditions,
    CountingServer,
    CountingTransport,
    Traits,
    canonical_json,
)
from tests.support.rotations import query

US, DE = ",US,", ",DE,"
CHANGES = (US, DE, ",,socks5://a.example:1", ",,http://user:word@b.example:1")
End = Literal["natural", "stop", "kill", "cancel"]
UNRELIABLE = Conditions(unanswered=0.3, half_done=0.1)
HEALTHY = Conditions()

Rows = list[str]
"""The rows of the file, such as ``acc_1,US,``."""


@define
class Runs:
    """
    Plays runs on one journal, whose input is edited between them, and checks the journal after each run.

    Attributes:
        rows: The input of the latest run.
        rejection: Why the latest run rejected its input; None if it accepted the input.
        edit: How the latest run described the edit of its input; None without an edit.
        patched: For each account that the journal had as patched after an earlier run, the number of requests
            at that time.
    """

    folder: Path
    rows: Rows
    server: CountingServer = field(factory=lambda: CountingServer(1, Traits(stores_errors=False)))
    journal: Path = field(init=False)
    rejection: str | None = None
    edit: str | None = None
    patched: dict[str, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.journal = self.folder / "journal-0"

    async def run(
        self,
        rows: Rows | None = None,
        end: End = "natural",
        end_at: int = 0,
        conditions: Conditions = UNRELIABLE,
    ) -> None:
        """
        Run with *rows*, or with the rows of the latest run if *rows* is None or rejected.

        Unless *end* is ``natural``, the run ends at request number *end_at*.
        """
        self.rejection = None
        rows = self.rows if rows is None else rows
        try:
            await self._run(rows, end, end_at, conditions)
            self.rows = rows
        except JournalError as error:
            self.rejection = str(error)
            await self._run(self.rows, end, end_at, conditions)
        self._check()

    async def _run(self, rows: Rows, end: End, end_at: int, conditions: Conditions) -> None:
        server = self.server
        server.begin_run(conditions)
        (self.folder / "fleet.csv").write_text("\n".join(["account_id,country,proxy", *rows, ""]))
        wire = CountingTransport(server, API_KEY)
        session = session_over(wire, retry=RetryPolicy(attempts=1), pace=Pace(in_flight=4))
        with Fleet.open(self.folder / "fleet.csv") as fleet:
            rotation = session.rotate(fleet, journal=self.journal, halt="never")
            task = asyncio.create_task(self._drive(session, rotation))

            def on_request(number: int) -> None:
                if number != end_at:
                    return
                if end == "stop":
                    rotation.stop()
                elif end in {"kill", "cancel"}:
                    asyncio.get_running_loop().call_later(0.01, kill_or_cancel)

            def kill_or_cancel() -> None:
                if end == "kill" and not task.done():
                    wire.is_cut = True
                    copy = self.folder / f"journal-{server.run}"
                    copy_journal(self.journal, copy)
                    self.journal = copy
                task.cancel()

            server.on_request = on_request
            await asyncio.wait({task})
            server.on_request = None
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _drive(self, session: Any, rotation: Rotation) -> None:
        async with session, rotation:
            self.edit = rotation.input_edit
            async for _ in rotation:
                pass

    def states(self) -> dict[str, str]:
        """The state of each account that has an outcome."""
        return {account: state for account, state, _ in self.outcomes()}

    def outcomes(self) -> list[Any]:
        return query(self.journal, "SELECT account_id, state, line FROM outcomes ORDER BY ordinal")

    @property
    def is_complete(self) -> bool:
        return self.journal.exists() and query(self.journal, "SELECT state FROM runs") == [("complete",)]

    def _check(self) -> None:
        """Check that no key is sent with two changes, and that no account gets a second managed proxy."""
        changes_by_key: dict[Any, set[Any]] = {}
        for request in self.server.requests:
            changes_by_key.setdefault(request.key, set()).add(
                (request.account_id, canonical_json(request.change))
            )
        assert all(len(changes) == 1 for changes in changes_by_key.values()), changes_by_key
        for requests in self.server.by_account.values():
            keys = {request.key for request in requests if request.is_managed and request.may_be_applied}
            assert len(keys) <= 1, "\n".join(map(str, requests))
        assert all(count == 1 for count in self.server.handed_out.values())
        for account_id, count in self.patched.items():
            assert len(self.server.by_account[account_id]) == count, (
                f"{account_id} was patched and sent again"
            )
        for account_id, state in self.states().items():
            if state == State.PATCHED:
                assert any(request.applied_at for request in self.server.by_account[account_id])
                self.patched.setdefault(account_id, len(self.server.by_account[account_id]))


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Plays a coroutine function of `Runs` with twelve accounts in virtual time."""

    def play_scenario(scenario: Any) -> None:
        with machine():
            stepped_loop.run(scenario(Runs(tmp_path, fleet(12))))

    return play_scenario


def fleet(count: int, change: str = US, first: int = 0) -> Rows:
    return [f"acc_{number}{change}" for number in range(first, first + count)]


def test_killed_run_continues_with_appended_rows(play) -> None:
    """
    The watermark of the killed run covers more rows than it had, but the appended rows were certainly not
    sent.
    """

    async def scenario(runs: Runs) -> None:
        await runs.run(end="kill", end_at=6)
        await runs.run(fleet(15), conditions=HEALTHY)

        assert (runs.rejection, runs.edit) == (None, "3 rows more")
        assert runs.states() == dict.fromkeys((f"acc_{n}" for n in range(15)), "patched")

    play(scenario)


def test_killed_run_must_be_resumed_before_a_row_is_removed(play) -> None:
    """The accounts that the killed run may have sent are known only by their positions in the old input."""

    async def scenario(runs: Runs) -> None:
        await runs.run(end="kill", end_at=6)
        await runs.run(fleet(11, first=1), end="stop", end_at=2)

        assert runs.rejection is not None
        assert "may have sent accounts that it did not record: use that input again first" in runs.rejection

        await runs.run(fleet(11, first=1), conditions=HEALTHY)
        assert runs.rejection is None
        assert len(runs.server.requests) < 30

    play(scenario)


def test_account_in_doubt_keeps_its_key_at_its_new_position(play) -> None:
    async def scenario(runs: Runs) -> None:
        await runs.run(end="stop", end_at=4, conditions=Conditions(unanswered=1.0))
        in_doubt = [account for account, state in runs.states().items() if state == State.UNKNOWN]
        await runs.run(fleet(12)[::-1], conditions=HEALTHY)

        assert in_doubt
        for account in in_doubt:
            first, second = runs.server.by_account[account]
            assert (first.key, first.change) == (second.key, second.change)
        assert set(runs.states().values()) == {"patched"}

    play(scenario)


@pytest.mark.parametrize("change", [DE, ",,a.example:1"], ids=["other country", "custom proxy"])
def test_another_change_of_an_account_in_doubt_is_rejected(play, change: str) -> None:
    """The old key cannot be used for another change, and a new key could order a second managed proxy."""

    async def scenario(runs: Runs) -> None:
        await runs.run(end="stop", end_at=1, conditions=Conditions(unanswered=1.0))
        await runs.run([f"acc_0{change}", *fleet(12)[1:]], conditions=HEALTHY)

        assert runs.rejection is not None
        assert "acc_0 asks for another change than the one that was, or may have been" in runs.rejection

    play(scenario)


def test_patched_account_that_is_removed_and_added_again_is_not_sent_again(play) -> None:
    async def scenario(runs: Runs) -> None:
        await runs.run(end="stop", end_at=6, conditions=HEALTHY)
        await runs.run(fleet(11, first=1), end="stop", end_at=2, conditions=HEALTHY)
        await runs.run([*fleet(11, first=1), "acc_x,DE,"], end="stop", end_at=1, conditions=HEALTHY)
        assert runs.edit == "1 row more"
        await runs.run([*fleet(12), "acc_x,DE,"], conditions=HEALTHY)

        assert runs.rejection is None
        assert len(runs.server.requests) == 13
        assert set(runs.states().values()) == {"patched"}

    play(scenario)


def with_change(rows: Rows, number: int, change: str) -> Rows:
    """Replace the change in the row at index *number*, unless the row is blank."""
    return [
        row.partition(",")[0] + change if index == number and row != ",," else row
        for index, row in enumerate(rows)
    ]


EDITS: dict[str, Callable[[Rows, int, str, str], Rows]] = {
    "append": lambda rows, _, new, change: [*rows, new + change],
    "remove": lambda rows, number, *_: rows[:number] + rows[number + 1 :],
    "move": lambda rows, number, *_: [*rows[:number], *rows[number + 1 :], *rows[number : number + 1]],
    "insert": lambda rows, number, new, change: [*rows[:number], new + change, *rows[number:]],
    "blank": lambda rows, number, *_: [*rows[:number], ",,", *rows[number:]],
    "change": lambda rows, number, _, change: with_change(rows, number, change),
    "invalid": lambda rows, number, *_: with_change(rows, number, ",XX,"),
    "reverse": lambda rows, *_: rows[::-1],
}
"""Edits by name: functions of the rows, an index, and the account and the change of a new row."""
edits = st.lists(
    st.tuples(st.sampled_from(list(EDITS)), st.integers(0, 20), st.sampled_from(CHANGES)), max_size=3
)
ended_runs = st.tuples(edits, st.sampled_from(["stop", "stop", "kill", "cancel"]), st.integers(1, 4))


def cells_of(body: dict[str, Any]) -> str:
    """The cells of a row that asks for *body*, without a user name and password."""
    return f",{body['country']}," if "country" in body else f"{body['proxy']['host']}:{body['proxy']['port']}"


@settings(phases=[Phase.generate])
@given(
    st.lists(st.sampled_from(CHANGES), min_size=8, max_size=30), st.lists(ended_runs, min_size=2, max_size=6)
)
def test_edits_between_runs_neither_lose_an_account_nor_send_it_twice(
    changes: list[str], steps: list[Any]
) -> None:
    """After each run, however it ends, `Runs` compares the server with the journal."""

    async def scenario(runs: Runs) -> None:
        new_numbers = iter(range(1_000))
        for step_edits, end, end_at in steps:
            rows = runs.rows
            for name, number, change in step_edits:
                rows = EDITS[name](rows, number, f"new_{next(new_numbers)}", change) or rows
            if runs.is_complete:
                break
            await runs.run(rows, end, end_at)
            assert runs.rejection is None or "may have" in runs.rejection
        for _ in range(3):
            await runs.run(conditions=HEALTHY)

        assert runs.rejection is None
        last_rows = {row.partition(",")[0]: row for row in runs.rows if row != ",,"}
        invalid = {account_id for account_id, row in last_rows.items() if row.endswith(",XX,")}
        lines = {row.partition(",")[0]: line for line, row in enumerate(runs.rows, 2) if row != ",,"}
        for account_id, state, line in runs.outcomes():
            applied = [request.change for request in runs.server.by_account[account_id] if request.applied_at]
            if state == State.PATCHED and account_id in last_rows.keys() - invalid:
                assert cells_of(applied[-1]) in last_rows[account_id]
            if account_id in last_rows:
                assert line == lines.pop(account_id)
            else:
                assert applied or state == State.UNKNOWN
            if account_id in last_rows.keys() - invalid:
                assert state in {"patched", "failed"}
        assert not lines

    random.seed(1)
    # In memory if possible: each run flushes its journal to disk.
    with machine(), TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        rows = [f"acc_{number}{change}" for number, change in enumerate(changes)]
        stepped_loop.run(scenario(Runs(Path(folder), rows)))
