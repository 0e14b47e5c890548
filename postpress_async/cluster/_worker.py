"""
The worker's side: a Dask plugin with one session per worker, and the task that carries out a shard of calls.

A call is one update with one proxy. The coordinator has the journal and the pool, and decides about failover
and halts. A worker reports what happens to each call, see `Report`.
"""

import asyncio
import pickle
import signal
from collections.abc import Iterable
from typing import Any, Final

from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import SecedeEvent

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._version import __version__
from postpress_async.cluster import _messages as messages
from postpress_async.errors import ClusterError, PostPressError, Scope
from postpress_async.pace._pacer import Pacer
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.session import PostPressSession

REPORT_INTERVAL: Final = 0.05  # seconds for which reports are gathered into one event


class _Hooks:
    """The `CallHooks` of a call."""

    def __init__(self, call: messages.RemoteCall, waits: WaitGroup, reports: list[messages.Report]) -> None:
        self.waits: Final = waits
        # The last error that the retry policy would have followed by another attempt.
        self.resumable: PostPressError | None = None
        self._call: Final = call
        self._reports: Final = reports
        self._strikes = 0

    def on_call_started(self) -> None: ...

    def on_attempt_started(self, now: float) -> None: ...

    def on_attempt_failed(self, error: PostPressError) -> None:
        packed_error = messages.pack_error(error, self._call.account_id)
        self._reports.append(messages.AttemptFailed(self._call.number, packed_error))

    def on_backoff(self, backing_off: bool) -> None:
        self._reports.append(messages.BackoffChanged(self._call.number, backing_off))

    def should_give_up(self, error: PostPressError) -> bool:
        self.resumable = error
        if error.scope is not Scope.PROXY:
            return False
        self._strikes += 1
        return 0 < self._call.max_strikes <= self._strikes


class SessionPlugin(WorkerPlugin):  # type: ignore[misc] # it has no types
    """
    Opens a session on each worker, also on those that join later, and closes it after the rotation.

    *token* identifies the rotation, and is also the plugin's name. *settings* are the arguments of the
    session, without an API key: each worker reads its own environment.
    """

    _worker: Worker
    _session: PostPressSession
    _waits: WaitGroup
    _pacer: Pacer

    def __init__(self, token: str, settings: dict[str, Any], reports_retries: bool) -> None:
        self.name: str = token
        # Why this worker cannot carry out calls; None if it can.
        self.problem: PostPressError | None = ClusterError("its setup failed, see its log")
        self._settings: Final = settings
        self._reports_retries: Final = reports_retries  # in a `RetryPlanned` each
        self._version: Final = __version__  # of the coordinator, because Dask pickles the plugin there
        self._shards: Final[dict[str, set[asyncio.Task[None]]]] = {}  # tasks of calls, by key of the shard
        self._key_stored: Final[dict[int, asyncio.Future[None]]] = {}  # by call number
        self._reports: Final[list[messages.Report]] = []
        self._paused = False

    def setup(self, worker: Worker) -> None:
        """Open the session. Errors are kept for `run_shard`, because Dask would only log them here."""
        self._worker = worker
        try:
            if self._version != __version__:
                raise ClusterError(
                    f"the worker has postpress-async {__version__}, and the command has {self._version}: "
                    "install the same version"
                )
            observer = self._on_session_event if self._reports_retries else None
            session = self._session = PostPressSession(**self._settings, on_event=observer)
            context = session._context  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            self._waits, self._pacer = context.tracker.child(), context.pacer
            self.problem = None
        except PostPressError as error:
            self.problem = error.with_traceback(None)

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        for key in self._shards:
            self._cancel_shard(key)
        if self.problem is None:
            await self._session.aclose(0.0)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Cancel a shard that the scheduler releases, because the coordinator dropped it or is gone."""
        if start in {"executing", "long-running"} and finish == "released":
            self._cancel_shard(key)

    def _cancel_shard(self, key: str) -> None:
        for task in self._shards.get(key, ()):
            task.cancel()

    async def run(self, shard: messages.Shard) -> dict[int, BaseException]:
        """Carry out the calls of *shard*. Returns the errors of the calls that failed, by call number."""
        errors: dict[int, BaseException] = {}
        tasks = {
            # `_on_session_event` reads the call number from the task's name.
            asyncio.create_task(self._carry_out(call, errors), name=str(call.number))
            for call in shard.calls()
        }
        pending = self._shards[shard.key] = tasks
        try:
            while pending:
                _, pending = await asyncio.wait(pending, timeout=REPORT_INTERVAL)
                self._send_reports()  # so they arrive before the task's result
        finally:
            for task in tasks:
                task.cancel()
            del self._shards[shard.key]
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                errors[int(task.get_name())] = messages.make_picklable(error)  # raised by the retry strategy
        return errors

    def control(
        self,
        *,
        rate: float | None = None,
        stop: bool = False,
        pause: bool = False,
        stored_keys: Iterable[int] = (),
    ) -> None:
        """
        Carry out an instruction of the coordinator.

        Args:
            rate: The worker's share of the rate limit, in requests per second.
            stop: Whether to end all waits, and start no further attempt.
            pause: Whether to open the circuit breaker, because another worker found that the service is down.
            stored_keys: Numbers of the calls that may use their next idempotency key; see `NewKeyNeeded`.
        """
        if rate is not None:
            self._pacer.lease(rate)
        if pause:
            self._pacer.pause()
            self._paused = True  # the coordinator knows: do not report it
        if stop:
            self._waits.end()
        for number in stored_keys:
            if number in self._key_stored:
                self._key_stored.pop(number).set_result(None)

    async def _carry_out(self, call: messages.RemoteCall, errors: dict[int, BaseException]) -> None:
        hooks = _Hooks(call, self._waits, self._reports)
        keys = RowKeys(
            call.key_prefix, call.key_generation, call.number, self._store_key, in_doubt=call.in_doubt
        )
        update = self._session._run_call  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        packed_error, is_resumable = None, False
        try:
            patched = await update(call.account_id, call.change, keys, hooks)
            attempts = patched.attempts
        except PostPressError as error:
            attempts = error.attempts
            packed_error = messages.pack_error(error, call.account_id)
            is_resumable = error is hooks.resumable
            errors[call.number] = error.with_traceback(None)
        finally:
            hooks.resumable = None  # its traceback refers to this frame: a reference cycle
        elapsed = attempts[-1].began + attempts[-1].elapsed - attempts[0].began if attempts else 0.0
        report = messages.CallEnded(call.number, len(attempts), elapsed, packed_error, is_resumable)
        self._reports.append(report)

    async def _store_key(self, call_number: int, _generation: int) -> None:
        """Return once the coordinator has stored that the call uses its next idempotency key."""
        stored = self._key_stored[call_number] = asyncio.get_running_loop().create_future()
        self._reports.append(messages.NewKeyNeeded(call_number))
        try:
            await stored
        finally:
            self._key_stored.pop(call_number, None)

    def _on_session_event(self, event: events.Event) -> None:
        if isinstance(event, events.RetryScheduled) and (task := asyncio.current_task()) is not None:
            packed_error = messages.pack_error(event.error, event.account_id)
            call_number = int(task.get_name())
            self._reports.append(messages.RetryPlanned(call_number, event.number, event.wait, packed_error))

    def _send_reports(self) -> None:
        if self._pacer.paused is not self._paused:
            self._paused = not self._paused
            self._reports.append(messages.PauseChanged(self._paused))
        if self._reports:
            reports = pickle.dumps(self._reports)  # bytes, which the scheduler need not decode
            event = {"token": self.name, "process": self._worker.local_directory, "reports": reports}
            self._worker.log_event(messages.TOPIC, event)
            self._reports.clear()


async def run_shard(shard: messages.Shard) -> dict[int, BaseException]:
    """
    Carry out a shard; see `SessionPlugin.run`. This is the function of the Dask task.

    Raises:
        ProcessLookupError: The shard is for an earlier process at this address. The scheduler runs the tasks
            of a lost worker again, although they were submitted with ``retries=0``.
        PostPressError: This worker cannot carry out any shard. Nothing was sent.
    """
    worker = get_worker()
    # Leave Dask's thread pool: the task only waits, and would occupy one of its few slots.
    worker.handle_stimulus(SecedeEvent(key=shard.key, compute_duration=0.0, stimulus_id=shard.key))
    if shard.process != worker.local_directory:
        raise ProcessLookupError(shard.process)
    plugin: Any = worker.plugins[shard.token]
    if plugin.problem is not None:
        raise plugin.problem
    errors: dict[int, BaseException] = await plugin.run(shard)
    return errors


def control(token: str, *, dask_worker: Worker, **changes: Any) -> None:
    """Call `SessionPlugin.control` on a worker. ``Client.run`` passes *dask_worker*."""
    plugin: Any = dask_worker.plugins.get(token)
    if plugin is not None and plugin.problem is None:
        plugin.control(**changes)


def dask_setup(_worker: object) -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes. Dask calls this when it preloads the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
