"""What a journal remembers of its input and its pool, so that no run goes on with others."""

import hashlib
import secrets
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from postpress_async.errors import JournalError
from postpress_async.rotation._row_digest import KnownInput

NO_POOL: Final = b""
"""The digest of no pool."""


def check_input(
    place: Path,
    connection: sqlite3.Connection,
    digest: bytes | None,
    target: str | None,
    rows: KnownInput | None = None,
    *,
    by_row: bool = False,
) -> bool:
    """
    Refuse an input, and a target, other than those that the journal was begun with.

    Returns:
        Whether the journal was begun with the rows of this input before.
    """
    told = dict(connection.execute("SELECT name, value FROM run"))
    refuse_other(place, connection, told, digest, target, rows, by_row=by_row)
    new: list[tuple[str, Any]] = []
    if target is not None:
        new.append(("target", target))
    if digest is not None and "input" not in told:
        salt = told.get("salt", secrets.token_bytes(16))
        new += [("salt", salt), ("input", _stretched(digest, salt))]
        if rows is not None:
            new += [("rows", _stretched(rows.rows_digest, salt)), ("total", rows.counted)]
    with connection:
        connection.executemany("INSERT OR IGNORE INTO run VALUES (?, ?)", new)
    return "input" in told and digest is not None


def refuse_other(
    place: Path,
    connection: sqlite3.Connection,
    told: Mapping[str, Any],
    digest: bytes | None,
    target: str | None,
    rows: KnownInput | None = None,
    *,
    by_row: bool = False,
) -> None:
    """Raise `JournalError` if the table ``run``, of which *told* is all, tells of another target or input."""
    if target is not None and told.get("target", target) != target:
        raise JournalError(
            f"{place} was begun for {told['target']}, not for {target}: name another journal, or what was "
            "settled there would be left out here"
        )
    if "input" not in told or (digest is not None and is_input(told, digest)):
        return
    if "rows" in told and rows is not None:
        if told["rows"] == _stretched(rows.rows_digest, told["salt"]):
            return
    elif "rows" in told and by_row:
        raise JournalError(
            f"{place} was begun with a file, a query or a frame, and an iterable that is read only once "
            "cannot be compared with it. Nothing was sent. Give back that input, or name another journal"
        )
    elif digest is None:
        return
    facts = [] if rows is None else _differences(connection, told, rows)
    difference = f" ({'; '.join(facts)})" if facts else ""
    raise JournalError(
        f"{place} was begun with another input{difference}. Nothing was sent. Give back that input to go on "
        "with it, or name another journal to start a new run"
    )


def is_input(told: Mapping[str, Any], digest: bytes) -> bool:
    """Whether the input with this *digest* is the one that the journal's table ``run`` tells of."""
    return "input" in told and bool(told["input"] == _stretched(digest, told["salt"]))


def _differences(connection: sqlite3.Connection, told: Mapping[str, Any], rows: KnownInput) -> list[str]:
    """What is another in the input, as far as the journal knows its rows."""
    facts, total = list[str](), 0
    entries = connection.execute("SELECT ordinal, account_id FROM outcomes ORDER BY ordinal")
    entry = next(entries, None)
    for row in rows.rows():
        total += 1
        while entry is not None and entry[0] < row.ordinal:
            entry = next(entries, None)
        if not facts and entry is not None and entry[0] == row.ordinal and entry[1] != (row.account_id or ""):
            now = row.account_id or "one without a valid id"
            facts.append(f"row {row.ordinal + 1} is another account: {now} instead of {entry[1]}")
    was = told.get("total")
    if type(was) is int and was != total:
        number = abs(total - was)
        facts.append(f"{number:,} {'row' if number == 1 else 'rows'} {'more' if total > was else 'fewer'}")
    return facts or ["a row has another change, or another account that no run has come to"]


@frozen
class Completion:
    """
    That nothing is left to be sent.

    Attributes:
        at: Unix time of the last outcome.
        unknown: Accounts whose outcome is unknown, and which this run does not send.
    """

    at: float
    unknown: int = 0


def completion(connection: sqlite3.Connection, done: str, total: int | None) -> Completion | None:
    """
    Whether all accounts are done, or their rows were refused.

    Args:
        connection: The journal's database, before a run has begun to write.
        done: In SQL, which accounts are done.
        total: How many rows the input has; None for what the journal knows.
    """
    if total is None:
        found = connection.execute("SELECT value FROM run WHERE name = 'total'").fetchone()
        total = None if found is None else found[0]
    counts = "count(*), max(settled_at), total(state = 'unknown')"
    sql = f"SELECT {counts} FROM outcomes WHERE {done} OR {_REFUSED}"  # noqa: S608
    [(count, last, unknown)] = connection.execute(sql)
    if not isinstance(total, int) or not 0 < total <= count:
        return None
    return Completion(float(last), int(unknown))


_REFUSED: Final = "(state = 'skipped' AND attempts = 0 AND scope IS 'request' AND status IS NULL)"


def check_pool(
    place: Path, connection: sqlite3.Connection, pool: bytes, *, completed: Completion | None
) -> None:
    """
    Remember which pool the run has.

    Raises:
        JournalError: Nothing is left to be sent, and the last run had another pool.
    """
    with connection:
        salt = ("salt", secrets.token_bytes(16))
        connection.execute("INSERT OR IGNORE INTO run VALUES (?, ?)", salt)
        told = dict(connection.execute("SELECT name, value FROM run"))
        digest = _of_pool(pool, told["salt"])
        if told.get("pool", digest) != digest:
            refuse_if_complete(place, completed)
        connection.execute("INSERT OR REPLACE INTO run VALUES ('pool', ?)", (digest,))


def refuse_other_pool(
    place: Path, told: Mapping[str, Any], pool: bytes, completed: Completion | None
) -> None:
    """Raise what `check_pool` does, of a journal that is only read."""
    if "pool" in told and told["pool"] != _of_pool(pool, told["salt"]):
        refuse_if_complete(place, completed)


def refuse_if_complete(place: Path, completed: Completion | None) -> None:
    """Raise `JournalError` if nothing is left to be sent. An account in doubt is left to be looked at."""
    if completed is not None and not completed.unknown:
        raise JournalError(
            f"{place} is of a rotation that is complete, and that had another pool (or --country). Nothing "
            "was sent. To rotate these accounts again, name another journal"
        )


def _of_pool(pool: bytes, salt: bytes) -> bytes:
    return NO_POOL if pool == NO_POOL else _stretched(pool, salt)


def _stretched(digest: bytes, salt: bytes) -> bytes:
    # The input has passwords in it, and a file of one row could be guessed: 50 ms a guess, and no table.
    return hashlib.scrypt(digest, salt=salt, n=2**14, r=8, p=1, dklen=32)
