"""
Directives that include text from elsewhere in a page, so that it is not repeated.

    <!-- readme: One account -->     the README's section with that heading
    <!-- file: tests/x.py -->        a file, as a code block
    <!-- names: errors -->           the reference of each public name of that module
    <!-- errors -->                  a table of the API's errors, from their classes
    <!-- help: rotate -->            the help of a command
    <!-- changelog -->               the changelog, without its title
"""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]

OWN_PAGES = {"Traces, metrics and logs", "The errors", "Testing your own code"}
"""Sections of the README with a page of their own, omitted when the section around them is included."""

_DIRECTIVE = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->$", re.MULTILINE)
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".service": "ini", ".timer": "ini", ".txt": "text", "": "bash"}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return expand(markdown)


def expand(markdown: str) -> str:
    """
    Replace the directives in *markdown*.

    Raises:
        KeyError: There is no such directive, heading or command.
    """
    expanded = _DIRECTIVE.sub(lambda match: _DIRECTIVES[match[1]](match[2] or ""), markdown)
    return expanded.replace("](tests/recipes)", "](recipes/index.md)")  # a link of the README


def section(title: str) -> str:
    """The README's section *title* without its heading; ``Start`` is the text before the second heading."""
    text = (ROOT / "README.md").read_text("utf-8")
    if title == "Start":
        return text.partition("\n## ")[0].partition("\n\n")[2]
    headings = [*_headings(text), (len(text), 0, "")]
    number = next((n for n, (_, _, name) in enumerate(headings) if name == title), None)
    if number is None:
        raise KeyError(f"the README has no heading {title}")
    start, level, _ = headings[number]
    content = ""
    for (position, depth, name), (end, _, _) in pairwise(headings[number:]):
        if position > start and depth <= level:
            break
        if position == start or name not in OWN_PAGES:
            content += text[position:end]
    return _raise_headings(content.partition("\n")[2].strip(), level - 1)


def _headings(text: str) -> list[tuple[int, int, str]]:
    """Position, level and text of each heading. Code blocks are skipped: shell comments begin with # too."""
    without_code = _FENCED.sub(lambda block: " " * len(block[0]), text)
    matches = re.finditer(r"^(##+) (.+)$", without_code, re.MULTILINE)
    return [(heading.start(), len(heading[1]), heading[2]) for heading in matches]


def _raise_headings(body: str, levels: int) -> str:
    """Raise all headings, since the page's title replaces the section's heading."""
    parts = _FENCED.split(body)
    return "".join(
        part if part.startswith("```") else re.sub(rf"^#{{{levels}}}(#+ )", r"\1", part, flags=re.MULTILINE)
        for part in parts
    )


def block(path: str) -> str:
    """The file at *path*, relative to the repository, as a code block with its name."""
    file = ROOT / path
    text = file.read_text("utf-8").rstrip("\n")
    return f'```{_LANGUAGES[file.suffix]} title="{file.name}"\n{text}\n```'


def names(module: str) -> str:
    """A directive of mkdocstrings for each public name of ``postpress_async.MODULE``."""
    from tests.docs.names import home, public

    prefix = f"postpress_async.{module}."
    values = (value for name, value in public().items() if home(name, value).startswith(prefix))
    paths = [f"{prefix}{value.__name__}" for value in values if hasattr(value, "__name__")]
    if module == "errors":  # their definitions are elsewhere, because all others build on them
        bases = "PostPressError ApiError Scope Applied Problem".split()
        paths = [f"{prefix}{name}" for name in bases] + paths
    return "\n\n".join(f"::: {path}\n    options:\n      heading_level: 3" for path in paths)


def errors_table(_: str) -> str:
    """The API's error types with their classes and docstrings."""
    from postpress_async.errors import BY_TYPE

    lines = [
        "| HTTP | type and class | scope | retried | applied | meaning |",
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
    """The output of ``postpress-async COMMAND --help``."""
    import click

    from postpress_async._cli import cli

    found = cli.commands[command]
    context = click.Context(
        found, info_name=f"postpress-async {command}", terminal_width=100, **cli.context_settings
    )
    return f"```text\n{found.get_help(context)}\n```"


def changelog(_: str) -> str:
    """The changelog without its title."""
    return (ROOT / "CHANGELOG.md").read_text("utf-8").partition("\n")[2]


_DIRECTIVES: dict[str, Callable[[str], str]] = {
    "readme": section,
    "file": block,
    "names": names,
    "errors": errors_table,
    "help": help_of,
    "changelog": changelog,
}
