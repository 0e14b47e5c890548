"""
The names of a fleet's columns, and the conversion of a row's cells to a change.

All formats use it: CSV passes its cells unchanged, and other formats convert their values to text first.
"""

import re
from functools import lru_cache
from typing import Final, TypeAlias

from postpress_async._fields import check_account_id, printable, read_port
from postpress_async.models import CustomProxy, FieldError, ManagedProxy, ProxyChange
from postpress_async.rotation._fleet._first_lines import FirstLines
from postpress_async.rotation._rows import Refusal, Row

COLUMNS: Final = ("account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip")
"""The columns of a fleet, in the order of `Cells`; ``proxy`` is a URL."""

PARTS: Final = COLUMNS[2:7]
"""The columns that can be used instead of a ``proxy`` URL."""

NO_CHANGE: Final = "no proxy and no country"
"""The reason to refuse a row with only an account, if there is no default and no pool."""

ONE_FORM: Final = "give either proxy, or host, port and the rest, not both"

Cells: TypeAlias = tuple[str, str, str, str, str, str, str, str, str]
"""The text of a row for each of `COLUMNS`, empty if the row has none."""

# By the form that `plain_name` returns; the last entries are names that spreadsheets use.
_SEPARATORS: Final = re.compile(r"[\s_-]+")
_MEANINGS: Final = {
    **{name: name for name in COLUMNS},
    **{name.replace("_", ""): name for name in COLUMNS},
    **{f"proxy{name}": name for name in PARTS},
    "id": "account_id",
    "account": "account_id",
    "proxyurl": "proxy",
    "user": "username",
    "proxyuser": "username",
    "pass": "password",
    "proxypass": "password",
    "countrycode": "country",
    "ipaddress": "ip",
}


def column_of(name: str) -> str | None:
    """The one of `COLUMNS` that *name* stands for; None if it is unknown."""
    return _MEANINGS.get(name) or _MEANINGS.get(plain_name(name))


def plain_name(name: str) -> str:
    """*name* as names are compared: in lower case, without ``_``, ``-`` or spaces."""
    return _SEPARATORS.sub("", name).lower()


def printable_name(name: str) -> str:
    """*name* in a form that is safe to print: one line of at most 40 characters."""
    return printable(name.strip()[:40])[:40]


class RowReader:
    """
    Reads the rows of one pass over a fleet, and refuses duplicate accounts.

    The first line of an account counts, even if that line is otherwise invalid: fixing it must not change
    which of the two lines is refused as the duplicate.
    """

    def __init__(self, default: ProxyChange | None, *, pooled: bool = False, done: bytes = b"") -> None:
        """
        Args:
            default: The change for rows with only an account.
            pooled: Whether such rows get their proxies from a pool.
            done: One byte per ordinal; rows with a nonzero byte are completed and skipped.
        """
        self._default = default
        self._pooled = pooled
        self._done = done
        self._first_lines = FirstLines()

    def read(self, ordinal: int, line: int, cells: Cells) -> Row | Refusal | None:
        """Return the row, or its refusal; None if it is done."""
        account_id = cells[0].strip()
        if ordinal < len(self._done) and self._done[ordinal]:
            self._first_lines.claim(account_id, line)  # so that a later line with the account is refused
            return None
        if (refusal := self._claim(ordinal, line, account_id)) is not None:
            return refusal
        try:
            change = _read_change(cells) or self._default
        except FieldError as error:
            return Refusal.of(error, ordinal, line, account_id)
        if change is None and not self._pooled:
            advice = "give it a proxy, a country or an ip, or set a default for all such rows"
            return Refusal(ordinal, line, None, account_id, NO_CHANGE, advice)
        return Row(ordinal, line, account_id, change)

    def refuse(self, ordinal: int, line: int, account_id: str, error: FieldError) -> Refusal:
        """Return the refusal of a row whose cells could not be read because of *error*."""
        account_id = account_id.strip()
        refusal = self._claim(ordinal, line, account_id)
        return refusal or Refusal.of(error, ordinal, line, account_id)

    def _claim(self, ordinal: int, line: int, account_id: str) -> Refusal | None:
        try:
            check_account_id(account_id)
        except FieldError as error:
            return Refusal.of(error, ordinal, line)
        first = self._first_lines.claim(account_id, line)
        if first is None:
            return None
        reason, advice = "account already named", "name each account once"
        return Refusal(ordinal, line, "account_id", account_id, reason, advice, first)


def _read_change(cells: Cells) -> ProxyChange | None:
    """The change in *cells*; None if they contain only an account."""
    _, proxy, host, port, protocol, username, password, country, ip = cells
    # Most of the nine million cells of a million rows are empty, and `and` is faster than a call.
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
        raise FieldError(_first(host, port, protocol, username, password), "proxy given twice", ONE_FORM)
    if proxy or host:
        if country or ip:
            raise FieldError("country" if country else "ip", "custom and managed mixed", _ONE_KIND)
        if proxy:
            return _from_url(proxy)
        return CustomProxy(
            host=without_brackets(host),
            port=read_port(port),
            protocol=protocol.lower() or None,
            username=username or None,
            password=password or None,
        )
    if port or protocol or username or password:
        if country or ip:
            part = _first(host, port, protocol, username, password)
            raise FieldError(part, f"{part} without a proxy", _ONE_KIND)
        raise FieldError("host", "host missing", "give the proxy's host name or address")
    if country or ip:
        return ManagedProxy(country=country or None, ip=ip) if ip else _of_country(country)
    return None


_ONE_KIND: Final = "give a proxy of your own, or a country and an ip, not both"


def _first(*cells: str) -> str:
    """The name of the first of `PARTS` whose cell is not empty."""
    return next(name for name, cell in zip(PARTS, cells, strict=True) if cell)


def _from_url(url: str) -> CustomProxy:
    try:
        return CustomProxy.from_url(url)
    except FieldError as error:
        raise FieldError("proxy", error.reason, error.advice) from None


def without_brackets(host: str) -> str:
    """Remove the brackets around an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host


# The value is frozen, so all rows with the same country can share it.
@lru_cache(maxsize=1024)
def _of_country(country: str) -> ManagedProxy:
    return ManagedProxy(country=country)
