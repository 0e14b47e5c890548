"""Updates of an account run one at a time, in the order of the calls."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async._call.keyed_lock import KeyedLock


class Updates:
    """
    Tasks that acquire the lock of acc_1, and hold it until a test calls `finish`.

    Attributes:
        tasks: All tasks, in the order of `start`.
        holders: Numbers of the tasks that hold the lock.
        most_holders: The most tasks that ever held the lock at the same time.
        served: Numbers of the tasks that got the lock, in order.
    """

    def __init__(self, lock: KeyedLock) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.holders: list[int] = []
        self.most_holders = 0
        self.served: list[int] = []
        self._lock = lock
        self._may_finish: list[asyncio.Event] = []

    def start(self) -> None:
        self._may_finish.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._update(len(self.tasks))))

    async def _update(self, number: int) -> None:
        await self._lock.acquire("acc_1")
        try:
            self.holders.append(number)
            self.most_holders = max(self.most_holders, len(self.holders))
            self.served.append(number)
            await self._may_finish[number].wait()
        finally:
            self.holders.remove(number)
            self._lock.release("acc_1")

    def finish(self) -> None:
        """Let the update that holds the lock finish."""
        for number in self.holders:
            self._may_finish[number].set()

    def cancel(self, number: int) -> None:
        self.tasks[number].cancel()


async def run_ready_tasks() -> None:
    """Run the loop until every task waits for something that only the test can do."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def lock() -> KeyedLock:
    return KeyedLock()


@pytest.fixture
async def updates(lock: KeyedLock) -> Updates:
    return Updates(lock)


async def test_free_lock_is_acquired_without_yielding_to_the_event_loop(lock: KeyedLock) -> None:
    other = asyncio.create_task(asyncio.sleep(0))

    await lock.acquire("acc_1")
    assert not other.done()
    await other


def test_locked_key_cannot_be_acquired_until_it_is_released(lock: KeyedLock) -> None:
    assert lock.try_acquire("acc_1")
    assert not lock.try_acquire("acc_1")

    lock.release("acc_1")
    assert lock.try_acquire("acc_1")


def test_locks_of_different_keys_are_independent(lock: KeyedLock) -> None:
    assert lock.try_acquire("acc_1")
    assert lock.try_acquire("acc_2")


async def test_waiters_get_the_lock_in_fifo_order(updates: Updates) -> None:
    for _ in range(5):
        updates.start()
    for _ in range(5):
        await run_ready_tasks()
        updates.finish()
    await asyncio.gather(*updates.tasks)

    assert updates.served == [0, 1, 2, 3, 4]
    assert updates.most_holders == 1


async def test_released_lock_cannot_be_taken_from_the_next_waiter(updates: Updates, lock: KeyedLock) -> None:
    """Between the release and the next run of the waiter, no task holds the lock."""
    updates.start()
    await run_ready_tasks()
    updates.start()
    await run_ready_tasks()

    updates.finish()
    await asyncio.sleep(0)  # the first task has ended; the second has not run yet
    assert updates.holders == []
    assert not lock.try_acquire("acc_1")

    await run_ready_tasks()
    assert updates.holders == [1]
    updates.finish()
    await asyncio.gather(*updates.tasks)


async def test_cancelled_waiter_is_skipped(updates: Updates, lock: KeyedLock) -> None:
    for _ in range(3):
        updates.start()
    await run_ready_tasks()

    updates.cancel(1)
    await run_ready_tasks()
    updates.finish()
    await run_ready_tasks()
    updates.finish()
    await asyncio.gather(*updates.tasks, return_exceptions=True)

    assert updates.served == [0, 2]
    assert updates.tasks[1].cancelled()
    assert lock.try_acquire("acc_1")


async def test_waiter_cancelled_just_after_it_got_the_lock_passes_the_lock_on(
    updates: Updates, lock: KeyedLock
) -> None:
    """Otherwise all later waiters would wait for ever."""
    for _ in range(3):
        updates.start()
    await run_ready_tasks()

    updates.finish()
    await asyncio.sleep(0)  # the second task has the lock now, but has not run
    updates.cancel(1)
    await run_ready_tasks()
    assert updates.holders == [2]

    updates.finish()
    await run_ready_tasks()
    assert updates.tasks[1].cancelled()
    assert lock.try_acquire("acc_1")


async def test_only_waiter_releases_the_lock_if_cancelled_just_after_it_got_it(
    updates: Updates, lock: KeyedLock
) -> None:
    updates.start()
    updates.start()
    await run_ready_tasks()

    updates.finish()
    await asyncio.sleep(0)
    updates.cancel(1)
    await run_ready_tasks()

    assert updates.tasks[1].cancelled()
    assert lock.try_acquire("acc_1")


async def test_waiter_cancelled_just_before_the_release_is_skipped(updates: Updates, lock: KeyedLock) -> None:
    for _ in range(3):
        updates.start()
    await run_ready_tasks()

    updates.finish()
    updates.cancel(1)
    await run_ready_tasks()
    assert updates.holders == [2]

    updates.finish()
    await asyncio.gather(*updates.tasks, return_exceptions=True)
    assert [task.cancelled() for task in updates.tasks] == [False, True, False]
    assert lock.try_acquire("acc_1")


async def test_holder_keeps_the_lock_if_all_waiters_are_cancelled(updates: Updates, lock: KeyedLock) -> None:
    """A session that closes cancels all waiters at once."""
    for _ in range(50):
        updates.start()
    await run_ready_tasks()

    for number in range(1, 50):
        updates.cancel(number)
    await run_ready_tasks()
    assert updates.holders == [0]
    assert not lock.try_acquire("acc_1")

    updates.finish()
    await run_ready_tasks()
    assert lock.try_acquire("acc_1")


class CountedFuture(asyncio.Future[None]):
    """A future that counts comparisons, because a search of the queue compares futures."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedFuture.comparisons += 1
        return self is other

    __hash__ = asyncio.Future.__hash__


async def test_cancelling_a_waiter_does_not_search_the_queue(
    updates: Updates, lock: KeyedLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So cancelling n waiters takes time in proportion to n, and not to n squared."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_future", lambda: CountedFuture(loop=loop), raising=False)
    for _ in range(201):
        updates.start()
    await run_ready_tasks()
    CountedFuture.comparisons = 0

    for number in range(200, 0, -1):
        updates.cancel(number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert [task.cancelled() for task in updates.tasks] == [False, *[True] * 200]
    assert CountedFuture.comparisons <= 200
    updates.finish()
    await run_ready_tasks()
    assert lock.try_acquire("acc_1")


async def test_waiter_that_times_out_leaves_the_queue(lock: KeyedLock) -> None:
    assert lock.try_acquire("acc_1")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await lock.acquire("acc_1")
    lock.release("acc_1")

    assert lock.try_acquire("acc_1")


async def test_waiter_whose_coroutine_is_closed_does_not_release_the_lock(
    updates: Updates, lock: KeyedLock
) -> None:
    """Python closes the coroutines of tasks that are pending when their loop ends."""
    updates.start()
    updates.start()
    await run_ready_tasks()
    coroutine = lock.acquire("acc_1")
    coroutine.send(None)  # it waits behind the two updates

    coroutine.close()
    await run_ready_tasks()
    assert updates.holders == [0]

    for _ in range(2):
        updates.finish()
        await run_ready_tasks()
    await asyncio.gather(*updates.tasks)
    assert updates.most_holders == 1
    assert lock.try_acquire("acc_1")


async def test_released_key_takes_no_memory(updates: Updates, lock: KeyedLock) -> None:
    """A session may see millions of accounts."""
    for number in range(1000):
        assert lock.try_acquire(f"acc_{number}")
        lock.release(f"acc_{number}")
    for _ in range(3):
        updates.start()
    for _ in range(3):
        await run_ready_tasks()
        updates.finish()
    await asyncio.gather(*updates.tasks)

    assert lock._queues == {}


STEPS = ["start", "start", "finish", "cancel", "try_acquire", "run"]
"""`start` occurs twice, so that more updates start than finish, and a queue builds up."""


@settings(max_examples=300)
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 30)), max_size=60))
def test_lock_has_one_holder_and_serves_all_waiters_in_any_order_of_events(
    steps: list[tuple[str, int]],
) -> None:
    async def run_steps() -> None:
        lock = KeyedLock()
        updates = Updates(lock)
        cancelled: set[int] = set()
        for step, number in steps:
            if step == "start":
                updates.start()
            elif step == "finish":
                updates.finish()
            elif step == "cancel" and updates.tasks:
                cancelled.add(number % len(updates.tasks))
                updates.cancel(number % len(updates.tasks))
            elif step == "try_acquire" and lock.try_acquire("acc_1"):
                assert updates.holders == []
                lock.release("acc_1")
            elif step == "run":
                await asyncio.sleep(0)
        for _ in updates.tasks:
            await run_ready_tasks()
            updates.finish()
        await run_ready_tasks()

        assert all(task.done() for task in updates.tasks)
        outcomes = await asyncio.gather(*updates.tasks, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert updates.most_holders <= 1
        assert updates.served == sorted(updates.served)
        assert set(range(len(updates.tasks))) - cancelled <= set(updates.served)
        assert lock._queues == {}

    asyncio.run(run_steps())
