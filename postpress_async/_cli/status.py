"""``postpress-async status``: the progress of a rotation, read from its journal."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from postpress_async._cli.options import Command, option
from postpress_async._cli.terminal import aligned, by_state, counted, moment
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

_LISTED: Final = 12  # error types on a terminal; --json and the report list more


@click.command(cls=Command, short_help="Show the progress of a rotation and what to do next.")
@click.argument("journal")
@option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
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
            numbers = collect_statistics(view, stage, time.time())
    if as_json:
        click.echo(json.dumps(_as_dict(journal, numbers), indent=2))
        return
    for line in _lines(journal, numbers):
        click.echo(line)


def _lines(journal: str, numbers: Statistics) -> Iterator[str]:
    yield f"{journal}: {numbers.summary}"
    if numbers.selection is not None:
        yield f"  {numbers.selection}"
    yield f"  {_progress(numbers)}"
    yield f"  {by_state(numbers.states) or 'no account is completed yet'}"
    if numbers.maybe_sent != 0:
        known = numbers.maybe_sent is not None
        accounts = f"up to {counted(numbers.maybe_sent or 0, 'more account')}" if known else "more accounts"
        yield f"  {accounts} may have been sent by a run that was killed"
    yield from (f"  {line}" for line in _pace(numbers))
    if numbers.errors:
        yield ""
        rows = [("  accounts", "scope", "error")]
        rows += [
            (f"{error.accounts:>10,}", error.scope or "-", error.error_type)
            for error in numbers.errors[:_LISTED]
        ]
        if more := numbers.more_errors + sum(error.accounts for error in numbers.errors[_LISTED:]):
            rows.append((f"{more:>10,}", "", "others"))
        yield from (f"  {line}" for line in aligned(rows))
    yield ""
    yield f"next: {advice(journal, numbers)}"


def _progress(numbers: Statistics) -> str:
    if numbers.total is None:
        return f"{numbers.settled:,} completed"
    share = numbers.settled / numbers.accounts if numbers.accounts else 1.0
    # Rounded down, so that 100% means all.
    return f"{numbers.settled:,} of {numbers.accounts:,} completed ({int(share * 1000) / 10:.1f}%)"


def _pace(numbers: Statistics) -> Iterator[str]:
    if numbers.stage is not Stage.UNDER_WAY:
        if numbers.last is not None:
            yield f"the last account was completed at {moment(numbers.last)}"
        return
    if numbers.rate is None:
        yield "no account was completed in the last minute"
        return
    left = numbers.seconds_left
    time_left = "" if left is None else f"; {duration(left)} left at this rate"
    yield f"{numbers.rate:,.1f} accounts per second in the last minute{time_left}"


def _as_dict(journal: str, numbers: Statistics) -> dict[str, Any]:
    return {
        "journal": journal,
        "run": numbers.stage,
        "halted": numbers.halted,
        "selection": numbers.selection,
        "total": numbers.total,
        "settled": numbers.settled,
        "maybe_sent": numbers.maybe_sent,
        "states": {state: numbers.states[state] for state in State},
        "errors": [
            {"type": error.error_type, "scope": error.scope, "accounts": error.accounts}
            for error in numbers.errors
        ],
        "more_errors": numbers.more_errors,
        "rate": None if numbers.rate is None else round(numbers.rate, 3),
        "seconds_left": None if numbers.seconds_left is None else round(numbers.seconds_left, 1),
        "began": _when(numbers.began),
        "first_settled_at": _when(numbers.first),
        "last_settled_at": _when(numbers.last),
        "next": advice(journal, numbers),
    }


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else instant(seconds)
