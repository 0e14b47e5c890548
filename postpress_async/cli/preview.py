"""``--dry-run``: what a rotation would do, without sending a byte."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import attrs
import click

from postpress_async._settings import read_api_key, read_base_url, target_of
from postpress_async.cli import exits, options
from postpress_async.cli.inputs import Job
from postpress_async.cli.output import many
from postpress_async.models import CustomProxy, ProxyChange
from postpress_async.rotation import Fleet, Outcome, Row
from postpress_async.rotation.journal.foresight import done_in, weigh
from postpress_async.rotation.plan import rows_of
from postpress_async.rotation.pool import PooledProxy

SHOWN: Final = 3
"""Requests that are shown."""

SMALL: Final = 50_000
"""Bytes of a journal that nobody minds; below, the tables weigh as much as the accounts."""

WEIGHED: Final = 2_000
"""Rows that are put into a journal in memory, to see what all of them weigh."""


def preview(job: Job) -> int:
    """
    Say what *job* would do, how long it would take and what its journal would weigh.

    The API key, the base URL and the journal are checked as for a real run.

    Raises:
        ConfigurationError: The key or the base URL cannot be used.
        JournalError: The journal cannot be, or is another run's, input's or target's.
    """
    wishes = job.wishes
    url, target = "the sandbox", "this machine"
    if not wishes.sandbox:
        read_api_key(options.read_key(wishes.api_key_file))
        base_url = read_base_url(wishes.base_url)
        url, target = str(base_url), target_of(base_url)
    done = done_in(
        job.journal,
        digest=job.changes.digest if isinstance(job.changes, Fleet) else None,
        target=target,
        on_unknown=wishes.on_unknown,
        on_failed=wishes.on_failed,
    )
    left = job.rows - done
    if wishes.limit is not None:
        left = min(left, wishes.limit)
    click.echo(f"{many(job.rows, 'account', 'accounts')}: {_kinds(job)}")
    if job.pool is not None:
        click.echo(f"{many(len(job.pool), 'proxy', 'proxies')} in {wishes.pool}, given {wishes.assign}")
    if done:
        click.echo(f"{done:,} of them are settled in {job.journal}; {left:,} would be sent")
    sample = [row for row in islice(_rows(job), WEIGHED) if isinstance(row, Row)]
    given = [(row, _change(job, row)) for row in sample]
    click.echo("nothing was sent; the first requests would be:")
    for row, (change, _) in given[:SHOWN]:
        body = "(the pool has no proxy left)" if change is None else _shown(change)
        click.echo(f"  PATCH {url}/accounts/{row.account_id} {body}")
    click.echo(_duration(left, wishes.rate))
    outcomes = [
        Outcome.patched(row.ordinal, row.line, row.account_id, 1, 0.123456789, label)
        for row, (_, label) in given
    ]
    weight = weigh(outcomes) * (job.total - done)
    click.echo(f"the journal {job.journal} would weigh {_bytes(weight)}{' more' if done else ''}")
    return exits.ALL_PATCHED


def _kinds(job: Job) -> str:
    managed, pooled = job.managed or 0, job.pooled or 0
    kinds = [
        (job.rows - managed - pooled, "with a proxy of their own"),
        (managed, "with a managed proxy"),
        (pooled, "with one of the pool"),
    ]
    told = [f"{count:,} {what}" for count, what in kinds if count]
    if job.refused:
        rows = "1 row is" if job.refused == 1 else f"{job.refused:,} rows are"
        told.append(f"{'and ' * bool(told)}{rows} left out")
    return ", ".join(told)


def _rows(job: Job) -> Iterator[Any]:
    if isinstance(job.changes, Fleet):
        return job.changes.rows()
    changes: Any = job.changes.items() if isinstance(job.changes, dict) else job.changes
    return rows_of(changes, pooled=job.pool is not None)


def _change(job: Job, row: Row) -> tuple[ProxyChange | None, str | None]:
    """What the account would get, and the label of the pool's proxy."""
    if row.change is not None or job.pool is None:
        return row.change, None
    pooled: PooledProxy | None = job.pool.give(row.account_id)
    return (None, None) if pooled is None else (pooled.proxy, pooled.label)


def _shown(change: ProxyChange) -> str:
    """The request's body, its password masked."""
    fields = attrs.asdict(change, filter=lambda _, value: value is not None, recurse=False)
    body = {"proxy": fields} if isinstance(change, CustomProxy) else fields
    return json.dumps(body, default=str, ensure_ascii=True)  # a `Secret` is *** as text


def _duration(accounts: int, rate: float | None) -> str:
    if rate is None:
        return "no --rate is given: the run goes as fast as the service answers"
    return f"at --rate {rate:g} it takes {_time(accounts / rate)}, retries not counted"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    if count < SMALL:
        return f"less than {SMALL // 1000} KB"
    if count < 1_000_000:
        return f"some {count / 1000:.0f} KB"
    return f"some {count / 1e6:.1f} MB" if count < 1e9 else f"some {count / 1e9:.1f} GB"
