"""The names of the columns of fleets and of lists of proxies, and the tags in one of them."""

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from postpress_async._fields import printable

COLUMNS: Final = ("account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip")
"""The columns of a fleet, ``proxy`` is a URL or another form of `read_proxy`."""

PARTS: Final = COLUMNS[2:7]
"""The columns that can be used instead of ``proxy``."""

TAG: Final = "pool"
"""The column with the tag of a row's pool, if no other one is named."""

Tag: TypeAlias = str | None
"""The tag of a pool in upper case; None if there is only one pool."""

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


def may_be_number(column: str) -> bool:
    """Whether values of *column* may be numbers."""
    return column == "port" or column not in COLUMNS


def printable_name(name: str) -> str:
    """*name* in a form that is safe to print: one line of at most 40 characters."""
    return printable(name.strip()[:40])[:40]


def as_tag(text: str) -> str:
    """The tag that *text* stands for: case and spaces around it do not matter."""
    return text.strip().upper()
