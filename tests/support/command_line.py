"""Runs the command line in a process, and writes its input files."""

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from postpress_async.__main__ import main
from postpress_async.sandbox import Sandbox

SANDBOX_KEY = "pp_test_sandbox"
JOURNAL = "fleet.csv.rotation.sqlite3"

PRELOADED = [
    "aiohttp",
    "sqlite3",
    "rich.console",
    "postpress_async._cli",
    "postpress_async.sandbox",
    "postpress_async.rotation.report",
    "tests.support.command_line",
]
TIMEOUT = 60.0

CLOCK_AHEAD = """
import sys, time
true_time, ahead = time.time, float(sys.argv.pop(1))
time.time = lambda: true_time() + ahead
from postpress_async._cli import run
run()
"""
"""A program that runs the command line with a clock that is ahead by the first argument, in seconds."""


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """
    Run the command line with the arguments *words* in a new process.

    The process is forked from one that has imported the package, because starting an interpreter would take
    most of a test's time. With options of `subprocess.run` other than *env*, an interpreter is started.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTPRESS_")}
    environment |= options.pop("env", {})
    arguments = [str(word) for word in words]
    if not options and "forkserver" in multiprocessing.get_all_start_methods():
        return _run_forked(arguments, environment)
    command = [sys.executable, "-W", "error", "-m", "postpress_async", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False, **options
    )


def _run_forked(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = context.Process(
            target=_run_command_line, args=(arguments, environment, os.getcwd(), outputs)
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, TIMEOUT)
        stdout, stderr = (path.read_text("utf-8") for path in outputs)
        return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _run_command_line(
    arguments: list[str], environment: dict[str, str], folder: str, outputs: list[Path]
) -> None:
    """Set the process up as if it had been started by a shell, and run the command line in it."""
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    warnings.simplefilter("error")
    sys.argv = ["python -m postpress_async", *arguments]
    main()


def states(journal: Path) -> dict[str, int]:
    """Return the number of outcomes of each state in *journal*."""
    with closing(sqlite3.connect(journal)) as connection:
        return dict(connection.execute("SELECT state, count(*) FROM outcomes GROUP BY state"))


def write_fleet(folder: Path, count: int, change: str = "US") -> Path:
    path = folder / "fleet.csv"
    path.write_text("account_id,country\n" + "".join(f"acc_{n:06},{change}\n" for n in range(count)))
    return path


def write_pool(folder: Path, count: int) -> Path:
    path = folder / "proxies.txt"
    path.write_text("".join(f"p{n:03}.example.net:8080:user{n}:hunter2-{n}\n" for n in range(count)))
    return path


def environment(sandbox: Sandbox) -> dict[str, str]:
    return {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}


async def arun(sandbox: Sandbox, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Do what `run` does for *sandbox*, without blocking the event loop."""
    return await asyncio.to_thread(run, *words, env=environment(sandbox), **options)
