"""The idempotency keys of one row."""

from collections.abc import Awaitable, Callable
from typing import Self, TypeAlias

from attrs import define, field

from postpress_async.rotation._pending_rows import PendingRow

KeepGeneration: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Returns once it is stored that the row at an ordinal uses keys of a generation."""


@define(eq=False)
class RowKeys:
    """
    The idempotency keys of one row, derived from the run, the row's ordinal and a generation.

    If the input of a run is edited, accounts in doubt keep the token and the ordinal that they had.

    A resumed run therefore uses the same keys for requests that were in flight, and the API does not execute
    them twice. A new generation is stored on disk before its key is used. Otherwise a resumed run would reuse
    an older key: a managed change could be executed twice, and a custom one could get an old stored error.
    """

    prefix: str  # start of each key
    generation: int  # number of earlier keys
    _ordinal: int
    _keep: KeepGeneration | None
    in_doubt: bool = field(kw_only=True)  # see `Keys`

    @classmethod
    def of(cls, run: str, pending: PendingRow, keep: KeepGeneration | None) -> Self:
        """The keys of a row in the *run*; *keep* is None without a journal."""
        ordinal = pending.row.ordinal
        prefix = pending.key or f"{run}-{ordinal:x}"
        return cls(prefix, pending.generation, ordinal, keep, in_doubt=pending.maybe_sent)

    @property
    def current(self) -> str:
        return f"{self.prefix}-{self.generation:x}"

    async def renew(self) -> None:
        self.generation += 1
        self.in_doubt = False
        if self._keep is not None:
            await self._keep(self._ordinal, self.generation)
