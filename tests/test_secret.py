"""A secret is masked however it is printed, and compares by value."""

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
    secret: Secret


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
        pytest.param(lambda secret: repr(Holder(secret)), id="in an attrs class"),
        pytest.param(lambda secret: str(attrs.asdict(Holder(secret))), id="in attrs.asdict"),
        pytest.param(lambda secret: str(ValueError("no", secret)), id="in an exception"),
        pytest.param(lambda secret: str(dir(secret)), id="dir"),
    ],
)
def test_a_secret_shows_as_a_mask(show: Callable[[Secret], str]) -> None:
    """Logs and messages use all of these ways to format a value."""
    assert "hunter2" not in show(HIDDEN)


def test_the_mask_honours_a_format_specification() -> None:
    """A table of settings keeps its columns aligned."""
    assert f"[{HIDDEN:>5}]" == f"[{MASK:>5}]" == "[  ***]"
    assert f"{HIDDEN}" == str(HIDDEN) == repr(HIDDEN) == "***"


def test_a_log_record_shows_the_mask(caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_secret_cannot_be_pickled(value: object, protocol: int) -> None:
    """Users do not expect keys in a pickle, which may be a file or a message to another machine."""
    with pytest.raises(TypeError, match="a secret cannot be pickled") as caught:
        pickle.dumps(value, protocol)

    assert "hunter2" not in str(caught.value)


def test_a_secret_is_not_json_serializable() -> None:
    """A structured log would print the text if a secret were a str."""
    with pytest.raises(TypeError, match="not JSON serializable") as caught:
        json.dumps({"key": HIDDEN})

    assert "hunter2" not in str(caught.value)
    assert not isinstance(HIDDEN, str)


@pytest.mark.parametrize(
    "value", [b"hunter2", None, 42, ["hunter2"], object()], ids=lambda value: type(value).__name__
)
def test_only_a_string_can_be_a_secret(value: Any) -> None:
    """A rejected value may still be a key, so the message names only its type."""
    with pytest.raises(TypeError, match=f"must be a string, got {type(value).__name__}") as caught:
        Secret(value)

    assert "hunter2" not in repr(caught.value)


@given(text=st.text() | st.text(st.characters(categories=["Cs", "L"])))
def test_reveal_returns_the_text(text: str) -> None:
    """Even with lone surrogates, and if the secret was created from another secret."""
    assert Secret(text).reveal() == Secret(Secret(text)).reveal() == text


@given(left=st.text() | st.text(st.characters(categories=["Cs", "L"])), right=st.text())
def test_secrets_compare_and_hash_by_value(left: str, right: str) -> None:
    """A model with a secret must be comparable and hashable."""
    assert (Secret(left) == Secret(right)) is (left == right)
    assert Secret(left) == Secret(left)
    assert hash(Secret(left)) == hash(Secret(left))
    assert len({Secret(left), Secret(right)}) == len({left, right})


def test_a_secret_is_not_equal_to_its_text() -> None:
    """Otherwise plain text could be used in place of a secret, and be printed."""
    assert HIDDEN != "hunter2"
    assert HIDDEN not in {"hunter2"}
    assert hash(HIDDEN) != hash("hunter2")


def test_a_copy_is_the_secret_itself() -> None:
    assert copy.copy(HIDDEN) is HIDDEN
    assert copy.deepcopy([HIDDEN])[0] is HIDDEN


def test_a_secret_has_no_dict() -> None:
    """`vars` and debuggers would print a `__dict__`."""
    assert not hasattr(HIDDEN, "__dict__")
    with pytest.raises(AttributeError):
        HIDDEN.note = "x"  # type: ignore[attr-defined]
