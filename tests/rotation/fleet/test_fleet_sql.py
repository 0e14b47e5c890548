"""A fleet from an SQL query: it runs once, only reads, and no message shows a row."""

import io
import json
import logging
import os
import sqlite3
import stat
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from postpress_async.errors import ConfigurationError, FleetError
from postpress_async.models import CustomProxy, ManagedProxy
from postpress_async.rotation import Fleet
from postpress_async.rotation._fleet import Survey, reader_of
from postpress_async.rotation._fleet._query import Query, check_argument
from postpress_async.rotation._rows import Row
from tests.support.fleet_forms import all_text, refusals

US = ManagedProxy(country="US")
SECRET = "pa55!word"
ALL = "SELECT * FROM fleet ORDER BY id"


class RefusingError(Exception):
    """A driver's error, with a SQLSTATE."""

    def __init__(self, sqlstate: str | None, *words: object) -> None:
        super().__init__(*words)
        self.sqlstate = sqlstate


class Hosted(SQLiteDialect_pysqlite):
    """SQLite as if it were on another machine: its URL has a host, a user and a password."""

    supports_statement_cache = True

    def create_connect_args(self, url: sqlalchemy.URL) -> Any:
        return [":memory:"], {}


sqlalchemy.dialects.registry.register("hosted", __name__, "Hosted")


@pytest.fixture
def database(tmp_path):
    """Makes a SQLite database with a table fleet; returns its URL."""
    path = tmp_path / "fleet.db"

    def database(columns: str, *rows: Sequence[Any]) -> str:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"CREATE TABLE fleet ({columns})")
            marks = ", ".join("?" * len(columns.split(",")))
            connection.executemany(f"INSERT INTO fleet VALUES ({marks})", rows)
        return f"sqlite:///{path}"

    return database


def execute(url: str, statement: str) -> list[Any]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        return connection.execute(statement).fetchall()


# --- Rows ---------------------------------------------------------------------------------------


def test_a_row_of_the_result_is_an_account(database) -> None:
    """The query's columns have the names of a fleet's; a row's line is its place in the result."""
    url = database("id, cc, region", ("a", "us", "x"), ("b", "de", "y"))

    with Fleet.open_query(
        url, "SELECT id AS account_id, cc AS country, region FROM fleet ORDER BY 1"
    ) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US), Row(1, 2, "b", ManagedProxy(country="DE"))]
        assert fleet.ignored_columns == ("region",)
        assert fleet.name == "<query>"


def test_values_are_read_by_their_types(database) -> None:
    """A SQLite column may hold any type: a wrong one makes the row invalid, and is not shown."""
    url = database(
        "id, host, port, password",
        *[("a", "h", 80, "p"), ("b", "h", 80.0, None), ("c", "h", 80.5, "p"), ("d", "h", "81", "p")],
        *[("e", "h", 80, 12345678), ("f", "h", 80, b"p"), (7, "h", 80, "p"), ("g", "h", -1, "p")],
        *[(None, "h", -1, "p"), ("c", "h", 80, "p")],
    )

    with Fleet.open_query(url, "SELECT * FROM fleet ORDER BY rowid") as fleet:
        rows = list(fleet.rows())

    assert [row.change for row in rows if isinstance(row, Row)] == [
        CustomProxy(host="h", port=80, password="p"),
        CustomProxy(host="h", port=80),
        CustomProxy(host="h", port=81, password="p"),
    ]
    assert refusals(rows) == [
        (3, "port", "port not an integer"),
        (5, "password", "password not text"),
        (6, "password", "password not text"),
        (7, "account_id", "account_id not text"),
        (8, "port", "port out of range"),
        (9, "account_id", "account_id missing"),
        (10, "account_id", "account already named"),
    ]
    assert "12345678" not in repr(rows)


def test_text_is_read_unchanged(database) -> None:
    """Rows are copied to a file; a password may contain line ends and quotes."""
    passwords = ["п𝛼ß\u2028\x85", "\"';,{[\\", " p ", "%s :x ?"]
    url = database("id, host, port, password", *[(f"a{n}", "h", 1, p) for n, p in enumerate(passwords)])

    with Fleet.open_query(url, ALL) as fleet:
        rows: list[Any] = list(fleet.rows())

    assert [row.change.password.reveal() for row in rows] == passwords


def test_a_query_is_executed_unchanged(database) -> None:
    """Percent signs, colons and question marks in it are not parameters."""
    url = database("id, country", ("a:b", "US"), ("acc_1", "US"), ("acc%2", "US"))

    with Fleet.open_query(url, "SELECT * FROM fleet WHERE id LIKE 'acc_%' AND id <> ':x?%s'") as fleet:
        assert [row.account_id for row in fleet.rows()] == ["acc_1", None]


def test_a_row_with_only_an_account_gets_the_default(database) -> None:
    """Most queries return only account ids."""
    with Fleet.open_query(database("id", ("a",)), ALL, default=US) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]


def test_rows_do_not_change_between_the_check_and_the_run(database) -> None:
    """The query runs once: the data may change between two passes."""
    url = database("id, country", ("a", "US"), ("b", "XX"))
    with Fleet.open_query(url, ALL) as fleet:
        survey, digest = fleet.survey(), reader_of(fleet).digest
        execute(url, "UPDATE fleet SET country = 'DE'")

        assert fleet.survey() == survey
        assert survey.rows == 1
        assert reader_of(fleet).digest == digest
        assert all(first == second for first, second in zip(fleet.rows(), fleet.rows(), strict=True))
    with Fleet.open_query(url, ALL) as fleet:
        assert fleet.survey() == Survey(rows=2, managed=2)
        assert reader_of(fleet).digest != digest


def test_the_digest_recognizes_an_input(database) -> None:
    """A resumed run queries again, and an unused column may have changed by then."""
    url = database("id, country, seen", ("a", "US", 1), ("b", "DE", 2))
    first = Fleet.open_query(url, ALL)
    execute(url, "UPDATE fleet SET seen = seen + 1")

    with first, Fleet.open_query(url, ALL) as again, Fleet.open_query(url, ALL + " DESC") as other:
        assert reader_of(again).digest == reader_of(first).digest
        assert reader_of(other).digest != reader_of(first).digest


def test_memory_does_not_grow_with_the_result() -> None:
    """The rows are fetched some hundred at a time, and written to the disk."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
    query = f"{numbers} SELECT printf('%0250d', i) AS id, 'US' AS country FROM n"
    Fleet.open_query("sqlite://", "SELECT 'a' AS id, 'US' AS country").close()  # imports first
    tracemalloc.start()
    try:
        with Fleet.open_query("sqlite://", query) as fleet:
            assert fleet.survey().rows == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 3_000_000  # the ids have 2.5 million bytes, and are read twice


# --- The copy ------------------------------------------------------------------------------------


@pytest.fixture
def copies(monkeypatch):
    """The temporary files that the test made."""
    made = []
    make = sys.modules["tempfile"].TemporaryFile

    def remember(**options: Any) -> Any:
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr("tempfile.TemporaryFile", remember)
    return made


def test_the_copy_is_private_and_is_deleted(database, copies, tmp_path, monkeypatch) -> None:
    """The copy has passwords: only its owner can read it, and closing the fleet deletes it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    with Fleet.open_query(database("id, country", ("a", "US")), ALL) as fleet:
        (copy,) = copies
        assert stat.S_IMODE(os.fstat(copy.fileno()).st_mode) == 0o600
        rows = fleet.rows()
        next(rows)
    fleet.close()

    assert copy.closed
    assert list(folder.iterdir()) == []
    with pytest.raises(FleetError, match="the query is closed: open the fleet again"):
        fleet.survey()


def test_a_fleet_that_is_closed_while_it_is_read_is_reported() -> None:
    """Its copy is deleted, so the remaining rows cannot be read."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
    with Fleet.open_query(
        "sqlite://", f"{numbers} SELECT 'acc_' || i AS id, 'US' AS country FROM n"
    ) as fleet:
        rows = fleet.rows()
        next(rows)

    with pytest.raises(FleetError, match="the query cannot be read: the fleet was closed"):
        list(rows)


def test_an_interrupted_query_leaves_no_copy(database, copies, monkeypatch) -> None:
    """Ctrl-C is pressed while rows are fetched."""

    def interrupted(self: Query, size: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Query, "batches", interrupted)

    with pytest.raises(KeyboardInterrupt):
        Fleet.open_query(database("id, country", ("a", "US")), ALL)
    assert copies[0].closed


def test_full_disk_is_reported(database, monkeypatch) -> None:
    """The temporary folder may be smaller than the fleet."""

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    full = Full()
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)

    with pytest.raises(FleetError, match="the query cannot be copied to a temporary file: No space left"):
        Fleet.open_query(database("id, country", ("a", "US")), ALL)
    assert full.closed


# --- Read-only ----------------------------------------------------------------------------------


WRITES = [
    "DELETE FROM fleet",
    "DELETE FROM fleet RETURNING id",
    "DROP TABLE fleet",
    "UPDATE fleet SET country = 'DE'",
]


@pytest.mark.parametrize("statement", WRITES)
def test_a_statement_that_writes_is_refused(database, statement) -> None:
    """A mistake in a query must not change the table."""
    url = database("id, country", ("a", "US"))

    with pytest.raises(
        FleetError, match=r"the sqlite database fleet\.db refused the query: attempt to write"
    ):
        Fleet.open_query(url, statement)
    assert execute(url, "SELECT * FROM fleet") == [("a", "US")]


@pytest.mark.parametrize(
    "statement",
    ["ATTACH 'made.db' AS made", "VACUUM INTO 'made.db'", "VACUUM"],
)
def test_a_statement_that_makes_a_file_is_refused(database, tmp_path, monkeypatch, statement) -> None:
    """The statement does not change the database, but it is not a query either."""
    monkeypatch.chdir(tmp_path)
    url = database("id, country", ("a", "US"))
    before = sorted(os.listdir())

    with pytest.raises(
        FleetError, match=r"refused the query: (not authorized|authorization denied): write one"
    ):
        Fleet.open_query(url, statement)

    assert sorted(os.listdir()) == before


def test_a_pragma_cannot_make_the_database_writable(database) -> None:
    """The file was opened read-only, which no statement can change."""
    url = database("id, country", ("a", "US"))

    with pytest.raises(FleetError):
        Fleet.open_query(url, "PRAGMA user_version = 7")

    assert execute(url, "PRAGMA user_version") == [(0,)]


@pytest.mark.parametrize(
    ("make", "query"),
    [
        ("SELECT 1", """SELECT 'acc_' || value AS id, 'US' AS country FROM json_each('[1]')"""),
        ("CREATE VIRTUAL TABLE words USING fts5(id)", "SELECT 'acc_1' AS id, 'US' AS country FROM fleet"),
        ("CREATE VIEW v AS SELECT 'acc_1' AS id, 'US' AS country", "SELECT * FROM v"),
        ("PRAGMA journal_mode = WAL", "SELECT 'acc_1' AS id, 'US' AS country FROM fleet"),
    ],
    ids=["a virtual table", "full text", "a view", "a write-ahead log"],
)
def test_reading_queries_are_allowed(database, make, query) -> None:
    """Virtual tables are prepared like changes, and readers of a write-ahead log write to a shared file."""
    url = database("id, country", ("a", "US"))
    execute(url, make)

    with Fleet.open_query(url, query) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "acc_1", US)]


def test_a_database_may_have_any_name(tmp_path, monkeypatch) -> None:
    """The file is opened by a URI, in which these characters have a meaning."""
    name = "a b?c#d%41.db"
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(name)) as connection, connection:
        connection.execute("CREATE TABLE fleet AS SELECT 'a' AS id, 'US' AS country")
    url = sqlalchemy.URL.create("sqlite", database=name).render_as_string()

    with Fleet.open_query(url, ALL) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]


def test_a_uri_is_opened_read_only_too(database, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = database("id, country", ("a", "US")).rpartition("/")[2]
    url = f"sqlite:///file:{name}?mode=rwc&uri=true"

    with Fleet.open_query(url, ALL) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]
    with pytest.raises(FleetError, match="attempt to write a readonly database"):
        Fleet.open_query(url, "DELETE FROM fleet RETURNING id")


@pytest.mark.parametrize("backend", ["postgresql", "mysql", "mariadb"])
def test_connections_to_other_databases_are_read_only(monkeypatch, backend) -> None:
    """They are made read-only before the query. SQLite stands in for them: only what is sent is checked."""
    executed: list[Any] = []
    monkeypatch.setattr(Hosted, "name", backend)
    option, execute = sqlalchemy.Connection.execution_options, sqlalchemy.Connection.exec_driver_sql

    def execution_options(self: sqlalchemy.Connection, **options: Any) -> Any:
        executed.append(options)
        return option(self, **options)

    def exec_driver_sql(self: sqlalchemy.Connection, statement: str, **options: Any) -> Any:
        executed.append(statement)
        return execute(self, statement if statement.startswith("SELECT") else "SELECT 1", **options)

    monkeypatch.setattr(sqlalchemy.Connection, "execution_options", execution_options)
    monkeypatch.setattr(sqlalchemy.Connection, "exec_driver_sql", exec_driver_sql)
    query = "SELECT 'a' AS id, 'US' AS country"

    with Fleet.open_query("hosted://db.example/d", query) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]
    first = {"postgresql_readonly": True} if backend == "postgresql" else "SET SESSION TRANSACTION READ ONLY"
    assert executed[:2] == [first, query]


def test_a_database_that_does_not_exist_is_not_created(tmp_path) -> None:
    """SQLite would create an empty one, and then report a missing table."""
    path = tmp_path / "gone.db"

    with pytest.raises(FleetError, match=r"the sqlite database gone\.db does not exist: check its path"):
        Fleet.open_query(f"sqlite:///{path}", ALL)
    assert not path.exists()


# --- Messages ------------------------------------------------------------------------------------


REFUSED = [
    ("SELECT id FROM fleat", "refused the query: no such table: fleat"),
    ("SELECT ide FROM fleet", "refused the query: no such column: ide"),
    ("SELCT id FROM fleet", 'refused the query: near "SELCT": syntax error'),
    (f"SELECT id FROM fleet WHERE '{SECRET}' '{SECRET}'", "refused the query: near "),
    (f"SELECT id FROM fleet WHERE id = '{SECRET}", "refused the query: unrecognized token: "),
    ("SELECT id FROM fleet; SELECT id FROM fleet", "refused the query: You can only execute one statement"),
    (
        "SELECT json(password) AS id FROM fleet",
        "refused the query: OperationalError (its message may quote a row)",
    ),
    (
        "SELECT cast(x'70613535216b6579ff' AS TEXT) AS id",
        "failed while reading the rows: OperationalError (its message may",
    ),
    ("", "returns no rows: write one that does, such as SELECT"),
    ("PRAGMA foreign_keys = ON", "returns no rows: write one that does, such as SELECT"),
    ("SELECT id, password FROM fleet WHERE 0", "has no rows: it needs a line for each account"),
    ("SELECT host FROM fleet", "has no column account_id, only host: rename one of them; the known"),
    ("SELECT id, id AS account FROM fleet", "has two columns for account_id, id and account: remove one"),
]


@pytest.mark.parametrize(("query", "sentence"), REFUSED)
def test_invalid_query_is_reported(database, query, sentence) -> None:
    """The database's message is quoted if it cannot contain a row or a literal."""
    url = database("id, host, port, password", ("a", "h", 1, SECRET))

    with pytest.raises(FleetError) as caught:
        Fleet.open_query(url, query)

    assert sentence in str(caught.value)
    assert str(caught.value).startswith(("the sqlite database fleet.db ", "the query "))
    assert str(caught.value).isprintable()
    assert SECRET not in all_text(caught.value)


URLS = [
    (f"{SECRET}", "the database's URL cannot be read: write it as postgresql+psycopg://user@host/database"),
    ("", "the database's URL cannot be read: write it as "),
    (f"postgresql://u:{SECRET}@h:port/d", "the database's URL cannot be read: write it as "),
    (f"postgres://u:{SECRET}@h/d", "SQLAlchemy has no dialect 'postgres': write it as postgresql+"),
    (f"mysql+mysqldb://u:{SECRET}@h/d", "the driver MySQLdb is not installed: install it, or name yours"),
    (f"sqlite+pysqlcipher://:{SECRET}@/d", "the driver "),
]


@pytest.mark.parametrize(("url", "sentence"), URLS)
def test_invalid_database_url_is_reported(url, sentence) -> None:
    """The URL may have a password, so no part of it is shown."""
    with pytest.raises(FleetError) as caught:
        Fleet.open_query(url, "SELECT 1")

    assert str(caught.value).startswith(sentence)
    assert SECRET not in all_text(caught.value)


def test_driver_without_its_dependency_is_reported(monkeypatch) -> None:
    """psycopg looks for its C library when it connects."""

    def refuse(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("no pq", name="psycopg_c")

    monkeypatch.setattr(Hosted, "connect", refuse)

    with pytest.raises(FleetError, match="the hosted database d requires the driver psycopg_c, which is not"):
        Fleet.open_query("hosted:///d", "SELECT 1")


def test_an_error_at_closing_does_not_hide_the_cause(monkeypatch, database) -> None:
    """A lost connection cannot be closed either; the first error is reported."""
    close = sqlalchemy.Connection.close

    def lost(self: sqlalchemy.Connection) -> None:
        close(self)
        raise RefusingError(None, "gone")

    monkeypatch.setattr(sqlalchemy.Connection, "close", lost)

    with pytest.raises(FleetError, match="no such table: fleat"):
        Fleet.open_query(database("id", ("a",)), "SELECT id FROM fleat")


def test_an_asynchronous_driver_is_refused(monkeypatch) -> None:
    """Otherwise SQLAlchemy's message would be about a missing greenlet."""
    monkeypatch.setitem(sys.modules, "aiosqlite", sqlite3)

    with pytest.raises(FleetError, match=r"^sqlite\+aiosqlite is asynchronous: name another driver"):
        Fleet.open_query("sqlite+aiosqlite:///x.db", "SELECT 1")


def test_the_message_without_sqlalchemy_says_what_to_install(monkeypatch) -> None:
    """SQLAlchemy is an optional dependency."""
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    with pytest.raises(FleetError, match=r"pip install 'postpress-async\[sql\]'$"):
        Fleet.open_query("sqlite://", "SELECT 1")


DATABASE_ERRORS = [
    ("42703", ['column "ide" does not exist\nLINE 1: ...'], 'column "ide" does not exist'),
    ("42601", [f"syntax error at or near \"'{SECRET}'\""], "syntax error at or near \"'...'\""),
    ("25006", ["cannot execute DELETE in a read-only transaction"], "cannot execute DELETE in a read-only"),
    ("42S02", [1146, "Table d.fleat is not there"], "Table d.fleat is not there"),
    ("22P02", [f'invalid input syntax for type integer: "{SECRET}"'], "RefusingError 22P02"),
    ("22007", [1292, f"Truncated incorrect DOUBLE value: {SECRET}"], "RefusingError 22007"),
    (None, [f"row {SECRET} is odd"], "RefusingError (its message may quote a row)"),
    (None, [], "RefusingError (its message may quote a row)"),
]


@pytest.mark.parametrize(("state", "words", "sentence"), DATABASE_ERRORS)
def test_a_database_is_quoted_only_if_it_cannot_quote_a_row(
    database, monkeypatch, state, words, sentence
) -> None:
    """The SQLSTATE decides: messages about names and rights are quoted, those about values are not."""

    def refuse(*_: object, **__: object) -> None:
        raise RefusingError(state, *words)

    monkeypatch.setattr(sqlalchemy.Connection, "exec_driver_sql", refuse)

    with pytest.raises(FleetError) as caught:
        Fleet.open_query(database("id", ("a",)), ALL)

    assert str(caught.value).startswith(f"the sqlite database fleet.db refused the query: {sentence}")
    assert SECRET not in all_text(caught.value)


def test_an_error_while_reading_rows_is_not_quoted(database, monkeypatch, copies) -> None:
    """Its message may be about any row."""

    def refuse(*_: object) -> None:
        raise RefusingError(None, f"the row with {SECRET}")

    monkeypatch.setattr(sqlalchemy.CursorResult, "fetchmany", refuse)

    with pytest.raises(
        FleetError, match=r"fleet\.db failed while reading the rows: RefusingError \(its message"
    ) as caught:
        Fleet.open_query(database("id", ("a",)), ALL)
    assert SECRET not in all_text(caught.value)
    assert copies[0].closed


@pytest.mark.parametrize("written", ["p@s/s w%örd", "p%40s%2Fs%20w%25%C3%B6rd", "p%40s/s%20w%25%C3%B6rd"])
def test_a_password_is_not_shown_if_the_database_cannot_be_reached(monkeypatch, written) -> None:
    """Drivers quote the password, decoded or as it was written in the URL."""

    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError(f"no route to db.example by u:{written}\nhint: {written}")

    monkeypatch.setattr(Hosted, "connect", refuse)

    with pytest.raises(FleetError) as caught:
        Fleet.open_query("hosted://u:p%40s%2Fs%20w%25%C3%B6rd@db.example/d", "SELECT 1")

    shown = all_text(caught.value)
    assert str(caught.value) == (
        "the hosted database d on db.example cannot be reached: no route to db.example by u:***"
    )
    assert "p@s/s" not in shown
    assert "%2Fs" not in shown


def test_no_row_is_logged(database, caplog) -> None:
    """SQLAlchemy logs every row at the level DEBUG, which a service may have set."""
    url = database("id, host, port, password", ("a", "h", 1, SECRET))
    levels = {name: logging.getLogger(name).level for name in ("", "sqlalchemy", "sqlalchemy.engine")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        Fleet.open_query(url, f"SELECT *, '{SECRET}' AS note FROM fleet").close()
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    assert SECRET not in caplog.text + json.dumps([str(record.args) for record in caplog.records])


# --- A URL in an argument ------------------------------------------------------------------------


URLS_WITH_PASSWORD = [
    f"postgresql://u:{SECRET}@h/d",
    f"postgresql+psycopg://u:{SECRET}@h:5432/d?sslmode=require",
    "postgresql://u:p/a@s?s#@h/d",
    "postgresql://:p@h/d",
    "postgresql:///d?password=p",
    "postgresql:///d?user=u&PASSWORD=p",
    "postgresql:///d?user=u&sslpassword=p",
    "mysql://h/d?passwd=p",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BUID%3Du%3BPWD%3Dp",
    "snowflake://u@h/d?token=p",
]


@pytest.mark.parametrize("url", URLS_WITH_PASSWORD)
def test_a_password_in_an_argument_is_refused(url) -> None:
    """All users of a machine can see all arguments; the message names three better places."""
    with pytest.raises(ConfigurationError) as caught:
        check_argument(url)

    message = str(caught.value)
    assert SECRET not in all_text(caught.value)
    assert all(name in message for name in ("POSTPRESS_DATABASE_URL", "--from-file", "PGPASSFILE"))


URLS_WITHOUT_PASSWORD = [
    "postgresql://h/d",
    "postgresql://u@h:5432/d",
    "postgresql+psycopg://u@[::1]:5432/d?sslmode=require",
    "postgresql:///d?host=/run/postgresql&passfile=/home/u/.pgpass",
    "postgresql://u:@h/d",
    "sqlite:////home/u/fleet:2@home.db",
    "sqlite://",
    "no URL at all",
]


@pytest.mark.parametrize("url", URLS_WITHOUT_PASSWORD)
def test_a_url_without_a_password_may_be_an_argument(url) -> None:
    """Any other error in the URL is reported when the database is opened."""
    assert check_argument(url) == url
