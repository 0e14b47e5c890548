"""
How much CPU time does importing the package take, and how much do simple commands?

Each figure is the median of several new interpreters. The package is imported after aiohttp, whose import is
measured separately::

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
start = time.process_time()
import aiohttp
middle, modules = time.process_time(), set(sys.modules)
import postpress_async
end = time.process_time()
new = set(sys.modules) - modules
own = sum(name.split(".")[0] == "postpress_async" for name in new)
print(middle - start, end - middle, own, len(new) - own)
"""
"""Prints the seconds of both imports, and the number of new modules of this package and of others."""

COMMANDS: Final = {
    "python -c pass": ["-c", "pass"],
    "postpress-async --help": ["-m", "postpress_async", "--help"],
    "postpress-async --version": ["-m", "postpress_async", "--version"],
    "postpress-async errors": ["-m", "postpress_async", "errors"],
}


def _cpu(words: Sequence[str], cache: str) -> tuple[float, str]:
    """Run an interpreter that keeps its bytecode in *cache*, and return its CPU seconds and output."""
    # Without bytecode, the modules would be compiled each time.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
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
