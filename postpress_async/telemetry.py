"""
A session's events as OpenTelemetry spans and metrics: ``PostPressSession(on_event=Telemetry())``.

Names follow OpenTelemetry's semantic conventions for HTTP clients. Names that the conventions do not define
begin with ``postpress.``. This module requires the extra ``otel``, which installs only OpenTelemetry's API;
the application chooses the SDK and its exporters.

Each call has a span, with a child span for each attempt. The call's span is a child of the current span, and
is the current span during the call. OpenTelemetry's instrumentation of aiohttp adds a second span for each
attempt. To avoid that, add PostPress's host to ``OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS``, or use
``transport="lean"``, which that instrumentation does not see.

Spans and metrics of failures have the attribute ``error.type``: a type of the API; otherwise the HTTP
status or the class of the error; or ``given_up`` if a cancellation or the caller's own timeout ended the
call.

No metric has an attribute with many different values, such as the account id or the proxy::

    http.client.request.duration    s    duration of attempts
    http.client.active_requests          requests in flight
    postpress.client.call.duration  s    duration of calls from their first attempt, including backoff
    postpress.client.call.attempts       attempts per call
    postpress.client.retry.wait     s    backoff before a retry, by the type of the error
    postpress.client.permit.wait    s    time for which a call waited until its session's limits allowed it
    postpress.client.limit               concurrency limit, at its latest change
    postpress.client.rate                rate limit in requests per second, at its latest change; 0 for none
    postpress.client.pauses              pauses of all calls because the service was down
    postpress.client.pause.duration s    duration of pauses
    postpress.rotation.accounts          completed accounts, by state, error type and scope
    postpress.rotation.quarantines       quarantined proxies
"""

import asyncio
from collections.abc import Sequence
from contextvars import Token
from typing import Any, Final, TypeAlias

from attrs import define
from yarl import URL

from postpress_async import errors, events
from postpress_async._safe_observer import SafeObserver
from postpress_async._version import __version__
from postpress_async.errors import ApiError, Applied, PostPressError

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.trace import Span, SpanKind, StatusCode
except ModuleNotFoundError as _error:
    if (_error.name or "").split(".")[0] != "opentelemetry":
        raise
    raise ModuleNotFoundError(
        "telemetry requires OpenTelemetry's API: pip install 'postpress-async[otel]'", name=_error.name
    ) from None

Attributes: TypeAlias = dict[str, str | int | bool]

_SECONDS: Final = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120]
_API_TYPES: Final = frozenset({*errors.BY_TYPE, *errors.BY_CODE})
_CLASS_NAMES: Final = frozenset(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PostPressError)
)
# The types of accounts that a rotation does not send. Their constants are in `rotation`, which a service that
# updates single accounts need not import.
_UNSENT_TYPES: Final = frozenset({"no proxy left", "idempotency key expired"})


@define
class _ActiveCall:
    span: Span
    token: Token[Any]  # restores the span that was current before the call
    url: str
    template: str  # the path of the URL, with a placeholder for the account id
    server: Attributes  # attributes of all spans and metrics of the call
    outer: "_ActiveCall | None"  # the call of the same task during which this call was made
    attempt: Span | None = None  # of the attempt in flight
    attempt_started: float = 0.0  # by the event loop's clock


class Telemetry:
    """
    An observer for `PostPressSession` that creates spans and metrics. Several sessions may share one.

    Args:
        tracers: Provider of the tracer; None for the global provider.
        meters: Provider of the meter; None for the global provider.
        then: Another observer to call with every event.
    """

    def __init__(
        self,
        tracers: trace.TracerProvider | None = None,
        meters: metrics.MeterProvider | None = None,
        then: events.Observer | None = None,
    ) -> None:
        self._tracer: Final = trace.get_tracer("postpress_async", __version__, tracers)
        meter = metrics.get_meter("postpress_async", __version__, meters)

        def histogram(
            name: str, unit: str, description: str, buckets: Sequence[float] = _SECONDS
        ) -> metrics.Histogram:
            return meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=buckets
            )

        self._requests: Final = histogram(
            "http.client.request.duration", "s", "Duration of HTTP client requests."
        )
        self._calls: Final = histogram(
            "postpress.client.call.duration",
            "s",
            "Duration of calls from the first attempt, with all retries and backoff.",
        )
        self._attempts: Final = histogram(
            "postpress.client.call.attempts", "{attempt}", "Attempts per call.", [0, 1, 2, 3, 4, 6, 8, 12]
        )
        self._permit_waits: Final = histogram(
            "postpress.client.permit.wait",
            "s",
            "Time for which a call waited until its session's limits allowed it.",
        )
        self._backoffs: Final = histogram("postpress.client.retry.wait", "s", "Backoff before a retry.")
        self._pause_durations: Final = histogram(
            "postpress.client.pause.duration",
            "s",
            "Duration of pauses, from the circuit breaker's opening to its closing.",
            [0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400],
        )
        self._active: Final = meter.create_up_down_counter(
            "http.client.active_requests", "{request}", "Requests in flight."
        )
        self._pauses: Final = meter.create_counter(
            "postpress.client.pauses", "{pause}", "Pauses of all calls because the service was down."
        )
        self._limit: Final = meter.create_gauge(
            "postpress.client.limit", "{request}", "Concurrency limit, at its latest change."
        )
        self._rate: Final = meter.create_gauge(
            "postpress.client.rate", "{request}/s", "Rate limit, at its latest change; 0 for none."
        )
        self._accounts: Final = meter.create_counter(
            "postpress.rotation.accounts", "{account}", "Accounts completed by rotations."
        )
        self._quarantines: Final = meter.create_counter(
            "postpress.rotation.quarantines", "{proxy}", "Quarantined proxies of pools."
        )
        self._then: Final = None if then is None else SafeObserver(then)
        self._active_calls: Final[dict[asyncio.Task[Any], _ActiveCall]] = {}

    def __call__(self, event: events.Event) -> None:
        """Record *event*, in the task of the event's call."""
        try:
            self._record(event)
        finally:  # the application's span processors may raise
            if self._then is not None:
                self._then(event)

    def _record(self, event: events.Event) -> None:
        match event:
            case events.CallStarted():
                self._call_started(event)
            case events.AttemptStarted():
                self._attempt_started(event)
            case events.AttemptEnded():
                self._attempt_ended(event)
            case events.RetryScheduled(_, _, wait, error):
                self._backoffs.record(wait, {"error.type": _error_type(error)})
            case events.CallEnded():
                self._call_ended(event)
            case events.PauseBegan():
                self._pauses.add(1)
            case events.PauseEnded(elapsed):
                self._pause_durations.record(elapsed)
            case events.LimitChanged(limit):
                self._limit.set(limit)
            case events.RateChanged(rate):
                self._rate.set(0 if rate is None else rate)
            case events.ProxyQuarantined():
                self._quarantines.add(1)
            case events.AccountSettled():
                self._accounts.add(1, _account_attributes(event))

    def _call_started(self, event: events.CallStarted) -> None:
        url = URL(event.url)
        template = f"{url.raw_path.rpartition('/')[0]}/{{account_id}}"
        server: Attributes = {"http.request.method": "PATCH"}
        server |= {"server.address": url.host or "", "server.port": url.port or 0}
        attributes: Attributes = {"postpress.account_id": event.account_id, **server}
        span = self._tracer.start_span("postpress update_proxy", attributes=attributes)
        token = context.attach(trace.set_span_in_context(span))
        task = _current_task()
        outer = self._active_calls.get(task)
        self._active_calls[task] = _ActiveCall(span, token, event.url, template, server, outer)

    def _attempt_started(self, event: events.AttemptStarted) -> None:
        call = self._active_calls.get(_current_task())
        if call is None:  # the span of the call could not be started
            return
        attributes: Attributes = {"url.full": call.url, "url.template": call.template, **call.server}
        if event.number > 1:
            attributes["http.request.resend_count"] = event.number - 1
        name = f"PATCH {call.template}"
        call.attempt_started = asyncio.get_running_loop().time()
        call.attempt = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        self._active.add(1, call.server)

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        call = self._active_calls.get(_current_task())
        if call is None:
            return
        attributes: Attributes = {} if event.status is None else {"http.response.status_code": event.status}
        if event.error is not None:
            attributes["error.type"] = _error_type(event.error)
        self._end_attempt(call, event.elapsed, attributes, event.error)

    def _end_attempt(
        self, call: _ActiveCall, elapsed: float, attributes: Attributes, error: PostPressError | None
    ) -> None:
        self._requests.record(elapsed, call.server | attributes)
        span, call.attempt = call.attempt, None
        if span is not None:
            self._active.add(-1, call.server)
            _end_span(span, attributes, error)

    def _call_ended(self, event: events.CallEnded) -> None:
        task = _current_task()
        call = self._active_calls.pop(task, None)
        if call is None:
            return
        if call.outer is not None:
            self._active_calls[task] = call.outer
        attributes: Attributes = {"error.type": "given_up"} if event.given_up else {}
        if event.error is not None:
            attributes["error.type"] = _error_type(event.error)
            attributes["postpress.error.scope"] = event.error.scope.value
        self._calls.record(event.elapsed, call.server | attributes)
        self._permit_waits.record(event.waited, call.server)
        self._attempts.record(event.attempts, attributes)
        try:
            if call.attempt is not None:  # the call was cancelled while a request was in flight
                elapsed = asyncio.get_running_loop().time() - call.attempt_started
                self._end_attempt(call, elapsed, {"error.type": "given_up"}, None)
        finally:
            context.detach(call.token)
            _end_span(call.span, {"postpress.attempts": event.attempts, **attributes}, event.error)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a call always runs in a task
    return task


def _end_span(span: Span, attributes: Attributes, error: PostPressError | None) -> None:
    span.set_attributes(attributes)
    if error is not None:
        span.set_attribute("postpress.applied", error.applied.value)
        span.set_attribute("postpress.retryable", error.retryable)
        if isinstance(error, ApiError) and error.instance:
            span.set_attribute("postpress.error.instance", error.instance)
    if "error.type" in attributes:
        span.set_status(StatusCode.ERROR, None if error is None else str(error))
    span.end()


def _error_type(error: PostPressError) -> str:
    """A listed type of the API; otherwise the HTTP status, or without a response the class of the error."""
    is_unlisted = isinstance(error, ApiError) and error.code not in _API_TYPES
    return str(error.status) if is_unlisted else error.code


def _account_attributes(event: events.AccountSettled) -> Attributes:
    attributes: Attributes = {"postpress.state": str(event.state)}
    if event.scope is not None:
        attributes["postpress.error.scope"] = event.scope.value
    if event.applied is Applied.UNKNOWN:
        attributes["postpress.applied"] = event.applied.value
    if (error_type := event.error_type) is not None:
        if error_type not in _API_TYPES | _CLASS_NAMES | _UNSENT_TYPES:
            # The error type of a refused row is its reason, which may contain words of the row.
            error_type = "unlisted" if event.attempts else "refused row"
        attributes["error.type"] = error_type
    return attributes
