"""
A SQL query, asked of a database by SQLAlchemy and whatever driver the user has.

It only reads, and its answer comes by the database's own cursor, so that no memory holds all of it. What a
database says in an error may quote the rows, which have passwords: only what cannot is repeated.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
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
)
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
            _check_sqlite(self._engine.url)
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
            parsed = sqlalchemy.make_url(url)
            engine: Engine = sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool, **options)
        except exc.NoSuchModuleError:
            kind = parsed.drivername[:40]
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
            fact = f"{parsed.drivername} is asynchronous: name another driver, as in postgresql+psycopg://"
        # Not in the except: what was caught may hold the URL, and would stay on the chain of ours.
        raise FleetError(fact)

    def _executed(self, query: str) -> "CursorResult[Any]":
        connection, backend = self._connection, self._engine.dialect.name
        if backend == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
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
        raise FleetError(f"{_shown(self._engine.url)} {fact}")

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
            return "".join(c if c.isprintable() else " " for c in text)[:_LONGEST]
        name = type(said).__name__
        return f"{name} {state}" if state else f"{name}, whose words may quote a row"

    def _quietly(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:  # the connection was lost: there is nothing to leave
            return


def _check_sqlite(url: "URL") -> None:
    """SQLite makes a file that does not exist, and then has no table in it."""
    place = url.database
    if url.get_backend_name() != "sqlite" or not place or place == ":memory:" or place.startswith("file:"):
        return
    if not os.path.exists(place):
        raise FleetError(f"{_shown(url)} does not exist: check its path, after sqlite:/// in the URL")


def _shown(url: "URL") -> str:
    name = (url.database or "").rpartition("/")[2]
    words = ["the", url.get_backend_name(), "database", name, f"on {url.host}" if url.host else ""]
    return "".join(c for c in " ".join(filter(None, words)) if c.isprintable())[:_LONGEST]


def _forms(password: object) -> list[str]:
    """How a *password* may be written in what a driver says, the longest first."""
    text = "" if password is None else str(password)
    forms = {text, quote(text), quote(text, safe=""), quote_plus(text), repr(text)[1:-1]}
    return sorted(filter(None, forms), key=len, reverse=True)
