"""
Runs a part of `test_hostile` on uvloop and with aiohttp's pure-Python parser.

A new process is needed, because aiohttp chooses the parser when it is imported. ``nox -s hostile`` runs all
of `test_hostile` with each event loop and parser.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

TESTS = "idle or chunk or length or closed or reset or greeting or garbage or cancelled"
"""Tests of faults whose handling differs between event loops or parsers."""


def test_hostile_servers_on_uvloop_with_the_pure_python_parser() -> None:
    variant = {"AIOHTTP_NO_EXTENSIONS": "1"}
    if importlib.util.find_spec("uvloop"):  # not on Windows
        variant["POSTPRESS_TEST_LOOP"] = "uvloop"
    options = ("-q", "-m", "slow", "-n", "0", "-p", "no:cacheprovider", "-k", TESTS)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/http/test_hostile.py", *options],
        cwd=ROOT,
        env=os.environ | variant,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
