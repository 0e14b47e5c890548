"""The write-ahead watermark: how far into the input a run may send, on disk before it sends."""

import asyncio
import time
from collections.abc import Collection
from typing import Final

from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal._database import FIRST_WATERMARK, SET_WATERMARK
from postpress_async.rotation.journal._recovery import COVER
from postpress_async.rotation.journal._schema import CURRENT_RUN
from postpress_async.rotation.journal._writer import Writer

_INSERT_SKIPPED: Final = f"""
    INSERT OR IGNORE INTO outcomes
        (run, ordinal, line, account_id, settled_at, state, attempts, applied, elapsed)
    VALUES ({CURRENT_RUN}, ?, ?, ?, ?, 'skipped', 0, 'no', 0)
"""
_LONGEST_STEP: Final = 8_192  # half of it lasts for several commits at tens of thousands of rows per second
_CALM: Final = 64  # consecutive steps that were on disk in time, after which the next one is half as long


class SendWatermark:
    """
    The ordinal from which on no run has sent a row, written ahead of sending.

    After a crash, only rows below it are in doubt: up to one and a half times the current step more than were
    sent. It advances in steps. The next one is written while half of the last is left, so that rows seldom
    wait for a commit. If a row waits, the step was too short and doubles; after `_CALM` steps that were in
    time it halves.
    """

    def __init__(self, writer: Writer, durable: float, shortest: int = FIRST_WATERMARK) -> None:
        """Rows below *durable*, which is on disk, may be sent; *shortest* is the shortest step."""
        self.writer: Final = writer
        self._durable = durable
        self._written = durable
        self._shortest: Final = min(shortest, _LONGEST_STEP)
        self._step = self._shortest
        self._was_late = False
        self._allowed: Final[set[int]] = set()
        self._calm = 0
        self._commit: asyncio.Future[None] | None = None
        # Rows below this ordinal may be sent at once; for others, call `advance` first.
        self.safe_below: float = durable - self._step // 2

    async def allow(self, rows: Collection[tuple[Row | Refusal, bool]]) -> None:
        """
        Return when it is on disk that these *rows* may be sent, although rows before them are not.

        Each comes with whether an earlier run may have sent it, which the journal knows. Until they have an
        outcome, they are skipped; and unknown if the run is killed.
        """
        fresh = [row for row, maybe_sent in rows if not maybe_sent]
        for row in fresh:
            values = (row.ordinal, row.line, row.account_id or "", time.time())
            self.writer.put(_INSERT_SKIPPED, values)
        await self.writer.committed()  # before, because all rows of a commit's first statement go first
        for sql in COVER:
            for row in fresh:
                self.writer.put(sql, (row.ordinal, row.ordinal + 1))
        await self.writer.committed()
        self._allowed.update(row.ordinal for row, _ in rows)

    async def advance(self, ordinal: int) -> None:
        """Return when the watermark on disk is above *ordinal*. If this fails, the row must not be sent."""
        while ordinal >= self.safe_below and ordinal not in self._allowed:
            commit = self._commit or self._write(ordinal)
            if ordinal < self._durable:
                return
            self._was_late = True
            await asyncio.shield(commit)  # other rows wait for it, too
            self.writer.check()
            self._update()

    def _write(self, ordinal: int) -> asyncio.Future[None]:
        begin, self._written = self._written, max(ordinal, self._durable) + self._step
        for sql in COVER:
            self.writer.put(sql, (begin, self._written))
        self.writer.put(SET_WATERMARK, (self._written,))
        commit = self._commit = self.writer.flush()
        commit.add_done_callback(self._update)
        self.safe_below = self._durable
        return commit

    def _update(self, _commit: object = None) -> None:
        # Also called by `advance`, which would loop forever between the commit and its callback.
        if self._commit is None or not self._commit.done():
            return
        self._commit = None
        self._calm += 1
        if self._was_late:
            self._was_late, self._calm, self._step = False, 0, min(2 * self._step, _LONGEST_STEP)
        elif self._calm == _CALM:
            self._calm, self._step = 0, max(self._step // 2, self._shortest)
        if not self.writer.has_failed:
            self._durable = self._written
            self.safe_below = self._durable - self._step // 2
