"""
The fixture `postpress_sandbox`, which pytest finds where this package is installed.

pytest imports this module at every start, so what a test does not use is not imported.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postpress_async.sandbox.thread import SandboxThread

_MARKER = (
    "postpress(accounts=None, profile='steady', seed=0, latency=0.0, rate=None, dead_proxies=()): "
    "the arguments of the Sandbox behind the fixture postpress_sandbox"
)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, for ``--strict-markers`` and ``--markers``."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def postpress_sandbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[SandboxThread]":
    """
    The PostPress API on loopback, for this test alone: `postpress_async.sandbox.thread.SandboxThread`.

    POSTPRESS_API_KEY and POSTPRESS_BASE_URL point at it, so a `PostPressSession()` that the tested code
    makes reaches it. ``@pytest.mark.postpress(profile="flaky")`` has arguments for it. It is no asynchronous
    fixture and has a thread of its own, so it works with every plugin that runs asynchronous tests.
    """
    from postpress_async.sandbox import Sandbox
    from postpress_async.sandbox.thread import SandboxThread

    marker = request.node.get_closest_marker("postpress")
    with SandboxThread(Sandbox(**({} if marker is None else marker.kwargs))) as sandbox:
        monkeypatch.setenv("POSTPRESS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("POSTPRESS_BASE_URL", sandbox.url)
        yield sandbox
