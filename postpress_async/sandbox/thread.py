"""A sandbox with a thread of its own: for tests, and for programs that have no event loop yet."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from postpress_async.sandbox import Fault, Record, Sandbox, told_of
from postpress_async.sandbox.faults import read_script
from postpress_async.sandbox.server import Outage
from postpress_async.session import PostPressSession

T = TypeVar("T")


class SandboxThread:
    """
    A `Sandbox` that answers for as long as ``with`` lasts, whatever the caller's event loop does.

    It is entered and asked without ``await``, from any thread; what is said of an account holds from the
    next request on.

    Args:
        sandbox: One that was not entered yet; None for one in which every account exists.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox: Final = sandbox or Sandbox()
        self._thread: Final = threading.Thread(target=self._run, name="postpress-sandbox", daemon=True)
        self._open: Final = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """The base URL; RuntimeError before it is entered."""
        return self._sandbox.url

    @property
    def api_key(self) -> str:
        """The key it takes."""
        return self._sandbox.api_key

    @property
    def record(self) -> Record:
        """What it was asked, and what it did. An answer is counted before it is sent."""
        return self._sandbox.record

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {told_of(self._sandbox)}>"

    def session(self, **options: Any) -> PostPressSession:
        """A session for this sandbox; *options* are those of `PostPressSession`."""
        return self._sandbox.session(**options)

    def script(
        self, account_id: str, *answers: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """
        Answer the account's next requests so, one each, and all after them with *then*; see `Sandbox.script`.

        Raises:
            ValueError: There is no such answer, or no such id; nothing is scripted then.
        """
        faults, last = read_script(account_id, answers, then)  # here: the mistake was made in this thread
        self._there(lambda: self._sandbox.script(account_id, *faults, then=last))

    def proxy_of(self, account_id: str) -> Mapping[str, Any] | None:
        """The body last applied to the account; None where none was."""
        return self._sandbox.proxy_of(account_id)

    def sends(self, account_id: str) -> int:
        """How many requests arrived for the account."""
        return self.record.sends(account_id)

    def outage(self, kind: Outage) -> None:
        """Be unwell until `recover`: ``refused``, ``503``, ``503-html``, ``504``, ``silent`` or ``slow``."""
        self._wait_for(self._sandbox.server.outage(kind))

    def recover(self) -> None:
        """End the outage, if there is one."""
        self._wait_for(self._sandbox.server.recover())

    def _there(self, say: Callable[[], T]) -> T:
        async def said() -> T:
            return say()

        return say() if self._is_here() else self._wait_for(said())

    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None or self._loop.is_closed():
            coroutine.close()
            raise RuntimeError("the sandbox does not run: enter it first, with SandboxThread() as sandbox")
        if self._is_here():
            coroutine.close()
            raise RuntimeError("the sandbox's own thread cannot wait for itself: say this from another one")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:  # which has its loop before there is a coroutine to lose
                runner.run(self._serve())
        except BaseException as error:  # handed to whoever entered it
            self._failure = error
        finally:
            self._open.set()

    async def _serve(self) -> None:
        async with self._sandbox:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            self._open.set()
            await self._end.wait()

    def __enter__(self) -> Self:
        if self._thread.ident is not None:
            raise RuntimeError("this sandbox was entered before: make a new one")
        self._thread.start()
        self._open.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is None or self._end is None:
            return
        with suppress(RuntimeError):  # its loop is closed: this was left before, or its thread failed
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
