"""All checks and benchmarks. `nox` runs the checks that a change must pass; `nox -l` lists all sessions."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = "lint types public_types changelog tests-3.11 docs package extras".split()

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
ALL_TESTS = ("-m", "slow or not slow")  # by default, pytest does not run the slow tests
LOCK = "tests/constraints.txt"  # the versions that sessions install
TESTED = ".[cli,parquet,report]"  # the package with the extras that the tests need


def requirements(group: str, *tools: str) -> list[str]:
    """Return the requirements of *tools* in the dependency group *group* of pyproject.toml."""
    names = PYPROJECT["dependency-groups"][group]
    return [requirement for requirement in names if any(tool in requirement for tool in tools)]


def install(session: nox.Session, *groups: str, package: str = TESTED) -> None:
    """Install *package* and the dependency *groups* of pyproject.toml, with the versions in `LOCK`."""
    session.install("-c", LOCK, "-e", package, *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style with ruff. `nox -s lint -- --fix` fixes what it can."""
    session.install("-c", LOCK, *requirements("lint", "ruff"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, pyright and pyrefly in strict mode; the tests only with mypy."""
    install(session, "types")
    session.run("mypy")
    session.run("pyrefly", "check")
    session.run("pyright", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})


@nox.session
def public_types(session: nox.Session) -> None:
    """Check with pyright that every public name of the installed package has a known type."""
    session.install("-c", LOCK, f".[{','.join(EXTRAS)}]", "pytest", *requirements("types", "pyright"))
    session.cd(session.create_tmp())  # so that the installed package is imported, not the source
    session.run("pyright", "--ignoreexternal", "--verifytypes", "postpress_async")


@nox.session
def changelog(session: nox.Session) -> None:
    """Check with towncrier that the branch adds a news fragment to .changes, compared with `-- BASE`."""
    session.install("-c", LOCK, *requirements("lint", "towncrier"))
    origin = session.run("git", "branch", "--remotes", "--list", "origin/main", silent=True, external=True)
    [base] = session.posargs or ["origin/main" if origin else "main"]
    session.run("towncrier", "check", "--compare-with", base)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests with branch coverage, on each Python. `nox -s tests -- -k retry` selects some."""
    install(session, "test")
    session.run("coverage", "run", "-m", "pytest", "-n", "0", *ALL_TESTS, *session.posargs)
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation with Sphinx in build/docs. Broken links and unknown names are errors."""
    install(session, "docs", package=".[cli,distributed,otel]")
    session.run(
        "sphinx-build", "-W", "--keep-going", "-q", "-c", "tests/docs", "tests/docs/pages", "build/docs"
    )


@nox.session
def recipes(session: nox.Session) -> None:
    """Test the recipes for FastAPI, aiogram and Prefect, which the other sessions do not install."""
    install(session, "test", "recipes")
    session.install("-c", LOCK, *requirements("types", "mypy"))
    session.run("mypy", "tests/recipes")  # uses the frameworks' types
    session.run("pytest", "tests/recipes", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist and the wheel, check their contents, and use the wheel in a new environment."""
    dist = Path(session.create_tmp(), "dist")
    # Also delete journals of an earlier session, because `rotate` would resume them.
    for old in [*dist.glob("*"), *dist.parent.glob("*.sqlite3*")]:
        old.unlink()
    session.install("build", "check-sdist", "check-wheel-contents", "twine")
    session.run("check-sdist")
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    files = [str(file) for file in sorted(dist.iterdir())]
    session.run("twine", "check", "--strict", *files)
    session.run("check-wheel-contents", "--package", "postpress_async", *files[:1])

    environment = dist.parent / "environment"
    session.run("python", "-m", "venv", "--clear", str(environment))
    python, command = (str(environment.absolute() / "bin" / name) for name in ("python", "postpress-async"))
    wheel = str(Path(files[0]).absolute())
    session.cd(dist.parent)  # so that the installed package is imported, not the source

    def run(*words: str, codes: tuple[int, ...] = (0,)) -> str:
        return str(session.run(*words, external=True, silent=True, success_codes=codes))

    run(python, "-m", "pip", "install", wheel)
    output = run(python, "-W", "error", "-X", "dev", "-c", "import postpress_async")
    if output:
        session.error(f"The import prints text: {output}")
    output = run(command, "--version", codes=(1,))
    if "pip install 'postpress-async[cli]'" not in output:
        session.error(f"Without the extra `cli`, the command does not say what to install: {output}")
    run(python, "-m", "pip", "install", f"{wheel}[cli]", "pytest")
    session.run(command, "--version", external=True)
    run(command, "rotate", "--help")
    session.run(command, "rotate", "--sandbox", external=True)
    if "postpress_sandbox" not in run(python, "-m", "pytest", "--fixtures", "-q", codes=(0, 5)):
        session.error("pytest does not find the fixture postpress_sandbox of the installed wheel.")


EXTRAS = {  # for each extra, a program that uses it
    "check": """
import asyncio
from yarl import URL
from postpress_async import CustomProxy
from postpress_async.rotation._pool import as_pooled
from postpress_async.rotation._pool._check import ProxyChecker
checker = ProxyChecker(target=URL('https://localhost'))
print(asyncio.run(checker.check(as_pooled(CustomProxy(host='127.0.0.1', port=1)))))
""",
    "cli": "from postpress_async.__main__ import main; import sys; sys.argv[1:] = ['errors']; main()",
    "distributed": """
import tempfile
from postpress_async.cluster import write_certificates
with tempfile.TemporaryDirectory() as folder:
    print(write_certificates(folder + '/new'))
""",
    "otel": "from postpress_async.telemetry import Telemetry; print(Telemetry())",
    "parquet": """
import pyarrow, pyarrow.parquet
from postpress_async import Fleet
pyarrow.parquet.write_table(pyarrow.table({'account_id': ['acc_1'], 'country': ['US']}), 'fleet.parquet')
with Fleet.open('fleet.parquet') as fleet:
    print(fleet.survey())
""",
    "report": """
import asyncio, tempfile, time
from postpress_async import ManagedProxy
from postpress_async.rotation import JournalView
from postpress_async.rotation.report import write_report
from postpress_async.sandbox import Sandbox
async def main(journal):
    async with Sandbox() as sandbox, sandbox.session() as session:
        rows = [('acc_1', ManagedProxy(country='US'))]
        async with session.rotate(rows, journal=journal) as rotation:
            async for _ in rotation:
                pass
with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as page:
    asyncio.run(main(folder + '/night.sqlite3'))
    with JournalView(folder + '/night.sqlite3') as view:
        write_report(view, page, time.time())
    assert page.tell() > 10_000
""",
    "speed": """
import uvloop
from postpress_async import ManagedProxy
from postpress_async.sandbox import Sandbox
async def main():
    async with Sandbox() as sandbox, sandbox.session() as session:
        print(await session.update_proxy('acc_1', ManagedProxy(country='US')))
uvloop.run(main())
""",
    "sql": """
import sqlite3
from postpress_async import Fleet
base = sqlite3.connect('fleet.db')
base.execute("create table if not exists fleet as select 'acc_1' account_id, 'US' country")
base.close()
with Fleet.open_query('sqlite:///fleet.db', 'select account_id, country from fleet') as fleet:
    print(fleet.survey())
""",
}


@nox.session
@nox.parametrize("extra", [*EXTRAS, "all"])
def extras(session: nox.Session, extra: str) -> None:
    """Run a program that uses an extra with only that extra installed; then with all extras."""
    session.install(f".[{','.join(EXTRAS) if extra == 'all' else extra}]")
    session.cd(session.create_tmp())  # so that the installed package is imported, not the source
    for program in EXTRAS.values() if extra == "all" else [EXTRAS[extra]]:
        session.run("python", "-W", "error", "-X", "dev", "-c", program, silent=True)


@nox.session
def newest(session: nox.Session) -> None:
    """Run all tests with the newest version of every dependency."""
    session.install("-e", TESTED, *nox.project.dependency_groups(PYPROJECT, "test"))
    session.run("pytest", *ALL_TESTS, *session.posargs)


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run all tests with the lowest version of every dependency that pyproject.toml allows."""
    lowest_versions = ["--resolution", "lowest-direct", "-e", f".[{','.join(EXTRAS)}]"]
    session.install(*lowest_versions, *nox.project.dependency_groups(PYPROJECT, "test"))
    # Some test tools require higher versions, so replace those by the lowest ones.
    session.install("--upgrade", *lowest_versions)
    session.run("pytest", *ALL_TESTS, *session.posargs)


@nox.session
def loops(session: nox.Session) -> None:
    """Run all tests on uvloop; other sessions use asyncio's event loop."""
    install(session, "test")
    session.run("pytest", *ALL_TESTS, *session.posargs, env={"POSTPRESS_TEST_LOOP": "uvloop"})


@nox.session
def debug(session: nox.Session) -> None:
    """Run all tests in asyncio's debug mode and Python's development mode (40 minutes)."""
    install(session, "test")
    session.run("python", "-X", "dev", "-m", "pytest", "--asyncio-debug", *ALL_TESTS, *session.posargs)


@nox.session
@nox.parametrize("parser", ["C", "Python"])
@nox.parametrize("loop", ["asyncio", "uvloop"])
def hostile(session: nox.Session, loop: str, parser: str) -> None:
    """Run the tests of faulty servers on each event loop and with each of aiohttp's parsers."""
    install(session, "test")
    environment = {"POSTPRESS_TEST_LOOP": loop}
    if parser == "Python":
        environment["AIOHTTP_NO_EXTENSIONS"] = "1"
    session.run("pytest", "tests/http/test_hostile.py", *ALL_TESTS, *session.posargs, env=environment)


@nox.session
def branches(session: nox.Session) -> None:
    """Require 100% branch coverage of the code that sends requests and decides on retries."""
    modules = "_http/* _timeouts _error_base errors retry secret".split()
    files = ["tests/http", "tests/call", "tests/test_errors.py", "tests/test_secret.py"]
    install(session, "test")
    session.run("coverage", "run", "-m", "pytest", "-n", "0", *ALL_TESTS, *files)
    included = ",".join(f"postpress_async/{name}.py" for name in modules)
    session.run("coverage", "report", f"--include={included}", "--fail-under=100")


@nox.session
def properties(session: nox.Session) -> None:
    """Run the property-based tests with 1,000 random inputs each instead of 50."""
    install(session, "test")
    session.run("pytest", "-m", "hypothesis", "--hypothesis-profile=thorough", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the sandbox with 2,000 requests that are generated from its OpenAPI document, instead of 60."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/sandbox/test_fuzz.py",
        *ALL_TESTS,
        *session.posargs,
        env={"POSTPRESS_TEST_FUZZ": "2000"},
    )


@nox.session
def kill(session: nox.Session) -> None:
    """Kill a rotation at 50 moments instead of 10."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/rotation/test_kill.py",
        *ALL_TESTS,
        *session.posargs,
        env={"POSTPRESS_TEST_KILLS": "50"},
    )


@nox.session
def campaign(session: nox.Session) -> None:
    """Check journals after 500 random sequences of runs, kills and stops, and 30 of real commands."""
    install(session, "test")
    counts = {"POSTPRESS_TEST_CAMPAIGN": "500", "POSTPRESS_TEST_CAMPAIGN_COMMANDS": "30"}
    session.run("pytest", "tests/rotation/test_campaign.py", *ALL_TESTS, *session.posargs, env=counts)


@nox.session
def night(session: nox.Session) -> None:
    """Rotate 100,000 accounts with 25 dead proxies, and simulate 30 nights of a fleet in real processes."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/rotation/test_night.py",
        "tests/rotation/test_nights.py",
        *ALL_TESTS,
        *session.posargs,
        env={"POSTPRESS_TEST_NIGHT": "100000", "POSTPRESS_TEST_NIGHTS": "30"},
    )


@nox.session
def cluster(session: nox.Session) -> None:
    """Run the tests of clusters at full length, then measure the throughput by number of workers."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/cluster/test_cluster.py",
        *ALL_TESTS,
        *session.posargs,
        env={"POSTPRESS_TEST_CLUSTER": "1"},
    )
    session.run("python", "-m", "benchmarks.cluster")


@nox.session
def simulation(session: nox.Session) -> None:
    """Simulate retries and pace in virtual time at full length; with arguments, only the benchmark."""
    install(session, "test")
    if not session.posargs:
        environment = {"POSTPRESS_TEST_PACE": "1"}
        session.run("pytest", "tests/pace/test_pace_scenarios.py", *ALL_TESTS, env=environment)
    session.run("python", "-m", "benchmarks.simulation", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Compare the CPU time and throughput of a call with those of other libraries."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks.peers", *session.posargs)


@nox.session
def micro(session: nox.Session) -> None:
    """Measure the microseconds of each part of a call. `-- --benchmark-autosave` saves the results."""
    install(session, "bench")
    columns = "--benchmark-columns=median,iqr,min,max,rounds"
    session.run(
        "pytest",
        "-o",
        "addopts=",
        "benchmarks/test_micro.py",
        "--benchmark-time-unit=us",
        columns,
        *session.posargs,
    )


@nox.session
def scale(session: nox.Session) -> None:
    """Measure rotations of 10,000 to 1,000,000 accounts: CPU, memory, journal and resuming (5 minutes)."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks.scale", *session.posargs)


@nox.session
def startup(session: nox.Session) -> None:
    """Measure the import and simple commands, compared with the import of aiohttp."""
    install(session)
    session.run("python", "-m", "benchmarks.startup", *session.posargs)


@nox.session
def inputs(session: nox.Session) -> None:
    """Measure the speed and memory of reading a fleet of a million rows in each format."""
    install(session, "test")
    session.run("python", "-m", "benchmarks.inputs", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Update tests/constraints.txt to the newest versions."""
    session.install("uv")
    groups = [word for name in PYPROJECT["dependency-groups"] for word in ("--group", name)]
    scope = ["--universal", "--python-version", PYTHONS[0], "--all-extras", *groups, "--upgrade"]
    options = ["--custom-compile-command", "nox -s lock", "--no-annotate", "--quiet"]
    session.run("uv", "pip", "compile", "pyproject.toml", *scope, *options, "--output-file", LOCK)


@nox.session
def audit(session: nox.Session) -> None:
    """Search for known vulnerabilities in the locked and the lowest allowed versions with pip-audit."""
    session.install("pip-audit", "uv")
    lowest_versions = str(Path(session.create_tmp(), "lowest.txt").absolute())
    options = ["--all-extras", "--resolution", "lowest-direct", "--python-version", PYTHONS[0], "--quiet"]
    session.run("uv", "pip", "compile", "pyproject.toml", *options, "--output-file", lowest_versions)
    for versions in (LOCK, lowest_versions):  # with --strict, a failed look-up is an error
        session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", versions)
