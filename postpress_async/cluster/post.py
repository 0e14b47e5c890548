"""
A worker's part of a rotation: one session for all its shards, and one line to the coordinator.

It lives on the worker's event loop from the first shard on, until the coordinator says that the rotation
is over, or has not been heard of for long.
"""

import asyncio
import pickle
import secrets
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final

from distributed import get_worker
from distributed.comm.core import Comm, connect

from postpress_async import events
from postpress_async._version import __version__
from postpress_async.cluster.channel import Inbox, Outbox
from postpress_async.cluster.courier import Courier, DistantPool, ShardRotation
from postpress_async.cluster.issuer import BEAT, FALLBACK, Usage
from postpress_async.cluster.orders import Orders
from postpress_async.cluster.parcel import pooled_of, unpack
from postpress_async.errors import ClusterError
from postpress_async.pace._pacer import Pacer
from postpress_async.rotation._pool import PooledProxy
from postpress_async.session import PostPressSession

ROOM: Final = 500
"""Outcomes that the coordinator may be behind before no further row is begun: so many are sent a second time
if the worker, or the way to it, is lost."""

FRESH: Final = 2.0
"""Seconds without an answer of the coordinator after which no further row is begun."""

ABANDONED: Final = 30.0
"""Seconds after which the coordinator is taken for dead, and the rows that are left for nobody's."""

PATIENCE: Final = 5.0
"""Seconds for a connection, or for an answer, before a new connection is made."""


class Post:
    """
    A worker's line to the coordinator at *desk*, for the rotation of this *token*.

    Attributes:
        quarantined: Labels of the pool's proxies that are out, as far as is known here.
        over: Whether nothing is to be done here any more.
    """

    def __init__(self, desk: str, token: str, worker: str, connection_args: dict[str, Any]) -> None:
        self.quarantined: set[str] = set()
        self._desk: Final = desk
        self._token: Final = token
        self._worker: Final = worker
        self._connection_args: Final = connection_args
        self._peer: Final = secrets.token_hex(8)
        self._outbox: Final = Outbox()
        self._inbox: Final = Inbox()
        self._comm: Comm | None = None
        self._talking: Final = asyncio.Lock()  # one question at a time
        self._heard = time.monotonic()
        self._cut_off = False
        self._news: Final = asyncio.Event()
        self._urgent: Final = asyncio.Event()
        self._kept: Final[dict[tuple[int, int], asyncio.Future[None]]] = {}
        self._given: Final[dict[tuple[int, int], asyncio.Future[PooledProxy | None]]] = {}
        self._shards: Final[dict[int, tuple[ShardRotation, asyncio.Task[None]]]] = {}
        self._attempts = 0
        self._couriers: Final[dict[int, Courier]] = {}
        self._usage: Final = Usage()
        self._pauses = 0  # found out by this worker's own calls
        self._paused = False
        self._even: float | None = None
        self.over: bool = False
        self._task: asyncio.Task[None] | None = None
        self._session: PostPressSession | None = None
        self._orders: Orders | None = None

    async def open(self) -> None:
        """
        Ask for the orders, and begin to talk.

        Raises:
            ClusterError: The coordinator cannot be reached, or has another version.
            ConfigurationError: There is no API key here.
        """
        try:
            answer = await self._ask({"op": "hello", "version": __version__})
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"{self._worker} cannot reach the command that runs the rotation, at {self._desk} ({error}): "
                "allow connections from the workers' machines"
            ) from None
        if "refused" in answer:
            raise ClusterError(answer["refused"])
        if answer.get("over"):
            self.over = True
            return
        orders: Orders = pickle.loads(answer["orders"])  # noqa: S301 - the sender may run code here anyway
        self._orders = orders
        self._session = PostPressSession(
            answer["key"],
            base_url=orders.base_url,
            retry=orders.retry,
            pace=orders.pace,
            idempotency=orders.idempotency,
            transport=orders.transport,
            trust_env=orders.trust_env,
            on_event=self._observe if orders.watched else None,
        )
        self._take_answer(answer)
        self._task = asyncio.create_task(self._talk(), name="postpress-post")

    async def begin(self, number: int) -> None:
        """
        Fetch the shard of this *number*, and carry it out; return when the last of its rows is on its way.

        What comes of them goes by notes; the last says that nothing more comes. A shard that is somebody
        else's by now is not begun.
        """
        if self.over:
            return
        answer = await self._ask({"op": "shard", "number": number})
        if "rows" not in answer:
            return
        assert self._session is not None  # noqa: S101 - it is opened
        assert self._orders is not None  # noqa: S101
        rows = unpack(answer["rows"])
        courier = Courier(self, number)
        pool = DistantPool(self, number, rows) if self._orders.pooled else None
        rotation = ShardRotation(
            self._session, self._orders.run, rows, courier, pool, self._orders.pace.in_flight
        )
        task = asyncio.create_task(self._carry_out(number, rotation), name=f"postpress-shard-{number}")
        self._shards[number] = rotation, task
        self._couriers[number] = courier
        ended = asyncio.create_task(rotation.last_taken.wait())
        try:
            await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()

    async def _carry_out(self, number: int, rotation: ShardRotation) -> None:
        try:
            async with rotation:
                await rotation.run()
        except Exception as error:
            self.put("broken", number, f"{type(error).__name__}: {error}")
        finally:
            del self._shards[number]
            self._attempts += self._couriers.pop(number).attempts

    # --- What a shard needs ---

    def put(self, *note: object) -> None:
        """Have the coordinator told, within some 50 ms."""
        self._outbox.put(*note)

    @property
    def is_behind(self) -> bool:
        """Whether the coordinator is far behind, or was not heard of lately."""
        if self.over:
            return False
        return self._cut_off or len(self._outbox) > ROOM or time.monotonic() - self._heard > FRESH

    async def room(self) -> None:
        """Return once that is over."""
        while self.is_behind:
            self._news.clear()
            await self._news.wait()

    def kept(self, ordinal: int, generation: int) -> Awaitable[None]:
        """Ends when the coordinator has it on its disk."""
        self._urgent.set()
        return self._kept.setdefault((ordinal, generation), asyncio.get_running_loop().create_future())

    def given(self, number: int, ordinal: int) -> Awaitable[PooledProxy | None]:
        """Ends with the proxy that the coordinator's pool gives."""
        self._urgent.set()
        return self._given.setdefault((number, ordinal), asyncio.get_running_loop().create_future())

    def _observe(self, event: events.Event) -> None:
        if isinstance(event, events.RetryScheduled):
            self.put("retry", event.account_id, event.number, event.wait, pickle.dumps(event.error))

    # --- The line ---

    async def _talk(self) -> None:
        watch = asyncio.create_task(self._watch())
        try:
            while not self.over:
                with suppress(OSError, TimeoutError):
                    self._take_answer(await self._ask(self._beat()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT):
                        await self._urgent.wait()
                self._urgent.clear()
        finally:
            watch.cancel()
            await self._end()

    async def _watch(self) -> None:
        """Without the coordinator, fall back to an even split of the rate, and to an end at last."""
        while not self.over:
            await asyncio.sleep(FALLBACK / 4)
            self._heed_silence(time.monotonic() - self._heard)

    @property
    def _pacer(self) -> Pacer:
        assert self._session is not None  # noqa: S101 - it is opened
        return self._session._context.pacer  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    def _heed_silence(self, seconds: float) -> None:
        if self._even is not None and seconds > FALLBACK and self._session is not None:
            self._pacer.lease(self._even)
        if seconds > ABANDONED:
            self.over = True

    def _beat(self) -> dict[str, Any]:
        pacer = self._pacer
        self._pauses += pacer.paused and not self._paused
        self._paused = pacer.paused
        sent = self._attempts + sum(courier.attempts for courier in self._couriers.values())
        return {
            "op": "beat",
            "first": self._outbox.first,
            "notes": self._outbox.parcel(),
            "count": self._inbox.count,
            "shards": list(self._shards),
            "resting": sum(rotation.retrying for rotation, _ in self._shards.values()),
            "used": self._usage.saw(sent, time.monotonic()),
            "wants": pacer.waiting > 0 and not pacer.paused and pacer.in_flight < pacer.limit,
            "paused": pacer.paused,
            "pauses": self._pauses,
        }

    async def _ask(self, question: dict[str, Any]) -> Any:
        """
        The coordinator's answer.

        Raises:
            OSError: The connection is lost, or cannot be made.
            TimeoutError: No answer came.
        """
        question = {**question, "token": self._token, "peer": self._peer, "worker": self._worker}
        async with self._talking:
            try:
                if self._comm is None or self._comm.closed():
                    self._cut_off = True  # what is begun until there is another may be sent a second time
                    self._comm = await connect(self._desk, timeout=PATIENCE, **self._connection_args)
                async with asyncio.timeout(PATIENCE):
                    comm: Any = self._comm  # of Dask's, whose types are half there
                    await comm.write(question)
                    answer = await comm.read()
            except BaseException:
                self._hang_up()  # an answer that comes later would be taken for another question's
                self._cut_off = True
                raise
        self._heard, self._cut_off = time.monotonic(), False
        return answer

    def _hang_up(self) -> None:
        comm, self._comm = self._comm, None
        if comm is not None:
            comm.abort()

    def _take_answer(self, answer: dict[str, Any]) -> None:
        if answer.get("over"):
            self.over = True
            return
        self._outbox.has(answer.get("count", 0))
        if (rate := answer.get("rate")) is not None and self._session is not None:
            self._pacer.lease(rate)
            self._even = answer["even"]
        for note in self._inbox.fresh(answer.get("first", 0), answer.get("notes", ())):
            self._take_note(*note)
        for number in answer.get("recall", ()):
            if number in self._shards:
                self._shards[number][1].cancel()  # somebody else has its rows by now
        if answer.get("stop"):
            for rotation, _ in tuple(self._shards.values()):
                rotation.stop()
        self._news.set()

    def _take_note(self, kind: str, *values: Any) -> None:
        if kind == "kept":
            ordinal, generation = values
            _set(self._kept.pop((ordinal, generation), None), None)
        elif kind == "given":
            number, ordinal, proxy = values
            _set(self._given.pop((number, ordinal), None), pooled_of(proxy))
        elif kind == "out":
            self.quarantined.update(values)
        elif kind == "in":
            self.quarantined.difference_update(values)
        elif kind == "pause" and self._session is not None:
            self._pacer.pause()
            self._paused = True  # not found out here, and so not to be told on

    async def _end(self) -> None:
        self.over = True
        self._news.set()
        waiting: list[asyncio.Future[Any]] = [*self._kept.values(), *self._given.values()]
        for future in waiting:
            future.cancel()
        tasks = [task for _, task in self._shards.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hang_up()
        if self._session is not None:
            await self._session.aclose(0.0)


def _set(waiting: "asyncio.Future[Any] | None", value: Any) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(value)


_posts: Final[dict[tuple[str, str], asyncio.Task[Post]]] = {}
"""By worker and rotation: several workers may share a process."""


async def settle_shard(desk: str, token: str, number: int) -> None:
    """
    The task that Dask runs on a worker. Its arguments hold no row, and it has no result.

    Args:
        desk: Where the coordinator listens.
        token: Which rotation.
        number: Which shard of it.
    """
    worker = get_worker()
    key = worker.address, token
    for other, opening in tuple(_posts.items()):  # of rotations that are over
        if opening.done() and (opening.cancelled() or opening.exception() or opening.result().over):
            del _posts[other]
    if key not in _posts:
        post = Post(desk, token, worker.address, worker.security.get_connection_args("worker"))
        _posts[key] = asyncio.create_task(_opened(post))
    post = await asyncio.shield(_posts[key])
    await post.begin(number)


async def _opened(post: Post) -> Post:
    await post.open()
    return post
