"""The doubles, by distance: a stub transport, aioresponses, the sandbox over a real socket."""

import asyncio
import gc
import hashlib
import importlib
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses
from hypothesis import settings

from postpress_async import Pace, PostPressSession, RetryPolicy
from postpress_async.sandbox import Sandbox
from tests.support import KEY

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=1_000)  # random: `nox -s properties`
settings.load_profile("repeatable")

if os.environ.get("POSTPRESS_TEST_LOOP") == "uvloop":

    def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Every asynchronous test runs on uvloop: `nox -s loops`."""
        return {"uvloop": importlib.import_module("uvloop").new_event_loop}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core, and one more if slow tests take part, since they wait for processes."""
    return (os.cpu_count() or 1) + (0 if config.option.markexpr == "not slow" else 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """
    Spare a fast test the cost of the hashes in journals, which is there so that a guess takes 50 ms.

    Not a slow one: other processes, whose hashes cost as much as ever, read its journals.
    """
    if item.get_closest_marker("slow"):
        return (yield)
    with patch.object(hashlib, "scrypt", partial(_cheap_scrypt, hashlib.scrypt)):
        return (yield)


def _cheap_scrypt(scrypt: Callable[..., bytes], *args: Any, **kwargs: Any) -> bytes:
    return scrypt(*args, **{**kwargs, "n": 2})


def pytest_collection_finish() -> None:
    """Spare each garbage collection of the tests the objects that collecting them has made."""
    gc.freeze()


class _Response(ClientResponse):
    """aioresponses 0.7.9 knows nothing of the argument that aiohttp 3.14 requires."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=Mock(), **kwargs)


class _Api(aioresponses):
    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **{"response_class": _Response, **kwargs})


@pytest.fixture(scope="module", params=["session", "lean"])
def transport(request: pytest.FixtureRequest) -> Any:
    """The name of a transport: what a test claims holds for both."""
    return request.param


@pytest.fixture
def api() -> Iterator[aioresponses]:
    """The transport's other end: returns scripted answers, in order."""
    with _Api() as mocked:
        yield mocked


@pytest.fixture
def naps() -> list[float]:
    """The waits of a test's calls, in seconds; none of them was slept."""
    return []


@pytest.fixture
def policy(naps: list[float]) -> RetryPolicy:
    """The default policy, but for its sleep."""

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    return RetryPolicy(sleep=nap)


@pytest.fixture
async def session(policy: RetryPolicy) -> AsyncIterator[PostPressSession]:
    # Its pace learns nothing: a pause of seconds would pass in real time.
    async with PostPressSession(KEY, retry=policy, pace=Pace(adaptive=False)) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one during the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as made:
        yield made
