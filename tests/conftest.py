"""
Fixtures of all tests, with three replacements for the API.

From the least to the most realistic: a stub of the transport (`tests.support.stubbed_call`), aioresponses
(`api`), and the sandbox over a real socket (`sandbox`).
"""

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
        """Run every asynchronous test on uvloop, as `nox -s loops` does."""
        return {"uvloop": importlib.import_module("uvloop").new_event_loop}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker per core. If slow tests run, one more, because they mostly wait for other processes."""
    return (os.cpu_count() or 1) + (0 if config.option.markexpr == "not slow" else 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """
    Make the scrypt hashes in journals cheap in fast tests.

    A hash takes 50 ms on purpose, so that a guess is expensive. Slow tests keep these hashes, because other
    processes read their journals.
    """
    if item.get_closest_marker("slow"):
        return (yield)
    with patch.object(hashlib, "scrypt", partial(_cheap_scrypt, hashlib.scrypt)):
        return (yield)


def _cheap_scrypt(scrypt: Callable[..., bytes], *args: Any, **kwargs: Any) -> bytes:
    return scrypt(*args, **{**kwargs, "n": 2})


def pytest_collection_finish() -> None:
    """Exclude the objects that pytest created so far from garbage collections, which makes them faster."""
    gc.freeze()


class _Response(ClientResponse):
    """A response with the argument that aiohttp 3.14 requires and aioresponses 0.7.9 does not pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=Mock(), **kwargs)


class _Api(aioresponses):
    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **{"response_class": _Response, **kwargs})


@pytest.fixture(scope="module", params=["session", "lean"])
def transport(request: pytest.FixtureRequest) -> Any:
    """The name of a transport. A test with this fixture runs once for each transport."""
    return request.param


@pytest.fixture
def api() -> Iterator[aioresponses]:
    """A mock of the API that returns scripted responses, in order."""
    with _Api() as mocked:
        yield mocked


@pytest.fixture
def naps() -> list[float]:
    """The backoffs of a test's calls, in seconds. No time passes for them."""
    return []


@pytest.fixture
def policy(naps: list[float]) -> RetryPolicy:
    """The default policy with a sleep that only records its seconds in `naps`."""

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    return RetryPolicy(sleep=nap)


@pytest.fixture
async def session(policy: RetryPolicy) -> AsyncIterator[PostPressSession]:
    # Not adaptive, because a pause of the circuit breaker would pass in real time.
    async with PostPressSession(KEY, retry=policy, pace=Pace(adaptive=False)) as session:
        yield session


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory during the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox
