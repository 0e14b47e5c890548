"""A worker's line to the coordinator, which is spoken by hand: what it heeds, and what silence does."""

import asyncio
import pickle
from typing import Any

import pytest

from postpress_async import Pace, RetryPolicy
from postpress_async._http.lean_transport import LeanTransport
from postpress_async.cluster import post
from postpress_async.cluster.issuer import BEAT, FALLBACK
from postpress_async.cluster.orders import Orders
from postpress_async.cluster.post import ABANDONED, Post
from tests.support import KEY

URL = "http://127.0.0.1:1/v1"


class Line:
    """
    Connections to a coordinator with scripted answers.

    Attributes:
        up: Set while a connection can be made.
        says: The answer to whatever is asked after the first question.
    """

    def __init__(self, orders: Orders) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.says: dict[str, Any] = {"count": 0}
        self._hello: dict[str, Any] | None = {"orders": pickle.dumps(orders), "key": KEY}
        self._comms: list[Comm] = []

    async def connect(self, _: str, **__: Any) -> "Comm":
        await self.up.wait()
        self._comms.append(Comm(self))
        return self._comms[-1]

    def answer(self) -> dict[str, Any]:
        hello, self._hello = self._hello, None
        return hello or self.says

    def cut(self) -> None:
        """Have every connection closed, and none made."""
        self.up.clear()
        for comm in self._comms:
            comm.abort()


class Comm:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._closed = False

    async def write(self, _: Any) -> None: ...

    async def read(self) -> dict[str, Any]:
        return self._line.answer()

    def closed(self) -> bool:
        return self._closed

    def abort(self) -> None:
        self._closed = True


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    orders = Orders("run", URL, RetryPolicy(), Pace(rate=450.0), False, False, "lean")
    made = Line(orders)
    monkeypatch.setattr(post, "connect", made.connect)
    return made


async def opened(line: Line) -> Post:
    """A worker's line, whose beats are those that a test asks for."""
    made = Post("tcp://127.0.0.1:1", "token", "w1", {})
    await made.open()
    assert made._task is not None
    made._task.cancel()
    return made


async def beat(made: Post) -> None:
    made._take_answer(await made._ask(made._beat()))


async def test_a_worker_whose_line_is_gone_begins_nothing_until_it_is_back(line: Line) -> None:
    """Nor while it tries to connect: the same command, run again, sends the same accounts."""
    made = await opened(line)
    await asyncio.wait_for(made.room(), 1)
    line.cut()
    asking = asyncio.create_task(beat(made))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(made.room())
    await asyncio.sleep(0)
    assert not waiting.done()

    line.up.set()
    await asking
    await waiting
    await made._end()


async def test_without_an_issuer_a_worker_falls_back_to_an_even_split_until_it_is_back(line: Line) -> None:
    """The others may have less to send, and it more; but nobody can say so any more."""
    made = await opened(line)
    assert made._session is not None
    rate = made._session._context.pacer._rate_limiter
    line.says = {"count": 0, "rate": 900.0, "even": 500.0}
    await beat(made)
    assert rate.value == 900.0

    made._heed_silence(FALLBACK * 0.9)
    assert rate.value == 900.0
    made._heed_silence(FALLBACK * 1.1)
    assert rate.value == 500.0
    await beat(made)
    assert rate.value == 900.0

    assert not made.over
    made._heed_silence(ABANDONED + 1)
    assert made.over
    await made._end()


async def test_quarantine_and_pause_hold_as_soon_as_they_arrive(line: Line) -> None:
    """A worker asks with every heartbeat, and learns what others found out: well within a second."""
    made = await opened(line)
    assert made._session is not None
    assert not made._session.paused
    line.says = {"count": 0, "first": 0, "notes": [("out", "p:1"), ("pause",)]}
    await beat(made)

    assert made.quarantined == {"p:1"}
    assert made._session.paused
    assert made._beat()["pauses"] == 0  # it came from the coordinator, so it is not reported back
    assert 2 * BEAT < 1.0
    await made._end()


async def test_a_worker_sends_by_the_transport_that_was_asked_for(line: Line) -> None:
    """``--transport lean`` halves the processor that a worker takes, where it is the bound."""
    made = await opened(line)
    assert made._session is not None
    assert isinstance(made._session._context.transport, LeanTransport)
    await made._end()


async def test_a_worker_sends_no_idempotency_keys_if_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(Orders("run", URL, RetryPolicy(), Pace(), False, False, idempotency=False))
    monkeypatch.setattr(post, "connect", line.connect)
    made = await opened(line)
    assert made._session is not None
    assert made._session._idempotency is False
    await made._end()
