"""A nightly rotation on the command line: dry runs, stops, output, and the advice at the end."""

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
async def started(
    sandbox: Sandbox, *arguments: str, **options: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command as a process during the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "postpress_async", *arguments),
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
    """Wait for the condition while the process runs."""
    while not condition():
        assert process.returncode is None, await process.stderr.read() if process.stderr else ""
        await asyncio.sleep(0)


# --- Before anything is sent ---


async def test_dry_run_shows_requests_and_duration_and_sends_nothing(folder, sandbox) -> None:
    """The output contains no password, and no journal is created."""
    write_fleet(folder, 1000, "")
    write_pool(folder, 5)

    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "proxies.txt", "--rate", "2", "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "1,000 accounts: 1,000 with a proxy from the pool"
    assert lines[1] == "5 proxies in proxies.txt, assigned round-robin to 1,000 accounts"
    assert lines[2] == "nothing was sent; the first requests would be:"
    body = '{"proxy": {"host": "p000.example.net", "port": 8080, "username": "user0", "password": "***"}}'
    assert lines[3] == f"  PATCH {sandbox.url}/accounts/acc_000000 {body}"
    assert lines[6] == "at --rate 2 it would take 8 min 20 s without retries"
    assert len(lines) == 7
    assert "hunter2" not in done.stdout
    assert sandbox.record.requests == 0
    assert sorted(path.name for path in folder.iterdir()) == ["fleet.csv", "proxies.txt"]


async def test_change_of_the_fleet_file_ends_the_run(folder, sandbox) -> None:
    """The size and modification time of the file stay the same; only the content differs."""
    fleet = write_fleet(folder, 10_000)
    content, status = fleet.read_bytes(), fleet.stat()

    async with started(sandbox, "rotate", "fleet.csv") as process:
        await until(lambda: sandbox.record.requests > 10, process)
        with fleet.open("r+b") as file:
            file.write(content.replace(b",US", b",DE"))
        os.utime(fleet, ns=(status.st_atime_ns, status.st_mtime_ns))
        _, errors = await process.communicate()

    assert process.returncode == 3
    assert b"fleet.csv has changed since it was opened" in errors
    sent = {str(sandbox.record.proxy_of(account)) for account in sandbox.record.patched_accounts}
    assert sent == {"{'country': 'US'}"}


async def test_dry_run_of_an_unfinished_run_shows_how_many_accounts_are_left(folder, sandbox) -> None:
    write_fleet(folder, 100)
    await arun(sandbox, "rotate", "fleet.csv", "--limit", "40")

    done = await arun(sandbox, "rotate", "fleet.csv", "--dry-run")

    assert f"40 of them are completed in {JOURNAL}; 60 would be sent" in done.stdout
    assert sandbox.record.requests == 40


def test_dry_run_needs_no_api_key(folder) -> None:
    """The person who prepares the run may not have the API key."""
    write_fleet(folder, 10)

    done = run("rotate", "fleet.csv", "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        "there is no API key: a real run requires POSTPRESS_API_KEY or --api-key-file FILE"
    )


def test_dry_run_checks_the_form_of_the_api_key(folder) -> None:
    write_fleet(folder, 10)

    done = run("rotate", "fleet.csv", "--dry-run", env={"POSTPRESS_API_KEY": "pp_test_a b"})

    assert done.returncode == 2
    assert "the API key has a space" in done.stderr


def test_dry_run_checks_the_rows(folder) -> None:
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,UK\n")

    assert run("rotate", "fleet.csv", "--dry-run", "--sandbox").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--halt", "five"], "a percentage such as", id="an invalid halt"),
        pytest.param(["--max-duration", "soon"], "for example, 90s, 15m, 6h", id="an invalid duration"),
        pytest.param(["--max-duration", "0s"], "for example, 90s, 15m, 6h", id="zero seconds"),
        pytest.param(["--max-duration", "0"], "for example, 90s, 15m, 6h", id="zero without a unit"),
        # If 6 were taken for seconds, a run that was meant to take 6 hours would end at once.
        pytest.param(["--max-duration", "6"], "'6' has no unit. Write 6s or 6m or 6h", id="6 without a unit"),
        pytest.param(["--max-duration", "1h30"], "Write 1h30s or 1h30m", id="an hour, and 30 without a unit"),
        pytest.param(["--max-duration", "1m30"], "Write 1m30s\n", id="a minute, and 30 without a unit"),
        pytest.param(
            ["--pool", "proxies.txt", "--country", "US"], "cannot be combined", id="a pool and a country"
        ),
        pytest.param(["--pool", "nowhere.txt"], "nowhere.txt does not exist", id="a missing list"),
        pytest.param(
            ["--pool", "http://u:hunter2@h:1"], "a password in an argument", id="a proxy instead of a list"
        ),
        pytest.param(
            ["--dead-proxies", "2"], "--dead-proxies requires --pool", id="dead proxies without a pool"
        ),
        pytest.param(["--rate", "0"], "0", id="a rate of 0"),
        pytest.param(["--limit", "0"], "0", id="a limit of 0"),
        pytest.param(["--canary", "-1"], "-1", id="a negative canary"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_sent(folder, arguments, message) -> None:
    write_fleet(folder, 2)
    write_pool(folder, 1)

    done = run("rotate", "fleet.csv", "--sandbox", *arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / JOURNAL).exists()


def test_proxy_list_with_invalid_lines_is_refused_and_usable_with_skip_bad(folder) -> None:
    """Both commands report the number of each invalid line."""
    write_fleet(folder, 20, "")
    refused = run("rotate", "fleet.csv", "--pool", DATA / "proxies.txt", "--sandbox")
    skipped = run("rotate", "fleet.csv", "--pool", DATA / "proxies.txt", "--sandbox", "--skip-bad")

    expected = json.loads((DATA / "proxies-expected.json").read_text("utf-8"))
    assert refused.returncode == 2
    for entry in expected:
        if "proxy" not in entry:
            assert f"line {entry['line']}" in refused.stderr
            assert f"line {entry['line']}" in skipped.stderr
    assert skipped.returncode == 0


def test_invalid_lines_and_invalid_rows_are_reported_together(folder) -> None:
    """An operator can correct all of them before the next attempt."""
    (folder / "fleet.csv").write_text("account_id\nacc_1\nacc 2\nacc_3\n")

    done = run("rotate", "fleet.csv", "--pool", DATA / "proxies.txt", "--sandbox")

    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any(line.startswith(f"{DATA / 'proxies.txt'}: line 21, port") for line in lines)
    assert any(line.startswith("fleet.csv: line 3, account_id") for line in lines)
    assert lines[-1] == (
        "nothing was sent: correct them, or use --skip-bad to send only the valid ones: "
        "2 accounts and 500 proxies"
    )


def test_message_for_rows_without_proxy_names_the_options_that_assign_one(folder) -> None:
    """A file with account ids only is the input that new users are most likely to try first."""
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


def test_fleet_can_come_from_a_query(folder) -> None:
    """The journal recognizes the query, so a second run sends the remaining accounts."""
    query = ("--query", "SELECT id AS account_id, country FROM accounts ORDER BY id", "--sandbox")
    database = make_database(folder)
    first = run("rotate", "--from", database, *query, "--limit", "2")
    second = run("rotate", *query, env={"POSTPRESS_DATABASE_URL": database})

    assert first.returncode == 1, first.stderr
    assert second.returncode == 0, second.stderr
    assert states(folder / "query.rotation.sqlite3") == {"patched": 5}
    assert "(2 of them in an earlier run)" in second.stdout


def test_database_url_with_a_password_is_refused_as_an_argument(folder) -> None:
    """Other users of the machine can read the arguments of a process."""
    url = "postgresql+psycopg://me:hunter2@db.invalid/crm"

    done = run("rotate", "--from", url, "--query", "SELECT 1 AS account_id", "--sandbox")

    assert done.returncode == 2
    assert "POSTPRESS_DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_database_url_can_come_from_a_file(folder) -> None:
    (folder / "url").write_text(f"{make_database(folder)}\n")
    query = "SELECT id AS account_id, country FROM accounts"

    done = run("rotate", "--from-file", "url", "--query", query, "--sandbox")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["fleet.csv", "--query", "SELECT 1"], "cannot be combined", id="a file and a query"),
        pytest.param(["--from", "sqlite:///x"], "require --query", id="a database and no query"),
        pytest.param(["--query", "SELECT 1"], "--query requires a database", id="a query and no database"),
    ],
)
def test_query_requires_a_database_and_excludes_a_file(folder, arguments, message) -> None:
    done = run("rotate", *arguments, "--sandbox")

    assert done.returncode == 2
    assert message in done.stderr


# --- The pool ---


def test_dead_proxies_are_quarantined_and_every_account_gets_a_working_proxy(folder) -> None:
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


def test_exhausted_pool_is_reported_and_a_longer_list_serves_the_remaining_accounts(folder) -> None:
    command = ["rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--accounts-per-proxy", "2"]
    write_fleet(folder, 10, "")
    write_pool(folder, 3)
    first = run(*command)
    write_pool(folder, 5)
    second = run(*command)

    assert first.returncode == 1
    assert "the pool is exhausted: 4 accounts got no proxy; add proxies to proxies.txt" in first.stderr
    assert second.returncode == 0, second.stderr
    assert "(6 of them in an earlier run)" in second.stdout


# --- Halts, limits and signals ---


async def test_halt_exits_with_3_and_reports_the_reason(folder, sandbox) -> None:
    write_fleet(folder, 100)
    for number in range(1, 100):
        sandbox.script(f"acc_{number:06}", "errors/disconnected_account")
    # If all accounts got the same 401, the run would halt because of the API key.
    sandbox.script("acc_000000", "errors/resource_not_found")

    done = await arun(sandbox, "rotate", "fleet.csv", "--halt", "5", "--in-flight", "2")

    assert done.returncode == 3
    assert "halted: 5 accounts failed, " in done.stderr
    assert "errors/disconnected_account" in done.stderr
    assert 5 <= sandbox.record.requests <= 6


async def test_failed_canary_stops_the_run_before_other_accounts_are_sent(folder, sandbox) -> None:
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


async def test_next_run_sends_the_accounts_beyond_the_limit(folder, sandbox) -> None:
    write_fleet(folder, 50)
    first = await arun(sandbox, "rotate", "fleet.csv", "--limit", "20")
    second = await arun(sandbox, "rotate", "fleet.csv")

    assert (first.returncode, second.returncode) == (1, 0)
    assert "to continue, run the same command again" in first.stderr
    assert states(folder / JOURNAL) == {"patched": 50}
    assert sandbox.record.requests == 50


async def test_max_duration_stops_the_run_and_skips_the_remaining_accounts(folder) -> None:
    write_fleet(folder, 400)
    async with Sandbox(latency=0.02) as sandbox:
        done = await arun(sandbox, "rotate", "fleet.csv", "--max-duration", "0.3s", "--in-flight", "2")

    assert done.returncode == 1
    assert "--max-duration has passed" in done.stderr
    patched = len(sandbox.record.patched_accounts)
    assert states(folder / JOURNAL) == {"patched": patched, "skipped": 400 - patched}


async def test_ctrl_c_in_an_outage_sends_no_retry(folder) -> None:
    """Accounts in backoff are skipped, and the last message says how to continue."""
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
            stopped_at = time.monotonic()
            _, errors = await process.communicate()
            elapsed = time.monotonic() - stopped_at

    assert process.returncode == 130
    assert b"to continue, run the same command again" in errors
    assert elapsed < 5.0
    assert sandbox.record.requests <= sent + in_flight + 1
    assert states(folder / JOURNAL) == {"skipped": 200}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_second_signal_ends_the_process_within_a_second(folder, number) -> None:
    write_fleet(folder, 100)
    async with Sandbox(latency=3600.0) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "10") as process:
            await until(lambda: sandbox.record.requests >= 10, process)
            process.send_signal(number)
            assert process.stderr is not None
            while b"stopping" not in await process.stderr.readline():
                pass
            second_at = time.monotonic()
            process.send_signal(number)
            await process.communicate()
            elapsed = time.monotonic() - second_at

    assert process.returncode == 130
    assert elapsed < 1.0
    assert states(folder / JOURNAL) == {"unknown": 10}


async def test_further_signals_have_no_effect(folder) -> None:
    """A user may hold Ctrl-C down: the run still ends with its advice, and without a traceback."""
    write_fleet(folder, 100)
    async with Sandbox(latency=3600.0) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "10") as process:
            await until(lambda: sandbox.record.requests >= 10, process)
            while process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.001)
                if (folder / JOURNAL).exists() and states(folder / JOURNAL):
                    break  # the outcomes are recorded; the signal handlers may be removed from now on
            _, errors = await process.communicate()

    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"to continue, run the same command again" in errors


# --- A journal that cannot be written ---


def limit_file_size(size: int) -> Callable[[], None]:
    """A function that lets no file of its process grow beyond *size* bytes, as if the disk were full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


async def test_full_disk_ends_the_run_and_reports_the_number_of_unrecorded_outcomes(folder) -> None:
    """Each request is either recorded or counted in the message."""
    write_fleet(folder, 20_000)
    async with Sandbox(latency=0.005) as sandbox:
        async with started(
            sandbox, "rotate", "fleet.csv", "--in-flight", "20", preexec_fn=limit_file_size(400_000)
        ) as process:
            _, errors = await process.communicate()
        sent = sandbox.record.requests

    assert process.returncode == 3
    [message] = [line for line in errors.decode().splitlines() if "could not be recorded" in line]
    assert JOURNAL in message
    assert "run the same command again" in message
    assert b"Traceback" not in errors
    recorded = states(folder / JOURNAL)["patched"]
    unrecorded = int(message.partition("the outcome of ")[2].split()[0].replace(",", ""))
    assert sent == recorded + unrecorded < 20_000


async def test_deleting_the_journal_during_the_run_ends_the_run(folder) -> None:
    """The process could still write outcomes to the deleted file, but nobody could read them."""
    write_fleet(folder, 20_000)
    async with Sandbox(latency=0.005) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--in-flight", "20") as process:
            await until(lambda: sandbox.record.requests >= 500, process)
            (folder / JOURNAL).unlink()
            _, errors = await process.communicate()

    assert process.returncode == 3
    assert b"the file was deleted or replaced under way, so the journal is lost" in errors
    assert b"could not be recorded (acc_" in errors
    assert b"run the same command again" not in errors  # that would start a new journal
    assert sandbox.record.requests < 5_000


def test_read_only_journal_path_is_reported_before_anything_is_sent(folder) -> None:
    write_fleet(folder, 3)
    # Not even root can create a file in /proc.
    done = run("rotate", "fleet.csv", "--sandbox", "--journal", "/proc/run.sqlite3")

    assert done.returncode == 3
    [message] = done.stderr.splitlines()
    assert message.startswith("postpress-async: /proc/run.sqlite3 cannot be written")


# --- Output ---


async def test_json_events_go_to_stdout_and_messages_to_stderr(folder, sandbox) -> None:
    """A program can read all of standard output as JSON."""
    write_fleet(folder, 5)
    sandbox.script("acc_000001", "errors/proxy_error")
    sandbox.script("acc_000002", "errors/disconnected_account")

    done = await arun(sandbox, "rotate", "fleet.csv", "--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert (events[0]["event"], events[0]["total"], events[0]["journal"]) == ("begun", 5, JOURNAL)
    assert events[-1]["event"] == "ended"
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


async def test_verbose_prints_each_retry(folder, sandbox) -> None:
    write_fleet(folder, 1)
    sandbox.script("acc_000000", "errors/provider_error")

    done = await arun(sandbox, "rotate", "fleet.csv", "-v")

    assert "acc_000000: errors/provider_error in attempt 1; retrying in " in done.stderr


@pytest.mark.parametrize("arguments", ["", "--json"])
def test_closed_pipe_causes_no_traceback_and_the_journal_is_complete(folder, arguments) -> None:
    """`head -1` closes the pipe after one line."""
    write_fleet(folder, 500)
    command = f"{sys.executable} -m postpress_async rotate fleet.csv --sandbox {arguments} | head -1"

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


def test_terminal_shows_a_bar_and_messages_on_lines_of_their_own(folder) -> None:
    """Messages of -v are printed above the bar and never into its line."""
    write_fleet(folder, 400)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *"-m postpress_async rotate fleet.csv --sandbox -v --profile flaky".split()],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30"},
    )
    os.close(follower)
    shown = b""
    with suppress(OSError):  # Linux raises it when the process has closed the terminal
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


# --- Failed accounts and unknown outcomes ---


async def test_retry_failed_sends_the_failed_accounts_again(folder, sandbox) -> None:
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


def test_suggested_retry_command_repeats_the_pool_and_the_sandbox(folder) -> None:
    """Without --pool, the command would be refused. Without --sandbox, it would use the real API."""
    write_fleet(folder, 400, "")
    write_pool(folder, 3).rename(folder / "my list.txt")
    arguments = ["--pool", "my list.txt", "--sandbox", "--profile", "flaky", "--halt", "never"]
    first = run("rotate", "fleet.csv", *arguments)
    command = first.stderr.partition("to retry the failed accounts: ")[2].splitlines()[0]

    again = run(*shlex.split(command)[1:])

    assert command.endswith(f"{JOURNAL} fleet.csv --pool 'my list.txt' --sandbox")
    assert again.returncode == 0, again.stderr
    assert states(folder / JOURNAL) == {"patched": 400}


def test_invalid_rows_do_not_cause_the_advice_to_run_the_command_again(folder) -> None:
    """The same command would skip the same rows again."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,UK\n")

    for _ in range(2):  # with a new journal, and with the existing one
        done = run("rotate", "fleet.csv", "--sandbox", "--skip-bad")
        assert done.returncode == 1
        assert "1 invalid row left out: fix it and rotate it as a separate fleet" in done.stderr
        assert "run the same command again" not in done.stderr


def test_retry_failed_requires_an_existing_journal(folder) -> None:
    write_fleet(folder, 3)

    assert run("retry-failed", JOURNAL, "fleet.csv", "--sandbox").returncode == 2


def test_retry_failed_requires_the_same_fleet(folder) -> None:
    write_fleet(folder, 3)
    run("rotate", "fleet.csv", "--sandbox")
    write_fleet(folder, 4)

    done = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox")

    assert done.returncode == 2
    assert "belongs to another input" in done.stderr


async def test_on_unknown_report_does_not_send_accounts_in_doubt(folder, sandbox) -> None:
    write_fleet(folder, 3)
    sandbox.script("acc_000001", Fault(type="errors/unexpected_error"))
    await arun(sandbox, "rotate", "fleet.csv")
    done = await arun(sandbox, "rotate", "fleet.csv", "--on-unknown", "report")

    assert done.returncode == 1
    assert sandbox.record.requests == 3
    assert "1 unknown" in done.stdout


async def test_advice_about_accounts_in_doubt_does_not_name_another_journal(folder, sandbox) -> None:
    """With a new journal, the run would send every account again, including patched ones."""
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


async def test_account_in_doubt_is_reported_by_a_run_with_another_pool(folder, sandbox) -> None:
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


async def test_halted_run_names_the_command_that_continues_it(folder, sandbox) -> None:
    write_fleet(folder, 3)
    sandbox.script("acc_000001", Fault(type="errors/resource_not_found"))

    done = await arun(sandbox, "rotate", "fleet.csv", "--halt", "1")

    assert "fix the cause, then run the same command again: postpress-async rotate" in done.stderr


def test_retry_failed_without_failed_accounts_sends_nothing_and_exits_with_0(folder) -> None:
    write_fleet(folder, 3)
    run("rotate", "fleet.csv", "--sandbox")

    done = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox")

    assert done.returncode == 0
    assert done.stdout.startswith(f"nothing was sent: no account in {JOURNAL} failed; ")
    assert "--journal" not in done.stdout


# --- Transports, environment variables and help ---


@pytest.mark.parametrize("transport", ["session", "lean"])
async def test_rotate_and_update_work_with_both_transports(folder, sandbox, transport) -> None:
    write_fleet(folder, 50)
    rotated = await arun(sandbox, "rotate", "fleet.csv", "--transport", transport)
    updated = await arun(sandbox, "update", "acc_1", "--country", "US", "--transport", transport)

    assert (rotated.returncode, updated.returncode) == (0, 0)
    assert states(folder / JOURNAL) == {"patched": 50}
    assert sandbox.record.requests == 51


def test_only_the_owner_can_read_the_journal(folder) -> None:
    write_fleet(folder, 3)
    run("rotate", "fleet.csv", "--sandbox")

    assert stat.S_IMODE((folder / JOURNAL).stat().st_mode) == 0o600


def test_options_can_come_from_environment_variables(folder) -> None:
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
def test_help_lists_each_option_except_help_in_a_named_group(command) -> None:
    """Options without a group are listed under the heading Options."""
    help_text = run(command, "--help", env={"COLUMNS": "80"}).stdout

    ungrouped = help_text.partition("\nOptions:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\S+)", ungrouped, re.MULTILINE) == ["-h,"]


def test_help_shows_each_command_without_cutting_its_summary() -> None:
    """click shortens long summaries and ends them with three dots."""
    help_text = run("--help", env={"COLUMNS": "80"}).stdout

    assert "..." not in help_text.partition("Commands:\n")[2]


def test_every_command_has_an_example_in_its_help() -> None:
    listed = run("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    commands = [line.split()[0] for line in listed.splitlines() if not line.startswith("   ")]

    assert set(commands) >= {"rotate", "retry-failed", "update", "sandbox", "errors", "completion"}
    for command in (["proxies", "check"] if name == "proxies" else [name] for name in commands):
        assert f"postpress-async {' '.join(command)}" in run(*command, "--help").stdout, command


# --- Standard output that cannot be written ---


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["rotate", "--sandbox"], 0), (["errors"], 2), (["--help"], 2)],
    ids=["rotate", "errors", "help"],
)
def test_full_disk_under_standard_output_causes_no_traceback(folder, arguments, code) -> None:
    """A rotation keeps its exit code even if its summary cannot be written."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "postpress_async", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_closed_standard_output_is_reported_in_a_sentence(folder) -> None:
    """Background jobs may have no standard output."""
    run("rotate", "--sandbox")
    command = f"{sys.executable} -m postpress_async export sandbox.rotation.sqlite3 >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "postpress-async: standard output is closed; write to a file with -o FILE\n"


def test_variable_postpress_version_does_not_act_as_the_version_option(folder) -> None:
    """Container images often set such a variable. Each command would only print its version."""
    assert "errors/proxy_error" in run("errors", env={"POSTPRESS_VERSION": "1"}).stdout


async def test_run_that_lost_its_journal_still_writes_the_event_ended(folder) -> None:
    """Programs wait for `ended` after each `begun`."""
    write_fleet(folder, 20_000)
    async with Sandbox(latency=0.01) as sandbox:
        async with started(sandbox, "rotate", "fleet.csv", "--json") as process:
            await until(lambda: sandbox.record.requests >= 200, process)
            (folder / JOURNAL).unlink()
            out, _ = await process.communicate()

    last = json.loads(out.splitlines()[-1])
    assert (process.returncode, last["event"], last["exit_code"]) == (3, "ended", 3)
