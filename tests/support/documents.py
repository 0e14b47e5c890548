"""Programs and commands in the README and the documentation, and what they print."""

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

# What differs from run to run: how long it took, how fast it was, when, and how much.
_VARIES = re.compile(r"\bin \d+\.\d s|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( \w+)?|some [\d.]+ [KM]B|\d+\.\d s$")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of *text* in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def programs(text: str) -> list[tuple[str, str]]:
    """The Python programs of *text*, each with the output that follows it."""
    return re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_console(console: str, folder: Path) -> None:
    """Run each line after a ``$`` by a shell in *folder*, and compare what it prints with the lines below."""
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
        documented, printed = shown(output), shown(done.stdout)
        difference = "\n".join(unified_diff(documented, printed, "documented", "printed", lineterm=""))
        assert is_documented(documented, printed), f"$ {command}\n{difference}"


def shown(text: str) -> list[str]:
    """The lines of *text* without what differs from run to run."""
    return [_VARIES.sub("~", line).rstrip() for line in text.strip().splitlines()]


def is_documented(documented: list[str], printed: list[str]) -> bool:
    """Whether *printed* is what is *documented*, where a line of ``...`` stands for any number of lines."""
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(f"{line}\n") for line in documented)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None
