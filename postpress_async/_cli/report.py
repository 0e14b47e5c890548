"""``postpress-async report``: an HTML report of a rotation."""

import time
from pathlib import Path

import click

from postpress_async._cli import options
from postpress_async._cli.command import Command, option
from postpress_async._cli.output import open_output
from postpress_async.rotation.journal._reading import JournalView
from postpress_async.rotation.report import write_report


@click.command(cls=Command, short_help="Write an HTML report of a rotation.")
@click.argument("journal")
@option(
    "-o",
    "--output",
    metavar="FILE",
    show_default="the name of JOURNAL with .html, in the current directory",
    help="HTML file to write, readable only by you; - is standard output.",
)
@options.run_number
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
