"""Commands that need no rotation: ``errors``, ``cluster-certificates`` and ``completion``."""

import click
from click.shell_completion import get_completion_class

from postpress_async._cli.options import Command
from postpress_async._cli.terminal import aligned, import_extra
from postpress_async.errors import BY_TYPE


@click.command(short_help="Print the table of the API's error types.")
def errors() -> None:
    """
    Print a table of all error types of the API.

    The columns are the type, the HTTP status, the exception class, the scope (what is at fault), whether the
    error is retried, and whether the change may have been applied. Example:

      postpress-async errors | grep proxy
    """
    rows = [("type", "HTTP", "class", "scope", "retried", "applied")]
    for type_, error in BY_TYPE.items():
        retried = "yes" if error.retryable else "no"
        rows.append((type_, str(error.status), error.__name__, error.scope, retried, error.applied))
    for line in aligned(rows):
        click.echo(line)


@click.command("cluster-certificates", cls=Command, short_help="Create the TLS certificate of a cluster.")
@click.argument("folder", metavar="DIR", type=click.Path())
def cluster_certificates(folder: str) -> None:
    """
    Create a TLS certificate and its private key in DIR, for a cluster of several machines.

    Anyone with the key can run code on the cluster and read its traffic. Copy the key only to the machines of
    the cluster, and let only the user that runs the cluster read it. The certificate is valid for a year.
    Example:

    \b
      postpress-async cluster-certificates certificates
    """
    cluster = import_extra("cluster", "a cluster", "distributed")
    certificate, key = cluster.write_certificates(folder)
    tls = f"--tls-ca-file {certificate} --tls-cert {certificate} --tls-key {key}"
    click.echo(f"written: {certificate}, {key}")
    click.echo("Copy both files to each machine of the cluster. Start the scheduler on one of the machines:")
    click.echo(f"  dask scheduler --protocol tls {tls}")
    click.echo("Start the workers on each machine:")
    click.echo(f"  POSTPRESS_API_KEY=... dask worker tls://SCHEDULER:8786 --nworkers -1 --nthreads 1 {tls}")
    click.echo("Run the rotation on this machine:")
    click.echo(f"  postpress-async rotate FLEET --cluster tls://SCHEDULER:8786 --certificates {folder}")


@click.command(short_help="Print the completion script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """
    Print the script that lets SHELL complete commands, options and file names. Examples:

    \b
      postpress-async completion bash > ~/.local/share/bash-completion/completions/postpress-async
      postpress-async completion zsh > ~/.zfunc/_postpress-async
      postpress-async completion fish > ~/.config/fish/completions/postpress-async.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None  # noqa: S101 - click supports all three shells
    command = context.find_root().command
    script = completion_class(command, {}, "postpress-async", "_POSTPRESS_ASYNC_COMPLETE")
    click.echo(script.source())
