"""Finds programs and commands in the README and the documentation, and checks what they print."""

import os
import re
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

from tests.support import ROOT

README = (ROOT / "README.md").read_text("utf-8")
PAGES = ROOT / "tests" / "docs" / "pages"
TEXTS = {str(file.relative_to(PAGES)): file.read_text("utf-8") for file in sorted(PAGES.rglob("*.md"))}
"""The text of each page, by its path."""

# Output that differs between runs: durations, times and sizes.
_VARIES = re.compile(r"\bin \d+\.\d s|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( \w+)?|some [\d.]+ [KM]B|\d+\.\d s$")


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of *text* in *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def programs(text: str) -> list[tuple[str, str]]:
    """Return the Python programs of *text*, each with the output that is documented after it."""
    return re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_console(console: str, folder: Path) -> None:
    """Run the command after each ``$`` in *folder*, and check that it prints the lines below it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TZ": "UTC"}
    for block in console.removeprefix("$ ").split("\n$ "):
        command, _, output = block.partition("\n")
        done = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=folder,
            check=False,
            timeout=60,
        )
        documented, printed = comparable_lines(output), comparable_lines(done.stdout)
        difference = "\n".join(unified_diff(documented, printed, "documented", "printed", lineterm=""))
        assert is_documented(documented, printed), f"$ {command}\n{difference}"


def comparable_lines(text: str) -> list[str]:
    """Return the lines of *text*, with ``~`` instead of what differs between runs."""
    return [_VARIES.sub("~", line).rstrip() for line in text.strip().splitlines()]


def is_documented(documented: list[str], printed: list[str]) -> bool:
    """Return whether *printed* matches *documented*, in which ``...`` matches any number of lines."""
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(f"{line}\n") for line in documented)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None
