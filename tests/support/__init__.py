"""What tests share: fake servers, prepared journals, virtual time, and the command line in a process."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The root folder of the repository."""

KEY: Final = "pp_test_key_of_the_tests"
"""The API key of most tests."""

DATA: Final = ROOT / "tests" / "data"
"""Test data, such as input files in the formats that users have."""
