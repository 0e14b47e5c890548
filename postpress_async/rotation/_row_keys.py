"""The idempotency keys of one row."""

from postpress_async.rotation._outcome_sink import OutcomeSink
from postpress_async.rotation._pending_rows import PendingRow


class RowKeys:
    """
    The idempotency keys of one row, derived from the run, the row's ordinal and a generation.

    If the input of a run is edited, accounts in doubt keep the token and the ordinal that they had. A resumed
    run therefore uses the same keys for requests that were in flight, and the API does not execute
    them twice. A new generation is stored on disk before its key is used. Otherwise a resumed run would reuse
    an older key: a managed change could be executed twice, and a custom one could get an old stored error.
    """

    __slots__ = ("_generation", "_journal", "_ordinal", "_prefix", "in_doubt")

    def __init__(self, run: str, pending: PendingRow, journal: OutcomeSink | None) -> None:
        self.in_doubt: bool = pending.maybe_sent
        self._ordinal = pending.row.ordinal
        self._prefix = pending.key or f"{run}-{self._ordinal:x}"
        self._journal = journal
        self._generation = pending.generation

    @property
    def current(self) -> str:
        """See `Keys.current`."""
        return f"{self._prefix}-{self._generation:x}"

    async def renew(self) -> None:
        """See `Keys.renew`."""
        self._generation += 1
        self.in_doubt = False
        if self._journal is not None:
            await self._journal.keep_generation(self._ordinal, self._generation)
