"""A secret does not print, whichever way it is looked at."""

import copy
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async.models import CustomProxy
from postpress_async.secret import MASK, Secret

HIDDEN = Secret("hunter2")


@attrs.frozen
class Holder:
    word: Secret


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(str, id="str"),
        pytest.param(repr, id="repr"),
        pytest.param(ascii, id="ascii"),
        pytest.param("{}".format, id="format"),
        pytest.param("{!r:>9}".format, id="format of the repr"),
        pytest.param("{:>12}".format, id="format with a width"),
        pytest.param(lambda secret: f"{secret}", id="f-string"),
        pytest.param(lambda secret: f"{secret=}", id="f-string for debugging"),
        pytest.param(lambda secret: "%s %r" % (secret, secret), id="percent sign"),  # noqa: UP031
        pytest.param(lambda secret: str([secret, {"key": secret}, {secret: 1}]), id="in containers"),
        pytest.param(lambda secret: repr(Holder(secret)), id="in a value"),
        pytest.param(lambda secret: str(attrs.asdict(Holder(secret))), id="in a value taken apart"),
        pytest.param(lambda secret: str(ValueError("no", secret)), id="in an exception"),
        pytest.param(lambda secret: str(dir(secret)), id="dir"),
    ],
)
def test_a_secret_shows_as_a_mask(show: Callable[[Secret], str]) -> None:
    """Logs and messages are made in all of these ways, and are read by more people than a key should be."""
    assert "hunter2" not in show(HIDDEN)


def test_a_mask_takes_a_format_like_other_text() -> None:
    """A table of settings keeps its columns."""
    assert f"[{HIDDEN:>5}]" == f"[{MASK:>5}]" == "[  ***]"
    assert f"{HIDDEN}" == str(HIDDEN) == repr(HIDDEN) == "***"


def test_a_log_record_does_not_hold_it_as_text(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers format late: what they are handed must still be the secret, not its text."""
    logging.getLogger("postpress_async.tests").warning("the key is %s, %r", HIDDEN, HIDDEN)

    assert caplog.messages == ["the key is ***, ***"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(HIDDEN, id="itself"),
        pytest.param(CustomProxy(host="h", port=1, password="hunter2"), id="in a proxy"),
        pytest.param([HIDDEN], id="in a list"),
    ],
)
def test_a_secret_is_not_pickled(value: object, protocol: int) -> None:
    """A pickle is a file, or a message to another machine, that nobody thinks of as holding keys."""
    with pytest.raises(TypeError, match="a secret is not pickled") as caught:
        pickle.dumps(value, protocol)

    assert "hunter2" not in str(caught.value)


def test_a_secret_is_not_json() -> None:
    """A log of structured records would write it out if it were a str."""
    with pytest.raises(TypeError, match="not JSON serializable") as caught:
        json.dumps({"key": HIDDEN})

    assert "hunter2" not in str(caught.value)
    assert not isinstance(HIDDEN, str)


@pytest.mark.parametrize(
    "odd", [b"hunter2", None, 42, ["hunter2"], object()], ids=lambda odd: type(odd).__name__
)
def test_a_secret_is_made_of_text_only(odd: Any) -> None:
    """What is refused may be a key all the same: the message names the type and no more."""
    with pytest.raises(TypeError, match=f"not of {type(odd).__name__}") as caught:
        Secret(odd)

    assert "hunter2" not in repr(caught.value)


@given(text=st.text() | st.text(st.characters(categories=["Cs", "L"])))
def test_a_secret_gives_back_its_text(text: str) -> None:
    """Any text, even half of a surrogate pair, and also by way of another secret."""
    assert Secret(text).reveal() == Secret(Secret(text)).reveal() == text


@given(one=st.text() | st.text(st.characters(categories=["Cs", "L"])), other=st.text())
def test_secrets_compare_and_hash_as_their_texts_do(one: str, other: str) -> None:
    """A model that holds one is a value, and can be the key of a table."""
    assert (Secret(one) == Secret(other)) is (one == other)
    assert Secret(one) == Secret(one)
    assert hash(Secret(one)) == hash(Secret(one))
    assert len({Secret(one), Secret(other)}) == len({one, other})


def test_a_secret_is_not_equal_to_its_text() -> None:
    """One that equalled plain text would let text be taken for a secret, and printed."""
    assert HIDDEN != "hunter2"
    assert HIDDEN not in {"hunter2"}
    assert hash(HIDDEN) != hash("hunter2")


def test_a_copy_is_the_secret_itself() -> None:
    """Copies would spread the text over more memory for nothing."""
    assert copy.copy(HIDDEN) is HIDDEN
    assert copy.deepcopy([HIDDEN])[0] is HIDDEN


def test_a_secret_keeps_nothing_beside_its_text() -> None:
    """No `__dict__` for `vars` and debuggers to print, and no room for a stray attribute."""
    assert not hasattr(HIDDEN, "__dict__")
    with pytest.raises(AttributeError):
        HIDDEN.note = "x"  # type: ignore[attr-defined]
