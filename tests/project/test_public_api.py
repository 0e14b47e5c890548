"""Each change of the public API must show in the diff of `tests/data/public-api.txt`."""

from difflib import unified_diff

import pytest

from tests.project.public_api import SNAPSHOT, load_package, public_api


def test_public_api_equals_the_snapshot() -> None:
    """A removed or renamed name breaks users' programs, and a name that was added cannot be removed later."""
    recorded, current = SNAPSHOT.read_text("utf-8"), public_api(load_package())

    if recorded != current:
        diff = "\n".join(unified_diff(recorded.splitlines(), current.splitlines(), lineterm="", n=1))
        pytest.fail(
            "The public API changed. If that is intended, run `python -m tests.project.public_api`, commit "
            f"the file, and describe the change for users in a fragment in .changes:\n{diff}",
            pytrace=False,
        )


def test_removed_method_changes_the_text() -> None:
    package = load_package()
    before = public_api(package).splitlines()
    package.del_member("session.PostPressSession.rotate")

    removed = set(before) - set(public_api(package).splitlines())

    assert [line.partition("(")[0] for line in removed] == ["    rotate"]
