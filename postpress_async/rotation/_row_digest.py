"""What makes a row the same row in a later run: its place, its account and its change."""

import hashlib
from collections.abc import Iterable
from typing import Final, Protocol

from postpress_async.models import CustomProxy
from postpress_async.rotation._rows import Refusal, Row

_GATHERED: Final = 1024  # rows that are hashed at once


class KnownInput(Protocol):
    """An input that can be read any number of times; see `Fleet`."""

    @property
    def counted(self) -> int | None:
        """How many rows there are, if that is known."""
        ...

    @property
    def rows_digest(self) -> bytes:
        """`RowsDigest` over all rows."""
        ...

    def rows(self) -> Iterable[Row | Refusal]:
        """The rows, from the first."""
        ...


def text_of(row: Row | Refusal) -> bytes:
    """
    The account and the change of *row*, so that no two different ones have the same bytes.

    It contains passwords: it is only to be hashed.
    """
    if isinstance(row, Refusal):
        text = f"{row.account_id or ''}\0refused"
    elif row.change is None:
        text = f"{row.account_id}\0pool"
    elif isinstance(change := row.change, CustomProxy):
        # Neither a host nor a number has a NUL; a user name or a password may have anything.
        username = "" if change.username is None else f"{len(change.username)} {change.username}"
        password = "" if change.password is None else f"+{change.password.reveal()}"
        place = f"{change.host}\0{change.port}\0{change.protocol or ''}"
        text = f"{row.account_id}\0custom\0{place}\0{username}\0{password}"
    else:
        text = f"{row.account_id}\0managed\0{change.country or ''}\0{change.ip or ''}"
    return text.encode("utf-8", "surrogatepass")


class RowsDigest:
    """SHA-256 over rows: neither the format of their file nor its other columns matter."""

    def __init__(self) -> None:
        self._hash: Final = hashlib.sha256()
        self._pieces: list[bytes] = []

    def add(self, row: Row | Refusal) -> None:
        """Take the next row."""
        text = text_of(row)
        self._pieces.append(b"%d %d %b" % (row.ordinal, len(text), text))
        if len(self._pieces) >= _GATHERED:
            self._take()

    def _take(self) -> None:
        self._hash.update(b"".join(self._pieces))
        self._pieces.clear()

    def digest(self) -> bytes:
        """Of all rows that were added."""
        self._take()
        return self._hash.digest()
