"""
The lists of proxies that sellers hand out: lines of text, or CSV with a header.

A line is ``host:port``, ``host:port:user:password``, ``user:password@host:port`` or a URL, with IPv6 in
brackets. Only a URL is percent-decoded: elsewhere a password is taken as it stands. A table's columns are
those of a fleet, and what sellers call them: ``Type``, ``IP``, ``Login`` and the like. What is wrong with
a line is a value and no exception, and holds no text of the line, which could be a password.
"""

import csv
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Final, Self, TypeAlias

from attrs import frozen

from postpress_async._fields import check_host, read_port, split_host_port
from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy, FieldError
from postpress_async.rotation.fleet._file import FleetFile
from postpress_async.rotation.fleet._row import PARTS, meaning, plain_name, shown
from postpress_async.secret import Secret

Source: TypeAlias = str | os.PathLike[str]
"""A file's path, or ``-`` for standard input."""


@frozen
class ListedProxy:
    """
    A proxy and where it stands.

    Attributes:
        line: Its line in the list, from 1; comments and blank lines count.
        proxy: The proxy.
    """

    line: int
    proxy: CustomProxy


@frozen
class RefusedLine:
    """
    A line that is no proxy, or none that is new, and why. It holds no text of the line.

    Attributes:
        line: The line, from 1.
        field: The field at fault, as the API names it; None where no single one is.
        reason: The fact in a few words, such as ``port out of range``.
        advice: What would be right.
        first: Where the same proxy is listed before, such as ``line 2`` or ``line 2 of us.txt``; None if
            that is not the fault.
        source: The list, as it was named; empty if it has no name.
    """

    line: int
    field: str | None
    reason: str
    advice: str
    first: str | None = None
    source: str = ""

    @classmethod
    def of(cls, error: FieldError, line: int, source: str = "") -> Self:
        """The refusal that *error* is for a line."""
        # In user:12345678, which forgot its host, the number that would be shown is the password.
        advice = "it is 1 to 65535" if error.reason == "port out of range" else error.advice
        return cls(line, error.field, error.reason, advice, source=source)

    @property
    def column(self) -> str | None:
        """The field, under the name that a row of a fleet has for it."""
        return self.field

    def __str__(self) -> str:
        field = "" if self.field is None else f", {self.field}"
        first = "" if self.first is None else f" on {self.first}"
        return f"line {self.line}{field}: {self.reason}{first}: {self.advice}"


@frozen
class ProxyList:
    """
    What one list holds.

    Attributes:
        name: The list, as it was named; ``standard input`` for ``-``.
        proxies: Its proxies, each once.
        refused: The lines that cannot be used.
        ignored_columns: Names in its header that are not used, fit to be printed.
    """

    name: str
    proxies: list[ListedProxy]
    refused: list[RefusedLine]
    ignored_columns: tuple[str, ...]


def identity(proxy: CustomProxy) -> tuple[str, int, str]:
    """
    What makes a proxy the same as another: host, port and user name.

    A host counts alike in either case, and an IPv6 address however it is shortened. Sellers put the
    way out of their network into the user name, so two of those on one host are two proxies. Two lines
    that differ in nothing but the password are one proxy, of which one password is wrong or old.
    """
    host = proxy.host.lower().removesuffix(".")
    if ":" in host:
        host = ipaddress.IPv6Address(host).compressed
    return host, proxy.port, proxy.username or ""


def read_list(source: Source, known: "Known | None" = None) -> ProxyList:
    """
    What the list *source* holds: its proxies, each once, and the lines that cannot be used.

    Args:
        source: The file's path, or ``-`` for standard input.
        known: The proxies of lists that were read before, to which those of this one are added: a proxy
            that is already among them is refused.

    Raises:
        FleetError: It cannot be opened, is not UTF-8 text, or names a column twice.
    """
    proxies: list[ListedProxy] = []
    refused: list[RefusedLine] = []
    name = os.fspath(source)
    if ("@" in name or name.count(":") > 1) and not os.path.exists(name):
        # An error about the file would name it, and so show the password of a proxy that is no file.
        raise FleetError("the list of proxies cannot be read: give the path of a file, not a proxy")
    with closing(FleetFile(source)) as file:
        ignored: list[str] = []
        lines = chain.from_iterable(file.lines())
        for item in read_lines(lines, source=file.shown, known=known, ignored=ignored):
            if isinstance(item, ListedProxy):
                proxies.append(item)
            else:
                refused.append(item)
    return ProxyList(file.shown, proxies, refused, tuple(ignored))


Known: TypeAlias = dict[tuple[str, int, str], tuple[str, int, Secret | None]]
"""For the `identity` of each proxy: its list, its line and its password."""


def read_lines(
    lines: Iterable[str], *, source: str = "", known: Known | None = None, ignored: list[str] | None = None
) -> Iterator[ListedProxy | RefusedLine]:
    """
    A proxy, or what is wrong, for each of *lines* that is neither blank nor a comment (``#``).

    Args:
        lines: The list.
        source: Its name.
        known: The proxies of lists that were read before; those of this one are added.
        ignored: The names of columns that are not used are appended to it.

    Raises:
        FleetError: The header names a column twice.
    """
    known = {} if known is None else known
    table: _Table | None = None
    begun = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text.strip(",;\t") or text.startswith("#"):  # a spreadsheet's empty row is commas
            continue
        if not begun:
            begun = True
            if table := _Table.of_header(line, number):
                if ignored is not None:
                    ignored.extend(table.ignored)
                continue
        try:
            # Of a table's row the edges are its own: a password may end in a space.
            proxy = table.read_row(line.rstrip("\r\n")) if table else read_proxy(text)
        except FieldError as error:
            yield RefusedLine.of(error, number, source)
            continue
        mine = source, number, proxy.password
        if (before := known.setdefault(identity(proxy), mine)) is mine:
            yield ListedProxy(number, proxy)
            continue
        listed, first, password = before
        place = f"line {first}" + (f" of {listed}" if listed != source else "")
        advice = "list each proxy once"
        if password != proxy.password:
            advice += ", with the right one of its two passwords"
        yield RefusedLine(number, None, "proxy already listed", advice, place, source)


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FOUR: Final = re.compile(r"(\[[^]]*\]|[^:@]+):([0-9]+):([^:]*):(.*)", re.DOTALL)
_FORMS: Final = "write host:port, host:port:user:password, user:password@host:port or a URL"


def read_proxy(text: str) -> CustomProxy:
    """
    The proxy that one line names, in any form but a row of CSV.

    ``a:1:b@c:2`` has two forms at once. The one whose host has a dot, or is IPv6, is meant; where that
    is so for both or neither, the line is refused rather than a piece of a password taken for a host.

    Raises:
        FieldError: It names none, or a field of it is not valid.
    """
    text = text.strip()
    if _SCHEME.match(text):
        return CustomProxy.from_url(text)
    if text.count(":") > 1 and (_is_host(text) or _is_host(text.rpartition(":")[0])):
        raise FieldError("host", "host not an IPv6 address", "put brackets around it: [2001:db8::1]:8080")
    credentials, at, place = text.rpartition("@")
    place = place.removesuffix("/")
    four = _FOUR.fullmatch(text)
    if four and at and _is_place(place) and not _is_meant(four[1], place):
        four = None
    if four:
        host, port, username, password = four.groups()
        return _custom(_unwrapped(host), read_port(port), username, password)
    if at:
        username, _, password = credentials.partition(":")
        return _custom(*split_host_port(place), username, password)
    _refuse_other_forms(text)
    return _custom(*split_host_port(place), "", "")


def _is_meant(host: str, place: str) -> bool:
    """Whether ``host:port:user:password`` is meant where ``user:password@place`` is possible too."""
    if not _is_host(_unwrapped(host)):
        return False
    whole = [bool(re.search(r"[.\[]", each)) for each in (host, place)]
    if whole[0] == whole[1]:
        raise FieldError(None, "form ambiguous", "write it as a URL: http://user:password@host:port")
    return whole[0]


def _refuse_other_forms(text: str) -> None:
    parts = text.split(":")
    if text.startswith("[") or len(parts) < 3:
        if "," in text and len(parts) == 1:
            raise FieldError(None, "columns not named", "let a first line name them: host,port,...")
        return
    if not parts[1]:
        raise FieldError("port", "port missing", _FORMS)
    if not (parts[1].isascii() and parts[1].isdecimal()):
        raise FieldError("port", "port not an integer", _FORMS)
    advice = "write host:port:user:password, or user@host:port where there is none"
    raise FieldError("password", "password missing", advice)


def _custom(host: str, port: int, username: str, password: str, protocol: str = "") -> CustomProxy:
    return CustomProxy(
        host=host,
        port=port,
        protocol=protocol.lower() or None,
        username=username or None,
        password=password or None,
    )


def _is_host(text: str) -> bool:
    try:
        check_host(text)
    except FieldError:
        return False
    return True


def _is_place(text: str) -> bool:
    try:
        _custom(*split_host_port(text), "", "")
    except FieldError:
        return False
    return True


def _unwrapped(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host


# What sellers call a column, the likeliest name first. In a fleet most of these speak of the account, and
# here too a column that has its usual name comes before them.
_SELLERS_NAMES: Final = {
    "host": ("ip", "proxyip", "ipaddress", "proxyaddress", "hostname", "server", "address", "addr"),
    "port": ("portnumber",),
    "protocol": ("type", "proxytype", "scheme"),
    "username": ("login", "proxylogin"),
    "password": ("pwd", "passwd"),
}


class _Table:
    """
    The header of a list in CSV, and how a row below it is read.

    Attributes:
        ignored: Names in the header that are not used, fit to be printed.
    """

    def __init__(self, names: list[str], columns: list[str | None], delimiter: str) -> None:
        self.ignored = [
            shown(name)
            for name, column in zip(names, columns, strict=True)
            if name and column not in {"proxy", *PARTS}
        ]
        self._columns = columns
        self._delimiter = delimiter

    @classmethod
    def of_header(cls, text: str, line: int) -> Self | None:
        """The table whose header *text* is; None where it is a proxy, or nothing we know."""
        delimiter = max(",;\t", key=text.count)
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        columns = [meaning(name) for name in names]
        if "proxy" not in columns:
            _take_sellers_names(names, columns)
        if not {"host", "proxy"} & set(columns) or any(re.search("[:@]", name) for name in names):
            return None
        for name in ("proxy", *PARTS):
            if columns.count(name) > 1:
                raise FleetError(f"line {line} names the column {name} twice: leave one")
        return cls(names, columns, delimiter)

    def read_row(self, text: str) -> CustomProxy:
        """The proxy of one line, which is one row: no field of a proxy can have a line break."""
        try:
            cells = next(csv.reader([text], delimiter=self._delimiter, strict=True))
        except csv.Error:
            cells = []
        if not cells:
            raise FieldError(None, "quotes not closed", 'put a cell in "", and double a quote inside it')
        if any(cell.strip() for cell in cells[len(self._columns) :]):
            raise FieldError(None, "more cells than columns", "put quotes around a cell that has a comma")
        # Of the two lengths the shorter: cells left out at the end are empty ones.
        row = {name: cell for name, cell in zip(self._columns, cells, strict=False) if name}
        proxy, host, port, protocol, username = (
            row.get(name, "").strip() for name in ("proxy", *PARTS) if name != "password"
        )
        password = row.get("password", "")
        password = "" if password.isspace() else password
        if not proxy:
            return _custom(_unwrapped(host), read_port(port), username, password, protocol)
        if host or port or protocol or username or password:
            advice = "give it in proxy, or as host, port and the rest, not both"
            raise FieldError(None, "proxy given twice", advice)
        return read_proxy(proxy)


def _take_sellers_names(names: list[str], columns: list[str | None]) -> None:
    """Fill in, for each column that the header has not under its usual name, what sellers call it."""
    plain = [plain_name(name) for name in names]
    for column, others in _SELLERS_NAMES.items():
        if column not in columns and (name := next((name for name in others if name in plain), None)):
            columns[plain.index(name)] = column
