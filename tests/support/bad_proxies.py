"""A stub of a session whose proxies fail, and of a journal, for rotations in virtual time."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from postpress_async import AccountPatched, CustomProxy, ProxyPool, errors
from postpress_async.models import Attempt
from postpress_async.rotation import State
from postpress_async.rotation.journal._input_check import InputCheck

DEAD, CREDENTIALS = "errors/proxy_error", "errors/invalid_proxy_credentials"

Fault = Callable[[str, str, float], str | None]


class Api:
    """
    Updates accounts like a session does, with up to six attempts.

    Args:
        fault: Called for each attempt with the proxy's host, the account id and the time of the event loop.
            Returns the type of the error, or None for a success.
        latency: Seconds of each attempt.

    Attributes:
        requests: Number of attempts by host of the proxy.
        first: Time of the first success by host of the proxy.
    """

    def __init__(self, fault: Fault, latency: float = 0.05) -> None:
        self._fault = fault
        self._latency = latency
        self._random = random.Random(1)
        self.requests: Counter[str] = Counter()
        self.first: dict[str, float] = {}

    async def update(self, account_id: str, change: Any, _keys: Any, hooks: Any, /) -> AccountPatched:
        attempts: tuple[Attempt, ...] = ()
        hooks.on_call_started()
        clock = asyncio.get_running_loop().time
        for number in range(1, 7):
            hooks.on_attempt_started(clock())
            await asyncio.sleep(self._latency)
            self.requests[change.host] += 1
            kind = self._fault(change.host, account_id, clock())
            if kind is None:
                self.first.setdefault(change.host, clock())
                return AccountPatched(account_id)
            error = errors.ApiError.of(502 if kind == DEAD else 401, errors.Problem(kind), None)
            attempts = (*attempts, Attempt(number, 0.0, self._latency, kind, error.status))
            error.attempts = attempts
            hooks.on_attempt_failed(error)
            if hooks.should_give_up(error) or not error.retryable:
                break
            hooks.on_backoff(True)
            await asyncio.sleep(self._random.random() * 0.5 * 2 ** (number - 1))
            hooks.on_backoff(False)
        raise error


class Memory:
    """
    A journal that only keeps quarantines. A real one has a thread, which virtual time does not control.

    Attributes:
        quarantined: By label of a proxy, the start of its quarantine and the time of the next probe.
        changes: The arguments of each call of `record_proxy`.
    """

    run, leaves_unknown, by_row, resumed = "run", False, False, False
    watermark = SimpleNamespace(safe_below=math.inf)
    check = InputCheck(facts={})

    def __init__(self) -> None:
        self.quarantined: dict[str, tuple[float, float]] = {}
        self.changes: list[tuple[str, Any, bool]] = []

    def quarantines(self) -> dict[str, tuple[float, float]]:
        return dict(self.quarantined)

    def record_proxy(self, label: str, quarantine: Any, /, *, failed: bool) -> None:
        self.changes.append((label, quarantine, failed))
        self.quarantined.pop(label, None)
        if quarantine is not None:
            self.quarantined[label] = quarantine.began, quarantine.probe_at

    def done_counts(self) -> Counter[State]:
        return Counter()

    def proxies(self) -> dict[str, int]:
        return {}

    def entries(self, **_: Any) -> tuple[()]:
        return ()

    def generations(self) -> tuple[()]:
        return ()

    def begin(self, *_: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    async def limit_backlog(self) -> None: ...
    async def record_generation(self, *_: Any) -> None: ...
    async def aclose(self) -> None: ...


def pool_of(count: int, **options: Any) -> ProxyPool:
    return ProxyPool([CustomProxy(host=f"p{n}", port=3128) for n in range(count)], **options)
