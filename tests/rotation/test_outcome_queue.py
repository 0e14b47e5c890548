"""The queue gives each outcome to the iterator once, in order, without needless waiting."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from postpress_async import Outcome
from postpress_async.rotation._outcome import patched_outcome
from postpress_async.rotation._outcome_queue import OutcomeQueue


def outcome(ordinal: int) -> Outcome:
    return patched_outcome(ordinal, None, f"acc_{ordinal}", 1, 0.1)


async def a_moment() -> None:
    """All that can go on without us has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def waits(what: Awaitable[Any]) -> asyncio.Task[Any]:
    """The task in which somebody waits for *what*."""
    task = asyncio.ensure_future(what)
    await a_moment()
    assert not task.done()
    return task


async def test_outcomes_come_in_their_order_and_then_the_end() -> None:
    """After the end it ends again: a rotation may be iterated over twice."""
    queue = OutcomeQueue(10)
    for ordinal in range(3):
        queue.put(outcome(ordinal))
    queue.end()

    outcomes = [await queue.get() for _ in range(5)]

    assert [None if item is None else item.ordinal for item in outcomes] == [0, 1, 2, None, None]


async def test_full_queue_makes_workers_wait_for_a_reader() -> None:
    """Else a slow reader's memory would hold the fleet."""
    queue = OutcomeQueue(2)
    queue.put(outcome(0))
    await queue.wait_for_room()
    queue.put(outcome(1))
    assert queue.is_full
    held = [await waits(queue.wait_for_room()) for _ in range(3)]

    await queue.get()
    await a_moment()

    assert all(task.done() for task in held)


async def test_more_than_there_is_room_for_holds_back_until_enough_was_asked_for() -> None:
    """Workers that backed off come back all at once: each has put one by then."""
    queue = OutcomeQueue(2)
    for ordinal in range(4):
        queue.put(outcome(ordinal))
    held = await waits(queue.wait_for_room())

    await queue.get()
    await queue.get()
    await a_moment()
    assert not held.done()

    await queue.get()
    await held


async def test_when_nobody_listens_nobody_is_held_back() -> None:
    """After the block, requests in flight end, and their outcomes are not queued."""
    queue = OutcomeQueue(1)
    queue.put(outcome(0))
    held = [await waits(queue.wait_for_room()) for _ in range(2)]

    queue.abandon()
    await asyncio.gather(*held)
    queue.put(outcome(1))
    assert not queue.is_full

    queue.end()
    assert await queue.get() is None


async def test_all_waiting_readers_see_the_end() -> None:
    queue = OutcomeQueue(1)
    asking = [await waits(queue.get()) for _ in range(3)]

    queue.end()

    assert await asyncio.gather(*asking) == [None] * 3


@pytest.mark.parametrize("is_woken", [False, True])
async def test_cancelled_reader_loses_no_outcome(is_woken: bool) -> None:
    """The reader is cancelled before it is woken, or after that and before it runs."""
    queue = OutcomeQueue(5)
    first, second = await waits(queue.get()), await waits(queue.get())
    if is_woken:
        queue.put(outcome(7))
        first.cancel()
    else:
        first.cancel()
        queue.put(outcome(7))
    await a_moment()

    assert first.cancelled()
    received = await second
    assert received is not None
    assert received.ordinal == 7


@pytest.mark.parametrize("seed", range(20))
async def test_each_outcome_is_delivered_once_despite_cancelled_readers(seed: int) -> None:
    """Many workers, several readers of which some are cancelled over and over, and little room."""
    chance = random.Random(seed)
    print("seed", seed)
    queue, numbers, received = OutcomeQueue(3), iter(range(200)), list[int]()
    highest = 0

    async def work() -> None:
        nonlocal highest
        for number in numbers:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            queue.put(outcome(number))
            highest = max(highest, len(queue._outcomes))
            if queue.is_full:
                await queue.wait_for_room()

    async def read() -> None:
        while (item := await queue.get()) is not None:
            received.append(item.ordinal)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

    async def fickle() -> None:
        for _ in range(100):
            task = asyncio.ensure_future(queue.get())
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (item := task.result()) is not None:
                received.append(item.ordinal)

    async with asyncio.timeout(10):
        readers = [asyncio.ensure_future(read()) for _ in range(2)]
        await asyncio.gather(*(work() for _ in range(5)), fickle())
        queue.end()
        await asyncio.gather(*readers)

    assert sorted(received) == list(range(200))
    assert highest <= 3 + 5
