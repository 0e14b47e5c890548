"""A fleet has the same rows and refusals in every format."""

import csv
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postpress_async.models import ManagedProxy, ProxyChange
from postpress_async.rotation import Fleet
from postpress_async.rotation._rows import Row
from tests.support import DATA
from tests.support.fleet_forms import FORMS, Form, Values

US = ManagedProxy(country="US")

ALL_BUT_CSV = [pytest.param(form, id=name) for name, form in FORMS.items() if name != "CSV"]


def results(fleet: Fleet) -> list[tuple[Any, ...]]:
    """The result of each row, without its line number, which is 1 higher in CSV because of the header."""
    with fleet:
        return [
            (row.ordinal, row.account_id, row.change)
            if isinstance(row, Row)
            else (row.ordinal, row.account_id, row.column, re.sub(r"line \d+", "line", row.reason))
            for row in fleet.rows()
        ]


def messy() -> Values:
    with (DATA / "messy.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] or None for row in rows] for name in rows[0]}


@pytest.mark.parametrize("form", ALL_BUT_CSV)
def test_messy_fleet_has_the_same_results_in_every_format(form: Form, tmp_path) -> None:
    assert results(form(messy(), tmp_path, None)) == results(Fleet.open(DATA / "messy.csv"))


# About half of the values are valid, because each format could spoil valid and invalid cells differently.
TEXTS: dict[str, list[Any]] = {
    "account_id": ["a", "b", " c ", "acc_1", "acc/../x", "é", "..", "x" * 257],
    "proxy": [None, None, "https://u:p%40@h.example:80", " http://h:1 ", "h:80", "ftp://h:80", "https://u:12345678"],
    "host": [None, None, "h.example", " h ", "[2001:db8::1]", "http://h", "h. x", "h:80"],
    "protocol": [None, None, "HTTPS", "socks5", "socks4"],
    "username": [None, None, "u", "  ", "ü'\"", "a\nb", "-- '; %s :x"],
    "password": [None, None, "p", " p ", "   ", ",;\t\"'", "100%", "\u2028", "x" * 17_000],
    "country": [None, None, "us", " DE ", "UK", "USA", "XX"],
    "ip": [None, None, "203.0.113.9", "203.0.113.256", "::1"],
}  # fmt: skip
PORTS: list[list[Any]] = [
    [None, "80", " 8080 ", "0", "65536", "eighty", "1e3", "8080.5"],
    [None, 80, 8080, 0, 65536, 10**9, 2**62],
]


@st.composite
def fleets(draw: st.DrawFn) -> Values:
    size = draw(st.integers(1, 6))

    def column(cells: list[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(cells), min_size=size, max_size=size))

    values = {name: column(cells) for name, cells in TEXTS.items()}
    values["port"] = column(draw(st.sampled_from(PORTS)))
    return {name: values[name] for name in draw(st.permutations(list(values)))}


@pytest.mark.slow
@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=fleets(), default=st.sampled_from([None, US]))
def test_generated_fleet_has_the_same_results_in_every_format(
    tmp_path, values: Values, default: ProxyChange | None
) -> None:
    """All formats share one reader of rows, but each converts values to text before that."""
    by_form = {name: results(form(values, tmp_path, default)) for name, form in FORMS.items()}

    assert by_form == dict.fromkeys(FORMS, by_form["CSV"])
