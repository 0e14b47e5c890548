"""The commands that run a rotation: ``rotate``, ``retry-failed`` and ``rollback``."""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import click

from postpress_async._cli import exit_codes
from postpress_async._cli.event_stream import EventStream
from postpress_async._cli.job import Job, open_job
from postpress_async._cli.options import COUNT, FILE, Command, option
from postpress_async._cli.preview import preview
from postpress_async._cli.rotate_options import (
    SETTINGS,
    RotateOptions,
    journal_options,
    rotation_options,
    run_options,
)
from postpress_async._cli.running import run_job
from postpress_async._fields import counted
from postpress_async.models import ManagedProxy
from postpress_async.rotation import ProxyPool, RotationSummary, Survey
from postpress_async.rotation.journal._history import plan_rollback
from postpress_async.rotation.journal._preflight import is_due, unfinished_run
from postpress_async.rotation.journal._reading import JournalReader

_MAX_LISTED: Final = 20  # accounts that cannot go back; --json lists all of them


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Give each account of a fleet a new proxy.",
    epilog=exit_codes.HELP,
)
@click.argument("fleet", required=False, type=FILE)
@rotation_options
@journal_options
def rotate(**values: Any) -> int:
    """
    Give each account of FLEET a new proxy.

    FLEET is a file with a row for each account: CSV, JSON Lines or Parquet; - is standard input. The column
    account_id names the account. The other columns say which proxy the account gets, your own or a managed
    one. Your own proxy is a URL in the column proxy; or it has the columns host, port, protocol (https, http
    or socks5), username and password. A managed proxy is provided by PostPress in a country (column country),
    in the country of an IPv4 address (column ip), or both. If all these columns are empty, the account gets a
    proxy from --pool or --country.

    All rows are checked before the first request. The outcome of each account is recorded in a file, the
    journal. If the run is stopped or killed, run the same command again: it sends only the accounts that are
    neither patched nor failed yet. To send failed accounts again, use the command retry-failed. Press Ctrl-C
    once to wait for the requests in flight and stop, twice to stop at once. A DURATION has the unit s, m or
    h, such as 90s, 15m, 6h or 1h30m.

    \b
    Try it without an API key or a fleet:
      postpress-async rotate --sandbox
    See what would be sent and how long it would take:
      postpress-async rotate fleet.csv --pool proxies.txt --rate 50 --dry-run
    Send ten accounts first, and the other accounts only if none of the ten fails:
      postpress-async rotate fleet.csv --pool proxies.txt --canary 10 --halt 5%
    Give new proxies only to the accounts whose proxy is in a dead subnet:
      postpress-async rotate fleet.csv --pool proxies.txt --on 10.1.1.0/24
    Send 50 requests per second for at most six hours:
      postpress-async rotate fleet.csv --rate 50 --max-duration 6h
    Send from two processes, or from the workers of a Dask scheduler:
      postpress-async rotate fleet.csv --cluster local:2
      postpress-async rotate fleet.csv --cluster tls://HOST:8786 --certificates DIR
    """
    parsed = RotateOptions.parse(**values)
    if parsed.fleet is None and parsed.query is None and not parsed.sandbox:
        raise click.UsageError("name a FLEET file, or use --sandbox to try it without one")
    return _rotate(parsed)


@click.command(
    "retry-failed",
    cls=Command,
    context_settings=SETTINGS,
    short_help="Send the failed accounts of a rotation again.",
    epilog=exit_codes.HELP,
)
@click.argument("journal", type=FILE)
@click.argument("fleet", required=False, type=FILE)
@rotation_options
def retry_failed(**values: Any) -> int:
    """
    Send the failed accounts of a rotation again.

    JOURNAL is the file in which `postpress-async rotate` recorded the outcome of each account. FLEET must be
    the same file as in that run, and --pool or --country must be given again, because the journal contains no
    proxies. Accounts that were patched are not sent. Accounts that were not sent yet, or whose outcome is
    unknown, are sent too. Example:

    \b
      postpress-async retry-failed fleet.csv.rotation.sqlite3 fleet.csv --pool proxies.txt
    """
    parsed = RotateOptions.parse(**values, on_failed="retry")
    if parsed.fleet is None and parsed.query is None and not parsed.sandbox:
        raise click.UsageError("name the FLEET file, or the --query, of the rotation")
    journal = str(parsed.journal)
    if not Path(journal).exists():
        raise click.UsageError(f"the journal {journal} does not exist. Name the journal of the rotation")
    return _rotate(parsed)


def _rotate(options: RotateOptions) -> int:
    """Run the rotation. If that completes an unfinished run and a new run is due (--every), start it too."""
    events = _events(options)
    with open_job(options, events) as job:
        unfinished = None if options.every is None else unfinished_run(job.journal)
        code = _start(job, events)
    if options.every is None or unfinished is None or options.on or options.dry_run:
        return code
    is_complete = code in {exit_codes.ALL_PATCHED, exit_codes.SOME_LEFT}
    if not is_complete or options.reads_stdin or not is_due(job.journal, options.every, unfinished):
        return code
    events.say("the run that was unfinished is complete: starting the new run that is due")
    return _rotate(options)


def _events(options: RotateOptions) -> EventStream:
    return EventStream(sys.stdout if options.json else None, verbose=options.verbose)


def _start(job: Job, events: EventStream) -> int:
    """Run or preview the rotation, unless it must not start. Return the exit code."""
    if (problem := job.problem) is not None:
        reason = f"nothing was sent: {problem}"
        click.echo(reason, err=True)
        events.ended(RotationSummary(), exit_codes.BAD_INPUT, job.journal, message=reason)
        return exit_codes.BAD_INPUT
    return preview(job, events) if job.options.dry_run else asyncio.run(run_job(job, events))


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Give accounts the proxies that they had after an earlier run.",
    epilog=exit_codes.HELP,
)
@click.argument("journal", type=FILE)
@option(
    "--to",
    type=COUNT,
    metavar="RUN",
    required=True,
    allow_from_autoenv=False,
    help="Number of the run to go back to, as `postpress-async history` lists it.",
)
@option(
    "--pool",
    type=FILE,
    metavar="[TAG=]FILE",
    multiple=True,
    help="File with a list that contains the earlier proxies, which are looked up by user name, host and "
    "port. The file has a proxy per line (HOST:PORT, HOST:PORT:USER:PASSWORD or a URL), or is CSV with a "
    "header. - is standard input. Repeat the option to combine several lists. A TAG is ignored.",
)
@option(
    "--skip-bad",
    is_flag=True,
    help="Send the accounts that can go back even if other accounts cannot, and use the valid lines of "
    "--pool even if other lines are invalid. By default, nothing is sent in either case.",
)
@run_options
def rollback(**values: Any) -> int:
    """
    Give accounts the proxies that they had after an earlier run.

    JOURNAL is the file in which `postpress-async rotate` recorded what each run assigned. Accounts that still
    have the same assignment are not sent. Proxies of your own are looked up in --pool, because the journal
    has no passwords. A managed proxy is ordered again for the same country or ip, so it may be a different
    proxy. An account cannot go back if its earlier proxy is in no --pool, or if the journal does not know the
    earlier proxy.

    A rollback is a run of its own in the same journal. If the rollback is stopped or killed, run the same
    command again.

    \b
    See what would be sent, and which accounts cannot go back:
      postpress-async rollback fleet.csv.rotation.sqlite3 --to 1 --pool old.txt --dry-run
    """
    options = RotateOptions.parse(**values)
    events = _events(options)
    # Tags do not matter, because each proxy is looked up by its label.
    lists = [path for _, path in options.lists]
    pool = ProxyPool.read(*lists, skip_bad=options.skip_bad) if lists else ()
    journal, to = str(options.journal), int(options.to or 0)
    with JournalReader(journal) as view:
        plan = plan_rollback(view, to, pool)
    for account in plan.left_behind:
        events.refused(journal, account)
    for account in plan.left_behind[:_MAX_LISTED]:
        click.echo(str(account), err=True)
    if (more := len(plan.left_behind) - _MAX_LISTED) > 0:
        click.echo(f"{counted(more, 'more account')} cannot go back: --json lists them", err=True)
    if not plan.changes and (options.skip_bad or not plan.left_behind):
        message, code = f"each account has the assignment that it had after run {to}", exit_codes.ALL_PATCHED
        if plan.left_behind:
            cannot = counted(len(plan.left_behind), "account")
            message = f"{cannot} cannot go back, and no other account has changed since run {to}"
            code = exit_codes.SOME_LEFT
        message = f"nothing was sent: {message}"
        events.say(message)
        events.ended(RotationSummary(), code, journal, message=message)
        return code
    managed = sum(isinstance(change, ManagedProxy) for change in plan.changes.values())
    job = Job(
        options,
        plan.changes,
        pools={},
        journal=journal,
        survey=Survey(rows=len(plan.changes), managed=managed),
        selection=plan.selection,
        left_behind=len(plan.left_behind),
    )
    return _start(job, events)
