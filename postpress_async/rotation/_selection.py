"""The accounts that a run takes, chosen by the proxies that earlier runs of its journal assigned to them."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from postpress_async.rotation._outcome import LINE_PREFIX, MANAGED

_FORMS: Final = "write HOST, HOST:PORT, USER@HOST or a network such as 10.1.1.0/24"


class Selection:
    """
    The accounts of a run that does not take all of its input.

    Attributes:
        text: What is selected, in words; the same for the same selection.
        run: Number of the run that takes the selection; None before a journal was read.
        accounts: The selected accounts; None if the whole input is selected.
        outside: Number of other accounts by assignment.
    """

    def __init__(self, text: str, patterns: Iterable[str] = ()) -> None:
        """Use `of` for *patterns* of a user. Without any, the whole input is selected."""
        self.text: Final = text
        self.run: int | None = None
        self.accounts: set[str] | None = None
        self.outside: Counter[str] = Counter()
        self._tests: Final = [_test_of(pattern) for pattern in patterns]

    @classmethod
    def of(cls, on: "Iterable[str] | Selection") -> "Selection | None":
        """
        Select the accounts on certain proxies; None if *on* is empty.

        Any of HOST, HOST:PORT, USER@HOST, USER@HOST:PORT, and networks such as 10.1.1.0/24. Raises
        `ValueError` if one has another form.
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
    """A host in the form in which hosts are compared."""
    text = text.strip("[]").lower().removesuffix(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return text


def _parsed(text: str) -> tuple[str, str, str | None]:
    """The user name, the host and the port of a label or a pattern; empty or None if it has none."""
    user, _, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not colon or (host.count(":") and not host.endswith("]")):  # an IPv6 address without brackets
        return user, address, None
    return user, host, port


def _test_of(pattern: str) -> Callable[[str, str, str | None], bool]:
    """A function of a proxy's user name, host and port."""
    if "/" in pattern:
        try:
            network = ipaddress.ip_network(pattern)
        except ValueError as error:
            raise ValueError(f"{pattern!r} is not a network ({error}): {_FORMS}") from None
        return lambda _user, host, _port: not isinstance(address := _host(host), str) and address in network
    wanted_user, wanted_host, wanted_port = _parsed(pattern)
    if not wanted_host or (wanted_port is not None and not wanted_port.isdecimal()):
        raise ValueError(f"{pattern!r} names no proxies: {_FORMS}")
    return lambda user, host, port: (
        _host(host) == _host(wanted_host)
        and (not wanted_user or user == wanted_user)
        and (wanted_port is None or port == wanted_port)
    )
