"""The events of `--json`."""

import io
import json
import sys

import pytest

from postpress_async._cli.event_stream import EventStream
from postpress_async.rotation import RotationSummary
from postpress_async.rotation._outcome import count_outcome
from tests.support.journals import patched_outcome


def test_last_event_of_a_stopped_run_has_counts_and_no_outcomes() -> None:
    """The last event has no outcomes, because each account has an event of its own."""
    out, summary = io.StringIO(), RotationSummary(stopped=True)
    outcome = patched_outcome(0, None, "acc_1", 1, 0.5)
    count_outcome(summary, outcome)
    summary.unconsumed.append(outcome)

    EventStream(out, verbose=False).ended(summary, 1, "run.sqlite3")

    event = json.loads(out.getvalue())
    assert event["states"] == {"patched": 1}
    assert "unconsumed" not in event


def test_stream_that_its_reader_has_closed_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python flushes standard output at exit, and would report that the pipe is broken."""

    class ClosedPipe(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    out = ClosedPipe()
    monkeypatch.setattr(sys, "stdout", out)
    stream = EventStream(out, verbose=False)

    stream.write("begun")
    stream.write("ended")

    assert stream.is_closed
    assert out.getvalue().count("\n") == 1
    assert sys.stdout is not out
    sys.stdout.close()
