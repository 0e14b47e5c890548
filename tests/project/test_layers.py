"""The structure that the newcomer was promised: imports point down, and extras stay outside."""

import ast
import subprocess
import sys
from pathlib import Path

import postpress_async

PACKAGE = Path(postpress_async.__file__).parent

# Lowest first: a module may import only from layers before its own.
LAYERS = ["_version _safe_observer _countries _timeouts _wait_queue secret", "_fields", "models"]
LAYERS += ["_error_base", "errors", "retry pace events _settings", "_http", "_call"]
LAYERS += ["rotation", "session", "sandbox telemetry cluster", "pytest_plugin", "_cli __init__", "__main__"]


def imported(module: str) -> set[str]:
    """The modules of the package that *module*, a file or a folder, imports."""
    place = PACKAGE / module
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("postpress_async.")}
    return found - {module}


def is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def test_imports_only_point_down() -> None:
    """A module that needs no knowledge of those above it can be read, and tested, alone."""
    below: set[str] = set()
    for layer in LAYERS:
        for module in layer.split():
            assert imported(module) <= below, module
        below |= set(layer.split())
    assert below == {path.stem for path in PACKAGE.iterdir() if is_module(path)}


def test_the_sandbox_s_server_knows_nothing_of_the_client() -> None:
    """Written from the API's page, so that a mistake of the client's is not made on both sides."""
    for file in (PACKAGE / "sandbox").glob("*.py"):
        if file.name not in {"__init__.py", "thread.py"}:
            names = {
                node.module
                for node in ast.walk(ast.parse(file.read_text("utf-8")))
                if isinstance(node, ast.ImportFrom) and node.module
            }
            ours = {name for name in names if name.startswith("postpress_async")}
            assert all(name.startswith("postpress_async.sandbox.") for name in ours), file


def test_importing_the_package_is_silent_and_loads_no_extra() -> None:
    """A bot that embeds it pays for what it uses."""
    program = (
        "import sys, postpress_async;"
        "extras = {'click', 'rich', 'uvloop', 'pyarrow', 'sqlalchemy', 'distributed', 'opentelemetry'};"
        "extras |= {'jinja2', 'vl_convert', 'dask'};"
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


def test_a_program_that_updates_one_account_loads_no_fleet() -> None:
    """Fleets, SQLite and cattrs are a third of the import time, and load when one of their names is used."""
    program = (
        "import sys, postpress_async as p;"
        "session = p.PostPressSession('k', base_url='http://localhost:1');"
        "print(sorted({'postpress_async.rotation', 'sqlite3', 'cattrs'} & set(sys.modules)));"
        "print({name for name in p.__all__ if not hasattr(p, name)}, hasattr(p, 'Fleets'));"
        "print('postpress_async.rotation' in sys.modules, p.Fleet is p.rotation.Fleet)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["[]", "set() False", "True True"]


def test_importing_the_package_loads_nothing_that_is_not_used() -> None:
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

    assert {name: f"postpress_async.{home}" for name, home in postpress_async._HOMES.items()} == {
        name: home for name, home in imports.items() if home != "postpress_async"
    }
    assert set(postpress_async.__all__) == {*imports, "__version__"}
    assert all(hasattr(postpress_async, name) for name in dir(postpress_async))
    assert not hasattr(postpress_async, "Session")


def test_no_module_is_two() -> None:
    """About 300 lines is where a module asks which two ideas it holds; one idea may take 450."""
    long = {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 450}

    assert long == {}
