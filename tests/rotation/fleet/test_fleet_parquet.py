"""Fleets from Parquet: types of columns, memory use, and damaged or unsupported files."""

import errno
import io
import os
import random
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation import Fleet
from postpress_async.rotation._fleet import _parquet, reader_of
from postpress_async.rotation._fleet._columns import BatchMaker
from postpress_async.rotation._fleet._parquet_footer import read_row_groups
from postpress_async.rotation._rows import Refusal, Row
from tests.support.fleet_forms import all_text, refusals

US = ManagedProxy(country="US")
SECRET = "pa55!word"
WITH_PASSWORD = {"account_id": ["a", "b"], "host": ["h", "i"], "port": [1, 2], "password": [SECRET, None]}


@pytest.fixture
def write(tmp_path):
    """A function that writes a table, or columns given by name, to a file and returns its path."""

    def write(table: Any, name: str = "fleet.parquet", **options: Any) -> Path:
        path: Path = tmp_path / name
        if not isinstance(table, pyarrow.Table):
            table = pyarrow.table(table)
        pyarrow.parquet.write_table(table, path, **options)
        return path

    return write


@pytest.fixture
def rows(write):
    """A function that returns the rows of a file with the given columns."""

    def rows(table: Any, default: ProxyChange | None = None, **options: Any) -> list[Row | Refusal]:
        with Fleet.open(write(table, **options), default=default) as fleet:
            return list(fleet.rows())

    return rows


# --- Rows and types -------------------------------------------------------------------------------


def test_line_of_a_row_is_its_position_in_the_file(rows) -> None:
    """Parquet has no lines, so rows are counted from 1, as a viewer shows them."""
    assert rows({"Account ID": ["a", "b"], "Country Code": [" us ", None], "IP": [None, "192.0.2.1"]}) == [
        Row(0, 1, "a", US),
        Row(1, 2, "b", ManagedProxy(ip="192.0.2.1")),
    ]


TEXT_TYPES = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string()),
]


@pytest.mark.parametrize("text_type", TEXT_TYPES, ids=str)
def test_columns_may_have_any_text_type(rows, text_type) -> None:
    """pandas, polars and Spark write different types. Categories are written as dictionaries."""

    def column(*values: str | None) -> Any:
        if not pyarrow.types.is_dictionary(text_type):
            return pyarrow.array(values, text_type)
        return pyarrow.array(values, text_type.value_type).dictionary_encode()

    text = {"id": column("x", None, "y"), "host": column("h", None, "i"), "password": column("x", None, "y")}

    first, second, third = rows(text | {"port": [1, 2, 3], "country": pyarrow.nulls(3)})

    assert [row.account_id for row in (first, third)] == ["x", "y"]
    assert third.change == CustomProxy(host="i", port=3, password="y")
    assert (second.column, second.reason) == ("account_id", "account_id missing")


PORTS = [
    pyarrow.array([80, None], pyarrow.uint16()),
    pyarrow.array([80, None], pyarrow.int64()),
    pyarrow.array([80.0, float("nan")], pyarrow.float64()),
    pyarrow.array([80.0, None], pyarrow.float32()),
    pyarrow.array([Decimal("80.00"), None], pyarrow.decimal128(9, 2)),
    pyarrow.array([80, None]).dictionary_encode(),
    pyarrow.array([" 80 ", ""]),
]


@pytest.mark.parametrize("ports", PORTS, ids=lambda ports: str(ports.type))
def test_port_may_have_any_numeric_type(rows, ports) -> None:
    """pandas converts integers to floats if values are missing, and exports of databases have decimals."""
    table = {"id": ["a", "b"], "host": ["h", None], "port": ports, "country": [None, "US"]}

    assert [row.change for row in rows(table)] == [CustomProxy(host="h", port=80), US]


INVALID_PORTS = [
    (8080.5, "port not an integer"),
    (float("inf"), "port not an integer"),
    (-1.0, "port out of range"),
    (0.0, "port out of range"),
    (1e300, "port out of range"),
]


@pytest.mark.parametrize(("port", "reason"), INVALID_PORTS)
def test_row_with_an_invalid_port_is_refused_and_the_next_row_is_read(rows, port, reason) -> None:
    results = rows({"id": ["a", "b"], "host": ["h", "h"], "port": [port, 80.0]})

    assert refusals(results) == [(1, "port", reason)]
    assert results[1].change == CustomProxy(host="h", port=80)


def test_nan_in_a_text_column_is_a_missing_value_and_a_number_is_refused(rows) -> None:
    """pandas writes a text column without values as a column of floats."""
    table = {"id": ["a", "b"], "country": ["US", "US"], "ip": pyarrow.array([float("nan"), 4.5])}

    results = rows(table)

    assert results[0] == Row(0, 1, "a", US)
    assert refusals(results) == [(2, "ip", "ip not text")]


OWN = CustomProxy(host="h", port=80, protocol="socks5", username="u", password=" p ")
STRUCT = {"host": "h", "port": 80, "protocol": "SOCKS5", "user": "u", "pass": " p "}


def test_proxy_may_be_a_struct_whose_unknown_fields_are_ignored_columns(write) -> None:
    """polars and Spark write the objects of JSON data as structs."""
    path = write({"id": ["a", "b"], "proxy": [STRUCT | {"ttl": 5}, None], "country": [None, "US"]})

    with Fleet.open(path) as fleet:
        assert [row.change for row in fleet.rows() if isinstance(row, Row)] == [OWN, US]
        assert fleet.ignored_columns == ("ttl",)


def test_struct_with_only_nulls_is_a_missing_value(rows) -> None:
    """polars writes a row without a proxy as a struct of nulls."""
    nulls = dict.fromkeys(STRUCT)

    results = rows({"id": ["a", "b"], "proxy": [STRUCT, nulls]}, default=US)

    assert [row.change for row in results] == [OWN, US]


def test_row_with_an_invalid_struct_or_a_second_change_is_refused(rows) -> None:
    only_port = dict.fromkeys(STRUCT) | {"port": 80}
    table = {
        "id": ["a", "b", "c", "a"],
        "proxy": [STRUCT, only_port, STRUCT, None],
        "host": ["h", None, None, None],
        "country": [None, None, "US", "US"],
    }

    assert refusals(rows(table)) == [
        (1, "host", "proxy given twice"),
        (2, "host", "host missing"),
        (3, "country", "custom and managed mixed"),
        (4, "account_id", "account already named"),
    ]


def test_row_with_invalid_utf8_is_refused_and_the_text_is_not_shown(rows) -> None:
    """The message of the decoder would contain the password."""
    content = SECRET.encode() + b"\xff"
    offsets = b"".join(offset.to_bytes(4, "little") for offset in (0, len(content), len(content) + 1))
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(content + b"x")]
    passwords = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)

    results = rows({"id": ["a", "b"], "host": ["h", "h"], "port": [1, 1], "password": passwords})

    assert refusals(results) == [(1, "password", "password not text")]
    assert results[1].change.password.reveal() == "x"
    assert SECRET not in repr(results)


def test_row_with_only_nulls_is_refused(rows) -> None:
    """It may have values in columns that are not read, so it is not skipped like a blank line of CSV."""
    assert refusals(rows({"id": ["a", None], "country": ["US", None]})) == [
        (2, "account_id", "account_id missing")
    ]


def test_two_passes_at_the_same_time_are_independent(write) -> None:
    path = write({"id": [f"a{n}" for n in range(5000)], "country": ["US"] * 5000}, row_group_size=700)

    with Fleet.open(path) as fleet:
        pairs = list(zip(fleet.rows(), fleet.rows(), strict=True))

    assert [row.ordinal for row, _ in pairs] == list(range(5000))
    assert all(first == second for first, second in pairs)


# --- Memory ----------------------------------------------------------------------


def test_unknown_columns_are_not_read(write) -> None:
    """The unknown column of this file is damaged, so reading it would fail."""
    path = write({"note": ["x" * 99] * 99, "id": [f"a{n}" for n in range(99)], "country": ["US"] * 99})
    note = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0)
    start = note.dictionary_page_offset or note.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * note.total_compressed_size)

    with Fleet.open(path) as fleet:
        assert fleet.survey().rows == 99
        assert fleet.ignored_columns == ("note",)


def test_large_row_group_is_not_in_memory_at_once(write) -> None:
    """pandas writes up to a million rows as one row group."""
    size = 20_000
    table = {
        "id": [f"a{n}" for n in range(size)],
        "host": ["h"] * size,
        "port": [1] * size,
        "username": [f"{n:01000d}" for n in range(size)],
    }
    path = write(table, row_group_size=size, use_dictionary=False, compression="none")
    del table
    assert path.stat().st_size > 20_000_000

    before, peak = pyarrow.total_allocated_bytes(), 0
    with Fleet.open(path) as fleet:
        for number, _ in enumerate(fleet.rows()):
            if number % 500 == 0:
                peak = max(peak, pyarrow.total_allocated_bytes() - before)

    assert number == size - 1
    assert peak < 6_000_000


_SURVEY = """
import sys
from postpress_async.errors import FleetError
from postpress_async.rotation import Fleet
try:
    print(Fleet.open(sys.argv[1]).survey().refused)
except FleetError as error:
    print(error)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def survey_in_process(path: Path) -> tuple[str, int]:
    """The output of a survey in another process, and the peak memory of this process in MiB."""
    process = subprocess.run(
        [sys.executable, "-c", _SURVEY, path], capture_output=True, text=True, check=True, timeout=60
    )
    output, kibibytes = process.stdout.splitlines()
    return output, int(kibibytes) // 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux has this file")
def test_column_with_a_huge_cell_is_refused_before_it_is_read(write) -> None:
    """The cell compresses well: if this file of 16 KB were read, it would take 2.5 GB of memory."""
    path = write({"id": ["a"], "country": ["x" * (65 * 2**20)]}, compression="zstd")
    assert path.stat().st_size < 20_000

    output, memory = survey_in_process(path)

    fact = f"{path} has 68,157,[0-9]{{3}} bytes in column country of row group 0 \\(of 1 rows\\), too many"
    assert re.match(fact, output)
    assert memory < 150


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux has this file")
def test_large_cell_that_a_dictionary_repeats_takes_bounded_memory(write) -> None:
    """The file contains the cell once. A batch of 1,000 rows would contain it 1,000 times, which is 1 GB."""
    country = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["x" * 2**20])
    path = write({"id": [f"a{n}" for n in range(1000)], "country": country}, compression="zstd")

    output, memory = survey_in_process(path)

    assert output == "1000"
    assert memory < 500


@pytest.mark.parametrize(
    ("options", "repeats", "largest_batch"),
    [
        pytest.param({"use_dictionary": True}, 100, 4, id="dictionary"),
        pytest.param(
            {"use_dictionary": False, "column_encoding": {"country": "DELTA_BYTE_ARRAY"}},
            100,
            3,
            id="shared prefixes",
        ),
        pytest.param({"use_dictionary": False}, 4, 104, id="no sharing"),
    ],
)
def test_batches_are_smaller_if_an_encoding_stores_long_values_once(
    write, monkeypatch, options, repeats, largest_batch
) -> None:
    """If rows share a value, the sizes in the file do not show how much memory the rows take."""
    monkeypatch.setattr(_parquet, "MAX_COLUMN_SIZE", 2**18)
    sizes: list[int] = []
    make = BatchMaker.make

    def record_size(self: BatchMaker, values: Any, size: int) -> Any:
        sizes.append(size)
        return make(self, values, size)

    monkeypatch.setattr(BatchMaker, "make", record_size)
    countries = ["x" * 2**16] * repeats + ["US"] * 100
    path = write({"id": [f"a{n}" for n in range(len(countries))], "country": countries}, **options)

    with Fleet.open(path) as fleet:
        sizes.clear()
        fleet.survey()

    assert max(sizes) == largest_batch


# --- Recognizing Parquet -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f.parquet", "f.pq", "f", "f.csv", "f.jsonl"])
def test_parquet_is_recognized_by_its_first_bytes(write, name) -> None:
    with Fleet.open(write({"id": ["a"], "country": ["US"]}, name)) as fleet:
        assert list(fleet.rows()) == [Row(0, 1, "a", US)]


def test_parquet_can_be_read_from_standard_input(write, monkeypatch) -> None:
    """The positions of the columns are at the end of a file, so standard input is copied first."""
    size = 9000
    path = write({"id": [f"a{n}" for n in range(size)], "port": [1] * size, "host": ["h"] * size})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))

    with Fleet.open("-") as fleet, Fleet.open(path) as file:
        assert fleet.survey() == fleet.survey() == file.survey()
        assert fleet.survey().rows == size
        assert reader_of(fleet).digest == reader_of(file).digest
        pairs = list(zip(fleet.rows(), fleet.rows(), strict=True))
    assert all(first == second for first, second in pairs)


def test_error_without_pyarrow_says_what_to_install(write, monkeypatch) -> None:
    path = write(WITH_PASSWORD)
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(FleetError, match=r"pip install 'postpress-async\[parquet\]', or export it as CSV$"):
        Fleet.open(path)


@pytest.mark.slow
def test_reading_csv_does_not_import_libraries_for_other_formats(tmp_path) -> None:
    """Importing pyarrow alone takes a fifth of a second and 60 MB."""
    path = tmp_path / "f.csv"
    path.write_text("id,country\na,US\n")
    code = (
        "import sys; from postpress_async.rotation import Fleet; Fleet.open(sys.argv[1]).survey();"
        "print(sorted({'pyarrow', 'pandas', 'polars', 'sqlalchemy', 'numpy'} & set(sys.modules)))"
    )

    process = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60
    )

    assert process.stdout == "[]\n"


# --- Errors --------------------------------------------------------------------------


INVALID_COLUMNS = [
    pytest.param({"id": [1]}, "has id as int64: write that column as text", id="ids as numbers"),
    pytest.param(
        {"id": ["a"], "My Pass": ["x"], "pass": [12345678]}, "has pass as int64: write that", id="passwords"
    ),
    pytest.param(
        {"id": ["a"], "port": [True]}, "has port as bool: write that column as text or whole", id="bool"
    ),
    pytest.param({"id": ["a"], "host": [b"h"]}, "has host as binary: write that column as text", id="binary"),
    pytest.param({"id": ["a"], "proxy": [["h"]]}, "has proxy as list<", id="a list"),
    pytest.param(
        {"id": ["a"], "proxy": [{"host": "h", "port": [1]}]}, "has proxy.port as list<", id="a field"
    ),
    pytest.param(
        {"id": ["a"], "proxy": [{"server": "h"}]},
        "has a struct proxy with none of the fields host, port,",
        id="a struct",
    ),
    pytest.param({"id": ["a"], "host": [{"host": "h"}]}, "has host as struct<", id="a struct elsewhere"),
    pytest.param(
        {"id": ["a"], "ID": ["b"]}, "has two columns for account_id, id and ID: remove", id="two columns"
    ),
    pytest.param(
        {"Kontonummer": ["a"], "host": ["h"]},
        "has no column account_id, only Kontonummer, host: rename",
        id="no account_id",
    ),
    pytest.param({"id": pyarrow.array([], pyarrow.string())}, "has no rows: it needs", id="no rows"),
]


@pytest.mark.parametrize(("table", "sentence"), INVALID_COLUMNS)
def test_invalid_columns_are_reported_when_the_file_is_opened(write, table, sentence) -> None:
    """Otherwise each row would be refused for the type of its column."""
    path = write(table)

    with pytest.raises(FleetError) as caught:
        Fleet.open(path)

    assert str(caught.value).startswith(f"{path} {sentence}")
    assert "\n" not in str(caught.value)


def test_pass_over_a_file_that_changes_meanwhile_ends_with_an_error(write) -> None:
    """The rows that are sent must be those that were checked."""
    path = write(WITH_PASSWORD)
    with Fleet.open(path) as fleet:
        rows = fleet.rows()
        next(rows)
        os.utime(path, ns=(1, 1))

        with pytest.raises(FleetError, match="has changed"):
            list(rows)


def test_closed_fleet_cannot_be_read(write) -> None:
    with Fleet.open(write(WITH_PASSWORD)) as fleet:
        pass

    with pytest.raises(FleetError, match="is closed: open the fleet again"):
        fleet.survey()


def test_read_error_is_not_reported_as_a_damaged_file(write, monkeypatch) -> None:

    class Failing(io.FileIO):
        def readinto(self, buffer: Any, /) -> int | None:
            if self.tell() > 4:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    path = write(WITH_PASSWORD)
    monkeypatch.setattr("postpress_async.rotation._fleet._file.io.FileIO", Failing)

    with pytest.raises(FleetError, match=r"fleet\.parquet cannot be read: Input/output error"):
        Fleet.open(path)


def read_fleet(path: Path) -> tuple[list[Row | Refusal], FleetError | None]:
    """The rows of the fleet in a file, and the error that ended the pass."""
    rows = list[Row | Refusal]()
    try:
        with Fleet.open(path) as fleet:
            rows.extend(fleet.rows())
    except FleetError as error:
        return rows, error
    return rows, None


def test_truncated_file_is_reported_as_damaged(write) -> None:
    """A download may be interrupted, and the end of the file lists the columns."""
    path = write(WITH_PASSWORD)
    content = path.read_bytes()

    for length in range(4, len(content)):
        path.write_bytes(content[:length])
        rows, error = read_fleet(path)
        assert rows == []
        assert str(error) == (
            f"{path} is damaged, or a Parquet file that pyarrow cannot read: write it again"
        )


@pytest.mark.slow
@settings(
    derandomize=True,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), compression=st.sampled_from(["none", "snappy"]), dictionary=st.booleans())
def test_damaged_file_gives_rows_or_an_error_and_no_message_shows_a_password(
    write, data: st.DataObject, compression: str, dictionary: bool
) -> None:
    """Messages may be logged."""
    path = write(WITH_PASSWORD, compression=compression, use_dictionary=dictionary, write_statistics=False)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(4, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)

    rows, error = read_fleet(path)

    assert rows or error
    assert SECRET not in all_text(error)
    assert all(SECRET not in f"{row}{row!r}" for row in rows)


def test_no_row_is_returned_that_was_overwritten_after_the_check(tmp_path) -> None:
    """Inode, size and modification time of the file are the same as before."""
    path = tmp_path / "f.parquet"
    table = pyarrow.table({"account_id": [f"acc_{n:06}" for n in range(50_000)], "country": ["US"] * 50_000})
    pyarrow.parquet.write_table(table, path, row_group_size=1_000)
    with Fleet.open(path) as fleet:
        assert fleet.survey().rows == 50_000
        assert sum(1 for _ in fleet.rows()) == 50_000
        rows = fleet.rows()
        returned = [next(rows)]
        content, before = path.read_bytes(), path.stat()
        with path.open("r+b") as file:
            file.write(content.replace(b"US", b"DE"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        with pytest.raises(FleetError, match="has changed since it was opened"):
            returned.extend(rows)

    assert {row.change for row in returned if isinstance(row, Row)} == {ManagedProxy(country="US")}


@pytest.mark.parametrize("writer", ["pyarrow", "polars", "pandas"])
def test_footer_is_parsed_with_the_same_result_as_by_pyarrow(tmp_path, writer) -> None:
    path = tmp_path / "f.parquet"
    columns = {"id": [f"a{n}" for n in range(2000)], "port": [80] * 2000, "country": ["US"] * 2000}
    if writer == "pyarrow":
        table = pyarrow.table({**columns, "proxy": [{"host": "h", "username": None}] * 2000})
        pyarrow.parquet.write_table(table, path, row_group_size=300, write_page_index=True)
    elif writer == "polars":
        polars.DataFrame(columns).write_parquet(path, row_group_size=300)
    else:
        pandas.DataFrame(columns).to_parquet(path, row_group_size=300)
    metadata = pyarrow.parquet.read_metadata(path)
    expected = [metadata.row_group(number) for number in range(metadata.num_row_groups)]

    with path.open("rb") as file:
        groups = read_row_groups(file)

    assert [(rows, [(path, size) for path, size, _ in chunks]) for rows, chunks in groups] == [
        (
            group.num_rows,
            [
                (group.column(index).path_in_schema, group.column(index).total_uncompressed_size)
                for index in range(group.num_columns)
            ],
        )
        for group in expected
    ]


def test_footer_with_any_wrong_byte_is_read_or_rejected(write) -> None:
    """A wrong type of a field, for example, makes a struct a list with too few elements."""
    content = write({"id": ["a1", "a2"], "country": ["US", "DE"]}).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    rejected = 0
    for position in range(footer, len(content) - 8):
        for wrong_bits in (0x01, 0x05, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= wrong_bits
            try:
                read_row_groups(io.BytesIO(damaged))
            except ValueError:
                rejected += 1

    assert rejected


@pytest.mark.slow
def test_damaged_column_entry_is_reported_without_a_crash(write) -> None:
    """Some of these files would crash the process if pyarrow read the entries of columns."""
    path = write({"id": [f"a{n}" for n in range(99)], "country": ["US"] * 99}, row_group_size=50)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    code = (
        "import sys\n"
        "from postpress_async.errors import FleetError\n"
        "from postpress_async.rotation import Fleet\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        with Fleet.open(path) as fleet:\n"
        "            fleet.survey()\n"
        "    except FleetError:\n"
        "        pass\n"
        "print('all read')\n"
    )
    paths = []
    for seed in range(300):
        generator, damaged = random.Random(seed), bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(footer, len(content) - 8)] = generator.randrange(256)
        paths.append(path.with_name(f"{seed}.parquet"))
        paths[-1].write_bytes(damaged)

    process = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False, timeout=60
    )

    assert (process.returncode, process.stdout) == (0, "all read\n"), process.stderr
