"""A sandbox in a thread, for tests and for programs without a running event loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Self

from postpress_async.sandbox._faults import Fault
from postpress_async.sandbox._record import Record
from postpress_async.sandbox._sandbox import Sandbox, describe
from postpress_async.sandbox._server import Outage
from postpress_async.session import PostPressSession


class SandboxThread:
    """
    A `Sandbox` that runs in its own thread during the ``with`` block.

    Its methods are synchronous, can be called from any thread, and affect the next request.

    Args:
        sandbox: A sandbox that was not started yet; None for ``Sandbox()``.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox: Final = sandbox or Sandbox()
        self._thread: Final = threading.Thread(target=self._run, name="postpress-sandbox", daemon=True)
        # Without a factory, the runner would set the event loop of the thread that creates the loop.
        self._runner: Final = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """The base URL; raises RuntimeError before the sandbox is started."""
        return self._sandbox.url

    @property
    def api_key(self) -> str:
        """The API key that the sandbox accepts."""
        return self._sandbox.api_key

    @property
    def record(self) -> Record:
        """Counters of what the sandbox received and did. A response is counted before it is sent."""
        return self._sandbox.record

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {describe(self._sandbox)}>"

    def session(self, **options: Any) -> PostPressSession:
        """Create a session for this sandbox; *options* are those of `PostPressSession`."""
        return self._sandbox.session(**options)

    def script(
        self, account_id: str, *responses: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """Append responses for the account's next requests, as `Sandbox.script` does."""
        self._check_running()
        self._sandbox.script(account_id, *responses, then=then)

    def proxy_of(self, account_id: str) -> Mapping[str, Any] | None:
        """The request body last applied to the account, password included; None if no change was applied."""
        return self._sandbox.proxy_of(account_id)

    def sends(self, account_id: str) -> int:
        """Number of requests received for the account."""
        return self.record.sends(account_id)

    def outage(self, kind: Outage) -> None:
        """Simulate an outage until `recover`. See `Sandbox.outage` for the kinds."""
        self._wait_for(lambda: self._sandbox.outage(kind))

    def recover(self) -> None:
        """End the current outage, if any."""
        self._wait_for(self._sandbox.recover)

    def _check_running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._loop.is_closed():
            raise RuntimeError("the sandbox is not running; start it with: with SandboxThread() as sandbox")
        return self._loop

    def _wait_for(self, start: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a coroutine in the sandbox's thread."""
        loop = self._check_running()
        if threading.current_thread() is self._thread:
            raise RuntimeError("the sandbox's thread cannot wait for itself; call this from another thread")
        asyncio.run_coroutine_threadsafe(start(), loop).result()

    def _run(self) -> None:
        with self._runner:  # closes the event loop at the end
            self._runner.get_loop().run_forever()

    def __enter__(self) -> Self:
        if self._thread.ident is not None:
            raise RuntimeError("this sandbox was started before; create a new one")
        self._loop = self._runner.get_loop()
        self._thread.start()
        try:
            self._wait_for(self._sandbox.__aenter__)
        except BaseException:
            self._stop(self._loop)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._wait_for(self._sandbox.__aexit__)
            finally:
                self._stop(self._loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
