"""The write-ahead watermark: the ordinal below which a run may send rows, on disk before it sends them."""

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
_STEPS_IN_TIME: Final = 64  # consecutive steps for which no row waited, after which the step halves


class SendWatermark:
    """
    The ordinal below which a run may send rows, written ahead of sending.

    After a crash, only rows below the watermark are in doubt. It is at most one and a half steps ahead of the
    rows that were sent. The next step is written while half of the present step is left, so that rows seldom
    wait for a commit. If a row has to wait, the step was too short and doubles. After `_STEPS_IN_TIME`
    consecutive steps for which no row waited, it halves.
    """

    def __init__(self, writer: Writer, durable: float, shortest: int = FIRST_WATERMARK) -> None:
        """*durable* is the watermark that is on disk, and *shortest* is the shortest step."""
        self._writer: Final = writer
        self._durable = durable
        self._written = durable
        self._shortest: Final = min(shortest, _LONGEST_STEP)
        self._step = self._shortest
        self._was_late = False
        self._allowed: Final[set[int]] = set()
        self._steps_in_time = 0
        self._commit: asyncio.Future[None] | None = None
        # Rows below this ordinal may be sent at once. Before another row is sent, await `advance`.
        self.safe_below: float = durable - self._step // 2

    async def allow(self, rows: Collection[tuple[Row | Refusal, bool]]) -> None:
        """
        Allow *rows* to be sent although they are above the watermark; return when this is on disk.

        Each row comes with whether an earlier run may have sent it. The journal already knows such rows. The
        others get a preliminary outcome: skipped, or unknown if the run is killed.
        """
        new_rows = [row for row, maybe_sent in rows if not maybe_sent]
        for row in new_rows:
            values = (row.ordinal, row.line, row.account_id or "", time.time())
            self._writer.put(_INSERT_SKIPPED, values)
        # In a commit of their own: `COVER` selects skipped rows, so these must exist before it runs.
        await self._writer.committed()
        for sql in COVER:
            for row in new_rows:
                self._writer.put(sql, (row.ordinal, row.ordinal + 1))
        await self._writer.committed()
        self._allowed.update(row.ordinal for row, _ in rows)

    async def advance(self, ordinal: int) -> None:
        """Return when the watermark on disk is above *ordinal*. If this raises, the row must not be sent."""
        while ordinal >= self.safe_below and ordinal not in self._allowed:
            commit = self._commit or self._write(ordinal)
            if ordinal < self._durable:
                return
            self._was_late = True
            await asyncio.shield(commit)  # other rows wait for the same commit
            self._writer.check()
            self._update()

    def _write(self, ordinal: int) -> asyncio.Future[None]:
        begin, self._written = self._written, max(ordinal, self._durable) + self._step
        for sql in COVER:
            self._writer.put(sql, (begin, self._written))
        self._writer.put(SET_WATERMARK, (self._written,))
        commit = self._commit = self._writer.flush()
        commit.add_done_callback(self._update)
        self.safe_below = self._durable
        return commit

    def _update(self, _commit: object = None) -> None:
        # `advance` calls this, too: it may resume before this callback runs, and would then wait again.
        if self._commit is None or not self._commit.done():
            return
        self._commit = None
        self._steps_in_time += 1
        if self._was_late:
            self._was_late, self._steps_in_time = False, 0
            self._step = min(2 * self._step, _LONGEST_STEP)
        elif self._steps_in_time == _STEPS_IN_TIME:
            self._steps_in_time = 0
            self._step = max(self._step // 2, self._shortest)
        if not self._writer.has_failed:
            self._durable = self._written
            self.safe_below = self._durable - self._step // 2
