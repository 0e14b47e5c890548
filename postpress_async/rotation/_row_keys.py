"""The idempotency keys of one row."""

from collections.abc import Awaitable, Callable
from typing import Self, TypeAlias

from postpress_async.rotation._pending_rows import PendingRow

KeepGeneration: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Returns once it is stored that the row at an ordinal uses keys of a generation."""


class RowKeys:
    """
    The idempotency keys of one row, derived from the run, the row's ordinal and a generation.

    If the input of a run is edited, accounts in doubt keep the token and the ordinal that they had.

    A resumed run therefore uses the same keys for requests that were in flight, and the API does not execute
    them twice. A new generation is stored on disk before its key is used. Otherwise a resumed run would reuse
    an older key: a managed change could be executed twice, and a custom one could get an old stored error.

    Attributes:
        in_doubt: See `Keys`.
        prefix: Beginning of the keys.
        generation: Number of keys that are used up.
    """

    __slots__ = ("_keep", "_ordinal", "generation", "in_doubt", "prefix")

    def __init__(
        self, prefix: str, generation: int, ordinal: int, keep: KeepGeneration | None, *, in_doubt: bool
    ) -> None:
        self.in_doubt: bool = in_doubt
        self.prefix: str = prefix
        self.generation: int = generation
        self._ordinal = ordinal
        self._keep = keep

    @classmethod
    def of(cls, run: str, pending: PendingRow, keep: KeepGeneration | None) -> Self:
        """The keys of a row in the *run*; *keep* is None without a journal."""
        ordinal = pending.row.ordinal
        prefix = pending.key or f"{run}-{ordinal:x}"
        return cls(prefix, pending.generation, ordinal, keep, in_doubt=pending.maybe_sent)

    @property
    def current(self) -> str:
        """See `Keys.current`."""
        return f"{self.prefix}-{self.generation:x}"

    async def renew(self) -> None:
        """See `Keys.renew`."""
        self.generation += 1
        self.in_doubt = False
        if self._keep is not None:
            await self._keep(self._ordinal, self.generation)
