"""What an Idempotency-Key stands for: one execution, whose answer later requests get too."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable

from postpress_async.sandbox.answers import Answer
from postpress_async.sandbox.rules import Json, Refusal


class Execution:
    """A change that is being executed, or was."""

    __slots__ = ("_answer", "_ended", "change")

    def __init__(self, change: Json) -> None:
        self.change: Json = change
        self._answer: Answer | None = None
        self._ended: asyncio.Event | None = asyncio.Event()

    def end(self, answer: Answer | None) -> None:
        """Tell it to all who wait; None where the execution broke down."""
        self._answer = answer
        if self._ended is not None:
            self._ended.set()
            self._ended = None  # a million executions may be kept

    async def result(self) -> Answer:
        """The answer, once there is one."""
        if self._ended is not None:
            await self._ended.wait()
        if self._answer is None:
            raise Refusal("errors/unexpected_error")
        return self._answer


class Replays:
    """
    Executions by account and Idempotency-Key.

    Args:
        most: How many are kept; beyond it the oldest is forgotten.
        errors: Whether those that came to an error are kept too.
    """

    def __init__(self, most: int, *, errors: bool) -> None:
        self._most = most
        self._errors = errors
        self._executions: OrderedDict[tuple[str, str], Execution] = OrderedDict()

    def find(self, account_id: str, key: str, change: Json) -> Execution | None:
        """
        The execution that had this key before.

        Raises:
            Refusal: It was of another change.
        """
        known = self._executions.get((account_id, key))
        if known is not None and known.change != change:
            detail = "This Idempotency-Key was used with another body before."
            raise Refusal("errors/invalid_parameters", detail)
        return known

    async def run(self, account_id: str, key: str, change: Json, work: Awaitable[Answer]) -> Answer:
        """Do the *work* under a key that `find` does not know, and keep its answer."""
        name = (account_id, key)
        execution = self._executions[name] = Execution(change)
        if len(self._executions) > self._most:
            self._executions.popitem(last=False)
        answer: Answer | None = None
        try:
            answer = await work
            return answer
        finally:
            execution.end(answer)
            kept = answer is not None and (answer.status == 200 or self._errors)
            if not kept and self._executions.get(name) is execution:
                del self._executions[name]
