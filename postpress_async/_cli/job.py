"""A rotation that is ready to start."""

from itertools import chain

from attrs import frozen

from postpress_async._cli.output import counted, listed
from postpress_async._cli.rotate_options import RotateOptions
from postpress_async.rotation import PooledProxy, Survey
from postpress_async.rotation._input import Changes
from postpress_async.rotation._pool._tags import Pools
from postpress_async.rotation._selection import Selection


@frozen
class Job:
    """
    A rotation that is ready to start.

    Attributes:
        options: The options of the command.
        changes: The accounts, as the argument of ``session.rotate``.
        pools: Proxies for the accounts without a change.
        invalid_lines: Number of invalid lines of the lists of proxies.
        journal: Path of the journal.
        survey: Numbers of rows; only their total if the journal knows the fleet.
        is_checked: Whether the rows were read. If the journal knows the fleet, all are known to be valid.
        selection: The accounts of the run; None for all.
        left_behind: For a rollback, the number of accounts that cannot go back.
    """

    options: RotateOptions
    changes: Changes
    pools: Pools
    journal: str
    survey: Survey
    invalid_lines: int = 0
    is_checked: bool = True
    selection: Selection | None = None
    left_behind: int = 0

    @property
    def proxies(self) -> list[PooledProxy]:
        """The proxies of all pools."""
        return list(chain.from_iterable(self.pools.values()))

    @property
    def total(self) -> int:
        """Number of rows, including invalid ones."""
        return self.survey.rows + self.survey.refused

    @property
    def reason_not_to_start(self) -> str | None:
        """Why the rotation cannot start, and what to do; None if it can."""
        if self.left_behind and not self.options.skip_bad:
            cannot = f"nothing was sent: {counted(self.left_behind, 'account')} cannot go back"
            if not self.survey.rows:
                return cannot
            return f"{cannot}. Use --skip-bad to send only the others: {counted(self.survey.rows, 'account')}"
        invalid = self.survey.refused + self.invalid_lines
        if invalid and not self.options.skip_bad:
            correct = f"nothing was sent: correct {'it' if invalid == 1 else 'them'}"
            if not self.survey.rows:
                return correct
            valid = counted(self.survey.rows, "account")
            if self.pools:
                valid += f" and {counted(len(self.proxies), 'proxy', 'proxies')}"
            return f"{correct}, or use --skip-bad to send only what is valid: {valid}"
        if self.selection is not None and not self.total:
            return f"nothing was sent: the input has none of the {self.selection.text} in {self.journal}"
        if self.pools and self.is_checked and self.survey.rows and not self.survey.pooled:
            reason = f"no row would use --pool, since all have changes of their own ({self.survey.kinds})"
            return f"nothing was sent: {reason}. Remove --pool, or empty the columns proxy, country and ip"
        named = {tag for tag, _ in self.options.lists}
        if self.selection is None and (unused := [tag for tag in self.unused_tags if tag in named]):
            pools = "the --pool" if len(unused) == 1 else "any --pool"
            reason = f"no row would use {pools} for {listed(unused)}"
            return f"nothing was sent: {reason}. Remove it, or correct the tags"
        return None

    @property
    def unused_tags(self) -> list[str]:
        """The tags of pools that no valid row uses; none if the rows were not read."""
        tags = self.pools.keys() - self.survey.tags.keys() if self.survey.pooled else ()
        return sorted(filter(None, tags))
