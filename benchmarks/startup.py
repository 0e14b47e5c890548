"""
What does a program's start cost?

Each figure is the median CPU time of several new interpreters, for importing aiohttp, for importing this
package after it, and for simple commands::

    python -m benchmarks.startup [--runs 15]
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Final

IMPORTS: Final = """
import sys, time
began = time.process_time()
import aiohttp
between, before = time.process_time(), set(sys.modules)
import postpress_async
ended = time.process_time()
new = set(sys.modules) - before
ours = sum(name.split(".")[0] == "postpress_async" for name in new)
print(between - began, ended - between, ours, len(new) - ours)
"""

COMMANDS: Final = {
    "python -c pass": ["-c", "pass"],
    "postpress-async --help": ["-m", "postpress_async", "--help"],
    "postpress-async --version": ["-m", "postpress_async", "--version"],
    "postpress-async errors": ["-m", "postpress_async", "errors"],
}


def _cpu(words: Sequence[str], cache: str) -> tuple[float, str]:
    """The CPU time in seconds and the output of an interpreter, whose bytecode is in *cache*."""
    # Without this cache, an editable install may be compiled each time.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": cache}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def _print_row(name: str, seconds: Sequence[float]) -> None:
    low, high = min(seconds) * 1e3, max(seconds) * 1e3
    print(f"{name:34} {statistics.median(seconds) * 1e3:8.1f} ms ({low:.1f} to {high:.1f})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description="See the module.")
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args(arguments).runs
    with TemporaryDirectory() as cache:
        _cpu(["-c", IMPORTS], cache)  # compiles the modules
        rows = [[float(word) for word in _cpu(["-c", IMPORTS], cache)[1].split()] for _ in range(runs)]
        _print_row("import aiohttp", [row[0] for row in rows])
        _print_row("import postpress_async after it", [row[1] for row in rows])
        print(
            f"{'modules loaded after aiohttp':34} {rows[0][2]:8.0f} of this package, {rows[0][3]:.0f} other\n"
        )
        for name, words in COMMANDS.items():
            _cpu(words, cache)
            _print_row(name, [_cpu(words, cache)[0] for _ in range(runs)])
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("postpress-async", "aiohttp", "attrs", "tenacity")
    )
    print(f"\nCPU time, {runs} runs. Python {platform.python_version()}, {versions}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
