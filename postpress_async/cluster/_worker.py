"""
The worker's side: a Dask plugin with one session per worker, and the task that carries out a shard of calls.

A call is one update with one proxy. The coordinator has the journal and the pool, and decides about failover
and halting. A worker reports the end of each call in an event. The scheduler keeps events and may show them,
so they contain numbers and error types, but nothing of a row. The task's result has the complete errors.
"""

import asyncio
import json
import pickle
import signal
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import field, frozen
from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import dumps
from distributed.worker_state_machine import SecedeEvent

from postpress_async import events
from postpress_async._call.tracker import WaitGroup
from postpress_async._converter import own_converter
from postpress_async._version import __version__
from postpress_async.errors import AnswerError, ApiError, ClusterError, PostPressError, Problem, Scope
from postpress_async.models import ProxyChange
from postpress_async.pace._pacer import Pacer
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.session import PostPressSession

TOPIC: Final = "postpress-async"
"""Topic of all events. The scheduler keeps events per topic: one per rotation would fill its memory."""

REPORT_INTERVAL: Final = 0.05
"""Seconds for which reports are collected into one event."""

_ID: Final = "\0"  # stands for the account id in an event


@frozen
class RemoteCall:
    """A call as a worker gets it. Its number identifies it in reports."""

    number: int
    account_id: str
    change: ProxyChange
    max_strikes: int  # proxy errors after which it ends; 0: no limit
    prefix: str  # start of its idempotency keys
    generation: int  # number of its earlier idempotency keys
    in_doubt: bool  # whether an earlier request may have applied the change


@frozen
class Shard:
    """The calls of one task for one process, as JSON. Dask logs its repr if the task fails."""

    token: str
    process: str  # the worker's `local_directory`, which Dask creates for each process
    key: str
    _calls: str = field(repr=False)  # with passwords

    @classmethod
    def of(cls, token: str, process: str, calls: list[RemoteCall]) -> "Shard":
        """Pack the *calls* of the rotation *token*."""
        packed = own_converter.unstructure(calls, list[RemoteCall])
        return cls(token, process, f"{token}-{calls[0].number}", json.dumps(packed))

    def calls(self) -> list[RemoteCall]:
        """Unpack the calls."""
        return own_converter.structure(json.loads(self._calls), list[RemoteCall])


def pack_error(error: PostPressError, account_id: str) -> bytes:
    """Pickle *error* without the texts of a response, which may be about the account."""
    facts, args = {**vars(error), "account_id": None}, error.args
    if isinstance(error, ApiError):
        instance = error.instance and error.instance.replace(account_id, _ID)
        facts |= {"title": "", "detail": None, "instance": instance}
        args = error.status, Problem(type=error.type), error.retry_after
    elif isinstance(error, AnswerError):
        args = "the response is invalid", error.status
    else:
        args = tuple(str(arg).replace(account_id, _ID) for arg in args)
    return pickle.dumps((type(error), args, facts))


def unpack_error(packed: bytes, account_id: str) -> PostPressError:
    """Return the error of `pack_error`."""
    kind, args, facts = pickle.loads(packed)  # noqa: S301 - from a worker, which runs our code anyway
    error: PostPressError = kind(
        *(arg.replace(_ID, account_id) if isinstance(arg, str) else arg for arg in args)
    )
    vars(error).update(facts, account_id=account_id)
    if isinstance(error, ApiError) and error.instance:
        error.instance = error.instance.replace(_ID, account_id)
    return error


def _portable(error: BaseException) -> BaseException:
    """Return *error*, or one with its text if the coordinator could not unpickle it."""
    try:
        pickle.loads(dumps(error))  # noqa: S301 - our own
    except Exception:  # raised by the error's class
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Hooks:
    """The `CallHooks` of a call. `resumable` is the last error that was still to be retried."""

    def __init__(self, call: RemoteCall, waits: WaitGroup, report: Callable[..., None]) -> None:
        self.waits: Final = waits
        self.resumable: PostPressError | None = None
        self._call: Final = call
        self._report: Final = report
        self._strikes = 0

    def on_call_started(self) -> None: ...

    def on_attempt_started(self, now: float) -> None: ...

    def on_attempt_failed(self, error: PostPressError) -> None:
        self._report("attempt_failed", self._call.number, pack_error(error, self._call.account_id))

    def on_backoff(self, backing_off: bool) -> None:
        self._report("backoff", self._call.number, backing_off)

    def should_give_up(self, error: PostPressError) -> bool:
        self.resumable = error
        if error.scope is not Scope.PROXY:
            return False
        self._strikes += 1
        return 0 < self._call.max_strikes <= self._strikes


class SessionPlugin(WorkerPlugin):  # type: ignore[misc] # it has no types
    """
    Opens a session on each worker, also on those that join later, and closes it after the rotation.

    Args:
        token: Identifies the rotation; also the plugin's name.
        settings: Arguments of the session. Without an API key, each worker reads its own environment.
        watched: Whether to report retries.

    Attributes:
        problem: Why this worker cannot carry out calls; None if it can.
    """

    _worker: Worker
    _session: PostPressSession
    _waits: WaitGroup
    _pacer: Pacer

    def __init__(self, token: str, settings: dict[str, Any], watched: bool) -> None:
        self.name: str = token
        self.problem: PostPressError | None = ClusterError("its setup failed, see its log")
        self._settings: Final = settings
        self._watched: Final = watched
        self._version: Final = __version__
        self._shards: Final[dict[str, set[asyncio.Task[None]]]] = {}
        self._storing: Final[dict[int, asyncio.Future[None]]] = {}  # by call number; see `_store_generation`
        self._reports: list[tuple[Any, ...]] = []
        self._paused = False

    def setup(self, worker: Worker) -> None:
        """Open the session. Dask would only log an exception, so the first shard raises it."""
        self._worker = worker
        try:
            if self._version != __version__:
                raise ClusterError(
                    f"the worker has postpress-async {__version__}, and the command has {self._version}: "
                    "install the same version"
                )
            observer = self._observe if self._watched else None
            session = self._session = PostPressSession(**self._settings, on_event=observer)
            self._waits = session._new_wait_group()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            self._pacer = session._context.pacer  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            self.problem = None
        except PostPressError as error:
            self.problem = error.with_traceback(None)

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Cancel all calls, and close the session."""
        for key in self._shards:
            self.transition(key, "executing", "released")
        if self.problem is None:
            await self._session.aclose(0.0)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Cancel a shard that the scheduler releases: the coordinator has given it up, or is gone."""
        if start in {"executing", "long-running"} and finish == "released":
            for task in self._shards.get(key, ()):
                task.cancel()

    async def run(self, shard: Shard) -> dict[int, BaseException]:
        """Carry out the calls of *shard*, and return the errors by number of the call."""
        errors: dict[int, BaseException] = {}
        tasks = {
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
                errors[int(task.get_name())] = _portable(error)  # raised by the retry strategy
        return errors

    def control(
        self,
        *,
        rate: float | None = None,
        stop: bool = False,
        pause: bool = False,
        stored: Iterable[int] = (),
    ) -> None:
        """
        Change what the worker does.

        Args:
            rate: The worker's share of the rate, in requests per second.
            stop: Whether to end all waits, and start no attempt.
            pause: Whether another worker found that the service is down.
            stored: Numbers of calls whose new generation of keys is stored.
        """
        if rate is not None:
            self._pacer.lease(rate)
        if pause:
            self._pacer.pause()
            self._paused = True  # the coordinator knows: do not report it
        if stop:
            self._waits.end()
        for number in stored:
            if number in self._storing:
                self._storing.pop(number).set_result(None)

    async def _carry_out(self, call: RemoteCall, errors: dict[int, BaseException]) -> None:
        number, account_id = call.number, call.account_id
        hooks = _Hooks(call, self._waits, self._report)
        keys = RowKeys(call.prefix, call.generation, number, self._store_generation, in_doubt=call.in_doubt)
        update = self._session._run_call  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        packed, resumable = b"", False
        try:
            attempts = (await update(account_id, call.change, keys, hooks)).attempts
        except PostPressError as error:
            errors[number] = error.with_traceback(None)
            packed, resumable, attempts = (
                pack_error(error, account_id),
                error is hooks.resumable,
                error.attempts,
            )
        finally:
            hooks.resumable = None  # its traceback refers to this frame: a reference cycle
        elapsed = attempts[-1].began + attempts[-1].elapsed - attempts[0].began if attempts else 0.0
        self._report("ended", number, len(attempts), elapsed, packed, resumable)

    async def _store_generation(self, number: int, generation: int) -> None:
        """Return once the coordinator has stored that the call uses keys of this generation."""
        self._storing[number] = stored = asyncio.get_running_loop().create_future()
        self._report("generation", number, generation)
        try:
            await stored
        finally:
            self._storing.pop(number, None)

    def _observe(self, event: events.Event) -> None:
        if isinstance(event, events.RetryScheduled) and (task := asyncio.current_task()) is not None:
            packed = pack_error(event.error, event.account_id)
            self._report("retry", int(task.get_name()), event.number, event.wait, packed)

    def _report(self, *report: Any) -> None:
        self._reports.append(report)

    def _send_reports(self) -> None:
        if self._pacer.paused is not self._paused:
            self._paused = not self._paused
            self._report("paused", 0, self._paused)
        if self._reports:
            reports = pickle.dumps(self._reports)  # bytes, which the scheduler need not decode
            event = {"token": self.name, "process": self._worker.local_directory, "reports": reports}
            self._worker.log_event(TOPIC, event)
            self._reports = []


async def run_shard(shard: Shard) -> dict[int, BaseException]:
    """
    Carry out a shard; see `SessionPlugin.run`. It is the task that Dask runs.

    Raises:
        ProcessLookupError: The shard was submitted for an earlier process at this address. If a worker is
            lost, the scheduler runs its tasks again.
        PostPressError: This worker cannot carry out any shard. Nothing was sent.
    """
    worker = get_worker()
    # It only waits, so it must not occupy one of the few slots that Dask has for tasks.
    worker.handle_stimulus(SecedeEvent(key=shard.key, compute_duration=0.0, stimulus_id=shard.key))
    if shard.process != worker.local_directory:
        raise ProcessLookupError(shard.process)
    plugin: Any = worker.plugins[shard.token]
    if plugin.problem is not None:
        raise plugin.problem
    errors: dict[int, BaseException] = await plugin.run(shard)
    return errors


def control(token: str, *, dask_worker: Worker, **changes: Any) -> None:
    """Call `SessionPlugin.control`. ``Client.run`` passes *dask_worker*."""
    plugin: Any = dask_worker.plugins.get(token)
    if plugin is not None and plugin.problem is None:
        plugin.control(**changes)


def dask_setup(_worker: object) -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes. Dask calls this if it preloads the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
