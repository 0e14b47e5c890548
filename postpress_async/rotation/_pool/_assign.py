"""
The strategies that choose a proxy of a pool for an account.

They work with indices into the pool's list. An index is closed while its proxy is quarantined or full.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Final


class RoundRobin:
    """
    Each account gets the next index. All indices are open at first.

    Failovers have a position of their own. With a common position, they would shift the proxies of the other
    accounts. Without a position, all accounts of a dead proxy would fail over to the proxy after it.
    """

    def __init__(self, count: int) -> None:
        self._count: Final = count
        self._open: Final = list(range(count))  # sorted
        self._next = {False: 0, True: 0}  # key: whether it is a failover
        self._surplus: dict[int, int] = {}  # by index: how often it is still to be skipped

    def set_open(self, index: int, *, is_open: bool) -> None:
        """Open the closed *index*, or close the open one."""
        if is_open:
            insort(self._open, index)
        else:
            del self._open[bisect_left(self._open, index)]

    def resume(self, counts: Mapping[int, int]) -> None:
        """
        Continue after an earlier run, in which the indices got *counts* accounts.

        An index is skipped once for each of its accounts above the mean. With the minimum instead of the
        mean, a proxy that was added to the list would get all accounts until it had as many as the others.
        """
        rounds = sum(counts.values()) // self._count
        self._surplus = {index: count - rounds for index, count in counts.items() if count > rounds}

    def choose(self, account_id: str, tried: Collection[int]) -> int | None:  # noqa: ARG002
        """Return the next open index without a surplus that is not in *tried*, or None."""
        is_failover = len(tried) > 0
        while (index := self._first_open(self._next[is_failover], tried)) is not None:
            self._next[is_failover] = index + 1
            surplus = 0 if is_failover else self._surplus.pop(index, 0)
            if not surplus:
                return index
            if surplus > 1:
                self._surplus[index] = surplus - 1
        return None

    def _first_open(self, start: int, tried: Collection[int]) -> int | None:
        """Return the first open index that is not in *tried*, from *start* on and cyclically."""
        position = bisect_left(self._open, start)
        for step in range(min(len(self._open), len(tried) + 1)):
            index = self._open[(position + step) % len(self._open)]
            if index not in tried:
                return index
        return None


class Sticky:
    """
    Rendezvous hashing: the account gets the open index with the highest score.

    The score of a pair is the product of their two hashes modulo ``2**32``. Both hashes are odd, so no score
    is 0. One multiplication computes the scores of all indices for an account: a long integer has a 64-bit
    lane per index, which is 0 if the index is closed. For 500 proxies this takes 10 to 20 microseconds, a
    quarter of the time of a loop.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes: Final = [_odd_hash(key) for key in keys]
        packed = b"".join(number.to_bytes(8, "little") for number in self._hashes)
        self._open = int.from_bytes(packed, "little")

    def set_open(self, index: int, *, is_open: bool) -> None:
        """Open the closed *index*, or close the open one."""
        self._open += self._lane(index) if is_open else -self._lane(index)

    def _lane(self, index: int) -> int:
        return self._hashes[index] << (64 * index)

    def choose(self, account_id: str, tried: Collection[int]) -> int | None:
        """Return the open index with the highest score that is not in *tried*, or None."""
        lanes = self._open
        for index in tried:
            lanes &= ~self._lane(index)
        if not lanes:
            return None
        products = (lanes * _odd_hash(account_id)).to_bytes(8 * len(self._hashes), "little")
        # Search for the most significant byte first. With many proxies, a high one is found at once.
        highest = products[3::8]
        byte = 255
        while (index := highest.find(byte)) < 0:
            byte -= 1
        # Several indices may have this byte. The lower bytes decide.
        best, score = index, _low_bytes(products, index)
        while (index := highest.find(byte, index + 1)) >= 0:
            if (other := _low_bytes(products, index)) > score:
                best, score = index, other
        return best  # open even if byte is 0, because only closed lanes have the score 0


def _low_bytes(products: bytes, index: int) -> bytes:
    """The lower three bytes of a score, most significant first, so that they compare like numbers."""
    return products[8 * index : 8 * index + 3][::-1]


def _odd_hash(text: str) -> int:
    """32 bits of BLAKE2b with the lowest bit set. Unlike `hash`, it is the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little") | 1
