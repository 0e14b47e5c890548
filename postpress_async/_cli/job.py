"""Opens and validates the inputs of a rotation before the first request."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from postpress_async._cli.event_stream import EventStream
from postpress_async._cli.rotate_options import RotateOptions
from postpress_async._cli.secret_input import read_secret_file
from postpress_async._cli.terminal import listed
from postpress_async._fields import counted
from postpress_async.errors import FleetError
from postpress_async.models import ManagedProxy
from postpress_async.rotation import Faults, Fleet, PooledProxy, Survey
from postpress_async.rotation._column_names import COLUMNS, PARTS, TAG, field_of
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation._fleet._query import DATABASE_URL, check_argument
from postpress_async.rotation._fleet._row import NO_CHANGE
from postpress_async.rotation._input import Changes
from postpress_async.rotation._pool._proxy_list import ProxyLists, faults_by_list, read_lists
from postpress_async.rotation._pool._tags import Pools, argument_of, make_pools, without_selected
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal._history import select
from postpress_async.rotation.journal._preflight import known_row_count
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.sandbox import own_accounts

_NAMED_COLUMNS: Final = 20  # unused columns to name in a message; further ones are only counted
_COMPARED_COLUMNS: Final = 1_000  # unused columns to compare with known names, to find misspellings
_NO_CHANGE_ADVICE: Final = "use --pool FILE or --country CC, or give each row a proxy or a country"


@frozen
class Job:
    """A rotation that is ready to start."""

    options: RotateOptions
    changes: Changes  # the argument of ``session.rotate``
    pools: Pools  # for the accounts whose row has no proxy or country
    journal: str
    survey: Survey  # has only the number of rows if `is_checked` is false
    invalid_lines: int = 0  # invalid lines in the lists of proxies
    is_checked: bool = True  # False if the rows were not read, because an earlier run validated them
    selection: Selection | None = None  # the accounts of the run; None for all
    left_behind: int = 0  # accounts that a rollback cannot move

    @property
    def proxies(self) -> list[PooledProxy]:
        return list(chain.from_iterable(self.pools.values()))

    @property
    def total(self) -> int:
        """Number of rows, including invalid ones."""
        return self.survey.rows + self.survey.refused

    @property
    def unused_tags(self) -> list[str]:
        """The tags of the pools that no valid row uses; empty if the rows were not read."""
        tags = self.pools.keys() - self.survey.tags.keys() if self.survey.pooled else ()
        return sorted(filter(None, tags))

    @property
    def problem(self) -> str | None:
        """Why the rotation cannot start, and what to do; None if it can start."""
        survey, skip_bad = self.survey, self.options.skip_bad
        valid = counted(survey.rows, "account")
        if self.left_behind and not skip_bad:
            cannot = f"{counted(self.left_behind, 'account')} cannot go back"
            return f"{cannot}. Use --skip-bad to send only the others: {valid}" if survey.rows else cannot
        invalid = survey.refused + self.invalid_lines
        if invalid and not skip_bad:
            correct = f"correct {'it' if invalid == 1 else 'them'}"
            if not survey.rows:
                return correct
            if self.pools:
                valid += f" and {counted(len(self.proxies), 'proxy', 'proxies')}"
            return f"{correct}, or use --skip-bad to send only the valid ones: {valid}"
        if self.selection is not None and not self.total:
            return f"the input has none of the {self.selection.text} in {self.journal}"
        if self.pools and self.is_checked and survey.rows and not survey.pooled:
            return (
                f"no row would use --pool, since all have changes of their own ({survey.kinds}). "
                "Remove --pool, or empty the columns proxy, country and ip"
            )
        tags_in_options = {tag for tag, _ in self.options.lists}
        unused = [tag for tag in self.unused_tags if tag in tags_in_options]
        if self.selection is None and unused:
            pools = "the --pool" if len(unused) == 1 else "any --pool"
            return f"no row would use {pools} for {listed(unused)}. Remove it, or correct the tags"
        return None


@contextmanager
def open_job(options: RotateOptions, events: EventStream) -> Iterator[Job]:
    """Open the inputs for the duration of the block, and report invalid rows and lines."""
    pools, invalid_lines = _open_pools(options, events)
    default = None if options.country is None else ManagedProxy(country=options.country)
    if options.fleet is None and options.query is None:
        yield _make_sandbox_job(options, default, pools, invalid_lines)
        return
    with _open_fleet(options, default, pools) as fleet:
        _check_columns(fleet.name, fleet.ignored_columns, COLUMNS)
        journal = options.journal or f"{Path(fleet.name).name.strip('<>')}.rotation.sqlite3"
        reader = reader_of(fleet)
        if (selection := _select(options, journal)) is not None:
            reader, pools = reader.only(selection), _drop_selected(pools, selection)
            fleet = Fleet(reader)
        known_rows = None if options.dry_run else known_row_count(journal, reader.digest)
        if known_rows is not None:  # the run that wrote the journal validated the same rows
            reader.counted = known_rows
            yield Job(options, fleet, pools, journal, Survey(known_rows), invalid_lines, False, selection)
            return
        survey = fleet.survey(lambda refusal: events.refused(fleet.name, refusal))
        _report_faults(fleet.name, survey.faults)
        if pools and 0 < survey.pooled < survey.rows and not options.dry_run:
            click.echo(f"{counted(survey.rows, 'account')}: {survey.kinds}", err=True)
        job = Job(options, fleet, pools, journal, survey, invalid_lines, selection=selection)
        if job.unused_tags and job.problem is None:
            proxies = counted(sum(len(pools[tag]) for tag in job.unused_tags), "proxy is", "proxies are")
            click.echo(f"{proxies} not used, since no row needs one for {listed(job.unused_tags)}", err=True)
        yield job


def _make_sandbox_job(
    options: RotateOptions, default: ManagedProxy | None, pools: Pools, invalid_lines: int
) -> Job:
    """Prepare a rotation of the sandbox's own accounts."""
    journal = options.journal or "sandbox.rotation.sqlite3"
    selection = _select(options, journal)
    pools = _drop_selected(pools, selection)
    accounts = [name for name in own_accounts() if selection is None or selection.takes(name)]
    changes: Changes = accounts
    survey = Survey(rows=len(accounts), pooled=len(accounts), tags=Counter({None: len(accounts)}))
    if not pools:
        changes = dict.fromkeys(accounts, default or ManagedProxy(country="US"))
        survey = Survey(rows=len(accounts), managed=len(accounts))
    return Job(options, changes, pools, journal, survey, invalid_lines, selection=selection)


def _select(options: RotateOptions, journal: str) -> Selection | None:
    """The accounts that --on selects, according to the journal; None without --on."""
    selection = Selection.of(options.on)
    if selection is not None:
        with JournalReader(journal) as view:
            select(selection, view)
    return selection


def _drop_selected(pools: Pools, selection: Selection | None) -> Pools:
    """Remove the proxies that match --on, so that no account gets one of them again. Report how many."""
    remaining = without_selected(pools, selection)
    before, after = (sum(map(len, by_tag.values())) for by_tag in (pools, remaining))
    if selection is not None and after < before:
        verb = "is not used: it is" if before - after == 1 else "are not used: they are"
        where = selection.text.removeprefix("accounts ")
        total = counted(before, "proxy", "proxies")
        click.echo(f"{before - after:,} of {total} {verb} {where}", err=True)
    return remaining


def _open_fleet(options: RotateOptions, default: ManagedProxy | None, pools: Pools) -> Fleet:
    pooled, pool_by = argument_of(pools) or False, options.pool_by or TAG
    if options.query is None:
        return Fleet.open(options.fleet or "-", default=default, pooled=pooled, pool_by=pool_by)
    if options.database_file is not None:
        url = read_secret_file(options.database_file, "the database's URL").reveal()
    elif options.database is not None:
        url = check_argument(options.database)
    elif not (url := os.environ.get(DATABASE_URL, "")):
        raise click.UsageError(
            f"--query requires a database: --from URL, --from-file FILE, or {DATABASE_URL}"
        )
    return Fleet.open_query(url, options.query, default=default, pooled=pooled, pool_by=pool_by)


def _open_pools(options: RotateOptions, events: EventStream) -> tuple[Pools, int]:
    """Read the lists of proxies. Return the pools, and the number of invalid lines."""
    by = options.pool_by
    if by is None and any(tag for tag, _ in options.lists):
        by = TAG
    # Invalid lines are reported together with invalid rows, by `Job.problem`.
    lists = read_lists(options.lists, by=by and field_of(by), skip_bad=True)
    for refusal in lists.refused:
        events.refused(refusal.source, refusal)
    report_lists(lists)
    pools = make_pools(
        lists.proxies,
        assign=options.assign,
        accounts_per_proxy=options.accounts_per_proxy,
        failovers=options.failovers,
        cool_down=options.cool_down,
    )
    return pools, len(lists.refused)


def report_lists(lists: ProxyLists) -> None:
    """Report unused columns and invalid lines; raise `FleetError` if a column name looks misspelled."""
    for name, columns in lists.ignored_columns.items():
        _check_columns(name, columns, ("proxy", *PARTS))
    for name, faults in faults_by_list(lists.refused).items():
        _report_faults(name, faults)


def _check_columns(name: str, unused: Sequence[str], known: Sequence[str]) -> None:
    for column in unused[:_COMPARED_COLUMNS]:
        if similar := get_close_matches(column.strip().lower(), known, 1, 0.8):
            raise FleetError(f"{name} has an unknown column {column!r}. Did you mean {similar[0]}?")
    if unused:
        columns = counted(len(unused), "column is", "columns are")
        names = listed([repr(column) for column in unused], _NAMED_COLUMNS)
        click.echo(f"{name}: {columns} not used: {names}", err=True)


def _report_faults(name: str, faults: Faults[Any]) -> None:
    for fault in faults:
        advice = _NO_CHANGE_ADVICE if fault.first.reason == NO_CHANGE else None
        click.echo(f"{name}: {fault.sentence(advice)}", err=True)
    if faults.unlisted:
        click.echo(f"{name}: {faults.unlisted:,} more lines have other faults", err=True)
