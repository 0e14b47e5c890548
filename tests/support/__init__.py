"""What tests share: fake servers, prepared journals, virtual time, and the command line in a process."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The root folder of the repository."""

KEY: Final = "pp_test_key_of_the_tests"
"""The API key of most tests."""

DATA: Final = ROOT / "tests" / "data"
"""Input files, as users have them."""

HOSTILE_TEXT: Final = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}{% raw %}</svg><!--"
)
"""A text that would add elements or run scripts if it were inserted into a page without escaping."""
