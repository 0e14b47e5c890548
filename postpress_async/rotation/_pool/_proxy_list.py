"""
Reads lists of proxies in the formats that sellers use: lines of text, or CSV with a header.

A line is ``host:port``, ``host:port:user:password``, ``user:password@host:port`` or a URL, with IPv6
addresses in brackets. Only URLs are percent-decoded; in the other forms a password is used unchanged. The
columns of a table have the names used in a fleet, or names that sellers use, such as ``Type``, ``IP`` or
``Login``. An invalid line is returned and not raised, without text of the line, which could be a password.
"""

import csv
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final, Self, TypeAlias

from attrs import frozen

from postpress_async._fields import is_host, read_port, split_host_port
from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy, FieldError
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._fleet._row import (
    PARTS,
    column_of,
    plain_name,
    printable_name,
    without_brackets,
)
from postpress_async.secret import Secret

Source: TypeAlias = str | os.PathLike[str]
"""A path, or ``-`` for standard input."""


@frozen
class ListedProxy:
    """
    A proxy of a list.

    Attributes:
        line: Its line in the list, from 1, counting comments and blank lines.
        proxy: The proxy.
    """

    line: int
    proxy: CustomProxy


@frozen
class RefusedLine:
    """
    An invalid line, or one that repeats a proxy. Contains no text of the line.

    Attributes:
        line: The line, from 1.
        column: The API's name of the invalid field; None if the fault is not in a single field.
        reason: What is wrong, in a few words, such as ``port out of range``.
        advice: How to fix it.
        first: For a repeated proxy, where it occurs first, such as ``line 2`` or ``line 2 of us.txt``;
            otherwise None.
        source: Name of the list; empty if it has none.
    """

    line: int
    column: str | None
    reason: str
    advice: str
    first: str | None = None
    source: str = ""

    @classmethod
    def of(cls, error: FieldError, line: int, source: str = "") -> Self:
        """Create the refusal of a line with an invalid field."""
        return cls(line, error.field, error.reason, error.advice, source=source)

    def __str__(self) -> str:
        column = "" if self.column is None else f", {self.column}"
        first = "" if self.first is None else f" on {self.first}"
        return f"line {self.line}{column}: {self.reason}{first}: {self.advice}"


@frozen
class ProxyList:
    """
    The content of one list.

    Attributes:
        name: Path of the list, or ``standard input``.
        proxies: The distinct proxies.
        refused: The invalid lines.
        ignored_columns: Printable names of the unused columns.
    """

    name: str
    proxies: list[ListedProxy]
    refused: list[RefusedLine]
    ignored_columns: tuple[str, ...]


def identity(proxy: CustomProxy) -> tuple[str, int, str]:
    """
    Return the normalized host, port and user name; proxies with the same ones are the same proxy.

    Case and the notation of IPv6 addresses do not matter. Sellers encode the exit node in the user name, so
    two user names on one host are two proxies. If lines differ only in the password, one of the passwords is
    wrong or old.
    """
    host = proxy.host.lower().removesuffix(".")
    if ":" in host:
        host = ipaddress.IPv6Address(host).compressed
    return host, proxy.port, proxy.username or ""


def read_list(source: Source, known: "Known | None" = None) -> ProxyList:
    """
    Read a list.

    Args:
        source: Path, or ``-`` for standard input.
        known: Proxies of earlier lists, which are duplicates here. The proxies of this list are added.

    Raises:
        FleetError: The list cannot be read, or has a column twice.
    """
    proxies: list[ListedProxy] = []
    refused: list[RefusedLine] = []
    name = os.fspath(source)
    if ("@" in name or name.count(":") > 1) and not os.path.exists(name):
        # A proxy instead of a file: an error that names it would show its password.
        raise FleetError("the list of proxies cannot be read: pass the path of a file, not a proxy")
    with closing(FleetFile(source)) as file:
        ignored: list[str] = []
        for item in read_lines(file.lines(), source=file.shown, known=known, ignored=ignored):
            if isinstance(item, ListedProxy):
                proxies.append(item)
            else:
                refused.append(item)
    return ProxyList(file.shown, proxies, refused, tuple(ignored))


Known: TypeAlias = dict[tuple[str, int, str], tuple[str, int, Secret | None]]
"""By the `identity` of a proxy: the name of its list, its line and its password."""


def read_lines(
    lines: Iterable[str], *, source: str = "", known: Known | None = None, ignored: list[str] | None = None
) -> Iterator[ListedProxy | RefusedLine]:
    """
    Yield a proxy or a refusal for each line that is neither blank nor a comment (``#``).

    Args:
        lines: The lines of the list.
        source: The name of the list.
        known: See `read_list`.
        ignored: Receives the names of the unused columns.

    Raises:
        FleetError: The header has a column twice.
    """
    known = {} if known is None else known
    table: _Table | None = None
    at_start = True
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text.strip(",;\t") or text.startswith("#"):  # an empty row of a spreadsheet has only commas
            continue
        if at_start:
            at_start = False
            if table := _Table.of_header(line, number):
                if ignored is not None:
                    ignored.extend(table.ignored)
                continue
        try:
            # Do not strip the row of a table, because a password may end in a space.
            proxy = table.read_row(line.rstrip("\r\n")) if table else read_proxy(text)
        except FieldError as error:
            yield RefusedLine.of(error, number, source)
            continue
        entry = source, number, proxy.password
        if (earlier := known.setdefault(identity(proxy), entry)) is entry:
            yield ListedProxy(number, proxy)
            continue
        first_list, first_line, password = earlier
        first = f"line {first_line}" + (f" of {first_list}" if first_list != source else "")
        advice = "list each proxy once"
        if password != proxy.password:
            advice += ", with the correct one of its two passwords"
        yield RefusedLine(number, None, "proxy already listed", advice, first, source)


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FOUR_PARTS: Final = re.compile(r"(\[[^]]*\]|[^:@]+):([0-9]+):([^:]*):(.*)", re.DOTALL)
_FORMS: Final = "write host:port, host:port:user:password, user:password@host:port or a URL"


def read_proxy(text: str) -> CustomProxy:
    """
    Parse a line in any form except a row of CSV.

    ``a:1:b@c:2`` matches two forms. The one whose host has a dot or is an IPv6 address is used. If that is
    true of both or neither, the line is refused, because part of a password might be used as a host.

    Raises:
        FieldError: The line is not a proxy, or a field is invalid.
    """
    text = text.strip()
    if _SCHEME.match(text):
        return CustomProxy.from_url(text)
    if text.count(":") > 1 and (is_host(text) or is_host(text.rpartition(":")[0])):
        raise FieldError("host", "host not an IPv6 address", "put brackets around it: [2001:db8::1]:8080")
    credentials, at, address = text.rpartition("@")
    address = address.removesuffix("/")
    four = _FOUR_PARTS.fullmatch(text)
    if four and at and _is_address(address) and not _has_four_parts(four[1], address):
        four = None
    if four:
        host, port, username, password = four.groups()
        return _custom(without_brackets(host), read_port(port), username, password)
    if at:
        username, _, password = credentials.partition(":")
        return _custom(*split_host_port(address), username, password)
    _refuse_other_forms(text)
    return _custom(*split_host_port(address), "", "")


def _has_four_parts(host: str, address: str) -> bool:
    """Whether a line is ``host:port:user:password`` although it could be ``user:password@address``."""
    if not is_host(without_brackets(host)):
        return False
    host_is_complete, address_is_complete = (bool(re.search(r"[.\[]", text)) for text in (host, address))
    if host_is_complete == address_is_complete:
        raise FieldError(None, "form ambiguous", "write it as a URL: http://user:password@host:port")
    return host_is_complete


def _refuse_other_forms(text: str) -> None:
    parts = text.split(":")
    if text.startswith("[") or len(parts) < 3:
        if "," in text and len(parts) == 1:
            raise FieldError(None, "columns not named", "name them in the first line: host,port,...")
        return
    if not parts[1]:
        raise FieldError("port", "port missing", _FORMS)
    if not (parts[1].isascii() and parts[1].isdecimal()):
        raise FieldError("port", "port not an integer", _FORMS)
    advice = "write host:port:user:password, or user@host:port without a password"
    raise FieldError("password", "password missing", advice)


def _custom(host: str, port: int, username: str, password: str, protocol: str = "") -> CustomProxy:
    return CustomProxy(
        host=host,
        port=port,
        protocol=protocol.lower() or None,
        username=username or None,
        password=password or None,
    )


def _is_address(text: str) -> bool:
    try:
        _custom(*split_host_port(text), "", "")
    except FieldError:
        return False
    return True


# Other names that sellers use, the most likely first. A column with its usual name takes precedence.
_SELLERS_NAMES: Final = {
    "host": ("ip", "proxyip", "ipaddress", "proxyaddress", "hostname", "server", "address", "addr"),
    "port": ("portnumber",),
    "protocol": ("type", "proxytype", "scheme"),
    "username": ("login", "proxylogin"),
    "password": ("pwd", "passwd"),
}


class _Table:
    """
    The header of a CSV list, and the parser of its rows.

    Attributes:
        ignored: Printable names of the unused columns.
    """

    def __init__(self, names: list[str], columns: list[str | None], delimiter: str) -> None:
        self.ignored = [
            printable_name(name)
            for name, column in zip(names, columns, strict=True)
            if name and column not in {"proxy", *PARTS}
        ]
        self._columns = columns
        self._delimiter = delimiter

    @classmethod
    def of_header(cls, text: str, line: int) -> Self | None:
        """Parse a header; None if *text* is not one."""
        delimiter = max(",;\t", key=text.count)
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        columns = [column_of(name) for name in names]
        if "proxy" not in columns:
            _take_sellers_names(names, columns)
        if not {"host", "proxy"} & set(columns) or any(re.search("[:@]", name) for name in names):
            return None
        for name in ("proxy", *PARTS):
            if columns.count(name) > 1:
                raise FleetError(f"line {line} has the column {name} twice: remove one")
        return cls(names, columns, delimiter)

    def read_row(self, text: str) -> CustomProxy:
        """Parse a row. It is always a single line, because no field of a proxy can contain a line break."""
        try:
            cells = next(csv.reader([text], delimiter=self._delimiter, strict=True))
        except csv.Error:
            cells = []
        if not cells:
            raise FieldError(
                None, "quotes not closed", 'quote a cell with "", and double each quote inside it'
            )
        if any(cell.strip() for cell in cells[len(self._columns) :]):
            raise FieldError(None, "more cells than columns", "quote cells that contain a comma")
        # Not strict, because a row may omit empty cells at its end.
        row = {name: cell for name, cell in zip(self._columns, cells, strict=False) if name}
        proxy, host, port, protocol, username = (
            row.get(name, "").strip() for name in ("proxy", *PARTS) if name != "password"
        )
        password = row.get("password", "")
        password = "" if password.isspace() else password
        if not proxy:
            return _custom(without_brackets(host), read_port(port), username, password, protocol)
        if host or port or protocol or username or password:
            advice = "use either the column proxy or host, port and the rest"
            raise FieldError(None, "proxy given twice", advice)
        return read_proxy(proxy)


def _take_sellers_names(names: list[str], columns: list[str | None]) -> None:
    """Find columns by the names that sellers use, if the header does not have their usual names."""
    plain = [plain_name(name) for name in names]
    for column, others in _SELLERS_NAMES.items():
        if column not in columns and (name := next((name for name in others if name in plain), None)):
            columns[plain.index(name)] = column
