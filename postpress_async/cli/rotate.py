"""``postpress-async rotate``: a whole fleet."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

import click
from attrs import frozen

from postpress_async.cli import exits, options
from postpress_async.cli.progress import Progress
from postpress_async.errors import FleetError, RotationError
from postpress_async.models import ManagedProxy
from postpress_async.pace import Pace
from postpress_async.rotation import Fleet, Rotation, RotationSummary, State
from postpress_async.rotation._fleet_row import COLUMNS
from postpress_async.sandbox import Profile, Sandbox, own_accounts
from postpress_async.session import Changes, PostPressSession

LISTED = 50
"""Bad rows that are listed before the rest is only counted."""


@frozen
class Job:
    """What the command was asked to do."""

    changes: Changes
    total: int
    journal: str


@click.command()
@click.argument("fleet", required=False)
@click.option("--country", metavar="CC", help="A managed proxy of this country for rows that name no change.")
@click.option("--journal", metavar="FILE", help="Where to keep what is settled. [FLEET.rotation.sqlite3]")
@click.option("--skip-bad", is_flag=True, help="Leave out the rows that are refused, and send the others.")
@click.option("--in-flight", type=click.IntRange(1), default=100, show_default=True, help="Requests at once.")
@click.option("--sandbox", "in_sandbox", is_flag=True, help="Send to a fake of the API on this machine.")
@click.option(
    "--profile", type=click.Choice(get_args(Profile)), default="steady", help="The sandbox's faults."
)
@click.option("--seed", type=int, default=0, help="Of the chance of those faults.")
@options.connection
def rotate(
    fleet: str | None,
    country: str | None,
    journal: str | None,
    skip_bad: bool,
    in_flight: int,
    in_sandbox: bool,
    profile: Profile,
    seed: int,
    api_key_file: str | None,
    base_url: str | None,
) -> int:
    """
    Give every account of FLEET its new proxy: a CSV or JSON Lines file, or - for standard input.

    A row names an account_id and a proxy (a URL in "proxy", or host, port, protocol, username, password),
    or a country, an ip, or both. Every row is checked before the first byte is sent. What is settled is
    kept in a journal; the same command goes on where it was stopped or killed. Examples:

    \b
      postpress-async rotate fleet.csv
      postpress-async rotate --sandbox
    """
    if not in_sandbox and (profile != "steady" or seed):
        raise click.UsageError("--profile and --seed are of the sandbox: give --sandbox too")
    if fleet is None and not in_sandbox:
        raise click.UsageError("name a FLEET file, or try the sandbox's own accounts with --sandbox")
    default = None if country is None else ManagedProxy(country=country)
    if fleet is None:
        change = default or ManagedProxy(country="US")
        changes = dict.fromkeys(own_accounts(), change)
        job = Job(changes, len(changes), journal or "sandbox.rotation.sqlite3")
        return asyncio.run(_rotate(job, in_flight, Sandbox(profile=profile, seed=seed), None, None))
    with Fleet.open(fleet, default=default) as opened:
        survey = opened.survey()
        _check_columns(opened)
        if survey.refusals:
            _list_refusals(opened.name, [str(refusal) for refusal in survey.refusals])
            if not skip_bad:
                click.echo(
                    f"nothing was sent: mend them, or send the other {survey.rows:,} by --skip-bad",
                    err=True,
                )
                return exits.BAD_INPUT
        place = journal or f"{Path(opened.name).name}.rotation.sqlite3"
        job = Job(opened, survey.rows + len(survey.refusals), place)
        sandbox = Sandbox(profile=profile, seed=seed) if in_sandbox else None
        return asyncio.run(_rotate(job, in_flight, sandbox, api_key_file, base_url))


def _check_columns(fleet: Fleet) -> None:
    """A column that is ignored is told; one that was meant to be known is refused."""
    for column in fleet.ignored_columns:
        if meant := get_close_matches(column.strip().lower(), COLUMNS, 1, 0.8):
            raise FleetError(f"{fleet.name} has a column {column!r}, which is not known: is it {meant[0]}?")
        click.echo(f"{fleet.name}: the column {column!r} is not known, and ignored", err=True)


def _list_refusals(name: str, refusals: list[str]) -> None:
    for refusal in refusals[:LISTED]:
        click.echo(f"{name}: {refusal}", err=True)
    if len(refusals) > LISTED:
        click.echo(f"{name}: and {len(refusals) - LISTED:,} more", err=True)


async def _rotate(
    job: Job, in_flight: int, sandbox: Sandbox | None, api_key_file: str | None, base_url: str | None
) -> int:
    async with AsyncExitStack() as stack:
        pace = Pace(in_flight=in_flight)
        if sandbox is not None:
            await stack.enter_async_context(sandbox)
            session = sandbox.session(pace=pace)
        else:
            session = PostPressSession(options.read_key(api_key_file), base_url=base_url, pace=pace)
        await stack.enter_async_context(session)
        summary = await _run(job, session.rotate(job.changes, journal=job.journal))
        click.echo(str(summary))
        click.echo(f"journal: {job.journal}")
        if sandbox is not None:
            requests, patched = sandbox.record.requests, len(sandbox.record.patched_accounts)
            click.echo(f"the sandbox saw {requests:,} requests and patched {patched:,} accounts")
        if summary.halted:
            click.echo(f"postpress-async: halted: {summary.halted}", err=True)
        elif summary.stopped or summary.states[State.UNKNOWN]:
            click.echo("postpress-async: run the same command again to go on", err=True)
        return exits.code_of(summary)


async def _run(job: Job, rotation: Rotation) -> RotationSummary:
    try:
        with _interruptible(rotation):
            async with rotation:
                with Progress(job.total, rotation.summary) as progress:
                    async for _ in rotation:
                        progress.update()
    except RotationError as error:
        if not rotation.summary.attempts:
            raise
        raise _Halted(str(error)) from None
    except asyncio.CancelledError:
        if not rotation.summary.stopped:
            raise
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        task.uncancel()
    return rotation.summary


class _Halted(click.ClickException):
    exit_code = exits.HALTED


@contextmanager
def _interruptible(rotation: Rotation) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: nothing new is sent, what is in flight settles. Second: now."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task

    def interrupt() -> None:
        if rotation.summary.stopped:
            task.cancel()
            return
        rotation.stop()
        click.echo("stopping: what is in flight settles first; once more to stop at once", err=True)

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
