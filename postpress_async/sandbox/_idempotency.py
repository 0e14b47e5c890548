"""Idempotency keys: the response of a key's first request is replayed to its later requests."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable

from attrs import define, field

from postpress_async.sandbox._answers import Answer
from postpress_async.sandbox._rules import Json, Refusal


@define(eq=False)
class _Execution:
    change: Json
    answer: Answer | asyncio.Future[Answer | None] | None  # None if it failed unexpectedly


@define(eq=False)
class IdempotencyStore:
    """
    Stores executions by account and Idempotency-Key; the oldest is dropped if there are more than *capacity*.

    *stores_errors* says whether failed executions are stored too.
    """

    _capacity: int
    _stores_errors: bool = field(kw_only=True)
    _executions: OrderedDict[tuple[str, str], _Execution] = field(factory=OrderedDict)

    async def find(self, account_id: str, key: str, change: Json) -> Answer | None:
        """Wait for the answer of the earlier execution with this key; None if the key is new."""
        execution = self._executions.get((account_id, key))
        if execution is None:
            return None
        if execution.change != change:
            detail = "This Idempotency-Key was already used with another body."
            raise Refusal("errors/invalid_parameters", detail)
        answer = execution.answer
        if isinstance(answer, asyncio.Future):
            answer = await asyncio.shield(answer)
        if answer is None:
            raise Refusal("errors/unexpected_error")
        return answer

    async def run(self, account_id: str, key: str, change: Json, work: Awaitable[Answer]) -> Answer:
        """
        Run *work* for a key that `find` does not know, and store its answer.

        If *work* fails or is cancelled, requests that wait for its answer get ``unexpected_error``.
        """
        name = account_id, key
        pending: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        execution = self._executions[name] = _Execution(change, pending)
        if len(self._executions) > self._capacity:
            self._executions.popitem(last=False)
        answer: Answer | None = None
        try:
            answer = await work
            return answer
        finally:
            execution.answer = answer  # in place of the future: a million may be stored
            pending.set_result(answer)
            stored = answer is not None and (answer.status == 200 or self._stores_errors)
            if not stored and self._executions.get(name) is execution:
                del self._executions[name]
