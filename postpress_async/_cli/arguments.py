"""No secret in an argument: every user of the machine can read those, and so can its logs."""

import os
import re
from collections.abc import Iterable

from postpress_async.errors import ConfigurationError

_KEY = re.compile(r"pp_(?:live|test)_.")
_PROXY = re.compile(
    r"""(?:https?|socks5h?):// [^/\s:@]* : .* @ .*      # a URL
      | [^/\s:@]+ : (?!//) .+ @ [\w.:\[\]-]+ : [0-9]{1,5}    # user:password@host:port
      | [^/\s:@]+ : [0-9]{1,5} : [^:]* : .+            # host:port:user:password""",
    re.VERBOSE | re.IGNORECASE,
)


def refuse_secrets(words: Iterable[str]) -> None:
    """
    Raise `ConfigurationError` where one of *words* is, or holds, an API key or a proxy's password.

    Whatever reads the arguments later repeats what it does not understand. A file may have any name.
    """
    for word in words:
        value = word.partition("=")[2] if word.startswith("-") and "=" in word else word
        if os.path.exists(value):
            continue
        if _KEY.match(value):
            raise ConfigurationError(
                "an API key in an argument can be read by everyone on this machine: put it into "
                "POSTPRESS_API_KEY, or into a file for --api-key-file"
            )
        if _PROXY.fullmatch(value):
            raise ConfigurationError(
                "a password in an argument can be read by everyone on this machine: put the URL into a file "
                "for --proxy-file, or into POSTPRESS_PROXY"
            )
