"""A lock for each key, with a FIFO queue of waiters."""

import asyncio

from attrs import define, field

from postpress_async._wait_queue import WaitQueue
from postpress_async.errors import SupersededError


@define(eq=False)
class KeyedLock:
    """
    One FIFO lock per key. Updates of one account do not overlap: the last call made is the last applied.

    A lock that was acquired must be released. A key that is not locked takes no memory. With *latest*, only
    the latest waiter of a key keeps waiting; the others raise `SupersededError`.
    """

    _latest: bool = field(default=False, kw_only=True, alias="latest")
    _waiting: dict[str, WaitQueue[None] | None] = field(factory=dict)

    def try_acquire(self, key: str) -> bool:
        """Lock *key* if it is free. Returns whether it was."""
        if key in self._waiting:
            return False
        self._waiting[key] = None  # nearly always nobody waits
        return True

    async def acquire(self, key: str) -> None:
        """Wait for the lock of *key*, in FIFO order, or raise `SupersededError`; see *latest*."""
        if self.try_acquire(key):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if (queue := self._waiting[key]) is None:
            queue = self._waiting[key] = WaitQueue()
        while self._latest and queue.has_next():
            queue.pop().set_exception(SupersededError("not sent: a newer update of the account was made"))
        queue.append(waiter)
        try:
            await waiter
        except BaseException:
            if not waiter.done() or waiter.cancelled():
                queue.discard(waiter)
            elif waiter.exception() is None:
                self.release(key)  # the lock was passed on to this waiter before it was cancelled
            raise

    def release(self, key: str) -> None:
        """Release the lock of *key*, and pass it on to the next waiter."""
        queue = self._waiting[key]
        if queue is not None and queue.has_next():
            queue.pop().set_result(None)
        else:
            del self._waiting[key]
