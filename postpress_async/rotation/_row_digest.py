"""A digest of ordinals, accounts and changes, so that a later run can recognize the same input."""

import hashlib
import json
from collections.abc import Iterable
from typing import Final, Protocol

from postpress_async.models import CustomProxy
from postpress_async.rotation._rows import Refusal, Row


class KnownInput(Protocol):
    """An input that can be read any number of times, such as a `Fleet`."""

    @property
    def counted(self) -> int | None:
        """Number of rows; None if not known."""

    @property
    def rows_digest(self) -> bytes:
        """The `RowsDigest` of all rows."""

    def rows(self) -> Iterable[Row | Refusal]:
        """Return all rows, from the first."""


def text_of(row: Row | Refusal) -> bytes:
    """Return bytes unique to the row's account and change. Hash them, because they contain passwords."""
    if isinstance(row, Refusal):
        text = f"{row.account_id or ''}\0refused"
    elif row.change is None:
        text = f"{row.account_id}\0pool" + (f"\0{json.dumps([row.tag, row.fields])}" if row.fields else "")
    elif isinstance(change := row.change, CustomProxy):
        # A user name may contain the separator NUL, so its length precedes it. The password comes last.
        username = "" if change.username is None else f"{len(change.username)} {change.username}"
        password = "" if change.password is None else f"+{change.password.reveal()}"
        address = f"{change.host}\0{change.port}\0{change.protocol or ''}"
        text = f"{row.account_id}\0custom\0{address}\0{username}\0{password}"
    else:
        text = f"{row.account_id}\0managed\0{change.country or ''}\0{change.ip or ''}"
    return text.encode("utf-8", "surrogatepass")


class RowsDigest:
    """SHA-256 of rows. It does not depend on the format of the file or on columns that are not used."""

    def __init__(self) -> None:
        self._hash: Final = hashlib.sha256()

    def add(self, row: Row | Refusal) -> None:
        text = text_of(row)
        self._hash.update(b"%d %d %b" % (row.ordinal, len(text), text))

    def digest(self) -> bytes:
        return self._hash.digest()
