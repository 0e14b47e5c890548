"""The pacer: permits, calls that wait for them, and pauses."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async.pace import Pace
from postpress_async.pace._circuit_breaker import MAX_PROBES
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pacer import Pacer, Permit, PermitFuture
from tests.support.pace_world import acquire
from tests.support.virtual_loop import VirtualLoop, run


class ManualClock:
    """A clock that a test advances."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def new_pacer(
    clock: Callable[[], float] | None = None,
    on_pause: Callable[[bool], object] | None = None,
    **options: Any,
) -> Pacer:
    return Pacer(Pace(**options), clock=clock, random=random.Random(1).random, on_pause=on_pause)


def open_circuit(pacer: Pacer) -> None:
    """Open the circuit with twenty overload signals."""
    permits = [pacer.try_acquire() for _ in range(20)]
    for permit in permits:
        assert permit is not None
        permit.sent -= 1.0  # so that the signals have continued for long enough
        pacer.release(permit, LoadSignal.OVERLOAD)
    assert pacer.paused


# --- Permits ---


def test_permits_are_granted_at_once_up_to_the_limit() -> None:
    """That requires no event loop."""
    pacer = new_pacer(ManualClock(), in_flight=2)

    first, second = pacer.try_acquire(), pacer.try_acquire()
    assert first is not None
    assert second is not None
    assert pacer.try_acquire() is None
    assert pacer.in_flight == 2
    pacer.release(first, LoadSignal.SUCCESS)
    assert pacer.try_acquire() is not None


@pytest.mark.parametrize("adaptive", [True, False])
def test_calls_get_permits_in_fifo_order_and_retries_before_new_calls(adaptive: bool) -> None:
    """One permit in eight goes to a new call while retries wait."""

    async def main() -> list[str]:
        pacer = new_pacer(in_flight=1, adaptive=adaptive)
        order = list[str]()

        async def call(name: str, retry: bool) -> None:
            permit = await acquire(pacer, retry=retry)
            order.append(name)
            await asyncio.sleep(0.01)
            pacer.release(permit, LoadSignal.SUCCESS)

        permit = await acquire(pacer)
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(call(f"new {number}", False))
                group.create_task(call(f"retry {number}", True))
            await asyncio.sleep(0)
            pacer.release(permit, LoadSignal.SUCCESS)
        return order

    order = run(main())

    assert [name for name in order if "new" in name] == [f"new {number}" for number in range(10)]
    assert [name for name in order if "retry" in name] == [f"retry {number}" for number in range(10)]
    assert order.index("new 0") == 7
    assert order.index("retry 9") == 10


def test_permit_of_a_call_that_is_cancelled_at_the_same_moment_goes_to_the_next_call() -> None:
    """The call is cancelled after its future got the permit, and before its task runs."""

    async def main() -> None:
        pacer = new_pacer(in_flight=1)
        permit = await acquire(pacer)
        first = asyncio.create_task(acquire(pacer))
        second = asyncio.create_task(acquire(pacer))
        await asyncio.sleep(0)
        pacer.release(permit, LoadSignal.SUCCESS)
        first.cancel()

        assert isinstance(await second, Permit)
        assert first.cancelled()
        assert pacer.in_flight == 1

    run(main())


def test_permit_of_a_fast_error_is_held_for_the_usual_latency() -> None:
    """Otherwise a few requests that fail within 5 ms would be repeated ten times as fast as the others."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = new_pacer(in_flight=1)
        permit = await acquire(pacer)
        await asyncio.sleep(0.005)
        pacer.release(permit, LoadSignal.OVERLOAD)

        assert pacer.in_flight == 0
        await acquire(pacer)
        assert loop.time() == pytest.approx(0.1, abs=0.002)  # the latency that is assumed at first

    run(main())


def test_error_responses_do_not_change_a_limit_that_is_not_adaptive() -> None:
    pacer = new_pacer(ManualClock(), in_flight=30, adaptive=False)
    for _ in range(100):
        permits = [pacer.try_acquire() for _ in range(30)]
        assert pacer.try_acquire() is None
        assert all(pacer.release(permit, LoadSignal.OVERLOAD, 60.0) for permit in permits if permit)

    assert pacer.limit == 30
    assert not pacer.paused


def test_waiting_calls_share_one_timer() -> None:
    """If each of them had its own, 1,000 calls at 100 per second would need 100,000 timers per second."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        pacer = new_pacer(in_flight=1000, start=1000, rate=100.0, adaptive=False)

        async def call() -> None:
            pacer.release(await acquire(pacer), LoadSignal.SUCCESS)

        timers_before = loop.timers
        await asyncio.gather(*(call() for _ in range(1000)))
        return loop.timers - timers_before

    assert run(main()) <= 1010


def test_pacer_rejects_calls_in_another_event_loop() -> None:
    """A future of one loop is never woken by another loop."""
    pacer = new_pacer(lambda: 0.0, in_flight=1)
    pacer.try_acquire()

    async def wait() -> None:
        await asyncio.wait_for(acquire(pacer), 0.1)

    with pytest.raises(TimeoutError):
        run(wait())
    with pytest.raises(RuntimeError, match="another event loop"):
        run(wait())


# --- Pauses ---


@pytest.mark.parametrize("phase", ["before it is sent", "while it is in flight"])
def test_next_waiting_call_becomes_the_probe_if_the_first_one_is_cancelled(phase: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = new_pacer(in_flight=40)
        open_circuit(pacer)
        first, second = asyncio.create_task(acquire(pacer)), asyncio.create_task(acquire(pacer))
        if phase == "while it is in flight":
            permit = await first
            assert permit.probe
            pacer.release(permit, LoadSignal.NONE)
        else:
            await asyncio.sleep(0.01)
            pacer._breaker.probe_at = loop.time()
            pacer._admit()
            assert pacer.in_flight == 1
            first.cancel()
        cancelled_at = loop.time()
        probe = await second
        assert loop.time() - cancelled_at < 0.01
        assert pacer.release(probe, LoadSignal.SUCCESS)
        assert not pacer.paused
        assert pacer.in_flight == 0

    run(main())


def test_overload_signals_do_not_count_as_attempts_while_the_circuit_is_open() -> None:
    """Otherwise accounts would use up their attempts in an outage."""
    clock, pauses = ManualClock(), list[bool]()
    pacer = new_pacer(clock, pauses.append, in_flight=50, start=50)
    permits = [pacer.try_acquire() for _ in range(40)]
    clock.now += 1

    counted = [pacer.release(permit, LoadSignal.OVERLOAD) for permit in permits if permit]

    assert counted == [True] * 19 + [False] * 21
    assert pacer.paused
    assert pauses == [True]
    assert pacer.try_acquire() is None


def interrupt_if(expected: bool) -> Callable[[bool], None]:
    """An `on_pause` that raises `KeyboardInterrupt`, as Ctrl-C may do, if it is called with *expected*."""

    def on_pause(began: bool) -> None:
        if began is expected:
            raise KeyboardInterrupt

    return on_pause


def test_permit_is_released_if_on_pause_raises_at_the_start_of_a_pause() -> None:
    pacer = new_pacer(on_pause=interrupt_if(True), clock=ManualClock(), in_flight=50, start=50)

    with pytest.raises(KeyboardInterrupt):
        open_circuit(pacer)

    assert pacer.paused
    assert pacer.in_flight == 0


def test_permit_is_released_if_on_pause_raises_at_the_end_of_a_pause() -> None:
    clock = ManualClock()
    pacer = new_pacer(on_pause=interrupt_if(False), clock=clock, in_flight=50, start=50)
    open_circuit(pacer)
    clock.now += 10
    pacer._breaker.start_probe(clock.now)
    pacer._permits += 1
    probe = Permit(clock.now, pacer._breaker.generation, probe=True)

    with pytest.raises(KeyboardInterrupt):
        pacer.release(probe, LoadSignal.SUCCESS)

    assert not pacer.paused
    assert pacer.in_flight == 0


def test_waiting_calls_proceed_when_a_probe_succeeds() -> None:
    async def main() -> None:
        pacer = new_pacer(in_flight=40)
        open_circuit(pacer)
        clock = asyncio.get_running_loop().time
        paused_at = clock()
        probe = await acquire(pacer)
        others = [asyncio.create_task(acquire(pacer)) for _ in range(20)]

        assert probe.probe
        assert 0.05 <= clock() - paused_at <= 0.2
        await asyncio.sleep(3.0)
        responded_at = clock()
        pacer.release(probe, LoadSignal.SUCCESS)
        permits = await asyncio.gather(*others)
        assert clock() == pytest.approx(responded_at, abs=0.01)
        sent = [permit.sent for permit in permits if not permit.probe]
        assert sent == [pytest.approx(responded_at, abs=0.01)] * (20 + 1 - MAX_PROBES)

    run(main())


# --- Any sequence of calls ---


class CheckingPacer(Pacer):
    """Checks the limit at each permit, because another call may lower the limit later."""

    def try_acquire(self) -> Permit | None:
        permit = super().try_acquire()
        assert permit is None or (self._permits <= self.limit and not self.paused)
        return permit

    def _pop_waiting(self) -> PermitFuture:
        assert self._permits < (self._pace.in_flight if self.paused else self.limit)
        return super()._pop_waiting()


CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "start": st.floats(0.0, 0.5),
            "latency": st.floats(0.0, 0.3),
            "signal": st.sampled_from(LoadSignal),
            "retry": st.booleans(),
            "retry_after": st.one_of(st.none(), st.floats(0.0, 5.0)),
            "cancelled_at": st.one_of(st.none(), st.floats(0.0, 1.0)),
        }
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(
    calls=CALLS,
    in_flight=st.integers(1, 6),
    adaptive=st.booleans(),
    rate=st.one_of(st.none(), st.floats(5.0, 500.0)),
)
def test_every_call_gets_a_permit_and_no_permit_is_lost(
    calls: list[dict[str, Any]], in_flight: int, adaptive: bool, rate: float | None
) -> None:
    """Any calls may fail or be cancelled, and the concurrency limit is never exceeded."""

    async def main() -> None:
        pace = Pace(in_flight=in_flight, adaptive=adaptive, rate=rate)
        pacer = CheckingPacer(pace, random=random.Random(1).random)
        running = 0

        async def call(
            start: float, latency: float, signal: LoadSignal, retry: bool, retry_after: float | None
        ) -> None:
            nonlocal running
            await asyncio.sleep(start)
            permit = pacer.try_acquire() or await acquire(pacer, retry=retry)
            running += 1
            # Tasks that have a permit and have not resumed yet are in flight, and not running.
            assert running <= pacer.in_flight <= in_flight
            try:
                await asyncio.sleep(latency)
            except asyncio.CancelledError:
                signal = LoadSignal.NONE
                raise
            finally:
                running -= 1
                pacer.release(permit, signal, retry_after)

        loop = asyncio.get_running_loop()
        tasks = list[asyncio.Task[None]]()
        for arguments in calls:
            cancelled_at = arguments["cancelled_at"]
            task = asyncio.create_task(
                call(**{name: value for name, value in arguments.items() if name != "cancelled_at"})
            )
            tasks.append(task)
            if cancelled_at is not None:
                loop.call_later(cancelled_at, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert [result for result in results if isinstance(result, Exception)] == []
        assert pacer.in_flight == pacer.waiting == 0
        await asyncio.sleep(130)  # longer than a Retry-After can pause the calls
        pacer.release(await acquire(pacer), LoadSignal.SUCCESS)
        assert not pacer.paused
        await asyncio.sleep(1)
        assert pacer._permits == len(pacer._held)
        assert pacer._timer is None

    run(main())
