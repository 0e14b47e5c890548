"""``postpress-async completion``: print a shell's completion script."""

import click
from click.shell_completion import get_completion_class


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
