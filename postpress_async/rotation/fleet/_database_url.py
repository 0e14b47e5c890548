"""The URL of a database: what in it is a password, and what may be said of it."""

import re
from typing import Final
from urllib.parse import unquote

from postpress_async.errors import ConfigurationError

DATABASE_URL: Final = "POSTPRESS_DATABASE_URL"
"""The environment's variable that may hold a URL with a password."""

# As SQLAlchemy reads it: everything from the first colon to the first "@", slashes and all.
_CREDENTIALS: Final = re.compile(r"[a-zA-Z][\w+.-]*://[^:/]*:[^@]+@", re.DOTALL)
# Drivers take one in the query too, and ODBC's connection strings have their PWD.
_IN_QUERY: Final = re.compile(r"(?:pass(?!file)\w*|pwd|secret\w*|token\w*)\s*=\s*[^&;\s]", re.IGNORECASE)


def has_password(url: str) -> bool:
    """Whether there is a password in *url*, in front of its host or among its options."""
    if _CREDENTIALS.match(url):
        return True
    return _IN_QUERY.search(unquote(url.partition("?")[2])) is not None


def check_argument(url: str) -> str:
    """
    *url*, which was given as an argument of a command, where every user of the machine can read it.

    Raises:
        ConfigurationError: There is a password in it. The message does not show it.
    """
    if has_password(url):
        raise ConfigurationError(
            "a password in an argument can be read by everyone on this machine: put the database's URL into "
            f"{DATABASE_URL} or into a file for --from-file, or leave the password to PGPASSFILE"
        )
    return url
