"""The right to send a request, and what came of it."""

from enum import Enum


class Sign(Enum):
    """What an attempt's end says of the service's load."""

    SUCCESS = "success"
    """A patched answer."""
    ALIVE = "alive"
    """An answer that is no sign of overload: an error of the request, the account, the proxy."""
    OVERLOAD = "overload"
    """A 503, a bare 502 or 504, a timeout, a connection refused or lost."""
    THROTTLED = "throttled"
    """A 429."""
    NONE = "none"
    """Nothing: it was cancelled, or ended before it was sent."""


class Ticket:
    """
    The right to send one request; give it back with `Pacer.leave`, once.

    Attributes:
        sent: When it was given, by the pacer's clock.
        generation: Of the gate, when it was given.
        probe: Whether the request finds out for all calls if the service is back.
    """

    __slots__ = ("generation", "probe", "sent")

    def __init__(self, sent: float, generation: int, probe: bool = False) -> None:
        self.sent: float = sent
        self.probe: bool = probe
        self.generation: int = generation
