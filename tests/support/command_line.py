"""The command line as a process, and the files that its tests give it."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from postpress_async.sandbox import Sandbox

SANDBOX_KEY = "pp_test_sandbox"
JOURNAL = "fleet.csv.rotation.sqlite3"


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, as a user's shell runs it."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("POSTPRESS_")}
    environment |= options.pop("env", {})
    command = [sys.executable, "-W", "error", "-m", "postpress_async", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False, **options
    )


def states(journal: Path) -> dict[str, int]:
    connection = sqlite3.connect(journal)
    found = dict(connection.execute("SELECT state, count(*) FROM outcomes GROUP BY state"))
    connection.close()
    return found


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
    return await asyncio.to_thread(run, *words, env=environment(sandbox), **options)
