"""A worker's rotation of one shard: the engine of one machine, its journal and pool at a distance."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Collection, Sequence
from typing import Final, Protocol

from attrs import evolve

from postpress_async._call.tracker import WaitGroup
from postpress_async.cluster.parcel import Sent, note_of
from postpress_async.errors import PostPressError
from postpress_async.rotation._account_task import Proxies
from postpress_async.rotation._engine import Rotation
from postpress_async.rotation._outcome import Outcome
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._pool import PooledProxy
from postpress_async.rotation._pool._allocator import Quarantine
from postpress_async.session import PostPressSession


class Post(Protocol):
    """What a shard needs of its worker's line to the coordinator."""

    quarantined: set[str]

    def put(self, *note: object) -> None:
        """Have the coordinator told."""
        ...

    async def room(self) -> None:
        """Wait while the coordinator, or this worker, is too far behind."""
        ...

    def kept(self, ordinal: int, generation: int, /) -> Awaitable[None]:
        """Ends when the coordinator has it on its disk."""
        ...

    def given(self, number: int, ordinal: int, /) -> Awaitable[PooledProxy | None]:
        """Ends with the proxy that the coordinator's pool gives."""
        ...


class Courier:
    """
    The journal of the shard *number*, which is the coordinator's.

    Args:
        post: By which notes go.
        number: The shard's.
    """

    def __init__(self, post: Post, number: int) -> None:
        self._post: Final = post
        self._number: Final = number
        self.attempts: int = 0

    def record(self, outcome: Outcome) -> None:
        """See `OutcomeSink`."""
        self.attempts += outcome.attempts
        self._post.put(*note_of(self._number, outcome))

    def record_proxy(self, label: str, quarantine: Quarantine | None, *, failed: bool) -> None:
        """Nothing: the coordinator's pool sees it before us, by `DistantPool.failed`."""

    def halted(self, reason: str) -> None:
        """Nothing: it is the coordinator that halts."""

    def interrupted(self) -> None:
        """Nothing, as above."""

    def reopen(self, error_type: str) -> None:
        """Nothing, as above."""

    def unsent(self, ordinals: list[int]) -> None:
        """Take the rows that were never begun. What the journal has to say of them, the coordinator knows."""
        self._post.put("unsent", self._number, ordinals)

    def unreachable(self, reason: str) -> None:
        """Say that no connection to the API was made here, and why."""
        self._post.put("unreachable", reason)

    async def room(self) -> None:
        """See `OutcomeSink`. It also keeps a worker that is cut off from sending on and on."""
        await self._post.room()

    async def keep_generation(self, ordinal: int, generation: int) -> None:
        """See `OutcomeSink`."""
        self._post.put("generation", self._number, ordinal, generation)
        await self._post.kept(ordinal, generation)

    async def aclose(self) -> None:
        """Say that nothing more comes of this shard."""
        self._post.put("end", self._number)


class DistantPool:
    """
    The coordinator's pool. The first proxy of each row has come with it; further ones are asked for.

    Args:
        post: By which notes go.
        number: The shard's.
        rows: Those of the shard.
    """

    def __init__(self, post: Post, number: int, rows: Sequence[Sent]) -> None:
        self._post: Final = post
        self._number: Final = number
        self._first: Final[defaultdict[str, deque[Sent]]] = defaultdict(deque)
        for sent in rows:
            if sent.pooled is not None:
                self._first[sent.account_id].append(sent)
        self._ordinals: Final[dict[str, int]] = {}

    def give(
        self, account_id: str, *, but_not: Collection[PooledProxy] = ()
    ) -> PooledProxy | Awaitable[PooledProxy | None] | None:
        """See `Proxies`."""
        if not but_not:
            sent = self._first[account_id].popleft()
            self._ordinals[account_id] = sent.open.row.ordinal
            if sent.pooled is not None and self.may_retry(sent.pooled):
                return sent.pooled
            if sent.pooled is not None:
                self.take_back(sent.pooled)
        ordinal = self._ordinals[account_id]
        self._post.put("wanted", self._number, ordinal, [proxy.label for proxy in but_not])
        return self._post.given(self._number, ordinal)

    @property
    def must_wait(self) -> bool:
        """See `Proxies`. Never True: the coordinator answers when it has a proxy."""
        return False

    async def wait(self, _waits: WaitGroup, /) -> bool:
        """See `Proxies`."""
        return False

    def failed(self, proxy: PooledProxy, account_id: str) -> None:
        """See `Proxies`."""
        self._post.put("struck", self._number, proxy.label, account_id)

    def worked(self, proxy: PooledProxy, account_id: str) -> None:
        """See `Proxies`."""
        self._post.put("worked", self._number, proxy.label, account_id)

    def take_back(self, proxy: PooledProxy, *, may_have_it: bool = False) -> None:
        """See `Proxies`."""
        self._post.put("back", self._number, proxy.label, may_have_it)

    def may_retry(self, proxy: PooledProxy) -> bool:
        """See `Proxies`."""
        return proxy.label not in self._post.quarantined


class _Rows:
    """The open rows of a shard, which were taken from the journal by the coordinator."""

    def __init__(self, rows: Sequence[Sent]) -> None:
        self._rows: Final = iter(rows)
        self.last_taken: Final = asyncio.Event()

    def left(self) -> list[int]:
        """The ordinals of those that nobody took; from now on nobody does."""
        return [sent.row.ordinal for sent in self._rows]

    async def next(self) -> PendingRow | None:
        if (sent := next(self._rows, None)) is None:
            self.last_taken.set()
            return None
        return sent.open


class ShardRotation(Rotation):
    """
    The rotation of one shard on a worker. What came of an account goes by the courier, and only so.

    Args:
        session: The worker's, shared by all its shards.
        run: The name of the rotation, of which the keys are made.
        rows: The shard's.
        courier: Takes what comes of them.
        pool: Gives the proxies; None where each row has its change.
        in_flight: Accounts worked on at once.
    """

    def __init__(
        self,
        session: PostPressSession,
        run: str,
        rows: Sequence[Sent],
        courier: Courier,
        pool: Proxies | None,
        in_flight: int,
    ) -> None:
        super().__init__(
            session._run_call,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            iter(()),
            in_flight=in_flight,
            finite=True,
            waits=session._new_wait_group(),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        )
        self._run = run
        self._taken: Final = _Rows(rows)
        self._courier: Final = courier
        self._journal = courier
        self._outcomes.abandon()  # nobody is here to listen
        self._runner = evolve(self._runner, pools={} if pool is None else {None: pool})

    @property
    def last_taken(self) -> asyncio.Event:
        """Set when no row of it waits to be begun any more."""
        return self._taken.last_taken

    def stop(self) -> None:
        """See `Rotation`. Reports rows that were not started, so that no caller waits for them."""
        super().stop()
        if left := self._taken.left():
            self._courier.unsent(left)

    async def _open(self) -> None:
        self._row_source.read = self._taken.next

    def _check_halt(self, outcome: Outcome) -> None:
        """The coordinator halts, for it sees the outcomes of all workers."""

    def _record_halt(self) -> None:
        """Nothing, as above."""

    def _on_attempt_failed(self, error: PostPressError) -> None:
        # An attempt that failed is no outcome yet, and an outage is waited out: tell the coordinator.
        if (reason := self._monitor.attempt_failed(error)) is not None:
            self._courier.unreachable(reason)
