"""The settings of a session's pace."""

import sys
from typing import Any

from attrs import field, frozen


def _count(_instance: object, attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name} must be an integer from 1, got {value!r}")


def _yes_or_no(_instance: object, attribute: Any, value: bool) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name} must be True or False, got {value!r}")


def _per_second(_instance: object, attribute: Any, value: float | None) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{attribute.name} must be None or a finite number above 0, got {value!r}")


@frozen(kw_only=True)
class Pace:
    """
    The pace of a session, shared by all its calls: it makes calls wait, and never fails one.

    With *adaptive*, three things are learned from the answers. How many requests in flight the service
    takes: slow start from *start*, then CUBIC (RFC 9438), shrinking on a significant share of refusals.
    When to stop: after some 20 refusals and hardly an answer all calls pause, and single probes find the
    end of the outage, within a nineteenth of its length, or some 6 s. And, from 429s, how many requests a
    second the key's tier takes. 429s whose share a lower rate does not lower, such as those of a limit per
    account, are not about the rate and do not lower it.

    Attributes:
        in_flight: Requests sent and not yet answered, at most; from 1.
        adaptive: Whether the above is learned. Without it exactly *in_flight* requests may be in flight,
            and refusals neither slow nor pause anything; *rate* still holds.
        rate: Requests a second, at most, for a tier that is known; None for no ceiling. What goes out at
            once beyond it is at most 20 ms of the rate, or one request.
        start: Requests in flight allowed at first, up to *in_flight*; from 1. Beyond 100 they are
            let go only as the first answers come, since nothing is known before. Has no meaning
            without *adaptive*.

    Raises:
        ValueError: It is not as said above.
    """

    in_flight: int = field(default=100, validator=_count)
    adaptive: bool = field(default=True, validator=_yes_or_no)
    rate: float | None = field(default=None, validator=_per_second)
    start: int = field(default=20, validator=_count)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "start", min(self.start, self.in_flight))
