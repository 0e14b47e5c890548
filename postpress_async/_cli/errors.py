"""``postpress-async errors``: print the table of error types."""

from collections.abc import Iterator

import click

from postpress_async._cli.output import aligned
from postpress_async.errors import BY_TYPE


@click.command(short_help="Print the table of the API's error types.")
def errors() -> None:
    """
    Print a table of all error types of the API.

    The columns are the type, the HTTP status, the exception class, the scope (what is at fault), whether the
    error is retried, and whether the change may have been applied. Example:

      postpress-async errors | grep proxy
    """
    for line in table():
        click.echo(line)


def table() -> Iterator[str]:
    """The lines of the table, with aligned columns."""
    rows = [("type", "HTTP", "class", "scope", "retried", "applied")]
    for type_, error in BY_TYPE.items():
        retried = "yes" if error.retryable else "no"
        rows.append((type_, str(error.status), error.__name__, error.scope, retried, error.applied))
    return aligned(rows)
