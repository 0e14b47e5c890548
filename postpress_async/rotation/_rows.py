"""
What a rotation is to do: a row for each account, or why there is none.

Rows come from a fleet file (`fleet`) or, here, from any iterable. What is wrong with one is a value and
no exception, so that the rest of a million goes on.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Final, Generic, Protocol, Self, TypeAlias, TypeVar

from attrs import define, field, frozen

from postpress_async._fields import check_account_id
from postpress_async.models import CustomProxy, FieldError, ManagedProxy, ProxyChange

Change: TypeAlias = tuple[str, ProxyChange | None] | str
"""An account and what it is to get; where the rotation has a pool, that may be left out."""


@frozen(slots=False)  # as an `Outcome` is, and for the same reason
class Row:
    """
    One account and its change, both checked.

    Attributes:
        ordinal: Its place among the rows, from 0. Refused and blank rows have theirs too, so mending one
            does not move the others.
        line: The line in the file on which it begins, from 1; None where the input was no file.
        account_id: The account.
        change: What it is to get; None leaves it to the rotation's pool.
    """

    ordinal: int
    line: int | None
    account_id: str
    change: ProxyChange | None


@frozen
class Refusal:
    """
    A row that is not sent, and why. It holds no text of the row but an id that could be one.

    Attributes:
        ordinal: As a `Row` has it.
        line: As a `Row` has it.
        column: The column at fault; None where no single one is.
        account_id: The account; None where the row has no valid one.
        reason: The fact in a few words, such as ``port out of range``.
        advice: What would be right.
        first_line: The line that named the account before; None if that is not the fault.
    """

    ordinal: int
    line: int | None
    column: str | None
    account_id: str | None
    reason: str
    advice: str
    first_line: int | None = None

    @classmethod
    def of(cls, error: FieldError, ordinal: int, line: int | None, account_id: str | None = None) -> Self:
        """The refusal that *error* is for a row."""
        return cls(ordinal, line, error.field, account_id, error.reason, error.advice)

    def __str__(self) -> str:
        # From 0, as the caller would index them.
        place = f"changes[{self.ordinal}]" if self.line is None else f"line {self.line}"
        column = "" if self.column is None else f", {self.column}"
        first = "" if self.first_line is None else f" on line {self.first_line}"
        return f"{place}{column}: {self.reason}{first}: {self.advice}"


class Refused(Protocol):
    """A row of a fleet, or a line of a list of proxies, that cannot be used."""

    @property
    def line(self) -> int | None: ...

    @property
    def column(self) -> str | None: ...

    @property
    def reason(self) -> str: ...

    @property
    def advice(self) -> str: ...


R = TypeVar("R", bound=Refused)

LISTED: Final = 50
"""Kinds of fault that `Faults` keeps; further ones are only counted."""

_EXAMPLES: Final = 5


@define
class Fault(Generic[R]):
    """
    One kind of fault: rows refused for the same reason, with the same advice.

    Attributes:
        first: The first of them.
        count: How many there are.
        lines: The lines of the first five.
    """

    first: R
    count: int = 0
    lines: list[int | None] = field(factory=list)

    def sentence(self, advice: str | None = None) -> str:
        """The fault with its lines and what would be right, which is *advice* if that is given."""
        if self.count == 1 and advice is None:
            return str(self.first)
        lines = ", ".join(str(line) for line in self.lines)
        more = f" and {self.count - len(self.lines):,} more" if self.count > len(self.lines) else ""
        place = f"line {lines}" if self.count == 1 else f"{self.count:,} lines ({lines}{more})"
        column = "" if self.first.column is None else f", {self.first.column}"
        return f"{place}{column}: {self.first.reason}: {advice or self.first.advice}"


@define
class Faults(Generic[R]):
    """
    Refused rows by kind of fault, so that memory and messages stay small however many rows are refused.

    Attributes:
        count: How many rows there are in all.
        unlisted: How many of them are of a kind that is not listed.
    """

    count: int = 0
    unlisted: int = 0
    _kinds: dict[tuple[str | None, str, str], Fault[R]] = field(factory=dict)

    def add(self, refused: R) -> None:
        """Count *refused*."""
        self.count += 1
        kind = refused.column, refused.reason, refused.advice
        fault = self._kinds.get(kind)
        if fault is None:
            if len(self._kinds) == LISTED:
                self.unlisted += 1
                return
            fault = self._kinds[kind] = Fault(refused)
        fault.count += 1
        if len(fault.lines) < _EXAMPLES:
            fault.lines.append(refused.line)

    def __iter__(self) -> Iterator[Fault[R]]:
        """The kinds of fault, in the order of their first rows."""
        return iter(self._kinds.values())


def uses_pool(rows: Iterable[Row | Refusal]) -> bool:
    """Whether one of *rows* gets a proxy of the pool; also if none of them can be sent."""
    can_be_sent = False
    for row in rows:
        if isinstance(row, Row):
            if row.change is None:
                return True
            can_be_sent = True
    return not can_be_sent


def rows_of(changes: Iterable[Change], *, pooled: bool = False) -> Iterator[Row | Refusal]:
    """
    A row, or what is wrong with it, for each pair of an account id and its change.

    Only as many pairs are taken as are asked for, and none is kept: an account that comes twice is two
    rows. What *changes* itself raises is let through. Where they are *pooled*, an account id alone, or one
    with None, gets its change from the pool.
    """
    for ordinal, pair in enumerate(changes):
        yield _row_of(ordinal, pair, pooled)


async def arows_of(changes: AsyncIterable[Change], *, pooled: bool = False) -> AsyncIterator[Row | Refusal]:
    """`rows_of` for pairs that come asynchronously."""
    ordinal = 0
    async for pair in changes:
        yield _row_of(ordinal, pair, pooled)
        ordinal += 1


def _row_of(ordinal: int, pair: object, pooled: bool) -> Row | Refusal:
    if pooled and isinstance(pair, str):
        pair = pair, None
    # Not by unpacking: the text "US" has two parts as well.
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        advice = f"give (account_id, change), not {type(pair).__name__}"
        return Refusal(ordinal, None, None, None, "row not a pair", advice)
    account_id, change = pair
    try:
        check_account_id(account_id)
    except FieldError as error:
        return Refusal.of(error, ordinal, None)
    if not isinstance(change, (CustomProxy, ManagedProxy)) and not (pooled and change is None):
        advice = f"it is a CustomProxy or a ManagedProxy, not {type(change).__name__}"
        return Refusal(ordinal, None, "change", account_id, "change not a proxy", advice)
    return Row(ordinal, None, account_id, change)
