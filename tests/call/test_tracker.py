"""The life of a session: one loop, counted calls, and no call left waiting at its end."""

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from postpress_async import ManagedProxy, PostPressSession
from postpress_async._call.tracker import CallTracker
from postpress_async.errors import ConfigurationError, SessionClosedError

T = TypeVar("T")


class SkippingSelector(selectors.DefaultSelector):
    """Where a loop would sit and wait for a timer, its clock jumps to it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everyone waits, and nothing will ever come"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on which an hour takes no time."""

    def __init__(self) -> None:
        self.skipping = SkippingSelector()
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.now


def play(scene: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scene)


def now() -> float:
    return asyncio.get_running_loop().time()


async def work(tracker: CallTracker, seconds: float) -> None:
    """A call that takes so long."""
    with tracker:
        await asyncio.sleep(seconds)


async def wait(tracker: CallTracker, until: float) -> float:
    """Wait for what never comes; when it ended, by the loop's clock."""
    with pytest.raises(TimeoutError):
        with tracker.until(until):
            await asyncio.sleep(10_000.0)
    return now()


# --- Calls ---------------------------------------------------------------------------------------


async def test_calls_may_overlap() -> None:
    """Any number of tasks use one session."""
    tracker = CallTracker()
    with tracker, tracker:
        pass

    with tracker:
        pass


async def test_a_closed_session_takes_no_call() -> None:
    """The error says that the session is closed; a call does not reopen it."""
    tracker = CallTracker()
    await tracker.close(0)

    for _ in range(2):
        with pytest.raises(SessionClosedError, match="create a new one"), tracker:
            pass


def test_a_session_belongs_to_the_loop_that_first_uses_it() -> None:
    """The connections belong to that loop, and would hang in another one."""
    tracker = CallTracker()

    async def use() -> None:
        with tracker:
            await asyncio.sleep(0)

    play(use())
    with pytest.raises(ConfigurationError, match="one session per loop"):
        play(use())


def test_session_without_a_running_event_loop_says_so() -> None:
    """anyio's pytest plugin runs each test under trio too, where that is there. To close takes no loop."""

    async def scene() -> None:
        async with PostPressSession("pp_test") as session:
            await session.update_proxy("acc_1", ManagedProxy(country="US"))

    with pytest.raises(ConfigurationError, match="requires a running asyncio event loop"):
        scene().send(None)


def test_a_session_may_be_closed_in_another_loop() -> None:
    """A call that broke off with its loop will never end: closing does not wait for it."""
    tracker = CallTracker()

    async def break_off() -> None:
        tracker.__enter__()  # never left

    async def close() -> float:
        await tracker.close(100.0)
        return now()

    play(break_off())
    assert play(close()) == 0.0


# --- Closing -------------------------------------------------------------------------------------


def test_closing_an_idle_session_takes_no_time() -> None:
    """An idle session is unused, or closed, or all of its calls have ended."""

    async def scene() -> float:
        unused, used = CallTracker(), CallTracker()
        await unused.close(100.0)
        await work(used, 0.0)
        await used.close(100.0)
        await used.close(100.0)
        return now()

    assert play(scene()) == 0.0


@pytest.mark.parametrize(
    ("patience", "closed"),
    [
        pytest.param(5.0, 3.0, id="patience enough"),
        pytest.param(2.0, 2.0, id="too little"),
        pytest.param(0.0, 0.0, id="none"),
    ],
)
def test_closing_waits_for_the_last_call_and_no_longer_than_told(patience: float, closed: float) -> None:
    """Open calls may end; a call that hangs does not block the program."""

    async def scene() -> float:
        tracker = CallTracker()
        async with asyncio.TaskGroup() as group:
            for seconds in (1.0, 3.0, 2.0):
                group.create_task(work(tracker, seconds))
            await asyncio.sleep(0)
            await tracker.close(patience)
            return now()

    assert play(scene()) == pytest.approx(closed)


def test_no_call_begins_while_a_session_closes() -> None:
    """Else a busy program would never come to its end."""

    async def scene() -> None:
        tracker = CallTracker()
        async with asyncio.TaskGroup() as group:
            group.create_task(work(tracker, 3.0))
            await asyncio.sleep(0)
            group.create_task(tracker.close(5.0))
            await asyncio.sleep(1.0)

            with pytest.raises(SessionClosedError), tracker:
                pass

    play(scene())


def test_two_may_close_at_once() -> None:
    """An ``async with`` ends during `aclose`: both wait, each for its own timeout."""

    async def scene() -> list[float]:
        tracker = CallTracker()

        async def close(patience: float) -> float:
            await tracker.close(patience)
            return now()

        async with asyncio.TaskGroup() as group:
            group.create_task(work(tracker, 3.0))
            await asyncio.sleep(0)
            closings = [group.create_task(close(patience)) for patience in (1.0, 5.0, 10.0)]
        return [await closing for closing in closings]

    assert play(scene()) == pytest.approx([1.0, 3.0, 3.0])


def test_a_call_that_fails_is_over_too() -> None:
    """However it ends: by an error, or cancelled."""

    async def scene() -> float:
        tracker = CallTracker()
        with pytest.raises(KeyError), tracker:
            raise KeyError
        task = asyncio.create_task(work(tracker, 50.0))
        await asyncio.sleep(1.0)
        task.cancel()
        await tracker.close(100.0)
        return now()

    assert play(scene()) == 1.0


def test_closing_may_be_cancelled_and_begun_again() -> None:
    """An impatient user's second Ctrl-C leaves a session that can still be closed in order."""

    async def scene() -> float:
        tracker = CallTracker()
        async with asyncio.TaskGroup() as group:
            group.create_task(work(tracker, 3.0))
            await asyncio.sleep(0)
            closing = asyncio.create_task(tracker.close(50.0))
            await asyncio.sleep(1.0)
            closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled()
            await tracker.close(50.0)
            return now()

    assert play(scene()) == pytest.approx(3.0)


# --- Waiting and the end -------------------------------------------------------------------------


@pytest.mark.parametrize("until", [5.0, 0.0, -1.0], ids=["later", "now", "past"])
def test_a_wait_ends_when_its_time_is_up(until: float) -> None:
    """The loop's clock decides; a time in the past ends the wait at once."""
    assert play(wait(CallTracker(), until)) == pytest.approx(max(0.0, until))


def test_a_wait_that_is_not_in_vain_ends_quietly() -> None:
    """And leaves nothing behind in a session that lives for months."""

    async def scene() -> CallTracker:
        tracker = CallTracker()
        for until in (5.0, math.inf):
            with tracker.until(until):
                await asyncio.sleep(1.0)
        return tracker

    assert len(play(scene())._open) == 0


@pytest.mark.parametrize("until", [50.0, math.inf], ids=["deadline", "no deadline"])
def test_the_end_wakes_everyone_who_waits(until: float) -> None:
    """For a slot, for a turn, or to try again: nothing will come of it."""

    async def scene() -> list[float]:
        tracker = CallTracker()
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(wait(tracker, until)) for _ in range(10)]
            await asyncio.sleep(3.0)
            tracker.end()
        return [await waiter for waiter in waits]

    assert play(scene()) == [3.0] * 10


def test_after_the_end_nobody_begins_to_wait() -> None:
    """A call that comes to its wait a moment too late must not sit there for ever."""

    async def scene() -> float:
        tracker = CallTracker()
        tracker.end()
        assert tracker.ended
        return await wait(tracker, math.inf)

    assert play(scene()) == 0.0


def test_an_end_may_come_twice() -> None:
    """A session may be closed twice before its calls have run."""

    async def scene() -> float:
        tracker = CallTracker()
        waiting = asyncio.create_task(wait(tracker, math.inf))
        await asyncio.sleep(1.0)
        tracker.end()
        tracker.end()
        return await waiting

    assert play(scene()) == 1.0


def test_the_end_may_meet_a_wait_whose_time_is_up() -> None:
    """Two timers of one moment: what is expiring ends by itself, and the others are woken all the same."""

    async def scene() -> list[float]:
        tracker = CallTracker()
        waits = [asyncio.create_task(wait(tracker, until)) for until in (1.0, 1.0, 100.0, 100.0, math.inf)]
        await asyncio.sleep(0)
        failures: list[BaseException] = []

        def end() -> None:
            try:
                tracker.end()
            except BaseException as error:
                failures.append(error)

        asyncio.get_running_loop().call_at(1.0 + 1e-10, end)  # after theirs, in the same round of the loop
        ended = await asyncio.gather(*waits[:4])
        assert failures == []
        return [*ended, await waits[4]]

    assert play(scene()) == pytest.approx([1.0] * 5)


def test_a_wait_that_is_cancelled_is_cancelled() -> None:
    """The cancellation does not become a timeout, and the wait is removed."""

    async def scene() -> CallTracker:
        tracker = CallTracker()
        waiting = asyncio.create_task(wait(tracker, 50.0))
        await asyncio.sleep(1.0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        return tracker

    assert len(play(scene())._open) == 0


def test_an_error_within_a_wait_passes_through() -> None:
    """Also a `TimeoutError` that is not ours."""

    async def scene() -> float:
        for kind in (KeyError, TimeoutError):
            with pytest.raises(kind, match="inner"):
                with CallTracker().until(50.0):
                    raise kind("inner")
        return now()

    assert play(scene()) == 0.0
