"""
One account of a rotation, from its row to its outcome.

If the row contains a change, the session is called once. Otherwise the pool provides a proxy. If that proxy
fails, the account gets another proxy of the pool, in another call with a new idempotency key.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from attrs import define, frozen

from postpress_async._call.tracker import WaitGroup
from postpress_async.errors import Applied, DeadlineError, PostPressError, Scope
from postpress_async.models import AccountPatched, ManagedProxy, ProxyChange
from postpress_async.rotation._column_names import Tag
from postpress_async.rotation._outcome import MANAGED, NO_PROXY_LEFT, Outcome, State, failed_outcome
from postpress_async.rotation._pool import PooledProxy, assignment_of
from postpress_async.rotation._pool._allocator import ProxyAllocator
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._rows import Row

STRIKES: Final = 2
"""Proxy errors of one call after which the account gets another proxy. A single error is often transient."""


class Update(Protocol):
    """The only function of a session that a rotation calls."""

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: "AccountTask", /
    ) -> AccountPatched:
        """Update one account, or raise `PostPressError`."""


@frozen(kw_only=True)
class AccountContext:
    """The dependencies that all accounts of a rotation share."""

    update: Update
    waits: WaitGroup
    pools: Mapping[Tag, ProxyAllocator]  # for rows without a change, by the row's tag
    on_backoff: Callable[[bool], object]
    on_attempt_failed: Callable[[PostPressError], object]
    on_cancelled: Callable[[Outcome], object]  # called before `AccountTask.run` raises
    # Whether a later run may continue this one. If so, an account is skipped instead of failed if the end of
    # the run prevented its next attempt.
    can_resume: bool = True


@define(eq=False)
class AccountTask:
    """
    Updates one account, and serves as the `CallHooks` of the account's calls.

    The change may have been applied by an earlier run (`was_in_doubt`) or by a request of this run
    (`in_doubt`). A request that is `in_flight` may still apply it. An error response to a later request does
    not settle whether an earlier request applied the change.
    """

    _context: AccountContext
    _row: Row
    _keys: RowKeys
    # Whether a request may be in flight. True from the start of a call, because a call may report no
    # attempts; a call that reports them corrects it in `on_call_started`.
    in_flight: bool = False
    in_doubt: bool = False
    was_in_doubt: bool = False
    error_to_retry: PostPressError | None = None  # the call's last error, if another attempt was to follow
    attempts: int = 0  # requests of the calls that have ended
    proxy: PooledProxy | None = None  # proxy of the latest call; None if the row contains a change
    _proxy_in_use: bool = False  # whether the call with `proxy` is running
    _first_attempt_at: float = math.inf  # in seconds of the event loop's clock
    _strikes: int = 0

    # --- Hooks ---

    @property
    def waits(self) -> WaitGroup:
        return self._context.waits

    def on_backoff(self, backing_off: bool) -> None:
        self._context.on_backoff(backing_off)

    def on_call_started(self) -> None:
        self.in_flight = False

    def on_attempt_started(self, now: float) -> None:
        self.in_flight = True
        self._first_attempt_at = min(self._first_attempt_at, now)

    def on_attempt_failed(self, error: PostPressError) -> None:
        self.in_flight = False
        self.in_doubt = self.in_doubt or error.applied is Applied.UNKNOWN
        self._context.on_attempt_failed(error)

    def should_give_up(self, error: PostPressError) -> bool:
        """Store *error*, and return whether the account gets another proxy instead of another attempt."""
        self.error_to_retry = error
        if error.scope is not Scope.PROXY:
            return False
        self._strikes += 1
        return self.proxy is not None and self._strikes >= self.max_strikes

    @property
    def max_strikes(self) -> int:
        """Number of proxy errors in one call after which the account gets another proxy; 0 without a pool."""
        if self.proxy is None:
            return 0
        return STRIKES if self._context.pools[self._row.tag].may_retry(self.proxy) else 1

    # --- Calls ---

    async def run(self) -> Outcome:
        """Return the outcome. Raises only if cancelled, or if the caller's retry strategy or pool raises."""
        change, keys = self._row.change, self._keys
        self.was_in_doubt = keys.in_doubt
        try:
            if self.was_in_doubt and not isinstance(change, ManagedProxy):
                # With the old key, the API could replay a stored error response, or the response for another
                # proxy of the pool. Setting a custom proxy twice is harmless.
                await keys.renew()
            patched = await (self._try_proxies() if change is None else self._call(change))
            if patched is None:
                state, applied = State.SKIPPED, Applied.NO
                if self.was_in_doubt:
                    state, applied = State.UNKNOWN, Applied.UNKNOWN
                return Outcome(
                    *self._row_id, state, error_type=NO_PROXY_LEFT, scope=Scope.PROXY, applied=applied
                )
            elapsed, assignment = self._elapsed(), self._assignment()
            return Outcome(
                *self._row_id, State.PATCHED, self.attempts, 200, elapsed=elapsed, assignment=assignment
            )
        except PostPressError as error:
            return self._failed(error)
        except BaseException:
            self._context.on_cancelled(self._cancelled())
            raise
        finally:
            self.error_to_retry = None  # break a reference cycle: its traceback refers to this frame

    async def _call(self, change: ProxyChange) -> AccountPatched:
        self.in_flight = True
        try:
            patched = await self._context.update(self._row.account_id, change, self._keys, self)
        except PostPressError as error:
            self.in_flight = False
            self.attempts += len(error.attempts)
            self.in_doubt = self.in_doubt or error.applied is Applied.UNKNOWN
            raise
        self.attempts += len(patched.attempts)
        return patched

    async def _try_proxies(self) -> AccountPatched | None:
        """Try one proxy after the other. Raise the last error; return None if the pool had no proxy."""
        account_id, pool = self._row.account_id, self._context.pools[self._row.tag]
        tried = list[PooledProxy]()
        error: PostPressError | None = None
        failovers = 0  # also counts proxies that were removed from `tried` after an outage
        try:
            while True:
                if pool.must_wait and await self._wait_for(pool):
                    tried.clear()
                if error is not None and self.waits.ended:
                    self.error_to_retry = error  # the account would have got another proxy
                    raise error
                if (proxy := pool.give(account_id, but_not=tried)) is None:
                    if error is not None:
                        raise error
                    return None
                if error is not None:
                    await self._keys.renew()
                self.proxy, self._proxy_in_use, self._strikes = proxy, True, 0
                try:
                    patched = await self._call(proxy.change_for(account_id, self._row.fields, failovers))
                except PostPressError as failure:
                    error = failure
                except BaseException:
                    pool.take_back(proxy, may_have_it=self.in_flight or self.in_doubt)
                    raise
                else:
                    pool.worked(proxy, account_id)
                    return patched
                if error.scope is Scope.PROXY:
                    pool.failed(proxy, account_id)
                pool.take_back(proxy, may_have_it=error.applied is not Applied.NO)
                if error.scope is not Scope.PROXY:
                    raise error
                tried.append(proxy)
                failovers += 1
                self._proxy_in_use, self.error_to_retry = False, None
        finally:
            del error  # break a reference cycle: its traceback refers to this frame

    async def _wait_for(self, pool: ProxyAllocator) -> bool:
        self.on_backoff(True)
        try:
            return await pool.wait(self.waits)
        finally:
            self.on_backoff(False)

    # --- Outcomes ---

    @property
    def _row_id(self) -> tuple[int, int | None, str]:
        return self._row.ordinal, self._row.line, self._row.account_id

    def _elapsed(self) -> float:
        """Seconds since the account's first attempt started; 0 if there was none."""
        return max(0.0, asyncio.get_running_loop().time() - self._first_attempt_at)

    def _assignment(self) -> str:
        if self.proxy is not None:
            return self.proxy.label
        return MANAGED if self._row.change is None else assignment_of(self._row.change)

    def _failed(self, error: PostPressError) -> Outcome:
        maybe_sent = self.attempts or self.in_doubt or self.was_in_doubt
        if isinstance(error, DeadlineError) and self.waits.ended and not maybe_sent:
            # The run ended before the account's first attempt.
            return Outcome(*self._row_id, State.SKIPPED, applied=Applied.NO)
        if self.in_doubt or self.was_in_doubt:
            error.applied = Applied.UNKNOWN  # an error response says nothing about earlier requests
        return failed_outcome(
            *self._row_id,
            error,
            self._elapsed(),
            attempts=self.attempts,
            assignment=self._assignment(),
            cut_short=self._context.can_resume and self.waits.ended and error is self.error_to_retry,
            final=not self.in_doubt and not isinstance(self._row.change, ManagedProxy),
        )

    def _cancelled(self) -> Outcome:
        if self.in_flight or self.in_doubt or self.was_in_doubt:
            return Outcome(
                *self._row_id,
                State.UNKNOWN,
                self.attempts + 1,  # at least: the cancelled call does not report its number of attempts
                applied=Applied.UNKNOWN,
                elapsed=self._elapsed(),
                assignment=self._assignment() if self._proxy_in_use or self._row.change is not None else None,
            )
        if self.error_to_retry is None:
            return Outcome(*self._row_id, State.SKIPPED, self.attempts, applied=Applied.NO)
        return failed_outcome(
            *self._row_id,
            self.error_to_retry,
            self._elapsed(),
            attempts=self.attempts + len(self.error_to_retry.attempts),
            assignment=self._assignment(),
            cut_short=True,
        )
