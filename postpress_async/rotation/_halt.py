"""The failure thresholds at which a rotation stops by itself."""

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

from attrs import field, frozen

from postpress_async.errors import Scope

Threshold: TypeAlias = str | int
Failures: TypeAlias = Threshold | Mapping[str, Threshold]

NEVER: Final = "never"
SCOPES: Final = (Scope.REQUEST, Scope.ACCOUNT, Scope.PROXY, Scope.SERVICE)
"""The scopes that can have a threshold. An error of scope KEY always halts a rotation."""

_PERCENTAGE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)%")


def _to_failures(value: object) -> Failures:
    """Convert a threshold, or thresholds by scope as a mapping or a text. Raises `ValueError`."""
    if isinstance(value, str) and "=" in value:
        pairs = [part.partition("=") for part in value.split(",")]
        scopes: Mapping[object, object] = {scope.strip(): limit for scope, _, limit in pairs}
        if len(scopes) < len(pairs):
            raise ValueError(f"halt must name each scope once, got {value!r}")
    elif isinstance(value, Mapping):
        scopes = value
    else:
        return _to_threshold(value)
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise ValueError(f"halt must have the scopes {', '.join(SCOPES)}, got {unknown[0]!r}")
    if not scopes:
        raise ValueError("halt must have a threshold for at least one scope, got none")
    return {Scope(str(scope)): _to_threshold(limit) for scope, limit in scopes.items()}


def _to_threshold(value: object) -> Threshold:
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdecimal():
            value = int(text)
        elif text == NEVER or ((match := _PERCENTAGE.fullmatch(text)) and 0 < float(match[1]) <= 100):
            return text
    if type(value) is int and value >= 1:
        return value
    raise ValueError(
        'halt must be a percentage such as "5%", a number of accounts such as 100, "never", or thresholds by '
        f'scope such as "proxy=5%,service=20%", got {value!r}'
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
        failures: A percentage of the latest 200 accounts, a number of failed accounts of this run, or
            ``"never"``. ``"5%"`` halts the rotation at the tenth failure among the latest 200 accounts, even
            if fewer than 200 are completed. Or thresholds by error scope (request, account, proxy or
            service), as a mapping or as ``"proxy=5%,service=20%"``; errors of other scopes then do not count.
        canary: Number of accounts to send first; 0 for no canary. They are drawn evenly from a `Fleet` of
            known length, and are the first accounts of any other input. The remaining accounts follow only if
            the canary stays below *failures*; a percentage then refers to the canary, and is at least one
            account. With ``"never"``, and in addition to thresholds by scope, fewer than half of the canary
            may fail.

    Raises:
        ValueError: An argument is out of range.
    """

    failures: Failures = field(default="50%", converter=_to_failures)
    canary: int = field(default=0, validator=_is_count)

    @property
    def thresholds(self) -> dict[Scope | None, Threshold]:
        """The threshold of each scope that has one. The key None stands for all scopes together."""
        failures = self.failures if isinstance(self.failures, Mapping) else {None: self.failures}
        return {None if scope is None else Scope(scope): limit for scope, limit in failures.items()}


def as_halt(halt: Failures | Halt | None) -> Halt:
    if isinstance(halt, Halt):
        return halt
    return Halt() if halt is None else Halt(failures=halt)
