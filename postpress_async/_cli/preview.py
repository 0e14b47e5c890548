"""``--dry-run``: show what a rotation would send."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain, islice
from typing import Final

import click

from postpress_async._cli import exit_codes
from postpress_async._cli.event_stream import EventStream
from postpress_async._cli.job import Job
from postpress_async._cli.secret_input import read_key
from postpress_async._cli.terminal import moment
from postpress_async._converter import converter
from postpress_async._fields import counted
from postpress_async._settings import read_api_key, read_base_url, target_of
from postpress_async.models import CustomProxy, ProxyChange
from postpress_async.rotation import Fleet, Refusal, Row
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation._pool._allocator import ProxyAllocator
from postpress_async.rotation._pool._tags import argument_of, digest_of
from postpress_async.rotation._rows import pairs_of, rows_of
from postpress_async.rotation.journal._input_check import RunRequest
from postpress_async.rotation.journal._preflight import Progress, read_progress
from postpress_async.rotation.journal._times import duration

_MAX_SHOWN: Final = 3  # requests, and proxies with a private address


def preview(job: Job, events: EventStream) -> int:
    """Make the checks of a real run, then print what *job* would send and how long that would take."""
    options, survey = job.options, job.survey
    url, target = "the sandbox", "this machine"
    has_key, api_key = True, None
    if not options.sandbox:
        has_key = options.api_key_file is not None or bool(os.environ.get("POSTPRESS_API_KEY"))
        if has_key:
            api_key = read_api_key(read_key(options.api_key_file))
        base_url = read_base_url(options.base_url)
        url, target = str(base_url), target_of(base_url)
    fleet = reader_of(job.changes) if isinstance(job.changes, Fleet) else None
    request = RunRequest(
        digest=None if fleet is None else fleet.digest,
        rows=fleet,
        total=job.total,
        target=target,
        api_key=api_key,
        accept_new_key=options.accept_new_key,
        pool=digest_of(job.pools),
        selection=job.selection,
        every=None if options.on else options.every,
        on_unknown=options.on_unknown,
        on_failed=options.on_failed,
    )
    progress = read_progress(job.journal, request)
    done, input_edit, due_at = progress.done, None, None
    if progress.check is not None:
        input_edit = progress.check.difference
        due_at = None if request.every is None else progress.check.next_run_at
    to_send = survey.rows - done if due_at is None else 0
    if options.limit is not None:
        to_send = min(to_send, options.limit)
    first = islice(_changes(job, progress), _MAX_SHOWN if to_send else 0)
    # `unstructure` masks the password.
    requests = [
        (f"{url}/accounts/{account}", None if change is None else converter.unstructure(change, ProxyChange))
        for account, change in first
    ]
    if not options.sandbox:
        _warn_of_private_addresses(job)
    if options.json:
        events.write(
            "dry_run",
            exit_code=exit_codes.ALL_PATCHED,
            accounts=survey.rows,
            own=survey.rows - survey.managed - survey.pooled,
            managed=survey.managed,
            pooled=survey.pooled,
            refused=survey.refused,
            lists=list(options.pool),
            proxies=len(job.proxies),
            assign=options.assign if job.pools else None,
            settled=done,
            input_edit=input_edit,
            next_run_at=due_at,
            to_send=to_send,
            requests=[{"method": "PATCH", "url": url, "body": body} for url, body in requests],
            seconds=None if options.rate is None else to_send / options.rate,
            api_key=has_key,
            journal=job.journal,
        )
        return exit_codes.ALL_PATCHED
    click.echo(f"{counted(survey.rows, 'account')}: {_kinds(job)}")
    for tag, pool in job.pools.items():
        if accounts := survey.tags[tag]:
            proxies = counted(len(pool), "proxy", "proxies")
            where = f"for {tag}" if tag else f"in {' and '.join(options.pool)}"
            click.echo(f"{proxies} {where}, assigned {options.assign} to {counted(accounts, 'account')}")
    if input_edit is not None:
        click.echo(f"the input was edited since the last run: {input_edit}")
    if done:
        click.echo(f"{done:,} of them are completed in {job.journal}; {to_send:,} would be sent")
    if to_send:
        click.echo("nothing was sent; the first requests would be:")
        for url, body in requests:
            text = "(the pool is exhausted)" if body is None else json.dumps(body, ensure_ascii=True)
            click.echo(f"  PATCH {url} {text}")
        if options.rate is None:
            click.echo("without --rate, the run is as fast as the service responds")
        else:
            seconds = duration(to_send / options.rate)
            click.echo(f"at --rate {options.rate:g} it would take {seconds} without retries")
    elif due_at is not None:
        click.echo(f"the next run is due at {moment(due_at)} (--every)")
    if not has_key and options.cluster is None:
        click.echo("there is no API key: a real run requires POSTPRESS_API_KEY or --api-key-file FILE")
    return exit_codes.ALL_PATCHED


def _kinds(job: Job) -> str:
    invalid = job.survey.refused
    left_out = f"{counted(invalid, 'row is', 'rows are')} left out" if invalid else ""
    return ", and ".join(filter(None, (job.survey.kinds, left_out)))


def _rows(job: Job, done: bytes = b"") -> Iterator[Row]:
    """The valid rows of *job*, without completed ones: the byte of *done* at their ordinal is not 0."""
    if isinstance(job.changes, Fleet):
        rows: Iterator[Row | Refusal] = job.changes.rows(done)
    else:
        all_rows = rows_of(pairs_of(job.changes), pooled=argument_of(job.pools) or False)
        rows = (row for row in all_rows if row.ordinal >= len(done) or not done[row.ordinal])
    return (row for row in rows if isinstance(row, Row))


def _changes(job: Job, progress: Progress) -> Iterator[tuple[str, ProxyChange | None]]:
    """The accounts that a run would send, each with its change. The change is None if no proxy is left."""
    outside = {} if job.selection is None else job.selection.outside
    allocators = {tag: ProxyAllocator(pool) for tag, pool in job.pools.items()}
    for allocator in allocators.values():
        allocator.resume(Counter(progress.done_by_proxy) + Counter(outside), progress.quarantines)
    for row in _rows(job, progress.done_by_ordinal):
        change = row.change
        if change is None:
            pooled = allocators[row.tag].give(row.account_id)
            change = None if pooled is None else pooled.change_for(row.account_id, row.fields)
        yield row.account_id, change


def _warn_of_private_addresses(job: Job) -> None:
    """Report proxies that PostPress, which runs on other machines, can probably not reach."""
    # A fleet may be large: do not read it again if no row has a proxy of its own.
    rows = _rows(job) if job.survey.pooled < job.survey.rows else ()
    changes = ((row.account_id, row.change) for row in rows if row.change is not None)
    proxies = ((pooled.label, pooled.proxy) for pooled in job.proxies)
    hosts = (
        (name, change.host if isinstance(change, CustomProxy) else change.ip)
        for name, change in chain[tuple[str, ProxyChange]](changes, proxies)
    )
    private = (f"{name} ({host})" for name, host in hosts if host is not None and _is_private(host))
    if first := list(islice(private, _MAX_SHOWN)):
        count = sum(1 for _ in private)
        more = f" and {count:,} more" if count else ""
        click.echo(
            f"{counted(len(first) + count, 'proxy', 'proxies')} with localhost, or with an address that is "
            f"private or not routable, which PostPress can probably not reach: {', '.join(first)}{more}",
            err=True,
        )


@lru_cache(maxsize=1024)
def _is_private(host: str) -> bool:
    """Whether *host* is localhost, or an IP address that is not on the internet."""
    name = host.lower().removesuffix(".")
    try:
        return not ip_address(name).is_global
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
