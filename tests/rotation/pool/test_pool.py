"""Pools: strategies of assignment, quarantines, the limit of accounts per proxy, and reading lists."""

import random
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async import CustomProxy, ProxyPool
from postpress_async.errors import FleetError
from postpress_async.rotation._pool import Assign, PooledProxy, as_pooled
from postpress_async.rotation._pool._allocator import UNCONFIRMED, ProxyAllocator
from postpress_async.rotation._pool._assign import _odd_hash
from postpress_async.rotation._pool._proxy_list import identity
from tests.support import DATA

LIST = DATA / "proxies.txt"
STRATEGIES: Final[tuple[Assign, ...]] = ("round-robin", "sticky")
PASSWORD = "hunter2-seldom"

# The proxies that acc_0 to acc_3 get from a sticky pool of 500 proxies.
EXPECTED_STICKY = [
    "user0@p240.example.net:3128",
    "user0@p102.example.net:3128",
    "user1@p124.example.net:3128",
    "user1@p101.example.net:3128",
]

deterministic = settings(derandomize=True, deadline=None, database=None)


def proxies(count: int) -> list[CustomProxy]:
    """Distinct proxies, two on each host."""
    return [
        CustomProxy(host=f"p{n // 2}.example.net", port=3128, username=f"user{n % 2}", password=PASSWORD)
        for n in range(count)
    ]


def allocator(listed: list[CustomProxy], **options: Any) -> ProxyAllocator:
    """The allocator of a rotation with a pool of these proxies."""
    return ProxyAllocator(ProxyPool(listed, **options), may_wait=False)


def accounts(count: int) -> list[str]:
    """Account ids that differ only in their number, which is the hardest input for a hash."""
    return [f"acc_{n}" for n in range(count)]


def assign_all(pool: ProxyAllocator, ids: list[str]) -> dict[str, str]:
    """The label of the proxy that each account gets, without accounts that get none."""
    return {account: pooled.label for account in ids if (pooled := pool.give(account)) is not None}


def quarantine(pool: ProxyAllocator, label: str) -> None:
    """Make a proxy fail for accounts until it is quarantined."""
    pooled = next(pooled for pooled in pool._proxies if pooled.label == label)
    before = pool.quarantined
    for number in range(UNCONFIRMED):
        assert pool.quarantined == before
        pool.failed(pooled, f"x{number}")
    assert pool.quarantined == before + 1


def test_time_to_record_a_success_does_not_depend_on_the_number_of_failing_proxies() -> None:
    """
    If each success checked all failing proxies, 100,000 accounts would take minutes.

    The number of executed lines stands for the time.
    """

    def lines_of_a_success(failing: int) -> int:
        pool, lines = allocator(proxies(2000)), 0
        listed = list(pool._proxies)
        for number in range(failing):
            pool.failed(listed[number], f"x{number}")

        def count(*_: object) -> Any:
            nonlocal lines
            lines += 1
            return count

        sys.settrace(count)
        try:
            pool.worked(listed[-1], "acc_1")
        finally:
            sys.settrace(None)
        return lines

    assert lines_of_a_success(1000) == lines_of_a_success(10) > 0


@pytest.mark.parametrize("proxy", ["http://u:hunter2@h.example:80", {"host": "h.example", "port": 80}])
def test_error_for_a_proxy_of_another_type_does_not_show_it(proxy) -> None:
    with pytest.raises(ValueError, match=f"must be CustomProxy, got {type(proxy).__name__}: ") as caught:
        ProxyPool([proxy])

    assert "hunter2" not in str(caught.value)


# --- Round robin ---


def test_round_robin_assigns_proxies_in_the_order_of_the_list() -> None:
    pool = allocator(proxies(5))

    assigned = [pool.give(account) for account in accounts(12)]

    assert assigned == [as_pooled(proxies(5)[n % 5]) for n in range(12)]


def test_round_robin_skips_quarantined_proxies() -> None:
    pool = allocator(proxies(3))
    quarantine(pool, "user1@p0.example.net:3128")

    labels = [label.split(".")[0] for label in assign_all(pool, accounts(4)).values()]

    assert labels == ["user0@p0", "user0@p1", "user0@p0", "user0@p1"]


def test_failovers_of_one_proxy_are_spread_over_all_others_without_shifting_other_accounts() -> None:
    pool = allocator(proxies(5))
    dead = pool.give("acc_0")
    assert dead is not None

    others = Counter(pool.give(f"failover_{n}", but_not=[dead]) for n in range(8))

    assert set(others.values()) == {2}
    assert pool.give("acc_1") == as_pooled(proxies(5)[1])


# --- Sticky ---


@deterministic
@given(count=st.integers(2, 40), data=st.data(), generator=st.randoms(use_true_random=False))
def test_only_sticky_accounts_of_a_removed_proxy_move_even_if_the_list_is_reordered(
    count: int, data: st.DataObject, generator: random.Random
) -> None:
    listed = proxies(count)
    ids = accounts(200)
    before = assign_all(allocator(listed, assign="sticky"), ids)
    removed = listed.pop(data.draw(st.integers(0, count - 1)))
    generator.shuffle(listed)
    after = assign_all(allocator(listed, assign="sticky"), ids[::-1])

    moved = {account for account in ids if before[account] != after[account]}

    assert moved == {account for account in ids if before[account] == as_pooled(removed).label}


@deterministic
@given(
    count=st.integers(2, 12), ids=st.sets(st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True), min_size=1)
)
def test_each_sticky_account_moves_for_the_removal_of_exactly_one_proxy(count: int, ids: set[str]) -> None:
    listed = proxies(count)
    before = assign_all(allocator(listed, assign="sticky"), sorted(ids))

    stayed = 0
    for removed in listed:
        others = [proxy for proxy in listed if proxy is not removed]
        after = assign_all(allocator(others, assign="sticky"), sorted(ids))
        stayed += sum(before[account] == after[account] for account in ids)

    assert stayed == (count - 1) * len(ids)


@deterministic
@given(count=st.integers(1, 400), account=st.text(st.characters(codec="ascii"), min_size=1), data=st.data())
def test_sticky_account_gets_the_available_proxy_with_the_highest_score(
    count: int, account: str, data: st.DataObject
) -> None:
    """The single long multiplication must have the same result as a loop over all pairs."""
    pool = allocator(proxies(count), assign="sticky", failovers=400)
    quarantined = data.draw(st.sets(st.integers(0, count - 1)))
    tried = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    for index in quarantined:
        quarantine(pool, pool._proxies[index].label)

    def score(index: int) -> int:
        key = "\0".join(map(str, identity(pool._proxies[index].proxy)))
        return _odd_hash(account) * _odd_hash(key) % 2**32

    candidates = [index for index in range(count) if index not in quarantined | tried]
    expected = pool._proxies[max(candidates, key=score)] if candidates else None

    assert pool.give(account, but_not=[pool._proxies[index] for index in tried]) == expected


def test_sticky_assignment_is_the_same_in_every_version_and_process() -> None:
    """Otherwise accounts would get other proxies after an upgrade, or with another PYTHONHASHSEED."""
    pool = allocator(proxies(500), assign="sticky")

    assert list(assign_all(pool, accounts(4)).values()) == EXPECTED_STICKY


def test_sticky_spreads_accounts_evenly() -> None:
    """Each of 50 proxies gets 200 of 10,000 accounts, within 5 standard deviations of a random choice."""
    shares = Counter(assign_all(allocator(proxies(50), assign="sticky"), accounts(10_000)).values())

    assert len(shares) == 50
    standard_deviation = 14
    assert all(abs(share - 200) < 5 * standard_deviation for share in shares.values())


def test_sticky_accounts_of_a_quarantined_proxy_are_spread_over_all_others() -> None:
    pool = allocator(proxies(20), assign="sticky")
    first = assign_all(pool, accounts(10_000))
    quarantined = first["acc_0"]
    quarantine(pool, quarantined)

    moved = [account for account, label in first.items() if label == quarantined]
    shares = Counter(assign_all(pool, moved).values())

    assert len(shares) == 19
    assert max(shares.values()) < 3 * min(shares.values())


# --- Failures ---


@pytest.mark.parametrize("assign", STRATEGIES)
def test_account_gets_at_most_three_failovers(assign: Assign) -> None:
    """After four different proxies, the account is probably at fault."""
    pool = allocator(proxies(50), assign=assign)
    tried: list[PooledProxy] = []
    while pooled := pool.give("acc_0", but_not=tried):
        tried.append(pooled)

    assert len(tried) == len({pooled.label for pooled in tried}) == 4
    assert pool.available == 50


@pytest.mark.parametrize("assign", STRATEGIES)
def test_exhausted_pool_returns_none(assign: Assign) -> None:
    """It does not raise an error, because accounts with a proxy of their own must continue."""
    pool = allocator(proxies(3), assign=assign)
    for pooled in pool._proxies:
        quarantine(pool, pooled.label)

    assert pool.available == 0
    assert pool.give("acc_1") is None


def test_failure_of_a_proxy_of_another_pool_is_an_error() -> None:
    pool, other = allocator(proxies(2)), allocator(proxies(3)[2:])
    foreign = other.give("acc_0")
    assert foreign is not None

    with pytest.raises(KeyError, match=r"user0@p1\.example\.net:3128"):
        pool.failed(foreign, "acc_0")


# --- The limit of accounts per proxy ---

# The accounts are few and the lists long, because most mistakes need several events of the same account.
EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["fail", "fail", "give up", "in doubt", "work"])),
    min_size=15,
    max_size=60,
)


@deterministic
@given(
    events=EVENTS,
    count=st.integers(1, 5),
    limit=st.integers(1, 3),
    assign=st.sampled_from(STRATEGIES),
    earlier_counts=st.lists(st.sampled_from([0, 0, 0, 1, 4]), min_size=5, max_size=5),
)
def test_proxy_never_has_more_accounts_than_the_limit(
    events: list[tuple[int, str]], count: int, limit: int, assign: Assign, earlier_counts: list[int]
) -> None:
    """This holds for any sequence of failures and failovers, and after any earlier run."""
    pool = allocator(proxies(count), assign=assign, accounts_per_proxy=limit, failovers=9)
    # Accounts of the earlier run, and accounts that may have a proxy although their call failed.
    past = dict(zip([pooled.label for pooled in pool._proxies], earlier_counts, strict=False))
    pool.resume(past)
    current: dict[str, PooledProxy] = {}
    tried: dict[str, list[PooledProxy]] = {}

    for number, event in events:
        account = f"acc_{number}"
        proxy = current.get(account)
        if proxy is None:
            assigned = None if account in tried else pool.give(account)
        elif event == "work":
            pool.worked(proxy, account)
            continue
        else:
            if event == "fail":
                pool.failed(proxy, account)
            pool.take_back(proxy, may_have_it=event == "in doubt")
            if event == "in doubt":
                past[proxy.label] += 1
            assigned = pool.give(account, but_not=tried[account])
            del current[account]
        if assigned is not None:
            assert assigned not in tried.get(account, [])
            assert pool.may_retry(assigned)
            current[account] = assigned
            tried.setdefault(account, []).append(assigned)

        counts = Counter(pooled.label for pooled in current.values())
        assert all(count + past[label] <= limit for label, count in counts.items())
        available = sum(
            pool.may_retry(pooled) and pool._accounts[index] < limit
            for index, pooled in enumerate(pool._proxies)
        )
        assert pool.available == available


@pytest.mark.parametrize("assign", STRATEGIES)
def test_pool_is_exhausted_when_every_proxy_has_the_maximum_of_accounts(assign: Assign) -> None:
    pool = allocator(proxies(7), assign=assign, accounts_per_proxy=3)

    assert Counter(Counter(assign_all(pool, accounts(21)).values()).values()) == {3: 7}
    assert pool.available == 0
    assert pool.give("one_more") is None


@pytest.mark.parametrize("assign", STRATEGIES)
def test_account_that_fails_over_no_longer_counts_for_its_first_proxy(assign: Assign) -> None:
    """The proxy failed for one account only, so another account can have it."""
    pool = allocator(proxies(2), assign=assign, accounts_per_proxy=1)
    first = pool.give("acc_0")
    assert first is not None
    pool.failed(first, "acc_0")
    pool.take_back(first)

    second = pool.give("acc_0", but_not=[first])

    assert second not in (None, first)
    assert pool.give("acc_1") == first
    assert pool.give("acc_2") is None


def test_account_that_retries_on_the_same_proxy_still_counts_for_it() -> None:
    """Until the proxy is taken back, the account may still succeed with it."""
    pool = allocator(proxies(1), accounts_per_proxy=1)
    only = pool.give("acc_0")
    assert only is not None

    pool.failed(only, "acc_0")

    assert pool.give("acc_1") is None


def test_proxy_that_leaves_quarantine_is_still_full_with_accounts_of_an_earlier_run() -> None:
    pool = allocator(proxies(2), accounts_per_proxy=1)
    quarantine(pool, "user0@p0.example.net:3128")

    pool.resume({"user0@p0.example.net:3128": 1})
    assert (pool.available, pool.quarantined) == (1, 1)

    pool.worked(pool._proxies[0], "acc_0")
    assert (pool.available, pool.quarantined) == (1, 0)


def test_accounts_of_an_earlier_run_count_towards_the_limit() -> None:
    """Labels that are not in the pool are ignored."""
    pool = allocator(proxies(2), accounts_per_proxy=2)

    pool.resume({"user0@p0.example.net:3128": 1, "user1@p0.example.net:3128": 2, "line 3 h:80": 9})

    assert list(assign_all(pool, accounts(3)).values()) == ["user0@p0.example.net:3128"]


def test_line_in_a_label_of_an_older_journal_is_ignored() -> None:
    """Older versions put the line in the list before the label, but the list may have been edited since."""
    pool = allocator(proxies(2), accounts_per_proxy=1)

    pool.resume({"line 17 user0@p0.example.net:3128": 1})

    assert list(assign_all(pool, accounts(2)).values()) == ["user1@p0.example.net:3128"]


@deterministic
@given(
    runs=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    count=st.integers(1, 12),
)
def test_round_robin_of_several_runs_spreads_accounts_evenly(runs: list[int], count: int) -> None:
    """If each run started with the first proxy, short runs would use only the first proxies."""
    used: Counter[str] = Counter()
    for number, limit in enumerate(runs):
        pool = allocator(proxies(count))
        pool.resume(used)
        used.update(assign_all(pool, [f"acc_{number}_{n}" for n in range(limit)]).values())

    shares = [used[pooled.label] for pooled in ProxyPool(proxies(count))]
    assert max(shares) - min(shares) <= 1


def test_proxy_that_is_new_in_a_resumed_run_does_not_get_all_accounts() -> None:
    """Otherwise all requests would go through it until it had as many accounts as the others."""
    pool = allocator(proxies(100))
    pool.resume({pooled.label: 500 for pooled in pool._proxies[:-1]})

    shares = Counter(assign_all(pool, accounts(1000)).values())

    assert max(shares.values()) <= 20


# --- Lists and arguments ---


def test_list_with_invalid_lines_is_refused_and_each_line_is_reported() -> None:
    """A part of a list is used only if the user asks for that with skip_bad."""
    with pytest.raises(FleetError) as caught:
        ProxyPool.read(LIST)

    lines = str(caught.value).splitlines()
    assert lines[0] == f"the list of proxies in {LIST} has 4 lines that cannot be used:"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["  line 21, port", "port missing"],
        ["  line 41, protocol", "protocol unknown"],
        ["  line 61, port", "port out of range"],
        ["  line 81, host", "host missing"],
    ]


def test_invalid_lines_that_are_skipped_are_listed_as_refusals() -> None:
    pool = ProxyPool.read(LIST, skip_bad=True, assign="sticky", accounts_per_proxy=2)

    assert len(pool) == 500
    assert [refusal.line for refusal in pool.refusals] == [21, 41, 61, 81]


def test_label_is_user_host_and_port() -> None:
    """Operators search a seller's list for the label."""
    pool = ProxyPool.read(LIST, skip_bad=True)

    labels = [pooled.label for pooled in pool._proxies[:4]]

    assert labels == [
        "[2001:db8::]:8080",
        "user1@p001.proxy.example.net:3128",
        "user2@p002.proxy.example.net:1080",
        "user3@p003.proxy.example.net:3128",
    ]


@pytest.mark.parametrize(
    "edited",
    [
        "b.example:80:u:p\na.example:80:u:p\n",
        "# cheaper ones first\n\nnew.example:80\nb.example:80:u:p\na.example:80:u:p\n",
        "u:another@A.example.:80\nhttp://u:p@b.example:80\n",
    ],
    ids=["sorted", "with new lines", "with a new password and in other forms"],
)
def test_labels_stay_the_same_if_a_list_is_edited(tmp_path: Path, edited: str) -> None:
    """In a journal, a proxy is identified by its label."""
    path = tmp_path / "list.txt"
    path.write_text("a.example:80:u:p\nb.example:80:u:p\n")
    before = {pooled.label for pooled in ProxyPool.read(path)}
    path.write_text(edited)

    after = {pooled.label for pooled in ProxyPool.read(path)}

    assert before == {"u@a.example:80", "u@b.example:80"}
    assert before <= after


def test_several_lists_make_one_pool(tmp_path: Path) -> None:
    for name in ("us", "de"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1.example:80\n{name}2.example:80\n")

    pool = ProxyPool.read(tmp_path / "us.txt", tmp_path / "de.txt")

    labels = [pooled.label for pooled in pool]
    assert labels == ["us1.example:80", "us2.example:80", "de1.example:80", "de2.example:80"]


def test_proxy_in_two_lists_is_refused_or_skipped_like_a_duplicate_in_one_list(tmp_path: Path) -> None:
    us, de = tmp_path / "us.txt", tmp_path / "de.txt"
    us.write_text("a.example:80:u:p\n")
    de.write_text("b.example:80:u:p\nu:another@A.example:80\n")

    with pytest.raises(FleetError) as caught:
        ProxyPool.read(us, de)
    pool = ProxyPool.read(us, de, skip_bad=True)

    title, fault = str(caught.value).splitlines()
    assert title == f"the list of proxies in {de} has 1 line that cannot be used:"
    assert fault == (
        f"  line 2: proxy already listed on line 1 of {us}: "
        "list each proxy once, with the correct one of its two passwords"
    )
    assert [pooled.label for pooled in pool] == ["u@a.example:80", "u@b.example:80"]
    assert [refusal.line for refusal in pool.refusals] == [2]


def test_unused_columns_of_a_proxy_list_are_reported(tmp_path: Path) -> None:
    """An operator may believe that a country in the list affects the assignment."""
    path = tmp_path / "list.csv"
    path.write_text("host,port,country,city\nh.example,80,US,Boston\n")

    assert ProxyPool.read(path).ignored_columns == {str(path): ("country", "city")}


def test_control_characters_in_a_label_are_escaped() -> None:
    """A user name may contain a character that reverses the text in a terminal."""
    pooled = as_pooled(CustomProxy(host="h.example", port=80, username="a\u202eb"))
    assert pooled.label == "a\\u202eb@h.example:80"


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("text", ["", "# nothing yet\n\n"])
def test_empty_list_is_refused(tmp_path: Path, text: str, skip_bad: bool) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)

    with pytest.raises(FleetError, match="empty"):
        ProxyPool.read(path, skip_bad=skip_bad)


def test_list_with_only_invalid_lines_is_refused_even_with_skip_bad(tmp_path: Path) -> None:
    """Equal faults are summarized, because the file is probably not a list at all."""
    path = tmp_path / "list.txt"
    path.write_text("nonsense\n" * 103)

    with pytest.raises(FleetError, match="103 lines") as caught:
        ProxyPool.read(path, skip_bad=True)

    assert str(caught.value).splitlines()[1:] == [
        "  103 lines (1, 2, 3, 4, 5 and 98 more), port: port missing: give a whole number from 1 to 65535"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proxies": []}, "at least one proxy"),
        ({"proxies": [*proxies(3), proxies(1)[0]]}, "user0@p0.example.net:3128 occurs twice"),
        ({"assign": "robin"}, "assign must be"),
        ({"accounts_per_proxy": 0}, "accounts_per_proxy must be 1 or more"),
        ({"failovers": -1}, "failovers must be 0 or more"),
        ({"cool_down": 0}, "cool_down must be a number of seconds above 0"),
    ],
)
def test_invalid_argument_of_a_pool_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProxyPool(**{"proxies": proxies(3)} | arguments)


def test_two_proxies_with_the_same_label_are_refused() -> None:
    """In a journal, a proxy is identified by its label."""
    with pytest.raises(ValueError, match="mine occurs twice"):
        ProxyPool([PooledProxy(proxy, "mine") for proxy in proxies(2)])


def test_repr_of_a_pool_has_the_number_of_proxies_instead_of_a_list() -> None:
    assert repr(ProxyPool(proxies(3), assign="sticky")) == "<ProxyPool sticky: 3 proxies>"


@deterministic
@given(secret=st.text(st.sampled_from("Zz9:@#/%"), min_size=8, max_size=12))
def test_texts_of_a_pool_its_proxies_and_errors_contain_no_password(
    tmp_path_factory: pytest.TempPathFactory, secret: str
) -> None:
    """These texts may be logged."""
    secret = f"Z{secret}Z"
    path = tmp_path_factory.mktemp("pool") / "list.txt"
    lines = [f"h.example:80:user:{secret}", f"h.example:80:user:{secret}", f"h.example:99999:user:{secret}"]
    path.write_text("\n".join([*lines, f"user:{secret}@h.example", f"ftp://user:{secret}@h.example:1"]))
    pool = ProxyPool.read(path, skip_bad=True)
    pooled = next(iter(pool))

    with pytest.raises(FleetError) as caught:
        ProxyPool.read(path)

    printed = "".join(traceback.format_exception(caught.value))
    texts = [
        repr(pool),
        repr(pooled),
        str(pooled),
        printed,
        *map(repr, pool.refusals),
        *map(str, pool.refusals),
    ]
    assert not any(secret in text for text in texts)
    assert len(pool.refusals) == 4
