"""The command line: arguments, exit codes, and one sentence for each error."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from postpress_async.rotation.journal._file import JournalFile
from postpress_async.sandbox import Fault, Sandbox
from tests.support import DATA
from tests.support.command_line import JOURNAL, SANDBOX_KEY, arun, environment, run, states

pytestmark = pytest.mark.slow


# --- rotate ---


def test_every_account_of_a_valid_fleet_is_patched(folder) -> None:
    """The journal, the sandbox and the summary have the same numbers."""
    done = run("rotate", DATA / "fleet.csv", "--sandbox", "--journal", "run.sqlite3")

    total = len((DATA / "fleet.csv").read_text().splitlines()) - 1
    assert done.returncode == 0, done.stderr
    assert states(folder / "run.sqlite3") == {"patched": total}
    assert f"the sandbox received {total:,} requests and patched {total:,} accounts" in done.stdout
    assert f"{total:,} accounts: {total:,} patched" in done.stdout


def test_sandbox_provides_1000_accounts_if_there_is_no_fleet(folder) -> None:
    done = run("rotate", "--sandbox")

    assert done.returncode == 0, done.stderr
    assert states(folder / "sandbox.rotation.sqlite3") == {"patched": 1000}


def test_repeated_command_does_not_send_completed_accounts_again(folder) -> None:
    run("rotate", DATA / "fleet.csv", "--sandbox")
    again = run("rotate", DATA / "fleet.csv", "--sandbox")

    assert again.returncode == 0
    assert "the sandbox received 0 requests" in again.stdout


def test_invalid_rows_are_listed_with_line_column_and_reason_and_nothing_is_sent(folder) -> None:
    """An invalid row that is only found while sending could stop a run after hours."""
    expected = json.loads((DATA / "messy-expected.json").read_text("utf-8"))

    done = run("rotate", DATA / "messy.csv", "--sandbox")

    assert done.returncode == 2
    lines = done.stderr.splitlines()
    for line in expected:
        if not line["ok"]:
            column = f", {line['column']}" if line["column"] else ""
            location = rf"messy\.csv: (line {line['line']}|\d lines \((\d+, )*{line['line']}(, \d+)*\))"
            fault = location + re.escape(f"{column}: {line['because']}")
            assert any(re.match(fault, text) for text in lines), fault
    assert lines[-1].startswith("nothing was sent")
    assert not list(folder.glob("*.sqlite3"))


def test_misspelled_column_is_refused(folder) -> None:
    """If the column were ignored, every account would get the default country instead of its own."""
    (folder / "fleet.csv").write_text("account_id,coutry\nacc_1,US\n")

    done = run("rotate", "fleet.csv", "--sandbox", "--country", "DE")

    assert done.returncode == 2
    assert "Did you mean country?" in done.stderr


def test_profile_requires_the_sandbox(folder) -> None:
    """If --profile were ignored without --sandbox, an intended trial would be a real run."""
    assert run("rotate", DATA / "fleet.csv", "--profile", "flaky").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accounts-per-proxy", "2"], "--accounts-per-proxy requires --pool"),
        (["--assign", "round-robin"], "--assign requires --pool"),  # typed, although it is the default
        (["--assign", "sticky", "--failovers", "0"], "--assign and --failovers require --pool"),
    ],
    ids=["one option", "a default value", "two options"],
)
def test_pool_options_require_a_pool(folder, arguments, message) -> None:
    """The user who types such an option expects a pool, and has forgotten --pool."""
    done = run("rotate", "--sandbox", *arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert os.listdir(folder) == []


def test_environment_variables_of_a_pool_are_ignored_without_a_pool(folder) -> None:
    """Environment variables may be set for all runs. The suggested command does not repeat them."""
    variables = {"POSTPRESS_ASSIGN": "sticky", "POSTPRESS_ACCOUNTS_PER_PROXY": "2"}

    done = run("rotate", "--sandbox", "--profile", "flaky", env=variables)

    assert done.returncode == 1
    assert "retry-failed sandbox.rotation.sqlite3 --sandbox\n" in done.stderr


def test_skip_bad_sends_only_the_valid_rows(folder) -> None:
    expected = json.loads((DATA / "messy-expected.json").read_text("utf-8"))
    valid = sum(line["ok"] for line in expected)

    done = run("rotate", DATA / "messy.csv", "--sandbox", "--skip-bad", "--journal", "run.sqlite3")

    assert done.returncode == 1
    assert states(folder / "run.sqlite3") == {"patched": valid, "skipped": len(expected) - valid}
    assert f"the sandbox received {valid} requests and patched {valid} accounts" in done.stdout


def test_fleet_can_come_from_standard_input(folder) -> None:
    done = run("rotate", "-", "--sandbox", input='{"account_id": "acc_1", "country": "US"}\n')

    assert done.returncode == 0, done.stderr
    assert "1 account: 1 patched" in done.stdout


def test_country_option_applies_to_rows_without_proxy_or_country(folder) -> None:
    (folder / "ids.csv").write_text("account_id\nacc_1\nacc_2\n")

    assert run("rotate", "ids.csv", "--sandbox").returncode == 2
    assert run("rotate", "ids.csv", "--sandbox", "--country", "de").returncode == 0


def make_binary(folder: Path) -> None:
    (folder / "fleet.csv").write_bytes(b"\x7fELF\x00\x00\xff\xfe")


def make_missing_column(folder: Path) -> None:
    (folder / "fleet.csv").write_text("name,country\nacc_1,US\n")


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        pytest.param(lambda folder: (folder / "fleet.csv").touch(), "fleet.csv", id="an empty file"),
        pytest.param(lambda folder: None, "fleet.csv", id="no file"),
        pytest.param(lambda folder: (folder / "fleet.csv").mkdir(), "directory", id="a directory"),
        pytest.param(make_binary, "fleet.csv", id="a binary file"),
        pytest.param(make_missing_column, "account_id", id="a missing column"),
    ],
)
def test_unreadable_input_is_reported_in_one_sentence(folder, make, fact) -> None:
    make(folder)

    done = run("rotate", "fleet.csv", "--sandbox")

    assert done.returncode == 2
    [message] = done.stderr.splitlines()
    assert message.startswith("postpress-async: ")
    assert fact in message


def test_journal_of_another_input_is_refused(folder) -> None:
    """Resuming the run in that journal would skip the wrong accounts."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\n")
    run("rotate", "fleet.csv", "--sandbox", "--journal", "run.sqlite3")
    (folder / "fleet.csv").write_text("account_id,country\nacc_2,US\n")

    done = run("rotate", "fleet.csv", "--sandbox", "--journal", "run.sqlite3")

    assert done.returncode == 2
    [message] = done.stderr.splitlines()
    assert "belongs to another input" in message


def test_journal_in_use_is_refused(folder) -> None:
    file = JournalFile.open(folder / "run.sqlite3", os.O_RDWR | os.O_CREAT)
    assert file.lock()

    done = run("rotate", "--sandbox", "--journal", "run.sqlite3")

    file.close()
    assert done.returncode == 3
    [message] = done.stderr.splitlines()
    assert "in use by another run" in message


def test_missing_api_key_is_reported_before_anything_is_sent(folder) -> None:
    done = run("rotate", DATA / "fleet.csv")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "postpress-async: there is no API key. Set POSTPRESS_API_KEY, or use --api-key-file FILE"
    ]


async def test_no_idempotency_never_repeats_an_order_with_an_unknown_outcome(folder, sandbox) -> None:
    """Without an idempotency key, a second request could order a second managed proxy."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,US\n")
    sandbox.script("acc_1", "lost")
    sandbox.script("acc_3", "lost")

    for arguments in (
        ["rotate", "fleet.csv"],
        ["rotate", "fleet.csv"],
        ["retry-failed", JOURNAL, "fleet.csv"],
        ["update", "acc_3", "--country", "US"],
    ):
        assert (await arun(sandbox, *arguments, "--no-idempotency")).returncode == 1

    assert [sandbox.sends(account) for account in ("acc_1", "acc_2", "acc_3")] == [1, 1, 1]
    assert states(folder / JOURNAL) == {"patched": 1, "unknown": 1}


async def test_wrong_api_key_is_recognized_in_a_fleet_of_three_accounts(folder, sandbox) -> None:
    """One 401 could concern the credentials of its account, but all accounts get the same 401."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,US\nacc_3,US\n")
    wrong_key = environment(sandbox) | {"POSTPRESS_API_KEY": "pp_test_wrong"}

    done = await asyncio.to_thread(run, "rotate", "fleet.csv", env=wrong_key)

    assert done.returncode == 4
    assert "each of the 3 accounts that got a response was refused" in done.stderr
    assert "check the API key" in done.stderr
    assert states(folder / JOURNAL) == {"skipped": 3}

    again = await arun(sandbox, "rotate", "fleet.csv")

    assert again.returncode == 0
    assert sandbox.record.managed_handed_out == 3


@pytest.mark.parametrize("halt", ["50%", "never"])
async def test_api_key_that_is_revoked_during_the_run_exits_with_4(folder, sandbox, halt) -> None:
    """The remaining accounts are skipped rather than failed."""
    accounts = [f"acc_{number}" for number in range(1_000)]
    (folder / "fleet.csv").write_text(
        "account_id,country\n" + "".join(f"{account_id},US\n" for account_id in accounts)
    )
    for account in accounts[500:]:
        sandbox.script(account, "errors/missing_credentials")

    done = await arun(sandbox, "rotate", "fleet.csv", "--halt", halt)

    assert done.returncode == 4
    assert states(folder / JOURNAL) == {"patched": 500, "skipped": 500}


async def test_wrong_api_key_exits_with_4_and_is_not_printed(folder, sandbox) -> None:
    wrong_key = environment(sandbox) | {"POSTPRESS_API_KEY": "pp_test_wrong"}

    done = await asyncio.to_thread(run, "rotate", DATA / "fleet.csv", env=wrong_key)

    assert done.returncode == 4
    assert "check the API key" in done.stderr
    assert "pp_test_wrong" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_one_signal_waits_for_requests_in_flight_and_two_stop_at_once(folder, number) -> None:
    """After two signals, the journal records the outcomes of the requests in flight as unknown."""
    fleet = folder / "fleet.csv"
    fleet.write_text("account_id,country\n" + "".join(f"acc_{n},US\n" for n in range(400)))
    async with Sandbox(latency=0.05) as sandbox:
        one_signal = await interrupt_rotation(sandbox, fleet, number, twice=False)
        after_one = states(folder / JOURNAL)
        patched = len(sandbox.record.patched_accounts)
        sandbox.server.latency = 3600.0
        two_signals = await interrupt_rotation(sandbox, fleet, number, twice=True)
        after_two = states(folder / JOURNAL)

    assert (one_signal, two_signals) == (130, 130)
    assert after_one == {"patched": patched, "skipped": 400 - patched}
    assert 0 < patched < 400
    assert after_two["unknown"] == 10


async def interrupt_rotation(sandbox: Sandbox, fleet: Path, number: int, *, twice: bool) -> int:
    """Send a signal, or two, to a rotation with 10 requests in flight. Return its exit code."""
    requests_before = sandbox.record.requests
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "postpress_async", "rotate", str(fleet), "--in-flight", "10"),
        env={**os.environ, **environment(sandbox)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    while sandbox.record.requests < requests_before + 10:
        assert process.returncode is None, await process.stderr.read()
        await asyncio.sleep(0)
    process.send_signal(number)
    while b"stopping" not in (line := await process.stderr.readline()):
        assert line, "the rotation ended without this message"
    if twice:
        process.send_signal(number)
    await process.communicate()
    assert process.returncode is not None
    return process.returncode


# --- update ---


async def test_update_sends_the_proxy_in_the_file(sandbox, tmp_path) -> None:
    path = tmp_path / "proxy"
    path.write_text("socks5://user:p%40ss@h.example:1080\n")

    done = await arun(sandbox, "update", "acc_1", "--proxy-file", path)

    assert (done.returncode, done.stdout) == (0, "acc_1 patched, in 1 attempt\n")
    assert sandbox.proxy_of("acc_1") == {
        "proxy": {
            "host": "h.example",
            "port": 1080,
            "protocol": "socks5",
            "username": "user",
            "password": "p@ss",
        }
    }


async def test_failed_update_reports_the_error_type(sandbox) -> None:
    sandbox.script("acc_1", "errors/disconnected_account")

    done = await arun(sandbox, "update", "acc_1", "--country", "US")

    assert done.returncode == 1
    assert "acc_1: errors/disconnected_account (HTTP 401)" in done.stderr


def suggested_key(output: str) -> str:
    """The idempotency key in the advice to run the same command again."""
    found = re.search(r"run the same command with: --idempotency-key (\S+)\n", output)
    assert found is not None, output
    return found[1]


async def test_update_with_an_unknown_outcome_can_be_repeated_with_the_suggested_key(sandbox) -> None:
    """Without the key, the API would assign, and bill, a second managed proxy."""
    sandbox.script("acc_1", Fault(type="errors/unexpected_error", executes=True))
    command = ("update", "acc_1", "--country", "US")

    unknown = await arun(sandbox, *command)
    again = await arun(sandbox, *command, "--idempotency-key", suggested_key(unknown.stderr))

    assert unknown.returncode == 1
    assert (again.returncode, again.stdout) == (0, "acc_1 patched, in 1 attempt\n")
    assert sandbox.record.managed_handed_out == 1


async def test_interrupted_update_suggests_its_key(sandbox) -> None:
    """Ctrl-C also leaves the outcome unknown."""
    sandbox.script("acc_1", Fault(ends="never", executes=True))
    command = ("update", "acc_1", "--country", "US")

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "postpress_async", *command),
        env={**os.environ, **environment(sandbox)},
        stderr=subprocess.PIPE,
    )
    while not sandbox.record.managed_handed_out:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    again = await arun(sandbox, *command, "--idempotency-key", suggested_key(errors.decode()))

    assert process.returncode == 130
    assert again.returncode == 0
    assert sandbox.record.managed_handed_out == 1


async def test_failed_update_suggests_the_idempotency_key_that_the_user_gave(sandbox) -> None:
    """An earlier request with the same key may have been applied, although this request was not."""
    sandbox.script("acc_1", "errors/disconnected_account")

    done = await arun(sandbox, "update", "acc_1", "--country", "US", "--idempotency-key", "order-17")

    assert done.returncode == 1
    assert suggested_key(done.stderr) == "order-17"


async def test_update_that_was_certainly_not_applied_suggests_no_key(sandbox) -> None:
    sandbox.script("acc_1", "errors/disconnected_account")

    done = await arun(sandbox, "update", "acc_1", "--country", "US")

    assert "--idempotency-key" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        pytest.param(["--proxy", "http://user:hunter2@h.example:80"], "--proxy-file", id="a proxy's URL"),
        pytest.param(["--proxy=socks5://:hunter2@h:80"], "--proxy-file", id="after an equals sign"),
        pytest.param(["--proxy", "http://user:hun@ter2/x@h:80"], "--proxy-file", id="with a slash in it"),
        pytest.param(["http://user:hunter2@h.example:80"], "--proxy-file", id="an extra argument"),
        pytest.param(["--proxy-file", "http://user:hunter2@h:80"], "--proxy-file", id="in place of a file"),
        pytest.param(["user:hunter2@h.example:80"], "--proxy-file", id="without a scheme"),
        pytest.param(["h.example:80:user:hunter2"], "--proxy-file", id="as proxy sellers write it"),
        pytest.param(["--api-key", "pp_live_hunter2"], "POSTPRESS_API_KEY", id="a key"),
        pytest.param(
            ["--api-key-file", "pp_live_hunter2"], "POSTPRESS_API_KEY", id="a key in place of a file"
        ),
        pytest.param(["--api-key-file=pp_test_hunter2"], "POSTPRESS_API_KEY", id="a test key"),
    ],
)
def test_secret_in_an_argument_is_refused_and_not_printed(arguments, advice) -> None:
    """Other users of the machine can read the arguments of a process."""
    done = run("update", "acc_1", *arguments, env={"POSTPRESS_API_KEY": SANDBOX_KEY})

    assert done.returncode == 2
    assert advice in done.stderr
    assert "ter2" not in done.stdout + done.stderr  # the end of each secret


def test_database_url_is_not_mistaken_for_a_proxy(tmp_path: Path) -> None:
    """The advice to use --proxy-file would be wrong for a database."""
    done = run("rotate", "mysql://u@h:3306", cwd=tmp_path, env={"POSTPRESS_API_KEY": SANDBOX_KEY})

    assert done.returncode == 2
    assert "--proxy-file" not in done.stderr


def test_existing_file_whose_name_looks_like_a_secret_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pp_live_key"
    path.write_text("two lines\nof text\n")

    done = run("update", "acc_1", "--country", "US", "--api-key-file", path.name, cwd=tmp_path)

    assert done.returncode == 2
    assert "should contain the API key in one line" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no proxy and no country"),
        pytest.param(["--country", "UK"], id="an unassigned country"),
        pytest.param(["--country", "US", "--proxy", "http://h:1"], id="a country and a proxy"),
        pytest.param(["--proxy", "h:1"], id="a proxy without a scheme"),
        pytest.param(["--country", "US", "--idempotency-key", "a b"], id="a key with a space"),
        pytest.param(["--proxy-file", "/nowhere"], id="a missing file"),
    ],
)
def test_invalid_update_exits_with_2_and_without_a_traceback(arguments) -> None:
    done = run("update", "acc_1", *arguments, env={"POSTPRESS_API_KEY": SANDBOX_KEY})

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- sandbox and errors ---


def test_sandbox_command_prints_environment_variables_and_counters() -> None:
    command = [sys.executable, "-m", "postpress_async", "sandbox"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        export = process.stdout.readline()
        variables = dict(word.split("=", 1) for word in export.split()[1:])
        done = run("update", "acc_1", "--country", "US", env=variables)
        process.send_signal(signal.SIGINT)
        record = json.loads(process.stdout.read())

    assert done.returncode == 0, done.stderr
    assert (process.returncode, record["requests"], record["patched_accounts"]) == (0, 1, 1)


def test_errors_command_prints_all_34_types() -> None:
    done = run("errors")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1 + 34  # the first line has the column names
    [line] = [line for line in done.stdout.splitlines() if "errors/proxy_error" in line]
    assert line.split() == ["errors/proxy_error", "502", "ProxyError", "proxy", "yes", "no"]


def test_closed_pipe_causes_no_traceback() -> None:
    """`head -1` closes the pipe after one line."""
    done = subprocess.run(
        f"{sys.executable} -m postpress_async errors | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    assert done.stdout.startswith("type ")
