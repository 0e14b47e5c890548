"""Update the proxies of PostPress accounts from asyncio: one account, or a whole fleet."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Final

from postpress_async._version import __version__

if TYPE_CHECKING:
    from postpress_async import errors, events
    from postpress_async._converter import converter
    from postpress_async._http.transport import Request, Response, Transport
    from postpress_async.errors import ApiError, PostPressError, TransportError
    from postpress_async.models import (
        AccountPatched,
        CustomProxy,
        ManagedProxy,
        ProxyChange,
        ProxyChangeLike,
        ProxyProtocol,
    )
    from postpress_async.pace import Pace
    from postpress_async.retry import RetryPolicy
    from postpress_async.rotation import Fleet, Outcome, ProxyPool, Results, Rotation, RotationSummary
    from postpress_async.secret import Secret
    from postpress_async.session import PostPressSession

# No log output unless the application configures logging.
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
    "ProxyChangeLike",
    "ProxyPool",
    "ProxyProtocol",
    "Request",
    "Response",
    "Results",
    "RetryPolicy",
    "Rotation",
    "RotationSummary",
    "Secret",
    "Transport",
    "TransportError",
    "__version__",
    "converter",
    "errors",
    "events",
]

_MODULES: Final = frozenset("errors events models pace retry rotation secret session".split())
_MODULE_OF: Final = {
    name: module
    for module, names in {
        "_converter": "converter",
        "_http.transport": "Request Response Transport",
        "errors": "ApiError PostPressError TransportError",
        "models": "AccountPatched CustomProxy ManagedProxy ProxyChange ProxyChangeLike ProxyProtocol",
        "pace": "Pace",
        "retry": "RetryPolicy",
        "rotation": "Fleet Outcome ProxyPool Results Rotation RotationSummary",
        "secret": "Secret",
        "session": "PostPressSession",
    }.items()
    for name in names.split()
}

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """
        Import the module of a name when the name is first used.

        pytest imports its plugins, and with them this module, at every start. Without aiohttp, the import
        takes a hundredth of the time.
        """
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
