"""One update of an account at a time, in the order in which they were asked for."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async._call.keyed_lock import KeyedLock


class Updates:
    """Tasks that take the lock, keep it until they are released, and give it back."""

    def __init__(self, turns: KeyedLock, name: str = "acc_1") -> None:
        self.turns = turns
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
        await self.turns.acquire(self.name)
        try:
            self.inside.append(number)
            self.most = max(self.most, len(self.inside))
            self.served.append(number)
            await self._ends[number].wait()
        finally:
            self.inside.remove(number)
            self.turns.release(self.name)

    def end(self) -> None:
        """End the one that has the turn, if any."""
        for number in self.inside:
            self._ends[number].set()

    def cancel(self, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()


async def settle() -> None:
    """Let everything that can go on, go on."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def turns() -> KeyedLock:
    return KeyedLock()


@pytest.fixture
async def updates(turns: KeyedLock) -> Updates:
    return Updates(turns)


async def test_a_turn_that_is_free_is_taken_at_once(turns: KeyedLock) -> None:
    """The usual case costs no trip through the event loop: another task would have run before the end."""
    ran = asyncio.create_task(asyncio.sleep(0))

    await turns.acquire("acc_1")
    assert not ran.done()
    await ran


def test_a_turn_is_had_by_one(turns: KeyedLock) -> None:
    """Until it is given back."""
    assert turns.try_acquire("acc_1")
    assert not turns.try_acquire("acc_1")

    turns.release("acc_1")
    assert turns.try_acquire("acc_1")


def test_accounts_do_not_wait_for_each_other(turns: KeyedLock) -> None:
    """A fleet of 50,000 accounts is 50,000 names."""
    assert turns.try_acquire("acc_1")
    assert turns.try_acquire("acc_2")


async def test_who_waited_longest_goes_first(updates: Updates) -> None:
    """The last update asked for must be the last one applied."""
    for _ in range(5):
        updates.ask()
    for _ in range(5):
        await settle()
        updates.end()
    await asyncio.gather(*updates.tasks)

    assert updates.served == [0, 1, 2, 3, 4]
    assert updates.most == 1


async def test_nobody_takes_a_turn_that_was_given_to_another(updates: Updates, turns: KeyedLock) -> None:
    """Between the giving and the waking there is a moment in which the turn seems to be free."""
    updates.ask()
    await settle()
    updates.ask()
    await settle()

    updates.end()
    await asyncio.sleep(0)  # the first is done; the second has not run yet
    assert updates.inside == []
    assert not turns.try_acquire("acc_1")

    await settle()
    assert updates.inside == [1]
    updates.end()
    await asyncio.gather(*updates.tasks)


async def test_who_stops_waiting_is_passed_over(updates: Updates, turns: KeyedLock) -> None:
    """A call whose deadline ends in the queue takes nothing with it."""
    for _ in range(3):
        updates.ask()
    await settle()

    updates.cancel(1)
    await settle()
    updates.end()
    await settle()
    updates.end()
    await asyncio.gather(*updates.tasks, return_exceptions=True)

    assert updates.served == [0, 2]
    assert updates.tasks[1].cancelled()
    assert turns.try_acquire("acc_1")


async def test_who_is_cancelled_with_the_turn_in_hand_hands_it_on(updates: Updates, turns: KeyedLock) -> None:
    """Given the turn and cancelled before it could run: else everyone behind would wait for ever."""
    for _ in range(3):
        updates.ask()
    await settle()

    updates.end()
    await asyncio.sleep(0)  # the turn is the second's now, and it has not run
    updates.cancel(1)
    await settle()
    assert updates.inside == [2]

    updates.end()
    await settle()
    assert updates.tasks[1].cancelled()
    assert turns.try_acquire("acc_1")


async def test_who_is_cancelled_with_the_turn_in_hand_and_nobody_behind_frees_it(
    updates: Updates, turns: KeyedLock
) -> None:
    """The same, for the last of the queue."""
    updates.ask()
    updates.ask()
    await settle()

    updates.end()
    await asyncio.sleep(0)
    updates.cancel(1)
    await settle()

    assert updates.tasks[1].cancelled()
    assert turns.try_acquire("acc_1")


async def test_who_stops_waiting_as_the_turn_is_given_is_passed_over(
    updates: Updates, turns: KeyedLock
) -> None:
    """Cancelled, but not yet run, when the holder gives: the turn goes to the next one who still wants it."""
    for _ in range(3):
        updates.ask()
    await settle()

    updates.end()
    updates.cancel(1)
    await settle()
    assert updates.inside == [2]

    updates.end()
    await asyncio.gather(*updates.tasks, return_exceptions=True)
    assert [task.cancelled() for task in updates.tasks] == [False, True, False]
    assert turns.try_acquire("acc_1")


async def test_everyone_may_stop_waiting_at_once(updates: Updates, turns: KeyedLock) -> None:
    """A session that closes cancels a whole queue; what is under way still has its turn."""
    for _ in range(50):
        updates.ask()
    await settle()

    for number in range(1, 50):
        updates.cancel(number)
    await settle()
    assert updates.inside == [0]
    assert not turns.try_acquire("acc_1")

    updates.end()
    await settle()
    assert turns.try_acquire("acc_1")


class CountedFuture(asyncio.Future[None]):
    """A future that counts how often one is compared with another, as a search of a queue does."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedFuture.comparisons += 1
        return self is other

    __hash__ = asyncio.Future.__hash__


async def test_cancelling_a_waiter_does_not_search_the_queue(
    updates: Updates, turns: KeyedLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling n waiters of one account takes time in proportion to n, in whatever order they leave."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_future", lambda: CountedFuture(loop=loop), raising=False)
    for _ in range(201):
        updates.ask()
    await settle()
    CountedFuture.comparisons = 0

    for number in range(200, 0, -1):
        updates.cancel(number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert [task.cancelled() for task in updates.tasks] == [False, *[True] * 200]
    assert CountedFuture.comparisons <= 200
    updates.end()
    await settle()
    assert turns.try_acquire("acc_1")


async def test_a_wait_under_a_deadline_leaves_the_queue(turns: KeyedLock) -> None:
    """As the session waits: the timeout is a cancellation from inside."""
    assert turns.try_acquire("acc_1")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await turns.acquire("acc_1")
    turns.release("acc_1")

    assert turns.try_acquire("acc_1")


async def test_a_wait_that_is_thrown_away_gives_no_turn_to_others(updates: Updates, turns: KeyedLock) -> None:
    """A loop that ends with tasks pending closes their coroutines; the holder's turn stays the holder's."""
    updates.ask()
    updates.ask()
    await settle()
    wait = turns.acquire("acc_1")
    wait.send(None)  # the third in the queue

    wait.close()
    await settle()
    assert updates.inside == [0]

    for _ in range(2):
        updates.end()
        await settle()
    await asyncio.gather(*updates.tasks)
    assert updates.most == 1
    assert turns.try_acquire("acc_1")


async def test_a_name_that_nobody_has_takes_no_memory(updates: Updates, turns: KeyedLock) -> None:
    """A session may see millions of accounts."""
    for number in range(1000):
        assert turns.try_acquire(f"acc_{number}")
        turns.release(f"acc_{number}")
    for _ in range(3):
        updates.ask()
    for _ in range(3):
        await settle()
        updates.end()
    await asyncio.gather(*updates.tasks)

    assert turns._waiting == {}


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
def test_no_order_of_events_loses_a_turn_or_lets_two_in(steps: list[tuple[str, int]]) -> None:
    """However takes, gives and cancels meet: one inside, first come first served, and nobody forgotten."""

    async def play() -> None:
        turns = KeyedLock()
        updates = Updates(turns)
        cancelled: set[int] = set()
        for step, number in steps:
            if step == "run":
                await asyncio.sleep(0)
            elif step == "look" and turns.try_acquire("acc_1"):
                assert updates.inside == []
                turns.release("acc_1")
            elif step in STEPS:
                STEPS[step](updates, number)
                if step == "cancel" and updates.tasks:
                    cancelled.add(number % len(updates.tasks))
        for _ in updates.tasks:
            await settle()
            updates.end()
        await settle()

        assert all(task.done() for task in updates.tasks)
        outcomes = await asyncio.gather(*updates.tasks, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert updates.most <= 1
        assert updates.served == sorted(updates.served)
        assert set(range(len(updates.tasks))) - cancelled <= set(updates.served)
        assert turns._waiting == {}

    with asyncio.Runner() as runner:
        runner.run(play())
