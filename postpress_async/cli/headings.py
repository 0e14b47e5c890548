"""A command's help with its many options under headings, so that one is found at night."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

WORDS: Final = "postpress_async.words"
"""Where a context's ``meta`` has the words of its command."""


class Headed(click.Command):
    """
    A command whose options stand under headings.

    Args:
        headings: For each heading the options below it, such as ``--pool``, both in the order of the help;
            what is under none comes last.
    """

    def __init__(self, *words: Any, headings: Mapping[str, Sequence[str]], **options: Any) -> None:
        super().__init__(*words, **options)
        self.headings: Final = headings

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words as they were given, for hints that name the command to type next."""
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each with its help."""
        told = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (row := option.get_help_record(ctx)) is not None:
                told[option.opts[-1]] = row
        for heading, names in self.headings.items():
            rows = [told.pop(name) for name in names if name in told]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
        if told:
            with formatter.section("Options"):
                formatter.write_dl(list(told.values()))
