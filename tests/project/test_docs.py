"""The examples of the documentation print what the pages say, and the pages list every public name."""

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
CONSOLES = {page: "".join(consoles) for page, text in TEXTS.items() if (consoles := blocks(text, "console"))}
PUBLIC = names.public()


def test_every_program_is_followed_by_its_output() -> None:
    """A program without output would not be run by `test_program_prints_the_output_in_its_page`."""
    assert len(PROGRAMS) == sum(text.count("```python") for text in TEXTS.values()) > 0


def needs_own_process(program: str) -> bool:
    """Workers of a cluster import the program, and an exporter writes to the `sys.stdout` at its import."""
    return '__name__ == "__main__"' in program or "ConsoleSpanExporter" in program


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if needs_own_process(program) else [])
        for name, (program, _) in PROGRAMS.items()
    ],
)
def test_program_prints_the_output_in_its_page(name: str, tmp_path: Path) -> None:
    program, output = PROGRAMS[name]
    file = tmp_path / "program.py"
    file.write_text(program)
    if needs_own_process(program):
        command = [sys.executable, "-W", "error", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        printed = done.stdout + done.stderr
    else:  # in this process, which is faster
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program, str(file), "exec"), {"__name__": "program"})
        printed = out.getvalue()

    assert printed.rstrip("\n") == output.rstrip("\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", CONSOLES)
def test_commands_print_the_output_in_their_page(page: str, tmp_path: Path) -> None:
    """All commands of a page run in one folder, as a reader runs them."""
    run_console(CONSOLES[page], tmp_path)


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index.md"}
    for page, text in TEXTS.items():
        for tree in blocks(text, "{toctree}"):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {str((Path(page).parent / entry).with_suffix(".md")) for entry in entries}

    assert listed == TEXTS.keys()


def test_links_and_includes_lead_to_existing_files() -> None:
    broken = []
    for page, text in TEXTS.items():
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        targets += re.findall(r"^```{(?:literal)?include} (.+)$", text, re.MULTILINE)
        folder = (PAGES / page).parent
        broken += [f"{page}: {target}" for target in targets if not (folder / target).is_file()]

    assert broken == []


def test_links_have_the_syntax_of_markdown() -> None:
    """Sphinx shows a link to an undefined label, such as `[text][label]`, as it is written."""
    code = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
    wrong = {page: re.findall(r"\]\[\w.*?\]", code.sub("code", text)) for page, text in TEXTS.items()}

    assert {page: links for page, links in wrong.items() if links} == {}


def test_exit_codes_page_has_the_exit_codes_of_the_help() -> None:
    documented = re.findall(r"^\| (\d+) \| ([^|]+) \|", TEXTS["reference/exit-codes.md"], re.MULTILINE)

    assert documented == re.findall(r"^  (\d+) +(.+)$", exit_codes.HELP, re.MULTILINE)


def test_journal_page_has_the_columns_of_outcomes() -> None:
    table = TEXTS["reference/journal.md"].partition("## Table `outcomes`")[2].partition("## Files")[0]

    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == ["run", *OUTCOME_COLUMNS.split()]


def test_json_page_has_all_results_of_a_proxy_check() -> None:
    table = TEXTS["reference/json.md"].partition("## `proxies check --json`")[2]

    assert re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE) == [result.value for result in CheckResult]


def test_columns_page_has_all_accepted_names() -> None:
    fleet, _, lists = TEXTS["reference/columns.md"].partition("## A list of proxies")
    names_in_fleets = {
        column: re.findall(r"`(\w+)`", other_names)
        for column, other_names in re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", fleet, re.MULTILINE)
    }
    names_in_lists = {
        column: tuple(map(plain_name, re.findall(r"`(\w+)`", other_names)))
        for column, other_names in re.findall(r"^\| `(\w+)` \| (.+) \|$", lists, re.MULTILINE)
    }

    assert tuple(names_in_fleets) == COLUMNS
    for column, other_names in names_in_fleets.items():
        assert {column_of(name) for name in other_names} == {column}
    assert names_in_lists == _PART_NAMES


CONNECTION = ["API_KEY_FILE", "BASE_URL", "TRANSPORT", "TRUST_ENV", "NO_IDEMPOTENCY"]
"""The options whose variable is the same in all commands, without ``POSTPRESS_``."""


def environment_variables(command: click.Command, prefix: str = "POSTPRESS") -> Iterator[tuple[str, str]]:
    """
    For each option of *command* and its subcommands: its variable, and the variable named after the option.

    Click names the variable after the parameter unless the option sets a variable.
    """
    prefix = command.context_settings.get("auto_envvar_prefix", prefix)
    for option in command.params:
        if isinstance(option, click.Option) and (option.envvar or option.allow_from_autoenv):
            name = max(option.opts, key=len).removeprefix("--").replace("-", "_").upper()
            expected = f"{'POSTPRESS' if name in CONNECTION else prefix}_{name}"
            yield str(option.envvar or f"{prefix}_{option.name}".upper()), expected
    if isinstance(command, click.Group):
        for name, subcommand in command.commands.items():
            yield from environment_variables(subcommand, f"{prefix}_{name}".upper().replace("-", "_"))


def test_variables_are_named_after_their_options() -> None:
    variables = list(environment_variables(cli))

    assert [variable for variable, _ in variables] == [expected for _, expected in variables]


def test_variables_on_the_environment_page_exist() -> None:
    named = set(re.findall(r"`(POSTPRESS_[A-Z_]+)(?:=\w+)?`", TEXTS["reference/environment.md"]))
    read_without_an_option = {"POSTPRESS_API_KEY", "POSTPRESS_DATABASE_URL", "POSTPRESS_PROXY"}

    assert named - read_without_an_option <= {variable for variable, _ in environment_variables(cli)}
    assert len(named) > len(read_without_an_option)


QUOTED_ERRORS = {
    *("BadParameter", "ConfigurationError", "FleetError", "JournalError", "JournalNotWritableError"),
    *("NotSentError", "RotationError", "SessionClosedError", "UsageError"),
}
"""Errors whose messages users see if a command ends with exit code 2 to 4, or a rotation sends nothing."""


def first_words(message: ast.expr) -> str:
    """Return up to five words from the first constant part of *message* that has several words."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    for part in parts:
        if isinstance(part, ast.Constant) and len(words := str(part.value).split()) > 1:
            return " ".join(words[:5]).strip(" .,:;(")
    return ""


def messages() -> Iterator[tuple[str, str]]:
    """Yield the first words of each message of `QUOTED_ERRORS`, and the line that creates the error."""
    for file in sorted((ROOT / "postpress_async").rglob("*.py")):
        if {"cluster", "sandbox"} & set(file.parts) or file.name == "pytest_plugin.py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                called = ast.unparse(node.func).rpartition(".")[2]
                if called in QUOTED_ERRORS:
                    yield first_words(node.args[0]), f"{file.name}:{node.lineno}"


def test_troubleshooting_page_has_each_message() -> None:
    page = " ".join(TEXTS["troubleshooting.md"].split())

    assert {words: line for words, line in messages() if words not in page} == {}


# --- Public names ---------------------------------------------------------------------------------

REFERENCE = "\n".join(text for page, text in TEXTS.items() if page.startswith("reference/"))


def test_every_public_name_is_in_the_reference() -> None:
    listed = set(re.findall(r"^\.\. auto\w+:: (\S+)$", REFERENCE, re.MULTILINE))
    # The reference may list an object under another path, such as that of the module that defines it.
    listed_names = {path.rpartition(".")[2] for path in listed}
    missing = [
        path
        for path, value in PUBLIC.items()
        if path.rpartition(".")[2] not in listed_names and getattr(value, "__module__", None) not in listed
    ]

    assert missing == []


def public_functions_and_classes() -> Iterator[tuple[str, object]]:
    """Yield the public classes, functions, methods and properties by path."""
    for path, value in PUBLIC.items():
        yield path, value
        for name in names.members(value):
            member = vars(value)[name]
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, classmethod | staticmethod):
                member = member.__func__
            yield f"{path}.{name}", member


def test_every_public_function_and_class_has_a_docstring() -> None:
    missing = [
        path
        for path, value in public_functions_and_classes()
        if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__
    ]

    assert missing == []


def raised_errors(function: object) -> set[str]:
    """Return the names of the errors that *function* itself creates and raises."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))  # type: ignore[arg-type]
    raised = {
        ast.unparse(node.exc.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    return {name for name in raised if name.endswith("Error") and name != "AttributeError"}


def test_docstrings_name_the_errors_that_functions_raise() -> None:
    """The docstring of the function or of its module names the error, or has a section "Raises"."""
    missing = []
    for path, function in public_functions_and_classes():
        if inspect.isfunction(function):
            text = inspect.getdoc(function) or ""
            module_text = inspect.getdoc(inspect.getmodule(function)) or ""
            if "Raises" not in text:
                unnamed = [error for error in raised_errors(function) if error not in text + module_text]
                missing += [f"{path} raises {error}" for error in unnamed]

    assert missing == []


UNIT = re.compile(r"[Ss]econd|Unix time")


def test_docstrings_give_the_unit_of_float_fields() -> None:
    fields = [
        (path, value.__doc__ or "", field)
        for path, value in PUBLIC.items()
        if inspect.isclass(value)
        for field, kind in getattr(value, "__annotations__", {}).items()
        if not field.startswith("_") and "float" in str(kind) and "Callable" not in str(kind)
    ]
    assert len(fields) > 10
    for path, text, field in fields:
        entry = re.search(rf"^ *{field}: .*(?:\n {{12}}.*)*", text, re.MULTILINE)
        description = entry or re.search(rf"[^.]*\*{field}\*[^.]*", text)
        assert description is not None, f"{path}.{field} is not described"
        assert UNIT.search(description[0]), f"{path}.{field} has no unit: {description[0]}"


def text_of_examples() -> str:
    """Return all programs in pages, README and recipes, and the outputs of the programs in pages."""
    texts = [*TEXTS.values(), README]
    code = "".join(block for text in texts for block in blocks(text, "(?:python|py|text)"))
    return code + "".join(file.read_text() for file in (ROOT / "tests/recipes").glob("*.py"))


def test_every_public_name_is_in_an_example() -> None:
    words = set(re.findall(r"\w+", text_of_examples()))

    assert [path for path in PUBLIC if path.rpartition(".")[2] not in words] == []
