"""The failure threshold at which a rotation stops by itself."""

import re
from typing import Final, Self

from attrs import field, frozen

_PERCENTAGE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)%")


def _to_failures(value: object) -> "str | int":
    """Raise `ValueError` unless *value* is a percentage, a count, or ``never``."""
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdecimal():
            value = int(text)
        elif text == "never" or ((match := _PERCENTAGE.fullmatch(text)) and 0 < float(match[1]) <= 100):
            return text
    if type(value) is int and value >= 1:
        return value
    raise ValueError(
        f'halt must be a percentage such as "5%", a number of accounts such as 100, or "never", got {value!r}'
    )


def _is_count(_instance: object, _attribute: object, value: int) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"canary must be a whole number of accounts from 0, got {value!r}")


@frozen(kw_only=True)
class Halt:
    """
    The failure threshold at which a rotation aborts, and its canary stage.

    An account counts as failed if its call ended in an error. Refused rows, and accounts for which the pool
    had no proxy left, do not count: nothing was sent for them.

    Attributes:
        failures: A percentage of the latest 200 accounts: ``"5%"`` halts the rotation at the tenth failure
            among the latest 200, even if fewer than 200 are completed. Or a number of failed accounts of this
            run; or ``"never"``.
        canary: Accounts to send first. The others follow only if fewer than *failures* of the canary failed;
            a percentage refers to the canary and is at least one account, and ``"never"`` means half of the
            canary. 0 for no canary.

    Raises:
        ValueError: An argument is out of range.
    """

    failures: str | int = field(default="50%", converter=_to_failures)
    canary: int = field(default=0, validator=_is_count)

    @classmethod
    def of(cls, halt: "str | int | Halt | None") -> Self:
        """Convert a threshold to a `Halt`; None gives the default."""
        if isinstance(halt, cls):
            return halt
        return cls() if halt is None else cls(failures=halt)
