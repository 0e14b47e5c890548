"""Checks a journal before a run opens it. Nothing is written to the file or beside it."""

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from attrs import Factory, frozen

from postpress_async.errors import JournalError
from postpress_async.rotation.journal._database import (
    DAMAGE,
    add_views,
    damage_error,
    is_empty,
    read_run,
    refuse_lost_log,
)
from postpress_async.rotation.journal._file import open_file, refuse_shared
from postpress_async.rotation.journal._input_check import (
    COMPLETE,
    InputCheck,
    RunRequest,
    check,
    is_input,
    recorded_rows,
)
from postpress_async.rotation.journal._reading import JournalReader, connect_read_only
from postpress_async.rotation.journal._recovery import done_condition, may_have_sent, sent_below


@frozen
class Progress:
    """What a journal knows about the run that a command would start or resume."""

    done: int = 0  # number of accounts that the run would not send
    check: InputCheck | None = None  # comparison with earlier runs; None without earlier runs
    done_by_ordinal: bytes = b""  # one byte per ordinal: 1 if its account is done; empty if that is not known
    done_by_proxy: Mapping[str, int] = Factory(dict)  # number of done accounts, by the label of their proxy
    quarantines: Mapping[str, tuple[float, float | None]] = Factory(dict)  # see `Journal.quarantines`


def read_progress(path: str | os.PathLike[str], request: RunRequest) -> Progress:
    """Read the `Progress` of a run; raise the errors of `Journal` that can be found without writing."""
    path = Path(path)
    with ExitStack() as stack:
        file = open_file(path, create=False)
        if file is None:
            return Progress()
        stack.callback(file.close)
        refuse_shared(path, file, in_use=file.is_locked())
        try:
            connection, _ = connect_read_only(Path(os.path.abspath(path)), stack)
            if is_empty(path, connection):
                return Progress()
            add_views(connection)
            refuse_lost_log(path)
            comparison = check(path, connection, request)
            quarantines = _quarantines(connection, comparison)
            if comparison.starts_run:
                return Progress(check=comparison, quarantines=quarantines)
            is_done = f"{done_condition(request.on_unknown, request.on_failed)} AND {comparison.of_input}"
            [(count,)] = connection.execute(f"SELECT count(*) FROM latest WHERE {is_done}")
            done_by_ordinal = bytearray(request.total or 0)
            done_by_proxy = connection.execute(
                f"SELECT assignment, count(*) FROM latest WHERE {is_done} AND assignment NOT NULL "
                "AND state IN ('patched', 'unknown') GROUP BY assignment"
            )
            if request.on_unknown == "report":
                # Also done are the rows without an outcome that a dead run may have sent.
                run = read_run(connection)
                died = "under way" in run or "reached" not in run
                in_doubt = may_have_sent(connection.execute, run, died=died)
                count += int(min(in_doubt, max(0, len(done_by_ordinal) - count)))
                watermark = int(min(sent_below(run, died=died), len(done_by_ordinal)))
                done_by_ordinal[:watermark] = b"\1" * watermark
            sql = f"SELECT ordinal, ({is_done}) IS TRUE FROM latest WHERE ordinal BETWEEN 0 AND ?"
            for ordinal, done in connection.execute(sql, (len(done_by_ordinal) - 1,)):
                done_by_ordinal[ordinal] = done
            if comparison.difference is not None:
                done_by_ordinal.clear()
            return Progress(count, comparison, bytes(done_by_ordinal), dict(done_by_proxy), quarantines)
        except DAMAGE as error:
            raise damage_error(path, error) from None
        except OSError as error:
            raise JournalError(f"{path} cannot be read ({error.strerror}): name another journal") from None


def _quarantines(
    connection: sqlite3.Connection, comparison: InputCheck
) -> dict[str, tuple[float, float | None]]:
    recorded = read_run(connection).get("pool")
    # A run with a changed pool probes quarantined proxies at once.
    is_same_pool = comparison.facts.get("pool", recorded) == recorded
    probe_column = "probe_at" if is_same_pool else "quarantined_at"
    sql = f"SELECT label, quarantined_at, {probe_column} FROM proxies WHERE quarantined_at NOT NULL"
    return {label: (began, probe_at) for label, began, probe_at in connection.execute(sql)}


def known_row_count(path: str | os.PathLike[str], digest: bytes) -> int | None:
    """Return the number of rows of the input with this *digest*; None if the journal has not recorded it."""
    with suppress(JournalError), JournalReader(path) as view:
        run = view.run()
        return recorded_rows(view.ask, run) if is_input(run, digest) else None
    return None


def unfinished_run(path: str | os.PathLike[str]) -> int | None:
    """Return the number of the journal's latest run if it is not complete; otherwise None."""
    run = _latest_run(path)
    return None if run is None or run["state"] == COMPLETE else int(run["id"])


def is_due(path: str | os.PathLike[str], every: float, run: int) -> bool:
    """Whether number *run* is the latest run, is complete, and began at least *every* seconds ago."""
    latest = _latest_run(path) or {}
    is_complete = latest.get("id") == run and latest.get("state") == COMPLETE
    return is_complete and latest.get("began", 0.0) + every <= time.time()


def _latest_run(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    with suppress(JournalError), JournalReader(path) as view:
        return view.run()
    return None
