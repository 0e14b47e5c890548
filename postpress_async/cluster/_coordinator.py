"""
The coordinator's side: submits the calls of a rotation as shards to workers, and takes in their reports.

To the rotation, `Coordinator.update` is what the session's function is on one machine. A shard is a Dask task
for one worker. Calls that a lost or silent worker has not reported are in doubt, so their number is limited
by a window. Another worker sends them again, custom proxies under a new idempotency key.
"""

import asyncio
import itertools
import pickle
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from attrs import define, field
from distributed import Client
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from postpress_async import errors, events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.cluster import _worker as remote
from postpress_async.errors import Applied, PostPressError
from postpress_async.models import AccountPatched, Attempt, ManagedProxy, ProxyChange
from postpress_async.pace import Pace
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._engine import Engine
from postpress_async.rotation._row_keys import RowKeys

SHARD: Final = 200  # most calls of a shard
FIRST_WINDOW: Final = 50  # most calls of a worker in the trial: few accounts meet a refused API key
TRIAL: Final = 100  # ended calls of the rotation with which the trial ends
AHEAD: Final = 0.25  # seconds of work besides the requests in flight, so that no worker waits for a shard
REFILL: Final = 5 / 8  # share of a window below which it is filled: smaller shards would cost more CPU time
LARGEST_WINDOW: Final = 4_000  # most calls of a worker
GATHER: Final = 0.02  # seconds for which calls are gathered into shards
LOOK_EVERY: Final = 0.5  # seconds between two looks at the scheduler's list of workers
SILENT: Final = 8.0  # seconds without a heartbeat at the scheduler after which a worker is lost
TIMEOUT: Final = 5.0  # seconds in which the scheduler, or a worker, has to respond
NO_SCHEDULER: Final = 10.0  # seconds without a response of the scheduler after which the rotation ends
NO_WORKER: Final = 60.0  # seconds without a usable worker after which the rotation ends
GONE: Final = (ProcessLookupError, KilledWorker, CommClosedError, CancelledError)  # lost worker or scheduler


class _UnreportedError(Exception):
    """A worker did not report a call. The argument is whether it may have sent it."""


@define(eq=False)
class _Call:
    """A call that has not ended. If it is submitted again, it is another object with another number."""

    account_id: str
    change: ProxyChange
    keys: RowKeys
    hooks: AccountTask
    in_doubt: bool
    done: "asyncio.Future[AccountPatched]" = field(init=False, factory=asyncio.Future)
    number: int = 0
    worker: "_Worker | None" = None
    task: "asyncio.Task[Any] | None" = None  # carries out its shard
    has_failed: bool = False
    backing_off: bool = False
    storing: "asyncio.Task[None] | None" = None  # stores a new generation of its keys

    def pack(self) -> remote.RemoteCall:
        strikes, keys = self.hooks.max_strikes, (self.keys.prefix, self.keys.generation)
        return remote.RemoteCall(self.number, self.account_id, self.change, strikes, *keys, self.in_doubt)

    def fail(self, error: Exception) -> None:
        self.has_failed = True
        if not self.done.done():
            self.done.set_exception(error)


@define(eq=False)
class _Worker:
    address: str
    process: str  # see `Shard.process`: another process at the same address is another worker
    last_seen: float = 0.0  # the scheduler's time of its last heartbeat
    heard_at: float = 0.0  # our clock when `last_seen` last changed
    is_lost: bool = False  # gone or silent
    problem: str | None = None  # why it cannot carry out calls
    rate: float = 0.0  # its share, if there is a rate limit
    is_paused: bool = False  # its calls wait because the service is down
    cannot_connect: bool = False  # its last attempt did not connect to the API
    calls: dict[int, _Call] = field(factory=dict)  # not reported yet, by number
    tasks: "set[asyncio.Task[Any]]" = field(factory=set)  # one for each open shard
    backing_off: int = 0  # its calls in backoff
    ended: int = 0  # its calls that ended since the last look
    speed: float = 0.0  # calls per second that ended lately

    @property
    def is_usable(self) -> bool:
        return not self.is_lost and self.problem is None

    @property
    def load(self) -> int:
        return len(self.calls) - self.backing_off


class Coordinator:
    """
    The `Executor` of one rotation.

    Args:
        client: Connected to the cluster.
        settings: Arguments of the workers' sessions. The rate of their pace is shared by all workers.
        observer: Gets retries and pauses.
    """

    _clock: Callable[[], float]  # of the event loop; set by `start`
    _engine: Engine

    def __init__(
        self, client: Client, settings: dict[str, Any], observer: SafeObserver[events.Event] | None
    ) -> None:
        self.token: Final = f"postpress-{secrets.token_hex(12)}"
        self.waits: Final = WaitGroup(waits_out_outages=True)
        self.paused: bool = False  # whether all workers wait because the service is down
        self._client: Final[Any] = client  # many of its methods have no types
        self._pace: Final[Pace] = settings["pace"]
        self._settings: Final = settings
        self._observer: Final = observer
        self._workers: Final[dict[str, _Worker]] = {}  # by process
        self._sharers: list[_Worker] = []  # workers that share the rate: usable, or with open calls
        self._waiting: Final[deque[_Call]] = deque()
        self._failed: Final = WeakKeyDictionary[PostPressError, tuple[int, "asyncio.Task[Any] | None"]]()
        self._numbers: Final = itertools.count(1)
        self._ended = 0
        self._wake: Final = asyncio.Event()
        self._sharing: Final = asyncio.Lock()
        self._paused_at = 0.0
        self._stopping = False
        self._tasks: Final[set[asyncio.Task[Any]]] = set()

    async def start(self, engine: Engine) -> None:
        """See `Executor`."""
        self._engine, self._clock = engine, asyncio.get_running_loop().time
        plugin = remote.SessionPlugin(self.token, self._settings, self._observer is not None)
        with suppress(Exception):  # a worker without our package, say: its shards will raise it
            async with asyncio.timeout(2 * TIMEOUT):
                await self._client.register_plugin(plugin)
        for work in (self._watch(), self._submit(), self._stop_when_ended()):
            self._create_task(work)

    async def update(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask
    ) -> AccountPatched:
        """Update one account on a worker; see `Update`."""
        hooks.on_call_started()
        in_doubt = keys.in_doubt
        while True:
            call = _Call(account_id, change, keys, hooks, in_doubt)
            self._enqueue(call)
            try:
                return await call.done
            except _UnreportedError as unreported:
                if not unreported.args[0]:
                    continue
                in_doubt = hooks.in_doubt = True
                if self._stopping or self._engine.leaves_doubts:
                    error = errors.ConnectionLostError("the worker that had the account was lost")
                    error.account_id, error.applied = account_id, Applied.UNKNOWN
                    raise error from None
                if call.storing is not None:
                    await call.storing  # before another worker uses that generation
                if not isinstance(change, ManagedProxy):
                    await keys.renew()  # a resumed run does the same
            finally:
                self._forget(call)

    async def whole_error(self, error: PostPressError) -> PostPressError:
        """See `Executor`."""
        number, task = self._failed.pop(error, (0, None))
        if task is not None:
            await asyncio.wait([task])
            if not task.cancelled() and (whole := task.result().get(number)) is not None:
                whole.applied = error.applied
                return cast("PostPressError", whole)
        return error

    async def aclose(self) -> None:
        """See `Executor`. Workers cancel the calls that they still have."""
        self._stopping, self.paused = True, False
        self._lose(*self._workers.values())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(Exception):  # without a scheduler, there are no workers
            async with asyncio.timeout(TIMEOUT):
                await self._client.unregister_worker_plugin(self.token)

    # --- Submitting ---

    def _enqueue(self, call: _Call) -> None:
        if self._stopping:
            error = errors.DeadlineError("the rotation was stopped before the change was sent")
            error.applied = Applied.UNKNOWN if call.in_doubt else Applied.NO
            error.account_id = call.account_id
            call.fail(error)
        else:
            self._waiting.insert(0 if call.in_doubt else len(self._waiting), call)
            self._wake.set()

    async def _submit(self) -> None:
        """Fill the workers' windows, and have the rotation read as many rows as fit in all of them."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            workers = [w for w in self._workers.values() if w.is_usable and (w.rate or not self._pace.rate)]
            for worker in sorted(workers, key=lambda worker: worker.load):
                window = self._window(worker)
                while self._waiting and worker.load <= window * REFILL:
                    count = min(SHARD, window - worker.load, len(self._waiting))
                    calls = [self._waiting.popleft() for _ in range(count)]
                    if calls := [call for call in calls if not call.done.done()]:
                        self._send(worker, calls)
            if workers:
                self._engine.resize(sum(map(self._window, workers)))
            await asyncio.sleep(GATHER)

    def _window(self, worker: _Worker) -> int:
        ahead = self._pace.in_flight + max(self._pace.in_flight, int(worker.speed * AHEAD))
        return FIRST_WINDOW if self._ended < TRIAL else min(LARGEST_WINDOW, ahead)

    def _send(self, worker: _Worker, calls: list[_Call]) -> None:
        task = self._create_task(self._carry_out(worker, calls))
        worker.tasks.add(task)
        task.add_done_callback(worker.tasks.discard)
        for call in calls:
            call.number, call.worker, call.task = next(self._numbers), worker, task
            call.hooks.in_flight = True
            worker.calls[call.number] = call

    async def _carry_out(self, worker: _Worker, calls: list[_Call]) -> dict[int, Any]:
        """Have a shard carried out, and return the errors by number of the call."""
        shard = remote.Shard.of(self.token, worker.process, [call.pack() for call in calls])
        sent, found, future = True, dict[int, Any](), None
        options = {"key": shard.key, "workers": [worker.address], "pure": False, "retries": 0}
        try:
            await self._engine.rows_on_disk()
            future = self._client.submit(remote.run_shard, shard, **options)
            failed = await future.exception()
            if failed or any(call.has_failed or call.number in worker.calls for call in calls):
                found = await future  # raises that exception
        except errors.JournalError as error:
            sent = False
            self._engine.abort(error)
        except PostPressError as error:  # raised before anything was sent
            sent, worker.problem = False, f"{worker.address}: {error}"
        except GONE:
            self._lose(worker)
        except Exception as error:  # also if the result cannot be unpickled: it never can be
            worker.problem = f"{worker.address}: {type(error).__name__}: {error}"
        finally:
            if future is not None:
                future.release()  # if it still runs, the worker cancels it
            for call in calls:
                self._give_up(call, found.get(call.number) or _UnreportedError(sent))
        return found

    def _give_up(self, call: _Call, error: Exception) -> None:
        """Fail a call that its worker will not report."""
        if self._forget(call):
            call.fail(error)

    def _forget(self, call: _Call) -> bool:
        """Remove the call from its worker. Returns whether the worker had it."""
        if call.worker is None or call.number not in call.worker.calls:
            return False
        self._on_backoff(call, call.worker, False)
        del call.worker.calls[call.number]
        return True

    async def _stop_when_ended(self) -> None:
        ended = asyncio.get_running_loop().create_future()
        self.waits.complete_at(ended, float("inf"))
        await ended
        self._stopping = True
        while self._waiting:
            self._enqueue(self._waiting.popleft())
        await asyncio.gather(*(self._control(worker, stop=True) for worker in self._workers.values()))

    # --- Reports ---

    def on_event(self, event: dict[str, Any]) -> None:
        """Take in the reports of a worker."""
        if event["token"] != self.token or (worker := self._workers.get(event["process"])) is None:
            return
        storing: dict[int, asyncio.Task[None]] = {}
        for kind, number, *values in pickle.loads(event["reports"]):  # noqa: S301 - from a worker
            if kind == "paused":
                self._on_paused(worker, *values)
            elif (call := worker.calls.get(number)) is None:
                continue  # the worker was lost, and another one has the account
            elif kind == "generation":
                storing[number] = call.storing = self._create_task(call.keys.renew())
            else:
                getattr(self, f"_on_{kind}")(call, worker, *values)
        if storing:
            self._create_task(self._store(worker, storing))
        self._wake.set()

    def _on_ended(
        self, call: _Call, worker: _Worker, attempts: int, elapsed: float, packed: bytes, resumable: bool
    ) -> None:
        if attempts:
            call.hooks.on_attempt_started(self._clock() - elapsed)
        worker.cannot_connect = False
        worker.ended += 1
        self._ended += 1
        self._forget(call)
        if packed:
            error = remote.unpack_error(packed, call.account_id)
            self._failed[error] = call.number, call.task
            call.hooks.in_flight = False  # stays True on success: a cancellation may precede the result
            call.hooks.error_to_retry = error if resumable else None
            call.fail(error)
        elif not call.done.done():
            call.done.set_result(AccountPatched(call.account_id, (Attempt(1, 0.0, 0.0),) * attempts))

    def _on_attempt_failed(self, call: _Call, worker: _Worker, packed: bytes) -> None:
        error = remote.unpack_error(packed, call.account_id)
        worker.cannot_connect = isinstance(error, errors.ConnectError | errors.TlsError)
        # A single worker may have no network, which must not halt the rotation.
        if not worker.cannot_connect or all(w.cannot_connect for w in self._workers.values() if w.calls):
            call.hooks.on_attempt_failed(error)
            call.hooks.in_flight = True  # the next attempt may have started

    def _on_backoff(self, call: _Call, worker: _Worker, backing_off: bool) -> None:
        if call.backing_off is not backing_off:
            call.backing_off = backing_off
            worker.backing_off += 1 if backing_off else -1
            call.hooks.on_backoff(backing_off)

    def _on_retry(self, call: _Call, _worker: _Worker, number: int, wait: float, packed: bytes) -> None:
        if self._observer is not None:
            error = remote.unpack_error(packed, call.account_id)
            self._observer(events.RetryScheduled(call.account_id, number, wait, error))

    def _on_paused(self, worker: _Worker, paused: bool) -> None:
        worker.is_paused = paused
        for other in self._workers.values() if paused and not worker.is_lost else ():
            if other.is_usable and not other.is_paused:  # so that it need not find out by itself
                other.is_paused = True
                self._create_task(self._control(other, pause=True))
        self._note_pause()

    def _note_pause(self) -> None:
        working = [worker.is_paused for worker in self._workers.values() if worker.calls]
        was_paused, self.paused = self.paused, bool(working) and all(working)
        if self._observer is not None and self.paused is not was_paused:
            began, self._paused_at = self._paused_at, self._clock()
            self._observer(events.PauseBegan() if self.paused else events.PauseEnded(self._paused_at - began))

    async def _store(self, worker: _Worker, storing: dict[int, asyncio.Task[None]]) -> None:
        """Once new generations of keys are stored, let the worker use them."""
        try:
            await asyncio.gather(*storing.values())
        except PostPressError as error:  # from the journal
            self._engine.abort(error)
        else:
            await self._control(worker, stored=list(storing))

    # --- Workers ---

    async def _watch(self) -> None:
        """Follow the scheduler's list of workers."""
        suspended, answered_at, usable_at = 0.0, self._clock(), self._clock()
        while True:
            now = (began := self._clock()) - suspended
            with suppress(Exception):  # Dask raises many types
                async with asyncio.timeout(TIMEOUT):
                    identity = await self._client.scheduler.identity()
                answered_at = now
                self._compare(identity["workers"], now)
            problems = [worker.problem for worker in self._workers.values() if not worker.is_lost]
            usable_at = now if None in problems else usable_at
            if now - answered_at > NO_SCHEDULER:
                self._abort("the cluster's scheduler does not respond any more: start it and its workers")
            elif all(problems) and (problems or now - usable_at > NO_WORKER):
                problem = problems[-1] if problems else "no worker is connected"
                self._abort(f"the cluster has no usable worker ({problem}): fix that")
            await asyncio.sleep(LOOK_EVERY)
            elapsed = self._clock() - began
            suspended += elapsed if elapsed > 2 * TIMEOUT else 0.0  # this process was suspended (Ctrl-Z)

    def _compare(self, found: dict[str, dict[str, Any]], now: float) -> None:
        for address, facts in found.items():
            worker = self._workers.setdefault(process := facts["local_directory"], _Worker(address, process))
            if worker.last_seen != facts["last_seen"]:
                worker.last_seen, worker.heard_at, worker.is_lost = facts["last_seen"], now, False
            worker.speed, worker.ended = worker.ended / LOOK_EVERY, 0
        processes = {facts["local_directory"] for facts in found.values()}
        for worker in self._workers.values():
            if worker.process not in processes or now - worker.heard_at > SILENT:
                self._lose(worker)
        self._note_pause()
        before, self._sharers = self._sharers, [w for w in self._workers.values() if w.is_usable or w.calls]
        if before != self._sharers:
            self._create_task(self._share_rate())

    def _lose(self, *workers: _Worker) -> None:
        """Have others carry out what the workers have not reported."""
        for worker in workers:
            worker.is_lost, worker.rate = True, 0.0
            for task in worker.tasks:
                task.cancel()  # releases the shard
            for call in tuple(worker.calls.values()):
                self._give_up(call, _UnreportedError(True))

    async def _share_rate(self) -> None:
        """Split the rate, if any, evenly. No share grows before others have shrunk."""
        async with self._sharing:
            workers, rate = self._sharers, self._pace.rate or 0.0
            for worker in sorted(workers, key=lambda worker: worker.rate, reverse=True):
                others = sum(other.rate for other in workers if other is not worker)
                share = min(rate / len(workers), rate - others)
                if share > 0 and share != worker.rate and await self._control(worker, rate=share):
                    worker.rate = share
        self._wake.set()

    async def _control(self, worker: _Worker, **changes: Any) -> bool:
        """Call `control` on the worker until it responds. Returns False if it is lost before."""
        while not worker.is_lost:
            with suppress(Exception):
                async with asyncio.timeout(TIMEOUT):
                    await self._client.run(remote.control, self.token, workers=[worker.address], **changes)
                    return True
            await asyncio.sleep(LOOK_EVERY)
        return False

    def _abort(self, reason: str) -> None:
        """End the rotation and its calls now."""
        self._engine.abort(errors.ClusterError(f"{reason}, then run the same command again"))
        self._stopping = True
        self._lose(*self._workers.values())

    def _create_task(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work, name="cluster-coordinator")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
