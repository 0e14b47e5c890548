"""What a rotation is asked to do, and its inputs: opened, and checked before a byte is sent."""

import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

import click
from attrs import frozen

from postpress_async.cli import options
from postpress_async.cli.output import many
from postpress_async.errors import FleetError
from postpress_async.models import ManagedProxy
from postpress_async.rotation import Fleet, Halt, ProxyPool, Refusal
from postpress_async.rotation.fleet._database_url import DATABASE_URL, check_argument
from postpress_async.rotation.fleet._row import COLUMNS, NOTHING_ASKED
from postpress_async.rotation.given import Changes
from postpress_async.rotation.journal import OnFailed, OnUnknown
from postpress_async.rotation.journal.foresight import rows_known_to
from postpress_async.rotation.pool import Assign
from postpress_async.sandbox import Profile, own_accounts

LISTED: Final = 50
"""Bad rows that are listed before the rest is only counted."""

_OF_A_POOL: Final = ("assign", "pool_seed", "accounts_per_proxy", "failovers")


@frozen(kw_only=True)
class Wishes:
    """The words of the command line, by the names of their options."""

    fleet: str | None
    database: str | None
    database_file: str | None
    query: str | None
    journal: str | None
    pool: str | None
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

    def check(self, said: Collection[str]) -> None:
        """
        Raise `click.UsageError` for words that do not go together.

        Args:
            said: The names of those that were arguments: a variable may speak of a pool not used today.
        """
        if self.pool is None and (idle := [name for name in _OF_A_POOL if name in said]):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
            are, them = ("is", "it") if len(idle) == 1 else ("are", "them")
            raise click.UsageError(
                f"{names} {are} of a pool, and there is none: give --pool FILE too, or leave {them} out"
            )
        if not self.sandbox and (self.profile != "steady" or self.seed or self.dead_proxies):
            raise click.UsageError(
                "--profile, --seed and --dead-proxies are of the sandbox: give --sandbox too"
            )
        if self.dead_proxies and self.pool is None:
            raise click.UsageError("--dead-proxies are of a pool: give --pool too")
        if self.pool is not None and self.country is not None:
            raise click.UsageError(
                "rows that name no change get a proxy of --pool or one of --country, not both"
            )
        if self.query is not None and self.fleet is not None:
            raise click.UsageError("the accounts come from FLEET or from --query, not both")
        if self.query is None and (self.database is not None or self.database_file is not None):
            raise click.UsageError("--from and --from-file name a database: give --query too")
        if self.certificates is not None and self.cluster is None:
            raise click.UsageError("--certificates are those of a cluster: give --cluster too")
        if self.pool == "-" and self.fleet == "-":
            raise click.UsageError("standard input can be the FLEET or the --pool, not both")

    def retry_failed(self, journal: str) -> str:
        """The command that sends again what failed: this one's accounts, proxies and target."""
        words = ["postpress-async", "retry-failed", journal, *([] if self.fleet is None else [self.fleet])]
        of_the_pool = {
            "--pool": self.pool,
            "--assign": None if self.assign == "round-robin" else self.assign,
            "--pool-seed": self.pool_seed or None,
            "--accounts-per-proxy": self.accounts_per_proxy,
        }
        for option, value in (
            ("--from", self.database),
            ("--from-file", self.database_file),
            ("--query", self.query),
            *(() if self.pool is None else of_the_pool.items()),
            ("--country", self.country),
            ("--rate", self.rate),
            ("--api-key-file", _unless_set("POSTPRESS_API_KEY_FILE", self.api_key_file)),
            ("--base-url", _unless_set("POSTPRESS_BASE_URL", self.base_url)),
        ):
            words += [] if value is None else [option, f"{value:g}" if option == "--rate" else str(value)]
        words += ["--skip-bad"] * self.skip_bad + ["--sandbox"] * self.sandbox
        words += ["--no-idempotency"] * self.no_idempotency
        return shlex.join(words)

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
        rows: Rows that are right.
        refused: Rows that are not.
        managed: Of the right ones, those that get a managed proxy; None where they were not looked at again.
        pooled: Of the right ones, those that the pool serves; likewise.
    """

    wishes: Wishes
    changes: Changes
    pool: ProxyPool | None
    journal: str
    rows: int
    refused: int = 0
    managed: int | None = None
    pooled: int | None = None

    @property
    def total(self) -> int:
        """Rows, right or not."""
        return self.rows + self.refused

    @property
    def nothing_sent(self) -> str | None:
        """Why it must not begin, and how it may, in a sentence; None where it may."""
        lines = 0 if self.pool is None else len(self.pool.refusals)
        bad = self.refused + lines
        if not bad or self.wishes.skip_bad:
            return None
        mend = f"nothing was sent: mend {'it' if bad == 1 else 'them'}"
        if not self.rows:
            return mend
        right = many(self.rows, "account", "accounts")
        if self.pool is not None:
            right += f" and {many(len(self.pool), 'proxy', 'proxies')}"
        return f"{mend}, or go on without by --skip-bad: {right} can be used"


@contextmanager
def open_job(wishes: Wishes) -> Iterator[Job]:
    """
    The job, as long as its inputs are open. What is wrong with rows is listed on standard error.

    Raises:
        FleetError: The fleet or the pool cannot be read.
    """
    pool = None if wishes.pool is None else _open_pool(wishes, wishes.pool)
    default = None if wishes.country is None else ManagedProxy(country=wishes.country)
    if wishes.fleet is None and wishes.query is None:
        changes: Changes = dict.fromkeys(own_accounts(), default or ManagedProxy(country="US"))
        if pool is not None:
            changes = own_accounts()
        count = len(own_accounts())
        managed, pooled = (count, 0) if pool is None else (0, count)
        journal = wishes.journal or "sandbox.rotation.sqlite3"
        yield Job(wishes, changes, pool, journal, count, managed=managed, pooled=pooled)
        return
    with _open_fleet(wishes, default, pooled=pool is not None) as fleet:
        _check_columns(fleet)
        journal = wishes.journal or f"{Path(fleet.name).name.strip('<>')}.rotation.sqlite3"
        known = None if wishes.dry_run else rows_known_to(journal, fleet.digest)
        if known is not None:  # every row was checked when the journal was begun, and none has changed
            fleet.counted = known
            yield Job(wishes, fleet, pool, journal, known)
            return
        survey = fleet.survey()
        _list(fleet.name, [str(refusal) for refusal in survey.refusals])
        if default is None and pool is None and any(_names_nothing(refusal) for refusal in survey.refusals):
            click.echo("rows that name an account alone get theirs by --pool FILE or --country CC", err=True)
        yield Job(
            wishes, fleet, pool, journal, survey.rows, len(survey.refusals), survey.managed, survey.pooled
        )


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


def _open_pool(wishes: Wishes, place: str) -> ProxyPool:
    pool = ProxyPool.read(
        place,
        skip_bad=True,  # a list and a fleet are told of at once, and refused in `Job.nothing_sent`
        assign=wishes.assign,
        seed=wishes.pool_seed,
        accounts_per_proxy=wishes.accounts_per_proxy,
        failovers=wishes.failovers,
    )
    _list(Path(place).name, [str(refusal) for refusal in pool.refusals])
    return pool


def _check_columns(fleet: Fleet) -> None:
    """A column that is ignored is told; one that was meant to be known is refused."""
    for column in fleet.ignored_columns:
        if meant := get_close_matches(column.strip().lower(), COLUMNS, 1, 0.8):
            raise FleetError(f"{fleet.name} has a column {column!r}, which is not known: is it {meant[0]}?")
        click.echo(f"{fleet.name}: the column {column!r} is not known, and ignored", err=True)


def _unless_set(variable: str, value: str | None) -> str | None:
    """*value*, where it was an argument: the variable is there the next time too."""
    return None if value == os.environ.get(variable) else value


def _names_nothing(refusal: Refusal) -> bool:
    return refusal.reason == NOTHING_ASKED


def _list(name: str, refusals: Sequence[str]) -> None:
    for refusal in refusals[:LISTED]:
        click.echo(f"{name}: {refusal}", err=True)
    if len(refusals) > LISTED:
        click.echo(f"{name}: and {len(refusals) - LISTED:,} more", err=True)
