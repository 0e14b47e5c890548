"""The queue returns each outcome once and in order, and makes workers wait only while it is full."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from postpress_async import Outcome
from postpress_async.rotation._outcome_queue import OutcomeQueue
from tests.support.journals import patched_outcome


def outcome(ordinal: int) -> Outcome:
    return patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1)


async def run_other_tasks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def start_waiting(awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
    """Start a task for *awaitable*, and check that it waits."""
    task = asyncio.ensure_future(awaitable)
    await run_other_tasks()
    assert not task.done()
    return task


async def test_outcomes_are_returned_in_order_and_then_none() -> None:
    """A rotation may be iterated over again after its end."""
    queue = OutcomeQueue(10)
    for ordinal in range(3):
        queue.put(outcome(ordinal))
    queue.end()

    outcomes = [await queue.get() for _ in range(5)]

    assert [None if item is None else item.ordinal for item in outcomes] == [0, 1, 2, None, None]


async def test_full_queue_makes_workers_wait_for_a_reader() -> None:
    """Otherwise all outcomes would be held in memory if the reader is slow."""
    queue = OutcomeQueue(2)
    queue.put(outcome(0))
    await queue.wait_for_room()
    queue.put(outcome(1))
    assert queue.is_full
    workers = [await start_waiting(queue.wait_for_room()) for _ in range(3)]

    await queue.get()
    await run_other_tasks()

    assert all(worker.done() for worker in workers)


async def test_overfull_queue_has_room_only_once_it_is_below_its_size() -> None:
    """More outcomes than the queue has places can come at once, from accounts that were in backoff."""
    queue = OutcomeQueue(2)
    for ordinal in range(4):
        queue.put(outcome(ordinal))
    worker = await start_waiting(queue.wait_for_room())

    await queue.get()
    await queue.get()
    await run_other_tasks()
    assert not worker.done()

    await queue.get()
    await worker


async def test_abandoned_queue_makes_no_worker_wait_and_keeps_no_outcome() -> None:
    """Requests in flight still complete after the reader has left."""
    queue = OutcomeQueue(1)
    queue.put(outcome(0))
    workers = [await start_waiting(queue.wait_for_room()) for _ in range(2)]

    queue.abandon()
    await asyncio.gather(*workers)
    queue.put(outcome(1))
    assert not queue.is_full

    queue.end()
    assert await queue.get() is None


async def test_end_wakes_all_waiting_readers() -> None:
    queue = OutcomeQueue(1)
    readers = [await start_waiting(queue.get()) for _ in range(3)]

    queue.end()

    assert await asyncio.gather(*readers) == [None] * 3


@pytest.mark.parametrize("after_put", [False, True])
async def test_cancelled_reader_loses_no_outcome(after_put: bool) -> None:
    """The reader is cancelled before the outcome is put, or after it and before the reader runs."""
    queue = OutcomeQueue(5)
    first, second = await start_waiting(queue.get()), await start_waiting(queue.get())
    if after_put:
        queue.put(outcome(7))
        first.cancel()
    else:
        first.cancel()
        queue.put(outcome(7))
    await run_other_tasks()

    assert first.cancelled()
    received = await second
    assert received is not None
    assert received.ordinal == 7


@pytest.mark.parametrize("seed", range(20))
async def test_each_outcome_is_delivered_once_despite_cancelled_readers(seed: int) -> None:
    """
    Five workers, two readers and a third reader that is cancelled again and again share a queue of three
    places.
    """
    rng = random.Random(seed)
    queue, ordinals, received = OutcomeQueue(3), iter(range(200)), list[int]()
    longest = 0

    async def work() -> None:
        nonlocal longest
        for ordinal in ordinals:
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            queue.put(outcome(ordinal))
            longest = max(longest, len(queue._outcomes))
            if queue.is_full:
                await queue.wait_for_room()

    async def read() -> None:
        while (item := await queue.get()) is not None:
            received.append(item.ordinal)
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)

    async def read_and_cancel() -> None:
        for _ in range(100):
            task = asyncio.ensure_future(queue.get())
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (item := task.result()) is not None:
                received.append(item.ordinal)

    async with asyncio.timeout(10):
        readers = [asyncio.ensure_future(read()) for _ in range(2)]
        await asyncio.gather(*(work() for _ in range(5)), read_and_cancel())
        queue.end()
        await asyncio.gather(*readers)

    assert sorted(received) == list(range(200))
    assert longest <= 3 + 5  # each of the five workers may put one outcome into the full queue
