"""Rotations with failing proxies: few requests go to dead proxies, and working proxies stay in use."""

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


def run_rotation(
    api: Api,
    accounts: int | dict[str, str],
    pool: ProxyPool | dict[str, ProxyPool],
    *,
    in_flight: int = 100,
    observed: list[Any] | None = None,
    memory: Memory | None = None,
) -> Rotation:
    """Rotate a number of accounts, or accounts with tags, in virtual time. *observed* collects the events."""
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
            observer=None if observed is None else SafeObserver(observed.append),
        )
        async with rotation:
            await rotation.run()
        return rotation

    return run(rotate())


@pytest.mark.parametrize(
    ("accounts", "proxies", "fails_at"),
    [
        pytest.param(4_000, 500, 0.0, id="from the beginning"),
        pytest.param(4_000, 20, 1.0, id="20 proxies"),
        pytest.param(20_000, 500, 2.0, marks=pytest.mark.slow, id="20,000 accounts"),
    ],
)
def test_accounts_wait_until_a_short_failure_of_all_proxies_ends(
    accounts: int, proxies: int, fails_at: float
) -> None:
    """All proxies fail for 3 s. No account fails, no proxy is quarantined, and few requests are wasted."""
    observed: list[Any] = []
    api = Api(lambda _host, _account, now: DEAD if fails_at <= now < fails_at + 3 else None)

    rotation = run_rotation(api, accounts, pool_of(proxies), observed=observed)

    assert rotation.summary.complete
    assert not any(isinstance(event, events.ProxyQuarantined) for event in observed)
    [pause] = [event.elapsed for event in observed if isinstance(event, events.PauseEnded)]
    assert pause < 3.5
    assert api.requests.total() - accounts < 2_500


def test_only_the_first_account_fails_if_the_only_proxy_fails_for_a_short_time() -> None:
    """Only the failure of a second account shows that the proxy is the cause, not the account."""
    api = Api(lambda _host, _account, now: DEAD if 1 <= now < 4 else None)

    rotation = run_rotation(api, 4_000, pool_of(1))

    assert rotation.summary.states == {State.PATCHED: 3_999, State.FAILED: 1}


@pytest.mark.parametrize(
    ("accounts", "assign"),
    [
        pytest.param(5_000, "round-robin", id="round-robin"),
        pytest.param(5_000, "sticky", id="sticky"),
        pytest.param(20_000, "round-robin", marks=pytest.mark.slow, id="20,000 accounts"),
    ],
)
def test_accounts_wait_while_all_proxies_fail_again_and_again(accounts: int, assign: Any) -> None:
    """All proxies work for 5 s, then fail for 5 s, and so on."""
    api = Api(lambda _host, _account, now: DEAD if (now + 4) % 10 >= 5 else None)

    rotation = run_rotation(api, accounts, pool_of(500, assign=assign))

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 0


TAGGED = {f"acc_{n}": ("US", "DE")[n % 2] for n in range(2_000)}


def tagged_pools() -> dict[str, ProxyPool]:
    return {
        tag: ProxyPool([CustomProxy(host=f"{tag}{n}", port=3128) for n in range(4)]) for tag in ("US", "DE")
    }


def test_failure_of_one_tagged_pool_does_not_pause_accounts_of_another_tag() -> None:
    observed: list[Any] = []
    last_request = {"US": 0.0, "DE": 0.0}

    def fault(host: str, _account: str, now: float) -> str | None:
        last_request[host[:2]] = now
        return DEAD if host.startswith("US") and 0.3 <= now < 4 else None

    rotation = run_rotation(Api(fault), TAGGED, tagged_pools(), observed=observed)

    assert rotation.summary.complete
    pauses = [event for event in observed if isinstance(event, events.PauseBegan | events.PauseEnded)]
    assert [type(event) for event in pauses] == [events.PauseBegan, events.PauseEnded]
    assert last_request["DE"] < 2
    assert last_request["US"] > 4


def test_failing_proxy_of_one_tag_is_not_tried_by_accounts_of_another_tag() -> None:
    observed: list[Any] = []
    api = Api(lambda host, _account, _now: DEAD if host == "US0" else None)

    rotation = run_rotation(api, TAGGED, tagged_pools(), observed=observed)

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 1
    assert [event.proxy for event in observed if isinstance(event, events.ProxyQuarantined)] == ["us0:3128"]
    assert [api.requests[f"DE{n}"] for n in range(4)] == [250] * 4


def test_placeholder_try_is_never_repeated_for_an_account_even_after_a_pause() -> None:
    """
    A session of the gateway that has failed must not be used again, although the pause forgets the failures.
    """
    sessions: defaultdict[str, list[int]] = defaultdict(list)

    class Gateway(Api):
        async def update(self, account_id: str, change: Any, *rest: Any) -> AccountPatched:
            if change.username:
                sessions[account_id].append(int(change.username))
            return await super().update(account_id, change, *rest)

    observed: list[Any] = []
    api = Gateway(lambda _host, _account, now: DEAD if now < 3 else None)
    gateway = CustomProxy(host="gw", port=3128, username="{try}")
    pool = ProxyPool([gateway, *(pooled.proxy for pooled in pool_of(3))])

    rotation = run_rotation(api, 400, pool, observed=observed)

    assert rotation.summary.complete
    assert any(isinstance(event, events.PauseEnded) for event in observed)
    assert max(map(len, sessions.values())) > 1
    for numbers in sessions.values():
        assert numbers == sorted(set(numbers))


def test_accounts_get_no_proxy_if_all_proxies_fail_for_the_cool_down() -> None:
    """The longer the failure lasts, the fewer requests are sent."""
    api = Api(lambda _host, _account, now: DEAD)

    rotation = run_rotation(api, 500, pool_of(500, cool_down=1800))

    assert rotation.summary.patched == 0
    assert rotation.summary.without_proxy > 0
    assert api.requests.total() < 2_500


@pytest.mark.parametrize("share", [0.5, 0.6, 0.9])
def test_pool_with_mostly_dead_proxies_is_still_used(share: float) -> None:
    api = Api(lambda host, _account, _now: DEAD if int(host[1:]) < 500 * share else None)

    rotation = run_rotation(api, 5_000, pool_of(500))

    assert rotation.summary.patched > 4_500
    assert rotation.summary.quarantined > 450 * share


def test_accounts_that_get_invalid_credentials_with_each_proxy_quarantine_no_proxy() -> None:
    """1% of the accounts are the cause: they fail with all proxies."""
    observed: list[Any] = []
    api = Api(lambda _host, account, _now: CREDENTIALS if account.endswith("00") else None)

    rotation = run_rotation(api, 10_000, pool_of(20), observed=observed)

    assert rotation.summary.states == {State.PATCHED: 9_901, State.FAILED: 99}
    assert not any(isinstance(event, events.ProxyQuarantined) for event in observed)


def test_random_accounts_that_get_invalid_credentials_quarantine_no_proxy() -> None:
    rng = random.Random(5)
    refused = {f"acc_{n}" for n in range(10_000) if rng.random() < 0.01}
    observed: list[Any] = []
    api = Api(lambda _host, account, _now: CREDENTIALS if account in refused else None)

    run_rotation(api, 10_000, pool_of(20), observed=observed)

    assert not any(isinstance(event, events.ProxyQuarantined) for event in observed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("in_flight", [5, 100])
def test_random_errors_quarantine_at_most_one_proxy(seed: int, in_flight: int) -> None:
    """One request in ten fails."""
    rng = random.Random(seed)
    observed: list[Any] = []
    api = Api(lambda *_: DEAD if rng.random() < 0.1 else None)

    rotation = run_rotation(api, 5_000, pool_of(25), observed=observed, in_flight=in_flight)

    assert rotation.summary.complete
    assert sum(isinstance(event, events.ProxyQuarantined) for event in observed) <= 1


def test_recovered_proxy_is_used_again_after_its_cool_down() -> None:
    """
    20 of 40 dead proxies recover after 10 minutes. Each is probed 30 minutes after the start of its
    quarantine.
    """
    recovered_at = 600.0

    def fault(host: str, _account: str, now: float) -> str | None:
        number = int(host[1:])
        return DEAD if number < 20 or (number < 40 and now < recovered_at) else None

    api = Api(fault, latency=20.0)

    rotation = run_rotation(api, 12_500, pool_of(500, cool_down=1800))

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 20
    assert all(1800 < api.first[f"p{n}"] < recovered_at + 1800 for n in range(20, 40))
    assert all(api.requests[f"p{n}"] < 20 for n in range(20))


def test_probe_costs_an_account_one_request_and_no_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account gets another proxy although the pool allows no failovers."""
    api, memory = Api(lambda host, *_: DEAD if host == "p0" else None), Memory()
    monkeypatch.setattr(time, "time", lambda: 1e6)
    memory.quarantined["p0:3128"] = 1e6 - 3601, 1e6 - 1  # an hour of quarantine, which is over

    rotation = run_rotation(api, 1, pool_of(2, failovers=0), memory=memory)

    assert rotation.summary.complete
    assert api.requests == {"p0": 1, "p1": 1}
    [(label, quarantine, failed)] = memory.changes
    assert (label, failed) == ("p0:3128", True)
    assert quarantine.probe_at - quarantine.began == 7200


@pytest.mark.parametrize("spread", [1, 12], ids=["at the beginning of the list", "all over the list"])
def test_dead_proxies_of_the_first_night_get_one_request_in_each_later_night(
    spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of 500 proxies are dead in the first night, and 20 of them have recovered in the second night."""
    memory, wasted = Memory(), list[int]()
    for night, count in enumerate((40, 20, 20)):
        monkeypatch.setattr(time, "time", lambda: 1e6 + night * 86_400)  # noqa: B023
        dead = {f"p{n * spread}" for n in range(count)}
        api = Api(lambda host, *_: DEAD if host in dead else None)  # noqa: B023

        rotation = run_rotation(api, 6_000, pool_of(500), memory=memory)

        assert rotation.summary.complete
        assert memory.quarantined.keys() == {f"{host}:3128" for host in dead}
        assert api.first.keys() == {f"p{n}" for n in range(500)} - dead
        wasted.append(sum(api.requests[host] for host in dead))

    assert wasted[1:] == [20, 20]  # one probe of each quarantined proxy that is still dead
