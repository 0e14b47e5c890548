"""What a rotation is asked to do, and its inputs: opened, and checked before a byte is sent."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

import click
from attrs import frozen

from postpress_async._cli import options
from postpress_async._cli.event_stream import Feed
from postpress_async._cli.next_command import retry_command
from postpress_async._cli.output import many
from postpress_async.errors import FleetError
from postpress_async.models import ManagedProxy
from postpress_async.rotation import Fleet, Halt, ProxyPool
from postpress_async.rotation.fleet import Survey
from postpress_async.rotation.fleet._database_url import DATABASE_URL, check_argument
from postpress_async.rotation.fleet._row import COLUMNS, NOTHING_ASKED, PARTS
from postpress_async.rotation.given import Changes
from postpress_async.rotation.journal import OnFailed, OnUnknown
from postpress_async.rotation.journal.foresight import rows_known_to
from postpress_async.rotation.plan import Faults
from postpress_async.rotation.pool import Assign
from postpress_async.rotation.pool.proxy_list import RefusedLine
from postpress_async.sandbox import Profile, own_accounts

COLUMNS_SHOWN: Final = 20
"""Unused columns that are named before the rest is only counted."""

_LOOKED_AT: Final = 1_000  # unused columns that may be misspelt: with more, it is another kind of table

_NOTHING_ASKED_ADVICE: Final = (
    "give --pool FILE or --country CC for all of them, or each row a proxy or a country"
)

_OF_A_POOL: Final = ("assign", "pool_seed", "accounts_per_proxy", "failovers")


@frozen(kw_only=True)
class Wishes:
    """
    The words of the command line, by the names of their options.

    Attributes:
        command: The whole command, as it was given.
        given: For the name of each option that was an argument, its words: the others are variables or
            defaults.
    """

    command: str
    given: Mapping[str, list[str]]
    fleet: str | None
    database: str | None
    database_file: str | None
    query: str | None
    journal: str | None
    pool: tuple[str, ...]
    assign: Assign
    pool_seed: int
    accounts_per_proxy: int | None
    failovers: int
    country: str | None
    skip_bad: bool
    in_flight: int
    rate: float | None
    attempts: int
    limit: int | None
    max_duration: float | None
    cluster: str | None
    certificates: str | None
    halt: str | int
    canary: int
    on_unknown: OnUnknown
    on_failed: OnFailed = "report"
    dry_run: bool
    json: bool
    verbose: bool
    sandbox: bool
    profile: Profile
    seed: int
    dead_proxies: int
    api_key_file: str | None
    base_url: str | None
    transport: Literal["session", "lean"]
    no_idempotency: bool = False

    def check(self) -> None:
        """Raise `click.UsageError` for words that do not go together."""
        # Only arguments: a variable may be set for all nights, and this one has no pool.
        if not self.pool and (idle := [name for name in _OF_A_POOL if name in self.given]):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
            require = "requires" if len(idle) == 1 else "require"
            raise click.UsageError(f"{names} {require} --pool")
        if not self.sandbox and (self.profile != "steady" or self.seed or self.dead_proxies):
            raise click.UsageError(
                "--profile, --seed and --dead-proxies are of the sandbox: give --sandbox too"
            )
        if self.dead_proxies and not self.pool:
            raise click.UsageError("--dead-proxies requires --pool")
        if self.pool and self.country is not None:
            raise click.UsageError(
                "rows that name no change get a proxy of --pool or one of --country, not both"
            )
        if self.query is not None and self.fleet is not None:
            raise click.UsageError("the accounts come from FLEET or from --query, not both")
        if self.query is None and (self.database is not None or self.database_file is not None):
            raise click.UsageError("--from and --from-file name a database: give --query too")
        if self.certificates is not None and self.cluster is None:
            raise click.UsageError("--certificates are those of a cluster: give --cluster too")
        if [self.fleet, *self.pool].count("-") > 1:
            raise click.UsageError("standard input can be the FLEET or one --pool, not both")

    def retry_failed(self, journal: str) -> str:
        """The command that sends again what failed: this one's accounts, proxies and target."""
        return retry_command(self.given, journal, self.fleet)

    @property
    def halts(self) -> Halt:
        """When to stop by itself."""
        return Halt(failures=self.halt, canary=self.canary)


@frozen
class Job:
    """
    A rotation that is ready to begin.

    Attributes:
        wishes: What was asked for.
        changes: The accounts, as ``session.rotate`` takes them.
        pool: For those that name no change.
        journal: Where it is kept.
        survey: The rows in numbers; of a journal's known input, their number alone.
        checked: Whether the rows were looked at: a journal that knows its input knows they were.
    """

    wishes: Wishes
    changes: Changes
    pool: ProxyPool | None
    journal: str
    survey: Survey
    checked: bool = True

    @property
    def total(self) -> int:
        """Rows, whether they can be sent or not."""
        return self.survey.rows + self.survey.refused

    @property
    def nothing_sent(self) -> str | None:
        """Why it must not begin, and the next step, in a sentence; None if it may begin."""
        lines = 0 if self.pool is None else len(self.pool.refusals)
        bad = self.survey.refused + lines
        if bad and not self.wishes.skip_bad:
            correct = f"nothing was sent: correct {'it' if bad == 1 else 'them'}"
            if not self.survey.rows:
                return correct
            usable = many(self.survey.rows, "account", "accounts")
            if self.pool is not None:
                usable += f" and {many(len(self.pool), 'proxy', 'proxies')}"
            return f"{correct}, or leave out what cannot be used by --skip-bad: {usable} can be used"
        if self.pool is not None and self.checked and self.survey.rows and not self.survey.pooled:
            return f"nothing was sent: {_unused(self.survey)}: leave --pool out, or empty those columns"
        return None


def _unused(survey: Survey) -> str:
    """Why no row would use the pool."""
    own = survey.rows - survey.managed
    rows = []
    if survey.managed:
        verb = "orders a managed proxy by its" if survey.managed == 1 else "order a managed proxy by their"
        rows.append(f"{many(survey.managed, 'row', 'rows')} {verb} country or ip column")
    if own:
        verb = "names a proxy of its own" if own == 1 else "name a proxy of their own"
        rows.append(f"{many(own, 'row', 'rows')} {verb}")
    return f"no row would use --pool, since {' and '.join(rows)}"


@contextmanager
def open_job(wishes: Wishes, feed: Feed) -> Iterator[Job]:
    """
    The job, as long as its inputs are open. What cannot be used is told on standard error and to *feed*.

    Raises:
        FleetError: The fleet or the pool cannot be read.
    """
    pool = _open_pool(wishes, feed) if wishes.pool else None
    default = None if wishes.country is None else ManagedProxy(country=wishes.country)
    if wishes.fleet is None and wishes.query is None:
        changes: Changes = dict.fromkeys(own_accounts(), default or ManagedProxy(country="US"))
        if pool is not None:
            changes = own_accounts()
        count = len(own_accounts())
        managed, pooled = (count, 0) if pool is None else (0, count)
        journal = wishes.journal or "sandbox.rotation.sqlite3"
        yield Job(wishes, changes, pool, journal, Survey(count, managed, pooled))
        return
    with _open_fleet(wishes, default, pooled=pool is not None) as fleet:
        _check_columns(fleet.name, fleet.ignored_columns, COLUMNS)
        journal = wishes.journal or f"{Path(fleet.name).name.strip('<>')}.rotation.sqlite3"
        known = None if wishes.dry_run else rows_known_to(journal, fleet.digest)
        if known is not None:  # every row was checked when the journal was begun, and none has changed
            fleet.counted = known
            yield Job(wishes, fleet, pool, journal, Survey(known), checked=False)
            return
        survey = fleet.survey(lambda refusal: feed.refused(fleet.name, refusal))
        _tell(fleet.name, survey.faults)
        if pool is not None and 0 < survey.pooled < survey.rows and not wishes.dry_run:
            click.echo(f"{many(survey.rows, 'account', 'accounts')}: {survey.kinds}", err=True)
        yield Job(wishes, fleet, pool, journal, survey)


def _open_fleet(wishes: Wishes, default: ManagedProxy | None, *, pooled: bool) -> Fleet:
    if wishes.query is None:
        return Fleet.open(wishes.fleet or "-", default=default, pooled=pooled)
    if wishes.database_file is not None:
        url = options.read_secret_file(wishes.database_file, "the database's URL").reveal()
    elif wishes.database is not None:
        url = check_argument(wishes.database)
    elif not (url := os.environ.get(DATABASE_URL, "")):
        raise click.UsageError(f"say which database: --from URL, --from-file FILE, or {DATABASE_URL}")
    return Fleet.open_query(url, wishes.query, default=default, pooled=pooled)


def _open_pool(wishes: Wishes, feed: Feed) -> ProxyPool:
    pool = ProxyPool.read(
        *wishes.pool,
        skip_bad=True,  # lists and fleet are checked together, and refused in `Job.nothing_sent`
        assign=wishes.assign,
        seed=wishes.pool_seed,
        accounts_per_proxy=wishes.accounts_per_proxy,
        failovers=wishes.failovers,
    )
    for name, columns in pool.ignored_columns.items():
        _check_columns(name, columns, ("proxy", *PARTS))
    for name in pool.ignored_columns:
        faults = Faults[RefusedLine]()
        for refusal in pool.refusals:
            if refusal.source == name:
                faults.add(refusal)
                feed.refused(name, refusal)
        _tell(name, faults)
    return pool


def _check_columns(name: str, unused: Sequence[str], known: Sequence[str]) -> None:
    """Tell of columns that are not used; refuse one that is nearly named like a known one."""
    for column in unused[:_LOOKED_AT]:
        if meant := get_close_matches(column.strip().lower(), known, 1, 0.8):
            raise FleetError(f"{name} has a column {column!r}, which is not known: is it {meant[0]}?")
    if unused:
        shown = ", ".join(map(repr, unused[:COLUMNS_SHOWN]))
        more = f" and {len(unused) - COLUMNS_SHOWN:,} more" if len(unused) > COLUMNS_SHOWN else ""
        are = "1 column is" if len(unused) == 1 else f"{len(unused):,} columns are"
        click.echo(f"{name}: {are} not used: {shown}{more}", err=True)


def _tell(name: str, faults: Faults[Any]) -> None:
    for fault in faults:
        advice = _NOTHING_ASKED_ADVICE if fault.first.reason == NOTHING_ASKED else None
        click.echo(f"{name}: {fault.sentence(advice)}", err=True)
    if faults.unlisted:
        click.echo(f"{name}: {faults.unlisted:,} more lines have other faults", err=True)
