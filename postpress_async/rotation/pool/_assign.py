"""
Which proxy of a pool an account gets: three ways to choose, each ignorant of why a place is closed.

A place is a proxy's index in its pool. It is closed while its proxy is quarantined or full.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Final, Protocol


class Assignment(Protocol):
    """A way to choose; every place is open at first."""

    def mark(self, place: int, *, is_open: bool) -> None:
        """Open or close *place*; it may be so already."""
        ...

    def choose(self, account_id: str, tried: Collection[int]) -> int | None:
        """The place for the account, open and none of *tried*; None where there is none."""
        ...


class _Open:
    """Open places in their order."""

    def __init__(self, count: int) -> None:
        self._open: Final = list(range(count))

    def mark(self, place: int, *, is_open: bool) -> None:
        if is_open and not self._has(place):
            insort(self._open, place)
        elif not is_open and self._has(place):
            del self._open[bisect_left(self._open, place)]

    def _has(self, place: int) -> bool:
        at = bisect_left(self._open, place)
        return at < len(self._open) and self._open[at] == place

    def _first_from(self, start: int, tried: Collection[int]) -> int | None:
        """The first open place from *start* on, around the end, that is none of *tried*."""
        at = bisect_left(self._open, start)
        for step in range(min(len(self._open), len(tried) + 1)):
            place = self._open[(at + step) % len(self._open)]
            if place not in tried:
                return place
        return None


class RoundRobin(_Open):
    """
    Each account gets the place after the one before.

    Accounts that come back from a proxy that failed have a round of their own: with the same one they
    would shift the others, and with none, a dead proxy's accounts would all go to its neighbour.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._next = [0, 0]  # of those who come first, of those who come back
        self._count: Final = count
        self._surplus: dict[int, int] = {}  # how often each place is still to be passed over

    def resume(self, counts: Mapping[int, int]) -> None:
        """
        Go on after an earlier run, which left so many accounts on each place.

        What a place has beyond the whole rounds of all is its surplus. By the mean and not by the place that
        has fewest: a proxy that is new in the list would get all accounts until it had as many as the others.
        """
        rounds = sum(counts.values()) // self._count
        self._surplus = {place: count - rounds for place, count in counts.items() if count > rounds}

    def choose(self, account_id: str, tried: Collection[int]) -> int | None:  # noqa: ARG002
        """The next open place that has no surplus."""
        comes_back = len(tried) > 0
        while (place := self._first_from(self._next[comes_back], tried)) is not None:
            self._next[comes_back] = place + 1
            surplus = 0 if comes_back else self._surplus.pop(place, 0)
            if not surplus:
                return place
            if surplus > 1:
                self._surplus[place] = surplus - 1
        return None


class Random(_Open):
    """
    Eight places are drawn from the seed and the account id alone; the account gets the first open one.

    Where none of them is open it gets the next open place after the last.
    """

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count)
        self._count = count
        self._seed = seed

    def choose(self, account_id: str, tried: Collection[int]) -> int | None:
        """The first of the account's draws that is open."""
        draws = blake2b(f"{self._seed} {account_id}".encode()).digest()
        place = 0
        for at in range(0, 64, 8):
            place = int.from_bytes(draws[at : at + 8], "little") % self._count
            if place not in tried and self._has(place):
                return place
        return self._first_from(place, tried)


class Sticky:
    """
    Rendezvous hashing: the account gets the open place with which its score is highest.

    The score of a pair is the product of its two hashes modulo ``2**32``; both are odd, so none is 0.
    All of an account's products are made by one multiplication of a long integer that has a lane of
    64 bits for each place: four times as fast as a loop, 10 to 20 microseconds for 500 proxies.
    A closed place is a lane of zeros.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes: Final = [_odd_hash(key) for key in keys]
        packed = b"".join(number.to_bytes(8, "little") for number in self._hashes)
        self._open = int.from_bytes(packed, "little")

    def mark(self, place: int, *, is_open: bool) -> None:
        """Open or close *place*."""
        self._open = self._open | self._lane(place) if is_open else self._open & ~self._lane(place)

    def _lane(self, place: int) -> int:
        return self._hashes[place] << (64 * place)

    def choose(self, account_id: str, tried: Collection[int]) -> int | None:
        """The open place of the highest score."""
        lanes = self._open
        for place in tried:
            lanes &= ~self._lane(place)
        if not lanes:
            return None
        products = (lanes * _odd_hash(account_id)).to_bytes(8 * len(self._hashes), "little")
        # Highest bytes first: among many places one of the first that are looked for is there.
        highest = products[3::8]
        byte = 255
        while (place := highest.find(byte)) < 0:
            byte -= 1
        best, score = place, self._rest(products, place)
        while (place := highest.find(byte, place + 1)) >= 0:
            if (other := self._rest(products, place)) > score:
                best, score = place, other
        return best  # open, even where byte is 0: a closed lane's score is 0, and no open one's is

    @staticmethod
    def _rest(products: bytes, place: int) -> bytes:
        """What a score is below its highest byte, in an order that compares."""
        return products[8 * place : 8 * place + 3][::-1]


def _odd_hash(text: str) -> int:
    """32 bits of BLAKE2b, the lowest set: the same in every process, which `hash` is not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little") | 1
