"""Decides when a rotation halts: refused API key, unreachable host, too many failures, failed canary."""

from collections import Counter, defaultdict, deque
from math import ceil, inf
from typing import Final

from attrs import define

from postpress_async.errors import (
    BY_TYPE,
    Applied,
    AttemptTimeoutError,
    ConnectError,
    ExpiredCredentialsError,
    InvalidCredentialsError,
    PostPressError,
    Scope,
    TlsError,
)
from postpress_async.rotation._halt import NEVER, Halt, Threshold
from postpress_async.rotation._outcome import Outcome, State

WINDOW: Final = 200
"""Latest accounts among which a percentage of failures is counted."""

FIRST_ANSWERS: Final = 20
"""If this many accounts are the first to get a response, all with the same 401, the API key is refused."""

UNREACHED: Final = 20
"""Failed connection attempts, without any successful one, after which the host is unreachable."""

UNREACHED_BY_ONE: Final = 5
"""The same for one account: with few in flight, 20 attempts may take minutes; these take at most 7.5 s."""

PROVE_KEY: Final = {
    type_
    for type_, error in BY_TYPE.items()
    if not issubclass(error, InvalidCredentialsError | ExpiredCredentialsError)
}
"""Types of a 401 that is certainly not about the API key, unless its scope is KEY: the API looked further."""


class FailureMonitor:
    """
    Watches the outcomes and failed attempts of a run, and decides when to halt.

    Args:
        key_works: Whether the API accepted the API key in an earlier run.
        connected: Whether an earlier run connected to the host.

    Attributes:
        tried: Accounts that were patched, or whose call ended in an error.
        key_refused: Whether the reason to halt is the API key.
    """

    def __init__(self, halt: Halt, *, key_works: bool = False, connected: bool = False) -> None:
        self._halt: Final = halt
        self.connected: bool = connected
        self._failed_connects = 0
        self._last_connect_error: PostPressError | None = None
        self._key: Final = ApiKeyMonitor(key_works)
        self._window: Final[deque[Scope | None]] = deque(maxlen=WINDOW)  # the failures' scopes; None: patched
        # Failed accounts of this run by error type: those of each scope, and all with None.
        self._errors: Final = defaultdict[Scope | None, Counter[str]](Counter)
        self.tried: int = 0
        self.key_refused: bool = False

    @property
    def canary_passed(self) -> bool:
        """Whether all accounts of the canary were tried; too many failures would have halted the run."""
        return self.tried >= self._halt.canary

    def observe(self, outcome: Outcome) -> str | None:
        """Count *outcome*. Return the reason to halt, as a sentence; None to continue."""
        if outcome.status is not None:
            self.connected = True
        if (reason := self._key.observe(outcome)) is not None:
            self.key_refused = True
            return reason
        if outcome.is_refused:
            return None  # its row is invalid, and nothing was sent
        failed = outcome.error is not None
        if not failed and outcome.state is not State.PATCHED:
            return None
        if outcome.state is State.UNKNOWN and not outcome.attempts:
            return None  # the doubt is an earlier run's, and this run sent nothing
        self.tried += 1
        scope = (outcome.scope or Scope.SERVICE) if failed else None
        self._window.append(scope)
        if scope is not None:
            for key in (scope, None):
                self._errors[key][outcome.error_type or ""] += 1
        # A patched account reaches no threshold, except as the last of the canary.
        return self._reason() if failed or self.tried == self._halt.canary else None

    @property
    def key_error(self) -> str | None:
        """The type of the 401 that all accounts got; None if none, or if the error has scope KEY."""
        return self._key.refusal_type

    def attempt_failed(self, error: PostPressError) -> str | None:
        """Count a failed attempt. Return the reason to halt, as a sentence; None to continue."""
        if self.connected:
            return None
        timed_out = isinstance(error, AttemptTimeoutError) and error.applied is Applied.NO
        if not timed_out and not isinstance(error, ConnectError | TlsError):
            self.connected = True
            return None
        self._failed_connects += 1
        self._last_connect_error = error
        halts = self._failed_connects >= UNREACHED or len(error.attempts) >= UNREACHED_BY_ONE
        return self._unreachable() if halts else None

    def at_end(self) -> str | None:
        """Return why the run counts as halted although all accounts were tried; None if it does not."""
        if (reason := self._key.at_end()) is not None:
            self.key_refused = True
            return reason
        return None if self.connected else self._unreachable()

    def _unreachable(self) -> str | None:
        if self._last_connect_error is None:
            return None
        attempts = "1 attempt" if self._failed_connects == 1 else f"{self._failed_connects} attempts"
        fact = f"{self._last_connect_error.args[0]} ({attempts}, none successful)"
        return f"{fact}: check the base URL and the network"

    def _reason(self) -> str | None:
        canary = self._halt.canary
        if self.tried == canary:
            half = max(1, ceil(canary / 2))
            for scope, threshold in {None: NEVER, **self._halt.thresholds}.items():
                errors = self._errors[scope]
                most = half if threshold == NEVER and scope is None else _accounts(threshold, canary)
                if errors.total() >= min(most, canary):
                    return f"{errors.total()} of the canary's {canary} accounts failed{_main(errors, scope)}"
        for scope, threshold in self._halt.thresholds.items():
            errors = self._errors[scope]
            of_scope = self._window.count(scope)
            failed = len(self._window) - of_scope if scope is None else of_scope
            if isinstance(threshold, int):
                if errors.total() >= threshold:
                    return f"{errors.total()} accounts failed{_main(errors, scope)}, which is the threshold"
            elif failed >= _accounts(threshold, WINDOW):
                latest = f"{failed} of the latest {len(self._window)} accounts failed"
                return f"{latest}{_main(errors, scope)}; the threshold is {threshold} of {WINDOW}"
        return None


def _main(errors: Counter[str], scope: Scope | None) -> str:
    """The main cause of the failures, to append to their number."""
    [(error, count)] = errors.most_common(1)
    cause = f", {'all' if count == errors.total() else f'{count} of them'} with {error}"
    return cause if scope is None else f" because of the {scope}{cause}"


def _accounts(threshold: Threshold, of: int) -> float:
    """The number of failed accounts at which a threshold is reached; a percentage is one of *of* accounts."""
    if threshold == NEVER:
        return inf
    if isinstance(threshold, int):
        return threshold
    return max(1, ceil(of * float(threshold.removesuffix("%")) / 100 - 1e-9))


@define(eq=False)
class ApiKeyMonitor:
    """
    Detects that the API refuses the API key.

    An error of scope KEY is proof. So is the same 401 that may be about the key, such as
    ``invalid_credentials``, for each of the first `FIRST_ANSWERS` accounts, or in a shorter run for each
    account that got a response; unless an account was patched, or got a response that requires a valid key,
    such as ``disconnected_account``.

    Attributes:
        refusal_type: The type of these 401s once they have proved it; None after an error of scope KEY.
    """

    _works: bool
    _responses: int = 0  # accounts with a response, before the key is known to work
    _refused: int = 0  # those of them with a 401 of the common type
    _type: str | None = None
    refusal_type: str | None = None

    def observe(self, outcome: Outcome) -> str | None:
        """Count *outcome*. Return the reason to halt, as a sentence; None to continue."""
        if outcome.scope is Scope.KEY:
            return f"the API key was refused ({outcome.error_type}), and would be for all other accounts"
        if self._works or outcome.status is None:
            return None
        self._responses += 1
        if outcome.scope is Scope.SERVICE:
            return None  # it may come from a gateway that does not check the key
        if not self._refused:
            self._type = outcome.error_type
        if outcome.status != 401 or outcome.error_type in PROVE_KEY or outcome.error_type != self._type:
            self._works = True  # patched, or the error is about the account or its proxy
            return None
        self._refused += 1
        if self._refused < FIRST_ANSWERS:
            return None
        self.refusal_type = self._type
        return f"each of the first {FIRST_ANSWERS} accounts was refused with {self._type}: check the API key"

    def at_end(self) -> str | None:
        """Return why the key seems refused at the end of the run, as a sentence; None if it does not."""
        if self._works or not self._refused or self._refused != self._responses:
            return None
        self.refusal_type = self._type
        accounts = f"each of the {self._refused} accounts" if self._refused > 1 else "the only account"
        return (
            f"{accounts} that got a response was refused with {self._type}: check the API key; "
            "if it is right, reconnect the accounts"
        )
