"""Workers that are connected but cannot carry out calls, on a fake of Dask, in virtual time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from postpress_async.cluster import _worker
from postpress_async.errors import (
    ClusterError,
    ConfigurationError,
    ConnectError,
    PostPressError,
)
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Rotation
from tests.support.cluster_world import wait_until
from tests.support.fake_dask import (
    LATENCY,
    US,
    FakeDask,
    FakeWorker,
    Script,
    accounts,
    rotate,
    rotation_of,
)
from tests.support.virtual_loop import run

pytestmark = pytest.mark.usefixtures("fake_dask")


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("no API key"),
        ClusterError("the worker has postpress-async 0, and the command has 1"),
    ],
    ids=["no key", "another version"],
)
def test_calls_of_a_worker_that_cannot_open_its_session_go_to_the_others(error: PostPressError) -> None:
    dask = FakeDask("w1", "w2")
    dask.setup_errors["w1"] = error

    rotation, _ = rotate(dask, accounts(200))

    assert rotation.summary.patched == 200
    assert dask.sent == {"w2": 200}


def test_rotation_ends_if_no_worker_can_open_its_session() -> None:
    dask = FakeDask("w1")
    dask.setup_errors["w1"] = ConfigurationError("no API key: set POSTPRESS_API_KEY")

    with pytest.raises(ClusterError, match="no usable worker \\(w1: no API key: set POSTPRESS_API_KEY\\)"):
        rotate(dask, accounts(10))


def test_worker_with_another_version_of_the_package_cannot_carry_out_calls() -> None:
    async def main() -> PostPressError | None:
        plugin = _worker.SessionPlugin("token", {}, False)
        plugin._version = "0.0.1"  # type: ignore[misc]
        plugin.setup(FakeWorker(FakeDask(), "w1"))
        return plugin.problem

    assert "install the same version" in str(run(main()))


def test_error_of_the_retry_strategy_ends_the_rotation() -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError, match="division by zero"):
        rotate(FakeDask("w1", script=fail), accounts(10))


class TwoPartsError(Exception):
    """An error that can be pickled but not unpickled, because `args` has only one part."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_error_of_the_retry_strategy_that_cannot_be_unpickled_ends_the_rotation() -> None:
    async def fail(worker: FakeWorker, *_: object) -> None:
        if worker.dask.sent["w1"] < 20:  # an upper bound, so that the test ends if it fails
            raise TwoPartsError("bad", "strategy")

    with pytest.raises(RuntimeError, match="TwoPartsError: bad strategy"):
        rotate(FakeDask("w1", script=fail), accounts(1))


def test_account_whose_result_cannot_be_read_is_sent_once_by_each_worker() -> None:
    async def fail(worker: FakeWorker, *_: object) -> None:
        if worker.dask.sent.total() < 20:  # an upper bound, so that the test ends if it fails
            raise ZeroDivisionError

    dask = FakeDask("w1", "w2", script=fail)
    dask.loses_results = True
    with pytest.raises(ClusterError, match="w2: ModuleNotFoundError: No module named 'strategy'"):
        rotate(dask, accounts(1))

    assert dask.sent == {"w1": 1, "w2": 1}


def test_task_that_cannot_be_submitted_ends_the_rotation() -> None:
    """Otherwise the calls of its shard would never end."""

    async def main() -> None:
        dask = FakeDask("w1")
        async with asyncio.timeout(60), rotation_of(dask, accounts(300)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.submit_error = RuntimeError("the client is closed")
            await rotation.run()

    with pytest.raises(ClusterError, match="w1: RuntimeError: the client is closed"):
        run(main())


def test_shards_of_a_worker_without_the_plugin_go_to_the_others() -> None:
    async def main() -> FakeDask:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(200)) as rotation:
            dask.workers["w1"].remove_plugin()
            await rotation.run()
            dask.workers["w1"].restore_plugin()  # because the end of the rotation closes it
        assert rotation.summary.patched == 200
        return dask

    assert run(main()).sent == {"w2": 200}


def test_rotation_ends_if_the_shards_of_the_only_worker_raise_an_os_error() -> None:
    """An example is a stale file handle on a network file system from which Dask imports the package."""

    async def fail(_: object) -> None:
        raise OSError(116, "Stale file handle")

    async def main() -> None:
        dask = FakeDask("w1")
        async with asyncio.timeout(60), rotation_of(dask, accounts(10)) as rotation:
            [plugin] = dask.workers["w1"].plugins.values()
            plugin.run = fail
            await rotation.run()

    with pytest.raises(ClusterError, match=r"w1: OSError: .*Stale file handle"):
        run(main())


@pytest.mark.parametrize("stop", [False, True], ids=["a new key is stored", "the rotation is stopped"])
def test_worker_with_a_failed_shard_still_gets_instructions(stop: bool) -> None:
    """The calls of its other shards wait until their new keys are stored, or until they are stopped."""
    shard_has_failed = asyncio.Event()

    async def wait_for_instruction(
        worker: FakeWorker, account_id: str, _change: object, keys: Any, hooks: Any
    ) -> None:
        if account_id == "acc_0":
            await shard_has_failed.wait()
            while stop and not hooks.waits.ended:
                await asyncio.sleep(0.1)
            await keys.renew()

    dask = FakeDask("w1", script=wait_for_instruction)

    async def changes() -> AsyncIterator[tuple[str, ProxyChange]]:
        yield "acc_0", US
        await wait_until(lambda: dask.sent["w1"])
        dask.workers["w1"].remove_plugin()
        yield "acc_1", US
        await wait_until(lambda: len(dask.shard_sizes) == 2)
        dask.workers["w1"].restore_plugin()
        dask.join("w2")
        await wait_until(lambda: dask.sent["w2"])
        shard_has_failed.set()

    async def main() -> Rotation:
        async with asyncio.timeout(100), rotation_of(dask, changes()) as rotation:
            if stop:
                await shard_has_failed.wait()
                rotation.stop()
            await rotation.run()
        return rotation

    assert run(main()).summary.patched == 2


def unreachable_from(*addresses: str) -> Script:
    """An API to which the workers at *addresses* cannot connect."""

    async def connect(
        worker: FakeWorker, account_id: str, _change: object, _keys: object, hooks: Any
    ) -> None:
        await asyncio.sleep(LATENCY)
        if worker.address not in addresses:
            return
        for attempts in range(3):
            error = ConnectError("no connection to api.example.com:443")
            error.attempts = tuple(Attempt(n, 1e9, LATENCY) for n in range(attempts))
            hooks.on_attempt_failed(error)
            await asyncio.sleep(1.0)
        raise error

    return connect


def test_rotation_halts_if_no_worker_can_connect_to_the_api() -> None:
    dask = FakeDask("w1", "w2", script=unreachable_from("w1", "w2"))

    rotation, _ = rotate(dask, accounts(100), halt="never")

    assert rotation.summary.halted is not None
    assert rotation.summary.halted.startswith("no connection to api.example.com:443")


def test_rotation_continues_if_only_one_worker_cannot_connect_to_the_api() -> None:
    dask = FakeDask("w1", "w2", script=unreachable_from("w1"))

    rotation, _ = rotate(dask, accounts(100), halt="never")

    assert rotation.summary.halted is None
