"""Helpers that commands share: formatting, output, Ctrl-C, and messages about missing extras."""

import asyncio
import errno
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from types import ModuleType
from typing import Any, BinaryIO, Final

from postpress_async._fields import counted
from postpress_async.errors import ConfigurationError, RotationError
from postpress_async.rotation import State
from postpress_async.rotation._atomic_write import atomic_write


def more_accounts(at_most: int | None) -> str:
    """Format an upper limit of further accounts; None if the limit is not known."""
    return "more accounts" if at_most is None else f"up to {counted(at_most, 'more account')}"


def by_state(states: Counter[State]) -> str:
    """Format the number of accounts in each state, such as ``90 patched, 10 failed``; empty for none."""
    return ", ".join(f"{states[state]:,} {state}" for state in State if states[state])


def listed(words: Sequence[str], most: int = 10) -> str:
    """Format the first *most* words and the number of further ones, such as ``US, DE and 3 more``."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return f"{', '.join(words[:most])}{more}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Format *rows* as the lines of a table with aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def moment(seconds: float) -> str:
    """Format a Unix time in the local time zone, with the name of the zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def write_stderr(text: str) -> None:
    """Write a line to standard error, above the progress bar if there is one."""
    # While rich shows a bar, it replaces sys.stderr. click.echo would bypass it and write into the bar.
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # standard error may be closed
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def discard_stdout() -> None:
    """Redirect standard output to nowhere, so that Python's flush at exit does not fail again."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until exit


TOO_MANY_FILES: Final = "too many open files: raise the limit (ulimit -n)"


def is_file_limit(error: object) -> bool:
    """Whether the process or the system has reached its limit of open files and connections."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def report_file_limit_once(loop: asyncio.AbstractEventLoop) -> None:
    """Report a lack of file descriptors in one sentence, not in a traceback for each failed connection."""
    reported = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal reported
        if is_file_limit(context.get("exception")) and not reported:
            reported = True
            write_stderr(f"postpress-async: {TOO_MANY_FILES}")
        if not reported:  # errors after the limit was reached are consequences of it
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


@contextmanager
def on_interrupt(handler: Callable[[], object]) -> Iterator[None]:
    """Call *handler* in the event loop at each SIGINT and SIGTERM during the block."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def import_extra(module: str, purpose: str, extra: str) -> ModuleType:
    """Import a module of this package that requires an extra; raise `ConfigurationError` without it."""
    try:
        return import_module(f"postpress_async.{module}")
    except ImportError as error:
        message = f"{purpose} requires {error.name}: pip install 'postpress-async[{extra}]'"
        raise ConfigurationError(message) from None


@contextmanager
def open_output(path: str | None) -> Iterator[BinaryIO]:
    """Open *path* for an atomic write; None and ``-`` mean standard output. Raises `RotationError`."""
    if path is not None and path != "-":
        with atomic_write(path) as file:
            yield file
        return
    if sys.stdout is None:
        raise RotationError("standard output is closed; write to a file with -o FILE")
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise RotationError(f"standard output cannot be written ({error.strerror})") from None
