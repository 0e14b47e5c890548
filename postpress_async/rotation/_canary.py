"""The canary of a fleet: rows drawn evenly from all that are left, which are sent before the others."""

import asyncio
import random
from collections.abc import Iterator
from itertools import compress
from typing import Final

from postpress_async.rotation._pending_rows import InputRows, PendingRow, PendingRows
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal import Journal

_NOT: Final = bytes([1]).ljust(256, b"\0")
"""Translates 0 to 1, and any other byte to 0."""


async def draw_canary(
    source: InputRows, journal: Journal | None, count: int, total: int | None
) -> tuple[InputRows, list[PendingRow]]:
    """
    Draw *count* rows from the *total* rows of *source*, and declare in the journal that they may be sent.

    The seed is the number of the run: each night has other rows, and the draw can be repeated.

    Returns:
        The source without these rows, and these rows: none if the input can only be read in its order.
    """
    if not callable(source) or total is None or not count:
        return source, []
    rows_but, done = source, b""
    if journal is not None and journal.resumed:
        if not journal.check.same_input:
            return source, []  # its rows have to be compared in their order
        done = journal.done()
    seed = 0 if journal is None else journal.number
    ordinals = await asyncio.to_thread(draw, count, total, done, seed)

    def others(done: bytes) -> Iterator[Row | Refusal]:
        return rows_but(_marked(done.ljust(total, b"\0"), ordinals, 1))

    if not ordinals:
        return source, []
    only_these = _marked(b"\1" * total, ordinals, 0)
    rows = await asyncio.to_thread(lambda: list(rows_but(only_these)))
    reader, canary = PendingRows(lambda _done: iter(rows), journal), list[PendingRow]()
    while (pending := await reader.next()) is not None:
        canary.append(pending)
    if journal is not None:
        await journal.watermark.allow(
            [(pending.row, pending.maybe_sent) for pending in canary if pending.is_sendable]
        )
    return others, canary


def draw(count: int, total: int, done: bytes, seed: int) -> list[int]:
    """Up to *count* of the ordinals below *total* whose byte in *done* is 0 or missing, in their order."""
    is_left = done[:total].ljust(total, b"\0").translate(_NOT)
    candidates = is_left.count(1)
    ranks = set(random.Random(seed).sample(range(candidates), min(count, candidates)))  # noqa: S311
    return [ordinal for rank, ordinal in enumerate(compress(range(total), is_left)) if rank in ranks]


def _marked(mask: bytes, ordinals: list[int], mark: int) -> bytes:
    marked = bytearray(mask)
    for ordinal in ordinals:
        marked[ordinal] = mark
    return bytes(marked)
