"""A low limit of open files: each failure is a sentence, and all sent accounts are recorded."""

import asyncio
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from postpress_async._cli.terminal import report_file_limit_once
from postpress_async.sandbox import Sandbox

pytestmark = pytest.mark.slow

SENTENCE = "postpress-async: too many open files: raise the limit (ulimit -n)\n"
EMFILE = OSError(errno.EMFILE, "Too many open files")


def run(limit: int, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, which may have *limit* files and connections open."""
    return subprocess.run(
        [sys.executable, "-m", "postpress_async", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )


async def test_a_rotation_within_a_low_limit_ends_without_a_traceback(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Connections take every descriptor, and closing the journal needed one more."""
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("account_id,country\n" + "".join(f"acc_{number},US\n" for number in range(100)))
    settings = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(
        run, 20, "rotate", fleet, "--journal", tmp_path / "run.sqlite3", **settings
    )

    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert sandbox.record.managed_handed_out == 100


def test_a_limit_that_leaves_no_event_loop_is_a_sentence(tmp_path: Path) -> None:
    """Three for the standard streams, and asyncio needs three more and one to open them with."""
    done = run(6, "rotate", "--sandbox", "--journal", tmp_path / "run.sqlite3")

    assert (done.returncode, done.stderr) == (3, SENTENCE)


def complaints(capsys: pytest.CaptureFixture[str], *exceptions: Exception) -> str:
    """What is written when asyncio reports these, one after the other."""

    async def report() -> None:
        loop = asyncio.get_running_loop()
        report_file_limit_once(loop)
        for exception in exceptions:
            context: dict[str, Any] = {"message": "socket.accept() out of system resource"}
            loop.call_exception_handler({**context, "exception": exception})

    asyncio.run(report())
    return capsys.readouterr().err


def test_a_server_that_cannot_accept_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncio prints thousands of tracebacks, of that and of what follows from it."""
    assert complaints(capsys, EMFILE, EMFILE, ValueError("Invalid file descriptor: -1")) == SENTENCE


def test_another_failure_of_the_event_loop_is_reported_as_ever(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Such a failure is a bug of the package, so the traceback is needed."""
    assert complaints(capsys, ValueError("a mistake")) == ""
    assert "a mistake" in caplog.text
