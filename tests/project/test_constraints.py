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


def pinned_versions(text: str) -> dict[str, list[str]]:
    """
    Return the pinned versions of each library: one, or one for each Python version.

    A line of another form, such as a URL, fails the test.
    """
    versions: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pin = re.fullmatch(r"([\w.-]+)==([\w.!+]+)( ; .+)?", line)
            assert pin is not None, line
            versions.setdefault(canonicalize_name(pin[1]), []).append(pin[2])
    return versions


def test_every_requirement_is_pinned_at_an_allowed_version() -> None:
    """If this fails, a requirement was added or raised without running `nox -s lock`."""
    versions = pinned_versions(LOCK.read_text("utf-8"))
    wrong = []
    for requirement in requirements():
        pins = versions.get(canonicalize_name(requirement.name), [])
        if not pins or not all(map(requirement.specifier.contains, pins)):
            wrong.append(f"{requirement}: {pins}")

    assert wrong == [], "run: nox -s lock"


def test_all_extras_and_groups_allow_the_same_versions_of_a_library() -> None:
    """Otherwise a dependency group could install, for the tests, a version that an extra forbids."""
    specifiers: dict[str, set[str]] = {}
    for requirement in requirements():
        specifiers.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    different = {name: texts for name, texts in specifiers.items() if len(texts) > 1}

    assert different == {}
