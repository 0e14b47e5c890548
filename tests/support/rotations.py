"""Rotations over a stub instead of a session, and what they leave in a journal."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from postpress_async import AccountPatched, ManagedProxy, Outcome, Rotation, errors, events
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Row, Update
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from tests.support.virtual_world import World

US = ManagedProxy(country="US")
ACCOUNTS = [f"acc_{number}" for number in range(10)]


def managed_rows(accounts: list[str] = ACCOUNTS) -> Iterator[Row]:
    return (Row(ordinal, None, account, US) for ordinal, account in enumerate(accounts))


class Stub:
    """Replaces the session. Patches every account, or raises its error from *errors_by_account*."""

    def __init__(self, **errors_by_account: BaseException) -> None:
        self.account_ids: list[str] = []
        self.keys: list[str | None] = []
        self.errors_by_account = errors_by_account

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        self.account_ids.append(account_id)
        self.keys.append(keys.current)
        await asyncio.sleep(0)
        if account_id in self.errors_by_account:
            raise self.errors_by_account[account_id]
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))


def api_error(type_: str, **attributes: Any) -> errors.ApiError:
    error_class = errors.BY_TYPE[f"errors/{type_}"]
    assert error_class.status is not None
    error = error_class(error_class.status, errors.Problem(f"errors/{type_}", instance="req_1"))
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def make_rotation(
    update: Update, journal: Path | None = None, in_flight: int = 3, **options: Any
) -> Rotation:
    """A rotation over `managed_rows`."""
    opener = None if journal is None else partial(Journal, journal)
    return Rotation(update, managed_rows(), in_flight=in_flight, journal=opener, finite=True, **options)


async def run(rotation: Rotation) -> Rotation:
    async with rotation:
        await rotation.run()
    return rotation


async def collect(rotation: Rotation) -> list[Outcome]:
    async with rotation:
        return [outcome async for outcome in rotation]


async def run_and_cancel(rotation: Rotation, condition: Callable[[], bool]) -> None:
    """Run *rotation* in a task, and cancel the task once *condition* is true."""
    task = asyncio.create_task(run(rotation))
    while not condition():
        assert not task.done()
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def query(journal: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(journal)) as connection, connection:
        return connection.execute(sql).fetchall()


def states_by_account(journal: Path) -> dict[str, str]:
    return dict(query(journal, "SELECT account_id, state FROM outcomes"))


def settled_events(world: World) -> dict[int, events.AccountSettled]:
    """The `AccountSettled` event of each row, by ordinal. Fails if a row has several."""
    settled = [event for _, event in world.events if isinstance(event, events.AccountSettled)]
    assert len({event.ordinal for event in settled}) == len(settled)
    return {event.ordinal: event for event in settled}


def assert_nothing_left_open(world: World) -> None:
    """Fail if a call, lock, wait or connection of the session is still open."""
    assert set(world.left().values()) == {0}
