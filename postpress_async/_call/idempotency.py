"""
The sources of idempotency keys. `UpdateCall` decides when a call needs a new key.

If the API has seen the key of a request before, it returns the stored response; otherwise it makes the
change.
"""

import itertools
import os
import secrets
from typing import Any, Final, Protocol

from attrs import define, field


def check_key(key: Any) -> str:
    """Return the caller's *key*, or raise `ValueError` if it cannot be sent as a header."""
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
        """Replace `current` by an unused key, unless the caller chose the key."""
        ...


class KeyGenerator:
    """Generates unique keys: a random prefix and a counter."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._prefix = secrets.token_hex(12)
        self._numbers = itertools.count(1)

    def generate(self) -> str:
        """Return a new key, in a tenth of the time of `uuid.uuid4`."""
        return f"{self._prefix}-{next(self._numbers):x}"


KEYS: Final = KeyGenerator()  # the generator of all sessions of this process

if hasattr(os, "register_at_fork"):  # Windows has no fork
    # A forked process inherits the prefix and the counter, and would generate the same keys as its parent.
    # Comparing the process id in each `generate` would double its time.
    os.register_at_fork(after_in_child=KEYS.restart)


@define
class FreshKeys:
    """Generated keys for one call."""

    current: str = field(factory=KEYS.generate)
    in_doubt: bool = False

    async def renew(self) -> None:
        self.current = KEYS.generate()


@define
class FixedKey:
    """One key for all attempts, chosen by the caller, or None to send no key."""

    current: str | None
    in_doubt: bool = False

    async def renew(self) -> None:
        """Keep the key, because the caller wants the API to treat all attempts as one request."""
