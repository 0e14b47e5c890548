"""What the coordinator knows of each worker, and of each shard that is out."""

import asyncio
from typing import Final

from attrs import define, evolve, field

from postpress_async.cluster.channel import Inbox, Outbox
from postpress_async.cluster.parcel import Sent
from postpress_async.rotation._pool import PooledProxy

LOST: Final = 8.0
"""Seconds without a word after which a worker that has rows is given up, and others get them."""


@define(eq=False)
class Shard:
    """
    Rows that were sent to one worker.

    Attributes:
        number: By which the worker fetches it.
        rows: Those of which nothing is known yet, by ordinal.
        fetched: Whether the worker has come for it.
    """

    number: int
    rows: dict[int, Sent]
    fetched: bool = False

    def keep_generation(self, ordinal: int, generation: int) -> None:
        """Record the generation of keys from which another worker continues with this row."""
        sent = self.rows[ordinal]
        self.rows[ordinal] = evolve(sent, open=evolve(sent.open, generation=generation))

    def keep_proxy(self, ordinal: int, pooled: PooledProxy | None) -> None:
        """The row has another proxy of the pool now."""
        self.rows[ordinal] = evolve(self.rows[ordinal], pooled=pooled)

    def in_doubt(self) -> list[Sent]:
        """Its rows as another worker is to get them."""
        if not self.fetched:
            return list(self.rows.values())
        return [
            evolve(
                sent,
                open=evolve(sent.open, maybe_sent=True, recorded=sent.open.recorded and sent.open.maybe_sent),
            )
            for sent in self.rows.values()
        ]


@define(eq=False)
class Hand:
    """
    A worker.

    Attributes:
        address: By which Dask calls it.
        heard: When it last spoke, or got work, in seconds of a clock that only goes forward.
        peer: The process that speaks for it; None before its first word.
        there: Whether Dask's scheduler has it.
        lost: Whether it was given up, and has not spoken since.
        unfit: Why it cannot work; None where it can.
        shards: What it has.
        resting: Its accounts that back off.
        paused: Whether its calls pause.
        pauses: How often it found out that the service is out.
        unreachable: Whether it has made no connection to the API in its latest attempts, and never before.
        speaking: Held while one of its messages is taken in.
    """

    address: str
    heard: float
    peer: str | None = None
    there: bool = True
    lost: bool = False
    unfit: str | None = None
    shards: dict[int, Shard] = field(factory=dict)
    resting: int = 0
    paused: bool = False
    pauses: int = 0
    unreachable: bool = False
    outbox: Outbox = field(factory=Outbox)
    inbox: Inbox = field(factory=Inbox)
    speaking: asyncio.Lock = field(factory=asyncio.Lock)

    @property
    def out(self) -> int:
        """Rows that it has and has not settled."""
        return sum(len(shard.rows) for shard in self.shards.values())

    @property
    def works(self) -> bool:
        """Whether it can be given rows."""
        return self.there and not self.lost and self.unfit is None

    def is_silent(self, now: float) -> bool:
        """Whether it has rows, and nothing was heard of it for too long."""
        return bool(self.shards) and not self.speaking.locked() and now - self.heard > LOST
