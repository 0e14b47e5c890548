"""``postpress-async history``: the runs of a journal, and what they did to an account."""

import json
from collections.abc import Iterator
from typing import Any

import attrs
import click

from postpress_async._cli.options import COUNT, Command, option
from postpress_async._cli.terminal import by_state, moment
from postpress_async._fields import counted
from postpress_async.errors import JournalError
from postpress_async.rotation.journal._history import AccountChange, Run, changes_of, runs_of
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.rotation.journal._times import duration, instant


@click.command(cls=Command, short_help="List the runs of a journal, or the changes of an account.")
@click.argument("journal")
@click.argument("account", required=False)
@option("--run", type=COUNT, help="List only run number N. All by default.")
@option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="POSTPRESS_HISTORY_JSON",
    help="Print one JSON object per line.",
)
def history(journal: str, account: str | None, run: int | None, as_json: bool) -> None:
    """
    List the runs of a rotation: when, by whom, from which machine, with which command and result.

    JOURNAL is the file in which `postpress-async rotate` records the outcome of each account. With the id of
    an ACCOUNT, list what each run assigned to that account. The journal records what was requested and how
    the API responded; it does not know which proxy an account really uses. Examples:

    \b
      postpress-async history fleet.csv.rotation.sqlite3
      postpress-async history fleet.csv.rotation.sqlite3 --run 2
      postpress-async history fleet.csv.rotation.sqlite3 acc_01HXYZ
    """
    with JournalReader(journal, run=run) as view:
        entries: list[Any] = runs_of(view, run) if account is None else changes_of(view, account, run)
    if account is not None and not entries:
        raise JournalError(f"no run in {journal} has an account {account}: check the id")
    if as_json:
        for entry in entries:
            click.echo(json.dumps(_as_dict(entry)))
        return
    for entry in entries:
        for line in _run_lines(entry) if isinstance(entry, Run) else _change_lines(entry):
            click.echo(line)


def _run_lines(run: Run) -> Iterator[str]:
    took = "" if run.ended is None else f", {duration(run.ended - run.began)}"
    reason = f": {run.halted}" if run.halted else ""
    yield f"run {run.number}: {moment(run.began)}{took}, {run.state}{reason}"
    if run.selection is not None:
        yield f"  {run.selection}"
    total = "" if run.total is None else f" of {counted(run.total, 'account')}"
    # A process that was killed did not record the requests that were in flight.
    least = "at least " if run.state == "killed" or len(run.starts) > 1 else ""
    yield f"  {by_state(run.states) or 'no account'}{total}, {least}{counted(run.requests, 'request')}"
    for number, start in enumerate(run.starts):
        resumed = f"resumed {moment(start.began)} " if number else ""
        by = f"{start.operator or 'an unknown user'} on {start.host or 'an unknown machine'}"
        version = "" if start.version is None else f", version {start.version}"
        yield f"  {resumed}by {by}{version}"
        if start.command is not None:
            yield f"  {start.command}"


def _change_lines(change: AccountChange) -> Iterator[str]:
    error = "" if change.error_type is None else f": {change.error_type}"
    assignment = "" if change.assignment is None else f", {change.assignment}"
    attempts = counted(change.attempts, "request")
    yield f"run {change.run}: {moment(change.settled_at)}, {change.state}{error}{assignment}, {attempts}"


def _as_dict(entry: Run | AccountChange) -> dict[str, Any]:
    if isinstance(entry, AccountChange):
        return {**entry._asdict(), "settled_at": instant(entry.settled_at)}
    return attrs.asdict(entry, value_serializer=_serialize)


def _serialize(_entry: object, attribute: "attrs.Attribute[Any] | None", value: Any) -> Any:
    if attribute is not None and attribute.name in {"began", "ended"} and value is not None:
        return instant(value)
    return value
