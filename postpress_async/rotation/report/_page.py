"""Renders the page from a template that escapes all data."""

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from typing import BinaryIO, Final

from postpress_async import errors
from postpress_async._version import __version__
from postpress_async.errors import BY_CODE, BY_TYPE, PostPressError, RotationError, Scope
from postpress_async.rotation._outcome import NO_PROXY_LEFT, State
from postpress_async.rotation.journal._reading import JournalReader, JournalView, reader_of
from postpress_async.rotation.journal._statistics import ErrorCount, Stage, Statistics, advice, stage_of
from postpress_async.rotation.journal._times import duration
from postpress_async.rotation.report._findings import Findings, find
from postpress_async.rotation.report._listing import COLUMNS, pack

SHOWN: Final = 100  # accounts per page of the list, and shown without scripts


def write_report(view: JournalView, file: BinaryIO, now: float) -> None:
    """
    Write the report of a journal to *file*, in at most 5 MB. *now* is the current Unix time.

    Raises:
        JournalError: The journal is damaged.
        RotationError: Jinja or vl-convert is not installed.
    """
    try:
        page = _page(reader_of(view), now)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in {"jinja2", "markupsafe", "vl_convert"}:
            raise
        raise RotationError(f"a report requires {name}: pip install 'postpress-async[report]'") from None
    file.write(page.encode("utf-8", "backslashreplace"))  # a file name may be invalid UTF-8


def _page(view: JournalReader, now: float) -> str:
    import jinja2

    from postpress_async.rotation.report import _charts as charts

    stage = stage_of(view)
    with view.at_one_moment():
        findings = find(view, stage, now)
        outcomes = view.outcomes([State.FAILED, State.UNKNOWN, State.SKIPPED])
        # Accounts that were not sent before the run ended have no error type.
        listed = (o for o in outcomes if o.state is not State.SKIPPED or o.error_type is not None)
        listing = pack(listed, shown=SHOWN)
    style, script = _text("page.css"), _text("page.js")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"grouped": "{:,}".format, "moment": _moment, "duration": duration}
    statistics = findings.statistics
    sources = f"style-src {_hash(style)}; script-src {_hash(script)}"
    return environment.from_string(_text("page.html")).render(
        style=style,
        script=script,
        policy=f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'",
        version=__version__,
        now=now,
        journal=str(view.path),
        status=_status(statistics),
        colour=_colour(statistics),
        advice=advice(str(view.path), statistics, seen=True),
        states=list(_shares(statistics)),
        facts=list(_facts(findings)),
        findings=findings,
        statistics=statistics,
        meanings=[(error, _meaning(error)) for error in statistics.errors],
        throughput=charts.throughput(findings),
        latency=findings.latency and charts.latency(findings.latency),
        errors=charts.errors(statistics.errors) if statistics.errors else None,
        listing=listing,
        columns=COLUMNS,
        shown=SHOWN,
    )


def _status(statistics: Statistics) -> str:
    summary = statistics.summary[:500]
    note = "; this page shows its state when it was written" if statistics.stage is Stage.UNDER_WAY else ""
    return f"{summary[0].upper()}{summary[1:]}{note}."


def _colour(statistics: Statistics) -> str:
    """The state whose colour the header gets: failed (red), patched (green), or otherwise unknown."""
    if statistics.stage is Stage.HALTED or statistics.states[State.FAILED] > statistics.states[State.PATCHED]:
        return "failed"
    if statistics.accounts and statistics.states[State.PATCHED] == statistics.accounts:
        return "patched"
    return "unknown"


def _shares(statistics: Statistics) -> Iterator[tuple[str, int, float, float]]:
    """For each state, and for accounts without one: name, accounts, start and width of the bar in percent."""
    parts = [(state.value, statistics.states[state]) for state in State]
    start = 0.0
    for name, accounts in [*parts, ("not completed", statistics.accounts - statistics.states.total())]:
        width = 100 * accounts / max(1, statistics.accounts)
        yield name, accounts, start, width
        start += width


def _facts(findings: Findings) -> Iterator[tuple[str, str]]:
    statistics = findings.statistics
    started = statistics.first if statistics.began is None else statistics.began
    if started is not None:
        yield "started", _moment(started)
    if statistics.last is not None:
        yield "last account", _moment(statistics.last)
        yield "duration", duration(statistics.last - (started or statistics.last))
    if statistics.rate is not None:
        yield "accounts per second", f"{statistics.rate:,.1f}"
    if findings.latency is not None:
        yield "median time", f"{findings.latency.p50:g} s"
        yield "95th percentile", f"{findings.latency.p95:g} s"
    yield "requests", f"{findings.requests:,}"
    if statistics.maybe_sent:
        yield "maybe sent, not recorded", f"up to {statistics.maybe_sent:,}"


def _meaning(error: ErrorCount) -> str:
    """The first paragraph of the error class's docstring, or an explanation of an error without a class."""
    if error.error_type == NO_PROXY_LEFT:
        return "The pool had no proxy left for the account: add proxies to the list."
    kind = BY_TYPE.get(error.error_type) or BY_CODE.get(error.error_type)
    if kind is None:  # an error without a response is recorded by the name of its class
        kind = getattr(errors, error.error_type, None) if error.error_type.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, PostPressError):
        return " ".join((kind.__doc__ or "").split("\n\n")[0].replace("`", "").split())
    # A refused row has a reason of several words instead of a type, and types contain no spaces.
    is_reason = error.scope is Scope.REQUEST and " " in error.error_type
    return "The row is invalid and was not sent." if is_reason else ""


def _text(name: str) -> str:
    return resources.files("postpress_async.rotation.report").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
