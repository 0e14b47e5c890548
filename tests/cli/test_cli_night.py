"""A nightly run on the command line: dry runs, what stops it, and what its end reports."""

import asyncio
import json
import os
import pty
import re
import resource
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from postpress_async.sandbox import Fault, Sandbox
from tests.support import DATA
from tests.support.command_line import JOURNAL, arun, environment, run, states, write_fleet, write_pool

pytestmark = pytest.mark.slow


@asynccontextmanager
async def started(sandbox: Sandbox, *words: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "postpress_async", *words),
        env={**os.environ, **environment(sandbox)},
        **{"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **options},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], bool], process: asyncio.subprocess.Process) -> None:
    while not condition():
        assert process.returncode is None, await process.stderr.read() if process.stderr else ""
        await asyncio.sleep(0)


# --- Before anything is sent ---


async def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(folder, sandbox) -> None:
    """How long, and to whom: without a password, and without a journal."""
    write_fleet(folder, 1000, "")
    write_pool(folder, 5)

    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "proxies.txt", "--rate", "2", "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "1,000 accounts: 1,000 with one of the pool"
    assert lines[1] == "5 proxies in proxies.txt, assigned round-robin to 1,000 accounts"
    assert lines[2] == "nothing was sent; the first requests would be:"
    body = '{"proxy": {"host": "p000.example.net", "port": 8080, "username": "user0", "password": "***"}}'
    assert lines[3] == f"  PATCH {sandbox.url}/accounts/acc_000000 {body}"
    assert lines[6] == "at --rate 2 it would take 8 min 20 s without retries"
    assert len(lines) == 7
    assert "hunter2" not in done.stdout
    assert sandbox.record.requests == 0
    assert sorted(path.name for path in folder.iterdir()) == ["fleet.csv", "proxies.txt"]


async def test_rewriting_the_fleet_file_ends_the_run(folder, sandbox) -> None:
    """Size and time stay the same: only the content differs."""
    fleet = write_fleet(folder, 10_000)
    content, before = fleet.read_bytes(), fleet.stat()

    async with started(sandbox, "rotate", "fleet.csv") as process:
        await until(lambda: sandbox.record.requests > 10, process)
        with fleet.open("r+b") as file:
            file.write(content.replace(b",US", b",DE"))
        os.utime(fleet, ns=(before.st_atime_ns, before.st_mtime_ns))
        _, errors = await process.communicate()

    assert process.returncode == 3
    assert b"fleet.csv has changed since it was opened" in errors
    sent = {str(sandbox.record.proxy_of(account)) for account in sandbox.record.patched_accounts}
    assert sent == {"{'country': 'US'}"}


async def test_a_dry_run_of_a_rotation_under_way_knows_what_is_left(folder, sandbox) -> None:
    write_fleet(folder, 100)
    await arun(sandbox, "rotate", "fleet.csv", "--limit", "40")

    done = await arun(sandbox, "rotate", "fleet.csv", "--dry-run")

    assert f"40 of them are completed in {JOURNAL}; 60 would be sent" in done.stdout
    assert sandbox.record.requests == 40


def test_a_dry_run_needs_no_key(folder) -> None:
    """The person who prepares the run may not have the API key."""
    write_fleet(folder, 10)

    done = run("rotate", "fleet.csv", "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        "there is no API key: a real run requires POSTPRESS_API_KEY or --api-key-file FILE"
    )


def test_a_dry_run_checks_the_key_that_it_has_and_every_row(folder) -> None:
    """Whatever stops a real run also stops a dry run."""
    write_fleet(folder, 10)
    wrong = run("rotate", "fleet.csv", "--dry-run", env={"POSTPRESS_API_KEY": "pp_test_a b"})
    assert (wrong.returncode, "the API key has a space" in wrong.stderr) == (2, True)
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,UK\n")
    assert run("rotate", "fleet.csv", "--dry-run", "--sandbox").returncode == 2


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        pytest.param(["--halt", "five"], "a percentage such as", id="an invalid halt"),
        pytest.param(["--max-duration", "soon"], "for example, 90s, 15m, 6h", id="an invalid duration"),
        pytest.param(["--max-duration", "0s"], "for example, 90s, 15m, 6h", id="no time at all"),
        pytest.param(["--max-duration", "0"], "for example, 90s, 15m, 6h", id="nor without a unit"),
        # Six seconds of a night of six hours: the timer would find the fleet as it was.
        pytest.param(["--max-duration", "6"], "'6' has no unit. Write 6s or 6m or 6h", id="6 of what"),
        pytest.param(["--max-duration", "1h30"], "Write 1h30s or 1h30m", id="an hour and 30 of what"),
        pytest.param(["--max-duration", "1m30"], "Write 1m30s\n", id="a minute and 30 of what"),
        pytest.param(["--pool", "proxies.txt", "--country", "US"], "cannot be combined", id="two sources"),
        pytest.param(["--pool", "nowhere.txt"], "nowhere.txt does not exist", id="no list"),
        pytest.param(
            ["--pool", "http://u:hunter2@h:1"], "a password in an argument", id="a proxy for a list"
        ),
        pytest.param(
            ["--dead-proxies", "2"], "--dead-proxies requires --pool", id="dead proxies without a pool"
        ),
        pytest.param(["--rate", "0"], "0", id="no rate"),
        pytest.param(["--limit", "0"], "0", id="no limit"),
        pytest.param(["--canary", "-1"], "-1", id="a canary below 0"),
    ],
)
def test_words_that_mean_nothing_are_refused_before_anything_is_sent(folder, words, fact) -> None:
    write_fleet(folder, 2)
    write_pool(folder, 1)

    done = run("rotate", "fleet.csv", "--sandbox", *words)

    assert done.returncode == 2
    assert fact in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / JOURNAL).exists()


def test_bad_lines_of_a_proxy_list_are_reported_by_number(folder) -> None:
    """A seller's list with bad lines is refused, and usable with --skip-bad."""
    write_fleet(folder, 20, "")
    refused = run("rotate", "fleet.csv", "--pool", DATA / "proxies.txt", "--sandbox")
    left_out = run("rotate", "fleet.csv", "--pool", DATA / "proxies.txt", "--sandbox", "--skip-bad")

    expected = json.loads((DATA / "proxies-expected.json").read_text("utf-8"))
    assert refused.returncode == 2
    for entry in expected:
        if "proxy" not in entry:
            assert f"line {entry['line']}" in refused.stderr
            assert f"line {entry['line']}" in left_out.stderr
    assert left_out.returncode == 0


def test_bad_lines_and_bad_rows_are_reported_together(folder) -> None:
    """Corrected one after the other, they cost two evenings."""
    (folder / "fleet.csv").write_text("account_id\nacc_1\nacc 2\nacc_3\n")

    done = run("rotate", "fleet.csv", "--pool", DATA / "proxies.txt", "--sandbox")

    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any(line.startswith(f"{DATA / 'proxies.txt'}: line 21, port") for line in lines)
    assert any(line.startswith("fleet.csv: line 3, account_id") for line in lines)
    assert lines[-1] == (
        "nothing was sent: correct them, or use --skip-bad to send only what is valid: "
        "2 accounts and 500 proxies"
    )


def test_message_for_rows_without_proxy_names_the_options_that_assign_one(folder) -> None:
    """The most likely first command of all: a column of accounts, and nothing else."""
    write_fleet(folder, 50, "")

    done = run("rotate", "fleet.csv", "--sandbox")

    assert done.returncode == 2
    fault, last = done.stderr.splitlines()
    assert fault == (
        "fleet.csv: 50 lines (2, 3, 4, 5, 6 and 45 more): no proxy and no country: "
        "use --pool FILE or --country CC, or give each row a proxy or a country"
    )
    assert last == "nothing was sent: correct them"


# --- A query ---


def make_database(folder: Path, count: int = 5) -> str:
    connection = sqlite3.connect(folder / "crm.sqlite3")
    with connection:
        connection.execute("CREATE TABLE accounts (id TEXT, country TEXT)")
        connection.executemany("INSERT INTO accounts VALUES (?, 'US')", [(f"acc_{n}",) for n in range(count)])
    connection.close()
    return "sqlite:///crm.sqlite3"


def test_a_query_is_a_fleet(folder) -> None:
    """The journal recognizes the query, so a second run sends the remaining accounts."""
    asked = ("--query", "SELECT id AS account_id, country FROM accounts ORDER BY id", "--sandbox")
    database = make_database(folder)
    first = run("rotate", "--from", database, *asked, "--limit", "2")
    second = run("rotate", *asked, env={"POSTPRESS_DATABASE_URL": database})

    assert first.returncode == 1, first.stderr
    assert second.returncode == 0, second.stderr
    assert states(folder / "query.rotation.sqlite3") == {"patched": 5}
    assert "(2 of them in an earlier run)" in second.stdout


def test_a_password_of_a_database_is_no_argument(folder) -> None:
    """Everyone on the machine can read it there; a file can be its owner's alone."""
    url = "postgresql+psycopg://me:hunter2@db.invalid/crm"
    asked = ("--query", "SELECT 1 AS account_id", "--sandbox")
    done = run("rotate", "--from", url, *asked)

    assert done.returncode == 2
    assert "POSTPRESS_DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    (folder / "url").write_text(f"{make_database(folder)}\n")
    done = run(
        "rotate",
        "--from-file",
        "url",
        "--query",
        "SELECT id AS account_id, country FROM accounts",
        "--sandbox",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        pytest.param(["fleet.csv", "--query", "SELECT 1"], "cannot be combined", id="a file and a query"),
        pytest.param(["--from", "sqlite:///x"], "require --query", id="a database and no query"),
        pytest.param(["--query", "SELECT 1"], "--query requires a database", id="a query and no database"),
    ],
)
def test_a_query_takes_a_database_and_nothing_else(folder, words, fact) -> None:
    done = run("rotate", *words, "--sandbox")

    assert done.returncode == 2
    assert fact in done.stderr


# --- The pool ---


def test_dead_proxies_are_left_out_and_every_account_gets_one_that_works(folder) -> None:
    write_fleet(folder, 300, "")
    write_pool(folder, 20)

    done = run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--dead-proxies", "3")

    assert done.returncode == 0, done.stderr
    assert "300 accounts: 300 patched" in done.stdout
    assert "3 proxies of the pool did not work and got no further accounts" in done.stderr
    with sqlite3.connect(folder / JOURNAL) as connection:
        used = {label for (label,) in connection.execute("SELECT DISTINCT assignment FROM outcomes")}
    connection.close()
    assert used == {f"user{n}@p{n:03}.example.net:8080" for n in range(3, 20)}


def test_a_pool_that_runs_dry_says_so(folder) -> None:
    """And a longer list, with the same command, does what was left."""
    write_fleet(folder, 10, "")
    write_pool(folder, 3)
    first = run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--accounts-per-proxy", "2")
    write_pool(folder, 5)
    second = run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--accounts-per-proxy", "2")

    assert first.returncode == 1
    assert "the pool is exhausted: 4 accounts got no proxy; add proxies to proxies.txt" in first.stderr
    assert second.returncode == 0, second.stderr
    assert "(6 of them in an earlier run)" in second.stdout


# --- What stops it ---


async def test_a_halt_has_its_own_exit_code_and_says_why(folder, sandbox) -> None:
    write_fleet(folder, 100)
    for number in range(1, 100):
        sandbox.script(f"acc_{number:06}", "errors/disconnected_account")
    sandbox.script("acc_000000", "errors/resource_not_found")  # not all the same, so it is not the key

    done = await arun(sandbox, "rotate", "fleet.csv", "--halt", "5", "--in-flight", "2")

    assert done.returncode == 3
    assert "halted: 5 accounts failed, " in done.stderr
    assert "errors/disconnected_account" in done.stderr
    assert 5 <= sandbox.record.requests <= 6


async def test_a_canary_that_fails_spares_the_others(folder, sandbox) -> None:
    write_fleet(folder, 100)
    for number in range(100):
        sandbox.script(f"acc_{number:06}", "errors/resource_not_found")

    done = await arun(sandbox, "rotate", "fleet.csv", "--halt", "proxy=5%", "--canary", "4")

    assert done.returncode == 3
    assert "of the canary's 4 accounts failed" in done.stderr
    assert sandbox.record.requests <= 4


async def test_canary_that_passes_is_reported(folder, sandbox) -> None:
    write_fleet(folder, 100)

    done = await arun(sandbox, "rotate", "fleet.csv", "--canary", "4", "--json")

    assert done.returncode == 0
    assert "the canary of 4 accounts passed: sending the other accounts" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["accounts"] for event in events if event["event"] == "canary_passed"] == [4]
    assert events[-1]["canary_passed"] is True


async def test_a_limit_leaves_the_others_to_the_next_run(folder, sandbox) -> None:
    write_fleet(folder, 50)
    first = await arun(sandbox, "rotate", "fleet.csv", "--limit", "20")
    second = await arun(sandbox, "rotate", "fleet.csv")

    assert (first.returncode, second.returncode) == (1, 0)
    assert "to continue, run the same command again" in first.stderr
    assert states(folder / JOURNAL) == {"patched": 50}
    assert sandbox.record.requests == 50


async def test_a_time_that_is_up_ends_the_run_as_ctrl_c_does(folder) -> None:
    write_fleet(folder, 400)
    async with Sandbox(latency=0.02) as sandbox:
        done = await arun(sandbox, "rotate", "fleet.csv", "--max-duration", "0.3s", "--in-flight", "2")

    assert done.returncode == 1
    assert "--max-duration has passed" in done.stderr
    patched = len(sandbox.record.patched_accounts)
    assert states(folder / JOURNAL) == {"patched": patched, "skipped": 400 - patched}


async def test_ctrl_c_in_an_outage_sends_no_retry(folder) -> None:
    """Everyone backs off: the first Ctrl-C ends it, and says how to go on."""
    write_fleet(folder, 200)
    async with Sandbox() as sandbox:
        await sandbox.server.outage("503")
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "20") as process:
            await until(lambda: sandbox.record.requests >= 40, process)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while b"stopping" not in (line := await process.stderr.readline()):
                assert line
            in_flight, sent = sandbox.record.in_flight, sandbox.record.requests
            began = time.monotonic()
            _, errors = await process.communicate()
            took = time.monotonic() - began

    assert process.returncode == 130
    assert b"to continue, run the same command again" in errors
    assert took < 5.0
    assert sandbox.record.requests <= sent + in_flight + 1
    assert states(folder / JOURNAL) == {"skipped": 200}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_two_signals_are_out_within_a_second(folder, number) -> None:
    write_fleet(folder, 100)
    async with Sandbox(latency=3600.0) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "10") as process:
            await until(lambda: sandbox.record.requests >= 10, process)
            process.send_signal(number)
            assert process.stderr is not None
            while b"stopping" not in await process.stderr.readline():
                pass
            began = time.monotonic()
            process.send_signal(number)
            await process.communicate()
            took = time.monotonic() - began

    assert process.returncode == 130
    assert took < 1.0
    assert states(folder / JOURNAL) == {"unknown": 10}


async def test_a_third_signal_breaks_nothing(folder) -> None:
    """Holding Ctrl-C down also ends with the advice to continue, and without a traceback."""
    write_fleet(folder, 100)
    async with Sandbox(latency=3600.0) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "10") as process:
            await until(lambda: sandbox.record.requests >= 10, process)
            while process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.001)
                if (folder / JOURNAL).exists() and states(folder / JOURNAL):
                    break  # the handlers may be gone from here on
            _, errors = await process.communicate()

    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"to continue, run the same command again" in errors


# --- A journal that cannot be kept ---


def _no_more_than(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


async def test_a_full_disk_stops_the_sending_and_says_what_is_not_recorded(folder) -> None:
    """Beyond what was in flight, nothing is sent that could not be recorded."""
    write_fleet(folder, 20_000)
    async with Sandbox(latency=0.005) as sandbox:
        async with started(
            sandbox, "rotate", "fleet.csv", "--in-flight", "20", preexec_fn=_no_more_than(400_000)
        ) as process:
            _, errors = await process.communicate()
        sent = sandbox.record.requests

    assert process.returncode == 3
    [line] = [line for line in errors.decode().splitlines() if "could not be recorded" in line]
    assert JOURNAL in line
    assert "run the same command again" in line
    assert b"Traceback" not in errors
    recorded = states(folder / JOURNAL)["patched"]
    lost = int(line.partition("the outcome of ")[2].split()[0].replace(",", ""))
    assert sent == recorded + lost < 20_000


async def test_a_journal_that_is_deleted_under_way_stops_the_sending(folder) -> None:
    """Rows could still be written to the deleted file."""
    write_fleet(folder, 20_000)
    async with Sandbox(latency=0.005) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "20") as process:
            await until(lambda: sandbox.record.requests >= 500, process)
            (folder / JOURNAL).unlink()
            _, errors = await process.communicate()

    assert process.returncode == 3
    assert b"the file was deleted or replaced under way, so the journal is lost" in errors
    assert b"could not be recorded (acc_" in errors
    assert b"run the same command again" not in errors  # that would begin a new journal
    assert sandbox.record.requests < 5_000


def test_read_only_journal_path_is_reported_before_anything_is_sent(folder) -> None:
    """Not even root can create a file in this folder."""
    write_fleet(folder, 3)
    done = run("rotate", "fleet.csv", "--sandbox", "--journal", "/proc/run.sqlite3")

    assert done.returncode == 3
    [message] = done.stderr.splitlines()
    assert message.startswith("postpress-async: /proc/run.sqlite3 cannot be written")


# --- What is seen of it ---


async def test_json_events_go_to_stdout_and_messages_to_stderr(folder, sandbox) -> None:
    """A program reads standard output to its end, and finds nothing else there."""
    write_fleet(folder, 5)
    sandbox.script("acc_000001", "errors/proxy_error")
    sandbox.script("acc_000002", "errors/disconnected_account")

    done = await arun(sandbox, "rotate", "fleet.csv", "--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [event["event"] for event in events][::6] == ["begun", "ended"] or events[-1]["event"] == "ended"
    assert (events[0]["event"], events[0]["total"], events[0]["journal"]) == ("begun", 5, JOURNAL)
    settled = {event["account_id"]: event for event in events if event["event"] == "settled"}
    assert sorted(settled) == [f"acc_{n:06}" for n in range(5)]
    failed = settled["acc_000002"]
    assert (failed["state"], failed["line"], failed["status"]) == ("failed", 4, 401)
    assert failed["instance"].startswith("req_")
    [retry] = [event for event in events if event["event"] == "retry"]
    assert (retry["account_id"], retry["error_type"]) == ("acc_000001", "errors/proxy_error")
    assert events[-1]["exit_code"] == 1
    assert events[-1]["states"] == {"patched": 4, "failed": 1}
    assert "5 accounts: 4 patched, 1 failed" in done.stderr


async def test_verbose_tells_each_step_to_people(folder, sandbox) -> None:
    write_fleet(folder, 1)
    sandbox.script("acc_000000", "errors/provider_error")

    done = await arun(sandbox, "rotate", "fleet.csv", "-v")

    assert "acc_000000: errors/provider_error in attempt 1; retrying in " in done.stderr


@pytest.mark.parametrize("words", ["", "--json"])
def test_a_reader_that_hangs_up_is_no_traceback(folder, words) -> None:
    """`| head -1` has seen enough: what is in flight settles, and the journal is whole."""
    write_fleet(folder, 500)
    command = f"{sys.executable} -m postpress_async rotate fleet.csv --sandbox {words} | head -1"

    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)

    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert sum(states(folder / JOURNAL).values()) == 500


def test_closed_standard_error_does_not_end_the_run(folder) -> None:
    """The run continues if its terminal is closed."""
    write_fleet(folder, 500)
    command = f"{sys.executable} -m postpress_async rotate fleet.csv --sandbox 2>&1 >/dev/null | true"

    subprocess.run(command, shell=True, check=False, timeout=60)

    assert states(folder / JOURNAL) == {"patched": 500}


def test_a_terminal_shows_a_bar_and_figures_and_logs_do_not_garble_it(folder) -> None:
    """A real terminal of 80 columns: every line that was printed begins where a line does, above the bar."""
    write_fleet(folder, 400)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "postpress_async",
            "rotate",
            "fleet.csv",
            "--sandbox",
            "-v",
            "--profile",
            "flaky",
        ],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30"},
    )
    os.close(follower)
    shown = b""
    with suppress(OSError):  # the terminal ends with its last process
        while piece := os.read(leader, 65536):
            shown += piece
    os.close(leader)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    process.stdout.close()
    process.wait()

    text = shown.decode()
    assert "400/400" in text
    assert "patched" in text
    assert "/s" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    retries = [line for line in plain.split("\n") if "retrying in" in line]
    assert retries
    for line in retries:
        # Without a response, a reason follows, which may continue on the next line.
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d acc_\d+: [\w/]+ in attempt \d; retrying in \d\.\d s( \(.*)? *", line
        )
    assert "400 accounts" in output


# --- What failed ---


async def test_retry_failed_sends_the_failed_accounts_again(folder, sandbox) -> None:
    """The accounts were reconnected; the journal knows which, and the fleet what they get."""
    write_fleet(folder, 30)
    for number in (3, 4):
        sandbox.script(f"acc_{number:06}", "errors/disconnected_account")
    first = await arun(sandbox, "rotate", "fleet.csv")
    again = await arun(sandbox, "retry-failed", JOURNAL, "fleet.csv")

    assert first.returncode == 1
    assert f"to retry the failed accounts: postpress-async retry-failed {JOURNAL} fleet.csv\n" in first.stderr
    assert again.returncode == 0, again.stderr
    assert states(folder / JOURNAL) == {"patched": 30}
    assert sandbox.record.requests == 32


def test_the_command_that_retries_can_be_pasted(folder) -> None:
    """Without the list of proxies and the target it would be refused, or go to the real service."""
    write_fleet(folder, 400, "")
    write_pool(folder, 3).rename(folder / "my list.txt")
    words = ["--pool", "my list.txt", "--sandbox", "--profile", "flaky", "--halt", "never"]
    first = run("rotate", "fleet.csv", *words)
    command = first.stderr.partition("to retry the failed accounts: ")[2].splitlines()[0]

    again = run(*shlex.split(command)[1:])

    assert command.endswith(f"{JOURNAL} fleet.csv --pool 'my list.txt' --sandbox")
    assert again.returncode == 0, again.stderr
    assert states(folder / JOURNAL) == {"patched": 400}


def test_rows_that_were_refused_are_no_reason_to_run_it_again(folder) -> None:
    """The same command would refuse the same rows again."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,UK\n")

    for _ in range(2):  # a journal that is gone on with too
        done = run("rotate", "fleet.csv", "--sandbox", "--skip-bad")
        assert done.returncode == 1
        assert "1 invalid row left out: fix it and rotate it as a separate fleet" in done.stderr
        assert "run the same command again" not in done.stderr


def test_retrying_needs_the_journal_and_the_same_fleet(folder) -> None:
    write_fleet(folder, 3)
    assert run("retry-failed", JOURNAL, "fleet.csv", "--sandbox").returncode == 2
    run("rotate", "fleet.csv", "--sandbox")
    write_fleet(folder, 4)

    done = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox")

    assert done.returncode == 2
    assert "belongs to another input" in done.stderr


async def test_doubts_can_be_left_to_a_person(folder, sandbox) -> None:
    write_fleet(folder, 3)
    sandbox.script("acc_000001", Fault(type="errors/unexpected_error"))
    await arun(sandbox, "rotate", "fleet.csv")
    done = await arun(sandbox, "rotate", "fleet.csv", "--on-unknown", "report")

    assert done.returncode == 1
    assert sandbox.record.requests == 3
    assert "1 unknown" in done.stdout


async def test_advice_about_accounts_in_doubt_orders_no_proxy_twice(folder, sandbox) -> None:
    """A new journal would send every account again, the patched ones included."""
    write_fleet(folder, 3)
    sandbox.script("acc_000001", Fault(type="errors/unexpected_error"))
    report = ("--on-unknown", "report")
    await arun(sandbox, "rotate", "fleet.csv", *report)

    again = await arun(sandbox, "rotate", "fleet.csv", *report)
    status = run("status", JOURNAL)
    await arun(sandbox, "rotate", "fleet.csv")

    assert again.stdout.splitlines()[0] == (
        "nothing was sent: the outcome of 1 account is unknown, and --on-unknown report "
        "does not send it again"
    )
    assert "use another --journal" not in again.stdout + again.stderr
    assert f"`postpress-async export {JOURNAL} --state unknown` lists them" in status.stdout
    assert "without --on-unknown report" in status.stdout
    assert sandbox.record.requests == 4


async def test_an_account_in_doubt_is_reported_with_another_pool_too(folder, sandbox) -> None:
    (folder / "fleet.csv").write_text("account_id\nacc_000000\nacc_000001\n")
    pools = [folder / "a.txt", folder / "b.txt"]
    for number, pool in enumerate(pools):
        pool.write_text(f"198.51.100.{number}:8080\n")
    sandbox.script("acc_000001", Fault(type="errors/unexpected_error"))
    report = ("--on-unknown", "report")
    await arun(sandbox, "rotate", "fleet.csv", "--pool", "a.txt", *report)

    again = await arun(sandbox, "rotate", "fleet.csv", "--pool", "b.txt", *report)

    assert again.returncode == 1
    assert "the outcome of 1 account is unknown" in again.stdout


async def test_a_halt_names_the_command_to_run_next(folder, sandbox) -> None:
    write_fleet(folder, 3)
    sandbox.script("acc_000001", Fault(type="errors/resource_not_found"))

    done = await arun(sandbox, "rotate", "fleet.csv", "--halt", "1")

    assert "fix the cause, then run the same command again: postpress-async rotate" in done.stderr


def test_retrying_a_rotation_in_which_nothing_failed_sends_nothing_and_exits_0(folder) -> None:
    write_fleet(folder, 3)
    run("rotate", "fleet.csv", "--sandbox")

    done = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox")

    assert done.returncode == 0
    assert done.stdout.startswith(f"nothing was sent: no account in {JOURNAL} failed; ")
    assert "--journal" not in done.stdout


# --- Around it ---


@pytest.mark.parametrize("transport", ["session", "lean"])
async def test_either_transport_carries_a_rotation_and_an_update(folder, sandbox, transport) -> None:
    """Both transports have the same results."""
    write_fleet(folder, 50)
    many = await arun(sandbox, "rotate", "fleet.csv", "--transport", transport)
    single = await arun(sandbox, "update", "acc_1", "--country", "US", "--transport", transport)

    assert (many.returncode, single.returncode) == (0, 0)
    assert states(folder / JOURNAL) == {"patched": 50}
    assert sandbox.record.requests == 51


def test_the_journal_is_its_owner_s_alone(folder) -> None:
    write_fleet(folder, 3)
    run("rotate", "fleet.csv", "--sandbox")

    assert stat.S_IMODE((folder / JOURNAL).stat().st_mode) == 0o600


def test_options_come_from_the_environment_too(folder) -> None:
    """A unit file has variables rather than arguments."""
    write_fleet(folder, 10)

    done = run("rotate", "fleet.csv", env={"POSTPRESS_SANDBOX": "1", "POSTPRESS_LIMIT": "4"})

    assert done.returncode == 1
    assert states(folder / JOURNAL) == {"patched": 4, "skipped": 6}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_script_is_printed(shell) -> None:
    done = run("completion", shell)

    assert done.returncode == 0, done.stderr
    assert "postpress-async" in done.stdout
    assert "_POSTPRESS_ASYNC_COMPLETE" in done.stdout


@pytest.mark.parametrize("command", ["rotate", "retry-failed"])
def test_each_option_of_a_night_is_under_a_heading(command) -> None:
    """Three dozen in one list are not read; one that is under no heading comes last, among --help's like."""
    help_text = run(command, "--help", env={"COLUMNS": "80"}).stdout

    assert re.findall(
        r"^  (\S+)", help_text.partition("\nOptions:\n")[2].partition("\n\n")[0], re.MULTILINE
    ) == ["-h,"]


def test_help_shows_each_command_without_cutting_its_summary() -> None:
    """The first thing that is read; a sentence that ends in three dots was not."""
    help_text = run("--help", env={"COLUMNS": "80"}).stdout

    assert "..." not in help_text.partition("Commands:\n")[2]


def test_every_command_has_an_example_in_its_help() -> None:
    """Operators read --help rather than the README."""
    listed = run("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    commands = [line.split()[0] for line in listed.splitlines() if not line.startswith("   ")]

    assert set(commands) >= {"rotate", "retry-failed", "update", "sandbox", "errors", "completion"}
    for command in (["proxies", "check"] if name == "proxies" else [name] for name in commands):
        assert f"postpress-async {' '.join(command)}" in run(*command, "--help").stdout, command


# --- Nobody to tell it to ---


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
@pytest.mark.parametrize(
    ("words", "code"),
    [(["rotate", "--sandbox"], 0), (["errors"], 2), (["--help"], 2)],
    ids=["rotate", "errors", "help"],
)
def test_full_disk_under_standard_output_is_reported_in_a_sentence(folder, words, code) -> None:
    """The exit code is that of the rotation, even if nobody reads the output."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "postpress_async", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_closed_standard_output_is_reported_in_a_sentence(folder) -> None:
    """A job may have no standard output."""
    run("rotate", "--sandbox")
    words = f"{sys.executable} -m postpress_async export sandbox.rotation.sqlite3 >&-"
    done = subprocess.run(["sh", "-c", words], stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "postpress-async: standard output is closed; write to a file with -o FILE\n"


def test_a_version_in_the_environment_is_nobodys_option(folder) -> None:
    """An image that says which version it holds would answer each command with it."""
    assert "errors/proxy_error" in run("errors", env={"POSTPRESS_VERSION": "1"}).stdout


async def test_programs_hear_the_end_of_a_run_whose_journal_was_lost(folder) -> None:
    """Each event `begun` is followed by `ended`."""
    write_fleet(folder, 20_000)
    async with Sandbox(latency=0.01) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--json") as process:
            await until(lambda: sandbox.record.requests >= 200, process)
            (folder / JOURNAL).unlink()
            out, _ = await process.communicate()

    last = json.loads(out.splitlines()[-1])
    assert (process.returncode, last["event"], last["exit_code"]) == (3, "ended", 3)
