"""``postpress-async rotate`` and ``retry-failed``: run a rotation."""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import click

from postpress_async._cli import exit_codes, options
from postpress_async._cli.command import Command
from postpress_async._cli.event_stream import EventStream
from postpress_async._cli.inputs import open_job
from postpress_async._cli.job import Job
from postpress_async._cli.preview import preview
from postpress_async._cli.rotate_options import RotateOptions, journal_options, rotation_options
from postpress_async._cli.running import run_job
from postpress_async.rotation.journal._preflight import is_due, unfinished_run

SETTINGS: Final = {"auto_envvar_prefix": "POSTPRESS"}
"""For commands that read the same environment variables: --rate is POSTPRESS_RATE."""


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Give each account of a fleet a new proxy.",
    epilog=exit_codes.HELP,
)
@click.argument("fleet", required=False, type=options.FILE)
@rotation_options
@journal_options
def rotate(**values: Any) -> int:
    """
    Give each account of FLEET a new proxy.

    FLEET is a file with a row for each account: CSV, JSON Lines or Parquet; - is standard input. The column
    account_id names the account. The other columns say which proxy it gets: your own proxy (a URL in the
    column proxy; or host, port, protocol, username and password) or a managed proxy, which PostPress provides
    (country, ip or both). If they are empty, the account gets a proxy from --pool or --country.

    All rows are checked before the first request. The outcome of each account is recorded in a journal. If
    the run is stopped or killed, run the same command again: it sends only the accounts that are not
    completed yet. Press Ctrl-C once to stop after the requests in flight, twice to stop at once.

    \b
    Try it without an API key or a fleet:
      postpress-async rotate --sandbox
    See what would be sent and how long it would take:
      postpress-async rotate fleet.csv --pool proxies.txt --rate 50 --dry-run
    Send ten accounts first, and the others only if none of them fails:
      postpress-async rotate fleet.csv --pool proxies.txt --canary 10 --halt 5%
    Give new proxies to the accounts that have one of a dead subnet, and to no others:
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
@click.argument("journal", type=options.FILE)
@click.argument("fleet", required=False, type=options.FILE)
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
    if not Path(str(parsed.journal)).exists():
        raise click.UsageError(
            f"the journal {parsed.journal} does not exist. Name the journal of the rotation"
        )
    return _rotate(parsed)


def start(job: Job, events: EventStream) -> int:
    """Run or preview the rotation, unless it must not start. Return the exit code."""
    if (reason := job.reason_not_to_start) is not None:
        click.echo(reason, err=True)
        events.not_begun(exit_codes.BAD_INPUT, reason, job.journal)
        return exit_codes.BAD_INPUT
    return preview(job, events) if job.options.dry_run else asyncio.run(run_job(job, events))


def _rotate(parsed: RotateOptions) -> int:
    events = EventStream(sys.stdout if parsed.json else None, verbose=parsed.verbose)
    with open_job(parsed, events) as job:
        unfinished = None if parsed.every is None else unfinished_run(job.journal)
        code = start(job, events)
    if parsed.every is None or unfinished is None or parsed.on or parsed.dry_run:
        return code
    if parsed.fleet == "-" or code not in {exit_codes.ALL_PATCHED, exit_codes.SOME_LEFT}:
        return code
    if not is_due(job.journal, parsed.every, unfinished):
        return code
    events.say("the run that was unfinished is complete: starting the new run that is due")
    return _rotate(parsed)
