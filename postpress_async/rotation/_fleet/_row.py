"""Converts the cells of a fleet's row, which are text in every format, to a change."""

import sys
from array import array
from collections.abc import Collection
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeAlias

from postpress_async._fields import check_account_id, read_port
from postpress_async.models import CustomProxy, FieldError, ManagedProxy, ProxyChange
from postpress_async.rotation._column_names import COLUMNS, PARTS
from postpress_async.rotation._pool_needs import PoolNeeds
from postpress_async.rotation._proxy_text import custom_proxy, read_proxy, without_brackets
from postpress_async.rotation._rows import Refusal, Row, refusal_of
from postpress_async.rotation._template import OWN_NAMES, placeholders

NO_CHANGE: Final = "no proxy and no country"  # without a default and a pool
ONE_FORM: Final = "give either proxy, or host, port and the rest, not both"

Cells: TypeAlias = tuple[str, ...]
"""The text of a row for each of the columns of `cell_columns`, empty if the row has none."""


def cell_columns(names: Collection[str]) -> tuple[str, ...]:
    """
    The columns of `Cells`: `COLUMNS`, followed by the columns *names* that the pool needs.

    A column that the pool needs, such as ``country``, is not part of a change. So the name at its usual place
    in `COLUMNS` is replaced by one that no column has, and the cell there is always empty.
    """
    unused = "-"  # no column has this name, because `field_of` removes hyphens from the names in a header
    return (*(unused if name in names else name for name in COLUMNS), *names)


class RowReader:
    """
    Reads the rows of one pass over a fleet, and refuses duplicate accounts.

    Of two lines with the same account, the second is the duplicate, even if the first is otherwise invalid:
    correcting the first must not change which of them is refused as the duplicate.
    """

    def __init__(self, default: ProxyChange | None, needs: PoolNeeds | None, done: bytes) -> None:
        """Rows with only an account get *default*, or a proxy of the pool if *needs* is not None."""
        self._default = default
        self._needs = needs
        self._names = () if needs is None else needs.names
        self._done = done
        self._first_lines = FirstLines()

    def read(self, ordinal: int, line: int, cells: Cells) -> Row | Refusal | None:
        """Return the row, or its refusal; None if the row is to be skipped."""
        account_id = cells[0].strip()
        if ordinal < len(self._done) and self._done[ordinal]:
            self._first_lines.claim(account_id, line)  # so that a later duplicate is refused
            return None
        if (refusal := self._claim(ordinal, line, account_id)) is not None:
            return refusal
        try:
            change = _read_change(cells) or self._default
            if change is None and self._names and self._needs is not None:
                fields = dict(zip(self._names, map(str.strip, cells[len(COLUMNS) :]), strict=True))
                return Row(ordinal, line, account_id, None, self._needs.tag_of(fields), fields)
        except FieldError as error:
            return refusal_of(error, ordinal, line, account_id)
        if change is None and self._needs is None:
            advice = "give it a proxy, a country or an ip, or set a default for all such rows"
            return Refusal(ordinal, line, None, account_id, NO_CHANGE, advice)
        return Row(ordinal, line, account_id, change)

    def refuse(self, ordinal: int, line: int, account_id: str | None, error: FieldError) -> Refusal:
        """Return the refusal of a row with an unreadable cell; *account_id* is None if it is that cell."""
        if account_id is None:
            return refusal_of(error, ordinal, line)
        account_id = account_id.strip()
        refusal = self._claim(ordinal, line, account_id)
        return refusal or refusal_of(error, ordinal, line, account_id)

    def _claim(self, ordinal: int, line: int, account_id: str) -> Refusal | None:
        try:
            check_account_id(account_id)
        except FieldError as error:
            return refusal_of(error, ordinal, line)
        first = self._first_lines.claim(account_id, line)
        if first is None:
            return None
        reason, advice = "account already named", "name each account once"
        return Refusal(ordinal, line, "account_id", account_id, reason, advice, first)


# Python's hash of a string is usually a 64-bit SipHash with a random key, cached in the string. If it is
# anything else, use BLAKE2b.
_IS_SIPHASH_64: Final = sys.hash_info.hash_bits == 64 and sys.hash_info.algorithm.startswith("siphash")


class FirstLines:
    """
    The first line of each account, in 32 to 64 bytes per account.

    This is a hash table with open addressing in two arrays. For a million accounts it takes 36 MB, and a dict
    from hash to line takes 122 MB; a fleet can have ten million accounts. Accounts are compared by a 64-bit
    hash. In one of 37 million fleets of a million accounts, two accounts have the same hash.
    """

    def __init__(self) -> None:
        self._count = 0
        self._allocate(1024)

    def _allocate(self, slots: int) -> None:
        self._digests = array("q", bytes(8 * slots))
        self._lines = array("Q", bytes(8 * slots))  # 0 is a free slot, because the first line is 1

    def claim(self, account_id: str, line: int) -> int | None:
        """Return the earlier line that has *account_id*. Otherwise store *line* and return None."""
        if first := self._put(hash(account_id) if _IS_SIPHASH_64 else _blake2b(account_id), line):
            return first
        self._count += 1
        if 2 * self._count > len(self._lines):  # lookups are slower in a fuller table
            old = zip(self._digests, self._lines, strict=True)
            self._allocate(2 * len(self._lines))
            for digest, old_line in old:
                if old_line:
                    self._put(digest, old_line)
        return None

    def _put(self, digest: int, line: int) -> int:
        """Return the line that is stored for *digest*. Otherwise store *line* and return 0."""
        digests, lines, mask = self._digests, self._lines, len(self._lines) - 1
        slot = digest & mask
        while first := lines[slot]:
            if digests[slot] == digest:
                return first
            slot = (slot + 1) & mask
        digests[slot], lines[slot] = digest, line
        return 0


def _read_change(cells: Cells) -> ProxyChange | None:
    """The change in *cells*; None if they contain only an account."""
    _, proxy, host, port, protocol, username, password, country, ip, *_ = cells
    # A million rows have nine million cells. Most are empty, and `and` saves the call for those.
    host = host and host.strip()
    country = country and country.strip()
    ip = ip and ip.strip()
    port = port and port.strip()
    protocol = protocol and protocol.strip()
    username = username and username.strip()
    # Spaces may be part of a password, but a cell with only spaces is empty.
    password = "" if password.isspace() else password
    proxy = proxy and proxy.strip()
    if proxy and (host or port or protocol or username or password):
        part = _first_filled(host, port, protocol, username, password)
        raise FieldError(part, "proxy given twice", ONE_FORM)
    if proxy or host:
        if country or ip:
            raise FieldError("country" if country else "ip", "custom and managed mixed", _ONE_KIND)
        if proxy:
            try:
                return _refuse_template("proxy", read_proxy(proxy))
            except FieldError as error:
                raise FieldError("proxy", error.reason, error.advice) from None
        change = custom_proxy(without_brackets(host), read_port(port), username, password, protocol)
        return _refuse_template("username", change)
    if port or protocol or username or password:
        if country or ip:
            part = _first_filled(host, port, protocol, username, password)
            raise FieldError(part, f"{part} without a proxy", _ONE_KIND)
        raise FieldError("host", "host missing", "give the proxy's host name or address")
    if country or ip:
        return ManagedProxy(country=country or None, ip=ip) if ip else _managed_in(country)
    return None


_ONE_KIND: Final = "give a proxy of your own, or a country and an ip, not both"


def _first_filled(*cells: str) -> str:
    """The name of the first of `PARTS` whose cell is not empty."""
    return next(name for name, cell in zip(PARTS, cells, strict=True) if cell)


def _refuse_template(column: str, proxy: CustomProxy) -> CustomProxy:
    if placeholders(proxy) & OWN_NAMES:
        raise FieldError(column, "template in a row", "put it into a list of proxies, which is a pool")
    return proxy


# The value is frozen, so all rows with the same country can share it.
@lru_cache(maxsize=1024)
def _managed_in(country: str) -> ManagedProxy:
    return ManagedProxy(country=country)


def _blake2b(account_id: str) -> int:
    digest = blake2b(account_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
