"""Advice for wrong keyword arguments of `update_proxy`."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from postpress_async._converter import CHANGE_FIELDS, WHAT_TO_WRITE

_Method = TypeVar("_Method", bound=Callable[..., object])


def suggest_change(method: _Method) -> _Method:
    """Decorate *method* so that a keyword such as ``country="US"`` raises a `TypeError` with advice."""

    @wraps(method)
    def call(*args: Any, **options: Any) -> object:
        try:
            return method(*args, **options)
        except TypeError:  # the arguments do not match: the coroutine itself has not started
            name = next((name for name in options if name in CHANGE_FIELDS), None)
            if name is None:
                raise
        raise TypeError(f"{method.__name__} has no argument {name}: {WHAT_TO_WRITE} as the change")

    # `unittest.mock` replaces only coroutine functions by an `AsyncMock`.
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(call)
    else:
        call.__dict__["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
    return cast("_Method", call)
