"""A rotation under way on the command line: its signals, what is shown of it, and its exit code."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final

import click

from postpress_async._cli import exit_codes, options
from postpress_async._cli.event_stream import Feed
from postpress_async._cli.inputs import Job, Wishes
from postpress_async._cli.output import moment, tell, tell_file_limit_once
from postpress_async._cli.progress import Paused, Progress
from postpress_async._cli.sandbox import first_addresses
from postpress_async.errors import RotationError
from postpress_async.pace import Pace
from postpress_async.retry import RetryPolicy
from postpress_async.rotation import ProxyPool, Rotation, RotationSummary, State
from postpress_async.sandbox import Sandbox
from postpress_async.secret import Secret
from postpress_async.session import PostPressSession

if TYPE_CHECKING:
    from postpress_async.cluster import Cluster


async def run_job(job: Job, feed: Feed) -> int:
    """Carry *job* out; its exit code."""
    tell_file_limit_once(asyncio.get_running_loop())
    wishes = job.wishes
    async with AsyncExitStack() as stack:
        pace = Pace(in_flight=wishes.in_flight, rate=wishes.rate)
        retry = RetryPolicy(attempts=wishes.attempts)
        observer = feed.observe if wishes.json or wishes.verbose else None
        sandbox = None
        key, url = None, wishes.base_url
        if wishes.sandbox:
            sandbox = await stack.enter_async_context(make_sandbox(wishes, job.pool))
            key, url = Secret(sandbox.api_key), sandbox.url
        elif wishes.cluster is None or wishes.api_key_file is not None:  # else the workers have it
            key = options.read_key(wishes.api_key_file)
        sender: Cluster | PostPressSession
        if wishes.cluster is None:
            sender = PostPressSession(
                key,
                base_url=url,
                retry=retry,
                pace=pace,
                idempotency=not wishes.no_idempotency,
                transport=wishes.transport,
                on_event=observer,
            )
        else:
            sender = _quiet(cluster_extra()).Cluster(
                wishes.cluster,
                certificates=wishes.certificates,
                api_key=key,
                base_url=url,
                retry=retry,
                pace=pace,
                idempotency=not wishes.no_idempotency,
                transport=wishes.transport,
                on_event=observer,
            )
        await stack.enter_async_context(sender)
        rotation = sender.rotate(
            job.changes,
            journal=job.journal,
            halt=wishes.halts,
            pool=job.pool,
            limit=wishes.limit,
            on_unknown=wishes.on_unknown,
            on_failed=wishes.on_failed,
        )
        rotation.notes = {
            "command": wishes.command,
            "retry command": wishes.retry_failed(job.journal),
            "folder": os.getcwd(),
        }
        ended = await _run(job, sender, rotation, feed)
        code = exit_codes.code_of(rotation.summary, interrupted=ended.interrupted)
        _conclude(job, rotation.summary, ended, feed)
        if sandbox is not None:
            requests, patched = sandbox.record.requests, len(sandbox.record.patched_accounts)
            feed.say(f"the sandbox saw {requests:,} requests and patched {patched:,} accounts")
        feed.ended(rotation.summary, code, job.journal)
    return code


def cluster_extra() -> ModuleType:
    """
    The module `postpress_async.cluster`, which is an extra.

    Raises:
        click.UsageError: It is not installed.
    """
    try:
        return import_module("postpress_async.cluster")
    except ImportError as error:
        raise click.UsageError(
            f"a cluster takes {error.name}, which is not there: pip install 'postpress-async[distributed]'"
        ) from None


def _quiet(extra: ModuleType) -> ModuleType:
    """What Dask has to say of lost workers is told, where it matters, in words of ours."""
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return extra


def make_sandbox(wishes: Wishes, pool: ProxyPool | None) -> Sandbox:
    """The fake of the API that is asked for; the first proxies of the pool are its dead ones."""
    dead = frozenset[str]() if pool is None else first_addresses(pool, wishes.dead_proxies)
    return Sandbox(profile=wishes.profile, seed=wishes.seed, dead_proxies=dead)


class _Ended:
    """
    Who ended the run before its last account.

    Attributes:
        interrupted: A signal did.
        at_once: And a second one, which does not wait for what is in flight.
        timed_out: Its time was up.
        unheard: Nobody reads its events any more.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.at_once = False
        self.timed_out = False
        self.unheard = False

    @property
    def early(self) -> bool:
        return self.interrupted or self.timed_out or self.unheard


async def _run(job: Job, sender: Paused, rotation: Rotation, feed: Feed) -> _Ended:
    ended = _Ended()
    try:
        with _interruptible(rotation, ended, job.wishes.max_duration):
            async with rotation:
                if rotation.completed_at is not None:
                    feed.say(f"nothing was sent: {_why_complete(job, rotation)}")
                feed.begun(job, rotation.summary)
                with Progress(job.total, rotation, sender) as progress:
                    async for outcome in rotation:
                        progress.update(outcome)
                        if not feed.settled(outcome) and not rotation.summary.stopped:
                            ended.unheard = True  # whoever read the events is gone
                            rotation.stop()
    except RotationError as error:
        if not rotation.summary.attempts:
            raise
        feed.ended(rotation.summary, exit_codes.HALTED, job.journal)
        raise _Halted(str(error)) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        if not ended.at_once or task.uncancel():
            raise
    return ended


def _why_complete(job: Job, rotation: Rotation) -> str:
    """Why a rotation has nothing to send, and the next step."""
    if unknown := rotation.summary.states[State.UNKNOWN]:
        outcomes = "outcome of 1 account is" if unknown == 1 else f"outcomes of {unknown:,} accounts are"
        left = "it" if unknown == 1 else "them"
        return f"the {outcomes} unknown, and --on-unknown report leaves {left} to you"
    when = moment(rotation.completed_at or 0)
    if job.wishes.on_failed == "retry":
        return f"no account in {job.journal} failed; its rotation was completed at {when}"
    return (
        f"the rotation in {job.journal} was completed at {when}. To send these accounts again, "
        "name another --journal"
    )


class _Halted(click.ClickException):
    exit_code = exit_codes.HALTED


@contextmanager
def _interruptible(rotation: Rotation, ended: _Ended, seconds: float | None) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: nothing more is sent, what is in flight settles. Second: now."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task

    def interrupt() -> None:
        if ended.at_once:
            return  # it ends as fast as the disk allows; cancelled twice, it would end without a word
        if ended.interrupted:
            ended.at_once = True
            task.cancel()
            return
        ended.interrupted = True
        rotation.stop()
        tell("stopping: what is in flight settles first; once more to stop at once")

    def time_is_up() -> None:
        ended.timed_out = True
        rotation.stop()
        tell("the time is up: what is in flight settles")

    timer = None if seconds is None else loop.call_later(seconds, time_is_up)
    signals: Final = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number in signals:
            loop.remove_signal_handler(number)


def _conclude(job: Job, summary: RotationSummary, ended: _Ended, feed: Feed) -> None:
    """What came of it, and what to do next."""
    feed.say(str(summary))
    if (unreached := job.total - summary.total) > 0:
        feed.say(f"{unreached:,} of {job.total:,} accounts are not settled yet")
    feed.say(f"journal: {job.journal}")
    if summary.without_proxy:
        accounts = "1 account" if summary.without_proxy == 1 else f"{summary.without_proxy:,} accounts"
        lists = " or ".join(job.wishes.pool)
        tell(f"postpress-async: the pool ran dry: {accounts} got no proxy; add proxies to {lists}")
    elif summary.quarantined:
        tell(f"postpress-async: {summary.quarantined:,} of the pool's proxies did not work: left out")
    left_in_doubt = summary.states[State.UNKNOWN] if job.wishes.on_unknown == "report" else 0
    if left_in_doubt:
        accounts = "1 account" if left_in_doubt == 1 else f"{left_in_doubt:,} accounts"
        advice = "look at them, then run without --on-unknown report to send them"
        tell(f"postpress-async: {accounts} may have been changed and will not be sent again: {advice}")
    open_ = summary.states[State.UNKNOWN] > left_in_doubt or summary.states[State.SKIPPED] > summary.refused
    if summary.halted:
        tell(f"postpress-async: halted: {summary.halted}")
        tell(f"postpress-async: correct the cause, then run the same command again: {job.wishes.command}")
    elif ended.early or open_:
        tell("postpress-async: run the same command again to go on")
    elif summary.refused:
        rows = "1 row was" if summary.refused == 1 else f"{summary.refused:,} rows were"
        tell(f"postpress-async: {rows} refused: correct them and rotate them as a fleet of their own")
    if summary.states[State.FAILED] and not summary.halted:
        tell(f"postpress-async: to send what failed once more: {job.wishes.retry_failed(job.journal)}")
