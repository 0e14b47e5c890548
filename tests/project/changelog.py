"""
Checks the changelog. `python -m tests.project.changelog BASE` fails if the package changed without an entry.

If users do not notice a change of `postpress_async`, such as a new comment, its commit message has the line
`Changelog: none`.
"""

import re
import subprocess
import sys
from pathlib import Path

FILE = "CHANGELOG.md"


def faults(text: str, version: str) -> list[str]:
    """The faults in a changelog's form, as sentences; *version* is the package's version."""
    sentences = []
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if headings[:1] != ["Unreleased"]:
        sentences.append("The first heading is not Unreleased.")
    sentences += [
        f"The heading {heading!r} is not a version with a date."
        for heading in headings[1:]
        if not re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading)
    ]
    if len(headings) > 1 and version not in {heading.split(" ")[0] for heading in headings[1:]}:
        sentences.append(f"Version {version} has no heading.")
    for item in re.split(r"^- ", text.partition("\n## ")[2], flags=re.MULTILINE)[1:]:
        entry = item.partition("\n## ")[0].strip()
        if not entry.endswith((".", ":")):
            sentences.append(f"The entry {entry[:40]!r} does not end as a sentence.")
        if any(line and not line.startswith("  ") for line in entry.splitlines()[1:]):
            sentences.append(f"The entry {entry[:40]!r} has a line that is not indented by two spaces.")
    return sentences


def commits_without_entry(repository: Path, base: str) -> list[str]:
    """
    The commits since *base* that change the package, unless the branch has an entry.

    An entry is a line added to the changelog, committed or not. One entry is enough for a whole branch.

    Raises:
        subprocess.CalledProcessError: git does not know *base*.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=repository, capture_output=True, text=True, check=True
        ).stdout

    fork = git("merge-base", base, "HEAD").strip()
    if re.search(r"^\+(- |  )\S", git("diff", "--unified=0", fork, "--", FILE), re.MULTILINE):
        return []
    silent = ["--invert-grep", "--extended-regexp", "--grep", "^Changelog: none$"]
    return git("log", "--format=%h %s", *silent, f"{fork}..HEAD", "--", "postpress_async").splitlines()


def main(base: str) -> None:
    try:
        commits = commits_without_entry(Path(), base)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"git cannot compare with {base!r}: {error.stderr.strip()}") from None
    if commits:
        lines = "\n  ".join(commits)
        raise SystemExit(
            f"{FILE} has no new entry since {base}, although these commits changed the package:\n  {lines}\n"
            'Add an entry under "Unreleased" for what users will notice. If there is nothing to notice, add '
            "this line to the commit message: Changelog: none"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
