"""``proxies check`` with real proxies on loopback, with a long list, and its output."""

import asyncio
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from postpress_async.rotation import ProxyPool
from postpress_async.rotation._pool._proxy_list import read_lists
from tests.support.command_line import run
from tests.support.fake_proxies import closed_port, http_proxy, reset, serve, silent, socks_proxy, web_server
from tests.support.real_proxies import PASSWORD, USER, dante, microsocks, requires, squid, tinyproxy

pytestmark = pytest.mark.slow

GOOD = [(USER, PASSWORD)]


async def check(*arguments: object, target: int = 9, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command. Without an echo URL, it asks for a connection to port *target* of this machine."""
    env = {"POSTPRESS_BASE_URL": f"http://127.0.0.1:{target}", **variables}
    done = await asyncio.to_thread(run, "proxies", "check", *arguments, env=env)
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def write_list(*lines: str) -> Path:
    path = Path("proxies.txt")
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The objects that --json prints, by proxy."""
    return {row["proxy"]: row for row in map(json.loads, done.stdout.splitlines())}


def results(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str | None]]:
    """The result and exit address of each proxy."""
    return {name: (row["result"], row["exit_address"]) for name, row in rows(done).items()}


# --- Real proxies ---


@pytest.fixture
async def echo_url() -> AsyncIterator[str]:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"ip": request.remote})

    application = web.Application()
    application.router.add_get("/ip", echo)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/ip"
    await runner.cleanup()


@requires("tinyproxy")
async def test_results_for_tinyproxy(folder, echo_url) -> None:
    with tinyproxy(folder, {USER: PASSWORD}) as port:
        address = f"127.0.0.1:{port}"
        path = write_list(f"{address}:{USER}:{PASSWORD}", f"{address}:other:{PASSWORD}", address)
        done = await check(path, "--echo-url", echo_url, "--json")

    assert results(done) == {
        f"{USER}@{address}": ("works", "127.0.0.2"),
        f"other@{address}": ("wrong-credentials", None),
        address: ("wrong-credentials", None),
    }


@requires("squid")
async def test_results_for_squid_over_tcp_and_tls(folder, echo_url) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    with squid(authority.issue_cert("127.0.0.1")) as (plain, tls):
        good = f"{USER}:{PASSWORD}@127.0.0.1"
        path = write_list(
            *(f"http://{good}:{plain}", f"https://{good}:{tls}", f"https://other:{PASSWORD}@127.0.0.1:{tls}")
        )
        done = await check(path, "--echo-url", echo_url, "--json", SSL_CERT_FILE="ca.pem")
        not_trusted = await check(path, "--echo-url", echo_url, "--json")
        unreachable = await check(write_list(f"http://{good}:{plain}"), "--json", target=closed_port())
        not_tls = await check(write_list(f"https://{good}:{plain}"), "--json", SSL_CERT_FILE="ca.pem")

    assert results(done) == {
        f"{USER}@127.0.0.1:{plain}": ("works", "127.0.0.3"),
        f"{USER}@127.0.0.1:{tls}": ("works", "127.0.0.3"),
        f"other@127.0.0.1:{tls}": ("wrong-credentials", None),
    }
    assert results(not_trusted)[f"{USER}@127.0.0.1:{tls}"] == ("tls-failed", None)
    assert results(unreachable) == {f"{USER}@127.0.0.1:{plain}": ("target-refused", None)}
    assert results(not_tls) == {f"{USER}@127.0.0.1:{plain}": ("tls-failed", None)}


@requires("danted")
async def test_results_for_dante(folder, echo_url) -> None:
    with dante(folder, "none") as port, dante(folder, "username") as closed:
        path = write_list(
            f"socks5://127.0.0.1:{port}", f"socks5h://nobody-here:{PASSWORD}@127.0.0.1:{closed}"
        )
        done = await check(path, "--echo-url", echo_url, "--json")
        unreachable = await check(write_list(f"socks5://127.0.0.1:{port}"), "--json", target=closed_port())

    assert results(done) == {
        f"127.0.0.1:{port}": ("works", "127.0.0.1"),
        f"nobody-here@127.0.0.1:{closed}": ("wrong-credentials", None),
    }
    assert results(unreachable) == {f"127.0.0.1:{port}": ("target-refused", None)}


@requires("microsocks")
async def test_results_for_microsocks(folder, echo_url) -> None:
    with microsocks() as port:
        path = write_list(*(f"127.0.0.1:{port}:{user}:{PASSWORD}" for user in (USER, "other")))
        done = await check(path, "--protocol", "socks5", "--echo-url", echo_url, "--json")

    assert results(done) == {
        f"{USER}@127.0.0.1:{port}": ("works", "127.0.0.5"),
        f"other@127.0.0.1:{port}": ("wrong-credentials", None),
    }


# --- A long list ---


@requires("tinyproxy")
async def test_results_for_700_working_and_300_dead_proxies(folder) -> None:
    """The check takes at most 15 s, although each silent proxy takes its deadline of 6 s."""
    users = {f"user{number}": f"{PASSWORD}-{number}" for number in range(1_000)}
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        real = stack.enter_context(tinyproxy(folder, dict(list(users.items())[:350])))
        ports = {
            "works": [("http", real)] * 350
            + [("socks5", await start(serve(socks_proxy(users.items()))))] * 350,
            "refused": [("http", closed_port())] * 50,
            "timed-out": [("http", await start(serve(silent)))] * 25
            + [("socks5", await start(serve(silent)))] * 25,
            "wrong-credentials": [("http", real)] * 50,
            "tls-failed": [("https", await start(serve(silent)))] * 50,
            "not-a-proxy": [("http", await start(serve(web_server("405 Not Allowed"))))] * 50,
            "reset": [("http", await start(serve(reset)))] * 50,
        }
        servers = [(result, *server) for result, servers in ports.items() for server in servers]
        assert len(servers) == len(users)
        expected, lines = {}, []
        for (user, password), (result, protocol, port) in zip(users.items(), servers, strict=True):
            lines.append(f"{protocol}://{user}:{password}@127.0.0.1:{port}")
            expected[f"{user}@127.0.0.1:{port}"] = result
        random.Random(0).shuffle(lines)
        target = await start(serve(silent))
        started_at = time.monotonic()
        arguments = "--json --deadline 6s --write working.csv".split()
        done = await check(write_list(*lines), *arguments, target=target)
        elapsed = time.monotonic() - started_at

    assert {name: row["result"] for name, row in rows(done).items()} == expected
    assert Counter(expected.values())["works"] == 700
    assert done.returncode == 1
    assert elapsed < 15
    written = ProxyPool.read("working.csv")
    assert {pooled.label for pooled in written} == {name for name in expected if expected[name] == "works"}


# --- Output ---


async def test_output_has_a_table_and_a_summary(folder) -> None:
    async with serve(http_proxy(GOOD)) as good, serve(reset) as bad, serve(silent) as target:
        path = write_list(f"127.0.0.1:{bad}", f"127.0.0.1:{good}:{USER}:{PASSWORD}", "gw:1:c-{account_id}:pw")
        done = await check(path, target=target)

    assert done.returncode == 1
    shown = [re.sub(r"\d+\.\d\d", "~", line).split(maxsplit=3) for line in done.stdout.splitlines()]
    assert shown == [
        ["proxy", "result", "seconds", "detail"],
        [
            "c-{account_id}@gw:1",
            "not-checked",
            "~",
            "it is a template, which depends on the account",
        ],
        [f"{USER}@127.0.0.1:{good}", "works", "~"],
        [
            f"127.0.0.1:{bad}",
            "reset",
            "~",
            "the connection was closed: no response to the request for a connection",
        ],
    ]
    assert re.sub(r"\d+\.\d s", "~ s", done.stderr).splitlines() == [
        "3 proxies checked in ~ s: 1 not-checked, 1 works, 1 reset",
        "this is what this machine sees: PostPress connects to proxies from its own network",
        "proxies whose line names no protocol were checked as http (--protocol)",
    ]


async def test_exit_code_is_0_if_all_proxies_work(folder) -> None:
    async with serve(socks_proxy(GOOD)) as port, serve(silent) as target:
        done = await check(write_list(f"socks5://{USER}:{PASSWORD}@127.0.0.1:{port}"), target=target)

    assert done.returncode == 0
    assert "no protocol" not in done.stderr


async def test_written_list_has_the_same_proxies_without_those_that_failed(folder) -> None:
    """The list has a proxy without a protocol, a template, and a password with special characters."""
    special = f'{PASSWORD} "a,b:c@d%40'
    async with serve(http_proxy([(USER, special), (USER, PASSWORD)])) as port, serve(silent) as target:
        path = write_list(
            "host,port,protocol,username,password",
            f'127.0.0.1,{port},,{USER},"{special.replace(chr(34), chr(34) * 2)}"',
            f"127.0.0.1,{closed_port()},http,,",
            f"localhost,{port},http,{USER},{PASSWORD}",
            "gw.example,7777,socks5,c-{account_id},pw",
        )
        done = await check(path, "--write", "working.csv", target=target)
    before, after = ([pooled.proxy for pooled in ProxyPool.read(name)] for name in (path, "working.csv"))

    assert after == [before[0], *before[2:]]
    assert stat.S_IMODE(os.stat("working.csv").st_mode) == 0o600
    assert "written: working.csv (3 proxies with their passwords)\n" in done.stderr


async def test_written_list_keeps_the_columns_of_its_source(folder) -> None:
    """--pool-by needs the column with the tags."""
    async with serve(http_proxy()) as port, serve(silent) as target:
        path = write_list(
            f"country;host;port;note\nus;127.0.0.1;{port};first\nde;127.0.0.1;{closed_port()};\nfr;localhost;{port};"
        )
        (folder / "plain.txt").write_text(f"http://{USER}:{PASSWORD}@127.0.0.1:{port}\n")
        done = await check(path, "plain.txt", "--write", "working.csv", target=target)

    assert (folder / "working.csv").read_text() == (
        "host,port,protocol,username,password,country,note\n"
        f"127.0.0.1,{port},,,,us,first\n"
        f"localhost,{port},,,,fr,\n"
        f"127.0.0.1,{port},http,{USER},{PASSWORD},,\n"
    )
    lists = read_lists([(None, "working.csv")], by="country", skip_bad=True)
    assert [entry.tag for entry in lists.proxies] == ["US", "FR"]
    assert done.stderr.startswith("proxies.txt: 2 columns are not used: 'country', 'note'\n")


async def test_existing_file_is_not_overwritten(folder) -> None:
    path = write_list("127.0.0.1:1")
    done = await check(path, "--write", path)

    assert done.returncode == 2
    assert "proxies.txt exists and is not overwritten; name another file for --write\n" in done.stderr
    assert path.read_text() == "127.0.0.1:1\n"


async def test_no_list_is_written_if_no_proxy_works(folder) -> None:
    done = await check(write_list(f"127.0.0.1:{closed_port()}"), "--write", "working.csv")

    assert done.returncode == 1
    assert "no proxy works, so working.csv was not written\n" in done.stderr
    assert "working.csv" not in os.listdir()


async def test_invalid_lines_are_reported_and_the_others_checked(folder) -> None:
    async with serve(http_proxy()) as port, serve(silent) as target:
        done = await check(write_list(f"127.0.0.1:{port}", "127.0.0.1:99999"), "--json", target=target)

    assert done.returncode == 1
    assert "proxies.txt: line 2, port: port out of range" in done.stderr
    assert results(done) == {f"127.0.0.1:{port}": ("works", None)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "nowhere.txt"),
        ([], "Missing argument 'LIST...'"),
        (["-", "--echo-url", "example.com/ip"], "--echo-url must be an http:// or https:// URL"),
    ],
    ids=["no such list", "no list", "not a URL"],
)
async def test_wrong_arguments_exit_with_2(folder, arguments, message) -> None:
    done = await check(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_interrupted_check_shows_the_results_so_far(folder, number) -> None:
    connected = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()

    async with serve(wait) as port, serve(http_proxy()) as good, serve(silent) as target:
        path = write_list(f"127.0.0.1:{good}", f"127.0.0.1:{port}")
        arguments = f"proxies check {path} --in-flight 1 --deadline 10m --write working.csv".split()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "postpress_async", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "POSTPRESS_BASE_URL": f"http://127.0.0.1:{target}"},
        )
        await connected.wait()
        process.send_signal(number)
        stdout, stderr = await process.communicate()

    assert process.returncode == 130
    assert [line.split()[:2] for line in stdout.decode().splitlines()[1:]] == [[f"127.0.0.1:{good}", "works"]]
    assert stderr.decode().endswith("interrupted: 1 proxy was not checked, and working.csv was not written\n")
    assert "working.csv" not in os.listdir()
