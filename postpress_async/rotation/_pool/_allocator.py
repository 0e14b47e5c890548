"""
Assigns the proxies of a pool to the accounts of one rotation, and tracks which are full or quarantined.

Its state changes only in synchronous calls, so tasks can share it without a lock.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from heapq import heappop, heappush
from typing import Final, TypeAlias

from attrs import define

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async.rotation._outcome import LINE_PREFIX
from postpress_async.rotation._pool import PooledProxy, ProxyPool
from postpress_async.rotation._pool._assign import RoundRobin, Sticky
from postpress_async.rotation._pool._proxy_list import identity
from postpress_async.rotation._template import TRY

_log = logging.getLogger("postpress_async.rotation")

CONFIRMED: Final = 2
"""A proxy is quarantined after it has failed for this number of accounts that were then patched with other
proxies. So an account that no proxy suits, or an outage of all proxies, quarantines no proxy."""

UNCONFIRMED: Final = 5
"""A proxy is quarantined after it has failed for this number of accounts even if none of them was patched
with another proxy, for example because the pool has no failovers."""

MASS_FAILURE: Final = 10
"""If this number of proxies fail, or most of a small pool, a common cause is assumed. Each success cancels
the oldest failure. If one call in three fails at random, this is wrong once in 1,000 calls."""

SHORTEST_PROBE_INTERVAL, LONGEST_PROBE_INTERVAL = 0.5, 60.0  # seconds
PROBE_INTERVAL_SHARE: Final = 1 / 8  # of the pause so far, within the above limits
LONGEST_COOL_DOWN: Final = 86_400.0  # seconds, beyond which failed probes do not extend a cool-down


@define
class Quarantine:
    began: float  # Unix time of the failure that caused it
    probe_at: float  # Unix time of the next probe
    prober: str | None = None  # the account that probed the proxy last


# Called with a proxy, its quarantine, and whether it has just failed for an account. If it has not, its
# quarantine has just begun or ended.
OnProxy: TypeAlias = Callable[[PooledProxy, Quarantine | None, bool], object]


def unix_clock() -> Callable[[], float]:
    """Return a clock that shows the Unix time, but is driven by the running loop's clock and never jumps."""
    loop = asyncio.get_running_loop()
    since = time.time() - loop.time()
    return lambda: since + loop.time()


class ProxyAllocator:
    """
    The state of a `ProxyPool` in one rotation. Accounts and failures of other rotations do not count.

    When the cool-down of a quarantined proxy is over, the next account to get that proxy probes it. A success
    ends the quarantine, and a failure doubles the cool-down.

    If most proxies fail at the same time, the cause is probably not the proxies, and a pause begins: accounts
    `wait`, except for one that tries a proxy from time to time. The pause ends when an account is patched,
    and all failures until then are forgotten.
    """

    def __init__(
        self,
        pool: ProxyPool,
        *,
        may_wait: bool = True,  # in pauses
        on_proxy: OnProxy = lambda *_: None,
        observer: Callable[[events.Event], object] | None = None,
        clock: Callable[[], float] = time.time,  # the Unix time
    ) -> None:
        self._pool: Final = pool
        self._may_wait: Final = may_wait
        self._on_proxy: Final = on_proxy
        self._report: Final = observer or (lambda _event: None)
        self._clock: Final = clock
        self._proxies: Final = list(pool)
        self._indices: Final = {pooled.label: index for index, pooled in enumerate(self._proxies)}
        self._assignment: Final = (
            RoundRobin(len(pool))
            if pool.assign == "round-robin"
            else Sticky(["\0".join(map(str, identity(pooled.proxy))) for pooled in pool])
        )
        self._accounts: Final = [0] * len(self._proxies)
        self._is_open: Final = [True] * len(self._proxies)
        self.available: int = len(self._proxies)  # proxies that accounts can get; at 0 the pool is exhausted
        self._quarantine: Final[dict[int, Quarantine]] = {}
        # A heap of the times of probes and their proxies. It keeps the entries of ended quarantines.
        self._probe_times: Final[list[tuple[float, int]]] = []
        self._due: Final[set[int]] = set()  # quarantined proxies whose cool-down is over
        self._probing: Final[set[int]] = set()  # quarantined proxies that an account is probing
        # By proxy: the accounts it failed for since it last worked, and whether another proxy patched them.
        self._failures: Final[dict[int, dict[str, bool]]] = {}
        self._failed_by: Final[dict[str, set[int]]] = {}  # by account: its proxies in `_failures`
        # Recent failures by proxy and account. Each success removes the oldest one.
        self._recent: Final[deque[tuple[int, str]]] = deque(maxlen=10 * MASS_FAILURE)
        self._known_bad: Final[set[int]] = set()  # had failed when a pause ended, and have not worked since
        self._random: Final = random.Random(0)  # noqa: S311 - no secret
        self._paused_at: float | None = None
        self._probe_at = 0.0
        self._waiting: Final[dict[asyncio.Future[None], None]] = {}

    # --- Assignment ---

    def give(self, account_id: str, *, but_not: Collection[PooledProxy] = ()) -> PooledProxy | None:
        """
        Assign a proxy to the account; None if no proxy is left, or the account has used up its failovers.

        *but_not* are the proxies that have failed for the account, in order. They are not assigned again,
        except for a template with ``{try}`` if no other proxy is left. If `must_wait`, call `wait` first.
        """
        tried = {self._indices[pooled.label] for pooled in but_not}
        self._open_due()
        if self._paused_at is not None:
            now = self._clock()
            if now >= self._paused_at + self._pool.cool_down:
                return None  # the pause has lasted too long
            interval = PROBE_INTERVAL_SHARE * (now - self._paused_at)
            self._probe_at = now + min(max(interval, SHORTEST_PROBE_INTERVAL), LONGEST_PROBE_INTERVAL)
        elif sum(not self._was_probe(pooled, account_id) for pooled in but_not) > self._pool.failovers:
            return None
        if (chosen := self._choose(account_id, tried)) is None:
            templates = [self._indices[pooled.label] for pooled in but_not if TRY in pooled.placeholders]
            if not templates:
                return None
            chosen = min(templates, key=templates.count)
        if chosen in self._due:
            self._due.remove(chosen)
            self._probing.add(chosen)
            self._quarantine[chosen].prober = account_id
        self._count(chosen, 1)
        return self._proxies[chosen]

    def take_back(self, proxy: PooledProxy, *, may_have_it: bool = False) -> None:
        """Record that the account's call with *proxy* did not succeed; after `failed` if the proxy failed."""
        index = self._indices[proxy.label]
        if index in self._probing:
            self._probing.remove(index)
            self._due.add(index)  # the probe was inconclusive, so the next account probes again
        self._count(index, 0 if may_have_it else -1)  # an account that may have it still counts
        self._wake()

    def resume(
        self, accounts: Mapping[str, int], quarantine: Mapping[str, tuple[float, float | None]] | None = None
    ) -> None:
        """
        Continue after an earlier run. Labels that are not in the pool are ignored.

        *accounts* are the numbers of accounts by label. They count towards `accounts_per_proxy`, and
        ``round-robin`` continues where the earlier run ended. *quarantine* are the Unix times, by label, when
        the quarantine began and when the proxy is to be probed; None for the end of the cool-down.
        """
        counts: dict[int, int] = {}
        for label, count in accounts.items():
            without_line = LINE_PREFIX.sub("", label, 1)  # for labels in journals of older versions
            index = self._indices.get(label, self._indices.get(without_line))
            if index is not None:
                self._count(index, count)
                counts[index] = counts.get(index, 0) + count
        if isinstance(self._assignment, RoundRobin):
            self._assignment.resume(counts)
        for label, (began, probe_at) in (quarantine or {}).items():
            index = self._indices.get(label)
            if index is not None and not self._proxies[index].is_template:
                self._close(index, began, began + self._pool.cool_down if probe_at is None else probe_at)

    # --- Health ---

    @property
    def quarantined(self) -> int:
        return len(self._quarantine)

    @property
    def paused(self) -> bool:
        """Whether most proxies fail at the same time."""
        return self._paused_at is not None

    def may_retry(self, proxy: PooledProxy) -> bool:
        """Whether an account may send another request through *proxy*, which has just failed once."""
        return self._paused_at is None and self._indices[proxy.label] not in self._quarantine

    def failed(self, proxy: PooledProxy, account_id: str) -> None:
        """Record that *proxy* failed for the account. Call `take_back` next."""
        if proxy.is_template:  # the session of one account says nothing about those of others
            self._on_proxy(proxy, None, True)
            return
        index = self._indices[proxy.label]
        entry = self._quarantine.get(index)
        if entry is None:
            self._failures.setdefault(index, {}).setdefault(account_id, False)
            self._failed_by.setdefault(account_id, set()).add(index)
            self._watch_for_mass_failure(index, account_id)
        elif index in self._probing and entry.prober == account_id:
            now = self._clock()
            factor = 1 if self.paused else 2  # in a pause, the failure need not be the proxy's
            longest = max(self._pool.cool_down, LONGEST_COOL_DOWN)
            cool_down = min(factor * (entry.probe_at - entry.began), longest)
            self._close(index, now, now + cool_down, prober=account_id)
        self._on_proxy(proxy, self._quarantine.get(index), True)
        if entry is None and not self.paused and len(self._failures[index]) >= UNCONFIRMED:
            self._quarantine_now(index)
        self._wake()

    def worked(self, proxy: PooledProxy, account_id: str) -> None:
        """Record that the account was patched with *proxy*, so its earlier failures were proxies' faults."""
        index = self._indices[proxy.label]
        self._forget_failures(index)
        self._known_bad.discard(index)
        if self._quarantine.pop(index, None) is not None:
            self._due.discard(index)
            self._probing.discard(index)
            self._update(index)
            _log.warning("proxy %s works again", proxy.label, extra={"proxy": proxy.label})
            self._on_proxy(proxy, None, False)
            self._wake()
        if self._paused_at is not None:
            self._end_pause(self._paused_at)
        elif self._recent:
            self._recent.popleft()
        for failed in self._failed_by.pop(account_id, ()):
            failures = self._failures[failed]
            failures[account_id] = True
            if sum(failures.values()) >= CONFIRMED:
                self._quarantine_now(failed)

    @property
    def must_wait(self) -> bool:
        """Whether an account has to `wait` before `give`."""
        return self._seconds_to_wait() > 0

    async def wait(self, waits: WaitGroup) -> bool:
        """
        Wait until `give` can assign a proxy, *waits* ends, or a pause has lasted as long as the cool-down.

        Return whether there was a pause. If so, the account may get proxies again that failed for it before.
        """
        was_paused, loop = False, asyncio.get_running_loop()
        while not waits.ended and (seconds := self._seconds_to_wait()) > 0:
            was_paused = was_paused or self.paused
            future: asyncio.Future[None] = loop.create_future()
            self._waiting[future] = None
            waits.complete_at(future, loop.time() + seconds)
            try:
                await future
            finally:
                waits.discard(future)
                self._waiting.pop(future, None)
        return was_paused

    # --- Internals ---

    def _count(self, index: int, accounts: int) -> None:
        self._accounts[index] += accounts
        self._update(index)

    def _update(self, index: int) -> None:
        """Open or close the proxy for further accounts, by its quarantine and its number of accounts."""
        cap, entry = self._pool.accounts_per_proxy, self._quarantine.get(index)
        cap = None if self._proxies[index].is_template else cap
        is_open = (cap is None or self._accounts[index] < cap) and (entry is None or index in self._due)
        if is_open != self._is_open[index]:
            self._is_open[index] = is_open
            self.available += 1 if is_open else -1
            self._assignment.set_open(index, is_open=is_open)

    def _open_due(self) -> None:
        """Let accounts probe the proxies whose cool-down has ended."""
        while self._probe_times and self._probe_times[0][0] <= self._clock():
            probe_at, index = heappop(self._probe_times)
            entry = self._quarantine.get(index)
            if entry is not None and entry.probe_at == probe_at:
                self._due.add(index)
                self._update(index)

    def _choose(self, account_id: str, tried: set[int]) -> int | None:
        if self.paused:
            # Choose at random, because neighbours in the list may all be dead.
            usable = [n for n, is_open in enumerate(self._is_open) if is_open and n not in self._quarantine]
            without_failures = [n for n in usable if n not in self._failures and n not in self._known_bad]
            return self._random.choice(without_failures or usable) if usable else None
        chosen = None
        if tried and self._due:
            # An account that already had a failure probes a quarantined proxy only if there is no other.
            chosen = self._assignment.choose(account_id, tried | self._due)
        return self._assignment.choose(account_id, tried) if chosen is None else chosen

    def _was_probe(self, proxy: PooledProxy, account_id: str) -> bool:
        entry = self._quarantine.get(self._indices[proxy.label])
        return entry is not None and entry.prober == account_id

    def _quarantine_now(self, index: int) -> None:
        now = self._clock()
        self._close(index, now, now + self._pool.cool_down)
        label = self._proxies[index].label
        _log.warning("proxy %s quarantined", label, extra={"proxy": label})
        self._on_proxy(self._proxies[index], self._quarantine[index], False)
        self._report(events.ProxyQuarantined(label))

    def _close(self, index: int, began: float, probe_at: float, prober: str | None = None) -> None:
        self._forget_failures(index)
        self._due.discard(index)
        self._probing.discard(index)
        self._quarantine[index] = Quarantine(began, probe_at, prober)
        heappush(self._probe_times, (probe_at, index))
        self._update(index)

    def _forget_failures(self, index: int) -> None:
        for account_id in self._failures.pop(index, ()):
            if (indices := self._failed_by.get(account_id)) is not None:
                indices.discard(index)
                if not indices:
                    del self._failed_by[account_id]

    def _watch_for_mass_failure(self, index: int, account_id: str) -> None:
        # The failure of a proxy that is known to be bad says nothing about the others.
        if not self._may_wait or self._paused_at is not None or index in self._known_bad:
            return
        self._recent.append((index, account_id))
        indices = {index for index, _ in self._recent}
        accounts = {account for _, account in self._recent}
        watched = len(self._proxies) - len(self._quarantine) - len(self._known_bad)
        if len(accounts) > 1 and len(indices) >= min(MASS_FAILURE, watched // 2 + 1):
            self._paused_at = now = self._clock()
            self._probe_at = now + SHORTEST_PROBE_INTERVAL
            _log.warning("most proxies fail at the same time: accounts wait", extra={"paused": True})
            self._report(events.PauseBegan())

    def _end_pause(self, began: float) -> None:
        seconds, self._paused_at = self._clock() - began, None
        self._known_bad.update(self._failures)
        self._failures.clear()
        self._failed_by.clear()
        self._recent.clear()
        message = "proxies work again after %.1f s: accounts continue"
        _log.warning(message, seconds, extra={"paused": False, "elapsed": seconds})
        self._report(events.PauseEnded(seconds))
        self._wake()

    def _seconds_to_wait(self) -> float:
        if self._paused_at is not None:
            now, gives_up_at = self._clock(), self._paused_at + self._pool.cool_down
            return 0.0 if now >= gives_up_at else min(self._probe_at, gives_up_at) - now
        return 0.0 if self.available or not self._probing else math.inf  # until the probes end

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
