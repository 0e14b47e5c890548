"""
The lists of proxies that sellers hand out: lines of text, or CSV with a header.

A line is ``host:port``, ``host:port:user:password``, ``user:password@host:port`` or a URL, with IPv6 in
brackets. Only a URL is percent-decoded: elsewhere a password is taken as it stands. What is wrong with
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
from postpress_async.rotation.fleet._row import PARTS, meaning

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
    """

    line: int
    field: str | None
    reason: str
    advice: str

    @classmethod
    def of(cls, error: FieldError, line: int) -> Self:
        """The refusal that *error* is for a line."""
        # In user:12345678, which forgot its host, the number that would be shown is the password.
        advice = "it is 1 to 65535" if error.reason == "port out of range" else error.advice
        return cls(line, error.field, error.reason, advice)

    def __str__(self) -> str:
        field = "" if self.field is None else f", {self.field}"
        return f"line {self.line}{field}: {self.reason}: {self.advice}"


def identity(proxy: CustomProxy) -> tuple[str, int, str]:
    """
    What makes a proxy the same as another: host, port and user name.

    A host counts alike in either case, and an IPv6 address however it is shortened. Sellers put the
    way out of their network into the user name, so two of those on one host are two proxies.
    """
    host = proxy.host.lower().removesuffix(".")
    if ":" in host:
        host = ipaddress.IPv6Address(host).compressed
    return host, proxy.port, proxy.username or ""


def read_list(source: Source) -> tuple[list[ListedProxy], list[RefusedLine]]:
    """
    The proxies of the list *source*, each once, and the lines that are none.

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
        for item in read_lines(chain.from_iterable(file.lines())):
            if isinstance(item, ListedProxy):
                proxies.append(item)
            else:
                refused.append(item)
    return proxies, refused


def read_lines(lines: Iterable[str]) -> Iterator[ListedProxy | RefusedLine]:
    """
    A proxy, or what is wrong, for each of *lines* that is neither blank nor a comment (``#``).

    Raises:
        FleetError: The header names a column twice.
    """
    first_lines: dict[tuple[str, int, str], int] = {}
    table: _Table | None = None
    begun = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text.strip(",;\t") or text.startswith("#"):  # a spreadsheet's empty row is commas
            continue
        if not begun:
            begun = True
            if table := _Table.of_header(line, number):
                continue
        try:
            # Of a table's row the edges are its own: a password may end in a space.
            proxy = table.read_row(line.rstrip("\r\n")) if table else read_proxy(text)
        except FieldError as error:
            yield RefusedLine.of(error, number)
            continue
        first = first_lines.setdefault(identity(proxy), number)
        if first == number:
            yield ListedProxy(number, proxy)
        else:
            yield RefusedLine(number, None, f"proxy already on line {first}", "list each proxy once")


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


class _Table:
    """The header of a list in CSV, and how a row below it is read. Columns that are not ours are let be."""

    def __init__(self, columns: list[str | None], delimiter: str) -> None:
        self._columns = columns
        self._delimiter = delimiter

    @classmethod
    def of_header(cls, text: str, line: int) -> Self | None:
        """The table whose header *text* is; None where it is a proxy, or nothing we know."""
        delimiter = max(",;\t", key=text.count)
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        columns = [meaning(name) for name in names]
        if not {"host", "proxy"} & set(columns):
            # The address of an account, in a fleet; but here there are only those of proxies.
            columns = ["host" if name == "ip" else name for name in columns]
        if not {"host", "proxy"} & set(columns) or any(re.search("[:@]", name) for name in names):
            return None
        for name in ("proxy", *PARTS):
            if columns.count(name) > 1:
                raise FleetError(f"line {line} names the column {name} twice: leave one")
        return cls(columns, delimiter)

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
