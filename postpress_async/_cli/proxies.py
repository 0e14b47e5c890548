"""``postpress-async proxies check``: find out which proxies of a list work."""

import asyncio
import csv
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Final

import click
import rich.progress
from attrs import asdict
from rich.console import Console
from yarl import URL

from postpress_async._cli import exit_codes
from postpress_async._cli.job import report_lists
from postpress_async._cli.options import COUNT, FILE, Command, duration, option
from postpress_async._cli.terminal import aligned, import_extra, on_interrupt, write_stderr
from postpress_async._fields import counted
from postpress_async._settings import read_base_url
from postpress_async.models import ProxyProtocol
from postpress_async.rotation import PooledProxy
from postpress_async.rotation._atomic_write import atomic_write
from postpress_async.rotation._column_names import PARTS
from postpress_async.rotation._pool import as_pooled
from postpress_async.rotation._pool._proxy_list import ListedProxy, read_lists

if TYPE_CHECKING:
    from postpress_async.rotation._pool._check import CheckedProxy, ProxyChecker

_EXIT_CODES: Final = """\b
Exit codes:
  0    All proxies work.
  1    Some proxies do not work, or some lines are invalid.
  2    The command line or a list is invalid, and nothing was checked.
  130  The check was interrupted by Ctrl-C or SIGTERM."""

_MAX_RESOLVER_THREADS: Final = 256


@click.group()
def proxies() -> None:
    """Check lists of proxies."""


@proxies.command(cls=Command, short_help="Find out which proxies of a list work.", epilog=_EXIT_CODES)
@click.argument("lists", metavar="LIST...", nargs=-1, required=True, type=FILE)
@option(
    "--protocol",
    type=click.Choice([protocol.value for protocol in ProxyProtocol]),
    default="http",
    help="Protocol of proxies whose line does not name a protocol. http: HTTP CONNECT. https: HTTP CONNECT "
    "over TLS; the certificate of the proxy is checked. socks5: SOCKS version 5.",
)
@option(
    "--echo-url",
    type=URL,
    metavar="URL",
    help="URL of a service of your own that responds with the IP address of its client. The URL is requested "
    "through each proxy to show the address from which the proxy connects. By default, each proxy is only "
    "asked for a connection to the host of the PostPress API, and nothing is sent over that connection.",
)
@option(
    "--in-flight",
    type=COUNT,
    default=200,
    help="Maximum number of proxies that are checked at the same time.",
)
@option("--deadline", type=duration, default="10s", help="Time limit for the check of one proxy.")
@option(
    "--write",
    type=click.Path(),
    metavar="FILE",
    help="Write the proxies that work, with their passwords, to this CSV file, readable only by you. An "
    "existing file is not overwritten.",
)
@option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="POSTPRESS_PROXIES_CHECK_JSON",
    help="Print one JSON object per proxy instead of a table.",
)
def check(
    lists: tuple[str, ...],
    protocol: str,
    echo_url: URL | None,
    in_flight: int,
    deadline: float,
    write: str | None,
    as_json: bool,
) -> int:
    """
    Find out which proxies of one or more lists work, as seen from this machine.

    LIST is a file with a proxy per line (HOST:PORT, HOST:PORT:USER:PASSWORD or a URL), or a CSV file with a
    header; - is standard input. Each proxy is asked, with its user name and password, for a connection to the
    host of the PostPress API or of --echo-url. No account is changed, and no API key is required. PostPress
    connects from its own network, so it may reach proxies that this machine does not reach, and vice versa.
    The result has no effect on rotations. Requires the extra postpress-async[check]. Examples:

    \b
      postpress-async proxies check proxies.txt
      postpress-async proxies check proxies.txt --write working.csv
    """
    if write is not None and os.path.lexists(write):
        raise click.UsageError(f"{write} exists and is not overwritten; name another file for --write")
    if echo_url is not None and (echo_url.scheme not in {"http", "https"} or not echo_url.host):
        raise click.UsageError("--echo-url must be an http:// or https:// URL")
    checker: ProxyChecker = import_extra("rotation._pool._check", "checking proxies", "check").ProxyChecker(
        target=echo_url or read_base_url(None),
        echo=echo_url is not None,
        deadline=deadline,
        protocol=ProxyProtocol(protocol),
    )
    listed = read_lists([(None, path) for path in lists], skip_bad=True)
    report_lists(listed)
    pool = [as_pooled(entry.proxy) for entry in listed.proxies]
    results: list[CheckedProxy] = []
    started = time.monotonic()
    is_interrupted = asyncio.run(_check(checker, pool, in_flight, results))
    # Failures come last, because a terminal shows the end of a long table.
    results.sort(key=lambda checked: (checked.is_failure, checked.result))
    for line in (json.dumps(asdict(checked)) for checked in results) if as_json else _table(results):
        click.echo(line)
    counts = Counter(checked.result for checked in results)
    counts_text = ", ".join(f"{count:,} {result}" for result, count in counts.items()) or "none"
    total = counted(len(results), "proxy", "proxies")
    write_stderr(f"{total} checked in {time.monotonic() - started:.1f} s: {counts_text}")
    write_stderr("this is what this machine sees: PostPress connects to proxies from its own network")
    if any(pooled.proxy.protocol is None for pooled in pool):
        write_stderr(f"proxies whose line names no protocol were checked as {protocol} (--protocol)")
    if is_interrupted:
        left = counted(len(pool) - len(results), "proxy was", "proxies were")
        write_stderr(f"interrupted: {left} not checked{f', and {write} was not written' if write else ''}")
        return exit_codes.INTERRUPTED
    if write is not None:
        labels = {checked.proxy for checked in results if not checked.is_failure}
        entries = zip(listed.proxies, pool, strict=True)
        _write_list(write, [entry for entry, pooled in entries if pooled.label in labels])
    is_bad = listed.refused or any(checked.is_failure for checked in results)
    return exit_codes.SOME_LEFT if is_bad else exit_codes.ALL_PATCHED


async def _check(
    checker: "ProxyChecker", pool: list[PooledProxy], in_flight: int, results: "list[CheckedProxy]"
) -> bool:
    """Check all proxies and append to *results*. Return whether a signal interrupted the check."""
    loop = asyncio.get_running_loop()
    # Host names are resolved in threads. asyncio has few by default, so slow lookups would delay the rest.
    loop.set_default_executor(ThreadPoolExecutor(min(in_flight, _MAX_RESOLVER_THREADS)))
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    with rich.progress.Progress(console=Console(stderr=True), disable=not is_terminal) as progress:
        bar = progress.add_task("", total=len(pool))

        def add(checked: "CheckedProxy") -> None:
            results.append(checked)
            progress.advance(bar)

        task = loop.create_task(checker.check_all(pool, in_flight, add))
        with on_interrupt(task.cancel):
            try:
                await task
            except asyncio.CancelledError:
                return True
    return False


def _table(results: "list[CheckedProxy]") -> Iterator[str]:
    rows = [("proxy", "result", "seconds", "detail")]
    for checked in results:
        detail = f"exit address {checked.exit_address}" if checked.exit_address else checked.detail
        rows.append((checked.proxy, checked.result, f"{checked.elapsed:.2f}", detail))
    return aligned(rows)


def _write_list(path: str, entries: list[ListedProxy]) -> None:
    if not entries:
        write_stderr(f"no proxy works, so {path} was not written")
        return
    text = io.StringIO()
    # CSV, because a line without a protocol cannot express every user name and password.
    other_columns = list(dict.fromkeys(chain.from_iterable(entry.others for entry in entries)))
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*PARTS, *other_columns])
    for entry in entries:
        proxy = entry.proxy
        other_cells = [entry.others.get(name, "") for name in other_columns]
        password = proxy.password and proxy.password.reveal()
        table.writerow([proxy.host, proxy.port, proxy.protocol, proxy.username, password, *other_cells])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    write_stderr(f"written: {path} ({counted(len(entries), 'proxy', 'proxies')} with their passwords)")
