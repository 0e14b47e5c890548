"""
The names of a fleet's columns, and the conversion of a row's cells to a change.

All formats use it: CSV passes its cells unchanged, and other formats convert their values to text first.
"""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from postpress_async._fields import check_account_id, printable, read_port
from postpress_async.models import FieldError, ManagedProxy, ProxyChange
from postpress_async.rotation._fleet._first_lines import FirstLines
from postpress_async.rotation._pool_needs import Pooled, PoolNeeds
from postpress_async.rotation._proxy_text import custom_proxy, read_proxy, without_brackets
from postpress_async.rotation._rows import Refusal, Row

COLUMNS: Final = ("account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip")
"""The columns of a fleet, in the order of `Cells`; ``proxy`` is a URL or another form of `read_proxy`."""

PARTS: Final = COLUMNS[2:7]
"""The columns that can be used instead of ``proxy``."""

NO_CHANGE: Final = "no proxy and no country"
"""The reason to refuse a row with only an account, if there is no default and no pool."""

ONE_FORM: Final = "give either proxy, or host, port and the rest, not both"

Cells: TypeAlias = tuple[str, ...]
"""The text of a row for each of the columns of `cell_columns`, empty if the row has none."""

# Other names of `PARTS`, the most likely first. Without "proxy" in front, they mean a part of a proxy only in
# a list: the login and the type of a fleet's row may be the account's.
_PART_NAMES: Final = {
    "host": ("ip", "ipaddress", "hostname", "server", "address", "addr", "endpoint", "gateway"),
    "port": ("portnumber",),
    "protocol": ("type", "scheme", "protocols"),
    "username": ("user", "login", "usr", "authuser"),
    "password": ("pass", "pwd", "passwd", "psw", "authpassword", "authpass"),
}
# By the form that `plain_name` returns; the last entries are names that spreadsheets use.
_SEPARATORS: Final = re.compile(r"[\s_-]+")
_MEANINGS: Final = {
    **{name: name for name in COLUMNS},
    **{f"proxy{name}": name for name in PARTS},
    **{f"proxy{other}": name for name, others in _PART_NAMES.items() for other in others},
    "accountid": "account_id",
    "id": "account_id",
    "account": "account_id",
    "proxyurl": "proxy",
    "user": "username",
    "pass": "password",
    "countrycode": "country",
    "ipaddress": "ip",
}


def column_of(name: str) -> str | None:
    """The one of `COLUMNS` that *name* stands for; None if it is unknown."""
    return _MEANINGS.get(name) or _MEANINGS.get(plain_name(name))


def list_columns(names: Sequence[str]) -> list[str | None]:
    """
    The one of ``proxy`` and `PARTS` that each of *names* stands for in the header of a list of proxies.

    A column with its usual name takes precedence: beside a host, an ip is that of the exit.
    """
    columns: list[str | None] = [
        column if (column := column_of(name)) in {"proxy", *PARTS} else None for name in names
    ]
    if "proxy" not in columns:
        plain = [plain_name(name) for name in names]
        for column, others in _PART_NAMES.items():
            if column not in columns and (name := next((n for n in others if n in plain), None)):
                columns[plain.index(name)] = column
    return columns


def plain_name(name: str) -> str:
    """*name* as names are compared: in lower case, without ``_``, ``-`` or spaces."""
    return _SEPARATORS.sub("", name).lower()


def field_of(name: str) -> str:
    """The name by which a column is found that may be one of `COLUMNS` or not."""
    return column_of(name) or plain_name(name)


def cell_columns(names: Collection[str]) -> tuple[str, ...]:
    """
    The columns of `Cells` if the pool needs the columns *names*, which follow `COLUMNS`.

    Such a column chooses the proxy of the pool, so it is no part of a change, and its usual cell stays empty.
    """
    nowhere = "-"  # `field_of` removes hyphens
    return (*(nowhere if name in names else name for name in COLUMNS), *names)


def may_be_number(column: str) -> bool:
    """Whether values of *column* may be numbers."""
    return column == "port" or column not in COLUMNS


def printable_name(name: str) -> str:
    """*name* in a form that is safe to print: one line of at most 40 characters."""
    return printable(name.strip()[:40])[:40]


class RowReader:
    """
    Reads the rows of one pass over a fleet, and refuses duplicate accounts.

    The first line of an account counts, even if that line is otherwise invalid: fixing it must not change
    which of the two lines is refused as the duplicate.
    """

    def __init__(self, default: ProxyChange | None, *, pooled: Pooled = False, done: bytes = b"") -> None:
        """
        Args:
            default: The change for rows with only an account.
            pooled: Where such rows get their proxies instead.
            done: One byte per ordinal; rows with a nonzero byte are completed and skipped.
        """
        self._default = default
        self._needs = PoolNeeds.of(pooled)
        self._names = () if self._needs is None else self._needs.names
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
            if change is None and self._names and self._needs is not None:
                fields = dict(zip(self._names, map(str.strip, cells[len(COLUMNS) :]), strict=True))
                return Row(ordinal, line, account_id, None, self._needs.tag_of(fields), fields)
        except FieldError as error:
            return Refusal.of(error, ordinal, line, account_id)
        if change is None and self._needs is None:
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
    _, proxy, host, port, protocol, username, password, country, ip, *_ = cells
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
            return _from_text(proxy)
        return custom_proxy(without_brackets(host), read_port(port), username, password, protocol)
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


def _from_text(proxy: str) -> ProxyChange:
    try:
        change = read_proxy(proxy)
    except FieldError as error:
        raise FieldError("proxy", error.reason, error.advice) from None
    if change.username and ("{account_id}" in change.username or "{try}" in change.username):
        raise FieldError("proxy", "template in a row", "put it into a list of proxies, which is a pool")
    return change


# The value is frozen, so all rows with the same country can share it.
@lru_cache(maxsize=1024)
def _of_country(country: str) -> ManagedProxy:
    return ManagedProxy(country=country)
