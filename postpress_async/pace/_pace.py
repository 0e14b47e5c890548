"""The settings of a session's pace."""

import sys
from typing import Any

from attrs import field, frozen
from attrs.validators import optional


def _positive_integer(_instance: object, attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name} must be an integer of at least 1, got {value!r}")


def _boolean(_instance: object, attribute: Any, value: bool) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name} must be True or False, got {value!r}")


def _rate(_instance: object, attribute: Any, value: float | None) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{attribute.name} must be None or a finite number above 0, got {value!r}")


@frozen(kw_only=True)
class Pace:
    """
    Limits of concurrency and rate, shared by all calls of a session. Calls wait rather than fail.

    With *adaptive*, the session also learns from the responses:

    - An adaptive concurrency limit: slow start from *start*, then CUBIC (RFC 9438). It decreases if a
      significant share of requests fails with a sign of overload, such as a 503 or a timeout.
    - A circuit breaker: after about 20 such failures with hardly a success, all calls wait. Single probes
      detect the end of the outage within 1/19 of its length, or about 6 s.
    - A rate limit, from 429s. It ignores 429s whose share does not fall at a lower rate, such as those of a
      limit per account.

    Attributes:
        in_flight: Maximum number of requests in flight; at least 1.
        adaptive: Whether these limits are learned. If False, *in_flight* requests may always be in flight,
            and error responses neither slow nor pause calls; *rate* still applies.
        rate: Maximum requests per second, such as the limit of your tier; None for no limit. A burst is at
            most 20 ms of the rate, or one request.
        start: Initial concurrency limit, from 1 to *in_flight*. Before the first response it is at most 100.
            Ignored without *adaptive*.
        max_waiting: Maximum number of calls of `update_proxy` that wait for a permit; one more raises
            `BusyError` at once. None for no limit. Retries and calls of a rotation always wait.

    Raises:
        ValueError: A value is out of its range or of the wrong type.
    """

    in_flight: int = field(default=100, validator=_positive_integer)
    adaptive: bool = field(default=True, validator=_boolean)
    rate: float | None = field(default=None, validator=_rate)
    start: int = field(default=20, validator=_positive_integer)
    max_waiting: int | None = field(default=None, validator=optional(_positive_integer))

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "start", min(self.start, self.in_flight))
