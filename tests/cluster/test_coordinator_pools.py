"""Proxy pools of a rotation on a fake of Dask, in virtual time: tags, templates, quarantine."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, cast

import pytest

from postpress_async import AccountPatched, CustomProxy, Pace, ProxyPool, events
from postpress_async._safe_observer import SafeObserver
from postpress_async.cluster._coordinator import Coordinator
from postpress_async.rotation import Halt, Rotation, State
from postpress_async.rotation._rows import rows_of
from tests.support.bad_proxies import CREDENTIALS, DEAD, Api, Memory, pool_of
from tests.support.cluster_world import wait_until
from tests.support.fake_dask import FakeDask, FakeWorker
from tests.support.virtual_loop import run

pytestmark = pytest.mark.usefixtures("fake_dask")

TAGGED_ACCOUNTS = {f"acc_{n}": ("US", "DE")[n % 2] for n in range(2_000)}


def account_ids(count: int) -> list[str]:
    return [f"acc_{number}" for number in range(count)]


def tagged_pools() -> dict[str, ProxyPool]:
    return {
        tag: ProxyPool([CustomProxy(host=f"{tag}{n}", port=3128) for n in range(4)]) for tag in ("US", "DE")
    }


def rotate_with_pool(
    api: Api,
    changes: Collection[str] | Mapping[str, str],
    pool: ProxyPool | dict[str, ProxyPool],
    *,
    seen: list[Any] | None = None,
    memory: Memory | None = None,
    meanwhile: Callable[[FakeDask, Rotation], Awaitable[object]] | None = None,
) -> Rotation:
    """
    Rotate accounts on two workers.

    Args:
        changes: The account ids; or a mapping from account id to tag, if *pool* has tags.
        seen: Collects the events.
        memory: The journal.
        meanwhile: Awaited while the rotation runs.
    """

    async def update(_worker: FakeWorker, *call: Any) -> AccountPatched:
        return await api.update(*call)

    async def rotate() -> Rotation:
        dask = FakeDask("w1", "w2")
        dask.script = update
        observer = None if seen is None else SafeObserver[events.Event](seen.append)
        coordinator = Coordinator(cast("Any", dask), {"pace": Pace(in_flight=50)}, observer)
        dask.coordinator = coordinator
        opener: Any = None if memory is None else lambda: memory
        rotation = Rotation(
            coordinator.update,
            rows_of(changes.items() if isinstance(changes, Mapping) else changes, pooled=pool),
            in_flight=50,
            pool=pool,
            journal=opener,
            halt=Halt(failures="never"),
            waits=coordinator.waits,
            observer=observer,
            executor=coordinator,
        )
        async with rotation:
            if meanwhile is not None:
                await meanwhile(dask, rotation)
            await rotation.run()
        return rotation

    return run(rotate())


def test_account_gets_only_proxies_of_its_tag_even_after_a_failover() -> None:
    used: defaultdict[str, set[str]] = defaultdict(set)

    def fault(host: str, account: str, _now: float) -> str | None:
        used[TAGGED_ACCOUNTS[account]].add(host)
        return DEAD if host in {"US0", "DE3"} else None

    rotation = rotate_with_pool(Api(fault), TAGGED_ACCOUNTS, tagged_pools())

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 2
    assert used == {tag: {f"{tag}{n}" for n in range(4)} for tag in ("US", "DE")}


def test_template_gives_each_account_a_session_and_a_new_one_after_a_failover() -> None:
    sessions: defaultdict[str, list[str]] = defaultdict(list)

    class Gateway(Api):
        async def update(self, account_id: str, change: Any, *rest: Any) -> AccountPatched:
            sessions[account_id].append(change.username)
            return await super().update(account_id, change, *rest)

    def fault(_host: str, account: str, _now: float) -> str | None:
        is_first_session = sessions[account][-1].endswith("-s0")
        return DEAD if account.endswith("3") and is_first_session else None

    gateway = CustomProxy(host="gw", port=3128, username="c-{account_id}-s{try}", password="hunter2")
    rotation = rotate_with_pool(Gateway(fault), account_ids(100), ProxyPool([gateway]))

    assert rotation.summary.complete
    for account in account_ids(100):
        tries = 2 if account.endswith("3") else 1
        assert sessions[account] == [f"c-{account}-s{number}" for number in range(tries)]


def test_rotation_waits_while_all_proxies_fail() -> None:
    """No account fails, no proxy is quarantined, and only the calls that workers already have are wasted."""
    seen: list[Any] = []
    api = Api(lambda _host, _account, now: DEAD if 1 <= now < 4 else None)

    rotation = rotate_with_pool(api, account_ids(4_000), pool_of(20), seen=seen)

    assert rotation.summary.complete
    assert not any(isinstance(event, events.ProxyQuarantined) for event in seen)
    [pause] = [event.elapsed for event in seen if isinstance(event, events.PauseEnded)]
    assert pause < 3.5
    window = 50 + 250  # requests in flight, and the calls of the next 0.25 s
    assert api.requests.total() - 4_000 < 2 * 2 * window  # two requests per call of two workers


def test_failing_pool_of_one_tag_does_not_pause_accounts_of_another_tag() -> None:
    last_request = {"US": 0.0, "DE": 0.0}

    def fault(host: str, _account: str, now: float) -> str | None:
        last_request[host[:2]] = now
        return DEAD if host.startswith("US") and 0.3 <= now < 6 else None

    rotation = rotate_with_pool(Api(fault), TAGGED_ACCOUNTS, tagged_pools())

    assert rotation.summary.complete
    assert last_request["DE"] < 5
    assert last_request["US"] > 6


def test_pool_is_given_up_if_its_proxies_fail_for_longer_than_the_cool_down() -> None:
    """The accounts end without a proxy, and few requests are sent."""
    api = Api(lambda *_: DEAD)

    rotation = rotate_with_pool(api, account_ids(500), pool_of(500, cool_down=1800))

    assert rotation.summary.patched == 0
    assert rotation.summary.without_proxy > 0
    assert api.requests.total() < 2_500


def test_stop_ends_the_wait_for_proxies() -> None:
    async def stop_after_30_s(_dask: FakeDask, rotation: Rotation) -> None:
        await wait_until(lambda: rotation.proxies_failing)
        await asyncio.sleep(30)
        rotation.stop()

    rotation = rotate_with_pool(
        Api(lambda _host, _account, now: DEAD if now >= 1 else None),
        account_ids(4_000),
        pool_of(20),
        meanwhile=stop_after_30_s,
    )

    assert 0 < rotation.summary.patched < 4_000
    assert rotation.summary.elapsed < 60
    assert rotation.summary.states.keys() <= {State.PATCHED, State.SKIPPED}


def test_proxy_that_returns_is_used_again_after_its_cool_down() -> None:
    """Four proxies are dead, and two of them work again after 8 s. Each is probed after 20 s."""
    works_again_at = 8.0

    def fault(host: str, _account: str, now: float) -> str | None:
        if host in {"p0", "p1"}:
            return DEAD
        return DEAD if host in {"p2", "p3"} and now < works_again_at else None

    api = Api(fault, latency=1.0)

    rotation = rotate_with_pool(api, account_ids(4_000), pool_of(40, cool_down=20))

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 2
    assert all(20 < api.first[host] < works_again_at + 20 for host in ("p2", "p3"))
    assert all(api.requests[host] < 40 for host in ("p0", "p1"))


def test_quarantine_of_an_earlier_run_continues_and_a_failed_probe_costs_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other accounts retry once on the same proxy, because a proxy error is often transient."""
    api, memory = Api(lambda host, *_: DEAD if host in {"p0", "p1"} else None), Memory()
    monkeypatch.setattr(time, "time", lambda: 1e6)
    memory.quarantined["p0:3128"] = 1e6 - 3601, 1e6 - 1  # ended a second ago, after an hour
    memory.quarantined["p1:3128"] = 1e6 - 1, 1e6 + 3599  # ends in an hour

    rotation = rotate_with_pool(api, account_ids(100), pool_of(4, failovers=0), memory=memory)

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 2
    assert api.requests["p0"] == 1
    assert api.requests["p1"] == 0


def test_proxy_with_invalid_credentials_is_not_retried() -> None:
    api = Api(lambda host, *_: CREDENTIALS if host == "p0" else None)

    rotation = rotate_with_pool(api, account_ids(1), pool_of(2))

    assert rotation.summary.complete
    assert api.requests == {"p0": 1, "p1": 1}


def test_account_of_a_killed_worker_keeps_its_proxy() -> None:
    """It counts only once towards the cap of the proxy, although two workers send it."""

    async def kill(dask: FakeDask, rotation: Rotation) -> None:
        await wait_until(lambda: rotation.summary.patched >= 300)
        dask.kill("w1")

    sent: defaultdict[str, list[str]] = defaultdict(list)

    class Recording(Api):
        async def update(self, account_id: str, change: Any, *rest: Any) -> AccountPatched:
            sent[account_id].append(change.host)
            return await super().update(account_id, change, *rest)

    api = Recording(lambda *_: None)
    rotation = rotate_with_pool(api, account_ids(1_000), pool_of(10, accounts_per_proxy=100), meanwhile=kill)

    assert rotation.summary.patched == 1_000
    assert {len(hosts) for hosts in sent.values()} == {1, 2}  # two if the killed worker did not report it
    assert {len(set(hosts)) for hosts in sent.values()} == {1}


def test_probe_of_a_killed_worker_is_sent_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the quarantine would not end."""
    monkeypatch.setattr(time, "time", lambda: 1e6)
    memory = Memory()
    memory.quarantined["p0:3128"] = 1e6 - 3601, 1e6 - 1

    async def kill(dask: FakeDask, _rotation: Rotation) -> None:
        await wait_until(lambda: dask.sent["w1"])
        dask.kill("w1")

    api = Api(lambda *_: None, latency=1.0)
    rotation = rotate_with_pool(api, account_ids(1), pool_of(1), memory=memory, meanwhile=kill)

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 0
