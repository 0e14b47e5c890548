"""What has settled, on its way to whoever iterates over a rotation."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from postpress_async.rotation._outcome import Outcome


class Outlet:
    """
    Hands outcomes on in their order, each to one of those that ask, and tells all of them when it is over.

    An `asyncio.Queue` does less: it has no end, and holds back who puts in whether or not anybody still
    listens.

    Args:
        room: Outcomes that may lie here before those who settle more of them have to wait.
    """

    def __init__(self, room: int) -> None:
        self._room: Final = room
        self._lying: Final[deque[Outcome]] = deque()
        self._asking: Final[deque[asyncio.Future[None]]] = deque()
        self._held: Final[deque[asyncio.Future[None]]] = deque()
        self._ended = False
        self._deaf = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more should come before somebody has asked."""
        return len(self._lying) >= self._room

    def put(self, outcome: Outcome) -> None:
        """Give it to whoever asks next."""
        if not self._deaf:
            self._lying.append(outcome)
            if self._asking:
                _wake_one(self._asking)

    async def has_room(self) -> None:
        """Return once it is not full, or nobody listens any more."""
        while self.is_full:
            await _wait_in(self._held)

    async def get(self) -> Outcome | None:
        """The next one; None when it is over."""
        while not self._lying:
            if self._ended:
                return None
            await _wait_in(self._asking)
        outcome = self._lying.popleft()
        if self._held and not self.is_full:
            _wake_all(self._held)  # each settles one more at most before it looks again
        return outcome

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        _wake_all(self._asking)

    def leave(self) -> None:
        """Nobody listens any more: forget what lies here and what will come."""
        self._deaf = True
        self._lying.clear()
        _wake_all(self._held)


async def _wait_in(queue: deque[asyncio.Future[None]]) -> None:
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue.append(turn)
    try:
        await turn
    except asyncio.CancelledError:
        if not turn.cancelled():
            _wake_one(queue)  # it was woken, and leaves that to another
        with suppress(ValueError):  # it may have been passed over by now
            queue.remove(turn)
        raise


def _wake_one(queue: deque[asyncio.Future[None]]) -> None:
    while queue:
        turn = queue.popleft()
        if not turn.done():  # those that were cancelled are passed over
            turn.set_result(None)
            return


def _wake_all(queue: deque[asyncio.Future[None]]) -> None:
    while queue:
        _wake_one(queue)
