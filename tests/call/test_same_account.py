"""Concurrent updates of one account are all sent in order, or with "latest" only the newest that waits."""

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


def current_host(server: Server) -> str:
    """The host of acc_1's proxy."""
    return str((server.record.proxy_of("acc_1") or {})["proxy"]["host"])


def change(number: int) -> CustomProxy:
    return CustomProxy(host=f"p{number}.example.net", port=8080)


@in_virtual_time
async def test_latest_sends_the_first_and_the_newest_of_simultaneous_calls() -> None:
    """The first call is in flight for a second; of the calls that wait, only the newest is sent."""
    policy = RetryPolicy(deadline=5.0)
    async with world(same_account="latest", retry=policy) as (server, session, _, _):
        server.latency = 1.0
        calls = [asyncio.create_task(session.update_proxy("acc_1", change(number))) for number in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert now() < 2.1
        assert server.record.requests == 2
        assert current_host(server) == "p19.example.net"
    superseded = [result for result in results if isinstance(result, errors.SupersededError)]
    assert len(superseded) == 18
    for error in superseded:
        assert (error.applied, error.scope, error.account_id) == (Applied.NO, Scope.ACCOUNT, "acc_1")
        assert str(error) == "acc_1: not sent: a newer update of the account was made"
    assert [number for number, result in enumerate(results) if result not in superseded] == [0, 19]


@in_virtual_time
async def test_latest_sends_the_newest_change_whenever_a_request_ends() -> None:
    """There are 20 calls within 2 s, and each request takes 1 s."""
    async with world(same_account="latest") as (server, session, _, _):
        server.latency = 1.0
        calls = []
        for number in range(20):
            calls.append(asyncio.create_task(session.update_proxy("acc_1", change(number))))
            await asyncio.sleep(0.1)
        await asyncio.gather(*calls, return_exceptions=True)

        assert server.record.requests == 3
        assert current_host(server) == "p19.example.net"


@in_virtual_time
async def test_queue_sends_all_changes_in_the_order_of_the_calls() -> None:
    async with world() as (server, session, _, _):
        await asyncio.gather(*(session.update_proxy("acc_1", change(number)) for number in range(5)))

        assert server.record.requests == 5
        assert current_host(server) == "p4.example.net"


@in_virtual_time
async def test_latest_does_not_supersede_calls_of_other_accounts() -> None:
    async with world(same_account="latest") as (server, session, _, _):
        accounts = ["acc_1", "acc_2", "acc_3"]
        await asyncio.gather(*(session.update_proxy(account, change(1)) for account in accounts))

        assert server.record.requests == 3


@in_virtual_time
async def test_account_of_update_many_is_skipped_if_a_newer_call_supersedes_it() -> None:
    us = ManagedProxy(country="US")
    async with world(same_account="latest") as (server, session, _, _):
        server.latency = 1.0
        first = asyncio.create_task(session.update_proxy("acc_1", change(1)))
        await asyncio.sleep(0.1)
        superseded = asyncio.create_task(session.update_many({"acc_1": us, "acc_2": us}))
        await asyncio.sleep(0.1)
        await session.update_proxy("acc_1", change(2))
        await first
        results = await superseded

        assert current_host(server) == "p2.example.net"
    assert results["acc_1"].state == "skipped"
    assert isinstance(results["acc_1"].error, errors.SupersededError)
    assert results["acc_2"].state == "patched"


async def test_waiter_that_is_superseded_and_then_cancelled_does_not_release_the_lock() -> None:
    lock = KeyedLock(latest=True)
    assert lock.try_acquire("acc_1")
    superseded = asyncio.create_task(lock.acquire("acc_1"))
    await asyncio.sleep(0)
    latest = asyncio.create_task(lock.acquire("acc_1"))
    await asyncio.sleep(0)
    superseded.cancel()  # before it has run, so it does not raise SupersededError
    with pytest.raises(asyncio.CancelledError):
        await superseded

    assert not latest.done()
    lock.release("acc_1")
    await latest
    assert not lock.try_acquire("acc_1")
    lock.release("acc_1")
    assert lock.try_acquire("acc_1")


def test_other_values_of_same_account_are_rejected() -> None:
    with pytest.raises(errors.ConfigurationError, match='same_account must be "queue" or "latest"'):
        PostPressSession("pp_key", same_account="newest")  # type: ignore[arg-type]


@pytest.mark.parametrize("retry", [3, RetryPolicy], ids=["number", "class"])
async def test_call_with_an_invalid_policy_does_not_keep_the_account_locked(retry: Any) -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match="retry must be a RetryPolicy"):
            await session.update_proxy("acc_1", change(1), retry=retry)
        async with asyncio.timeout(5):
            await session.update_proxy("acc_1", change(1))


async def test_call_that_fails_before_its_first_attempt_does_not_keep_the_account_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = RetryPolicy(before=print)
    async with Sandbox() as sandbox, sandbox.session() as session:
        with monkeypatch.context() as patch:
            patch.setattr(update, "new_retrying", None)  # calling it raises TypeError
            with pytest.raises(TypeError):
                await session.update_proxy("acc_1", change(1), retry=policy)
        async with asyncio.timeout(5):
            await session.update_proxy("acc_1", change(1))


@pytest.mark.parametrize("name", ["retry", "pace"])
def test_session_rejects_a_retry_or_pace_of_another_type(name: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=f"{name} must be a .*, got 5"):
        PostPressSession("pp_key", **{name: 5})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
