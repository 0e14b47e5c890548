"""The documentation: its programs are run, its names are all there, and the README is all there."""

import ast
import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import hooks, names

PAGES = Path(hooks.__file__).parent / "pages"
PROGRAM = re.compile(r"^```python\n(.*?)^```\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = sorted(PAGES.rglob("*.md"))
TEXTS = {str(file.relative_to(PAGES)): file.read_text("utf-8") for file in FILES}
PROGRAMS = {
    f"{page}-{number}": (program, output)
    for page, text in TEXTS.items()
    for number, (program, output) in enumerate(PROGRAM.findall(text), 1)
}
README = (hooks.ROOT / "README.md").read_text("utf-8")
PUBLIC = names.public()


def test_every_program_says_what_it_prints() -> None:
    """A program without its output would not be run below."""
    assert len(PROGRAMS) == sum(text.count("```python") for text in TEXTS.values()) > 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_what_its_page_says(name: str, tmp_path: Path) -> None:
    """In this process, since a new one takes longer than most of them; but for one that others import."""
    program, output = PROGRAMS[name]
    file = tmp_path / "program.py"
    file.write_text(program)
    if '__name__ == "__main__"' in program:
        command = [sys.executable, "-W", "error", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        printed = done.stdout + done.stderr
    else:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program, str(file), "exec"), {"__name__": "program"})
        printed = out.getvalue()

    assert printed.rstrip("\n") == output.rstrip("\n")


def test_every_page_has_its_place_and_its_parts() -> None:
    """A page that is not in the contents is not found; and what it takes from elsewhere is there."""
    listed = set(re.findall(r"[\w/]+\.md", (PAGES.parent / "mkdocs.yml").read_text()))

    assert listed == TEXTS.keys()
    for text in TEXTS.values():
        assert hooks.expand(text)


def test_no_section_of_the_readme_is_left_out() -> None:
    """Who reads the site needs no README beside it."""
    pages = "\n".join(hooks.expand(text) for text in TEXTS.values())
    missing = [
        line
        for line in README.partition("\n## ")[2].splitlines()
        if len(line) > 40 and not line.startswith(("errors/", "type  ")) and hooks.expand(line) not in pages
    ]

    assert missing == []  # the table of errors is generated again, with links


# --- Every public name ----------------------------------------------------------------------------

REFERENCE = "\n".join(hooks.expand(text) for page, text in TEXTS.items() if page.startswith("reference/"))
CALLED = {
    f"{name}.{member}" if member else name: made
    for name, value in PUBLIC.items()
    for member, made in [("", value), *((member, vars(value)[member]) for member in names.members(value))]
}


def function_of(value: object) -> object:
    """What is behind a property, or a class's constructor."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, classmethod | staticmethod):
        return value.__func__
    return value


def test_every_public_name_is_in_the_reference() -> None:
    """By the name under which it is imported, or where it is defined."""
    listed = set(re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE))
    # `postpress_async.Scope` is not said: one that is under two names stands there under one.
    missing = [
        name
        for name, value in PUBLIC.items()
        if {name, names.home(name, value)}.isdisjoint(listed)
        and name.rpartition(".")[2] not in {entry.rpartition(".")[2] for entry in listed}
    ]

    assert missing == []


@pytest.mark.parametrize("name", CALLED)
def test_public_names_are_documented(name: str) -> None:
    """What it is, and each error that it raises itself."""
    value = function_of(CALLED[name])
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return  # a type alias says what it is by itself
    text = inspect.getdoc(value) if inspect.isfunction(value) else value.__doc__
    assert text, name
    if inspect.isclass(value):
        return
    node = ast.parse(inspect.cleandoc("\n" + inspect.getsource(value))).body[0]
    raised = set(filter(None, map(raised_by, ast.walk(node))))
    own = {error for error in raised if error.endswith("Error") and error != "AttributeError"}
    module = inspect.getdoc(inspect.getmodule(value)) or ""
    for error in own:
        assert error in text or "Raises" in text or error in module, f"{name} raises {error}"


def raised_by(node: ast.AST) -> str | None:
    made = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    return ast.unparse(node.exc.func) if made else None  # type: ignore[attr-defined]


UNIT = re.compile(r"[Ss]econd|Unix time|[Uu]pper edge of the first wait")


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_numbers_that_are_not_counts_have_a_unit(name: str) -> None:
    """Seconds or milliseconds: a reader must not have to guess."""
    value = PUBLIC[name]
    notes = {
        field: kind
        for field, kind in getattr(value, "__annotations__", {}).items()
        if not field.startswith("_") and "float" in str(kind) and "Callable" not in str(kind)
    }
    text = value.__doc__ or ""
    for field in notes:
        entry = re.search(rf"^ *{field}: .*(?:\n {{12}}.*)*", text, re.MULTILINE)
        description = entry or re.search(rf"[^.]*\*{field}\*[^.]*", text)
        assert description is not None, f"{name}.{field} is not described"
        assert UNIT.search(description[0]), f"{name}.{field} has no unit: {description[0]}"


def run_somewhere() -> str:
    """Every program that a test runs, and what it prints."""
    programs = "".join(f"{program}{output}" for program, output in PROGRAMS.values())
    programs += "".join(re.findall(r"^```(?:python|py|text)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
    return programs + "".join(file.read_text() for file in (hooks.ROOT / "tests/recipes").glob("*.py"))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_is_run(name: str, ran: str) -> None:
    """In a page, in the README or in a recipe; or an example prints it, as the one of all errors does."""
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", ran)


@pytest.fixture(scope="module")
def ran() -> str:
    return run_somewhere()
