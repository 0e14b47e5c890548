"""
Idempotency keys: which one goes with an attempt.

The same key again means "if you did it already, tell me what you told me"; a fresh one means "do it".
Which of the two an attempt needs, `_call` decides; here is only where the keys come from.
"""

import itertools
import secrets
from typing import Protocol

from attrs import define


class Keys(Protocol):
    """
    Where the keys of one call come from.

    Attributes:
        in_doubt: Whether an earlier process may have sent the change under the current key.
    """

    @property
    def in_doubt(self) -> bool: ...

    @property
    def current(self) -> str | None:
        """The key of the next attempt; None sends none."""
        ...

    async def renew(self) -> None:
        """Make `current` a key that no attempt has used."""
        ...


class KeyMaker:
    """Keys that no other session makes: a random prefix, and a counter on it."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(12)
        self._numbers = itertools.count(1)

    def make(self) -> str:
        """A key that this maker has not given before. A uuid4 each would cost ten times as much."""
        return f"{self._prefix}-{next(self._numbers):x}"


class FreshKeys:
    """A session's own keys for one call."""

    __slots__ = ("_current", "_maker", "in_doubt")

    def __init__(self, maker: KeyMaker) -> None:
        self._maker = maker
        self._current: str | None = None
        self.in_doubt = False

    @property
    def current(self) -> str:
        """See `Keys.current`. It is made when it is needed: a call that waits has none."""
        if self._current is None:
            self._current = self._maker.make()
        return self._current

    async def renew(self) -> None:
        """See `Keys.renew`."""
        self._current = self._maker.make()


@define
class OneKey:
    """A caller's own key, kept for every attempt; or None for none at all."""

    current: str | None
    in_doubt: bool = False

    async def renew(self) -> None:
        """Keep it: whoever chose the key wants every attempt to count as the same one."""
