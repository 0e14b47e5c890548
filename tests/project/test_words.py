"""Texts use plain English, and names are standard terms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import DATA, ROOT

# "is none" must be lower case, because `is None` is Python.
ARCHAIC = re.compile(
    r"\b((?i:whoever|mend(s|ed)?|unwell|(?<!material/)weather|anew|begun with)"
    r"|(is|are) none|that is none|(?i:is|are|was|were) told)\b"
)

REPLACED = """
    CREDIT Deadlines Errand Feed Figures Gate Given Guarded Halts Head Intake KeyHalt LASTING Lifetime Limit
    Line Notes OVER OpenRow OpenRows Outlet PATIENCE ROW Rate Reach Replays SHARE Settler Sign Ticket Turns
    Waits Wishes _NoWire _rehearse _rest deadlines foresight has_news is_clean is_hopeless lifetime
    may_repeat resting rests ticket turns weigh
    """.split()
"""Names that were replaced by standard terms."""

VAGUE = ["told", "said", "given", "came"]
"""Names that do not say what a variable or function holds."""

TEXT_TYPES = {"", ".css", ".html", ".js", ".md", ".py", ".service", ".timer", ".yml"}


def texts() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file, except test data and this file, which has the words."""
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "noxfile.py"]
    for folder in ("postpress_async", "tests", "benchmarks", ".changes", ".github"):
        files += [file for file in (ROOT / folder).rglob("*") if file.is_file() and file.suffix in TEXT_TYPES]
    for file in files:
        name = str(file.relative_to(ROOT))
        if DATA not in file.parents and file != Path(__file__):
            yield name, file.read_text("utf-8")


def archaic_words(text: str) -> list[str]:
    """Return the archaic words of *text*. An underscore counts as a space, so names are searched too."""
    return [match[0] for match in ARCHAIC.finditer(text.replace("_", " "))]


def defined_names(module: str) -> Iterator[str]:
    """Yield the names of functions, classes, parameters, variables and attributes that *module* defines."""
    for node in ast.walk(ast.parse(module)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.arg(arg=name):
                yield name


@pytest.mark.parametrize(
    "text", ["Whoever waits", "a mode that is none", "def test_a_full_disk_is_told(): ..."]
)
def test_archaic_words_are_found(text: str) -> None:
    assert archaic_words(text) != []


@pytest.mark.parametrize("text", ["if status is None:", "icon: material/weather-night", "amended"])
def test_other_words_are_not_archaic(text: str) -> None:
    assert archaic_words(text) == []


def test_every_kind_of_definition_is_found() -> None:
    module = "def a(b, *c, **d):\n    for e in b: self.f = (g := e)\nclass h: ...\nasync def i(): ..."

    assert set(defined_names(module)) == set("abcdefghi")


def test_texts_are_plain_english() -> None:
    assert {name: words for name, text in texts() if (words := archaic_words(text))} == {}


def test_names_are_standard_terms() -> None:
    forbidden = {*REPLACED, *VAGUE}
    found = {name: forbidden & {*defined_names(text)} for name, text in texts() if name.endswith(".py")}

    assert {name: names for name, names in found.items() if names} == {}
