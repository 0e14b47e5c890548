"""How a rotation's workers get their rows: one each, in the input's order, and none once it stops."""

import asyncio
from typing import Final

from postpress_async.rotation._canary_gate import Admission
from postpress_async.rotation._pending_rows import OpenRow, Takes

CANCELLED: Final = (
    "the input was cancelled where nobody had cancelled the rotation: what follows was not read"
)
"""Told where it would else look as if the input had come to its end."""


class Intake:
    """
    Lets one worker after the other take a row.

    Args:
        admission: Which worker may.

    Attributes:
        rows: Where they are taken from; set before the first worker comes.
        exhausted: Whether the last one was taken.
    """

    rows: Takes

    def __init__(self, admission: Admission) -> None:
        self.exhausted: bool = False
        self._admission: Final = admission
        self._waiting: Final[set[asyncio.Task[None]]] = set()
        self._ended = False

    def may_wait(self) -> bool:
        """Whether `take` may have to; else `take_at_once` does, and the caller may take a row by it."""
        return not (self.rows.at_hand and self._admission.enter_at_once())

    def take_at_once(self) -> OpenRow | None:
        """The next row; None after the last. Whatever the input raises is let through."""
        try:
            return self._noted(self.rows.take_at_once())
        except asyncio.CancelledError:
            raise RuntimeError(CANCELLED) from None

    async def take(self) -> OpenRow | None:
        """The same; None also where nobody may take one any more, or `end` came while it was waited for."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a worker is one
        self._waiting.add(task)
        try:
            if not await self._admission.enter():
                return None
            return self._noted(await self.rows.take())
        except asyncio.CancelledError:
            if not task.cancelling():
                raise RuntimeError(CANCELLED) from None
            if not self._ended or task.uncancel():
                raise
            return None
        finally:
            self._waiting.discard(task)

    def _noted(self, taken: OpenRow | None) -> OpenRow | None:
        if taken is None:
            self.exhausted = True
            self._admission.open()
        elif not taken.is_sent:
            self._admission.refused()
        return taken

    def end(self) -> None:
        """Have nobody wait any more for an input that may never give another row."""
        self._ended = True
        for task in tuple(self._waiting):
            if task is asyncio.current_task():  # the input itself said so, and may have a last row to give
                task.get_loop().call_soon(self._call_back, task)
            else:
                task.cancel()

    def _call_back(self, task: asyncio.Task[None]) -> None:
        if task in self._waiting:
            task.cancel()
