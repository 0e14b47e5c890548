"""A FIFO lock for each key."""

import asyncio

from attrs import define, field

from postpress_async._wait_queue import WaitQueue
from postpress_async.errors import SupersededError


@define(eq=False)
class KeyedLock:
    """
    One FIFO lock per key. A session uses account ids as keys, so that updates of one account do not overlap.

    A lock that was acquired must be released. A key that is not locked takes no memory. With *latest*, only
    the latest waiter of a key keeps waiting; earlier waiters raise `SupersededError`.
    """

    _latest: bool = field(default=False, kw_only=True, alias="latest")
    _queues: dict[str, WaitQueue[None] | None] = field(factory=dict)  # of the locked keys

    def try_acquire(self, key: str) -> bool:
        if key in self._queues:
            return False
        self._queues[key] = None  # the queue is created if a second call needs the key, which is rare
        return True

    async def acquire(self, key: str) -> None:
        """Wait for the lock of *key* in FIFO order. Raises `SupersededError` as *latest* says."""
        if self.try_acquire(key):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if (queue := self._queues[key]) is None:
            queue = self._queues[key] = WaitQueue()
        while self._latest and queue.has_next():
            queue.pop().set_exception(SupersededError("not sent: a newer update of the account was made"))
        queue.append(waiter)
        try:
            await waiter
        except BaseException:
            if not waiter.done() or waiter.cancelled():
                queue.discard(waiter)
            elif waiter.exception() is None:
                self.release(key)  # this waiter was cancelled just after it got the lock
            raise

    def release(self, key: str) -> None:
        queue = self._queues[key]
        if queue is not None and queue.has_next():
            queue.pop().set_result(None)
        else:
            del self._queues[key]
