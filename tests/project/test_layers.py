"""The structure that a newcomer relies on: imports point down, and extras load only when used."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import postpress_async
from tests.support import ROOT

PACKAGE = Path(postpress_async.__file__).parent


@pytest.mark.slow
def test_imports_point_down() -> None:
    """The contracts are in pyproject.toml; `lint-imports` shows them."""
    program = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = subprocess.run(  # it configures logging, so it runs in a process of its own
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


def test_sandbox_server_does_not_use_the_client() -> None:
    """The server follows only the API reference, so it does not repeat errors of the client."""
    graph = grimp.build_graph("postpress_async", cache_dir=None)
    parts = graph.find_children("postpress_async.sandbox")
    server = parts - {f"postpress_async.sandbox.{name}" for name in ("_sandbox", "_thread")}
    imports = {module: graph.find_modules_directly_imported_by(module) for module in server}

    assert all(imported <= server for imported in imports.values()), imports


@pytest.mark.slow
def test_import_is_silent_and_loads_no_extra() -> None:
    """A bot that embeds it pays for what it uses."""
    program = (
        "import sys, postpress_async;"
        "extras = {'click', 'rich', 'uvloop', 'pyarrow', 'sqlalchemy', 'distributed', 'opentelemetry'};"
        "extras |= {'jinja2', 'vl_convert', 'dask', 'python_socks'};"
        "extras |= {'pandas', 'polars', 'numpy', 'pytest'};"
        "[getattr(postpress_async, name) for name in dir(postpress_async)];"
        "print(sorted(extras & set(sys.modules)), 'aiohttp.web' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )

    assert (done.stdout.strip(), done.stderr) == ("[] False", "")


@pytest.mark.slow
def test_single_update_does_not_load_rotation() -> None:
    """Fleets and SQLite are a quarter of the import time, and load when one of their names is used."""
    program = (
        "import sys, postpress_async as p;"
        "session = p.PostPressSession('k', base_url='http://localhost:1');"
        "print(sorted({'postpress_async.rotation', 'sqlite3'} & set(sys.modules)));"
        "print({name for name in p.__all__ if not hasattr(p, name)}, hasattr(p, 'Fleets'));"
        "print('postpress_async.rotation' in sys.modules, p.Fleet is p.rotation.Fleet)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["[]", "set() False", "True True"]


@pytest.mark.slow
def test_import_loads_only_what_is_used() -> None:
    """pytest imports it at every start, and a user of models and errors alone does not need aiohttp."""
    program = (
        "import sys, postpress_async;"
        "print({'aiohttp', 'cattrs', 'tenacity'} & set(sys.modules));"
        "from postpress_async import CustomProxy, errors;"
        "print({'aiohttp', 'cattrs', 'tenacity'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\nset()\n"


def test_lazy_names_agree_with_those_for_type_checkers() -> None:
    """Once for type checkers and once for Python; an unknown name is an AttributeError."""
    block = next(
        node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if type(node) is ast.If
    )
    imports = {
        a.name: node.module for node in ast.walk(block) if type(node) is ast.ImportFrom for a in node.names
    }

    assert {name: f"postpress_async.{home}" for name, home in postpress_async._MODULE_OF.items()} == {
        name: home for name, home in imports.items() if home != "postpress_async"
    }
    assert set(postpress_async.__all__) == {*imports, "__version__"}
    assert all(hasattr(postpress_async, name) for name in dir(postpress_async))
    assert not hasattr(postpress_async, "Session")


def test_no_module_is_too_long() -> None:
    """About 300 lines is where a module asks which two ideas it holds; one idea may take 450."""
    long = {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 450}

    assert long == {}
