"""Imports point down, and `import postpress_async` loads as little as possible."""

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
    """The contracts are in pyproject.toml."""
    program = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = subprocess.run(  # in another process, because import-linter configures logging
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


def test_sandbox_server_does_not_import_the_client() -> None:
    """If they shared code, the server would accept the client's mistakes."""
    graph = grimp.build_graph("postpress_async", cache_dir=None)
    modules = graph.find_children("postpress_async.sandbox")
    server = modules - {f"postpress_async.sandbox.{name}" for name in ("_sandbox", "_thread")}
    others = {module: graph.find_modules_directly_imported_by(module) - server for module in server}

    assert {module: imported for module, imported in others.items() if imported} == {}


@pytest.mark.slow
def test_public_names_load_no_extra_and_print_no_warning() -> None:
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
def test_session_does_not_load_rotation() -> None:
    """Fleets and SQLite take a quarter of the import time."""
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
def test_models_and_errors_do_not_load_aiohttp() -> None:
    """pytest imports the package at every start, for the plugin."""
    program = (
        "import sys, postpress_async;"
        "print({'aiohttp', 'cattrs', 'tenacity'} & set(sys.modules));"
        "from postpress_async import CustomProxy, errors;"
        "print({'aiohttp', 'cattrs', 'tenacity'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\nset()\n"


def test_lazy_names_agree_with_those_for_type_checkers() -> None:
    """`__init__.py` lists the names twice: as imports for type checkers, and in a table for `__getattr__`."""
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


def test_no_module_has_more_than_450_lines() -> None:
    """A longer module usually holds two ideas."""
    lengths = {str(path): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}

    assert {path: length for path, length in lengths.items() if length > 450} == {}
