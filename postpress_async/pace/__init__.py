"""The pace of a session: how many requests are in flight, how many per second, and when all calls wait."""

from postpress_async.pace._pace import Pace

__all__ = ["Pace"]
