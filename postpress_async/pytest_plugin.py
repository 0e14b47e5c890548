"""
The pytest fixture `postpress_sandbox`, available wherever this package is installed.

pytest imports this module at every start, so the sandbox is only imported when a test uses the fixture.
"""

from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from postpress_async.sandbox import SandboxThread

_MARKER = (
    "postpress(accounts=None, profile='steady', seed=0, latency=0.0, rate=None, dead_proxies=()): "
    "arguments of the Sandbox that the fixture postpress_sandbox starts"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker for ``--strict-markers`` and ``--markers``."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def postpress_sandbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[SandboxThread]":
    """
    A local fake of the PostPress API for this test: `postpress_async.sandbox.SandboxThread`.

    POSTPRESS_API_KEY and POSTPRESS_BASE_URL are set, so `PostPressSession()` in the tested code uses it.
    ``@pytest.mark.postpress(profile="flaky")`` passes arguments to the `Sandbox`. The fixture runs in its own
    thread and is not asynchronous, so it works with every plugin for asynchronous tests.
    """
    from postpress_async.sandbox import Sandbox, SandboxThread

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
            "@pytest.mark.postpress accepts only keyword arguments such as profile='flaky', "
            f"got {', '.join(map(repr, marker.args))}"
        )
    for name in marker.kwargs:
        if name not in known:
            raise pytest.UsageError(
                f"arguments of @pytest.mark.postpress must be among {', '.join(known)}, got {name!r}"
            )
    return dict(marker.kwargs)
