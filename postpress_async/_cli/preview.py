"""``--dry-run``: what a rotation would do, without sending a byte."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import attrs
import click

from postpress_async._cli import exit_codes, options
from postpress_async._cli.event_stream import Feed
from postpress_async._cli.inputs import Job
from postpress_async._cli.output import many
from postpress_async._settings import read_api_key, read_base_url, target_of
from postpress_async.models import CustomProxy, ProxyChange
from postpress_async.rotation import Fleet, Outcome, Row
from postpress_async.rotation.journal._input import NO_POOL
from postpress_async.rotation.journal.foresight import done_in, weigh
from postpress_async.rotation.plan import rows_of
from postpress_async.rotation.pool import PooledProxy

SHOWN: Final = 3
"""Requests that are shown."""

SMALL: Final = 50_000
"""Bytes of a journal that nobody minds; below, the tables weigh as much as the accounts."""

WEIGHED: Final = 2_000
"""Rows that are put into a journal in memory, to see what all of them weigh."""


def preview(job: Job, feed: Feed) -> int:
    """
    Say what *job* would do, how long it would take and what its journal would weigh.

    The base URL, the journal, and the API key if there is one, are checked as for a real run.

    Raises:
        ConfigurationError: The key or the base URL cannot be used.
        JournalError: The journal cannot be, or is another run's, input's or target's.
    """
    wishes = job.wishes
    url, target = "the sandbox", "this machine"
    has_key = True
    if not wishes.sandbox:
        has_key = wishes.api_key_file is not None or bool(os.environ.get("POSTPRESS_API_KEY"))
        if has_key:
            read_api_key(options.read_key(wishes.api_key_file))
        base_url = read_base_url(wishes.base_url)
        url, target = str(base_url), target_of(base_url)
    done = done_in(
        job.journal,
        digest=job.changes.digest if isinstance(job.changes, Fleet) else None,
        target=target,
        on_unknown=wishes.on_unknown,
        on_failed=wishes.on_failed,
        rows=job.changes if isinstance(job.changes, Fleet) else None,
        pool=NO_POOL if job.pool is None else job.pool.digest,
        total=job.total,
    )
    survey = job.survey
    left = survey.rows - done
    if wishes.limit is not None:
        left = min(left, wishes.limit)
    sample = [row for row in islice(_rows(job), WEIGHED) if isinstance(row, Row)]
    given = [(row, _change(job, row)) for row in sample]
    outcomes = [
        Outcome.patched(row.ordinal, row.line, row.account_id, 1, 0.123456789, label)
        for row, (_, label) in given
    ]
    weight = weigh(outcomes) * (job.total - done)
    requests = [(f"{url}/accounts/{row.account_id}", _shown(change)) for row, (change, _) in given[:SHOWN]]
    if wishes.json:
        feed.dry_run(
            exit_code=exit_codes.ALL_PATCHED,
            accounts=survey.rows,
            own=survey.rows - survey.managed - survey.pooled,
            managed=survey.managed,
            pooled=survey.pooled,
            refused=survey.refused,
            lists=list(wishes.pool),
            proxies=0 if job.pool is None else len(job.pool),
            assign=None if job.pool is None else wishes.assign,
            settled=done,
            to_send=left,
            requests=[{"method": "PATCH", "url": place, "body": body} for place, body in requests],
            seconds=None if wishes.rate is None else left / wishes.rate,
            api_key=has_key,
            journal=job.journal,
            journal_bytes=round(weight),
        )
        return exit_codes.ALL_PATCHED
    click.echo(f"{many(survey.rows, 'account', 'accounts')}: {_kinds(job)}")
    if job.pool is not None:
        lists, accounts = " and ".join(wishes.pool), many(survey.pooled, "account", "accounts")
        proxies = many(len(job.pool), "proxy", "proxies")
        click.echo(f"{proxies} in {lists}, given {wishes.assign} to {accounts}")
    if done:
        click.echo(f"{done:,} of them are settled in {job.journal}; {left:,} would be sent")
    click.echo("nothing was sent; the first requests would be:")
    for place, body in requests:
        shown = "(the pool has no proxy left)" if body is None else json.dumps(body, ensure_ascii=True)
        click.echo(f"  PATCH {place} {shown}")
    click.echo(_duration(left, wishes.rate))
    click.echo(f"the journal {job.journal} would weigh {_bytes(weight)}{' more' if done else ''}")
    if not has_key and wishes.cluster is None:
        click.echo("no API key is given: the real run requires POSTPRESS_API_KEY or --api-key-file FILE")
    return exit_codes.ALL_PATCHED


def _kinds(job: Job) -> str:
    told = [job.survey.kinds] if job.survey.kinds else []
    if job.survey.refused:
        rows = "1 row is" if job.survey.refused == 1 else f"{job.survey.refused:,} rows are"
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


def _shown(change: ProxyChange | None) -> dict[str, Any] | None:
    """The request's body, its password masked; None if the pool has no proxy left."""
    if change is None:
        return None
    fields = {
        name: value if isinstance(value, int) else str(value)  # a `Secret` is *** as text
        for name, value in attrs.asdict(change, recurse=False).items()
        if value is not None
    }
    return {"proxy": fields} if isinstance(change, CustomProxy) else fields


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
