"""When a rotation halts: what counts as a failure, and how many failures reach the threshold."""

from collections.abc import Iterator
from typing import Any

import pytest

from postpress_async import Outcome, errors
from postpress_async.rotation._failure_monitor import WINDOW, FailureMonitor
from postpress_async.rotation._halt import Halt, as_halt
from postpress_async.rotation._outcome import NO_PROXY_LEFT, State, failed_outcome
from tests.support.journals import patched_outcome


def patched(account: str = "acc_1") -> Outcome:
    return patched_outcome(0, None, account, 1, 0.1)


def failed(type_: str = "errors/provider_error", status: int = 500) -> Outcome:
    error = errors.ApiError.of(status, errors.Problem(type_))
    return failed_outcome(0, None, "acc_1", error, 0.1)


def outcomes_of(good: int, bad: int) -> Iterator[Outcome]:
    """Yield the outcomes of *good* patched accounts, and then of *bad* failed accounts."""
    for _ in range(good):
        yield patched()
    for _ in range(bad):
        yield failed()


def first_halt(monitor: FailureMonitor, outcomes: Iterator[Outcome]) -> tuple[int, str] | None:
    """Return after how many of *outcomes* the monitor halts, and the reason; None if it does not halt."""
    for count, outcome in enumerate(outcomes, 1):
        if (reason := monitor.observe(outcome)) is not None:
            return count, reason
    return None


@pytest.mark.parametrize(
    ("failures", "bad"),
    [
        pytest.param("5%", 10, id="5% of 200"),
        pytest.param("0.4%", 1, id="less than one account counts as one"),
        pytest.param("50%", 100, id="half"),
        pytest.param("100%", 200, id="all"),
        pytest.param("29%", 58, id="29% of 200"),
        pytest.param(7, 7, id="a number"),
        pytest.param("7", 7, id="a number as text"),
    ],
)
def test_halts_exactly_at_the_threshold(failures: Any, bad: int) -> None:
    assert first_halt(FailureMonitor(Halt(failures=failures)), outcomes_of(0, bad - 1)) is None
    halt = first_halt(FailureMonitor(Halt(failures=failures)), outcomes_of(0, 400))
    assert halt is not None
    count, reason = halt
    assert count == bad
    assert reason.startswith(f"{bad} ")
    assert "all with errors/provider_error" in reason


def test_percentage_counts_only_the_latest_200_accounts() -> None:
    monitor = FailureMonitor(Halt(failures="5%"))

    assert first_halt(monitor, outcomes_of(0, 9)) is None
    assert first_halt(monitor, outcomes_of(WINDOW - 9, 0)) is None
    assert first_halt(monitor, outcomes_of(0, 9)) is None  # the first nine have left the window
    assert first_halt(monitor, outcomes_of(0, 1)) is not None


def test_number_counts_all_accounts_of_the_run() -> None:
    monitor = FailureMonitor(Halt(failures=10))

    assert first_halt(monitor, outcomes_of(5000, 9)) is None
    assert first_halt(monitor, outcomes_of(5000, 0)) is None
    assert first_halt(monitor, outcomes_of(0, 1)) is not None


def test_never_halts_only_for_a_refused_api_key() -> None:
    monitor = FailureMonitor(Halt(failures="never"))
    assert first_halt(monitor, outcomes_of(1, 5000)) is None

    refused = failed("errors/insufficient_privileges", 401)
    monitor = FailureMonitor(Halt(failures="never"))
    assert "the API key was refused" in (monitor.observe(refused) or "")
    assert monitor.key_refused


def test_error_about_the_api_key_halts_after_any_number_of_patched_accounts() -> None:
    """If the key is revoked during a run, every further account would get the same error."""
    monitor = FailureMonitor(Halt(failures="never"), key_works=True)
    assert first_halt(monitor, outcomes_of(5000, 300)) is None

    assert "the API key was refused" in (monitor.observe(failed("errors/missing_credentials", 401)) or "")
    assert monitor.key_refused


def test_same_401_for_all_of_a_few_accounts_means_the_key_is_refused() -> None:
    monitor = FailureMonitor(Halt())
    assert first_halt(monitor, iter([failed("errors/expired_credentials", 401)] * 3)) is None

    assert "each of the 3 accounts" in (monitor.at_end() or "")
    assert monitor.key_refused


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([patched()], id="one was patched"),
        pytest.param([failed("errors/invalid_credentials", 401)], id="another 401"),
        pytest.param([failed("errors/disconnected_account", 401)], id="a 401 about the account"),
        pytest.param([failed("errors/resource_not_found", 404)], id="a 404"),
        pytest.param([failed("errors/provider_error", 500)], id="a failing service"),
        pytest.param([failed("errors/proxy_error", 502)], id="a dead proxy"),
    ],
)
def test_key_does_not_count_as_refused_if_one_account_got_another_outcome(others: list[Outcome]) -> None:
    monitor = FailureMonitor(Halt())
    first_halt(monitor, iter([*others, failed("errors/expired_credentials", 401)]))

    assert monitor.at_end() is None
    assert not monitor.key_refused


def test_key_that_worked_in_an_earlier_run_does_not_count_as_refused() -> None:
    monitor = FailureMonitor(Halt(), key_works=True)
    first_halt(monitor, iter([failed("errors/expired_credentials", 401)]))

    assert monitor.at_end() is None


def test_run_without_responses_does_not_show_that_the_key_is_refused() -> None:
    monitor = FailureMonitor(Halt())
    first_halt(monitor, iter([Outcome(0, None, "acc_1", State.SKIPPED, applied=errors.Applied.NO)]))

    assert monitor.at_end() is None


def test_skipped_accounts_are_not_failures() -> None:
    """An invalid row, and an account for which the pool had no proxy left, say nothing about the service."""
    monitor = FailureMonitor(Halt(failures=1))

    refused = Outcome(0, 1, "", State.SKIPPED, error_type="port out of range", scope=errors.Scope.REQUEST)
    assert monitor.observe(refused) is None
    assert monitor.observe(Outcome(0, 1, "acc_1", State.SKIPPED, error_type=NO_PROXY_LEFT)) is None
    assert monitor.observe(Outcome(0, 1, "acc_1", State.SKIPPED, applied=errors.Applied.NO)) is None
    assert monitor.tried == 0


def test_failed_connection_counts_as_a_failure() -> None:
    monitor = FailureMonitor(Halt(failures=2))
    lost = failed_outcome(0, None, "acc_1", errors.ConnectError("no connection"), 0.1)

    assert monitor.observe(lost) is None
    assert monitor.observe(lost) is not None


@pytest.mark.parametrize(
    ("failures", "bad"),
    [
        pytest.param("50%", 5, id="a percentage of the canary"),
        pytest.param("1%", 1, id="at least one"),
        pytest.param(3, 3, id="a number"),
        pytest.param(500, 10, id="a number above the canary means all of it"),
        pytest.param("never", 5, id="never means half"),
    ],
)
def test_canary_fails_exactly_at_its_threshold(failures: Any, bad: int) -> None:
    monitor = FailureMonitor(Halt(failures=failures, canary=10))
    halt = first_halt(monitor, outcomes_of(10 - bad, bad))
    assert halt is not None
    assert halt[0] <= 10

    monitor = FailureMonitor(Halt(failures=failures, canary=10))
    fewer = bad - 1
    assert first_halt(monitor, outcomes_of(10 - fewer, fewer)) is None
    assert monitor.canary_passed


def test_percentage_of_the_canary_is_not_rounded_up_because_of_a_floating_point_error() -> None:
    """8.8% of 375 accounts is 33 accounts, but is computed as 33.00000000000001."""
    monitor = FailureMonitor(Halt(failures="8.8%", canary=375))
    # At most 17 failures among the latest 200 accounts, which is below 8.8% of 200.
    outcomes = [failed()] * 16 + [patched()] * 342 + [failed()] * 17

    halt = first_halt(monitor, iter(outcomes))

    assert halt is not None
    assert halt[1].startswith("33 of the canary's 375 accounts failed")


def refused_row() -> Outcome:
    error = errors.NotSentError("not sent: line 3: port missing")
    return Outcome(
        0,
        3,
        "acc_1",
        State.SKIPPED,
        error_type="port missing",
        scope=errors.Scope.REQUEST,
        applied=errors.Applied.NO,
        error=error,
    )


@pytest.mark.parametrize("type_", ["disconnected_account", "checkpoint_error", "wrong_account"])
def test_401_about_the_account_never_means_that_the_key_is_refused(type_: str) -> None:
    monitor = FailureMonitor(Halt(failures="never"))

    assert first_halt(monitor, iter([failed(f"errors/{type_}", 401)] * 50)) is None
    assert monitor.at_end() is None
    assert not monitor.key_refused


def test_invalid_rows_count_neither_as_failures_nor_towards_the_canary() -> None:
    monitor = FailureMonitor(Halt(failures=1, canary=2))

    assert first_halt(monitor, (refused_row() for _ in range(10))) is None
    assert monitor.tried == 0


DISCONNECTED = ("errors/disconnected_account", 401)
PROXY = ("errors/proxy_error", 502)


@pytest.mark.parametrize("failures", ["proxy=5%,service=20%", {"proxy": "5%", errors.Scope.SERVICE: "20%"}])
def test_thresholds_by_scope_do_not_add_up_scopes(failures: Any) -> None:
    """8% of the accounts are disconnected, 4% have a proxy error, and 19% a service error."""
    monitor = FailureMonitor(Halt(failures=failures))
    outcomes = [failed(*DISCONNECTED)] * 8 + [failed(*PROXY)] * 4 + [failed()] * 19 + [patched()] * 69

    assert first_halt(monitor, iter(outcomes * 10)) is None


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        pytest.param(
            "proxy=5%",
            "10 of the latest 110 accounts failed because of the proxy, all with errors/proxy_error; "
            "the threshold is 5% of 200",
            id="a percentage",
        ),
        pytest.param(
            " account=100%, proxy=10",
            "10 accounts failed because of the proxy, all with errors/proxy_error, which is the threshold",
            id="a number",
        ),
    ],
)
def test_failures_of_one_scope_halt_at_its_threshold(failures: Any, reason: str) -> None:
    monitor = FailureMonitor(Halt(failures=failures), key_works=True)
    outcomes = [failed(*DISCONNECTED)] * 100 + [failed(*PROXY)] * 10

    assert first_halt(monitor, iter(outcomes)) == (110, reason)


def test_percentage_of_a_scope_counts_only_the_latest_200_accounts() -> None:
    monitor = FailureMonitor(Halt(failures="proxy=5%"))
    outcomes = ([failed(*PROXY)] * 9 + [patched()] * WINDOW) * 3

    assert first_halt(monitor, iter(outcomes)) is None


@pytest.mark.parametrize(
    ("kind", "bad", "halts"),
    [
        pytest.param(PROXY, 1, True, id="threshold of the scope"),
        pytest.param(DISCONNECTED, 4, False, id="another scope"),
        pytest.param(DISCONNECTED, 5, True, id="half of the canary, in any scope"),
    ],
)
def test_canary_fails_at_the_threshold_of_a_scope_or_at_half_of_its_accounts(
    kind: tuple[str, int], bad: int, halts: bool
) -> None:
    monitor = FailureMonitor(Halt(failures="proxy=5%", canary=10))

    halt = first_halt(monitor, iter([failed(*kind)] * bad + [patched()] * (10 - bad)))

    assert (halt is not None) is halts


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ("key=5%", "halt must have the scopes request, account, proxy, service, got 'key'"),
        ("=5%", "halt must have the scopes request"),
        ("proxy=", "halt must be a percentage"),
        ("proxy=5%,", "halt must have the scopes request"),
        ("proxy=5%,proxy=6%", "halt must name each scope once"),
        ({}, "halt must have a threshold for at least one scope"),
        ({"proxy": 0.05}, "halt must be a percentage"),
        ({1: "5%"}, "halt must have the scopes"),
    ],
)
def test_invalid_thresholds_by_scope_are_rejected(failures: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Halt(failures=failures)


def test_reason_names_the_most_frequent_error() -> None:
    monitor = FailureMonitor(Halt(failures=3))
    outcomes = [
        failed("errors/no_channel", 503),
        failed("errors/proxy_error", 502),
        failed("errors/no_channel", 503),
    ]

    halt = first_halt(monitor, iter(outcomes))

    assert halt == (3, "3 accounts failed, 2 of them with errors/no_channel, which is the threshold")


@pytest.mark.parametrize(
    "failures", ["", 0, -1, "0%", "101%", "-5%", "5 %", "five", "1e2%", True, 0.05, None, "٥%"], ids=repr
)
def test_invalid_threshold_is_rejected(failures: Any) -> None:
    """If it were taken for "never", a wrong proxy list would be sent to the whole fleet."""
    with pytest.raises(ValueError, match="halt must be a percentage"):
        Halt(failures=failures)


@pytest.mark.parametrize("canary", [-1, 1.5, True, "10", None], ids=repr)
def test_canary_must_be_a_whole_number(canary: Any) -> None:
    with pytest.raises(ValueError, match="canary must be a whole number"):
        Halt(canary=canary)


def test_halt_argument_of_rotate_becomes_a_halt() -> None:
    halt = Halt(failures=3, canary=1)

    assert as_halt(None) == Halt(failures="50%")
    assert as_halt("5%") == Halt(failures="5%")
    assert as_halt(10) == Halt(failures=10)
    assert as_halt(halt) is halt


def test_wrong_proxy_passwords_do_not_mean_that_the_key_is_refused() -> None:
    monitor = FailureMonitor(Halt(failures="never"))

    assert first_halt(monitor, (failed("errors/invalid_proxy_credentials", 401) for _ in range(40))) is None
