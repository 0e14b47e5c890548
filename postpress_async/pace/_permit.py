"""The permit to send one request."""


class Permit:
    """
    The permit to send one request. Return it with `Pacer.release`, once.

    Attributes:
        sent: The pacer's time at which it was granted.
        generation: The circuit breaker's generation at that time.
        probe: Whether the request is a probe of the open circuit breaker.
    """

    __slots__ = ("generation", "probe", "sent")

    def __init__(self, sent: float, generation: int, probe: bool = False) -> None:
        self.sent: float = sent
        self.probe: bool = probe
        self.generation: int = generation
