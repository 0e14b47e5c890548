"""Gives each worker of a rotation its next row, in the input's order, until the rotation stops."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from postpress_async.rotation._pending_rows import PendingRow


class RowSource:
    """
    The rows that workers take, one at a time: first the canary's, then the others.

    Args:
        canary: Rows that go first. All other workers wait until `open` is called.
        limit: Rows that may be taken in this run, not counting those that are not sent; None for no limit.

    Attributes:
        read: Reads the next row; None after the last. Set it before the first worker starts.
        exhausted: Whether the last row was read.
        is_open: Whether all workers may take rows: the canary has passed, or is empty.
    """

    read: Callable[[], Awaitable[PendingRow | None]]

    def __init__(self, canary: int, limit: int | None) -> None:
        self.exhausted: bool = False
        self.is_open: bool = canary == 0
        self._canary_left = canary
        self._limit: Final = limit
        self._taken = 0
        self._changed: Final = asyncio.Event()
        self._waiting: Final[set[asyncio.Task[None]]] = set()
        self._closed = False

    async def next(self) -> PendingRow | None:
        """
        Return the next row; None after the last, at the limit, or if `close` was called meanwhile.

        Errors of the input pass through.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - workers are tasks
        self._waiting.add(task)
        try:
            if not await self._may_take():
                return None
            pending = await self.read()
        except asyncio.CancelledError:
            if not task.cancelling():
                # The input raised it. Passed on, it would look like the end of the input.
                raise RuntimeError(
                    "the input raised CancelledError although the rotation was not cancelled: "
                    "the remaining rows were not read"
                ) from None
            if not self._closed or task.uncancel():
                raise
            return None
        finally:
            self._waiting.discard(task)
        if pending is None:
            self.exhausted = True
            self.open()
        elif not pending.is_sendable:
            self._taken -= 1
        return pending

    async def _may_take(self) -> bool:
        """Wait while only the canary may be sent, and others send it. False if the limit is reached."""
        while not self.is_open and self._canary_left == 0:
            self._changed.clear()
            await self._changed.wait()
        if self._taken == self._limit:
            return False
        self._taken += 1
        if not self.is_open:
            self._canary_left -= 1
        return True

    def extend_canary(self) -> None:
        """Add a row to the canary, in place of one for which no request was sent."""
        self._canary_left += 1
        self._changed.set()

    def open(self) -> None:
        """Let all workers take rows: the canary has passed, or there are no more rows."""
        self.is_open = True
        self._changed.set()

    def close(self) -> None:
        """Wake all workers that wait for a row: the input may never give another."""
        self._closed = True
        for task in tuple(self._waiting):
            if task is asyncio.current_task():
                # The input itself stops the rotation, and may still return a row.
                task.get_loop().call_soon(self._cancel_if_waiting, task)
            else:
                task.cancel()

    def _cancel_if_waiting(self, task: asyncio.Task[None]) -> None:
        if task in self._waiting:
            task.cancel()
