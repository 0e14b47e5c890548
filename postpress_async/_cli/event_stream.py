"""What a rotation says while it runs: events as JSON for programs, sentences for people."""

import json
import os
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

import attrs
import click

from postpress_async import events
from postpress_async._cli.output import tell
from postpress_async.rotation import Outcome, Refusal, RotationSummary
from postpress_async.rotation.pool.proxy_list import RefusedLine

if TYPE_CHECKING:
    from postpress_async._cli.inputs import Job


class Feed:
    """
    Writes events to *out*, one JSON object a line, flushed at once; and tells people on standard error.

    Each has ``event`` and ``at`` (Unix time in seconds). The names of events and fields are a promise; new
    ones may come. No event holds a secret.

    - ``refused``: a row of the fleet, or a line of a list of proxies, that cannot be used: ``source``,
      ``line``, ``column``, ``account_id``, ``reason``, ``advice``, and ``message``, which has all of it.
    - ``begun``: ``total``, ``resumed`` (settled before), ``journal``.
    - ``settled``: an account, with the columns of the journal's table.
    - ``retry``: ``account_id``, ``number`` of the attempt that failed, ``wait`` in seconds, ``error_type``.
    - ``pause_began``, ``pause_ended``: the service is out; it is back.
    - ``proxy_quarantined``: ``proxy``, its label.
    - ``ended``: ``exit_code``, ``states``, ``errors``, ``halted``, ``attempts``, ``elapsed``; and
      ``message`` if nothing was sent.
    - ``dry_run``, which is the last event of ``--dry-run``: ``exit_code`` and what `preview` tells.

    Args:
        out: Where events go; None for none, and then people's summary goes to standard output.
        told: Whether people are told of retries, pauses and quarantines too.
    """

    def __init__(self, out: TextIO | None, *, told: bool) -> None:
        self._out: Final = out
        self._told: Final = told
        self._heard = True

    def say(self, text: str) -> None:
        """A line of the summary; that nobody can read it is no reason to end otherwise."""
        try:
            click.echo(text, err=self._out is not None)
        except OSError:
            if self._out is None:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nothing is left to flush at exit

    def refused(self, source: str, refusal: Refusal | RefusedLine) -> None:
        """A row or a line of the input *source* cannot be used."""
        if self._out is not None:
            self._write(
                "refused",
                source=source,
                line=refusal.line,
                column=refusal.column,
                account_id=getattr(refusal, "account_id", None),
                reason=refusal.reason,
                advice=refusal.advice,
                message=str(refusal),
            )

    def dry_run(self, **facts: Any) -> None:
        """What a run would do."""
        self._write("dry_run", **facts)

    def not_begun(self, code: int, message: str, journal: str) -> None:
        """The rotation must not begin."""
        fields = attrs.asdict(RotationSummary(), recurse=False)
        self._write("ended", exit_code=code, journal=journal, message=message, **fields)

    def begun(self, job: "Job", summary: RotationSummary) -> None:
        """The rotation has begun."""
        self._write("begun", total=job.total, resumed=summary.resumed, journal=job.journal)

    def settled(self, outcome: Outcome) -> bool:
        """An account is settled; whether anybody still wants to know."""
        if self._out is not None:
            fields = attrs.asdict(outcome, filter=lambda field, _: field.name != "error", recurse=False)
            self._write("settled", **fields)
        return self._heard

    def ended(self, summary: RotationSummary, code: int, journal: str) -> None:
        """The rotation is over."""
        fields = attrs.asdict(summary, recurse=False)
        self._write("ended", exit_code=code, journal=journal, **fields)

    def observe(self, event: events.Event) -> None:
        """What the session tells; see `postpress_async.events`."""
        match event:
            case events.RetryScheduled(account_id, number, wait, error):
                self._write("retry", account_id=account_id, number=number, wait=wait, error_type=error.code)
                self._tell(f"{account_id}: {error.code}, attempt {number}; again in {wait:.1f} s")
            case events.PauseBegan():
                self._write("pause_began")
                self._tell("the service is out: all calls pause, but for probes")
            case events.PauseEnded():
                self._write("pause_ended")
                self._tell("the service is back: the calls go on")
            case events.ProxyQuarantined(proxy):
                self._write("proxy_quarantined", proxy=proxy)
                self._tell(f"{proxy} failed its accounts: no other gets it in this run")
            case _:
                pass

    def _tell(self, text: str) -> None:
        if self._told:
            tell(f"{datetime.now():%H:%M:%S} {text}")

    def _write(self, name: str, **fields: Any) -> None:
        if self._out is None or not self._heard:
            return
        at = fields.pop("settled_at", None) or time.time()
        try:
            print(json.dumps({"event": name, "at": at, **fields}), file=self._out, flush=True)
        except (OSError, ValueError):  # the pipe is closed: ValueError where Python knows it already
            self._heard = False
