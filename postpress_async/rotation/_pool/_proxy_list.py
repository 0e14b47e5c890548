"""
Reads lists of proxies in the formats that sellers use: lines of text, or CSV with a header.

A line has any form of `read_proxy`. The columns of a table have the names used in a fleet, or names that
sellers use, such as ``Type``, ``IP`` or ``Login``. An invalid line does not raise an error, but becomes a
`RefusedLine`, which contains no text of the line, because that could be a password.
"""

import csv
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Self, TypeAlias

from attrs import field, frozen

from postpress_async._fields import read_port
from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy, FieldError
from postpress_async.rotation._column_names import PARTS, Tag, as_tag, field_of, list_columns, printable_name
from postpress_async.rotation._faults import Faults
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._proxy_text import custom_proxy, read_proxy, without_brackets

Source: TypeAlias = str | os.PathLike[str]  # ``-`` is standard input


@frozen
class ListedProxy:
    line: int  # from 1, counting comments and blank lines
    proxy: CustomProxy
    tag: Tag = None  # the tag of its pool; None if there is only one pool
    others: Mapping[str, str] = field(factory=dict)  # its cells in unused columns, by the column's name


@frozen
class RefusedLine:
    """An invalid line, or one that repeats a proxy. Contains no text of the line."""

    line: int  # from 1
    column: str | None  # the API's name of the invalid field; None if the fault is not in a single field
    reason: str  # in a few words, such as "port out of range"
    advice: str  # how to fix it
    first: str | None = None  # where a repeated proxy occurs first, such as "line 2" or "line 2 of us.txt"
    source: str = ""  # name of the list

    def __str__(self) -> str:
        column = "" if self.column is None else f", {self.column}"
        first = "" if self.first is None else f" on {self.first}"
        return f"line {self.line}{column}: {self.reason}{first}: {self.advice}"


def identity(proxy: CustomProxy) -> tuple[str, int, str]:
    """
    Return the normalized host, port and user name; proxies with the same ones are the same proxy.

    Case and the notation of IPv6 addresses do not matter. Sellers encode the exit node in the user name, so
    two user names on one host are two proxies. The password is left out: if two lines differ only in it, one
    of the passwords is wrong or old.
    """
    host = proxy.host.lower().removesuffix(".")
    if ":" in host:
        host = ipaddress.IPv6Address(host).compressed
    return host, proxy.port, proxy.username or ""


@frozen
class ProxyLists:
    """The content of one or more lists. The name of a list is its path or ``standard input``."""

    proxies: list[ListedProxy] = field(factory=list)  # each proxy once
    refused: list[RefusedLine] = field(factory=list)
    ignored_columns: dict[str, tuple[str, ...]] = field(factory=dict)  # printable, by the name of the list
    # By identity: the name of the list that contains the proxy first, and its entry there.
    _first: dict[tuple[str, int, str], tuple[str, ListedProxy]] = field(factory=dict)

    def add(self, lines: Iterable[str], source: str = "", tag: Tag = None, by: str | None = None) -> None:
        """
        Read a list. Blank lines and comments (``#``) are skipped.

        Its proxies get the *tag*. If the column *by* is given, it contains the tag of each proxy instead.
        Raises `FleetError` if the header has a column twice, or if it has no column *by*.
        """
        table, is_first = None, True
        self.ignored_columns[source] = ()
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text.strip(",;\t") or text.startswith("#"):  # blank rows of a spreadsheet have commas
                continue
            if is_first:
                is_first = False
                if (table := _Table.of_header(line, number, by)) is not None:
                    self.ignored_columns[source] = table.ignored
                if by is not None and (table is None or table.by is None):
                    advice = "add it to the header, or name the pool of the whole list: --pool TAG=FILE"
                    raise FleetError(f"{source} has no column {by} with the tags of its proxies: {advice}")
                if table is not None:
                    continue
            try:
                if table is None:
                    entry = ListedProxy(number, read_proxy(text), tag)
                else:  # do not strip the row, because a password may end in a space
                    proxy, row_tag, others = table.read_row(line.rstrip("\r\n"))
                    entry = ListedProxy(number, proxy, tag or row_tag, others)
            except FieldError as error:
                refusal = RefusedLine(number, error.field, error.reason, error.advice, source=source)
                self.refused.append(refusal)
                continue
            first_source, first = self._first.setdefault(identity(entry.proxy), (source, entry))
            if first is entry:
                self.proxies.append(entry)
            else:
                self.refused.append(_repetition(entry, source, first, first_source))


def _repetition(entry: ListedProxy, source: str, first: ListedProxy, first_source: str) -> RefusedLine:
    """The refusal of *entry*, whose proxy was listed before as *first*."""
    advice = "list each proxy once"
    if first.tag != entry.tag:
        advice = "a proxy belongs to one pool: remove it from the wrong one"
    elif first.proxy.password != entry.proxy.password:
        advice += ", with the correct one of its two passwords"
    position = f"line {first.line}" + (f" of {first_source}" if first_source != source else "")
    return RefusedLine(entry.line, None, "proxy already listed", advice, position, source)


def read_lists(
    sources: Iterable[tuple[Tag, Source]], *, by: str | None = None, skip_bad: bool = False
) -> ProxyLists:
    """
    Read lists of proxies.

    Each list is given with the tag of its proxies. The tag is None if there is only one pool, or if the
    column *by* contains the tags.

    Raises `FleetError` if a list cannot be read, is empty, has a column twice, or has no column *by*. Invalid
    lines raise it too, unless *skip_bad* is set and at least one line is valid.
    """
    lists = ProxyLists()
    for tag, source in sources:
        name = os.fspath(source)
        if ("@" in name or name.count(":") > 1) and not os.path.exists(name):
            # This is probably a proxy, not a path, so an error that quotes it would show its password.
            raise FleetError("the list of proxies cannot be read: pass the path of a file, not a proxy")
        lines_before = len(lists.proxies) + len(lists.refused)
        with closing(FleetFile(source)) as file:
            lists.add(file.lines(), file.shown, tag, None if tag else by)
        if len(lists.proxies) + len(lists.refused) == lines_before:
            raise FleetError(f"the list of proxies in {file.shown} is empty: list one proxy per line")
    if lists.refused and not (skip_bad and lists.proxies):
        raise FleetError("\n".join(_describe(lists.refused)))
    return lists


def faults_by_list(refused: Iterable[RefusedLine]) -> dict[str, Faults[RefusedLine]]:
    faults: dict[str, Faults[RefusedLine]] = {}
    for refusal in refused:
        faults.setdefault(refusal.source, Faults()).add(refusal)
    return faults


def _describe(refused: list[RefusedLine]) -> Iterator[str]:
    for name, faults in faults_by_list(refused).items():
        lines = "1 line" if faults.count == 1 else f"{faults.count:,} lines"
        yield f"the list of proxies in {name} has {lines} that cannot be used:"
        yield from (f"  {fault.sentence()}" for fault in faults)
        if faults.unlisted:
            yield f"  {faults.unlisted:,} more lines have other faults"


@frozen
class _Table:
    """The header of a CSV list, and the parser of its rows."""

    columns: list[str | None]  # "proxy", one of `PARTS`, `by`, or None if it is not used
    names: list[str]
    ignored: tuple[str, ...]  # printable names of the unused columns
    delimiter: str
    by: str | None  # the column with the tags of the proxies, if there are tags

    @classmethod
    def of_header(cls, text: str, line: int, by: str | None) -> Self | None:
        """Parse a header, whose column *by* has the tags; return None if *text* is not a header."""
        delimiter = max(",;\t", key=text.count)
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        tag_index = next((index for index, name in enumerate(names) if field_of(name) == by), None)
        columns = list_columns(["" if index == tag_index else name for index, name in enumerate(names)])
        if not {"host", "proxy"} & set(columns) or any(re.search("[:@]", name) for name in names):
            return None
        for name in ("proxy", *PARTS):
            if columns.count(name) > 1:
                raise FleetError(f"line {line} has the column {name} twice: remove one")
        if tag_index is None:
            by = None
        else:
            columns[tag_index] = by
        unused = (name for name, column in zip(names, columns, strict=True) if name and column is None)
        return cls(columns, names, tuple(map(printable_name, unused)), delimiter, by)

    def read_row(self, text: str) -> tuple[CustomProxy, Tag, dict[str, str]]:
        """Parse a row into the proxy, its tag, and its cells in unused columns."""
        try:  # a row is always one line: no field of a proxy can contain a line break
            cells = next(csv.reader([text], delimiter=self.delimiter, strict=True))
        except csv.Error:
            cells = []
        if not cells:
            advice = 'quote a cell with "", and double each quote inside it'
            raise FieldError(None, "quotes not closed", advice)
        if any(cell.strip() for cell in cells[len(self.columns) :]):
            raise FieldError(None, "more cells than columns", "quote cells that contain a comma")
        row: dict[str, str] = {}
        others: dict[str, str] = {}
        # Not strict, because a row may omit empty cells at its end.
        for column, name, cell in zip(self.columns, self.names, cells, strict=False):
            if column is not None:
                row[column] = cell
            elif name:
                others[name] = cell
        tag = as_tag(row.get(self.by, "")) if self.by else None
        if tag == "":
            raise FieldError(self.by, f"{self.by} missing", "it must have the tag of the proxy's pool")
        proxy, host, port, protocol, username = (
            row.get(name, "").strip() for name in ("proxy", *PARTS) if name != "password"
        )
        password = row.get("password", "")
        password = "" if password.isspace() else password
        if not proxy:
            found = custom_proxy(without_brackets(host), read_port(port), username, password, protocol)
        elif host or port or protocol or username or password:
            advice = "use either the column proxy or host, port and the rest"
            raise FieldError(None, "proxy given twice", advice)
        else:
            found = read_proxy(proxy)
        return found, tag, others
