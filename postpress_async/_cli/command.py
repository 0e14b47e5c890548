"""Click classes whose help groups the options, and lists the commands in the order of use."""

from functools import partial
from typing import Any, Final

import click

WORDS: Final = "postpress_async.words"
"""Key of `click.Context.meta` for the command's arguments as the user typed them."""


class Option(click.Option):
    """
    An option whose help names its environment variable.

    Args:
        group: Heading of the option in the command's help.
    """

    def __init__(self, *args: Any, group: str = "Options", **settings: Any) -> None:
        super().__init__(*args, **{"show_envvar": True, **settings})
        self.group: Final = group

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name the environment variable even if click derives its name. Called by click."""
        hint = super().get_error_hint(ctx)
        if ctx is None or self.envvar is not None or not self.resolve_envvar_value(ctx):
            return hint
        return f"{hint} (env var: '{ctx.auto_envvar_prefix}_{str(self.name).upper()}')"


option: Final = partial(click.option, cls=Option)
"""Adds an `Option` to a command."""


class Command(click.Command):
    """A command whose help lists its options by group."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Store the arguments for messages that suggest a command. Called by click."""
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings. Called by click."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # Some versions of click also return a record for arguments.
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Commands(click.Group):
    """A group whose help lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands. Called by click."""
        return list(self.commands)
