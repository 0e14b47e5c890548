"""
A short hash of each row of an input that is not a file, on disk before the row is sent.

A file is recognised by a digest of all its rows; a mapping or an iterable by the hashes of the rows taken so
far. Without them, a row that was in flight when its run was killed could be sent with another change under
the same idempotency key, and the API might return its response to the old one.
"""

import asyncio
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

from postpress_async.errors import JournalError
from postpress_async.rotation._row_digest import text_of
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal._writer import Writer

SIZE: Final = 4
"""
Bytes of a row's hash: one changed row in four billion is missed. Longer hashes would find no more in
practice, and would let anyone who can read the journal confirm a guess of a password.
"""

_INSERT: Final = "INSERT OR REPLACE INTO changes VALUES (?, ?)"
_BLOCK: Final = 4_096  # most hashes in one row of the table
_PER_TURN: Final = 500  # rows to compare before the event loop runs other tasks


class RowHashes:
    """Compares rows, in their order, with the hashes in the journal."""

    def __init__(self, path: Path, writer: Writer, key: bytes, stored: Iterable[tuple[int, bytes]]) -> None:
        """*stored* has blocks of the journal's hashes: the ordinal of the first one, and their bytes."""
        self._path: Final = path
        self._writer: Final = writer
        self._key: Final = key
        self._stored: Final = _unpack(stored)
        self._next = next(self._stored, None)
        self._put = 0  # blocks given to the writer
        self._on_disk = 0  # how many of these blocks are on disk

    def check(self, row: Row | Refusal) -> None:
        """Have the hash of *row* written if it is new; raise `JournalError` if the journal has another."""
        if not self._is_known(row, digest := self._hash(row)):
            self._keep(row.ordinal, digest)

    async def on_disk(self) -> None:
        """Return when the hashes of all rows that were checked are on disk."""
        if (put := self._put) > self._on_disk:
            await self._writer.committed()
            self._on_disk = max(self._on_disk, put)

    async def check_all(self, rows: Iterable[Row | Refusal]) -> None:
        """Check all rows of an input, as `check` does. Before the first is sent, await `on_disk`."""
        first, block = 0, bytearray()

        def keep() -> None:
            if block:
                self._keep(first, bytes(block))
                block.clear()

        for count, row in enumerate(rows, 1):
            if not self._is_known(row, digest := self._hash(row)):
                if len(block) >= SIZE * _BLOCK or row.ordinal != first + len(block) // SIZE:
                    keep()
                if not block:
                    first = row.ordinal
                block += digest
            if count % _PER_TURN == 0:
                await asyncio.sleep(0)
        keep()

    def _keep(self, first: int, hashes: bytes) -> None:
        self._writer.put(_INSERT, (first, hashes))
        self._put += 1

    def _hash(self, row: Row | Refusal) -> bytes:
        return blake2b(text_of(row), digest_size=SIZE, key=self._key).digest()

    def _is_known(self, row: Row | Refusal, digest: bytes) -> bool:
        while self._next is not None and self._next[0] < row.ordinal:
            self._next = next(self._stored, None)
        if self._next is None or self._next[0] != row.ordinal:
            return False
        if self._next[1] != digest:
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
