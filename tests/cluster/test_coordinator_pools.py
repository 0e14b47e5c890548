"""Pools of a rotation on a cluster: tags, templates, quarantines, faults of all proxies, in virtual time."""

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
from tests.support.fake_dask import FakeDask, FakeWorker
from tests.support.virtual_loop import run

pytestmark = pytest.mark.usefixtures("fake_dask")

TAGGED = {f"acc_{n}": ("US", "DE")[n % 2] for n in range(2_000)}


def accounts(count: int) -> list[str]:
    return [f"acc_{number}" for number in range(count)]


def tagged_pools(**options: Any) -> dict[str, ProxyPool]:
    return {
        tag: ProxyPool([CustomProxy(host=f"{tag}{n}", port=3128) for n in range(4)], **options)
        for tag in ("US", "DE")
    }


def night(
    api: Api,
    changes: Collection[str] | Mapping[str, str],
    pool: ProxyPool | dict[str, ProxyPool],
    *,
    seen: list[Any] | None = None,
    memory: Memory | None = None,
    meanwhile: Callable[[FakeDask, Rotation], Awaitable[object]] | None = None,
) -> Rotation:
    """Rotate accounts, or accounts with tags, on two workers."""

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


def test_account_gets_proxies_of_its_tag_also_after_a_failover() -> None:
    used: defaultdict[str, set[str]] = defaultdict(set)

    def fault(host: str, account: str, _now: float) -> str | None:
        used[TAGGED[account]].add(host)
        return DEAD if host in {"US0", "DE3"} else None

    rotation = night(Api(fault), TAGGED, tagged_pools())

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 2
    assert used == {tag: {f"{tag}{n}" for n in range(4)} for tag in ("US", "DE")}


def test_template_gives_each_account_a_session_and_another_one_at_each_failover() -> None:
    sessions: defaultdict[str, list[str]] = defaultdict(list)

    class Gateway(Api):
        async def update(self, account_id: str, change: Any, *rest: Any) -> AccountPatched:
            sessions[account_id].append(change.username)
            return await super().update(account_id, change, *rest)

    api = Gateway(lambda _host, account, _now: DEAD if failing(account) else None)

    def failing(account: str) -> bool:
        return account.endswith("3") and sessions[account][-1].endswith("-s0")

    gateway = CustomProxy(host="gw", port=3128, username="c-{account_id}-s{try}", password="hunter2")
    rotation = night(api, accounts(100), ProxyPool([gateway]))

    assert rotation.summary.complete
    assert sessions == {
        account: [f"c-{account}-s0", f"c-{account}-s1"][: 1 + account.endswith("3")]
        for account in accounts(100)
    }


def test_fault_of_all_proxies_is_waited_out() -> None:
    """All fail for 3 s: no account fails, no proxy is quarantined, and only what workers have is wasted."""
    seen: list[Any] = []
    api = Api(lambda _host, _account, now: DEAD if 1 <= now < 4 else None)

    rotation = night(api, accounts(4_000), pool_of(20), seen=seen)

    assert rotation.summary.complete
    assert not any(isinstance(event, events.ProxyQuarantined) for event in seen)
    [pause] = [event.elapsed for event in seen if isinstance(event, events.PauseEnded)]
    assert pause < 3.5
    assert api.requests.total() - 4_000 < 2 * 2 * (2 * 50 + 250)  # two requests per call in the windows


def test_fault_of_one_tags_pool_pauses_no_account_of_another() -> None:
    ended = {"US": 0.0, "DE": 0.0}

    def fault(host: str, _account: str, now: float) -> str | None:
        ended[host[:2]] = now
        return DEAD if host.startswith("US") and 0.3 <= now < 6 else None

    rotation = night(Api(fault), TAGGED, tagged_pools())

    assert rotation.summary.complete
    assert ended["DE"] < 5 < 6 < ended["US"]


def test_fault_that_outlasts_the_cool_down_ends_the_use_of_the_pool() -> None:
    api = Api(lambda _host, _account, now: DEAD)

    rotation = night(api, accounts(500), pool_of(500, cool_down=1800))

    assert rotation.summary.patched == 0
    assert rotation.summary.without_proxy > 0
    assert api.requests.total() < 2_500


def test_stop_ends_the_wait_for_proxies() -> None:
    async def stop(_dask: FakeDask, rotation: Rotation) -> None:
        async with asyncio.timeout(60):
            while not rotation.proxies_failing:
                await asyncio.sleep(0.1)
        await asyncio.sleep(30)
        rotation.stop()

    rotation = night(
        Api(lambda _host, _account, now: DEAD if now >= 1 else None),
        accounts(4_000),
        pool_of(20),
        meanwhile=stop,
    )

    assert 0 < rotation.summary.patched < 4_000
    assert rotation.summary.elapsed < 60
    assert rotation.summary.states.keys() <= {State.PATCHED, State.SKIPPED}


def test_proxy_that_returns_is_used_again_after_its_cool_down() -> None:
    """2 of 4 dead proxies return after 8 s; each is probed 20 s after it was quarantined."""
    back = 8.0

    def fault(host: str, _account: str, now: float) -> str | None:
        number = int(host[1:])
        return DEAD if number < 2 or (number < 4 and now < back) else None

    api = Api(fault, latency=1.0)

    rotation = night(api, accounts(4_000), pool_of(40, cool_down=20))

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 2
    assert all(20 < api.first[f"p{n}"] < back + 20 for n in (2, 3))
    assert all(api.requests[f"p{n}"] < 40 for n in (0, 1))


def test_quarantine_of_an_earlier_night_holds_and_its_probe_costs_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe of another proxy would be two requests, because an error is often transient."""
    api, memory = Api(lambda host, *_: DEAD if host in {"p0", "p1"} else None), Memory()
    monkeypatch.setattr(time, "time", lambda: 1e6)
    memory.quarantined["p0:3128"] = 1e6 - 3601, 1e6 - 1  # for an hour, which is over
    memory.quarantined["p1:3128"] = 1e6 - 1, 1e6 + 3599

    rotation = night(api, accounts(100), pool_of(4, failovers=0), memory=memory)

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 2
    assert api.requests["p0"] == 1
    assert api.requests["p1"] == 0


def test_credentials_that_are_refused_are_not_sent_again() -> None:
    api = Api(lambda host, *_: CREDENTIALS if host == "p0" else None)

    rotation = night(api, accounts(1), pool_of(2))

    assert rotation.summary.complete
    assert api.requests == {"p0": 1, "p1": 1}


def test_account_of_a_killed_worker_keeps_its_proxy_and_its_place() -> None:
    """The pool counts it once, whichever worker sends it."""

    async def kill(dask: FakeDask, rotation: Rotation) -> None:
        async with asyncio.timeout(60):
            while rotation.summary.patched < 300:
                await asyncio.sleep(0.01)
        dask.kill("w1")

    sent: defaultdict[str, list[str]] = defaultdict(list)

    class Recording(Api):
        async def update(self, account_id: str, change: Any, *rest: Any) -> AccountPatched:
            sent[account_id].append(change.host)
            return await super().update(account_id, change, *rest)

    api = Recording(lambda *_: None)
    rotation = night(api, accounts(1_000), pool_of(10, accounts_per_proxy=100), meanwhile=kill)

    assert rotation.summary.patched == 1_000
    assert {len(hosts) for hosts in sent.values()} == {1, 2}  # twice what was not reported
    assert {len(set(hosts)) for hosts in sent.values()} == {1}


def test_probe_of_a_killed_worker_is_sent_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the quarantine would never end."""
    monkeypatch.setattr(time, "time", lambda: 1e6)
    memory = Memory()
    memory.quarantined["p0:3128"] = 1e6 - 3601, 1e6 - 1

    async def kill(dask: FakeDask, _rotation: Rotation) -> None:
        async with asyncio.timeout(60):
            while not dask.sent["w1"]:
                await asyncio.sleep(0.01)
        dask.kill("w1")

    api = Api(lambda *_: None, latency=1.0)
    rotation = night(api, accounts(1), pool_of(1), memory=memory, meanwhile=kill)

    assert rotation.summary.complete
    assert rotation.summary.quarantined == 0
