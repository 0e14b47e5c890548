"""What can be told of a journal before a run opens it. Nothing is written: not to it, and not beside it."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from postpress_async.errors import JournalError
from postpress_async.rotation._outcome import Outcome
from postpress_async.rotation._row_digest import KnownInput
from postpress_async.rotation.journal import OUTCOME, OnFailed, OnUnknown, done_if, row_of
from postpress_async.rotation.journal._file import (
    DAMAGE,
    SCHEMA,
    claim,
    in_use,
    is_fresh,
    refusal_of,
    refuse_links,
)
from postpress_async.rotation.journal._input_check import (
    completion,
    is_input,
    refuse_other,
    refuse_other_pool,
)
from postpress_async.rotation.journal._read_only import connect_read_only, refuse_stale


def done_in(
    path: str | os.PathLike[str],
    *,
    digest: bytes | None,
    target: str,
    on_unknown: OnUnknown,
    on_failed: OnFailed,
    rows: KnownInput | None = None,
    pool: bytes | None = None,
    total: int | None = None,
) -> int:
    """
    How many accounts a run on the journal at *path* would leave as they are; 0 where there is none yet.

    Args:
        path: As `Journal.open` has it, and so the rest.
        digest: By which the input is known again; None where it has none.
        target: Where the requests would go.
        on_unknown: Whether accounts whose outcome is unknown would be sent again, or are done.
        on_failed: Whether accounts that failed are done, or would be sent again.
        rows: The input, if it can be read more than once.
        pool: The pool's digest.
        total: Rows of the input.

    Raises:
        JournalError: What `Journal.open` would raise, as far as it can be known without writing.
    """
    place = Path(path)
    whole = Path(os.path.abspath(place))
    with ExitStack() as stack:
        file = claim(place, make=False)
        if file is None:
            return 0
        stack.callback(file.close)
        if file.is_locked():
            raise in_use(place)
        refuse_links(place, file)
        if not place.stat().st_size:
            return 0
        try:
            connection, _ = connect_read_only(whole, stack)
            if is_fresh(place, connection):
                return 0
            refuse_stale(place, connection)
            told = dict(connection.execute("SELECT name, value FROM run"))
            refuse_other(place, connection, told, digest, target, rows)
            done = done_if(on_unknown, on_failed)
            if pool is not None and on_failed == "report":
                refuse_other_pool(place, told, pool, completion(connection, done, total))
            [(count,)] = connection.execute(f"SELECT count(*) FROM outcomes WHERE {done}")  # noqa: S608
        except DAMAGE as error:
            raise refusal_of(place, error) from None
        except OSError as error:
            raise JournalError(f"{place} cannot be read ({error.strerror}): name another journal") from None
        return int(count)


def rows_known_to(path: str | os.PathLike[str], digest: bytes) -> int | None:
    """
    How many rows the input with this *digest* has, where the journal at *path* was begun with it.

    None where there is no such journal, or it cannot be told: `Journal.open` says then what is wrong.
    """
    with suppress(*DAMAGE, OSError), ExitStack() as stack:
        connection, _ = connect_read_only(Path(os.path.abspath(path)), stack)
        told = dict(connection.execute("SELECT name, value FROM run"))
        total = told.get("total")
        if type(total) is int and is_input(told, digest):
            return total
    return None


def weigh(outcomes: Sequence[Outcome]) -> float:
    """Bytes that each of *outcomes* takes in a journal, on average; measured in one in memory."""
    if not outcomes:
        return 0.0
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        [(page,)] = connection.execute("PRAGMA page_size")
        [(empty,)] = connection.execute("PRAGMA page_count")
        connection.executemany(OUTCOME.told[1], map(row_of, outcomes))
        [(full,)] = connection.execute("PRAGMA page_count")
    return float(page * (full - empty) / len(outcomes))
