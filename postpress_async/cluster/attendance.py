"""
The coordinator's side of the messages between it and the workers of a rotation.

Outcomes are recorded and judged as if the accounts had been sent from here. Workers request proxies, the
generations of keys and their rate here, since all workers share them.
"""

import asyncio
import pickle
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from attrs import evolve
from distributed.protocol.pickle import dumps

from postpress_async import events
from postpress_async._safe_observer import SafeObserver
from postpress_async._version import __version__
from postpress_async.cluster.crew import Hand, Shard
from postpress_async.cluster.issuer import Issuer
from postpress_async.cluster.orders import Orders
from postpress_async.cluster.parcel import ENDED, PATCHED, Sent, ended_of, pack, patched_of, plain_change
from postpress_async.errors import Applied, ClusterError, JournalError, PostPressError
from postpress_async.models import AccountPatched
from postpress_async.rotation._engine import Rotation
from postpress_async.rotation._halt import Halt
from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation._outcome_queue import OutcomeQueue
from postpress_async.rotation._pending_rows import InputRows
from postpress_async.rotation._pool import PooledProxy, ProxyPool
from postpress_async.rotation._pool._allocator import ProxyAllocator, Quarantine

UNREAD: Final = 2_000
"""Maximum number of outcomes that wait until the caller iterates over them."""


async def _elsewhere(*_: object) -> AccountPatched:
    raise AssertionError("accounts are settled by the workers")


class AttendedRotation(Rotation):
    """
    A rotation whose accounts settle elsewhere.

    Args:
        orders: The settings of the workers; the constructor adds the run's name.
        key: The API key to send to the workers; None if each worker reads its own.
        rows: As `Rotation` has it, and so are *options*.
    """

    def __init__(
        self,
        orders: Orders,
        key: str | None,
        rows: InputRows,
        *,
        halt: Halt,
        pool: ProxyPool | None,
        observer: SafeObserver[events.Event] | None,
        **options: Any,
    ) -> None:
        # The one worker of this engine is `_work`, which has others work.
        super().__init__(_elsewhere, rows, in_flight=1, halt=halt, pool=pool, observer=observer, **options)
        self._outcomes = OutcomeQueue(UNREAD)
        self._orders: Final = orders
        self._key: Final = key
        self._hands: Final[dict[str, Hand]] = {}
        self._buffer: Final[deque[Sent]] = deque()
        self._news: Final = asyncio.Event()
        self._helpers: Final[set[asyncio.Task[None]]] = set()
        self._labels: Final = {} if pool is None else {pooled.label: pooled for pooled in pool}
        self._out: Final[set[str]] = set()  # labels in quarantine
        self._paused_at = 0.0
        self._issuer: Final = None if orders.pace.rate is None else Issuer(orders.pace.rate)

    # --- What is seen of it ---

    @property
    def retrying(self) -> int:
        """Accounts that back off now, on all workers."""
        return sum(hand.resting for hand in self._hands.values())

    @property
    def paused(self) -> bool:
        """Whether all workers pause: the service is out."""
        working = [hand for hand in self._hands.values() if hand.shards and not hand.lost]
        return bool(working) and all(hand.paused for hand in working)

    # --- Losses ---

    def _lose(self, hand: Hand) -> None:
        hand.lost = True
        hand.resting = 0
        for shard in tuple(hand.shards.values()):
            self._take_again(hand, shard)
        if self._issuer is not None:
            self._issuer.leave(hand.address)

    def _take_again(self, hand: Hand, shard: Shard) -> None:
        """Return the rest of a shard for the next free worker, or give it up if the run is stopping."""
        if hand.shards.pop(shard.number, None) is None:
            return
        for sent in shard.in_doubt():
            row = sent.row
            if not self._stopping and not (shard.fetched and self._leaves_doubts):
                self._buffer.append(sent)
            elif shard.fetched:
                place = row.ordinal, row.line, row.account_id
                outcome = Outcome(*place, State.UNKNOWN, 1, applied=Applied.UNKNOWN)
                self._record(outcome)
                if not self._stopping:
                    self._outcomes.put(outcome)
            else:
                self._leave(sent)

    def _leave(self, sent: Sent) -> None:
        """The run ends before this row was sent."""
        if sent.open.recorded or not isinstance(self._error, JournalError):  # else nothing can be recorded
            self._record_unsent(sent.open)

    def _help(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Have it done beside the others, no longer than the rotation lasts."""
        task = asyncio.create_task(work, name=name)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)

    # --- What workers say ---

    async def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a worker's request."""
        address, peer = question["worker"], question["peer"]
        hand = self._hands.get(address)
        if hand is None or (hand.peer is not None and hand.peer != peer):
            if hand is not None:
                self._lose(hand)  # another process has its place
            hand = self._hands[address] = Hand(address, time.monotonic())
        hand.peer = peer
        async with hand.speaking:
            hand.heard, hand.lost = time.monotonic(), False
            if question["op"] == "hello":
                return self._greet(hand, question["version"])
            if question["op"] == "shard":
                return await self._hand_over(hand, question["number"])
            try:
                await self._hear(hand, question)
            except Exception as error:  # the journal's, or a mistake of ours: it ends the rotation as it is
                self._abort(error)
            hand.heard = time.monotonic()
            return self._reply(hand, question)

    def _greet(self, hand: Hand, version: str) -> dict[str, Any]:
        if version != __version__:
            return {
                "refused": f"the worker has postpress-async {version}, and the command has {__version__}: "
                "install the same version"
            }
        orders = self._orders
        if self._issuer is not None:
            share = self._issuer.grant(hand.address, 0.0, wants=True, now=time.monotonic())
            orders = evolve(orders, pace=evolve(orders.pace, rate=share))
        orders = evolve(orders, run=self._run)
        for label in self._out:
            hand.outbox.put("out", label)
        return {"orders": dumps(orders), "key": self._key}

    async def _hand_over(self, hand: Hand, number: int) -> dict[str, Any]:
        if self._row_hashes is not None:
            try:
                await self._row_hashes.on_disk()
            except PostPressError as error:  # of the journal
                self._abort(error)
        shard = hand.shards.get(number)
        if shard is None or shard.fetched or self._stopping:
            return {}
        shard.fetched = True
        return {"rows": pack(shard.rows.values())}

    def _reply(self, hand: Hand, question: Mapping[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = {
            "count": hand.inbox.count,
            "first": hand.outbox.first,
            "notes": hand.outbox.parcel(),
            "recall": [number for number in question["shards"] if number not in hand.shards],
            "stop": self._stopping,
        }
        if self._issuer is not None:
            now = time.monotonic()
            wants = question["wants"]
            reply["rate"] = self._issuer.grant(hand.address, question["used"], wants=wants, now=now)
            reply["even"] = self._issuer.even
        return reply

    async def _hear(self, hand: Hand, question: Mapping[str, Any]) -> None:
        hand.outbox.has(question["count"])
        hand.resting = question["resting"]
        self._hear_of_pauses(hand, question)
        keeping: list[tuple[int, int]] = []
        for kind, *values in hand.inbox.fresh(question["first"], question["notes"]):
            try:
                if kind in {PATCHED, ENDED}:
                    await self._hear_of_outcome(hand, kind, *values)
                elif kind == "generation":
                    keeping.append(self._keep(hand, *values))
                else:
                    self._take_note(hand, kind, values)
            except PostPressError as error:  # of the journal; the other notes are heard all the same
                self._abort(error)
        if keeping:
            self._help(self._keep_on_disk(hand, keeping), "rotation-generations")
        self._news.set()

    async def _hear_of_outcome(self, hand: Hand, kind: str, number: int, ordinal: int, *fields: Any) -> None:
        if (sent := self._pop(hand, number, ordinal)) is not None:
            await self._complete(patched_of(sent.row, *fields) if kind == PATCHED else ended_of(*fields))

    def _hear_of_pauses(self, hand: Hand, question: Mapping[str, Any]) -> None:
        was_paused = self.paused
        hand.paused = question["paused"]
        if question["pauses"] > hand.pauses:
            hand.pauses = question["pauses"]
            for other in self._hands.values():
                if other is not hand and not other.paused and other.shards:
                    other.outbox.put("pause")
        if self.paused == was_paused:
            return
        now = time.monotonic()
        if self._observer is not None:
            ended = events.PauseEnded(now - self._paused_at)
            self._observer(events.PauseBegan() if self.paused else ended)
        self._paused_at = now

    def _hear_of_no_connection(self, hand: Hand, reason: str) -> None:
        """Halt once no worker has ever reached the API: one alone may have a network of its own."""
        hand.unreachable = True
        working = [hand for hand in self._hands.values() if hand.shards and not hand.lost]
        if not self._stopping and not self._monitor.connected and all(hand.unreachable for hand in working):
            self._halt_for(reason)

    @staticmethod
    def _pop(hand: Hand, number: int, ordinal: int) -> Sent | None:
        shard = hand.shards.get(number)
        return None if shard is None else shard.rows.pop(ordinal, None)

    def _keep(self, hand: Hand, number: int, ordinal: int, generation: int) -> tuple[int, int]:
        shard = hand.shards.get(number)
        if shard is not None and ordinal in shard.rows:
            shard.keep_generation(ordinal, generation)
        return ordinal, generation

    async def _keep_on_disk(self, hand: Hand, keeping: list[tuple[int, int]]) -> None:
        if self._journal is not None:
            try:
                await asyncio.gather(*(self._journal.keep_generation(*each) for each in keeping))
            except PostPressError as error:
                self._abort(error)
                return
        for each in keeping:
            hand.outbox.put("kept", *each)

    def _take_note(self, hand: Hand, kind: str, values: list[Any]) -> None:
        if kind == "end":
            (number,) = values
            if (shard := hand.shards.get(number)) is not None:
                self._take_again(hand, shard)
        elif kind == "unsent":
            number, ordinals = values
            for ordinal in ordinals:
                if (sent := self._pop(hand, number, ordinal)) is not None:
                    self._leave(sent)
        elif kind == "unreachable":
            self._hear_of_no_connection(hand, *values)
        elif kind == "broken":
            number, what = values
            self._abort(ClusterError(f"{hand.address} stopped because of a bug in postpress-async: {what}"))
        elif kind == "retry" and self._observer is not None:
            account_id, number, wait, error = values
            event = events.RetryScheduled(account_id, number, wait, pickle.loads(error))  # noqa: S301
            self._observer(event)
        elif (pool := self._allocators.get(None)) is not None:
            self._ask_the_pool(pool, hand, kind, values)

    def _ask_the_pool(self, pool: ProxyAllocator, hand: Hand, kind: str, values: list[Any]) -> None:
        if kind == "struck":
            pool.failed(self._labels[values[1]], values[2])
        elif kind == "worked":
            pool.worked(self._labels[values[1]], values[2])
        elif kind == "back":
            pool.take_back(self._labels[values[1]], may_have_it=values[2])
        elif kind == "wanted":
            number, ordinal, tried = values
            shard = hand.shards.get(number)
            given = None
            if shard is not None and ordinal in shard.rows:
                account_id = shard.rows[ordinal].account_id
                given = pool.give(account_id, but_not=[self._labels[label] for label in tried])
                shard.keep_proxy(ordinal, given)
            plain = None if given is None else [given.label, plain_change(given.proxy)]
            hand.outbox.put("given", number, ordinal, plain)

    def _on_proxy(self, proxy: PooledProxy, quarantine: Quarantine | None, failed: bool) -> None:
        super()._on_proxy(proxy, quarantine, failed)
        if failed:
            return
        label, note = proxy.label, "in" if quarantine is None else "out"
        self._out.discard(label) if quarantine is None else self._out.add(label)
        for hand in self._hands.values():
            hand.outbox.put(note, label)
