"""tenacity's strategies and callbacks work in a `RetryPolicy` as tenacity documents them."""

import asyncio
import logging
from collections import Counter, defaultdict
from typing import Any

import pytest
import tenacity
from attrs import evolve
from tenacity import RetryCallState

from postpress_async import RetryPolicy, errors
from postpress_async._call.idempotency import FreshKeys
from postpress_async._call.update import UpdateCall
from postpress_async._http.transport import Request, Response
from postpress_async.errors import PostPressError
from tests.support.stubbed_call import (
    BUSY,
    DONE,
    PROXY,
    ManualLoop,
    StubApi,
    answer,
    context_of,
    failed,
    play,
)

NO_WAIT = tenacity.wait_none()
DEAD_PROXY = answer(502, "errors/proxy_error")
NOT_FOUND = answer(404, "errors/resource_not_found")
LOG = logging.getLogger("tests.tenacity")


async def is_busy(error: BaseException) -> bool:
    await asyncio.sleep(0)
    return isinstance(error, errors.ServiceUnavailableError)


# --- retry ---


@pytest.mark.parametrize(
    "retry",
    [
        pytest.param(
            tenacity.retry_if_exception(lambda error: "busy" in str(error)), id="retry_if_exception"
        ),
        pytest.param(
            tenacity.retry_if_exception_type(errors.ServiceUnavailableError), id="retry_if_exception_type"
        ),
        pytest.param(
            tenacity.retry_if_not_exception_type(errors.ProxyError), id="retry_if_not_exception_type"
        ),
        pytest.param(tenacity.retry_if_exception_message(match=".*busy"), id="retry_if_exception_message"),
        pytest.param(
            tenacity.retry_never | tenacity.retry_if_exception_type(errors.ServiceUnavailableError),
            id="either of two",
        ),
        pytest.param(
            tenacity.retry_always & tenacity.retry_if_exception_type(errors.ServiceUnavailableError),
            id="both of two",
        ),
        pytest.param(tenacity.asyncio.retry_if_exception(is_busy), id="asynchronous"),
        pytest.param(lambda error: error.status == 503, id="predicate"),
        pytest.param(is_busy, id="coroutine function as predicate"),
    ],
)
def test_retry_strategy_overrides_retryable(retry: Any) -> None:
    """Without the strategy, both errors are retried. With it, only the first one is."""

    def busy() -> PostPressError:
        return errors.ServiceUnavailableError(503, errors.Problem("errors/service_unavailable", "busy"), None)

    api = StubApi([busy, busy, DEAD_PROXY, DONE])

    failed(RetryPolicy(retry=retry, wait=NO_WAIT), api, errors.ProxyError)
    assert api.request_count == 3


def test_retry_strategy_may_retry_a_fatal_error() -> None:
    api = StubApi([NOT_FOUND, DONE])

    assert play(RetryPolicy(retry=tenacity.retry_if_exception_type(errors.NotFoundError)), api) == DONE


@pytest.mark.parametrize("retry", [tenacity.retry_always, lambda _error: True], ids=["strategy", "predicate"])
def test_never_on_overrides_the_retry_strategy(retry: Any) -> None:
    api = StubApi([DEAD_PROXY])

    failed(RetryPolicy(retry=retry, never_on=(errors.ProxyError,)), api)
    assert api.request_count == 1


@pytest.mark.parametrize("retry", [tenacity.retry_never, lambda _error: False], ids=["strategy", "predicate"])
def test_also_on_overrides_the_retry_strategy(retry: Any) -> None:
    api = StubApi([DEAD_PROXY, DONE])

    assert play(RetryPolicy(retry=retry, also_on=(errors.ProxyError,)), api) == DONE


def test_error_class_is_rejected_as_a_retry_strategy() -> None:
    """Calling the class returns an instance, which is true, so every error would be retried."""
    with pytest.raises(ValueError, match=r"write tenacity\.retry_if_exception_type\(ProxyError\)"):
        RetryPolicy(retry=errors.ProxyError)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "retry",
    [lambda error: error.status == 404, tenacity.retry_if_exception_type(errors.NotFoundError)],
    ids=["predicate", "strategy"],
)
def test_retries_applies_the_retry_strategy(retry: Any) -> None:
    policy = RetryPolicy(retry=retry)

    assert policy.retries(NOT_FOUND())
    assert not policy.retries(BUSY())
    assert "is retried if the retry strategy says so; up to 4 attempts" in policy.explain(BUSY())


def test_retries_raises_for_a_retry_strategy_that_awaits() -> None:
    with pytest.raises(TypeError, match="possible only during a call"):
        RetryPolicy(retry=is_busy).retries(BUSY())


# --- wait and stop ---


def test_wait_chain_gives_the_waits() -> None:
    api = StubApi([BUSY])
    chain = tenacity.wait_chain(*[tenacity.wait_fixed(1)] * 2, tenacity.wait_fixed(5))

    failed(RetryPolicy(attempts=5, wait=chain), api)
    assert api.backoffs == [1.0, 1.0, 5.0, 5.0]


@pytest.mark.parametrize(("attempts", "seconds", "requests"), [(3, 100, 3), (9, 25, 4)])
def test_stop_any_ends_the_call(attempts: int, seconds: int, requests: int) -> None:
    api = StubApi([BUSY])
    stop = tenacity.stop_any(tenacity.stop_after_attempt(attempts), tenacity.stop_after_delay(seconds))

    failed(RetryPolicy(stop=stop, wait=tenacity.wait_fixed(10)), api)
    assert api.request_count == requests


# --- Callbacks ---


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG.name]


def test_before_sleep_log_has_the_wait_and_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """The first wait is the Retry-After."""
    api = StubApi([answer(503, "errors/service_unavailable", 7.0), DEAD_PROXY, DONE])
    before_sleep = tenacity.before_sleep_log(LOG, logging.WARNING)

    play(RetryPolicy(wait=tenacity.wait_fixed(2), before_sleep=before_sleep), api)
    first, second = messages(caplog)
    assert first.startswith("Retrying postpress_async.")
    assert " in 7" in first
    assert "as it raised ServiceUnavailableError" in first
    assert " in 2" in second
    assert "as it raised ProxyError" in second


def test_after_log_is_called_after_each_attempt_that_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    api = StubApi([BUSY, BUSY, NOT_FOUND], latency=1.0)
    policy = RetryPolicy(wait=tenacity.wait_fixed(2), after=tenacity.after_log(LOG, logging.WARNING))

    failed(policy, api, errors.NotFoundError)
    first, second = messages(caplog)
    assert "after 1" in first
    assert "this was the 1st time calling it" in first
    assert "after 4" in second
    assert "this was the 2nd time calling it" in second


def test_before_log_is_called_before_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    api = StubApi([BUSY, BUSY, DONE])

    play(RetryPolicy(wait=NO_WAIT, before=tenacity.before_log(LOG, logging.INFO)), api)
    assert [message.split("this is the ")[1] for message in messages(caplog)] == [
        "1st time calling it.",
        "2nd time calling it.",
        "3rd time calling it.",
    ]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["functions", "coroutine functions"])
def test_callbacks_are_called_in_tenacity_s_order(asynchronous: bool) -> None:
    calls: list[tuple[str, int]] = []

    def recorder(name: str) -> Any:
        def record(state: RetryCallState) -> None:
            calls.append((name, state.attempt_number))

        async def record_later(state: RetryCallState) -> None:
            await asyncio.sleep(0)
            record(state)

        return record_later if asynchronous else record

    names = ("before", "after", "before_sleep")
    policy = RetryPolicy(wait=NO_WAIT, **{name: recorder(name) for name in names})

    play(policy, StubApi([BUSY, DONE]))
    assert calls == [("before", 1), ("after", 1), ("before_sleep", 1), ("before", 2)]


def test_callback_gets_the_arguments_the_error_and_the_times_of_the_call() -> None:
    states: list[Any] = []

    def record(state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        error = state.outcome.exception()
        states.append((type(error), state.next_action.sleep, state.idle_for, state.seconds_since_start))
        assert state.args == ("acc_1", PROXY)

    api = StubApi([BUSY, DEAD_PROXY, DONE], latency=1.0)
    play(RetryPolicy(wait=tenacity.wait_fixed(2), before_sleep=record), api)
    assert states == [(errors.ServiceUnavailableError, 2.0, 2.0, 1.0), (errors.ProxyError, 2.0, 4.0, 4.0)]


def test_exception_of_a_callback_ends_the_call() -> None:
    def broken(_state: RetryCallState) -> None:
        raise KeyError("bug")

    api = StubApi([BUSY])
    with pytest.raises(KeyError, match="bug"):
        play(RetryPolicy(before_sleep=broken), api)
    assert api.request_count == 1


@pytest.mark.parametrize("seconds", [float("nan"), -1.0])
def test_wait_strategy_must_not_return_nan_or_a_negative_number(seconds: float) -> None:
    """A sleep of NaN seconds would never end."""
    api = StubApi([BUSY])

    with pytest.raises(
        ValueError, match=f"wait strategy must return a number of seconds from 0, got {seconds}"
    ):
        play(RetryPolicy(wait=lambda _state: seconds), api)
    assert (api.request_count, api.backoffs) == (1, [])


def test_callback_finds_the_statistics_of_its_call() -> None:
    recorded: list[dict[str, Any]] = []

    def record(state: RetryCallState) -> None:
        recorded.append(dict(state.retry_object.statistics))

    api = StubApi([BUSY, BUSY, DONE], latency=1.0)
    play(RetryPolicy(wait=tenacity.wait_fixed(2), before_sleep=record), api)

    start_times = [statistics.pop("start_time") for statistics in recorded]
    assert start_times[0] == start_times[1]
    assert recorded == [
        {"attempt_number": 2, "idle_for": 2, "delay_since_first_attempt": 1.0},
        {"attempt_number": 3, "idle_for": 4, "delay_since_first_attempt": 4.0},
    ]


def test_strategies_of_an_async_retrying_can_be_used_in_a_policy() -> None:
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(errors.NotFoundError), wait=tenacity.wait_fixed(3)
    ).copy(stop=tenacity.stop_after_attempt(3))
    api = StubApi([NOT_FOUND])

    failed(RetryPolicy(retry=retrying.retry, wait=retrying.wait, stop=retrying.stop), api)
    assert (api.request_count, api.backoffs) == (3, [3.0, 3.0])


def test_retry_object_of_a_call_can_be_copied() -> None:
    copies: list[Any] = []

    def copy(state: RetryCallState) -> None:
        copies.append(state.retry_object.copy(wait=NO_WAIT))

    play(RetryPolicy(before_sleep=copy), StubApi([BUSY, DONE]))
    assert (copies[0].wait, copies[0].before_sleep, copies[0].statistics) == (NO_WAIT, copy, {})


# --- Many calls at once ---


def test_thousand_concurrent_calls_with_one_policy_share_no_state() -> None:
    """Each call has its own attempts, waits and statistics. Every third call succeeds in attempt 3."""
    requests: Counter[str] = Counter()
    states: dict[str, list[Any]] = defaultdict(list)

    class Api:
        async def send(self, request: Request, _key: str | None, _timeout: float) -> Response:
            account_id = request.account_id
            requests[account_id] += 1
            number = requests[account_id]
            for _ in range(int(account_id) % 7):  # calls overlap in many ways
                await asyncio.sleep(0)
            if int(account_id) % 3 == 0 and number == 3:
                return Response(200, b'{"object":"AccountPatched","account_id":"%s"}' % account_id.encode())
            raise errors.ConnectError(f"{account_id}, attempt {number}")

        async def aclose(self) -> None: ...

    def record(state: RetryCallState) -> None:
        statistics = state.retry_object.statistics
        states[state.args[0]].append(
            (state.attempt_number, state.idle_for, statistics["attempt_number"], statistics["idle_for"])
        )

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    policy = RetryPolicy(wait=lambda state: float(state.attempt_number), before_sleep=record, sleep=sleep)

    async def run_calls() -> list[Any]:
        context = context_of(Api())

        async def call(account_id: str) -> Any:
            with context.tracker:
                keys = FreshKeys()
                return await UpdateCall(context, account_id, PROXY, keys, policy).run()

        return await asyncio.gather(*(call(str(number)) for number in range(1000)), return_exceptions=True)

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        outcomes = runner.run(run_calls())
    expected = [(1, 1.0, 2, 1.0), (2, 3.0, 3, 3.0), (3, 6.0, 4, 6.0)]
    for number, outcome in enumerate(outcomes):
        if number % 3 == 0:
            assert outcome == evolve(DONE, account_id=str(number))
            assert states[str(number)] == expected[:2]
        else:
            assert outcome.args == (f"{number}, attempt 4",)
            assert states[str(number)] == expected
    assert policy._retrying.statistics == {}


# --- Invalid arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"retry": tenacity.AsyncRetrying()},
            "retry must be one strategy, not AsyncRetrying: pass its retry,",
        ),
        ({"wait": tenacity.wait_fixed}, r"wait must be a strategy, not its class: write wait_fixed\(...\)"),
        ({"wait": 5}, r"such as tenacity.wait_fixed\(5\), got 5"),
        ({"stop": 3}, r"such as tenacity.stop_after_attempt\(3\), got 3"),
    ],
)
def test_argument_that_is_not_a_strategy_is_rejected_with_advice(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**options)
