"""When a rotation stops by itself: a refused key, an unreachable host, too many failures, a failed canary."""

import re
from collections import Counter, deque
from math import ceil
from typing import Final, Self

from attrs import field, frozen

from postpress_async.errors import (
    Applied,
    AttemptTimeoutError,
    ConnectError,
    PostPressError,
    Scope,
    TlsError,
)
from postpress_async.rotation._outcome import Outcome, State

FIRST_ANSWERS: Final = 20
"""So many accounts in a row that all get one and the same 401 tell of the key, not of the accounts."""

UNREACHED: Final = 20
"""Attempts that failed to connect after which the host counts as unreachable, if none ever connected."""

UNREACHED_BY_ONE: Final = 5
"""The same for one account: with few in flight 20 attempts may take minutes, and these 7.5 s at most."""

WINDOW: Final = 200
"""Accounts, the latest settled ones, among which a share of failures is looked for."""

_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)%")
_FORMS: Final = 'write a share such as "5%", a number of accounts such as 100, or "never"'


def _to_failures(value: object) -> "str | int":
    """Raise `ValueError` unless *value* is a share, a count, or ``never``."""
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdecimal():
            value = int(text)
        elif text == "never" or ((share := _SHARE.fullmatch(text)) and 0 < float(share[1]) <= 100):
            return text
    if type(value) is int and value >= 1:
        return value
    raise ValueError(f"halt is not {value!r}: {_FORMS}")


def _is_count(_instance: object, _attribute: object, value: int) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"canary is a whole number of accounts from 0, not {value!r}")


@frozen(kw_only=True)
class Halt:
    """
    How many failures are too many.

    An account has failed where its call ended in an error. One whose row was refused, or for which a
    pool had no proxy left, has not: nothing was tried.

    Attributes:
        failures: A share such as ``"5%"`` of the latest 200 accounts: with it, the tenth failure among the
            latest 200 halts the rotation, be they 200 yet or fewer. Or a number of accounts of this run;
            or ``"never"``.
        canary: Accounts that are sent first; all others only if fewer than *failures* of these failed. A
            share is one of the canary, at least one account: ``"5%"`` of a canary of 10 is one failure.
            ``"never"`` is half of it. 0 for none.

    Raises:
        ValueError: It is not as said above.
    """

    failures: str | int = field(default="50%", converter=_to_failures)
    canary: int = field(default=0, validator=_is_count)

    @classmethod
    def of(cls, given: "str | int | Halt | None") -> Self:
        """The halt that *given* is or says; None is the default."""
        if isinstance(given, cls):
            return given
        return cls() if given is None else cls(failures=given)

    def of_latest(self) -> int | None:
        """Failures among the latest `WINDOW` that are too many; None where a number of all is, or none."""
        return self._share_of(WINDOW) if isinstance(self.failures, str) else None

    def of_canary(self) -> int:
        """Failures among the canary that are too many."""
        if isinstance(self.failures, int):
            return min(self.failures, self.canary)
        return self._share_of(self.canary) or max(1, ceil(self.canary / 2))

    def _share_of(self, accounts: int) -> int | None:
        share = _SHARE.fullmatch(str(self.failures))
        return None if share is None else max(1, ceil(accounts * float(share[1]) / 100 - 1e-9))


class Halts:
    """
    Sees each outcome of a run, and each failed attempt, and says when to stop.

    Args:
        halt: What the user says.
        key_works: Whether the API key was accepted in an earlier run.
        connected: Whether an earlier run reached the host.

    Attributes:
        tried: Accounts that were patched, or whose call ended in an error.
        key_refused: Whether it was enough because of the API key.
        connected: Whether a connection to the host was ever made.
    """

    def __init__(self, halt: Halt, *, key_works: bool = False, connected: bool = False) -> None:
        self._halt: Final = halt
        self.connected: bool = connected
        self._unreached = 0  # attempts that failed to connect
        self._last_unreached: PostPressError | None = None
        self._key: Final = KeyHalt(works=key_works)
        self._most_of_latest: Final = halt.of_latest()
        self._latest: Final[deque[bool]] = deque(maxlen=WINDOW)
        self._failed_of_latest = 0
        self._failed = 0
        self.tried: int = 0
        self._errors: Final[Counter[str]] = Counter()
        self.key_refused: bool = False

    @property
    def canary_lives(self) -> bool:
        """Whether the canary was settled, and lives."""
        return self.tried >= self._halt.canary

    def sees(self, outcome: Outcome) -> str | None:
        """Why to stop, in a sentence; None to go on."""
        if outcome.status is not None:
            self.connected = True
        if (reason := self._key.sees(outcome)) is not None:
            self.key_refused = True
            return reason
        failed = outcome.error is not None
        if not failed and outcome.state is not State.PATCHED:
            return None
        if outcome.state is State.UNKNOWN and not outcome.attempts:
            return None  # an earlier run's doubt, which this one could not settle, tells of that run
        self.tried += 1
        if len(self._latest) == WINDOW:
            self._failed_of_latest -= self._latest[0]
        self._latest.append(failed)
        if failed:
            self._failed += 1
            self._failed_of_latest += 1
            self._errors[outcome.error_type or ""] += 1
        # What was patched can only be the last of the canary.
        return self._reason() if failed or self.tried == self._halt.canary else None

    @property
    def key_error(self) -> str | None:
        """The type of the 401s by which the key was found out, if it was not an error of scope KEY."""
        return self._key.type if self.key_refused else None

    def attempt_failed(self, error: PostPressError) -> str | None:
        """Why to stop, in a sentence, after an attempt that failed with *error*; None to go on."""
        if self.connected:
            return None
        timed_out = isinstance(error, AttemptTimeoutError) and error.applied is Applied.NO
        if not timed_out and not isinstance(error, ConnectError | TlsError):
            self.connected = True
            return None
        self._unreached += 1
        self._last_unreached = error
        enough = self._unreached >= UNREACHED or len(error.attempts) >= UNREACHED_BY_ONE
        return self._unreachable() if enough else None

    def at_end(self) -> str | None:
        """Why the run should not count as ended, although all its accounts were tried; None if it does."""
        if (reason := self._key.at_end()) is not None:
            self.key_refused = True
            return reason
        return None if self.connected else self._unreachable()

    def _unreachable(self) -> str | None:
        if self._last_unreached is None:
            return None
        attempts = "1 attempt" if self._unreached == 1 else f"{self._unreached} attempts"
        fact = self._last_unreached.args[0]
        return f"{fact} ({attempts}, all that were made): check the base URL and the network"

    def _reason(self) -> str | None:
        halt = self._halt
        if self.tried == halt.canary and self._failed >= halt.of_canary():
            return f"{self._failed} of the canary's {halt.canary} accounts failed{self._mostly()}"
        if self._most_of_latest is not None and self._failed_of_latest >= self._most_of_latest:
            latest = f"{self._failed_of_latest} of the latest {len(self._latest)} accounts failed"
            return f"{latest}{self._mostly()}; the halt is at {halt.failures} of {WINDOW}"
        if isinstance(halt.failures, int) and self._failed >= halt.failures:
            return f"{self._failed} accounts failed{self._mostly()}, and that is the halt"
        return None

    def _mostly(self) -> str:
        [(error, count)] = self._errors.most_common(1)
        return f", {'all' if count == self._failed else f'{count} of them'} with {error}"


class KeyHalt:
    """
    Sees that the API key is refused.

    An error of scope KEY says so at any time. So does one type of 401 that each of the first `FIRST_ANSWERS`
    accounts gets, or at the end of a shorter run each account that was answered; unless any account was
    patched before, or got an answer that only a good key gets.

    Attributes:
        type: The type of these 401s, once they have told; None after an error of scope KEY.
    """

    def __init__(self, *, works: bool = False) -> None:
        self._works = works
        self._answered = 0  # accounts, before it was known that the key works
        self._refused = 0  # of these, with the 401 that all of them got
        self._type: str | None = None
        self.type: str | None = None

    def sees(self, outcome: Outcome) -> str | None:
        """Why to stop, in a sentence; None to go on."""
        if outcome.scope is Scope.KEY:
            return f"the API key was refused ({outcome.error_type}): every other account would get the same"
        if self._works or outcome.status is None:
            return None
        self._answered += 1
        if outcome.scope is Scope.SERVICE:
            return None  # it may come from a gateway that never saw the key
        if not self._refused:
            self._type = outcome.error_type
        if outcome.status != 401 or outcome.scope is Scope.PROXY or outcome.error_type != self._type:
            self._works = True  # it was patched, or the answer is about the account or its proxy
            return None
        self._refused += 1
        if self._refused < FIRST_ANSWERS:
            return None
        self.type = self._type
        return f"each of the first {FIRST_ANSWERS} accounts was refused with {self._type}: check the API key"

    def at_end(self) -> str | None:
        """Why the key is suspected at the end of the run, in a sentence; None if it is not."""
        if self._works or not self._refused or self._refused != self._answered:
            return None
        self.type = self._type
        every = f"each of the {self._refused} accounts" if self._refused > 1 else "the only account"
        return (
            f"{every} that got an answer was refused with {self._type}: check the API key, "
            "and reconnect the accounts if it is right"
        )
