"""A `TimeoutGroup` expires many waits with a single timer."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from postpress_async._timeouts import TimeoutGroup
from tests.support.virtual_loop import VirtualLoop, run
from tests.support.virtual_world import in_virtual_time


def virtual_loop() -> VirtualLoop:
    """The running event loop of a test in virtual time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


async def wait(timeouts: TimeoutGroup, timeout: float, duration: float = 1e6) -> tuple[bool, float]:
    """Sleep for *duration* within a timeout. Return whether the sleep ended in time, and the time."""
    loop = asyncio.get_running_loop()
    try:
        with timeouts.within(timeout):
            await asyncio.sleep(duration)
    except TimeoutError:
        return False, loop.time()
    return True, loop.time()


@pytest.mark.parametrize("seconds", [5.0, 0.001, 0.0, -1.0])
@in_virtual_time
async def test_wait_that_takes_too_long_times_out(seconds: float) -> None:
    """A timeout of 0 seconds or less expires when the task next waits."""
    timeouts = TimeoutGroup()
    in_time, ended = await wait(timeouts, seconds)
    assert not in_time
    assert ended == pytest.approx(max(seconds, 0.0))
    assert len(timeouts._open) == 0


@in_virtual_time
async def test_timeout_has_no_effect_after_its_block() -> None:
    timeouts = TimeoutGroup()
    assert await wait(timeouts, 5.0, 1.0) == (True, 1.0)
    await asyncio.sleep(10.0)
    assert len(timeouts._open) == 0


@in_virtual_time
async def test_thousand_waits_that_end_in_time_set_one_timer() -> None:
    loop, timeouts = virtual_loop(), TimeoutGroup()
    before = loop.timers
    for _ in range(1000):
        with timeouts.within(30.0):
            await asyncio.sleep(0)

    assert loop.timers - before == 1


@in_virtual_time
async def test_each_wait_times_out_at_its_own_time() -> None:
    seconds, timeouts = [7.0, 3.0, 9.0, 3.0, 5.0], TimeoutGroup()

    results = await asyncio.gather(*(wait(timeouts, timeout) for timeout in seconds))

    assert [in_time for in_time, _ in results] == [False] * 5
    assert [ended for _, ended in results] == pytest.approx(seconds, abs=1e-4)


@in_virtual_time
async def test_waits_that_time_out_shortly_after_each_other_share_timers() -> None:
    """If each of 10,000 waits had a timer, each timer would check all other waits, which takes minutes."""
    loop, timeouts = virtual_loop(), TimeoutGroup()
    due = [1.0 + number * 1e-6 for number in range(10_000)]
    waits = [asyncio.create_task(wait(timeouts, seconds)) for seconds in due]
    await asyncio.sleep(0)
    before = loop.timers

    ended = [ended for _, ended in await asyncio.gather(*waits)]

    assert loop.timers - before < 50
    assert max(late - on_time for late, on_time in zip(ended, due, strict=True)) < 0.02


@in_virtual_time
async def test_timer_that_fires_too_early_expires_the_wait_for_which_it_was_set() -> None:
    """A loop may fire a timer one clock tick early. No second timer is needed."""
    loop, timeouts = virtual_loop(), TimeoutGroup()
    waiting = asyncio.create_task(wait(timeouts, 5.0))
    await asyncio.sleep(1.0)
    before = loop.timers
    timeouts._on_timer()  # four seconds early

    assert (await waiting)[0] is False
    assert loop.timers == before


@in_virtual_time
async def test_cancellation_before_or_at_the_timeout_raises_cancelled_error() -> None:
    timeouts = TimeoutGroup()
    cancelled_before, cancelled_at = (asyncio.create_task(wait(timeouts, 5.0)) for _ in range(2))
    await asyncio.sleep(1.0)
    cancelled_before.cancel()
    virtual_loop().call_at(5.0, cancelled_at.cancel)
    await asyncio.wait([cancelled_before, cancelled_at])

    assert cancelled_before.cancelled()
    assert cancelled_at.cancelled()
    assert len(timeouts._open) == 0


@in_virtual_time
async def test_timeout_works_in_a_task_that_was_cancelled_before() -> None:
    """A `finally` block of a cancelled task may wait, too."""
    timeouts, results = TimeoutGroup(), []

    async def wait_in_finally() -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            results.append(await wait(timeouts, 2.0))

    task = asyncio.create_task(wait_in_finally())
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

    assert results[0] == (False, 3.0)


@in_virtual_time
async def test_other_exceptions_pass_through() -> None:
    timeouts = TimeoutGroup()
    with pytest.raises(KeyError), timeouts.within(5.0):
        raise KeyError
    assert len(timeouts._open) == 0


@in_virtual_time
async def test_task_that_suppresses_the_expiry_continues_and_is_not_cancelling() -> None:
    """Foreign code may suppress the `CancelledError` with which a timeout ends a wait."""
    timeouts = TimeoutGroup()
    with timeouts.within(1.0) as timeout:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(10.0)
    assert timeout.expired
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(1.0)

    assert task.cancelling() == 0


@in_virtual_time
async def test_end_expires_all_open_and_later_waits_at_once() -> None:
    timeouts = TimeoutGroup()
    waits = [asyncio.create_task(wait(timeouts, seconds)) for seconds in (5.0, 1000.0, float("inf"))]
    await asyncio.sleep(1.0)
    timeouts.end()
    timeouts.end()

    assert await asyncio.gather(*waits) == [(False, 1.0)] * 3
    assert await wait(timeouts, 5.0) == (False, 1.0)
    assert timeouts.ended
    assert len(timeouts._open) == 0


def test_end_ignores_waits_of_a_closed_loop() -> None:
    """A session may be closed in a second loop, while tasks of the first will never run again."""
    timeouts = TimeoutGroup()
    loop = VirtualLoop()
    pending: Any = loop.create_task(wait(timeouts, 5.0))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert len(timeouts._open) == 1

    timeouts.end()

    assert not pending.done()
    pending._log_destroy_pending = False  # asyncio would log that the task was destroyed
    pending.get_coro().close()


# --- Futures ---


@in_virtual_time
async def test_future_gets_the_result_none_at_its_timeout() -> None:
    timeouts, future = TimeoutGroup(), virtual_loop().create_future()
    timeouts.complete_at(future, 5.0)

    assert await future is None
    assert virtual_loop().time() == pytest.approx(5.0)
    assert len(timeouts._open) == 0


@in_virtual_time
async def test_future_that_is_done_keeps_its_result() -> None:
    """The waiter may not have run yet when the timeout expires."""
    timeouts, future = TimeoutGroup(), virtual_loop().create_future()
    timeouts.complete_at(future, 5.0)
    future.set_result("a result")
    await asyncio.sleep(10.0)

    assert await future == "a result"


@in_virtual_time
async def test_discarded_future_gets_no_result() -> None:
    timeouts, future = TimeoutGroup(), virtual_loop().create_future()
    timeouts.complete_at(future, 5.0)
    timeouts.discard(future)
    await asyncio.sleep(10.0)

    assert not future.done()
    assert len(timeouts._open) == 0


@in_virtual_time
async def test_end_completes_all_open_and_later_futures_at_once() -> None:
    timeouts = TimeoutGroup()
    before, after = virtual_loop().create_future(), virtual_loop().create_future()
    timeouts.complete_at(before, float("inf"))
    timeouts.end()
    timeouts.complete_at(after, float("inf"))

    assert (await before, await after) == (None, None)
    assert len(timeouts._open) == 0


def test_end_ignores_futures_of_a_closed_loop() -> None:
    timeouts = TimeoutGroup()

    async def start_wait() -> "asyncio.Future[Any]":
        future = virtual_loop().create_future()
        timeouts.complete_at(future, float("inf"))
        return future

    future = run(start_wait())
    timeouts.end()

    assert not future.done()
