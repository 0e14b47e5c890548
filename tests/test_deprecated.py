"""Who upgrades is told in time, at the line that has to change, and what was to go goes."""

import ast
import asyncio
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import postpress_async
from postpress_async._deprecated import deprecated, farewell, renamed_argument, renamed_names

PACKAGE = Path(postpress_async.__file__).parent
SENTENCE = re.compile(r"`[^`]+` is deprecated since (\d+\.\d+) and goes in (\d+\.\d+): use `.+\.")


def minor(version: str) -> tuple[int, int]:
    major, lesser = version.split(".")[:2]
    return int(major), int(lesser)


def faults(source: str, version: str) -> Iterator[str]:
    """What is wrong with the deprecations in a module's *source*, as of the package's *version*."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id == "deprecated":
            found = SENTENCE.fullmatch(" ".join(ast.literal_eval(node.args[0]).split()))
            if found is None:
                yield f"line {node.lineno}: the sentence is not of the form of `farewell`"
                continue
            since, gone = found.groups()
        elif node.func.id in {"renamed_argument", "renamed_names"}:
            said = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
            since, gone = said["since"], said["gone"]
        else:
            continue
        if minor(gone) <= minor(version):
            yield f"line {node.lineno}: it was to go in {gone}"
        if minor(gone)[0] == minor(since)[0] and minor(gone)[1] < minor(since)[1] + 2:
            yield f"line {node.lineno}: from {since} to {gone} is less than two minor versions"


def test_nothing_that_is_deprecated_is_overdue() -> None:
    """A farewell that is put off again and again teaches users not to believe the next one."""
    for file in PACKAGE.rglob("*.py"):
        if file.name != "_deprecated.py":
            assert list(faults(file.read_text("utf-8"), postpress_async.__version__)) == [], file


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('@deprecated("Gone soon.")\ndef f(): ...', "the sentence is not of the form of `farewell`"),
        ('@renamed_argument("a", "b", since="0.3", gone="0.5")\ndef f(b): ...', "it was to go in 0.5"),
        ('g = renamed_names("m", {}, since="0.8", gone="0.9")', "less than two minor versions"),
        (f'@deprecated("{farewell("f", "g", since="0.2", gone="0.4")}")\ndef f(): ...', "to go in 0.4"),
        ('@renamed_argument("a", "b", since="0.9", gone="1.0")\ndef f(b): ...', None),
        (f'@deprecated("{farewell("f", "g", since="0.5", gone="0.7")}")\ndef f(): ...', None),
    ],
)
def test_a_deprecation_that_is_overdue_or_too_short_is_found(source: str, fault: str | None) -> None:
    """A check that lets all pass checks nothing; a new major version may end what the last one began."""
    found = list(faults(source, "0.6.2"))

    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


class Shop:
    """Something public, with a method of each kind."""

    @deprecated(farewell("Shop.fetch", "Shop.get", since="0.3", gone="0.5"))
    async def fetch(self) -> str:
        return "got"

    @renamed_argument("colour", "color", since="0.3", gone="0.5")
    async def paint(self, color: str, coats: int = 1) -> tuple[str, int]:
        return color, coats

    @renamed_argument("colour", "color", since="0.3", gone="0.5")
    def plain(self, color: str) -> str:
        return color


def test_a_deprecated_coroutine_warns_where_it_is_called() -> None:
    """A task runs it elsewhere, in asyncio's own code, which is nobody's line to change."""

    async def main() -> str:
        with pytest.warns(DeprecationWarning, match="fetch") as heard:
            task = asyncio.create_task(Shop().fetch())
        assert [one.filename for one in heard] == [__file__]
        return await task

    assert asyncio.run(main()) == "got"


def test_a_renamed_argument_is_taken_by_either_name() -> None:
    """An upgrade breaks nobody; the warning says where, since when, until when, and what to write."""

    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert await Shop().paint("red") == ("red", 1)
            assert await Shop().paint(color="red", coats=2) == ("red", 2)
        with pytest.warns(DeprecationWarning, match="paint") as heard:
            task = asyncio.create_task(Shop().paint(coats=3, colour="red"))  # type: ignore[call-arg]
        assert await task == ("red", 3)
        (one,) = heard
        assert one.filename == __file__
        assert str(one.message) == (
            "`Shop.paint(colour=)` is deprecated since 0.3 and goes in 0.5: use `color=`."
        )

    asyncio.run(main())
    with pytest.warns(DeprecationWarning, match="plain"):
        assert Shop().plain(colour="red") == "red"  # type: ignore[call-arg]


def test_both_names_of_an_argument_are_refused() -> None:
    """Whichever were taken, the other would be lost unseen."""
    with pytest.raises(TypeError, match="has both color= and colour=, its old name: leave colour= out"):
        Shop().plain(color="red", colour="blue")  # type: ignore[call-arg]


def test_what_was_decorated_is_what_it_was() -> None:
    """Frameworks ask whether a function is a coroutine's, and documentation for its signature and text."""
    assert str(inspect.signature(Shop.paint)) == "(self, color: str, coats: int = 1) -> tuple[str, int]"
    assert inspect.iscoroutinefunction(Shop.paint) is (sys.version_info >= (3, 12))
    assert not inspect.iscoroutinefunction(Shop.plain)


def test_a_renamed_name_of_a_module_is_the_new_one() -> None:
    """`isinstance` and `except` go on working, since both names are one class."""
    module = ModuleType("shop")
    module.Shop = Shop  # type: ignore[attr-defined]
    module.__getattr__ = renamed_names("shop", {"Store": "Shop"}, since="0.3", gone="0.5")  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "shop", module)
        with pytest.warns(DeprecationWarning, match=r"`shop\.Store` .* use `shop\.Shop`") as heard:
            assert module.Store is Shop

    assert [one.filename for one in heard] == [__file__]
    with pytest.raises(AttributeError, match="module 'shop' has no attribute 'Stone'"):
        _ = module.Stone
