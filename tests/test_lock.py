"""What contributors and CI install is written down: a release elsewhere breaks no change made here."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "tests" / "constraints.txt"


def named() -> list[Requirement]:
    """Each library that pyproject.toml names, for users and for development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    words = list(project["project"]["dependencies"])
    words += [word for extra in extras.values() for word in extra]
    words += [word for group in groups.values() for word in group if isinstance(word, str)]
    return [Requirement(word) for word in words]


def locked(text: str) -> dict[str, str]:
    """The version of each library; a line of another form, such as a URL, is an error."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pinned = re.fullmatch(r"([\w.-]+)==([\w.!+]+)( ; .+)?", line)
            assert pinned is not None, line
            found[pinned[1]] = pinned[2]
    return found


def test_every_library_that_is_named_is_locked_at_a_version_that_is_allowed() -> None:
    """A floor that was raised, or a library that was added, without `nox -s lock` is found here."""
    versions = locked(LOCK.read_text("utf-8"))
    stale = [
        str(wanted)
        for wanted in named()
        if not wanted.specifier.contains(versions.get(canonicalize_name(wanted.name), "0"))
    ]

    assert stale == [], "run: nox -s lock"


def test_a_floor_has_one_place_or_the_same_words_in_each() -> None:
    """The tests of an extra are to run on what the extra allows."""
    floors: dict[str, set[str]] = {}
    for wanted in named():
        floors.setdefault(wanted.name, set()).add(str(wanted.specifier))

    assert {name: words for name, words in floors.items() if len(words) > 1} == {}
