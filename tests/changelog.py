"""
What is wrong with the changelog; `python -m tests.changelog BASE` asks for an entry of what changed since.

A change of `postpress_async` that users do not notice, such as a comment, says so by a line of its own in its
commit message: `Changelog: none`.
"""

import re
import subprocess
import sys
from pathlib import Path

FILE = "CHANGELOG.md"


def faults(text: str, version: str) -> list[str]:
    """What is wrong with a changelog's form, a sentence each; *version* is the package's own."""
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


def untold(repository: Path, base: str) -> list[str]:
    """
    The commits since *base* that change the package, where none has an entry; without those that need none.

    An entry is a line added to the changelog, committed or not. A branch is told as a whole.

    Raises:
        subprocess.CalledProcessError: *base* is nothing that git knows.
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
        commits = untold(Path(), base)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"git cannot compare with {base!r}: {error.stderr.strip()}") from None
    if commits:
        told = "\n  ".join(commits)
        raise SystemExit(
            f"Since {base}, {FILE} has no new line, and the package was changed by\n  {told}\n"
            'Say under "Unreleased" what a user will notice, or in the commit message, on a line of its own: '
            "Changelog: none"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
