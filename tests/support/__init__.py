"""What tests share: fake servers, journals made by hand, virtual time, and the command line as a process."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The repository."""

DATA: Final = ROOT / "tests" / "data"
"""Input files, as users have them."""
