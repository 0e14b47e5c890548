"""Rows made from Python pairs: an invalid pair becomes a refusal and raises no exception."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async.models import CustomProxy, ManagedProxy
from postpress_async.rotation._rows import Refusal, Row, arows_of, rows_of

US = ManagedProxy(country="US")
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, password="pa55!word")

INVALID = [
    pytest.param("US", None, "row not a pair", id="a string of two letters"),
    pytest.param("acc_1", None, "row not a pair", id="an id without a change"),
    pytest.param(None, None, "row not a pair", id="None"),
    pytest.param(("acc_1",), None, "row not a pair", id="a tuple of one"),
    pytest.param(("acc_1", US, US), None, "row not a pair", id="a tuple of three"),
    pytest.param({"acc_1": US, "acc_2": US}, None, "row not a pair", id="a dict of two"),
    pytest.param((1, US), "account_id", "account_id not text", id="an id that is a number"),
    pytest.param(([], US), "account_id", "account_id not text", id="an id that cannot be hashed"),
    pytest.param(("", US), "account_id", "account_id missing", id="an empty id"),
    pytest.param(("acc/../admin", US), "account_id", "account_id not allowed", id="an id that is a path"),
    pytest.param(("acc_1", None), "change", "change not a proxy", id="no change"),
    pytest.param(("acc_1", {"country": "UK"}), "country", "country not assigned", id="an unknown country"),
    pytest.param(("acc_1", {"contry": "US"}), None, "unknown key", id="an unknown key"),
    pytest.param(("acc_1", ManagedProxy), "change", "change not a proxy", id="a class as the change"),
]


def test_each_pair_becomes_a_row_with_its_ordinal() -> None:
    """The ordinal is the key in the journal. It counts from 0 in the order of the input."""
    assert list(rows_of([("acc_1", US), ("acc_2", CUSTOM)])) == [
        Row(0, None, "acc_1", US),
        Row(1, None, "acc_2", CUSTOM),
    ]


def test_list_of_two_items_is_a_pair() -> None:
    """JSON has lists, not tuples."""
    pairs: Any = [["acc_1", US]]

    assert list(rows_of(pairs)) == [Row(0, None, "acc_1", US)]


@pytest.mark.parametrize(("pair", "column", "reason"), INVALID)
def test_invalid_pair_is_refused_and_the_next_pair_becomes_a_row(
    pair: Any, column: str | None, reason: str
) -> None:
    """The refused pair keeps its ordinal."""
    refusal, row = rows_of([pair, ("acc_2", US)])

    assert isinstance(refusal, Refusal)
    assert (refusal.ordinal, refusal.line) == (0, None)
    assert (refusal.column, refusal.reason) == (column, reason)
    assert row == Row(1, None, "acc_2", US)


def test_refusal_names_the_account_if_its_id_is_valid() -> None:
    invalid: Any = [("acc_1", None), ("no id", US)]

    assert [row.account_id for row in rows_of(invalid)] == ["acc_1", None]


def test_refusal_as_text_has_line_column_reason_and_advice() -> None:
    refusal = Refusal(20, 22, "port", "acc_1", "port out of range", "it is 1 to 65535, not 0")

    assert str(refusal) == "line 22, port: port out of range: it is 1 to 65535, not 0"


def test_refusal_as_text_without_a_column() -> None:
    refusal = Refusal(44, 46, None, "acc_1", "nothing asked for", "give one")

    assert str(refusal) == "line 46: nothing asked for: give one"


def test_refusal_of_a_pair_shows_its_index_in_the_list() -> None:
    (refusal,) = rows_of([("", US)])

    assert str(refusal).startswith("changes[0], account_id: account_id missing: ")


def test_pairs_are_read_only_as_rows_are_needed() -> None:
    """An iterable may be endless."""
    read = []

    def pairs() -> Iterator[tuple[str, ManagedProxy]]:
        for number in range(10):
            read.append(number)
            yield f"acc_{number}", US

    rows = rows_of(pairs())
    next(rows)

    assert read == [0]


def test_error_of_the_iterable_is_raised() -> None:
    def pairs() -> Iterator[tuple[str, ManagedProxy]]:
        yield "acc_1", US
        raise KeyError("raised by the iterable")

    rows = rows_of(pairs())
    next(rows)

    with pytest.raises(KeyError, match="raised by the iterable"):
        next(rows)


async def test_asynchronous_pairs_give_the_same_rows_and_refusals() -> None:
    pairs: list[Any] = [("acc_1", US), None, ("acc_3", CUSTOM)]

    async def async_pairs() -> AsyncIterator[Any]:
        for pair in pairs:
            yield pair

    assert [row async for row in arows_of(async_pairs())] == list(rows_of(pairs))


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
def test_any_value_gives_a_row_or_a_refusal(pairs: list[Any]) -> None:
    """The caller's code may yield anything, which must not end the rotation."""
    rows = list(rows_of(pairs))

    assert [row.ordinal for row in rows] == list(range(len(pairs)))


def test_refusal_shows_no_value_of_the_pair() -> None:
    """An invalid pair may contain a password, and refusals are printed and logged."""
    invalid: list[Any] = [
        "pa55!word",
        ("pa55!word", US),
        ("acc_1", "pa55!word"),
        ("acc_1", {"password": "pa55!word"}),
    ]

    for refusal in rows_of(invalid):
        assert "pa55!word" not in str(refusal) + repr(refusal)
