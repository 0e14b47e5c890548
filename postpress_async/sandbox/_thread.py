"""A sandbox in a thread, for tests and for programs without a running event loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self

from postpress_async.sandbox._faults import Fault
from postpress_async.sandbox._sandbox import Sandbox, ServerAccess
from postpress_async.sandbox._server import Outage


class SandboxThread(ServerAccess):
    """
    A `Sandbox` that runs in its own thread during the ``with`` block.

    Its methods are synchronous, can be called from any thread, and affect the next request.

    Args:
        sandbox: A sandbox that was not started yet; None for ``Sandbox()``.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox: Final = sandbox or Sandbox()
        super().__init__(self._sandbox.server)
        self._thread: Final = threading.Thread(target=self._run, name="postpress-sandbox", daemon=True)
        # Without a factory, the runner would set the event loop of the thread that creates the loop.
        self._runner: Final = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop: asyncio.AbstractEventLoop | None = None

    def script(
        self, account_id: str, *responses: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """Append responses for the account's next requests, as `Sandbox.script` does."""
        self._check_running()
        self._sandbox.script(account_id, *responses, then=then)

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
