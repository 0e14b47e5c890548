"""The README: what it says is run, and what it prints is compared."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from postpress_async.cli.catalogue import table

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_program_says_what_it_prints() -> None:
    """A program without its output would not be run below."""
    assert len(PROGRAMS) == README.count("```python") > 0


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(1, len(PROGRAMS) + 1))
def test_a_program_prints_what_the_readme_says(program: str, output: str) -> None:
    """The first screen cannot rot."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.stdout, done.stderr) == (output, "")


def test_the_table_of_errors_is_the_classes() -> None:
    assert "```text\n" + "".join(f"{line}\n" for line in table()) + "```" in README


def test_the_commands_are_those_that_there_are() -> None:
    """The first screen's two commands; `.ci/run` runs the second, and `test_cli` what the first one runs."""
    first, second = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[:2]

    assert first.endswith(".venv/bin/postpress-async rotate --sandbox\n")
    assert second.endswith(".venv/bin/python -m pytest\n")
    assert all(command.startswith("python3 -m venv .venv && ") for command in (first, second))
