"""Complete commands that messages suggest: the command itself, and the one that retries failed accounts."""

import shlex
from collections.abc import Mapping
from typing import Final

import click

from postpress_async._cli.command import WORDS

_PROGRAM: Final = "postpress-async"

# These belong to a single run. The others select accounts, proxies and the API, so the next run needs them.
_ONE_RUN_ONLY: Final = frozenset(
    {"journal", "every", "keep", "limit", "canary", "halt", "max_duration", "dry_run", "json", "verbose"}
    | {"accept_new_key", "on", "profile", "seed", "dead_proxies"}
)


def arguments_by_option(context: click.Context) -> dict[str, list[str]]:
    """For each option that was an argument (rather than an environment variable): its words as typed."""
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
    """The current command. It contains no secret, since `refuse_secrets` has checked each argument."""
    return shlex.join([_PROGRAM, str(context.info_name), *context.meta[WORDS]])


def retry_command(arguments: Mapping[str, list[str]], journal: str, fleet: str | None) -> str:
    """The command that retries the failed accounts of *journal* with the same fleet, proxies and API."""
    words = [_PROGRAM, "retry-failed", journal, *([] if fleet is None else [fleet])]
    for name, option in arguments.items():
        words += [] if name in _ONE_RUN_ONLY else option
    return shlex.join(words)
