"""
A session's events as OpenTelemetry spans and metrics: ``PostPressSession(on_event=Telemetry())``.

The names are those of OpenTelemetry's semantic conventions for HTTP clients where they have one, and
begin with ``postpress.`` where not. It needs the extra ``otel``, and no more than OpenTelemetry's API:
which spans and metrics are kept, and where they go, is the embedding program's to say.

Spans: one for each call, and below it one for each attempt. The call's is a child of whatever span is
current where the session is called, and current itself until the call ends. Beside OpenTelemetry's
instrumentation of aiohttp's client each attempt has two: name PostPress's host in its
``OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS``, or take ``transport="lean"``, which it does not see.

What failed has ``error.type``, on its span and in its metrics: one of the API's types; else the HTTP status,
or the class of the error; ``given_up`` where the caller's deadline or a cancellation ended it.

Metrics, none with an account's id, a proxy, or anything else that there may be very many of:

    http.client.request.duration    s    each attempt
    http.client.active_requests          requests in flight
    postpress.client.call.duration  s    each call, from its first attempt
    postpress.client.call.attempts       attempts of each call
    postpress.client.retry.wait     s    each wait before an attempt is repeated, with the error before it
    postpress.client.pauses              outages that were met
    postpress.client.pause.duration s    each pause, once it is over
    postpress.rotation.accounts          accounts settled, by state, error type and scope
    postpress.rotation.quarantines       proxies of a pool that were taken out
"""

import asyncio
from contextvars import Token
from typing import Any, Final, TypeAlias

from attrs import define
from yarl import URL

from postpress_async import errors, events
from postpress_async._guarded import Guarded
from postpress_async._version import __version__
from postpress_async.errors import ApiError, Applied, PostPressError

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.trace import Span, SpanKind, StatusCode
except ModuleNotFoundError as _error:
    if (_error.name or "").split(".")[0] != "opentelemetry":
        raise
    raise ModuleNotFoundError(
        "telemetry needs OpenTelemetry's API: pip install 'postpress-async[otel]'", name=_error.name
    ) from None

Facts: TypeAlias = dict[str, str | int | bool]

_SECONDS: Final = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120]
_OWN_TYPES: Final = frozenset(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PostPressError)
)


@define
class _Watched:
    """
    A call that is under way.

    Attributes:
        outer: The call in the midst of which the same task makes this one.
        attempt: The attempt in flight, and when it *began*.
    """

    span: Span
    token: Token[Any]
    url: str
    template: str
    server: Facts
    outer: "_Watched | None"
    attempt: Span | None = None
    began: float = 0.0


class Telemetry:
    """
    An observer for `PostPressSession`; one may be given to any number of sessions.

    Args:
        tracers: Where spans go; None for the global provider.
        meters: Where metrics go; None for the global provider.
        then: Another observer, which is told of each event too.
    """

    def __init__(
        self,
        tracers: trace.TracerProvider | None = None,
        meters: metrics.MeterProvider | None = None,
        then: events.Observer | None = None,
    ) -> None:
        self._tracer: Final = trace.get_tracer("postpress_async", __version__, tracers)
        meter = metrics.get_meter("postpress_async", __version__, meters)
        self._requests: Final = meter.create_histogram(
            "http.client.request.duration",
            unit="s",
            description="Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._active: Final = meter.create_up_down_counter(
            "http.client.active_requests", unit="{request}", description="Requests in flight."
        )
        self._calls: Final = meter.create_histogram(
            "postpress.client.call.duration",
            unit="s",
            description="Duration of calls from the first attempt, with all retries and their waits.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._attempts: Final = meter.create_histogram(
            "postpress.client.call.attempts",
            unit="{attempt}",
            description="Attempts that a call took.",
            explicit_bucket_boundaries_advisory=[0, 1, 2, 3, 4, 6, 8, 12],
        )
        self._waits: Final = meter.create_histogram(
            "postpress.client.retry.wait",
            unit="s",
            description="Waits before an attempt is repeated.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._pauses: Final = meter.create_counter(
            "postpress.client.pauses", unit="{pause}", description="Outages in which all calls paused."
        )
        self._pause: Final = meter.create_histogram(
            "postpress.client.pause.duration",
            unit="s",
            description="Duration of pauses, from the gate's closing to the first good answer.",
            explicit_bucket_boundaries_advisory=[0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400],
        )
        self._accounts: Final = meter.create_counter(
            "postpress.rotation.accounts", unit="{account}", description="Accounts settled by rotations."
        )
        self._quarantines: Final = meter.create_counter(
            "postpress.rotation.quarantines", unit="{proxy}", description="Proxies taken out of their pool."
        )
        self._then: Final = None if then is None else Guarded(then)
        self._under_way: Final[dict[asyncio.Task[Any], _Watched]] = {}

    def __call__(self, event: events.Event) -> None:
        """Take *event*, in the task that it is told in."""
        try:
            self._take(event)
        finally:  # a span's processor may raise, and is the embedding program's
            if self._then is not None:
                self._then(event)

    def _take(self, event: events.Event) -> None:
        match event:
            case events.CallStarted():
                self._call_started(event)
            case events.AttemptStarted():
                self._attempt_started(event)
            case events.AttemptEnded():
                self._attempt_ended(event)
            case events.RetryScheduled(_, _, wait, error):
                self._waits.record(wait, {"error.type": _type_of(error)})
            case events.CallEnded():
                self._call_ended(event)
            case events.PauseBegan():
                self._pauses.add(1)
            case events.PauseEnded(elapsed):
                self._pause.record(elapsed)
            case events.ProxyQuarantined():
                self._quarantines.add(1)
            case events.AccountSettled():
                self._accounts.add(1, _facts_of_settled(event))

    def _call_started(self, event: events.CallStarted) -> None:
        url = URL(event.url)
        template = f"{url.raw_path.rpartition('/')[0]}/{{account_id}}"
        server: Facts = {"http.request.method": "PATCH"}
        server |= {"server.address": url.host or "", "server.port": url.port or 0}
        own: Facts = {"postpress.account_id": event.account_id, **server}
        span = self._tracer.start_span("postpress update_proxy", attributes=own)
        token = context.attach(trace.set_span_in_context(span))
        task = _task()
        outer = self._under_way.get(task)
        self._under_way[task] = _Watched(span, token, event.url, template, server, outer)

    def _attempt_started(self, event: events.AttemptStarted) -> None:
        watched = self._under_way.get(_task())
        if watched is None:  # its span could not be started
            return
        facts: Facts = {"url.full": watched.url, "url.template": watched.template, **watched.server}
        if event.number > 1:
            facts["http.request.resend_count"] = event.number - 1
        name = f"PATCH {watched.template}"
        watched.began = asyncio.get_running_loop().time()
        watched.attempt = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=facts)
        self._active.add(1, watched.server)

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        watched = self._under_way.get(_task())
        if watched is None:
            return
        facts: Facts = {} if event.status is None else {"http.response.status_code": event.status}
        if event.error is not None:
            facts["error.type"] = _type_of(event.error)
        self._end_attempt(watched, event.elapsed, facts, event.error)

    def _end_attempt(
        self, watched: _Watched, elapsed: float, facts: Facts, error: PostPressError | None
    ) -> None:
        self._requests.record(elapsed, watched.server | facts)
        span, watched.attempt = watched.attempt, None
        if span is not None:
            self._active.add(-1, watched.server)
            _end(span, facts, error)

    def _call_ended(self, event: events.CallEnded) -> None:
        task = _task()
        watched = self._under_way.pop(task, None)
        if watched is None:
            return
        if watched.outer is not None:
            self._under_way[task] = watched.outer
        facts: Facts = {}
        if event.error is not None:
            facts = {"error.type": _type_of(event.error), "postpress.error.scope": event.error.scope.value}
        elif event.given_up:
            facts = {"error.type": "given_up"}
        self._calls.record(event.elapsed, watched.server | facts)
        self._attempts.record(event.attempts, facts)
        try:
            if watched.attempt is not None:  # given up while it was in flight
                elapsed = asyncio.get_running_loop().time() - watched.began
                self._end_attempt(watched, elapsed, {"error.type": "given_up"}, None)
        finally:
            context.detach(watched.token)
            _end(watched.span, {"postpress.attempts": event.attempts, **facts}, event.error)


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a call has one
    return task


def _end(span: Span, facts: Facts, error: PostPressError | None) -> None:
    span.set_attributes(facts)
    if error is not None:
        span.set_attribute("postpress.applied", error.applied.value)
        span.set_attribute("postpress.retryable", error.retryable)
        if isinstance(error, ApiError) and error.instance:
            span.set_attribute("postpress.error.instance", error.instance)
    if "error.type" in facts:
        span.set_status(StatusCode.ERROR, None if error is None else str(error))
    span.end()


def _type_of(error: PostPressError) -> str:
    """The type where it is one of the catalogue, else the HTTP status or the class: there are few of each."""
    if not isinstance(error, ApiError):
        return error.code
    return error.code if _is_listed(error.code) else str(error.status)


def _is_listed(type_: str) -> bool:
    return type_ in errors.BY_TYPE or type_ in errors.BY_CODE


def _facts_of_settled(event: events.AccountSettled) -> Facts:
    facts: Facts = {"postpress.state": str(event.state)}
    if event.scope is not None:
        facts["postpress.error.scope"] = event.scope.value
    if event.applied is Applied.UNKNOWN:
        facts["postpress.applied"] = event.applied.value
    if (told := event.error_type) is not None:
        known = _is_listed(told) or told in _OWN_TYPES or told == "no proxy left"
        # A row that was refused has its reason there, with the row's own words.
        facts["error.type"] = told if known else "unlisted" if event.attempts else "refused row"
    return facts
