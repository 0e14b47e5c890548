"""What a rotation notes down while its accounts settle; `journal` is the one on disk."""

from typing import Protocol

from postpress_async.rotation._outcome import Outcome


class Notes(Protocol):
    """What is needed of a journal once it is open. A worker of a cluster has one at a distance."""

    def record(self, outcome: Outcome, /) -> None:
        """Take what came of an account."""
        ...

    def proxy_failed(self, label: str, /, *, quarantined: bool) -> None:
        """Take that the pool's proxy of this label failed an account."""
        ...

    def halted(self, reason: str, /) -> None:
        """Take why the run stopped by itself."""
        ...

    def reopen(self, error_type: str, /) -> None:
        """Take every account that failed with *error_type* for one that was not sent."""
        ...

    @property
    def is_behind(self) -> bool:
        """Whether what was taken is far ahead of what is kept."""
        ...

    async def room(self) -> None:
        """Return once what was taken is not far ahead of what is kept."""
        ...

    async def keep_generation(self, ordinal: int, generation: int, /) -> None:
        """Return when it is kept that *ordinal* goes on under this generation of keys."""
        ...

    async def aclose(self) -> None:
        """Keep what is waiting, and close."""
        ...
