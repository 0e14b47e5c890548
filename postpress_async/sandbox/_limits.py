"""The server's rate limit (a token bucket) and concurrency limit (with a queue)."""

import asyncio
import sys
from collections.abc import Callable


class TokenBucket:
    """A token bucket of *burst* tokens, which starts full and gains *rate* tokens per second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be above 0, got {rate!r}")
        if burst < 1:
            raise ValueError(f"burst must be at least 1, got {burst!r}")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._refilled_at: float | None = None

    def take(self) -> float:
        """Take a token and return 0.0. If there is no token, return the seconds until the next one."""
        now = self._clock()
        elapsed = 0.0 if self._refilled_at is None else now - self._refilled_at
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._refilled_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class ConcurrencyLimit:
    """
    ``async with limit:`` holds one of *capacity* slots; None for no limit.

    Check `is_full` before: at most *queue* others should wait for a slot. *active* is the number of holders.
    """

    def __init__(self, capacity: int | None = None, queue: int = 0) -> None:
        self.active: int = 0
        self._slots = asyncio.Semaphore(sys.maxsize if capacity is None else capacity)
        self._queue = queue
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether all slots are held and the queue is full."""
        return self._slots.locked() and self._waiting >= self._queue

    async def __aenter__(self) -> None:
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self.active += 1

    async def __aexit__(self, *_: object) -> None:
        self.active -= 1
        self._slots.release()
