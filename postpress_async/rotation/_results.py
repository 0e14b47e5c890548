"""The results of ``session.update_many``."""

from collections.abc import Iterator, Mapping
from typing import Final

from postpress_async.errors import PostPressError
from postpress_async.rotation._outcome import Outcome, State


class Results(Mapping[str, Outcome]):
    """
    The outcome of each account, by account id, in the order of the changes.

    An outcome other than patched has an `error`, which is what `PostPressSession.update_proxy` would raise.
    """

    def __init__(self, outcomes: Mapping[str, Outcome]) -> None:
        self._outcomes: Final = outcomes

    def __getitem__(self, account_id: str) -> Outcome:
        return self._outcomes[account_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    @property
    def patched(self) -> tuple[Outcome, ...]:
        """Accounts that have their new proxy."""
        return self._in_state(State.PATCHED)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Accounts whose change was refused."""
        return self._in_state(State.FAILED)

    @property
    def unknown(self) -> tuple[Outcome, ...]:
        """Accounts whose change may have been applied: no response came."""
        return self._in_state(State.UNKNOWN)

    @property
    def skipped(self) -> tuple[Outcome, ...]:
        """Accounts that got no response, and whose change was certainly not applied."""
        return self._in_state(State.SKIPPED)

    @property
    def ok(self) -> bool:
        """Whether every account was patched."""
        return len(self.patched) == len(self)

    def raise_for_failures(self) -> None:
        """
        Do nothing if every account was patched.

        Raises:
            ExceptionGroup: Otherwise; it has one `PostPressError` for each other account.
        """
        failures: list[PostPressError] = [outcome.error for outcome in self.values() if outcome.error]
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(self)} accounts were not patched", failures)

    def _in_state(self, state: State) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.values() if outcome.state is state)

    def __repr__(self) -> str:
        counts = [f"{len(found)} {state}" for state in State if (found := self._in_state(state))]
        return f"<{type(self).__name__}: {', '.join(counts) or 'empty'}>"
