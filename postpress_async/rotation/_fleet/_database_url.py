"""Keeps the password of a database out of the command line."""

import re
from typing import Final
from urllib.parse import unquote

from postpress_async.errors import ConfigurationError

DATABASE_URL: Final = "POSTPRESS_DATABASE_URL"
"""The environment variable for the URL, which may contain a password."""

# As SQLAlchemy parses it: from the first colon to the first "@", including slashes.
_CREDENTIALS: Final = re.compile(r"[a-zA-Z][\w+.-]*://[^:/]*:[^@]+@", re.DOTALL)
# Drivers also accept a password in the query, and ODBC's connection strings have PWD.
_IN_QUERY: Final = re.compile(r"(?:pass(?!file)\w*|pwd|secret\w*|token\w*)\s*=\s*[^&;\s]", re.IGNORECASE)


def check_argument(url: str) -> str:
    """
    Return *url*, a command-line argument, which every user of the machine can read.

    Raises:
        ConfigurationError: It has a password, which the message does not show.
    """
    if _CREDENTIALS.match(url) or _IN_QUERY.search(unquote(url.partition("?")[2])):
        raise ConfigurationError(
            "a password in an argument can be read by everyone on this machine: put the database's URL into "
            f"{DATABASE_URL} or into a file for --from-file, or leave the password to PGPASSFILE"
        )
    return url
