"""`tests/constraints.txt` pins the version of each library, so that a new release does not fail the tests."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

LOCK = ROOT / "tests" / "constraints.txt"


def requirements() -> list[Requirement]:
    """Return all requirements of the package, its extras and the dependency groups in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    texts = list(project["project"]["dependencies"])
    texts += [text for name, extra in extras.items() if name != "all" for text in extra]
    texts += [text for group in groups.values() for text in group if isinstance(text, str)]
    return [Requirement(text) for text in texts]


def pinned_versions(text: str) -> dict[str, str]:
    """Return the pinned version of each library. A line of another form, such as a URL, fails the test."""
    versions = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pin = re.fullmatch(r"([\w.-]+)==([\w.!+]+)( ; .+)?", line)
            assert pin is not None, line
            versions[pin[1]] = pin[2]
    return versions


def test_every_requirement_is_pinned_at_an_allowed_version() -> None:
    """Otherwise, a requirement was added or raised without `nox -s lock`."""
    versions = pinned_versions(LOCK.read_text("utf-8"))
    stale = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
    ]

    assert stale == [], "run: nox -s lock"


def test_all_extras_and_groups_allow_the_same_versions_of_a_library() -> None:
    """Tests of an extra must use a version that the extra allows."""
    specifiers: dict[str, set[str]] = {}
    for requirement in requirements():
        specifiers.setdefault(requirement.name, set()).add(str(requirement.specifier))
    different = {name: texts for name, texts in specifiers.items() if len(texts) > 1}

    assert different == {}
