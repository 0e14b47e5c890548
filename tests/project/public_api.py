"""
Writes down the public API as text.

`python -m tests.project.public_api` renews `tests/data/public-api.txt`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from enum import Enum

import attrs
import click

import postpress_async
from postpress_async._cli import cli
from tests.support import DATA

SNAPSHOT = DATA / "public-api.txt"


class Told(str):
    """A default as a signature shows it."""

    __slots__ = ()
    __repr__ = str.__str__


def modules() -> list[str]:
    """What users import from: neither what begins with an underscore nor the parts of a folder."""
    found = [f"postpress_async.{m.name}" for m in pkgutil.iter_modules(postpress_async.__path__)]
    return ["postpress_async", *sorted(n for n in found if "._" not in n and n != "postpress_async._cli")]


def shape(call: object) -> str:
    """Names, kinds and defaults: annotations are written differently by each Python."""
    if inspect.isclass(call):
        maker = next(cls for cls in call.__mro__ if "__init__" in vars(cls))
        if maker is not object and not maker.__module__.startswith("postpress_async"):
            return "(...)"  # another library's, or Python's, which each of their versions may change
    try:
        signature = inspect.signature(call)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    empty = inspect.Parameter.empty
    parameters = [
        p.replace(annotation=empty, default=empty if p.default is empty else Told(value_of(p.default)))
        for p in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))


def value_of(default: object) -> str:
    """A default as text, without what changes from run to run."""
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return "made"
    return repr(default) if isinstance(default, str | int | float | bool | None) else type(default).__name__


def of_class(cls: type) -> Iterator[str]:
    if issubclass(cls, Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    fields = attrs.fields(cls) if attrs.has(cls) else ()
    names = {field.name for field in fields}
    for field in fields:
        if not field.name.startswith("_"):
            told = "" if field.default is attrs.NOTHING else f" = {value_of(field.default)}"
            yield f"    {field.name}{told}"
    for name, member in sorted(vars(cls).items()):
        if name.startswith("_") or name in names:
            continue
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if inspect.isfunction(member):
            sort = "async " if inspect.iscoroutinefunction(member) else ""
            yield f"    {sort}{name}{shape(member)}"
        else:
            yield f"    {name}"


def of_module(name: str) -> Iterator[str]:
    """A module's own public names; imported names are listed under their own module."""
    module = importlib.import_module(name)
    told = getattr(module, "__all__", None)
    for word in sorted(told if told is not None else vars(module)):
        thing = getattr(module, word)
        home = getattr(thing, "__module__", name)
        if inspect.ismodule(thing) or (told is None and (word.startswith("_") or home != name)):
            continue
        if inspect.isclass(thing):
            public = home.startswith("postpress_async.") and "._" not in home
            if public and (name == "postpress_async" or not f"{home}.".startswith(f"{name}.")):
                yield f"{word} (of {'.'.join(home.split('.')[:2])})"
                continue
            yield f"class {word}{'' if issubclass(thing, Enum) else shape(thing)}"
            yield from of_class(thing)
        elif inspect.isfunction(thing):
            sort = "async " if inspect.iscoroutinefunction(thing) else ""
            yield f"{sort}{word}{shape(thing)}"
        else:
            yield word


def of_command(command: click.Command, path: str) -> Iterator[str]:
    """A command with its arguments and options, then those below it."""
    yield path
    for option in command.params:
        yield "    " + ", ".join(
            [*option.opts, *option.secondary_opts] if isinstance(option, click.Option) else [str(option.name)]
        )
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from of_command(below, f"{path} {name}")


def public_api() -> str:
    """All of it: a block for each module, then the command line's."""
    blocks = [[f"# {name}", *of_module(name)] for name in modules()]
    blocks.append(["# The command", *of_command(cli, "postpress-async")])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def placed(text: str) -> list[str]:
    """Its lines, each with the module and the class, or the command, that it is of."""
    found, module, owner = [], "", ""
    for line in text.splitlines():
        if line.startswith("# "):
            module = line.removeprefix("# ")
        elif line.startswith("    "):
            found.append(f"{module}, {owner}: {line.strip()}")
        elif line:
            owner = line.removeprefix("class ").partition("(")[0]
            found.append(f"{module}: {line}")
    return found


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), "utf-8")
