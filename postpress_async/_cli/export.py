"""``postpress-async export``: what came of each account, for other programs."""

import sys
from pathlib import Path

import click

from postpress_async._cli.output import open_output
from postpress_async.rotation import State
from postpress_async.rotation.export import ENDINGS, FORMATS
from postpress_async.rotation.journal.reading import JournalView


@click.command(short_help="Write a row for each account, for other programs.")
@click.argument("journal")
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), help="[by the name of FILE, else csv]")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Only these; may be repeated.",
)
@click.option("-o", "--output", metavar="FILE", help="A file, readable by you alone. [standard output]")
def export(journal: str, kind: str | None, states: tuple[str, ...], output: str | None) -> None:
    """
    Write a row for each account of JOURNAL, in the order of the fleet, also while the run goes on.

    In CSV, text that a spreadsheet would run as a formula has an apostrophe before it; JSON Lines and
    Parquet hold every text as it is. Examples:

    \b
      postpress-async export fleet.csv.rotation.sqlite3 --state failed -o failed.csv
      postpress-async export fleet.csv.rotation.sqlite3 --format jsonl | jq .error_type
    """
    to_file = output not in {None, "-"}
    kind = kind or _said_by(output if to_file and output else "")
    if kind == "parquet" and not to_file:
        raise click.UsageError("Parquet is written to a file: give -o FILE")
    with JournalView(journal) as view, open_output(output) as file:
        FORMATS[kind](view.outcomes([State(state) for state in states]), file)
    if to_file and sys.stderr is not None:
        click.echo(f"written: {output}", err=True)


def _said_by(name: str) -> str:
    """The format of the file *name*; raise `click.UsageError` where its ending says none that there is."""
    ending = Path(name).suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    page = "; `postpress-async report` writes a page" if ending in {".html", ".htm"} else ""
    raise click.UsageError(
        f"{name}: there is no format for {ending}: name a file in .csv, .jsonl or .parquet, or say which by "
        f"--format{page}"
    )
