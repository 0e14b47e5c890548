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
from tests.support.command_line import SANDBOX_KEY, run, states

pytestmark = pytest.mark.slow


# --- rotate ---


def test_a_clean_fleet_is_settled_whole(folder) -> None:
    """The journal and the sandbox give the same numbers."""
    done = run("rotate", DATA / "fleet.csv", "--sandbox", "--journal", "run.sqlite3")

    total = len((DATA / "fleet.csv").read_text().splitlines()) - 1
    assert done.returncode == 0, done.stderr
    assert states(folder / "run.sqlite3") == {"patched": total}
    assert f"the sandbox received {total:,} requests and patched {total:,} accounts" in done.stdout
    assert f"{total:,} accounts: {total:,} patched" in done.stdout


def test_without_a_fleet_the_sandbox_brings_its_own_accounts(folder) -> None:
    done = run("rotate", "--sandbox")

    assert done.returncode == 0, done.stderr
    assert states(folder / "sandbox.rotation.sqlite3") == {"patched": 1000}


def test_the_same_command_again_sends_nothing_that_is_settled(folder) -> None:
    run("rotate", DATA / "fleet.csv", "--sandbox")
    again = run("rotate", DATA / "fleet.csv", "--sandbox")

    assert again.returncode == 0
    assert "the sandbox received 0 requests" in again.stdout


def test_bad_rows_are_listed_with_line_column_and_reason_and_nothing_is_sent(folder) -> None:
    """Found at row 900,000 after an hour of sending, a typo costs the night."""
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


def test_a_column_that_is_nearly_known_is_refused(folder) -> None:
    """Ignored without a word, it would give every account the default instead of its own country."""
    (folder / "fleet.csv").write_text("account_id,coutry\nacc_1,US\n")

    done = run("rotate", "fleet.csv", "--sandbox", "--country", "DE")

    assert done.returncode == 2
    assert "Did you mean country?" in done.stderr


def test_options_of_the_sandbox_need_the_sandbox(folder) -> None:
    """A profile that is ignored makes a trial run a real one."""
    assert run("rotate", DATA / "fleet.csv", "--profile", "flaky").returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accounts-per-proxy", "2"], "--accounts-per-proxy requires --pool"),
        (["--assign", "round-robin"], "--assign requires --pool"),  # given, if only the default
        (["--assign", "sticky", "--failovers", "0"], "--assign and --failovers require --pool"),
    ],
    ids=["one", "a default", "two"],
)
def test_options_of_a_pool_need_a_pool(folder, words, message) -> None:
    """Someone who limits the accounts per proxy expects a pool, and forgot to name it."""
    done = run("rotate", "--sandbox", *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert os.listdir(folder) == []


def test_variables_for_a_pool_are_ignored_without_a_pool(folder) -> None:
    """Variables may be set for all runs; the suggested command works with them, too."""
    variables = {"POSTPRESS_ASSIGN": "sticky", "POSTPRESS_ACCOUNTS_PER_PROXY": "2"}

    done = run("rotate", "--sandbox", "--profile", "flaky", env=variables)

    assert done.returncode == 1
    assert "retry-failed sandbox.rotation.sqlite3 --sandbox\n" in done.stderr


def test_bad_rows_can_be_left_out(folder) -> None:
    expected = json.loads((DATA / "messy-expected.json").read_text("utf-8"))
    good = sum(line["ok"] for line in expected)

    done = run("rotate", DATA / "messy.csv", "--sandbox", "--skip-bad", "--journal", "run.sqlite3")

    assert done.returncode == 1
    assert states(folder / "run.sqlite3") == {"patched": good, "skipped": len(expected) - good}
    assert f"the sandbox received {good} requests and patched {good} accounts" in done.stdout


def test_a_fleet_can_be_piped_in(folder) -> None:
    done = run("rotate", "-", "--sandbox", input='{"account_id": "acc_1", "country": "US"}\n')

    assert done.returncode == 0, done.stderr
    assert "1 account: 1 patched" in done.stdout


def test_a_country_serves_the_rows_that_name_nothing(folder) -> None:
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


def test_a_journal_of_another_input_is_refused(folder) -> None:
    """To go on with it would skip the wrong accounts."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\n")
    run("rotate", "fleet.csv", "--sandbox", "--journal", "run.sqlite3")
    (folder / "fleet.csv").write_text("account_id,country\nacc_2,US\n")

    done = run("rotate", "fleet.csv", "--sandbox", "--journal", "run.sqlite3")

    assert done.returncode == 2
    [message] = done.stderr.splitlines()
    assert "belongs to another input" in message


def test_a_journal_in_use_is_refused(folder) -> None:
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


async def test_no_command_sends_an_idempotency_key_that_was_not_wanted(folder, sandbox) -> None:
    """The next run then leaves a managed change in doubt, and a single call does not repeat it."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,US\n")
    environment = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
    sandbox.script("acc_1", "lost")
    sandbox.script("acc_3", "lost")

    async def command(*words: str) -> int:
        done = await asyncio.to_thread(run, *words, "--no-idempotency", env=environment)
        return done.returncode

    journal = "fleet.csv.rotation.sqlite3"
    codes = [
        await command("rotate", "fleet.csv"),
        await command("rotate", "fleet.csv"),
        await command("retry-failed", journal, "fleet.csv"),
        await command("update", "acc_3", "--country", "US"),
    ]

    assert codes == [1, 1, 1, 1]
    assert [sandbox.sends(account) for account in ("acc_1", "acc_2", "acc_3")] == [1, 1, 1]
    assert states(folder / journal) == {"patched": 1, "unknown": 1}


async def test_a_wrong_key_and_a_few_accounts_is_the_key_too(folder, sandbox) -> None:
    """The 401 of each account could also be about its own credentials."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,US\nacc_3,US\n")
    environment = {"POSTPRESS_API_KEY": "pp_test_wrong", "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(run, "rotate", "fleet.csv", env=environment)

    assert done.returncode == 4
    assert "each of the 3 accounts that got a response was refused" in done.stderr
    assert "check the API key" in done.stderr
    assert states(folder / "fleet.csv.rotation.sqlite3") == {"skipped": 3}
    right = {**environment, "POSTPRESS_API_KEY": sandbox.api_key}
    again = await asyncio.to_thread(run, "rotate", "fleet.csv", env=right)
    assert again.returncode == 0
    assert sandbox.record.managed_handed_out == 3


@pytest.mark.parametrize("halt", ["50%", "never"])
async def test_a_key_that_is_revoked_under_way_has_the_same_exit_code(folder, sandbox, halt) -> None:
    """After half of the fleet was patched; no account is `failed` for it."""
    accounts = [f"acc_{number}" for number in range(1_000)]
    (folder / "fleet.csv").write_text(
        "account_id,country\n" + "".join(f"{account_id},US\n" for account_id in accounts)
    )
    for account in accounts[500:]:
        sandbox.script(account, "errors/missing_credentials")
    environment = {"POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(run, "rotate", "fleet.csv", "--halt", halt, env=environment)

    assert done.returncode == 4
    assert states(folder / "fleet.csv.rotation.sqlite3") == {"patched": 500, "skipped": 500}


async def test_a_refused_key_has_its_own_exit_code(folder, sandbox) -> None:
    """A script that sees 4 alerts the owner of the keys."""
    environment = {"POSTPRESS_API_KEY": "pp_test_wrong", "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(run, "rotate", DATA / "fleet.csv", env=environment)

    assert done.returncode == 4
    assert "check the API key" in done.stderr
    assert "pp_test_wrong" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_one_interrupt_settles_what_is_in_flight_and_two_end_at_once(folder, number) -> None:
    """First: nothing new, in-flight settles. Second: in-flight is unknown. The journal is whole."""
    fleet = folder / "fleet.csv"
    fleet.write_text("account_id,country\n" + "".join(f"acc_{n},US\n" for n in range(400)))
    async with Sandbox(latency=0.05) as sandbox:
        first = await _interrupted(sandbox, fleet, number, twice=False)
        after_first = states(folder / "fleet.csv.rotation.sqlite3")
        patched = len(sandbox.record.patched_accounts)
        sandbox.server.latency = 3600.0
        second = await _interrupted(sandbox, fleet, number, twice=True)
        after_second = states(folder / "fleet.csv.rotation.sqlite3")

    assert (first, second) == (130, 130)
    assert after_first == {"patched": patched, "skipped": 400 - patched}
    assert 0 < patched < 400
    assert after_second["unknown"] == 10


async def _interrupted(sandbox: Sandbox, fleet: Path, number: int, *, twice: bool) -> int:
    before = sandbox.record.requests
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "postpress_async", "rotate", str(fleet), "--in-flight", "10"),
        env={**os.environ, "POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    while sandbox.record.requests < before + 10:
        assert process.returncode is None, await process.stderr.read()
        await asyncio.sleep(0)
    process.send_signal(number)
    while b"stopping" not in (line := await process.stderr.readline()):
        assert line, "it ended without a word"
    if twice:
        process.send_signal(number)
    await process.communicate()
    assert process.returncode is not None
    return process.returncode


# --- update ---


async def test_update_gives_one_account_its_proxy(sandbox, tmp_path) -> None:
    path = tmp_path / "proxy"
    path.write_text("socks5://user:p%40ss@h.example:1080\n")
    environment = {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(run, "update", "acc_1", "--proxy-file", path, env=environment)

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


async def test_an_update_that_is_refused_says_why(sandbox) -> None:
    sandbox.script("acc_1", "errors/disconnected_account")
    environment = {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(run, "update", "acc_1", "--country", "US", env=environment)

    assert done.returncode == 1
    assert "acc_1: errors/disconnected_account (HTTP 401)" in done.stderr


def key_to_repeat_with(output: str) -> str:
    """The key that the message says to run the same command with."""
    found = re.search(r"run the same command with: --idempotency-key (\S+)\n", output)
    assert found is not None, output
    return found[1]


async def test_an_update_of_unknown_outcome_is_repeated_with_its_key_without_doubling(sandbox) -> None:
    """The message says how; without the key, a second managed proxy would be handed out, and billed."""
    sandbox.script("acc_1", Fault(type="errors/unexpected_error", executes=True))
    environment = {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}
    command = ("update", "acc_1", "--country", "US")

    unknown = await asyncio.to_thread(run, *command, env=environment)
    key = key_to_repeat_with(unknown.stderr)
    again = await asyncio.to_thread(run, *command, "--idempotency-key", key, env=environment)

    assert unknown.returncode == 1
    assert (again.returncode, again.stdout) == (0, "acc_1 patched, in 1 attempt\n")
    assert sandbox.record.managed_handed_out == 1


async def test_an_update_that_is_interrupted_says_its_key(sandbox) -> None:
    """Ctrl-C leaves the outcome unknown too."""
    sandbox.script("acc_1", Fault(ends="never", executes=True))
    environment = os.environ | {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}
    command = (sys.executable, "-m", "postpress_async", "update", "acc_1", "--country", "US")

    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=subprocess.PIPE)
    while not sandbox.record.managed_handed_out:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    key = key_to_repeat_with(errors.decode())
    again = await asyncio.to_thread(run, *command[3:], "--idempotency-key", key, env=environment)

    assert process.returncode == 130
    assert again.returncode == 0
    assert sandbox.record.managed_handed_out == 1


async def test_an_update_with_the_key_of_an_earlier_one_stays_in_doubt_when_it_is_refused(sandbox) -> None:
    """A refusal of this request says nothing of the earlier one."""
    sandbox.script("acc_1", "errors/disconnected_account")
    environment = {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(
        run, "update", "acc_1", "--country", "US", "--idempotency-key", "order-17", env=environment
    )

    assert done.returncode == 1
    assert key_to_repeat_with(done.stderr) == "order-17"


async def test_an_update_that_applied_nothing_needs_no_key(sandbox) -> None:
    """A key that is not needed would hide the one that is."""
    sandbox.script("acc_1", "errors/disconnected_account")
    environment = {"POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url}

    done = await asyncio.to_thread(run, "update", "acc_1", "--country", "US", env=environment)

    assert "--idempotency-key" not in done.stderr


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        pytest.param(["--proxy", "http://user:hunter2@h.example:80"], "--proxy-file", id="a proxy's URL"),
        pytest.param(["--proxy=socks5://:hunter2@h:80"], "--proxy-file", id="after an equals sign"),
        pytest.param(["--proxy", "http://user:hun@ter2/x@h:80"], "--proxy-file", id="with a slash in it"),
        pytest.param(["http://user:hunter2@h.example:80"], "--proxy-file", id="an argument too many"),
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
def test_a_secret_in_an_argument_is_refused(words, advice) -> None:
    """Everyone on the machine can read it there; the refusal does not repeat it."""
    done = run("update", "acc_1", *words, env={"POSTPRESS_API_KEY": SANDBOX_KEY})

    assert done.returncode == 2
    assert advice in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "ter2" not in done.stdout + done.stderr


def test_a_database_s_url_is_no_proxy_s(tmp_path: Path) -> None:
    """The advice for a proxy's URL does not help with a database's."""
    done = run("rotate", "mysql://u@h:3306", cwd=tmp_path, env={"POSTPRESS_API_KEY": SANDBOX_KEY})

    assert done.returncode == 2
    assert "--proxy-file" not in done.stderr


def test_a_file_may_be_named_like_a_secret(tmp_path: Path) -> None:
    """If the file exists, it is read, whatever its name."""
    path = tmp_path / "pp_live_key"
    path.write_text("two lines\nof text\n")

    done = run("update", "acc_1", "--country", "US", "--api-key-file", path.name, cwd=tmp_path)

    assert done.returncode == 2
    assert "should contain the API key in one line" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="nothing asked for"),
        pytest.param(["--country", "UK"], id="an unassigned country"),
        pytest.param(["--country", "US", "--proxy", "http://h:1"], id="two at once"),
        pytest.param(["--proxy", "h:1"], id="a proxy without a scheme"),
        pytest.param(["--country", "US", "--idempotency-key", "a b"], id="a key with a space"),
        pytest.param(["--proxy-file", "/nowhere"], id="a file that is not there"),
    ],
)
def test_a_wrong_update_is_refused_without_a_traceback(words) -> None:
    done = run("update", "acc_1", *words, env={"POSTPRESS_API_KEY": SANDBOX_KEY})

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- sandbox and errors ---


def test_the_sandbox_says_how_to_reach_it_and_what_it_saw() -> None:
    command = [sys.executable, "-m", "postpress_async", "sandbox"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        export = process.stdout.readline()
        environment = dict(word.split("=", 1) for word in export.split()[1:])
        done = run("update", "acc_1", "--country", "US", env=environment)
        process.send_signal(signal.SIGINT)
        record = json.loads(process.stdout.read())

    assert done.returncode == 0, done.stderr
    assert (process.returncode, record["requests"], record["patched_accounts"]) == (0, 1, 1)


def test_errors_prints_all_34() -> None:
    done = run("errors")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 35
    [line] = [line for line in done.stdout.splitlines() if "errors/proxy_error" in line]
    assert line.split() == ["errors/proxy_error", "502", "ProxyError", "proxy", "yes", "no"]


def test_a_reader_that_hangs_up_is_no_traceback() -> None:
    """`| head -1` closes the pipe."""
    done = subprocess.run(
        f"{sys.executable} -m postpress_async errors | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    assert done.stdout.startswith("type ")
