"""The report: its numbers are those of the journal, hostile text is escaped, and its size is limited."""

import base64
import gzip
import html
import io
import json
import random
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async import Outcome
from postpress_async.errors import JournalError, RotationError, Scope
from postpress_async.rotation import State
from postpress_async.rotation.journal._reading import JournalReader, JournalView
from postpress_async.rotation.journal._statistics import stage_of
from postpress_async.rotation.report import _charts as charts
from postpress_async.rotation.report import write_report
from postpress_async.rotation.report._findings import Findings, _latency, _time_axis, find
from postpress_async.rotation.report._listing import COLUMNS, pack
from tests.support import HOSTILE_TEXT
from tests.support.journals import NIGHT, execute_sql, outcome, refused, write

MAX_SIZE = 5_000_000  # bytes of a page


def page(path: Path, now: float = NIGHT + 3_600) -> str:
    """The report of a journal."""
    file = io.BytesIO()
    with JournalView(path) as view:
        write_report(view, file, now)
    assert len(file.getvalue()) <= MAX_SIZE
    return file.getvalue().decode("utf-8")


def findings(path: Path) -> Findings:
    with JournalReader(path) as view:
        return find(view, stage_of(view), NIGHT)


def listed(text: str) -> list[dict[str, object]]:
    """The accounts in the list of the page, unpacked like by its script."""
    packed = re.search(r'<script type="text/plain" id="packed"[^>]*>([^<]*)</script>', text)
    assert packed is not None
    blocks = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return [dict(zip(COLUMNS, row, strict=True)) for block in blocks for row in zip(*block, strict=True)]


class Elements(HTMLParser):
    """The elements of a page, as tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.csv.rotation.sqlite3"


@pytest.fixture
def night(path: Path) -> Path:
    """A journal of 100 accounts with outcomes of every state."""
    outcomes = [outcome(n, elapsed=0.1 + n / 100, assignment=f"line {n % 5}") for n in range(80)]
    outcomes += [outcome(n, State.FAILED, assignment="line 1") for n in range(80, 90)]
    proxy_error = {"error_type": "errors/proxy_error", "scope": Scope.PROXY, "status": 502, "attempts": 8}
    outcomes += [
        outcome(n, State.FAILED, assignment="line 2", elapsed=60.0, **proxy_error) for n in range(90, 95)
    ]
    outcomes += [
        outcome(95, State.UNKNOWN),
        refused(96),
        outcome(97, State.SKIPPED),
        outcome(98, State.SKIPPED),
    ]
    return write(path, outcomes, total=100, began=NIGHT - 1)


# --- Content ---


def test_page_has_the_numbers_and_error_explanations_of_the_journal(night) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", page(night)))
    words = " ".join(text.split())

    assert "80 of 100 accounts patched" in words
    for count in ("80 patched", "15 failed", "1 unknown", "3 skipped", "1 not completed"):
        assert count in words
    assert "The last run was stopped before all accounts were sent." in words
    assert "The account does not exist." in words  # from the docstring of the error class


def test_errors_without_a_type_of_the_api_are_explained(path) -> None:
    """The API's documentation cannot explain these names."""
    lost = {"error_type": "ConnectionLostError", "scope": Scope.SERVICE, "status": None}
    exhausted = {"error_type": "no proxy left", "scope": Scope.PROXY}
    unlisted = {"error_type": "errors/brand_new", "scope": Scope.REQUEST}
    outcomes = [outcome(0, State.UNKNOWN, **lost), refused(1), outcome(2, State.SKIPPED, **exhausted)]
    text = page(write(path, [*outcomes, outcome(3, State.FAILED, **unlisted)], total=4))
    rows = re.findall(r'<td class="text">([^<]+)</td><td>\w*</td><td>([^<]*)</td>', text)

    connection_lost = (
        "The connection was lost before the response was complete. applied is NO if nothing was sent."
    )
    assert dict(rows) == {
        "ConnectionLostError": connection_lost,
        "port out of range": "The row is invalid and was not sent.",
        "no proxy left": "The pool had no proxy left for the account: add proxies to the list.",
        "errors/brand_new": "",
    }


def test_list_has_all_facts_about_each_account_that_was_not_patched(night) -> None:
    rows = listed(page(night))

    assert [row["account_id"] for row in rows] == [f"acc_{n:06}" for n in range(80, 97)]
    assert rows[0] == {
        "line": 82,
        "account_id": "acc_000080",
        "state": "failed",
        "error": "errors/resource_not_found",
        "attempts": 1,
        "seconds": 0.25,
        "instance": "req_80",
        "proxy": "line 1",
        "status": 404,
        "settled": NIGHT + 8,
    }
    assert rows[-1]["error"] == "port out of range"


def test_findings_agree_with_the_journal(night) -> None:
    found = findings(night)

    assert sum(bar.accounts for bar in found.bars) == 96
    assert found.step == 0.1
    assert found.requests == 80 + 10 + 5 * 8 + 1
    assert found.not_patched == 17
    assert [(proxy.proxy, proxy.accounts, proxy.not_patched, proxy.failures) for proxy in found.proxies] == [
        ("line 2", 21, 5, 5),  # but not "line 1", because the errors of its accounts are not proxy errors
    ]


def test_failed_proxy_is_listed_even_if_all_its_accounts_got_another_proxy(night) -> None:
    """The operator needs all dead proxies for a complaint to the seller."""
    execute_sql(night, "INSERT INTO proxies VALUES ('line 9', 7, 1.0, 2.0), ('line 2', 6, NULL, NULL)")

    found = findings(night)

    assert [(proxy.proxy, proxy.accounts, proxy.failures, proxy.quarantined) for proxy in found.proxies] == [
        ("line 9", 0, 7, True),
        ("line 2", 21, 6, False),
    ]
    assert [slow.elapsed for slow in found.slowest[:6]] == [60.0] * 5 + [pytest.approx(0.89)]
    assert found.latency is not None
    assert sum(accounts for _, _, accounts in found.latency.buckets) == 96


def test_proxies_with_equally_many_failures_are_sorted_by_line(path) -> None:
    """Lines are compared as numbers, so line 10 comes after line 2."""
    proxy_error = {"error_type": "errors/proxy_error", "scope": Scope.PROXY, "status": 502}
    labels = [f"line {n} p{n}.example.net:80" for n in (10, 2, 100, 1, 20)]
    write(path, [outcome(n, State.FAILED, assignment=label, **proxy_error) for n, label in enumerate(labels)])
    execute_sql(path, "INSERT INTO proxies VALUES ('line 30 p30.example.net:80', 2, 1.0, 2.0)")

    assert [found.proxy.split()[1] for found in findings(path).proxies] == ["30", "1", "2", "10", "20", "100"]


def test_label_that_is_not_text_is_reported_as_damage(path) -> None:
    """SQLite sorts the labels with a function of this project, in which such a label must not fail."""
    write(path, [outcome(0), outcome(1)])
    execute_sql(path, "INSERT INTO proxies VALUES (x'ff', 2, 1.0, 2.0), ('line 1', 2, 1.0, 2.0)")

    with pytest.raises(JournalError, match="is damaged"):
        findings(path)


def test_chart_over_time_has_no_empty_plot_if_no_account_was_patched(path) -> None:
    """Axes without bars look like a broken page."""
    failures = [outcome(n, State.FAILED) for n in range(5)]
    only_failures = charts.throughput(findings(write(path, failures)))
    both = charts.throughput(findings(write(path.with_name("both.sqlite3"), [*failures, outcome(9)])))

    assert only_failures is not None
    assert both is not None
    for svg in (only_failures.wide, only_failures.narrow):
        assert "accounts per second that were not patched" in svg
        assert ">patched accounts per second" not in svg
    assert ">patched accounts per second" in both.wide
    assert only_failures.description == (
        "Completed accounts per second, over time: at most 10.0. None of them was patched."
    )


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=300))
def test_percentiles_are_correct_to_three_digits(seconds) -> None:
    """The times are rounded, so that a million times have few distinct values."""
    found = _latency(seconds)
    ordered = sorted(seconds)

    assert found is not None
    assert found.p50 == pytest.approx(ordered[(len(ordered) - 1) // 2], rel=0.005)
    assert found.p95 == pytest.approx(ordered[-(-len(ordered) * 95 // 100) - 1], rel=0.005)
    assert sum(accounts for _, _, accounts in found.buckets) == len(seconds)
    assert all(low < high for low, high, _ in found.buckets)


@given(st.floats(0, 1e9))
def test_chart_over_time_has_at_most_97_bars(span) -> None:
    _, step = _time_axis([(NIGHT, NIGHT + span)])

    assert span / step <= 97


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param([], id="no account"),
        pytest.param([outcome(0)], id="one account"),
        pytest.param([outcome(0, elapsed=0.0)], id="account without a duration"),
        pytest.param([outcome(0, State.SKIPPED)], id="account that was not sent"),
        pytest.param([refused(0)], id="refused row"),
        pytest.param([outcome(0), outcome(1, settled_at=NIGHT + 864_000)], id="two runs, ten days apart"),
        pytest.param([outcome(0, elapsed=3e6), outcome(1, elapsed=1e-9)], id="a nanosecond and a month"),
    ],
)
def test_page_of_an_unusual_journal_is_complete(path, outcomes) -> None:
    assert page(write(path, outcomes)).endswith("</html>\n")


# --- Hostile text ---


@pytest.fixture
def hostile(path: Path) -> Path:
    """A journal with markup and scripts in all its texts."""
    texts = {
        "account_id": HOSTILE_TEXT,
        "error_type": HOSTILE_TEXT,
        "instance": HOSTILE_TEXT,
        "assignment": HOSTILE_TEXT,
    }
    outcomes = [outcome(n, State.FAILED, elapsed=9.0, **texts) for n in range(3)]
    return write(path, outcomes, halted=HOSTILE_TEXT)


def test_hostile_text_adds_no_elements_or_handlers_to_the_page(hostile, harmless_elements) -> None:
    found = Elements(page(hostile)).found

    assert {tag for tag, _ in found} <= {tag for tag, _ in harmless_elements}
    assert [tag for tag, _ in found].count("script") == 2
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]


@pytest.fixture
def harmless_elements(tmp_path: Path) -> list[tuple[str, dict[str, str | None]]]:
    outcomes = [outcome(n, State.FAILED, assignment="line 1") for n in range(3)]
    return Elements(page(write(tmp_path / "plain.sqlite3", outcomes, halted="too many"))).found


def test_hostile_text_is_escaped_and_not_left_out(hostile) -> None:
    """The text is what the API sent."""
    text = page(hostile)

    assert HOSTILE_TEXT not in text
    assert html.escape(HOSTILE_TEXT[:40], quote=False) in text
    assert {row["account_id"] for row in listed(text)} == {HOSTILE_TEXT}


def test_page_loads_nothing_from_the_network(night) -> None:
    """The report works offline, and tells no server about the accounts."""
    text = page(night)
    urls = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"'<]*", text))

    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for tag, attributes in Elements(text).found:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        assert not {"src", "href", "action"} & set(attributes), tag
    [policy] = [
        attributes["content"]
        for _, attributes in Elements(text).found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert str(policy).startswith("default-src 'none'; style-src 'sha256-")


def test_long_texts_are_shortened(path) -> None:
    texts = {"account_id": "a" * 90_000, "error_type": "b" * 90_000, "assignment": "c" * 90_000}
    outcomes = [outcome(n, State.FAILED, **texts) for n in range(200)]

    assert len(page(write(path, outcomes))) < 400_000


# --- Size ---


@pytest.mark.slow
def test_page_of_100_000_failures_has_a_limited_size_and_says_how_many_are_listed(path) -> None:
    """This is the worst case: random ids cannot be compressed."""
    generator = random.Random(7)
    letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

    def failures() -> Iterator[Outcome]:
        for ordinal in range(100_000):
            facts = {"account_id": "acc_" + "".join(generator.choices(letters, k=26))}
            facts |= {
                "instance": f"req_{generator.getrandbits(128):032x}",
                "assignment": f"line {ordinal % 500}: h:80",
            }
            yield outcome(ordinal, State.FAILED, elapsed=generator.random(), **facts)

    text = page(write(path, failures()))
    rows = listed(text)

    assert f"The first {len(rows):,} of 100,000" in text
    assert "postpress-async export" in text
    assert 60_000 < len(rows) < 100_000
    assert [row["line"] for row in rows[:3] + rows[-1:]] == [2, 3, 4, len(rows) + 1]


def test_listing_is_complete_if_it_fits_and_otherwise_ends_with_a_whole_block() -> None:
    outcomes = [outcome(n, State.FAILED) for n in range(9_000)]

    whole = pack(outcomes, shown=10)
    partial = pack(outcomes, shown=10, budget=len(whole.packed) - 500)

    assert (whole.rows, whole.complete, len(whole.first)) == (9_000, True, 10)
    assert (partial.rows, partial.complete, partial.first) == (8_000, False, whole.first)
    assert len(partial.packed) <= len(whole.packed) - 500


# --- Errors and other details ---


@pytest.mark.parametrize("name", ["jinja2", "vl_convert"])
def test_error_without_an_optional_dependency_says_what_to_install(night, monkeypatch, name) -> None:
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(RotationError, match=rf"{name}: pip install 'postpress-async\[report\]'"):
        page(night)


@pytest.mark.parametrize(
    "damage",
    ["state = 'done'", "elapsed = 'long'", "elapsed = 9e999", "settled_at = 1e300", "settled_at = 'today'"],
)
def test_damaged_journal_is_reported(night, damage) -> None:
    execute_sql(night, f"UPDATE outcomes SET {damage} WHERE ordinal = 0")

    with pytest.raises(JournalError, match="is damaged"):
        page(night)


def test_two_reports_of_a_journal_at_the_same_time_are_equal(night) -> None:
    found = findings(night)

    assert charts.throughput(found) == charts.throughput(found)
    assert page(night) == page(night)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.9, 2.0, 9.0, 30.0])
def test_labels_of_a_short_time_axis_are_distinct(path, seconds) -> None:
    """The axis of a run of a few seconds has several ticks per second."""
    start = NIGHT + 0.25
    moments = enumerate((start, start + seconds))
    write(path, [outcome(n, settled_at=moment) for n, moment in moments], total=2, began=NIGHT)

    chart = charts.throughput(findings(path))

    assert chart is not None
    for svg in (chart.wide, chart.narrow):
        labels = re.findall(r">(\d\d:\d\d:\d\d[^<]*)<", svg)
        edges = re.findall(r"X-axis for a utc scale with values from (\S+) to ([0-9:.]+)", svg)
        assert labels
        assert len(set(labels)) == len(labels)
        assert [first < last for first, last in edges] == [True]


def test_requests_of_all_runs_are_counted(path) -> None:
    write(path, [outcome(0, State.UNKNOWN, attempts=4), outcome(1, attempts=2)], total=2, began=NIGHT)
    write(path, [outcome(0, attempts=3)])

    assert findings(path).requests == 9
