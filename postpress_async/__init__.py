"""Give PostPress accounts new proxies from asyncio: one at a time, or a whole fleet overnight."""

import logging
from typing import TYPE_CHECKING, Any

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
from postpress_async.secret import Secret
from postpress_async.session import PostPressSession

if TYPE_CHECKING:
    from postpress_async.rotation import Fleet, Outcome, ProxyPool, Rotation, RotationSummary

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


def __getattr__(name: str) -> Any:
    # A service that updates one account at a time has no use for fleets, and they are a third of the import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from postpress_async import rotation

    globals()[name] = value = getattr(rotation, name)
    return value
