"""
What the columns of a fleet mean, and how the cells of one row become a change.

Both formats of a fleet end here: cells of CSV as they are, values of JSON Lines made into such cells.
"""

import re
from functools import lru_cache
from typing import Final, TypeAlias

from postpress_async._fields import check_account_id, read_port
from postpress_async.models import CustomProxy, FieldError, ManagedProxy, ProxyChange
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet._first_lines import FirstLines

COLUMNS: Final = ("account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip")
"""The columns of a fleet, in the order of `Cells`; ``proxy`` is a URL."""

PARTS: Final = COLUMNS[2:7]
"""The columns that together say what a ``proxy`` URL says alone."""

NOTHING_ASKED: Final = "no proxy and no country"
"""The reason of a row that names an account alone, where there is no default and no pool."""

ONE_FORM: Final = "give all of it in proxy, or host, port and the rest by themselves, not both"

Cells: TypeAlias = tuple[str, str, str, str, str, str, str, str, str]
"""One row's text for each of `COLUMNS`, empty where it gives none."""

# By small letters, without "_", "-" or spaces: so names are compared. The rest is what spreadsheets have.
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


def meaning(name: str) -> str | None:
    """The one of `COLUMNS` that a header *name* stands for, or None where it is not ours."""
    return _MEANINGS.get(name) or _MEANINGS.get(plain_name(name))


def plain_name(name: str) -> str:
    """A header *name* in small letters, without ``_``, ``-`` or spaces: as names are compared."""
    return _SEPARATORS.sub("", name).lower()


def shown(name: str) -> str:
    """A column's name from outside, fit to be printed: one line, 40 characters at most."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name.strip()[:40])
    return text[:40]


class RowReader:
    """
    Reads the rows of one pass over a fleet, each account once.

    An account counts from the first line that names it, be the rest of that line right or wrong: it is
    the fleet that must say which of two lines is meant, and mending one must not bring up another.
    """

    def __init__(self, default: ProxyChange | None, *, pooled: bool = False, done: bytes = b"") -> None:
        """
        Args:
            default: What a row gets that names nothing but an account.
            pooled: Whether such a row is left to a pool where there is no default.
            done: A byte that is not 0 for each ordinal that is settled, and so not read again.
        """
        self._default = default
        self._pooled = pooled
        self._done = done
        self._first_lines = FirstLines()

    def read(self, ordinal: int, line: int, cells: Cells) -> Row | Refusal | None:
        """The row that *cells* are, or why they are none; None where it is done."""
        account_id = cells[0].strip()
        if ordinal < len(self._done) and self._done[ordinal]:
            self._first_lines.claim(account_id, line)  # so that a later line that names it is refused
            return None
        if (refusal := self._claim(ordinal, line, account_id)) is not None:
            return refusal
        try:
            change = _read_change(cells) or self._default
        except FieldError as error:
            return Refusal.of(error, ordinal, line, account_id)
        if change is None and not self._pooled:
            advice = "give it a proxy, a country or an ip, or all of them a default"
            return Refusal(ordinal, line, None, account_id, NOTHING_ASKED, advice)
        return Row(ordinal, line, account_id, change)

    def refuse(self, ordinal: int, line: int, account_id: str, error: FieldError) -> Refusal:
        """The refusal of a row whose cells could not be read for *error*."""
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
    """The change that one row asks for; None where it names nothing but an account."""
    _, proxy, host, port, protocol, username, password, country, ip = cells
    # Most cells are empty, and a million rows have nine million.
    host = host and host.strip()
    country = country and country.strip()
    ip = ip and ip.strip()
    port = port and port.strip()
    protocol = protocol and protocol.strip()
    username = username and username.strip()
    # Its edges are its own, spaces and all; but a cell of nothing but spaces is an empty one.
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
            host=_unwrapped(host),
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
        return _managed(country, ip)
    return None


_ONE_KIND: Final = "give a proxy of your own, or a country and an ip, not both"


def _first(*cells: str) -> str:
    """The first of `PARTS` that is given."""
    return next(name for name, cell in zip(PARTS, cells, strict=True) if cell)


def _from_url(url: str) -> CustomProxy:
    try:
        return CustomProxy.from_url(url)
    except FieldError as error:
        reason, advice = error.reason, error.advice
    # In https://user:12345678, which forgot its host, what is shown as the port is the password.
    if reason == "port out of range":
        advice = "it is 1 to 65535"
    raise FieldError("proxy", reason, advice)


def _unwrapped(host: str) -> str:
    return host[1:-1] if host[0] == "[" and host[-1] == "]" and ":" in host else host


def _managed(country: str, ip: str) -> ManagedProxy:
    return ManagedProxy(country=country or None, ip=ip) if ip else _of_country(country)


# Frozen, so one value can serve every row that asks for this country. A refusal is not kept.
@lru_cache(maxsize=1024)
def _of_country(country: str) -> ManagedProxy:
    return ManagedProxy(country=country)
