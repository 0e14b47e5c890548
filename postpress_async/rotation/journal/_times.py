"""Times as text, for people and for programs."""

from datetime import UTC, datetime
from functools import lru_cache


def instant(seconds: float) -> str:
    """Unix time in RFC 3339, UTC, to the millisecond."""
    milliseconds = round(seconds * 1_000_000) // 1_000
    return f"{_second(milliseconds // 1_000)}.{milliseconds % 1_000:03}Z"


@lru_cache(16)  # an export formats many times of the same second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def duration(seconds: float) -> str:
    """Duration in its two largest units, such as ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
