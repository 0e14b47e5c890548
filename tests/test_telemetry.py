"""What OpenTelemetry's own exporters, and its users' log formatters, get to see."""

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
from postpress_async.sandbox import Fault, Sandbox
from postpress_async.telemetry import Telemetry
from tests.virtual_world import in_virtual_time, world

US = ManagedProxy(country="US")
PASSWORD = "hunter2-and-more"
OWN = CustomProxy(host="proxy.example.com", port=8080, username="u", password=PASSWORD)

Points = dict[str, dict[frozenset[tuple[str, Any]], Any]]


class Watch:
    """Telemetry, and what became of it in the SDK's in-memory exporters."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.seen: list[events.Event] = []
        self.telemetry = Telemetry(self.tracers, self._meters, then=self.seen.append)

    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, in that order."""
        return list(self._exporter.get_finished_spans())

    def points(self) -> Points:
        """Each metric's value for each set of attributes: a sum; of a histogram, how many and their total."""
        found: Points = defaultdict(dict)
        told = self._reader.get_metrics_data()
        assert told is not None
        for resource in told.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        facts = frozenset((point.attributes or {}).items())
                        histogram = isinstance(point, HistogramDataPoint)
                        found[metric.name][facts] = (
                            (point.count, point.sum) if histogram else point.value  # type: ignore[union-attr]
                        )
        return found

    def counts(self, name: str, *facts: str) -> dict[tuple[Any, ...], Any]:
        """The values of a metric, or how many a histogram has, by the values of some attributes."""
        found: dict[tuple[Any, ...], Any] = defaultdict(int)
        for attributes, value in self.points()[name].items():
            key = tuple(dict(attributes).get(fact) for fact in facts)
            found[key] += value[0] if isinstance(value, tuple) else value
        return dict(found)


@pytest.fixture
def watch() -> Watch:
    return Watch()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


# --- Spans ----------------------------------------------------------------------------------------


async def test_a_call_is_a_span_and_each_attempt_one_below_it(sandbox: Sandbox, policy, watch: Watch) -> None:
    """By the semantic conventions for HTTP clients, so that a backend's own dashboards show them."""
    sandbox.script("acc_1", "errors/proxy_error")
    port = int(sandbox.url.split(":")[2].split("/")[0])
    async with sandbox.session(retry=policy, on_event=watch.telemetry) as session:
        await session.update_proxy("acc_1", US)

    first, second, call = watch.spans()
    [retried] = [event for event in watch.seen if isinstance(event, events.RetryScheduled)]
    assert isinstance(retried.error, errors.ProxyError)
    server = {"http.request.method": "PATCH", "server.address": "127.0.0.1", "server.port": port}
    request = {
        "url.full": f"{sandbox.url}/accounts/acc_1",
        "url.template": "/v1/accounts/{account_id}",
        **server,
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
        assert attempt.parent.span_id == id_of(call)


async def test_a_call_belongs_to_the_span_that_it_was_made_in(sandbox: Sandbox, watch: Watch) -> None:
    """A request handler's trace shows the proxy's change; after the call its own span is current again."""
    tracer = watch.tracers.get_tracer("a service")
    async with sandbox.session(on_event=watch.telemetry) as session:
        with tracer.start_as_current_span("handler") as handler:
            await session.update_proxy("acc_1", US)
            after = trace.get_current_span()
            await asyncio.gather(*(session.update_proxy(f"acc_{number}", US) for number in range(2, 20)))

    calls = [span for span in watch.spans() if span.name == "postpress update_proxy"]
    attempts = [span for span in watch.spans() if span.name.startswith("PATCH")]
    assert after is handler
    assert {span.parent.span_id for span in calls if span.parent} == {handler.get_span_context().span_id}
    owners = {id_of(span): attributes(span)["postpress.account_id"] for span in calls}
    for span in attempts:
        assert span.parent is not None
        assert attributes(span)["url.full"].endswith(f"/{owners[span.parent.span_id]}")
    assert len(calls) == len(attempts) == 19


async def test_a_call_that_fails_says_what_to_quote(sandbox: Sandbox, watch: Watch) -> None:
    """The trace leads to the account, the type and the instance."""
    sandbox.script("acc_1", "errors/disconnected_account")
    async with sandbox.session(on_event=watch.telemetry) as session:
        with pytest.raises(errors.DisconnectedAccountError) as caught:
            await session.update_proxy("acc_1", US)

    _, call = watch.spans()
    assert call.status.status_code is StatusCode.ERROR
    assert call.status.description == str(caught.value)
    assert attributes(call)["error.type"] == "errors/disconnected_account"
    assert attributes(call)["postpress.error.scope"] == "account"
    assert attributes(call)["postpress.error.instance"] == caught.value.instance


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(Fault(type="errors/brand_new_4711", status=422), "422", id="a type that is not listed"),
        pytest.param(Fault(status=418), "418", id="no envelope"),
        pytest.param(
            Fault(status=502, body=b'{"type": "https://example.com/errors/proxy_error"}'),
            "errors/proxy_error",
            id="a type as a URL",
        ),
        pytest.param("drop", "ConnectionLostError", id="no answer"),
    ],
)
async def test_an_error_s_type_is_one_of_few(sandbox: Sandbox, watch: Watch, fault: Any, kind: str) -> None:
    """What a server makes up must not become a time series each."""
    sandbox.script("acc_1", fault)
    once = RetryPolicy(attempts=1)
    async with sandbox.session(retry=once, on_event=watch.telemetry) as session:
        with pytest.raises(errors.PostPressError):
            await session.update_proxy("acc_1", US)

    assert [attributes(span)["error.type"] for span in watch.spans()] == [kind, kind]
    assert watch.counts("http.client.request.duration", "error.type") == {(kind,): 1}


async def test_a_call_that_is_cancelled_ends_its_spans(sandbox: Sandbox, watch: Watch) -> None:
    """A span that never ends is never seen, and a request in flight for ever is an alarm for ever."""
    sandbox.script("acc_1", "hang")
    async with sandbox.session(on_event=watch.telemetry) as session:
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        during = watch.counts("http.client.active_requests")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert [attributes(span)["error.type"] for span in watch.spans()] == ["given_up", "given_up"]
    assert [span.status.status_code for span in watch.spans()] == [StatusCode.ERROR, StatusCode.ERROR]
    assert (during, watch.counts("http.client.active_requests")) == ({(): 1}, {(): 0})
    assert watch.seen[-1] == events.CallEnded("acc_1", 0, watch.seen[-1].elapsed, None, True)  # type: ignore[union-attr]


@in_virtual_time
async def test_a_request_that_a_caller_s_deadline_cut_off_is_measured() -> None:
    """Else the slowest requests, which every caller gives up, are in no histogram, and all looks well."""
    watch = Watch()
    async with world(on_event=watch.telemetry) as (server, session, _, _):
        server.faults.script("acc_1", "hang")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await session.update_proxy("acc_1", US)

    [(facts, measured)] = watch.points()["http.client.request.duration"].items()
    assert dict(facts)["error.type"] == "given_up"
    assert measured == (1, pytest.approx(5.0))


class Breaks(SpanProcessor):
    """A processor that is broken, as one of the embedding program's may be."""

    def __init__(self, *moments: str) -> None:
        self._moments = moments

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if "start" in self._moments:
            raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        if "end" in self._moments:
            raise RuntimeError("on_end")


@pytest.mark.parametrize("moment", ["start", "end"])
async def test_a_broken_processor_breaks_nothing_else(
    sandbox: Sandbox, watch: Watch, policy, moment: str
) -> None:
    """The metrics stay true, the caller's own span stays current, and the other observer is told of all."""
    sandbox.script("acc_1", "errors/proxy_error")
    caller = watch.tracers.get_tracer("a service").start_span("handler")
    watch.tracers.add_span_processor(Breaks(moment))
    async with sandbox.session(retry=policy, on_event=watch.telemetry) as session:
        with trace.use_span(caller):
            await session.update_proxy("acc_1", US)
            after = trace.get_current_span()

    assert after is caller
    assert [type(event).__name__ for event in watch.seen] == [
        *("CallStarted", "AttemptStarted", "AttemptEnded", "RetryScheduled"),
        *("AttemptStarted", "AttemptEnded", "CallEnded"),
    ]
    assert watch.counts("http.client.active_requests") in ({}, {(): 0})
    if moment == "end":
        assert watch.counts("http.client.request.duration") == {(): 2}
        assert watch.counts("postpress.client.call.duration") == {(): 1}


async def test_a_call_within_a_call_leaves_the_outer_one_whole(sandbox: Sandbox, watch: Watch) -> None:
    """A strategy of the caller's may call the API itself, in the same task."""

    async def meanwhile(seconds: float) -> None:
        await session.update_proxy("acc_2", US)

    sandbox.script("acc_1", "errors/proxy_error")
    async with sandbox.session(on_event=watch.telemetry) as session:
        await session.update_proxy("acc_1", US, retry=RetryPolicy(sleep=meanwhile))

    calls = {
        attributes(span)["postpress.account_id"]: span
        for span in watch.spans()
        if span.name == "postpress update_proxy"
    }
    inner, outer = calls["acc_2"], calls["acc_1"]
    assert inner.parent is not None
    assert inner.parent.span_id == id_of(outer)
    assert outer.parent is None
    assert attributes(outer)["postpress.attempts"] == 2
    assert len(watch.spans()) == 5


@pytest.mark.parametrize("transport", ["session", "lean"])
async def test_a_rotation_s_calls_belong_to_the_span_that_it_was_entered_in(
    sandbox: Sandbox, watch: Watch, transport: str
) -> None:
    """Each account's under the night's, and none under another's; the loop over outcomes keeps its own."""
    tracer = watch.tracers.get_tracer("a night")
    async with sandbox.session(on_event=watch.telemetry, transport=transport) as session:
        with tracer.start_as_current_span("night") as night:
            async with session.rotate([(f"acc_{number}", US) for number in range(9)]) as rotation:
                async for _ in rotation:
                    assert trace.get_current_span() is night

    calls = [span for span in watch.spans() if span.name == "postpress update_proxy"]
    parents = {id_of(span) for span in calls}
    assert [span.parent and span.parent.span_id for span in calls] == [night.get_span_context().span_id] * 9
    attempts = [span for span in watch.spans() if span.kind is SpanKind.CLIENT]
    assert {span.parent and span.parent.span_id for span in attempts} == parents


def test_every_borrowed_name_is_one_of_the_conventions(watch: Watch) -> None:
    """As OpenTelemetry's own package has them, so that a name which they rename is seen here."""
    told = Path(telemetry.__file__).read_text("utf-8")
    borrowed = set(re.findall(r'"((?:http|url|server|error)\.[a-z_.]+)"', told))
    known = {
        value
        for module in (error_attributes, http_attributes, http_metrics, server_attributes, url_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }

    assert borrowed - known == {"http.client.active_requests", "url.template"}, "in development, and wanted"


def test_a_provider_may_come_later_or_never() -> None:
    """A module makes its session when it is imported, and the program sets OpenTelemetry up after that."""
    program = """
import asyncio
from opentelemetry import metrics, trace
from postpress_async import ManagedProxy
from postpress_async.sandbox import Sandbox
from postpress_async.telemetry import Telemetry

telemetry = Telemetry()

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0  # those imports are one
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
    [told] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    print(sorted(metric.name for metric in told.metrics if metric.name.endswith("duration")))

asyncio.run(main())
"""
    words = [sys.executable, "-W", "error", "-X", "dev", "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "['PATCH /v1/accounts/{account_id}', 'postpress update_proxy']",
        "['http.client.request.duration', 'postpress.client.call.duration']",
    ]


# --- Metrics --------------------------------------------------------------------------------------


async def test_a_rotation_counts_its_accounts_by_state_and_error(sandbox: Sandbox, watch: Watch) -> None:
    """What a night came to, for a dashboard and an alarm."""
    sandbox.script("acc_1", "errors/disconnected_account")
    sandbox.script("acc_2", "errors/proxy_error")
    quick = RetryPolicy(first_wait=0.001)
    rows: list[Any] = [(f"acc_{number}", US) for number in range(10)]
    rows += [("a b", US), ("acc_no", {"country": "US"})]
    async with sandbox.session(retry=quick, on_event=watch.telemetry) as session:
        async with session.rotate(rows) as rotation:
            await rotation.run()

    facts = ("postpress.state", "error.type", "postpress.error.scope")
    assert watch.counts("postpress.rotation.accounts", *facts) == {
        ("patched", None, None): 9,
        ("failed", "errors/disconnected_account", "account"): 1,
        ("skipped", "refused row", "request"): 2,
    }
    assert watch.counts("postpress.client.call.duration", "error.type") == {
        (None,): 9,
        ("errors/disconnected_account",): 1,
    }
    assert watch.counts("http.client.request.duration", "http.response.status_code") == {
        (200,): 9,
        (401,): 1,
        (502,): 1,
    }
    [(waits, waited)] = watch.points()["postpress.client.retry.wait"].values()
    assert (waits, waited <= 0.001) == (1, True)
    assert watch.counts("http.client.active_requests") == {(): 0}
    attempts = watch.points()["postpress.client.call.attempts"]
    assert sum(total for _, total in attempts.values()) == 11


async def test_a_pool_s_quarantines_are_counted(watch: Watch) -> None:
    """Without the proxy's name: a list has thousands, with user names in them."""
    pool = ProxyPool([OWN, CustomProxy(host="other.example.com", port=1)])
    quick = RetryPolicy(first_wait=0.001)
    async with Sandbox(dead_proxies=["proxy.example.com:8080"]) as sandbox:
        async with sandbox.session(retry=quick, on_event=watch.telemetry) as session:
            async with session.rotate([f"acc_{number}" for number in range(6)], pool=pool) as rotation:
                await rotation.run()

    assert watch.points()["postpress.rotation.quarantines"] == {frozenset(): 1}


@in_virtual_time
async def test_a_pause_is_counted_and_measured() -> None:
    """An outage of minutes is one pause of minutes."""
    watch = Watch()
    async with world(pace=Pace(in_flight=20)) as (server, session, _, told):
        await server.outage("503")

        async def later() -> None:
            await asyncio.sleep(300)
            await server.recover()

        ends = asyncio.create_task(later())
        async with session.rotate([(f"acc_{number}", US) for number in range(40)]) as rotation:
            await rotation.run()
        await ends
    for _, event in told:
        if isinstance(event, events.PauseBegan | events.PauseEnded):
            watch.telemetry(event)

    [(pauses, seconds)] = watch.points()["postpress.client.pause.duration"].values()
    assert watch.counts("postpress.client.pauses") == {(): 1}
    assert pauses == 1
    assert seconds == pytest.approx(300, rel=0.05)


async def test_no_metric_has_an_account_or_a_secret_and_no_span_a_secret(watch: Watch) -> None:
    """A metric for each of a million accounts is a bill; a password in a trace is a leak."""
    names = [f"acc_secret_{number}" for number in range(6)]
    async with Sandbox(profile="hostile", seed=4) as sandbox:
        quick = RetryPolicy(first_wait=0.001)
        async with sandbox.session(retry=quick, on_event=watch.telemetry) as session:
            async with session.rotate([(name, OWN) for name in names], pool=ProxyPool([OWN])) as rotation:
                await rotation.run()

    metrics, spans = repr(watch.points()), "".join(span.to_json() for span in watch.spans())
    assert not any(word in metrics for word in ("acc_secret", "proxy.example.com", PASSWORD, sandbox.api_key))
    assert not any(word in spans for word in (PASSWORD, sandbox.api_key))
    assert "acc_secret_1" in spans


def test_without_opentelemetry_it_says_what_to_install() -> None:
    """In place of a module's name that is in no requirement."""
    program = "import sys; sys.modules['opentelemetry'] = None; import postpress_async.telemetry"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'postpress-async[otel]'" in done.stderr.splitlines()[-1]


# --- Logging --------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The program's log: structlog's JSON over the standard library's loggers, as structlog documents it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    ours = logging.getLogger("postpress_async")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield written
    ours.removeHandler(handler)
    ours.setLevel(logging.NOTSET)


async def test_a_retry_is_logged_with_fields(sandbox: Sandbox, policy, log: io.StringIO) -> None:
    """structlog, and whatever else reads a record's extras, gets values and not a sentence to take apart."""
    sandbox.script("acc_1", "errors/proxy_error")
    async with sandbox.session(retry=policy) as session:
        await session.update_proxy("acc_1", OWN)

    said = json.loads(log.getvalue())
    assert said.pop("event").startswith(
        "acc_1: attempt 1 failed with errors/proxy_error; the next one follows in"
    )
    assert 0.0 <= said.pop("wait") <= 0.5
    assert said.pop("instance")
    assert said == {
        "logger": "postpress_async.calls",
        "account_id": "acc_1",
        "attempt": 1,
        "error_type": "errors/proxy_error",
        "status": 502,
    }


async def test_a_quarantine_and_a_halt_are_warnings(log: io.StringIO) -> None:
    """Seen where only warnings are kept; the proxy by its label."""
    logging.getLogger("postpress_async").setLevel(logging.WARNING)
    pool, quick = ProxyPool([OWN]), RetryPolicy(first_wait=0.001)
    async with Sandbox(dead_proxies=["proxy.example.com:8080"]) as sandbox:
        async with sandbox.session(retry=quick) as session:
            async with session.rotate(
                [f"acc_{number}" for number in range(6)], pool=pool, halt=2
            ) as rotation:
                await rotation.run()

    quarantine, halt = map(json.loads, log.getvalue().splitlines())
    assert quarantine == {
        "event": "u@proxy.example.com:8080 failed its accounts: no other gets it in this run",
        "logger": "postpress_async.rotation",
        "proxy": "u@proxy.example.com:8080",
    }
    assert halt["event"] == f"the rotation halts: {halt['halted']}"
    assert PASSWORD not in log.getvalue()


@in_virtual_time
async def test_a_pause_is_a_warning_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to guess whether it is over."""
    async with world(pace=Pace(in_flight=5)) as (server, session, _, _):
        await server.outage("503")

        async def later() -> None:
            await asyncio.sleep(60)
            await server.recover()

        ends = asyncio.create_task(later())
        async with session.rotate([(f"acc_{number}", US) for number in range(10)]) as rotation:
            await rotation.run()
        await ends

    began, ended = (record for record in caplog.records if record.name == "postpress_async.pace")
    assert (began.levelname, ended.levelname) == ("WARNING", "WARNING")
    assert (began.__dict__["paused"], ended.__dict__["paused"]) == (True, False)
    assert ended.__dict__["elapsed"] == pytest.approx(60, rel=0.1)


def test_nothing_is_said_where_nobody_listens() -> None:
    """A library is silent by default: not even Python's last resort prints its warnings."""
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
