"""The pace of a session: its concurrency limit, rate limit and circuit breaker."""

from postpress_async.pace._pace import Pace

__all__ = ["Pace"]
