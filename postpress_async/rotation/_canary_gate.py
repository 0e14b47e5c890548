"""Which worker may take a row now: the canary's first, then all others, up to the limit."""

import asyncio
from typing import Final


class Admission:
    """
    Lets workers in, one for each row that may be taken.

    Args:
        canary: So many accounts go first, and no other before all of them are settled.
        limit: Rows that may be taken in all, but for those that are refused; None for any number.

    Attributes:
        is_open: Whether nobody has to wait any more: the canary is over, or there was none.
    """

    def __init__(self, canary: int, limit: int | None) -> None:
        self._canaries = canary  # that are still to be let in
        self._left: Final = limit
        self._taken = 0
        self.is_open: bool = canary == 0
        self._news = asyncio.Event()

    async def enter(self) -> bool:
        """Wait until the caller may take a row; False where no row may be taken any more."""
        while not self.is_open and self._canaries == 0:
            self._news.clear()
            await self._news.wait()
        if self._taken == self._left:
            return False
        self._taken += 1
        if not self.is_open:
            self._canaries -= 1
        return True

    def enter_at_once(self) -> bool:
        """Take a row if nobody has to wait for that, and there is one left to be taken."""
        if not self.is_open or self._taken == self._left:
            return False
        self._taken += 1
        return True

    def refused(self) -> None:
        """The row that was taken is not to be sent: it counts towards no limit."""
        self._taken -= 1

    def settled(self, *, tried: bool, lives: bool) -> None:
        """One of the canary was settled; whether it was *tried* at all, and if the whole canary *lives*."""
        if lives:
            self.open()
        elif not tried:  # its row was refused, say: another one takes its place
            self._canaries += 1
            self._news.set()

    def open(self) -> None:
        """Let everyone in: the canary is over, or there are no more rows."""
        self.is_open = True
        self._news.set()
