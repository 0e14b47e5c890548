"""The idempotency keys of one row."""

from collections.abc import Awaitable, Callable
from typing import Self, TypeAlias

from attrs import define, field

from postpress_async.rotation._pending_rows import PendingRow

KeepGeneration: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Called with an ordinal and a generation; returns once the journal has stored the generation of that row."""


@define(eq=False)
class RowKeys:
    """
    The idempotency keys of one row, derived from the run, the row's ordinal and a generation.

    A resumed run therefore uses the same keys for requests that were in flight, and the API does not execute
    them twice. If the input is edited between the runs, an account in doubt keeps its key prefix although its
    ordinal changes.

    A new generation is stored on disk before its key is used. Otherwise a resumed run would reuse an older
    key: a managed change could be executed twice, and a custom change could get a stored error response.
    """

    prefix: str  # start of each key
    generation: int  # number of earlier keys
    _ordinal: int
    _keep: KeepGeneration | None
    in_doubt: bool = field(kw_only=True)  # see `Keys`

    @classmethod
    def of(cls, run: str, pending: PendingRow, keep: KeepGeneration | None) -> Self:
        """Return the keys of a row in the run with the token *run*; *keep* is None without a journal."""
        ordinal = pending.row.ordinal
        prefix = pending.key or f"{run}-{ordinal:x}"
        return cls(prefix, pending.generation, ordinal, keep, in_doubt=pending.in_doubt_since is not None)

    @property
    def current(self) -> str:
        return f"{self.prefix}-{self.generation:x}"

    async def renew(self) -> None:
        self.generation += 1
        self.in_doubt = False
        if self._keep is not None:
            await self._keep(self._ordinal, self.generation)
