"""
Short hashes of the rows of an input that is not a file. Each is on disk before its row is sent.

A file is recognised by a digest of all its rows, but a mapping or an iterable only by the hashes of the rows
that were read so far. Without hashes, a row that was in flight when a run was killed could be sent with
another change under the same idempotency key, and the API might return its response to the first change.
"""

import asyncio
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final, Generic, TypeVar

from postpress_async.errors import JournalError
from postpress_async.rotation._row_digest import text_of
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal._writer import Writer

# Bytes of a row's hash, so that one changed row in four billion is not detected. With longer hashes, anyone
# who can read the journal could confirm a guessed password.
SIZE: Final = 4
_INSERT: Final = "INSERT OR REPLACE INTO changes VALUES (?, ?)"
_BLOCK: Final = 4_096  # maximum number of hashes in one row of the table
_YIELD_EVERY: Final = 500  # rows to compare before other tasks of the event loop may run


T = TypeVar("T")


class OrdinalLookup(Generic[T]):
    """Looks up values in a stream sorted by ordinal. Each call of `get` must pass a higher ordinal."""

    def __init__(self, values: Iterable[tuple[int, T]]) -> None:
        self._values: Final = iter(values)
        self._next = next(self._values, None)

    def get(self, ordinal: int) -> T | None:
        while self._next is not None and self._next[0] < ordinal:
            self._next = next(self._values, None)
        return None if self._next is None or self._next[0] != ordinal else self._next[1]


class RowHashes:
    """Compares rows, in the order of the input, with the hashes in the journal."""

    def __init__(self, path: Path, writer: Writer, key: bytes, stored: Iterable[tuple[int, bytes]]) -> None:
        """*stored* yields blocks: the ordinal of a row, and the hashes of that row and those after it."""
        self._path: Final = path
        self._writer: Final = writer
        self._key: Final = key
        self._stored: Final = OrdinalLookup(_unpack(stored))
        self._put_blocks = 0  # number of blocks given to the writer
        self._committed_blocks = 0  # number of blocks that are on disk

    def check(self, row: Row | Refusal) -> None:
        """Add the hash of *row* to the next commit if it is new; raise `JournalError` if it differs."""
        if not self._is_known(row, digest := self._hash(row)):
            self._put(row.ordinal, digest)

    async def on_disk(self) -> None:
        """Return when the hashes of all rows that were checked are on disk."""
        put_blocks = self._put_blocks
        if put_blocks > self._committed_blocks:
            await self._writer.committed()
            self._committed_blocks = max(self._committed_blocks, put_blocks)

    async def check_all(self, rows: Iterable[Row | Refusal]) -> None:
        """Check all rows of an input, as `check` does. Await `on_disk` before the first one is sent."""
        first, block = 0, bytearray()

        def put_block() -> None:
            if block:
                self._put(first, bytes(block))
                block.clear()

        for count, row in enumerate(rows, 1):
            if not self._is_known(row, digest := self._hash(row)):
                if len(block) >= SIZE * _BLOCK or row.ordinal != first + len(block) // SIZE:
                    put_block()
                if not block:
                    first = row.ordinal
                block += digest
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        put_block()

    def _put(self, first: int, hashes: bytes) -> None:
        self._writer.put(_INSERT, (first, hashes))
        self._put_blocks += 1

    def _hash(self, row: Row | Refusal) -> bytes:
        return blake2b(text_of(row), digest_size=SIZE, key=self._key).digest()

    def _is_known(self, row: Row | Refusal, digest: bytes) -> bool:
        if (stored := self._stored.get(row.ordinal)) is None:
            return False
        if stored != digest:
            account = f" ({row.account_id})" if row.account_id else ""
            raise JournalError(
                f"{self._path} belongs to another input: row {row.ordinal + 1}{account} is another "
                "account or asks for another change. Nothing was sent for it. Use that input again to resume "
                "its run, or name another journal to start a new run"
            )
        return True


def _unpack(blocks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    for first, hashes in blocks:
        for number in range(len(hashes) // SIZE):
            yield first + number, hashes[SIZE * number : SIZE * (number + 1)]
