"""Compares the output of each recipe's test with the file that the documentation shows."""

from collections.abc import Callable
from pathlib import Path

import pytest

OUTPUTS = Path(__file__).parent / "outputs"


@pytest.fixture
def assert_output() -> Callable[[str, list[str]], None]:
    """A function that compares lines with ``outputs/NAME.txt``, which the recipe's page shows."""

    def assert_output(name: str, lines: list[str]) -> None:
        assert lines == (OUTPUTS / f"{name}.txt").read_text("utf-8").splitlines(), "\n".join(lines)

    return assert_output
