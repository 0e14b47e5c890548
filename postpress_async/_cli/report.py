"""``postpress-async report``: one page that tells how the night went."""

import time
from pathlib import Path

import click

from postpress_async._cli.output import open_output
from postpress_async.rotation.journal.reading import JournalView
from postpress_async.rotation.report import write_report


@click.command(short_help="Write one HTML page that tells how the night went.")
@click.argument("journal")
@click.option("-o", "--output", metavar="FILE", help="[the journal's name with .html, in this folder]")
def report(journal: str, output: str | None) -> None:
    """
    Write what the journal tells as one HTML page, which needs no network; also while the run goes on.

    It has totals, throughput, latency, errors by type and scope, the proxies that failed most, the slowest
    accounts, and each account that was not patched with the instance to quote to support. ``-o -`` writes
    to standard output. Example:

      postpress-async report fleet.csv.rotation.sqlite3 -o night.html
    """
    place = output or f"{Path(journal).name.removesuffix('.sqlite3')}.html"
    with JournalView(journal) as view, open_output(place) as file:
        write_report(view, file, time.time())
    if place != "-":
        click.echo(f"written: {place}", err=True)
