"""Proxy pools on the command line, messages about unusable inputs, and suggested commands."""

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postpress_async import Fleet
from tests.support.command_line import JOURNAL, arun, environment, run, states, write_fleet, write_pool

pytestmark = pytest.mark.slow


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def query_journal(folder: Path, sql: str) -> list[Any]:
    """The rows of a query. Rows of one column are returned as its values."""
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        rows = connection.execute(sql).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


# --- The accounts that use the pool ---


@pytest.mark.parametrize(
    ("fleet", "kinds"),
    [
        pytest.param(
            "account_id,country\nacc_1,US\nacc_2,DE\n",
            "2 with a managed proxy",
            id="managed proxies",
        ),
        pytest.param(
            "account_id,proxy\nacc_1,http://h.example:80\n",
            "1 with a proxy of their own",
            id="own proxies",
        ),
        pytest.param(
            "account_id,proxy,ip\nacc_1,http://h.example:80,\nacc_2,,203.0.113.7\n",
            "1 with a proxy of their own, 1 with a managed proxy",
            id="both",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["a run", "a dry run"])
def test_pool_that_no_row_would_use_is_refused(folder, fleet, kinds, arguments) -> None:
    """The operator expects accounts to get the proxies of the list. Managed proxies would be billed."""
    (folder / "fleet.csv").write_text(fleet)
    write_pool(folder, 3)

    done = run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"nothing was sent: no row would use --pool, since all have changes of their own ({kinds}). "
        "Remove --pool, or empty the columns proxy, country and ip\n"
    )
    assert not (folder / JOURNAL).exists()


def test_counts_of_a_mixed_fleet_are_shown_before_anything_is_sent(folder) -> None:
    """A row with a country orders a managed proxy instead of using the pool."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,US\nacc_2,\nacc_3,\n")
    write_pool(folder, 3)
    arguments = ["rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox"]

    dry, real = run(*arguments, "--dry-run"), run(*arguments)

    assert dry.stdout.splitlines()[:2] == [
        "3 accounts: 1 with a managed proxy, 2 with a proxy from the pool",
        "3 proxies in proxies.txt, assigned round-robin to 2 accounts",
    ]
    assert real.stderr.splitlines()[0] == "3 accounts: 1 with a managed proxy, 2 with a proxy from the pool"


def test_several_lists_form_one_pool(folder) -> None:
    write_fleet(folder, 4, "")
    (folder / "us.txt").write_text("us1.example:80\nus2.example:80\n")
    (folder / "de.txt").write_text("de1.example:80\nde2.example:80\n")

    done = run("rotate", "fleet.csv", "--pool", "us.txt", "--pool", "de.txt", "--sandbox")

    assert done.returncode == 0, done.stderr
    used = set(query_journal(folder, "SELECT assignment FROM outcomes"))
    assert used == {"us1.example:80", "us2.example:80", "de1.example:80", "de2.example:80"}


def test_environment_variable_names_several_lists_separated_by_colons(folder) -> None:
    write_fleet(folder, 1, "")
    (folder / "us.txt").write_text("us1.example:80\n")
    (folder / "de.txt").write_text("de1.example:80\n")

    done = run("rotate", "fleet.csv", "--sandbox", "--dry-run", env={"POSTPRESS_POOL": "us.txt:de.txt"})

    assert "2 proxies in us.txt and de.txt, assigned round-robin to 1 account\n" in done.stdout


@pytest.mark.parametrize("other", [("--pool", "-"), ("--api-key-file", "-")], ids=["a list", "the API key"])
def test_standard_input_can_be_only_one_file(folder, other) -> None:
    """A second reader would find standard input empty."""
    write_fleet(folder, 1, "")

    done = run("rotate", "fleet.csv", "--pool", "-", *other, "--sandbox")

    assert done.returncode == 2
    assert "standard input can be only one of FLEET, --pool, --api-key-file and --from-file" in done.stderr


async def test_no_new_run_follows_a_resumed_one_if_the_pool_is_standard_input(folder, sandbox) -> None:
    """Standard input cannot be read a second time, so the next start of the command starts the new run."""
    write_fleet(folder, 3, "")
    command = ("rotate", "fleet.csv", "--pool", "-", "--every", "0s")
    await arun(sandbox, *command, "--limit", "1", input="p1.example:80\n")

    done = await arun(sandbox, *command, input="p1.example:80\n")

    assert done.returncode == 0, done.stderr
    assert sandbox.record.requests == 3


def test_unused_columns_of_a_proxy_list_are_reported(folder) -> None:
    write_fleet(folder, 1, "")
    (folder / "list.csv").write_text("Type,IP,Port,Login,Pass,Country\nHTTP,192.0.2.1,80,u,hunter2,US\n")

    done = run("rotate", "fleet.csv", "--pool", "list.csv", "--sandbox", "--dry-run")

    assert done.stderr == "list.csv: 1 column is not used: 'Country'\n"
    address = '"host": "192.0.2.1", "port": 80, "protocol": "http"'
    assert f'{{"proxy": {{{address}, "username": "u", "password": "***"}}}}' in done.stdout


def test_resumed_run_continues_in_the_list_where_the_last_command_ended(folder) -> None:
    """If each command started at the top of the list, the first proxies would get all accounts."""
    write_fleet(folder, 12, "")
    write_pool(folder, 6)
    for _ in range(3):
        run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--limit", "4")

    accounts = dict(query_journal(folder, "SELECT assignment, count(*) FROM outcomes GROUP BY assignment"))
    assert accounts == {f"user{n}@p{n:03}.example.net:8080": 2 for n in range(6)}


def test_dry_run_shows_the_requests_that_the_resumed_run_sends(folder) -> None:
    write_fleet(folder, 12, "")
    write_pool(folder, 6)
    arguments = ["rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--in-flight", "1"]
    run(*arguments, "--limit", "4")

    dry = run(*arguments, "--dry-run")
    run(*arguments)

    shown = re.findall(r"accounts/(\w+) .*\"host\": \"([^\"]+)", dry.stdout)
    sent = query_journal(
        folder, "SELECT account_id, assignment FROM outcomes ORDER BY ordinal LIMIT 3 OFFSET 4"
    )
    assert shown == [(account, label.partition("@")[2].partition(":")[0]) for account, label in sent]


# --- Tags ---


def test_pool_by_country_chooses_the_pool_and_orders_no_managed_proxy(folder) -> None:
    """Without --pool-by, the column country orders managed proxies, which are billed."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,us\nacc_2,DE\nacc_3,US\n")
    (folder / "us.txt").write_text("us1.example:80\n")
    (folder / "rest.csv").write_text("Country,IP,Port\nDE,de1.example,80\nFR,fr1.example,80\n")
    arguments = ["rotate", "fleet.csv", "--pool", "US=us.txt", "--pool", "rest.csv", "--pool-by", "Country"]

    dry, real = run(*arguments, "--sandbox", "--dry-run"), run(*arguments, "--sandbox")

    assert dry.stdout.splitlines()[:3] == [
        "3 accounts: 3 with a proxy from the pool",
        "1 proxy for US, assigned round-robin to 2 accounts",
        "1 proxy for DE, assigned round-robin to 1 account",
    ]
    unused = "1 proxy is not used, since no row needs one for FR"
    assert dry.stderr.splitlines() == [unused]
    assert real.stderr.splitlines()[0] == unused
    assert real.returncode == 0, real.stderr
    assignments = dict(query_journal(folder, "SELECT account_id, assignment FROM outcomes"))
    assert assignments == {"acc_1": "us1.example:80", "acc_2": "de1.example:80", "acc_3": "us1.example:80"}


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["a run", "a dry run"])
def test_pool_option_whose_tag_no_row_has_is_refused(folder, arguments) -> None:
    (folder / "fleet.csv").write_text("account_id,pool\nacc_1,US\n")
    for tag in ("us", "de", "fr"):
        (folder / f"{tag}.txt").write_text(f"{tag}1.example:80\n")
    command = ["rotate", "fleet.csv", "--pool", "US=us.txt", "--sandbox", *arguments]

    one_unused = run(*command, "--pool", "DE=de.txt")
    two_unused = run(*command, "--pool", "DE=de.txt", "--pool", "FR=fr.txt")

    assert (one_unused.returncode, one_unused.stdout) == (2, "")
    assert (two_unused.returncode, two_unused.stdout) == (2, "")
    sentence = "nothing was sent: no row would use {} for {}. Remove it, or correct the tags\n"
    assert one_unused.stderr == sentence.format("the --pool", "DE")
    assert two_unused.stderr == sentence.format("any --pool", "DE, FR")


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["a run", "a dry run"])
def test_rows_whose_tag_has_no_pool_are_reported_in_one_line(folder, arguments) -> None:
    rows = "".join(f"acc_{n},{'DE' if n else 'US'}\n" for n in range(3000))
    (folder / "fleet.csv").write_text(f"account_id,pool\n{rows}")
    (folder / "us.txt").write_text("us1.example:80\n")

    done = run("rotate", "fleet.csv", "--pool", "US=us.txt", "--sandbox", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fleet.csv: 2,999 lines (3, 4, 5, 6, 7 and 2,994 more), pool: no pool for DE: add such a pool, or "
        "name one of US\n"
        "nothing was sent: correct them, or use --skip-bad to send only the valid ones: "
        "1 account and 1 proxy\n"
    )


def test_rows_whose_tag_has_no_pool_can_be_skipped(folder) -> None:
    (folder / "fleet.csv").write_text("account_id,pool\nacc_1,US\nacc_2,DE\n")
    (folder / "us.txt").write_text("us1.example:80\n")
    arguments = ["rotate", "fleet.csv", "--pool", "US=us.txt", "--sandbox", "--skip-bad"]

    first, again = run(*arguments), run(*arguments)

    assert first.returncode == 1, first.stderr
    assert states(folder / JOURNAL) == {"patched": 1, "skipped": 1}
    assert "Traceback" not in again.stderr


def test_equals_sign_in_the_name_of_an_existing_file_does_not_separate_a_tag(folder) -> None:
    write_fleet(folder, 1, "")
    (folder / "a=b.txt").write_text("h.example:80\n")

    done = run("rotate", "fleet.csv", "--pool", "a=b.txt", "--sandbox", "--dry-run")

    assert "1 proxy in a=b.txt, assigned round-robin to 1 account\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pool-by", "country"], "--pool-by requires --pool"),
        (
            ["--pool", "us.txt", "--pool", "DE=us.txt"],
            "us.txt has no column pool with the tags of its proxies",
        ),
        (["--pool", "US=u:hunter2@h.example:80"], "everyone on this machine can read a password"),
    ],
    ids=["no pool", "a list without tags", "a tagged proxy instead of a list"],
)
def test_tags_that_cannot_be_used_are_refused(folder, arguments, sentence) -> None:
    (folder / "fleet.csv").write_text("account_id,pool\nacc_1,US\n")
    (folder / "us.txt").write_text("us1.example:80\n")

    done = run("rotate", "fleet.csv", "--sandbox", *arguments)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "hunter2" not in done.stderr


# --- Templates ---


def test_placeholders_in_a_user_name_are_replaced_for_each_account(folder) -> None:
    """Some gateways choose the exit address by a session id in the user name."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,us\nacc_2,de\n")
    (folder / "gw.txt").write_text("gw.example:7777:c-{account_id}-cc-{country}-s{try}:hunter2\n")
    arguments = ["rotate", "fleet.csv", "--pool", "gw.txt", "--sandbox"]

    dry, real = run(*arguments, "--dry-run"), run(*arguments)

    assert '"username": "c-acc_1-cc-us-s0", "password": "***"' in dry.stdout
    assert '"username": "c-acc_2-cc-de-s0", "password": "***"' in dry.stdout
    assert real.returncode == 0, real.stderr
    labels = query_journal(folder, "SELECT DISTINCT assignment FROM outcomes")
    assert labels == ["c-{account_id}-cc-{country}-s{try}@gw.example:7777"]


# --- Addresses that PostPress cannot reach ---


def test_dry_run_warns_of_private_addresses(folder) -> None:
    (folder / "fleet.csv").write_text(
        "account_id,proxy,ip\nacc_1,http://localhost:80,\nacc_2,10.1.1.1:80:u:p,\nacc_3,,192.168.1.1\n"
        "acc_4,,8.8.8.8\nacc_5,h.example:80,\nacc_6,,\nacc_7,,127.0.0.1\n"
    )
    (folder / "list.txt").write_text("[::1]:80:u:hunter2\nh.example:80\n")
    arguments = ["rotate", "fleet.csv", "--pool", "list.txt", "--dry-run"]

    done, sandboxed = run(*arguments), run(*arguments, "--sandbox")

    assert done.stderr == (
        "5 proxies with localhost, or with an address that is private or not routable, which PostPress can "
        "probably not reach: acc_1 (localhost), acc_2 (10.1.1.1), acc_3 (192.168.1.1) and 2 more\n"
    )
    assert (done.returncode, sandboxed.stderr) == (0, "")


# --- Rows and columns that cannot be used ---


def test_many_unknown_columns_are_reported_in_one_line(folder) -> None:
    names = ",".join(f"c{n}" for n in range(10_000))
    (folder / "fleet.csv").write_text(f"account_id,country,{names}\nacc_1,US\n")

    done = run("rotate", "fleet.csv", "--sandbox", "--dry-run")

    assert done.returncode == 0, done.stderr
    [message] = done.stderr.splitlines()
    assert message.startswith("fleet.csv: 10,000 columns are not used: 'c0', 'c1', ")
    assert message.endswith(", 'c19' and 9,980 more")


def test_dry_run_with_json_writes_one_event(folder) -> None:
    write_fleet(folder, 1000, "")
    write_pool(folder, 5)

    done = run(
        *("rotate", "fleet.csv", "--pool", "proxies.txt", "--rate", "2", "--dry-run", "--json"),
        env={"POSTPRESS_BASE_URL": "http://127.0.0.1:1/v1"},
    )

    assert (done.returncode, done.stderr) == (0, "")
    [event] = events(done.stdout)
    proxy = {"host": "p000.example.net", "port": 8080, "username": "user0", "password": "***"}
    first = {"method": "PATCH", "url": "http://127.0.0.1:1/v1/accounts/acc_000000", "body": {"proxy": proxy}}
    assert event.pop("at") > 0
    assert [len(event["requests"]), event.pop("requests")[0]] == [3, first]
    assert event == {
        "event": "dry_run",
        "exit_code": 0,
        "accounts": 1000,
        "own": 0,
        "managed": 0,
        "pooled": 1000,
        "refused": 0,
        "lists": ["proxies.txt"],
        "proxies": 5,
        "assign": "round-robin",
        "settled": 0,
        "input_edit": None,
        "next_run_at": None,
        "to_send": 1000,
        "seconds": 500.0,
        "api_key": False,
        "journal": JOURNAL,
    }
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["a run", "a dry run"])
def test_json_has_an_event_for_each_invalid_row_and_line(folder, arguments) -> None:
    """The last event has the exit code and the message."""
    (folder / "fleet.csv").write_text("account_id,country\nacc_1,UK\nacc_2,\nacc_2,\n")
    (folder / "list.txt").write_text("h.example:80\nh.example:80:u:hunter2:\nu:hunter2\n")

    done = run("rotate", "fleet.csv", "--pool", "list.txt", "--sandbox", "--json", *arguments)

    printed = events(done.stdout)
    assert done.returncode == 2
    assert [
        (event["event"], event.get("source"), event.get("line"), event.get("account_id")) for event in printed
    ] == [
        ("refused", "list.txt", 3, None),
        ("refused", "fleet.csv", 2, "acc_1"),
        ("refused", "fleet.csv", 4, "acc_2"),
        ("ended", None, None, None),
    ]
    assert (printed[1]["column"], printed[1]["reason"]) == ("country", "country not assigned")
    assert (
        printed[2]["message"] == "line 4, account_id: account already named on line 3: name each account once"
    )
    assert printed[3]["exit_code"] == 2
    assert printed[3]["message"].startswith("nothing was sent: correct them, or use --skip-bad")
    assert "hunter2" not in done.stdout + done.stderr


def test_json_reports_a_pool_that_no_row_would_use(folder) -> None:
    write_fleet(folder, 2)
    write_pool(folder, 1)

    done = run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--json")

    [ended] = events(done.stdout)
    assert (ended["event"], ended["exit_code"]) == ("ended", 2)
    assert ended["message"].startswith("nothing was sent: no row would use --pool")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["text", "json"])
def test_check_of_many_invalid_rows_takes_bounded_memory(folder, arguments) -> None:
    """50,000 invalid rows would take 20 MiB if all of them were kept."""

    def peak(country: str) -> int:
        """The peak of memory in KiB for 50,000 rows with this country."""
        write_fleet(folder, 50_000, country)
        command = [sys.executable, "-c", _PEAK, "rotate", "fleet.csv", "--sandbox", "--dry-run", *arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        return int(done.stderr.splitlines()[-1])

    assert peak("XX") < peak("US") + 12 * 1024


_PEAK = """
import atexit, sys
from postpress_async._cli import run

@atexit.register
def print_peak():
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)

run()
"""


# --- Suggested commands ---


def run_suggested(text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command between the backticks of a message in a shell."""
    [command] = re.findall("`([^`]*(?:rotate|retry-failed) [^`]*)`", text)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("POSTPRESS_")}
    return subprocess.run(
        ["sh", "-c", command],
        env={**variables, "PATH": path, **options.pop("env", {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


async def test_command_that_status_suggests_resumes_the_run_from_any_folder(
    folder, sandbox, tmp_path_factory
) -> None:
    write_fleet(folder, 30, "")
    write_pool(folder, 3).rename(folder / "my list.txt")
    arguments = ["--pool", "my list.txt", "--limit", "10", "--journal", "night 1.sqlite3"]
    await arun(sandbox, "rotate", "fleet.csv", *arguments)
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    here = run("status", "night 1.sqlite3").stdout
    there = run("status", folder / "night 1.sqlite3", cwd=elsewhere).stdout
    first = await asyncio.to_thread(run_suggested, here, env=environment(sandbox))
    second = await asyncio.to_thread(run_suggested, there, env=environment(sandbox), cwd=elsewhere)

    assert (first.returncode, second.returncode) == (1, 0), first.stderr + second.stderr
    assert states(folder / "night 1.sqlite3") == {"patched": 30}


async def test_command_that_status_suggests_retries_the_failed_accounts(folder, sandbox) -> None:
    """The command repeats the options for proxies and requests, but not --halt or -v."""
    write_fleet(folder, 30, "")
    write_pool(folder, 3)
    for number in (3, 4):
        sandbox.script(f"acc_{number:06}", "errors/disconnected_account")
    arguments = ["--pool=proxies.txt", "--on-unknown", "report", "--halt", "never", "-v", "--rate", "10000.5"]
    ended = await arun(sandbox, "rotate", "fleet.csv", *arguments)

    status = run("status", JOURNAL).stdout
    again = await asyncio.to_thread(run_suggested, status, env=environment(sandbox))

    options = "--pool proxies.txt --on-unknown report --rate 10000.5"
    assert f"`postpress-async retry-failed {JOURNAL} fleet.csv {options}`" in status
    assert ended.stderr.endswith(f"retry-failed {JOURNAL} fleet.csv {options}\n")
    assert again.returncode == 0, again.stderr
    assert states(folder / JOURNAL) == {"patched": 30}


def test_report_shows_the_command_that_resumes_the_run(folder) -> None:
    write_fleet(folder, 30, "")
    write_pool(folder, 3)
    run("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--limit", "10")
    run("report", JOURNAL, "-o", "night.html")

    command = "postpress-async rotate fleet.csv --pool proxies.txt --sandbox --limit 10"
    assert command in (folder / "night.html").read_text("utf-8")


async def test_status_suggests_no_command_after_a_run_from_python(folder, sandbox) -> None:
    """The command of an earlier run may name other proxies than the run from Python used."""
    write_fleet(folder, 4)
    await arun(sandbox, "rotate", "fleet.csv", "--limit", "2")
    with Fleet.open("fleet.csv") as fleet:
        async with sandbox.session() as session, session.rotate(fleet, journal=JOURNAL, limit=1) as rotation:
            await rotation.run()

    assert "next: start the same rotation again: " in run("status", JOURNAL).stdout


def test_command_with_a_secret_in_an_argument_creates_no_journal(folder) -> None:
    """The journal records the command."""
    write_fleet(folder, 2)
    url = "postgresql+psycopg://me:hunter2@db.invalid/crm"
    for arguments in (
        ["--from", url, "--query", "SELECT 1 AS account_id"],
        [f"--from={url}", "--query=SELECT 1 AS account_id"],
        ["fleet.csv", "--pool", "u:hunter2@h.example:80"],
        ["fleet.csv", "--pool=http://u:hunter2@h.example:80"],
        ["fleet.csv", "--base-url", "https://me:hunter2@api.example/v1"],
        ["fleet.csv", "--api-key-file", "pp_live_hunter2"],
    ):
        done = run("rotate", *arguments, env={"POSTPRESS_API_KEY": "pp_test_sandbox"})
        assert (done.returncode, "hunter2" in done.stdout + done.stderr) == (2, False), arguments
    assert [path.name for path in folder.iterdir()] == ["fleet.csv"]


# --- Environment variables ---


@pytest.mark.parametrize("arguments", [["rotate", "fleet.csv"], ["retry-failed", JOURNAL, "fleet.csv"]])
def test_rotate_and_retry_failed_read_the_same_environment_variables(folder, arguments) -> None:
    write_fleet(folder, 3)
    run("rotate", "fleet.csv", "--sandbox")

    done = run(*arguments, env={"POSTPRESS_SANDBOX": "1", "POSTPRESS_RATE": "-7"})

    assert done.returncode == 2
    assert "Invalid value for '--rate' (env var: 'POSTPRESS_RATE'): -7" in done.stderr


def test_rotate_and_update_read_the_same_variable_for_the_transport(folder) -> None:
    for arguments in (["rotate", "--sandbox"], ["update", "acc_1", "--country", "US"]):
        done = run(*arguments, env={"POSTPRESS_TRANSPORT": "pigeon"})

        assert done.returncode == 2
        assert "Invalid value for '--transport' (env var: 'POSTPRESS_TRANSPORT'): 'pigeon'" in done.stderr


def test_export_reads_the_variables_that_are_named_after_its_options(folder) -> None:
    write_fleet(folder, 2)
    run("rotate", "fleet.csv", "--sandbox")

    variables = {"POSTPRESS_EXPORT_FORMAT": "jsonl", "POSTPRESS_EXPORT_STATE": "failed skipped"}
    done = run("export", JOURNAL, env=variables)

    assert done.returncode == 0, done.stderr
    assert not done.stdout


def test_sandbox_command_does_not_read_the_variables_of_rotate(folder) -> None:
    """For the command sandbox, --rate is the rate above which it responds with 429."""
    variables = {"POSTPRESS_RATE": "nonsense", "POSTPRESS_SANDBOX_RATE": "pigeon"}
    done = run("sandbox", env=variables)

    assert done.returncode == 2
    assert "Invalid value for '--rate' (env var: 'POSTPRESS_SANDBOX_RATE'): 'pigeon'" in done.stderr
