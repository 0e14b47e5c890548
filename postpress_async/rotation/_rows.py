"""
The input of a rotation: one `Row` per account, or a `Refusal` that says what is wrong with the row.

A `Fleet` produces its own rows; this module makes rows from any other iterable. An invalid row is a value,
not an exception, so that it does not stop the others.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, TypeAlias

from attrs import frozen

from postpress_async._converter import as_change
from postpress_async._fields import check_account_id
from postpress_async.models import CustomProxy, FieldError, ManagedProxy, ProxyChange, ProxyChangeLike
from postpress_async.rotation._column_names import Tag
from postpress_async.rotation._pool_needs import Pooled, PoolNeeds

# An account and its change. If the rotation has one pool, the change may be None or left out. If it has
# several pools by tag, the tag of the account's pool may take the place of the change.
Change: TypeAlias = tuple[str, ProxyChangeLike | str | None] | str


@frozen(slots=False)  # attrs creates a frozen instance with slots in twice the time
class Row:
    """
    A valid account and its valid change.

    Attributes:
        ordinal: Position in the input, from 0. Refused and blank rows are counted, so correcting one of them
            does not move the others.
        line: Line of the file on which the row begins, from 1; None if the input is not a file.
        account_id: The account.
        change: The change; None if the rotation's pool provides the proxy.
        tag: The tag of the account's pool; None if there is only one pool, or no pool provides the proxy.
        fields: The row's values for the templates of the account's pool, and its tag, by column.
    """

    ordinal: int
    line: int | None
    account_id: str
    change: ProxyChange | None
    tag: Tag = None
    fields: Mapping[str, str] | None = None


@frozen
class Refusal:
    """
    An invalid row, which is not sent.

    It can be shown without revealing a password: the only texts that it takes from the row are a valid
    account id, a country, a word that looks like the tag of a pool, or the name of an unknown field.

    Attributes:
        ordinal: See `Row`.
        line: See `Row`.
        column: The invalid column; None if the fault is not in a single column.
        account_id: The account; None if the row has no valid one.
        reason: What is wrong, in a few words, such as ``port out of range``.
        advice: How to correct it.
        first_line: For a duplicate account, the line of its first row; otherwise None.
    """

    ordinal: int
    line: int | None
    column: str | None
    account_id: str | None
    reason: str
    advice: str
    first_line: int | None = None

    def __str__(self) -> str:
        # The ordinal is the index in the caller's list.
        position = f"changes[{self.ordinal}]" if self.line is None else f"line {self.line}"
        column = "" if self.column is None else f", {self.column}"
        first = "" if self.first_line is None else f" on line {self.first_line}"
        return f"{position}{column}: {self.reason}{first}: {self.advice}"


def refusal_of(error: FieldError, ordinal: int, line: int | None, account_id: str | None = None) -> Refusal:
    return Refusal(ordinal, line, error.field, account_id, error.reason, error.advice)


def uses_pool(rows: Iterable[Row | Refusal]) -> bool:
    """
    Whether any of *rows* needs a proxy from the pool.

    Also True if no row is valid: then the rows are at fault, and not a needless pool.
    """
    has_valid_row = False
    for row in rows:
        if isinstance(row, Row):
            if row.change is None:
                return True
            has_valid_row = True
    return not has_valid_row


def rows_of(changes: Iterable[Change], *, pooled: Pooled = False) -> Iterator[Row | Refusal]:
    """
    Yield a row or a refusal for each pair of account id and change.

    *changes* is read lazily, and its errors pass through. An account that occurs twice gives two rows. With a
    pool, an account id without a change, or with the change None, gets its proxy from the pool. With several
    pools, it must be paired with a tag, or have a change.
    """
    needs = PoolNeeds.of(pooled)
    for ordinal, pair in enumerate(changes):
        yield _row_of(ordinal, pair, needs)


async def arows_of(changes: AsyncIterable[Change], *, pooled: Pooled = False) -> AsyncIterator[Row | Refusal]:
    needs, ordinals = PoolNeeds.of(pooled), count()
    async for pair in changes:
        yield _row_of(next(ordinals), pair, needs)


def check_changes(pairs: Iterable[Change], *, pooled: Pooled) -> None:
    """
    Raise `FieldError` if a pair or a change is wrong, which is a mistake in the caller's code.

    An invalid account id is a mistake in the data and raises nothing: its row is refused later.
    """
    needs, first, count = PoolNeeds.of(pooled), None, 0
    for ordinal, pair in enumerate(pairs):
        # A fast path, because there may be a million pairs.
        if type(pair) is tuple and len(pair) == 2 and isinstance(pair[1], (CustomProxy, ManagedProxy)):
            continue
        row = _row_of(ordinal, pair, needs)
        if isinstance(row, Refusal) and row.column != "account_id":
            first = first or row
            count += row.reason == first.reason
    if first is not None:
        raise _error_of(first, count)


def distinct_rows(
    changes: Mapping[str, ProxyChangeLike | str | None] | Iterable[Change], *, pooled: Pooled
) -> list[Row]:
    """Return one row per account. Raises `ValueError` if one is invalid, or has different changes."""
    if not isinstance(changes, Iterable):
        kind = type(changes).__name__
        raise ValueError(f"changes must be a mapping or an iterable of pairs, got {kind}: use rotate for it")
    rows: dict[str, Row] = {}
    for row in rows_of(pairs_of(changes), pooled=pooled):
        if isinstance(row, Refusal):
            raise _error_of(row)
        first = rows.setdefault(row.account_id, row)
        if (first.change, first.tag) != (row.change, row.tag):
            raise ValueError(f"{row.account_id} occurs twice with different changes: leave one of them out")
    if pooled is not False:
        check_pool_is_used(rows.values())
    return list(rows.values())


def pairs_of(changes: object) -> Any:
    """Return the pairs of *changes*: the items of a mapping, otherwise *changes* itself."""
    if isinstance(changes, str):  # its characters would be account ids
        raise ValueError("changes must be a mapping or an iterable of pairs, got str: put it into a list")
    # Returns `Any`: type checkers cannot tell a mapping from an iterable of its keys.
    return changes.items() if isinstance(changes, Mapping) else changes


def check_pool_is_used(rows: Iterable[Row | Refusal]) -> None:
    if not uses_pool(rows):
        raise ValueError("no account would use the pool: each names a change of its own; leave pool out")


def _error_of(refusal: Refusal, count: int = 1) -> FieldError:
    account = "" if refusal.account_id is None else f"{refusal.account_id}: "
    similar = f" ({count:,} changes)" if count > 1 else ""
    message = f"{account}{refusal}{similar}"
    error = FieldError(refusal.column, refusal.reason, refusal.advice)
    return error.of_account(refusal.account_id, message)


def _row_of(ordinal: int, pair: object, needs: PoolNeeds | None) -> Row | Refusal:
    if needs and isinstance(pair, str):
        pair = pair, None
    # Unpacking alone would accept a text of two characters, such as "US".
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        what = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else type(pair).__name__
        advice = f"give (account_id, change), not {what}"
        return Refusal(ordinal, None, None, None, "row not a pair", advice)
    account_id, change = pair
    valid_id = None
    try:
        valid_id = check_account_id(account_id)
        if needs is None or not (change is None or (needs.by and isinstance(change, str))):
            return Row(ordinal, None, account_id, as_change(change))
        fields = {needs.by: change} if needs.by and change else {}
        return Row(ordinal, None, account_id, None, needs.tag_of(fields), fields)
    except FieldError as error:
        return refusal_of(error, ordinal, None, valid_id)
