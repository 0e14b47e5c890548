"""The first line of each account of a fleet."""

import sys
from array import array
from hashlib import blake2b
from typing import Final

# Python's hash of a string is usually a 64-bit SipHash with a random key, cached in the string. Otherwise use
# BLAKE2b.
_IS_SIPHASH_64: Final = sys.hash_info.hash_bits == 64 and sys.hash_info.algorithm.startswith("siphash")


class FirstLines:
    """
    The first line of each account, in 32 to 64 bytes per account.

    A hash table with open addressing in two arrays: 36 MB for a million accounts, where a dict from hash to
    line takes 122 MB; a fleet can have ten million accounts. Accounts are compared by a 64-bit hash, which
    collides once in 37 million fleets of a million accounts.
    """

    def __init__(self) -> None:
        self._count = 0
        self._allocate(1024)

    def _allocate(self, slots: int) -> None:
        self._digests = array("q", bytes(8 * slots))
        self._lines = array("Q", bytes(8 * slots))  # 0 is a free slot, because the first line is 1
        self._mask = slots - 1
        self._capacity = slots // 2  # lookups are slower in a fuller table

    def claim(self, account_id: str, line: int) -> int | None:
        """Return the earlier line that has *account_id*. Otherwise store *line* and return None."""
        digest = hash(account_id) if _IS_SIPHASH_64 else _blake2b(account_id)
        digests, lines, mask = self._digests, self._lines, self._mask
        slot = digest & mask
        while first := lines[slot]:
            if digests[slot] == digest:
                return first
            slot = (slot + 1) & mask
        digests[slot], lines[slot] = digest, line
        self._count += 1
        if self._count > self._capacity:
            self._grow()
        return None

    def _grow(self) -> None:
        old = zip(self._digests, self._lines, strict=True)
        self._allocate(2 * len(self._lines))
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
