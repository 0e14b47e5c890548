"""``postpress-async update``: change the proxy of one account."""

import asyncio
import os
import shlex
from functools import partial
from typing import Final, Literal

import click

from postpress_async._call.idempotency import FixedKey, FreshKeys, Keys, check_key
from postpress_async._cli import exit_codes
from postpress_async._cli.options import Command, connection, option
from postpress_async._cli.secret_input import EXPOSED_PROXY, read_key, read_secret_file
from postpress_async._fields import counted
from postpress_async.errors import Applied, PostPressError, Scope
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.session import PostPressSession

_EXIT_CODES: Final = """\b
Exit codes:
  0    The account was patched.
  1    The account was not patched, or the outcome is unknown.
  2    The command line or an input is invalid, and nothing was sent.
  4    The API key was refused.
  130  The command was interrupted by Ctrl-C."""

_assignment: Final = partial(option, group="Proxy assignment")


@click.command(cls=Command, epilog=_EXIT_CODES, short_help="Give one account a new proxy.")
@click.argument("account_id", metavar="ACCOUNT")
@_assignment(
    "--proxy",
    metavar="URL",
    allow_from_autoenv=False,  # `_change` reads POSTPRESS_PROXY, which may contain a password
    help="Use your own proxy with this URL, such as http://203.0.113.7:8080. A URL with a password must come "
    "from --proxy-file or the environment variable POSTPRESS_PROXY.",
)
@_assignment(
    "--proxy-file",
    metavar="FILE",
    help="Use your own proxy, whose URL is in this file; - is standard input.",
)
@_assignment(
    "--country",
    metavar="CC",
    help="Order a managed proxy (one that PostPress provides) in this country, a two-letter code such as US.",
)
@_assignment(
    "--ip",
    metavar="IP",
    help="Order a managed proxy (one that PostPress provides) in the country of this IPv4 address.",
)
@connection
@option(
    "--idempotency-key",
    group="Connection",
    metavar="KEY",
    allow_from_autoenv=False,  # a key belongs to one change, but an environment variable applies to many
    help="Idempotency-Key header of the requests, by which the API recognizes a repeated request. If you "
    "repeat a command with the key of the first command, you get its outcome, and the change is not applied "
    "again. By default, each change gets a new key.",
)
def update(
    account_id: str,
    idempotency_key: str | None,
    no_idempotency: bool,
    api_key_file: str | None,
    base_url: str | None,
    transport: Literal["session", "lean"],
    trust_env: bool,
    **proxy: str | None,
) -> int:
    """
    Give one account a new proxy.

    ACCOUNT is the id of the account. Choose either your own proxy (--proxy or --proxy-file) or a managed
    proxy, which PostPress provides (--country, --ip or both). Example:

      postpress-async update acc_01HXYZ --country US
    """
    change = _change(**proxy)
    keys: Keys = FreshKeys()
    if idempotency_key is not None:
        if no_idempotency:
            raise click.UsageError("--idempotency-key cannot be combined with --no-idempotency")
        check_key(idempotency_key)
    if idempotency_key is not None or no_idempotency:
        keys = FixedKey(idempotency_key)
    api_key = read_key(api_key_file)

    async def send() -> int:
        async with PostPressSession(
            api_key, base_url=base_url, transport=transport, trust_env=trust_env
        ) as session:
            return await _update(session, account_id, change, keys)

    return asyncio.run(send())


async def _update(session: PostPressSession, account_id: str, change: ProxyChange, keys: Keys) -> int:
    try:
        result = await session._run_call(account_id, change, keys)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    except PostPressError as error:
        click.echo(f"postpress-async: {error}", err=True)
        # An earlier command with the same --idempotency-key may have applied the change.
        if error.applied is Applied.UNKNOWN or isinstance(keys, FixedKey):
            _suggest_key(keys)
        return exit_codes.KEY_REFUSED if error.scope is Scope.KEY else exit_codes.SOME_LEFT
    except asyncio.CancelledError:
        click.echo(f"postpress-async: {account_id}: the change may have been applied.", err=True)
        _suggest_key(keys)
        raise
    attempts = counted(len(result.attempts), "attempt")
    click.echo(f"{result.account_id} patched, in {attempts}")
    return exit_codes.ALL_PATCHED


def _suggest_key(keys: Keys) -> None:
    if keys.current is not None:
        advice = "To get the outcome without applying the change twice, run the same command with:"
        click.echo(f"{advice} --idempotency-key {shlex.quote(keys.current)}", err=True)


def _change(proxy: str | None, proxy_file: str | None, country: str | None, ip: str | None) -> ProxyChange:
    is_managed = country is not None or ip is not None
    if [proxy is not None, proxy_file is not None, is_managed].count(True) > 1:
        raise click.UsageError("--proxy, --proxy-file, and --country with --ip cannot be combined")
    if is_managed:
        return ManagedProxy(country=country, ip=ip)
    if proxy_file is not None:
        return CustomProxy.from_url(read_secret_file(proxy_file, "the proxy's URL").reveal())
    if proxy is not None:
        change = CustomProxy.from_url(proxy)
        if change.password is not None:
            raise click.UsageError(EXPOSED_PROXY)
        return change
    if url := os.environ.get("POSTPRESS_PROXY"):
        return CustomProxy.from_url(url)
    raise click.UsageError("name a proxy: use --proxy-file, --proxy, --country or --ip")
