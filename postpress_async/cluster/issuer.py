"""One rate for all workers: who may send how many requests a second until it is asked again."""

from typing import Final

from attrs import define, field

BEAT: Final = 0.05
"""Seconds between two words of a worker: what it gathers before it speaks, and how old a share gets."""

SILENT: Final = 0.4
"""Seconds without a word after which a worker is taken for one that falls back to an even split."""

FALLBACK: Final = 1.0
"""Seconds without a word after which a worker does so. By then the others have reduced their share."""

ROOM_TO_GROW: Final = 1.25
"""A worker that does not use its share up gets so many times what it used."""

LEAST: Final = 0.01
"""Of an even split: a worker with nothing to do may still send the first request of its next shard."""


@define
class Share:
    """
    What one worker has of the rate.

    Attributes:
        granted: Rate in requests per second that the worker got last and may still use.
        heard: When it last spoke.
        used: Requests a second that it sent lately.
        wants: Whether requests wait there for nothing but the rate.
    """

    granted: float = 0.0
    heard: float = 0.0
    used: float = 0.0
    wants: bool = True


class Issuer:
    """
    Splits *rate* among the workers, so that the granted rates never add up to more.

    A worker's share lasts until it speaks again, some 50 ms later. One that grows does so only by what others
    have been asked to give up. One that is silent keeps its share, and an even split at least, until it is
    known to be lost; one that is dead costs that share for as long.
    """

    def __init__(self, rate: float) -> None:
        self.rate: Final = rate
        self._shares: Final[dict[str, Share]] = {}

    @property
    def even(self) -> float:
        """What each worker falls back to."""
        return self.rate / max(1, len(self._shares))

    def join(self, worker: str, now: float) -> None:
        """A worker is there."""
        self._shares.setdefault(worker, Share(heard=now))

    def leave(self, worker: str) -> None:
        """A worker is lost."""
        self._shares.pop(worker, None)

    def grant(self, worker: str, used: float, *, wants: bool, now: float) -> float:
        """
        What *worker* may send from now on, in requests a second.

        Args:
            worker: Who asks; it joins if it has not.
            used: Requests a second that it sent since it asked last.
            wants: Whether it would have sent more.
            now: Seconds by a clock that only goes forward.
        """
        self.join(worker, now)
        share = self._shares[worker]
        share.heard, share.used, share.wants = now, used, wants
        taken = sum(self._held(other, now) for name, other in self._shares.items() if name != worker)
        # Not 0: it has to be something that a clock can wait for.
        share.granted = max(min(self._target(share), self.rate - taken), self.rate * 1e-6)
        return share.granted

    def _held(self, share: Share, now: float) -> float:
        silent = now - share.heard > SILENT
        return max(share.granted, self.even) if silent else share.granted

    def _target(self, asked: Share) -> float:
        """Fill up from below: who needs less than an even part of what is left gets it, the others share."""
        left, least = self.rate, LEAST * self.even
        needs = sorted(
            self.rate if share.wants else max(least, share.used * ROOM_TO_GROW)
            for share in self._shares.values()
        )
        mine = self.rate if asked.wants else max(least, asked.used * ROOM_TO_GROW)
        for done, need in enumerate(needs):
            part = left / (len(needs) - done)
            if need >= part:
                return min(mine, part)
            left -= need
        return mine + left / len(needs)  # nobody wants more: what is over is everyone's


@define
class Usage:
    """How many requests a second were sent, over the latest half second or so."""

    rate: float = 0.0
    _count: int = 0
    _at: float = field(default=-1.0)

    def saw(self, count: int, now: float) -> float:
        """So many were sent in all by *now*; how many a second that is."""
        if self._at < 0:
            self._at, self._count = now, count
        elif now - self._at >= 0.2:
            self.rate = (count - self._count) / (now - self._at)
            self._at, self._count = now, count
        return self.rate
