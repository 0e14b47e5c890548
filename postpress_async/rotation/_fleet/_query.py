"""
A fleet as the rows of an SQL query, read by SQLAlchemy and any installed driver.

The rows are read through a server-side cursor and copied to a private temporary file, so that the rows sent
are those that were validated. A database's error message may quote a row with a password, so only messages
that cannot quote a row are shown.

A mistake in a query must not change the database. See `Fleet.open_query` for what each database prevents.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, quote_plus, unquote

from postpress_async.errors import ConfigurationError, FleetError
from postpress_async.rotation._fleet._columns import BATCH, Batch, BatchMaker, read_header
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.secret import MASK

if TYPE_CHECKING:
    from sqlalchemy import URL, CursorResult, Engine

T = TypeVar("T")

DATABASE_URL: Final = "POSTPRESS_DATABASE_URL"  # the variable for the URL, which may contain a password

# SQLAlchemy takes all text from the first colon to the first "@" as the password, even slashes.
_CREDENTIALS: Final = re.compile(r"[a-zA-Z][\w+.-]*://[^:/]*:[^@]+@", re.DOTALL)
# Drivers also accept a password after the "?" of a URL. A passfile is not a secret. PWD is ODBC's name.
_IN_QUERY: Final = re.compile(r"(?:pass(?!file)\w*|pwd|secret\w*|token\w*)\s*=\s*[^&;\s]", re.IGNORECASE)

_EXAMPLE: Final = "write it as postgresql+psycopg://user@host/database"
# SQLSTATE classes whose messages name tables, columns, users and servers, but quote no values.
_SAFE_CLASSES: Final = {"08", "25", "26", "28", "3D", "3F", "42", "53", "55", "57"}
# Prefixes of SQLite's messages that quote no values.
_SQLITE_MESSAGES: Final = tuple(
    "no such |near |ambiguous column name|unable to open|file is not a database|database is locked|"
    "incomplete input|unrecognized token|attempt to write|You can only execute one statement|"
    "not authorized|authorization denied".split("|")
)
_MAX_SHOWN: Final = 200  # characters of a message or a name of the database


class QueryTable:
    """The rows of a query, copied to a file. The line of a row is its position in the result, from 1."""

    def __init__(self, url: str, query: str, columns: Sequence[str]) -> None:
        """Raise `FleetError` if the database refuses the query, or its columns are not those of a fleet."""
        self.ignored_columns: tuple[str, ...] = ()
        with closing(Query(url, query)) as result:
            self.file = FleetFile("<query>", content=self._encoded(result, columns), shown="the query")

    def batches(self) -> Iterator[Batch]:
        with self.file.opened() as lines:
            yield from map(Batch.decode, lines)

    def _encoded(self, result: "Query", columns: Sequence[str]) -> Iterator[bytes]:
        positions, ignored = read_header(result.names, lambda fact: FleetError(f"the query {fact}"), columns)
        maker = BatchMaker(columns)
        for rows in result.batches(BATCH):
            values = list(zip(*rows, strict=True))
            yield maker.make({name: values[index] for name, index in positions.items()}, len(rows)).encode()
        self.ignored_columns = ignored + maker.keys.ignored


class Query:
    """One query and its result. `names` are the names of the result's columns."""

    def __init__(self, url: str, query: str) -> None:
        """Raise `FleetError` if SQLAlchemy or the driver is not installed, or the database refuses."""
        self._engine, self._shown = _create_engine(url)
        self._password_forms = _password_forms(self._engine.url.password)
        self._closing = ExitStack()
        self._closing.callback(self._engine.dispose)
        try:
            self._connection = self._run("cannot be reached", self._engine.connect, connecting=True)
            self._closing.callback(self._connection.close)  # the transaction is rolled back
            self._result = self._run("refused the query", partial(self._execute, query))
            if not self._result.returns_rows:
                raise FleetError("the query returns no rows: write one that does, such as SELECT")
            self.names: Final[Sequence[str]] = list(self._result.keys())
        except BaseException:
            self.close()
            raise

    def batches(self, size: int) -> Iterator[Sequence[Sequence[Any]]]:
        """Yield the rows, *size* at a time; raise `FleetError` for an error of the database."""
        fetch = partial(self._result.fetchmany, size)
        while rows := self._run("failed while reading the rows", fetch):
            yield rows

    def close(self) -> None:
        with suppress(Exception):  # drivers raise errors of any type if the connection is lost
            self._closing.close()

    def _execute(self, query: str) -> "CursorResult[Any]":
        connection, backend = self._connection, self._engine.dialect.name
        if backend == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
            if set_authorizer := getattr(connection.connection.dbapi_connection, "set_authorizer", None):
                set_authorizer(_authorize)
        elif backend == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        elif backend in {"mysql", "mariadb"}:
            connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        # Without parameters, percent signs and colons in the query have no special meaning.
        options = {"stream_results": True, "no_parameters": True, "max_row_buffer": BATCH}
        return connection.exec_driver_sql(query, execution_options=options)

    def _run(self, fact: str, call: Callable[[], T], *, connecting: bool = False) -> T:
        """Return the result of *call*; for any error of the driver, raise `FleetError` with *fact*."""
        try:
            return call()
        except ImportError as error:
            fact = f"requires the driver {error.name or 'of its own'}, which is not installed: install it"
        except Exception as error:  # SQLAlchemy does not wrap all errors of drivers
            fact = f"{fact}: {self._message(error, connecting)}"
        # Outside the except block, so that the driver's error, which may contain a row, is not chained.
        raise FleetError(f"{self._shown} {fact}")

    def _message(self, error: Exception, connecting: bool) -> str:
        """The first line of *error* if it cannot contain values of a row; otherwise its type."""
        error = getattr(error, "orig", None) or error
        state = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
        # MySQL's drivers raise errors with a number and a text.
        full = error.args[1] if len(error.args) == 2 and isinstance(error.args[0], int) else error
        text = next(iter(str(full).strip().splitlines()), "")
        if connecting or state[:2] in _SAFE_CLASSES or text.startswith(_SQLITE_MESSAGES):
            for form in self._password_forms:
                text = text.replace(form, MASK)
            if not connecting:  # text in quotes may be a literal of the query
                text = re.sub(r"'[^']*'?", "'...'", text)
            text = "".join(c if c.isprintable() else " " for c in text)[:_MAX_SHOWN]
            denied = text.startswith(("not authorized", "authorization denied"))
            return f"{text}: write one that only reads, such as SELECT" if denied else text
        name = type(error).__name__
        return f"{name} {state}" if state else f"{name} (its message may quote a row)"


def _create_engine(url: str) -> "tuple[Engine, str]":
    """Return an engine, read-only if *url* can request that, and the name of the database for errors."""
    try:
        import sqlalchemy.exc
    except ImportError:
        raise FleetError("a query requires SQLAlchemy: pip install 'postpress-async[sql]'") from None
    # At level DEBUG SQLAlchemy would log every row.
    logging.getLogger("sqlalchemy.engine.Engine.postpress_async").setLevel(logging.WARNING)
    options: dict[str, Any] = {"logging_name": "postpress_async", "hide_parameters": True}
    driver = ""
    try:
        parsed = sqlalchemy.make_url(url)
        driver = parsed.drivername[:_MAX_SHOWN]
        engine = sqlalchemy.create_engine(_read_only(parsed), poolclass=sqlalchemy.NullPool, **options)
    except sqlalchemy.exc.NoSuchModuleError:
        fact = f"SQLAlchemy has no dialect {driver!r}: {_EXAMPLE}"
    except ImportError as error:
        name = error.name or "of this database"
        fact = f"the driver {name} is not installed: install it, or name yours, as in postgresql+psycopg://"
    except (sqlalchemy.exc.ArgumentError, ValueError, TypeError, AttributeError):
        fact = f"the database's URL cannot be read: {_EXAMPLE}"
    else:
        path = parsed.database or ":memory:"
        if engine.dialect.is_async:
            fact = f"{driver} is asynchronous: name another driver, as in postgresql+psycopg://"
        elif parsed.get_backend_name() == "sqlite" and not (
            path.startswith((":memory:", "file:")) or os.path.exists(path)  # otherwise SQLite might create it
        ):
            fact = f"{_shown(parsed)} does not exist: check its path, after sqlite:/// in the URL"
        else:
            return engine, _shown(parsed)
    # Outside the except block, so that an error that may contain the URL is not chained.
    raise FleetError(fact)


def _read_only(url: "URL") -> "URL":
    """Add the options that open a SQLite file read-only. The *url* of any other database stays unchanged."""
    path = url.database
    # Of SQLite's drivers, only pysqlite accepts a URI with options. An in-memory database has no file.
    if url.drivername not in {"sqlite", "sqlite+pysqlite"} or not path or ":memory:" in path:
        return url
    if url.query.get("mode") == "memory":
        return url
    uri = path if path.startswith("file:") else Path(path).absolute().as_uri()
    return url.set(database=uri, query={**url.query, "mode": "ro", "uri": "true"})


def _authorize(action: int, *_: object) -> int:
    """
    Deny ATTACH and DETACH. SQLite calls this function for each action while it prepares a query.

    ATTACH creates a missing file, and VACUUM INTO attaches the file that it creates. Changes of tables are
    allowed here, because SQLite prepares some to read a virtual table, such as a full-text index. They fail
    later, because the file is open read-only.
    """
    denied = action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


def _shown(url: "URL") -> str:
    name = (url.database or "").rpartition("/")[2]
    words = ["the", url.get_backend_name(), "database", name, f"on {url.host}" if url.host else ""]
    return "".join(c for c in " ".join(filter(None, words)) if c.isprintable())[:_MAX_SHOWN]


def _password_forms(password: object) -> list[str]:
    """The forms of *password* that drivers may quote in messages, the longest first."""
    text = "" if password is None else str(password)
    forms = {text, quote(text), quote(text, safe=""), quote_plus(text), repr(text)[1:-1]}
    return sorted(filter(None, forms), key=len, reverse=True)


def check_argument(url: str) -> str:
    """Return *url*; refuse a password in it, because every user of the machine can read arguments."""
    if _CREDENTIALS.match(url) or _IN_QUERY.search(unquote(url.partition("?")[2])):
        raise ConfigurationError(
            "a password in an argument can be read by everyone on this machine: put the database's URL into "
            f"{DATABASE_URL} or into a file for --from-file, or leave the password to PGPASSFILE"
        )
    return url
