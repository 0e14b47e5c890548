"""How far into the input requests may have gone, on the disk before they go."""

import asyncio
from typing import Final

from postpress_async.rotation.journal._writer import Writer

LEAST: Final = 256
"""Rows by which it is extended at first, and after a crash at most in doubt beside those in flight."""

_MOST: Final = 8_192
"""The same at the greatest speed: half of it lasts as long as some commits at tens of thousands a second."""

REACHED: Final = "INSERT OR REPLACE INTO run VALUES ('reached', ?)"


class Reach:
    """
    From which ordinal on no run has sent a row, said ahead: no more than that is in doubt after a crash.

    It is extended in strides, the next one while half of the last is left, so that a commit is seldom waited
    for; where one is, the stride was too short for the pace and doubles.

    Attributes:
        near: Rows before this ordinal may be sent without a word; others have to `extend` it first.
    """

    def __init__(self, writer: Writer, kept: float) -> None:
        self._writer: Final = writer
        self._kept = kept  # rows before this one may be sent, and the disk says so
        self._asked = kept
        self._stride = LEAST
        self._was_late = False
        self._promise: asyncio.Future[None] | None = None
        self.near: float = kept - self._stride // 2

    async def extend(self, ordinal: int) -> None:
        """
        Return when it is on the disk that the row of this *ordinal* may be sent.

        Raises:
            JournalNotWritableError: It cannot be, nor may the row.
        """
        while ordinal >= self.near:
            promise = self._promise or self._ask(ordinal)
            if ordinal < self._kept:
                return
            self._was_late = True
            await asyncio.shield(promise)  # it is others' too
            self._writer.check()
            self._keep()

    def _ask(self, ordinal: int) -> asyncio.Future[None]:
        self._asked = max(ordinal, self._kept) + self._stride
        self._writer.put(REACHED, (self._asked,))
        promise = self._promise = self._writer.promise()
        promise.add_done_callback(self._keep)
        self.near = self._kept
        return promise

    def _keep(self, _promise: object = None) -> None:
        # Called twice: who comes between a promise and its callback would ask the same one for ever.
        if self._promise is None or not self._promise.done():
            return
        self._promise = None
        if self._was_late:
            self._was_late, self._stride = False, min(2 * self._stride, _MOST)
        if not self._writer.has_failed:
            self._kept = self._asked
            self.near = self._kept - self._stride // 2
