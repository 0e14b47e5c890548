"""When a call is retried, and after how long: with a stub of the transport and a manual clock."""

import asyncio
import copy
import gc
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from attrs import define, evolve
from hypothesis import given
from hypothesis import strategies as st

from postpress_async import ManagedProxy, errors
from postpress_async._call.idempotency import FixedKey
from postpress_async.errors import ApiError, PostPressError
from postpress_async.pace._pacer import Pacer, Permit, PermitFuture
from postpress_async.retry import LONGEST_RETRY_AFTER, RetryPolicy
from tests.support.stubbed_call import BUSY, DONE, START, ManualLoop, StubApi, advance, answer, failed, play

RETRIED = {
    "errors/proxy_error",
    "errors/provider_error",
    "errors/network_down",
    "errors/request_timeout",
    "errors/service_unavailable",
}
NO_WAIT = tenacity.wait_none()


# --- What is retried -----------------------------------------------------------------------------


@pytest.mark.parametrize(("type_", "kind"), errors.BY_TYPE.items())
def test_each_listed_type_is_retried_or_fatal(type_: str, kind: type[ApiError]) -> None:
    """Retryable: sent until the attempts are spent; fatal: exactly once."""
    assert kind.status is not None
    api = StubApi([answer(kind.status, type_)])

    failed(RetryPolicy(), api, kind)
    assert api.made == (4 if type_ in RETRIED else 1)


@pytest.mark.parametrize(
    ("make", "retried"),
    [
        pytest.param(answer(400), False, id="bare 400"),
        pytest.param(answer(401), False, id="bare 401"),
        pytest.param(answer(404), False, id="bare 404"),
        pytest.param(answer(408), True, id="bare 408"),
        pytest.param(answer(418), False, id="bare 418"),
        pytest.param(answer(429), True, id="bare 429"),
        pytest.param(answer(500), False, id="bare 500"),
        pytest.param(answer(501), False, id="bare 501"),
        pytest.param(answer(502), True, id="bare 502"),
        pytest.param(answer(503), True, id="bare 503"),
        pytest.param(answer(504), True, id="bare 504"),
        pytest.param(answer(505), False, id="bare 505"),
        pytest.param(answer(503, "errors/brand_new"), True, id="unlisted type, retryable status"),
        pytest.param(answer(500, "errors/brand_new"), False, id="unlisted type, fatal status"),
        pytest.param(answer(500, "errors/proxy_error"), False, id="retryable type, fatal status"),
        pytest.param(answer(503, "errors/invalid_parameters"), False, id="fatal type, retryable status"),
        pytest.param(lambda: errors.ConnectError("x"), True, id="no connection"),
        pytest.param(lambda: errors.ConnectionLostError("x"), True, id="connection lost"),
        pytest.param(lambda: errors.AttemptTimeoutError("x"), True, id="attempt timed out"),
        pytest.param(lambda: errors.TlsError("x"), False, id="certificate not trusted"),
        pytest.param(lambda: errors.AnswerError("x", 200), False, id="200 that cannot be true"),
        pytest.param(lambda: errors.AnswerError("x", 302), False, id="redirect"),
        pytest.param(lambda: errors.AnswerError("x", 502), True, id="502 too large to read"),
        pytest.param(lambda: errors.AnswerError("x", None), False, id="no HTTP"),
        pytest.param(lambda: errors.DeadlineError("x"), False, id="deadline"),
        pytest.param(lambda: errors.ConfigurationError("x"), False, id="configuration"),
        pytest.param(lambda: errors.SessionClosedError("x"), False, id="session closed"),
        pytest.param(PostPressError, False, id="the base of all"),
    ],
)
def test_what_the_reference_does_not_list_is_retried_or_fatal(
    make: Callable[[], PostPressError], retried: bool
) -> None:
    """Errors of a gateway in front of an API, and errors that waiting does not help."""
    api = StubApi([make])

    failed(RetryPolicy(), api)
    assert api.made == (4 if retried else 1)
    assert RetryPolicy().retries(make()) is retried


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, OSError, TimeoutError, asyncio.CancelledError, KeyboardInterrupt]
)
@pytest.mark.parametrize("before", [[], [BUSY]], ids=["at first", "after a retry"])
def test_what_is_no_error_of_ours_passes_through(kind: type[BaseException], before: list[Any]) -> None:
    """A bug is not retried, a cancellation is never caught, and neither is wrapped."""
    api = StubApi([*before, kind])

    with pytest.raises(kind) as caught:
        play(RetryPolicy(), api)
    assert type(caught.value) is kind
    assert api.made == len(before) + 1
    assert not RetryPolicy(also_on=(PostPressError,)).retries(kind())


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_the_first_success_is_the_result(failures: int) -> None:
    """And nothing is sent after it."""
    api = StubApi([BUSY] * failures + [DONE])

    assert play(RetryPolicy(), api) == DONE
    assert api.made == failures + 1
    assert len(api.naps) == failures


def test_the_last_error_is_raised_as_it_was() -> None:
    """The same object is raised, without a chain; its history has the earlier errors."""
    made = [errors.ConnectError("first"), errors.ConnectError("second"), errors.TlsError("last")]

    error = failed(RetryPolicy(), StubApi([lambda cause=cause: cause for cause in made]))
    assert error is made[-1]
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize("attempts", [1, 2, 3, 10])
def test_attempts_are_counted_with_the_first(attempts: int) -> None:
    """One attempt means no retry."""
    api = StubApi([BUSY])

    failed(RetryPolicy(attempts=attempts, deadline=math.inf), api)
    assert api.made == attempts
    assert len(api.naps) == attempts - 1


# --- Adding and taking away ----------------------------------------------------------------------


def test_attempts_that_do_not_count_use_up_none() -> None:
    """Attempts during a known outage do not count."""
    api = StubApi([BUSY] * 9 + [DONE], counted=False)

    assert play(RetryPolicy(attempts=2, wait=NO_WAIT), api) == DONE
    assert api.made == 10


def test_the_waits_of_a_patient_call_are_part_of_its_deadline_if_its_attempts_count() -> None:
    """Where its attempts count; where they do not, an outage costs it time and no account."""
    counting = StubApi([BUSY])
    not_counted = StubApi([BUSY] * 9 + [DONE], patient=True, counted=False)
    policy = RetryPolicy(attempts=99, deadline=10.0, wait=tenacity.wait_fixed(11.0))

    failed(policy, counting)
    assert counting.made == 1
    assert play(policy, not_counted) == DONE


@pytest.mark.parametrize(
    ("also_on", "never_on", "retried"),
    [
        pytest.param((errors.NoChannelError,), (), True, id="the class itself is added"),
        pytest.param((errors.UnavailableError,), (), True, id="its family is added"),
        pytest.param((PostPressError,), (), True, id="everything is added"),
        pytest.param((errors.NoHandlerError,), (), False, id="its sister is added"),
        pytest.param((errors.NoChannelError,), (errors.NoChannelError,), False, id="added and taken away"),
        pytest.param(
            (errors.NoChannelError,), (errors.UnavailableError,), False, id="added, its family taken away"
        ),
        pytest.param((errors.UnavailableError,), (errors.NoHandlerError,), True, id="its sister taken away"),
    ],
)
def test_a_fatal_class_can_be_added(also_on: Any, never_on: Any, retried: bool) -> None:
    """An operator may know better; what is taken away beats what is added."""
    policy = RetryPolicy(also_on=also_on, never_on=never_on)
    api = StubApi([answer(503, "errors/no_channel")])

    failed(policy, api, errors.NoChannelError)
    assert api.made == (4 if retried else 1)


@pytest.mark.parametrize("never_on", [errors.ProxyError, errors.BadGatewayError, ApiError, PostPressError])
def test_a_retried_class_can_be_taken_away(never_on: type[PostPressError]) -> None:
    """A class is excluded alone or with its subclasses; others are still retried."""
    policy = RetryPolicy(never_on=(never_on,))
    api = StubApi([answer(502, "errors/proxy_error")])

    failed(policy, api, errors.ProxyError)
    assert api.made == 1
    assert policy.retries(errors.ConnectError("x")) is (never_on is not PostPressError)


def test_what_is_added_holds_for_the_error_of_this_very_attempt() -> None:
    """A call may fail in another way each time, and each is judged by itself."""
    api = StubApi([BUSY, answer(503, "errors/no_channel"), answer(400), DONE])

    failed(RetryPolicy(also_on=(errors.NoChannelError,)), api, errors.BadRequestError)
    assert api.made == 3


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(RetryPolicy(), id="default"),
        pytest.param(RetryPolicy(also_on=(PostPressError,)), id="also_on"),
        pytest.param(RetryPolicy(retry=lambda _error: True), id="predicate"),
        pytest.param(RetryPolicy(retry=tenacity.retry_always, stop=tenacity.stop_never), id="strategies"),
    ],
)
def test_no_strategy_repeats_a_managed_change_in_doubt_without_a_key(policy: RetryPolicy) -> None:
    """A second managed proxy would be handed out, and billed."""
    api = StubApi([answer(504, "errors/request_timeout"), DONE], change=ManagedProxy(country="US"))
    api.keys = FixedKey(None)

    failed(policy, api, errors.RequestTimeoutError)
    assert api.made == 1


# --- The deadline --------------------------------------------------------------------------------


def test_a_wait_that_would_overrun_the_deadline_is_not_begun() -> None:
    """The error is raised at once instead of after a useless wait."""
    api = StubApi([BUSY], takes=3.0)

    failed(RetryPolicy(deadline=10.0, wait=tenacity.wait_fixed(5.0)), api)
    assert api.naps == [5.0]  # 3 + 5 + 3 = 11 seconds: no second wait
    assert api.ends == [1003.0, 1011.0]


def test_time_that_passed_before_the_first_attempt_counts() -> None:
    """A call may have waited for its turn; its deadline started before."""
    api = StubApi([BUSY], late=8.0)

    failed(RetryPolicy(deadline=10.0, wait=tenacity.wait_fixed(5.0)), api)
    assert api.made == 1


def test_time_in_the_queue_of_the_pacer_does_not_count_for_a_patient_call() -> None:
    """An outage may last for hours."""

    class Closed(Pacer):
        def try_acquire(self) -> Permit | None:
            return None

        def enqueue(self, *, retry: bool = False) -> PermitFuture:
            advance(3600.0)
            future = asyncio.get_running_loop().create_future()
            permit = super().try_acquire()
            future.set_result(permit)
            return future

    api = StubApi([BUSY, BUSY, DONE], patient=True, pacer=Closed)

    assert play(RetryPolicy(deadline=10.0, wait=tenacity.wait_fixed(2.0)), api) == DONE


def test_without_a_deadline_only_the_attempts_count() -> None:
    """`math.inf` means no limit."""
    api = StubApi([BUSY], takes=1e6)

    failed(RetryPolicy(deadline=math.inf, wait=tenacity.wait_fixed(1e6)), api)
    assert api.made == 4


@given(
    deadline=st.floats(0.001, 500.0),
    takes=st.floats(0.0, 100.0),
    late=st.floats(0.0, 100.0),
    waits=st.lists(st.floats(0.0, 200.0), min_size=1, max_size=8),
    floors=st.lists(st.none() | st.floats(0.0, 200.0), min_size=1, max_size=8),
    stop=st.sampled_from([None, tenacity.stop_never, tenacity.stop_after_attempt(7)]),
)
def test_no_wait_ends_after_the_deadline(
    deadline: float,
    takes: float,
    late: float,
    waits: list[float],
    floors: list[float | None],
    stop: Callable[[tenacity.RetryCallState], bool] | None,
) -> None:
    """This holds for all durations, wait strategies and Retry-After values."""
    chain = tenacity.wait_chain(*map(tenacity.wait_fixed, [*waits, 1.0]))
    policy = RetryPolicy(attempts=20, deadline=deadline, wait=chain, stop=stop)
    api = StubApi(
        [answer(503, "errors/service_unavailable", floor) for floor in floors],
        takes,
        late=late,
    )
    failed(policy, api)

    for ended, nap in zip(api.ends, api.naps, strict=False):
        assert ended + nap - START <= deadline
    assert len(api.naps) == max(0, api.made - 1)  # it may be too late for any
    assert all(nap <= LONGEST_RETRY_AFTER or nap in waits for nap in api.naps)


# --- Retry-After ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "wait", "slept"),
    [
        pytest.param(7.0, 0.0, 7.0, id="over the backoff"),
        pytest.param(7.0, 9.0, 9.0, id="under the backoff"),
        pytest.param(0.0, 9.0, 9.0, id="zero"),
        pytest.param(None, 9.0, 9.0, id="none"),
        pytest.param(100.0, 20.0, 100.0, id="over the longest backoff"),
    ],
)
def test_retry_after_is_a_floor_under_the_wait(asked: float | None, wait: float, slept: float) -> None:
    """Sooner is no use; later is the policy's own business."""
    api = StubApi([answer(503, "errors/service_unavailable", asked), DONE])

    assert play(RetryPolicy(wait=tenacity.wait_fixed(wait)), api) == DONE
    assert api.naps == [slept]


def test_retry_after_holds_for_the_wait_after_its_own_answer() -> None:
    """The next answer may ask for less."""
    api = StubApi([answer(429, "", 30.0), answer(429, "", 1.0), answer(429), DONE])

    assert play(RetryPolicy(wait=NO_WAIT), api) == DONE
    assert api.naps == [30.0, 1.0, 0.0]


@pytest.mark.parametrize(("asked", "made"), [(119.9, 2), (120.0, 2), (120.1, 1), (1e9, 1), (math.inf, 1)])
def test_a_retry_after_over_two_minutes_is_given_up(asked: float, made: int) -> None:
    """Regardless of the time left: the caller gets the error, and can come back."""
    api = StubApi([answer(503, "errors/service_unavailable", asked), DONE])
    policy = RetryPolicy(deadline=math.inf, wait=NO_WAIT)

    if made == 2:
        assert play(policy, api) == DONE
    else:
        assert failed(policy, api).retry_after == asked
    assert api.made == made
    assert LONGEST_RETRY_AFTER == 120.0


def test_a_retry_after_over_the_deadline_is_given_up() -> None:
    """At once, and it stays on the error."""
    api = StubApi([answer(503, "errors/service_unavailable", 11.0)])

    assert failed(RetryPolicy(deadline=10.0), api).retry_after == 11.0
    assert (api.made, api.naps) == (1, [])


@pytest.mark.parametrize("waits_out_outages", [True, False], ids=["patient", "not"])
def test_a_patient_call_waits_as_it_is_asked_whatever_its_deadline(waits_out_outages: bool) -> None:
    """A rotation has the night; the caller of a single update does not."""
    api = StubApi(
        [answer(503, "errors/service_unavailable", retry_after=60.0), DONE],
        patient=waits_out_outages,
    )
    policy = RetryPolicy(deadline=10.0, wait=NO_WAIT)

    if waits_out_outages:
        assert play(policy, api) == DONE
        assert api.naps == [60.0]
    else:
        failed(policy, api)
        assert api.naps == []


def test_a_retry_after_makes_no_fatal_error_retryable() -> None:
    """Some gateways put it on everything."""
    api = StubApi([answer(400, "errors/invalid_parameters", 1.0)])

    failed(RetryPolicy(), api)
    assert api.made == 1


# --- Strategies of the user's own ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "slept"),
    [
        pytest.param(tenacity.wait_fixed(2.5), [2.5, 2.5, 2.5], id="fixed"),
        pytest.param(tenacity.wait_fixed(timedelta(seconds=2)), [2.0, 2.0, 2.0], id="timedelta"),
        pytest.param(tenacity.wait_incrementing(1, 2), [1.0, 3.0, 5.0], id="incrementing"),
        pytest.param(tenacity.wait_exponential(max=3), [1.0, 2.0, 3.0], id="exponential"),
        pytest.param(
            tenacity.wait_fixed(1) + tenacity.wait_incrementing(0, 1), [1.0, 2.0, 3.0], id="sum of two"
        ),
        pytest.param(
            tenacity.wait_chain(tenacity.wait_fixed(5), tenacity.wait_fixed(1)), [5.0, 1.0, 1.0], id="chain"
        ),
        pytest.param(lambda state: 10.0 * state.attempt_number, [10.0, 20.0, 30.0], id="function"),
        pytest.param(lambda state: state.idle_for + 1.0, [1.0, 2.0, 4.0], id="function of what was waited"),
        pytest.param(lambda state: state.seconds_since_start, [1.0, 3.0, 7.0], id="function of the time"),
    ],
)
def test_a_wait_of_the_user_s_own_takes_the_place_of_the_jitter(wait: Any, slept: list[float]) -> None:
    """Any strategy of tenacity's, or a function like one."""
    api = StubApi([BUSY], takes=1.0)

    failed(RetryPolicy(wait=wait), api)
    assert api.naps == pytest.approx(slept)


def test_a_strategy_sees_the_error_of_the_attempt() -> None:
    """To wait longer after one kind than after another."""

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        return 5.0 if isinstance(state.outcome.exception(), errors.ProxyError) else 1.0

    api = StubApi([answer(502, "errors/proxy_error"), BUSY, DONE])

    assert play(RetryPolicy(wait=wait), api) == DONE
    assert api.naps == [5.0, 1.0]


@pytest.mark.parametrize(
    ("stop", "made"),
    [
        pytest.param(tenacity.stop_after_attempt(2), 2, id="fewer attempts"),
        pytest.param(tenacity.stop_after_attempt(9), 9, id="more attempts"),
        pytest.param(tenacity.stop_after_delay(25), 4, id="after a delay"),
        pytest.param(tenacity.stop_before_delay(25), 3, id="before a delay"),
        pytest.param(tenacity.stop_after_attempt(5) | tenacity.stop_before_delay(25), 3, id="either of two"),
        pytest.param(tenacity.stop_after_attempt(5) & tenacity.stop_before_delay(25), 5, id="both of two"),
        pytest.param(lambda state: state.attempt_number == 6, 6, id="function"),
        pytest.param(tenacity.stop_never, 12, id="never: the deadline holds all the same"),
    ],
)
def test_a_stop_of_the_user_s_own_takes_the_place_of_the_attempts(stop: Any, made: int) -> None:
    """And not of the deadline, which someone further up counts on."""
    api = StubApi([BUSY])

    failed(RetryPolicy(attempts=1, stop=stop, wait=tenacity.wait_fixed(10)), api)
    assert api.made == made


def test_a_wait_that_is_a_coroutine_function_is_awaited() -> None:
    """tenacity's own AsyncRetrying awaits them, too."""

    async def wait(state: tenacity.RetryCallState) -> float:
        return 2.0 * state.attempt_number

    api = StubApi([BUSY])

    failed(RetryPolicy(wait=wait), api)
    assert api.naps == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "asked", [None, 3.0, 121.0], ids=["no Retry-After", "Retry-After", "long Retry-After"]
)
@pytest.mark.parametrize("wait", [1.0, 11.0], ids=["wait within the deadline", "wait over it"])
def test_a_stop_that_is_a_coroutine_function_is_awaited_and_no_more_than_a_stop(
    asked: float | None, wait: float
) -> None:
    """The deadline and the longest Retry-After hold all the same."""

    async def stop(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= 3

    api = StubApi([answer(503, "errors/service_unavailable", asked)])
    policy = RetryPolicy(stop=stop, wait=tenacity.wait_fixed(wait), deadline=10.0)

    failed(policy, api)
    assert api.made == (1 if wait > 10.0 or asked == 121.0 else 3)
    assert sum(api.naps) < 10.0


# --- Jitter --------------------------------------------------------------------------------------


def test_no_number_of_attempts_is_too_many() -> None:
    """A policy of hours doubles beyond what a float holds; its error must be the API's and not that."""
    api = StubApi([BUSY])

    failed(RetryPolicy(attempts=1100, deadline=math.inf), api, errors.ServiceUnavailableError)
    assert api.made == 1100
    assert 19.0 < max(api.naps) <= 20.0


@given(first_wait=st.floats(0.001, 100.0), max_wait=st.floats(0.001, 100.0), attempts=st.integers(1, 12))
def test_the_waits_of_a_call_keep_the_formula(first_wait: float, max_wait: float, attempts: int) -> None:
    """From 0 to ``min(max_wait, first_wait * 2 ** (n - 1))``, as the docstring says."""
    api = StubApi([BUSY])
    policy = RetryPolicy(attempts=attempts, deadline=math.inf, first_wait=first_wait, max_wait=max_wait)

    failed(policy, api)
    for number, nap in enumerate(api.naps, 1):
        assert 0.0 <= nap <= min(max_wait, first_wait * 2 ** (number - 1))


def test_the_policy_s_own_waits_are_its_jitter() -> None:
    """Without another strategy, `first_wait` and `max_wait` determine the jitter."""
    apis = [StubApi([BUSY]) for _ in range(300)]
    for api in apis:
        failed(RetryPolicy(first_wait=1.0, max_wait=3.0), api)

    for number, edge in enumerate([1.0, 2.0, 3.0]):
        naps = [api.naps[number] for api in apis]
        assert 0.9 * edge < max(naps) <= edge
        assert 0.0 <= min(naps) < 0.1 * edge


# --- What a call costs and leaves ----------------------------------------------------------------


def test_a_success_at_once_asks_no_strategy() -> None:
    """The usual case pays nothing for the retry."""

    def forbidden(_state: tenacity.RetryCallState) -> Any:
        raise AssertionError("asked after a success")

    assert play(RetryPolicy(wait=forbidden, stop=forbidden), StubApi([DONE])) == DONE


@contextmanager
def no_collector() -> Iterator[None]:
    """What is freed inside is freed by its last reference alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("answers", "ends_in"),
    [
        pytest.param([DONE], None, id="success"),
        pytest.param([BUSY, DONE], None, id="success after a failure"),
        pytest.param([BUSY, BUSY, BUSY, DONE], None, id="success at last"),
        pytest.param([answer(400)], errors.BadRequestError, id="fatal"),
        pytest.param([BUSY, answer(400)], errors.BadRequestError, id="fatal after a failure"),
        pytest.param([BUSY], errors.ServiceUnavailableError, id="attempts spent"),
        pytest.param([answer(429, "", 121.0)], errors.TooManyRequestsError, id="long Retry-After"),
        pytest.param([BUSY, KeyError], KeyError, id="a bug after a failure"),
        pytest.param([BUSY, asyncio.CancelledError], asyncio.CancelledError, id="cancelled after a failure"),
    ],
)
def test_no_call_leaves_a_cycle_of_references(
    answers: list[Any], ends_in: type[BaseException] | None
) -> None:
    """A traceback in a cycle keeps its frames, with sockets and secrets, until the collector comes by."""

    async def scene() -> int:
        api = StubApi(answers)
        policy = RetryPolicy(wait=NO_WAIT, sleep=api.nap)
        with no_collector():
            try:
                await api.call(policy)
            except BaseException as error:
                outcome: type[BaseException] | None = type(error)
            else:
                outcome = None
            left = gc.collect()
        assert outcome is ends_in
        return left

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        assert runner.run(scene()) == 0


def test_a_call_that_is_cancelled_in_its_wait_leaves_no_cycle() -> None:
    """The failure it waited after is let go with it."""

    @define(eq=False)
    class Waiting(StubApi):
        async def nap(self, seconds: float) -> None:
            await asyncio.get_running_loop().create_future()

    async def scene() -> int:
        api = Waiting([BUSY])
        policy = RetryPolicy(sleep=api.nap)
        with no_collector():
            task = asyncio.create_task(api.call(policy))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            del task
            return gc.collect()

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        assert runner.run(scene()) == 0


# --- The value itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attempt_timeout", "deadline", "first_wait", "max_wait"])
@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -0.0, -math.inf, math.nan, True, "1", None, timedelta(seconds=1), 1j], ids=str
)
def test_a_number_of_seconds_is_above_zero(name: str, value: Any) -> None:
    """A mistake in a policy is reported when it is created, not at the first failure of the night."""
    with pytest.raises(ValueError, match=f"{name} must be a number of seconds above 0"):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "4", None, math.inf], ids=str)
def test_attempts_are_a_whole_number_from_1(value: Any) -> None:
    """None, and infinity, are what a *stop* is for."""
    with pytest.raises(ValueError, match="attempts must be an integer from 1"):
        RetryPolicy(attempts=value)


@pytest.mark.parametrize("name", ["also_on", "never_on"])
@pytest.mark.parametrize(
    "value",
    [
        (ValueError,),
        (Exception,),
        (errors.ConnectError("x"),),
        ("errors/proxy_error",),
        (502,),
        "502",
        (None,),
    ],
    ids=["ValueError", "Exception", "an error, not its class", "a type", "a status", "text", "None"],
)
def test_classes_are_classes_of_errors(name: str, value: Any) -> None:
    """A type or status given by mistake would match nothing."""
    with pytest.raises(ValueError, match=f"{name} must have classes of postpress_async.errors"):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("name", ["also_on", "never_on"])
def test_a_single_error_class_must_be_in_a_tuple(name: str) -> None:
    """The likeliest slip: without the comma it is no tuple."""
    with pytest.raises(ValueError, match=f"{name} must be a tuple of classes"):
        RetryPolicy(**{name: errors.ProxyError})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["retry", "wait", "stop", "before", "after", "before_sleep", "sleep"])
@pytest.mark.parametrize("value", [5], ids=["number"])
def test_a_strategy_is_something_to_call(name: str, value: Any) -> None:
    """Otherwise the first failure would be a TypeError instead of the API's error."""
    with pytest.raises(ValueError, match=name):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize(
    "kinds", [[errors.NoChannelError], {errors.NoChannelError}, iter([errors.NoChannelError])]
)
def test_classes_may_come_in_any_collection(kinds: Any) -> None:
    """The classes are kept as a tuple, which cannot change."""
    assert RetryPolicy(also_on=kinds).also_on == (errors.NoChannelError,)


def test_a_policy_s_numbers_are_the_documented_ones() -> None:
    """The README, the docstring and the design name them."""
    policy = RetryPolicy()

    assert (policy.attempts, policy.attempt_timeout, policy.deadline) == (4, 30.0, 120.0)
    assert (policy.first_wait, policy.max_wait) == (0.5, 20.0)
    assert (policy.also_on, policy.never_on, policy.wait, policy.stop) == ((), (), None, None)
    assert policy.sleep is asyncio.sleep


def test_a_policy_is_a_value() -> None:
    """Equal if its numbers are, hashable, unchangeable, and named."""
    assert RetryPolicy() == RetryPolicy()
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    assert RetryPolicy(attempts=5) != RetryPolicy()
    with pytest.raises(AttributeError):
        RetryPolicy().attempts = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        RetryPolicy(5)  # type: ignore[call-arg]


def test_a_policy_made_from_another_follows_its_own_numbers() -> None:
    """Values that the first policy derived from its numbers are not copied."""
    api = StubApi([answer(503, "errors/no_channel")])
    policy = evolve(RetryPolicy(), attempts=2, also_on=(errors.NoChannelError,), wait=tenacity.wait_fixed(9))

    failed(policy, api)
    assert api.naps == [9.0]


@pytest.mark.parametrize(
    ("policy", "error", "explanation"),
    [
        pytest.param(
            RetryPolicy(),
            BUSY,
            "is retried: it is often temporary; up to 4 attempts, within 120 s.",
            id="retried",
        ),
        pytest.param(
            RetryPolicy(never_on=(errors.PostPressError,)),
            BUSY,
            "is not retried: never_on has its class.",
            id="never_on",
        ),
        pytest.param(
            RetryPolicy(also_on=(errors.NoChannelError,), stop=tenacity.stop_never),
            answer(503, "errors/no_channel"),
            "is retried: also_on has its class; until the stop strategy ends it, within 120 s.",
            id="also_on",
        ),
        pytest.param(
            RetryPolicy(), answer(503, "errors/no_channel"), "its type is not temporary", id="a fatal 503"
        ),
        pytest.param(
            RetryPolicy(),
            answer(500, "errors/unexpected_error"),
            "the change may have been applied",
            id="in doubt",
        ),
        pytest.param(
            RetryPolicy(),
            answer(404, "errors/resource_not_found"),
            "the cause is the account",
            id="fatal",
        ),
        pytest.param(
            RetryPolicy(), answer(503, "errors/network_down", 300.0), "asks to wait 300 s", id="Retry-After"
        ),
        pytest.param(
            RetryPolicy(),
            lambda: KeyError("x"),
            "KeyError is not retried: it is not an error of a call",
            id="a bug",
        ),
    ],
)
def test_a_policy_can_explain_itself(policy: RetryPolicy, error: Any, explanation: str) -> None:
    """Why was this not retried? is what an operator asks of a log."""
    assert explanation in policy.explain(error())


def test_a_policy_travels_as_what_it_was_made_of() -> None:
    """To a worker of a cluster, say: what tenacity keeps beside it, older ones with a lock, stays here."""
    policy = RetryPolicy(attempts=7, also_on=(errors.NoChannelError,), stop=tenacity.stop_never)
    packed = pickle.dumps(evolve(policy, wait=tenacity.wait_random_exponential(1.0, 2.0)))
    there = evolve(pickle.loads(packed), wait=None)

    assert evolve(there, stop=None) == evolve(policy, stop=None)
    assert isinstance(there.stop, type(policy.stop))
    assert b"Retrying" not in packed
    assert there.explain(errors.ConnectError("gone")) == policy.explain(errors.ConnectError("gone"))
    assert copy.deepcopy(RetryPolicy()) == RetryPolicy()
