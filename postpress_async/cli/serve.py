"""``postpress-async sandbox``: the API on this machine, until it is interrupted."""

import asyncio
import json
import signal
from itertools import islice
from typing import get_args

import click

from postpress_async.cli import options
from postpress_async.cli.output import tell_file_limit_once
from postpress_async.rotation import ProxyPool
from postpress_async.sandbox import API_KEY, Profile, Sandbox


@click.command(short_help="Serve a fake of the API on this machine.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on; 0 takes a free one."
)
@click.option("--profile", type=click.Choice(get_args(Profile)), default="steady", help="Which faults come.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the faults' chance.")
@click.option("--latency", type=click.FloatRange(0), default=0.0, help="Seconds that an answer takes.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second before it says 429.")
@click.option("--pool", type=options.FILE, help="The list of which --dead-proxies are.")
@click.option("--dead-proxies", type=click.IntRange(0), default=0, help="So many of it, the first ones.")
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
    Serve a fake of the API on this machine, until Ctrl-C; then print what it saw, as JSON.

    It prints the two variables that point every other command at it. Example:

      postpress-async sandbox --port 8400 --profile flaky
    """
    if dead_proxies and pool is None:
        raise click.UsageError("--dead-proxies are of a pool: give --pool too")
    dead = (
        frozenset[str]() if pool is None else first_places(ProxyPool.read(pool, skip_bad=True), dead_proxies)
    )
    server = Sandbox(port=port, profile=profile, seed=seed, latency=latency, rate=rate, dead_proxies=dead)
    asyncio.run(_serve(server, port))


def first_places(pool: ProxyPool, count: int) -> frozenset[str]:
    """``host:port`` of the first proxies of a list, for a sandbox in which they are dead."""
    return frozenset(f"{pooled.proxy.host}:{pooled.proxy.port}" for pooled in islice(pool, count))


async def _serve(server: Sandbox, port: int) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    tell_file_limit_once(loop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    try:
        await server.__aenter__()
    except OSError as error:
        raise click.ClickException(f"port {port} cannot be listened on: {error.strerror}") from None
    try:
        click.echo(f"export POSTPRESS_BASE_URL={server.url} POSTPRESS_API_KEY={API_KEY}")
        await done.wait()
    finally:
        await server.__aexit__(None, None, None)
    click.echo(json.dumps(server.record.as_dict(), indent=2))
