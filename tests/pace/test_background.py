"""429s that depend on the request rate are distinguished from those that come at any rate."""

import random

import pytest

from postpress_async.pace._background import ALLOWANCE, CUSUM_THRESHOLD, UNTESTED_SHARE, Background, Trial


def see(background: Background, requests: int, share: float, served: int = 0, *, below: bool = False) -> int:
    """Record *requests*, an even *share* of them refused. Returns how many were served in all."""
    due = 0.0
    for _ in range(requests):
        background.requests_below += below
        due += share
        if due >= 1:
            due -= 1
            background.record_throttled(served, 0, below=below)
        else:
            served += 1
    return served


def is_excess(share: float, background: Background, requests: int = 2_000) -> bool:
    """Whether an even *share* of 429s exceeds the threshold at any time."""
    served, due, sums = 0, 0.0, []
    for _ in range(requests):
        due += share
        if due >= 1:
            due -= 1
            sums.append(background.record_throttled(served, 0, below=False))
        else:
            served += 1
    return max(sums) >= CUSUM_THRESHOLD


def test_a_small_share_is_tolerated_and_a_larger_one_is_not() -> None:
    """However long it lasts."""
    assert not is_excess(ALLOWANCE, Background(), 100_000)
    assert is_excess(2 * ALLOWANCE, Background())


def test_a_background_is_tolerated_and_more_is_not() -> None:
    """A tenth is known to come at any rate."""
    background = Background()
    background.share = 0.1

    assert not is_excess(0.12, background, 100_000)
    assert is_excess(0.25, background)


def test_refusals_at_one_moment_exceed_no_more_than_they_explain() -> None:
    """Of 100 requests in flight 2 are refused in 5 ms, before any of the others is served."""
    background = Background()
    sums = [background.record_throttled(100 * (n // 2), 100, below=False) for n in range(200)]

    assert max(sums) < CUSUM_THRESHOLD + background.tolerated * 100


def test_the_recent_share_begins_with_the_excess() -> None:
    """A share before that would hide how many are refused now."""
    background = Background()
    served = see(background, 5_000, 0.001)
    see(background, 40, 0.5, served)
    refused, requests = background.recent

    assert refused / requests == pytest.approx(0.5, abs=0.1)


def test_requests_that_end_otherwise_stay_among_the_recent_ones() -> None:
    """Of 50 requests in flight, 40 end with a 503, which leaves fewer in flight and none of them served."""
    background = Background()
    background.record_throttled(100, 50, below=False)
    _, before = background.recent
    background.record_throttled(100, 9, below=False)
    refused, requests = background.recent

    assert (refused, requests) == (2, before)


def test_a_small_share_below_the_plateau_is_the_background() -> None:
    """Where an unchanged tier refuses nothing; more than a few must be put to a trial."""
    small, large = Background(), Background()
    see(small, 2_000, 0.01, below=True)
    see(large, 2_000, 2 * UNTESTED_SHARE, below=True)

    assert small.share == pytest.approx(0.01, rel=0.2)
    assert large.share == 0.0


def test_a_background_that_ends_is_forgotten() -> None:
    """Then a single 429 tells of the tier again."""
    for limited in (False, True):
        background = Background()
        background.learn(0.02, 0)
        background.requests_below = 1_000
        background.update(1_000, limited=limited)

        assert background.share == 0.0


def test_a_background_that_goes_on_is_kept() -> None:
    """Few requests tell nothing of it, and its usual number of 429s changes nothing."""
    background = Background()
    background.learn(0.02, 0)
    background.update(100, limited=False)
    background.update(see(background, 1_000, 0.02), limited=False)

    assert background.share == 0.02


def test_429s_of_the_tier_are_not_taken_for_the_background() -> None:
    """A rate returns to the limit again and again, and some requests are refused there."""
    background = Background()
    background.learn(0.02, 0)
    served = see(background, 1_000, 0.0, below=True)
    background.update(see(background, 1_000, 0.05, served), limited=True)

    assert background.share == 0.0


def outcome(trial: Trial, share: float, chance: random.Random) -> tuple[bool, int]:
    """Send requests, a random *share* of them refused. Returns the result, and after how many."""
    served = 0
    while True:
        trial.sent += 1
        if chance.random() < share:
            trial.throttled += 1
        else:
            served += 1
        if (result := trial.result(served)) is not None:
            return result, trial.sent


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("background", [0.0, 0.01])
def test_a_trial_finds_the_cause_with_few_requests(share: float, background: float) -> None:
    """Of 500 trials, and with a share before that was by chance a third too high."""
    chance = random.Random(1)
    before = round(1_000 * share * 4 / 3), 1_000
    lower = [outcome(Trial(*before, background, 0), background, chance) for _ in range(500)]
    same = [outcome(Trial(*before, background, 0), share, chance) for _ in range(500)]

    assert sum(result for result, _ in lower) >= 0.93 * 500
    assert sum(not result for result, _ in same) >= 0.9 * 500
    assert sum(sent for _, sent in lower + same) / 1_000 <= 10 / share


def test_a_trial_does_not_go_on_without_end() -> None:
    """If the share of 429s is between those that speak for and against the rate as their cause."""
    trial, chance = Trial(25, 139, 0.06, 0), random.Random(1)
    _, sent = outcome(trial, 0.09, chance)

    assert sent <= 100


def test_a_second_trial_compares_with_all_requests_before() -> None:
    """Those of the first trial count, and responses to its requests in flight do not."""
    first = Trial(10, 100, 0.0, served=0)
    first.sent, first.throttled = 50, 5
    second = first.second(served=35)
    second.sent, second.throttled = 60, 0

    assert first.share == pytest.approx(15 / 150)
    assert second.share == pytest.approx(15 / 210)
    assert second.is_second
    assert second.result(served=35 + 10) is None, "10 of the first trial were in flight"
    assert second.result(served=35 + 10 + 60) is True


def test_a_trial_waits_for_the_responses_to_its_requests() -> None:
    """Refusals arrive first, and so do responses to requests that were sent before the trial."""
    trial = Trial(10, 100, 0.0, served=500)
    trial.sent, trial.throttled = 100, 2

    assert trial.result(460) is None
    assert trial.result(598) is None
    trial.throttled = 0
    assert trial.result(460) is None
    assert trial.result(598) is True


def test_a_trial_of_a_large_background_is_defined() -> None:
    """Though nearly all requests are refused."""
    trial = Trial(30, 100, 0.95, served=0)
    trial.sent = trial.throttled = 100

    assert trial.result(0) is not True
