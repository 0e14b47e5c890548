"""Runs a rotation in a session or a cluster; handles signals, shows the progress, and prints the summary."""

import asyncio
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click
from attrs import define

from postpress_async._cli import exit_codes
from postpress_async._cli.event_stream import EventStream
from postpress_async._cli.job import Job
from postpress_async._cli.progress import ProgressStats, show_progress
from postpress_async._cli.sandbox import first_addresses
from postpress_async._cli.secret_input import read_key
from postpress_async._cli.terminal import (
    import_extra,
    moment,
    on_interrupt,
    report_file_limit_once,
    write_stderr,
)
from postpress_async._fields import counted
from postpress_async.errors import RotationError
from postpress_async.pace import Pace
from postpress_async.retry import RetryPolicy
from postpress_async.rotation import Halt, Rotation, RotationSummary, State
from postpress_async.rotation._outcome import KEY_EXPIRED
from postpress_async.rotation._pool._tags import argument_of
from postpress_async.sandbox import Sandbox
from postpress_async.secret import Secret
from postpress_async.session import PostPressSession

if TYPE_CHECKING:
    from postpress_async.cluster import Cluster


async def run_job(job: Job, events: EventStream) -> int:
    report_file_limit_once(asyncio.get_running_loop())
    options = job.options
    async with AsyncExitStack() as stack:
        sandbox = None
        key, url = None, options.base_url
        if options.sandbox:
            dead = first_addresses(job.proxies, options.dead_proxies)
            sandbox = Sandbox(profile=options.profile, seed=options.seed, dead_proxies=dead)
            await stack.enter_async_context(sandbox)
            key, url = Secret(sandbox.api_key), sandbox.url
        elif options.cluster is None or options.api_key_file is not None:
            # Without this option, the workers of a cluster read the key from their own environment.
            key = read_key(options.api_key_file)
        settings: dict[str, Any] = {
            "base_url": url,
            "retry": RetryPolicy(attempts=options.attempts),
            "pace": Pace(in_flight=options.in_flight, rate=options.rate),
            "idempotency": not options.no_idempotency,
            "transport": options.transport,
            "trust_env": options.trust_env,
            "on_event": events.observe if options.json or options.verbose else None,
        }
        sender: Cluster | PostPressSession
        if options.cluster is None:
            sender = PostPressSession(key, **settings)
        else:
            cluster = import_extra("cluster", "a cluster", "distributed")
            _silence_dask()
            certificates = options.certificates
            sender = cluster.Cluster(options.cluster, api_key=key, certificates=certificates, **settings)
        await stack.enter_async_context(sender)
        rotation = sender.rotate(
            job.changes,
            journal=job.journal,
            halt=Halt(failures=options.halt, canary=options.canary),
            pool=argument_of(job.pools),
            limit=options.limit,
            on_unknown=options.on_unknown,
            on_failed=options.on_failed,
            every=None if options.on else options.every,
            keep=options.keep,
            on=job.selection or (),
            accept_new_key=options.accept_new_key,
            key_lifetime=options.key_lifetime,
        )
        rotation.notes = {
            "command": options.command,
            "retry_command": options.retry_command(job.journal),
            "folder": os.getcwd(),
        }
        stop = await _run(job, sender, rotation, events)
        code = exit_codes.ALL_PATCHED
        if rotation.next_run_at is None:
            code = exit_codes.code_of(
                rotation.summary, interrupted=stop.interrupted, left_behind=job.left_behind
            )
            _summarize(job, rotation.summary, stop, events)
        if sandbox is not None:
            requests, patched = sandbox.record.requests, len(sandbox.record.patched_accounts)
            events.say(f"the sandbox received {requests:,} requests and patched {patched:,} accounts")
        events.ended(rotation.summary, code, job.journal)
    return code


def _silence_dask() -> None:
    """Turn off Dask's log messages about lost workers. The cluster itself reports the ones that matter."""
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


@define
class _Stop:
    """Stops a rotation at the first signal or after --max-duration, and cancels it at the second signal."""

    rotation: Rotation
    task: asyncio.Task[Any]
    interrupted: bool = False  # a signal was received
    immediate: bool = False  # a second signal was received, and cancelled the requests in flight
    timed_out: bool = False  # --max-duration has passed

    def interrupt(self) -> None:
        if self.immediate:
            return  # already cancelled; another cancellation would interrupt the summary
        if self.interrupted:
            self.immediate = True
            self.task.cancel()
            return
        self.interrupted = True
        self.rotation.stop()
        write_stderr("stopping: waiting for the requests in flight. Press Ctrl-C again to stop at once")

    def time_out(self) -> None:
        self.timed_out = True
        self.rotation.stop()
        write_stderr("stopping: --max-duration has passed; waiting for the requests in flight")


async def _run(
    job: Job, sender: "PostPressSession | Cluster", rotation: Rotation, events: EventStream
) -> _Stop:
    task, seconds = asyncio.current_task(), job.options.max_duration
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    stop = _Stop(rotation, task)
    timer = None if seconds is None else task.get_loop().call_later(seconds, stop.time_out)
    try:
        with on_interrupt(stop.interrupt):
            async with rotation:
                if rotation.input_edit is not None:
                    events.say(f"the input was edited since the last run: {rotation.input_edit}")
                if rotation.completed_at is not None:
                    events.say(f"nothing was sent: {_why_complete(job, rotation)}")
                resumed = rotation.summary.resumed
                events.write("begun", total=job.total, resumed=resumed, journal=job.journal)
                if rotation.next_run_at is None:
                    await _send(job, sender, rotation, events)
                else:
                    # The next run is not due. Read the counts of the latest run, without a progress bar.
                    await rotation.run()
    except RotationError as error:
        if not rotation.summary.attempts:
            raise
        events.ended(rotation.summary, exit_codes.HALTED, job.journal)
        raise _HaltedError(str(error)) from None
    except asyncio.CancelledError:
        # `uncancel` takes back the cancellation by `_Stop`. Above 0, a cancellation by other code remains.
        if not stop.immediate or task.uncancel():
            raise
    finally:
        if timer is not None:
            timer.cancel()
    return stop


async def _send(
    job: Job, sender: "PostPressSession | Cluster", rotation: Rotation, events: EventStream
) -> None:
    stats, canary_passed = ProgressStats(job.total, rotation, sender), False
    with show_progress(stats):
        async for outcome in rotation:
            stats.add(outcome)
            events.settled(outcome)
            if rotation.summary.canary_passed and not canary_passed:
                canary_passed, accounts = True, job.options.canary
                events.write("canary_passed", accounts=accounts)
                write_stderr(
                    f"the canary of {counted(accounts, 'account')} passed: sending the other accounts"
                )
            if events.is_closed and not rotation.summary.stopped:
                rotation.stop()


def _why_complete(job: Job, rotation: Rotation) -> str:
    """Say why there is nothing to send, and what the user can do."""
    if unknown := rotation.summary.states[State.UNKNOWN]:
        outcomes = "outcome of 1 account is" if unknown == 1 else f"outcomes of {unknown:,} accounts are"
        pronoun = "it" if unknown == 1 else "them"
        return f"the {outcomes} unknown, and --on-unknown report does not send {pronoun} again"
    when = moment(rotation.completed_at or 0)
    if rotation.next_run_at is not None:
        due = moment(rotation.next_run_at)
        return f"the run in {job.journal} was completed at {when}, and the next is due at {due} (--every)"
    if job.options.on_failed == "retry":
        return f"no account in {job.journal} failed; its rotation was completed at {when}"
    return (
        f"the rotation in {job.journal} was completed at {when}. To send these accounts again, "
        "add --every 0s (or --every 20h to a nightly job)"
    )


class _HaltedError(click.ClickException):
    exit_code = exit_codes.HALTED


def _summarize(job: Job, summary: RotationSummary, stop: _Stop, events: EventStream) -> None:
    events.say(str(summary))
    if (remaining := job.total - summary.total) > 0:
        events.say(f"{remaining:,} of {job.total:,} accounts are not completed yet")
    events.say(f"journal: {job.journal}")
    for advice in _advice(job, summary, stop, events):
        write_stderr(f"postpress-async: {advice}")


def _advice(job: Job, summary: RotationSummary, stop: _Stop, events: EventStream) -> Iterator[str]:
    unknown = summary.states[State.UNKNOWN]
    if summary.without_proxy:
        lists = " or ".join(job.options.pool)
        accounts = counted(summary.without_proxy, "account")
        yield f"the pool is exhausted: {accounts} got no proxy; add proxies to {lists}"
    elif summary.quarantined:
        proxies = counted(summary.quarantined, "proxy", "proxies")
        yield f"{proxies} of the pool did not work and got no further accounts (see --cool-down)"
    reported = unknown if job.options.on_unknown == "report" else 0
    if reported:
        yield (
            f"{counted(reported, 'account')} may have been changed and will not be sent again: check them, "
            "then run without --on-unknown report to send them"
        )
    if expired := summary.errors[KEY_EXPIRED]:
        yield (
            f"{counted(expired, 'account')} may have got a managed proxy in an earlier run, longer ago than "
            "--key-lifetime. They were not sent, because they could get a second one. Check them in the "
            f"dashboard: `postpress-async export {shlex.quote(job.journal)} --state unknown` lists them. To "
            "send them again, set a longer --key-lifetime"
        )
    is_incomplete = unknown > reported + expired or summary.states[State.SKIPPED] > summary.refused
    if summary.halted:
        yield f"halted: {summary.halted}"
        yield f"fix the cause, then run the same command again: {job.options.command}"
    elif stop.interrupted or stop.timed_out or events.is_closed or is_incomplete:
        yield "to continue, run the same command again"
    elif summary.refused:
        rows, pronoun = counted(summary.refused, "invalid row"), "it" if summary.refused == 1 else "them"
        yield f"{rows} left out: fix {pronoun} and rotate {pronoun} as a separate fleet"
    if summary.states[State.FAILED] and not summary.halted:
        yield f"to retry the failed accounts: {job.options.retry_command(job.journal)}"
