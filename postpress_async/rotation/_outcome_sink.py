"""Where a rotation records its progress."""

from typing import Protocol

from postpress_async.rotation._outcome import Outcome
from postpress_async.rotation._pool._allocator import Quarantine


class OutcomeSink(Protocol):
    """An open journal, or on a worker of a cluster the link to the coordinator's journal."""

    def record(self, outcome: Outcome, /) -> None:
        """Record an account's outcome."""
        ...

    def record_proxy(self, label: str, quarantine: Quarantine | None, /, *, failed: bool) -> None:
        """Record the quarantine of the pool's proxy with this label, and whether it has failed an account."""
        ...

    def halted(self, reason: str, /) -> None:
        """Record why the run stopped by itself."""
        ...

    def interrupted(self) -> None:
        """Record that the run was stopped before its last account."""
        ...

    def reopen(self, error_type: str, /) -> None:
        """Mark all accounts that failed with *error_type* as not sent."""
        ...

    async def room(self) -> None:
        """Wait while too many records are not stored yet."""
        ...

    async def keep_generation(self, ordinal: int, generation: int, /) -> None:
        """Return once it is stored that the row at *ordinal* uses keys of this generation."""
        ...

    async def aclose(self) -> None:
        """Store all records, and close."""
        ...
