"""How fast and how much at once: a token bucket, and slots with a queue before them."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Bucket:
    """
    A token bucket, full at first.

    Args:
        rate: Tokens that come in each second, more than 0.
        burst: Tokens that it holds, at least 1.
        clock: Gives the time in seconds; first asked by the first `take`.

    Raises:
        ValueError: The rate or the burst is out of range.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a bucket needs a rate above 0 and a burst of at least 1")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._seen: float | None = None

    def take(self) -> float:
        """Take a token and give 0.0; or take none and give the seconds until there is one."""
        now = self._clock()
        since = 0.0 if self._seen is None else now - self._seen
        self._tokens = min(self._burst, self._tokens + since * self._rate)
        self._seen = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Slots:
    """
    ``async with slots:`` holds one of *capacity* slots, waiting for it in turn.

    Ask `full` first: entering does not refuse. Who waits is cancelled only when the server closes, so
    nobody hands on a slot that was given to the cancelled.

    Args:
        capacity: How many at once; None for no limit.
        queue: How many more may wait.

    Attributes:
        taken: How many slots are held now.
    """

    def __init__(self, capacity: int | None = None, queue: int = 0) -> None:
        self.taken: int = 0
        self._capacity = capacity
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        """Whether the slots and the queue are."""
        return (
            self._capacity is not None and self.taken >= self._capacity and len(self._waiting) >= self._queue
        )

    async def __aenter__(self) -> None:
        if self._capacity is None or self.taken < self._capacity:
            self.taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot goes from hand to hand: a newcomer cannot slip in between
                return
        self.taken -= 1
