"""
The coordinator's side: submits the calls of a rotation to workers in shards, and processes their reports.

`Coordinator.update` does for a rotation on a cluster what the session does for one on a single machine. A
shard is a Dask task for one worker. The calls that a worker has not reported when it is lost are in doubt: it
may have sent them. Another worker sends them again, custom proxies under a new idempotency key. A window
limits the calls of each worker, and thus the number of calls in doubt.
"""

import asyncio
import itertools
import pickle
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

from distributed import Client
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from postpress_async import errors, events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.cluster import _messages as messages
from postpress_async.cluster import _worker as remote
from postpress_async.cluster._cluster_watch import POLL_INTERVAL, RESPONSE_TIMEOUT, ClusterWatch
from postpress_async.cluster._remote_worker import PendingCall, RemoteWorker, UnreportedError
from postpress_async.errors import Applied, PostPressError
from postpress_async.models import AccountPatched, Attempt, ManagedProxy, ProxyChange
from postpress_async.pace import Pace
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._engine import Engine
from postpress_async.rotation._row_keys import RowKeys

MAX_SHARD: Final = 200  # maximum number of calls in a shard
TRIAL_CALLS: Final = 100  # number of calls that must end before the trial is over
TRIAL_WINDOW: Final = 50  # calls of a worker during the trial: few, in case the API key is refused
# Share of its window below which a worker gets more calls. A higher one would make many small shards.
REFILL_SHARE: Final = 5 / 8
GATHER_INTERVAL: Final = 0.02  # seconds for which calls are gathered into shards

# What a Dask future raises if its worker or the scheduler is lost.
_LOSS_ERRORS: Final = (ProcessLookupError, KilledWorker, CommClosedError, CancelledError)


class _ErrorSource(NamedTuple):
    """Where the complete error of a call is: under *call_number* in the result of *shard_task*."""

    shard_task: "asyncio.Task[dict[int, Any]]"
    call_number: int


class Coordinator:
    """
    The `Executor` of one rotation.

    *settings* are the arguments of the workers' sessions, which share the rate of the pace. *observer* gets
    retries and pauses.
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
        self._watch: Final = ClusterWatch(client)
        self._workers: Final = self._watch.workers
        self._rate_sharers: list[RemoteWorker] = []  # workers that are usable, or have open calls
        self._waiting: Final[deque[PendingCall]] = deque()  # calls that no worker has
        self._error_sources: Final = WeakKeyDictionary[PostPressError, _ErrorSource]()
        self._call_numbers: Final = itertools.count(1)
        self._ended_calls = 0
        self._may_submit: Final = asyncio.Event()  # set by new calls, new workers and ended calls
        self._sharing_rate: Final = asyncio.Lock()
        self._paused_at = 0.0
        self._stopping = False
        self._tasks: Final[set[asyncio.Task[Any]]] = set()

    async def start(self, engine: Engine) -> None:
        """See `Executor`."""
        self._engine, self._clock = engine, asyncio.get_running_loop().time
        plugin = remote.SessionPlugin(self.token, self._settings, self._observer is not None)
        with suppress(Exception):  # for example if a worker lacks this package: its shards will fail
            async with asyncio.timeout(2 * RESPONSE_TIMEOUT):
                await self._client.register_plugin(plugin)
        self._create_task(self._watch.run(self._on_workers_updated, self._abort))
        self._create_task(self._submit())
        self._create_task(self._stop_at_end_of_waits())

    async def update(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask
    ) -> AccountPatched:
        """Update one account on a worker; see `Update`."""
        hooks.on_call_started()
        in_doubt = keys.in_doubt
        while True:
            call = PendingCall(account_id, change, keys, hooks, in_doubt)
            self._enqueue(call)
            try:
                return await call.result
            except UnreportedError as unreported:
                if not unreported.maybe_sent:
                    continue
                in_doubt = hooks.in_doubt = True
                if self._stopping or self._engine.leaves_doubts:
                    error = errors.ConnectionLostError("the worker that had the account was lost")
                    error.account_id, error.applied = account_id, Applied.UNKNOWN
                    raise error from None
                if call.storing_key is not None:
                    await call.storing_key  # before another worker uses that key
                if not isinstance(change, ManagedProxy):
                    await keys.renew()  # a resumed run does the same
            finally:
                call.leave_worker()

    async def whole_error(self, error: PostPressError) -> PostPressError:
        """See `Executor`."""
        source = self._error_sources.pop(error, None)
        if source is None:
            return error
        await asyncio.wait([source.shard_task])
        if source.shard_task.cancelled():
            return error
        whole = source.shard_task.result().get(source.call_number)
        if whole is None:
            return error
        whole.applied = error.applied
        return cast("PostPressError", whole)

    async def aclose(self) -> None:
        """See `Executor`. Workers cancel the calls that they still have."""
        self.paused = False
        self._drop_all_calls()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(Exception):  # if the scheduler is gone, so are the workers
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                await self._client.unregister_worker_plugin(self.token)

    # --- Submitting ---

    def _enqueue(self, call: PendingCall) -> None:
        if self._stopping:
            error = errors.DeadlineError("the rotation was stopped before the change was sent")
            error.applied = Applied.UNKNOWN if call.in_doubt else Applied.NO
            error.account_id = call.account_id
            call.fail(error)
            return
        if call.in_doubt:
            self._waiting.appendleft(call)
        else:
            self._waiting.append(call)
        self._may_submit.set()

    async def _submit(self) -> None:
        """Fill the workers' windows, and have the rotation read as many rows as fit in all of them."""
        while True:
            await self._may_submit.wait()
            self._may_submit.clear()
            workers = [
                worker
                for worker in self._workers.values()
                if worker.is_usable and (worker.rate or not self._pace.rate)
            ]
            for worker in sorted(workers, key=lambda worker: worker.load):
                self._fill(worker)
            if workers:
                self._engine.resize(sum(map(self._window, workers)))
            await asyncio.sleep(GATHER_INTERVAL)

    def _fill(self, worker: RemoteWorker) -> None:
        """Submit shards to *worker* until its window is full or no call waits."""
        window = self._window(worker)
        while self._waiting and worker.load <= window * REFILL_SHARE:
            count = min(MAX_SHARD, window - worker.load, len(self._waiting))
            calls = [self._waiting.popleft() for _ in range(count)]
            calls = [call for call in calls if not call.result.done()]  # without cancelled ones
            if calls:
                self._send(worker, calls)

    def _window(self, worker: RemoteWorker) -> int:
        return TRIAL_WINDOW if self._ended_calls < TRIAL_CALLS else worker.window(self._pace.in_flight)

    def _send(self, worker: RemoteWorker, calls: list[PendingCall]) -> None:
        task = self._create_task(self._carry_out(worker, calls))
        worker.shard_tasks.add(task)
        task.add_done_callback(worker.shard_tasks.discard)
        for call in calls:
            call.number, call.worker, call.shard_task = next(self._call_numbers), worker, task
            call.hooks.in_flight = True
            worker.calls[call.number] = call

    async def _carry_out(self, worker: RemoteWorker, calls: list[PendingCall]) -> dict[int, Any]:
        """Have *worker* carry out a shard. Returns the errors of the calls that failed, by call number."""
        shard = messages.Shard.of(self.token, worker.process, [call.message() for call in calls])
        maybe_sent = True
        call_errors: dict[int, Any] = {}
        future = None
        options = {"key": shard.key, "workers": [worker.address], "pure": False, "retries": 0}
        try:
            await self._engine.rows_on_disk()
            future = self._client.submit(remote.run_shard, shard, **options)
            shard_error = await future.exception()
            all_patched = all(not call.has_failed and call.number not in worker.calls for call in calls)
            if shard_error is not None or not all_patched:  # otherwise the result is empty
                call_errors = await future  # raises `shard_error`
        except errors.JournalError as error:
            maybe_sent = False
            self._engine.abort(error)
        except PostPressError as error:  # `SessionPlugin.problem`
            maybe_sent = False
            worker.problem = f"{worker.address}: {error}"
        except _LOSS_ERRORS:
            worker.lose()
        except Exception as error:  # also if the result cannot be unpickled, which would happen again
            worker.problem = f"{worker.address}: {type(error).__name__}: {error}"
        finally:
            if future is not None:
                future.release()  # if the shard still runs, the worker cancels it
            for call in calls:
                if call.leave_worker():
                    call.fail(call_errors.get(call.number) or UnreportedError(maybe_sent=maybe_sent))
        return call_errors

    async def _stop_at_end_of_waits(self) -> None:
        """Once `waits` ends, end the calls that no worker has, and tell the workers to stop."""
        ended = asyncio.get_running_loop().create_future()
        self.waits.complete_at(ended, float("inf"))
        await ended
        self._stopping = True
        while self._waiting:
            self._enqueue(self._waiting.popleft())
        await asyncio.gather(*(self._control(worker, stop=True) for worker in self._workers.values()))

    # --- Reports ---

    def on_event(self, event: dict[str, Any]) -> None:
        """Process the reports of a worker."""
        worker = self._workers.get(event["process"])
        if event["token"] != self.token or worker is None:
            return
        need_keys: list[PendingCall] = []
        reports: list[messages.Report] = pickle.loads(event["reports"])  # noqa: S301 - from a worker
        for report in reports:
            if isinstance(report, messages.PauseChanged):
                self._on_pause_changed(worker, report.paused)
                continue
            call = worker.calls.get(report.call_number)
            if call is None:
                continue  # the worker was lost, and another one has the account
            match report:
                case messages.CallEnded():
                    self._on_call_ended(call, worker, report)
                case messages.AttemptFailed():
                    self._on_attempt_failed(call, worker, report)
                case messages.BackoffChanged():
                    call.set_backing_off(report.backing_off)
                case messages.RetryPlanned() if self._observer is not None:
                    error = messages.unpack_error(report.error, call.account_id)
                    self._observer(events.RetryScheduled(call.account_id, report.attempt, report.wait, error))
                case messages.NewKeyNeeded():
                    call.storing_key = self._create_task(call.keys.renew())
                    need_keys.append(call)
        if need_keys:
            self._create_task(self._store_keys(worker, need_keys))
        self._may_submit.set()

    def _on_call_ended(self, call: PendingCall, worker: RemoteWorker, report: messages.CallEnded) -> None:
        if report.attempts:
            call.hooks.on_attempt_started(self._clock() - report.elapsed)
        worker.cannot_connect = False
        worker.ended += 1
        self._ended_calls += 1
        call.leave_worker()
        if report.error is not None:
            error = messages.unpack_error(report.error, call.account_id)
            if call.shard_task is not None:
                self._error_sources[error] = _ErrorSource(call.shard_task, call.number)
            call.hooks.in_flight = False  # stays True on success: a cancellation may precede the result
            call.hooks.error_to_retry = error if report.is_resumable else None
            call.fail(error)
        elif not call.result.done():
            attempts = (Attempt(1, 0.0, 0.0),) * report.attempts  # only their number is used
            call.result.set_result(AccountPatched(call.account_id, attempts))

    def _on_attempt_failed(
        self, call: PendingCall, worker: RemoteWorker, report: messages.AttemptFailed
    ) -> None:
        error = messages.unpack_error(report.error, call.account_id)
        worker.cannot_connect = isinstance(error, errors.ConnectError | errors.TlsError)
        # A single worker may have no network, which must not halt the rotation.
        if not worker.cannot_connect or all(w.cannot_connect for w in self._workers.values() if w.calls):
            call.hooks.on_attempt_failed(error)
            call.hooks.in_flight = True  # the next attempt may have started

    def _on_pause_changed(self, worker: RemoteWorker, paused: bool) -> None:
        worker.is_paused = paused
        if paused and not worker.is_lost:
            # Otherwise the other workers would send requests until each finds that the service is down.
            for other in self._workers.values():
                if other.is_usable and not other.is_paused:
                    other.is_paused = True
                    self._create_task(self._control(other, pause=True))
        self._update_paused()

    def _update_paused(self) -> None:
        working = [worker for worker in self._workers.values() if worker.calls]
        was_paused = self.paused
        self.paused = bool(working) and all(worker.is_paused for worker in working)
        if self.paused is was_paused:
            return
        changed_at = self._clock()
        if self._observer is not None:
            self._observer(
                events.PauseBegan() if self.paused else events.PauseEnded(changed_at - self._paused_at)
            )
        self._paused_at = changed_at

    async def _store_keys(self, worker: RemoteWorker, calls: list[PendingCall]) -> None:
        """Once the journal has stored the next idempotency keys of *calls*, let the worker use them."""
        try:
            await asyncio.gather(*(call.storing_key for call in calls if call.storing_key is not None))
        except PostPressError as error:  # from the journal
            self._engine.abort(error)
        else:
            await self._control(worker, stored_keys=[call.number for call in calls])

    # --- Workers ---

    def _on_workers_updated(self) -> None:
        self._update_paused()
        sharers = [worker for worker in self._workers.values() if worker.is_usable or worker.calls]
        if sharers != self._rate_sharers:
            self._rate_sharers = sharers
            self._create_task(self._share_rate())

    async def _share_rate(self) -> None:
        """Split the rate limit, if any, evenly. Larger shares shrink before smaller ones grow."""
        async with self._sharing_rate:
            workers, rate = self._rate_sharers, self._pace.rate or 0.0
            for worker in sorted(workers, key=lambda worker: worker.rate, reverse=True):
                others = sum(other.rate for other in workers if other is not worker)
                share = min(rate / len(workers), rate - others)
                if share > 0 and share != worker.rate and await self._control(worker, rate=share):
                    worker.rate = share
        self._may_submit.set()

    async def _control(self, worker: RemoteWorker, **changes: Any) -> bool:
        """Call `remote.control` on the worker until it responds. Returns False if the worker is lost."""
        while not worker.is_lost:
            with suppress(Exception):
                async with asyncio.timeout(RESPONSE_TIMEOUT):
                    await self._client.run(remote.control, self.token, workers=[worker.address], **changes)
                    return True
            await asyncio.sleep(POLL_INTERVAL)
        return False

    def _abort(self, reason: str) -> None:
        self._engine.abort(errors.ClusterError(f"{reason}, then run the same command again"))
        self._drop_all_calls()

    def _drop_all_calls(self) -> None:
        self._stopping = True
        for worker in self._workers.values():
            worker.lose()

    def _create_task(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work, name="cluster-coordinator")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
