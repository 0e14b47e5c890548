"""
How a public name goes: it works as before for two more minor versions and warns, then it is gone.

Nothing is deprecated now. What is, says so by one of these three, and `tests/test_deprecated.py` fails once
one is still there in the version that it was to go in::

    @deprecated("`PostPressSession.patch` is deprecated since 0.3 and goes in 0.5: use `update_proxy`.")
    async def patch(self, ...): ...

    @renamed_argument("proxy", "change", since="0.3", gone="0.5")
    async def update_proxy(self, account_id: str, change: ProxyChange): ...

    __getattr__ = renamed_names(__name__, {"Speed": "Pace"}, since="0.3", gone="0.5")

The first is PEP 702's, of which editors and type checkers know. An option of the command line has click's
``deprecated=``.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

if sys.version_info >= (3, 13):
    from warnings import deprecated as deprecated
else:
    from typing_extensions import deprecated as deprecated

P = ParamSpec("P")
R = TypeVar("R")


def farewell(old: str, instead: str, *, since: str, gone: str) -> str:
    """The one sentence that each deprecation says; the versions are minor ones, such as ``0.5``."""
    return f"`{old}` is deprecated since {since} and goes in {gone}: use `{instead}`."


def renamed_argument(
    old: str, new: str, *, since: str, gone: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    The keyword *old* is taken for *new*, with a warning at the caller's line; type checkers know *new* alone.

    Raises:
        TypeError: At a call that has both: one of the two would be lost unseen.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__
        said = farewell(f"{name}({old}=)", f"{new}=", since=since, gone=gone)

        @wraps(function)
        def translated(*args: P.args, **kwargs: P.kwargs) -> R:
            if old not in kwargs:
                return function(*args, **kwargs)
            keywords: dict[str, Any] = {new if key == old else key: value for key, value in kwargs.items()}
            if len(keywords) < len(kwargs):
                raise TypeError(f"{name} has both {new}= and {old}=, its old name: leave {old}= out.")
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            return function(*args, **keywords)

        # It is no `async def` itself: the warning would come when the coroutine runs, which may be in a task.
        if sys.version_info >= (3, 12) and inspect.iscoroutinefunction(function):
            inspect.markcoroutinefunction(translated)
        return translated

    return decorate


def renamed_names(module: str, names: Mapping[str, str], *, since: str, gone: str) -> Callable[[str], object]:
    """A module's ``__getattr__``, by which the keys of *names* are what their values name there, and warn."""

    def look_up(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        said = farewell(f"{module}.{name}", f"{module}.{names[name]}", since=since, gone=gone)
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return look_up
