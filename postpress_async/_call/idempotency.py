"""
Where idempotency keys come from. `UpdateCall` decides which attempt gets which key.

If the API knows the key of a request, it returns the stored response; otherwise it makes the change.
"""

import itertools
import os
import secrets
from typing import Any, Final, Protocol

from attrs import define


def check_key(key: Any) -> str:
    """Return *key*, which the caller chose; raise `ValueError` if it cannot be sent as a header."""
    if not isinstance(key, str) or not 1 <= len(key) <= 255 or not all("!" <= c <= "~" for c in key):
        raise ValueError("idempotency_key must be 1 to 255 visible ASCII characters without spaces")
    return key


class Keys(Protocol):
    """The idempotency keys of one call: `FreshKeys`, `FixedKey`, or `RowKeys` in a rotation."""

    @property
    def in_doubt(self) -> bool:
        """Whether an earlier process may have sent the change under the current key."""
        ...

    @property
    def current(self) -> str | None:
        """The key of the next attempt; None sends no key."""
        ...

    async def renew(self) -> None:
        """Replace `current` by a key that no attempt has used, unless the caller chose the key."""
        ...


class KeyGenerator:
    """Generates unique keys: a random prefix and a counter."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Choose a new prefix."""
        self._prefix = secrets.token_hex(12)
        self._numbers = itertools.count(1)

    def generate(self) -> str:
        """A new key. A uuid4 for each would cost ten times as much."""
        return f"{self._prefix}-{next(self._numbers):x}"


KEYS: Final = KeyGenerator()
"""The generator of all sessions of this process."""

if hasattr(os, "register_at_fork"):  # Windows has no fork
    # A forked process has a copy with the same prefix. Comparing the process id in each `generate` would
    # double its cost.
    os.register_at_fork(after_in_child=KEYS.restart)


class FreshKeys:
    """Generated keys for one call."""

    __slots__ = ("_generator", "current", "in_doubt")

    def __init__(self, generator: KeyGenerator = KEYS) -> None:
        self._generator = generator
        self.current = generator.generate()
        self.in_doubt = False

    async def renew(self) -> None:
        self.current = self._generator.generate()


@define
class FixedKey:
    """One key for all attempts, chosen by the caller; or None to send no key."""

    current: str | None
    in_doubt: bool = False

    async def renew(self) -> None:
        """Keep the key: the caller wants all attempts to count as the same request."""
