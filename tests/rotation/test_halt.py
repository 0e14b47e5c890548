"""When a rotation stops by itself: what counts as a failure, and how many are too many."""

from collections.abc import Iterator
from typing import Any

import pytest

from postpress_async import Outcome, errors
from postpress_async.rotation._failure_monitor import WINDOW, FailureMonitor
from postpress_async.rotation._halt import Halt, as_halt
from postpress_async.rotation._outcome import State, failed_outcome, outcome_without_proxy, patched_outcome


def patched(account: str = "acc_1") -> Outcome:
    return patched_outcome(0, None, account, 1, 0.1)


def failed(type_: str = "errors/provider_error", status: int = 500) -> Outcome:
    error = errors.ApiError.of(status, errors.Problem(type_))
    return failed_outcome(0, None, "acc_1", error, 0.1)


def settled(good: int, bad: int) -> Iterator[Outcome]:
    """So many of each, the bad ones last."""
    for _ in range(good):
        yield patched()
    for _ in range(bad):
        yield failed()


def first_reason(monitor: FailureMonitor, outcomes: Iterator[Outcome]) -> tuple[int, str] | None:
    """After how many outcomes it was enough, and why."""
    for count, outcome in enumerate(outcomes, 1):
        if (reason := monitor.observe(outcome)) is not None:
            return count, reason
    return None


@pytest.mark.parametrize(
    ("failures", "bad"),
    [
        pytest.param("5%", 10, id="5% of 200"),
        pytest.param("0.4%", 1, id="less than one account is one"),
        pytest.param("50%", 100, id="half"),
        pytest.param("100%", 200, id="all"),
        pytest.param("29%", 58, id="no rounding error"),
        pytest.param(7, 7, id="a number"),
        pytest.param("7", 7, id="a number in words"),
    ],
)
def test_so_many_failures_are_too_many(failures: Any, bad: int) -> None:
    """One less is not: an operator who says 5% has counted on nine."""
    assert first_reason(FailureMonitor(Halt(failures=failures)), settled(0, bad - 1)) is None
    met = first_reason(FailureMonitor(Halt(failures=failures)), settled(0, 400))
    assert met is not None
    assert met[0] == bad
    assert f"{bad} " in met[1]
    assert "all with errors/provider_error" in met[1]


def test_a_share_is_of_the_latest() -> None:
    """Nine bad ones in the first hour and one in the last are no reason to stop the night."""
    monitor = FailureMonitor(Halt(failures="5%"))

    assert first_reason(monitor, settled(0, 9)) is None
    assert first_reason(monitor, settled(WINDOW - 9, 0)) is None
    assert first_reason(monitor, settled(0, 9)) is None  # the first nine have left the window
    assert first_reason(monitor, settled(0, 1)) is not None


def test_a_number_is_of_all() -> None:
    monitor = FailureMonitor(Halt(failures=10))

    assert first_reason(monitor, settled(5000, 9)) is None
    assert first_reason(monitor, settled(5000, 0)) is None
    assert first_reason(monitor, settled(0, 1)) is not None


def test_never_is_never_but_for_the_key() -> None:
    """A key that was refused is no failure of an account."""
    monitor = FailureMonitor(Halt(failures="never"))
    assert first_reason(monitor, settled(1, 5000)) is None

    refused = failed("errors/insufficient_privileges", 401)
    monitor = FailureMonitor(Halt(failures="never"))
    assert "the API key was refused" in (monitor.observe(refused) or "")
    assert monitor.key_refused


def test_an_error_about_the_key_stops_after_any_number_of_patched_accounts() -> None:
    """A key that is revoked in the middle of a night: every other account would get the same answer."""
    monitor = FailureMonitor(Halt(failures="never"), key_works=True)
    assert first_reason(monitor, settled(5000, 300)) is None

    assert "the API key was refused" in (monitor.observe(failed("errors/missing_credentials", 401)) or "")
    assert monitor.key_refused


def test_the_same_401_of_every_account_is_the_key_however_few_there_are() -> None:
    monitor = FailureMonitor(Halt())
    assert first_reason(monitor, iter([failed("errors/expired_credentials", 401)] * 3)) is None

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
def test_an_account_that_got_another_answer_speaks_for_the_key(others: list[Outcome]) -> None:
    monitor = FailureMonitor(Halt())
    first_reason(monitor, iter([*others, failed("errors/expired_credentials", 401)]))

    assert monitor.at_end() is None
    assert not monitor.key_refused


def test_a_key_that_worked_in_an_earlier_run_is_not_suspected() -> None:
    monitor = FailureMonitor(Halt(), key_works=True)
    first_reason(monitor, iter([failed("errors/expired_credentials", 401)]))

    assert monitor.at_end() is None


def test_a_run_without_answers_says_nothing_about_the_key() -> None:
    monitor = FailureMonitor(Halt())
    first_reason(monitor, iter([Outcome(0, None, "acc_1", State.SKIPPED, applied=errors.Applied.NO)]))

    assert monitor.at_end() is None


def test_skipped_accounts_are_not_failures() -> None:
    """A bad row, and an account for which the pool had nothing left, say nothing of the service."""
    monitor = FailureMonitor(Halt(failures=1))

    refused = Outcome(0, 1, "", State.SKIPPED, error_type="port out of range", scope=errors.Scope.REQUEST)
    assert monitor.observe(refused) is None
    assert monitor.observe(outcome_without_proxy(0, 1, "acc_1")) is None
    assert monitor.observe(Outcome(0, 1, "acc_1", State.SKIPPED, applied=errors.Applied.NO)) is None
    assert monitor.tried == 0


def test_an_account_that_was_never_reached_is_a_failure() -> None:
    """A name that does not resolve looks like an outage to the operator."""
    monitor = FailureMonitor(Halt(failures=2))
    lost = failed_outcome(0, None, "acc_1", errors.ConnectError("no connection"), 0.1)

    assert monitor.observe(lost) is None
    assert monitor.observe(lost) is not None


@pytest.mark.parametrize(
    ("failures", "bad"),
    [
        pytest.param("50%", 5, id="a share of the canary"),
        pytest.param("1%", 1, id="at least one"),
        pytest.param(3, 3, id="a number"),
        pytest.param(500, 10, id="a number beyond the canary: all of it"),
        pytest.param("never", 5, id="half where it is never"),
    ],
)
def test_a_canary_that_failed_too_often_halts_all_others(failures: Any, bad: int) -> None:
    """Ten accounts tell of a wrong pool; ten thousand would only tell it later."""
    monitor = FailureMonitor(Halt(failures=failures, canary=10))
    met = first_reason(monitor, settled(10 - bad, bad))
    assert met is not None
    assert met[0] <= 10

    monitor = FailureMonitor(Halt(failures="never" if failures == "never" else failures, canary=10))
    fewer = bad - 1
    assert first_reason(monitor, settled(10 - fewer, fewer)) is None
    assert monitor.canary_passed


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
def test_a_401_about_the_account_never_means_the_key(type_: str) -> None:
    """Ten disconnected accounts were reported as a refused API key, with exit code 4."""
    monitor = FailureMonitor(Halt(failures="never"))

    assert first_reason(monitor, iter([failed(f"errors/{type_}", 401)] * 50)) is None
    assert monitor.at_end() is None
    assert not monitor.key_refused


def test_invalid_rows_neither_count_as_failures_nor_belong_to_the_canary() -> None:
    monitor = FailureMonitor(Halt(failures=1, canary=2))

    assert first_reason(monitor, (refused_row() for _ in range(10))) is None
    assert monitor.tried == 0


DISCONNECTED = ("errors/disconnected_account", 401)
PROXY = ("errors/proxy_error", 502)


@pytest.mark.parametrize("failures", ["proxy=5%,service=20%", {"proxy": "5%", errors.Scope.SERVICE: "20%"}])
def test_failures_of_other_scopes_do_not_halt(failures: Any) -> None:
    """8% disconnected accounts, 4% proxies and 19% of the service, for ever."""
    monitor = FailureMonitor(Halt(failures=failures))
    each = [failed(*DISCONNECTED)] * 8 + [failed(*PROXY)] * 4 + [failed()] * 19 + [patched()] * 69

    assert first_reason(monitor, iter(each * 10)) is None


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

    assert first_reason(monitor, iter(outcomes)) == (110, reason)


def test_failures_of_one_scope_leave_the_window() -> None:
    monitor = FailureMonitor(Halt(failures="proxy=5%"))
    outcomes = ([failed(*PROXY)] * 9 + [patched()] * WINDOW) * 3

    assert first_reason(monitor, iter(outcomes)) is None


@pytest.mark.parametrize(
    ("kind", "bad", "halts"),
    [
        pytest.param(PROXY, 1, True, id="a share of the canary"),
        pytest.param(DISCONNECTED, 4, False, id="another scope"),
        pytest.param(DISCONNECTED, 5, True, id="half of the canary, in any scope"),
    ],
)
def test_canary_fails_by_scope(kind: tuple[str, int], bad: int, halts: bool) -> None:
    monitor = FailureMonitor(Halt(failures="proxy=5%", canary=10))

    met = first_reason(monitor, iter([failed(*kind)] * bad + [patched()] * (10 - bad)))

    assert (met is not None) is halts


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
def test_wrong_thresholds_by_scope_are_refused(failures: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Halt(failures=failures)


def test_the_reason_names_the_error_that_came_most() -> None:
    """The sentence names the error to look up, and shows that there are others."""
    monitor = FailureMonitor(Halt(failures=3))
    outcomes = [
        failed("errors/no_channel", 503),
        failed("errors/proxy_error", 502),
        failed("errors/no_channel", 503),
    ]

    met = first_reason(monitor, iter(outcomes))

    assert met == (3, "3 accounts failed, 2 of them with errors/no_channel, which is the threshold")


@pytest.mark.parametrize(
    "failures", ["", 0, -1, "0%", "101%", "-5%", "5 %", "five", "1e2%", True, 0.05, None, "٥%"], ids=repr
)
def test_a_halt_that_says_nothing_is_refused(failures: Any) -> None:
    """Taken for never, it would let a wrong list go through the whole fleet."""
    with pytest.raises(ValueError, match="halt must be a percentage"):
        Halt(failures=failures)


@pytest.mark.parametrize("canary", [-1, 1.5, True, "10", None], ids=repr)
def test_a_canary_is_a_number(canary: Any) -> None:
    with pytest.raises(ValueError, match="canary must be a whole number"):
        Halt(canary=canary)


def test_halt_argument_of_rotate_becomes_a_halt() -> None:
    own = Halt(failures=3, canary=1)

    assert as_halt(None) == Halt(failures="50%")
    assert as_halt("5%") == Halt(failures="5%")
    assert as_halt(10) == Halt(failures=10)
    assert as_halt(own) is own


def test_proxies_that_refuse_their_password_do_not_speak_of_the_key() -> None:
    """Twenty wrong passwords in a row are a seller's list of last month."""
    monitor = FailureMonitor(Halt(failures="never"))

    assert first_reason(monitor, (failed("errors/invalid_proxy_credentials", 401) for _ in range(40))) is None
