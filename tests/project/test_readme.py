"""The README: what it says is run, and what it prints is compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from postpress_async._cli.errors import table
from tests.support import ROOT

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text("utf-8")
CONSOLES = re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
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


# What differs from run to run: how long it took, how fast it was, when, and how much.
_VARIES = re.compile(r"\bin \d+\.\d s|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( \w+)?|some [\d.]+ [KM]B|\d+\.\d s$")


def shown(text: str) -> list[str]:
    return [_VARIES.sub("~", line).rstrip() for line in text.strip().splitlines()]


def is_documented(documented: list[str], printed: list[str]) -> bool:
    """Whether *printed* is what is *documented*, where a line of ``...`` stands for any number of lines."""
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(f"{line}\n") for line in documented)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


@pytest.mark.parametrize("console", CONSOLES, ids=range(1, len(CONSOLES) + 1))
def test_a_command_prints_what_the_readme_says(console: str, tmp_path: Path) -> None:
    """Each line after a ``$`` is run by a shell, in a folder where the ones before it have been run."""
    places = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TZ": "UTC"}
    for block in console.removeprefix("$ ").split("\n$ "):
        command, _, output = block.partition("\n")
        done = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **places},
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
        assert is_documented(shown(output), shown(done.stdout)), f"$ {command}\n{done.stdout}"


def test_every_session_that_is_named_is_there() -> None:
    """Those of nox: a merge of two branches may lose one, and nobody runs it to see."""
    root = ROOT
    names = set(
        re.findall(r"^def (\w+)\(session: nox\.Session", (root / "noxfile.py").read_text(), re.MULTILINE)
    )
    places = [root / "README.md", root / "CHANGELOG.md", root / "noxfile.py"]
    places += [path for path in (root / "tests").rglob("*") if path.suffix in {".py", ".md", ".yml"}]
    named = {name for path in places for name in re.findall(r"`?nox -s (\w+)", path.read_text("utf-8"))}

    assert named - names - {"NAME"} == set()
    assert len(named) > 10
