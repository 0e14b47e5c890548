"""The report: the journal's numbers, no active content from outside, and a limited size."""

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
from postpress_async.rotation.report._findings import Findings, _latency, _step, find
from postpress_async.rotation.report._listing import COLUMNS, pack
from tests.support.journals import NIGHT, execute_sql, outcome, refused, write

LARGEST = 5_000_000

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}{% raw %}</svg><!--"


def page(path: Path, now: float = NIGHT + 3_600) -> str:
    file = io.BytesIO()
    with JournalView(path) as view:
        write_report(view, file, now)
    assert len(file.getvalue()) <= LARGEST
    return file.getvalue().decode("utf-8")


def findings(path: Path) -> Findings:
    with JournalReader(path) as view:
        return find(view, stage_of(view), NIGHT)


def listed(text: str) -> list[dict[str, object]]:
    """The accounts that the page has, as its script unpacks them."""
    found = re.search(r'<script type="text/plain" id="packed"[^>]*>([^<]*)</script>', text)
    assert found is not None
    blocks = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return [dict(zip(COLUMNS, row, strict=True)) for block in blocks for row in zip(*block, strict=True)]


class Elements(HTMLParser):
    """Every element of a page, as a browser would see it, and its attributes."""

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
    """A hundred accounts in which something of everything went wrong."""
    outcomes = [outcome(n, elapsed=0.1 + n / 100, assignment=f"line {n % 5}") for n in range(80)]
    outcomes += [outcome(n, State.FAILED, assignment="line 1") for n in range(80, 90)]
    proxy = {"error_type": "errors/proxy_error", "scope": Scope.PROXY, "status": 502, "attempts": 8}
    outcomes += [outcome(n, State.FAILED, assignment="line 2", elapsed=60.0, **proxy) for n in range(90, 95)]
    outcomes += [
        outcome(95, State.UNKNOWN),
        refused(96),
        outcome(97, State.SKIPPED),
        outcome(98, State.SKIPPED),
    ]
    return write(path, outcomes, total=100, began=NIGHT - 1)


# --- What it tells ---


def test_the_page_has_the_journal_s_numbers(night) -> None:
    """An operator compares them with the summary; a difference costs the trust in both."""
    text = html.unescape(re.sub(r"<[^>]+>", "", page(night)))
    words = " ".join(text.split())

    assert "80 of 100 accounts patched" in words
    for count in ("80 patched", "15 failed", "1 unknown", "3 skipped", "1 not completed"):
        assert count in words
    assert "The last run was stopped before all accounts were sent." in words
    assert "The account does not exist." in words  # what an error means, from its class


def test_outcomes_without_a_response_are_explained_too(path) -> None:
    """The API's documentation does not have these names."""
    lost = {"error_type": "ConnectionLostError", "scope": Scope.SERVICE, "status": None}
    dry = {"error_type": "no proxy left", "scope": Scope.PROXY}
    unlisted = {"error_type": "errors/brand_new", "scope": Scope.REQUEST}
    outcomes = [outcome(0, State.UNKNOWN, **lost), refused(1), outcome(2, State.SKIPPED, **dry)]
    text = page(write(path, [*outcomes, outcome(3, State.FAILED, **unlisted)], total=4))
    rows = re.findall(r'<td class="text">([^<]+)</td><td>\w*</td><td>([^<]*)</td>', text)

    broken = "The connection was lost before the response was complete. applied is no if nothing was sent."
    assert dict(rows) == {
        "ConnectionLostError": broken,
        "port out of range": "The row is invalid and was not sent.",
        "no proxy left": "The pool had no proxy left for the account: add proxies to the list.",
        "errors/brand_new": "",
    }


def test_each_account_that_was_not_patched_is_listed(night) -> None:
    """The list has line, id, error, attempts, proxy, and the instance that support asks for."""
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
        ("line 2", 21, 5, 5),  # and not "line 1", whose accounts failed for reasons of their own
    ]


def test_a_proxy_whose_accounts_all_went_on_to_another_is_ranked_too(night) -> None:
    """The dead ones of the list are what the seller is to hear of, and no account ended on them."""
    execute_sql(night, "INSERT INTO proxies VALUES ('line 9', 7, 1.0, 2.0), ('line 2', 6, NULL, NULL)")

    found = findings(night)

    assert [(proxy.proxy, proxy.accounts, proxy.failures, proxy.quarantined) for proxy in found.proxies] == [
        ("line 9", 0, 7, True),
        ("line 2", 21, 6, False),
    ]
    assert [slow.elapsed for slow in found.slowest[:6]] == [60.0] * 5 + [pytest.approx(0.89)]
    assert found.latency is not None
    assert sum(accounts for _, _, accounts in found.latency.buckets) == 96


def test_proxies_that_failed_alike_stand_in_the_order_of_their_list(path) -> None:
    """Line 10 comes after line 2, the order of the file."""
    proxy = {"error_type": "errors/proxy_error", "scope": Scope.PROXY, "status": 502}
    labels = [f"line {n} p{n}.example.net:80" for n in (10, 2, 100, 1, 20)]
    write(path, [outcome(n, State.FAILED, assignment=label, **proxy) for n, label in enumerate(labels)])
    execute_sql(path, "INSERT INTO proxies VALUES ('line 30 p30.example.net:80', 2, 1.0, 2.0)")

    assert [found.proxy.split()[1] for found in findings(path).proxies] == ["30", "1", "2", "10", "20", "100"]


def test_invalid_label_is_reported_in_a_sentence(path) -> None:
    """Labels are compared before they are read, which a damaged one must not break."""
    write(path, [outcome(0), outcome(1)])
    execute_sql(path, "INSERT INTO proxies VALUES (x'ff', 2, 1.0, 2.0), ('line 1', 2, 1.0, 2.0)")

    with pytest.raises(JournalError, match="is damaged"):
        findings(path)


def test_no_empty_chart_if_nothing_was_patched(path) -> None:
    """Axes without a bar look as if the page were broken; and where something was, it stands first."""
    failures = [outcome(n, State.FAILED) for n in range(5)]
    drawn = charts.throughput(findings(write(path, failures)))
    both = charts.throughput(findings(write(path.with_name("both.sqlite3"), [*failures, outcome(9)])))

    assert drawn is not None
    assert both is not None
    for drawing in (drawn.wide, drawn.narrow):
        assert "accounts per second that were not patched" in drawing
        assert ">patched accounts per second" not in drawing
    assert ">patched accounts per second" in both.wide
    assert (
        drawn.description
        == "Completed accounts per second, over time: at most 10.0. None of them was patched."
    )


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=300))
def test_percentiles_are_right_to_three_digits(seconds) -> None:
    """Counted by their first three digits, a million of them need no memory."""
    found = _latency(seconds)
    ordered = sorted(seconds)

    assert found is not None
    assert found.p50 == pytest.approx(ordered[(len(ordered) - 1) // 2], rel=0.005)
    assert found.p95 == pytest.approx(ordered[-(-len(ordered) * 95 // 100) - 1], rel=0.005)
    assert sum(accounts for _, _, accounts in found.buckets) == len(seconds)
    assert all(low < high for low, high, _ in found.buckets)


@given(st.floats(0, 1e9))
def test_a_chart_has_a_hundred_bars_at_most(span) -> None:
    assert span / _step(NIGHT, NIGHT + span) <= 97


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param([], id="nothing yet"),
        pytest.param([outcome(0)], id="one account"),
        pytest.param([outcome(0, elapsed=0.0)], id="one that took no time"),
        pytest.param([outcome(0, State.SKIPPED)], id="one that was not sent"),
        pytest.param([refused(0)], id="one that was refused"),
        pytest.param([outcome(0), outcome(1, settled_at=NIGHT + 864_000)], id="two runs, ten days apart"),
        pytest.param([outcome(0, elapsed=3e6), outcome(1, elapsed=1e-9)], id="no time and a month"),
    ],
)
def test_there_is_a_page_however_little_there_is_to_tell(path, outcomes) -> None:
    assert page(write(path, outcomes)).endswith("</html>\n")


# --- What comes from outside ---


@pytest.fixture
def nasty(path: Path) -> Path:
    texts = {"account_id": NASTY, "error_type": NASTY, "instance": NASTY, "assignment": NASTY}
    outcomes = [outcome(n, State.FAILED, elapsed=9.0, **texts) for n in range(3)]
    return write(path, outcomes, halted=NASTY)


def test_nothing_from_outside_is_markup(nasty, night_elements) -> None:
    """Hostile text adds no elements to the page: no script, handler or image."""
    found = Elements(page(nasty)).found

    assert {tag for tag, _ in found} <= {tag for tag, _ in night_elements}
    assert [tag for tag, _ in found].count("script") == 2
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]


@pytest.fixture
def night_elements(tmp_path: Path) -> list[tuple[str, dict[str, str | None]]]:
    outcomes = [outcome(n, State.FAILED, assignment="line 1") for n in range(3)]
    return Elements(page(write(tmp_path / "plain.sqlite3", outcomes, halted="too many"))).found


def test_hostile_text_is_escaped(nasty) -> None:
    """Escaped, not left out: it is what the API said."""
    text = page(nasty)

    assert NASTY not in text
    assert html.escape(NASTY[:40], quote=False) in text
    assert {row["account_id"] for row in listed(text)} == {NASTY}


def test_the_page_asks_nothing_of_any_network(night) -> None:
    """The report works offline, and tells nobody about the accounts."""
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


def test_a_long_text_is_cut(path) -> None:
    """A page of 5 MB cannot hold a text of 9."""
    texts = {"account_id": "a" * 90_000, "error_type": "b" * 90_000, "assignment": "c" * 90_000}
    outcomes = [outcome(n, State.FAILED, **texts) for n in range(200)]

    assert len(page(write(path, outcomes))) < 400_000


# --- How large it gets ---


@pytest.mark.slow
def test_a_hundred_thousand_failures_fit_and_the_page_says_what_is_left_out(path) -> None:
    """The worst night: all failed, with ids in which there is nothing to compress."""
    chance = random.Random(7)
    letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

    def failures() -> Iterator[Outcome]:
        for n in range(100_000):
            facts = {"account_id": "acc_" + "".join(chance.choices(letters, k=26))}
            facts |= {
                "instance": f"req_{chance.getrandbits(128):032x}",
                "assignment": f"line {n % 500}: h:80",
            }
            yield outcome(n, State.FAILED, elapsed=chance.random(), **facts)

    text = page(write(path, failures()))
    rows = listed(text)

    assert f"The first {len(rows):,} of 100,000" in text
    assert "postpress-async export" in text
    assert 60_000 < len(rows) < 100_000
    assert [row["line"] for row in rows[:3] + rows[-1:]] == [2, 3, 4, len(rows) + 1]


def test_a_listing_that_fits_is_whole() -> None:
    outcomes = [outcome(n, State.FAILED) for n in range(9_000)]

    whole = pack(outcomes, shown=10)
    cut = pack(outcomes, shown=10, budget=len(whole.packed) - 500)

    assert (whole.rows, whole.complete, len(whole.first)) == (9_000, True, 10)
    assert (cut.rows, cut.complete, cut.first) == (8_000, False, whole.first)
    assert len(cut.packed) <= len(whole.packed) - 500


# --- What goes wrong ---


@pytest.mark.parametrize("name", ["jinja2", "vl_convert"])
def test_without_the_extra_it_says_what_to_install(night, monkeypatch, name) -> None:
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(RotationError, match=rf"{name}: pip install 'postpress-async\[report\]'"):
        page(night)


@pytest.mark.parametrize(
    "damage",
    ["state = 'done'", "elapsed = 'long'", "elapsed = 9e999", "settled_at = 1e300", "settled_at = 'today'"],
)
def test_damaged_journal_is_reported_in_a_sentence(night, damage) -> None:
    execute_sql(night, f"UPDATE outcomes SET {damage} WHERE ordinal = 0")

    with pytest.raises(JournalError, match="is damaged"):
        page(night)


def test_a_drawing_is_the_same_each_time(night) -> None:
    """Two reports of one journal differ in nothing but when they were written."""
    found = findings(night)

    assert charts.throughput(found) == charts.throughput(found)
    assert page(night) == page(night)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.9, 2.0, 9.0, 30.0])
def test_labels_of_a_short_time_axis_are_distinct(path, seconds) -> None:
    """A run of some seconds has several ticks within each of them."""
    begin = NIGHT + 0.25
    moments = enumerate((begin, begin + seconds))
    write(path, [outcome(n, settled_at=moment) for n, moment in moments], total=2, began=NIGHT)

    chart = charts.throughput(findings(path))

    assert chart is not None
    for drawing in (chart.wide, chart.narrow):
        labels = re.findall(r">(\d\d:\d\d:\d\d[^<]*)<", drawing)
        edges = re.findall(r"X-axis for a utc scale with values from (\S+) to ([0-9:.]+)", drawing)
        assert labels
        assert len(set(labels)) == len(labels)
        assert [first < last for first, last in edges] == [True]


def test_requests_of_all_runs_are_counted(path) -> None:
    write(path, [outcome(0, State.UNKNOWN, attempts=4), outcome(1, attempts=2)], total=2, began=NIGHT)
    write(path, [outcome(0, attempts=3)])

    assert findings(path).requests == 9
