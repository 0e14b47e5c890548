"""The queue serves futures in FIFO order, and discards them without a search."""

import asyncio
from typing import Any

from postpress_async._wait_queue import SLACK, WaitQueue


def queue_of(count: int) -> tuple[WaitQueue[Any], list["asyncio.Future[Any]"]]:
    """A queue of *count* new futures, and these futures."""
    queue = WaitQueue[Any]()
    futures = [asyncio.get_running_loop().create_future() for _ in range(count)]
    for future in futures:
        queue.append(future)
    return queue, futures


async def test_futures_are_popped_in_fifo_order() -> None:
    queue, futures = queue_of(3)

    assert [queue.pop() for _ in range(3)] == futures
    assert queue.count == 0
    assert not queue.has_next()


async def test_done_futures_are_skipped_whether_they_were_discarded_or_not() -> None:
    queue, futures = queue_of(4)
    futures[0].cancel()
    futures[1].set_result(None)
    queue.discard(futures[1])

    assert queue.has_next()
    assert queue.pop() is futures[2]
    queue.discard(futures[0])
    assert queue.count == 1
    assert queue.pop() is futures[3]


async def test_discarded_future_that_is_not_done_is_removed() -> None:
    """If the waiter's coroutine is closed, its future stays pending."""
    queue, futures = queue_of(2)
    queue.discard(futures[0])

    assert queue.count == 1
    assert queue.pop() is futures[1]


async def test_discarded_futures_do_not_accumulate_behind_a_pending_one() -> None:
    """During an outage, the first call may wait for hours while thousands of later calls give up."""
    queue, _ = queue_of(1)
    for _ in range(10 * SLACK):
        future = asyncio.get_running_loop().create_future()
        queue.append(future)
        future.cancel()
        queue.discard(future)

    assert len(queue._futures) <= SLACK + 3
    assert queue.count == 1
