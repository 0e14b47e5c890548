"""``postpress-async status``: the progress of a rotation, read from its journal."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from postpress_async._cli.options import Command, option
from postpress_async._cli.terminal import aligned, by_state, moment, more_accounts
from postpress_async.rotation import State
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._statistics import (
    Stage,
    Statistics,
    advice,
    collect_statistics,
    stage_of,
)
from postpress_async.rotation.journal._times import duration, instant

_MAX_ERROR_TYPES: Final = 12  # --json and the report list more


@click.command(cls=Command, short_help="Show the progress of a rotation and what to do next.")
@click.argument("journal")
@option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="POSTPRESS_STATUS_JSON",
    help="Print one JSON object instead of text.",
)
def status(journal: str, as_json: bool) -> None:
    """
    Show the progress of a rotation, its errors, and what to do next.

    JOURNAL is the file in which `postpress-async rotate` records the outcome of each account. The rotation
    may be running or have ended. Examples:

    \b
      postpress-async status fleet.csv.rotation.sqlite3
      watch -n 5 postpress-async status fleet.csv.rotation.sqlite3
    """
    with JournalReader(journal) as view:
        stage = stage_of(view)
        with view.at_one_moment():
            stats = collect_statistics(view, stage, time.time())
    if as_json:
        click.echo(json.dumps(_as_dict(journal, stats), indent=2))
        return
    for line in _lines(journal, stats):
        click.echo(line)


def _lines(journal: str, stats: Statistics) -> Iterator[str]:
    yield f"{journal}: {stats.summary}"
    if stats.selection is not None:
        yield f"  {stats.selection}"
    yield f"  {_progress(stats)}"
    yield f"  {by_state(stats.states) or 'no account is completed yet'}"
    if stats.maybe_sent != 0:
        yield f"  {more_accounts(stats.maybe_sent)} may have been sent by a run that was killed"
    yield from (f"  {line}" for line in _pace(stats))
    if stats.errors:
        yield ""
        rows = [("  accounts", "scope", "error")]
        rows += [
            (f"{error.accounts:>10,}", error.scope or "-", error.error_type)
            for error in stats.errors[:_MAX_ERROR_TYPES]
        ]
        if more := stats.more_errors + sum(error.accounts for error in stats.errors[_MAX_ERROR_TYPES:]):
            rows.append((f"{more:>10,}", "", "others"))
        yield from (f"  {line}" for line in aligned(rows))
    yield ""
    yield f"next: {advice(journal, stats)}"


def _progress(stats: Statistics) -> str:
    if stats.total is None:
        return f"{stats.settled:,} completed"
    share = stats.settled / stats.accounts if stats.accounts else 1.0
    # Round down, so that 100% means all accounts.
    return f"{stats.settled:,} of {stats.accounts:,} completed ({int(share * 1000) / 10:.1f}%)"


def _pace(stats: Statistics) -> Iterator[str]:
    if stats.stage is not Stage.UNDER_WAY:
        if stats.last is not None:
            yield f"the last account was completed at {moment(stats.last)}"
        return
    if stats.rate is None:
        yield "no account was completed in the last minute"
        return
    left = stats.seconds_left
    time_left = "" if left is None else f"; {duration(left)} left at this rate"
    yield f"{stats.rate:,.1f} accounts per second in the last minute{time_left}"


def _as_dict(journal: str, stats: Statistics) -> dict[str, Any]:
    return {
        "journal": journal,
        "run": stats.stage,
        "halted": stats.halted,
        "selection": stats.selection,
        "total": stats.total,
        "settled": stats.settled,
        "maybe_sent": stats.maybe_sent,
        "states": {state: stats.states[state] for state in State},
        "errors": [
            {"type": error.error_type, "scope": error.scope, "accounts": error.accounts}
            for error in stats.errors
        ],
        "more_errors": stats.more_errors,
        "rate": None if stats.rate is None else round(stats.rate, 3),
        "seconds_left": None if stats.seconds_left is None else round(stats.seconds_left, 1),
        "began": _instant(stats.began),
        "first_settled_at": _instant(stats.first),
        "last_settled_at": _instant(stats.last),
        "next": advice(journal, stats),
    }


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else instant(seconds)
