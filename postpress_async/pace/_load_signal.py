"""What the end of an attempt says about the load of the service."""

from enum import Enum

from postpress_async import errors


class LoadSignal(Enum):
    """
    What the end of an attempt says about the load of the service.

    It does not depend on the error's scope: a 503 about one account is also an overload signal.
    """

    SUCCESS = "success"
    """The account was patched."""
    ALIVE = "alive"
    """The service responded with an error that has another cause: the request, the account or the proxy."""
    OVERLOAD = "overload"
    """A 503, a 502 or 504 of a gateway, ``request_timeout``, a timeout, or a refused or lost connection."""
    THROTTLED = "throttled"
    """A 429."""
    NONE = "none"
    """Nothing: the attempt was cancelled, or its request was not sent."""


def load_signal_of(error: errors.PostPressError) -> LoadSignal:
    if isinstance(error, errors.TooManyRequestsError):
        return LoadSignal.THROTTLED
    if isinstance(error, errors.ProxyError):
        return LoadSignal.ALIVE
    if isinstance(error, errors.TlsError):
        return LoadSignal.NONE  # a slower pace does not make a certificate valid
    if isinstance(error, errors.TransportError) or error.status in {502, 503, 504}:
        return LoadSignal.OVERLOAD
    return LoadSignal.ALIVE if isinstance(error, errors.ApiError | errors.AnswerError) else LoadSignal.NONE
