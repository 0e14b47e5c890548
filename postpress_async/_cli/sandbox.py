"""``postpress-async sandbox``: run the sandbox, a local fake of the API, until it is interrupted."""

import asyncio
import json
import signal
from itertools import islice
from typing import get_args

import click

from postpress_async._cli import options
from postpress_async._cli.output import tell_file_limit_once
from postpress_async.rotation import ProxyPool
from postpress_async.sandbox import API_KEY, Profile, Sandbox


@click.command(short_help="Run a local fake of the API.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_envvar=True,
    help="Port to listen on. 0 selects a free port.",
)
@click.option(
    "--profile",
    type=click.Choice(get_args(Profile)),
    default="steady",
    show_envvar=True,
    help="Random faults to simulate. steady: none. flaky: a few errors and dropped connections. overloaded: "
    "errors when more than 30 requests run at once. outage: no service for 10 to 20 seconds. hostile: "
    "malformed responses.",
)
@click.option("--seed", type=int, default=0, show_envvar=True, help="Seed of the random faults.")
@click.option(
    "--latency",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=0.0,
    show_envvar=True,
    help="Seconds that an update takes.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    show_envvar=True,
    help="Requests per second above which the response is a 429. No limit by default.",
)
@click.option("--pool", type=options.FILE, show_envvar=True, help="Proxy list for --dead-proxies.")
@click.option(
    "--dead-proxies",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    show_envvar=True,
    help="Let the first N proxies of --pool fail.",
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
    Run the sandbox, a local fake of the API, until Ctrl-C. At the end, print its counters as JSON.

    At the start it prints the two environment variables with which all other commands use it. Example:

      postpress-async sandbox --port 8400 --profile flaky
    """
    if dead_proxies and pool is None:
        raise click.UsageError("--dead-proxies requires --pool")
    dead = frozenset[str]()
    if pool is not None:
        dead = first_addresses(ProxyPool.read(pool, skip_bad=True), dead_proxies)
    server = Sandbox(port=port, profile=profile, seed=seed, latency=latency, rate=rate, dead_proxies=dead)
    asyncio.run(_serve(server, port))


def first_addresses(pool: ProxyPool, count: int) -> frozenset[str]:
    """``host:port`` of the first *count* proxies, for the sandbox's *dead_proxies*."""
    return frozenset(f"{pooled.proxy.host}:{pooled.proxy.port}" for pooled in islice(pool, count))


async def _serve(server: Sandbox, port: int) -> None:
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    tell_file_limit_once(loop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    try:
        await server.__aenter__()
    except OSError as error:
        message = f"the sandbox cannot listen on port {port} ({error.strerror}); choose another port"
        raise click.ClickException(message) from None
    try:
        click.echo(f"export POSTPRESS_BASE_URL={server.url} POSTPRESS_API_KEY={API_KEY}")
        await interrupted.wait()
    finally:
        await server.__aexit__(None, None, None)
    click.echo(json.dumps(server.record.as_dict(), indent=2))
