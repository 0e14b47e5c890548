"""
The Retry-After header, seconds or one of the three dates of HTTP; and the Date header.

Source: RFC 9110, sections 10.2.3 (Retry-After) and 5.6.7 (HTTP-date). Written out rather than left
to ``strptime``, which follows the locale, or to `email.utils`, which takes nearly anything.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

_SECONDS = re.compile(r"[0-9]+")
_MONTHS: Sequence[str] = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH = "(?P<month>" + "|".join(_MONTHS) + ")"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_DATES = (
    # Sun, 06 Nov 1994 08:49:37 GMT
    re.compile(rf"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    # Sunday, 06-Nov-94 08:49:37 GMT
    re.compile(rf"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    # Sun Nov  6 08:49:37 1994
    re.compile(rf"{_DAY} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)


def read_retry_after(text: str, now: float) -> float | None:
    """
    Seconds from *now* (Unix time) that *text* asks to wait.

    0.0 for a date in the past; None for every form that RFC 9110 does not have: a sign, a fraction,
    a unit, another zone, a day that the month does not have. The name of the weekday is not checked.
    """
    if _SECONDS.fullmatch(text):
        return float(text)  # infinite where it is too large: a wait that nobody will begin
    when = read_date(text, now)
    return None if when is None else max(0.0, when - now)


def read_date(text: str, now: float) -> float | None:
    """Unix time of an HTTP date; None for every other form. *now* decides the century of a two-digit year."""
    for form in _DATES:
        if match := form.fullmatch(text):
            return _read_parts(match.groupdict(), now)
    return None


def _read_parts(parts: dict[str, str], now: float) -> float | None:
    year, latest = int(parts["year"]), None
    if len(parts["year"]) == 4:
        latest = _moment(parts, year)
    else:
        # RFC 850: a date "more than 50 years in the future" means the latest past year of these digits.
        today = datetime.fromtimestamp(now, UTC)
        century = today.year - today.year % 100
        for first in (century - 100, century, century + 100):
            when = _moment(parts, first + year)
            if when and (when.year - 50, *when.timetuple()[1:6]) <= today.timetuple()[:6]:
                latest = when
    return latest.timestamp() if latest else None


def _moment(parts: dict[str, str], year: int) -> datetime | None:
    day, month = int(parts["day"]), _MONTHS.index(parts["month"]) + 1
    hour, minute, second = int(parts["hour"]), int(parts["minute"]), int(parts["second"])
    if second == 60:  # a leap second, which Python's clock does not have
        second = 59
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
