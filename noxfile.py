"""What a reviewer would run: `nox` for all of it, `nox -l` for the list."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = "lint types public_types changelog tests-3.11 docs package extras".split()

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
TYPES = [word for word in PYPROJECT["dependency-groups"]["types"] if "pyright" in word]
EVERY = ("-m", "slow or not slow")  # pytest alone leaves out the slow tests
LOCK = "tests/constraints.txt"  # what a session is said to lock is of these versions
TESTED = ".[cli,parquet,report]"  # the package with what its tests use of its extras


def install(session: nox.Session, *groups: str, package: str = TESTED) -> None:
    """The package and what *groups* of pyproject.toml name, all of the versions that are locked."""
    named = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("-c", LOCK, "-e", package, *named)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes, by ruff; `nox -s lint -- --fix` corrects what it can."""
    session.install("-c", LOCK, *(word for word in PYPROJECT["dependency-groups"]["lint"] if "ruff" in word))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """mypy, pyright and pyrefly on the package and the claims about types, strict; mypy on the tests too."""
    install(session, "types")
    session.run("mypy")
    session.run("pyrefly", "check")
    session.run("pyright", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})


@nox.session
def public_types(session: nox.Session) -> None:
    """What a user's type checker sees of the installed wheel: every public name has its type, by pyright."""
    session.install("-c", LOCK, f".[{','.join(EXTRAS)}]", "pytest", *TYPES)
    session.cd(session.create_tmp())  # here the package is the folder, not what was installed
    session.run("pyright", "--ignoreexternal", "--verifytypes", "postpress_async")


@nox.session
def changelog(session: nox.Session) -> None:
    """A branch has a news fragment in .changes, by towncrier; `-- BASE` is the branch it forks from."""
    session.install(
        "-c", LOCK, *(word for word in PYPROJECT["dependency-groups"]["lint"] if "towncrier" in word)
    )
    origin = session.run("git", "branch", "--remotes", "--list", "origin/main", silent=True, external=True)
    [base] = session.posargs or ["origin/main" if origin else "main"]
    session.run("towncrier", "check", "--compare-with", base)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite under branch coverage, on each Python; `nox -s tests -- -k retry` runs a few."""
    install(session, "test")
    session.run("coverage", "run", "-m", "pytest", "-n", "0", *EVERY, *session.posargs)
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation into build/docs, strict: a broken link, anchor or name fails; `-- serve` shows it."""
    install(session, "docs", package=".[cli,distributed,otel]")
    where = ["-f", "tests/docs/mkdocs.yml"]
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    if "serve" in session.posargs:
        session.run("python", "-m", "mkdocs", "serve", *where, env=quiet)
        return
    site = str(Path("build", "docs").absolute())
    session.run("python", "-m", "mkdocs", "build", "--site-dir", site, *where, env=quiet)


@nox.session
def recipes(session: nox.Session) -> None:
    """The recipes with the frameworks they are for (FastAPI, aiogram, Prefect); the suite runs the others."""
    install(session, "test", "recipes")
    session.install("-c", LOCK, *(w for w in PYPROJECT["dependency-groups"]["types"] if "mypy" in w))
    session.run("mypy", "tests/recipes")  # which here knows the frameworks' types
    session.run("pytest", "tests/recipes", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """The sdist and the wheel made from it: what they hold, and that the wheel alone does its work."""
    dist = Path(session.create_tmp(), "dist")
    for old in [*dist.glob("*"), *dist.parent.glob("*.sqlite3*")]:  # a journal would be gone on with
        old.unlink()
    session.install("build", "check-sdist", "check-wheel-contents", "twine")
    session.run("check-sdist")
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    files = [str(file) for file in sorted(dist.iterdir())]
    session.run("twine", "check", "--strict", *files)
    session.run("check-wheel-contents", "--package", "postpress_async", *files[:1])

    fresh = dist.parent / "fresh"
    session.run("python", "-m", "venv", "--clear", str(fresh))
    python, command = (str(fresh.absolute() / "bin" / name) for name in ("python", "postpress-async"))
    wheel = str(Path(files[0]).absolute())
    session.cd(dist.parent)  # here the package is what was installed, not the folder

    def run(*words: str, codes: tuple[int, ...] = (0,)) -> str:
        return str(session.run(*words, external=True, silent=True, success_codes=codes))

    run(python, "-m", "pip", "install", wheel)
    if output := run(python, "-W", "error", "-X", "dev", "-c", "import postpress_async"):
        session.error(f"The import is not silent: {output}")
    if "pip install 'postpress-async[cli]'" not in (output := run(command, "--version", codes=(1,))):
        session.error(f"Without the extra `cli` the command does not say what to install: {output}")
    run(python, "-m", "pip", "install", f"{wheel}[cli]", "pytest")
    session.run(command, "--version", external=True)
    run(command, "rotate", "--help")
    session.run(command, "rotate", "--sandbox", external=True)
    if "postpress_sandbox" not in run(python, "-m", "pytest", "--fixtures", "-q", codes=(0, 5)):
        session.error("pytest does not find the fixture postpress_sandbox by the wheel's entry point.")


EXTRAS = {  # what each is for, run with no other
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
    """Each extra installed with no other, and what it is for run; then all of them together."""
    session.install(f".[{','.join(EXTRAS) if extra == 'all' else extra}]")
    session.cd(session.create_tmp())  # here the package is what was installed, not the folder
    for program in EXTRAS.values() if extra == "all" else [EXTRAS[extra]]:
        session.run("python", "-W", "error", "-X", "dev", "-c", program, silent=True)


@nox.session
def newest(session: nox.Session) -> None:
    """The suite on the newest version of everything, as a user installs it today: nothing is locked."""
    session.install("-e", TESTED, *nox.project.dependency_groups(PYPROJECT, "test"))
    session.run("pytest", *EVERY, *session.posargs)


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The suite on the lowest version of everything that pyproject.toml names, the extras' too; by uv."""
    floors = ["--resolution", "lowest-direct", "-e", f".[{','.join(EXTRAS)}]"]
    session.install(*floors, *nox.project.dependency_groups(PYPROJECT, "test"))
    session.install("--upgrade", *floors)  # what the test tools ask for had raised some of them
    session.run("pytest", *EVERY, *session.posargs)


@nox.session
def loops(session: nox.Session) -> None:
    """The suite on uvloop; every other session has asyncio's own loop."""
    install(session, "test")
    session.run("pytest", *EVERY, *session.posargs, env={"POSTPRESS_TEST_LOOP": "uvloop"})


@nox.session
def debug(session: nox.Session) -> None:
    """The suite in asyncio's debug mode and Python's development mode, warnings as errors; forty minutes."""
    install(session, "test")
    session.run("python", "-X", "dev", "-m", "pytest", "--asyncio-debug", *EVERY, *session.posargs)


@nox.session
@nox.parametrize("parser", ["C", "Python"])
@nox.parametrize("loop", ["asyncio", "uvloop"])
def hostile(session: nox.Session, loop: str, parser: str) -> None:
    """The hostile network on either event loop, with either of aiohttp's parsers."""
    install(session, "test")
    twin = {"POSTPRESS_TEST_LOOP": loop} | ({"AIOHTTP_NO_EXTENSIONS": "1"} if parser == "Python" else {})
    session.run("pytest", "tests/http/test_hostile.py", *EVERY, *session.posargs, env=twin)


@nox.session
def branches(session: nox.Session) -> None:
    """Each branch that a request or an answer can take is run by a test: under 100% this fails."""
    modules = "_wire _transport _lean_transport _exchange _network _connector _deadlines".split()
    modules += "_failure errors retry _retry_after secret".split()
    files = ["tests/http", "tests/call", "tests/test_errors.py", "tests/test_secret.py"]
    install(session, "test")
    session.run("coverage", "run", "-m", "pytest", "-n", "0", *EVERY, *files)
    included = ",".join(f"postpress_async/{name}.py" for name in modules)
    session.run("coverage", "report", f"--include={included}", "--fail-under=100")


@nox.session
def fuzz(session: nox.Session) -> None:
    """The sandbox against its own OpenAPI document, with 2,000 drawn requests a run; the suite does 60."""
    install(session, "test")
    session.run(
        "pytest", "tests/sandbox/test_fuzz.py", *EVERY, *session.posargs, env={"POSTPRESS_TEST_FUZZ": "2000"}
    )


@nox.session
def kill(session: nox.Session) -> None:
    """A rotation killed at fifty moments; the suite does ten."""
    install(session, "test")
    session.run(
        "pytest", "tests/rotation/test_kill.py", *EVERY, *session.posargs, env={"POSTPRESS_TEST_KILLS": "50"}
    )


@nox.session
def campaign(session: nox.Session) -> None:
    """500 seeded sequences of runs, kills and stops, audited after each run, and 30 of real commands."""
    install(session, "test")
    counts = {"POSTPRESS_TEST_CAMPAIGN": "500", "POSTPRESS_TEST_CAMPAIGN_COMMANDS": "30"}
    session.run("pytest", "tests/rotation/test_campaign.py", *EVERY, *session.posargs, env=counts)


@nox.session
def night(session: nox.Session) -> None:
    """A night of 100,000 accounts on a bad service with 25 dead proxies; the suite plays 3,000."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/rotation/test_night.py",
        *EVERY,
        *session.posargs,
        env={"POSTPRESS_TEST_NIGHT": "100000"},
    )


@nox.session
def cluster(session: nox.Session) -> None:
    """Clusters under losses at full length, one of them over two hosts; then what workers add."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/cluster/test_cluster_losses.py",
        *EVERY,
        *session.posargs,
        env={"POSTPRESS_TEST_CLUSTER": "1"},
    )
    session.run("python", "-m", "benchmarks.cluster")


@nox.session
def simulation(session: nox.Session) -> None:
    """Retry and pace in virtual time: the real session and sandbox, 20,000 accounts a scenario, one table."""
    install(session, "test")
    session.run("python", "-m", "benchmarks.simulation", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """A call beside its peers: CPU time a request, requests a second; some five minutes."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks.peers", *session.posargs)


@nox.session
def micro(session: nox.Session) -> None:
    """Each part of a call by itself, in microseconds; `-- --benchmark-autosave` keeps them to compare."""
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
    """A rotation of ten thousand accounts to a million: CPU, memory, journal, and going on; five minutes."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks.scale", *session.posargs)


@nox.session
def startup(session: nox.Session) -> None:
    """What the import and the command's help take, beside the import of aiohttp."""
    install(session)
    session.run("python", "-m", "benchmarks.startup", *session.posargs)


@nox.session
def inputs(session: nox.Session) -> None:
    """How fast a fleet of a million rows is read in each form, and in how much memory: one table."""
    install(session, "test")
    session.run("python", "-m", "benchmarks.inputs", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Renews the versions that sessions install, in tests/constraints.txt: its diff is what came new."""
    session.install("uv")
    groups = [word for name in PYPROJECT["dependency-groups"] for word in ("--group", name)]
    options = ["--custom-compile-command", "nox -s lock", "--no-annotate", "--quiet"]
    wide = ["--universal", "--python-version", PYTHONS[0], "--all-extras", *groups, "--upgrade"]
    session.run("uv", "pip", "compile", "pyproject.toml", *wide, *options, "--output-file", LOCK)


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities, by pip-audit: of what is locked, and of the lowest that users may have."""
    session.install("pip-audit", "uv")
    floors = str(Path(session.create_tmp(), "lowest.txt").absolute())
    lowest = ["--all-extras", "--resolution", "lowest-direct", "--python-version", PYTHONS[0]]
    session.run("uv", "pip", "compile", "pyproject.toml", *lowest, "--quiet", "--output-file", floors)
    for versions in (LOCK, floors):  # --strict: what cannot be looked up is no good news
        session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", versions)
