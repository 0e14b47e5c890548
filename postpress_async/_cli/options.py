"""Options that several commands share, the types of their words, and where secrets may come from."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from postpress_async.errors import ConfigurationError
from postpress_async.rotation import Halt
from postpress_async.secret import Secret

_LONGEST = 16_384  # characters of a file that holds one secret

FILE: Final = click.Path(allow_dash=True)
"""A path or ``-``; a shell completes it, and whoever opens it says what is wrong with it."""

C = TypeVar("C", bound=Callable[..., Any])


_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def duration(text: str) -> float:
    """Seconds, more than 0, of ``90s``, ``15m``, ``6h`` or ``1h30m``; else `click.BadParameter`."""
    said = str(text).strip()
    if (seconds := _seconds(said)) > 0:
        return seconds
    if meant := [said + unit for unit in "smh" if _seconds(said + unit) > 0]:
        offered = ", ".join(meant[:-1]) + " or " * (len(meant) > 1) + meant[-1]
        raise click.BadParameter(f"{said!r} has no unit: write {offered}")
    raise click.BadParameter(f"{said!r} is no duration: write 90s, 15m, 6h or 1h30m")


def _seconds(said: str) -> float:
    parts = _DURATION.fullmatch(said)
    numbers = [float(part or 0) for part in (parts.groups() if parts else ())]
    return sum(number * unit for number, unit in zip(numbers, (3600, 60, 1), strict=False))


def halt(text: str | int) -> str | int:
    """A share of failures, a number of them, or ``never``; else `click.BadParameter`."""
    try:
        return Halt(failures=text).failures
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def connection(command: C) -> C:
    """How to reach the API; the key itself is never an argument, which others on the machine can read."""
    key = click.option(
        "--api-key-file",
        type=FILE,
        envvar="POSTPRESS_API_KEY_FILE",
        help="A file that holds the API key; - is standard input. Else POSTPRESS_API_KEY.",
    )
    url = click.option(
        "--base-url", metavar="URL", envvar="POSTPRESS_BASE_URL", help="The base URL your dashboard shows."
    )
    transport = click.option(
        "--transport",
        type=click.Choice(["session", "lean"]),
        default="session",
        envvar="POSTPRESS_TRANSPORT",
        help="lean: over aiohttp's connections alone, for about half the CPU.",
    )
    no_idempotency = click.option(
        "--no-idempotency",
        is_flag=True,
        help="Send no Idempotency-Key: a managed change that may have been applied is then not sent again.",
    )
    return key(url(transport(no_idempotency(command))))


def read_secret_file(place: str, what: str) -> Secret:
    """
    The one line of the file *place*, or of standard input for ``-``.

    Raises:
        ConfigurationError: It cannot be read, or is not one line.
    """
    name = "standard input" if place == "-" else place
    try:
        if place == "-":
            text = "" if sys.stdin is None else sys.stdin.read(_LONGEST)
        else:
            with Path(place).open(encoding="utf-8") as file:
                text = file.read(_LONGEST)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read ({error.strerror}): it should hold {what}") from None
    except UnicodeDecodeError:
        text = ""
    lines = text.split()
    if len(lines) != 1:
        raise ConfigurationError(f"{name} should hold {what} in one line, and nothing else")
    return Secret(lines[0])


def read_key(place: str | None) -> Secret | None:
    """
    The API key of ``--api-key-file``; None leaves it to the environment, where there is one.

    Raises:
        ConfigurationError: There is none, or the file cannot be read.
    """
    if place is None and not os.environ.get("POSTPRESS_API_KEY"):
        raise ConfigurationError("no API key: set POSTPRESS_API_KEY, or give --api-key-file FILE")
    return None if place is None else read_secret_file(place, "the API key")
