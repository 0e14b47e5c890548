"""
A SQL query, asked of a database by SQLAlchemy and whatever driver the user has.

Its answer comes by the database's own cursor, so that no memory holds all of it. What a database says in an
error may quote the rows, which have passwords: only what cannot is repeated.

A slip in a query must not write. SQLite's file is opened read-only, and no other may be attached or made.
PostgreSQL, MySQL and MariaDB run the query in a read-only transaction: no table changes, but only the rights
of the account exclude what is outside of tables (``COPY ... TO``, ``INTO OUTFILE``). Of any other database
nothing is known; there the transaction is rolled back.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, quote_plus

from postpress_async.errors import FleetError
from postpress_async.secret import MASK

if TYPE_CHECKING:
    from sqlalchemy import URL, CursorResult, Engine

T = TypeVar("T")

_WRITE_IT: Final = "write it as postgresql+psycopg://user@host/database"
# SQLSTATE classes whose messages name tables, columns, users and servers, and never a value of a row.
_NAMES_ALONE: Final = {"08", "25", "26", "28", "3D", "3F", "42", "53", "55", "57"}
_SQLITE_SAYS: Final = (
    *(
        "no such ",
        "near ",
        "ambiguous column name",
        "unable to open",
        "file is not a database",
        "database is locked",
    ),
    *("incomplete input", "unrecognized token", "attempt to write", "You can only execute one statement"),
    *("not authorized", "authorization denied"),
)
_ONLY_READS: Final = ": write one that only reads, such as SELECT"
_LONGEST: Final = 200


class Query:
    """
    The answer to one query.

    Attributes:
        names: Its columns' names.
    """

    def __init__(self, url: str, query: str) -> None:
        """Raise `FleetError` if SQLAlchemy or the driver is not there, or the database refuses."""
        try:
            import sqlalchemy
        except ImportError:
            sentence = "a query takes SQLAlchemy to ask: pip install 'postpress-async[sql]'"
            raise FleetError(sentence) from None
        self._alchemy = sqlalchemy
        self._engine = self._made(url)
        self._forms = _forms(self._engine.url.password)
        try:
            _check_sqlite(self._url)
            self._connection = self._asked("cannot be reached", self._engine.connect, connecting=True)
            self._answer = self._asked("refused the query", lambda: self._executed(query))
            if not self._answer.returns_rows:
                raise FleetError("the query gives no rows: write one that does, such as SELECT")
            self.names: Final[Sequence[str]] = list(self._answer.keys())
        except BaseException:
            self.close()
            raise

    def batches(self, size: int) -> Iterator[Sequence[Sequence[Any]]]:
        """
        Its rows, *size* at a time.

        Raises:
            FleetError: The database broke off.
        """
        while rows := self._asked("broke off", lambda: self._answer.fetchmany(size)):
            yield rows

    def close(self) -> None:
        """Leave the database, with nothing changed in it."""
        if (connection := getattr(self, "_connection", None)) is not None:
            self._quietly(connection.close)
        self._quietly(self._engine.dispose)

    # --- With SQLAlchemy ---

    def _made(self, url: str) -> "Engine":
        sqlalchemy: Any = self._alchemy
        exc = sqlalchemy.exc
        # At its debug level SQLAlchemy logs every row: this logger has a level of its own.
        logging.getLogger("sqlalchemy.engine.Engine.postpress_async").setLevel(logging.WARNING)
        options: dict[str, Any] = {"logging_name": "postpress_async", "hide_parameters": True}
        try:
            self._url: URL = sqlalchemy.make_url(url)
            target = _read_only(self._url)
            engine: Engine = sqlalchemy.create_engine(target, poolclass=sqlalchemy.NullPool, **options)
        except exc.NoSuchModuleError:
            kind = self._url.drivername[:40]
            fact = f"SQLAlchemy knows no database {kind!r}: {_WRITE_IT}"
        except ImportError as error:
            named = error.name or "of this database"
            fact = (
                f"the driver {named} is not installed: install it, or name yours, as in postgresql+psycopg://"
            )
        except (exc.ArgumentError, ValueError, TypeError, AttributeError):
            fact = f"the database's URL cannot be read: {_WRITE_IT}"
        else:
            if not engine.dialect.is_async:
                return engine
            fact = f"{self._url.drivername} is asynchronous: name another driver, as in postgresql+psycopg://"
        # Not in the except: what was caught may hold the URL, and would stay on the chain of ours.
        raise FleetError(fact)

    def _executed(self, query: str) -> "CursorResult[Any]":
        connection, backend = self._connection, self._engine.dialect.name
        if backend == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
            if set_authorizer := getattr(connection.connection.dbapi_connection, "set_authorizer", None):
                set_authorizer(_authorize)
        elif backend == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        elif backend in {"mysql", "mariadb"}:
            connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        # No parameters: a percent sign in the query is its own, and so is a colon.
        options = {"stream_results": True, "no_parameters": True, "max_row_buffer": 1024}
        return connection.exec_driver_sql(query, execution_options=options)

    def _asked(self, fact: str, call: Callable[[], T], *, connecting: bool = False) -> T:
        """What *call* gives; whatever a driver raises becomes our error that says *fact*."""
        try:
            return call()
        except ImportError as error:
            fact = f"takes the driver {error.name or 'of its own'}, which is not installed: install it"
        except Exception as error:  # SQLAlchemy lets drivers' own errors through here and there
            fact = f"{fact}: {self._said(error, connecting)}"
        # Not in the except, for the same reason as above.
        raise FleetError(f"{_shown(self._url)} {fact}")

    def _said(self, error: Exception, connecting: bool) -> str:
        """What may be repeated of *error*."""
        said = getattr(error, "orig", None) or error
        state = str(getattr(said, "sqlstate", None) or getattr(said, "pgcode", None) or "")
        # MySQL's drivers give a number and a text.
        words = said.args[1] if len(said.args) == 2 and isinstance(said.args[0], int) else said
        text = next(iter(str(words).strip().splitlines()), "")
        if connecting or state[:2] in _NAMES_ALONE or text.startswith(_SQLITE_SAYS):
            for form in self._forms:
                text = text.replace(form, MASK)
            if not connecting:  # a literal of the query, by which it was not understood
                text = re.sub(r"'[^']*'?", "'...'", text)
            text = "".join(c if c.isprintable() else " " for c in text)[:_LONGEST]
            return text + _ONLY_READS * text.startswith(("not authorized", "authorization denied"))
        name = type(said).__name__
        return f"{name} {state}" if state else f"{name}, whose words may quote a row"

    def _quietly(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:  # the connection was lost: there is nothing to leave
            return


def _read_only(url: "URL") -> "URL":
    """*url*, by which SQLite opens its file read-only; a URL of another database as it is."""
    place = url.database
    # Only this driver takes a URI, which says how to open a file. Memory has no file.
    if url.drivername not in {"sqlite", "sqlite+pysqlite"} or not place or ":memory:" in place:
        return url
    if not place.startswith("file:"):
        place = Path(place).absolute().as_uri()
    elif url.query.get("mode") == "memory":
        return url
    return url.set(database=place, query={**url.query, "mode": "ro", "uri": "true"})


def _check_sqlite(url: "URL") -> None:
    """SQLite says less clearly that a file does not exist, or makes it."""
    place = url.database
    if url.get_backend_name() != "sqlite" or not place or place == ":memory:" or place.startswith("file:"):
        return
    if not os.path.exists(place):
        raise FleetError(f"{_shown(url)} does not exist: check its path, after sqlite:/// in the URL")


def _authorize(action: int, *_: object) -> int:
    """
    Answer SQLite, which asks about each part of a query while it is prepared.

    ATTACH makes a file that does not exist, and VACUUM INTO attaches the one it makes. Changes of tables are
    not refused here: full-text and other virtual tables prepare them to be read, and none can be carried out
    on a file that was opened read-only.
    """
    refused = action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def _shown(url: "URL") -> str:
    name = (url.database or "").rpartition("/")[2]
    words = ["the", url.get_backend_name(), "database", name, f"on {url.host}" if url.host else ""]
    return "".join(c for c in " ".join(filter(None, words)) if c.isprintable())[:_LONGEST]


def _forms(password: object) -> list[str]:
    """How a *password* may be written in what a driver says, the longest first."""
    text = "" if password is None else str(password)
    forms = {text, quote(text), quote(text, safe=""), quote_plus(text), repr(text)[1:-1]}
    return sorted(filter(None, forms), key=len, reverse=True)
