"""Limits of executions: a rate limit, a concurrency limit, and one execution for each idempotency key."""

import asyncio
import math
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from attrs import define, field

from postpress_async.sandbox._responses import Response
from postpress_async.sandbox._rules import Json, RequestError


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
        self._refilled_at = -math.inf

    def take(self) -> float:
        """Take a token and return 0.0. If there is no token, return the seconds until the next one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._rate)
        self._refilled_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class ConcurrencyLimit:
    """
    Limits concurrent executions: ``async with limit:`` holds one of *capacity* slots. None means no limit.

    Check `is_full` before, so that at most *queue* executions wait for a slot. *active* is the number of held
    slots.
    """

    def __init__(self, capacity: int | None = None, queue: int = 0) -> None:
        self.active: int = 0
        self._slots = asyncio.Semaphore(sys.maxsize if capacity is None else capacity)
        self._queue = queue
        self._waiting = 0

    @property
    def is_full(self) -> bool:
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


# A change and its response, which is None if the execution failed unexpectedly.
_Execution: TypeAlias = tuple[Json, asyncio.Future[Response | None]]


@define(eq=False)
class IdempotencyStore:
    """Stores executions by account and Idempotency-Key. Beyond *capacity*, the oldest one is dropped."""

    _capacity: int
    _stores_errors: bool = field(kw_only=True, alias="stores_errors")  # also stores failed executions
    _executions: OrderedDict[tuple[str, str], _Execution] = field(factory=OrderedDict)

    async def find(self, account_id: str, key: str, change: Json) -> Response | None:
        """Wait for the response of the earlier execution with this key; None if the key is new."""
        execution = self._executions.get((account_id, key))
        if execution is None:
            return None
        earlier_change, pending = execution
        if earlier_change != change:
            detail = "This Idempotency-Key was already used with another body."
            raise RequestError("errors/invalid_parameters", detail)
        response = await asyncio.shield(pending)
        if response is None:
            raise RequestError("errors/unexpected_error")
        return response

    async def run(self, account_id: str, key: str, change: Json, work: Awaitable[Response]) -> Response:
        """
        Run *work* for a key that `find` does not know, and store its response.

        If *work* fails or is cancelled, requests that wait for its response get ``unexpected_error``.
        """
        name = account_id, key
        pending: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        execution = self._executions[name] = change, pending
        if len(self._executions) > self._capacity:
            self._executions.popitem(last=False)
        response: Response | None = None
        try:
            response = await work
            return response
        finally:
            pending.set_result(response)
            is_stored = response is not None and (response.status == 200 or self._stores_errors)
            if not is_stored and self._executions.get(name) is execution:
                del self._executions[name]
