"""A fleet as the answer of a query: asked once, only reading, and with no row in what is said."""

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
    """What a driver raises, with the state that the SQL standard gives it."""

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
    """A SQLite database with that table, and the URL that names it."""
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


# --- What is read --------------------------------------------------------------------------------


def test_a_row_of_the_answer_is_an_account(database) -> None:
    """The query names its columns as a fleet's are named; the line is the number in the answer."""
    url = database("id, cc, region", ("a", "us", "x"), ("b", "de", "y"))

    with Fleet.open_query(
        url, "SELECT id AS account_id, cc AS country, region FROM fleet ORDER BY 1"
    ) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US), Row(1, 2, "b", ManagedProxy(country="DE"))]
        assert fleet.ignored_columns == ("region",)
        assert fleet.name == "<query>"


def test_values_are_read_by_their_types(database) -> None:
    """A column of SQLite may hold any type; a wrong one costs its row, and is not shown."""
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


def test_any_text_comes_back_to_the_letter(database) -> None:
    """The copy is our own format, and a password may have what ends a line or a quote."""
    passwords = ["п𝛼ß\u2028\x85", "\"';,{[\\", " p ", "%s :x ?"]
    url = database("id, host, port, password", *[(f"a{n}", "h", 1, p) for n, p in enumerate(passwords)])

    with Fleet.open_query(url, ALL) as fleet:
        rows: list[Any] = list(fleet.rows())

    assert [row.change.password.reveal() for row in rows] == passwords


def test_a_query_is_taken_as_it_is(database) -> None:
    """Its percent signs, colons and question marks are no parameters of ours."""
    url = database("id, country", ("a:b", "US"), ("acc_1", "US"), ("acc%2", "US"))

    with Fleet.open_query(url, "SELECT * FROM fleet WHERE id LIKE 'acc_%' AND id <> ':x?%s'") as fleet:
        assert [row.account_id for row in fleet.rows()] == ["acc_1", None]


def test_a_row_that_names_nothing_but_an_account_takes_the_default(database) -> None:
    """A list of ids is what a database is asked for most."""
    with Fleet.open_query(database("id", ("a",)), ALL, default=US) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]


def test_rows_do_not_change_between_the_check_and_the_run(database) -> None:
    """It is asked once: between the two passes the database goes on."""
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


def test_the_digest_knows_an_input_again(database) -> None:
    """A run that was stopped queries again; an unused column may have changed by then."""
    url = database("id, country, seen", ("a", "US", 1), ("b", "DE", 2))
    first = Fleet.open_query(url, ALL)
    execute(url, "UPDATE fleet SET seen = seen + 1")

    with first, Fleet.open_query(url, ALL) as again, Fleet.open_query(url, ALL + " DESC") as other:
        assert reader_of(again).digest == reader_of(first).digest
        assert reader_of(other).digest != reader_of(first).digest


def test_memory_does_not_grow_with_the_answer() -> None:
    """It comes by the cursor, some hundred rows at a time, and goes to the disk."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
    query = f"{numbers} SELECT printf('%0250d', i) AS id, 'US' AS country FROM n"
    Fleet.open_query("sqlite://", "SELECT 'a' AS id, 'US' AS country").close()  # what it imports, is
    tracemalloc.start()
    try:
        with Fleet.open_query("sqlite://", query) as fleet:
            assert fleet.survey().rows == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 3_000_000  # two and a half million bytes of ids went by, twice


# --- The copy ------------------------------------------------------------------------------------


@pytest.fixture
def copies(monkeypatch):
    """The temporary files that are made."""
    made = []
    make = sys.modules["tempfile"].TemporaryFile

    def remember(**options: Any) -> Any:
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr("tempfile.TemporaryFile", remember)
    return made


def test_the_copy_is_private_and_does_not_stay(database, copies, tmp_path, monkeypatch) -> None:
    """It has passwords: nobody else may read it, and closing the fleet leaves nothing behind."""
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


def test_a_fleet_that_is_closed_while_it_is_read_says_so() -> None:
    """The copy is gone, and the pass cannot go on."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
    with Fleet.open_query(
        "sqlite://", f"{numbers} SELECT 'acc_' || i AS id, 'US' AS country FROM n"
    ) as fleet:
        rows = fleet.rows()
        next(rows)

    with pytest.raises(FleetError, match="the query cannot be read: the fleet was closed"):
        list(rows)


def test_a_query_that_is_broken_off_leaves_no_copy(database, copies, monkeypatch) -> None:
    """Ctrl-C comes while the database is slow."""

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


# --- It only reads -------------------------------------------------------------------------------


WRITES = [
    "DELETE FROM fleet",
    "DELETE FROM fleet RETURNING id",
    "DROP TABLE fleet",
    "UPDATE fleet SET country = 'DE'",
]


@pytest.mark.parametrize("statement", WRITES)
def test_a_statement_that_writes_is_refused(database, statement) -> None:
    """A slip in a query must not cost the table from which it reads."""
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
    """It changes nothing in the database, and is no read of it either."""
    monkeypatch.chdir(tmp_path)
    url = database("id, country", ("a", "US"))
    before = sorted(os.listdir())

    with pytest.raises(
        FleetError, match=r"refused the query: (not authorized|authorization denied): write one"
    ):
        Fleet.open_query(url, statement)

    assert sorted(os.listdir()) == before


def test_a_pragma_cannot_make_the_database_writable(database) -> None:
    """The file itself was opened read-only."""
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
    """Virtual tables prepare changes to be read, and a log's readers share a file beside it."""
    url = database("id, country", ("a", "US"))
    execute(url, make)

    with Fleet.open_query(url, query) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "acc_1", US)]


def test_a_database_may_have_any_name(tmp_path, monkeypatch) -> None:
    """It is opened by a URI, in which such characters mean something else."""
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
    """Each in its own way, before the query; here SQLite plays them, and the words are what is looked at."""
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


def test_a_database_that_does_not_exist_is_not_made(tmp_path) -> None:
    """SQLite would make an empty one, and then say that it has no such table."""
    path = tmp_path / "gone.db"

    with pytest.raises(FleetError, match=r"the sqlite database gone\.db does not exist: check its path"):
        Fleet.open_query(f"sqlite:///{path}", ALL)
    assert not path.exists()


# --- What is said --------------------------------------------------------------------------------


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
    """By the database's own words, where they cannot quote a row or a literal."""
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
    """It may have a password, and none of it is shown."""
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


def test_a_connection_that_cannot_even_be_closed_hides_nothing(monkeypatch, database) -> None:
    """The cause is reported, not its consequence."""
    close = sqlalchemy.Connection.close

    def lost(self: sqlalchemy.Connection) -> None:
        close(self)
        raise RefusingError(None, "gone")

    monkeypatch.setattr(sqlalchemy.Connection, "close", lost)

    with pytest.raises(FleetError, match="no such table: fleat"):
        Fleet.open_query(database("id", ("a",)), "SELECT id FROM fleat")


def test_an_asynchronous_driver_is_refused(monkeypatch) -> None:
    """SQLAlchemy would say that a greenlet is missing."""
    monkeypatch.setitem(sys.modules, "aiosqlite", sqlite3)

    with pytest.raises(FleetError, match=r"^sqlite\+aiosqlite is asynchronous: name another driver"):
        Fleet.open_query("sqlite+aiosqlite:///x.db", "SELECT 1")


def test_without_sqlalchemy_it_says_what_to_install(monkeypatch) -> None:
    """Few need it."""
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    with pytest.raises(FleetError, match=r"pip install 'postpress-async\[sql\]'$"):
        Fleet.open_query("sqlite://", "SELECT 1")


SAYINGS = [
    ("42703", ['column "ide" does not exist\nLINE 1: ...'], 'column "ide" does not exist'),
    ("42601", [f"syntax error at or near \"'{SECRET}'\""], "syntax error at or near \"'...'\""),
    ("25006", ["cannot execute DELETE in a read-only transaction"], "cannot execute DELETE in a read-only"),
    ("42S02", [1146, "Table d.fleat is not there"], "Table d.fleat is not there"),
    ("22P02", [f'invalid input syntax for type integer: "{SECRET}"'], "RefusingError 22P02"),
    ("22007", [1292, f"Truncated incorrect DOUBLE value: {SECRET}"], "RefusingError 22007"),
    (None, [f"row {SECRET} is odd"], "RefusingError (its message may quote a row)"),
    (None, [], "RefusingError (its message may quote a row)"),
]


@pytest.mark.parametrize(("state", "words", "sentence"), SAYINGS)
def test_a_database_is_quoted_only_where_it_cannot_quote_a_row(
    database, monkeypatch, state, words, sentence
) -> None:
    """By the state of the SQL standard: those of names and rights, and none of values."""

    def refuse(*_: object, **__: object) -> None:
        raise RefusingError(state, *words)

    monkeypatch.setattr(sqlalchemy.Connection, "exec_driver_sql", refuse)

    with pytest.raises(FleetError) as caught:
        Fleet.open_query(database("id", ("a",)), ALL)

    assert str(caught.value).startswith(f"the sqlite database fleet.db refused the query: {sentence}")
    assert SECRET not in all_text(caught.value)


def test_a_database_that_breaks_off_is_not_quoted(database, monkeypatch, copies) -> None:
    """What comes after the first rows may be about any of them."""

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
def test_a_database_that_cannot_be_reached_does_not_get_its_password_shown(monkeypatch, written) -> None:
    """Drivers quote what they were given, in one way or another."""

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
    """SQLAlchemy logs every row at its debug level, and a service may have that on."""
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


HIDDEN = [
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


@pytest.mark.parametrize("url", HIDDEN)
def test_a_password_in_an_argument_is_refused(url) -> None:
    """Every user of the machine sees the arguments of every process; there are three better places."""
    with pytest.raises(ConfigurationError) as caught:
        check_argument(url)

    message = str(caught.value)
    assert SECRET not in all_text(caught.value)
    assert all(name in message for name in ("POSTPRESS_DATABASE_URL", "--from-file", "PGPASSFILE"))


OPEN = [
    "postgresql://h/d",
    "postgresql://u@h:5432/d",
    "postgresql+psycopg://u@[::1]:5432/d?sslmode=require",
    "postgresql:///d?host=/run/postgresql&passfile=/home/u/.pgpass",
    "postgresql://u:@h/d",
    "sqlite:////home/u/fleet:2@home.db",
    "sqlite://",
    "no URL at all",
]


@pytest.mark.parametrize("url", OPEN)
def test_a_url_without_a_password_may_be_an_argument(url) -> None:
    """An error in the statement is reported when it is executed."""
    assert check_argument(url) == url
