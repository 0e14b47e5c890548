"""Compares a run's target, API key, input and pool with those that the journal has recorded."""

import hashlib
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from postpress_async._fields import counted
from postpress_async.errors import JournalError
from postpress_async.rotation._row_digest import KnownInput
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal._database import read_run
from postpress_async.rotation.journal._edited_input import IN_INPUT, USE_AGAIN, Edit, compare
from postpress_async.rotation.journal._recovery import REFUSED, OnFailed, OnUnknown, done_condition
from postpress_async.secret import Secret

COMPLETE: Final = "complete"  # the state of a run that reached its last account
_HOW_TO_START: Final = "To rotate all accounts again, add --every 0s (in Python, every=0)"


@frozen(kw_only=True)
class RunRequest:
    """
    What a run asks of its journal.

    If the digest, rows, target, API key or pool is None, it is not compared with earlier runs.
    """

    digest: bytes | None = None  # digest of the input's bytes
    rows: KnownInput | None = None  # an input that can be read again; compared if the bytes differ
    by_row: bool = False  # whether the caller compares rows one by one, with `RowHashes`
    total: int | None = None  # rows in the input, if known
    target: str | None = None  # where requests are sent
    api_key: Secret | None = None  # only a slow hash of the key is stored
    accept_new_key: bool = False  # whether the key may differ from the key of earlier runs
    pool: bytes | None = None
    """Digest of the pool; empty if there is no pool. Once all accounts are done, it must not change unless
    failed accounts are sent again."""
    selection: Selection | None = None  # the accounts of the run; None for all
    every: float | None = None
    """Seconds from the start of the latest complete run until a new run starts; None to start none."""
    keep: int | None = None  # number of runs to keep when a new one starts, at least 1; None for all
    on_unknown: OnUnknown = "retry"  # "retry": send accounts in doubt again; "report": only report them
    on_failed: OnFailed = "report"  # "retry": send failed accounts again, under new keys


@frozen(kw_only=True)
class InputCheck:
    """The result of `check`."""

    starts_run: bool = False  # whether a new run is due; otherwise the latest one is resumed
    next_run_at: float | None = None
    """Unix time at which the next run is due, if the latest one is complete and no run is due yet. Then
    nothing may be sent, because the input was not compared. Otherwise None."""
    completed_at: float | None = None  # Unix time of the last outcome if nothing is left to send
    same_input: bool = False  # whether the journal has recorded the rows of this input
    same_key: bool = True  # whether earlier runs had this API key; True if not known
    facts: Mapping[str, Any]  # columns of ``runs`` to write
    edit: Edit | None = None  # how the input differs from the recorded one; None if it does not
    difference: str | None = None  # the same in words; only appended rows if these are compared one by one
    of_input: str = "true"  # SQL condition for the outcomes whose accounts are in the input


def check(path: Path, connection: sqlite3.Connection, request: RunRequest) -> InputCheck:
    """Compare *request* with the journal at *path*; raise `JournalError` if the run must not start."""
    run = read_run(connection)
    if not {"key", "salt"} <= run.keys():
        raise ValueError("it has no key or no salt")  # callers report it as damage
    salt = run["salt"]
    facts, same_key = _check_sender(path, connection, run, salt, request)
    selection, every = request.selection, request.every
    done = f"({done_condition(request.on_unknown, request.on_failed)} OR {REFUSED}) AND {of_input(run)}"
    sql = f"SELECT count(*), max(settled_at) FROM latest WHERE {done}"
    [(done_count, last_outcome_at)] = connection.execute(sql)
    recorded = recorded_rows(connection.execute, run)
    # Number of accounts that the latest run still has to send.
    remaining = max(recorded - done_count, 0) if recorded else None
    is_complete = run["state"] == COMPLETE or remaining == 0
    _check_selection(path, run, selection, every, is_complete=is_complete)
    # Only runs of all accounts count for *every*.
    sql = "SELECT coalesce(max(began), 0) FROM runs WHERE selection IS NULL"
    [(began,)] = connection.execute(sql)
    next_run_at = began + (every or 0)
    is_due = every is not None and next_run_at <= time.time()
    # The result if the latest run is complete and no other is due.
    sends_nothing = InputCheck(
        next_run_at=next_run_at,
        completed_at=last_outcome_at or run.get("ended", began),
        facts=dict(facts),  # without the facts that are added below
    )
    if selection is not None:
        starts_run = not resumes(connection.execute, run, selection.text)
        if selection.run != run["id"] + starts_run:
            # Another run ended after the accounts of the selection were read.
            raise JournalError(f"{path} was written meanwhile. Nothing was sent: run the same command again")
        facts["selection"] = selection.text
    else:
        starts_run = is_due and is_complete
        # A complete run of a selection is not resumed by a run of all accounts.
        if every is not None and not starts_run and (remaining == 0 or "selection" in run):
            return sends_nothing
    if starts_run:  # compare nothing with the latest run
        run, remaining, recorded = {"salt": run.get("salt")}, None, None
    try:
        edit = _check_rows(path, connection, run, recorded, request)
    except JournalError as error:
        if not is_complete:
            raise
        if every is not None:
            return sends_nothing
        raise JournalError(f"{error}. {_HOW_TO_START}") from None
    difference = None if edit is None else edit.facts
    if request.by_row and request.total is not None and recorded is not None and request.total > recorded:
        difference = f"{counted(request.total - recorded, 'row')} more"
    is_done = remaining == 0 and difference is None
    if request.digest is not None:
        facts["input"] = _stretch(request.digest, salt)  # may be new although the rows are the same
        if request.rows is not None and ("input" not in run or edit is not None):
            facts["rows"] = _stretch(request.rows.rows_digest, salt)
            total = run.get("total", request.rows.counted)
            if edit is None and total is not None:
                facts["total"] = total
    if request.pool is not None and request.on_failed == "report":
        facts["pool"] = request.pool and _stretch(request.pool, salt)
        # If accounts are in doubt, the operator may need another pool for them.
        in_doubt = connection.execute("SELECT 1 FROM latest WHERE state = 'unknown' LIMIT 1").fetchone()
        if is_done and run.get("pool", facts["pool"]) != facts["pool"] and in_doubt is None:
            raise JournalError(
                f"{path} has a complete run, which used another pool (or --country). "
                f"Nothing was sent. {_HOW_TO_START}"
            )
    return InputCheck(
        same_input="input" in run and request.digest is not None,
        completed_at=last_outcome_at if is_done else None,
        starts_run=starts_run,
        same_key=same_key,
        facts=facts,
        edit=edit,
        difference=difference,
        of_input=IN_INPUT if edit is not None and edit.appended_at is None else of_input(run),
    )


def _check_sender(
    path: Path, connection: sqlite3.Connection, run: Mapping[str, Any], salt: bytes, request: RunRequest
) -> tuple[dict[str, Any], bool]:
    """Return the columns for the target and the API key, and whether earlier runs had the same key."""
    target = request.target
    if target is not None and run.get("target", target) != target:
        raise JournalError(
            f"{path} belongs to a rotation for {run['target']}, not for {target}. Nothing was sent. Name "
            "another journal, because this one would skip accounts that are done there"
        )
    facts: dict[str, Any] = {} if target is None else {"target": target}
    if request.api_key is None:
        return facts, True
    facts["api_key"] = _stretch(hashlib.sha256(request.api_key.reveal().encode()).digest(), salt)
    is_other = run.get("api_key", facts["api_key"]) != facts["api_key"]
    # If no account was patched, the recorded key may have been a wrong one.
    has_patched = "SELECT 1 FROM outcomes WHERE state = 'patched' LIMIT 1"
    if is_other and not request.accept_new_key and connection.execute(has_patched).fetchone():
        raise JournalError(
            f"{path} belongs to another API key, perhaps of another workspace. Nothing was sent. Use "
            "that key, or name another journal. If the key was replaced by a new one of the same "
            "workspace, add --accept-new-key once (in Python, accept_new_key=True)"
        )
    return facts, run.get("api_key") == facts["api_key"]


def resumes(ask: Callable[[str], Iterable[Any]], run: Mapping[str, Any], selection: str) -> bool:
    """Whether a run of *selection* resumes the latest *run*; otherwise it starts a new one."""
    if run.get("selection") != selection:
        return False
    # Even a complete run is resumed for accounts in doubt, which must keep their keys, and for skipped ones.
    sql = f"SELECT count(*), total(state IN ('unknown', 'skipped') AND NOT {REFUSED}) FROM latest"
    [(recorded, unfinished)] = ask(sql)
    return bool(unfinished or (run["state"] != COMPLETE and recorded < run.get("total", math.inf)))


def _check_selection(
    path: Path, run: Mapping[str, Any], selection: Selection | None, every: float | None, *, is_complete: bool
) -> None:
    recorded = run.get("selection")
    if recorded == (None if selection is None else selection.text):
        return
    accounts = recorded or "all accounts"
    again = f"`{run['command']}`" if "command" in run else "the rotation"
    if not is_complete:
        raise JournalError(
            f"{path} has an unfinished run ({accounts}). Nothing was sent. Finish that run first: start "
            f"{again} again, and then this one"
        )
    if selection is None and every is None:
        raise JournalError(
            f"the latest run in {path} is complete, but covered only some accounts ({accounts}). "
            f"Nothing was sent. {_HOW_TO_START}. To send its failed accounts again, start {again} again"
        )


def is_input(run: Mapping[str, Any], digest: bytes, fact: str = "input") -> bool:
    """Whether the run has recorded this *digest* of an input's bytes, or of its rows if *fact* is "rows"."""
    return fact in run and bool(run[fact] == _stretch(digest, run.get("salt", b"")))


def of_input(run: Mapping[str, Any]) -> str:
    """Return the SQL condition for outcomes whose accounts were not removed from the recorded input."""
    return f"ordinal < {run.get('removed', sys.maxsize):d}"


def recorded_rows(ask: Callable[[str], Iterable[Any]], run: Mapping[str, Any]) -> int | None:
    """Return the number of rows in the recorded input; None if not known."""
    if type(total := run.get("total")) is not int:
        return None
    [(removed,)] = ask(f"SELECT count(*) FROM latest WHERE NOT {of_input(run)}")
    return total - int(removed)


def _check_rows(
    path: Path,
    connection: sqlite3.Connection,
    run: Mapping[str, Any],
    recorded: int | None,
    request: RunRequest,
) -> Edit | None:
    """Return how the input differs from the recorded one; raise an error if the run cannot use it."""
    digest, rows = request.digest, request.rows
    if "input" not in run or (digest is not None and is_input(run, digest)):
        return None
    if "rows" in run and rows is not None:
        if is_input(run, rows.rows_digest, "rows"):
            return None
    elif "rows" in run and request.by_row:
        raise JournalError(
            f"{path} belongs to a file, a query or a frame, and an iterable that can be read only once "
            "cannot be compared with it. Nothing was sent. Use that input again, or name another journal"
        )
    elif digest is None:
        return None
    edit, advice = None, USE_AGAIN
    if rows is not None and recorded is not None:
        edit = compare(connection, run, rows, recorded, lambda digest: is_input(run, digest, "rows"))
        if digest is not None and "rows" in run and run["state"] != COMPLETE:
            if edit.obstacle is None:
                return edit
            advice = edit.obstacle
    difference = f" ({edit.facts})" if edit else ""
    raise JournalError(
        f"{path} belongs to another input{difference}. Nothing was sent. {advice}, or name another journal "
        "to start a new run"
    )


@lru_cache(16)  # a command needs some of them several times
def _stretch(digest: bytes, salt: bytes) -> bytes:
    # Anyone who can read the journal could guess an API key, or the passwords in an input with few rows, and
    # compare the digests. With scrypt, each guess takes 50 ms.
    return hashlib.scrypt(digest, salt=salt, n=2**14, r=8, p=1, dklen=32)
