"""Nights with bad proxies: few requests are wasted on dead ones, and good ones stay in use."""

import random
import time
from collections import defaultdict
from typing import Any

import pytest

from postpress_async import AccountPatched, CustomProxy, ProxyPool, events
from postpress_async._call.tracker import WaitGroup
from postpress_async._safe_observer import SafeObserver
from postpress_async.rotation import Halt, Rotation, State
from postpress_async.rotation._rows import rows_of
from tests.support.bad_proxies import CREDENTIALS, DEAD, Api, Memory, pool_of
from tests.support.virtual_loop import run

NEVER = Halt(failures="never")


def night(
    api: Api,
    accounts: int | dict[str, str],
    pool: ProxyPool | dict[str, ProxyPool],
    *,
    in_flight: int = 100,
    seen: list[Any] | None = None,
    memory: Memory | None = None,
) -> Rotation:
    """Rotate a number of accounts, or accounts with tags, in virtual time."""
    opener: Any = None if memory is None else lambda: memory
    changes: Any = [f"acc_{n}" for n in range(accounts)] if isinstance(accounts, int) else accounts.items()

    async def rotate() -> Rotation:
        rotation = Rotation(
            api.update,
            rows_of(changes, pooled=pool),
            in_flight=in_flight,
            pool=pool,
            journal=opener,
            halt=NEVER,
            waits=WaitGroup(waits_out_outages=True),
            observer=None if seen is None else SafeObserver(seen.append),
        )
        async with rotation:
            await rotation.run()
        return rotation

    return run(rotate())


@pytest.mark.parametrize(
    ("accounts", "proxies", "began"),
    [
        pytest.param(4_000, 500, 0.0, id="from the beginning"),
        pytest.param(4_000, 20, 1.0, id="20 proxies"),
        pytest.param(20_000, 500, 2.0, marks=pytest.mark.slow, id="20,000 accounts"),
    ],
)
def test_short_fault_of_all_proxies_is_waited_out(accounts: int, proxies: int, began: float) -> None:
    """All fail for 3 s: no account fails, no proxy is quarantined, and few requests are wasted."""
    seen: list[Any] = []
    api = Api(lambda _host, _account, now: DEAD if began <= now < began + 3 else None)

    rotation = night(api, accounts, pool_of(proxies), seen=seen)

    assert rotation.summary.complete
    assert not any(isinstance(event, events.ProxyQuarantined) for event in seen)
    [pause] = [event.elapsed for event in seen if isinstance(event, events.PauseEnded)]
    assert pause < 3.5
    assert api.requests.total() - accounts < 2_500


def test_short_fault_of_the_only_proxy_is_waited_out() -> None:
    """The first account fails: whether the proxy or the account is at fault, only a second one shows."""
    api = Api(lambda _host, _account, now: DEAD if 1 <= now < 4 else None)

    rotation = night(api, 4_000, pool_of(1))

    assert rotation.summary.states == {State.PATCHED: 3_999, State.FAILED: 1}


@pytest.mark.parametrize(
    ("accounts", "assign"),
    [
        pytest.param(5_000, "round-robin", id="round-robin"),
        pytest.param(5_000, "sticky", id="sticky"),
        pytest.param(20_000, "round-robin", marks=pytest.mark.slow, id="20,000 accounts"),
    ],
)
def test_flapping_of_all_proxies_is_waited_out(accounts: int, assign: Any) -> None:
    """Every 5 s, all fail for 5 s."""
    api = Api(lambda _host, _account, now: DEAD if (now + 4) % 10 >= 5 else None)

    rotation = night(api, accounts, pool_of(500, assign=assign))

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 0


TAGGED = {f"acc_{n}": ("US", "DE")[n % 2] for n in range(2_000)}


def tagged_pools() -> dict[str, ProxyPool]:
    return {
        tag: ProxyPool([CustomProxy(host=f"{tag}{n}", port=3128) for n in range(4)]) for tag in ("US", "DE")
    }


def test_fault_of_one_tags_pool_pauses_no_account_of_another() -> None:
    seen: list[Any] = []
    ended = {"US": 0.0, "DE": 0.0}

    def fault(host: str, _account: str, now: float) -> str | None:
        ended[host[:2]] = now
        return DEAD if host.startswith("US") and 0.3 <= now < 4 else None

    rotation = night(Api(fault), TAGGED, tagged_pools(), seen=seen)

    assert rotation.summary.complete
    assert [type(event) for event in seen if isinstance(event, events.PauseBegan | events.PauseEnded)] == [
        events.PauseBegan,
        events.PauseEnded,
    ]
    assert ended["DE"] < 2 < 4 < ended["US"]


def test_quarantine_of_one_tags_proxy_costs_no_account_of_another_a_request() -> None:
    seen: list[Any] = []
    api = Api(lambda host, _account, _now: DEAD if host == "US0" else None)

    rotation = night(api, TAGGED, tagged_pools(), seen=seen)

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 1
    assert [event.proxy for event in seen if isinstance(event, events.ProxyQuarantined)] == ["us0:3128"]
    assert [api.requests[f"DE{n}"] for n in range(4)] == [250] * 4


def test_account_gets_a_new_session_of_a_template_also_after_a_pause() -> None:
    """The failures that a pause forgets count for {try}: a session that failed is not sent again."""
    sessions: defaultdict[str, list[int]] = defaultdict(list)

    class Gateway(Api):
        async def update(self, account_id: str, change: Any, *rest: Any) -> AccountPatched:
            if change.username:
                sessions[account_id].append(int(change.username))
            return await super().update(account_id, change, *rest)

    seen: list[Any] = []
    api = Gateway(lambda _host, _account, now: DEAD if now < 3 else None)
    gateway = CustomProxy(host="gw", port=3128, username="{try}")

    rotation = night(api, 400, ProxyPool([gateway, *(pooled.proxy for pooled in pool_of(3))]), seen=seen)

    assert rotation.summary.complete
    assert any(isinstance(event, events.PauseEnded) for event in seen)
    assert max(map(len, sessions.values())) > 1
    for numbers in sessions.values():
        assert numbers == sorted(set(numbers))


def test_fault_that_outlasts_the_cool_down_ends_the_use_of_the_pool() -> None:
    """Without a busy loop: the longer it lasts, the fewer requests."""
    api = Api(lambda _host, _account, now: DEAD)

    rotation = night(api, 500, pool_of(500, cool_down=1800))

    assert rotation.summary.patched == 0
    assert rotation.summary.without_proxy > 0
    assert api.requests.total() < 2_500


@pytest.mark.parametrize("share", [0.5, 0.6, 0.9])
def test_pool_with_mostly_dead_proxies_is_used_nevertheless(share: float) -> None:
    api = Api(lambda host, _account, _now: DEAD if int(host[1:]) < 500 * share else None)

    rotation = night(api, 5_000, pool_of(500))

    assert rotation.summary.patched > 4_500
    assert rotation.summary.quarantined > 450 * share


def test_accounts_whose_credentials_are_refused_quarantine_no_proxy() -> None:
    """1% of the accounts; it is not the proxies' fault, because no other proxy suits them either."""
    seen: list[Any] = []
    api = Api(lambda _host, account, _now: CREDENTIALS if account.endswith("00") else None)

    rotation = night(api, 10_000, pool_of(20), seen=seen)

    assert rotation.summary.states == {State.PATCHED: 9_901, State.FAILED: 99}
    assert not any(isinstance(event, events.ProxyQuarantined) for event in seen)


def test_accounts_whose_credentials_are_refused_at_random_quarantine_no_proxy() -> None:
    dice = random.Random(5)
    bad = {f"acc_{n}" for n in range(10_000) if dice.random() < 0.01}
    seen: list[Any] = []
    api = Api(lambda _host, account, _now: CREDENTIALS if account in bad else None)

    night(api, 10_000, pool_of(20), seen=seen)

    assert not any(isinstance(event, events.ProxyQuarantined) for event in seen)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("in_flight", [5, 100])
def test_errors_at_random_quarantine_no_proxy(seed: int, in_flight: int) -> None:
    """One request in ten fails."""
    dice = random.Random(seed)
    seen: list[Any] = []
    api = Api(lambda *_: DEAD if dice.random() < 0.1 else None)

    rotation = night(api, 5_000, pool_of(25), seen=seen, in_flight=in_flight)

    assert rotation.summary.complete
    assert sum(isinstance(event, events.ProxyQuarantined) for event in seen) <= 1


def test_proxy_that_returns_is_used_again_after_its_cool_down() -> None:
    """20 of 40 dead proxies return after 10 minutes; each is probed 30 minutes after it was quarantined."""
    back = 600.0
    api = Api(
        lambda host, _, now: DEAD if int(host[1:]) < 20 or (int(host[1:]) < 40 and now < back) else None,
        latency=20.0,
    )

    rotation = night(api, 12_500, pool_of(500, cool_down=1800))

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 20
    assert all(1800 < api.first[f"p{n}"] < back + 1800 for n in range(20, 40))
    assert all(api.requests[f"p{n}"] < 20 for n in range(20))


def test_probe_costs_an_account_one_request_and_no_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even without failovers, it gets another proxy."""
    api, memory = Api(lambda host, *_: DEAD if host == "p0" else None), Memory()
    monkeypatch.setattr(time, "time", lambda: 1e6)
    memory.quarantined["p0:3128"] = 1e6 - 3601, 1e6 - 1  # for an hour, which is over

    rotation = night(api, 1, pool_of(2, failovers=0), memory=memory)

    assert rotation.summary.complete
    assert api.requests == {"p0": 1, "p1": 1}
    [(label, quarantine, failed)] = memory.changes
    assert (label, failed) == ("p0:3128", True)
    assert quarantine.probe_at - quarantine.began == 7200


@pytest.mark.parametrize("spread", [1, 12], ids=["at the beginning of the list", "all over the list"])
def test_three_nights_waste_few_requests_on_dead_proxies(
    spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of 500 are dead in the first night, and 20 of these are back in the second."""
    memory, wasted = Memory(), list[int]()
    for number, count in enumerate((40, 20, 20)):
        monkeypatch.setattr(time, "time", lambda: 1e6 + number * 86_400)  # noqa: B023
        dead = {f"p{n * spread}" for n in range(count)}
        api = Api(lambda host, *_: DEAD if host in dead else None)  # noqa: B023

        rotation = night(api, 6_000, pool_of(500), memory=memory)

        assert rotation.summary.complete
        assert memory.quarantined.keys() == {f"{host}:3128" for host in dead}
        assert api.first.keys() == {f"p{n}" for n in range(500)} - dead
        wasted.append(sum(api.requests[host] for host in dead))

    assert wasted[1:] == [20, 20]  # one probe of each
