"""Click classes, types of option values, and options that several commands share."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, get_args

import click

from postpress_async._settings import BASE_URL
from postpress_async.rotation import Halt
from postpress_async.sandbox import Profile

# Key of `click.Context.meta` for the words that the user typed after the command's name.
TYPED_WORDS: Final = "postpress_async.typed_words"

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


class Command(click.Command):
    """A command whose help lists its options by group."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED_WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # Some versions of click also return a record for arguments.
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Option(click.Option):
    """An option whose help names its environment variable, under the heading *group*."""

    def __init__(self, *args: Any, group: str = "Options", **settings: Any) -> None:
        super().__init__(*args, **{"show_envvar": True, **settings})
        self.group: Final = group

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name the environment variable that set the option, even if click derived the variable's name."""
        hint = super().get_error_hint(ctx)
        if ctx is None or self.envvar is not None or not self.resolve_envvar_value(ctx):
            return hint
        return f"{hint} (env var: '{ctx.auto_envvar_prefix}_{str(self.name).upper()}')"


option: Final = partial(click.option, cls=Option)


def combine(*decorators: Decorator) -> Decorator:
    """Combine decorators that add options to a command. The help lists the options in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add


# --- Types ---


class _Count(click.IntRange):
    """A whole number, which the help shows as N."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        return "N"


COUNT: Final = _Count(1)
COUNT_OR_ZERO: Final = _Count(0)

FILE: Final = click.Path(allow_dash=True)  # a path, or ``-`` for standard input; the file may be missing
FILE.name = "file"  # shown in the help as FILE

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def duration(text: str) -> float:
    """Convert ``90s``, ``15m``, ``6h`` or ``1h30m`` to seconds, above 0; raise `click.BadParameter`."""
    text = str(text).strip()
    if (seconds := _seconds(text)) > 0:
        return seconds
    if candidates := [text + unit for unit in "smh" if _seconds(text + unit) > 0]:
        raise click.BadParameter(f"{text!r} has no unit. Write {' or '.join(candidates)}")
    raise click.BadParameter(f"{text!r} is not a duration. Write, for example, 90s, 15m, 6h or 1h30m")


def duration_from_zero(text: str) -> float:
    """Like `duration`, but also accept ``0s``."""
    return 0.0 if str(text).strip() in {"0s", "0.0"} else duration(text)


def _seconds(text: str) -> float:
    """Convert a duration to seconds; 0 if the text is not a duration."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return 0.0
    hours, minutes, seconds = (float(number or 0) for number in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def halt(text: str | int) -> str | int | Mapping[str, str | int]:
    """Convert a failure threshold as `Halt` does; raise `click.BadParameter`."""
    try:
        return Halt(failures=text).failures
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


# --- Options ---

run_number: Final = option(
    "--run",
    type=COUNT,
    show_default="the latest",
    help="Number of the run, as `postpress-async history` lists it.",
)

_connection_option: Final = partial(option, group="Connection")

connection: Final = combine(
    _connection_option(
        "--api-key-file",
        type=FILE,
        envvar="POSTPRESS_API_KEY_FILE",
        help="File that contains the API key; - is standard input. By default, the key is read from the "
        "environment variable POSTPRESS_API_KEY.",
    ),
    _connection_option(
        "--base-url",
        metavar="URL",
        envvar="POSTPRESS_BASE_URL",
        show_default=BASE_URL,
        help="Base URL of the API, as your PostPress dashboard shows it.",
    ),
    _connection_option(
        "--transport",
        type=click.Choice(["session", "lean"]),
        default="session",
        envvar="POSTPRESS_TRANSPORT",
        help="HTTP client. session: aiohttp.ClientSession. lean: aiohttp's connections without "
        "ClientSession; this takes about half the CPU time, but relies on undocumented parts of aiohttp.",
    ),
    _connection_option(
        "--trust-env",
        is_flag=True,
        envvar="POSTPRESS_TRUST_ENV",
        help="Connect to the API through the HTTP proxy in the environment variable HTTPS_PROXY, with its "
        "credentials from ~/.netrc, unless NO_PROXY excludes the host. This does not affect the proxies of "
        "the accounts. Requires --transport session.",
    ),
    _connection_option(
        "--no-idempotency",
        is_flag=True,
        envvar="POSTPRESS_NO_IDEMPOTENCY",
        help="Do not send the Idempotency-Key header, by which the API recognizes a repeated request. Use "
        "this option only if something between you and the API rejects the header. If an order for a managed "
        "proxy may have been executed, it is then not retried, because the API could execute it twice.",
    ),
)


def random_faults(required: str = "", **settings: Any) -> Decorator:
    """Add ``--profile`` and ``--seed`` of the sandbox, with *required* appended to their help."""
    return combine(
        option(
            "--profile",
            **settings,
            type=click.Choice(get_args(Profile)),
            default="steady",
            help="Random faults of the sandbox. steady: none. flaky: a few errors and dropped connections. "
            "overloaded: errors when more than 30 requests are open at once. outage: 1 to 3 seconds "
            "after the first request, no service for 10 to 20 seconds. hostile: malformed responses."
            f"{required}",
        ),
        option(
            "--seed",
            **settings,
            type=int,
            metavar="N",
            default=0,
            help="Seed of the sandbox's random faults. The same seed gives the same faults." + required,
        ),
    )
