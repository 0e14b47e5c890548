"""What tests share: fake servers, journals made by hand, virtual time, and the command line as a process."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The repository."""

KEY: Final = "pp_test_key_of_the_tests"
"""An API key."""

DATA: Final = ROOT / "tests" / "data"
"""Input files, as users have them."""

HOSTILE_TEXT: Final = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}{% raw %}</svg><!--"
)
"""A text that would add elements or run scripts if it were inserted into a page without escaping."""
