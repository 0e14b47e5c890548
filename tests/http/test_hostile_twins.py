"""
The hostile network once more, on uvloop and with aiohttp's parser in Python.

Which of them is at work is decided when they are imported: so it takes a process of its own. This is a
part of `test_hostile`; ``nox -s hostile`` runs all of it, each way.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

PART = "idle or chunk or length or closed or reset or greeting or garbage or cancelled"


def test_on_another_loop_with_another_parser_nothing_unasked_is_believed_either() -> None:
    """A program picks its loop, and a machine without a compiler its parser; neither may cost a promise."""
    twin = {"AIOHTTP_NO_EXTENSIONS": "1"}
    if importlib.util.find_spec("uvloop"):  # which Windows has not
        twin["POSTPRESS_TEST_LOOP"] = "uvloop"
    options = ("-q", "-m", "slow", "-n", "0", "-p", "no:cacheprovider", "-k", PART)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/http/test_hostile.py", *options],
        cwd=ROOT,
        env=os.environ | twin,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
