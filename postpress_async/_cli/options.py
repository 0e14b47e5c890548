"""Types of option values, and the options that several commands share."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, get_args

import click

from postpress_async._cli.command import option
from postpress_async._settings import BASE_URL
from postpress_async.rotation import Halt
from postpress_async.sandbox import Profile

FILE: Final = click.Path(allow_dash=True)
"""A path, or ``-`` for standard input. The code that opens it reports whether it exists."""

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def duration(text: str) -> float:
    """Convert ``90s``, ``15m``, ``6h`` or ``1h30m`` to seconds, above 0; raise `click.BadParameter`."""
    text = str(text).strip()
    if (seconds := _seconds(text)) > 0:
        return seconds
    if candidates := [text + unit for unit in "smh" if _seconds(text + unit) > 0]:
        listed = ", ".join(candidates[:-1]) + " or " * (len(candidates) > 1) + candidates[-1]
        raise click.BadParameter(f"{text!r} has no unit. Write {listed}")
    raise click.BadParameter(f"{text!r} is not a duration. Write, for example, 90s, 15m, 6h or 1h30m")


def duration_from_zero(text: str) -> float:
    """Like `duration`, but also accept ``0s``."""
    return 0.0 if str(text).strip() in {"0s", "0.0"} else duration(text)


def _seconds(text: str) -> float:
    parts = _DURATION.fullmatch(text)
    numbers = [float(part or 0) for part in (parts.groups() if parts else ())]
    return sum(number * unit for number, unit in zip(numbers, (3600, 60, 1), strict=False))


def halt(text: str | int) -> str | int | Mapping[str, str | int]:
    """Convert a failure threshold as `Halt` does; raise `click.BadParameter`."""
    try:
        return Halt(failures=text).failures
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def combine(*decorators: Decorator) -> Decorator:
    """Combine decorators that add options to a command. The help lists the options in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add


run_number: Final = option(
    "--run",
    type=click.IntRange(1),
    metavar="N",
    show_default="the latest",
    help="Number of the run, as `postpress-async history` lists it.",
)
"""Adds the option that selects a run of a journal."""

_connection_option: Final = partial(option, group="Connection")

connection: Final = combine(
    _connection_option(
        "--api-key-file",
        type=FILE,
        metavar="FILE",
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
        "ClientSession, which takes about half the CPU time but uses undocumented parts of aiohttp.",
    ),
    _connection_option(
        "--trust-env",
        is_flag=True,
        envvar="POSTPRESS_TRUST_ENV",
        help="Send to the API through the HTTP proxy of the environment (HTTPS_PROXY, NO_PROXY), with its "
        "credentials from ~/.netrc. Requires --transport session. The accounts' proxies have no part in it.",
    ),
    _connection_option(
        "--no-idempotency",
        is_flag=True,
        help="Do not send the Idempotency-Key header, by which the API recognizes a repeated request. Use it "
        "only if something between you and the API rejects the header. An order for a managed proxy is then "
        "not retried if it may have been executed, because the API could execute it twice.",
    ),
)
"""Adds the options for the connection to the API."""


def random_faults(required: str = "", **settings: Any) -> Decorator:
    """Add ``--profile`` and ``--seed`` of the sandbox, with *required* appended to their help."""
    return combine(
        option(
            "--profile",
            **settings,
            type=click.Choice(get_args(Profile)),
            default="steady",
            help="Random faults of the sandbox. steady: none. flaky: a few errors and dropped connections. "
            "overloaded: errors when more than 30 requests are open at once. outage: no service for 10 to 20 "
            f"seconds. hostile: malformed responses.{required}",
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
