"""Processes that were forked with a session generate different idempotency keys."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from postpress_async.sandbox import Sandbox

pytestmark = pytest.mark.slow

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

WORKERS, ACCOUNTS = 2, 5

# A web server with preloading does the same: the session is created at import, and worker processes use it.
PROGRAM = """
import asyncio, multiprocessing, sys
from postpress_async import ManagedProxy, PostPressSession

US = ManagedProxy(country="US")
session = PostPressSession()
rotation = session.rotate([(f"acc_{n}", US) for n in range(ACCOUNTS)])

async def call():
    async with session:
        return [await session.update_proxy(f"acc_{n}", US) for n in range(ACCOUNTS)]

async def rotate():
    async with session, rotation:
        return [outcome async for outcome in rotation if outcome.state == "patched"]

def work(_):
    return len(asyncio.run(WORK()))

if __name__ == "__main__":
    workers = [multiprocessing.get_context(sys.argv[1]).Pool(1) for _ in range(WORKERS)]
    print(sum(worker.apply(work, (None,)) for worker in workers))
"""


async def run_workers(sandbox: Sandbox, folder: Path, *, start: str, work: str) -> int:
    """The number of patched accounts, as the worker processes report it."""
    program = PROGRAM.replace("ACCOUNTS", str(ACCOUNTS)).replace("WORKERS", str(WORKERS))
    script = folder / "program.py"
    script.write_text(program.replace("WORK()", f"{work}()"), encoding="utf-8")
    environment = os.environ | {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), start, env=environment, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return int(output)


@pytest.mark.parametrize("start", [pytest.param("fork", marks=needs_fork), "spawn"])
@pytest.mark.parametrize("work", ["call", "rotate"])
async def test_every_change_reported_by_worker_processes_was_applied(sandbox, tmp_path, start, work) -> None:
    """If processes had equal keys, the API would replay the response of the first process to the others."""
    patched = await run_workers(sandbox, tmp_path, start=start, work=work)

    assert patched == WORKERS * ACCOUNTS
    assert sandbox.record.managed_handed_out == WORKERS * ACCOUNTS


@needs_fork
def test_forked_child_and_grandchild_have_their_own_key_prefix() -> None:
    # The program runs in a new process: pytest may have threads, and Python warns about a fork with threads.
    program = """
import os
from postpress_async._call.idempotency import KEYS

print(KEYS.generate(), flush=True)
if (child := os.fork()) == 0:
    print(KEYS.generate(), flush=True)
    if (grandchild := os.fork()) == 0:
        print(KEYS.generate(), flush=True)
    else:
        os.waitpid(grandchild, 0)
else:
    os.waitpid(child, 0)
    print(KEYS.generate(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    keys = done.stdout.split()

    assert len(set(keys)) == 4
    assert len({key.partition("-")[0] for key in keys}) == 3
