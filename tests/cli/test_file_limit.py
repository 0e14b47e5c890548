"""A low limit of open files is reported in a sentence, or the run completes within the limit."""

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


def run(limit: int, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a limit of open files and connections."""
    return subprocess.run(
        [sys.executable, "-m", "postpress_async", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )


async def test_rotation_completes_with_a_limit_of_20_open_files(sandbox: Sandbox, tmp_path: Path) -> None:
    """Connections use all file descriptors that are left, but closing the journal needs another one."""
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("account_id,country\n" + "".join(f"acc_{number},US\n" for number in range(100)))
    settings = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(
        run, 20, "rotate", fleet, "--journal", tmp_path / "run.sqlite3", **settings
    )

    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert sandbox.record.managed_handed_out == 100


def test_limit_too_low_for_an_event_loop_is_reported_in_a_sentence(tmp_path: Path) -> None:
    """The standard streams use 3 of the 6 file descriptors, and an event loop needs more than 3."""
    done = run(6, "rotate", "--sandbox", "--journal", tmp_path / "run.sqlite3")

    assert (done.returncode, done.stderr) == (3, SENTENCE)


def reported(capsys: pytest.CaptureFixture[str], *exceptions: Exception) -> str:
    """What is written to standard error if asyncio reports these exceptions."""

    async def report() -> None:
        loop = asyncio.get_running_loop()
        report_file_limit_once(loop)
        for exception in exceptions:
            context: dict[str, Any] = {"message": "socket.accept() out of system resource"}
            loop.call_exception_handler({**context, "exception": exception})

    asyncio.run(report())
    return capsys.readouterr().err


def test_file_limit_of_a_server_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncio would print thousands of tracebacks, of the first error and of its consequences."""
    assert reported(capsys, EMFILE, EMFILE, ValueError("Invalid file descriptor: -1")) == SENTENCE


def test_other_errors_of_the_event_loop_are_logged_as_usual(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Other errors are bugs of the package, so their traceback is needed."""
    assert reported(capsys, ValueError("a mistake")) == ""
    assert "a mistake" in caplog.text
