"""Updates of an account run one at a time, in the order of the calls."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async._call.keyed_lock import KeyedLock


class Updates:
    """Tasks that take the lock, keep it until they are released, and give it back."""

    def __init__(self, lock: KeyedLock, name: str = "acc_1") -> None:
        self.lock = lock
        self.name = name
        self.inside: list[int] = []
        self.most = 0
        self.served: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._ends: list[asyncio.Event] = []

    def ask(self) -> None:
        self._ends.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._update(len(self.tasks))))

    async def _update(self, number: int) -> None:
        await self.lock.acquire(self.name)
        try:
            self.inside.append(number)
            self.most = max(self.most, len(self.inside))
            self.served.append(number)
            await self._ends[number].wait()
        finally:
            self.inside.remove(number)
            self.lock.release(self.name)

    def end(self) -> None:
        """End the update that holds the lock, if any."""
        for number in self.inside:
            self._ends[number].set()

    def cancel(self, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()


async def run_ready_tasks() -> None:
    """Let every task run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def lock() -> KeyedLock:
    return KeyedLock()


@pytest.fixture
async def updates(lock: KeyedLock) -> Updates:
    return Updates(lock)


async def test_free_lock_is_acquired_at_once(lock: KeyedLock) -> None:
    """The usual case costs no trip through the event loop: another task would have run before the end."""
    ran = asyncio.create_task(asyncio.sleep(0))

    await lock.acquire("acc_1")
    assert not ran.done()
    await ran


def test_lock_is_held_by_one(lock: KeyedLock) -> None:
    """Until it is given back."""
    assert lock.try_acquire("acc_1")
    assert not lock.try_acquire("acc_1")

    lock.release("acc_1")
    assert lock.try_acquire("acc_1")


def test_accounts_do_not_wait_for_each_other(lock: KeyedLock) -> None:
    """A fleet of 50,000 accounts is 50,000 names."""
    assert lock.try_acquire("acc_1")
    assert lock.try_acquire("acc_2")


async def test_who_waited_longest_goes_first(updates: Updates) -> None:
    """The last update that was called must be applied last."""
    for _ in range(5):
        updates.ask()
    for _ in range(5):
        await run_ready_tasks()
        updates.end()
    await asyncio.gather(*updates.tasks)

    assert updates.served == [0, 1, 2, 3, 4]
    assert updates.most == 1


async def test_lock_handed_to_a_waiter_cannot_be_taken_by_another(updates: Updates, lock: KeyedLock) -> None:
    """Between the release and the wake-up there is a moment in which the lock seems to be free."""
    updates.ask()
    await run_ready_tasks()
    updates.ask()
    await run_ready_tasks()

    updates.end()
    await asyncio.sleep(0)  # the first is done; the second has not run yet
    assert updates.inside == []
    assert not lock.try_acquire("acc_1")

    await run_ready_tasks()
    assert updates.inside == [1]
    updates.end()
    await asyncio.gather(*updates.tasks)


async def test_cancelled_waiter_is_skipped(updates: Updates, lock: KeyedLock) -> None:
    """A call whose deadline ends in the queue takes nothing with it."""
    for _ in range(3):
        updates.ask()
    await run_ready_tasks()

    updates.cancel(1)
    await run_ready_tasks()
    updates.end()
    await run_ready_tasks()
    updates.end()
    await asyncio.gather(*updates.tasks, return_exceptions=True)

    assert updates.served == [0, 2]
    assert updates.tasks[1].cancelled()
    assert lock.try_acquire("acc_1")


async def test_cancelled_waiter_passes_the_lock_on(updates: Updates, lock: KeyedLock) -> None:
    """Cancelled after it got the lock and before it ran; otherwise all behind it would wait forever."""
    for _ in range(3):
        updates.ask()
    await run_ready_tasks()

    updates.end()
    await asyncio.sleep(0)  # the second waiter holds the lock now, and has not run
    updates.cancel(1)
    await run_ready_tasks()
    assert updates.inside == [2]

    updates.end()
    await run_ready_tasks()
    assert updates.tasks[1].cancelled()
    assert lock.try_acquire("acc_1")


async def test_last_waiter_frees_the_lock_if_cancelled_while_holding_it(
    updates: Updates, lock: KeyedLock
) -> None:
    """The last waiter of the queue frees the lock, too."""
    updates.ask()
    updates.ask()
    await run_ready_tasks()

    updates.end()
    await asyncio.sleep(0)
    updates.cancel(1)
    await run_ready_tasks()

    assert updates.tasks[1].cancelled()
    assert lock.try_acquire("acc_1")


async def test_waiter_cancelled_at_the_moment_of_release_is_skipped(
    updates: Updates, lock: KeyedLock
) -> None:
    """Cancelled, but not yet run, when the holder releases: the lock goes to the next waiter."""
    for _ in range(3):
        updates.ask()
    await run_ready_tasks()

    updates.end()
    updates.cancel(1)
    await run_ready_tasks()
    assert updates.inside == [2]

    updates.end()
    await asyncio.gather(*updates.tasks, return_exceptions=True)
    assert [task.cancelled() for task in updates.tasks] == [False, True, False]
    assert lock.try_acquire("acc_1")


async def test_all_waiters_may_be_cancelled_together(updates: Updates, lock: KeyedLock) -> None:
    """A session that closes cancels a whole queue; the current holder keeps the lock."""
    for _ in range(50):
        updates.ask()
    await run_ready_tasks()

    for number in range(1, 50):
        updates.cancel(number)
    await run_ready_tasks()
    assert updates.inside == [0]
    assert not lock.try_acquire("acc_1")

    updates.end()
    await run_ready_tasks()
    assert lock.try_acquire("acc_1")


class CountedFuture(asyncio.Future[None]):
    """A future that counts how often one is compared with another, as a search of a queue does."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedFuture.comparisons += 1
        return self is other

    __hash__ = asyncio.Future.__hash__


async def test_cancelling_a_waiter_does_not_search_the_queue(
    updates: Updates, lock: KeyedLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling n waiters of one account takes time in proportion to n, in whatever order they leave."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_future", lambda: CountedFuture(loop=loop), raising=False)
    for _ in range(201):
        updates.ask()
    await run_ready_tasks()
    CountedFuture.comparisons = 0

    for number in range(200, 0, -1):
        updates.cancel(number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert [task.cancelled() for task in updates.tasks] == [False, *[True] * 200]
    assert CountedFuture.comparisons <= 200
    updates.end()
    await run_ready_tasks()
    assert lock.try_acquire("acc_1")


async def test_waiter_leaves_the_queue_at_its_deadline(lock: KeyedLock) -> None:
    """The session waits like this: the timeout cancels the waiter."""
    assert lock.try_acquire("acc_1")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await lock.acquire("acc_1")
    lock.release("acc_1")

    assert lock.try_acquire("acc_1")


async def test_closed_waiter_does_not_release_the_lock(updates: Updates, lock: KeyedLock) -> None:
    """A loop that ends with tasks pending closes their coroutines; the holder keeps the lock."""
    updates.ask()
    updates.ask()
    await run_ready_tasks()
    wait = lock.acquire("acc_1")
    wait.send(None)  # the third in the queue

    wait.close()
    await run_ready_tasks()
    assert updates.inside == [0]

    for _ in range(2):
        updates.end()
        await run_ready_tasks()
    await asyncio.gather(*updates.tasks)
    assert updates.most == 1
    assert lock.try_acquire("acc_1")


async def test_released_name_takes_no_memory(updates: Updates, lock: KeyedLock) -> None:
    """A session may see millions of accounts."""
    for number in range(1000):
        assert lock.try_acquire(f"acc_{number}")
        lock.release(f"acc_{number}")
    for _ in range(3):
        updates.ask()
    for _ in range(3):
        await run_ready_tasks()
        updates.end()
    await asyncio.gather(*updates.tasks)

    assert lock._queues == {}


STEPS: dict[str, Callable[[Updates, int], None]] = {
    "ask": lambda updates, _: updates.ask(),
    "end": lambda updates, _: updates.end(),
    "cancel": lambda updates, number: updates.cancel(number),
}


@settings(max_examples=300)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "end", "cancel", "look", "run"]), st.integers(0, 30)),
        max_size=60,
    )
)
def test_no_order_of_events_loses_the_lock_or_lets_two_in(steps: list[tuple[str, int]]) -> None:
    """In any order of acquire, release and cancel: one owner, FIFO, and no waiter forgotten."""

    async def play() -> None:
        lock = KeyedLock()
        updates = Updates(lock)
        cancelled: set[int] = set()
        for step, number in steps:
            if step == "run":
                await asyncio.sleep(0)
            elif step == "look" and lock.try_acquire("acc_1"):
                assert updates.inside == []
                lock.release("acc_1")
            elif step in STEPS:
                STEPS[step](updates, number)
                if step == "cancel" and updates.tasks:
                    cancelled.add(number % len(updates.tasks))
        for _ in updates.tasks:
            await run_ready_tasks()
            updates.end()
        await run_ready_tasks()

        assert all(task.done() for task in updates.tasks)
        outcomes = await asyncio.gather(*updates.tasks, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert updates.most <= 1
        assert updates.served == sorted(updates.served)
        assert set(range(len(updates.tasks))) - cancelled <= set(updates.served)
        assert lock._queues == {}

    with asyncio.Runner() as runner:
        runner.run(play())
