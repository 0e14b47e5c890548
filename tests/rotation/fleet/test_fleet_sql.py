"""Fleets from SQL queries: a query runs once, cannot write, and its errors show no values of rows."""

import errno
import io
import json
import logging
import os
import sqlite3
import stat
import sys
import tempfile
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


class DriverError(Exception):
    """An error of a database driver, with a SQLSTATE."""

    def __init__(self, sqlstate: str | None, *args: object) -> None:
        super().__init__(*args)
        self.sqlstate = sqlstate


class ServerDialect(SQLiteDialect_pysqlite):
    """
    A dialect whose URLs have a host, a user and a password, like those of a database server.

    It connects to an empty SQLite database in memory.
    """

    supports_statement_cache = True

    def create_connect_args(self, url: sqlalchemy.URL) -> Any:
        return [":memory:"], {}


sqlalchemy.dialects.registry.register("server", __name__, "ServerDialect")


@pytest.fixture
def database(tmp_path):
    """A function that creates a SQLite database with a table named fleet, and returns its URL."""
    path = tmp_path / "fleet.db"

    def database(columns: str, *rows: Sequence[Any]) -> str:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"CREATE TABLE fleet ({columns})")
            parameters = ", ".join("?" * len(columns.split(",")))
            connection.executemany(f"INSERT INTO fleet VALUES ({parameters})", rows)
        return f"sqlite:///{path}"

    return database


def numbers_to(count: int) -> str:
    """The beginning of a query of numbers, from 1 to *count*."""
    step = f"SELECT number + 1 FROM numbers WHERE number < {count}"
    return f"WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL {step})"


def execute(url: str, statement: str) -> list[Any]:
    """Execute a statement in the database of the fixture, outside the fleet."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        return connection.execute(statement).fetchall()


# --- Rows ---------------------------------------------------------------------------------------


def test_row_of_the_result_is_a_row_of_the_fleet(database) -> None:
    """The line of a row is its position in the result, from 1."""
    url = database("id, cc, region", ("a", "us", "x"), ("b", "de", "y"))

    with Fleet.open_query(
        url, "SELECT id AS account_id, cc AS country, region FROM fleet ORDER BY 1"
    ) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US), Row(1, 2, "b", ManagedProxy(country="DE"))]
        assert fleet.ignored_columns == ("region",)
        assert fleet.name == "<query>"


def test_row_with_a_value_of_the_wrong_type_is_refused(database) -> None:
    """A column of SQLite can contain values of all types. The refusal does not show the value."""
    url = database(
        "id, host, port, password",
        ("a", "h", 80, "p"),
        ("b", "h", 80.0, None),
        ("c", "h", 80.5, "p"),
        ("d", "h", "81", "p"),
        ("e", "h", 80, 12345678),
        ("f", "h", 80, b"p"),
        (7, "h", 80, "p"),
        ("g", "h", -1, "p"),
        (None, "h", -1, "p"),
        ("c", "h", 80, "p"),
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


def test_password_with_special_characters_is_read_unchanged(database) -> None:
    """Rows are copied to a file as lines of JSON, so line ends and quotes must be escaped."""
    passwords = ["п𝛼ß\u2028\x85", "\"';,{[\\", " p ", "%s :x ?"]
    url = database("id, host, port, password", *[(f"a{n}", "h", 1, p) for n, p in enumerate(passwords)])

    with Fleet.open_query(url, ALL) as fleet:
        rows: list[Any] = list(fleet.rows())

    assert [row.change.password.reveal() for row in rows] == passwords


def test_percent_signs_colons_and_question_marks_in_a_query_are_not_parameters(database) -> None:
    url = database("id, country", ("a:b", "US"), ("acc_1", "US"), ("acc%2", "US"))

    with Fleet.open_query(url, "SELECT * FROM fleet WHERE id LIKE 'acc_%' AND id <> ':x?%s'") as fleet:
        # The second row is refused, because an account id cannot contain a percent sign.
        assert [row.account_id for row in fleet.rows()] == ["acc_1", None]


def test_row_with_only_an_account_gets_the_default(database) -> None:
    with Fleet.open_query(database("id", ("a",)), ALL, default=US) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]


def test_changes_in_the_database_do_not_affect_a_fleet_that_is_open(database) -> None:
    """The query runs only once, so that the rows that are sent are those that were checked."""
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


def test_digest_depends_on_the_order_of_rows_but_not_on_unused_columns(database) -> None:
    """A resumed run repeats the query and compares the digests. Unused columns may have changed by then."""
    url = database("id, country, seen", ("a", "US", 1), ("b", "DE", 2))
    first = Fleet.open_query(url, ALL)
    execute(url, "UPDATE fleet SET seen = seen + 1")

    with first, Fleet.open_query(url, ALL) as second, Fleet.open_query(url, ALL + " DESC") as reordered:
        assert reader_of(second).digest == reader_of(first).digest
        assert reader_of(reordered).digest != reader_of(first).digest


def test_memory_does_not_grow_with_the_size_of_the_rows() -> None:
    """The rows are fetched in batches and copied to a file."""
    query = f"{numbers_to(10_000)} SELECT printf('%0250d', number) AS id, 'US' AS country FROM numbers"
    # Import SQLAlchemy before memory is measured.
    Fleet.open_query("sqlite://", "SELECT 'a' AS id, 'US' AS country").close()
    tracemalloc.start()
    try:
        with Fleet.open_query("sqlite://", query) as fleet:
            assert fleet.survey().rows == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 3_000_000  # the ids have 2.5 million bytes, and the query and the survey each read them


# --- The copy ------------------------------------------------------------------------------------


@pytest.fixture
def copies(monkeypatch):
    """A list of the temporary files that were created during the test."""
    created = []
    create = tempfile.TemporaryFile

    def record(**options: Any) -> Any:
        created.append(create(**options))
        return created[-1]

    monkeypatch.setattr("tempfile.TemporaryFile", record)
    return created


def test_copy_is_readable_by_its_owner_only_and_deleted_with_the_fleet(
    database, copies, tmp_path, monkeypatch
) -> None:
    """The copy contains passwords."""
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


def test_closing_a_fleet_during_a_pass_ends_the_pass_with_an_error() -> None:
    """The copy is deleted, so the remaining rows cannot be read."""
    query = f"{numbers_to(50_000)} SELECT 'acc_' || number AS id, 'US' AS country FROM numbers"
    with Fleet.open_query("sqlite://", query) as fleet:
        rows = fleet.rows()
        next(rows)

    with pytest.raises(FleetError, match="the query cannot be read: the fleet was closed"):
        list(rows)


def test_ctrl_c_while_rows_are_fetched_deletes_the_copy(database, copies, monkeypatch) -> None:
    def interrupt(self: Query, size: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Query, "batches", interrupt)

    with pytest.raises(KeyboardInterrupt):
        Fleet.open_query(database("id, country", ("a", "US")), ALL)
    assert copies[0].closed


def test_full_disk_is_reported_and_the_incomplete_copy_is_deleted(database, monkeypatch) -> None:
    """The temporary folder may be smaller than the fleet."""

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

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
def test_statement_that_writes_is_refused(database, statement) -> None:
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
def test_statement_that_creates_a_file_is_refused(database, tmp_path, monkeypatch, statement) -> None:
    """ATTACH and VACUUM INTO would create a file even if the database is open read-only."""
    monkeypatch.chdir(tmp_path)
    url = database("id, country", ("a", "US"))
    before = sorted(os.listdir())

    with pytest.raises(
        FleetError, match=r"refused the query: (not authorized|authorization denied): write one"
    ):
        Fleet.open_query(url, statement)

    assert sorted(os.listdir()) == before


def test_pragma_cannot_change_the_database(database) -> None:
    url = database("id, country", ("a", "US"))

    with pytest.raises(FleetError, match="refused the query: attempt to write a readonly database"):
        Fleet.open_query(url, "PRAGMA user_version = 7")

    assert execute(url, "PRAGMA user_version") == [(0,)]


@pytest.mark.parametrize(
    ("setup", "query"),
    [
        ("SELECT 1", "SELECT 'acc_' || value AS id, 'US' AS country FROM json_each('[1]')"),
        (
            "CREATE VIRTUAL TABLE words USING fts5(word)",
            "SELECT 'acc_1' AS id, 'US' AS country FROM fleet LEFT JOIN words",
        ),
        ("CREATE VIEW view AS SELECT 'acc_1' AS id, 'US' AS country", "SELECT * FROM view"),
        ("PRAGMA journal_mode = WAL", "SELECT 'acc_1' AS id, 'US' AS country FROM fleet"),
    ],
    ids=["JSON function", "full-text index", "view", "write-ahead log"],
)
def test_query_that_only_reads_is_allowed(database, setup, query) -> None:
    """To read a full-text index or a write-ahead log, SQLite itself needs actions that look like writing."""
    url = database("id, country", ("a", "US"))
    execute(url, setup)

    with Fleet.open_query(url, query) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "acc_1", US)]


def test_file_name_of_a_database_may_have_special_characters(tmp_path, monkeypatch) -> None:
    """The file is opened by a URI, in which these characters must be escaped."""
    name = "a b?c#d%41.db"
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(name)) as connection, connection:
        connection.execute("CREATE TABLE fleet AS SELECT 'a' AS id, 'US' AS country")
    url = sqlalchemy.URL.create("sqlite", database=name).render_as_string()

    with Fleet.open_query(url, ALL) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]


def test_database_given_as_a_uri_is_opened_read_only(database, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = database("id, country", ("a", "US")).rpartition("/")[2]
    url = f"sqlite:///file:{name}?mode=rwc&uri=true"

    with Fleet.open_query(url, ALL) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]
    with pytest.raises(FleetError, match="attempt to write a readonly database"):
        Fleet.open_query(url, "DELETE FROM fleet RETURNING id")


@pytest.mark.parametrize("backend", ["postgresql", "mysql", "mariadb"])
def test_query_runs_in_a_read_only_transaction(monkeypatch, backend) -> None:
    """SQLite takes the place of the server, so only the statements and options that are sent are checked."""
    executed: list[Any] = []
    monkeypatch.setattr(ServerDialect, "name", backend)
    set_options, execute = sqlalchemy.Connection.execution_options, sqlalchemy.Connection.exec_driver_sql

    def record_options(self: sqlalchemy.Connection, **options: Any) -> Any:
        executed.append(options)
        return set_options(self, **options)

    def record_statement(self: sqlalchemy.Connection, statement: str, **options: Any) -> Any:
        executed.append(statement)
        # SQLite does not know SET SESSION TRANSACTION.
        return execute(self, statement if statement.startswith("SELECT") else "SELECT 1", **options)

    monkeypatch.setattr(sqlalchemy.Connection, "execution_options", record_options)
    monkeypatch.setattr(sqlalchemy.Connection, "exec_driver_sql", record_statement)
    query = "SELECT 'a' AS id, 'US' AS country"

    with Fleet.open_query("server://db.example/d", query) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]
    is_postgresql = backend == "postgresql"
    read_only = {"postgresql_readonly": True} if is_postgresql else "SET SESSION TRANSACTION READ ONLY"
    assert executed[:2] == [read_only, query]


def test_missing_database_is_reported_and_not_created(tmp_path) -> None:
    """By itself, SQLite would create an empty database and then report a missing table."""
    path = tmp_path / "gone.db"

    with pytest.raises(FleetError, match=r"the sqlite database gone\.db does not exist: check its path"):
        Fleet.open_query(f"sqlite:///{path}", ALL)
    assert not path.exists()


# --- Messages ------------------------------------------------------------------------------------


INVALID_QUERIES = [
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


@pytest.mark.parametrize(("query", "sentence"), INVALID_QUERIES)
def test_invalid_query_is_reported_without_values_of_rows_or_literals(database, query, sentence) -> None:
    """The database's message is quoted only if it cannot contain a value of a row or a literal."""
    url = database("id, host, port, password", ("a", "h", 1, SECRET))

    with pytest.raises(FleetError) as caught:
        Fleet.open_query(url, query)

    assert sentence in str(caught.value)
    assert str(caught.value).startswith(("the sqlite database fleet.db ", "the query "))
    assert str(caught.value).isprintable()
    assert SECRET not in all_text(caught.value)


INVALID_URLS = [
    (f"{SECRET}", "the database's URL cannot be read: write it as postgresql+psycopg://user@host/database"),
    ("", "the database's URL cannot be read: write it as "),
    (f"postgresql://u:{SECRET}@h:port/d", "the database's URL cannot be read: write it as "),
    (f"postgres://u:{SECRET}@h/d", "SQLAlchemy has no dialect 'postgres': write it as postgresql+"),
    (f"mysql+mysqldb://u:{SECRET}@h/d", "the driver MySQLdb is not installed: install it, or name yours"),
    (f"sqlite+pysqlcipher://:{SECRET}@/d", "the driver "),
]


@pytest.mark.parametrize(("url", "sentence"), INVALID_URLS)
def test_invalid_database_url_is_reported_without_its_password(url, sentence) -> None:
    with pytest.raises(FleetError) as caught:
        Fleet.open_query(url, "SELECT 1")

    assert str(caught.value).startswith(sentence)
    assert SECRET not in all_text(caught.value)


def test_driver_with_a_missing_dependency_is_reported(monkeypatch) -> None:
    """Some drivers import a dependency only when they connect, such as psycopg its C library."""

    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("no pq", name="psycopg_c")

    monkeypatch.setattr(ServerDialect, "connect", fail)

    with pytest.raises(FleetError, match="the server database d requires the driver psycopg_c, which is not"):
        Fleet.open_query("server:///d", "SELECT 1")


def test_error_of_closing_the_connection_does_not_hide_the_first_error(monkeypatch, database) -> None:
    """If the connection is lost, closing it fails too."""
    close = sqlalchemy.Connection.close

    def close_and_fail(self: sqlalchemy.Connection) -> None:
        close(self)
        raise DriverError(None, "gone")

    monkeypatch.setattr(sqlalchemy.Connection, "close", close_and_fail)

    with pytest.raises(FleetError, match="no such table: fleat"):
        Fleet.open_query(database("id", ("a",)), "SELECT id FROM fleat")


def test_asynchronous_driver_is_refused(monkeypatch) -> None:
    """By itself, SQLAlchemy would report a missing greenlet."""
    monkeypatch.setitem(sys.modules, "aiosqlite", sqlite3)

    with pytest.raises(FleetError, match=r"^sqlite\+aiosqlite is asynchronous: name another driver"):
        Fleet.open_query("sqlite+aiosqlite:///x.db", "SELECT 1")


def test_error_without_sqlalchemy_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    with pytest.raises(FleetError, match=r"pip install 'postpress-async\[sql\]'$"):
        Fleet.open_query("sqlite://", "SELECT 1")


DATABASE_ERRORS = [
    ("42703", ['column "ide" does not exist\nLINE 1: ...'], 'column "ide" does not exist'),
    ("42601", [f"syntax error at or near \"'{SECRET}'\""], "syntax error at or near \"'...'\""),
    ("25006", ["cannot execute DELETE in a read-only transaction"], "cannot execute DELETE in a read-only"),
    ("42S02", [1146, "Table d.fleat is not there"], "Table d.fleat is not there"),
    ("22P02", [f'invalid input syntax for type integer: "{SECRET}"'], "DriverError 22P02"),
    ("22007", [1292, f"Truncated incorrect DOUBLE value: {SECRET}"], "DriverError 22007"),
    (None, [f"row {SECRET} is odd"], "DriverError (its message may quote a row)"),
    (None, [], "DriverError (its message may quote a row)"),
]


@pytest.mark.parametrize(("sqlstate", "args", "sentence"), DATABASE_ERRORS)
def test_message_of_a_database_is_shown_only_if_it_cannot_quote_a_row(
    database, monkeypatch, sqlstate, args, sentence
) -> None:
    """The SQLSTATE decides: messages about names and permissions are shown, those about values are not."""

    def fail(*_: object, **__: object) -> None:
        raise DriverError(sqlstate, *args)

    monkeypatch.setattr(sqlalchemy.Connection, "exec_driver_sql", fail)

    with pytest.raises(FleetError) as caught:
        Fleet.open_query(database("id", ("a",)), ALL)

    assert str(caught.value).startswith(f"the sqlite database fleet.db refused the query: {sentence}")
    assert SECRET not in all_text(caught.value)


def test_message_of_an_error_while_rows_are_read_is_not_shown(database, monkeypatch, copies) -> None:
    """The message may quote a row."""

    def fail(*_: object) -> None:
        raise DriverError(None, f"the row with {SECRET}")

    monkeypatch.setattr(sqlalchemy.CursorResult, "fetchmany", fail)

    with pytest.raises(
        FleetError, match=r"fleet\.db failed while reading the rows: DriverError \(its message"
    ) as caught:
        Fleet.open_query(database("id", ("a",)), ALL)
    assert SECRET not in all_text(caught.value)
    assert copies[0].closed


@pytest.mark.parametrize("quoted", ["p@s/s w%örd", "p%40s%2Fs%20w%25%C3%B6rd", "p%40s/s%20w%25%C3%B6rd"])
def test_password_in_the_message_of_a_failed_connection_is_masked(monkeypatch, quoted) -> None:
    """Drivers may quote the password, either decoded or encoded as in a URL."""

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError(f"no route to db.example by u:{quoted}\nhint: {quoted}")

    monkeypatch.setattr(ServerDialect, "connect", fail)

    with pytest.raises(FleetError) as caught:
        Fleet.open_query("server://u:p%40s%2Fs%20w%25%C3%B6rd@db.example/d", "SELECT 1")

    shown = all_text(caught.value)
    assert str(caught.value) == (
        "the server database d on db.example cannot be reached: no route to db.example by u:***"
    )
    assert "p@s/s" not in shown
    assert "%2Fs" not in shown


def test_no_row_is_logged(database, caplog) -> None:
    """By itself, SQLAlchemy logs every row if the level is DEBUG."""
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


# --- URLs on the command line ---------------------------------------------------------------------


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
def test_password_in_a_url_on_the_command_line_is_refused(url) -> None:
    """All users of a machine can read its command lines. The message names three better places."""
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
def test_url_without_a_password_is_allowed_on_the_command_line(url) -> None:
    """Any other error in the URL is reported when the database is opened."""
    assert check_argument(url) == url
