"""
An event loop in virtual time that owns its threads too.

A journal commits in a thread of its own, every 50 ms. In real time that would make a sequence of runs slow,
and each of its repetitions different. Here a thread runs only while the loop waits for it, and its waits are
timers of the loop. So one thing happens at a time, in an order that a seed
repeats, and no wait takes real time.
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
    """A run did not end: nothing can wake it any more, or its time limit has passed."""


class SteppedLoop(VirtualLoop):
    """
    A loop in virtual time that runs the functions of `run_in_executor` as stepped threads.

    Args:
        real_limit: Real seconds after which the loop gives up with `HangError`. Virtual time cannot bound a
            loop that is never idle.
    """

    def __init__(self, real_limit: float = 60.0) -> None:
        super().__init__()
        self._until = time.monotonic() + real_limit
        self._turns = 0

    def _run_once(self) -> None:
        self._turns += 1
        if self._turns % 4096 == 0 and time.monotonic() > self._until:
            raise HangError("the loop is busy without end")
        super()._run_once()  # type: ignore[misc] # typeshed does not list it

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                self.call_soon(_settle, future, None, error)
            else:
                self.call_soon(_settle, future, result, None)

        Thread(target=work).start()
        return future


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class Thread:
    """`threading.Thread` in steps: it runs while the loop waits, up to its next wait or its end."""

    _current: "Thread | None" = None

    def __init__(self, *, target: Callable[[], object], name: str | None = None, daemon: bool = True) -> None:
        self._target = target
        self._turn = threading.Semaphore(0)
        self._loops_turn = threading.Semaphore(0)
        self._real = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = Event()

    @classmethod
    def current(cls) -> "Thread":
        """The thread that runs now; RuntimeError in the loop's own, which must never wait."""
        if cls._current is None:
            raise RuntimeError("the event loop's own thread waits for another one")
        return cls._current

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._real.start()
        self.step()

    def step(self) -> None:
        """Called by the loop: let the thread run, and wait for it."""
        if self._ended.is_set():
            return
        Thread._current = self
        self._turn.release()
        self._loops_turn.acquire()
        Thread._current = None

    def pause(self) -> None:
        """Called by the thread: let the loop run until it calls `step`."""
        self._loops_turn.release()
        self._turn.acquire()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._target()
        finally:
            self._ended.set()
            self._loops_turn.release()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)


class Event:
    """`threading.Event` between the loop and stepped threads; its timeouts are virtual seconds."""

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
        thread, loop = Thread.current(), _loop_of_the_step()
        entry = (thread, loop)
        self._waiting.append(entry)
        timer = None if timeout is None else loop.call_later(max(timeout, 0.0), self._expire, entry)
        thread.pause()
        if timer is not None:
            timer.cancel()
        return self._is_set

    def _expire(self, entry: tuple[Thread, asyncio.AbstractEventLoop]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            entry[0].step()


_running: list[asyncio.AbstractEventLoop] = []


def _loop_of_the_step() -> asyncio.AbstractEventLoop:
    # `get_running_loop` knows the loop only in the loop's own thread.
    return _running[-1]


def now() -> float:
    """Virtual seconds of the loop that runs; 0 if none does. Also for its threads."""
    return _running[-1].time() if _running else 0.0


class _SteppedThreading:
    """What the journal's writer finds in place of the module `threading`."""

    Thread = Thread
    Event = Event

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Let no task outlive *loop*; what then still waits can only wait for a thread that hangs too."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()


def run(main: Coroutine[Any, Any, T], real_limit: float = 60.0) -> T:
    """
    The result of *main* in a `SteppedLoop`, with the journal's threads stepped by it.

    Raises:
        HangError: Nothing is ready and no timer is set, or *real_limit* has passed.
    """
    loop = SteppedLoop(real_limit)
    _running.append(loop)
    try:
        with patch.object(_writer, "threading", _SteppedThreading()):
            try:
                return loop.run_until_complete(main)
            except DeadLockError:
                raise HangError("nothing is ready and no timer is set") from None
            finally:
                _cancel_all(loop)
    finally:
        _running.pop()
        loop.close()
