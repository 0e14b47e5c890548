"""
One account of a rotation, from its row to its outcome.

A row with a change of its own is one call of the session. A row without one gets a proxy from the pool; if
that proxy fails, the account gets the next one. Each proxy is a call of its own, under a new idempotency key.
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
from postpress_async.rotation._outcome import (
    MANAGED,
    Outcome,
    State,
    failed_outcome,
    outcome_without_proxy,
    patched_outcome,
)
from postpress_async.rotation._pool import PooledProxy, assignment_of
from postpress_async.rotation._pool._allocator import ProxyAllocator
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._rows import Row

STRIKES: Final = 2
"""Proxy errors after which an account gets another proxy from a healthy pool: one is often transient."""


class Update(Protocol):
    """The only function that a rotation needs from a session."""

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: "AccountTask", /
    ) -> AccountPatched:
        """Update one account, or raise `PostPressError`."""
        ...


class _NoProxyLeftError(Exception):
    """The pool has no proxy for the account; nothing was sent."""


@define(eq=False)
class AccountTask:
    """
    The state of one account while it is updated, and the hooks that its calls report to.

    Attributes:
        in_flight: Whether a request may be in flight. True before each call, which sets it to False when it
            starts to report its attempts.
        proxy: The pool's proxy of the latest call; None if the row has a change of its own.
        proxy_in_use: Whether the call with `proxy` has not ended.
        pool: The pool of `proxy`.
        resumable: The last error of the current call if another attempt would have followed.
        attempts: Requests of earlier calls.
        in_doubt: Whether a request of this run may have been applied.
    """

    _runner: "AccountRunner"
    in_flight: bool = False
    proxy: PooledProxy | None = None
    proxy_in_use: bool = False
    pool: ProxyAllocator | None = None
    resumable: PostPressError | None = None
    attempts: int = 0
    in_doubt: bool = False
    _first_sent: float = math.inf
    _strikes: int = 0

    # --- Hooks ---

    @property
    def waits(self) -> WaitGroup:
        """Where the calls wait; the rotation ends all waits when it is stopped."""
        return self._runner.waits

    def on_backoff(self, backing_off: bool) -> None:
        """A call starts to back off (True), or continues (False)."""
        self._runner.on_backoff(backing_off)

    def on_call_started(self) -> None:
        """A call that reports its attempts has started; none is in flight."""
        self.in_flight = False

    def on_attempt_started(self, now: float) -> None:
        """An attempt starts at *now*, in seconds of the event loop's clock."""
        self.in_flight = True
        self._first_sent = min(self._first_sent, now)

    def on_attempt_failed(self, error: PostPressError) -> None:
        """An attempt ended with *error*, whose `applied` is about this attempt alone."""
        self.in_flight = False
        self.in_doubt = self.in_doubt or error.applied is Applied.UNKNOWN
        self._runner.on_attempt_failed(error)

    def should_give_up(self, error: PostPressError) -> bool:
        """Note *error*, and return whether the account gets another proxy instead of another attempt."""
        self.resumable = error
        if error.scope is not Scope.PROXY:
            return False
        self._strikes += 1
        return 0 < self.max_strikes <= self._strikes

    @property
    def max_strikes(self) -> int:
        """Number of proxy errors in one call after which the account gets another proxy; 0 without a pool."""
        if self.proxy is None or self.pool is None:
            return 0
        return STRIKES if self.pool.may_retry(self.proxy) else 1

    # --- For the runner ---

    @property
    def applied_nothing(self) -> bool:
        """Whether no request of this run can have been applied, or still be applied."""
        return not self.in_flight and not self.in_doubt

    def elapsed(self) -> float:
        """Seconds since the account's first attempt started; 0 if there was none."""
        return max(0.0, asyncio.get_running_loop().time() - self._first_sent)

    def start_call(self, proxy: PooledProxy) -> None:
        """The next call uses *proxy*."""
        self.proxy = proxy
        self.proxy_in_use = self.in_flight = True
        self._strikes = 0

    def end_call(self, error: PostPressError) -> None:
        """The call ended with *error*, and the account gets another proxy."""
        self.proxy_in_use = self.in_flight = False
        self.resumable = None
        self.attempts += len(error.attempts)
        self.in_doubt = self.in_doubt or error.applied is Applied.UNKNOWN

    def assignment(self, row: Row) -> str:
        """What was asked for: the label of a proxy, or a managed proxy."""
        if self.proxy is not None:
            return self.proxy.label
        return MANAGED if row.change is None else assignment_of(row.change)


@frozen(kw_only=True)
class AccountRunner:
    """
    Updates the accounts of a rotation.

    Attributes:
        update: The session's function.
        waits: Where the calls wait.
        pools: Provide proxies for rows without a change, by the tag of the row.
        on_backoff: Called with True when a call starts to back off, and with False when it continues.
        on_attempt_failed: Called with the error of each failed attempt.
        on_cancelled: Called with the outcome of an account for which `run` raises.
        can_resume: Whether a later run may continue this one. Accounts that were refused, but would have been
            retried, are then skipped instead of failed if the run ends.
    """

    update: Update
    waits: WaitGroup
    pools: Mapping[Tag, ProxyAllocator]
    on_backoff: Callable[[bool], object]
    on_attempt_failed: Callable[[PostPressError], object]
    on_cancelled: Callable[[Outcome], object]
    can_resume: bool = True

    async def run(self, row: Row, keys: RowKeys) -> Outcome:
        """
        Update one account, and return its outcome.

        Raises:
            BaseException: The task was cancelled, or the caller's retry strategy or pool raised an error.
        """
        row_fields = row.ordinal, row.line, row.account_id
        task, inherited_doubt = AccountTask(self), keys.in_doubt
        try:
            if row.change is None:
                patched = await self._try_proxies(row, keys, task)
            else:
                if inherited_doubt and not isinstance(row.change, ManagedProxy):
                    # The old key could return a stored error, and setting a custom proxy twice is harmless.
                    await keys.renew()
                task.in_flight = True
                patched = await self.update(row.account_id, row.change, keys, task)
            attempts = task.attempts + len(patched.attempts)
            return patched_outcome(*row_fields, attempts, task.elapsed(), task.assignment(row))
        except _NoProxyLeftError:
            return outcome_without_proxy(*row_fields, in_doubt=inherited_doubt)
        except PostPressError as error:
            sent = task.attempts or task.in_doubt or inherited_doubt
            if isinstance(error, DeadlineError) and self.waits.ended and not sent:
                # The run ended before the account's first attempt.
                return Outcome(*row_fields, State.SKIPPED, applied=Applied.NO)
            # If the doubt is inherited, `applied` may be UNKNOWN because of the earlier run alone.
            own_doubt = task.in_doubt or (error.applied is Applied.UNKNOWN and not inherited_doubt)
            if inherited_doubt or task.in_doubt:
                error.applied = Applied.UNKNOWN  # a refusal says nothing about earlier requests
            return failed_outcome(
                *row_fields,
                error,
                task.elapsed(),
                assignment=task.assignment(row),
                earlier=task.attempts,
                cut_short=self.can_resume and self.waits.ended and error is task.resumable,
                final=not own_doubt and not isinstance(row.change, ManagedProxy),
            )
        except BaseException:
            self.on_cancelled(self._cancelled(row, task, inherited_doubt=inherited_doubt))
            raise
        finally:
            task.resumable = None  # its traceback refers to this frame: a reference cycle

    @staticmethod
    def _cancelled(row: Row, task: AccountTask, *, inherited_doubt: bool) -> Outcome:
        row_fields = row.ordinal, row.line, row.account_id
        if inherited_doubt or not task.applied_nothing:
            return Outcome(
                *row_fields,
                State.UNKNOWN,
                task.attempts + 1,  # at least: those of the call that was cancelled are not known
                applied=Applied.UNKNOWN,
                elapsed=task.elapsed(),
                assignment=task.assignment(row) if task.proxy_in_use or row.change is not None else None,
            )
        if task.resumable is None:
            return Outcome(*row_fields, State.SKIPPED, task.attempts, applied=Applied.NO)
        return failed_outcome(
            *row_fields,
            task.resumable,
            task.elapsed(),
            assignment=task.assignment(row),
            earlier=task.attempts,
            cut_short=True,
        )

    async def _try_proxies(self, row: Row, keys: RowKeys, task: AccountTask) -> AccountPatched:
        pool = task.pool = self.pools[row.tag]  # rows without a pool are refused
        tried = list[PooledProxy]()
        error: PostPressError | None = None
        failovers = 0  # including proxies that `tried` has forgotten after an outage
        try:
            if keys.in_doubt:
                await keys.renew()  # the request under the old key may have named another proxy
            while True:
                if pool.must_wait and await self._wait_for(pool):
                    tried.clear()
                if error is not None and self.waits.ended:
                    task.resumable = error  # another proxy might have followed
                    break
                if (proxy := pool.give(row.account_id, but_not=tried)) is None:
                    break
                if error is not None:
                    await keys.renew()
                task.start_call(proxy)
                try:
                    change = proxy.change_for(row.account_id, row.fields, failovers)
                    patched = await self.update(row.account_id, change, keys, task)
                    pool.worked(proxy, row.account_id)
                    return patched
                except PostPressError as failure:
                    error = failure
                except BaseException:
                    pool.take_back(proxy, may_have_it=not task.applied_nothing)
                    raise
                if error.scope is Scope.PROXY:
                    pool.failed(proxy, row.account_id)
                pool.take_back(proxy, may_have_it=error.applied is not Applied.NO)
                if error.scope is not Scope.PROXY:
                    raise error
                tried.append(proxy)
                failovers += 1
                task.end_call(error)
            if error is None:
                raise _NoProxyLeftError
            task.attempts -= len(error.attempts)  # `failed_outcome` adds these again
            raise error
        finally:
            del error  # its traceback refers to this frame: a reference cycle

    async def _wait_for(self, pool: ProxyAllocator) -> bool:
        self.on_backoff(True)
        try:
            return await pool.wait(self.waits)
        finally:
            self.on_backoff(False)
