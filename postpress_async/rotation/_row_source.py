"""
The rows that the workers of a rotation take: first those of the canary, then the others in input order.

The canary of a fleet is drawn evenly from all rows that are left to send. The canary of any other input
consists of its first rows.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import compress
from typing import Final

from postpress_async.rotation._pending_rows import InputRows, PendingRow, PendingRows
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal import Journal

_INVERTED: Final = bytes([1]).ljust(256, b"\0")
"""A table for `bytes.translate` that maps 0 to 1, and any other byte to 0."""


class RowSource:
    """
    Gives each worker its next row, until the rotation stops.

    Args:
        canary: Number of rows that go first. After them, workers wait until `open` is called.
        limit: Number of rows that may be taken in this run, not counting rows that are not sent; None for no
            limit.
    """

    # Returns the next row; None after the last. Set it before the first worker starts.
    read: Callable[[], Awaitable[PendingRow | None]]

    def __init__(self, canary: int, limit: int | None) -> None:
        self.exhausted: bool = False  # whether the last row was read
        self.is_open: bool = canary == 0  # whether all workers may take rows: the canary passed, or is empty
        self._canary_left = canary
        self._limit: Final = limit
        self._taken = 0
        self._changed: Final = asyncio.Event()
        self._waiting: Final[set[asyncio.Task[None]]] = set()
        self._closed = False

    async def next(self) -> PendingRow | None:
        """Return the next row; None after the last, at the limit, or if `close` is called meanwhile."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - workers are tasks
        self._waiting.add(task)
        try:
            if not await self._may_take():
                return None
            pending = await self.read()
        except asyncio.CancelledError:
            if not task.cancelling():
                # The input raised it. If it were passed on, it would look like the end of the input.
                raise RuntimeError(
                    "the input raised CancelledError although the rotation was not cancelled: "
                    "the remaining rows were not read"
                ) from None
            # `close` cancels the task once. Any other cancellation must be passed on.
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
        """Wait while other workers have all rows of the canary. Return False if the limit is reached."""
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
        """Add a row to the canary, to replace a row for which no request was sent."""
        self._canary_left += 1
        self._changed.set()

    def open(self) -> None:
        self.is_open = True
        self._changed.set()

    def close(self) -> None:
        """End the wait of all workers that wait for a row: the input may never give another."""
        self._closed = True
        for task in tuple(self._waiting):
            if task is asyncio.current_task():
                # The input itself has stopped the rotation, and may still return a row.
                task.get_loop().call_soon(self._cancel_if_waiting, task)
            else:
                task.cancel()

    def _cancel_if_waiting(self, task: asyncio.Task[None]) -> None:
        if task in self._waiting:
            task.cancel()


async def draw_canary(
    source: InputRows, journal: Journal | None, count: int, total: int | None
) -> tuple[InputRows, list[PendingRow]]:
    """
    Draw *count* rows from the *total* rows of *source*, and declare in the journal that they may be sent.

    Return the remaining source and the canary's rows. If the input can only be read in its order, no rows are
    drawn. The seed is the number of the run, so each run draws other rows and each draw can be repeated.
    """
    if not callable(source) or total is None or not count:
        return source, []
    rows_except, done = source, b""
    if journal is not None and journal.resumed:
        if not journal.check.same_input:
            return source, []  # the rows must be compared with the journal in their order
        done = journal.done()
    seed = 0 if journal is None else journal.number
    ordinals = await asyncio.to_thread(draw, count, total, done, seed)

    def others(done: bytes) -> Iterator[Row | Refusal]:
        return rows_except(_marked(done.ljust(total, b"\0"), ordinals, 1))

    if not ordinals:
        return source, []
    not_drawn = _marked(b"\1" * total, ordinals, 0)
    drawn_rows = await asyncio.to_thread(lambda: list(rows_except(not_drawn)))
    reader, canary = PendingRows(lambda _done: iter(drawn_rows), journal), list[PendingRow]()
    while (pending := await reader.next()) is not None:
        canary.append(pending)
    if journal is not None:
        await journal.watermark.allow(
            [(pending.row, pending.in_doubt_since is not None) for pending in canary if pending.is_sendable]
        )
    return others, canary


def draw(count: int, total: int, done: bytes, seed: int) -> list[int]:
    """Draw up to *count* ordinals below *total* whose byte in *done* is 0 or missing; return them sorted."""
    is_left = done[:total].ljust(total, b"\0").translate(_INVERTED)
    candidates = is_left.count(1)
    ranks = set(random.Random(seed).sample(range(candidates), min(count, candidates)))  # noqa: S311
    return [ordinal for rank, ordinal in enumerate(compress(range(total), is_left)) if rank in ranks]


def _marked(mask: bytes, ordinals: list[int], mark: int) -> bytes:
    marked = bytearray(mask)
    for ordinal in ordinals:
        marked[ordinal] = mark
    return bytes(marked)
