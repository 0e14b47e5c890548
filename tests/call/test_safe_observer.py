"""Exceptions of an observer do not affect calls, and do not fill the log."""

import asyncio
import logging

import pytest

from postpress_async import ManagedProxy
from postpress_async._safe_observer import SafeObserver
from postpress_async.sandbox import Sandbox


def broken(event: object) -> None:
    raise RuntimeError(f"a bug with {event}")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "postpress_async.events"]


def test_only_the_first_tenth_hundredth_exception_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A traceback for each event of a million accounts would take gigabytes."""
    observer = SafeObserver[int](broken)
    for number in range(1, 1_235):
        observer(number)

    assert messages(caplog) == [
        f"an observer of postpress_async raised on int; it raised {count} times so far"
        for count in (1, 10, 100, 1000)
    ]
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in errors] == [f"a bug with {count}" for count in (1, 10, 100, 1000)]


def test_observer_does_not_swallow_keyboard_interrupt() -> None:
    """Ctrl-C may come while an observer runs."""

    def interrupted(_event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeObserver(interrupted)(1)


def test_cancelled_error_of_an_observer_is_logged_like_other_exceptions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An observer awaits nothing, so its task was not cancelled: it may have read a cancelled future."""

    def cancelled(_event: object) -> None:
        raise asyncio.CancelledError

    SafeObserver[int](cancelled)(1)

    assert messages(caplog) == ["an observer of postpress_async raised on int; it raised 1 times so far"]


async def test_exceptions_are_counted_for_all_events_of_a_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    changes = {f"acc_{number}": ManagedProxy(country="US") for number in range(50)}
    async with Sandbox() as sandbox, sandbox.session(on_event=broken) as session:
        async with session.rotate(changes) as rotation:
            summary = await rotation.run()

    assert summary.patched == len(changes)
    assert len(messages(caplog)) == 3  # of 250 exceptions: the first, the tenth and the hundredth
