"""Rows from Python: a wrong pair is a value with a reason, never an exception."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async.models import CustomProxy, ManagedProxy
from postpress_async.rotation._rows import Refusal, Row, arows_of, rows_of

US = ManagedProxy(country="US")
OWN = CustomProxy(host="proxy.example.com", port=8080, password="pa55!word")

WRONG = [
    pytest.param("US", None, "row not a pair", id="a string of two letters"),
    pytest.param("acc_1", None, "row not a pair", id="a key of a dict, not its item"),
    pytest.param(None, None, "row not a pair", id="None"),
    pytest.param(("acc_1",), None, "row not a pair", id="one thing"),
    pytest.param(("acc_1", US, US), None, "row not a pair", id="three things"),
    pytest.param({"acc_1": US, "acc_2": US}, None, "row not a pair", id="a dict of two"),
    pytest.param((1, US), "account_id", "account_id not text", id="an id that is a number"),
    pytest.param(([], US), "account_id", "account_id not text", id="an id that cannot be hashed"),
    pytest.param(("", US), "account_id", "account_id missing", id="an empty id"),
    pytest.param(("acc/../admin", US), "account_id", "account_id not allowed", id="an id that is a path"),
    pytest.param(("acc_1", None), "change", "change not a proxy", id="no change"),
    pytest.param(("acc_1", {"country": "UK"}), "country", "country not assigned", id="a wrong country"),
    pytest.param(("acc_1", {"contry": "US"}), None, "unknown key", id="an unknown key"),
    pytest.param(("acc_1", ManagedProxy), "change", "change not a proxy", id="a class for a change"),
]


def test_each_pair_is_a_row_with_its_place() -> None:
    """The ordinal is the journal's key: it counts from 0, in the order of the input."""
    assert list(rows_of([("acc_1", US), ("acc_2", OWN)])) == [
        Row(0, None, "acc_1", US),
        Row(1, None, "acc_2", OWN),
    ]


def test_a_list_of_two_is_a_pair() -> None:
    """JSON has pairs as lists."""
    pairs: Any = [["acc_1", US]]

    assert list(rows_of(pairs)) == [Row(0, None, "acc_1", US)]


@pytest.mark.parametrize(("pair", "column", "reason"), WRONG)
def test_a_wrong_pair_is_refused_and_the_next_goes_on(pair: Any, column: str | None, reason: str) -> None:
    """One mistake in a stream of a million settles one account, and keeps its ordinal."""
    refusal, row = rows_of([pair, ("acc_2", US)])

    assert isinstance(refusal, Refusal)
    assert (refusal.ordinal, refusal.line) == (0, None)
    assert (refusal.column, refusal.reason) == (column, reason)
    assert row == Row(1, None, "acc_2", US)


def test_a_refusal_names_the_account_where_it_can() -> None:
    """An outcome is looked up by its account, so a refused change says whose it was."""
    wrong: Any = [("acc_1", None), ("no id", US)]

    assert [row.account_id for row in rows_of(wrong)] == ["acc_1", None]


def test_a_refusal_reads_as_a_sentence() -> None:
    """Line, column, fact and what would be right: one line of a list that a person works through."""
    refusal = Refusal(20, 22, "port", "acc_1", "port out of range", "it is 1 to 65535, not 0")

    assert str(refusal) == "line 22, port: port out of range: it is 1 to 65535, not 0"


def test_a_refusal_of_no_single_column_leaves_it_out() -> None:
    """An empty column in the sentence would read as a missing one."""
    assert (
        str(Refusal(44, 46, None, "acc_1", "nothing asked for", "give one"))
        == "line 46: nothing asked for: give one"
    )


def test_a_refusal_from_python_says_its_place_as_an_index() -> None:
    """There is no line to look at; the index is from 0, as the caller would write it."""
    (refusal,) = rows_of([("", US)])

    assert str(refusal).startswith("changes[0], account_id: account_id missing: ")


def test_only_what_is_asked_for_is_taken() -> None:
    """An iterable may have no end, and a rotation reads it only as it works."""
    read = []

    def pairs() -> Iterator[tuple[str, ManagedProxy]]:
        for number in range(10):
            read.append(number)
            yield f"acc_{number}", US

    rows = rows_of(pairs())
    next(rows)

    assert read == [0]


def test_error_of_the_iterable_is_raised() -> None:
    """The error of the caller's iterable is not an invalid row."""

    def pairs() -> Iterator[tuple[str, ManagedProxy]]:
        yield "acc_1", US
        raise KeyError("theirs")

    rows = rows_of(pairs())
    next(rows)

    with pytest.raises(KeyError, match="theirs"):
        next(rows)


async def test_pairs_may_come_asynchronously() -> None:
    """From a database's cursor, say: the same rows and refusals, with the same ordinals."""
    pairs: list[Any] = [("acc_1", US), None, ("acc_3", OWN)]

    async def later() -> AsyncIterator[Any]:
        for pair in pairs:
            yield pair

    assert [row async for row in arows_of(later())] == list(rows_of(pairs))


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.text(),
            st.integers(),
            st.tuples(
                st.one_of(st.text(), st.integers(), st.none()), st.one_of(st.just(US), st.text(), st.none())
            ),
            st.lists(st.text(), max_size=3),
        )
    )
)
def test_anything_at_all_is_a_row_or_a_refusal(pairs: list[Any]) -> None:
    """A caller's code may yield anything, which must not end the rotation."""
    rows = list(rows_of(pairs))

    assert [row.ordinal for row in rows] == list(range(len(pairs)))


def test_no_refusal_shows_what_was_given() -> None:
    """A wrong pair may hold a password, and refusals are printed and logged."""
    wrong: list[Any] = [
        "pa55!word",
        ("pa55!word", US),
        ("acc_1", "pa55!word"),
        ("acc_1", {"password": "pa55!word"}),
    ]

    for refusal in rows_of(wrong):
        assert "pa55!word" not in str(refusal) + repr(refusal)
