"""What a recipe printed in its test is what the documentation shows: the same file, compared."""

from collections.abc import Callable
from pathlib import Path

import pytest

OUTPUTS = Path(__file__).parent / "outputs"


@pytest.fixture
def shows() -> Callable[[str, list[str]], None]:
    """Compare the lines with ``outputs/NAME.txt``, which the page of the recipe shows."""

    def shows(name: str, lines: list[str]) -> None:
        assert lines == (OUTPUTS / f"{name}.txt").read_text("utf-8").splitlines(), "\n".join(lines)

    return shows
