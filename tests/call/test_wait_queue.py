"""Futures are served first come, first served, and leave without a search."""

import asyncio
from typing import Any

from postpress_async._wait_queue import SLACK, WaitQueue


def filled(count: int) -> tuple[WaitQueue[Any], list["asyncio.Future[Any]"]]:
    queue, futures = WaitQueue[Any](), [asyncio.get_running_loop().create_future() for _ in range(count)]
    for future in futures:
        queue.append(future)
    return queue, futures


async def test_the_first_that_came_is_the_first_that_is_served() -> None:
    """And the count says how many still wait."""
    queue, futures = filled(3)

    assert [queue.pop() for _ in range(3)] == futures
    assert queue.count == 0
    assert not queue.has_next()


async def test_a_future_that_is_done_is_passed_over() -> None:
    """Whether its waiter has left yet or not."""
    queue, futures = filled(4)
    futures[0].cancel()
    futures[1].set_result(None)
    queue.discard(futures[1])

    assert queue.has_next()
    assert queue.pop() is futures[2]
    queue.discard(futures[0])
    assert queue.count == 1
    assert queue.pop() is futures[3]


async def test_a_wait_that_was_thrown_away_leaves_the_queue() -> None:
    """Closing the coroutine leaves the future pending."""
    queue, futures = filled(2)
    queue.discard(futures[0])

    assert queue.count == 1
    assert queue.pop() is futures[1]


async def test_futures_that_left_do_not_stay_behind_one_that_waits() -> None:
    """The first may wait for hours in an outage, while thousands come and give up."""
    queue, _ = filled(1)
    for _ in range(10 * SLACK):
        future = asyncio.get_running_loop().create_future()
        queue.append(future)
        future.cancel()
        queue.discard(future)

    assert len(queue._futures) <= SLACK + 3
    assert queue.count == 1
