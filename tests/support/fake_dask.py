"""A fake of Dask in one process: its workers run the real plugin, with a stub of the session."""

import asyncio
import itertools
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed.protocol.pickle import dumps, loads
from distributed.scheduler import KilledWorker

from postpress_async import CustomProxy, ManagedProxy, Pace, events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.cluster import _worker
from postpress_async.cluster._coordinator import Coordinator
from postpress_async.cluster._messages import TOPIC
from postpress_async.errors import ApiError, DeadlineError, Problem
from postpress_async.models import AccountPatched, Attempt, ProxyChange
from postpress_async.rotation import Outcome, Rotation
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._input import Changes, make_rotation
from postpress_async.rotation._row_keys import RowKeys
from tests.support.virtual_loop import run

LATENCY = 0.1
"""Seconds after which the simulated API responds."""

IN_FLIGHT = 20
"""Concurrency limit of each worker if a test gives no other one."""

US = ManagedProxy(country="US")
CUSTOM = CustomProxy(host="p.example.com", port=8080, username="u", password="s3cret")

Script = Callable[["FakeWorker", str, ProxyChange, RowKeys, AccountTask], Awaitable[object]]
"""Simulates the API: called for each call of a worker. May return an `AccountPatched`, or raise."""

_current_worker: ContextVar["FakeWorker"] = ContextVar("worker")


def patched(account_id: str, attempts: int = 1) -> AccountPatched:
    """The result of a call."""
    return AccountPatched(account_id, (Attempt(1, 1e9, LATENCY),) * attempts)


class FakeWorker:
    """
    A Dask worker.

    Attributes:
        is_frozen: Whether it does nothing, as after SIGSTOP. It keeps what it receives until `thaw`.
        pacer: A stub that records the instructions of the coordinator.
    """

    def __init__(self, dask: "FakeDask", address: str) -> None:
        self.dask = dask
        self.address = address
        self.local_directory = f"/tmp/{address}-{next(dask.processes)}"
        self.plugins: dict[str, Any] = {}
        self.is_frozen = False
        self.pacer = SimpleNamespace(paused=False, rates=[], pauses=0)
        self.pacer.lease = self.pacer.rates.append
        self.pacer.pause = self._pause
        self._delayed_events: list[dict[str, Any]] = []  # while it is frozen

    @property
    def is_alive(self) -> bool:
        return self.dask.workers.get(self.address) is self

    def _pause(self) -> None:
        self.pacer.paused = True
        self.pacer.pauses += 1

    def handle_stimulus(self, _: object) -> None: ...

    def log_event(self, topic: str, event: dict[str, Any]) -> None:
        assert topic == TOPIC
        self.dask.events.append(event)
        if self.is_frozen:
            self._delayed_events.append(event)
        elif self.is_alive:
            asyncio.get_running_loop().call_soon(self.dask.deliver, event)

    def thaw(self) -> None:
        self.is_frozen = False
        for event in self._delayed_events:
            self.log_event(TOPIC, event)
        self._delayed_events.clear()

    def remove_plugin(self) -> None:
        """Have all shards fail that are submitted from now on."""
        [self._removed] = self.plugins.items()
        self.plugins.clear()

    def restore_plugin(self) -> None:
        self.plugins.update([self._removed])

    def install(self, pickled: bytes) -> None:
        plugin = loads(pickled)
        self.plugins[plugin.name] = plugin
        token = _current_worker.set(self)
        plugin.setup(self)
        _current_worker.reset(token)


class StubSession:
    """What the plugin needs of a session. `FakeDask.script` simulates the API."""

    def __init__(self, **settings: Any) -> None:
        self.worker = _current_worker.get()
        if self.worker.address in self.worker.dask.setup_errors:
            raise self.worker.dask.setup_errors[self.worker.address]
        self._waits = WaitGroup()
        tracker = SimpleNamespace(child=lambda: self._waits)
        self._context = SimpleNamespace(pacer=self.worker.pacer, tracker=tracker)
        self._permits = asyncio.Semaphore(settings["pace"].in_flight)

    async def _run_call(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask
    ) -> AccountPatched:
        dask = self.worker.dask
        async with self._permits:
            if self._waits.ended:
                raise DeadlineError("the rotation was stopped before the change was sent")
            dask.keys[account_id].append(keys.current)
            dask.sent[self.worker.address] += 1
            result = await dask.script(self.worker, account_id, change, keys, hooks)
        return result if isinstance(result, AccountPatched) else patched(account_id)

    async def aclose(self, timeout: float) -> None:
        assert timeout == 0.0
        self.worker.dask.closed.append(self.worker.address)


class FakeFuture:
    """The Dask future of a shard's task."""

    def __init__(self, dask: "FakeDask", address: str, shard: Any) -> None:
        self.address = address
        self.key = shard.key
        self._dask = dask
        self._shard = shard
        self._result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        dask.futures[self.key] = self
        self.start()

    @property
    def is_done(self) -> bool:
        return self._result.done()

    def start(self) -> None:
        """Run the task if there is a worker at its address."""
        if (worker := self._dask.workers.get(self.address)) is not None:
            self._task = asyncio.create_task(self._run(worker))

    async def _run(self, worker: FakeWorker) -> None:
        _current_worker.set(worker)
        result = await asyncio.gather(_worker.run_shard(loads(dumps(self._shard))), return_exceptions=True)
        if worker.is_alive and self.key in self._dask.futures:
            self._end(*result)

    def _end(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._result.set_exception(result)
        else:
            self._result.set_result(result)

    def fail(self) -> None:
        """Its worker was killed, and the scheduler does not run it on another one."""
        self._end(KilledWorker(self.key, cast("Any", SimpleNamespace(address=self.address)), 0))

    async def exception(self) -> Any:
        await asyncio.wait([self._result])
        return self._result.exception()

    async def _unpickled_result(self) -> Any:
        result = await self._result
        if self._dask.loses_results:
            raise ModuleNotFoundError("No module named 'strategy'")
        return loads(dumps(result))

    def __await__(self) -> Any:
        return self._unpickled_result().__await__()

    def release(self) -> None:
        del self._dask.futures[self.key]
        if self.address in self._dask.workers and not self.is_done:
            for plugin in self._dask.workers[self.address].plugins.values():
                plugin.transition(self.key, "long-running", "released")


class FakeDask:
    """
    A Dask client, its scheduler and its workers.

    Attributes:
        script: Simulates the API.
        workers: The workers that the scheduler lists, by address.
        setup_errors: Errors that opening a session raises, by address of the worker.
        is_gone: Whether the scheduler does not respond.
        submit_error: The error that submitting a task raises.
        loses_results: Whether the client cannot unpickle the results of tasks.
        keys: The idempotency keys of all calls, by account.
        sent: Number of calls that a worker started, by its address.
        shard_sizes: Number of calls of each shard.
        events: All events that workers logged.
        closed: Addresses of the workers whose session was closed.
    """

    def __init__(self, *workers: str, script: Script | None = None) -> None:
        self.script: Script = script or respond
        self.setup_errors: dict[str, Exception] = {}
        self.is_gone = self.loses_results = False
        self.submit_error: Exception | None = None
        self.keys: defaultdict[str, list[str]] = defaultdict(list)
        self.sent: Counter[str] = Counter()
        self.shard_sizes: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.closed: list[str] = []
        self.futures: dict[str, FakeFuture] = {}  # those that are not released, by key
        self.processes = itertools.count(1)
        self.coordinator: Coordinator | None = None
        self.workers: dict[str, FakeWorker] = {}
        self._plugin: bytes | None = None
        for address in workers:
            self.join(address)

    def join(self, address: str) -> FakeWorker:
        worker = self.workers[address] = FakeWorker(self, address)
        if self._plugin is not None:
            worker.install(self._plugin)
        return worker

    def kill(self, address: str, *, restarts: bool = False) -> None:
        """
        Kill a worker, and have the scheduler notice at once.

        If it *restarts* at the same address, the scheduler runs its tasks again there.
        """
        worker = self.workers.pop(address)
        for plugin in worker.plugins.values():
            for key in plugin._shards:
                plugin.transition(key, "executing", "released")
        if restarts:
            self.join(address)
        for future in [*self.futures.values()]:
            if future.address == address and not future.is_done:
                future.start() if restarts else future.fail()

    def deliver(self, event: dict[str, Any]) -> None:
        if self.coordinator is not None:
            self.coordinator.on_event(event)

    # --- The methods of a client that the coordinator uses ---

    @property
    def scheduler(self) -> "FakeDask":
        return self

    async def identity(self) -> dict[str, Any]:
        if self.is_gone:
            raise OSError("connection refused")
        now = asyncio.get_running_loop().time()
        return {
            "workers": {
                address: {
                    "last_seen": 0.0 if worker.is_frozen else now,
                    "local_directory": worker.local_directory,
                }
                for address, worker in self.workers.items()
            }
        }

    async def register_plugin(self, plugin: Any) -> None:
        self._plugin = dumps(plugin)
        for worker in self.workers.values():
            worker.install(self._plugin)

    async def unregister_worker_plugin(self, name: str) -> None:
        for worker in self.workers.values():
            await worker.plugins.pop(name).teardown(worker)

    def submit(self, function: Any, shard: Any, **options: Any) -> FakeFuture:
        assert function is _worker.run_shard
        if self.submit_error is not None:
            raise self.submit_error
        [address] = options.pop("workers")
        assert options == {"key": shard.key, "pure": False, "retries": 0}
        self.shard_sizes.append(len(shard.calls()))
        return FakeFuture(self, address, shard)

    async def run(self, function: Any, token: str, *, workers: list[str], **changes: Any) -> None:
        [address] = workers
        worker = self.workers[address]
        while worker.is_frozen:
            await asyncio.sleep(0.1)
        function(token, dask_worker=worker, **changes)


async def respond(worker: FakeWorker, *_: object) -> None:
    """Patch each account, after `LATENCY`."""
    await asyncio.sleep(LATENCY)
    while worker.is_frozen:
        await asyncio.sleep(0.1)


@asynccontextmanager
async def rotation_of(
    dask: FakeDask,
    changes: Changes,
    *,
    pace: Pace = Pace(in_flight=IN_FLIGHT),  # noqa: B008 - immutable
    on_event: events.Observer | None = None,
    **options: Any,
) -> AsyncIterator[Rotation]:
    """Enter a rotation on *dask*."""
    observer = None if on_event is None else SafeObserver(on_event)
    coordinator = dask.coordinator = Coordinator(cast("Any", dask), {"pace": pace}, observer)
    rotation = make_rotation(
        coordinator.update,
        changes,
        in_flight=50,
        target="https://api.example.com/v1",
        api_key=None,
        waits=coordinator.waits,
        observer=observer,
        executor=coordinator,
        **options,
    )
    async with rotation:
        yield rotation


@pytest.fixture
def fake_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the plugin open a `StubSession`, and find the `FakeWorker` on which it runs."""
    monkeypatch.setattr(_worker, "PostPressSession", StubSession)
    monkeypatch.setattr(_worker, "get_worker", _current_worker.get)


def accounts(count: int, change: ProxyChange = US) -> dict[str, ProxyChange]:
    return {f"acc_{number}": change for number in range(count)}


def api_error(type_: str, status: int, **fields: Any) -> ApiError:
    error = ApiError.of(status, Problem(type=type_, title="A title", **fields))
    error.attempts = (Attempt(1, 1e9, LATENCY, type_, status),)
    return error


def rotate(dask: FakeDask, changes: Any, **options: Any) -> tuple[Rotation, list[Outcome]]:
    """Run a whole rotation in virtual time, and return it with its outcomes."""

    async def main() -> tuple[Rotation, list[Outcome]]:
        async with rotation_of(dask, changes, **options) as rotation:
            outcomes = [outcome async for outcome in rotation]
        return rotation, outcomes

    return run(main())


def recorded(path: Path, columns: str = "account_id, state, applied") -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM outcomes ORDER BY ordinal").fetchall()
