"""``postpress-async rollback``: give accounts the proxies back that they had after an earlier run."""

import sys
from typing import Any, Final

import click

from postpress_async._cli import exit_codes, options
from postpress_async._cli.command import Command, option
from postpress_async._cli.event_stream import EventStream
from postpress_async._cli.job import Job
from postpress_async._cli.rotate import SETTINGS, start
from postpress_async._cli.rotate_options import RotateOptions, run_options
from postpress_async.models import ManagedProxy
from postpress_async.rotation import ProxyPool
from postpress_async.rotation._fleet import Survey
from postpress_async.rotation.journal._history import plan_rollback
from postpress_async.rotation.journal._reading import JournalReader

_LISTED: Final = 20  # accounts that cannot go back; --json lists all of them


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Give accounts the proxies that they had after an earlier run.",
    epilog=exit_codes.HELP,
)
@click.argument("journal", type=options.FILE)
@option(
    "--to",
    type=click.IntRange(1),
    metavar="RUN",
    required=True,
    allow_from_autoenv=False,
    help="Number of the run to go back to, as the command history lists it.",
)
@option(
    "--pool",
    type=options.FILE,
    metavar="[TAG=]FILE",
    multiple=True,
    help="List of proxies, in any form that rotate accepts, in which the earlier proxies are looked up by "
    "user name, host and port; a TAG makes no difference. - is standard input. Repeat the option to combine "
    "several lists.",
)
@option(
    "--skip-bad",
    is_flag=True,
    help="Send the other accounts even if some cannot go back, and use the valid lines of --pool even if "
    "others are invalid. By default, nothing is sent in these cases.",
)
@run_options
def rollback(**values: Any) -> int:
    """
    Give accounts the proxies that they had after an earlier run.

    JOURNAL is the file in which `postpress-async rotate` recorded what each run assigned. Accounts that still
    have the same assignment are not sent. Proxies of your own are looked up in --pool, because the journal
    has no passwords. A managed proxy is ordered again for the same country or ip, so it may be another one.
    An account cannot go back if its proxy is in no list, or if the journal does not know what it had.

    A rollback is a run of its own in the same journal. If it is stopped or killed, run the same command
    again.

    \b
    See what would be sent, and which accounts cannot go back:
      postpress-async rollback fleet.csv.rotation.sqlite3 --to 1 --pool old.txt --dry-run
    """
    parsed = RotateOptions.parse(**values)
    events = EventStream(sys.stdout if parsed.json else None, verbose=parsed.verbose)
    # The tags do not matter: each proxy is looked up by its name.
    lists = [path for _, path in parsed.lists]
    pool = ProxyPool.read(*lists, skip_bad=parsed.skip_bad) if lists else ()
    journal, to = str(parsed.journal), int(parsed.to or 0)
    with JournalReader(journal) as view:
        plan = plan_rollback(view, to, pool)
    for account in plan.left_behind:
        events.refused(journal, account)
    for account in plan.left_behind[:_LISTED]:
        click.echo(str(account), err=True)
    if (more := len(plan.left_behind) - _LISTED) > 0:
        click.echo(f"{more:,} more accounts cannot go back: --json lists them", err=True)
    if not plan.changes and (parsed.skip_bad or not plan.left_behind):
        others = "other " if plan.left_behind else ""
        message = f"nothing was sent: each {others}account has the assignment that it had after run {to}"
        events.say(message)
        events.not_begun(exit_codes.ALL_PATCHED, message, journal)
        return exit_codes.ALL_PATCHED
    managed = sum(isinstance(change, ManagedProxy) for change in plan.changes.values())
    survey = Survey(rows=len(plan.changes), managed=managed)
    job = Job(
        parsed,
        plan.changes,
        pools={},
        journal=journal,
        survey=survey,
        selection=plan.selection,
        left_behind=len(plan.left_behind),
    )
    return start(job, events)
