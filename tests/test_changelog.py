"""The changelog is what a user reads before an upgrade."""

import subprocess
from pathlib import Path

import pytest

import postpress_async
from tests.changelog import FILE, faults, main, untold

CHANGELOG = (Path(__file__).parent.parent / FILE).read_text("utf-8")


def test_the_changelog_is_well_formed() -> None:
    """Its own headings and sentences are all that can be checked in a copy without tags or history."""
    assert faults(CHANGELOG, postpress_async.__version__) == []


def test_a_changelog_that_lacks_a_version_or_a_sentence_is_refused() -> None:
    """A check that lets all pass checks nothing."""
    bad = "# Changelog\n\n## Unreleased\n\n- Half a\nline\n\n## 0.0.9\n\n- All is well.\n"

    assert faults(bad, "0.1.0") == [
        "The heading '0.0.9' is no version with a date.",
        "Version 0.1.0 has no heading.",
        "The entry 'Half a\\nline' does not end as a sentence.",
        "The entry 'Half a\\nline' goes on without its two spaces.",
    ]
    assert faults("# Changelog\n", "0.1.0") == ["The first heading is not Unreleased."]


class Branch:
    """A repository with a package and a changelog, and a branch off its `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q", "-b", "main")
        (folder / "postpress_async").mkdir()
        self.write(FILE, "# Changelog\n\n## Unreleased\n")
        self.commit("The beginning", "postpress_async/pace.py")
        self.git("switch", "-q", "-c", "branch")

    def git(self, *words: str) -> None:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=self.folder, check=True, capture_output=True)

    def write(self, name: str, text: str) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def commit(self, message: str, *changed: str) -> None:
        for name in changed:
            self.write(name, "pass\n")
        self.git("add", ".")
        self.git("commit", "-q", "-m", message)

    def untold(self) -> list[str]:
        return [line.partition(" ")[2] for line in untold(self.folder, "main")]


@pytest.fixture
def branch(tmp_path: Path) -> Branch:
    return Branch(tmp_path)


def test_a_change_of_the_package_wants_an_entry(branch: Branch) -> None:
    """What was forgotten is named, commit by commit; what users never see is not asked for."""
    branch.commit("Tests", "test_pace.py")
    assert branch.untold() == []

    branch.commit("Faster", "postpress_async/pace.py")
    branch.commit("A comment\n\nChangelog: none", "postpress_async/pace.py")
    assert branch.untold() == ["Faster"]

    branch.write(FILE, "\n- Pace is faster.\n")
    assert branch.untold() == []


def test_an_entry_that_was_there_before_is_none(branch: Branch) -> None:
    """Nor is one that `main` got meanwhile, or a heading, or the changelog's older text, mended."""
    branch.commit("Faster", "postpress_async/pace.py")
    branch.write(FILE, "\n## 0.1.0 (2026-11-25)\n")
    branch.commit("A release")
    branch.git("switch", "-q", "main")
    branch.write(FILE, "\n- Somebody else's.\n")
    branch.commit("Another's")
    branch.git("switch", "-q", "branch")

    assert branch.untold() == ["Faster"]


def test_the_refusal_says_what_to_do(branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read by somebody who contributes for the first time."""
    branch.commit("Faster", "postpress_async/pace.py")
    monkeypatch.chdir(branch.folder)

    with pytest.raises(SystemExit, match=r'Faster\nSay under "Unreleased" .*Changelog: none'):
        main("main")
    with pytest.raises(SystemExit, match="git cannot compare with 'trunk': "):
        main("trunk")
    branch.write(FILE, "\n- Pace is faster.\n")
    main("main")
