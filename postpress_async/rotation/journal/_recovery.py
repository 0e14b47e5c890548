"""
What the journal says about rows that were sent but not recorded, if the process dies at any moment.

The write-ahead watermark is the ordinal from which on the run has sent nothing. Accounts that an earlier run
had skipped may be sent again below it. So the transaction that advances the watermark sets those to unknown
and lists them in ``covered``. A run that ends normally sets the ones that it did not send back to skipped. If
the process dies, they stay unknown.
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
    has_table,
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
"""SQL condition for rows that were refused. A request that the API refused has the status of its response."""

_MAY_BE_SENT: Final = f"state = 'skipped' AND NOT {REFUSED} AND ordinal >= ? AND ordinal < ?"
COVER: Final = (
    f"INSERT OR IGNORE INTO covered SELECT ordinal FROM latest WHERE {_MAY_BE_SENT}",
    f"{UPDATE} state = 'unknown', applied = 'unknown' {OF_THIS_RUN} AND {_MAY_BE_SENT}",
)
"""Statements before the watermark advances from one ordinal to another."""

DISCARD_COVERED: Final = "DELETE FROM covered WHERE ordinal = ?"
"""The statement for an account that is unknown because it was sent."""

BEFORE_THE_RUN: Final = """(
    SELECT ordinal, account_id, attempts, assignment, settled_at,
        CASE WHEN state = 'unknown' AND covered.ordinal NOT NULL THEN 'skipped' ELSE state END AS state
    FROM latest LEFT JOIN covered USING (ordinal)
)"""
"""A subquery of the outcomes without the doubts that the present run itself has added."""

REOPEN_FAILED: Final = f"""
    {UPDATE} state = CASE applied WHEN 'unknown' THEN 'unknown' ELSE 'skipped' END
    {OF_THIS_RUN} AND state = 'failed'
"""
"""The statement after which failed accounts are sent again."""

_COVERED: Final = f"{OF_THIS_RUN} AND state = 'unknown' AND ordinal IN (SELECT ordinal FROM covered)"
# Such an account keeps the key that the dead run used.
_IN_DOUBT: Final = (
    f"{UPDATE} state = 'unknown', applied = 'unknown', attempts = 0 {OF_THIS_RUN} AND {_MAY_BE_SENT}"
)
_NEXT_GENERATION: Final = """
    INSERT OR REPLACE INTO generations
    SELECT ordinal, coalesce(generation, 0) + 1, key
    FROM latest LEFT JOIN generations USING (ordinal) WHERE {}
"""
# A run of version 1 did not record when it was resumed.
_LAST_ACTIVE: Final = f"""
    SELECT max(
        (SELECT coalesce(max(settled_at), 0) FROM latest WHERE attempts > 0),
        (SELECT value FROM run WHERE name = 'under way'),
        (SELECT coalesce(began, 0) FROM runs {_LATEST})
    )
"""
# Values: the time, for a run that sent nothing, and whether the run was stopped.
_END: Final = f"""
    UPDATE runs SET ended = (SELECT coalesce(max(settled_at), ?) FROM latest WHERE attempts > 0), state = CASE
        WHEN halted NOT NULL THEN 'halted'
        WHEN ? OR total > (SELECT count(*) FROM latest) THEN 'interrupted'
        ELSE 'complete' END
    {_LATEST}
"""

OnUnknown: TypeAlias = Literal["retry", "report"]
OnFailed: TypeAlias = Literal["report", "retry"]

# With "report", the operator decides about an account whose outcome is unknown.
DONE: Final[dict[OnUnknown, str]] = {
    "retry": "state IN ('patched', 'failed')",
    "report": "state IN ('patched', 'failed', 'unknown')",
}


def done_condition(on_unknown: OnUnknown, on_failed: OnFailed) -> str:
    """SQL condition for the accounts that a run would leave as they are, before it has begun."""
    if on_failed == "report":
        return DONE[on_unknown]
    # With "report" for unknown outcomes, that includes failed accounts that may have been changed.
    reopened = "state = 'failed'" if on_unknown == "retry" else "state = 'failed' AND applied = 'no'"
    return f"{DONE[on_unknown]} AND NOT ({reopened})"


def start_run(connection: sqlite3.Connection, keep: int | None) -> None:
    """
    Start a new run, within the caller's transaction. Of all runs, the latest *keep* are kept; None keeps all.

    It has a token of its own, so its idempotency keys differ from those of all earlier runs.
    """
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

    With *retry_failed*, accounts that failed are sent again. They get a new idempotency key, because the API
    would repeat its stored response for the old one. A failed account that an earlier run may have changed
    stays in doubt. It has a custom proxy: one with a managed proxy is not `failed` while in doubt.
    """
    with connection:
        had_table = has_table(connection, "covered")
        connection.execute("CREATE TABLE IF NOT EXISTS covered (ordinal INTEGER PRIMARY KEY)")
        run = read_run(connection)
        watermark, died = read_watermark(run), "under way" in run
        # An infinite watermark is not known, so every row without an outcome is in doubt.
        in_doubt_below = sent_below(run, died=died or watermark == math.inf)
        if died:
            [(last,)] = connection.execute(_LAST_ACTIVE)
            set_marks(connection, {"doubts": json.dumps([*read_doubts(run), (watermark, last)])})
            connection.execute(f"{UPDATE} settled_at = ? {_COVERED}", (last,))
        connection.execute("DELETE FROM covered")  # those of a run that died: they stay in doubt
        # Written by a version that had no such table, or the latest commits of the journal are lost.
        if died and (not had_table or watermark == math.inf):
            connection.execute(_IN_DOUBT, (0, in_doubt_below))
        # A key that got a response is used up, because the API may have stored that response. The next key is
        # on disk before the run sends anything, so an account in doubt after a crash has the new key.
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
    """Record the normal end of a run: every account that was sent has its outcome on disk."""
    with connection:
        connection.execute(f"{UPDATE} state = 'skipped', applied = 'no' {_COVERED}")
        connection.execute("DELETE FROM covered")
        connection.execute(_END, (time.time(), interrupted))
        counts = connection.execute("SELECT state, count(*), sum(attempts) FROM latest GROUP BY state")
        connection.execute(set_fact("counts"), (json.dumps(counts.fetchall()),))
        delete_marks(connection, "under way")


def may_have_sent(ask: Callable[[str], Iterable[Any]], run: Mapping[str, Any], *, died: bool) -> float:
    """Most accounts without an outcome that a run that died may have sent; infinite if not known."""
    if not (below := sent_below(run, died=died)):
        return 0
    sql = f"SELECT count(*) FILTER (WHERE ordinal < {min(below, sys.maxsize)}), count(*) FROM latest"
    [(known, recorded)] = ask(sql)
    # A blank row has an ordinal, and never an outcome.
    return float(max(0, min(below - known, _ordinal(run.get("total", math.inf)) - recorded)))


def sent_below(run: Mapping[str, Any], *, died: bool) -> float:
    """The ordinal below which a run that died may have sent rows without an outcome; 0 if none did."""
    below = _ordinal(run.get("doubtful", 0))
    return max(below, _ordinal(run.get("reached", math.inf))) if died else below


def _ordinal(value: object) -> float:
    return value if isinstance(value, int | float) and value >= 0 else math.inf


def read_doubts(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    """For each time that the latest run died: its watermark, and when it was last active (Unix time)."""
    return [(float(below), float(last)) for below, last in json.loads(run.get("doubts", "[]"))]


def read_watermark(run: Mapping[str, Any]) -> float:
    """The ordinal from which on the latest run has sent nothing; infinite if it is not known."""
    if not isinstance(watermark := run.get("reached", math.inf), int | float):
        raise ValueError("reached is not a number")  # handled as damage
    return watermark
