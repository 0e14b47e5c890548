"""``postpress-async update``: one account."""

import asyncio
import os
import shlex
from typing import Literal

import click

from postpress_async._cli import exit_codes, options
from postpress_async._idempotency import FreshKeys, KeyMaker, Keys, OneKey, check_key
from postpress_async.errors import Applied, PostPressError, Scope
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.session import PostPressSession


@click.command()
@click.argument("account_id", metavar="ACCOUNT")
@click.option("--proxy", metavar="URL", help="A proxy without a password, such as http://203.0.113.7:8080.")
@click.option("--proxy-file", metavar="FILE", help="A file that holds the proxy's URL; - is standard input.")
@click.option("--country", metavar="CC", help="A managed proxy of this country, such as US.")
@click.option("--ip", metavar="IP", help="A managed proxy of the country of this IPv4 address.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    allow_from_autoenv=False,  # a key is of one change, and an environment serves many
    help="The Idempotency-Key of each attempt; by default a new one for each change. The key of an earlier "
    "command repeats that command without applying the change twice.",
)
@options.connection
def update(
    account_id: str,
    proxy: str | None,
    proxy_file: str | None,
    country: str | None,
    ip: str | None,
    idempotency_key: str | None,
    api_key_file: str | None,
    base_url: str | None,
    transport: Literal["session", "lean"],
    no_idempotency: bool,
) -> int:
    """
    Give one account a new proxy.

    A proxy's password is read from --proxy-file or from POSTPRESS_PROXY, never from an argument, which
    every user of this machine can see. Example:

      postpress-async update acc_01HXYZ --country US
    """
    change = _change(proxy, proxy_file, country, ip)
    if idempotency_key is not None:
        if no_idempotency:
            raise click.UsageError("--idempotency-key cannot be combined with --no-idempotency")
        check_key(idempotency_key)
    keys: Keys = FreshKeys(KeyMaker())
    if idempotency_key is not None or no_idempotency:
        keys = OneKey(idempotency_key)
    own_key = idempotency_key is not None
    return asyncio.run(_update(account_id, change, keys, api_key_file, base_url, transport, own_key=own_key))


async def _update(
    account_id: str,
    change: ProxyChange,
    keys: Keys,
    api_key_file: str | None,
    base_url: str | None,
    transport: Literal["session", "lean"],
    *,
    own_key: bool,
) -> int:
    key = options.read_key(api_key_file)
    async with PostPressSession(key, base_url=base_url, transport=transport) as session:
        try:
            done = await session.run_errand(account_id, change, keys)
        except PostPressError as error:
            click.echo(f"postpress-async: {error}", err=True)
            # An earlier command with the caller's own key may have applied the change.
            if error.applied is Applied.UNKNOWN or own_key:
                _tell_key(keys)
            return exit_codes.KEY_REFUSED if error.scope is Scope.KEY else exit_codes.SOME_LEFT
        except asyncio.CancelledError:
            click.echo(f"postpress-async: {account_id}: the change may have been applied.", err=True)
            _tell_key(keys)
            raise
    tries = len(done.attempts)
    click.echo(f"{done.account_id} patched, in {tries} attempt{'s' if tries > 1 else ''}")
    return exit_codes.ALL_PATCHED


def _tell_key(keys: Keys) -> None:
    if keys.current is None:
        return
    advice = "To learn the outcome without applying the change twice, run the same command with:"
    click.echo(f"{advice} --idempotency-key {shlex.quote(keys.current)}", err=True)


def _change(proxy: str | None, proxy_file: str | None, country: str | None, ip: str | None) -> ProxyChange:
    managed = country is not None or ip is not None
    if [proxy is not None, proxy_file is not None, managed].count(True) > 1:
        raise click.UsageError("give one of --proxy, --proxy-file, or --country and --ip")
    if managed:
        return ManagedProxy(country=country, ip=ip)
    if proxy_file is not None:
        return CustomProxy.from_url(options.read_secret_file(proxy_file, "the proxy's URL").reveal())
    if proxy is not None:
        change = CustomProxy.from_url(proxy)
        if change.password is not None:
            raise click.UsageError(
                "a password in an argument can be read by everyone on this machine: put the URL into a file "
                "for --proxy-file, or into POSTPRESS_PROXY"
            )
        return change
    if url := os.environ.get("POSTPRESS_PROXY"):
        return CustomProxy.from_url(url)
    raise click.UsageError("say which proxy: --proxy-file, --proxy, --country or --ip")
