"""What tests share: fake servers, journals made by hand, virtual time, and the command line as a process."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The repository."""

KEY: Final = "pp_test_key_of_the_tests"
"""An API key."""

DATA: Final = ROOT / "tests" / "data"
"""Input files, as users have them."""
