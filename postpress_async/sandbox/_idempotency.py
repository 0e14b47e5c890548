"""Idempotency keys: the response of a key's first request is replayed to its later requests."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable

from postpress_async.sandbox._answers import Answer
from postpress_async.sandbox._rules import Json, Refusal


class Execution:
    """The execution of a change, in progress or finished."""

    __slots__ = ("_answer", "_ended", "change")

    def __init__(self, change: Json) -> None:
        self.change: Json = change
        self._answer: Answer | None = None
        self._ended: asyncio.Event | None = asyncio.Event()

    def end(self, answer: Answer | None) -> None:
        """Finish with *answer* and wake all waiters; None if the execution failed unexpectedly."""
        self._answer = answer
        if self._ended is not None:
            self._ended.set()
            self._ended = None  # saves memory: a million executions may be stored

    async def result(self) -> Answer:
        """
        Wait for the answer and return it.

        Raises:
            Refusal: The execution failed unexpectedly.
        """
        if self._ended is not None:
            await self._ended.wait()
        if self._answer is None:
            raise Refusal("errors/unexpected_error")
        return self._answer


class IdempotencyStore:
    """
    Stores executions by account and Idempotency-Key.

    Args:
        capacity: Maximum number of executions; beyond it, the oldest is dropped.
        stores_errors: Whether failed executions are stored too.
    """

    def __init__(self, capacity: int, *, stores_errors: bool) -> None:
        self._capacity = capacity
        self._stores_errors = stores_errors
        self._executions: OrderedDict[tuple[str, str], Execution] = OrderedDict()

    def find(self, account_id: str, key: str, change: Json) -> Execution | None:
        """
        The earlier execution with this key; None if the key is new.

        Raises:
            Refusal: The earlier execution had another body.
        """
        known = self._executions.get((account_id, key))
        if known is not None and known.change != change:
            detail = "This Idempotency-Key was already used with another body."
            raise Refusal("errors/invalid_parameters", detail)
        return known

    async def run(self, account_id: str, key: str, change: Json, work: Awaitable[Answer]) -> Answer:
        """Run *work* for a key that `find` does not know, and store its answer."""
        name = (account_id, key)
        execution = self._executions[name] = Execution(change)
        if len(self._executions) > self._capacity:
            self._executions.popitem(last=False)
        answer: Answer | None = None
        try:
            answer = await work
            return answer
        finally:
            execution.end(answer)
            stored = answer is not None and (answer.status == 200 or self._stores_errors)
            if not stored and self._executions.get(name) is execution:
                del self._executions[name]
