"""Selects the accounts of a run by the proxies that earlier runs of its journal assigned to them."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from postpress_async.rotation._outcome import LINE_PREFIX, MANAGED

_FORMS: Final = "write HOST, HOST:PORT, USER@HOST or a network such as 10.1.1.0/24"


class Selection:
    """The accounts of a run that takes only a part of its input."""

    def __init__(self, text: str, patterns: Iterable[str] = ()) -> None:
        """Without *patterns*, the whole input is selected. Use `of` for patterns that a user has written."""
        self.text: Final = text  # what is selected, in words; equal selections have equal texts
        self.run: int | None = None  # number of the run that takes the selection; None before it is known
        self.accounts: set[str] | None = None  # None if the whole input is selected
        self.outside: Counter[str] = Counter()  # number of accounts that are not selected, by assignment
        self._tests: Final = [_test_of(pattern) for pattern in patterns]

    @classmethod
    def of(cls, on: "Iterable[str] | Selection") -> "Selection | None":
        """
        Select the accounts on the proxies that match *on*; None if *on* is empty.

        A pattern is HOST, HOST:PORT, USER@HOST, USER@HOST:PORT, or a network such as 10.1.1.0/24. Raises
        `ValueError` for any other form.
        """
        if isinstance(on, Selection):
            return on
        patterns = [on] if isinstance(on, str) else sorted(set(on))
        return cls(f"accounts on {', '.join(patterns)}", patterns) if patterns else None

    def matches(self, assignment: str) -> bool:
        if assignment.startswith(MANAGED):
            return False
        address = _parsed(LINE_PREFIX.sub("", assignment, count=1))
        return any(test(*address) for test in self._tests)

    def takes(self, account_id: str | None) -> bool:
        return self.accounts is None or account_id in self.accounts


@cache
def _host(text: str) -> str | ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return a host in a form that can be compared: an IP address if it is one, otherwise in lower case."""
    text = text.strip("[]").lower().removesuffix(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return text


def _parsed(text: str) -> tuple[str, str, str | None]:
    """Split a label or a pattern into user name (may be empty), host, and port (may be None)."""
    user, _, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not colon or (host.count(":") and not host.endswith("]")):  # an IPv6 address without brackets
        return user, address, None
    return user, host, port


def _test_of(pattern: str) -> Callable[[str, str, str | None], bool]:
    """Return a function that says whether a proxy's user name, host and port match *pattern*."""
    if "/" in pattern:
        try:
            network = ipaddress.ip_network(pattern)
        except ValueError as error:
            raise ValueError(f"{pattern!r} is not a network ({error}): {_FORMS}") from None

        def is_in_network(_user: str, host: str, _port: str | None) -> bool:
            address = _host(host)
            return not isinstance(address, str) and address in network

        return is_in_network
    wanted_user, wanted_host, wanted_port = _parsed(pattern)
    if not wanted_host or (wanted_port is not None and not wanted_port.isdecimal()):
        raise ValueError(f"{pattern!r} names no proxies: {_FORMS}")
    return lambda user, host, port: (
        _host(host) == _host(wanted_host)
        and (not wanted_user or user == wanted_user)
        and (wanted_port is None or port == wanted_port)
    )
