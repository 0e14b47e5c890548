"""A change of the public API shows in the diff of `tests/data/public-api.txt`."""

from difflib import unified_diff

import pytest

from tests.project.public_api import SNAPSHOT, load, public_api


def test_public_api_is_the_recorded_one() -> None:
    """Removing or renaming a public name breaks the programs of users; an added one must be kept."""
    recorded, current = SNAPSHOT.read_text("utf-8"), public_api(load())

    if recorded != current:
        diff = "\n".join(unified_diff(recorded.splitlines(), current.splitlines(), lineterm="", n=1))
        pytest.fail(
            "The public API changed. If that is intended, run `python -m tests.project.public_api`, commit "
            f"the file, and describe the change for users in a fragment in .changes:\n{diff}",
            pytrace=False,
        )


def test_removed_method_changes_the_text() -> None:
    package = load()
    before = public_api(package).splitlines()
    package.del_member("session.PostPressSession.rotate")

    removed = set(before) - set(public_api(package).splitlines())

    assert [line.partition("(")[0] for line in removed] == ["    rotate"]
