"""
Keeps the journal correct about rows that were sent but not recorded, whenever the process dies.

The run sends only rows with an ordinal below the write-ahead watermark. Some of them may be recorded as
skipped by an earlier start of the run, although they may now be sent. So the transaction that advances the
watermark sets such accounts to unknown and lists them in the table ``covered``. A run that ends normally sets
those that it did not send back to skipped. If the process dies, they stay unknown.
"""

import json
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from postpress_async.rotation.journal._database import (
    FIRST_WATERMARK,
    delete_marks,
    insert_run,
    read_run,
    set_fact,
    set_marks,
)
from postpress_async.rotation.journal._schema import CURRENT_RUN

UPDATE: Final = "UPDATE outcomes SET"
_LATEST: Final = f"WHERE id = {CURRENT_RUN}"
OF_THIS_RUN: Final = f"WHERE run = {CURRENT_RUN}"

REFUSED: Final = "(state = 'skipped' AND attempts = 0 AND scope IS 'request' AND status IS NULL)"
"""SQL condition for invalid input rows. An error response of the API would have a status."""

_MAY_BE_SENT: Final = f"state = 'skipped' AND NOT {REFUSED} AND ordinal >= ? AND ordinal < ?"
COVER: Final = (
    f"INSERT OR IGNORE INTO covered SELECT ordinal FROM latest WHERE {_MAY_BE_SENT}",
    f"{UPDATE} state = 'unknown', applied = 'unknown' {OF_THIS_RUN} AND {_MAY_BE_SENT}",
)
"""Statements that run before the watermark advances from one ordinal to another."""

DISCARD_COVERED: Final = "DELETE FROM covered WHERE ordinal = ?"
"""The statement for an unknown account that was sent: the end of the run must not set it to skipped."""

BEFORE_THE_RUN: Final = """(
    SELECT ordinal, account_id, attempts, assignment, settled_at,
        CASE WHEN state = 'unknown' AND covered.ordinal NOT NULL THEN 'skipped' ELSE state END AS state
    FROM latest LEFT JOIN covered USING (ordinal)
)"""
"""Subquery for the outcomes as they were before the present run: its ``covered`` accounts are skipped."""

REOPEN_FAILED: Final = f"""
    {UPDATE} state = CASE applied WHEN 'unknown' THEN 'unknown' ELSE 'skipped' END
    {OF_THIS_RUN} AND state = 'failed'
"""
"""The statement that makes the next run send failed accounts again."""

_COVERED: Final = f"{OF_THIS_RUN} AND state = 'unknown' AND ordinal IN (SELECT ordinal FROM covered)"
# As unknown, an account keeps the idempotency key that the dead run may have used. As skipped, it could get a
# new key (see `_NEXT_GENERATION`).
_IN_DOUBT: Final = (
    f"{UPDATE} state = 'unknown', applied = 'unknown', attempts = 0 {OF_THIS_RUN} AND {_MAY_BE_SENT}"
)
_NEXT_GENERATION: Final = """
    INSERT OR REPLACE INTO generations
    SELECT ordinal, coalesce(generation, 0) + 1, key
    FROM latest LEFT JOIN generations USING (ordinal) WHERE {}
"""
# Unix time of the last activity of a run that died: its last outcome, or its latest known start.
_LAST_ACTIVE: Final = f"""
    SELECT max(
        (SELECT coalesce(max(settled_at), 0) FROM latest WHERE attempts > 0),
        (SELECT value FROM run WHERE name = 'under way'),
        (SELECT coalesce(began, 0) FROM runs {_LATEST})
    )
"""
# Parameters: the present time, for a run that sent nothing, and whether the run was interrupted.
_END: Final = f"""
    UPDATE runs SET ended = (SELECT coalesce(max(settled_at), ?) FROM latest WHERE attempts > 0), state = CASE
        WHEN halted NOT NULL THEN 'halted'
        WHEN ? OR total > (SELECT count(*) FROM latest) THEN 'interrupted'
        ELSE 'complete' END
    {_LATEST}
"""

OnUnknown: TypeAlias = Literal["retry", "report"]
OnFailed: TypeAlias = Literal["report", "retry"]

# The condition for accounts that are not sent again, by `OnUnknown`.
DONE: Final[dict[OnUnknown, str]] = {
    "retry": "state IN ('patched', 'failed')",
    "report": "state IN ('patched', 'failed', 'unknown')",
}


def done_condition(on_unknown: OnUnknown, on_failed: OnFailed) -> str:
    """Return the SQL condition, before a run begins, for the accounts that it would not send."""
    if on_failed == "report":
        return DONE[on_unknown]
    # If unknown outcomes are only reported, so are failed accounts whose change may have been applied.
    reopened = "state = 'failed'" if on_unknown == "retry" else "state = 'failed' AND applied = 'no'"
    return f"{DONE[on_unknown]} AND NOT ({reopened})"


def start_run(connection: sqlite3.Connection, keep: int | None) -> None:
    """Insert a new run within the caller's transaction, and keep only the latest *keep* runs if not None."""
    insert_run(connection)
    connection.execute(
        "UPDATE runs SET (target, api_key) = "
        f"(SELECT target, api_key FROM runs WHERE id = {CURRENT_RUN} - 1) {_LATEST}"
    )
    for rows in ("generations", "changes", "proxies WHERE quarantined_at IS NULL"):
        connection.execute(f"DELETE FROM {rows}")
    connection.execute("UPDATE proxies SET failures = 0")
    delete_marks(connection, "doubts", "doubtful", "removed")
    if keep is not None:
        connection.execute(f"DELETE FROM outcomes WHERE run <= {CURRENT_RUN} - ?", (keep,))
        connection.execute(f"DELETE FROM runs WHERE id <= {CURRENT_RUN} - ?", (keep,))


def begin_run(connection: sqlite3.Connection, *, retry_failed: bool) -> float:
    """
    Record that a run is under way. Return the ordinal below which rows without an outcome may have been sent.

    If *retry_failed*, failed accounts are sent again under new idempotency keys, because the API would replay
    its stored error response for the old key. If an earlier attempt may have changed such an account, it
    stays in doubt. The new key is safe then: only an account with a custom proxy is `failed` while in doubt.
    """
    with connection:
        run = read_run(connection)
        watermark, died = read_watermark(run), "under way" in run
        # If the watermark is unknown (infinite), every row without an outcome is in doubt.
        in_doubt_below = sent_below(run, died=died or watermark == math.inf)
        if died:
            [(last,)] = connection.execute(_LAST_ACTIVE)
            set_marks(connection, {"doubts": json.dumps([*read_crashes(run), (watermark, last)])})
            connection.execute(f"{UPDATE} settled_at = ? {_COVERED}", (last,))
        connection.execute("DELETE FROM covered")  # so that accounts covered by a run that died stay unknown
        if died and watermark == math.inf:  # commits are lost, so skipped accounts may have been sent
            connection.execute(_IN_DOUBT, (0, in_doubt_below))
        # The API may have stored the response for a key, so an account that got a response needs a new key.
        # The new key is on disk before the run sends anything, so it is known if this run dies.
        connection.execute(_NEXT_GENERATION.format("state = 'skipped' AND attempts > 0"))
        if retry_failed:
            connection.execute(_NEXT_GENERATION.format("state = 'failed'"))
            connection.execute(REOPEN_FAILED)
        connection.execute(f"UPDATE runs SET state = 'running', counts = NULL {_LATEST}")
        marks = {"doubtful": in_doubt_below, "under way": time.time(), "reached": FIRST_WATERMARK}
        set_marks(connection, marks)
        for sql in COVER:
            connection.execute(sql, (0, FIRST_WATERMARK))
    return in_doubt_below


def end_run(connection: sqlite3.Connection, *, interrupted: bool) -> None:
    """Record the normal end of a run, after the outcomes of all accounts that were sent are on disk."""
    with connection:
        connection.execute(f"{UPDATE} state = 'skipped', applied = 'no' {_COVERED}")
        connection.execute("DELETE FROM covered")
        connection.execute(_END, (time.time(), interrupted))
        counts = connection.execute("SELECT state, count(*), sum(attempts) FROM latest GROUP BY state")
        connection.execute(set_fact("counts"), (json.dumps(counts.fetchall()),))
        delete_marks(connection, "under way")


def may_have_sent(ask: Callable[[str], Iterable[Any]], run: Mapping[str, Any], *, died: bool) -> float:
    """Return the most accounts without an outcome that a dead run may have sent; infinite if not known."""
    below = sent_below(run, died=died)
    if not below:
        return 0
    sql = f"SELECT count(*) FILTER (WHERE ordinal < {min(below, sys.maxsize)}), count(*) FROM latest"
    [(known, recorded)] = ask(sql)
    # The total bounds the number, because blank rows have an ordinal but never an outcome.
    return float(max(0, min(below - known, _ordinal(run.get("total", math.inf)) - recorded)))


def sent_below(run: Mapping[str, Any], *, died: bool) -> float:
    """Return the ordinal below which dead runs may have sent rows without an outcome; 0 if none died."""
    below = _ordinal(run.get("doubtful", 0))
    return max(below, _ordinal(run.get("reached", math.inf))) if died else below


def _ordinal(value: object) -> float:
    return value if isinstance(value, int | float) and value >= 0 else math.inf


def read_crashes(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    """For each time that the latest run died, return its watermark and its last activity (Unix time)."""
    return [(float(below), float(last)) for below, last in json.loads(run.get("doubts", "[]"))]


def read_watermark(run: Mapping[str, Any]) -> float:
    """Return the watermark of the latest run; infinite if it is not known."""
    watermark = run.get("reached", math.inf)
    if not isinstance(watermark, int | float):
        raise ValueError("reached is not a number")  # callers report it as damage
    return watermark
