"""Concurrent updates of one account: in the order of the calls, or only the newest of those that wait."""

import asyncio
from typing import Any

import pytest

from postpress_async import CustomProxy, ManagedProxy, PostPressSession, RetryPolicy, errors
from postpress_async._call import update
from postpress_async._call.keyed_lock import KeyedLock
from postpress_async.errors import Applied, Scope
from postpress_async.sandbox import Sandbox
from postpress_async.sandbox._server import Server
from tests.support.virtual_world import in_virtual_time, now, world


def host_of(server: Server) -> str:
    """The host of the proxy that acc_1 has."""
    return str((server.record.proxy_of("acc_1") or {})["proxy"]["host"])


def change(number: int) -> CustomProxy:
    return CustomProxy(host=f"p{number}.example.net", port=8080)


@in_virtual_time
async def test_latest_ends_the_calls_that_wait_and_sends_the_newest_change() -> None:
    """20 calls, of which the API takes a second each: the first is in flight, and only the last waits."""
    policy = RetryPolicy(deadline=5.0)
    async with world(same_account="latest", retry=policy) as (server, session, _, _):
        server.latency = 1.0
        calls = [asyncio.create_task(session.update_proxy("acc_1", change(number))) for number in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert now() < 2.1
        assert server.record.requests == 2
        assert host_of(server) == "p19.example.net"
    superseded = [result for result in results if isinstance(result, errors.SupersededError)]
    assert len(superseded) == 18
    for error in superseded:
        assert (error.applied, error.scope, error.account_id) == (Applied.NO, Scope.ACCOUNT, "acc_1")
        assert str(error) == "acc_1: not sent: a newer update of the account was made"
    assert [number for number, result in enumerate(results) if result not in superseded] == [0, 19]


@in_virtual_time
async def test_latest_with_calls_that_come_one_after_another_sends_at_most_every_second() -> None:
    async with world(same_account="latest") as (server, session, _, _):
        server.latency = 1.0
        calls = []
        for number in range(20):
            calls.append(asyncio.create_task(session.update_proxy("acc_1", change(number))))
            await asyncio.sleep(0.1)
        await asyncio.gather(*calls, return_exceptions=True)

        assert server.record.requests == 3
        assert host_of(server) == "p19.example.net"


@in_virtual_time
async def test_queue_sends_all_changes_in_the_order_of_the_calls() -> None:
    async with world() as (server, session, _, _):
        await asyncio.gather(*(session.update_proxy("acc_1", change(number)) for number in range(5)))

        assert server.record.requests == 5
        assert host_of(server) == "p4.example.net"


@in_virtual_time
async def test_latest_leaves_other_accounts_alone() -> None:
    async with world(same_account="latest") as (server, session, _, _):
        accounts = ["acc_1", "acc_2", "acc_3"]
        await asyncio.gather(*(session.update_proxy(account, change(1)) for account in accounts))

        assert server.record.requests == 3


@in_virtual_time
async def test_a_row_of_a_rotation_is_superseded_by_a_newer_call() -> None:
    """The row is skipped with the reason, and the rotation continues."""
    us = ManagedProxy(country="US")
    async with world(same_account="latest") as (server, session, _, _):
        server.latency = 1.0
        first = asyncio.create_task(session.update_proxy("acc_1", change(1)))
        await asyncio.sleep(0.1)
        many = asyncio.create_task(session.update_many({"acc_1": us, "acc_2": us}))
        await asyncio.sleep(0.1)
        await session.update_proxy("acc_1", change(2))
        await first
        results = await many

        assert host_of(server) == "p2.example.net"
    assert results["acc_1"].state == "skipped"
    assert isinstance(results["acc_1"].error, errors.SupersededError)
    assert results["acc_2"].state == "patched"


async def test_a_superseded_waiter_that_is_cancelled_too_does_not_release_the_lock() -> None:
    lock = KeyedLock(latest=True)
    assert lock.try_acquire("acc_1")
    superseded = asyncio.create_task(lock.acquire("acc_1"))
    await asyncio.sleep(0)
    latest = asyncio.create_task(lock.acquire("acc_1"))
    await asyncio.sleep(0)
    superseded.cancel()
    with pytest.raises((asyncio.CancelledError, errors.SupersededError)):
        await superseded

    assert not latest.done()
    lock.release("acc_1")
    await latest
    assert not lock.try_acquire("acc_1")
    lock.release("acc_1")
    assert lock.try_acquire("acc_1")


def test_other_values_are_refused() -> None:
    with pytest.raises(errors.ConfigurationError, match='same_account must be "queue" or "latest"'):
        PostPressSession("pp_key", same_account="newest")  # type: ignore[arg-type]


@pytest.mark.parametrize("retry", [3, RetryPolicy], ids=["number", "class"])
async def test_wrong_policy_is_refused_and_the_account_stays_usable(retry: Any) -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match="retry must be a RetryPolicy"):
            await session.update_proxy("acc_1", change(1), retry=retry)
        async with asyncio.timeout(5):
            await session.update_proxy("acc_1", change(1))


async def test_account_stays_usable_if_a_policy_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's lock is released if anything fails after it was acquired."""
    policy = RetryPolicy(before=print)
    async with Sandbox() as sandbox, sandbox.session() as session:
        with monkeypatch.context() as patch:
            patch.setattr(update, "new_retrying", None)
            with pytest.raises(TypeError):
                await session.update_proxy("acc_1", change(1), retry=policy)
        async with asyncio.timeout(5):
            await session.update_proxy("acc_1", change(1))


@pytest.mark.parametrize("name", ["retry", "pace"])
def test_session_refuses_what_is_not_a_policy_or_a_pace(name: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=f"{name} must be a .*, got 5"):
        PostPressSession("pp_key", **{name: 5})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
