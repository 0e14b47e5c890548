"""Commands to type next, whole: what was given, and what sends the failed accounts again."""

import shlex
from collections.abc import Mapping
from typing import Final

import click

from postpress_async._cli.command import WORDS

_PROGRAM: Final = "postpress-async"

# What belongs to one run and not to its accounts, proxies and target: the next run may want it otherwise.
_OF_ONE_RUN: Final = frozenset(
    {"journal", "limit", "canary", "halt", "max_duration", "dry_run", "json", "verbose"}
    | {"profile", "seed", "dead_proxies"}
)


def options_given(context: click.Context) -> dict[str, list[str]]:
    """For the name of each option that was an argument: its words, as they were given."""
    params = {param.name: param for param in context.command.params}
    parsed, _, _ = context.command.make_parser(context).parse_args(list(context.meta[WORDS]))
    options: dict[str, list[str]] = {}
    for name, value in parsed.items():
        param = params[name]
        if isinstance(param, click.Option):
            option, values = max(param.opts, key=len), value if isinstance(value, list) else [value]
            options[name] = [option] if param.is_flag else [word for one in values for word in (option, one)]
    return options


def same_command(context: click.Context) -> str:
    """The command as it was given; no word of it is a secret, since `refuse_secrets` looked at each."""
    return shlex.join([_PROGRAM, str(context.info_name), *context.meta[WORDS]])


def retry_command(options: Mapping[str, list[str]], journal: str, fleet: str | None) -> str:
    """The command that sends again what failed: with the same accounts, proxies and target."""
    words = [_PROGRAM, "retry-failed", journal, *([] if fleet is None else [fleet])]
    for name, option in options.items():
        words += [] if name in _OF_ONE_RUN else option
    return shlex.join(words)
