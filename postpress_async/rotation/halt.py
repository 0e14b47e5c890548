"""When a rotation stops by itself."""

from postpress_async.errors import Scope
from postpress_async.rotation.outcome import Outcome, State

FIRST_ANSWERS = 20
"""So many accounts in a row that all get one and the same 401 tell of the key, not of the accounts."""


class KeyHalt:
    """
    Sees that the API key may not do this, before it is tried on every account.

    An error of scope KEY says so at once; so does one type of 401 given by each of the first
    `FIRST_ANSWERS` accounts. Once any account was patched, the key works, and such errors are only recorded.
    """

    def __init__(self, *, works: bool = False) -> None:
        self._works = works
        self._answers = 0
        self._type: str | None = None

    def sees(self, outcome: Outcome) -> str | None:
        """Why to stop, in a sentence; None to go on."""
        if self._works or outcome.status is None or outcome.scope is Scope.SERVICE:
            return None  # no answer, or none about a key or an account
        if outcome.state is State.PATCHED:
            self._works = True
            return None
        if outcome.scope is Scope.KEY:
            return f"the API key was refused ({outcome.error_type}): every other account would get the same"
        self._answers += 1
        if self._answers == 1:
            self._type = outcome.error_type
        if outcome.status != 401 or outcome.error_type != self._type:
            self._works = True  # the answers differ, so they are about the accounts
        elif self._answers == FIRST_ANSWERS:
            return (
                f"each of the first {FIRST_ANSWERS} accounts was refused with {self._type}: check the API key"
            )
        return None
