"""Fleets from CSV and JSON Lines: valid rows are read exactly, and errors never show a password."""

import csv
import errno
import io
import json
import os
import stat
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation._fleet import Fleet, Survey, reader_of
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._fleet._row import FirstLines
from postpress_async.rotation._rows import Refusal, Row
from tests.support import DATA
from tests.support.fleet_forms import all_text, refusals

MESSY = json.loads((DATA / "messy-expected.json").read_text("utf-8"))  # the expected result of each line
US = ManagedProxy(country="US")
SECRET = "pa55!word"  # not a valid account id, so it is never shown as one if cells are shifted

# All examples of a test share a directory, and each overwrites the file in it.
shared_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path):
    """A function that writes a file and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        path: Path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


@pytest.fixture
def rows(write):
    """A function that returns the rows of a file with the given content."""

    def rows(
        content: str | bytes, name: str = "fleet.csv", default: ProxyChange | None = None
    ) -> list[Row | Refusal]:
        with Fleet.open(write(name, content), default=default) as fleet:
            return list(fleet.rows())

    return rows


def body(change: ProxyChange) -> dict[str, Any]:
    """The change as plain values, like those in the file of expected results."""
    if isinstance(change, ManagedProxy):
        return {name: value for name in ("country", "ip") if (value := getattr(change, name)) is not None}
    names = ("host", "port", "protocol", "username")
    proxy = {name: value for name in names if (value := getattr(change, name)) is not None}
    return {"proxy": proxy | ({"password": change.password.reveal()} if change.password else {})}


# --- The rows ------------------------------------------------------------------------------------


def test_clean_fleet_has_no_refusals() -> None:
    with Fleet.open(DATA / "fleet.csv") as fleet:
        survey = fleet.survey()
        assert (survey.rows, survey.refused) == (200, 0)
        assert fleet.ignored_columns == ()
        assert fleet.name == "fleet.csv"


@pytest.fixture(scope="module")
def messy():
    with Fleet.open(DATA / "messy.csv") as fleet:
        assert fleet.ignored_columns == ("note",)
        return {row.line: row for row in fleet.rows()}


@pytest.mark.parametrize("expected", MESSY, ids=[f"line {expected['line']}" for expected in MESSY])
def test_line_of_the_messy_fleet_has_the_expected_result(messy, expected) -> None:
    """The file has errors that are typical of spreadsheets."""
    row = messy[expected["line"]]

    assert row.ordinal == expected["line"] - 2
    if expected["ok"]:
        assert {"account_id": row.account_id} | body(row.change) == expected["change"]
    else:
        assert (row.column, row.reason) == (expected["column"], expected["because"])


def test_every_row_of_the_messy_fleet_has_an_expected_result(messy) -> None:
    assert sorted(messy) == [expected["line"] for expected in MESSY]


def test_two_passes_at_the_same_time_are_independent() -> None:
    with Fleet.open(DATA / "messy.csv") as fleet:
        pairs = list(zip(fleet.rows(), fleet.rows(), strict=True))

    assert len(pairs) == len(MESSY)
    assert all(first == second for first, second in pairs)


HEADERS = [
    "account_id,host,port,username,password",
    "Account ID,Proxy Host,Proxy-Port,USER,Pass",
    " id , proxy_host , proxy_port , proxy_user , proxy_password ",
    '"ACCOUNT","HOST","PORT","UserName","proxy pass"',
]


@pytest.mark.parametrize("header", HEADERS)
def test_common_column_names_are_recognized_in_any_case_and_spelling(rows, header) -> None:
    assert rows(f"{header}\nacc_1,h.example,80,u,p\n") == [
        Row(0, 2, "acc_1", CustomProxy(host="h.example", port=80, username="u", password="p"))
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_delimiter_is_detected_from_the_header_alone(rows, delimiter) -> None:
    """A password may contain other delimiters."""
    header = delimiter.join(["account_id", "host", "port", "password"])
    line = delimiter.join(["acc_1", "h", "80", '";,;,;,;,;"'])

    (row,) = rows(f"{header}\n{line}\n")

    assert row.change.password.reveal() == ";,;,;,;,;"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("ends_last_line", [True, False], ids=["last line ended", "last line not ended"])
def test_line_ends_of_all_platforms_are_recognized(rows, line_end, ends_last_line) -> None:
    text = line_end.join(["account_id,country", "acc_1,US", "", "acc_2,U"]) + line_end * ends_last_line

    assert [(row.ordinal, row.line) for row in rows(text)] == [(0, 2), (2, 4)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_utf8_and_utf16_are_detected(rows, encoding) -> None:
    """Excel writes UTF-8 with a byte-order mark, and its format "Unicode text" is UTF-16."""
    mark = "\ufeff" if encoding in {"utf-16-le", "utf-16-be"} else ""
    text = mark + "account_id\thost\tport\tpassword\r\nacc_1\th\t80\tп𝛼ß\u2028\x85ẅ\r\n"

    (row,) = rows(text.encode(encoding))

    assert row.change.password.reveal() == "п𝛼ß\u2028\x85ẅ"


def test_line_numbers_stay_correct_after_a_quoted_cell_of_several_lines(rows) -> None:
    """The line of a row is the one that an editor shows. The ordinal counts rows."""
    text = 'account_id,note,country\nacc_1,"a\r\nb\n\nc",US\nacc_2,,X\n'

    first, second = rows(text)

    assert first == Row(0, 2, "acc_1", US)
    assert (second.ordinal, second.line) == (1, 6)


def test_refusal_of_a_row_with_several_lines_names_the_lines(rows) -> None:
    """A stray quote makes the following rows part of its cell."""
    text = 'account_id,host,port,password\nacc_1,h,80,"x\nacc_2,h,80,y"\nacc_3,h,80,z\n'

    refusal, row = rows(text)

    assert (refusal.line, refusal.column) == (2, "password")
    assert refusal.advice.endswith("; lines 2 to 3 are one row because of their quotes")
    assert row.account_id == "acc_3"


@pytest.mark.parametrize("blank", ["", ",,", "  , ,\t", ",,,,,,", '"",""'])
def test_blank_rows_are_skipped_but_counted(rows, blank) -> None:
    """Filling in a blank row later must not change the ordinals of the other rows."""
    assert rows(f"account_id,country,note\nacc_1,US,\n{blank}\nacc_2,US,\n") == [
        Row(0, 2, "acc_1", US),
        Row(2, 4, "acc_2", US),
    ]


def test_blank_lines_before_the_header_are_skipped_but_counted(rows) -> None:
    assert rows("\n ,, \r\naccount_id,country\nacc_1,US\n") == [Row(0, 4, "acc_1", US)]


def test_missing_cells_at_the_end_of_a_row_are_empty(rows) -> None:
    """Some tools omit trailing delimiters."""
    assert rows("account_id,country,ip,note\nacc_1,US\n") == [Row(0, 2, "acc_1", US)]


def test_spaces_are_removed_except_in_passwords(rows) -> None:
    """A password with only spaces is a missing value."""
    text = "account_id,host,port,username,password\na, h , 80 , u ,  p w  \nb,h,80,u,   \n"

    first, second = (row.change for row in rows(text))

    assert (first.host, first.port, first.username, first.password.reveal()) == ("h", 80, "u", "  p w  ")
    assert second.password is None


def test_row_with_only_an_account_gets_the_default_or_is_refused(rows) -> None:
    text = "account_id,country\nacc_1,\nacc_2,DE\n"

    assert [row.change for row in rows(text, default=US)] == [US, ManagedProxy(country="DE")]
    assert [row.change for row in rows("id\nacc_1\nacc_2\n", default=US)] == [US, US]
    assert refusals(rows(text)) == [(2, None, "no proxy and no country")]


def test_row_with_a_proxy_without_a_host_does_not_get_the_default(rows) -> None:
    """The row probably lost its host by mistake."""
    assert refusals(rows("account_id,host,port\nacc_1,,80\n", default=US)) == [(2, "host", "host missing")]


HEADER = "account_id,proxy,host,port,protocol,username,password,country,ip"
REFUSED = [
    ("a,https://h:80,h2,,,,,,", "host", "proxy given twice"),
    ("a,https://h:80,,,,,p,,", "password", "proxy given twice"),
    ("a,https://h:80,,,,,,US,", "country", "custom and managed mixed"),
    ("a,https://h:80,,,,,,,192.0.2.1", "ip", "custom and managed mixed"),
    ("a,,h,80,,,,,192.0.2.1", "ip", "custom and managed mixed"),
    ("a,,,80,,,,US,", "port", "port without a proxy"),
    ("a,,,,http,,,,192.0.2.1", "protocol", "protocol without a proxy"),
    ("a,,,,,u,,US,", "username", "username without a proxy"),
    ("a,,,,,,p,,", "host", "host missing"),
    ("a,u:p,,,,,,,", "proxy", "port not an integer"),
    ("a,https://h,,,,,,,", "proxy", "port missing"),
    ("a,https://h:99999,,,,,,,", "proxy", "port out of range"),
    ("a,ftp://h:80,,,,,,,", "proxy", "protocol unknown"),
    ("a,,[h],80,,,,,", "host", "host not a host name"),
    ("a,,h,80,,,,,,", None, "more cells than the header"),
    ("a,,h,80,,,p,w,,", None, "more cells than the header"),
    ('a,,h,80,,,"p"w,,', None, "quotes not doubled"),
]


@pytest.mark.parametrize(
    "cell",
    ["h.example:80:u:p", "u:p@h.example:80", "http://u:p@h.example:80"],
)
def test_proxy_cell_may_have_any_form_of_a_line_in_a_proxy_list(rows, cell) -> None:
    [row] = rows(f"account_id,proxy\na,{cell}\n")

    assert (row.change.host, row.change.port, row.change.username) == ("h.example", 80, "u")
    assert row.change.password.reveal() == "p"


@pytest.mark.parametrize(("line", "column", "reason"), REFUSED)
def test_invalid_row_is_refused_and_the_next_row_is_read(rows, line, column, reason) -> None:
    results = rows(f"{HEADER}\n{line}\nz,,,,,,,US,\n")

    assert refusals(results) == [(2, column, reason)]
    assert results[1] == Row(1, 3, "z", US)


def test_refusal_of_a_row_with_shifted_cells_shows_no_account(rows) -> None:
    """Because of the extra comma, the cell for the account contains part of the password."""
    (refusal,) = rows("host,port,password,account_id\nh,80,pass,word,acc_1\n")

    assert refusal.account_id is None
    assert "word" not in str(refusal)


def test_invalid_port_is_not_shown(rows) -> None:
    """In a URL without a host, the password is at the place of the port."""
    (refusal,) = rows("account_id,proxy\nacc_1,https://user:12345678\n")

    assert refusal.reason == "port out of range"
    assert "12345678" not in str(refusal) + repr(refusal)


def test_later_lines_of_an_account_are_refused_even_if_the_first_is_invalid(rows) -> None:
    text = "account_id,country\nacc_1,XX\nacc_2,US\nacc_1,US\nacc_2,\nacc_1,US\n"

    assert refusals(rows(text)) == [
        (2, "country", "country not assigned"),
        (4, "account_id", "account already named"),
        (5, "account_id", "account already named"),
        (6, "account_id", "account already named"),
    ]


def test_survey_counts_valid_rows_and_lists_the_faults(write) -> None:
    """The list has all faults, so that a fleet needs to be corrected only once."""
    with Fleet.open(write("f.csv", "account_id,country\nacc_1,US\nacc_2,X\n,\nacc_3,DE\n")) as fleet:
        survey = fleet.survey()

    assert survey.rows == 2
    assert [fault.sentence() for fault in survey.faults] == [
        "line 3, country: country is two letters: give an ISO 3166-1 alpha-2 code, such as US"
    ]


def test_survey_describes_rows_with_the_same_fault_in_one_sentence(write) -> None:
    rows = (
        "acc_1,X\nacc_2,US\nacc_3,US\n" + "".join(f"acc_{n},X\n" for n in range(4, 1004)) + "acc_2,US\n" * 2
    )
    with Fleet.open(write("f.csv", f"account_id,country\n{rows}acc_9999,UK\n")) as fleet:
        faults = [fault.sentence() for fault in fleet.survey().faults]

    letters = "country is two letters: give an ISO 3166-1 alpha-2 code, such as US"
    assert faults == [
        f"1,001 lines (2, 5, 6, 7, 8 and 996 more), country: {letters}",
        "2 lines (1005, 1006), account_id: account already named: name each account once",
        "line 1007, country: country not assigned: use GB instead of UK",
    ]


def test_survey_passes_each_refusal_to_the_callback(write) -> None:
    """The callback gets all refusals without a second pass over the file."""
    seen: list[Refusal] = []
    with Fleet.open(write("f.csv", "account_id,country\nacc_1,X\nacc_2,US\nacc_1,US\n")) as fleet:
        survey = fleet.survey(seen.append)

    assert survey.refused == 2
    assert [(refusal.line, refusal.account_id, refusal.first_line) for refusal in seen] == [
        (2, "acc_1", None),
        (4, "acc_1", 2),
    ]


@pytest.mark.slow
def test_survey_of_invalid_rows_takes_about_as_much_memory_as_of_valid_rows(write) -> None:
    """If the survey kept all refusals, two million invalid rows would take 904 MiB instead of 220 MiB."""

    def peak(country: str) -> int:
        path = write("f.csv", "account_id,country\n" + "".join(f"a{n},{country}\n" for n in range(50_000)))
        with Fleet.open(path) as fleet:
            tracemalloc.start()
            fleet.survey()
            try:
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    valid, invalid = peak("US"), peak("X")

    assert invalid < valid + 1_000_000


# --- JSON Lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f.jsonl", "f.ndjson", "f.json-lines", "F.JSONL", "f.txt", "fleet"])
def test_json_lines_are_recognized_by_the_extension_or_the_first_character(rows, name) -> None:
    """Standard input has no extension, so its first character decides."""
    assert rows('\n {"account_id": "acc_1", "country": "us"}\n', name) == [Row(1, 2, "acc_1", US)]


PROXY = CustomProxy(host="2001:db8::1", port=8080, protocol="socks5", username="u", password=" p ")
JSON_ROWS = [
    ('{"account_id":"a","country":"US","ip":null,"proxy":null,"note":[{"x":1}]}', US),
    ('{"ID":" a ","Country Code":" us ","host":"","port":null}', US),
    ('{"id":"a","proxy":"socks5://u:%20p%20@[2001:db8::1]:8080"}', PROXY),
    ('{"id":"a","host":"[2001:db8::1]","port":8080,"protocol":"SOCKS5","user":"u","pass":" p "}', PROXY),
    ('{"id":"a","host":"2001:db8::1","port":" 8080 ","protocol":"socks5","user":"u","pass":" p "}', PROXY),
    (
        '{"id":"a","proxy":{"host":"2001:db8::1","port":8080,"protocol":"socks5","user":"u","pass":" p "}}',
        PROXY,
    ),
]


@pytest.mark.parametrize(("text", "change"), JSON_ROWS)
def test_keys_of_an_object_are_column_names_and_a_proxy_may_be_an_object(rows, text, change) -> None:
    assert rows(text, "f.jsonl") == [Row(0, 1, "a", change)]


JSON_REFUSED = [
    ("nonsense", None, "not a JSON object"),
    ('["a"]', None, "not a JSON object"),
    ('"a"', None, "not a JSON object"),
    ("null", None, "not a JSON object"),
    ('{"id":"a","country":"US"', None, "not a JSON object"),
    ('{"id":"a","country":"US"} {}', None, "not a JSON object"),
    ("{'id':'a'}", None, "not a JSON object"),
    ('{"id":"a","country":"US","x":NaN}', None, "not a JSON object"),
    ('{"id":"a","country":"US","x":-Infinity}', None, "not a JSON object"),
    ('{"id":"a","country":"US","x":' + "[" * 100_000 + "}", None, "not a JSON object"),
    ('{"id":"a","country":"US","x":' + '{"x":' * 100_000 + "}", None, "not a JSON object"),
    ('{"id":"a","host":"h","port":' + "9" * 5000 + "}", None, "not a JSON object"),
    ('{"id":"a","host":"h","port":' + "9" * 4000 + "}", "port", "port out of range"),
    ('{"id":"a","country":"US","country":"DE"}', None, "duplicate key"),
    ('{"id":"a","proxy":{"host":"h","port":1,"host":"i"}}', None, "duplicate key"),
    ('{"id":"a","country":"US","account_id":"b"}', "account_id", "duplicate key"),
    ('{"id":"a","proxy":{"host":"h","port":1,"user":"i","username":"j"}}', "username", "duplicate key"),
    ('{"id":7,"country":"US"}', "account_id", "account_id not text"),
    ('{"id":null,"country":"US"}', "account_id", "account_id missing"),
    ('{"country":"US"}', "account_id", "account_id missing"),
    ("{}", "account_id", "account_id missing"),
    ('{"id":"a"}', None, "no proxy and no country"),
    ('{"id":"a","country":1}', "country", "country not text"),
    ('{"id":"a","country":["US"]}', "country", "country not text"),
    ('{"id":"a","proxy":80}', "proxy", "proxy not text"),
    ('{"id":"a","proxy":{}}', "host", "host missing"),
    ('{"id":"a","proxy":{"host":"h"}}', "port", "port missing"),
    ('{"id":"a","proxy":{"host":"h","port":1},"host":"h"}', "host", "proxy given twice"),
    ('{"id":"a","proxy":{"host":"h","port":1},"country":"US"}', "country", "custom and managed mixed"),
    ('{"id":"a","host":"h","port":true}', "port", "port not an integer"),
    ('{"id":"a","host":"h","port":8080.0}', "port", "port not an integer"),
    ('{"id":"a","host":"h","port":1e3}', "port", "port not an integer"),
    ('{"id":"a","host":"h","port":"1e3"}', "port", "port not an integer"),
    ('{"id":"a","host":"h","port":0}', "port", "port out of range"),
    ('{"id":"a","host":"h","port":-1}', "port", "port out of range"),
    ('{"id":"a","host":"h","port":1,"password":"\\ud800"}', "password", "password is not Unicode"),
    ('{"id":"a","host":"h","port":1,"password":12345678}', "password", "password not text"),
]


@pytest.mark.parametrize(
    ("text", "column", "reason"), JSON_REFUSED, ids=[text[:60] for text, _, _ in JSON_REFUSED]
)
def test_invalid_json_line_is_refused_and_the_next_line_is_read(rows, text, column, reason) -> None:
    results = rows(f'{text}\n{{"id":"z","country":"US"}}\n', "f.jsonl")

    assert refusals(results) == [(1, column, reason)]
    assert results[1] == Row(1, 2, "z", US)
    assert "12345678" not in repr(results)


def test_later_json_line_of_an_account_is_refused_even_if_the_first_is_invalid(rows) -> None:
    text = '{"id":"a","host":"h","port":1.5}\n{"id":"a","country":"US"}\n'

    assert refusals(rows(text, "f.jsonl")) == [
        (1, "port", "port not an integer"),
        (2, "account_id", "account already named"),
    ]


def test_unknown_keys_are_ignored_columns_after_the_rows_were_read(write) -> None:
    """The list shows misspelt keys. JSON Lines has no header, so the rows must be read first."""
    text = '{"id":"a","county":"DE","country":"US"}\n{"id":"b","proxy":{"host":"h","port":1,"ttl":"x\\n"}}\n'
    with Fleet.open(write("f.jsonl", text)) as fleet:
        fleet.survey()

        assert fleet.ignored_columns == ("county", "ttl")


def test_at_most_twenty_unknown_keys_are_stored(write) -> None:
    """A file with data as keys must not fill the memory."""
    text = "".join(json.dumps({"id": f"a{n}", "country": "US", f"key {n}": 1}) + "\n" for n in range(50))
    with Fleet.open(write("f.jsonl", text)) as fleet:
        fleet.survey()

        assert len(fleet.ignored_columns) == 20


# --- Files that are not fleets --------------------------------------------------------------------


# An asterisk stands for the folder.
NOT_FLEETS = [
    pytest.param("f.csv", b"", "f.csv has no rows: it needs a header, and a line", id="no bytes"),
    pytest.param(
        "f.csv", b"\xef\xbb\xbf", "f.csv has no rows: it needs a header, and", id="a byte-order mark alone"
    ),
    pytest.param("f.csv", b"\n \n,,\n", "f.csv has no rows: it needs a header, and", id="blank lines alone"),
    pytest.param(
        "f.csv", b"account_id,ip\n", "f.csv has no rows: it needs a line for each", id="a header alone"
    ),
    pytest.param(
        "f.csv", b"account_id,ip\n,\n\n", "f.csv has no rows: it needs a line", id="a header and blanks"
    ),
    pytest.param(
        "f.jsonl", b"\n\n", "f.jsonl has no rows: it needs a line for each account", id="no objects"
    ),
    pytest.param("f.csv", b"id\na\0b\n", "line 2 of *f.csv has a NUL byte and is not text: save", id="a NUL"),
    pytest.param(
        "f.csv", b"id\nab\nc\n\xe4\n", "line 4 of *f.csv is not UTF-8: save the file as UTF-8", id="Latin-1"
    ),
    pytest.param(
        "f.csv", "id\na\n".encode("utf-16-le"), "line 1 of *has a NUL byte", id="UTF-16 without a mark"
    ),
    pytest.param("f.csv", b"\xff\xfei\0d\0\n\0\x00\xd8", "line 2 of *is not UTF-8", id="UTF-16 cut short"),
    pytest.param(
        "f.csv", b"\xff\xfei\0d\0\n\0\x00\xd8a\0", "line 2 of *is not UTF-8", id="half a surrogate pair"
    ),
    pytest.param(
        "f.csv", b"PK\x03\x04...", "f.csv is a workbook or a zip archive: export it as CSV", id="xlsx"
    ),
    pytest.param("f", b"\x28\xb5\x2f\xfd..", "f is compressed: unpack it first, as in zstd", id="zstd"),
    pytest.param("f.db", b"SQLite format 3\0..", "f.db is a SQLite database: name it as sqlite", id="SQLite"),
    pytest.param("f.feather", b"ARROW1\0\0", "f.feather is an Arrow or Feather file: write", id="Feather"),
    pytest.param("f", b"PARE....", "f is encrypted Parquet: write it without", id="encrypted Parquet"),
    pytest.param("f.pq", b"id,country\na,US\n", "f.pq is not Parquet, although its name says so", id="CSV"),
    pytest.param("f.parquet", b"\x1f\x8b\x08", "f.parquet is compressed: unpack", id="Parquet in gzip"),
    pytest.param("f.csv.gz", b"\x1f\x8b\x08...", "f.csv.gz is compressed: unpack it first", id="gzip"),
    pytest.param(
        "f.csv",
        b"PAR1...",
        "f.csv is damaged, or a Parquet file that pyarrow",
        id="Parquet's first bytes alone",
    ),
    pytest.param(
        "f.json", b' [{"id": 1}]', "f.json is one JSON array: write one object per line", id="a JSON array"
    ),
    pytest.param(
        "f.csv", b"x" * 140_000 + b"\nid", "line 1 of *has a cell of over 128 KiB", id="a huge header"
    ),
    pytest.param(
        "f.csv", b"id\n" + b"x" * 140_000, "line 2 of *has a cell of over 128 KiB: is a", id="a huge cell"
    ),
    pytest.param(
        "f.csv", b"id,n\n" + b"x,y\n" * 9 + b'z,"' + b"q\n" * 70_000, "line 11 of *128 KiB", id="lost quote"
    ),
    pytest.param(
        "f.csv", b'id,n\nx,y\nz,"q\na,b\n', "line 3 of *opens a quote that is never closed", id="open quote"
    ),
    pytest.param(
        "f.csv", b'id,"a"b\nx,y', "line 1 of *f.csv has wrong quotes: in a quoted cell", id="header's quotes"
    ),
    pytest.param(
        "f.csv", b"x" * 2**20 + b"yz", "line 1 of *f.csv is over 1 MiB long: give each", id="an endless line"
    ),
    pytest.param(
        "f.jsonl", b"{}\n" + b"x" * 2**21, "line 2 of *f.jsonl is over 1 MiB long", id="an endless object"
    ),
    pytest.param(
        "f.jsonl", b"{}\n" + b"x" * (2**20 + 1) + b"\n{}", "line 2 of *is over 1 MiB", id="a line too long"
    ),
    pytest.param(
        "f.csv",
        b"id,user,username\na,b,c",
        "has two columns for username, user and username: remove",
        id="two",
    ),
    pytest.param(
        "f.csv",
        b"Kontonummer,host,proxy port\na,b,c",
        "has no column account_id, only Kontonummer, host, proxy port: rename one of them; the known",
        id="no account_id",
    ),
    pytest.param(
        "f.csv", b"acc_1,h,80,user,hunter\n", "has no header with account_id: start it", id="no header"
    ),
]


@pytest.mark.parametrize(("name", "content", "sentence"), NOT_FLEETS)
def test_error_for_a_file_that_is_not_a_fleet_names_path_problem_and_fix(
    write, name, content, sentence
) -> None:
    path = write(name, content)

    with pytest.raises(FleetError) as caught:
        Fleet.open(path).survey()

    message = str(caught.value)
    start, _, end = sentence.rpartition("*")
    assert start in message
    assert end in message
    assert str(path) in message
    assert "\n" not in message


def test_error_for_a_missing_header_does_not_show_the_first_row(rows) -> None:
    """The first row may contain a password."""
    with pytest.raises(FleetError) as caught:
        rows("acc_1,h.example,8080,https,user,hunter\n")

    assert "hunter" not in all_text(caught.value)


def test_missing_file_is_reported(tmp_path) -> None:
    with pytest.raises(FleetError, match=r"gone\.csv does not exist: check the path") as caught:
        Fleet.open(tmp_path / "gone.csv")

    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a missing permission instead")
def test_directory_is_reported(tmp_path) -> None:
    with pytest.raises(FleetError, match=r"is a directory: give a file in it$"):
        Fleet.open(tmp_path)


def test_unreadable_file_is_reported(write, monkeypatch) -> None:

    def refuse(path: str) -> io.FileIO:
        raise PermissionError(
            errno.EACCES, "Permission denied", path
        )  # simulated, because root can read any file

    monkeypatch.setattr("postpress_async.rotation._fleet._file.io.FileIO", refuse)

    with pytest.raises(FleetError, match=r"f\.csv is not readable: change its permissions"):
        Fleet.open(write("f.csv", "id\na\n"))


@pytest.mark.parametrize(
    "path", ["", "a\0b.csv", "\ud800.csv", "x" * 5000], ids=["empty", "NUL", "surrogate", "long"]
)
def test_error_for_an_impossible_path_is_printable(path) -> None:
    with pytest.raises(FleetError) as caught:
        Fleet.open(path)

    assert str(caught.value).isprintable()


def test_read_error_is_reported(write, monkeypatch) -> None:
    """A network drive may fail while the file is read."""

    class Failing(io.FileIO):
        def readinto(self, buffer: Any, /) -> int | None:
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    path = write("f.csv", "id,country\na,US\n")
    with Fleet.open(path) as fleet:
        monkeypatch.setattr("postpress_async.rotation._fleet._file.io.FileIO", Failing)

        with pytest.raises(FleetError, match=r"f\.csv cannot be read: Input/output error"):
            fleet.survey()


# --- More than one pass --------------------------------------------------------------------------


def test_pass_over_a_file_that_grew_since_it_was_opened_fails(write) -> None:
    """The rows that are sent must be those that were checked."""
    path = write("f.csv", "id,country\na,US\n")
    fleet = Fleet.open(path)
    with path.open("ab") as file:
        file.write(b"b,US\n")

    with pytest.raises(
        FleetError, match=r"f\.csv has changed since it was opened: start again when nothing writes"
    ):
        fleet.survey()


def test_file_that_was_replaced_is_noticed(write) -> None:
    """Editors save by renaming: size and time may stay the same, but the inode changes."""
    path = write("f.csv", "id,country\na,US\n")
    fleet = Fleet.open(path)
    before = path.stat()
    other = write("g.csv", "id,country\nb,DE\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)

    with pytest.raises(FleetError, match="has changed"):
        reader_of(fleet).digest  # noqa: B018


def test_pass_over_a_file_that_changes_meanwhile_ends_with_an_error(write) -> None:
    path = write("f.csv", "id,country\na,US\nb,US\n")
    rows = Fleet.open(path).rows()
    next(rows)
    os.utime(path, ns=(1, 1))

    with pytest.raises(FleetError, match="has changed"):
        list(rows)


def test_closed_fleet_cannot_be_read(write) -> None:
    with Fleet.open(write("f.csv", "id,country\na,US\n")) as fleet:
        pass
    fleet.close()  # a second time

    with pytest.raises(FleetError, match="is closed: open the fleet again"):
        fleet.survey()


@pytest.fixture
def stdin(monkeypatch):
    """A function that replaces standard input by the given content."""

    def stdin(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return stdin


def test_standard_input_can_be_read_several_times(stdin) -> None:
    """Standard input is copied, so that every row can be checked before the first is sent."""
    stdin((DATA / "messy.csv").read_bytes())

    with Fleet.open("-") as fleet, Fleet.open(DATA / "messy.csv") as file:
        assert fleet.name == "<stdin>"
        assert list(fleet.rows()) == list(fleet.rows()) == list(file.rows())
        assert reader_of(fleet).digest == reader_of(file).digest
        assert all(first == second for first, second in zip(fleet.rows(), fleet.rows(), strict=True))


def test_copy_of_standard_input_is_private_and_deleted_with_the_fleet(stdin, tmp_path, monkeypatch) -> None:
    """The copy contains passwords."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stdin(b"id,country\na,US\n")

    with Fleet.open("-") as fleet:
        file = reader_of(fleet)._file
        assert isinstance(file, FleetFile)
        spool = file._spool
        assert spool is not None
        assert stat.S_IMODE(os.fstat(spool.fileno()).st_mode) == 0o600
        rows = fleet.rows()
    assert spool.closed
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FleetError, match="standard input is closed"):
        next(rows)


def test_closing_a_fleet_during_a_pass_ends_the_pass_with_an_error(stdin) -> None:
    """The copy is deleted, so the remaining rows cannot be read."""
    stdin(b"id,country\n" + b"".join(b"acc_%d,US\n" % number for number in range(50_000)))

    with Fleet.open("-") as fleet:
        rows = fleet.rows()
        next(rows)

    with pytest.raises(FleetError, match="standard input cannot be read: the fleet was closed"):
        list(rows)


def test_ctrl_c_while_standard_input_is_copied_deletes_the_copy(monkeypatch) -> None:
    """The copy may already contain passwords."""

    class Interrupted(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise KeyboardInterrupt

    copy = io.BytesIO()
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: copy)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupted()))

    with pytest.raises(KeyboardInterrupt):
        Fleet.open("-")
    assert copy.closed


@pytest.mark.parametrize("content", [b"", b"\0" * 1_000_000, b"PK\x03\x04"], ids=["empty", "NULs", "zip"])
def test_error_names_standard_input_instead_of_a_path(stdin, content) -> None:
    stdin(content)

    with pytest.raises(FleetError, match=r"^(line 1 of )?standard input (has|is) "):
        Fleet.open("-")


@pytest.mark.parametrize("stream", [None, io.StringIO("id\na\n")], ids=["no stream", "text stream"])
def test_missing_standard_input_is_reported(monkeypatch, stream) -> None:
    """A service may have no standard input."""
    monkeypatch.setattr(sys, "stdin", stream)

    with pytest.raises(FleetError, match="standard input is closed: give the path of a file"):
        Fleet.open("-")


def test_full_disk_is_reported_and_the_incomplete_copy_is_deleted(stdin, monkeypatch) -> None:
    """The temporary folder may be smaller than the fleet."""

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    full = Full()
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
    stdin(b"id\na\n")

    with pytest.raises(FleetError, match="cannot be copied to a temporary file: No space left on device"):
        Fleet.open("-")
    assert full.closed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_named_pipe_can_be_read_several_times(tmp_path) -> None:
    """The shell's <(command) passes a pipe, which is copied like standard input."""
    path = tmp_path / "fleet.csv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"id,country\na,US\n",))
    writer.start()

    with Fleet.open(path) as fleet:
        writer.join()
        assert fleet.survey() == fleet.survey() == Survey(rows=1, managed=1)
        assert fleet.name == "fleet.csv"


def test_digest_differs_between_files_and_between_defaults_except_for_their_passwords(write) -> None:
    """A journal belongs to one input. With a new default password, it is still the same input."""
    first, second = write("f.csv", "id\na\n"), write("g.csv", "id\nb\n")
    defaults: list[ProxyChange] = [
        US,
        ManagedProxy(country="DE"),
        CustomProxy(host="h", port=1),
        CustomProxy(host="h", port=1, username="u", password="p"),
    ]
    opened = [Fleet.open(first)] + [
        Fleet.open(path, default=default) for path in (first, second) for default in defaults
    ]

    assert len({reader_of(fleet).digest for fleet in opened}) == len(opened)
    new_password = CustomProxy(host="h", port=1, username="u", password="q")
    assert reader_of(Fleet.open(first, default=new_password)).digest == reader_of(opened[4]).digest


def test_survey_needs_less_memory_than_the_account_ids(write) -> None:
    """A million accounts must fit into a small container."""
    rows = "".join(f"{n:0250d},US\n" for n in range(10_000))
    fleet = Fleet.open(write("f.csv", f"id,country\n{rows}"))
    tracemalloc.start()
    try:
        assert fleet.survey().rows == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2_000_000  # the ids have 2.5 million bytes


@shared_directory
@given(st.lists(st.integers(0, 3000), max_size=4000))
def test_hash_table_of_first_lines_agrees_with_a_dict(numbers: list[int]) -> None:
    """A wrong result of the hash table would refuse an account, or send it twice."""
    table, expected = FirstLines(), dict[str, int]()

    for line, number in enumerate(numbers, start=1):
        first = expected.setdefault(f"acc_{number}", line)
        assert table.claim(f"acc_{number}", line) == (None if first == line else first)


@pytest.mark.parametrize("uses_siphash", [True, False], ids=["Python's hash", "BLAKE2b"])
def test_hash_table_of_first_lines_keeps_its_entries_when_it_grows(monkeypatch, uses_siphash) -> None:
    monkeypatch.setattr("postpress_async.rotation._fleet._row._IS_SIPHASH_64", uses_siphash)
    table = FirstLines()

    assert all(table.claim(f"acc_{number}", number + 1) is None for number in range(20_000))
    assert all(table.claim(f"acc_{number}", 99_999) == number + 1 for number in range(20_000))


# --- Generated files --------------------------------------------------------------------------------------


IDS = st.from_regex(r"[A-Za-z0-9._~-]{1,40}", fullmatch=True).filter(lambda text: text not in {".", ".."})
HOSTS = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z])?(\.[a-z]{2,9}){0,3}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
# All characters that a model accepts. A cell with only spaces is a missing value, so no text has only spaces.
LETTERS = st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\x7f")
PASSWORDS = st.text(LETTERS, min_size=1, max_size=20).filter(lambda text: not text.isspace())
NAMES = PASSWORDS.map(str.strip)
OWN = st.builds(
    CustomProxy,
    host=HOSTS,
    port=st.integers(1, 65535),
    protocol=st.none() | st.sampled_from(["https", "http", "socks5"]),
    username=st.none() | NAMES,
    password=st.none() | PASSWORDS,
)
MANAGED = st.builds(
    ManagedProxy, country=st.sampled_from(["US", "DE", "XK"]), ip=st.none() | st.ip_addresses(v=4).map(str)
)
FLEETS = st.dictionaries(IDS, OWN | MANAGED, min_size=1, max_size=8)
COLUMNS = ["account_id", "host", "port", "protocol", "username", "password", "country", "ip", "my note"]


def cells(account_id: str, change: ProxyChange) -> dict[str, Any]:
    """The change as the cells of a row."""
    parts = body(change)
    proxy: dict[str, Any] = parts.pop("proxy", {})
    return {"account_id": account_id} | proxy | parts


@shared_directory
@given(
    fleet=FLEETS,
    columns=st.permutations(COLUMNS),
    style=st.sampled_from([str, str.upper, str.title, lambda name: f" {name.replace('_', ' ')} "]),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_output_of_csv_writer_is_read_back(
    tmp_path, fleet, columns, style, delimiter, quoting, end, encoding
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(map(style, columns))
    for account_id, change in fleet.items():
        row = cells(account_id, change)
        writer.writerow(row.get(column, "") for column in columns)
    path = tmp_path / "fleet.csv"
    path.write_bytes(text.getvalue().encode(encoding))

    with Fleet.open(path) as opened:
        rows = list(opened.rows())

    assert {row.account_id: row.change for row in rows if isinstance(row, Row)} == fleet
    assert [row.ordinal for row in rows] == list(range(len(fleet)))


@shared_directory
@given(fleet=FLEETS, ascii_only=st.booleans(), nested=st.booleans())
def test_output_of_json_dumps_is_read_back(tmp_path, fleet, ascii_only, nested) -> None:
    path = tmp_path / "fleet.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for account_id, change in fleet.items():
            row = {"account_id": account_id} | body(change) if nested else cells(account_id, change)
            file.write(json.dumps(row, ensure_ascii=ascii_only) + "\n")

    with Fleet.open(path) as opened:
        assert {row.account_id: row.change for row in opened.rows() if isinstance(row, Row)} == fleet


PIECES = [
    *(
        "account_id",
        "host",
        "port",
        "username",
        "password",
        "proxy",
        "country",
        "a",
        "b1",
        "h.example",
        "80",
        "99999",
    ),
    *(
        ",",
        ";",
        "\t",
        "\n",
        "\r",
        "\r\n",
        '"',
        '""',
        " ",
        "{",
        "}",
        "[",
        ":",
        '"host":',
        '"id":"a",',
        '"password":"',
    ),
    *(
        SECRET,
        f"https://u:{SECRET}@h:80",
        f"https://u:{SECRET}",
        f'"{SECRET}"',
        f'{{"id":"a","password":"{SECRET}"}}',
    ),
    *(
        "\ufeff",
        "\u2028",
        "é",
        "NaN",
        "1e3",
        "\\ud800",
        "account_id,host,port,password\n",
        "\na,h,80,",
        "\nb,,,",
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join).map(str.encode)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    TEXTS,
    st.tuples(TEXTS, st.binary(max_size=5), TEXTS).map(b"".join),
    TEXTS.map(lambda text: b"account_id,host,port,password\n" + text),
    TEXTS.map(lambda text: b"password,host,port,account_id\r" + text),
    TEXTS.map(lambda text: text.decode().encode("utf-16")),
)


@settings(shared_directory, max_examples=500)
@given(content=CONTENTS, name=st.sampled_from(["f.csv", "f.jsonl", "f"]))
@example(content=f"a,{SECRET}\n".encode() + b"\xff", name="f.csv")
@example(content=f'account_id,password\na,"{SECRET}\n'.encode(), name="f.csv")
@example(content=f'{{"account_id":"a","password":"{SECRET}"'.encode(), name="f.jsonl")
@example(content=b"account_id,password\na," + SECRET.encode() + b"\xff", name="f.csv")
@example(content=f"account_id,proxy\na,https://u:{SECRET}@h".encode(), name="f.csv")
def test_any_content_gives_rows_or_an_error_and_no_message_shows_a_password(tmp_path, content, name) -> None:
    """Messages may be logged."""
    path = tmp_path / name
    path.write_bytes(content)
    error, rows = None, list[Row | Refusal]()

    try:
        with Fleet.open(path, default=US) as fleet:
            rows.extend(fleet.rows())
    except FleetError as caught:
        error = caught

    assert rows or error
    assert SECRET not in all_text(error)
    assert all(SECRET not in f"{row}{row!r}" for row in rows)
    assert all(row.ordinal >= 0 and row.line is not None for row in rows)


# --- A file that is rewritten in place -------------------------------------------------------------


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the file in place, and restore its modification time, as `touch -r` does."""
    before = path.stat()
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def big_fleet(write) -> Path:
    """A fleet of several blocks."""
    rows = "".join(f"acc_{number:06},US\n" for number in range(30_000))
    path: Path = write("f.csv", f"account_id,country\n{rows}")
    return path


@pytest.mark.parametrize(
    "check", [Fleet.survey, lambda fleet: reader_of(fleet).digest], ids=["survey", "digest"]
)
def test_no_row_is_returned_that_was_overwritten_after_the_check(write, check) -> None:
    """Inode, size and modification time of the file are the same as before."""
    path = big_fleet(write)
    with Fleet.open(path) as fleet:
        check(fleet)
        rows = fleet.rows()
        returned = [next(rows)]
        rewrite(path, b",US", b",DE")

        with pytest.raises(FleetError, match=r"f\.csv has changed since it was opened"):
            returned.extend(rows)

    assert {row.change for row in returned if isinstance(row, Row)} == {ManagedProxy(country="US")}
    assert len(returned) < 10_000  # only rows of the blocks that were read before


def test_file_that_was_truncated_at_the_end_of_a_block_after_the_check_is_noticed(write) -> None:
    path = big_fleet(write)
    with Fleet.open(path) as fleet:
        fleet.survey()
        rows = fleet.rows()
        returned = [next(rows)]
        os.truncate(path, 2 * 64 * 1024)

        with pytest.raises(FleetError, match="has changed"):
            returned.extend(rows)
    assert isinstance(returned[-1], Row)


def test_unchanged_file_can_be_read_after_the_check(write) -> None:
    with Fleet.open(big_fleet(write)) as fleet:
        assert fleet.survey().rows == 30_000
        assert len(list(fleet.rows())) == 30_000
