"""
What the watermark says of accounts that an earlier run had skipped: that the present run may send them.

The table must be true at any moment at which the process can die. So the transaction that advances the
watermark turns the skipped accounts below it into unknown ones, and notes which. If the run ends well, those
that it did not send are skipped again; if it dies, they stay unknown.
"""

import sqlite3
from typing import Final

TABLE: Final = "CREATE TABLE IF NOT EXISTS covered (ordinal INTEGER PRIMARY KEY)"

# A row that was refused is not sent. One whose request was refused has the status of the answer.
MAY_BE_SENT: Final = (
    "state = 'skipped' AND NOT (attempts = 0 AND scope IS 'request' AND status IS NULL) "
    "AND ordinal >= ? AND ordinal < ?"
)
COVER: Final = (
    f"INSERT OR IGNORE INTO covered SELECT ordinal FROM outcomes WHERE {MAY_BE_SENT}",  # noqa: S608
    f"UPDATE outcomes SET state = 'unknown', applied = 'unknown' WHERE {MAY_BE_SENT}",  # noqa: S608
)
"""For the ordinals from one up to another."""

_SKIPPED_AGAIN: Final = """
UPDATE outcomes SET state = 'skipped', applied = 'no'
WHERE state = 'unknown' AND ordinal IN (SELECT ordinal FROM covered)
"""
UNCOVER: Final = (_SKIPPED_AGAIN, "DELETE FROM covered")
"""For a run that ended well."""

SETTLED: Final = "DELETE FROM covered WHERE ordinal = ?"
"""For an account that is unknown because it was sent."""

BEFORE_THE_RUN: Final = """(
    SELECT ordinal, account_id, attempts, proxy,
        CASE WHEN state = 'unknown' AND covered.ordinal NOT NULL THEN 'skipped' ELSE state END AS state
    FROM outcomes LEFT JOIN covered USING (ordinal)
)"""
"""Outcomes without the doubts that the present run itself has brought."""


def make(connection: sqlite3.Connection) -> bool:
    """Begin with nothing covered; whether the runs before this one covered what they might send."""
    sql = "SELECT 1 FROM sqlite_master WHERE name = 'covered'"
    had_it = connection.execute(sql).fetchone() is not None
    connection.execute(TABLE)
    connection.execute("DELETE FROM covered")  # of a run that died: now these are in doubt
    return had_it
