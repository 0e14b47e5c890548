"""The changelog is what a user reads before an upgrade."""

import re
from pathlib import Path

import postpress_async

CHANGELOG = (Path(__file__).parent.parent / "CHANGELOG.md").read_text("utf-8")


def faults(text: str, version: str) -> list[str]:
    """What is wrong with a changelog, a sentence each; *version* is the package's own."""
    found = []
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if headings[:1] != ["Unreleased"]:
        found.append("The first heading is not Unreleased.")
    found += [
        f"The heading {word!r} is no version with a date."
        for word in headings[1:]
        if not re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", word)
    ]
    if len(headings) > 1 and version not in {word.split(" ")[0] for word in headings[1:]}:
        found.append(f"Version {version} has no heading.")
    for entry in re.split(r"^- ", text.partition("\n## ")[2], flags=re.MULTILINE)[1:]:
        said = entry.partition("\n## ")[0].strip()
        if not said.endswith((".", ":")):
            found.append(f"The entry {said[:40]!r} does not end as a sentence.")
        if any(line and not line.startswith("  ") for line in said.splitlines()[1:]):
            found.append(f"The entry {said[:40]!r} goes on without its two spaces.")
    return found


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
