"""The programs and commands of the README print what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from postpress_async.sandbox import SandboxThread
from tests.support import ROOT
from tests.support.documents import README, blocks, programs, run_console

pytestmark = pytest.mark.slow

PROGRAMS = programs(README)
CONSOLES = blocks(README, "console")


def test_readme_has_at_most_8_kib() -> None:
    assert len(README.encode()) <= 8_192


def test_every_program_is_followed_by_its_output() -> None:
    """A program without output would not be run by `test_program_prints_the_output_in_the_readme`."""
    assert len(PROGRAMS) == README.count("```python") > 0


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(1, len(PROGRAMS) + 1))
def test_program_prints_the_output_in_the_readme(program: str, output: str, tmp_path: Path) -> None:
    with SandboxThread() as sandbox:
        environment = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            cwd=tmp_path,
            check=False,
            timeout=60,
        )

    assert (done.stdout, done.stderr) == (output, "")


def test_first_two_commands_install_the_package_and_try_or_test_it() -> None:
    """`.ci/run` runs the second command."""
    try_command, test_command = blocks(README, "sh")[:2]

    assert try_command.endswith(".venv/bin/postpress-async rotate --sandbox\n")
    assert test_command.endswith(".venv/bin/python -m pytest\n")
    assert all(command.startswith("python3 -m venv .venv && ") for command in (try_command, test_command))


@pytest.mark.parametrize("console", CONSOLES, ids=range(1, len(CONSOLES) + 1))
def test_command_prints_the_output_in_the_readme(console: str, tmp_path: Path) -> None:
    run_console(console, tmp_path)


def test_links_lead_to_existing_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)

    assert [target for target in targets if not (ROOT / target).is_file()] == []
    assert len(targets) > 8


def test_nox_sessions_that_texts_name_exist() -> None:
    """Otherwise, a merge may have lost a session."""
    sessions = set(
        re.findall(r"^def (\w+)\(session: nox\.Session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    )
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "noxfile.py", ROOT / ".github/CONTRIBUTING.md"]
    files += [path for path in (ROOT / "tests").rglob("*") if path.suffix in {".py", ".md"}]
    named = {name for path in files for name in re.findall(r"`?nox -s (\w+)", path.read_text("utf-8"))}

    assert named - sessions - {"NAME"} == set()
    assert len(named) > 10
