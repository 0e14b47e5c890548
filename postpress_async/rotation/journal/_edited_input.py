"""
How an unfinished run continues with an input that was edited.

For appended rows, only the total changes. After any other edit, each account is found by its id, since a
fleet names it once, and its outcome moves to the account's new position. The run gets a new token, so that no
idempotency key of a position is used for another account. An account in doubt keeps its old key.
"""

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from attrs import frozen

from postpress_async.rotation._outcome import MANAGED
from postpress_async.rotation._pool import assignment_of
from postpress_async.rotation._row_digest import KnownInput, RowsDigest
from postpress_async.rotation._rows import Refusal
from postpress_async.rotation.journal._database import FIRST_WATERMARK, delete_marks, has_table, set_marks
from postpress_async.rotation.journal._recovery import OF_THIS_RUN, REFUSED, UPDATE, may_have_sent
from postpress_async.rotation.journal._schema import CURRENT_RUN

IN_INPUT: Final = "account_id IN (SELECT account_id FROM positions)"
"""SQL condition for the accounts of an edited input that was compared."""

USE_AGAIN: Final = "Use that input again to resume its run"

_POSITIONS: Final = """
CREATE TEMP TABLE positions (
    account_id TEXT PRIMARY KEY, ordinal INTEGER NOT NULL, line INTEGER, assignment TEXT
) WITHOUT ROWID
"""
_INVALID: Final = ""  # the assignment of a refused row; that of a row for a pool is NULL
_MANAGED: Final = f"LIKE '{MANAGED}%'"
_IN_DOUBT: Final = "(state = 'unknown' OR applied IS 'unknown')"
_CONFLICT: Final = f"""
    SELECT account_id FROM latest JOIN positions USING (account_id)
    WHERE ({_IN_DOUBT} OR state = 'patched') AND CASE
        WHEN positions.assignment = '{_INVALID}' THEN {_IN_DOUBT}
        WHEN positions.assignment IS NULL THEN latest.assignment {_MANAGED}
        WHEN latest.assignment IS NULL THEN {_IN_DOUBT} AND positions.assignment {_MANAGED}
        ELSE positions.assignment != latest.assignment END
    LIMIT 1
"""
"""
An account to which another change was, or may have been, applied, as far as the journal knows. It has neither
passwords nor protocols. It may lack the change of an account in doubt: then a custom proxy can be set again,
but a managed one could be ordered twice.
"""
_FIRST_MOVED: Final = f"""
    SELECT latest.ordinal, account_id FROM latest LEFT JOIN positions USING (account_id)
    WHERE latest.ordinal IS NOT positions.ordinal AND NOT {REFUSED} ORDER BY latest.ordinal LIMIT 1
"""

# Whether it is in the input or not, an account keeps an outcome that says what was or may have been applied.
_FORGET: Final = f"""
    DELETE FROM outcomes {OF_THIS_RUN} AND (state = 'skipped' AND attempts = 0
        OR state != 'patched' AND NOT {_IN_DOUBT} AND NOT {IN_INPUT})
"""
_KEEP_KEYS: Final = (
    f"DELETE FROM generations WHERE ordinal NOT IN (SELECT ordinal FROM latest WHERE {_IN_DOUBT})",
    f"INSERT OR IGNORE INTO generations SELECT ordinal, 0, NULL FROM latest WHERE {_IN_DOUBT}",
    f"""UPDATE generations SET key = coalesce(
        key, printf('%s-%x', (SELECT token FROM runs WHERE id = {CURRENT_RUN}), ordinal))""",
)
_MOVES: Final = "CREATE TEMP TABLE moves (old INTEGER PRIMARY KEY, new INTEGER NOT NULL, line INTEGER)"
_MOVE_TO_POSITIONS: Final = """
    INSERT INTO moves SELECT latest.ordinal, coalesce(positions.ordinal, ? - 1 + row_number() OVER (
        PARTITION BY positions.ordinal IS NULL ORDER BY latest.ordinal)), positions.line
    FROM latest LEFT JOIN positions USING (account_id)
"""
_MOVE_BACK: Final = (
    "INSERT INTO moves SELECT ordinal, ordinal - ?1 + ?2, NULL FROM latest WHERE ordinal >= ?1"
)
# By way of negative ordinals: the new one may be taken by an account that moves later.
_MOVE: Final = (
    f"""{UPDATE} (ordinal, line) = (SELECT -1 - new, moves.line FROM moves WHERE old = ordinal)
    {OF_THIS_RUN} AND ordinal IN (SELECT old FROM moves)""",
    f"{UPDATE} ordinal = -1 - ordinal {OF_THIS_RUN} AND ordinal < 0",
    """UPDATE generations SET ordinal = (SELECT -1 - new FROM moves WHERE old = ordinal)
    WHERE ordinal IN (SELECT old FROM moves)""",
    "UPDATE generations SET ordinal = -1 - ordinal WHERE ordinal < 0",
    "DROP TABLE moves",
)


@frozen
class Edit:
    """How an input differs from the one that the latest run has recorded."""

    facts: str  # what differs, in words
    rows: int  # number of rows
    end: int  # the ordinal after that of the last row
    appended_at: int | None = None
    """Ordinal of the first new row, if the recorded rows come first and in their order; otherwise None, and
    the temporary table ``positions`` has the accounts."""
    obstacle: str | None = None  # why the run cannot continue with it; None if it can


def compare(
    connection: sqlite3.Connection,
    run: Mapping[str, Any],
    rows: KnownInput,
    recorded: int,
    is_recorded: Callable[[bytes], bool],
) -> Edit:
    """Compare *rows* with the *recorded* number of earlier ones, whose digest *is_recorded* knows."""
    unread, digest = iter(rows.rows()), RowsDigest()
    for row in islice(unread, recorded):
        digest.add(row)
    if (first := next(unread, None)) is not None and is_recorded(digest.digest()):
        count, end = recorded + 1, first.ordinal + 1
        for row in unread:
            count, end = count + 1, row.ordinal + 1
        return Edit(number_of(count - recorded, "row", "more"), count, end, first.ordinal)
    count = end = 0

    def positions() -> Iterator[tuple[str, int, int | None, str | None]]:
        nonlocal count, end
        for row in rows.rows():
            count, end = count + 1, row.ordinal + 1
            if not isinstance(row, Refusal):
                assignment = None if row.change is None else assignment_of(row.change)
                yield row.account_id, row.ordinal, row.line, assignment
            elif row.account_id is not None and row.first_line is None:
                yield row.account_id, row.ordinal, row.line, _INVALID

    connection.execute(_POSITIONS)
    connection.execute("SAVEPOINT positions")  # not a transaction for each row
    connection.executemany("INSERT OR IGNORE INTO positions VALUES (?, ?, ?, ?)", positions())
    connection.execute("RELEASE positions")
    return Edit(_facts(connection, count - recorded), count, end, obstacle=_obstacle(connection, run))


def take(connection: sqlite3.Connection, edit: Edit, run: Mapping[str, Any]) -> None:
    """Have the latest run continue with the edited input, within the caller's transaction."""
    connection.execute(_MOVES)
    if edit.appended_at is not None:
        # The watermark may be beyond the last row of the input as it was, but no run has sent the new rows.
        sql = "UPDATE run SET value = min(value, ?) WHERE name IN ('reached', 'doubtful')"
        connection.execute(sql, (edit.appended_at,))
        if "removed" in run:
            connection.execute(_MOVE_BACK, (run["removed"], edit.end))
    else:
        connection.execute(_FORGET)
        for sql in _KEEP_KEYS:
            connection.execute(sql)
        connection.execute(_MOVE_TO_POSITIONS, (edit.end,))
        connection.execute("DROP TABLE positions")
        connection.execute(f"UPDATE runs SET token = ? WHERE id = {CURRENT_RUN}", (secrets.token_hex(12),))
        # Every account that was, or may have been, sent has an outcome.
        delete_marks(connection, "under way", "doubtful", "doubts")
        set_marks(connection, {"reached": FIRST_WATERMARK})
    for sql in _MOVE:
        connection.execute(sql)
    set_marks(connection, {"removed": edit.end})
    total = f"? + (SELECT count(*) FROM latest WHERE ordinal >= ?) WHERE id = {CURRENT_RUN}"
    connection.execute(f"UPDATE runs SET total = {total}", (edit.rows, edit.end))


def _facts(connection: sqlite3.Connection, more: int) -> str:
    """What differs in words; *more* is the number of rows in addition to those recorded."""
    [(removed,)] = connection.execute(f"SELECT count(*) FROM latest WHERE NOT {REFUSED} AND NOT {IN_INPUT}")
    removed = max(removed, -more)  # accounts without an outcome may be removed, too
    facts = []
    for ordinal, account_id in connection.execute(_FIRST_MOVED):
        sql = "SELECT account_id FROM positions WHERE ordinal = ?"
        present = connection.execute(sql, (ordinal,)).fetchone()
        account = f"another account: {present[0]} instead of" if present else "not"
        facts.append(f"row {ordinal + 1} is {account} {account_id}")
    if removed:
        facts.append(number_of(removed, "account", "removed"))
    if more + removed:
        facts.append(number_of(more + removed, "row", "more"))
    return "; ".join(facts or ["a row has another change, or another account that no run has come to"])


def _obstacle(connection: sqlite3.Connection, run: Mapping[str, Any]) -> str | None:
    died = "under way" in run or "reached" not in run
    is_old = died and not has_table(connection, "covered")  # it may have sent accounts that it had skipped
    if is_old or may_have_sent(connection.execute, run, died=died):
        return (
            "A run that was killed may have sent accounts that it did not record: use that input again first "
            "(rows may be appended)"
        )
    # Each row would have to be hashed at its new position, and pairs can name an account twice.
    if has_table(connection, "changes") and connection.execute("SELECT 1 FROM changes LIMIT 1").fetchone():
        return USE_AGAIN
    for (account_id,) in connection.execute(_CONFLICT):
        return (
            f"{account_id} asks for another change than the one that was, or may have been, applied to it: "
            "use its old row again to resume the run"
        )
    return None


def number_of(count: int, noun: str, what: str) -> str:
    """Such as ``1 row more`` and ``3 rows more``."""
    return f"{count:,} {noun if count == 1 else noun + 's'} {what}"
