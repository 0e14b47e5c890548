"""Exported tables: complete, without formulas for spreadsheets, and written atomically."""

import csv
import io
import json
import os
import stat
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from postpress_async._fields import check_account_id
from postpress_async.errors import RotationError
from postpress_async.models import FieldError
from postpress_async.rotation import State
from postpress_async.rotation._atomic_write import atomic_write
from postpress_async.rotation._export import (
    COLUMNS,
    FORMATS,
    write_assignments,
    write_csv,
    write_jsonl,
    write_parquet,
)
from postpress_async.rotation.journal._history import Assigned
from tests.support.journals import NIGHT, outcome, refused

INSTANT = "2026-11-20T23:00:00.000Z"
ROWS = [
    outcome(0),
    outcome(1, State.FAILED, assignment="line 3: user@host:80"),
    outcome(2, State.UNKNOWN),
    refused(3),
]
FAILED = {
    "line": 3,
    "account_id": "acc_000001",
    "state": "failed",
    "attempts": 1,
    "status": 404,
    "error_type": "errors/resource_not_found",
    "scope": "account",
    "applied": "no",
    "instance": "req_1",
    "elapsed": 0.25,
    "settled_at": "2026-11-20T23:00:00.100Z",
    "proxy_label": "line 3: user@host:80",
}


def export(outcomes, write=write_csv) -> bytes:
    """The contents of the file that *write* makes."""
    file = io.BytesIO()
    write(outcomes, file)
    return file.getvalue()


def cells(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode("utf-8"), newline="")))


# --- The three formats ---


def test_csv_has_a_row_for_each_account() -> None:
    read = cells(export(ROWS))

    assert read[1] == {name: str(value) for name, value in FAILED.items()}
    assert [row["account_id"] for row in read] == [f"acc_00000{n}" for n in range(4)]
    assert read[0]["error_type"] == ""


def test_json_lines_have_an_object_for_each_account() -> None:
    read = [json.loads(line) for line in export(ROWS, write_jsonl).splitlines()]

    assert read[1] == FAILED
    assert list(read[0]) == list(COLUMNS)
    assert read[0]["error_type"] is None


def test_parquet_columns_have_types() -> None:
    """Numbers are numbers and times are times, so that programs can compute with them."""
    read = parquet.read_table(io.BytesIO(export(ROWS, write_parquet))).to_pylist()

    assert read[1] == FAILED | {"settled_at": datetime.fromtimestamp(NIGHT + 0.1, UTC)}
    assert read[0]["error_type"] is None


def test_parquet_is_written_in_groups() -> None:
    """A million accounts are never in memory at once."""
    file = parquet.ParquetFile(io.BytesIO(export((outcome(n) for n in range(70_000)), write_parquet)))

    assert file.metadata.num_rows == 70_000
    assert file.num_row_groups == 2


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_export_without_accounts_has_only_column_names(write) -> None:
    """JSON Lines have no line for column names, so that file is empty."""
    text = export([], write)

    if write is write_parquet:
        assert parquet.read_table(io.BytesIO(text)).column_names == list(COLUMNS)
    else:
        assert text.count(b"\n") == (write is write_csv)


def test_parquet_without_pyarrow_reports_the_extra_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(RotationError, match=r"pip install 'postpress-async\[parquet\]'"):
        export(ROWS, write_parquet)


# --- Formulas ---


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("acc_1", "acc_1"),
        ("-acc", "'-acc"),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("  =1", "'  =1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("a\";=cmd|' /C calc'!A0", "a\";'=cmd|'' /C calc'!A0"),
        ("a,-1", "a,'-1"),
        ("line 3: u-s=er@h:80", "line 3: u-s=er@h:80"),
        ("a-b", "a-b"),
        ("'a", "''a"),
        ("", ""),
    ],
)
def test_text_that_a_spreadsheet_would_execute_is_preceded_by_an_apostrophe(text, cell) -> None:
    """The name of an account or a proxy must not run code in the operator's spreadsheet (OWASP)."""
    [row] = cells(export([outcome(0, account_id=text)]))

    assert row["account_id"] == cell


@given(texts=st.lists(st.text(max_size=12), min_size=4, max_size=4), separator=st.sampled_from(",;\t|"))
def test_no_cell_is_a_formula_whatever_separator_a_spreadsheet_uses(texts, separator) -> None:
    """In some locales, spreadsheets split lines at semicolons, so a cell may begin within quoted text."""
    account_id, error_type, instance, proxy = texts
    exported = outcome(0, account_id=account_id, error_type=error_type, instance=instance, assignment=proxy)
    text = export([exported]).decode("utf-8")

    for line in text.splitlines():
        for cell in line.split(separator):
            assert not cell.strip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")), text
    [row] = cells(export([exported]))
    assert all(not value.startswith(tuple("=+-@")) for value in row.values())


def test_exported_id_with_an_added_apostrophe_is_not_a_valid_account_id() -> None:
    """So an exported table that is used as a fleet cannot change the account of another id."""
    [row] = cells(export([outcome(0, account_id="-acc")]))

    with pytest.raises(FieldError):
        check_account_id(row["account_id"])


def test_json_and_parquet_contain_the_exact_account_id() -> None:
    outcomes = [outcome(0, account_id="-acc")]

    assert json.loads(export(outcomes, write_jsonl))["account_id"] == "-acc"
    assert parquet.read_table(io.BytesIO(export(outcomes, write_parquet)))["account_id"][0].as_py() == "-acc"


@given(account_id=st.text(max_size=12), assignment=st.text(max_size=12))
def test_assignments_are_escaped_like_outcomes(account_id: str, assignment: str) -> None:
    entry = Assigned(account_id, assignment, "patched", 3, NIGHT)

    [row] = cells(export([entry], partial(write_assignments, kind="csv")))
    [line] = export([entry], partial(write_assignments, kind="jsonl")).splitlines()

    as_outcome = cells(export([outcome(0, account_id=account_id, error_type=assignment)]))[0]
    assert list(row.values()) == [as_outcome["account_id"], as_outcome["error_type"], "patched", "3", INSTANT]
    assert list(json.loads(line).values()) == [account_id, assignment, "patched", 3, INSTANT]
    assert tuple(row) == tuple(json.loads(line)) == Assigned._fields


# --- Atomic writes ---


def test_only_the_owner_can_read_the_file_even_if_it_replaces_a_public_one(tmp_path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")
    path.chmod(0o644)

    with atomic_write(path) as file:
        file.write(b"after")

    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["out.csv"]


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, RotationError("damaged"), OSError(28, "No space left")]
)
def test_failed_write_keeps_the_existing_file(tmp_path, failure) -> None:
    path = tmp_path / "out.csv"
    path.write_text("complete")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise failure

    with pytest.raises((KeyboardInterrupt, RotationError)) as caught:
        write_half()
    assert path.read_text() == "complete"
    assert os.listdir(tmp_path) == ["out.csv"]
    if isinstance(failure, OSError):
        assert str(caught.value) == f"{path} cannot be written (No space left); name another file"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: path.symlink_to("elsewhere"), "symbolic link", id="a symbolic link"),
        pytest.param(lambda path: path.mkdir(), "not a regular file", id="a directory"),
        pytest.param(os.mkfifo, "not a regular file", id="a pipe"),
    ],
)
def test_only_a_regular_file_is_overwritten(tmp_path, make, message) -> None:
    """A symbolic link could lead to another file, which must not be overwritten."""
    path = tmp_path / "out.csv"
    make(path)

    with pytest.raises(RotationError, match=message), atomic_write(path):
        pytest.fail("the path was opened")
    assert not (tmp_path / "elsewhere").exists()
    assert os.listdir(tmp_path) == ["out.csv"]


def test_missing_folder_is_reported(tmp_path) -> None:
    with (
        pytest.raises(RotationError, match="cannot be written"),
        atomic_write(Path(tmp_path, "no", "out.csv")),
    ):
        pytest.fail("the path was opened")
