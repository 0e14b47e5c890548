"""The form of the changelog, and the check that asks a branch for an entry."""

import subprocess
from pathlib import Path

import pytest

import postpress_async
from tests.project.changelog import FILE, commits_without_entry, faults, main
from tests.support import ROOT

CHANGELOG = (ROOT / FILE).read_text("utf-8")


def test_the_changelog_is_well_formed() -> None:
    """A copy of the source may have no history, so only headings and sentences are checked."""
    assert faults(CHANGELOG, postpress_async.__version__) == []


def test_a_malformed_changelog_is_rejected() -> None:
    """Each fault is reported."""
    malformed = "# Changelog\n\n## Unreleased\n\n- Half a\nline\n\n## 0.0.9\n\n- All is well.\n"

    assert faults(malformed, "0.1.0") == [
        "The heading '0.0.9' is not a version with a date.",
        "Version 0.1.0 has no heading.",
        "The entry 'Half a\\nline' does not end as a sentence.",
        "The entry 'Half a\\nline' has a line that is not indented by two spaces.",
    ]
    assert faults("# Changelog\n", "0.1.0") == ["The first heading is not Unreleased."]


class Branch:
    """A repository with a package and a changelog, on a branch that forks from `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q", "-b", "main")
        (folder / "postpress_async").mkdir()
        self.write(FILE, "# Changelog\n\n## Unreleased\n")
        self.commit("The beginning", "postpress_async/pace.py")
        self.git("switch", "-q", "-c", "branch")

    def git(self, *words: str) -> None:
        config = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *config, *words], cwd=self.folder, check=True, capture_output=True)

    def write(self, name: str, text: str) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def commit(self, message: str, *changed: str) -> None:
        for name in changed:
            self.write(name, "pass\n")
        self.git("add", ".")
        self.git("commit", "-q", "-m", message)

    def commits_without_entry(self) -> list[str]:
        return [line.partition(" ")[2] for line in commits_without_entry(self.folder, "main")]


@pytest.fixture
def branch(tmp_path: Path) -> Branch:
    return Branch(tmp_path)


def test_a_change_of_the_package_requires_an_entry(branch: Branch) -> None:
    """Commits outside the package, and commits that say `Changelog: none`, require no entry."""
    branch.commit("Tests", "test_pace.py")
    assert branch.commits_without_entry() == []

    branch.commit("Faster", "postpress_async/pace.py")
    branch.commit("A comment\n\nChangelog: none", "postpress_async/pace.py")
    assert branch.commits_without_entry() == ["Faster"]

    branch.write(FILE, "\n- Pace is faster.\n")
    assert branch.commits_without_entry() == []


def test_only_the_branch_s_own_entries_count(branch: Branch) -> None:
    """Neither headings nor new entries of `main` count."""
    branch.commit("Faster", "postpress_async/pace.py")
    branch.write(FILE, "\n## 0.1.0 (2026-11-25)\n")
    branch.commit("A release")
    branch.git("switch", "-q", "main")
    branch.write(FILE, "\n- An entry of another branch.\n")
    branch.commit("Another branch")
    branch.git("switch", "-q", "branch")

    assert branch.commits_without_entry() == ["Faster"]


def test_the_message_says_what_to_do(branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new contributor needs no other instructions."""
    branch.commit("Faster", "postpress_async/pace.py")
    monkeypatch.chdir(branch.folder)

    with pytest.raises(SystemExit, match=r'Faster\nAdd an entry under "Unreleased".*Changelog: none'):
        main("main")
    with pytest.raises(SystemExit, match="git cannot compare with 'trunk': "):
        main("trunk")
    branch.write(FILE, "\n- Pace is faster.\n")
    main("main")
