"""Give PostPress accounts new proxies from asyncio: one at a time, or a whole fleet overnight."""

import logging

from postpress_async import errors, events
from postpress_async._version import __version__
from postpress_async.errors import ApiError, PostPressError, TransportError
from postpress_async.models import (
    AccountPatched,
    CustomProxy,
    ManagedProxy,
    ProxyChange,
    ProxyProtocol,
)
from postpress_async.pace import Pace
from postpress_async.retry import RetryPolicy
from postpress_async.rotation import Fleet, Outcome, ProxyPool, Rotation, RotationSummary
from postpress_async.secret import Secret
from postpress_async.session import PostPressSession

# Silent unless the program that embeds it says otherwise.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AccountPatched",
    "ApiError",
    "CustomProxy",
    "Fleet",
    "ManagedProxy",
    "Outcome",
    "Pace",
    "PostPressError",
    "PostPressSession",
    "ProxyChange",
    "ProxyPool",
    "ProxyProtocol",
    "RetryPolicy",
    "Rotation",
    "RotationSummary",
    "Secret",
    "TransportError",
    "__version__",
    "errors",
    "events",
]
