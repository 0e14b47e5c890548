"""One at a time for each name, in the order in which they came."""

import asyncio
from collections import OrderedDict
from typing import Final, TypeAlias

# Not a deque: a waiter that is cancelled leaves the queue without a search for its place.
_Queue: TypeAlias = "OrderedDict[asyncio.Future[None], None]"


class Turns:
    """
    Keeps the updates of one account from overlapping: the last one asked for is the last applied.

    A turn that was taken must be given back. A name that nobody holds takes no memory.
    """

    def __init__(self) -> None:
        self._waiting: Final[dict[str, _Queue | None]] = {}

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
        queue = self._waiting[name] = self._waiting[name] or OrderedDict()
        queue[turn] = None
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give(name)  # it was our turn already: hand it on
            else:
                queue.pop(turn, None)  # `give` has removed it if it was cancelled first
            raise

    def give(self, name: str) -> None:
        """End the turn; the next in the queue has it now."""
        queue = self._waiting[name]
        while queue:
            turn, _ = queue.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[name]
