"""Updates before a deadline: the outcome of every account, and cancellation."""

import asyncio

import pytest

from postpress_async import ManagedProxy
from postpress_async.sandbox import SandboxThread
from tests.recipes.deadline import main, update_all

CHANGES = {f"acc_{number}": ManagedProxy(country="US") for number in range(1, 7)}


async def test_each_account_is_in_one_list(
    postpress_sandbox: SandboxThread, capsys: pytest.CaptureFixture[str], shows
) -> None:
    """An error of one account does not affect the others, and an unknown outcome is in doubt."""
    postpress_sandbox.script("acc_2", "errors/proxy_error", then=200)
    postpress_sandbox.script("acc_3", "errors/disconnected_account")
    postpress_sandbox.script("acc_4", "errors/unexpected_error")

    await main(CHANGES)

    shows("deadline", capsys.readouterr().out.splitlines())


async def test_a_request_without_a_response_at_the_deadline_is_in_doubt(
    postpress_sandbox: SandboxThread,
) -> None:
    """The request was sent, so the change may have been applied."""
    postpress_sandbox.script("acc_1", then="hang")
    async with postpress_sandbox.session() as session:
        results = await update_all(session, CHANGES, seconds=0.2)

    assert results.in_doubt == ["acc_1"]
    assert sorted(results.patched) == sorted(CHANGES.keys() - {"acc_1"})
    assert (results.refused, results.not_sent) == ({}, [])


async def test_cancellation_leaves_no_task_behind(postpress_sandbox: SandboxThread) -> None:
    """A server that shuts down cancels its handlers, and must not wait for their tasks."""
    for account in CHANGES:
        postpress_sandbox.script(account, then="hang")
    async with postpress_sandbox.session() as session:
        running = asyncio.create_task(update_all(session, CHANGES, seconds=60.0))
        while postpress_sandbox.record.in_flight < len(CHANGES):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == {asyncio.current_task()}
