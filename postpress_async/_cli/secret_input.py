"""Reads secrets from files and environment variables, never from arguments, which other users can read."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from postpress_async.errors import ConfigurationError
from postpress_async.secret import Secret

_MAX_CHARACTERS: Final = 16_384  # to read from a file, which should contain one secret
_KEY: Final = re.compile(r"pp_(?:live|test)_.")
_PROXY: Final = re.compile(
    r"""(?:https?|socks5h?):// [^/\s:@]* : .* @ .*      # a URL
      | [^/\s:@]+ : (?!//) .+ @ [\w.:\[\]-]+ : [0-9]{1,5}    # user:password@host:port
      | [^/\s:@]+ : [0-9]{1,5} : [^:]* : .+            # host:port:user:password""",
    re.VERBOSE | re.IGNORECASE,
)

EXPOSED_PROXY: Final = (
    "everyone on this machine can read a password in an argument. Put the proxy into a file, and name the "
    "file as a list of proxies, or as --proxy-file of the command update"
)


def refuse_secrets(arguments: Iterable[str]) -> None:
    """
    Raise `ConfigurationError` if an argument contains an API key or the password of a proxy.

    Call this before parsing the arguments, because the messages of parse errors repeat invalid arguments.
    Names of existing files are allowed, whatever they look like.
    """
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("-") and "=" in argument else argument
        if os.path.exists(value):
            continue
        if _KEY.match(value):
            raise ConfigurationError(
                "everyone on this machine can read an API key in an argument. Put it into "
                "POSTPRESS_API_KEY, or into a file for --api-key-file"
            )
        if _PROXY.fullmatch(value):
            raise ConfigurationError(EXPOSED_PROXY)


def read_secret_file(path: str, content: str) -> Secret:
    """Read *content*, such as ``the API key``, from the only line of a file; ``-`` is standard input."""
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            text = "" if sys.stdin is None else sys.stdin.read(_MAX_CHARACTERS)
        else:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(_MAX_CHARACTERS)
    except OSError as error:
        raise ConfigurationError(
            f"{name} cannot be read ({error.strerror}). It should contain {content}"
        ) from None
    except UnicodeDecodeError:
        text = ""
    words = text.split()
    if len(words) != 1:
        raise ConfigurationError(f"{name} should contain {content} in one line, and nothing else")
    return Secret(words[0])


def read_key(path: str | None) -> Secret | None:
    """Read the API key from the file *path*. None means that the session reads it from POSTPRESS_API_KEY."""
    if path is None and not os.environ.get("POSTPRESS_API_KEY"):
        raise ConfigurationError("there is no API key. Set POSTPRESS_API_KEY, or use --api-key-file FILE")
    return None if path is None else read_secret_file(path, "the API key")
