"""The output of a running rotation: JSON events for programs, and messages for people."""

import json
import time
from datetime import datetime
from typing import Any, Final, TextIO

import attrs
import click

from postpress_async import events
from postpress_async._cli.terminal import discard_stdout, write_stderr
from postpress_async.errors import TransportError
from postpress_async.rotation import Outcome, Refusal, RotationSummary
from postpress_async.rotation._pool._proxy_list import RefusedLine
from postpress_async.rotation.journal._history import LeftBehind


class EventStream:
    """
    Writes events to *out* as JSON Lines, and messages to standard error.

    The documentation lists the events. Events and fields may be added, but existing ones never change. No
    event contains a secret. If *out* is None, no events are written and the summary goes to standard output.
    """

    def __init__(self, out: TextIO | None, *, verbose: bool) -> None:
        self._out: Final = out
        self._verbose: Final = verbose  # report retries, pauses and quarantined proxies in messages
        self.is_closed: bool = False  # the reader has closed the stream

    def say(self, text: str) -> None:
        """Write a line of the summary. Failing to write it does not change the exit code."""
        try:
            click.echo(text, err=self._out is not None)
        except OSError:
            if self._out is None:
                discard_stdout()

    def write(self, name: str, **fields: Any) -> None:
        if self._out is None or self.is_closed:
            return
        timestamp = fields.pop("settled_at", None) or time.time()
        try:
            print(json.dumps({"event": name, "at": timestamp, **fields}), file=self._out, flush=True)
        except (OSError, ValueError):  # ValueError: Python has already closed the stream
            self.is_closed = True
            discard_stdout()  # what is still in its buffer cannot be written at exit either

    def refused(self, source: str, refusal: Refusal | RefusedLine | LeftBehind) -> None:
        """Report an invalid row or line of the input *source*, or an account that a rollback cannot move."""
        self.write(
            "refused",
            source=source,
            line=refusal.line,
            column=refusal.column,
            account_id=getattr(refusal, "account_id", None),
            reason=refusal.reason,
            advice=refusal.advice,
            message=str(refusal),
        )

    def settled(self, outcome: Outcome) -> None:
        if self._out is not None:
            fields = attrs.asdict(outcome, filter=lambda field, _: field.name != "error", recurse=False)
            self.write("settled", **fields)

    def ended(self, summary: RotationSummary, code: int, journal: str, **fields: str) -> None:
        """Report the end of a rotation, or with a *message* why it was not started."""
        counts = attrs.asdict(summary, filter=lambda field, _: field.name != "unconsumed", recurse=False)
        self.write("ended", exit_code=code, journal=journal, **fields, **counts)

    def observe(self, event: events.Event) -> None:
        """Report an event of the session (see `postpress_async.events`)."""
        match event:
            case events.RetryScheduled(account_id, number, wait, error):
                self.write("retry", account_id=account_id, number=number, wait=wait, error_type=error.code)
                # A transport error has no response; its message names the host and the reason.
                reason = f" ({error.args[0]})" if isinstance(error, TransportError) else ""
                text = f"{error.code} in attempt {number}; retrying in {wait:.1f} s{reason}"
                self._explain(f"{account_id}: {text}")
            case events.PauseBegan():
                self.write("pause_began")
                text = "the service is down, or most proxies fail: accounts wait, and only probes are sent"
                self._explain(text)
            case events.PauseEnded():
                self.write("pause_ended")
                self._explain("the service and proxies work again: accounts continue")
            case events.LimitChanged(limit):
                self.write("limit_changed", limit=limit)
            case events.RateChanged(rate):
                self.write("rate_changed", rate=rate)
                limited = "none" if rate is None else f"{rate:.4g} requests per second"
                self._explain(f"the rate limit is now {limited}")
            case events.ProxyQuarantined(proxy):
                self.write("proxy_quarantined", proxy=proxy)
                self._explain(f"{proxy} failed: it is quarantined (see --cool-down)")

    def _explain(self, text: str) -> None:
        if self._verbose:
            write_stderr(f"{datetime.now():%H:%M:%S} {text}")
