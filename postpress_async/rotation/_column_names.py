"""The column names of fleets and proxy lists, and the tags that name pools."""

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from postpress_async._fields import printable

COLUMNS: Final = ("account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip")
"""The columns of a fleet; ``proxy`` is a URL or another form that `read_proxy` accepts."""

PARTS: Final = COLUMNS[2:7]  # the columns that can be used instead of ``proxy``
TAG: Final = "pool"  # the default name of the column that contains the tag of a row's pool
Tag: TypeAlias = str | None  # the tag of a pool in upper case; None if there is only one pool

# Other names of `PARTS`, the most likely first. Without the prefix "proxy", they are recognized only in a
# proxy list, because in a fleet "login" or "type" may describe the account.
_PART_NAMES: Final = {
    "host": ("ip", "ipaddress", "hostname", "server", "address", "addr", "endpoint", "gateway"),
    "port": ("portnumber",),
    "protocol": ("type", "scheme", "protocols"),
    "username": ("user", "login", "usr", "authuser"),
    "password": ("pass", "pwd", "passwd", "psw", "authpassword", "authpass"),
}
_SEPARATORS: Final = re.compile(r"[\s_-]+")
# For each name, as in `COLUMNS` or as `plain_name` returns it, the column that it stands for.
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
    """Return the column of `COLUMNS` that *name* stands for; None if the name is unknown."""
    return _MEANINGS.get(name) or _MEANINGS.get(plain_name(name))


def list_columns(names: Sequence[str]) -> list[str | None]:
    """
    Return the meaning of each of *names*, the header of a proxy list: ``proxy``, one of `PARTS`, or None.

    The usual name of a column takes precedence over its other names. In a list with the column ``host``, for
    example, ``ip`` is not the host: it is the address from which the proxy sends requests.
    """
    columns: list[str | None] = [
        column if (column := column_of(name)) in {"proxy", *PARTS} else None for name in names
    ]
    if "proxy" not in columns:
        plain = [plain_name(name) for name in names]
        for column, others in _PART_NAMES.items():
            found = next((other for other in others if other in plain), None)
            if column not in columns and found is not None:
                columns[plain.index(found)] = column
    return columns


def plain_name(name: str) -> str:
    """Return *name* in lower case without ``_``, ``-`` and spaces, so that names can be compared."""
    return _SEPARATORS.sub("", name).lower()


def field_of(name: str) -> str:
    """Return the column of `COLUMNS` that *name* stands for; for any other name, its plain name."""
    return column_of(name) or plain_name(name)


def may_be_number(column: str) -> bool:
    return column == "port" or column not in COLUMNS


def printable_name(name: str) -> str:
    """*name* in a form that is safe to print: one line of at most 40 characters."""
    return printable(name.strip()[:40])[:40]


def as_tag(text: str) -> str:
    """Return the tag that *text* stands for; case and surrounding spaces do not matter."""
    return text.strip().upper()
