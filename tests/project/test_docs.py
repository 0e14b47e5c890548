"""The documentation: its programs and commands are run, and it has every public name, option and column."""

import ast
import contextlib
import inspect
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from postpress_async._cli import cli, exit_codes
from postpress_async.rotation._column_names import _PART_NAMES, COLUMNS, column_of, plain_name
from postpress_async.rotation._pool._check import CheckResult
from postpress_async.rotation.journal._schema import OUTCOME_COLUMNS
from tests.docs import names
from tests.support import ROOT
from tests.support.documents import PAGES, README, TEXTS, blocks, programs, run_console

PROGRAMS = {
    f"{page}-{number}": program
    for page, text in TEXTS.items()
    for number, program in enumerate(programs(text), 1)
}
CONSOLES = {
    f"{page}-{number}": console
    for page, text in TEXTS.items()
    for number, console in enumerate(blocks(text, "console"), 1)
}
PUBLIC = names.public()


def test_every_program_has_its_output() -> None:
    """A program without its output would not be run below."""
    assert len(PROGRAMS) == sum(text.count("```python") for text in TEXTS.values()) > 0


def needs_process(program: str) -> bool:
    """Workers of a cluster import the program, and an exporter keeps the standard output of its import."""
    return '__name__ == "__main__"' in program or "ConsoleSpanExporter" in program


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if needs_process(program) else [])
        for name, (program, _) in PROGRAMS.items()
    ],
)
def test_a_program_prints_what_its_page_says(name: str, tmp_path: Path) -> None:
    """In this process if possible, because a new one takes longer."""
    program, output = PROGRAMS[name]
    file = tmp_path / "program.py"
    file.write_text(program)
    if needs_process(program):
        command = [sys.executable, "-W", "error", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        printed = done.stdout + done.stderr
    else:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program, str(file), "exec"), {"__name__": "program"})
        printed = out.getvalue()

    assert printed.rstrip("\n") == output.rstrip("\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSOLES)
def test_a_command_prints_what_its_page_says(name: str, tmp_path: Path) -> None:
    run_console(CONSOLES[name], tmp_path)


def test_every_page_is_in_the_contents() -> None:
    """A page that the contents lack cannot be found."""
    listed = {"index.md"}
    for page, text in TEXTS.items():
        for tree in blocks(text, "{toctree}"):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {str((Path(page).parent / entry).with_suffix(".md")) for entry in entries}

    assert listed == TEXTS.keys()


def test_links_lead_to_pages_and_files() -> None:
    broken = [
        f"{page}: {target}"
        for page, text in TEXTS.items()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        + re.findall(r"^```{(?:literal)?include} (.+)$", text, re.MULTILINE)
        if not (PAGES / page).parent.joinpath(target).is_file()
    ]

    assert broken == []


def test_the_page_on_exit_codes_has_those_of_the_help() -> None:
    documented = re.findall(r"^\| (\d+) \| ([^|]+) \|", TEXTS["reference/exit-codes.md"], re.MULTILINE)

    assert documented == re.findall(r"^  (\d+) +(.+)$", exit_codes.HELP, re.MULTILINE)


def test_the_page_on_the_journal_has_the_columns_of_an_outcome() -> None:
    table = TEXTS["reference/journal.md"].partition("## Table `outcomes`")[2].partition("## Files")[0]

    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == ["run", *OUTCOME_COLUMNS.split()]


def test_the_page_on_json_has_all_results_of_a_check() -> None:
    table = TEXTS["reference/json.md"].partition("## `proxies check --json`")[2]

    assert re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE) == [result.value for result in CheckResult]


def test_the_page_on_columns_has_the_names_that_are_read() -> None:
    fleet, _, lists = TEXTS["reference/columns.md"].partition("## A list of proxies")
    names = {
        column: re.findall(r"`(\w+)`", others)
        for column, others in re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", fleet, re.MULTILINE)
    }
    part_names = {
        column: re.findall(r"`(\w+)`", others)
        for column, others in re.findall(r"^\| `(\w+)` \| (.+) \|$", lists, re.MULTILINE)
    }

    assert tuple(names) == COLUMNS
    assert all(column_of(other) == column for column, others in names.items() for other in others)
    assert {column: tuple(map(plain_name, others)) for column, others in part_names.items()} == _PART_NAMES


def environment_variables(command: click.Command, prefix: str = "POSTPRESS") -> Iterator[str]:
    """The variables of the options of *command* and its subcommands, named as click names them."""
    prefix = command.context_settings.get("auto_envvar_prefix", prefix)
    for option in command.params:
        if isinstance(option, click.Option):
            yield str(option.envvar or f"{prefix}_{option.name}".upper())
    if isinstance(command, click.Group):
        for name, subcommand in command.commands.items():
            yield from environment_variables(subcommand, f"{prefix}_{name}".upper().replace("-", "_"))


def test_variables_that_the_environment_page_names_exist() -> None:
    named = set(re.findall(r"`(POSTPRESS_[A-Z_]+)(?:=\w+)?`", TEXTS["reference/environment.md"]))
    read_without_an_option = {"POSTPRESS_API_KEY", "POSTPRESS_DATABASE_URL", "POSTPRESS_PROXY"}

    assert named - read_without_an_option <= set(environment_variables(cli))
    assert len(named) > len(read_without_an_option)


REFUSALS = {
    *("BadParameter", "ConfigurationError", "FleetError", "JournalError", "JournalNotWritableError"),
    *("NotSentError", "RotationError", "SessionClosedError", "UsageError"),
}
"""Errors whose messages end a command with exit code 2 to 4, or say why a rotation did not send."""


def messages() -> Iterator[tuple[str, str]]:
    """The first words of each message of these errors, up to five, and where it is raised."""
    for file in sorted((ROOT / "postpress_async").rglob("*.py")):
        if {"cluster", "sandbox"} & set(file.parts) or file.name == "pytest_plugin.py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            if ast.unparse(node.func).rpartition(".")[2] in REFUSALS:
                text = node.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                texts = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
                words = next((" ".join(text.split()[:5]) for text in texts if len(text.split()) > 1), "")
                yield words.strip(" .,:;("), f"{file.name}:{node.lineno}"


def test_troubleshooting_has_each_message() -> None:
    """A user searches it for the first words of a message."""
    page = " ".join(TEXTS["troubleshooting.md"].split())

    assert {words: where for words, where in messages() if words not in page} == {}


# --- Every public name ----------------------------------------------------------------------------

REFERENCE = "\n".join(text for page, text in TEXTS.items() if page.startswith("reference/"))
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
    """A name counts by the path of its import or of its definition."""
    listed = set(re.findall(r"^\.\. auto\w+:: (\S+)$", REFERENCE, re.MULTILINE))
    # An object with two names, such as `postpress_async.Scope`, is listed under one of them.
    missing = [
        name
        for name, value in PUBLIC.items()
        if {name, names.home(name, value), getattr(value, "__module__", None)}.isdisjoint(listed)
        and name.rpartition(".")[2] not in {entry.rpartition(".")[2] for entry in listed}
    ]

    assert missing == []


def test_public_names_are_documented() -> None:
    """The docstring says what the name is, and which errors it raises itself."""
    for name, called in CALLED.items():
        value = function_of(called)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue  # a type alias says what it is by itself
        text = inspect.getdoc(value) if inspect.isfunction(value) else value.__doc__
        assert text, name
        if inspect.isclass(value):
            continue
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


def test_numbers_that_are_not_counts_have_a_unit() -> None:
    """Seconds or milliseconds: a reader must not have to guess."""
    fields = [
        (name, value.__doc__ or "", field)
        for name, value in PUBLIC.items()
        if inspect.isclass(value)
        for field, kind in getattr(value, "__annotations__", {}).items()
        if not field.startswith("_") and "float" in str(kind) and "Callable" not in str(kind)
    ]
    assert len(fields) > 10
    for name, text, field in fields:
        entry = re.search(rf"^ *{field}: .*(?:\n {{12}}.*)*", text, re.MULTILINE)
        description = entry or re.search(rf"[^.]*\*{field}\*[^.]*", text)
        assert description is not None, f"{name}.{field} is not described"
        assert UNIT.search(description[0]), f"{name}.{field} has no unit: {description[0]}"


def run_somewhere() -> str:
    """Every program that a test runs, and what it prints."""
    texts = [*TEXTS.values(), README]
    code = "".join(block for text in texts for block in blocks(text, "(?:python|py|text)"))
    return code + "".join(file.read_text() for file in (ROOT / "tests/recipes").glob("*.py"))


def test_public_names_have_an_example_that_is_run() -> None:
    """In a page, in the README or in a recipe; or an example prints it, as the one of all errors does."""
    words = {*re.findall(r"\w+", run_somewhere())}

    assert [name for name in PUBLIC if name.rpartition(".")[2] not in words] == []
