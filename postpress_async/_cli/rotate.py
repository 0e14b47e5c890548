"""``postpress-async rotate`` and ``retry-failed``: a fleet of accounts."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from postpress_async._cli import exit_codes, options
from postpress_async._cli.command import Headed
from postpress_async._cli.event_stream import Feed
from postpress_async._cli.inputs import Wishes, open_job
from postpress_async._cli.next_command import options_given, same_command
from postpress_async._cli.preview import preview
from postpress_async._cli.running import run_job
from postpress_async.rotation.pool import Assign
from postpress_async.sandbox import Profile

C = TypeVar("C", bound=Callable[..., Any])

# --rate is POSTPRESS_RATE, for both commands: what they share is set once.
_SETTINGS: Final = {"auto_envvar_prefix": "POSTPRESS"}

_SHARED: Final = [
    # Who gets what.
    click.option(
        "--from",
        "database",
        metavar="URL",
        allow_from_autoenv=False,
        help="A database for --query, such as postgresql+psycopg://me@host/db. Else POSTPRESS_DATABASE_URL.",
    ),
    click.option("--from-file", "database_file", type=options.FILE, help="A file that holds its URL."),
    click.option("--query", metavar="SQL", help="A query whose columns are a fleet's, in place of FLEET."),
    click.option(
        "--pool",
        type=options.FILE,
        multiple=True,
        help="A list of proxies for the rows that name no change; several lists are one pool.",
    ),
    click.option(
        "--assign",
        type=click.Choice(get_args(Assign)),
        default="round-robin",
        help="Who gets which: in turn, the same in each run, or by chance.",
    ),
    click.option(
        "--pool-seed",
        type=int,
        metavar="N",
        default=0,
        help="For --assign random: the same N, the same chance.",
    ),
    click.option(
        "--accounts-per-proxy", type=click.IntRange(1), metavar="N", help="The most accounts on one proxy."
    ),
    click.option(
        "--failovers",
        type=click.IntRange(0),
        metavar="N",
        default=3,
        help="Further proxies for an account whose proxy is dead.",
    ),
    click.option("--country", metavar="CC", help="For the rows that name no change: a managed proxy of it."),
    click.option("--skip-bad", is_flag=True, help="Leave out the rows and proxies that are refused."),
    # How fast, and how far.
    click.option(
        "--in-flight",
        type=click.IntRange(1),
        metavar="N",
        default=100,
        help="Requests at once, at most; of each worker.",
    ),
    click.option(
        "--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="Requests a second, at most."
    ),
    # A flaky service fails 1 request in 20: of 100,000 accounts, that is one with four in a row, and none
    # with six.
    click.option(
        "--attempts",
        type=click.IntRange(1),
        metavar="N",
        default=6,
        help="Requests for an account with each proxy, at most; --failovers limits the proxies.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Send so many accounts, and leave the others."
    ),
    click.option(
        "--max-duration",
        type=options.duration,
        metavar="TIME",
        help="Stop after 6h, 90m or 30s, as at Ctrl-C.",
    ),
    # Where it runs.
    click.option(
        "--cluster",
        metavar="local:N|tls://HOST:PORT",
        help="Send from N workers on this machine, or from those of a Dask scheduler.",
    ),
    click.option(
        "--certificates",
        type=click.Path(),
        metavar="DIR",
        help="Those of the cluster: see cluster-certificates. Else as Dask is configured.",
    ),
    # When to stop by itself, and what to do again.
    click.option(
        "--halt",
        type=options.halt,
        metavar="5%|100|never",
        default="50%",
        help="Stop at so many failures: a share of the latest 200 accounts, or a number in all.",
    ),
    click.option(
        "--canary",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        help="Send N accounts first, and the others only if fewer than --halt of these N fail: "
        "with --halt 5% and --canary 10, one failure stops.",
    ),
    click.option(
        "--on-unknown",
        type=click.Choice(["retry", "report"]),
        default="retry",
        help="retry: send accounts whose outcome is unknown again; report: leave them to you, also those "
        "that a killed run may have sent.",
    ),
    # What is seen of it.
    click.option("--dry-run", is_flag=True, help="Check everything, show the first requests, send nothing."),
    click.option("--json", is_flag=True, help="An event a line on standard output, for programs."),
    click.option("-v", "--verbose", is_flag=True, help="Tell each retry, pause and proxy that is left out."),
    # A trial.
    click.option("--sandbox", is_flag=True, help="Send to a fake of the API on this machine."),
    click.option(
        "--profile", type=click.Choice(get_args(Profile)), default="steady", help="How unwell it is."
    ),
    click.option(
        "--seed", type=int, metavar="N", default=0, help="What fails in it by chance: the same N, the same."
    ),
    click.option(
        "--dead-proxies",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        help="Of the pool, the first ones: those do not work in it.",
    ),
]


_HEADINGS: Final = {
    "Where the accounts come from": ("--from", "--from-file", "--query", "--skip-bad"),
    "Who gets which proxy": (
        *("--pool", "--assign", "--pool-seed", "--accounts-per-proxy", "--failovers", "--country"),
    ),
    "How fast, and how far": ("--in-flight", "--rate", "--attempts", "--limit", "--max-duration"),
    "When it stops by itself, and how it goes on": ("--halt", "--canary", "--journal", "--on-unknown"),
    "What is seen of it": ("--dry-run", "--json", "--verbose"),
    "The service": ("--api-key-file", "--base-url", "--transport", "--no-idempotency"),
    "More than one machine": ("--cluster", "--certificates"),
    "A trial without a key": ("--sandbox", "--profile", "--seed", "--dead-proxies"),
}


def _rotation_options(command: C) -> C:
    for option in reversed(_SHARED):
        command = option(command)
    return options.connection(command)


@click.command(
    cls=Headed,
    headings=_HEADINGS,
    context_settings=_SETTINGS,
    short_help="Give every account of a fleet its new proxy.",
)
@click.argument("fleet", required=False, type=options.FILE)
@click.option("--journal", type=options.FILE, help="Where to keep what is settled. [FLEET.rotation.sqlite3]")
@_rotation_options
def rotate(**given: Any) -> int:
    """
    Give every account of FLEET its new proxy: CSV, JSON Lines, Parquet, or - for standard input.

    A row names an account_id and a proxy (a URL in "proxy", or host, port, protocol, username, password),
    or a country, an ip, or both; or nothing, and then --pool or --country gives the change. Every row is
    checked before the first byte is sent. What is settled is kept in a journal: the same command goes on
    where it was stopped or killed. The first Ctrl-C lets what is in flight settle, the second ends at once.

    \b
    Try it without a key or a fleet:
      postpress-async rotate --sandbox
    See what a real run would do, and how long it takes:
      postpress-async rotate fleet.csv --pool proxies.txt --rate 50 --dry-run
    Ten accounts first, all of them if fewer than one in twenty of those fail:
      postpress-async rotate fleet.csv --pool proxies.txt --canary 10 --halt 5%
    From two processes of this machine, and from the workers of a Dask scheduler:
      postpress-async rotate fleet.csv --cluster local:2
      postpress-async rotate fleet.csv --cluster tls://scheduler:8786 --certificates certificates
    At night, at the pace of the key's tier, until six hours are over:
      postpress-async rotate fleet.csv --rate 50 --max-duration 6h
    """
    wishes = _wishes(**given)
    if wishes.fleet is None and wishes.query is None and not wishes.sandbox:
        raise click.UsageError("name a FLEET file, or try the sandbox's own accounts with --sandbox")
    return _carry_out(wishes)


@click.command(
    "retry-failed",
    cls=Headed,
    headings=_HEADINGS,
    context_settings=_SETTINGS,
    short_help="Send the accounts that failed once more.",
)
@click.argument("journal", type=options.FILE)
@click.argument("fleet", required=False, type=options.FILE)
@_rotation_options
def retry_failed(**given: Any) -> int:
    """
    Send what failed once more: the JOURNAL tells which accounts, and the same FLEET what they get.

    The journal has no secrets, so the fleet is needed again, and so are --pool or --country where the run had
    them. Accounts that failed, whose outcome is unknown, or that were not sent are taken; the patched ones
    are left. Example:

    \b
      postpress-async retry-failed fleet.csv.rotation.sqlite3 fleet.csv --pool proxies.txt
    """
    wishes = _wishes(**given, on_failed="retry")
    if wishes.fleet is None and wishes.query is None and not wishes.sandbox:
        raise click.UsageError("name the FLEET, or give the --query, that the rotation was begun with")
    if not Path(str(wishes.journal)).exists():
        raise click.UsageError(f"there is no journal {wishes.journal}: name the one that the rotation kept")
    return _carry_out(wishes)


def _wishes(**given: Any) -> Wishes:
    context = click.get_current_context()
    return Wishes(**given, command=same_command(context), given=options_given(context))


def _carry_out(wishes: Wishes) -> int:
    wishes.check()
    feed = Feed(sys.stdout if wishes.json else None, told=wishes.verbose)
    with open_job(wishes, feed) as job:
        if (why := job.nothing_sent) is not None:
            click.echo(why, err=True)
            feed.not_begun(exit_codes.BAD_INPUT, why, job.journal)
            return exit_codes.BAD_INPUT
        return preview(job, feed) if wishes.dry_run else asyncio.run(run_job(job, feed))
