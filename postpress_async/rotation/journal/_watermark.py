"""How far into the input requests may have gone, on the disk before they go."""

import asyncio
from typing import Final

from postpress_async.rotation.journal._coverage import COVER
from postpress_async.rotation.journal._writer import Writer

LEAST: Final = 64
"""Rows by which it is extended at least. After a crash, up to one and a half times as many rows as it was
extended by are in doubt although they were not sent."""

_MOST: Final = 8_192
"""The same at the greatest speed: half of it lasts as long as some commits at tens of thousands a second."""

_CALM: Final = 64
"""Extensions in a row that were on the disk in time, after which the next one is half as long."""

REACHED: Final = "INSERT OR REPLACE INTO run VALUES ('reached', ?)"


class Reach:
    """
    From which ordinal on no run has sent a row, said ahead: no more than that is in doubt after a crash.

    It is extended in strides, the next one while half of the last is left, so that a commit is seldom waited
    for. If one is, the stride was too short for the pace and doubles; after `_CALM` extensions that were in
    time it halves again.

    Args:
        writer: The journal's.
        kept: The ordinal that the disk has.
        least: Rows of the shortest stride.

    Attributes:
        near: Rows before this ordinal may be sent without a word; others have to `extend` it first.
    """

    def __init__(self, writer: Writer, kept: float, least: int = LEAST) -> None:
        self._writer: Final = writer
        self._kept = kept  # rows before this one may be sent, and the disk says so
        self._asked = kept
        self._least: Final = min(least, _MOST)
        self._stride = self._least
        self._was_late = False
        self._calm = 0
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
        begin, self._asked = self._asked, max(ordinal, self._kept) + self._stride
        for sql in COVER:
            self._writer.put(sql, (begin, self._asked))
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
        self._calm += 1
        if self._was_late:
            self._was_late, self._calm, self._stride = False, 0, min(2 * self._stride, _MOST)
        elif self._calm == _CALM:
            self._calm, self._stride = 0, max(self._stride // 2, self._least)
        if not self._writer.has_failed:
            self._kept = self._asked
            self.near = self._kept - self._stride // 2
