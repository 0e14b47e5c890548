"""
The accounts that were not patched, compressed and embedded in the page.

They are stored by column in blocks of a few thousand rows, because similar values compress better together.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from attrs import frozen

from postpress_async.rotation._outcome import Outcome

# In the order of the page.
COLUMNS: Final = tuple("line account_id state error attempts seconds instance proxy status settled".split())

BUDGET: Final = 4_550_000  # maximum bytes of the packed listing; keeps the page below 5 MB
_BLOCK: Final = 4_000  # rows
_LONGEST: Final = 300  # characters of a cell, because a damaged journal may have a longer text


@frozen
class Listing:
    packed: str  # a JSON list of blocks, each with a list per column of `COLUMNS`; gzip in base64
    rows: int
    first: list[tuple[Any, ...]]  # the rows that are shown in browsers without scripts
    complete: bool  # whether all accounts fit


def pack(outcomes: Iterable[Outcome], *, shown: int, budget: int = BUDGET) -> Listing:
    """Pack as many *outcomes* as fit into *budget* bytes, and also keep the first *shown* rows unpacked."""
    remaining = iter(outcomes)
    # 31 makes zlib write gzip, which browsers can read. Z_FILTERED makes the result 5% smaller, because most
    # of the content is random ids.
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31, strategy=zlib.Z_FILTERED)
    packed = compressor.compress(b"[")
    first: list[tuple[Any, ...]] = []
    rows, complete = 0, True
    while block := [_row(outcome) for outcome in islice(remaining, _BLOCK)]:
        text = ("," if rows else "") + json.dumps(list(zip(*block, strict=True)), separators=(",", ":"))
        trial = compressor.copy()
        part = trial.compress(text.encode("ascii")) + trial.flush(zlib.Z_SYNC_FLUSH)
        # Base64 encodes three bytes as four. 64 bytes are reserved for the end of the stream.
        if (len(packed) + len(part) + 64) * 4 > budget * 3:
            complete = False
            break
        compressor, packed, rows = trial, packed + part, rows + len(block)
        first += block[: shown - len(first)]
    packed += compressor.compress(b"]") + compressor.flush()
    return Listing(base64.b64encode(packed).decode("ascii"), rows, first, complete)


def _row(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.line,
        cut(outcome.account_id),
        outcome.state.value,
        cut(outcome.error_type),
        outcome.attempts,
        round(outcome.elapsed, 2),
        cut(outcome.instance),
        cut(outcome.proxy),
        outcome.status,
        round(outcome.settled_at, 1),
    )


def cut(text: str | None, length: int = _LONGEST) -> str | None:
    """*text*, shortened to at most *length* characters."""
    return text if text is None or len(text) <= length else text[: length - 1] + "…"
