"""
API keys and passwords are never printed, logged, stored or pickled.

The secrets of these tests are long and unusual, so no text contains one by chance.
"""

import asyncio
import copy
import csv
import gc
import io
import json
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import cattrs
import pytest

from postpress_async import CustomProxy, PostPressSession, RetryPolicy, errors, events
from postpress_async.models import FieldError
from postpress_async.pace import Pace
from postpress_async.rotation import Fleet
from postpress_async.rotation._rows import Refusal
from postpress_async.secret import Secret
from tests.support.fault_server import (
    CONNECTIONS,
    FAULTS,
    Fault,
    FaultServer,
    sends,
    sends_and_closes,
    sends_body,
)

pytestmark = pytest.mark.slow

KEY = "pp_live_9d1f7a-Key/With+Odd=Signs"
PASSWORD = 'hunter2-"Wörd"/p@ss word'
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, username="u", password=PASSWORD)


def encodings(secret: str) -> set[str]:
    """Return *secret* and the forms it has in logs, URLs and JSON."""
    plain = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    plain |= {json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1], ascii(secret)[1:-1]}
    return plain | {repr(secret.encode())[2:-1]}


SECRETS = encodings(KEY) | encodings(PASSWORD)


def leaks(text: str | bytes) -> set[str]:
    if isinstance(text, bytes):
        return {secret for secret in SECRETS if secret.encode() in text}
    return {secret for secret in SECRETS if secret in text}


async def _no_wait(_seconds: float) -> None:
    """Replaces the backoff between attempts."""


POLICY = RetryPolicy(attempts=2, attempt_timeout=0.3, deadline=1.0, sleep=_no_wait)


# --- Texts that could contain a secret ------------------------------------------------------------


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and its causes and contexts."""
    yield error
    for linked in (error.__cause__, error.__context__):
        if linked is not None:
            yield from chain(linked)


def texts_of(error: BaseException) -> Iterator[str | bytes]:
    """Yield every text that printing, logging, serializing or copying *error* could produce."""
    for exception in chain(error):
        yield from (
            str(exception),
            repr(exception),
            repr(exception.args),
            repr(vars(exception)),
            format(exception),
        )
        yield repr(getattr(exception, "__notes__", None))
        if isinstance(exception, errors.PostPressError):
            yield exception.code
            yield from (repr(attempt) for attempt in exception.attempts)
            yield json.dumps([attrs.asdict(attempt) for attempt in exception.attempts])
            yield repr(cattrs.unstructure(exception.attempts))
        if isinstance(exception, errors.ApiError):
            yield repr((exception.type, exception.title, exception.detail, exception.instance))
            yield repr(attrs.asdict(exception.args[1]))
            yield json.dumps(cattrs.unstructure(exception.args[1]))
    yield "".join(traceback.format_exception(error))
    yield "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(error, protocol)
    for copied in (copy.copy(error), copy.deepcopy(error)):
        yield f"{copied} {copied!r} {vars(copied)}"


class Recorder:
    """
    Records what a session makes visible.

    Attributes:
        transport: The value for the option ``transport`` of the session.
        log: All log records and warnings.
        events: The session's events.
        descriptions: Names and reprs of tasks and other objects.
    """

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.log = io.StringIO()
        self.events: list[events.Event] = []
        self.descriptions: set[str] = set()

    def observe(self, event: events.Event) -> None:
        self.events.append(event)
        for task in asyncio.all_tasks():
            self.descriptions |= {task.get_name(), repr(task)}

    def texts(self) -> Iterator[str]:
        yield self.log.getvalue()
        yield from self.descriptions
        for event in self.events:
            yield repr(event)
            fields = attrs.asdict(event, recurse=False)
            yield json.dumps(fields, default=str)
            yield repr(cattrs.unstructure(event))


@pytest.fixture
def recorder(transport: Any) -> Iterator[Recorder]:
    """A recorder of every warning and of all loggers at level DEBUG."""
    new_recorder = Recorder(transport)
    handler = logging.StreamHandler(new_recorder.log)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)r"))
    names = ["", "aiohttp", "aiohttp.client", "aiohttp.internal", "asyncio", "postpress_async"]
    levels = {name: logging.getLogger(name).level for name in names}
    logging.getLogger().addHandler(handler)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield new_recorder
    logging.captureWarnings(False)
    logging.getLogger().removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(main: Callable[[], Any]) -> Any:
    """Return the result of *main*, run by an event loop that logs every step, because all count as slow."""

    async def log_every_step() -> Any:
        asyncio.get_running_loop().slow_callback_duration = 0.0
        return await main()

    with asyncio.Runner(debug=True) as runner:
        return runner.run(log_every_step())


def failures(server: FaultServer, recorder: Recorder, *faults: Fault | None) -> list[errors.PostPressError]:
    """Make one call for each of *faults*, in one session, and return the errors."""

    async def main() -> list[errors.PostPressError]:
        raised, pace = [], Pace(adaptive=False)
        async with PostPressSession(
            KEY,
            base_url=server.url,
            retry=POLICY,
            pace=pace,
            on_event=recorder.observe,
            transport=recorder.transport,
        ) as session:
            for fault in faults:
                server.play(fault)
                with pytest.raises(errors.PostPressError) as caught:
                    await session.update_proxy("acc_1", CUSTOM)
                raised.append(caught.value)
            recorder.descriptions |= {repr(session), repr(vars(session))}
        return raised

    found: list[errors.PostPressError] = run(main)
    return found


# --- Errors of every class ------------------------------------------------------------------------


def echoes(status: int, make_body: Callable[[str], Any], *, escaped: bool) -> Fault:
    """Create a fault whose response contains the secrets in the body that *make_body* returns."""
    text = f"key {KEY} of {PASSWORD}, http://u:{quote(PASSWORD, safe='')}@h and {json.dumps(PASSWORD)}"
    return sends_body(json.dumps(make_body(text), ensure_ascii=escaped).encode(), status)


ENVELOPES: dict[str, Callable[[str], Any]] = {
    "title": lambda text: {"type": "errors/x", "title": text},
    "detail": lambda text: {"type": "errors/x", "title": "x", "detail": text},
    "instance": lambda text: {"type": "errors/x", "title": "x", "instance": text},
    "type": lambda text: {"type": text, "title": "x"},
    "code": lambda text: {"error": {"code": text}},
    "message": lambda text: {"error": {"code": "x", "message": text, "request_id": text}},
    "elsewhere": lambda text: {"type": "errors/x", "title": "x", text: text, "more": [text]},
    "object": lambda text: {"object": text, "account_id": text},
    "account": lambda text: {"object": "AccountPatched", "account_id": text},
    "text": lambda text: text,
}


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "plain"])
@pytest.mark.parametrize("where", ENVELOPES)
def test_secret_in_a_response_is_not_shown(recorder: Recorder, where: str, escaped: bool) -> None:
    """Servers may quote a request in their error messages, which users copy into tickets and chats."""
    statuses = [200, 202, 302, 400, 401, 404, 418, 429, 500, 501, 502, 503, 504]
    faults = [echoes(status, ENVELOPES[where], escaped=escaped) for status in statuses]
    with FaultServer() as server:
        raised = failures(server, recorder, *faults)

    for status, error in zip(statuses, raised, strict=True):
        assert [text for text in texts_of(error) if leaks(text)] == [], status
    assert [text for text in recorder.texts() if leaks(text)] == []


@pytest.mark.parametrize("type_", [*errors.BY_TYPE, *errors.BY_CODE])
def test_no_class_of_api_errors_shows_a_secret(recorder: Recorder, type_: str) -> None:
    error_class = errors.BY_TYPE.get(type_) or errors.BY_CODE[type_]
    status = error_class.status
    assert status is not None

    def envelope(text: str) -> dict[str, Any]:
        return {"type": type_, "title": text, "detail": text, "instance": text, "status": status}

    with FaultServer() as server:
        [error] = failures(server, recorder, echoes(status, envelope, escaped=True))

    assert type(error) is error_class
    assert [text for text in [*texts_of(error), *recorder.texts()] if leaks(text)] == []


ECHOED_HEADER = f"X-Api-Key: {KEY}".encode()
CONNECTION_FAULTS: dict[str, tuple[Fault | None, type[errors.PostPressError]]] = {
    "no connection": (None, errors.ConnectError),
    "closed after the request": (CONNECTIONS["closed after the request"], errors.ConnectionLostError),
    "closed during the headers": (
        sends_and_closes(lambda _: b"HTTP/1.1 200 OK\r\n" + ECHOED_HEADER),
        errors.ConnectionLostError,
    ),
    "closed during the body": (FAULTS["closed during the body"], errors.ConnectionLostError),
    "silence": (CONNECTIONS["silence after the request"], errors.AttemptTimeoutError),
    "endless body": (FAULTS["an endless body"], errors.AnswerError),
    "not HTTP": (sends(lambda _: ECHOED_HEADER + b"\r\n\r\n"), errors.AnswerError),
    "invalid header": (
        sends(lambda _: b"HTTP/1.1 200 OK\r\nbad " + ECHOED_HEADER + b"\r\n\r\n"),
        errors.AnswerError,
    ),
    "key in the reason phrase": (
        sends(lambda _: b"HTTP/1.1 2000 " + ECHOED_HEADER + b"\r\n\r\n"),
        errors.AnswerError,
    ),
    "key in a header": (sends_body(b"", 200, ECHOED_HEADER), errors.AnswerError),
    "key in a cookie": (sends_body(b"", 200, b"Set-Cookie: k=" + KEY.encode()), errors.AnswerError),
    "key in the location": (sends_body(b"", 307, b"Location: http://x/" + KEY.encode()), errors.AnswerError),
    "key in Retry-After": (sends_body(b"", 503, b"Retry-After: " + KEY.encode()), errors.UnavailableError),
    "key in a chunk size": (
        sends(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ECHOED_HEADER + b"\r\n"),
        errors.AnswerError,
    ),
    "not UTF-8": (sends_body(ECHOED_HEADER + b"\xff"), errors.AnswerError),
    "not JSON": (sends_body(ECHOED_HEADER), errors.AnswerError),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_no_transport_error_shows_a_secret(recorder: Recorder, name: str) -> None:
    """aiohttp's exceptions refer to the request's headers, so they must not be in the error's chain."""
    fault, error_class = CONNECTION_FAULTS[name]
    with FaultServer(listening=fault is not None) as server:
        [error] = failures(server, recorder, fault)

    assert type(error) is error_class
    assert list(chain(error)) == [error]
    assert [text for text in [*texts_of(error), *recorder.texts()] if leaks(text)] == []


def test_tls_error_shows_no_secret(recorder: Recorder) -> None:
    """The server does not support TLS, so the handshake fails."""
    with FaultServer() as server:
        server.secure = True
        [error] = failures(server, recorder, CONNECTIONS["another protocol's greeting"])

    assert type(error) is errors.TlsError
    assert [text for text in [*texts_of(error), *recorder.texts()] if leaks(text)] == []


def test_errors_of_a_closed_session_and_of_an_expired_deadline_show_no_secret(recorder: Recorder) -> None:
    async def main() -> list[BaseException]:
        with FaultServer() as server:
            server.play(CONNECTIONS["silence after the request"])
            session = PostPressSession(
                KEY,
                base_url=server.url,
                retry=POLICY,
                pace=Pace(in_flight=1),
                on_event=recorder.observe,
                transport=recorder.transport,
            )
            calls = [asyncio.create_task(session.update_proxy(f"acc_{n}", CUSTOM)) for n in range(4)]
            short_deadline = RetryPolicy(deadline=0.05)
            expiring = asyncio.create_task(session.update_proxy("acc_9", CUSTOM, retry=short_deadline))
            await asyncio.wait([expiring])
            await session.aclose(timeout=0.0)
            ended = await asyncio.gather(expiring, *calls, return_exceptions=True)
            with pytest.raises(errors.SessionClosedError) as closed:
                await session.update_proxy("acc_1", CUSTOM)
            return [closed.value, *(error for error in ended if isinstance(error, BaseException))]

    ended = run(main)

    assert {type(error) for error in ended} >= {errors.SessionClosedError, errors.DeadlineError}
    for error in ended:
        assert [text for text in texts_of(error) if leaks(text)] == []
    assert [text for text in recorder.texts() if leaks(text)] == []


def test_traceback_of_a_cancelled_call_shows_no_secret(recorder: Recorder) -> None:
    """The exception is asyncio's, but its traceback has frames of this package with local variables."""

    async def main() -> list[str]:
        with FaultServer() as server:
            server.play(CONNECTIONS["silence after the request"])
            async with PostPressSession(
                KEY, base_url=server.url, on_event=recorder.observe, transport=recorder.transport
            ) as session:
                call = asyncio.create_task(session.update_proxy("acc_1", CUSTOM))
                while not server.seen:
                    await asyncio.sleep(0)
                recorder.descriptions |= {repr(task) for task in asyncio.all_tasks()}
                for task in asyncio.all_tasks():
                    task.print_stack(file=recorder.log)
                call.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await call
                with_locals = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
                return [*traceback.format_exception(caught.value), *with_locals.format()]

    assert not leaks("".join(run(main)))
    assert [text for text in recorder.texts() if leaks(text)] == []


def test_result_and_logs_of_a_successful_call_show_no_secret(recorder: Recorder) -> None:
    """The first attempt fails with an error response that repeats the secrets."""

    async def main() -> Any:
        with FaultServer() as server:
            server.script("acc_1", [echoes(502, ENVELOPES["detail"], escaped=True)])
            async with PostPressSession(
                KEY,
                base_url=server.url,
                retry=POLICY,
                on_event=recorder.observe,
                transport=recorder.transport,
            ) as session:
                return await session.update_proxy("acc_1", CUSTOM)

    done = run(main)

    texts: list[str | bytes] = [repr(done), str(done), repr(attrs.asdict(done)), pickle.dumps(done)]
    texts += [json.dumps(cattrs.unstructure(done)), repr(copy.deepcopy(done)), *recorder.texts()]
    assert [text for text in texts if leaks(text)] == []
    assert "asyncio" in recorder.log.getvalue()  # the log has the steps of the event loop


@pytest.mark.parametrize("name", ["fleet.csv", "fleet.jsonl"])
def test_invalid_row_shows_no_secret(name: str, tmp_path: Path) -> None:
    """If the columns of a row are shifted, its password may be read as an account id, host or port."""
    columns = ["account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip"]
    valid = {"account_id": "acc_1", "host": "h.example", "port": "80"}
    rows = [valid | {column: secret} for secret in (PASSWORD, KEY) for column in columns]
    path = tmp_path / name
    with path.open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    with Fleet.open(path) as fleet:
        refusals = [row for row in fleet.rows() if isinstance(row, Refusal)]

    assert len(refusals) >= 2 * (len(columns) - 2)  # user name and password may be any text
    assert [
        refusal
        for refusal in refusals
        if leaks(f"{refusal} {refusal!r} {attrs.asdict(refusal)} {cattrs.unstructure(refusal)}")
    ] == []


def test_error_for_an_invalid_field_shows_no_secret() -> None:
    """A user may have written the secret to the wrong field."""
    fields = {"host": "h.example", "port": 80, "protocol": "https", "username": "u", "password": "p"}
    for name in fields:
        for secret in (KEY + "\n", PASSWORD + "\n", "http://u:" + PASSWORD + "\0@h:80"):
            with pytest.raises(FieldError) as caught:
                CustomProxy(**{**fields, name: secret})  # type: ignore[arg-type] # also a port that is a string
            assert [
                text for text in [*map(repr, chain(caught.value)), str(caught.value)] if leaks(text)
            ] == []
    for url in (PASSWORD, f"http://u:{PASSWORD}", f"u:{PASSWORD}@h:80", f"http://u:{quote(PASSWORD)}@h:x"):
        with pytest.raises(FieldError) as caught:
            CustomProxy.from_url(url)
        assert [text for text in [*map(repr, chain(caught.value)), str(caught.value)] if leaks(text)] == []


def test_warnings_about_an_unclosed_session_show_no_secret(recorder: Recorder) -> None:
    """aiohttp warns, and calls asyncio's exception handler."""

    async def use_and_abandon_session(url: str) -> None:
        session = PostPressSession(KEY, base_url=url, retry=POLICY, transport=recorder.transport)
        await session.update_proxy("acc_1", CUSTOM)
        recorder.descriptions |= {repr(session), repr(vars(session)), repr(attrs.asdict(session._context))}
        recorder.descriptions.add(repr(vars(session._context.transport)))

    async def main() -> None:
        with FaultServer() as server:
            await use_and_abandon_session(server.url)
            gc.collect()
            await asyncio.sleep(0)

    run(main)

    assert "Unclosed c" in recorder.log.getvalue()  # "Unclosed connector" or "Unclosed client session"
    assert [text for text in recorder.texts() if leaks(text)] == []


# --- Changes, secrets and journals ----------------------------------------------------------------


def test_change_shows_no_password() -> None:
    texts = [
        repr(CUSTOM),
        str(CUSTOM),
        f"{CUSTOM}",
        repr(attrs.asdict(CUSTOM)),
        repr(cattrs.unstructure(CUSTOM)),
    ]
    texts += [repr(copy.copy(CUSTOM)), repr(copy.deepcopy(CUSTOM)), repr(attrs.astuple(CUSTOM))]

    assert [text for text in texts if leaks(text)] == []


@pytest.mark.parametrize("value", [CUSTOM, Secret(KEY)], ids=["change", "secret"])
@pytest.mark.parametrize("serialize", [pickle.dumps, json.dumps], ids=["pickle", "JSON"])
def test_object_with_a_secret_cannot_be_serialized(
    value: object, serialize: Callable[[object], object]
) -> None:
    """Otherwise a program could write secrets to a file without its author noticing."""
    with pytest.raises(TypeError) as caught:
        serialize(value)

    assert not leaks("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("invalid_key", [KEY + "\n", " " + KEY, KEY + "é", KEY.encode()], ids=ascii)
def test_error_for_an_invalid_api_key_does_not_contain_the_key(invalid_key: Any) -> None:
    """A valid key with a line break at its end is still a secret."""
    with pytest.raises(errors.ConfigurationError) as caught:
        PostPressSession(invalid_key)

    assert not leaks("".join(traceback.format_exception(caught.value)))
    assert not leaks(f"{caught.value!r} {caught.value.args} {vars(caught.value)}")


def test_journal_and_outcomes_contain_no_secret(recorder: Recorder, tmp_path: Path) -> None:
    """The journal's files, such as its write-ahead log, are read while it is open and after it is closed."""
    path = tmp_path / "run.sqlite3"
    contents: dict[str, bytes] = {}

    def read_files(when: str) -> None:
        contents.update({f"{file.name} {when}": file.read_bytes() for file in tmp_path.iterdir()})

    async def main() -> list[Any]:
        changes = [(f"acc_{number}", CUSTOM) for number in range(6)]
        with FaultServer() as server:
            for (account, _), where in zip(changes, ENVELOPES, strict=False):  # the first six envelopes
                server.script(account, [echoes(400, ENVELOPES[where], escaped=True)])
            async with PostPressSession(
                KEY,
                base_url=server.url,
                retry=POLICY,
                on_event=recorder.observe,
                transport=recorder.transport,
            ) as session:
                async with session.rotate(changes, journal=path) as rotation:
                    outcomes = [outcome async for outcome in rotation]
                    read_files("open")
        read_files("closed")
        return [*outcomes, rotation.summary]

    outcomes = run(main)

    assert {"run.sqlite3 open", "run.sqlite3-wal open", "run.sqlite3 closed"} <= set(contents)
    assert [name for name, content in contents.items() if leaks(content)] == []
    for outcome in outcomes:
        if getattr(outcome, "error", None) is not None:
            assert [text for text in texts_of(outcome.error) if leaks(text)] == []
        assert not leaks(f"{outcome} {outcome!r} {attrs.asdict(outcome)} {cattrs.unstructure(outcome)}")
    assert [text for text in recorder.texts() if leaks(text)] == []
