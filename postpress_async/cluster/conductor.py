"""
The coordinator's rotation: one journal, one halt, one pool, and workers elsewhere that settle the accounts.

It is the engine of one machine with its workers taken out: rows are gathered into shards, Dask has each
executed by some worker, and the outcomes are recorded and judged here as if the accounts had been sent here.
"""

import asyncio
import math
import secrets
import time
from contextlib import suppress
from typing import Any, Final, Protocol

from postpress_async.cluster.attendance import AttendedRotation
from postpress_async.cluster.crew import Hand, Shard
from postpress_async.cluster.desk import Answer
from postpress_async.cluster.orders import Orders
from postpress_async.cluster.parcel import Sent
from postpress_async.errors import ClusterError, PostPressError
from postpress_async.rotation._outcome import outcome_without_proxy
from postpress_async.rotation._pending_rows import InputRows, PendingRow

SHARD: Final = 2_000
"""Rows of a shard, at most; and rows that a worker has before it gets no further shard."""

SMALLEST: Final = 50
"""Rows of a shard, where there are so many: the last ones are small, so that all workers end together."""

TRIED: Final = 100
"""Accounts that have been tried before shards get larger than the smallest, and a worker gets two of them: a
key that is refused is not to be tried on thousands."""

QUIET: Final = 0.05
"""Seconds without a new row after which a shard goes out that is not full."""

GONE: Final = 1.0
"""Seconds without a word after which a worker is lost that Dask has lost too."""

PATIENCE: Final = 5.0
"""Seconds for an answer of the scheduler."""

SCHEDULERLESS: Final = 10.0
"""Seconds without an answer of the scheduler after which the rotation ends: its workers leave with it."""

ASLEEP: Final = 1.0
"""Seconds between two looks at the workers, mostly 50 ms, after which this process was not running itself."""

AGAIN: Final = 20.0
"""Seconds without a word after which a worker that was given up, and that Dask still has, is given rows once
more: it may live, and have given us up."""

NOBODY: Final = 60.0
"""Seconds without a worker that can work after which the rotation ends."""


class Carrier(Protocol):
    """What a rotation needs of its cluster."""

    async def workers(self) -> frozenset[str]:
        """The addresses of those that are there; `OSError` where the scheduler cannot be asked."""
        ...

    async def carry(self, token: str, number: int, worker: str, /) -> None:
        """Have *worker* begin a shard; raises what it raised, or `OSError` where it was lost."""
        ...

    def attend(self, token: str, answer: Answer, /) -> None:
        """Have *answer* speak with the workers."""
        ...

    def dismiss(self, token: str, /) -> None:
        """Tell the workers that the rotation is over."""
        ...


class ClusterRotation(AttendedRotation):
    """
    A rotation on a cluster, made by ``cluster.rotate``; used like any other.

    Args:
        carrier: The cluster.
        orders: The settings of the workers; the constructor adds the run's name.
        key: The API key to send to the workers; None if each worker reads its own.
        rows: As `Rotation` has it, and so are *options*.
    """

    def __init__(
        self, carrier: Carrier, orders: Orders, key: str | None, rows: InputRows, **options: Any
    ) -> None:
        super().__init__(orders, key, rows, **options)
        self._carrier: Final = carrier
        self._token: Final = secrets.token_hex(12)
        self._numbers = 0
        self._fed_at = 0.0
        self._fed: Final = asyncio.Event()  # set while the feeder may go on
        self._able_at = time.monotonic()  # when there last was a worker that could work
        self._answered_at = time.monotonic()  # when the scheduler last did
        self._looked_at = math.inf  # when all workers were last looked at
        self._trouble: str | None = None

    # --- Sending out ---

    async def _work(self) -> None:
        self._carrier.attend(self._token, self._answer)
        feeder = asyncio.create_task(self._feed(), name="rotation-feeder")
        scout = asyncio.create_task(self._scout(), name="rotation-scout")
        try:
            while not self._is_done(feeder):
                self._look_for_losses()
                self._send_out(whole=not feeder.done())
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(QUIET):  # wait_for loses a cancellation, in Python 3.11
                        await self._news.wait()
        except PostPressError as error:
            self._abort(error)
        finally:
            self._carrier.dismiss(self._token)
            helpers = {feeder, scout, *self._helpers}
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            try:
                self._give_up_what_is_out()
            except PostPressError as error:  # the journal's
                self._abort(error)
            self._workers -= 1
            self._outcomes.end()

    def _is_done(self, feeder: "asyncio.Task[None]") -> bool:
        out = any(hand.shards for hand in self._hands.values())
        if self._stopping:
            return feeder.done() and not out
        return feeder.done() and not out and not self._buffer

    def _end_sending(self) -> None:
        super()._end_sending()
        self._fed.set()
        self._news.set()

    async def _feed(self) -> None:
        """Keep a shard's rows at hand, read from the input as they are needed."""
        try:
            while not self._stopping and (taken := await self._next_row()) is not None:
                await self._put(taken)
                self._fed_at = time.monotonic()
                if len(self._buffer) >= SHARD:
                    self._news.set()
                    self._fed.clear()
                    await self._fed.wait()
        except PostPressError as error:  # of the journal
            self._abort(error)
        self._news.set()

    async def _put(self, taken: PendingRow) -> None:
        if (row := await self._prepare(taken)) is None:
            return
        pooled = None
        if row.change is None:
            pooled = self._allocators[row.tag].give(row.account_id)
            if pooled is None:
                in_doubt = taken.maybe_sent
                place = row.ordinal, row.line, row.account_id
                await self._complete(outcome_without_proxy(*place, in_doubt=in_doubt))
                return
        self._buffer.append(Sent(taken, pooled))

    def _send_out(self, *, whole: bool) -> None:
        """Give rows to the workers that have fewest, until each has enough or none are left."""
        if self._stopping:
            return
        able = [hand for hand in self._hands.values() if hand.works]
        size = self._size(len(able))
        while able and self._buffer:
            quiet = time.monotonic() - self._fed_at > QUIET
            if whole and not quiet and len(self._buffer) < size:
                return
            hand = min(able, key=lambda hand: hand.out)
            if hand.out >= self._enough(size):
                return
            rows = [self._buffer.popleft() for _ in range(min(size, len(self._buffer)))]
            self._send(hand, rows)
            self._fed.set()

    def _enough(self, size: int) -> int:
        """Rows with which a worker needs no further shard of this *size* yet."""
        return size if self._monitor.tried < TRIED else max(size, min(SHARD, 2 * self._orders.pace.in_flight))

    def _size(self, workers: int) -> int:
        """So many rows that what is left makes two shards for each worker, within the edges."""
        if self._monitor.tried < TRIED:
            return SMALLEST
        if self.total is None or not workers:
            return SHARD
        out = sum(hand.out for hand in self._hands.values())
        left = self.total - self.summary.total - out
        return max(SMALLEST, min(SHARD, left // (2 * workers)))

    def _send(self, hand: Hand, rows: list[Sent]) -> None:
        self._numbers += 1
        shard = Shard(self._numbers, {sent.row.ordinal: sent for sent in rows})
        if not hand.shards:
            hand.heard = time.monotonic()
        hand.shards[shard.number] = shard
        self._help(self._carry(hand, shard), f"rotation-shard-{shard.number}")

    async def _carry(self, hand: Hand, shard: Shard) -> None:
        try:
            await self._carrier.carry(self._token, shard.number, hand.address)
        except OSError:
            pass  # the worker is gone, or the scheduler: the scout sees which
        except PostPressError as error:
            hand.unfit = self._trouble = f"{hand.address}: {error}"
        except Exception as error:  # what the worker could not even begin, such as an import
            hand.unfit = self._trouble = f"{hand.address}: {type(error).__name__}: {error}"
        if not shard.fetched:
            try:
                self._take_again(hand, shard)
            except PostPressError as error:  # the journal's
                self._abort(error)
        self._news.set()

    # --- Losses ---

    async def _scout(self) -> None:
        """See who is there."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    found = await self._carrier.workers()
            except OSError:  # TimeoutError is one
                found = frozenset()
            else:
                self._answered_at = time.monotonic()
            now = self._look()
            if now - self._answered_at > SCHEDULERLESS:
                again = "start it and its workers, and run the same command again"
                self._abort(ClusterError(f"the cluster's scheduler does not respond any more: {again}"))
            for address in found - self._hands.keys():
                self._hands[address] = Hand(address, now)
            for hand in self._hands.values():
                hand.there = hand.address in found
            self._news.set()
            await asyncio.sleep(0.5)

    def _look(self) -> float:
        """The time. Workers are not declared dead for the time during which this process was stopped."""
        now = time.monotonic()
        if (asleep := now - self._looked_at) > ASLEEP:
            self._answered_at += asleep
            self._able_at += asleep
            for hand in self._hands.values():
                hand.heard += asleep
        self._looked_at = now
        return now

    def _look_for_losses(self) -> None:
        now = self._look()
        for hand in self._hands.values():
            gone = not hand.there and hand.shards and now - hand.heard > GONE
            if (gone or hand.is_silent(now)) and not hand.lost:
                self._lose(hand)
            elif hand.lost and hand.there and now - hand.heard > AGAIN:
                hand.lost, hand.heard = False, now
        if any(hand.works for hand in self._hands.values()):
            self._able_at = now
            return
        unfit = bool(self._hands) and all(hand.unfit is not None for hand in self._hands.values())
        if not self._stopping and (unfit or now - self._able_at > NOBODY):
            raise ClusterError(
                f"the cluster has no usable worker ({self._trouble or 'no worker is connected'}): "
                "fix that, then run the same command again"
            )

    def _give_up_what_is_out(self) -> None:
        """Rows that were taken from the input and not settled get their word in the journal too."""
        self._stopping = True
        for hand in self._hands.values():
            for shard in tuple(hand.shards.values()):
                self._take_again(hand, shard)
        for sent in self._buffer:
            self._leave(sent)
        self._buffer.clear()
