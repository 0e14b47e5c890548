"""The pool: assignment, quarantines, and the maximum of accounts per proxy."""

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
WAYS: Final[tuple[Assign, ...]] = ("round-robin", "sticky")
PASSWORD = "hunter2-seldom"

# What acc_0 to acc_3 get of 500 proxies.
GOLDEN_STICKY = [
    "user0@p240.example.net:3128",
    "user0@p102.example.net:3128",
    "user1@p124.example.net:3128",
    "user1@p101.example.net:3128",
]

deterministic = settings(derandomize=True, deadline=None, database=None)


def proxies(count: int) -> list[CustomProxy]:
    """As many different proxies, some of them on one host."""
    return [
        CustomProxy(host=f"p{n // 2}.example.net", port=3128, username=f"user{n % 2}", password=PASSWORD)
        for n in range(count)
    ]


def allocator(listed: list[CustomProxy], **options: Any) -> ProxyAllocator:
    """What a rotation makes of a pool."""
    return ProxyAllocator(ProxyPool(listed, **options), may_wait=False)


def accounts(count: int) -> list[str]:
    """As many account ids, of the kind that differ least."""
    return [f"acc_{n}" for n in range(count)]


def given_to(pool: ProxyAllocator, ids: list[str]) -> dict[str, str]:
    """What each account gets, by its label."""
    return {account: pooled.label for account in ids if (pooled := pool.give(account)) is not None}


def quarantine(pool: ProxyAllocator, label: str) -> None:
    """Let the proxy of that label fail accounts until it is quarantined."""
    pooled = next(pooled for pooled in pool._proxies if pooled.label == label)
    before = pool.quarantined
    for number in range(UNCONFIRMED):
        assert pool.quarantined == before
        pool.failed(pooled, f"x{number}")
    assert pool.quarantined == before + 1


def test_success_costs_the_same_however_many_proxies_are_failing() -> None:
    """Before, each success looked at all failing proxies: 100,000 accounts took minutes."""

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
def test_what_is_not_a_proxy_is_refused_without_its_text(proxy) -> None:
    with pytest.raises(ValueError, match=f"must be CustomProxy, got {type(proxy).__name__}: ") as caught:
        ProxyPool([proxy])

    assert "hunter2" not in str(caught.value)


# --- Round robin ---


def test_the_kth_account_gets_the_kth_proxy() -> None:
    """And the first again after the last."""
    pool = allocator(proxies(5))

    places = [pool.give(account) for account in accounts(12)]

    assert places == [as_pooled(proxies(5)[n % 5]) for n in range(12)]


def test_a_round_passes_over_what_is_in_quarantine() -> None:
    """The others keep their turns."""
    pool = allocator(proxies(3))
    quarantine(pool, "user1@p0.example.net:3128")

    labels = [label.split(".")[0] for label in given_to(pool, accounts(4)).values()]

    assert labels == ["user0@p0", "user0@p1", "user0@p0", "user0@p1"]


def test_accounts_that_come_back_are_spread_over_the_others() -> None:
    """A dead proxy's accounts must not all get the next proxy, or shift other accounts."""
    pool = allocator(proxies(5))
    dead = pool.give("acc_0")
    assert dead is not None

    others = Counter(pool.give(f"back_{n}", but_not=[dead]) for n in range(8))

    assert set(others.values()) == {2}
    assert pool.give("acc_1") == as_pooled(proxies(5)[1])


# --- Sticky ---


@deterministic
@given(count=st.integers(2, 40), out=st.data(), shuffled=st.randoms(use_true_random=False))
def test_an_account_keeps_its_proxy_when_another_is_taken_out(
    count: int, out: st.DataObject, shuffled: random.Random
) -> None:
    """Only accounts of the removed proxy move, in any order of the list."""
    listed = proxies(count)
    ids = accounts(200)
    before = given_to(allocator(listed, assign="sticky"), ids)
    gone = listed.pop(out.draw(st.integers(0, count - 1)))
    shuffled.shuffle(listed)
    after = given_to(allocator(listed, assign="sticky"), ids[::-1])

    moved = {account for account in ids if before[account] != after[account]}

    assert moved == {account for account in ids if before[account] == as_pooled(gone).label}


@deterministic
@given(
    count=st.integers(2, 12), ids=st.sets(st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True), min_size=1)
)
def test_sticky_accounts_keep_their_proxy_if_another_is_removed(count: int, ids: set[str]) -> None:
    """Over every proxy that could be the one, the share of accounts that stay is (n - 1) / n exactly."""
    listed = proxies(count)
    before = given_to(allocator(listed, assign="sticky"), sorted(ids))

    stayed = 0
    for gone in listed:
        rest = [proxy for proxy in listed if proxy is not gone]
        after = given_to(allocator(rest, assign="sticky"), sorted(ids))
        stayed += sum(before[account] == after[account] for account in ids)

    assert stayed == (count - 1) * len(ids)


@deterministic
@given(count=st.integers(1, 400), account=st.text(st.characters(codec="ascii"), min_size=1), data=st.data())
def test_a_sticky_account_gets_the_open_proxy_of_its_highest_score(
    count: int, account: str, data: st.DataObject
) -> None:
    """One long multiplication gives what a loop over all pairs would."""
    pool = allocator(proxies(count), assign="sticky", failovers=400)
    shut = data.draw(st.sets(st.integers(0, count - 1)))
    tried = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    for index in shut:
        quarantine(pool, pool._proxies[index].label)

    def score(index: int) -> int:
        key = "\0".join(map(str, identity(pool._proxies[index].proxy)))
        return _odd_hash(account) * _odd_hash(key) % 2**32

    candidates = [index for index in range(count) if index not in shut | tried]
    expected = pool._proxies[max(candidates, key=score)] if candidates else None

    assert pool.give(account, but_not=[pool._proxies[index] for index in tried]) == expected


def test_a_sticky_account_has_the_same_proxy_in_every_version() -> None:
    """The hashes are a promise: a fleet would move by itself with an upgrade, or with PYTHONHASHSEED."""
    pool = allocator(proxies(500), assign="sticky")

    assert list(given_to(pool, accounts(4)).values()) == GOLDEN_STICKY


def test_sticky_spreads_accounts_as_chance_would() -> None:
    """10,000 accounts whose ids differ in a digit, on 50 proxies: 200 each, give or take 5 sigma."""
    shares = Counter(given_to(allocator(proxies(50), assign="sticky"), accounts(10_000)).values())

    assert len(shares) == 50
    assert all(abs(share - 200) < 5 * 14 for share in shares.values())


def test_accounts_of_a_proxy_taken_out_are_spread_over_all_others() -> None:
    """The second choices of one proxy's accounts are as many as chance would have."""
    pool = allocator(proxies(20), assign="sticky")
    homes = given_to(pool, accounts(10_000))
    gone = homes["acc_0"]
    quarantine(pool, gone)

    shares = Counter(given_to(pool, [account for account in homes if homes[account] == gone]).values())

    assert len(shares) == 19
    assert max(shares.values()) < 3 * min(shares.values())


# --- Failures ---


@pytest.mark.parametrize("assign", WAYS)
def test_an_account_gets_its_first_proxy_and_three_more(assign: Assign) -> None:
    """Then it has failed, though the pool has others: the fault may be the account's."""
    pool = allocator(proxies(50), assign=assign)
    tried: list[PooledProxy] = []
    while pooled := pool.give("acc_0", but_not=tried):
        tried.append(pooled)

    assert len(tried) == len({pooled.label for pooled in tried}) == 4
    assert pool.available == 50


@pytest.mark.parametrize("assign", WAYS)
def test_exhausted_pool_gives_none(assign: Assign) -> None:
    """None, and no exception: accounts with a proxy of their own go on."""
    pool = allocator(proxies(3), assign=assign)
    for pooled in pool._proxies:
        quarantine(pool, pooled.label)

    assert pool.available == 0
    assert pool.give("acc_1") is None


def test_a_proxy_of_another_pool_is_refused() -> None:
    """Otherwise the failure would count for another proxy."""
    pool, other = allocator(proxies(2)), allocator(proxies(3)[2:])
    stranger = other.give("acc_0")
    assert stranger is not None

    with pytest.raises(ValueError, match=r"user0@p1\.example\.net:3128 is not in this pool"):
        pool.failed(stranger, "acc_0")


# --- The cap ---

# Few accounts and long histories: most of what can go wrong needs one account to do three things.
ACTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["fail", "fail", "give up", "in doubt", "work"])),
    min_size=15,
    max_size=60,
)


@deterministic
@given(
    acts=ACTS,
    count=st.integers(1, 5),
    cap=st.integers(1, 3),
    assign=st.sampled_from(WAYS),
    earlier=st.lists(st.sampled_from([0, 0, 0, 1, 4]), min_size=5, max_size=5),
)
def test_no_proxy_ever_has_more_accounts_than_its_cap(
    acts: list[tuple[int, str]], count: int, cap: int, assign: Assign, earlier: list[int]
) -> None:
    """This holds for all sequences of failures and retries, and after any earlier run."""
    pool = allocator(proxies(count), assign=assign, accounts_per_proxy=cap, failovers=9)
    before = dict(zip([pooled.label for pooled in pool._proxies], earlier, strict=False))
    pool.resume(before)
    holds: dict[str, PooledProxy] = {}
    had: dict[str, list[PooledProxy]] = {}

    for number, act in acts:
        account = f"acc_{number}"
        if (holder := holds.get(account)) is None:
            got = None if account in had else pool.give(account)
        elif act == "work":
            pool.worked(holder, account)
            continue
        else:
            if act == "fail":
                pool.failed(holder, account)
            pool.take_back(holder, may_have_it=act == "in doubt")
            if act == "in doubt":
                before[holder.label] += 1
            got = pool.give(account, but_not=had[account])
            del holds[account]
        if got is not None:
            assert got not in had.get(account, [])
            assert pool.may_retry(got)
            holds[account] = got
            had.setdefault(account, []).append(got)

        now = Counter(pooled.label for pooled in holds.values())
        assert all(n + before[label] <= cap for label, n in now.items())
        open_ = sum(
            pool.may_retry(pooled) and pool._accounts[index] < cap
            for index, pooled in enumerate(pool._proxies)
        )
        assert pool.available == open_


@pytest.mark.parametrize("assign", WAYS)
def test_every_place_under_the_cap_is_given_out(assign: Assign) -> None:
    """With as many accounts as places, the last account gets the last place."""
    pool = allocator(proxies(7), assign=assign, accounts_per_proxy=3)

    assert Counter(Counter(given_to(pool, accounts(21)).values()).values()) == {3: 7}
    assert pool.available == 0
    assert pool.give("one_more") is None


@pytest.mark.parametrize("assign", WAYS)
def test_an_account_that_goes_on_frees_its_place_for_another(assign: Assign) -> None:
    """The proxy failed one account only; with a place for each account, someone needs it."""
    pool = allocator(proxies(2), assign=assign, accounts_per_proxy=1)
    first = pool.give("acc_0")
    assert first is not None
    pool.failed(first, "acc_0")
    pool.take_back(first)

    second = pool.give("acc_0", but_not=[first])

    assert second not in (None, first)
    assert pool.give("acc_1") == first
    assert pool.give("acc_2") is None


def test_an_account_that_tries_again_keeps_its_place() -> None:
    """Until it asks for another proxy, it may yet succeed on this one."""
    pool = allocator(proxies(1), accounts_per_proxy=1)
    only = pool.give("acc_0")
    assert only is not None

    pool.failed(only, "acc_0")

    assert pool.give("acc_1") is None


def test_quarantined_proxy_counts_accounts_of_an_earlier_run() -> None:
    """A full and quarantined proxy is used again when neither applies any more."""
    pool = allocator(proxies(2), accounts_per_proxy=1)
    quarantine(pool, "user0@p0.example.net:3128")

    pool.resume({"user0@p0.example.net:3128": 1})
    assert (pool.available, pool.quarantined) == (1, 1)

    pool.worked(pool._proxies[0], "acc_0")
    assert (pool.available, pool.quarantined) == (1, 0)


def test_accounts_of_an_earlier_run_count_towards_the_cap() -> None:
    """A run that is stopped and resumed is one run; labels of another list are passed over."""
    pool = allocator(proxies(2), accounts_per_proxy=2)

    pool.resume({"user0@p0.example.net:3128": 1, "user1@p0.example.net:3128": 2, "line 3 h:80": 9})

    assert list(given_to(pool, accounts(3)).values()) == ["user0@p0.example.net:3128"]


def test_labels_of_an_older_journal_count_without_their_line() -> None:
    """Older labels begin with the line in the list, which may have been edited since."""
    pool = allocator(proxies(2), accounts_per_proxy=1)

    pool.resume({"line 17 user0@p0.example.net:3128": 1})

    assert list(given_to(pool, accounts(2)).values()) == ["user1@p0.example.net:3128"]


@deterministic
@given(
    runs=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    count=st.integers(1, 12),
)
def test_a_round_goes_on_where_the_last_run_left_off(runs: list[int], count: int) -> None:
    """Ten accounts an evening on forty proxies must not be four on each of the first ten."""
    used: Counter[str] = Counter()
    for number, limit in enumerate(runs):
        pool = allocator(proxies(count))
        pool.resume(used)
        used.update(given_to(pool, [f"acc_{number}_{n}" for n in range(limit)]).values())

    shares = [used[pooled.label] for pooled in ProxyPool(proxies(count))]
    assert max(shares) - min(shares) <= 1


def test_a_proxy_that_is_new_in_a_resumed_run_gets_no_flood() -> None:
    """Else every request in flight would go through it until it had as many accounts as the others."""
    pool = allocator(proxies(100))
    pool.resume({pooled.label: 500 for pooled in pool._proxies[:-1]})

    shares = Counter(given_to(pool, accounts(1000)).values())

    assert max(shares.values()) <= 20


# --- Making one ---


def test_list_with_bad_lines_is_refused_and_each_is_reported() -> None:
    """A list with bad lines is never used in part without the user's consent."""
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


def test_bad_lines_can_be_skipped() -> None:
    """With skip_bad, the caller can still read which lines were skipped."""
    pool = ProxyPool.read(LIST, skip_bad=True, assign="sticky", accounts_per_proxy=2)

    assert len(pool) == 500
    assert [refusal.line for refusal in pool.refusals] == [21, 41, 61, 81]


def test_a_label_is_user_host_and_port() -> None:
    """Operators find the line in the seller's list by the label."""
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
def test_a_label_is_the_same_after_a_list_was_edited(tmp_path: Path, edited: str) -> None:
    """A journal knows by it which accounts a proxy has."""
    path = tmp_path / "list.txt"
    path.write_text("a.example:80:u:p\nb.example:80:u:p\n")
    before = {pooled.label for pooled in ProxyPool.read(path)}
    path.write_text(edited)

    after = {pooled.label for pooled in ProxyPool.read(path)}

    assert before == {"u@a.example:80", "u@b.example:80"}
    assert before <= after


def test_several_lists_are_one_pool(tmp_path: Path) -> None:
    """An operator has a list of each seller."""
    for name in ("us", "de"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1.example:80\n{name}2.example:80\n")

    pool = ProxyPool.read(tmp_path / "us.txt", tmp_path / "de.txt")

    labels = [pooled.label for pooled in pool]
    assert labels == ["us1.example:80", "us2.example:80", "de1.example:80", "de2.example:80"]


def test_a_proxy_of_two_lists_is_in_the_pool_once(tmp_path: Path) -> None:
    """Like a duplicate in one list, it is refused, or skipped with skip_bad."""
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
    """A seller's country and city say nothing to the API, and the operator may believe otherwise."""
    path = tmp_path / "list.csv"
    path.write_text("host,port,country,city\nh.example,80,US,Boston\n")

    assert ProxyPool.read(path).ignored_columns == {str(path): ("country", "city")}


def test_a_label_cannot_play_tricks_on_a_terminal() -> None:
    """A user name may hold what turns the direction of a line around."""
    pooled = as_pooled(CustomProxy(host="h.example", port=80, username="a\u202eb"))
    assert pooled.label == "a\\u202eb@h.example:80"


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("text", ["", "# nothing yet\n\n"])
def test_a_list_without_a_proxy_is_refused(tmp_path: Path, text: str, skip_bad: bool) -> None:
    """An empty file is more likely a mistake than a wish."""
    path = tmp_path / "list.txt"
    path.write_text(text)

    with pytest.raises(FleetError, match="empty"):
        ProxyPool.read(path, skip_bad=skip_bad)


def test_a_list_of_nothing_but_bad_lines_is_refused_even_where_they_are_skipped(tmp_path: Path) -> None:
    """Nothing is left to use, and for a file that is not a list, not every line is reported."""
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
def test_a_pool_that_could_not_work_is_not_made(arguments: dict[str, Any], message: str) -> None:
    """A mistake is reported before the first account."""
    with pytest.raises(ValueError, match=message):
        ProxyPool(**{"proxies": proxies(3)} | arguments)


def test_two_proxies_cannot_have_one_label() -> None:
    """A journal knows them by nothing else."""
    with pytest.raises(ValueError, match="mine occurs twice"):
        ProxyPool([PooledProxy(proxy, "mine") for proxy in proxies(2)])


def test_its_repr_is_counts() -> None:
    """500 proxies are no help in a log."""
    assert repr(ProxyPool(proxies(3), assign="sticky")) == "<ProxyPool sticky: 3 proxies>"


@deterministic
@given(secret=st.text(st.sampled_from("Zz9:@#/%"), min_size=8, max_size=12))
def test_no_text_of_a_pool_has_a_password(tmp_path_factory: pytest.TempPathFactory, secret: str) -> None:
    """Not its own, not its proxies', not its errors': each ends up in a log."""
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
