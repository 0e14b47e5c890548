"""Which errors are retried, and after how many seconds. The API is a stub, and tests advance the clock."""

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
def test_only_the_five_retryable_types_are_retried(type_: str, kind: type[ApiError]) -> None:
    assert kind.status is not None
    api = StubApi([answer(kind.status, type_)])

    failed(RetryPolicy(), api, kind)
    assert api.request_count == (4 if type_ in RETRIED else 1)


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
        pytest.param(lambda: errors.AnswerError("x", 200), False, id="invalid 200"),
        pytest.param(lambda: errors.AnswerError("x", 302), False, id="redirect"),
        pytest.param(lambda: errors.AnswerError("x", 502), True, id="502 too large to read"),
        pytest.param(lambda: errors.AnswerError("x", None), False, id="response that is not HTTP"),
        pytest.param(lambda: errors.DeadlineError("x"), False, id="deadline"),
        pytest.param(lambda: errors.ConfigurationError("x"), False, id="configuration"),
        pytest.param(lambda: errors.SessionClosedError("x"), False, id="session closed"),
        pytest.param(PostPressError, False, id="base class"),
    ],
)
def test_errors_that_are_not_a_documented_pair_of_type_and_status_are_retried_or_fatal(
    make: Callable[[], PostPressError], retried: bool
) -> None:
    api = StubApi([make])

    failed(RetryPolicy(), api)
    assert api.request_count == (4 if retried else 1)
    assert RetryPolicy().retries(make()) is retried


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, OSError, TimeoutError, asyncio.CancelledError, KeyboardInterrupt]
)
@pytest.mark.parametrize("failures", [[], [BUSY]], ids=["in the first attempt", "in the second attempt"])
def test_foreign_exceptions_are_raised_unchanged(kind: type[BaseException], failures: list[Any]) -> None:
    """Bugs and cancellations are neither retried nor wrapped."""
    api = StubApi([*failures, kind])

    with pytest.raises(kind) as caught:
        play(RetryPolicy(), api)
    assert type(caught.value) is kind
    assert api.request_count == len(failures) + 1
    assert not RetryPolicy(also_on=(PostPressError,)).retries(kind())


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_call_ends_with_the_first_success(failures: int) -> None:
    api = StubApi([BUSY] * failures + [DONE])

    assert play(RetryPolicy(), api) == DONE
    assert api.request_count == failures + 1
    assert len(api.backoffs) == failures


def test_last_error_is_raised_without_cause_and_context() -> None:
    raised = [errors.ConnectError("first"), errors.ConnectError("second"), errors.TlsError("last")]

    error = failed(RetryPolicy(), StubApi([lambda error=error: error for error in raised]))
    assert error is raised[-1]
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize("attempts", [1, 2, 3, 10])
def test_attempts_include_the_first(attempts: int) -> None:
    api = StubApi([BUSY])

    failed(RetryPolicy(attempts=attempts, deadline=math.inf), api)
    assert api.request_count == attempts
    assert len(api.backoffs) == attempts - 1


def test_attempts_during_a_known_outage_do_not_count() -> None:
    api = StubApi([BUSY] * 9 + [DONE], counts_attempts=False)

    assert play(RetryPolicy(attempts=2, wait=NO_WAIT), api) == DONE
    assert api.request_count == 10


def test_backoff_during_a_known_outage_does_not_count_against_the_deadline() -> None:
    """A rotation's call waits out an outage, however short its deadline is."""
    api = StubApi([BUSY] * 9 + [DONE], waits_out_outages=True, counts_attempts=False)
    policy = RetryPolicy(attempts=99, deadline=10.0, wait=tenacity.wait_fixed(11.0))

    assert play(policy, api) == DONE


def test_backoff_without_an_outage_counts_against_the_deadline() -> None:
    """Even if the call would wait out an outage."""
    api = StubApi([BUSY] * 9 + [DONE], waits_out_outages=True, counts_attempts=True)
    policy = RetryPolicy(attempts=99, deadline=10.0, wait=tenacity.wait_fixed(11.0))

    failed(policy, api)
    assert api.request_count == 1


# --- also_on and never_on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("also_on", "never_on", "retried"),
    [
        pytest.param((errors.NoChannelError,), (), True, id="also its class"),
        pytest.param((errors.UnavailableError,), (), True, id="also its base class"),
        pytest.param((PostPressError,), (), True, id="also everything"),
        pytest.param((errors.NoHandlerError,), (), False, id="also a sibling class"),
        pytest.param(
            (errors.NoChannelError,), (errors.NoChannelError,), False, id="also and never its class"
        ),
        pytest.param(
            (errors.NoChannelError,), (errors.UnavailableError,), False, id="also its class, never its base"
        ),
        pytest.param(
            (errors.UnavailableError,), (errors.NoHandlerError,), True, id="also its base, never a sibling"
        ),
    ],
)
def test_fatal_error_is_retried_if_also_on_has_its_class_and_never_on_does_not(
    also_on: Any, never_on: Any, retried: bool
) -> None:
    policy = RetryPolicy(also_on=also_on, never_on=never_on)
    api = StubApi([answer(503, "errors/no_channel")])

    failed(policy, api, errors.NoChannelError)
    assert api.request_count == (4 if retried else 1)


@pytest.mark.parametrize("never_on", [errors.ProxyError, errors.BadGatewayError, ApiError, PostPressError])
def test_never_on_excludes_a_class_with_its_subclasses(never_on: type[PostPressError]) -> None:
    policy = RetryPolicy(never_on=(never_on,))
    api = StubApi([answer(502, "errors/proxy_error")])

    failed(policy, api, errors.ProxyError)
    assert api.request_count == 1
    assert policy.retries(errors.ConnectError("x")) is (never_on is not PostPressError)


def test_also_on_is_applied_to_the_error_of_each_attempt() -> None:
    """The third error ends the call, although also_on has the class of the second."""
    api = StubApi([BUSY, answer(503, "errors/no_channel"), answer(400), DONE])

    failed(RetryPolicy(also_on=(errors.NoChannelError,)), api, errors.BadRequestError)
    assert api.request_count == 3


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(RetryPolicy(), id="default"),
        pytest.param(RetryPolicy(also_on=(PostPressError,)), id="also_on"),
        pytest.param(RetryPolicy(retry=lambda _error: True), id="predicate"),
        pytest.param(RetryPolicy(retry=tenacity.retry_always, stop=tenacity.stop_never), id="strategies"),
    ],
)
def test_no_policy_retries_a_managed_change_in_doubt_without_a_key(policy: RetryPolicy) -> None:
    """A retry might assign, and bill, a second managed proxy."""
    api = StubApi([answer(504, "errors/request_timeout"), DONE], change=ManagedProxy(country="US"))
    api.keys = FixedKey(None)

    failed(policy, api, errors.RequestTimeoutError)
    assert api.request_count == 1


# --- The deadline --------------------------------------------------------------------------------


def test_call_fails_at_once_if_the_next_wait_would_exceed_the_deadline() -> None:
    api = StubApi([BUSY], latency=2.0)

    failed(RetryPolicy(deadline=10.0, wait=tenacity.wait_fixed(5.0)), api)
    assert api.backoffs == [5.0]  # 2 + 5 + 2 = 9 seconds, so 1 second is left: less than another wait
    assert api.ended_at == [1002.0, 1009.0]


def test_time_before_the_first_attempt_counts_against_the_deadline() -> None:
    """A call may have waited for a permit, or for an earlier update of its account."""
    api = StubApi([BUSY], initial_delay=8.0)

    failed(RetryPolicy(deadline=10.0, wait=tenacity.wait_fixed(5.0)), api)
    assert api.request_count == 1


def test_waiting_for_a_permit_does_not_count_if_the_call_waits_out_outages() -> None:
    """An outage may last for hours."""

    class HourlyPacer(Pacer):
        """Grants each permit after an hour."""

        def try_acquire(self) -> Permit | None:
            return None

        def enqueue(self, *, retry: bool = False) -> PermitFuture:
            advance(3600.0)
            future = asyncio.get_running_loop().create_future()
            permit = super().try_acquire()
            future.set_result(permit)
            return future

    api = StubApi([BUSY, BUSY, DONE], waits_out_outages=True, pacer=HourlyPacer)

    assert play(RetryPolicy(deadline=10.0, wait=tenacity.wait_fixed(2.0)), api) == DONE


def test_infinite_deadline_limits_nothing() -> None:
    api = StubApi([BUSY], latency=1e6)

    failed(RetryPolicy(deadline=math.inf, wait=tenacity.wait_fixed(1e6)), api)
    assert api.request_count == 4


@given(
    deadline=st.floats(0.001, 500.0),
    latency=st.floats(0.0, 100.0),
    initial_delay=st.floats(0.0, 100.0),
    waits=st.lists(st.floats(0.0, 200.0), min_size=1, max_size=8),
    retry_afters=st.lists(st.none() | st.floats(0.0, 200.0), min_size=1, max_size=8),
    stop=st.sampled_from([None, tenacity.stop_never, tenacity.stop_after_attempt(7)]),
)
def test_no_wait_ends_after_the_deadline(
    deadline: float,
    latency: float,
    initial_delay: float,
    waits: list[float],
    retry_afters: list[float | None],
    stop: Callable[[tenacity.RetryCallState], bool] | None,
) -> None:
    """Whatever the durations, the wait strategy and the Retry-After."""
    chain = tenacity.wait_chain(*map(tenacity.wait_fixed, [*waits, 1.0]))
    policy = RetryPolicy(attempts=20, deadline=deadline, wait=chain, stop=stop)
    api = StubApi(
        [answer(503, "errors/service_unavailable", retry_after) for retry_after in retry_afters],
        latency,
        initial_delay=initial_delay,
    )
    failed(policy, api)

    for ended, backoff in zip(api.ended_at, api.backoffs, strict=False):
        assert ended + backoff - START <= deadline
    # No attempt is made if `initial_delay` exceeds the deadline.
    assert len(api.backoffs) == max(0, api.request_count - 1)
    assert all(backoff <= LONGEST_RETRY_AFTER or backoff in waits for backoff in api.backoffs)


# --- Retry-After ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "wait", "slept"),
    [
        pytest.param(7.0, 0.0, 7.0, id="longer than the backoff"),
        pytest.param(7.0, 9.0, 9.0, id="shorter than the backoff"),
        pytest.param(0.0, 9.0, 9.0, id="zero"),
        pytest.param(None, 9.0, 9.0, id="no Retry-After"),
        pytest.param(100.0, 20.0, 100.0, id="longer than the policy's max_wait"),
    ],
)
def test_wait_is_never_shorter_than_the_retry_after(
    retry_after: float | None, wait: float, slept: float
) -> None:
    api = StubApi([answer(503, "errors/service_unavailable", retry_after), DONE])

    assert play(RetryPolicy(wait=tenacity.wait_fixed(wait)), api) == DONE
    assert api.backoffs == [slept]


def test_retry_after_applies_only_to_the_next_wait() -> None:
    api = StubApi([answer(429, "", 30.0), answer(429, "", 1.0), answer(429), DONE])

    assert play(RetryPolicy(wait=NO_WAIT), api) == DONE
    assert api.backoffs == [30.0, 1.0, 0.0]


@pytest.mark.parametrize("retry_after", [119.9, 120.0])
def test_call_waits_for_a_retry_after_of_up_to_two_minutes(retry_after: float) -> None:
    api = StubApi([answer(503, "errors/service_unavailable", retry_after), DONE])

    assert play(RetryPolicy(deadline=math.inf, wait=NO_WAIT), api) == DONE
    assert api.backoffs == [retry_after]


@pytest.mark.parametrize("retry_after", [120.1, 1e9, math.inf])
def test_call_fails_at_once_if_the_retry_after_is_over_two_minutes(retry_after: float) -> None:
    """Even without a deadline. The error has the seconds, so that the caller can try again later."""
    api = StubApi([answer(503, "errors/service_unavailable", retry_after), DONE])

    assert failed(RetryPolicy(deadline=math.inf, wait=NO_WAIT), api).retry_after == retry_after
    assert api.request_count == 1
    assert LONGEST_RETRY_AFTER == 120.0


def test_call_fails_at_once_if_the_retry_after_exceeds_the_deadline() -> None:
    api = StubApi([answer(503, "errors/service_unavailable", 11.0)])

    assert failed(RetryPolicy(deadline=10.0), api).retry_after == 11.0
    assert (api.request_count, api.backoffs) == (1, [])


@pytest.mark.parametrize("waits_out_outages", [True, False], ids=["rotation", "single call"])
def test_only_a_call_that_waits_out_outages_waits_for_a_retry_after_beyond_its_deadline(
    waits_out_outages: bool,
) -> None:
    api = StubApi(
        [answer(503, "errors/service_unavailable", retry_after=60.0), DONE],
        waits_out_outages=waits_out_outages,
    )
    policy = RetryPolicy(deadline=10.0, wait=NO_WAIT)

    if waits_out_outages:
        assert play(policy, api) == DONE
        assert api.backoffs == [60.0]
    else:
        failed(policy, api)
        assert api.backoffs == []


def test_fatal_error_with_a_retry_after_is_not_retried() -> None:
    """Some gateways add the header to all error responses."""
    api = StubApi([answer(400, "errors/invalid_parameters", 1.0)])

    failed(RetryPolicy(), api)
    assert api.request_count == 1


# --- Wait and stop strategies --------------------------------------------------------------------


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
        pytest.param(lambda state: state.idle_for + 1.0, [1.0, 2.0, 4.0], id="function of earlier waits"),
        pytest.param(lambda state: state.seconds_since_start, [1.0, 3.0, 7.0], id="function of the time"),
    ],
)
def test_wait_strategy_replaces_the_jitter(wait: Any, slept: list[float]) -> None:
    api = StubApi([BUSY], latency=1.0)

    failed(RetryPolicy(wait=wait), api)
    assert api.backoffs == pytest.approx(slept)


def test_wait_strategy_can_depend_on_the_error() -> None:
    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        return 5.0 if isinstance(state.outcome.exception(), errors.ProxyError) else 1.0

    api = StubApi([answer(502, "errors/proxy_error"), BUSY, DONE])

    assert play(RetryPolicy(wait=wait), api) == DONE
    assert api.backoffs == [5.0, 1.0]


@pytest.mark.parametrize(
    ("stop", "requests"),
    [
        pytest.param(tenacity.stop_after_attempt(2), 2, id="fewer attempts"),
        pytest.param(tenacity.stop_after_attempt(9), 9, id="more attempts"),
        pytest.param(tenacity.stop_after_delay(25), 4, id="after a delay"),
        pytest.param(tenacity.stop_before_delay(25), 3, id="before a delay"),
        pytest.param(tenacity.stop_after_attempt(5) | tenacity.stop_before_delay(25), 3, id="either of two"),
        pytest.param(tenacity.stop_after_attempt(5) & tenacity.stop_before_delay(25), 5, id="both of two"),
        pytest.param(lambda state: state.attempt_number == 6, 6, id="function"),
        pytest.param(tenacity.stop_never, 12, id="never, so only the deadline applies"),
    ],
)
def test_stop_strategy_replaces_attempts_but_not_the_deadline(stop: Any, requests: int) -> None:
    api = StubApi([BUSY])

    failed(RetryPolicy(attempts=1, stop=stop, wait=tenacity.wait_fixed(10)), api)
    assert api.request_count == requests


def test_wait_strategy_may_be_a_coroutine_function() -> None:
    async def wait(state: tenacity.RetryCallState) -> float:
        return 2.0 * state.attempt_number

    api = StubApi([BUSY])

    failed(RetryPolicy(wait=wait), api)
    assert api.backoffs == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("retry_after", "wait", "requests"),
    [
        pytest.param(None, 1.0, 3, id="stop strategy"),
        pytest.param(3.0, 1.0, 3, id="stop strategy, with a Retry-After"),
        pytest.param(None, 11.0, 1, id="wait exceeds the deadline"),
        pytest.param(121.0, 1.0, 1, id="Retry-After over two minutes"),
    ],
)
def test_stop_strategy_may_be_a_coroutine_function(
    retry_after: float | None, wait: float, requests: int
) -> None:
    """The deadline and the longest Retry-After apply too."""

    async def stop(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= 3

    api = StubApi([answer(503, "errors/service_unavailable", retry_after)])
    policy = RetryPolicy(stop=stop, wait=tenacity.wait_fixed(wait), deadline=10.0)

    failed(policy, api)
    assert api.request_count == requests


# --- Jitter --------------------------------------------------------------------------------------


def test_number_of_attempts_may_be_very_high() -> None:
    """2 ** 1099 is more than a float holds. The call must raise the API's error, not an `OverflowError`."""
    api = StubApi([BUSY])

    failed(RetryPolicy(attempts=1100, deadline=math.inf), api, errors.ServiceUnavailableError)
    assert api.request_count == 1100
    assert 19.0 < max(api.backoffs) <= 20.0


@given(first_wait=st.floats(0.001, 100.0), max_wait=st.floats(0.001, 100.0), attempts=st.integers(1, 12))
def test_each_wait_is_within_the_documented_formula(
    first_wait: float, max_wait: float, attempts: int
) -> None:
    api = StubApi([BUSY])
    policy = RetryPolicy(attempts=attempts, deadline=math.inf, first_wait=first_wait, max_wait=max_wait)

    failed(policy, api)
    for number, backoff in enumerate(api.backoffs, 1):
        assert 0.0 <= backoff <= min(max_wait, first_wait * 2 ** (number - 1))


def test_jitter_uses_the_whole_range_of_each_wait() -> None:
    apis = [StubApi([BUSY]) for _ in range(300)]
    for api in apis:
        failed(RetryPolicy(first_wait=1.0, max_wait=3.0), api)

    for number, longest in enumerate([1.0, 2.0, 3.0]):
        backoffs = [api.backoffs[number] for api in apis]
        assert 0.9 * longest < max(backoffs) <= longest
        assert 0.0 <= min(backoffs) < 0.1 * longest


# --- Efficiency and reference cycles -------------------------------------------------------------


def test_call_that_succeeds_at_once_calls_no_strategy() -> None:
    def forbidden(_state: tenacity.RetryCallState) -> Any:
        raise AssertionError("called after a success")

    assert play(RetryPolicy(wait=forbidden, stop=forbidden), StubApi([DONE])) == DONE


@contextmanager
def no_collector() -> Iterator[None]:
    """Disable the garbage collector, so that reference cycles stay in memory."""
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
        pytest.param([BUSY, BUSY, BUSY, DONE], None, id="success in the last attempt"),
        pytest.param([answer(400)], errors.BadRequestError, id="fatal error"),
        pytest.param([BUSY, answer(400)], errors.BadRequestError, id="fatal error after a failure"),
        pytest.param([BUSY], errors.ServiceUnavailableError, id="no attempt left"),
        pytest.param([answer(429, "", 121.0)], errors.TooManyRequestsError, id="long Retry-After"),
        pytest.param([BUSY, KeyError], KeyError, id="a bug after a failure"),
        pytest.param([BUSY, asyncio.CancelledError], asyncio.CancelledError, id="cancelled after a failure"),
    ],
)
def test_call_leaves_no_reference_cycle(answers: list[Any], ends_in: type[BaseException] | None) -> None:
    """A traceback in a cycle keeps frames with sockets and secrets until the garbage collector runs."""

    async def count_uncollected() -> int:
        api = StubApi(answers)
        policy = RetryPolicy(wait=NO_WAIT, sleep=api.back_off)
        with no_collector():
            try:
                await api.call(policy)
            except BaseException as error:
                outcome: type[BaseException] | None = type(error)
            else:
                outcome = None
            uncollected = gc.collect()
        assert outcome is ends_in
        return uncollected

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        assert runner.run(count_uncollected()) == 0


def test_call_cancelled_during_a_backoff_leaves_no_reference_cycle() -> None:
    @define(eq=False)
    class EndlessNap(StubApi):
        async def back_off(self, seconds: float) -> None:
            await asyncio.get_running_loop().create_future()

    async def count_uncollected() -> int:
        api = EndlessNap([BUSY])
        policy = RetryPolicy(sleep=api.back_off)
        with no_collector():
            task = asyncio.create_task(api.call(policy))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            del task
            return gc.collect()

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        assert runner.run(count_uncollected()) == 0


# --- Validation and equality of a policy ---------------------------------------------------------


@pytest.mark.parametrize("name", ["attempt_timeout", "deadline", "first_wait", "max_wait"])
@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -0.0, -math.inf, math.nan, True, "1", None, timedelta(seconds=1), 1j], ids=str
)
def test_seconds_must_be_a_number_above_zero(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number of seconds above 0"):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "4", None, math.inf], ids=str)
def test_attempts_must_be_an_integer_from_1(value: Any) -> None:
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
def test_also_on_and_never_on_reject_anything_but_error_classes(name: str, value: Any) -> None:
    """An error type or status passed by mistake would match nothing."""
    with pytest.raises(ValueError, match=f"{name} must have classes of postpress_async.errors"):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("name", ["also_on", "never_on"])
def test_a_single_error_class_must_be_in_a_tuple(name: str) -> None:
    """``(ProxyError)`` without a comma is not a tuple, and an easy mistake."""
    with pytest.raises(ValueError, match=f"{name} must be a tuple of classes"):
        RetryPolicy(**{name: errors.ProxyError})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["retry", "wait", "stop", "before", "after", "before_sleep", "sleep"])
def test_strategies_and_callbacks_must_be_callable(name: str) -> None:
    options: dict[str, Any] = {name: 5}

    with pytest.raises(ValueError, match=f"{name} must be callable"):
        RetryPolicy(**options)


@pytest.mark.parametrize(
    "kinds", [[errors.NoChannelError], {errors.NoChannelError}, iter([errors.NoChannelError])]
)
def test_error_classes_may_be_in_any_iterable(kinds: Any) -> None:
    assert RetryPolicy(also_on=kinds).also_on == (errors.NoChannelError,)


def test_defaults_of_a_policy() -> None:
    """A change of a default must be documented as well."""
    policy = RetryPolicy()

    assert (policy.attempts, policy.attempt_timeout, policy.deadline) == (4, 30.0, 120.0)
    assert (policy.first_wait, policy.max_wait) == (0.5, 20.0)
    assert (policy.also_on, policy.never_on, policy.wait, policy.stop) == ((), (), None, None)
    assert policy.sleep is asyncio.sleep


def test_policy_is_comparable_hashable_immutable_and_keyword_only() -> None:
    assert RetryPolicy() == RetryPolicy()
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    assert RetryPolicy(attempts=5) != RetryPolicy()
    with pytest.raises(AttributeError):
        RetryPolicy().attempts = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        RetryPolicy(5)  # type: ignore[call-arg]


def test_evolved_policy_uses_its_own_settings() -> None:
    """A policy makes tenacity objects from its settings. `evolve` must not copy them from the old policy."""
    api = StubApi([answer(503, "errors/no_channel")])
    policy = evolve(RetryPolicy(), attempts=2, also_on=(errors.NoChannelError,), wait=tenacity.wait_fixed(9))

    failed(policy, api)
    assert api.backoffs == [9.0]


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
def test_policy_explains_whether_and_why_an_error_is_retried(
    policy: RetryPolicy, error: Any, explanation: str
) -> None:
    assert explanation in policy.explain(error())


def test_policy_is_pickled_and_copied_without_tenacity_s_state() -> None:
    """Policies are sent to cluster workers, and in older versions of tenacity the state contains a lock."""
    policy = RetryPolicy(attempts=7, also_on=(errors.NoChannelError,), stop=tenacity.stop_never)
    pickled = pickle.dumps(evolve(policy, wait=tenacity.wait_random_exponential(1.0, 2.0)))
    unpickled = evolve(pickle.loads(pickled), wait=None)

    assert evolve(unpickled, stop=None) == evolve(policy, stop=None)
    assert isinstance(unpickled.stop, type(policy.stop))
    assert b"Retrying" not in pickled
    assert unpickled.explain(errors.ConnectError("gone")) == policy.explain(errors.ConnectError("gone"))
    assert copy.deepcopy(RetryPolicy()) == RetryPolicy()
