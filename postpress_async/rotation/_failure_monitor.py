"""Decides when a rotation halts: refused API key, unreachable host, too many failures, failed canary."""

from collections import Counter, defaultdict, deque
from math import ceil, inf
from typing import Final

from attrs import define

from postpress_async._fields import counted
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

WINDOW: Final = 200  # a percentage threshold counts the failures among this many of the latest accounts
# The API key counts as refused if this many accounts get the same 401 before any other response.
FIRST_RESPONSES: Final = 20
# Failed connection attempts, with no successful one, after which the host counts as unreachable.
MAX_FAILED_CONNECTS: Final = 20
# The same for the attempts of one account. If few accounts are in flight, 20 attempts may take minutes. With
# the default backoff, 5 attempts take at most 7.5 s.
MAX_FAILED_CONNECTS_OF_ACCOUNT: Final = 5

TYPES_THAT_PROVE_KEY: Final = {
    type_
    for type_, error in BY_TYPE.items()
    if not issubclass(error, InvalidCredentialsError | ExpiredCredentialsError)
}
"""Types of a 401 that the API sends only after it has accepted the API key, unless the scope is KEY."""


class FailureMonitor:
    """
    Watches the outcomes and failed attempts of a run, and decides when to halt.

    Args:
        key_works: Whether the API accepted the API key in an earlier run.
        connected: Whether an earlier run connected to the host.
    """

    def __init__(self, halt: Halt, *, key_works: bool = False, connected: bool = False) -> None:
        self._halt: Final = halt
        self.connected: bool = connected
        self._failed_connects = 0
        self._last_connect_error: PostPressError | None = None
        self.key: Final = ApiKeyMonitor(key_works)
        # For each of the latest accounts, the scope of its error; None if it was patched.
        self._window: Final[deque[Scope | None]] = deque(maxlen=WINDOW)
        # For each scope, the failed accounts of this run by error type. The key None counts all scopes.
        self._errors: Final = defaultdict[Scope | None, Counter[str]](Counter)
        self.tried: int = 0  # accounts that were patched, or whose call ended in an error
        self.key_refused: bool = False  # whether the reason to halt is the API key

    @property
    def canary_passed(self) -> bool:
        """Whether all accounts of the canary were tried. Too many failures would have halted the run."""
        return self.tried >= self._halt.canary

    def observe(self, outcome: Outcome) -> str | None:
        """Count *outcome*. Return the reason to halt, as a sentence; None to continue."""
        if outcome.status is not None:
            self.connected = True
        if (reason := self.key.observe(outcome)) is not None:
            self.key_refused = True
            return reason
        if outcome.is_refused:
            return None  # the row is invalid, and nothing was sent
        failed = outcome.error is not None
        if not failed and outcome.state is not State.PATCHED:
            return None
        if outcome.state is State.UNKNOWN and not outcome.attempts:
            return None  # an earlier run may have sent the account, but this run sent nothing
        self.tried += 1
        scope = (outcome.scope or Scope.SERVICE) if failed else None
        self._window.append(scope)
        if scope is not None:
            for key in (scope, None):
                self._errors[key][outcome.error_type or ""] += 1
        # The canary is judged after its last account.
        if self.tried == self._halt.canary and (reason := self._canary_reason()) is not None:
            return reason
        return self._threshold_reason() if failed else None  # only a failure can reach a threshold

    def attempt_failed(self, error: PostPressError) -> str | None:
        """Count a failed attempt. Return the reason to halt, as a sentence; None to continue."""
        if self.connected:
            return None
        could_not_connect = isinstance(error, ConnectError | TlsError) or (
            isinstance(error, AttemptTimeoutError) and error.applied is Applied.NO
        )
        if not could_not_connect:
            self.connected = True
            return None
        self._failed_connects += 1
        self._last_connect_error = error
        too_many = self._failed_connects >= MAX_FAILED_CONNECTS
        if too_many or len(error.attempts) >= MAX_FAILED_CONNECTS_OF_ACCOUNT:
            return self._unreachable()
        return None

    def at_end(self) -> str | None:
        """Return why the run counts as halted although all accounts were tried; None if it does not."""
        if (reason := self.key.at_end()) is not None:
            self.key_refused = True
            return reason
        return None if self.connected else self._unreachable()

    def _unreachable(self) -> str | None:
        if self._last_connect_error is None:
            return None
        attempts = counted(self._failed_connects, "attempt")
        fact = f"{self._last_connect_error.args[0]} ({attempts}, none successful)"
        return f"{fact}: check the base URL and the network"

    def _canary_reason(self) -> str | None:
        canary = self._halt.canary
        # Without a threshold for all scopes together, the canary fails if half of its accounts fail.
        for scope, threshold in {None: NEVER, **self._halt.thresholds}.items():
            if scope is None and threshold == NEVER:
                threshold = max(1, ceil(canary / 2))
            errors = self._errors[scope]
            if errors.total() >= min(_failures_at(threshold, canary), canary):
                cause = _main_cause(errors, scope)
                return f"{errors.total()} of the canary's {canary} accounts failed{cause}"
        return None

    def _threshold_reason(self) -> str | None:
        for scope, threshold in self._halt.thresholds.items():
            errors = self._errors[scope]
            if isinstance(threshold, int):
                if errors.total() >= threshold:
                    cause = _main_cause(errors, scope)
                    return f"{errors.total()} accounts failed{cause}, which is the threshold"
                continue
            with_scope = self._window.count(scope)
            # The window has None for a patched account. All other entries are failures.
            failed = len(self._window) - with_scope if scope is None else with_scope
            if failed >= _failures_at(threshold, WINDOW):
                latest = f"{failed} of the latest {len(self._window)} accounts failed"
                return f"{latest}{_main_cause(errors, scope)}; the threshold is {threshold} of {WINDOW}"
        return None


def _main_cause(errors: Counter[str], scope: Scope | None) -> str:
    """The main cause of the failures, to append to their number."""
    [(error, count)] = errors.most_common(1)
    cause = f", {'all' if count == errors.total() else f'{count} of them'} with {error}"
    return cause if scope is None else f" because of the {scope}{cause}"


def _failures_at(threshold: Threshold, accounts: int) -> float:
    """The number of failures that reaches *threshold*; a percentage refers to this number of *accounts*."""
    if threshold == NEVER:
        return inf
    if isinstance(threshold, int):
        return threshold
    rounding_error = 1e-9  # 8.8% of 375 is computed as 33.00000000000001, which must not become 34
    return max(1, ceil(accounts * float(threshold.removesuffix("%")) / 100 - rounding_error))


@define(eq=False)
class ApiKeyMonitor:
    """
    Detects that the API refuses the API key.

    An error of scope KEY is proof. Other 401s, such as ``invalid_credentials``, may be about the key or about
    the account. If each of the first `FIRST_RESPONSES` accounts gets the same of these 401s, the key is
    refused; in a shorter run, if each account with a response gets it. The key is accepted as soon as an
    account is patched, or gets a response that requires a valid key, such as ``disconnected_account``.
    """

    _works: bool
    _responses: int = 0  # accounts with a response, before the key is known to work
    _refused: int = 0  # accounts among them with a 401 of the type `_type`
    _type: str | None = None  # of the first 401
    refusal_type: str | None = (
        None  # `_type` once it has proved the refusal; None after an error of scope KEY
    )

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
        may_be_about_key = outcome.status == 401 and outcome.error_type not in TYPES_THAT_PROVE_KEY
        if not may_be_about_key or outcome.error_type != self._type:
            self._works = True  # patched, or the error is not about the API key
            return None
        self._refused += 1
        if self._refused < FIRST_RESPONSES:
            return None
        self.refusal_type = self._type
        return (
            f"each of the first {FIRST_RESPONSES} accounts was refused with {self._type}: check the API key"
        )

    def at_end(self) -> str | None:
        if self._works or not self._refused or self._refused != self._responses:
            return None
        self.refusal_type = self._type
        accounts = f"each of the {self._refused} accounts" if self._refused > 1 else "the only account"
        return (
            f"{accounts} that got a response was refused with {self._type}: check the API key; "
            "if it is right, reconnect the accounts"
        )
