"""
How many requests a session has in flight, how fast they go out, and when they pause.

`Pace` is what a user says of it, an immutable value. `Pacer` does it, one for each session; its parts
are `limit` (how many at once), `gate` (when to pause) and `rate` (how many a second), which know
neither HTTP nor asyncio.
"""

from postpress_async.pace._pace import Pace
from postpress_async.pace.pacer import Pacer, Turn
from postpress_async.pace.signs import sign_of
from postpress_async.pace.ticket import Sign, Ticket

__all__ = ["Pace", "Pacer", "Sign", "Ticket", "Turn", "sign_of"]
