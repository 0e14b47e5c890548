"""No public name is lost, and none is added, unseen."""

import pytest

from tests.project import public_api


def test_the_public_api_is_what_was_written_down() -> None:
    """Whoever removes or renames a name breaks a program of somebody's; the diff of the text shows it."""
    then, now = public_api.SNAPSHOT.read_text("utf-8"), public_api.public_api()

    if then != now:
        before, after = public_api.placed(then), public_api.placed(now)
        changes = [f"- {line}" for line in before if line not in after]
        changes += [f"+ {line}" for line in after if line not in before]
        pytest.fail(
            "The public API changed. If it was meant, run `python -m tests.project.public_api`, commit the "
            "file, and say in CHANGELOG.md what a user notices:\n" + "\n".join(changes),
            pytrace=False,
        )


def test_a_lost_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that would not change with the code guards nothing."""
    whole = public_api.placed(public_api.public_api())
    monkeypatch.delattr("postpress_async.session.PostPressSession.rotate")

    lost = set(whole) - set(public_api.placed(public_api.public_api()))

    assert [line.partition("(")[0] for line in lost] == ["postpress_async.session, PostPressSession: rotate"]
