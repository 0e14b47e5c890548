"""Limits which workers may take a row: first the canary's, then all, up to the run's limit."""

import asyncio
from typing import Final


class CanaryGate:
    """
    Admits one worker for each row that may be taken.

    Args:
        canary: Accounts that go first. All other workers wait until these accounts have passed.
        limit: Rows that may be taken in this run, not counting refused rows; None for no limit.

    Attributes:
        is_open: Whether all workers may enter: the canary has passed, or is empty.
    """

    def __init__(self, canary: int, limit: int | None) -> None:
        self._canary_left = canary
        self._limit: Final = limit
        self._admitted = 0
        self.is_open: bool = canary == 0
        self._changed: Final = asyncio.Event()

    async def enter(self) -> bool:
        """Wait until the caller may take a row; False if the limit is reached."""
        while not self.is_open and self._canary_left == 0:
            self._changed.clear()
            await self._changed.wait()
        if self._admitted == self._limit:
            return False
        self._admitted += 1
        if not self.is_open:
            self._canary_left -= 1
        return True

    def uncount(self) -> None:
        """Do not count the last row towards the limit: it will not be sent."""
        self._admitted -= 1

    def completed(self, *, tried: bool, passed: bool) -> None:
        """
        Count an account of the canary.

        Args:
            tried: Whether a request was sent for it. Otherwise another account takes its place.
            passed: Whether the canary as a whole has passed.
        """
        if passed:
            self.open()
        elif not tried:
            self._canary_left += 1
            self._changed.set()

    def open(self) -> None:
        """Admit everyone: the canary has passed, or there are no more rows."""
        self.is_open = True
        self._changed.set()
