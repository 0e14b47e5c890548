"""Errors of an observer do not affect calls, and do not fill the log."""

import asyncio
import logging

import pytest

from postpress_async import ManagedProxy
from postpress_async._safe_observer import SafeObserver
from postpress_async.sandbox import Sandbox


def broken(event: object) -> None:
    raise RuntimeError(f"a mistake about {event}")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "postpress_async.events"]


def test_repeated_errors_of_an_observer_are_logged_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    """Five tracebacks an account, in a night of a million, are gigabytes; none at all is a riddle."""
    observer = SafeObserver[int](broken)
    for number in range(1, 1_235):
        observer(number)

    assert messages(caplog) == [
        f"an observer of postpress_async raised on int; it raised {count} times so far"
        for count in (1, 10, 100, 1000)
    ]
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in errors] == [f"a mistake about {count}" for count in (1, 10, 100, 1000)]


def test_observer_does_not_swallow_keyboard_interrupt() -> None:
    """Ctrl-C may come while an observer runs."""

    def interrupted(_event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeObserver(interrupted)(1)


def test_a_cancellation_that_an_observer_raises_is_its_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """An observer awaits nothing, so it cannot be where its task is cancelled: it read a cancelled future."""

    def cancelled(_event: object) -> None:
        raise asyncio.CancelledError

    SafeObserver[int](cancelled)(1)

    assert messages(caplog) == ["an observer of postpress_async raised on int; it raised 1 times so far"]


async def test_a_rotation_with_a_broken_observer_says_so_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All that one session tells counts as one: its calls, its rotations, its pauses."""
    caplog.set_level(logging.ERROR)
    changes = {f"acc_{number}": ManagedProxy(country="US") for number in range(50)}
    async with Sandbox() as sandbox, sandbox.session(on_event=broken) as session:
        async with session.rotate(changes) as rotation:
            summary = await rotation.run()

    assert summary.patched == len(changes)
    assert len(messages(caplog)) == 3  # of 250: the first, the tenth, the hundredth
