"""One timer serves many waits; a wait that ends before its timeout needs no timer."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from postpress_async._timeouts import TimeoutGroup
from tests.support.virtual_loop import VirtualLoop

T = TypeVar("T")


def play(scene: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """The result of *scene*, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(scene(loop))


async def wait(timeouts: TimeoutGroup, seconds: float, needed: float = 1e6) -> tuple[bool, float]:
    """Whether *needed* seconds were to be had, and when that was known."""
    loop = asyncio.get_running_loop()
    try:
        with timeouts.within(seconds):
            await asyncio.sleep(needed)
    except TimeoutError:
        return False, loop.time()
    return True, loop.time()


@pytest.mark.parametrize("seconds", [5.0, 0.001, 0.0, -1.0])
def test_a_wait_that_is_too_long_is_ended(seconds: float) -> None:
    """Also one whose time was up before it began: its first pause is its last."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts = TimeoutGroup()
        done, when = await wait(timeouts, seconds)
        assert not done
        assert when == pytest.approx(max(seconds, 0.0))
        assert len(timeouts._open) == 0

    play(scene)


def test_work_finished_in_time_is_not_cancelled() -> None:
    """A timeout that passes afterwards has no effect."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts = TimeoutGroup()
        assert await wait(timeouts, 5.0, 1.0) == (True, 1.0)
        await asyncio.sleep(10.0)
        assert len(timeouts._open) == 0

    play(scene)


def test_a_thousand_waits_that_end_in_time_set_one_timer() -> None:
    """`TimeoutGroup` exists to set one timer instead of a thousand."""

    async def scene(loop: VirtualLoop) -> int:
        timeouts, ready = TimeoutGroup(), asyncio.sleep(0)
        await ready
        before = loop.timers
        for _ in range(1000):
            with timeouts.within(30.0):
                await asyncio.sleep(0)
        return loop.timers - before

    assert play(scene) == 1


def test_each_ends_at_its_own_time() -> None:
    """Regardless of their order, and of those that ended before them."""

    async def scene(loop: VirtualLoop) -> list[tuple[bool, float]]:
        timeouts = TimeoutGroup()
        return await asyncio.gather(*(wait(timeouts, seconds) for seconds in (7.0, 3.0, 9.0, 3.0, 5.0)))

    ended = play(scene)
    assert [done for done, _ in ended] == [False] * 5
    assert [when for _, when in ended] == pytest.approx([7.0, 3.0, 9.0, 3.0, 5.0], abs=1e-4)


def test_many_that_end_one_after_the_other_are_not_looked_at_each_time() -> None:
    """Ten thousand calls to a silent server end in a second; a look at all for each would take minutes."""

    async def scene(loop: VirtualLoop) -> tuple[int, float]:
        timeouts = TimeoutGroup()
        waits = [asyncio.create_task(wait(timeouts, 1.0 + number * 1e-6)) for number in range(10_000)]
        await asyncio.sleep(0)
        before = loop.timers
        await asyncio.gather(*waits)
        late = max(waits[number].result()[1] - (1.0 + number * 1e-6) for number in range(10_000))
        return loop.timers - before, late

    looks, late = play(scene)
    assert looks < 50
    assert late < 0.02


def test_a_loop_whose_clock_ticks_early_ends_it_all_the_same() -> None:
    """A timer may fire a tick before its time; what it is for must not be put off and looked for again."""

    async def scene(loop: VirtualLoop) -> int:
        timeouts = TimeoutGroup()
        waiting = asyncio.create_task(wait(timeouts, 5.0))
        await asyncio.sleep(1.0)
        before = loop.timers
        timeouts._on_timer()  # as if 5.0 had come by the timer's clock
        assert (await waiting)[0] is False
        return loop.timers - before

    assert play(scene) == 0


def test_cancellation_during_the_timeout_stays_a_cancellation() -> None:
    """A cancelled caller gets CancelledError, even if the timeout expires at the same time."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts = TimeoutGroup()
        before, together = (asyncio.create_task(wait(timeouts, 5.0)) for _ in range(2))
        await asyncio.sleep(1.0)
        before.cancel()
        loop.call_at(5.0, together.cancel)
        await asyncio.wait([before, together])

        assert before.cancelled()
        assert together.cancelled()
        assert len(timeouts._open) == 0

    play(scene)


def test_a_wait_within_a_cancelled_task_still_has_its_end() -> None:
    """A task that is being cancelled may tidy up, and its tidying has a limit of its own."""

    async def scene(loop: VirtualLoop) -> tuple[bool, float]:
        timeouts, found = TimeoutGroup(), []

        async def tidying() -> None:
            try:
                await asyncio.sleep(1000.0)
            finally:
                found.append(await wait(timeouts, 2.0))

        task = asyncio.create_task(tidying())
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return found[0]

    assert play(scene) == (False, 3.0)


def test_an_error_inside_passes_through() -> None:
    """The error is not converted to a timeout."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts = TimeoutGroup()
        with pytest.raises(KeyError), timeouts.within(5.0):
            raise KeyError
        assert len(timeouts._open) == 0

    play(scene)


def test_one_that_catches_the_cancellation_of_its_time_goes_on() -> None:
    """Foreign code may; then nothing is owed, and the task is not cancelled once more."""

    async def scene(loop: VirtualLoop) -> int:
        timeouts = TimeoutGroup()
        with timeouts.within(1.0) as limit:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(10.0)
        assert limit.expired
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(1.0)
        return task.cancelling()

    assert play(scene) == 0


def test_end_ends_all_waits() -> None:
    """Open waits end at once, whatever their timeout, and so do later ones."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts = TimeoutGroup()
        waits = [asyncio.create_task(wait(timeouts, seconds)) for seconds in (5.0, 1000.0, float("inf"))]
        await asyncio.sleep(1.0)
        timeouts.end()
        timeouts.end()

        assert await asyncio.gather(*waits) == [(False, 1.0)] * 3
        assert await wait(timeouts, 5.0) == (False, 1.0)
        assert timeouts.ended
        assert len(timeouts._open) == 0

    play(scene)


def test_the_end_may_come_after_the_loop_s() -> None:
    """A session that is closed in a second loop has tasks of the first, which will never run again."""
    timeouts = TimeoutGroup()
    loop = VirtualLoop()
    stuck: Any = loop.create_task(wait(timeouts, 5.0))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert len(timeouts._open) == 1

    timeouts.end()

    assert not stuck.done()
    stuck._log_destroy_pending = False  # that it never ends is the point
    stuck.get_coro().close()


# --- Futures ---


def test_a_future_is_woken_in_time() -> None:
    """The result None says that the time is up."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts, future = TimeoutGroup(), loop.create_future()
        timeouts.complete_at(future, 5.0)

        assert await future is None
        assert loop.time() == pytest.approx(5.0)
        assert len(timeouts._open) == 0

    play(scene)


def test_a_future_that_has_its_result_keeps_it() -> None:
    """The waiter may not have run yet when the timeout expires."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts, future = TimeoutGroup(), loop.create_future()
        timeouts.complete_at(future, 5.0)
        future.set_result("came")
        await asyncio.sleep(10.0)

        assert await future == "came"

    play(scene)


def test_a_future_that_left_is_not_woken() -> None:
    """And its deadline keeps nothing of it."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts, future = TimeoutGroup(), loop.create_future()
        timeouts.complete_at(future, 5.0)
        timeouts.discard(future)
        await asyncio.sleep(10.0)

        assert not future.done()
        assert len(timeouts._open) == 0

    play(scene)


def test_the_end_wakes_futures_too() -> None:
    """Open futures get a result at once, and so do later ones."""

    async def scene(loop: VirtualLoop) -> None:
        timeouts, before, after = TimeoutGroup(), loop.create_future(), loop.create_future()
        timeouts.complete_at(before, float("inf"))
        timeouts.end()
        timeouts.complete_at(after, float("inf"))

        assert (await before, await after) == (None, None)
        assert len(timeouts._open) == 0

    play(scene)


def test_the_end_wakes_no_future_of_a_closed_loop() -> None:
    """A session may be closed in another event loop."""
    timeouts = TimeoutGroup()

    async def scene(loop: VirtualLoop) -> "asyncio.Future[Any]":
        future = loop.create_future()
        timeouts.complete_at(future, float("inf"))
        return future

    future = play(scene)
    timeouts.end()

    assert not future.done()
