"""
API keys and passwords are in nothing that is printed, logged, stored or pickled.

Secrets here are long and odd, so that whatever form of them is found anywhere is a leak and no accident.
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
from tests.support.fault_server import CONNECTIONS, FAULTS, Fault, FaultServer, body_of, closes, says

pytestmark = pytest.mark.slow

KEY = "pp_live_9d1f7a-Key/With+Odd=Signs"
PASSWORD = 'hunter2-"Wörd"/p@ss word'
OWN = CustomProxy(host="proxy.example.com", port=8080, username="u", password=PASSWORD)


def forms(secret: str) -> set[str]:
    """*secret* and its encodings in logs and URLs."""
    plain = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    plain |= {json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1], ascii(secret)[1:-1]}
    return plain | {repr(secret.encode())[2:-1]}


SECRETS = forms(KEY) | forms(PASSWORD)


def leaks(text: str | bytes) -> set[str]:
    if isinstance(text, bytes):
        return {secret for secret in SECRETS if secret.encode() in text}
    return {secret for secret in SECRETS if secret in text}


async def _at_once(_: float) -> None:
    """In place of a wait."""


POLICY = RetryPolicy(attempts=2, attempt_timeout=0.3, deadline=1.0, sleep=_at_once)


# --- Where a secret could show --------------------------------------------------------------------


def chain(error: BaseException) -> Iterator[BaseException]:
    """*error* and the exceptions of its chain."""
    yield error
    for other in (error.__cause__, error.__context__):
        if other is not None:
            yield from chain(other)


def shown(error: BaseException) -> Iterator[str | bytes]:
    """Every text that is made of an error by what prints, keeps or sends it."""
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
    for twin in (copy.copy(error), copy.deepcopy(error)):
        yield f"{twin} {twin!r} {vars(twin)}"


class Everything:
    """The session's events, and all that was logged, warned of or named while it worked."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.log = io.StringIO()
        self.events: list[events.Event] = []
        self.tasks: set[str] = set()

    def observe(self, event: events.Event) -> None:
        self.events.append(event)
        for task in asyncio.all_tasks():
            self.tasks |= {task.get_name(), repr(task)}

    def texts(self) -> Iterator[str]:
        yield self.log.getvalue()
        yield from self.tasks
        for event in self.events:
            yield repr(event)
            fields = attrs.asdict(event, recurse=False)
            yield json.dumps(fields, default=str)
            yield repr(cattrs.unstructure(event))


@pytest.fixture
def everything(transport: Any) -> Iterator[Everything]:
    """DEBUG of every logger there is, every warning, and asyncio's own telling of each step."""
    made = Everything(transport)
    handler = logging.StreamHandler(made.log)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)r"))
    names = ["", "aiohttp", "aiohttp.client", "aiohttp.internal", "asyncio", "postpress_async"]
    before = {name: logging.getLogger(name).level for name in names}
    logging.getLogger().addHandler(handler)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield made
    logging.captureWarnings(False)
    logging.getLogger().removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def run(main: Callable[[], Any]) -> Any:
    """The result of *main* in a loop in debug mode that reports every step as slow."""

    async def slowly() -> Any:
        asyncio.get_running_loop().slow_callback_duration = 0.0
        return await main()

    with asyncio.Runner(debug=True) as runner:
        return runner.run(slowly())


def failures(
    server: FaultServer, everything: Everything, *faults: Fault | None
) -> list[errors.PostPressError]:
    """The errors of a session's calls, one for each of *faults*."""

    async def main() -> list[errors.PostPressError]:
        raised, pace = [], Pace(adaptive=False)
        async with PostPressSession(
            KEY,
            base_url=server.url,
            retry=POLICY,
            pace=pace,
            on_event=everything.observe,
            transport=everything.transport,
        ) as session:
            for fault in faults:
                server.play(fault)
                with pytest.raises(errors.PostPressError) as caught:
                    await session.update_proxy("acc_1", OWN)
                raised.append(caught.value)
            everything.tasks |= {repr(session), repr(vars(session))}
        return raised

    found: list[errors.PostPressError] = run(main)
    return found


# --- Errors of every class ------------------------------------------------------------------------


def echoing(status: int, form: Callable[[str], Any], *, escaped: bool) -> Fault:
    """An answer that repeats the key and the password in the envelope that *form* makes."""
    text = f"key {KEY} of {PASSWORD}, http://u:{quote(PASSWORD, safe='')}@h and {json.dumps(PASSWORD)}"
    return body_of(json.dumps(form(text), ensure_ascii=escaped).encode(), status)


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
def test_an_answer_that_repeats_a_secret_does_not_get_it_printed(
    everything: Everything, where: str, escaped: bool
) -> None:
    """Servers quote what they did not understand, and the quote ends in a ticket or a chat."""
    statuses = [200, 202, 302, 400, 401, 404, 418, 429, 500, 501, 502, 503, 504]
    echoes = [echoing(status, ENVELOPES[where], escaped=escaped) for status in statuses]
    with FaultServer() as server:
        raised = failures(server, everything, *echoes)

    for status, error in zip(statuses, raised, strict=True):
        assert [text for text in shown(error) if leaks(text)] == [], status
    assert [text for text in everything.texts() if leaks(text)] == []


@pytest.mark.parametrize("type_", [*errors.BY_TYPE, *errors.BY_CODE])
def test_no_listed_error_shows_a_secret(everything: Everything, type_: str) -> None:
    """A class of its own could have a text, or a field, of its own."""
    kind = errors.BY_TYPE.get(type_) or errors.BY_CODE[type_]
    assert kind.status is not None

    def envelope(text: str) -> dict[str, Any]:
        return {"type": type_, "title": text, "detail": text, "instance": text, "status": kind.status}

    with FaultServer() as server:
        [error] = failures(server, everything, echoing(kind.status, envelope, escaped=True))

    assert type(error) is kind
    assert [text for text in [*shown(error), *everything.texts()] if leaks(text)] == []


ECHO = f"X-Api-Key: {KEY}".encode()

BROKEN: dict[str, tuple[Fault | None, type[errors.PostPressError]]] = {
    "no connection": (None, errors.ConnectError),
    "closed": (CONNECTIONS["closed after the request"], errors.ConnectionLostError),
    "cut": (closes(lambda true: b"HTTP/1.1 200 OK\r\n" + ECHO), errors.ConnectionLostError),
    "cut in the body": (FAULTS["closed in the body"], errors.ConnectionLostError),
    "silent": (CONNECTIONS["silence after the request"], errors.AttemptTimeoutError),
    "too long": (FAULTS["an endless body"], errors.AnswerError),
    "no HTTP": (says(lambda _: ECHO + b"\r\n\r\n"), errors.AnswerError),
    "a bad header": (says(lambda _: b"HTTP/1.1 200 OK\r\nbad " + ECHO + b"\r\n\r\n"), errors.AnswerError),
    "the key as the reason": (says(lambda true: b"HTTP/1.1 2000 " + ECHO + b"\r\n\r\n"), errors.AnswerError),
    "the key as a header": (body_of(b"", 200, ECHO), errors.AnswerError),
    "the key as a cookie": (body_of(b"", 200, b"Set-Cookie: k=" + KEY.encode()), errors.AnswerError),
    "the key as a place": (body_of(b"", 307, b"Location: http://x/" + KEY.encode()), errors.AnswerError),
    "the key as a wait": (body_of(b"", 503, b"Retry-After: " + KEY.encode()), errors.UnavailableError),
    "the key in a chunk's size": (
        says(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ECHO + b"\r\n"),
        errors.AnswerError,
    ),
    "not UTF-8": (body_of(ECHO + b"\xff"), errors.AnswerError),
    "no JSON": (body_of(ECHO), errors.AnswerError),
}


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_connection_shows_a_secret(everything: Everything, name: str) -> None:
    """aiohttp's exceptions contain the request's headers, so no error has them in its chain."""
    fault, kind = BROKEN[name]
    with FaultServer(listening=fault is not None) as server:
        [error] = failures(server, everything, fault)

    assert type(error) is kind
    assert list(chain(error)) == [error]
    assert [text for text in [*shown(error), *everything.texts()] if leaks(text)] == []


def test_no_secure_connection_shows_no_secret(everything: Everything) -> None:
    """The server does not speak TLS, so the handshake fails."""
    with FaultServer() as server:
        server.secure = True
        [error] = failures(server, everything, CONNECTIONS["another protocol's greeting"])

    assert type(error) is errors.TlsError
    assert [text for text in [*shown(error), *everything.texts()] if leaks(text)] == []


def test_a_session_that_is_closed_or_out_of_time_shows_no_secret(everything: Everything) -> None:
    """The errors of a call that sent nothing: its arguments are all they could show."""

    async def main() -> list[BaseException]:
        with FaultServer() as server:
            server.play(CONNECTIONS["silence after the request"])
            session = PostPressSession(
                KEY,
                base_url=server.url,
                retry=POLICY,
                pace=Pace(in_flight=1),
                on_event=everything.observe,
                transport=everything.transport,
            )
            calls = [asyncio.create_task(session.update_proxy(f"acc_{n}", OWN)) for n in range(4)]
            quick = RetryPolicy(deadline=0.05)
            late = asyncio.create_task(session.update_proxy("acc_9", OWN, retry=quick))
            await asyncio.wait([late])
            await session.aclose(timeout=0.0)
            ended = await asyncio.gather(late, *calls, return_exceptions=True)
            with pytest.raises(errors.SessionClosedError) as closed:
                await session.update_proxy("acc_1", OWN)
            return [closed.value, *(error for error in ended if isinstance(error, BaseException))]

    ended = run(main)

    assert {type(error) for error in ended} >= {errors.SessionClosedError, errors.DeadlineError}
    for error in ended:
        assert [text for text in shown(error) if leaks(text)] == []
    assert [text for text in everything.texts() if leaks(text)] == []


def test_a_call_that_is_cancelled_shows_no_secret(everything: Everything) -> None:
    """The exception is asyncio's, but its traceback has frames of the package."""

    async def main() -> list[str]:
        with FaultServer() as server:
            server.play(CONNECTIONS["silence after the request"])
            async with PostPressSession(
                KEY, base_url=server.url, on_event=everything.observe, transport=everything.transport
            ) as session:
                call = asyncio.create_task(session.update_proxy("acc_1", OWN))
                while not server.seen:
                    await asyncio.sleep(0)
                everything.tasks |= {repr(task) for task in asyncio.all_tasks()}
                for task in asyncio.all_tasks():
                    task.print_stack(file=everything.log)
                call.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await call
                with_locals = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
                return [*traceback.format_exception(caught.value), *with_locals.format()]

    assert not leaks("".join(run(main)))
    assert [text for text in everything.texts() if leaks(text)] == []


def test_a_success_shows_no_secret(everything: Everything) -> None:
    """Successful calls are logged, too."""

    async def main() -> Any:
        with FaultServer() as server:
            server.script("acc_1", [echoing(502, ENVELOPES["detail"], escaped=True)])
            async with PostPressSession(
                KEY,
                base_url=server.url,
                retry=POLICY,
                on_event=everything.observe,
                transport=everything.transport,
            ) as session:
                return await session.update_proxy("acc_1", OWN)

    done = run(main)

    texts: list[str | bytes] = [repr(done), str(done), repr(attrs.asdict(done)), pickle.dumps(done)]
    texts += [json.dumps(cattrs.unstructure(done)), repr(copy.deepcopy(done)), *everything.texts()]
    assert [text for text in texts if leaks(text)] == []
    assert "asyncio" in everything.log.getvalue()  # it did tell of its steps


@pytest.mark.parametrize("name", ["fleet.csv", "fleet.jsonl"])
def test_no_row_that_is_refused_shows_a_secret(name: str, tmp_path: Path) -> None:
    """A shifted column makes a password an account, a host or a port."""
    columns = ["account_id", "proxy", "host", "port", "protocol", "username", "password", "country", "ip"]
    right = {"account_id": "acc_1", "host": "h.example", "port": "80"}
    rows = [right | {column: PASSWORD} for column in columns] + [right | {column: KEY} for column in columns]
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

    assert len(refusals) >= 2 * len(columns) - 4  # a user name and a password may be anything
    assert [
        refusal
        for refusal in refusals
        if leaks(f"{refusal} {refusal!r} {attrs.asdict(refusal)} {cattrs.unstructure(refusal)}")
    ] == []


def test_no_change_that_is_refused_shows_a_secret() -> None:
    """A field that is given what was meant for another one."""
    fields = {"host": "h.example", "port": 80, "protocol": "https", "username": "u", "password": "p"}
    for name in fields:
        for secret in (KEY + "\n", PASSWORD + "\n", "http://u:" + PASSWORD + "\0@h:80"):
            with pytest.raises(FieldError) as caught:
                CustomProxy(**{**fields, name: secret})  # type: ignore[arg-type] # that is the point
            assert [
                text for text in [*map(repr, chain(caught.value)), str(caught.value)] if leaks(text)
            ] == []
    for url in (PASSWORD, f"http://u:{PASSWORD}", f"u:{PASSWORD}@h:80", f"http://u:{quote(PASSWORD)}@h:x"):
        with pytest.raises(FieldError) as caught:
            CustomProxy.from_url(url)
        assert [text for text in [*map(repr, chain(caught.value)), str(caught.value)] if leaks(text)] == []


def test_a_session_that_is_left_open_shows_no_secret(everything: Everything) -> None:
    """aiohttp warns of it, and asyncio's exception handler gets it."""

    async def used(url: str) -> None:
        session = PostPressSession(KEY, base_url=url, retry=POLICY, transport=everything.transport)
        await session.update_proxy("acc_1", OWN)
        everything.tasks |= {repr(session), repr(vars(session)), repr(attrs.asdict(session._context))}
        everything.tasks.add(repr(vars(session._context.transport)))

    async def main() -> None:
        with FaultServer() as server:
            await used(server.url)
            gc.collect()
            await asyncio.sleep(0)

    run(main)

    assert "Unclosed c" in everything.log.getvalue()  # connector, or client session
    assert [text for text in everything.texts() if leaks(text)] == []


# --- What a program holds -------------------------------------------------------------------------


def test_a_change_shows_no_password() -> None:
    """A fleet's rows are printed, copied and turned into dictionaries."""
    texts = [repr(OWN), str(OWN), f"{OWN}", repr(attrs.asdict(OWN)), repr(cattrs.unstructure(OWN))]
    texts += [repr(copy.copy(OWN)), repr(copy.deepcopy(OWN)), repr(attrs.astuple(OWN))]

    assert [text for text in texts if leaks(text)] == []


@pytest.mark.parametrize("held", [OWN, Secret(KEY)], ids=["change", "secret"])
@pytest.mark.parametrize("write", [pickle.dumps, json.dumps], ids=["pickle", "JSON"])
def test_objects_with_a_secret_cannot_be_pickled(held: object, write: Callable[[object], object]) -> None:
    """A pickle file with keys would be passed on without care."""
    with pytest.raises(TypeError) as caught:
        write(held)

    assert not leaks("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("bad", [KEY + "\n", " " + KEY, KEY + "é", KEY.encode()], ids=ascii)
def test_a_key_that_is_refused_is_not_repeated(bad: Any) -> None:
    """An almost correct key is almost as secret as the correct one."""
    with pytest.raises(errors.ConfigurationError) as caught:
        PostPressSession(bad)

    printed = "".join(traceback.format_exception(caught.value))
    assert not leaks(printed.replace(repr(bad), ""))
    assert not leaks(f"{caught.value!r} {caught.value.args} {vars(caught.value)}")


def test_the_journal_of_a_rotation_holds_no_secret(everything: Everything, tmp_path: Path) -> None:
    """This includes the file, its -wal, and each outcome."""
    path = tmp_path / "run.sqlite3"
    found: dict[str, bytes] = {}

    def look(when: str) -> None:
        found.update({f"{file.name} {when}": file.read_bytes() for file in tmp_path.iterdir()})

    async def main() -> list[Any]:
        changes = [(f"acc_{number}", OWN) for number in range(6)]
        with FaultServer() as server:
            for (account, _), where in zip(changes, ENVELOPES, strict=False):
                server.script(account, [echoing(400, ENVELOPES[where], escaped=True)])
            async with PostPressSession(
                KEY,
                base_url=server.url,
                retry=POLICY,
                on_event=everything.observe,
                transport=everything.transport,
            ) as session:
                async with session.rotate(changes, journal=path) as rotation:
                    outcomes = [outcome async for outcome in rotation]
                    look("open")
        look("closed")
        return [*outcomes, rotation.summary]

    outcomes = run(main)

    assert {"run.sqlite3 open", "run.sqlite3-wal open", "run.sqlite3 closed"} <= set(found)
    assert [name for name, content in found.items() if leaks(content)] == []
    for outcome in outcomes:
        if getattr(outcome, "error", None) is not None:
            assert [text for text in shown(outcome.error) if leaks(text)] == []
        assert not leaks(f"{outcome} {outcome!r} {attrs.asdict(outcome)} {cattrs.unstructure(outcome)}")
    assert [text for text in everything.texts() if leaks(text)] == []
