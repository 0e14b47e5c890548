"""No public name is lost, and none is added, unseen."""

import difflib

import pytest

from tests import public_api


def test_the_public_api_is_what_was_written_down() -> None:
    """Whoever removes or renames a name breaks a program of somebody's; the diff of the text shows it."""
    then, now = public_api.SNAPSHOT.read_text("utf-8"), public_api.public_api()

    if then != now:
        changes = [
            line
            for line in difflib.unified_diff(then.splitlines(), now.splitlines(), lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        pytest.fail(
            "The public API changed. If it was meant, run `python -m tests.public_api`, commit the file, and "
            "say in CHANGELOG.md what a user notices:\n" + "\n".join(changes),
            pytrace=False,
        )


def test_a_lost_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that would not change with the code guards nothing."""
    whole = public_api.public_api()
    monkeypatch.delattr("postpress_async.session.PostPressSession.rotate")

    lost = set(whole.splitlines()) - set(public_api.public_api().splitlines())

    assert [line.split("(")[0].strip() for line in lost] == ["rotate"]
