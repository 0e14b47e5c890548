"""
One account of a rotation, from its row to its outcome.

A row with a change of its own is one call of the session. A row without one gets a proxy of the pool, and
the next one where that does not work: each proxy is a call, under a key that no other proxy had.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

from postpress_async._call.tracker import WaitGroup
from postpress_async.errors import Applied, DeadlineError, InvalidProxyCredentialsError, PostPressError, Scope
from postpress_async.models import AccountPatched, CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation._outcome import Outcome
from postpress_async.rotation._pending_rows import RowKeys
from postpress_async.rotation._rows import Row
from postpress_async.rotation.pool import PooledProxy

STRIKES: Final = 2
"""Errors of a pool's proxy in one call, after which the account takes the next one: one often passes."""


class Proxies(Protocol):
    """What is needed of a pool; see `ProxyPool`. One at a distance has to be asked, and answers later."""

    def give(
        self, account_id: str, /, *, but_not: Collection[PooledProxy]
    ) -> PooledProxy | Awaitable[PooledProxy | None] | None:
        """The proxy that the account is to get."""
        ...

    def failed(self, proxy: PooledProxy, account_id: str, /, *, credentials: bool) -> bool:
        """Record that *proxy* failed the account; whether that put it into quarantine."""
        ...

    def worked(self, proxy: PooledProxy, /) -> None:
        """An account was patched with *proxy*."""
        ...

    def take_back(self, proxy: PooledProxy, /) -> None:
        """The account that was given *proxy* did not get it."""
        ...

    def in_quarantine(self, proxy: PooledProxy, /) -> bool:
        """Whether it is out for the rest of the run."""
        ...


class Errand:
    """
    An account on its way: what a call of a rotation reports to, and is called back by.

    Attributes:
        waits: Where its calls wait; they all end when the rotation is stopped.
        on_backoff: Told with True when a call begins to back off, and with False when it goes on.
        failed: Told of each attempt that failed.
        proxy: The pool's proxy that was tried last; None where the row has its own change.
        trying: Whether it is still being tried.
        in_flight: Whether a request for it may be in flight. True from the beginning of a call that does not
            set it itself.
        resumable: The last error of the present call, if another attempt would have been made after it.
        attempts: Requests sent for it before the present call.
        in_doubt: Whether something that this run sent for it may have been applied.
    """

    __slots__ = (
        "_first_sent",
        "_on_backoff",
        "_pool",
        "_strikes",
        "attempts",
        "failed",
        "in_doubt",
        "in_flight",
        "proxy",
        "resumable",
        "trying",
        "waits",
    )

    def __init__(
        self,
        waits: WaitGroup,
        on_backoff: Callable[[bool], object],
        failed: Callable[[PostPressError], object],
        pool: Proxies | None,
    ) -> None:
        self.waits: WaitGroup = waits
        self._on_backoff: Final = on_backoff
        self.failed: Callable[[PostPressError], object] = failed
        self.proxy: PooledProxy | None = None
        self.resumable: PostPressError | None = None
        self.attempts: int = 0
        self.in_doubt: bool = False
        self.trying: bool = False
        self.in_flight: bool = False
        self._first_sent = math.inf
        self._pool = pool
        self._strikes = 0

    def on_call_started(self) -> None:
        """A call that reports its attempts has started; none is in flight."""
        self.in_flight = False

    def on_attempt_started(self, now: float) -> None:
        """An attempt starts at *now*, in seconds by the event loop's clock."""
        self.in_flight = True
        self._first_sent = min(self._first_sent, now)

    def elapsed(self, now: float) -> float:
        """Seconds from the start of the account's first attempt to *now*; 0 if there was no attempt."""
        return max(0.0, now - self._first_sent)

    def on_backoff(self, backing_off: bool) -> None:
        """A backoff begins (True) or is over (False)."""
        self._on_backoff(backing_off)

    def on_attempt_failed(self, error: PostPressError) -> None:
        """An attempt ended with *error*, whose `applied` is about this attempt alone."""
        self.in_flight = False
        self.in_doubt = self.in_doubt or error.applied is Applied.UNKNOWN
        self.failed(error)

    def should_give_up(self, error: PostPressError) -> bool:
        """Whether the pool's proxy has had its chances, or was found out by other accounts meanwhile."""
        self.resumable = error
        if self.proxy is None or self._pool is None or error.scope is not Scope.PROXY:
            return False
        self._strikes += 1
        return self._strikes >= STRIKES or self._pool.in_quarantine(self.proxy)

    def begin(self, proxy: PooledProxy) -> None:
        """The next call is with *proxy*."""
        self.proxy = proxy
        self.trying = True
        self.in_flight = True
        self._strikes = 0

    @property
    def applied_nothing(self) -> bool:
        """Whether certainly nothing that this run sent for the account was applied, or still may be."""
        return not self.in_flight and not self.in_doubt

    def go_on(self, error: PostPressError) -> None:
        """The call with this proxy ended in *error*, and is not the last."""
        self.trying = self.in_flight = False
        self.resumable = None
        self.attempts += len(error.attempts)
        self.in_doubt = self.in_doubt or error.applied is Applied.UNKNOWN


class Update(Protocol):
    """What a rotation needs of a session."""

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, errand: Errand, /
    ) -> AccountPatched:
        """Update one account, or raise `PostPressError`."""
        ...


class NoProxyLeftError(Exception):
    """The pool has no proxy that the account could be given: nothing was sent."""


class Settler:
    """
    Carries errands out.

    Args:
        update: A session's one function.
        waits: Where the calls wait.
        on_backoff: As `Errand` has it.
        failed: As `Errand` has it.
        pool: For the rows that name no change.
        found: Told of each failure of a pool's proxy, and whether it put the proxy into quarantine.
        lost: Told what came of an account on which `settle` raises.
    """

    def __init__(
        self,
        update: Update,
        waits: WaitGroup,
        on_backoff: Callable[[bool], object],
        failed: Callable[[PostPressError], object],
        pool: Proxies | None,
        found: Callable[[PooledProxy, bool], object],
        lost: Callable[[Outcome], object],
    ) -> None:
        self._update: Final = update
        self._waits: Final = waits
        self._on_backoff: Final = on_backoff
        self._failed: Final = failed
        self._pool: Final = pool
        self._found: Final = found
        self._lost: Final = lost

    async def settle(self, row: Row, keys: RowKeys) -> Outcome:
        """
        What comes of the account.

        Raises:
            BaseException: It was cancelled, or a mistake of a strategy or a pool of the caller's ended it.
        """
        clock, inherited = asyncio.get_running_loop().time, keys.in_doubt
        errand = Errand(self._waits, self._on_backoff, self._failed, self._pool)
        try:
            if row.change is None:
                patched = await self._through_the_pool(row, keys, errand)
            else:
                if inherited and not isinstance(row.change, ManagedProxy):
                    # A stored error would come again, and setting a custom proxy twice is setting it once.
                    await keys.renew()
                errand.in_flight = True
                patched = await self._update(row.account_id, row.change, keys, errand)
        except NoProxyLeftError:
            return Outcome.without_proxy(row.ordinal, row.line, row.account_id, in_doubt=inherited)
        except PostPressError as error:
            if isinstance(error, DeadlineError) and self._waits.ended and not (errand.attempts or inherited):
                return Outcome.skipped(row.ordinal, row.line, row.account_id)  # the run ended: nobody's fault
            # A call with its own keys knows of the doubt that it inherits, one of the pool does not.
            doubt_of_this_run = errand.in_doubt or (error.applied is Applied.UNKNOWN and not inherited)
            if inherited or errand.in_doubt:
                error.applied = Applied.UNKNOWN  # a refusal says nothing about what was sent before
            cut_short = self._waits.ended and error is errand.resumable
            errand.resumable = None  # its traceback holds this frame
            return Outcome.failed(
                row.ordinal,
                row.line,
                row.account_id,
                error,
                errand.elapsed(clock()),
                proxy=_label(row, errand),
                earlier=errand.attempts,
                cut_short=cut_short,
                settled=not doubt_of_this_run and not isinstance(row.change, ManagedProxy),
            )
        except BaseException:
            self._lost(self._cancelled(row, errand, errand.elapsed(clock()), inherited=inherited))
            errand.resumable = None
            raise
        attempts = errand.attempts + len(patched.attempts)
        errand.resumable = None
        elapsed, label = errand.elapsed(clock()), _label_of(errand.proxy)
        return Outcome.patched(row.ordinal, row.line, row.account_id, attempts, elapsed, label)

    @staticmethod
    def _cancelled(row: Row, errand: Errand, elapsed: float, *, inherited: bool) -> Outcome:
        """The outcome of an account whose run was told to end at once."""
        place = row.ordinal, row.line, row.account_id
        if inherited or not errand.applied_nothing:
            return Outcome.given_up(*place, elapsed, _label_of(errand.proxy if errand.trying else None))
        if errand.resumable is None:
            return Outcome.skipped(*place, attempts=errand.attempts)
        return Outcome.failed(
            *place,
            errand.resumable,
            elapsed,
            proxy=_label(row, errand),
            earlier=errand.attempts,
            cut_short=True,
        )

    @staticmethod
    async def _given(pool: Proxies, row: Row, tried: list[PooledProxy]) -> PooledProxy | None:
        given = pool.give(row.account_id, but_not=tried)
        return await given if isinstance(given, Awaitable) else given

    async def _through_the_pool(self, row: Row, keys: RowKeys, errand: Errand) -> AccountPatched:
        pool, tried = self._pool, list[PooledProxy]()
        assert pool is not None  # noqa: S101 - rows without a change are refused where there is none
        failure: PostPressError | None = None
        try:
            if keys.in_doubt:
                await keys.renew()  # what was sent under this key perhaps named another proxy
            while (proxy := await self._given(pool, row, tried)) is not None:
                if tried:
                    await keys.renew()
                errand.begin(proxy)
                try:
                    patched = await self._update(row.account_id, proxy.proxy, keys, errand)
                    pool.worked(proxy)
                    return patched
                except PostPressError as error:
                    failure = error
                except BaseException:
                    if errand.applied_nothing:
                        pool.take_back(proxy)
                    raise
                if failure.scope is not Scope.PROXY:
                    if failure.applied is Applied.NO:
                        pool.take_back(proxy)
                    raise failure
                refused = isinstance(failure, InvalidProxyCredentialsError)
                self._found(proxy, pool.failed(proxy, row.account_id, credentials=refused))
                if self._waits.ended:
                    errand.resumable = failure  # there may have been another proxy
                    raise failure
                tried.append(proxy)
                errand.go_on(failure)
            if failure is None:
                raise NoProxyLeftError
            errand.attempts -= len(failure.attempts)  # told by the error itself
            raise failure
        finally:
            del failure  # an exception that a frame of its own traceback names is a cycle


def _label_of(proxy: PooledProxy | None) -> str | None:
    return None if proxy is None else proxy.label


def _label(row: Row, errand: Errand) -> str | None:
    """What the journal calls the proxy that did not do."""
    if errand.proxy is None and isinstance(row.change, CustomProxy):
        return PooledProxy.of(row.change).label
    return _label_of(errand.proxy)
