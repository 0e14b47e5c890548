"""The settings of a session's pace."""

import math
from typing import Any

import attrs
import pytest

from postpress_async.pace import Pace


@pytest.mark.parametrize(
    ("options", "field"),
    [
        pytest.param({"in_flight": 0}, "in_flight", id="in_flight: zero"),
        pytest.param({"in_flight": True}, "in_flight", id="in_flight: bool"),
        pytest.param({"in_flight": 1.5}, "in_flight", id="in_flight: fraction"),
        pytest.param({"start": 0}, "start", id="start: zero"),
        pytest.param({"rate": 0}, "rate", id="rate: zero"),
        pytest.param({"rate": -1.0}, "rate", id="rate: negative"),
        pytest.param({"rate": math.inf}, "rate", id="rate: infinite"),
        pytest.param({"rate": math.nan}, "rate", id="rate: NaN"),
        pytest.param({"rate": "10"}, "rate", id="rate: text"),
        pytest.param({"rate": True}, "rate", id="rate: bool"),
        pytest.param({"adaptive": 1}, "adaptive", id="adaptive: number"),
    ],
)
def test_invalid_setting_is_rejected_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
        Pace(**options)


def test_pace_is_immutable_and_compared_by_value() -> None:
    """It is a default argument, so sessions that share one must not be able to change it."""
    assert Pace() == Pace(in_flight=100, adaptive=True, rate=None, start=20)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Pace().rate = 1.0  # type: ignore[misc]


def test_start_is_at_most_in_flight() -> None:
    assert Pace(in_flight=5).start == 5
