"""The simulated machine of the campaign: a disk that can be full, a virtual clock, and a transport."""

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from postpress_async import PostPressSession
from tests.support import stepped_loop
from tests.support.counting_server import API_KEY, CountingTransport


class Disk:
    """The disk of all journals. While it is full, statements that write raise SQLite's error for it."""

    is_full = False

    @classmethod
    def check(cls, sql: str) -> None:
        verb = sql.split(None, 1)[0].upper().rstrip(";")
        writes = verb not in {"SELECT", "PRAGMA"} or "checkpoint" in sql
        if cls.is_full and writes and "EXCLUSIVE" not in sql:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        Disk.check(sql)
        return super().execute(sql, *parameters)

    def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        Disk.check(sql)
        return super().executemany(sql, *parameters)

    def executescript(self, sql: str) -> sqlite3.Cursor:
        Disk.check(sql)
        return super().executescript(sql)


@contextmanager
def machine() -> Iterator[None]:
    """Patch this process: SQLite uses `Disk`, hashes of inputs are fast, and `time.time` is virtual."""
    connect, scrypt, began = sqlite3.connect, hashlib.scrypt, time.time()

    def fast_scrypt(*args: Any, **options: Any) -> bytes:
        return scrypt(*args, **{**options, "n": 2})

    def connect_to_disk(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **{"factory": _Connection, **options})
        return connection

    def clock() -> float:
        return began + stepped_loop.now()

    with ExitStack() as stack:
        stack.enter_context(patch.object(sqlite3, "connect", connect_to_disk))
        stack.enter_context(patch.object(hashlib, "scrypt", fast_scrypt))
        stack.enter_context(patch.object(time, "time", clock))
        Disk.is_full = False
        yield


def session_over(wire: CountingTransport, **options: Any) -> PostPressSession:
    """Return a real session whose requests go over *wire*."""
    return PostPressSession(API_KEY, base_url="http://127.0.0.1:9/v1", transport=wire, **options)
