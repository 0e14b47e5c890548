"""``postpress-async completion``: what a shell needs to complete its words."""

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print what a shell needs to complete the commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """
    Print what a SHELL runs to complete commands, options and files. Examples:

    \b
      postpress-async completion bash > ~/.local/share/bash-completion/completions/postpress-async
      postpress-async completion zsh > ~/.zfunc/_postpress-async
      postpress-async completion fish > ~/.config/fish/completions/postpress-async.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has all three
    made = found(context.find_root().command, {}, "postpress-async", "_POSTPRESS_ASYNC_COMPLETE")
    click.echo(made.source())
