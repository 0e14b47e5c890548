"""Fleets from pandas and polars frames: types of columns, memory use, and errors."""

import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy
import pandas
import polars
import pyarrow
import pytest

from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy, ManagedProxy
from postpress_async.rotation import Fleet, State
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation._fleet._frame import is_frame
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.sandbox import Sandbox
from tests.support.fleet_forms import all_text, refusals

US = ManagedProxy(country="US")
SECRET = "pa55!word"

BOTH_LIBRARIES = pytest.mark.parametrize(
    "make_frame", [pandas.DataFrame, polars.DataFrame], ids=["pandas", "polars"]
)
MakeFrame = Callable[[dict[str, Any]], Any]


def rows(frame: Any) -> list[Row | Refusal]:
    with Fleet.of(frame) as fleet:
        return list(fleet.rows())


# --- Rows and types -------------------------------------------------------------------------------


@BOTH_LIBRARIES
def test_line_of_a_row_is_its_position_in_the_frame(make_frame: MakeFrame) -> None:
    """The row of a refusal can be found with ``frame.iloc[line - 1]``."""
    frame = make_frame({"Account ID": ["a", "b"], "Country Code": [" us ", None], "IP": [None, "192.0.2.1"]})

    assert rows(frame) == [Row(0, 1, "a", US), Row(1, 2, "b", ManagedProxy(ip="192.0.2.1"))]


def test_index_does_not_affect_the_line() -> None:
    """After a filter or a sort, the index has gaps or another order."""
    frame = pandas.DataFrame({"id": ["a", "b", "c"], "country": ["US", "XX", "US"]}, index=[7, 7, 3])

    results = rows(frame[frame["id"] != "a"].sort_index())

    assert [(row.ordinal, row.line, row.account_id) for row in results] == [(0, 1, "c"), (1, 2, "b")]


MISSING = {
    "None": [None, "US"],
    "NaN": [float("nan"), "US"],
    "NA": pandas.array([pandas.NA, "US"], dtype="string"),
    "NA of arrow": pandas.array([None, "US"], dtype=pandas.ArrowDtype(pyarrow.string())),
    "NA among objects": numpy.array([pandas.NA, "US"], dtype=object),
    "NaT": numpy.array([pandas.NaT, "US"], dtype=object),
    "a category": pandas.Categorical([None, "US"]),
}


@pytest.mark.parametrize("countries", MISSING.values(), ids=MISSING)
def test_missing_values_of_pandas_are_empty(countries: Any) -> None:
    results = rows(pandas.DataFrame({"id": ["a", "b"], "country": countries}))

    assert refusals(results) == [(1, None, "no proxy and no country")]
    assert results[1] == Row(1, 2, "b", US)


PORTS = {
    "int64": pandas.Series([80, 81]),
    "float64": pandas.Series([80.0, float("nan")]),
    "Int64": pandas.Series([80, None], dtype="Int64"),
    "uint16": pandas.Series([80, 81], dtype="uint16"),
    "float32": pandas.Series([80, None], dtype="float32"),
    "arrow": pandas.Series([80, None], dtype=pandas.ArrowDtype(pyarrow.int32())),
    "numpy's own": pandas.Series([numpy.int16(80), numpy.float32("nan")], dtype=object),
    "decimal": pandas.Series([Decimal("80.0"), Decimal("NaN")], dtype=object),
    "text": pandas.Series([" 80 ", ""]),
    "category": pandas.Series([80, None]).astype("category"),
    "sparse": pandas.Series([80.0, float("nan")], dtype=pandas.SparseDtype("float64")),
    "polars' int": polars.Series([80, None]),
    "polars' u16": polars.Series([80, None], dtype=polars.UInt16),
    "polars' float": polars.Series([80.0, float("nan")]),
    "polars' decimal": polars.Series([Decimal("80.00"), None]),
}


@pytest.mark.parametrize("ports", PORTS.values(), ids=PORTS)
def test_port_may_have_any_numeric_type(ports: Any) -> None:
    """pandas converts integers to floats if values are missing."""
    make_frame = polars.DataFrame if isinstance(ports, polars.Series) else pandas.DataFrame

    first, _ = rows(make_frame({"id": ["a", "b"], "host": ["h", "h"], "port": ports}))

    assert first == Row(0, 1, "a", CustomProxy(host="h", port=80))


INVALID_VALUES = [
    pytest.param("port", 8080.5, "port not an integer", id="a fraction"),
    pytest.param("port", float("inf"), "port not an integer", id="infinite"),
    pytest.param("port", True, "port not an integer", id="a bool"),
    pytest.param("port", numpy.bool_(True), "port not an integer", id="a bool of numpy"),
    pytest.param("port", 1j, "port not an integer", id="a complex number"),
    pytest.param("port", [80], "port not an integer", id="a list"),
    pytest.param("port", numpy.array([80, 81]), "port not an integer", id="an array"),
    pytest.param("port", -1, "port out of range", id="a negative number"),
    pytest.param("port", 10**5000, "port out of range", id="5,000 digits"),
    pytest.param("password", 12345678, "password not text", id="a password as a number"),
    pytest.param("password", SECRET.encode(), "password not text", id="a password as bytes"),
    pytest.param("password", [SECRET], "password not text", id="a password in a list"),
    pytest.param("password", "\ud800", "password is not Unicode", id="half a surrogate pair"),
    pytest.param("host", {"host": SECRET}, "host not text", id="a dict for a host"),
    pytest.param("proxy", 80, "proxy not text", id="a number for a proxy"),
    pytest.param("account_id", 7, "account_id not text", id="an id that is a number"),
    pytest.param("account_id", SECRET, "account_id not allowed", id="an invalid id"),
]


@pytest.mark.parametrize(("column", "value", "reason"), INVALID_VALUES)
def test_row_with_an_invalid_value_is_refused_and_the_value_is_not_shown(
    column: str, value: Any, reason: str
) -> None:
    """A column of objects may contain values of any class."""
    valid: dict[str, list[Any]] = {"account_id": ["a", "b"], "host": ["h", "h"], "port": [80, 80]}
    cells = pandas.Series([None, valid.get(column, [None, None])[1]], dtype=object)
    cells.iat[0] = value

    results = rows(pandas.DataFrame(valid | {column: cells}))

    assert refusals(results) == [(1, column, reason)]
    assert results[1] == Row(1, 2, "b", CustomProxy(host="h", port=80))
    assert all(secret not in f"{results}{results!r}" for secret in (SECRET, "12345678"))


def test_host_and_ip_may_be_address_objects() -> None:
    """Drivers return values of PostgreSQL's type inet as such objects."""
    frame = pandas.DataFrame(
        {
            "id": ["a", "b"],
            "host": [IPv6Address("2001:db8::1"), None],
            "port": [80, None],
            "ip": [None, IPv4Address("192.0.2.1")],
        }
    )

    assert [row.change for row in rows(frame) if isinstance(row, Row)] == [
        CustomProxy(host="2001:db8::1", port=80),
        ManagedProxy(ip="192.0.2.1"),
    ]


@BOTH_LIBRARIES
def test_proxy_may_be_a_mapping_whose_unknown_keys_are_ignored_columns(make_frame: MakeFrame) -> None:
    """``read_json`` of pandas returns a dict, and polars a struct."""
    proxies = [{"host": "h", "port": 80, "user": "u", "pass": SECRET, "ttl": 1}, None]

    with Fleet.of(make_frame({"id": ["a", "b"], "proxy": proxies, "country": [None, "US"]})) as fleet:
        first, second = fleet.rows()
        assert fleet.ignored_columns == ("ttl",)

    assert first == Row(0, 1, "a", CustomProxy(host="h", port=80, username="u", password=SECRET))
    assert second == Row(1, 2, "b", US)


def test_row_with_an_invalid_mapping_is_refused() -> None:
    frame = pandas.DataFrame(
        {
            "id": ["a", "b", "c", "d", 5],
            "proxy": [{}, {"port": 80}, {"host": "h", "HOST": "i"}, {"host": "h", 80: "port"}, {"port": 1}],
        }
    )

    assert refusals(rows(frame)) == [
        (1, "host", "host missing"),
        (2, "host", "host missing"),
        (3, "host", "duplicate key"),
        (4, "port", "port missing"),
        (5, "account_id", "account_id not text"),
    ]


@BOTH_LIBRARIES
def test_lines_and_duplicate_accounts_are_correct_across_batches(make_frame: MakeFrame) -> None:
    """A batch has 1,024 rows."""
    ids = [f"acc_{number}" for number in range(2500)] + ["acc_7"]

    results = rows(make_frame({"id": ids, "country": ["US"] * 2501}))

    assert [(row.ordinal, row.line) for row in results] == [(number, number + 1) for number in range(2501)]
    assert refusals(results) == [(2501, "account_id", "account already named")]


def test_two_passes_at_the_same_time_are_independent() -> None:
    frame = polars.DataFrame({"id": [f"a{n}" for n in range(3000)], "country": ["US"] * 3000})

    with Fleet.of(frame, default=US) as fleet:
        pairs = list(zip(fleet.rows(), fleet.rows(), strict=True))

    assert all(first == second for first, second in pairs)


@BOTH_LIBRARIES
def test_memory_does_not_grow_with_the_frame(make_frame: MakeFrame) -> None:
    frame = make_frame({"id": [f"{n:0250d}" for n in range(10_000)], "country": ["US"] * 10_000})
    tracemalloc.start()
    try:
        with Fleet.of(frame) as fleet:
            assert len(reader_of(fleet).digest) == 32
            assert fleet.survey().rows == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2_000_000  # the ids have 2.5 million bytes


# --- The digest ----------------------------------------------------------------------------------


def test_digest_depends_only_on_the_values_of_known_columns() -> None:
    """A journal recognizes the same input from either library, whatever the index and unused columns."""
    columns: dict[str, Any] = {"id": ["a", "b"], "host": ["h", "i"], "port": [80, None], "note": [1, 2]}
    frame = pandas.DataFrame(columns)
    same = [
        frame.set_index("note", append=True),
        frame.assign(note=3),
        frame[["port", "note", "host", "id"]],
        frame.astype({"port": "Int64", "host": "category"}),
        polars.DataFrame(columns),
    ]
    different = [frame.assign(port=81), frame.iloc[::-1], frame.iloc[:1], frame.assign(id=["a", 7])]
    different += [frame.assign(password="p"), frame.rename(columns={"host": "username"})]

    digest = reader_of(Fleet.of(frame)).digest
    with_default = reader_of(Fleet.of(frame, default=US)).digest
    digests = [reader_of(Fleet.of(other)).digest for other in different]

    assert {reader_of(Fleet.of(other)).digest for other in same} == {digest}
    assert len({digest, with_default, *digests}) == len(different) + 2


# --- In a rotation -------------------------------------------------------------------------------


@BOTH_LIBRARIES
async def test_rotation_of_a_frame_is_recognized_by_its_journal(make_frame: MakeFrame, tmp_path) -> None:
    """The second rotation of the same frame sends no request. Invalid rows are outcomes too."""
    frame = make_frame({"id": ["acc_1", "acc_2", "acc/3"], "country": ["US", "XX", "US"]})
    async with Sandbox() as sandbox, sandbox.session() as session:
        async with session.rotate(frame, journal=tmp_path / "run.sqlite3") as rotation:
            outcomes = {outcome.ordinal: outcome async for outcome in rotation}
        async with session.rotate(frame, journal=tmp_path / "run.sqlite3") as second:
            summary = await second.run()

        assert sandbox.record.requests == 1
    assert [outcomes[n].state for n in range(3)] == [State.PATCHED, State.SKIPPED, State.SKIPPED]
    assert [outcomes[n].line for n in range(3)] == [1, 2, 3]
    assert summary.states[State.PATCHED] == 1


@BOTH_LIBRARIES
async def test_rotation_of_a_frame_without_rows_has_no_outcomes(make_frame: MakeFrame) -> None:
    """A service may rotate a filtered frame, which may be empty."""
    frame = make_frame({"id": ["a"], "country": ["US"]})[:0]
    async with Sandbox() as sandbox, sandbox.session() as session, session.rotate(frame) as rotation:
        assert [outcome async for outcome in rotation] == []


# --- Errors --------------------------------------------------------------------------


NOT_FLEETS = [
    pytest.param(
        pandas.DataFrame({"name": ["a"], 5: ["h"]}),
        "has no column account_id, only name, 5: rename",
        id="no account_id",
    ),
    pytest.param(
        pandas.DataFrame(), "has no column account_id, only columns without a name: rename", id="empty"
    ),
    pytest.param(
        pandas.DataFrame([["a", "b"]], columns=["id", "id"]),
        "has two columns for account_id, id and",
        id="two columns",
    ),
    pytest.param(
        pandas.DataFrame({"country": ["US"]}, index=pandas.Index(["a"], name="account_id")),
        "has account_id as its index: pass frame.reset_index()",
        id="in the index",
    ),
    pytest.param(polars.LazyFrame({"id": ["a"]}), "is lazy, and would be computed for every", id="lazy"),
]


@pytest.mark.parametrize(("frame", "sentence"), NOT_FLEETS)
def test_frame_that_is_not_a_fleet_is_reported(frame: Any, sentence: str) -> None:
    with pytest.raises(FleetError) as caught:
        Fleet.of(frame)

    assert str(caught.value).startswith(f"the frame {sentence}")


def test_error_shows_column_names_shortened_and_printable() -> None:
    """If a file has no header, the columns of its frame have the first row as their names."""
    with pytest.raises(FleetError) as caught:
        Fleet.of(pandas.DataFrame({"a\nb\x1b[2J" + "x" * 90: [1]}))

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250
    assert "x" * 41 not in all_text(caught.value)


class FailsOnAccess:
    """An object none of whose attributes may be read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        "",
        None,
        FailsOnAccess(),
        {"columns": 1},
        pandas.Series([1]),
        polars.Series([1]),
        pandas.DataFrame,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_not_recognized_as_frames(value: Any) -> None:
    """The check must not read attributes of the value, because that may have effects."""
    assert not is_frame(value)


def test_subclass_of_a_frame_is_recognized_as_a_frame() -> None:
    """geopandas has such a class, for example."""

    class Subclass(pandas.DataFrame):  # type: ignore[misc]  # pandas has no types
        pass

    assert is_frame(Subclass({"id": ["a"]}))
