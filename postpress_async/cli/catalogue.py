"""``postpress-async errors``: the table of errors, from the classes themselves."""

from collections.abc import Iterator

import click

from postpress_async.errors import BY_TYPE


@click.command(short_help="Print the table of errors: whose fault, and is it retried.")
def errors() -> None:
    """
    Print every error type: its status and class, whose fault it is, whether it is retried.

    Example:

      postpress-async errors | grep proxy
    """
    for line in table():
        click.echo(line)


def table() -> Iterator[str]:
    """The table's lines, aligned."""
    rows = [("type", "HTTP", "class", "scope", "retried", "applied")]
    for type_, error in BY_TYPE.items():
        retried = "yes" if error.retryable else "no"
        rows.append((type_, str(error.status), error.__name__, error.scope, retried, error.applied))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
