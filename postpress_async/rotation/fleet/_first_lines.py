"""Where each account of a fleet was first named."""

import sys
from array import array
from hashlib import blake2b
from typing import Final

# Python's own hash of text is SipHash, of 64 bits with a key of the process, and kept with the text. Where
# it is shorter or another, BLAKE2b takes its place.
_OWN_HASH: Final = sys.hash_info.hash_bits == 64 and sys.hash_info.algorithm.startswith("siphash")


class FirstLines:
    """
    The line of each account, in 32 to 64 bytes an account however long its id is.

    A hash table with open addressing in two arrays. A dict from a digest to a line is four times as
    large: 122 MB for a million accounts, where this has 36 MB, and a fleet can have ten million.
    Ids are told apart by 64 bits of SipHash: two of a million are mixed up once in 37 million fleets.
    """

    def __init__(self) -> None:
        self._count = 0
        self._make_room(1024)

    def _make_room(self, slots: int) -> None:
        self._digests = array("q", bytes(8 * slots))
        self._lines = array("Q", bytes(8 * slots))  # 0 is a free slot: lines count from 1
        self._mask = slots - 1
        self._room = slots // 2  # fuller, it would be searched for longer

    def __len__(self) -> int:
        return self._count

    def claim(self, account_id: str, line: int) -> int | None:
        """The line that named *account_id* before; None where *line* is the first and is now kept."""
        digest = hash(account_id) if _OWN_HASH else _blake2b(account_id)
        digests, lines, mask = self._digests, self._lines, self._mask
        slot = digest & mask
        while first := lines[slot]:
            if digests[slot] == digest:
                return first
            slot = (slot + 1) & mask
        digests[slot], lines[slot] = digest, line
        self._count += 1
        if self._count > self._room:
            self._grow()
        return None

    def _grow(self) -> None:
        old = zip(self._digests, self._lines, strict=True)
        self._make_room(2 * len(self._lines))
        digests, lines, mask = self._digests, self._lines, self._mask
        for digest, line in old:
            if line:
                slot = digest & mask
                while lines[slot]:
                    slot = (slot + 1) & mask
                digests[slot], lines[slot] = digest, line


def _blake2b(account_id: str) -> int:
    digest = blake2b(account_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
