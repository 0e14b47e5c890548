"""Commands that messages suggest: the current one, and the one that retries its failed accounts."""

import shlex
from collections.abc import Mapping
from typing import Final

import click

from postpress_async._cli.command import WORDS

_PROGRAM: Final = "postpress-async"

# Options of a single run. The others select accounts, proxies and the API, which the next run needs too.
_ONE_RUN_ONLY: Final = frozenset(
    {"journal", "every", "keep", "limit", "canary", "halt", "max_duration", "dry_run", "json", "verbose"}
    | {"accept_new_key", "on", "profile", "seed", "dead_proxies"}
)


def arguments_by_option(context: click.Context) -> dict[str, list[str]]:
    """By option: its words as typed. Options from environment variables are left out."""
    params = {param.name: param for param in context.command.params}
    values_by_name, _, _ = context.command.make_parser(context).parse_args(list(context.meta[WORDS]))
    arguments: dict[str, list[str]] = {}
    for name, values in values_by_name.items():
        param = params[name]
        if isinstance(param, click.Option):
            option = max(param.opts, key=len)
            values = values if isinstance(values, list) else [values]
            arguments[name] = (
                [option] if param.is_flag else [word for value in values for word in (option, value)]
            )
    return arguments


def same_command(context: click.Context) -> str:
    """The current command. It contains no secrets, because `refuse_secrets` has checked its arguments."""
    return shlex.join([_PROGRAM, str(context.info_name), *context.meta[WORDS]])


def retry_command(arguments: Mapping[str, list[str]], journal: str, fleet: str | None) -> str:
    """The command that retries the failed accounts of *journal* with the same fleet, proxies and API."""
    words = [_PROGRAM, "retry-failed", journal, *([] if fleet is None else [fleet])]
    for name, option in arguments.items():
        words += [] if name in _ONE_RUN_ONLY else option
    return shlex.join(words)
