"""What the coordinator knows about each worker, and about the calls that the worker has not reported yet."""

import asyncio
from typing import Any, Final

from attrs import define, field

from postpress_async.cluster._messages import RemoteCall
from postpress_async.models import AccountPatched, ProxyChange
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._row_keys import RowKeys

# Seconds of work that a worker has besides its requests in flight, so that it does not wait for a shard.
WORK_AHEAD: Final = 0.25
MAX_WINDOW: Final = 4_000  # maximum number of calls of a worker


class UnreportedError(Exception):
    """A worker did not report how a call ended. *maybe_sent* tells whether it may have sent the change."""

    def __init__(self, *, maybe_sent: bool) -> None:
        super().__init__(maybe_sent)
        self.maybe_sent: Final = maybe_sent


@define(eq=False)
class PendingCall:
    """A call that has not ended. A call that is submitted again becomes another object."""

    account_id: str
    change: ProxyChange
    keys: RowKeys
    hooks: AccountTask
    in_doubt: bool  # whether an earlier request may have applied the change
    result: "asyncio.Future[AccountPatched]" = field(init=False, factory=asyncio.Future)
    number: int = 0  # identifies it in reports; this and the next two are set when it is submitted
    worker: "RemoteWorker | None" = None
    shard_task: "asyncio.Task[dict[int, Any]] | None" = None  # returns the errors of the shard's calls
    has_failed: bool = False
    backing_off: bool = False
    storing_key: "asyncio.Task[None] | None" = None  # stores in the journal that the call uses its next key

    def message(self) -> RemoteCall:
        return RemoteCall(
            number=self.number,
            account_id=self.account_id,
            change=self.change,
            max_strikes=self.hooks.max_strikes,
            key_prefix=self.keys.prefix,
            key_generation=self.keys.generation,
            in_doubt=self.in_doubt,
        )

    def fail(self, error: Exception) -> None:
        self.has_failed = True
        if not self.result.done():
            self.result.set_exception(error)

    def set_backing_off(self, backing_off: bool) -> None:
        if self.worker is not None and self.backing_off is not backing_off:
            self.backing_off = backing_off
            self.worker.backing_off += 1 if backing_off else -1
            self.hooks.on_backoff(backing_off)

    def leave_worker(self) -> bool:
        """Remove the call from its worker. Returns False if no worker has it."""
        if self.worker is None or self.number not in self.worker.calls:
            return False
        self.set_backing_off(False)
        del self.worker.calls[self.number]
        return True


@define(eq=False)
class RemoteWorker:
    address: str  # a process that replaces this one may have the same address
    process: str  # its `local_directory`, which Dask creates for each process
    last_seen: float = 0.0  # the scheduler's time of its last heartbeat
    heard_at: float = 0.0  # the coordinator's time at which `last_seen` last changed
    is_lost: bool = False  # whether it has left the cluster, or sends no heartbeats
    problem: str | None = None  # why it cannot carry out calls
    rate: float = 0.0  # its share of the rate limit; 0 until it is set
    is_paused: bool = False  # whether its calls wait because the service is down
    cannot_connect: bool = False  # whether its latest attempt failed to connect to the API
    calls: dict[int, PendingCall] = field(factory=dict)  # not reported as ended, by number
    backing_off: int = 0  # number of its calls that are in backoff
    shard_tasks: "set[asyncio.Task[Any]]" = field(factory=set)  # each waits for one of its shards
    ended: int = 0  # number of its calls that ended since the last `measure_speed`
    speed: float = 0.0  # calls that end per second

    @property
    def is_usable(self) -> bool:
        return not self.is_lost and self.problem is None

    @property
    def load(self) -> int:
        return len(self.calls) - self.backing_off

    def window(self, in_flight: int) -> int:
        """The number of calls to give the worker if it has at most *in_flight* requests in flight."""
        return min(MAX_WINDOW, in_flight + max(in_flight, int(self.speed * WORK_AHEAD)))

    def measure_speed(self, seconds: float) -> None:
        """Update `speed`; *seconds* have passed since the last update."""
        self.speed, self.ended = self.ended / seconds, 0

    def on_listed(self, last_seen: float, now: float) -> None:
        """Update the worker from the scheduler's list. A new heartbeat means that it is not lost."""
        if self.last_seen != last_seen:
            self.last_seen, self.heard_at, self.is_lost = last_seen, now, False

    def lose(self) -> None:
        """Cancel the worker's shards, and fail its calls, so that other workers carry them out."""
        self.is_lost, self.rate = True, 0.0
        for task in self.shard_tasks:
            task.cancel()
        for call in tuple(self.calls.values()):
            call.leave_worker()
            call.fail(UnreportedError(maybe_sent=True))
