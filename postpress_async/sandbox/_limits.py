"""The server's rate limit (a token bucket) and concurrency limit (with a queue)."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType


class TokenBucket:
    """
    A token bucket that starts full.

    Args:
        rate: Tokens added per second, above 0.
        burst: Capacity in tokens, at least 1.
        clock: Returns the time in seconds; first called by the first `take`.

    Raises:
        ValueError: The rate or the burst is out of range.
    """

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
    ``async with limit:`` holds one of *capacity* slots and waits for it in FIFO order.

    Check `is_full` first, since entering never rejects. Waiters are cancelled only when the server closes,
    so a slot that was handed to a cancelled waiter is not handed on.

    Args:
        capacity: Maximum number of holders; None for no limit.
        queue: Maximum number of waiters.

    Attributes:
        active: Number of current holders.
    """

    def __init__(self, capacity: int | None = None, queue: int = 0) -> None:
        self.active: int = 0
        self._capacity = capacity
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether all slots are held and the queue is full."""
        return (
            self._capacity is not None and self.active >= self._capacity and len(self._waiting) >= self._queue
        )

    async def __aenter__(self) -> None:
        if self._capacity is None or self.active < self._capacity:
            self.active += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)  # `active` stays, so that no newcomer takes the slot first
                return
        self.active -= 1
