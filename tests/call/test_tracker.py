"""A `CallTracker` belongs to one event loop, counts open calls, and ends their waits when it closes."""

import asyncio
import math

import pytest

from postpress_async import ManagedProxy, PostPressSession
from postpress_async._call.tracker import CallTracker
from postpress_async.errors import ConfigurationError, SessionClosedError
from tests.support.virtual_loop import run
from tests.support.virtual_world import in_virtual_time, now


async def call(tracker: CallTracker, duration: float) -> None:
    with tracker:
        await asyncio.sleep(duration)


async def wait(tracker: CallTracker, until: float) -> float:
    """Wait until the wait is ended. Return the time at which that happened."""
    with pytest.raises(TimeoutError):
        with tracker.until(until):
            await asyncio.sleep(10_000.0)
    return now()


# --- Calls ---------------------------------------------------------------------------------------


async def test_closed_tracker_rejects_calls() -> None:
    tracker = CallTracker()
    await tracker.close(0)

    for _ in range(2):
        with pytest.raises(SessionClosedError, match="create a new one"), tracker:
            pass


def test_call_in_a_second_event_loop_is_rejected() -> None:
    """The session's connections belong to the first loop, and would hang in another one."""
    tracker = CallTracker()

    async def use() -> None:
        with tracker:
            await asyncio.sleep(0)

    run(use())
    with pytest.raises(ConfigurationError, match="one session per loop"):
        run(use())


def test_call_without_an_asyncio_event_loop_is_rejected() -> None:
    """anyio's pytest plugin may run a test under trio. Closing the session works there."""

    async def call_and_close() -> None:
        async with PostPressSession("pp_test") as session:
            await session.update_proxy("acc_1", ManagedProxy(country="US"))

    with pytest.raises(ConfigurationError, match="requires a running asyncio event loop"):
        call_and_close().send(None)


def test_closing_in_a_second_loop_does_not_wait_for_calls_of_the_first() -> None:
    """The first loop has ended, so these calls never will."""
    tracker = CallTracker()

    async def start_call() -> None:
        tracker.__enter__()

    async def close() -> float:
        await tracker.close(100.0)
        return now()

    run(start_call())
    assert run(close()) == 0.0


# --- Closing -------------------------------------------------------------------------------------


@in_virtual_time
async def test_closing_without_open_calls_takes_no_time() -> None:
    unused, used = CallTracker(), CallTracker()
    await unused.close(100.0)
    await call(used, 0.0)
    await used.close(100.0)
    await used.close(100.0)

    assert now() == 0.0


@pytest.mark.parametrize(
    ("timeout", "closed"),
    [
        pytest.param(5.0, 3.0, id="longer than the calls"),
        pytest.param(2.0, 2.0, id="shorter than the calls"),
        pytest.param(0.0, 0.0, id="zero"),
    ],
)
@in_virtual_time
async def test_closing_waits_for_the_last_call_but_at_most_for_the_timeout(
    timeout: float, closed: float
) -> None:
    tracker = CallTracker()
    async with asyncio.TaskGroup() as group:
        for duration in (1.0, 3.0, 2.0):
            group.create_task(call(tracker, duration))
        await asyncio.sleep(0)
        await tracker.close(timeout)

        assert now() == pytest.approx(closed)


@in_virtual_time
async def test_call_is_rejected_while_the_tracker_closes() -> None:
    tracker = CallTracker()
    async with asyncio.TaskGroup() as group:
        group.create_task(call(tracker, 3.0))
        await asyncio.sleep(0)
        group.create_task(tracker.close(5.0))
        await asyncio.sleep(1.0)

        with pytest.raises(SessionClosedError), tracker:
            pass


@in_virtual_time
async def test_tasks_that_close_at_the_same_time_each_wait_for_their_own_timeout() -> None:
    tracker = CallTracker()

    async def close(timeout: float) -> float:
        await tracker.close(timeout)
        return now()

    async with asyncio.TaskGroup() as group:
        group.create_task(call(tracker, 3.0))
        await asyncio.sleep(0)
        closings = [group.create_task(close(timeout)) for timeout in (1.0, 5.0, 10.0)]

    assert [await closing for closing in closings] == pytest.approx([1.0, 3.0, 3.0])


@in_virtual_time
async def test_closing_does_not_wait_for_failed_or_cancelled_calls() -> None:
    tracker = CallTracker()
    with pytest.raises(KeyError), tracker:
        raise KeyError
    task = asyncio.create_task(call(tracker, 50.0))
    await asyncio.sleep(1.0)
    task.cancel()
    await tracker.close(100.0)

    assert now() == 1.0


@in_virtual_time
async def test_closing_can_be_repeated_after_it_was_cancelled() -> None:
    """A user may press Ctrl-C while a session closes."""
    tracker = CallTracker()
    async with asyncio.TaskGroup() as group:
        group.create_task(call(tracker, 3.0))
        await asyncio.sleep(0)
        closing = asyncio.create_task(tracker.close(50.0))
        await asyncio.sleep(1.0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        await tracker.close(50.0)

        assert now() == pytest.approx(3.0)


# --- Waits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [5.0, 0.0, -1.0], ids=["later", "now", "past"])
@in_virtual_time
async def test_wait_times_out_at_its_time_or_at_once_if_that_is_past(until: float) -> None:
    assert await wait(CallTracker(), until) == pytest.approx(max(0.0, until))


@in_virtual_time
async def test_wait_that_ends_in_time_is_removed() -> None:
    """A session may live for months."""
    tracker = CallTracker()
    for until in (5.0, math.inf):
        with tracker.until(until):
            await asyncio.sleep(1.0)

    assert len(tracker._open) == 0


@pytest.mark.parametrize("until", [50.0, math.inf], ids=["deadline", "no deadline"])
@in_virtual_time
async def test_end_ends_all_open_waits(until: float) -> None:
    tracker = CallTracker()
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(wait(tracker, until)) for _ in range(10)]
        await asyncio.sleep(3.0)
        tracker.end()

    assert [await task for task in waits] == [3.0] * 10


@in_virtual_time
async def test_wait_that_starts_after_the_end_times_out_at_once() -> None:
    tracker = CallTracker()
    tracker.end()
    assert tracker.ended

    assert await wait(tracker, math.inf) == 0.0


@in_virtual_time
async def test_end_may_be_called_twice_before_the_waiting_tasks_run() -> None:
    tracker = CallTracker()
    waiting = asyncio.create_task(wait(tracker, math.inf))
    await asyncio.sleep(1.0)
    tracker.end()
    tracker.end()

    assert await waiting == 1.0


@in_virtual_time
async def test_end_in_the_same_loop_iteration_as_a_timeout_ends_all_waits() -> None:
    tracker = CallTracker()
    waits = [asyncio.create_task(wait(tracker, until)) for until in (1.0, 1.0, 100.0, 100.0, math.inf)]
    await asyncio.sleep(0)
    failures: list[BaseException] = []

    def end() -> None:
        try:
            tracker.end()
        except BaseException as error:
            failures.append(error)

    # Within the clock's resolution of the timeouts at 1.0, so it runs after them in the same iteration.
    asyncio.get_running_loop().call_at(1.0 + 1e-10, end)
    ended = await asyncio.gather(*waits)

    assert failures == []
    assert ended == pytest.approx([1.0] * 5)


@in_virtual_time
async def test_cancelled_wait_raises_cancelled_error_and_is_removed() -> None:
    tracker = CallTracker()
    waiting = asyncio.create_task(wait(tracker, 50.0))
    await asyncio.sleep(1.0)
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert len(tracker._open) == 0


@in_virtual_time
async def test_exceptions_raised_during_a_wait_pass_through() -> None:
    """Including a `TimeoutError` of other code."""
    for kind in (KeyError, TimeoutError):
        with pytest.raises(kind, match="inner"):
            with CallTracker().until(50.0):
                raise kind("inner")

    assert now() == 0.0
