"""Gives each worker of a rotation its next row, in the input's order, until the rotation stops."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from postpress_async.rotation._canary_gate import CanaryGate
from postpress_async.rotation._pending_rows import PendingRow


class RowSource:
    """
    The rows that workers take, one at a time, as *gate* admits them.

    Attributes:
        read: Reads the next row; None after the last. Set it before the first worker starts.
        exhausted: Whether the last row was read.
    """

    read: Callable[[], Awaitable[PendingRow | None]]

    def __init__(self, gate: CanaryGate) -> None:
        self.exhausted: bool = False
        self._gate: Final = gate
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
            if not await self._gate.enter():
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
            self._gate.open()
        elif not pending.is_sendable:
            self._gate.uncount()
        return pending

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
