"""
The coordinator's side: submits the calls of a rotation as shards to workers, and takes in their reports.

To the rotation, `Coordinator.update` is what the session's function is on one machine. A shard is a Dask task
for one worker. A worker has only a small window of calls, because those that a lost or silent worker has not
reported are in doubt: they are submitted again, under the same idempotency keys.
"""

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from attrs import define, field
from distributed import Client
from distributed.scheduler import KilledWorker

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.cluster._worker import (
    RemoteCall,
    SessionPlugin,
    Shard,
    control,
    plugin_name,
    run_shard,
    unpack_error,
)
from postpress_async.errors import (
    Applied,
    ClusterError,
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    PostPressError,
    TlsError,
)
from postpress_async.models import AccountPatched, Attempt, ManagedProxy, ProxyChange
from postpress_async.pace import Pace
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._engine import Engine
from postpress_async.rotation._row_keys import RowKeys

SHARD: Final = 200
"""Maximum number of calls of a shard."""

FIRST_WINDOW: Final = 50
"""Calls that a worker has until `TRIED` calls have ended, so that a refused key is not tried on many."""

TRIED: Final = 100
"""See `FIRST_WINDOW`."""

AHEAD: Final = 0.25
"""Seconds of work that a worker has besides its requests in flight, so that it need not wait for a shard."""

LARGEST_WINDOW: Final = 4_000
"""Maximum number of calls that a worker has."""

GATHER: Final = 0.02
"""Seconds for which calls are gathered into shards."""

LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the scheduler's list of workers."""

SILENT: Final = 8.0
"""Seconds without a heartbeat at the scheduler after which a worker is lost."""

TIMEOUT: Final = 5.0
"""Seconds in which the scheduler, or a worker, has to respond."""

NO_SCHEDULER: Final = 10.0
"""Seconds without a response of the scheduler after which the rotation ends."""

NO_WORKER: Final = 60.0
"""Seconds without a usable worker after which the rotation ends."""


class _UnreportedError(Exception):
    """A worker did not report a call. The argument is whether it may have sent it."""


@define(eq=False)
class _Shard:
    """A shard of *worker*: the calls that are not reported, and the future result of its task."""

    worker: "_Worker"
    calls: "dict[int, _Call]" = field(factory=dict)
    errors: "asyncio.Future[dict[int, Exception]]" = field(
        factory=lambda: asyncio.get_running_loop().create_future()
    )
    has_failures: bool = False
    task: "asyncio.Task[None] | None" = None


@define(eq=False)
class _Call:
    """A call that has not ended. It gets another number each time it is submitted."""

    account_id: str
    change: ProxyChange
    keys: RowKeys
    hooks: AccountTask
    in_doubt: bool
    number: int = 0
    shard: _Shard | None = None
    backing_off: bool = False
    done: "asyncio.Future[AccountPatched]" = field(factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@define(eq=False)
class _Worker:
    """
    A worker.

    Attributes:
        address: Its address.
        last_seen: The scheduler's time of its last heartbeat.
        heard_at: Our time at which `last_seen` last changed.
        is_lost: Whether it is gone or silent.
        problem: Why it cannot carry out calls; None if it can.
        rate: Its share of the rate; 0 before it has one.
        is_paused: Whether its calls wait because the service is down.
        cannot_connect: Whether its last attempt did not connect to the API.
        shards: Its shards.
        backing_off: Number of its calls that back off.
        speed: Calls per second that have ended lately.
    """

    address: str
    last_seen: float = 0.0
    heard_at: float = 0.0
    is_lost: bool = False
    problem: str | None = None
    rate: float = 0.0
    is_paused: bool = False
    cannot_connect: bool = False
    shards: set[_Shard] = field(factory=set)
    backing_off: int = 0
    speed: float = 0.0
    _ended: int = 0
    _measured_at: float = field(factory=time.monotonic)

    @property
    def is_usable(self) -> bool:
        return not self.is_lost and self.problem is None

    @property
    def load(self) -> int:
        """Number of its calls that do not back off."""
        return sum(len(shard.calls) for shard in self.shards) - self.backing_off

    def count_ended(self) -> None:
        self._ended += 1
        if (seconds := time.monotonic() - self._measured_at) >= AHEAD:
            self.speed, self._ended, self._measured_at = self._ended / seconds, 0, time.monotonic()


class Coordinator:
    """
    The `Executor` of one rotation.

    Args:
        client: The cluster's.
        pace: Of each worker, but the rate is of all workers together.
        settings: The other arguments of the workers' sessions.
        observer: Gets retries and pauses.

    Attributes:
        token: Identifies the rotation.
        waits: See `Executor`.
        paused: Whether all workers wait because the service is down.
    """

    def __init__(
        self,
        client: Client,
        pace: Pace,
        settings: dict[str, Any],
        observer: SafeObserver[events.Event] | None,
    ) -> None:
        self.token: Final = secrets.token_hex(12)
        self.waits: Final = WaitGroup(waits_out_outages=True)
        self.paused: bool = False
        self._client: Final[Any] = client  # many of its methods have no types
        self._pace: Final = pace
        self._plugin: Final = SessionPlugin(
            self.token, {**settings, "pace": pace}, watched=observer is not None
        )
        self._observer: Final = observer
        self._engine: Engine | None = None
        self._workers: Final[dict[str, _Worker]] = {}
        self._waiting: Final[deque[_Call]] = deque()
        self._calls: Final[dict[int, _Call]] = {}
        self._errors: Final[dict[PostPressError, tuple[int, _Shard]]] = {}  # until they are whole
        self._numbers: Final = itertools.count(1)
        self._ended = 0
        self._wake: Final = asyncio.Event()
        self._sharing: Final = asyncio.Lock()
        self._paused_at = 0.0
        self._stopping = False
        self._tasks: Final[set[asyncio.Task[Any]]] = set()

    # --- What a rotation needs ---

    async def start(self, engine: Engine) -> None:
        """See `Executor`."""
        self._engine = engine
        with suppress(Exception):  # a worker without our package, say: the shards of that worker raise it
            async with asyncio.timeout(2 * TIMEOUT):
                await self._client.register_plugin(self._plugin)
        for work in (self._watch(), self._submit(), self._stop_when_ended()):
            self._create_task(work)

    async def update(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask
    ) -> AccountPatched:
        """Update one account on a worker; see `Update`."""
        hooks.on_call_started()
        call = _Call(account_id, change, keys, hooks, keys.in_doubt)
        while True:
            self._enqueue(call)
            try:
                return await call.done
            except _UnreportedError as unreported:
                in_doubt = call.in_doubt
                if unreported.args[0]:
                    in_doubt = hooks.in_doubt = True
                    if self._stopping or (self._engine and self._engine.leaves_doubts):
                        raise self._unknown(account_id) from None
                    if not isinstance(change, ManagedProxy):
                        await keys.renew()  # as a run that is resumed does
                call = _Call(account_id, change, keys, hooks, in_doubt)
            finally:
                self._forget(call)

    async def whole_error(self, error: PostPressError) -> PostPressError:
        """See `Executor`."""
        number, shard = self._errors.pop(error, (0, None))
        whole = None if shard is None else (await asyncio.shield(shard.errors)).get(number)
        if not isinstance(whole, PostPressError):
            return error
        whole.applied = error.applied
        return whole

    async def aclose(self) -> None:
        """See `Executor`. Workers cancel the calls that they still have."""
        self._stopping = True
        for worker in self._workers.values():
            self._lose(worker)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(Exception):  # without a scheduler, there are no workers
            async with asyncio.timeout(TIMEOUT):
                await self._client.unregister_worker_plugin(plugin_name(self.token))

    # --- Submitting ---

    def _enqueue(self, call: _Call) -> None:
        if self._stopping:
            error = DeadlineError("the rotation was stopped before the change was sent")
            error.account_id = call.account_id
            error.applied = Applied.UNKNOWN if call.in_doubt else Applied.NO
            call.fail(error)
        elif call.in_doubt:
            self._waiting.appendleft(call)
        else:
            self._waiting.append(call)
        self._wake.set()

    @staticmethod
    def _unknown(account_id: str) -> PostPressError:
        error = ConnectionLostError("the worker that had the account was lost")
        error.account_id, error.applied = account_id, Applied.UNKNOWN
        return error

    async def _submit(self) -> None:
        """Fill the windows of the workers, and have the rotation read as many rows."""
        assert self._engine is not None  # noqa: S101 - it is started
        while True:
            await self._wake.wait()
            self._wake.clear()
            limited = self._pace.rate is not None
            workers = [w for w in self._workers.values() if w.is_usable and (w.rate or not limited)]
            for worker in sorted(workers, key=lambda worker: worker.load):
                room = self._window(worker) - worker.load
                while self._waiting and room > 0:
                    count = min(SHARD, room, len(self._waiting))
                    calls = [self._waiting.popleft() for _ in range(count)]
                    self._send(worker, [call for call in calls if not call.done.done()])
                    room -= count
            if workers:
                self._engine.resize(sum(map(self._window, workers)))
            await asyncio.sleep(GATHER)

    def _window(self, worker: _Worker) -> int:
        if self._ended < TRIED:
            return FIRST_WINDOW
        in_flight = self._pace.in_flight
        return min(LARGEST_WINDOW, in_flight + max(in_flight, int(worker.speed * AHEAD)))

    def _send(self, worker: _Worker, calls: list[_Call]) -> None:
        if not calls:
            return
        shard = _Shard(worker)
        worker.shards.add(shard)
        for call in calls:
            call.number, call.shard = next(self._numbers), shard
            call.hooks.in_flight = True
            self._calls[call.number] = shard.calls[call.number] = call
        packed = Shard.of(self.token, [_packed(call) for call in calls])
        shard.task = self._create_task(self._carry_out(shard, packed))

    async def _carry_out(self, shard: _Shard, packed: Shard) -> None:
        worker, sent, errors = shard.worker, True, dict[int, Exception]()
        future = self._client.submit(
            run_shard, packed, key=packed.key, workers=[worker.address], pure=False, retries=0
        )
        try:
            error = await future.exception()
            if isinstance(error, Exception) and not isinstance(error, KilledWorker):
                sent = False  # the task fails only before it begins
                text = str(error) if isinstance(error, PostPressError) else _name(error)
                worker.problem = f"{worker.address}: {text}"
            elif error is None and (shard.has_failures or shard.calls):
                errors = await future
        except Exception:  # noqa: S110 - of Dask: the worker or the scheduler is gone
            pass
        finally:
            future.release()  # if it still runs, the worker cancels it
            self._end(shard, errors, sent=sent)
        for found in errors.values():
            if not isinstance(found, PostPressError):
                self._abort(f"{worker.address} stopped because of an unexpected error: {_name(found)}")

    def _end(self, shard: _Shard, errors: dict[int, Exception], *, sent: bool) -> None:
        shard.worker.shards.discard(shard)
        if not shard.errors.done():
            shard.errors.set_result(errors)
        for call in tuple(shard.calls.values()):
            self._forget(call)
            call.fail(_UnreportedError(sent))
        self._wake.set()

    def _forget(self, call: _Call) -> None:
        """The call has ended, or its worker does not have it any more."""
        if self._calls.pop(call.number, None) is None or call.shard is None:
            return
        del call.shard.calls[call.number]
        self._on_backoff(call, False)

    # --- Reports ---

    def on_event(self, event: dict[str, Any]) -> None:
        """Take in the reports of a worker."""
        worker = self._workers.get(event["worker"])
        if worker is None:
            return
        renewed: list[_Call] = []
        for kind, number, *values in event["reports"]:
            if kind == "paused":
                self._on_paused(worker, *values)
            elif (call := self._calls.get(number)) is None:
                continue  # the worker was lost, and another one has the account
            elif kind == "generation":
                renewed.append(call)
            else:
                getattr(self, f"_on_{kind}")(call, *values)
        if renewed:
            self._create_task(self._store(worker, renewed))
        self._wake.set()

    def _on_patched(self, call: _Call, attempts: int, elapsed: float) -> None:
        self._on_ended(call, elapsed if attempts else None)
        if not call.done.done():
            call.done.set_result(AccountPatched(call.account_id, (Attempt(1, 0.0, 0.0),) * attempts))

    def _on_failed(self, call: _Call, packed: bytes, elapsed: float, resumable: bool) -> None:
        error = unpack_error(packed, call.account_id)
        if call.shard is not None:
            call.shard.has_failures = True
            self._errors[error] = call.number, call.shard
        self._on_ended(call, elapsed if error.attempts else None)
        call.hooks.resumable = error if resumable else None
        call.fail(error)

    def _on_ended(self, call: _Call, elapsed: float | None) -> None:
        if elapsed is not None:
            call.hooks.on_attempt_started(asyncio.get_running_loop().time() - elapsed)
        call.hooks.in_flight = False
        if call.shard is not None:
            call.shard.worker.cannot_connect = False
            call.shard.worker.count_ended()
        self._forget(call)
        self._ended += 1

    def _on_attempt_failed(self, call: _Call, packed: bytes) -> None:
        error = unpack_error(packed, call.account_id)
        assert call.shard is not None  # noqa: S101 - it is reported
        call.shard.worker.cannot_connect = fails = isinstance(error, ConnectError | TlsError)
        # A single worker may have no network, which must not halt the rotation.
        if not fails or all(w.cannot_connect for w in self._workers.values() if w.shards):
            call.hooks.on_attempt_failed(error)
            call.hooks.in_flight = True  # the next attempt may have started

    def _on_backoff(self, call: _Call, backing_off: bool) -> None:
        if call.backing_off is not backing_off and call.shard is not None:
            call.backing_off = backing_off
            call.shard.worker.backing_off += 1 if backing_off else -1
            call.hooks.on_backoff(backing_off)

    def _on_retry(self, call: _Call, number: int, wait: float, packed: bytes) -> None:
        if self._observer is not None:
            error = unpack_error(packed, call.account_id)
            self._observer(events.RetryScheduled(call.account_id, number, wait, error))

    def _on_paused(self, worker: _Worker, paused: bool) -> None:
        worker.is_paused = paused
        for other in self._workers.values():  # they need not find out by themselves
            if paused and other.is_usable and not other.is_paused:
                other.is_paused = True
                self._create_task(self._control(other, pause=True))
        working = [other for other in self._workers.values() if other.shards and not other.is_lost]
        paused = bool(working) and all(other.is_paused for other in working)
        if paused is self.paused:
            return
        seconds, self._paused_at = time.monotonic() - self._paused_at, time.monotonic()
        self.paused = paused
        if self._observer is not None:
            self._observer(events.PauseBegan() if paused else events.PauseEnded(seconds))

    async def _store(self, worker: _Worker, calls: list[_Call]) -> None:
        """Store new generations of keys, and then let the worker use them."""
        numbers = [call.number for call in calls]
        try:
            await asyncio.gather(*(call.keys.renew() for call in calls))
        except PostPressError as error:  # of the journal
            self._abort(error)
            return
        await self._control(worker, stored=numbers)

    # --- Workers ---

    async def _watch(self) -> None:
        """Follow the scheduler's list of workers."""
        suspended, answered_at, usable_at = 0.0, time.monotonic(), time.monotonic()
        while True:
            began = time.monotonic()
            now = began - suspended
            with suppress(Exception):  # Dask raises many types
                async with asyncio.timeout(TIMEOUT):
                    identity = await self._client.scheduler.identity()
                answered_at = now
                self._compare(identity["workers"], now)
            problems = [worker.problem for worker in self._workers.values() if not worker.is_lost]
            if None in problems:
                usable_at = now
            if now - answered_at > NO_SCHEDULER:
                again = "start it and its workers, and run the same command again"
                self._abort(f"the cluster's scheduler does not respond any more: {again}")
            elif all(problems) and (problems or now - usable_at > NO_WORKER):
                problem = problems[-1] if problems else "no worker is connected"
                again = "fix that, then run the same command again"
                self._abort(f"the cluster has no usable worker ({problem}): {again}")
            await asyncio.sleep(LOOK_EVERY)
            if (elapsed := time.monotonic() - began) > 2 * TIMEOUT:  # this process was suspended
                suspended += elapsed

    def _compare(self, found: dict[str, dict[str, Any]], now: float) -> None:
        before = [worker for worker in self._workers.values() if worker.is_usable]
        for address, facts in found.items():
            worker = self._workers.setdefault(address, _Worker(address))
            if worker.last_seen != facts["last_seen"]:
                worker.last_seen, worker.heard_at, worker.is_lost = facts["last_seen"], now, False
        for worker in self._workers.values():
            if worker.address not in found or now - worker.heard_at > SILENT:
                self._lose(worker)
        if before != [worker for worker in self._workers.values() if worker.is_usable]:
            self._create_task(self._share_rate())
            self._wake.set()

    def _lose(self, worker: _Worker) -> None:
        """Have others carry out what the worker has not reported."""
        worker.is_lost, worker.rate = True, 0.0
        for shard in tuple(worker.shards):
            if shard.task is not None:
                shard.task.cancel()
            self._end(shard, {}, sent=True)

    async def _share_rate(self) -> None:
        """Split the rate evenly. No share grows before others have shrunk."""
        if (rate := self._pace.rate) is None:
            return
        async with self._sharing:
            usable = [worker for worker in self._workers.values() if worker.is_usable]
            for worker in sorted(usable, key=lambda worker: worker.rate, reverse=True):
                others = sum(other.rate for other in usable if other is not worker)
                share = min(rate / len(usable), rate - others)
                if share > 0 and share != worker.rate and await self._control(worker, rate=share):
                    worker.rate = share
        self._wake.set()

    async def _control(self, worker: _Worker, **changes: Any) -> bool:
        """Call `control` on the worker until it responds. Returns False if it is lost before."""
        while worker.is_usable:
            with suppress(Exception):
                async with asyncio.timeout(TIMEOUT):
                    await self._client.run(control, self.token, workers=[worker.address], **changes)
                    return True
            await asyncio.sleep(LOOK_EVERY)
        return False

    # --- The end ---

    async def _stop_when_ended(self) -> None:
        ended = asyncio.get_running_loop().create_future()
        self.waits.wake(ended, float("inf"))
        await ended
        self._stopping = True
        while self._waiting:
            self._enqueue(self._waiting.popleft())
        for worker in self._workers.values():
            self._create_task(self._control(worker, stop=True))

    def _abort(self, error: PostPressError | str) -> None:
        """End the rotation. Without a cluster, its calls end now."""
        assert self._engine is not None  # noqa: S101 - it is started
        if isinstance(error, PostPressError):
            self._engine.abort(error)
            return
        self._engine.abort(ClusterError(error))
        self._stopping = True
        for worker in self._workers.values():
            self._lose(worker)

    def _create_task(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work, name="cluster-coordinator")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _packed(call: _Call) -> RemoteCall:
    from_pool = call.hooks.proxy is not None
    keys = call.keys
    return RemoteCall(
        call.number, call.account_id, call.change, from_pool, keys.prefix, keys.generation, call.in_doubt
    )


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
