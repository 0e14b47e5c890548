"""What an error tells of the service's load."""

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
from postpress_async.pace.ticket import Sign

_OVERLOADS: Final = (UnavailableError, BadGatewayError, GatewayTimeoutError, TransportError)


def sign_of(error: PostPressError) -> Sign:
    """
    The sign that an attempt gave which ended with *error*.

    Of overload are every 503, a bare 502 or 504, ``request_timeout``, a connection that was refused or lost,
    and an attempt that timed out. An error of the proxy, the account or the provider shows a service that
    answers.
    """
    if isinstance(error, TooManyRequestsError):
        return Sign.THROTTLED
    if isinstance(error, ProxyError):
        return Sign.ALIVE
    if isinstance(error, TlsError):
        return Sign.NONE  # a matter of certificates, which no pause mends
    if isinstance(error, _OVERLOADS):
        return Sign.OVERLOAD
    if isinstance(error, AnswerError):
        return Sign.OVERLOAD if error.status in {502, 503, 504} else Sign.ALIVE
    return Sign.ALIVE if isinstance(error, ApiError) else Sign.NONE
