"""How 429s that the request rate causes are distinguished from those that occur at any rate."""

import random

import pytest

from postpress_async.pace._background import ALLOWANCE, CUSUM_THRESHOLD, UNTESTED_SHARE, Background, Trial


def record(
    background: Background, requests: int, share: float, served: int = 0, *, below: bool = False
) -> int:
    """Record *requests*, of which an even *share* gets a 429. Returns *served* plus those served now."""
    due_429s = 0.0
    for _ in range(requests):
        background.requests_below += below
        due_429s += share
        if due_429s >= 1:
            due_429s -= 1
            background.record_throttled(served, 0, below=below)
        else:
            served += 1
    return served


def exceeds_threshold(background: Background, share: float, requests: int = 2_000) -> bool:
    """Whether the cumulative sum ever exceeds its threshold if an even *share* of requests gets a 429."""
    served, due_429s, sums = 0, 0.0, list[float]()
    for _ in range(requests):
        due_429s += share
        if due_429s >= 1:
            due_429s -= 1
            sums.append(background.record_throttled(served, 0, below=False))
        else:
            served += 1
    return max(sums) >= CUSUM_THRESHOLD


# --- The background share ---


def test_small_share_is_tolerated_for_any_time() -> None:
    assert not exceeds_threshold(Background(), ALLOWANCE, 100_000)


def test_twice_the_allowance_is_detected() -> None:
    assert exceeds_threshold(Background(), 2 * ALLOWANCE)


def test_only_shares_well_above_the_background_are_detected() -> None:
    background = Background()
    background.share = 0.1

    assert not exceeds_threshold(background, 0.12, 100_000)
    assert exceeds_threshold(background, 0.25)


def test_429s_before_the_other_responses_are_not_excessive() -> None:
    """2 of 100 requests in flight get their 429 within 5 ms, before any other request is served."""
    background = Background()
    sums = [background.record_throttled(100 * (n // 2), 100, below=False) for n in range(200)]

    assert max(sums) < CUSUM_THRESHOLD + background.tolerated * 100


def test_recent_share_does_not_include_requests_before_the_increase() -> None:
    """They would hide how large the share is now."""
    background = Background()
    served = record(background, 5_000, 0.001)
    record(background, 40, 0.5, served)
    throttled, requests = background.recent

    assert throttled / requests == pytest.approx(0.5, abs=0.1)


def test_recent_requests_include_those_that_end_with_another_error() -> None:
    """40 of 50 requests in flight end with a 503. So fewer are in flight, and none of them was served."""
    background = Background()
    background.record_throttled(100, 50, below=False)
    _, requests_before = background.recent
    background.record_throttled(100, 9, below=False)
    throttled, requests = background.recent

    assert (throttled, requests) == (2, requests_before)


def test_small_share_below_the_plateau_becomes_the_background() -> None:
    """The tier gives no 429s at that rate."""
    background = Background()
    record(background, 2_000, 0.01, below=True)

    assert background.share == pytest.approx(0.01, rel=0.2)


def test_larger_share_below_the_plateau_requires_a_trial() -> None:
    background = Background()
    record(background, 2_000, 2 * UNTESTED_SHARE, below=True)

    assert background.share == 0.0


@pytest.mark.parametrize("limited", [False, True])
def test_background_is_reset_if_the_429s_end(limited: bool) -> None:
    background = Background()
    background.learn(0.02, 0)
    background.requests_below = 1_000
    background.update(1_000, limited=limited)

    assert background.share == 0.0


def test_background_is_kept_while_the_429s_continue() -> None:
    """Neither few requests nor the usual number of 429s changes it."""
    background = Background()
    background.learn(0.02, 0)
    background.update(100, limited=False)
    background.update(record(background, 1_000, 0.02), limited=False)

    assert background.share == 0.02


def test_429s_at_the_limit_of_the_tier_do_not_keep_the_background() -> None:
    """The rate reaches the limit again and again, where some requests get a 429 because of the rate."""
    background = Background()
    background.learn(0.02, 0)
    served = record(background, 1_000, 0.0, below=True)
    background.update(record(background, 1_000, 0.05, served), limited=True)

    assert background.share == 0.0


# --- Trials ---


def run_trial(trial: Trial, share: float, chance: random.Random) -> tuple[bool, int]:
    """Send requests, of which a random *share* gets a 429. Returns the result and the number of requests."""
    served = 0
    while True:
        trial.sent += 1
        if chance.random() < share:
            trial.throttled += 1
        else:
            served += 1
        result = trial.result(served)
        if result is not None:
            return result, trial.sent


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("background", [0.0, 0.01])
def test_nearly_all_trials_find_the_cause_with_few_requests(share: float, background: float) -> None:
    """Before each trial, the share of 429s was a third above the true *share*, as it often is by chance."""
    chance = random.Random(1)
    throttled, requests = round(1_000 * share * 4 / 3), 1_000
    trials = 500
    # If the rate is the cause, only the background remains at the lower rate.
    if_cause = [
        run_trial(Trial(throttled, requests, background, 0), background, chance) for _ in range(trials)
    ]
    if_not = [run_trial(Trial(throttled, requests, background, 0), share, chance) for _ in range(trials)]

    assert sum(result for result, _ in if_cause) >= 0.93 * trials
    assert sum(not result for result, _ in if_not) >= 0.9 * trials
    assert sum(sent for _, sent in if_cause + if_not) / (2 * trials) <= 10 / share


def test_trial_ends_even_if_the_share_supports_neither_result() -> None:
    trial, chance = Trial(25, 139, 0.06, 0), random.Random(1)
    _, sent = run_trial(trial, 0.09, chance)

    assert sent <= 100


def test_second_trial_includes_the_requests_of_the_first() -> None:
    """Responses to requests of the first trial that are still in flight do not count for the second one."""
    first = Trial(10, 100, 0.0, served=0)
    first.sent, first.throttled = 50, 5
    second = first.second(served=35)
    second.sent, second.throttled = 60, 0

    assert first.share == pytest.approx(15 / 150)
    assert second.share == pytest.approx(15 / 210)
    assert second.is_second
    assert second.result(served=35 + 10) is None, "10 requests of the first trial were in flight"
    assert second.result(served=35 + 10 + 60) is True


def test_trial_waits_for_the_responses_to_its_own_requests() -> None:
    """429s arrive first, and so do responses to requests that were sent before the trial."""
    trial = Trial(10, 100, 0.0, served=500)
    trial.sent, trial.throttled = 100, 2

    assert trial.result(460) is None
    assert trial.result(598) is None
    trial.throttled = 0
    assert trial.result(460) is None
    assert trial.result(598) is True


def test_trial_works_if_nearly_all_requests_get_a_429() -> None:
    trial = Trial(30, 100, 0.95, served=0)
    trial.sent = trial.throttled = 100

    assert trial.result(0) is not True
