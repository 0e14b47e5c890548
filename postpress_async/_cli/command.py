"""A command whose help groups its options under headings."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

WORDS: Final = "postpress_async.words"
"""Where a context's ``meta`` has the words of its command."""


class Headed(click.Command):
    """
    A command whose help groups its options under headings.

    Args:
        headings: The option names, such as ``--pool``, by heading, both in the order of the help. Options
            without a heading come last, under Options.
    """

    def __init__(self, *args: Any, headings: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headings: Final = headings

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words as they were given, for hints that name the command to type next."""
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of the options, called by click."""
        records = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)) is not None:
                records[option.opts[-1]] = record
        for heading, names in self.headings.items():
            rows = [records.pop(name) for name in names if name in records]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
        if records:
            with formatter.section("Options"):
                formatter.write_dl(list(records.values()))
