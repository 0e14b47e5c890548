"""
What pages take from elsewhere instead of repeating it: a line ``<!-- what: which -->`` stands for it.

    <!-- readme: One account -->     the text below that heading of the README, up to the next of its level
    <!-- file: tests/x.py -->        a file, as a block of code
    <!-- names: errors -->           each public name of that module, for the reference
    <!-- errors -->                  a table of the API's errors, from their classes
    <!-- help: rotate -->            what the command says of itself
    <!-- changelog -->               the changelog, without its title
"""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]

OWN_PAGES = {"Traces, metrics and logs", "The errors", "Testing your own code"}
"""Sections of the README that are left out where the one around them is shown."""

_DIRECTIVE = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->$", re.MULTILINE)
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".service": "ini", ".timer": "ini", ".txt": "text", "": "bash"}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return expand(markdown)


def expand(markdown: str) -> str:
    """
    *markdown* with what its directives stand for.

    Raises:
        KeyError: There is no such directive, heading, file or command.
    """
    made = _DIRECTIVE.sub(lambda found: _MAKERS[found[1]](found[2] or ""), markdown)
    return made.replace("](tests/recipes)", "](recipes/index.md)")  # where the README's link leads here


def section(title: str) -> str:
    """The README's text below the heading *title*; ``Start`` is what stands before the second heading."""
    text = (ROOT / "README.md").read_text("utf-8")
    if title == "Start":
        return text.partition("\n## ")[0].partition("\n\n")[2]
    headings = [*_headings(text), (len(text), 0, "")]
    number = next((n for n, (_, _, name) in enumerate(headings) if name == title), None)
    if number is None:
        raise KeyError(f"the README has no heading {title}")
    place, level, _ = headings[number]
    told = ""
    for (at, depth, name), (end, _, _) in pairwise(headings[number:]):
        if at > place and depth <= level:
            break
        if at == place or name not in OWN_PAGES:
            told += text[at:end]
    return _raised(told.partition("\n")[2].strip(), level - 1)


def _headings(text: str) -> list[tuple[int, int, str]]:
    """Where each is, how deep, and what it says. A comment in a block of shell begins with # as well."""
    hidden = _FENCED.sub(lambda block: " " * len(block[0]), text)
    found = re.finditer(r"^(##+) (.+)$", hidden, re.MULTILINE)
    return [(heading.start(), len(heading[1]), heading[2]) for heading in found]


def _raised(body: str, by: int) -> str:
    """Headings *by* levels higher, since the page has the section's own as its title."""
    parts = _FENCED.split(body)
    told = [
        part if part.startswith("```") else re.sub(rf"^#{{{by}}}(#+ )", r"\1", part, flags=re.MULTILINE)
        for part in parts
    ]
    return "".join(told)


def block(path: str) -> str:
    """The file at *path*, below the repository's top, as a block of code that names it."""
    file = ROOT / path
    text = file.read_text("utf-8").rstrip("\n")
    return f'```{_LANGUAGES[file.suffix]} title="{file.name}"\n{text}\n```'


def names(module: str) -> str:
    """A line of mkdocstrings for each public name of ``postpress_async.MODULE``."""
    from tests.docs.names import home, public

    place = f"postpress_async.{module}."
    told = (value for name, value in public().items() if home(name, value).startswith(place))
    ours = [f"{place}{value.__name__}" for value in told if hasattr(value, "__name__")]
    if module == "errors":  # those that stand beside it, since all others are built on them
        ours = [f"{place}{name}" for name in ("PostPressError ApiError Scope Applied Problem").split()] + ours
    return "\n\n".join(f"::: {name}\n    options:\n      heading_level: 3" for name in ours)


def errors_table(_: str) -> str:
    """The API's types, each with its class and what that class says of it."""
    from postpress_async.errors import BY_TYPE

    lines = [
        "| HTTP | type and class | whose fault | retried | applied | what it means |",
        "|" + " --- |" * 6,
    ]
    for type_, error in BY_TYPE.items():
        name = f"[`{error.__name__}`][postpress_async.errors.{error.__name__}]"
        retried = "**yes**" if error.retryable else "no"
        meaning = " ".join((error.__doc__ or "").split())
        cells = (error.status, f"`{type_}`<br>{name}", error.scope, retried, error.applied, meaning)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def help_of(command: str) -> str:
    """What ``postpress-async COMMAND --help`` prints."""
    import click

    from postpress_async.cli import cli

    made = cli.commands[command]
    context = click.Context(
        made, info_name=f"postpress-async {command}", terminal_width=100, **cli.context_settings
    )
    return f"```text\n{made.get_help(context)}\n```"


def changelog(_: str) -> str:
    """All of it, below its title."""
    return (ROOT / "CHANGELOG.md").read_text("utf-8").partition("\n")[2]


_MAKERS: dict[str, Callable[[str], str]] = {
    "readme": section,
    "file": block,
    "names": names,
    "errors": errors_table,
    "help": help_of,
    "changelog": changelog,
}
