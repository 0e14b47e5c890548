"""
Idempotency keys: which one goes with an attempt.

The same key again means "if you did it already, tell me what you told me"; a fresh one means "do it".
Which of the two an attempt needs, `_call` decides; here is only where the keys come from.
"""

import itertools
import os
import secrets
from typing import Any, Final, Protocol
from weakref import WeakSet

from attrs import define


def check_key(key: Any) -> str:
    """
    *key*, which a caller chose.

    Raises:
        ValueError: It cannot be sent as a header.
    """
    if not isinstance(key, str) or not 1 <= len(key) <= 255 or not all("!" <= c <= "~" for c in key):
        raise ValueError("idempotency_key is 1 to 255 visible ASCII characters without spaces")
    return key


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
    """Keys that no other session and no other process makes: a random prefix and a counter."""

    def __init__(self) -> None:
        self.restart()
        _MAKERS.add(self)

    def restart(self) -> None:
        """Take a new prefix: a forked process has a copy of this maker, and with it the old prefix."""
        self._prefix = secrets.token_hex(12)
        self._numbers = itertools.count(1)

    def make(self) -> str:
        """A key that this maker has not given before. A uuid4 each would cost ten times as much."""
        return f"{self._prefix}-{next(self._numbers):x}"


_MAKERS: Final[WeakSet[KeyMaker]] = WeakSet()


def _restart_all() -> None:
    for maker in _MAKERS:
        maker.restart()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    # Cheaper than comparing the process id in each `make`, which would double what it costs.
    os.register_at_fork(after_in_child=_restart_all)


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
