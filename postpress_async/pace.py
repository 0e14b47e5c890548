"""How many requests are in flight at once."""

from typing import Any

from attrs import field, frozen


def _count(_instance: object, attribute: Any, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name} is a whole number from 1, not {value!r}")


@frozen(kw_only=True)
class Pace:
    """
    The pace of a session, shared by all its calls: it makes calls wait, and never fails one.

    Attributes:
        in_flight: Requests sent and not yet answered, at most; from 1.

    Raises:
        ValueError: It is not as said above.
    """

    in_flight: int = field(default=100, validator=_count)
