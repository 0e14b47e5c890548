"""One at a time for each name, in the order in which they came."""

import asyncio
from typing import Final

from postpress_async._wait_queue import WaitQueue


class Turns:
    """
    Keeps the updates of one account from overlapping: the last one asked for is the last applied.

    A turn that was taken must be given back. A name that nobody holds takes no memory.
    """

    def __init__(self) -> None:
        self._waiting: Final[dict[str, WaitQueue[None] | None]] = {}

    def take_at_once(self, name: str) -> bool:
        """Take the turn if nobody has it; whether it was taken."""
        if name in self._waiting:
            return False
        self._waiting[name] = None  # nobody, as nearly always
        return True

    async def take(self, name: str) -> None:
        """Wait until it is the caller's turn; who waited longest goes first."""
        if self.take_at_once(name):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if (queue := self._waiting[name]) is None:
            queue = self._waiting[name] = WaitQueue()
        queue.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give(name)  # it was our turn already: hand it on
            else:
                queue.discard(turn)
            raise

    def give(self, name: str) -> None:
        """End the turn; the next in the queue has it now."""
        queue = self._waiting[name]
        if queue is not None and queue.has_next():
            queue.pop().set_result(None)
        else:
            del self._waiting[name]
