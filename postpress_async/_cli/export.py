"""``postpress-async export`` and ``report``: write the outcomes of a journal, for programs or for people."""

import sys
import time
from pathlib import Path

import click

from postpress_async._cli.options import Command, option, run_number
from postpress_async._cli.terminal import more_accounts, open_output
from postpress_async.rotation import State
from postpress_async.rotation._export import ENDINGS, FORMATS, write_assignments
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal._history import assignments_of
from postpress_async.rotation.journal._reading import JournalReader, JournalView
from postpress_async.rotation.journal._statistics import maybe_sent, stage_of
from postpress_async.rotation.report import write_report


@click.command(cls=Command, short_help="Write the outcome of each account as CSV, JSON Lines or Parquet.")
@click.argument("journal")
@option(
    "--format",
    "kind",
    envvar="POSTPRESS_EXPORT_FORMAT",
    type=click.Choice(list(FORMATS)),
    show_default="by the name of --output, or csv",
    help="Format of the output. csv: comma-separated values with a header. jsonl: a JSON object per line. "
    "parquet: Apache Parquet, which requires --output and the extra postpress-async[parquet].",
)
@option(
    "--state",
    "states",
    envvar="POSTPRESS_EXPORT_STATE",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Write only accounts in this state. patched: the API confirmed the change. failed: the change was "
    "not applied because of an error. unknown: the change may have been applied. skipped: the row is "
    "invalid, no proxy was left, or the run ended first. Repeat the option to write several states. All "
    "states by default.",
)
@option(
    "-o",
    "--output",
    metavar="FILE",
    show_default="standard output",
    help="File to write, readable only by you; - is standard output.",
)
@run_number
@option(
    "--on",
    metavar="PROXY",
    multiple=True,
    help="Write only the accounts whose latest proxy is PROXY: HOST, HOST:PORT, USER@HOST, or a network such "
    "as 10.1.1.0/24. Repeat the option for several proxies. Requires --assignments.",
)
@option(
    "--assignments",
    is_flag=True,
    help="Write the proxy or country that each account got last, according to all runs of the journal, "
    "instead of the outcomes of one run. Changes that may have been applied count. Only as csv or jsonl.",
)
def export(
    journal: str,
    kind: str | None,
    states: tuple[str, ...],
    output: str | None,
    run: int | None,
    on: tuple[str, ...],
    assignments: bool,
) -> None:
    """
    Write the outcome of each account, in the order of the fleet.

    JOURNAL is the file in which `postpress-async rotate` records the outcome of each account. The rotation
    may be running or have ended. In CSV, an apostrophe precedes text that a spreadsheet would execute as a
    formula; JSON Lines and Parquet contain the exact text. Examples:

    \b
      postpress-async export fleet.csv.rotation.sqlite3 --state failed -o failed.csv
      postpress-async export fleet.csv.rotation.sqlite3 --format jsonl | jq .error_type
      postpress-async export fleet.csv.rotation.sqlite3 --assignments -o assignments.csv
      postpress-async export fleet.csv.rotation.sqlite3 --assignments --on 10.1.1.0/24
    """
    if on and not assignments:
        raise click.UsageError("--on requires --assignments")
    to_file = output not in {None, "-"}
    kind = kind or _format_of(output if to_file and output else "")
    if assignments and (states or run is not None or kind == "parquet"):
        raise click.UsageError("--assignments cannot be combined with --state, --run or the format parquet")
    if kind == "parquet" and not to_file:
        raise click.UsageError("--format parquet requires -o FILE")
    with JournalReader(journal, run=run) as view, open_output(output) as file:
        if assignments:
            selection, entries = Selection.of(on), assignments_of(view)
            if selection is not None:
                entries = (entry for entry in entries if selection.matches(entry.assignment))
            write_assignments(entries, file, kind)
        else:
            FORMATS[kind](view.outcomes([State(state) for state in states]), file)
        unlisted = maybe_sent(view, stage_of(view))
    if unlisted != 0:
        fact = f"{more_accounts(unlisted)} may have been sent by a run that was killed"
        click.echo(f"{fact}. Resume the run to list them", err=True)
    if to_file and sys.stderr is not None:
        click.echo(f"written: {output}", err=True)


def _format_of(name: str) -> str:
    """Return the format that the suffix of *name* stands for; raise `click.UsageError` if it is unknown."""
    ending = Path(name).suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    report = ", or write HTML with `postpress-async report`" if ending in {".html", ".htm"} else ""
    raise click.UsageError(
        f"{name}: {ending} is not a known format. Use .csv, .jsonl or .parquet, or set --format{report}"
    )


@click.command(cls=Command, short_help="Write an HTML report of a rotation.")
@click.argument("journal")
@option(
    "-o",
    "--output",
    metavar="FILE",
    show_default="the name of JOURNAL with .html, in the current directory",
    help="HTML file to write, readable only by you; - is standard output.",
)
@run_number
def report(journal: str, output: str | None, run: int | None) -> None:
    """
    Write a report of a rotation as a single HTML page that works offline.

    JOURNAL is the file in which `postpress-async rotate` records the outcome of each account. The rotation
    may be running or have ended. The report shows totals, throughput, latency, errors by type and scope, the
    proxies that failed most, the slowest accounts, and all accounts that were not patched, each with the
    request id (instance) to quote to PostPress support. Requires the extra postpress-async[report]. Example:

      postpress-async report fleet.csv.rotation.sqlite3 -o night.html
    """
    path = output or f"{Path(journal).name.removesuffix('.sqlite3')}.html"
    with JournalView(journal, run=run) as view, open_output(path) as file:
        write_report(view, file, time.time())
    if path != "-":
        click.echo(f"written: {path}", err=True)
