"""Inputs that are edited between the runs of a rotation: nothing is lost, and nothing is sent twice."""

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
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
    change_of,
)

US, DE = ",US,", ",DE,"
CHANGES = (US, DE, ",,socks5://a.example:1", ",,http://user:word@b.example:1")
END = Literal["natural", "stop", "kill", "cancel"]
UNSURE = Conditions(unanswered=0.3, half_done=0.1)

Rows = list[str]
"""The rows of the file, such as ``acc_1,US,``."""


@define
class Nights:
    """
    Runs of one rotation, whose input is edited in between.

    Attributes:
        rows: The input of the latest run.
        refused: Why the latest run refused its input; None if it did not.
        edit: What the latest run said is new in it.
        patched: Number of requests for each account that a journal had as patched after an earlier run.
    """

    folder: Path
    rows: Rows
    server: CountingServer = field(factory=lambda: CountingServer(1, Traits(stores_errors=False)))
    journal: Path = field(init=False)
    refused: str | None = None
    edit: str | None = None
    patched: dict[str, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.journal = self.folder / "journal-0"

    async def run(
        self, rows: Rows | None = None, end: END = "natural", at: int = 0, conditions: Conditions = UNSURE
    ) -> None:
        """Run with *rows*, or with the rows before if they are refused; end it at request number *at*."""
        self.refused = None
        try:
            await self._run(self.rows if rows is None else rows, end, at, conditions)
            self.rows = self.rows if rows is None else rows
        except JournalError as error:
            self.refused = str(error)
            await self._run(self.rows, end, at, conditions)
        self._check()

    async def _run(self, rows: Rows, end: END, at: int, conditions: Conditions) -> None:
        server = self.server
        server.begin_run(conditions)
        (self.folder / "fleet.csv").write_text("\n".join(["account_id,country,proxy", *rows, ""]))
        wire = CountingTransport(server, API_KEY)
        session = session_over(wire, retry=RetryPolicy(attempts=1), pace=Pace(in_flight=4))
        with Fleet.open(self.folder / "fleet.csv") as fleet:
            rotation = session.rotate(fleet, journal=self.journal, halt="never")
            task = asyncio.create_task(self._drive(session, rotation))

            def on_request(number: int) -> None:
                if number == at and end == "stop":
                    rotation.stop()
                elif number == at and end != "natural":
                    asyncio.get_running_loop().call_later(0.01, die)

            def die() -> None:
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
        with closing(sqlite3.connect(self.journal)) as connection:
            sql = "SELECT account_id, state, line FROM outcomes ORDER BY ordinal"
            return connection.execute(sql).fetchall()

    @property
    def is_complete(self) -> bool:
        if not self.journal.exists():
            return False
        with closing(sqlite3.connect(self.journal)) as connection:
            [(state,)] = connection.execute("SELECT state FROM runs")
        return bool(state == "complete")

    def _check(self) -> None:
        """No key has two bodies, none in doubt has two keys, and nothing is sent after it was patched."""
        bodies: dict[Any, set[Any]] = {}
        for request in self.server.requests:
            bodies.setdefault(request.key, set()).add((request.account_id, change_of(request.change)))
        assert all(len(both) == 1 for both in bodies.values()), bodies
        for requests in self.server.by_account.values():
            keys = {request.key for request in requests if request.is_managed and request.may_be_applied}
            assert len(keys) <= 1, "\n".join(map(str, requests))
        assert all(count == 1 for count in self.server.handed_out.values())
        for account_id, count in self.patched.items():
            assert len(self.server.by_account[account_id]) == count, account_id
        for account_id, state in self.states().items():
            if state == State.PATCHED:
                assert any(request.applied_at for request in self.server.by_account[account_id])
                self.patched.setdefault(account_id, len(self.server.by_account[account_id]))


@pytest.fixture
def nights(tmp_path: Path) -> Callable[..., None]:
    """Plays a coroutine function with `Nights` of twelve accounts in virtual time."""

    def play(scenario: Any) -> None:
        with machine():
            stepped_loop.run(scenario(Nights(tmp_path, fleet(12))))

    return play


def fleet(count: int, change: str = US, first: int = 0) -> Rows:
    return [f"acc_{number}{change}" for number in range(first, first + count)]


HEALTHY = Conditions()


def test_killed_run_takes_appended_rows(nights) -> None:
    """The new rows were not sent, although the watermark was beyond them."""

    async def scenario(played: Nights) -> None:
        await played.run(end="kill", at=6)
        await played.run(fleet(15), conditions=HEALTHY)

        assert (played.refused, played.edit) == (None, "3 rows more")
        assert played.states() == dict.fromkeys((f"acc_{n}" for n in range(15)), "patched")

    nights(scenario)


def test_killed_run_refuses_a_removed_row_until_it_was_resumed(nights) -> None:
    """The accounts that the killed run may have sent are known only by their positions in the old input."""

    async def scenario(played: Nights) -> None:
        await played.run(end="kill", at=6)
        await played.run(fleet(11, first=1), end="stop", at=2)

        assert played.refused is not None
        assert "may have sent accounts that it did not record: use that input again first" in played.refused

        await played.run(fleet(11, first=1), conditions=HEALTHY)
        assert played.refused is None
        assert len(played.server.requests) < 30

    nights(scenario)


def test_account_in_doubt_keeps_its_key_at_its_new_position(nights) -> None:
    async def scenario(played: Nights) -> None:
        await played.run(end="stop", at=4, conditions=Conditions(unanswered=1.0))
        doubtful = [account for account, state in played.states().items() if state == State.UNKNOWN]
        await played.run(fleet(12)[::-1], conditions=HEALTHY)

        assert doubtful
        for account in doubtful:
            first, second = played.server.by_account[account]
            assert (first.key, first.change) == (second.key, second.change)
        assert set(played.states().values()) == {"patched"}

    nights(scenario)


@pytest.mark.parametrize("change", [DE, ",,a.example:1"], ids=["other country", "custom proxy"])
def test_account_in_doubt_that_asks_for_another_change_is_refused(nights, change: str) -> None:
    """With the same key, two bodies would differ; another key could order a second proxy."""

    async def scenario(played: Nights) -> None:
        await played.run(end="stop", at=1, conditions=Conditions(unanswered=1.0))
        await played.run([f"acc_0{change}", *fleet(12)[1:]], conditions=HEALTHY)

        assert played.refused is not None
        assert "acc_0 asks for another change than the one that was, or may have been" in played.refused

    nights(scenario)


def test_account_that_was_removed_and_comes_back_is_still_patched(nights) -> None:
    async def scenario(played: Nights) -> None:
        await played.run(end="stop", at=6, conditions=HEALTHY)
        await played.run(fleet(11, first=1), end="stop", at=2, conditions=HEALTHY)
        await played.run([*fleet(11, first=1), "acc_x,DE,"], end="stop", at=1, conditions=HEALTHY)
        assert played.edit == "1 row more"
        await played.run([*fleet(12), "acc_x,DE,"], conditions=HEALTHY)

        assert played.refused is None
        assert len(played.server.requests) == 13
        assert set(played.states().values()) == {"patched"}

    nights(scenario)


def with_change(rows: Rows, number: int, change: str) -> Rows:
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
"""By name: the rows edited at this index, with the name and the change of a new row."""
edits = st.lists(
    st.tuples(st.sampled_from(list(EDITS)), st.integers(0, 20), st.sampled_from(CHANGES)), max_size=3
)
runs = st.tuples(edits, st.sampled_from(["stop", "stop", "kill", "cancel"]), st.integers(1, 4))


def change_in(body: dict[str, Any]) -> str:
    """The cells of a row that ask for *body*, without a user name."""
    return f",{body['country']}," if "country" in body else f"{body['proxy']['host']}:{body['proxy']['port']}"


@settings(phases=[Phase.generate])
@given(st.lists(st.sampled_from(CHANGES), min_size=8, max_size=30), st.lists(runs, min_size=2, max_size=6))
def test_no_edit_between_runs_loses_or_doubles_an_account(changes: list[str], steps: list[Any]) -> None:
    """After each run, however it ends, `Nights` compares the server with the journal."""

    async def play(played: Nights) -> None:
        names = iter(range(1_000))
        for edited, end, at in steps:
            rows = played.rows
            for name, number, change in edited:
                rows = EDITS[name](rows, number, f"new_{next(names)}", change) or rows
            if played.is_complete:
                break
            await played.run(rows, end, at)
            assert played.refused is None or "may have" in played.refused
        for _ in range(3):
            await played.run(conditions=HEALTHY)

        assert played.refused is None
        wanted = {row.partition(",")[0]: row for row in played.rows if row != ",,"}
        invalid = {account_id for account_id, row in wanted.items() if row.endswith(",XX,")}
        places = {row.partition(",")[0]: line for line, row in enumerate(played.rows, 2) if row != ",,"}
        for account_id, state, line in played.outcomes():
            applied = [
                request.change for request in played.server.by_account[account_id] if request.applied_at
            ]
            if state == State.PATCHED and account_id in wanted.keys() - invalid:
                assert change_in(applied[-1]) in wanted[account_id]
            if account_id in wanted:
                assert line == places.pop(account_id)
            else:
                assert applied or state == State.UNKNOWN
            assert state in {"patched", "failed"} or account_id in invalid or account_id not in wanted
        assert not places

    random.seed(1)
    with machine(), TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        rows = [f"acc_{number}{change}" for number, change in enumerate(changes)]
        stepped_loop.run(play(Nights(Path(folder), rows)))
