"""
The accounts that were not patched, packed small enough to be part of the page.

Columns, not rows, in blocks of some thousand: what is alike lies together, and compresses better.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from attrs import frozen

from postpress_async.rotation._outcome import Outcome

COLUMNS: Final = (
    "line",
    "account_id",
    "state",
    "error",
    "attempts",
    "seconds",
    "instance",
    "proxy",
    "status",
    "settled",
)
"""In the order in which the page shows them."""
BUDGET: Final = 4_550_000
"""Bytes that the packed listing may take, so that the page stays below 5 MB however many failed."""
_BLOCK: Final = 4_000
_LONGEST: Final = 300  # characters of a cell; a journal may come from someone else


@frozen
class Listing:
    """
    A table of accounts.

    Attributes:
        packed: Gzipped JSON, a list of blocks, each a list for each of `COLUMNS`; in base64.
        rows: Accounts in it.
        first: The first of them, which are shown where no script runs.
        complete: Whether all that were given found room.
    """

    packed: str
    rows: int
    first: tuple[tuple[Any, ...], ...]
    complete: bool


def pack(outcomes: Iterable[Outcome], *, shown: int, budget: int = BUDGET) -> Listing:
    """As many *outcomes* as fit into *budget* bytes, in their order, and the first *shown* of them."""
    given = iter(outcomes)
    # With gzip's header, which browsers read. Most of it are random ids, in which there is little to find
    # twice: filtered, it comes out smaller by a twentieth.
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31, strategy=zlib.Z_FILTERED)
    parts = [squeeze.compress(b"[")]
    first: list[tuple[Any, ...]] = []
    size, rows, complete = len(parts[0]), 0, True
    while block := [_row(outcome) for outcome in islice(given, _BLOCK)]:
        told = ("," if rows else "") + json.dumps(list(zip(*block, strict=True)), separators=(",", ":"))
        trial = squeeze.copy()
        part = trial.compress(told.encode("ascii")) + trial.flush(zlib.Z_SYNC_FLUSH)
        # Three bytes are four of base64; a little is kept for the end.
        if (size + len(part) + 64) * 4 > budget * 3:
            complete = False
            break
        squeeze, size, rows = trial, size + len(part), rows + len(block)
        parts.append(part)
        first += block[: shown - len(first)]
    parts.append(squeeze.compress(b"]") + squeeze.flush())
    return Listing(base64.b64encode(b"".join(parts)).decode("ascii"), rows, tuple(first), complete)


def _row(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.line,
        _cut(outcome.account_id),
        outcome.state.value,
        _cut(outcome.error_type),
        outcome.attempts,
        round(outcome.elapsed, 2),
        _cut(outcome.instance),
        _cut(outcome.proxy),
        outcome.status,
        round(outcome.settled_at, 1),
    )


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
