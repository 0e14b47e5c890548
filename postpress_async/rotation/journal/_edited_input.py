"""
How an unfinished run continues after its input was edited.

If rows were only appended, only the total changes. After any other edit, each account is found by its id,
which occurs once in a fleet, and its outcome moves to the account's new ordinal. The run gets a new token:
idempotency keys contain the ordinal, so an old key could otherwise be used for another account. An account in
doubt keeps its old key.
"""

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from attrs import frozen

from postpress_async._fields import counted
from postpress_async.rotation._outcome import MANAGED
from postpress_async.rotation._pool import assignment_of
from postpress_async.rotation._row_digest import KnownInput, RowsDigest
from postpress_async.rotation._rows import Refusal
from postpress_async.rotation.journal._database import FIRST_WATERMARK, delete_marks, set_marks
from postpress_async.rotation.journal._recovery import OF_THIS_RUN, REFUSED, UPDATE, may_have_sent
from postpress_async.rotation.journal._schema import CURRENT_RUN

IN_INPUT: Final = "account_id IN (SELECT account_id FROM positions)"
"""SQL condition for the accounts in the edited input, after `compare`."""

USE_AGAIN: Final = "Use that input again to resume its run"

_POSITIONS: Final = """
CREATE TEMP TABLE positions (
    account_id TEXT PRIMARY KEY, ordinal INTEGER NOT NULL, line INTEGER, assignment TEXT
) WITHOUT ROWID
"""
_INVALID: Final = ""  # assignment of an invalid row; a row that gets a proxy of a pool has NULL
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
An account whose edited row asks for another change than the one that was, or may have been, applied.

The journal stores neither passwords nor protocols, so it cannot compare those. For an account in doubt, it
may not know the assignment. Then a custom proxy is no conflict, because setting it again does no harm, but a
managed proxy is, because the API could hand out a second one.
"""
_FIRST_MOVED: Final = f"""
    SELECT latest.ordinal, account_id FROM latest LEFT JOIN positions USING (account_id)
    WHERE latest.ordinal IS NOT positions.ordinal AND NOT {REFUSED} ORDER BY latest.ordinal LIMIT 1
"""

# Outcomes of changes that were or may have been applied stay, even if the account is no longer in the input.
_DELETE_OUTCOMES: Final = f"""
    DELETE FROM outcomes {OF_THIS_RUN} AND (state = 'skipped' AND attempts = 0
        OR state != 'patched' AND NOT {_IN_DOUBT} AND NOT {IN_INPUT})
"""
# The new token would change the keys of accounts in doubt, so store the prefix of their present keys.
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
# In two steps, through negative ordinals, because the new ordinal may still belong to another account.
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
    end: int  # ordinal of the last row, plus 1
    appended_at: int | None = None
    """Ordinal of the first new row if rows were only appended. Otherwise None, and the temporary table
    ``positions`` has the accounts of the edited input."""
    obstacle: str | None = None  # why the run cannot continue with it; None if it can


def compare(
    connection: sqlite3.Connection,
    run: Mapping[str, Any],
    rows: KnownInput,
    recorded: int,
    is_recorded: Callable[[bytes], bool],
) -> Edit:
    """Compare *rows* with the *recorded* number of earlier rows; *is_recorded* recognizes their digest."""
    unread, digest = iter(rows.rows()), RowsDigest()
    for row in islice(unread, recorded):
        digest.add(row)
    first = next(unread, None)
    if first is not None and is_recorded(digest.digest()):  # rows were only appended
        count, end = recorded + 1, first.ordinal + 1
        for row in unread:
            count, end = count + 1, row.ordinal + 1
        return Edit(f"{counted(count - recorded, 'row')} more", count, end, first.ordinal)
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
    connection.execute("SAVEPOINT positions")  # one transaction for all rows
    connection.executemany("INSERT OR IGNORE INTO positions VALUES (?, ?, ?, ?)", positions())
    connection.execute("RELEASE positions")
    return Edit(_facts(connection, count - recorded), count, end, obstacle=_obstacle(connection, run))


def apply_edit(connection: sqlite3.Connection, edit: Edit, run: Mapping[str, Any]) -> None:
    """Make the latest run continue with the edited input, within the caller's transaction."""
    connection.execute(_MOVES)
    if edit.appended_at is not None:
        # The watermark may be above the last recorded row, but no run has sent the new rows.
        sql = "UPDATE run SET value = min(value, ?) WHERE name IN ('reached', 'doubtful')"
        connection.execute(sql, (edit.appended_at,))
        if "removed" in run:
            connection.execute(_MOVE_BACK, (run["removed"], edit.end))
    else:
        connection.execute(_DELETE_OUTCOMES)
        for sql in _KEEP_KEYS:
            connection.execute(sql)
        connection.execute(_MOVE_TO_POSITIONS, (edit.end,))
        connection.execute("DROP TABLE positions")
        connection.execute(f"UPDATE runs SET token = ? WHERE id = {CURRENT_RUN}", (secrets.token_hex(12),))
        # These marks are about rows without an outcome; `_obstacle` has checked that none may have been sent.
        delete_marks(connection, "under way", "doubtful", "doubts")
        set_marks(connection, {"reached": FIRST_WATERMARK})
    for sql in _MOVE:
        connection.execute(sql)
    set_marks(connection, {"removed": edit.end})
    total = f"? + (SELECT count(*) FROM latest WHERE ordinal >= ?) WHERE id = {CURRENT_RUN}"
    connection.execute(f"UPDATE runs SET total = {total}", (edit.rows, edit.end))


def _facts(connection: sqlite3.Connection, more: int) -> str:
    """Describe the difference; *more* is the number of rows minus the number of recorded rows."""
    [(removed,)] = connection.execute(f"SELECT count(*) FROM latest WHERE NOT {REFUSED} AND NOT {IN_INPUT}")
    removed = max(removed, -more)  # accounts without an outcome may have been removed, too
    facts = []
    for ordinal, account_id in connection.execute(_FIRST_MOVED):
        sql = "SELECT account_id FROM positions WHERE ordinal = ?"
        present = connection.execute(sql, (ordinal,)).fetchone()
        account = f"another account: {present[0]} instead of" if present else "not"
        facts.append(f"row {ordinal + 1} is {account} {account_id}")
    if removed:
        facts.append(f"{counted(removed, 'account')} removed")
    if more + removed:
        facts.append(f"{counted(more + removed, 'row')} more")
    return "; ".join(facts or ["a row has another change, or another account that no run has reached"])


def _obstacle(connection: sqlite3.Connection, run: Mapping[str, Any]) -> str | None:
    died = "under way" in run or "reached" not in run
    if may_have_sent(connection.execute, run, died=died):
        return (
            "A run that was killed may have sent accounts that it did not record: use that input again first "
            "(rows may be appended)"
        )
    # The hashes belong to positions that would change, and an iterable may contain an account twice.
    if connection.execute("SELECT 1 FROM changes LIMIT 1").fetchone():
        return USE_AGAIN
    for (account_id,) in connection.execute(_CONFLICT):
        return (
            f"{account_id} asks for another change than the one that was, or may have been, applied to it: "
            "use its old row again to resume the run"
        )
    return None
