"""429s that depend on the request rate are distinguished from those that come at any rate."""

from postpress_async.pace._background import ALLOWANCE, Background


def see(background: Background, requests: int, share: float, served: int = 0, *, below: bool = False) -> int:
    """
    *requests* more, an even *share* of them refused.

    Returns:
        How many were served in all.
    """
    due = 0.0
    for _ in range(requests):
        due += share
        if due >= 1:
            due -= 1
            background.record_throttled(served, 0, before_decrease=False, below=below)
        else:
            served += 1
    return served


def is_too_many(share: float, background: Background, requests: int = 2_000) -> bool:
    served, due, found = 0, 0.0, False
    for _ in range(requests):
        due += share
        if due >= 1:
            due -= 1
            found = background.record_throttled(served, 0, before_decrease=False, below=False) or found
        else:
            served += 1
    return found


def test_a_small_share_is_tolerated_and_a_larger_one_is_not() -> None:
    """However long it lasts."""
    assert not is_too_many(ALLOWANCE, Background(), 100_000)
    assert is_too_many(2 * ALLOWANCE, Background())


def test_a_background_is_tolerated_and_more_is_not() -> None:
    """A tenth is known to come at any rate."""
    background = Background()
    background.share = 0.1

    assert not is_too_many(0.12, background, 100_000)
    assert is_too_many(0.25, background)


def test_refusals_at_one_moment_do_not_open_the_circuit() -> None:
    """Of 100 requests in flight 2 are refused in 5 ms, before any of the others is served."""
    background = Background()
    found = [
        background.record_throttled(100 * (n // 2), 100, before_decrease=False, below=False)
        for n in range(200)
    ]

    assert found == [False] * 200


def test_three_cuts_that_lower_nothing_find_the_background() -> None:
    """The share is what it was before, each time below the rate at which there were too many."""
    background = Background()
    served = see(background, 1000, 0.05)
    verdicts = [background.is_independent(below=False)]
    for _ in range(3):
        served = see(background, 300, 0.05, served, below=True)
        verdicts.append(background.is_independent(below=True))

    assert verdicts == [False, False, False, True]
    assert 0.04 <= background.share <= 0.06


def test_a_cut_that_lowers_the_share_shows_that_it_is_the_rate() -> None:
    """A tier that fell takes two ineffective_decreases to find, and refuses fewer after each."""
    background = Background()
    served, verdicts = 0, []
    for share in (0.8, 0.8, 0.3, 0.1, 0.03):
        served = see(background, 200, share, served, below=True)
        verdicts.append(background.is_independent(below=True))

    assert verdicts == [False] * 5
    assert background.share == 0.0


def test_a_429_at_the_rate_that_was_too_much_before_is_the_rate_s() -> None:
    """As often as the rate comes back to it."""
    background, served = Background(), 0
    for _ in range(20):
        served = see(background, 1000, 0.003, served)
        assert not background.is_independent(below=False)

    assert background.share == 0.0


def test_a_background_that_was_taken_for_too_small_is_corrected() -> None:
    """By what was refused below the plateau since the last cut."""
    background = Background()
    background.share = 0.1
    background.is_independent(below=False)
    see(background, 500, 0.14, below=True)

    assert background.is_independent(below=False)
    assert 0.13 <= background.share <= 0.15
    assert background.ineffective_decreases == 0


def test_a_background_that_ends_is_forgotten() -> None:
    """Then a single 429 tells of the tier again."""
    background = Background()
    background.share = 0.02
    background.update(1_000)

    assert background.share == 0.0


def test_a_background_that_goes_on_is_kept() -> None:
    """Few requests tell nothing of it, and its usual number of 429s changes nothing."""
    background = Background()
    background.share = 0.02
    background.update(100)
    background.update(see(background, 1_000, 0.02))

    assert background.share == 0.02
