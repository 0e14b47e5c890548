"""The permit to send one request."""

from attrs import define


@define(eq=False)
class Permit:
    """
    The permit to send one request. Return it with `Pacer.release`, once.

    Attributes:
        sent: The pacer's time at which it was granted.
        generation: The circuit breaker's generation at that time.
        probe: Whether the request is a probe of the open circuit breaker.
    """

    sent: float
    generation: int
    probe: bool = False
