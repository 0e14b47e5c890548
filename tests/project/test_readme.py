"""The README: its programs and commands are run, and what they print is compared."""

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


def test_it_fits_on_a_screen_and_a_half() -> None:
    assert len(README.encode()) <= 8_192


def test_every_program_has_its_output() -> None:
    """A program without its output would not be run below."""
    assert len(PROGRAMS) == README.count("```python") > 0


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(1, len(PROGRAMS) + 1))
def test_a_program_prints_what_the_readme_says(program: str, output: str, tmp_path: Path) -> None:
    """The environment has the variables of a sandbox, as the README says."""
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


def test_the_first_commands_install_it_and_run_the_tests() -> None:
    """`.ci/run` runs the second, and `test_cli` what the first one runs."""
    first, second = blocks(README, "sh")[:2]

    assert first.endswith(".venv/bin/postpress-async rotate --sandbox\n")
    assert second.endswith(".venv/bin/python -m pytest\n")
    assert all(command.startswith("python3 -m venv .venv && ") for command in (first, second))


@pytest.mark.parametrize("console", CONSOLES, ids=range(1, len(CONSOLES) + 1))
def test_a_command_prints_what_the_readme_says(console: str, tmp_path: Path) -> None:
    run_console(console, tmp_path)


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)

    assert [target for target in targets if not (ROOT / target).is_file()] == []
    assert len(targets) > 8


def test_every_session_that_is_named_exists() -> None:
    """A merge of two branches may lose a session of nox unnoticed."""
    sessions = set(
        re.findall(r"^def (\w+)\(session: nox\.Session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    )
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "noxfile.py", ROOT / ".github/CONTRIBUTING.md"]
    files += [path for path in (ROOT / "tests").rglob("*") if path.suffix in {".py", ".md"}]
    named = {name for path in files for name in re.findall(r"`?nox -s (\w+)", path.read_text("utf-8"))}

    assert named - sessions - {"NAME"} == set()
    assert len(named) > 10
