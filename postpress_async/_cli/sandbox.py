"""``postpress-async sandbox``: run the sandbox, a local fake of the API, until it is interrupted."""

import asyncio
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import islice

import click

from postpress_async._cli.options import COUNT_OR_ZERO, FILE, Command, option, random_faults
from postpress_async._cli.terminal import on_interrupt, report_file_limit_once
from postpress_async.rotation import PooledProxy, ProxyPool
from postpress_async.sandbox import Profile, Sandbox
from postpress_async.sandbox._sandbox import API_KEY


@click.command(cls=Command, short_help="Run the sandbox, a local fake of the API.")
@option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port to listen on. 0: any free port.",
)
@random_faults()
@option(
    "--latency",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds that the sandbox takes for each update.",
)
@option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    help="Maximum number of requests per second. Requests above it get the error 429 (too many requests). No "
    "maximum by default.",
)
@option("--pool", type=FILE, help="File with the list of proxies for --dead-proxies.")
@option(
    "--dead-proxies",
    type=COUNT_OR_ZERO,
    default=0,
    help="Let the first N proxies of --pool fail. Requires --pool.",
)
def sandbox(
    port: int,
    profile: Profile,
    seed: int,
    latency: float,
    rate: float | None,
    pool: str | None,
    dead_proxies: int,
) -> None:
    """
    Run the sandbox, a local fake of the API, until Ctrl-C.

    The command first prints an `export` line, which sets POSTPRESS_BASE_URL and POSTPRESS_API_KEY. Run this
    line in another shell, so that commands and programs there use the sandbox. At the end, the command prints
    counters of the requests as JSON. Example:

      postpress-async sandbox --port 8400 --profile flaky
    """
    if dead_proxies and pool is None:
        raise click.UsageError("--dead-proxies requires --pool")
    dead = frozenset[str]()
    if pool is not None:
        dead = first_addresses(ProxyPool.read(pool, skip_bad=True), dead_proxies)
    server = Sandbox(port=port, profile=profile, seed=seed, latency=latency, rate=rate, dead_proxies=dead)
    asyncio.run(_serve(server, port))


def first_addresses(pool: Iterable[PooledProxy], count: int) -> frozenset[str]:
    """``host:port`` of the first *count* proxies, for the sandbox's *dead_proxies*."""
    return frozenset(f"{pooled.proxy.host}:{pooled.proxy.port}" for pooled in islice(pool, count))


async def _serve(server: Sandbox, port: int) -> None:
    interrupted = asyncio.Event()
    report_file_limit_once(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        stack.enter_context(on_interrupt(interrupted.set))
        try:
            await stack.enter_async_context(server)
        except OSError as error:
            message = f"the sandbox cannot listen on port {port} ({error.strerror}); choose another port"
            raise click.ClickException(message) from None
        click.echo(f"export POSTPRESS_BASE_URL={server.url} POSTPRESS_API_KEY={API_KEY}")
        await interrupted.wait()
    click.echo(json.dumps(server.record.as_dict(), indent=2))
