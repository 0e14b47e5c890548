"""
Describes the public API as text: names and signatures, read by griffe, and the options of each command.

`python -m tests.project.public_api` updates `tests/data/public-api.txt`.
"""

from collections.abc import Iterator

import click
import griffe

from postpress_async._cli import cli
from tests.docs import names
from tests.support import DATA, ROOT

SNAPSHOT = DATA / "public-api.txt"


def load_package() -> griffe.Module:
    package = griffe.load("postpress_async", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    return package


def describe(name: str, found: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Yield the lines of a class with its public members, of a function, or of an attribute."""
    labels = sorted(found.labels & {"async", "classmethod", "property", "staticmethod"})
    if isinstance(found, griffe.Class):
        decorators = [f"@{decorator.value}" for decorator in found.decorators]
        keywords = [f"{keyword}={value}" for keyword, value in found.keywords.items()]
        bases = ", ".join([*map(str, found.bases), *keywords])
        yield " ".join([*decorators, f"class {name}({bases})"])
        public_names = {path.rpartition(".")[2] for path in names.public()}
        private_bases = [base for base in found.mro() if base.name not in public_names]
        members = {name: member for base in [*private_bases, found] for name, member in base.members.items()}
        for member_name, member in members.items():
            is_public = member.is_public and not member_name.startswith("_")
            if not member.is_alias and (is_public or member_name == "__init__"):
                yield from (f"    {line}" for line in describe(member_name, member))
    elif isinstance(found, griffe.Function):
        yield " ".join([*labels, found.signature(name=name)])
    elif isinstance(found, griffe.Attribute):
        annotation = f": {found.annotation}" if found.annotation else ""
        default = f" = {value}" if (value := default_of(found)) is not None else ""
        yield " ".join([*labels, f"{name}{annotation}{default}"])


def default_of(attribute: griffe.Attribute) -> object:
    """Return the value of a class attribute or constant, or the default or factory of an attrs field."""
    value = attribute.value
    if attribute.labels == {"instance-attribute"}:  # computed by the constructor
        return None
    if isinstance(value, griffe.ExprCall) and str(value.function) == "field":
        keywords = {item.name: item.value for item in value.arguments if isinstance(item, griffe.ExprKeyword)}
        return keywords.get("default", keywords.get("factory"))
    return value


def describe_command(command: click.Command, path: str) -> Iterator[str]:
    """Yield the lines of a command with its arguments and options, then of its subcommands."""
    yield path
    for option in command.params:
        yield f"    {', '.join([*option.opts, *option.secondary_opts])}"
    if isinstance(command, click.Group):
        for name, subcommand in sorted(command.commands.items()):
            yield from describe_command(subcommand, f"{path} {name}")


def public_api(package: griffe.Module) -> str:
    """Return the text of the snapshot."""
    lines: list[str] = []
    for path in sorted(names.public()):
        found = package[path.removeprefix("postpress_async.")]
        lines += describe(path, found.final_target if isinstance(found, griffe.Alias) else found)
    return "\n".join([*lines, *describe_command(cli, "postpress-async")]) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(load_package()), "utf-8")
