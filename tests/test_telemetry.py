"""The spans and metrics that OpenTelemetry's exporters get, and the fields of log records."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.semconv.metrics import http_metrics
from opentelemetry.trace import SpanKind, StatusCode

from postpress_async import CustomProxy, ManagedProxy, Pace, ProxyPool, RetryPolicy, errors, events, telemetry
from postpress_async.rotation._outcome import KEY_EXPIRED, NO_PROXY_LEFT
from postpress_async.sandbox import Fault, Sandbox
from postpress_async.telemetry import Telemetry
from tests.support.virtual_world import in_virtual_time, world

US = ManagedProxy(country="US")
PASSWORD = "hunter2-and-more"
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, username="u", password=PASSWORD)

Points = dict[str, dict[frozenset[tuple[str, Any]], Any]]


class RecordedTelemetry:
    """A `Telemetry` with the SDK's in-memory exporters."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.events: list[events.Event] = []
        self.telemetry = Telemetry(self.tracers, self._meters, then=self.events.append)

    def spans(self) -> list[ReadableSpan]:
        """The finished spans, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def points(self) -> Points:
        """Each metric's value by attributes: a sum, or count and sum of a histogram."""
        points: Points = defaultdict(dict)
        data = self._reader.get_metrics_data()
        assert data is not None
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        labels = frozenset((point.attributes or {}).items())
                        histogram = isinstance(point, HistogramDataPoint)
                        points[metric.name][labels] = (
                            (point.count, point.sum) if histogram else point.value  # type: ignore[union-attr]
                        )
        return points

    def counts(self, name: str, *labels: str) -> dict[tuple[Any, ...], Any]:
        """A metric's values, or a histogram's counts, by the values of the attributes *labels*."""
        counts: dict[tuple[Any, ...], Any] = defaultdict(int)
        for attributes, value in self.points()[name].items():
            key = tuple(dict(attributes).get(label) for label in labels)
            counts[key] += value[0] if isinstance(value, tuple) else value
        return dict(counts)


@pytest.fixture
def recorded() -> RecordedTelemetry:
    return RecordedTelemetry()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def span_id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


# --- Spans ----------------------------------------------------------------------------------------


async def test_call_has_a_span_with_a_child_span_for_each_attempt(
    sandbox: Sandbox, policy, recorded: RecordedTelemetry
) -> None:
    """The names are those of the semantic conventions for HTTP clients, so that existing dashboards work."""
    sandbox.script("acc_1", "errors/proxy_error")
    port = int(sandbox.url.split(":")[2].split("/")[0])
    async with sandbox.session(retry=policy, on_event=recorded.telemetry) as session:
        await session.update_proxy("acc_1", US)

    first, second, call = recorded.spans()
    [retried] = [event for event in recorded.events if isinstance(event, events.RetryScheduled)]
    assert isinstance(retried.error, errors.ProxyError)
    server = {"http.request.method": "PATCH", "server.address": "127.0.0.1", "server.port": port}
    request = {
        **server,
        "url.full": f"{sandbox.url}/accounts/acc_1",
        "url.template": "/v1/accounts/{account_id}",
    }
    assert attributes(call) == {"postpress.account_id": "acc_1", "postpress.attempts": 2, **server}
    assert attributes(first) == request | {
        "http.response.status_code": 502,
        "error.type": "errors/proxy_error",
        "postpress.applied": "no",
        "postpress.retryable": True,
        "postpress.error.instance": retried.error.instance,
    }
    assert attributes(second) == request | {"http.response.status_code": 200, "http.request.resend_count": 1}
    assert [span.name for span in (first, call)] == [
        "PATCH /v1/accounts/{account_id}",
        "postpress update_proxy",
    ]
    assert [span.kind for span in (first, second, call)] == [
        SpanKind.CLIENT,
        SpanKind.CLIENT,
        SpanKind.INTERNAL,
    ]
    assert [span.status.status_code for span in (first, second, call)] == [
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.UNSET,
    ]
    for attempt in (first, second):
        assert attempt.parent is not None
        assert attempt.parent.span_id == span_id_of(call)


async def test_span_of_a_call_is_a_child_of_the_current_span(
    sandbox: Sandbox, recorded: RecordedTelemetry
) -> None:
    """A web request's trace contains the call. After the call, the web request's span is current again."""
    tracer = recorded.tracers.get_tracer("a service")
    async with sandbox.session(on_event=recorded.telemetry) as session:
        with tracer.start_as_current_span("handler") as handler:
            await session.update_proxy("acc_1", US)
            after = trace.get_current_span()
            await asyncio.gather(*(session.update_proxy(f"acc_{number}", US) for number in range(2, 20)))

    calls = [span for span in recorded.spans() if span.name == "postpress update_proxy"]
    attempts = [span for span in recorded.spans() if span.name.startswith("PATCH")]
    assert after is handler
    assert {span.parent.span_id for span in calls if span.parent} == {handler.get_span_context().span_id}
    owners = {span_id_of(span): attributes(span)["postpress.account_id"] for span in calls}
    for span in attempts:
        assert span.parent is not None
        assert attributes(span)["url.full"].endswith(f"/{owners[span.parent.span_id]}")
    assert len(calls) == len(attempts) == 19


async def test_span_of_a_failed_call_has_the_error_s_type_scope_and_instance(
    sandbox: Sandbox, recorded: RecordedTelemetry
) -> None:
    sandbox.script("acc_1", "errors/disconnected_account")
    async with sandbox.session(on_event=recorded.telemetry) as session:
        with pytest.raises(errors.DisconnectedAccountError) as caught:
            await session.update_proxy("acc_1", US)

    _, call = recorded.spans()
    assert call.status.status_code is StatusCode.ERROR
    assert call.status.description == str(caught.value)
    assert attributes(call)["error.type"] == "errors/disconnected_account"
    assert attributes(call)["postpress.error.scope"] == "account"
    assert attributes(call)["postpress.error.instance"] == caught.value.instance


@pytest.mark.parametrize(
    ("fault", "error_type"),
    [
        pytest.param(Fault(type="errors/brand_new_4711", status=422), "422", id="an unlisted type"),
        pytest.param(Fault(status=418), "418", id="no envelope"),
        pytest.param(
            Fault(status=502, body=b'{"type": "https://example.com/errors/proxy_error"}'),
            "errors/proxy_error",
            id="a type as a URL",
        ),
        pytest.param("drop", "ConnectionLostError", id="no response"),
    ],
)
async def test_error_type_is_a_listed_type_or_the_status_or_the_class_of_the_error(
    sandbox: Sandbox, recorded: RecordedTelemetry, fault: Any, error_type: str
) -> None:
    """Unlisted types of a server must not create new time series."""
    sandbox.script("acc_1", fault)
    once = RetryPolicy(attempts=1)
    async with sandbox.session(retry=once, on_event=recorded.telemetry) as session:
        with pytest.raises(errors.PostPressError):
            await session.update_proxy("acc_1", US)

    assert [attributes(span)["error.type"] for span in recorded.spans()] == [error_type, error_type]
    assert recorded.counts("http.client.request.duration", "error.type") == {(error_type,): 1}


async def test_cancelled_call_ends_its_spans_and_its_active_request(
    sandbox: Sandbox, recorded: RecordedTelemetry
) -> None:
    """A span that never ends is never exported."""
    sandbox.script("acc_1", "hang")
    async with sandbox.session(on_event=recorded.telemetry) as session:
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        during = recorded.counts("http.client.active_requests")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert [attributes(span)["error.type"] for span in recorded.spans()] == ["given_up", "given_up"]
    assert [span.status.status_code for span in recorded.spans()] == [StatusCode.ERROR, StatusCode.ERROR]
    assert (during, recorded.counts("http.client.active_requests")) == ({(): 1}, {(): 0})
    ended = recorded.events[-1]
    assert isinstance(ended, events.CallEnded)
    assert (ended.attempts, ended.error, ended.given_up) == (0, None, True)


@in_virtual_time
async def test_duration_of_a_request_that_the_caller_timed_out_is_recorded() -> None:
    """Otherwise the slowest requests would be missing from the histogram."""
    recorded = RecordedTelemetry()
    async with world(on_event=recorded.telemetry) as (server, session, _, _):
        server.faults.script("acc_1", "hang")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await session.update_proxy("acc_1", US)

    [(labels, count_and_sum)] = recorded.points()["http.client.request.duration"].items()
    assert dict(labels)["error.type"] == "given_up"
    assert count_and_sum == (1, pytest.approx(5.0))


class BrokenProcessor(SpanProcessor):
    """A span processor of an application that raises in *method*."""

    def __init__(self, method: str) -> None:
        self._method = method

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._method == "on_start":
            raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        if self._method == "on_end":
            raise RuntimeError("on_end")


@pytest.mark.parametrize(
    ("method", "active", "requests", "calls"),
    [
        # If the span of a call cannot be started, the call has no metrics.
        pytest.param("on_start", {}, {}, {}, id="on_start"),
        pytest.param("on_end", {(): 0}, {(): 2}, {(): 1}, id="on_end"),
    ],
)
async def test_broken_span_processor_does_not_affect_calls_and_other_observers(
    sandbox: Sandbox, recorded: RecordedTelemetry, policy, method: str, active: Any, requests: Any, calls: Any
) -> None:
    sandbox.script("acc_1", "errors/proxy_error")
    caller = recorded.tracers.get_tracer("a service").start_span("handler")
    recorded.tracers.add_span_processor(BrokenProcessor(method))
    async with sandbox.session(retry=policy, on_event=recorded.telemetry) as session:
        with trace.use_span(caller):
            await session.update_proxy("acc_1", US)
            after = trace.get_current_span()

    assert after is caller
    assert [type(event).__name__ for event in recorded.events] == [
        *("CallStarted", "AttemptStarted", "AttemptEnded", "RetryScheduled"),
        *("AttemptStarted", "AttemptEnded", "CallEnded"),
    ]
    assert recorded.counts("http.client.active_requests") == active
    assert recorded.counts("http.client.request.duration") == requests
    assert recorded.counts("postpress.client.call.duration") == calls


async def test_span_of_a_call_within_a_call_is_a_child_span(
    sandbox: Sandbox, recorded: RecordedTelemetry
) -> None:
    """The sleep function of a retry policy may call the API in the same task."""

    async def sleep(seconds: float) -> None:
        await session.update_proxy("acc_2", US)

    sandbox.script("acc_1", "errors/proxy_error")
    async with sandbox.session(on_event=recorded.telemetry) as session:
        await session.update_proxy("acc_1", US, retry=RetryPolicy(sleep=sleep))

    calls = {
        attributes(span)["postpress.account_id"]: span
        for span in recorded.spans()
        if span.name == "postpress update_proxy"
    }
    inner, outer = calls["acc_2"], calls["acc_1"]
    assert inner.parent is not None
    assert inner.parent.span_id == span_id_of(outer)
    assert outer.parent is None
    assert attributes(outer)["postpress.attempts"] == 2
    assert len(recorded.spans()) == 5


@pytest.mark.parametrize("transport", ["session", "lean"])
async def test_calls_of_a_rotation_are_children_of_the_span_in_which_it_was_entered(
    sandbox: Sandbox, recorded: RecordedTelemetry, transport: str
) -> None:
    """The loop over the outcomes keeps its current span."""
    tracer = recorded.tracers.get_tracer("a night")
    async with sandbox.session(on_event=recorded.telemetry, transport=transport) as session:
        with tracer.start_as_current_span("night") as night:
            async with session.rotate([(f"acc_{number}", US) for number in range(9)]) as rotation:
                async for _ in rotation:
                    assert trace.get_current_span() is night

    calls = [span for span in recorded.spans() if span.name == "postpress update_proxy"]
    parents = {span_id_of(span) for span in calls}
    assert [span.parent and span.parent.span_id for span in calls] == [night.get_span_context().span_id] * 9
    attempts = [span for span in recorded.spans() if span.kind is SpanKind.CLIENT]
    assert {span.parent and span.parent.span_id for span in attempts} == parents


def test_names_without_prefix_are_in_the_semantic_conventions() -> None:
    source = Path(telemetry.__file__).read_text("utf-8")
    used = set(re.findall(r'"((?:http|url|server|error)\.[a-z_.]+)"', source))
    standard = {
        value
        for module in (error_attributes, http_attributes, http_metrics, server_attributes, url_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }

    still_in_development = {"http.client.active_requests", "url.template"}
    assert used - standard == still_in_development


@pytest.mark.slow
def test_providers_may_be_set_after_telemetry_is_created() -> None:
    """A module may create its session at import, before the application configures OpenTelemetry."""
    program = """
import asyncio
from opentelemetry import metrics, trace
from postpress_async import ManagedProxy
from postpress_async.sandbox import Sandbox
from postpress_async.telemetry import Telemetry

telemetry = Telemetry()

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0  # the imports below are slow
    async with Sandbox() as sandbox, sandbox.session(on_event=telemetry) as session:
        await session.update_proxy("acc_1", ManagedProxy(country="US"))
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        trace.set_tracer_provider(TracerProvider())
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
        metrics.set_meter_provider(MeterProvider([reader]))
        await session.update_proxy("acc_2", ManagedProxy(country="US"))
    print([span.name for span in exporter.get_finished_spans()])
    [scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    print(sorted(metric.name for metric in scope.metrics if metric.name.endswith("duration")))

asyncio.run(main())
"""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "['PATCH /v1/accounts/{account_id}', 'postpress update_proxy']",
        "['http.client.request.duration', 'postpress.client.call.duration']",
    ]


# --- Metrics --------------------------------------------------------------------------------------


async def test_accounts_of_a_rotation_are_counted_by_state_and_error(
    sandbox: Sandbox, recorded: RecordedTelemetry
) -> None:
    sandbox.script("acc_1", "errors/disconnected_account")
    sandbox.script("acc_2", "errors/proxy_error")
    quick = RetryPolicy(first_wait=0.001)
    rows: list[Any] = [(f"acc_{number}", US) for number in range(10)]
    rows += [("a b", US), ("acc_no", "US")]
    async with sandbox.session(retry=quick, on_event=recorded.telemetry) as session:
        async with session.rotate(iter(rows)) as rotation:
            await rotation.run()

    labels = ("postpress.state", "error.type", "postpress.error.scope")
    assert recorded.counts("postpress.rotation.accounts", *labels) == {
        ("patched", None, None): 9,
        ("failed", "errors/disconnected_account", "account"): 1,
        ("skipped", "refused row", "request"): 2,
    }
    assert recorded.counts("postpress.client.call.duration", "error.type") == {
        (None,): 9,
        ("errors/disconnected_account",): 1,
    }
    assert recorded.counts("http.client.request.duration", "http.response.status_code") == {
        (200,): 9,
        (401,): 1,
        (502,): 1,
    }
    [(retries, backoff)] = recorded.points()["postpress.client.retry.wait"].values()
    assert retries == 1
    assert backoff <= 0.001
    assert recorded.counts("http.client.active_requests") == {(): 0}
    attempts = recorded.points()["postpress.client.call.attempts"]
    assert sum(total for _, total in attempts.values()) == 11


@pytest.mark.parametrize("error_type", [NO_PROXY_LEFT, KEY_EXPIRED])
def test_account_that_a_rotation_did_not_send_is_counted_by_its_error_type(
    recorded: RecordedTelemetry, error_type: str
) -> None:
    recorded.telemetry(events.AccountSettled("acc_1", 0, "unknown", 0, 0.0, error_type))

    assert recorded.counts("postpress.rotation.accounts", "error.type") == {(error_type,): 1}


async def test_quarantines_are_counted_without_the_proxy_as_an_attribute(recorded: RecordedTelemetry) -> None:
    """A pool has thousands of proxies, and their labels contain user names."""
    pool = ProxyPool([CUSTOM, CustomProxy(host="other.example.com", port=1)])
    quick = RetryPolicy(first_wait=0.001)
    async with Sandbox(dead_proxies=["proxy.example.com:8080"]) as sandbox:
        async with sandbox.session(retry=quick, on_event=recorded.telemetry) as session:
            async with session.rotate([f"acc_{number}" for number in range(6)], pool=pool) as rotation:
                await rotation.run()

    assert recorded.points()["postpress.rotation.quarantines"] == {frozenset(): 1}


@in_virtual_time
async def test_outage_of_five_minutes_is_recorded_as_one_pause_of_that_duration() -> None:
    recorded = RecordedTelemetry()
    async with world(pace=Pace(in_flight=20)) as (server, session, _, seen):
        await server.outage("503")

        async def recover_later() -> None:
            await asyncio.sleep(300)
            await server.recover()

        recovery = asyncio.create_task(recover_later())
        async with session.rotate([(f"acc_{number}", US) for number in range(40)]) as rotation:
            await rotation.run()
        await recovery
    for _, event in seen:
        if isinstance(event, events.PauseBegan | events.PauseEnded):
            recorded.telemetry(event)

    [(pauses, seconds)] = recorded.points()["postpress.client.pause.duration"].values()
    assert recorded.counts("postpress.client.pauses") == {(): 1}
    assert pauses == 1
    assert seconds == pytest.approx(300, rel=0.05)


async def test_metrics_contain_no_account_ids_and_spans_no_secrets(recorded: RecordedTelemetry) -> None:
    """A time series for each of a million accounts would be expensive."""
    account_ids = [f"acc_named_{number}" for number in range(6)]
    async with Sandbox(profile="hostile", seed=4) as sandbox:
        quick = RetryPolicy(first_wait=0.001)
        async with sandbox.session(retry=quick, on_event=recorded.telemetry) as session:
            async with session.rotate(account_ids, pool=ProxyPool([CUSTOM])) as rotation:
                await rotation.run()

    metrics, spans = repr(recorded.points()), "".join(span.to_json() for span in recorded.spans())
    assert not any(text in metrics for text in ("acc_named", "proxy.example.com", PASSWORD, sandbox.api_key))
    assert not any(text in spans for text in (PASSWORD, sandbox.api_key))
    assert "acc_named_1" in spans


@pytest.mark.slow
def test_import_without_opentelemetry_says_which_extra_to_install() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; import postpress_async.telemetry"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'postpress-async[otel]'" in done.stderr.splitlines()[-1]


# --- Logging --------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log of an application that writes JSON with structlog, as structlog's documentation shows."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logger = logging.getLogger("postpress_async")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield output
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_log_record_of_a_retry_has_fields(sandbox: Sandbox, policy, log: io.StringIO) -> None:
    """So an application need not parse the message."""
    sandbox.script("acc_1", "errors/proxy_error")
    async with sandbox.session(retry=policy) as session:
        await session.update_proxy("acc_1", CUSTOM)

    record = json.loads(log.getvalue())
    assert record.pop("event").startswith(
        "acc_1: attempt 1 failed with errors/proxy_error; the next one follows in"
    )
    assert 0.0 <= record.pop("wait") <= 0.5
    assert record.pop("instance") == "req_000000000001"
    assert record == {
        "logger": "postpress_async.calls",
        "account_id": "acc_1",
        "attempt": 1,
        "error_type": "errors/proxy_error",
        "status": 502,
    }


async def test_quarantines_and_halts_are_logged_as_warnings_without_passwords(log: io.StringIO) -> None:
    logging.getLogger("postpress_async").setLevel(logging.WARNING)
    pool = ProxyPool([CUSTOM, CustomProxy(host="other.example.com", port=1)])
    account_ids = [f"acc_{number}" for number in range(6)]
    existing = account_ids[:5]  # acc_5 fails, and halts the rotation
    async with Sandbox(dead_proxies=["proxy.example.com:8080"], accounts=existing) as sandbox:
        # Without retries, the dead proxy is quarantined before acc_5 is sent. With retries, chance would
        # decide, because other accounts are sent while one backs off.
        async with sandbox.session(retry=RetryPolicy(attempts=1)) as session:
            async with session.rotate(account_ids, pool=pool, halt=1, in_flight=1) as rotation:
                await rotation.run()

    lines = {line["event"].partition(" ")[0]: line for line in map(json.loads, log.getvalue().splitlines())}
    quarantine, halt = lines["proxy"], lines["rotation"]
    assert quarantine == {
        "event": "proxy u@proxy.example.com:8080 quarantined",
        "logger": "postpress_async.rotation",
        "proxy": "u@proxy.example.com:8080",
    }
    assert halt["event"] == f"rotation halted: {halt['halted']}"
    assert PASSWORD not in log.getvalue()


@in_virtual_time
async def test_begin_and_end_of_a_pause_are_logged_as_warnings(caplog: pytest.LogCaptureFixture) -> None:
    async with world(pace=Pace(in_flight=5)) as (server, session, _, _):
        await server.outage("503")

        async def recover_later() -> None:
            await asyncio.sleep(60)
            await server.recover()

        recovery = asyncio.create_task(recover_later())
        async with session.rotate([(f"acc_{number}", US) for number in range(10)]) as rotation:
            await rotation.run()
        await recovery

    began, ended = (record for record in caplog.records if record.name == "postpress_async.pace")
    assert (began.levelname, ended.levelname) == ("WARNING", "WARNING")
    assert (began.__dict__["paused"], ended.__dict__["paused"]) == (True, False)
    assert ended.__dict__["elapsed"] == pytest.approx(60, rel=0.1)


@pytest.mark.slow
def test_nothing_is_printed_if_the_application_configures_no_logging() -> None:
    """Python's handler of last resort would print the library's warnings."""
    program = """
import asyncio
from postpress_async import ManagedProxy, RetryPolicy, errors
from postpress_async.sandbox import Sandbox

async def main():
    async with Sandbox() as sandbox, sandbox.session(retry=RetryPolicy(first_wait=0.001)) as session:
        await sandbox.server.outage("503")
        async with session.rotate([(f"acc_{n}", ManagedProxy(country="US")) for n in range(30)]) as rotation:
            async with asyncio.timeout(5):
                while not session.paused:
                    await asyncio.sleep(0)
            await sandbox.server.recover()
            await rotation.run()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
