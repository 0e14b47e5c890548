"""
The fixture `postpress_sandbox`, which pytest finds where this package is installed.

pytest imports this module at every start, so what a test does not use is not imported.
"""

from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any

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

    with SandboxThread(Sandbox(**_arguments(request.node, Sandbox))) as sandbox:
        monkeypatch.setenv("POSTPRESS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("POSTPRESS_BASE_URL", sandbox.url)
        yield sandbox


def _arguments(node: pytest.Item, sandbox: type) -> dict[str, Any]:
    marker = node.get_closest_marker("postpress")
    if marker is None:
        return {}
    known = signature(sandbox).parameters
    if marker.args:
        raise pytest.UsageError(
            "@pytest.mark.postpress takes its arguments by name, such as profile='flaky'; "
            f"not {', '.join(map(repr, marker.args))}"
        )
    for name in marker.kwargs:
        if name not in known:
            raise pytest.UsageError(f"@pytest.mark.postpress has no {name!r}: it takes {', '.join(known)}")
    return dict(marker.kwargs)
