"""
An event loop in virtual time that also controls the threads of the journal.

A journal commits in a thread of its own, every 50 ms. In real time, a sequence of runs would be slow, and no
two repetitions would be the same. Here, a thread runs only while the loop waits for it, and its waits are
timers of the loop. So only one of them runs at a time, the same seed gives the same order, and waits take no
real time.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from unittest.mock import patch

from postpress_async.rotation.journal import _writer
from tests.support.virtual_loop import DeadLockError, VirtualLoop

T = TypeVar("T")


class HangError(Exception):
    """A run did not end: it waits for ever, or its time limit has passed."""


class SteppedLoop(VirtualLoop):
    """
    A loop in virtual time that runs the functions of `run_in_executor` as stepped threads.

    Args:
        real_limit: Real seconds after which the loop raises `HangError`. A virtual limit does not suffice,
            because virtual time does not advance in a loop that is always busy.
    """

    def __init__(self, real_limit: float = 60.0) -> None:
        super().__init__()
        self._real_deadline = time.monotonic() + real_limit
        self._iterations = 0

    def _run_once(self) -> None:
        self._iterations += 1
        # Not in each iteration, because reading the clock takes time.
        if self._iterations % 4096 == 0 and time.monotonic() > self._real_deadline:
            raise HangError("the loop is still busy at its real time limit")
        super()._run_once()  # type: ignore[misc] # typeshed does not list it

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                self.call_soon(_set_exception, future, error)
            else:
                self.call_soon(_set_result, future, result)

        Thread(target=work).start()
        return future


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.cancelled():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.cancelled():
        future.set_exception(error)


class Thread:
    """A `threading.Thread` that runs in steps. A step ends at the next wait of the thread, or at its end."""

    _current: "Thread | None" = None

    def __init__(self, *, target: Callable[[], object], name: str | None = None, daemon: bool = True) -> None:
        self._target = target
        self._may_run = threading.Semaphore(0)
        self._step_ended = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = Event()

    @classmethod
    def current(cls) -> "Thread":
        """The thread that runs now. Raises `RuntimeError` in the loop's own thread, which must never wait."""
        if cls._current is None:
            raise RuntimeError("the event loop's own thread waits for another one")
        return cls._current

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._thread.start()
        self.step()

    def step(self) -> None:
        """Called by the loop: let the thread run, and wait until it pauses or ends."""
        if self._ended.is_set():
            return
        Thread._current = self
        self._may_run.release()
        self._step_ended.acquire()
        Thread._current = None

    def pause(self) -> None:
        """Called by the thread: let the loop run until it calls `step`."""
        self._step_ended.release()
        self._may_run.acquire()

    def _run(self) -> None:
        self._may_run.acquire()
        try:
            self._target()
        finally:
            self._ended.set()
            self._step_ended.release()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)


class Event:
    """A `threading.Event` for the loop and its stepped threads. Timeouts are in virtual seconds."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[tuple[Thread, asyncio.AbstractEventLoop]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for thread, loop in waiting:
            loop.call_soon(thread.step)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_set:
            return True
        thread, loop = Thread.current(), _running_loops[-1]  # a thread cannot call `get_running_loop`
        waiter = (thread, loop)
        self._waiting.append(waiter)
        timer = None if timeout is None else loop.call_later(max(timeout, 0.0), self._expire, waiter)
        thread.pause()
        if timer is not None:
            timer.cancel()
        return self._is_set

    def _expire(self, waiter: tuple[Thread, asyncio.AbstractEventLoop]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            thread, _ = waiter
            thread.step()


_running_loops: list[asyncio.AbstractEventLoop] = []


def now() -> float:
    """The virtual time of the loop that runs, also in its threads; 0 if no loop runs."""
    return _running_loops[-1].time() if _running_loops else 0.0


class _SteppedThreading:
    """Replaces the module `threading` in the writer of the journal."""

    Thread = Thread
    Event = Event

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks, so that none outlives *loop*."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()


def run(main: Coroutine[Any, Any, T], real_limit: float = 60.0) -> T:
    """
    Run *main* in a `SteppedLoop` that controls the threads of the journal, and return its result.

    Raises:
        HangError: No callback is ready and no timer is set, or *real_limit* seconds have passed.
    """
    loop = SteppedLoop(real_limit)
    _running_loops.append(loop)
    try:
        with patch.object(_writer, "threading", _SteppedThreading()):
            try:
                return loop.run_until_complete(main)
            except DeadLockError:
                raise HangError("no callback is ready and no timer is set") from None
            finally:
                _cancel_all(loop)
    finally:
        _running_loops.pop()
        loop.close()
