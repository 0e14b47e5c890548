"""What the end of an attempt says about the load of the service."""

from enum import Enum
from typing import Final

from postpress_async.errors import (
    AnswerError,
    ApiError,
    BadGatewayError,
    GatewayTimeoutError,
    PostPressError,
    ProxyError,
    TlsError,
    TooManyRequestsError,
    TransportError,
    UnavailableError,
)


class LoadSignal(Enum):
    """
    What the end of an attempt says about the load of the service.

    It depends on the error's class, not on its scope: a 503 about one account is also an overload signal.
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


_OVERLOADS: Final = (UnavailableError, BadGatewayError, GatewayTimeoutError, TransportError)


def load_signal_of(error: PostPressError) -> LoadSignal:
    """The load signal of an attempt that ended with *error*."""
    if isinstance(error, TooManyRequestsError):
        return LoadSignal.THROTTLED
    if isinstance(error, ProxyError):
        return LoadSignal.ALIVE
    if isinstance(error, TlsError):
        return LoadSignal.NONE  # a slower pace does not make a certificate valid
    if isinstance(error, _OVERLOADS):
        return LoadSignal.OVERLOAD
    if isinstance(error, AnswerError):
        return LoadSignal.OVERLOAD if error.status in {502, 503, 504} else LoadSignal.ALIVE
    return LoadSignal.ALIVE if isinstance(error, ApiError) else LoadSignal.NONE
