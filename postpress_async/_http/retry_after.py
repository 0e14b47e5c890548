"""
Parses the header Retry-After: seconds or an HTTP date (RFC 9110, section 10.2.3).

`email.utils` also accepts dates that are not HTTP dates. That is harmless, because a call gives up if it
would have to wait longer than `postpress_async.retry.LONGEST_RETRY_AFTER`.
"""

from datetime import UTC
from email.utils import parsedate_to_datetime


def read_retry_after(text: str, now: float) -> float | None:
    """Seconds to wait from *now* (Unix time); 0.0 for a date in the past, None if *text* is invalid."""
    if text.isascii() and text.isdecimal():
        return float(text)  # infinite if it is too large: the call gives up
    when = read_date(text)
    return None if when is None else max(0.0, when - now)


def read_date(text: str) -> float | None:
    """The Unix time of a date; None if *text* is not a date."""
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
