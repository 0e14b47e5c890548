"""
Faulty servers and networks: each fault has the expected result, in time, and does not affect the next call.

`fault_server` has the faults. Most tests make one call with a fault, and then a call without a fault in the
same session, which must succeed.
"""

import asyncio
import gc
import importlib
import itertools
import os
import select
import selectors
import ssl
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import trustme
from aiohttp.http_parser import HttpResponseParser, HttpResponseParserPy
from attrs import frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postpress_async import (
    AccountPatched,
    CustomProxy,
    ManagedProxy,
    PostPressSession,
    RetryPolicy,
    errors,
    events,
)
from postpress_async.pace import Pace
from tests.support import KEY
from tests.support.fault_server import (
    CONNECTIONS,
    COOKIES,
    FAULTS,
    REDIRECTS,
    Connection,
    Fault,
    FaultServer,
    envelope,
    patched,
    response,
    sends_and_closes,
    sends_body,
)

T = TypeVar("T")

pytestmark = [pytest.mark.usefixtures("transport"), pytest.mark.slow]

CUSTOM = CustomProxy(host="proxy.example.com", port=8080, password="hunter2")
DEADLINE = 1.0
STATM = Path("/proc/self/statm")  # the memory of the process in pages; only on Linux
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

USES_PYTHON_PARSER = HttpResponseParser is HttpResponseParserPy
"""Whether aiohttp uses its pure-Python parser, as it does if ``AIOHTTP_NO_EXTENSIONS`` is set."""
LOOP_FACTORY: Callable[[], asyncio.AbstractEventLoop] | None = None
if os.environ.get("POSTPRESS_TEST_LOOP") == "uvloop":
    LOOP_FACTORY = importlib.import_module("uvloop").new_event_loop


async def _no_wait(_seconds: float) -> None:
    """Replaces the backoff between attempts."""


POLICY = RetryPolicy(attempts=2, attempt_timeout=0.25, deadline=DEADLINE, sleep=_no_wait)
LONG_TIMEOUT = RetryPolicy(attempts=2, deadline=DEADLINE, sleep=_no_wait)
"""For faults that end without a timeout, so that a busy machine does not cause one."""

PACE = Pace(adaptive=False)  # the pace must not delay the call after a fault


# --- CPU time and memory --------------------------------------------------------------------------


class MeasuringSelector(selectors.DefaultSelector):
    """
    A selector that measures the CPU time of each iteration of the event loop, and the memory.

    Attributes:
        longest: The most CPU time, in seconds, that the thread of the loop used in one iteration.
        resident: Bytes of memory of the process, about every 5 ms, in all event loops of this module.
    """

    resident: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        self._since = time.thread_time()
        self._due = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.longest = max(self.longest, time.thread_time() - self._since)
        ready = super().select(timeout)
        if time.monotonic() > self._due:
            self._due = time.monotonic() + 0.005
            self.record_memory()
        self._since = time.thread_time()
        return ready

    @classmethod
    def record_memory(cls) -> None:
        cls.resident.append(int(STATM.read_text().split()[1]) * PAGE_SIZE if STATM.exists() else 0)


def run(main: Awaitable[T]) -> T:
    """Return the result of *main*, and check that no iteration of the event loop used 100 ms of CPU time."""
    selector = MeasuringSelector()

    async def awaited() -> T:
        return await main

    if LOOP_FACTORY is not None:  # uvloop does not use a selector, so measure only the memory
        with asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
            MeasuringSelector.record_memory()
            result = runner.run(awaited())
        MeasuringSelector.record_memory()
        return result
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        result = runner.run(awaited())
    # The measurement of coverage and the pure-Python parser use much more CPU time.
    assert selector.longest < (0.1 if sys.gettrace() is None and not USES_PYTHON_PARSER else 0.3)
    return result


def wait_for_unread_data(session: PostPressSession) -> None:
    """Wait for data on the idle connection, blocking the event loop, so that it does not read the data."""
    transport: Any = session._context.transport
    connector = transport._session.connector if hasattr(transport, "_session") else transport._connector
    [[(protocol, _)]] = connector._conns.values()
    poll = select.poll()
    poll.register(protocol.transport.get_extra_info("socket"), select.POLLIN)
    assert poll.poll(5_000)  # ms


@pytest.fixture(scope="module", autouse=True)
def memory(transport: str) -> Iterator[None]:
    """Check that the memory never grows by more than 32 MiB during the tests of this module."""
    MeasuringSelector.resident.clear()
    gc.collect()
    gc.freeze()  # so that collections in the event loop do not examine the objects of other tests
    yield
    if MeasuringSelector.resident:  # pytest-xdist may give this process only tests that do not measure
        assert max(MeasuringSelector.resident) - MeasuringSelector.resident[0] < 32 * 1024 * 1024


# --- The outcome of each fault --------------------------------------------------------------------


@frozen
class CallResult:
    """
    The result of a call.

    Attributes:
        outcome: ``success``, or the class name of the error.
        attempts: Number of attempts.
        applied: Whether the change was applied, according to the error; ``-`` for a success.
        error: The error, or None.
    """

    outcome: str
    attempts: int
    applied: str = "-"
    error: errors.PostPressError | None = None

    def __str__(self) -> str:
        return f"{self.outcome} {self.attempts} {self.applied}"


async def call(session: PostPressSession, account_id: str, change: Any = CUSTOM) -> CallResult:
    """Make a call, check that it ends in time, and return its result."""
    started = time.monotonic()
    try:
        done = await session.update_proxy(account_id, change)
    except errors.PostPressError as error:
        result = CallResult(type(error).__name__, len(error.attempts), error.applied, error)
    else:
        assert done == AccountPatched(account_id)
        result = CallResult("success", len(done.attempts))
    assert time.monotonic() - started < DEADLINE + 0.5
    return result


# The keys are strings of `CallResult`s: class of the error, attempts, and whether the change was applied. The
# values are the names of the faults with that result.
OUTCOMES = {
    "AnswerError 1 unknown": """
        length too short | zero length | negative length | length with a plus sign | length in hexadecimal |
        length with an underscore | length that is a word | empty length | length beyond 64 bits | length of
        5,000 digits | two different lengths | two equal lengths | a list of lengths | length and chunked
        encoding | a chunk size that is not a number | a negative chunk size | a chunk size beyond 64 bits |
        a chunk longer than its size | an invalid chunk after a valid one | an invalid chunk, sent
        separately | endless chunks | endless trailers | endless trailers, sent separately | an unknown
        transfer coding | garbage after the body | 1 MiB after the body | HTTP/1.1 without a length,
        truncated | HTTP/0.9 | HTTP/2 | HTTP/9.9 in the status line | ICY in the status line | a reason
        phrase of 100 KiB | a 101 | 200 headers | 20,000 headers | endless headers | a header of 64 KiB | an
        endless header | an endless header name | an endless status line | a NUL in a header | a bare CR in
        a header | a header without a colon | a header without a name | a space before the colon | 1 GiB
        announced and sent | an endless body | 256 KiB and one byte | a gzip bomb | a deflate bomb | a
        brotli bomb | an invalid zstd body | gzip twice | UTF-16 | declared UTF-16 | UTF-7 | a byte-order
        mark | not UTF-8 | 100,000 nested lists | 40,000 nested objects | 20,000 digits | 250,000 digits |
        NaN | a duplicate name | a list | a JSON string | HTML | an empty body | only white space |
        truncated JSON | two JSON objects | another object name | another account | no account id | no
        object name | an error envelope with a 200 | a 201 | a 202 | a 204 | a 204 with a body | a 205 | a
        206 | a status of two digits | a status of four digits | a status of 0 | a status below 100 | a
        negative status | a status that is a word
    """,
    "ApiError 1 no": """
        a 407 | a 413 | a 417
    """,
    "ApiError 1 unknown": """
        a 418 | a 421 | a 425 | a 426 | a 511 | a 599 | a 600 | a 999
    """,
    "ApiError 2 unknown": """
        a 408
    """,
    "AttemptTimeoutError 2 unknown": """
        silent connection | endless 1xx | silence after the request | silence during the headers | silence
        during the body | length too long | chunks without a last one | an endless chunk extension |
        HTTP/1.1 without a length, kept open | dripping 1xx | dripping headers | 1 GiB announced and not
        sent | a dripping body
    """,
    "BadGatewayError 1 unknown": """
        both envelopes
    """,
    "BadGatewayError 2 unknown": """
        a success body with a 502 | an envelope without a type | closed during the body of a 502
    """,
    "BadRequestError 1 no": """
        an unknown type | a retryable type with a 400
    """,
    "ConnectionLostError 2 unknown": """
        reset after the request | closed after the request | half-closed after the request | closed during
        the status line | closed during a header | closed after the headers | closed during the body | reset
        during the headers | reset during the body | length too long, then closed | chunks without a last
        one, then closed
    """,
    "GatewayTimeoutError 2 unknown": """
        a 504
    """,
    "InternalServerError 1 unknown": """
        a type with another status
    """,
    "KeyMissingError 1 no": """
        the quickstart's own code
    """,
    "NotSupportedError 1 no": """
        a 501
    """,
    "ProviderError 2 no": """
        the quickstart's envelope
    """,
    "ProxyError 2 no": """
        another status in the envelope | an envelope without a title | a detail of 200 KiB | terminal
        escapes in the detail
    """,
    "ServiceUnavailableError 1 no": """
        Retry-After: 1 | Retry-After: 120 | Retry-After: 121 | Retry-After: 5,000 digits | Retry-After: a
        date in 9999 | Retry-After: two equal values | Retry-After: 8 KiB of spaces
    """,
    "ServiceUnavailableError 2 no": """
        Retry-After: 0 | Retry-After: negative | Retry-After: a fraction | Retry-After: an exponent |
        Retry-After: NaN | Retry-After: infinity | Retry-After: Arabic digits | Retry-After: hexadecimal |
        Retry-After: empty | Retry-After: a word | Retry-After: a unit | Retry-After: a date in the past |
        Retry-After: a date in RFC 850 format | Retry-After: a date in asctime format | Retry-After: a date
        that does not exist | Retry-After: a date in another time zone | Retry-After: two different values |
        Retry-After: a list
    """,
    "TooManyRequestsError 1 no": """
        a 429 closed during the body
    """,
    "TooManyRequestsError 2 no": """
        a 429
    """,
    "UnauthorizedError 1 no": """
        a 401 with WWW-Authenticate | a 401 closed during the body | a 401 reset during the body | a 401
        with silence during the body | a 401 with a dripping body | a 401 with endless chunks | a 401 with
        an invalid chunk | a 401 with an invalid chunk, sent separately | a 401 with a chunk longer than its
        size | a 401 with garbage after the body | a 401 that is not UTF-8 | a 401 declared as gzip
    """,
    "UnavailableError 2 unknown": """
        1 GiB announced with an error | 300 KiB with an error | HTML with a 503 | an unknown type with a 503
        | a cookie with an error
    """,
    "success 1 -": """
        closed while idle | reset while idle | an unsolicited response while idle | an unsolicited 404 while
        idle | an unsolicited 408 while idle | garbage while idle | half of an unsolicited response while
        idle | valid chunks | trailers | chunks declared as gzip | a line break after the body | a second
        response after the body | HTTP/1.0 with a length | HTTP/1.0 with a length, kept open | HTTP/1.0
        without a length | HTTP/1.1 without a length | HTTP/2.0 in the status line | no reason phrase | a
        reason phrase that is not ASCII | line feeds without carriage returns | a 100 first | a 103 first |
        a hundred 1xx first | 2,000 1xx first | a folded header | a header that is not ASCII | exactly 256
        KiB | declared as gzip | charset punycode | charset idna | an unknown charset | 20,000 decimal
        places | a float out of range | 60,000 numbers | 20,000 names | a wrong content type | a cookie | a
        hundred cookies | an invalid cookie | cookies that are slow to parse
    """,
}

# For these faults, the result depends on whether the client or the server is faster.
TIMING_DEPENDENT_OUTCOMES = {
    "reset before the request": {
        "ConnectError 2 no",
        "ConnectError 2 unknown",
        "ConnectionLostError 2 no",
        "ConnectionLostError 2 unknown",
    },
    "closed before the request": {"ConnectionLostError 2 no", "ConnectionLostError 2 unknown"},
    "a response before the request": {"success 1 -", "success 2 -", "ConnectionLostError 2 no"},
    "another protocol's greeting": {
        "AnswerError 1 unknown",
        "AnswerError 2 unknown",
        "ConnectionLostError 2 no",
    },
    "endless chunks of one byte": {
        "AnswerError 1 unknown",
        "AnswerError 2 unknown",
        "AttemptTimeoutError 2 unknown",
    },
}


# aiohttp's pure-Python parser accepts some responses that the C parser rejects. For some others, it waits for
# the end of an invalid line, which never comes.
PYTHON_PARSER_OUTCOMES = {
    "another protocol's greeting": TIMING_DEPENDENT_OUTCOMES["another protocol's greeting"]
    | {"AttemptTimeoutError 2 unknown", "ConnectionLostError 2 unknown"},
    "length beyond 64 bits": {"AttemptTimeoutError 2 unknown"},
    "a chunk size beyond 64 bits": {"AttemptTimeoutError 2 unknown"},
    "an endless chunk extension": {"AnswerError 1 unknown"},
    "garbage after the body": {"success 1 -"},
    "a line break after the body": {"AnswerError 1 unknown"},
    "HTTP/0.9": {"ConnectionLostError 2 unknown"},
    "HTTP/2": {"ConnectionLostError 2 unknown"},
    "HTTP/9.9 in the status line": {"success 1 -"},
    # Slower parsing may exceed the timeout.
    "2,000 1xx first": {"success 1 -", "success 2 -", "AttemptTimeoutError 2 unknown"},
}


# In Python's development mode, aiohttp's parsers are stricter.
DEVELOPMENT_MODE_OUTCOMES = {
    "line feeds without carriage returns": {"AnswerError 1 unknown"},
    "a folded header": {"AnswerError 1 unknown"},
    "a wrong content type": {"AnswerError 1 unknown"},
    "HTML with a 503": {"AnswerError 1 unknown"},
    "charset punycode": {"AnswerError 1 unknown"},
    "charset idna": {"AnswerError 1 unknown"},
    "an unknown charset": {"AnswerError 1 unknown"},
    # Slower parsing may exceed the timeout.
    "2,000 1xx first": {"success 1 -", "success 2 -", "AttemptTimeoutError 2 unknown"},
}


EXPECTED = (
    {name: {result} for result, names in OUTCOMES.items() for name in " ".join(names.split()).split(" | ")}
    | TIMING_DEPENDENT_OUTCOMES
    | (PYTHON_PARSER_OUTCOMES if USES_PYTHON_PARSER else {})
    | (DEVELOPMENT_MODE_OUTCOMES if sys.flags.dev_mode else {})
)


@pytest.fixture(name="session_to", scope="module")
def session_to_server(transport: Any) -> Callable[..., PostPressSession]:
    """A function that creates a session for a server. All tests run once with each transport."""

    def session_to(server: FaultServer, **options: Any) -> PostPressSession:
        options = {"retry": POLICY, "pace": PACE, **options}
        return PostPressSession(KEY, base_url=server.url, transport=transport, **options)

    return session_to


def test_every_fault_has_an_expected_outcome() -> None:
    assert set(EXPECTED) == set(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_call_with_a_fault_has_the_expected_result_and_does_not_affect_the_next_call(
    name: str, session_to: Any
) -> None:
    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(FAULTS[name])
                result = await call(session, "acc_bad")
                sent = server.count()["acc_bad"]
                server.play(None)
                after = await call(session, "acc_next")

            assert str(result) in EXPECTED[name]
            if name not in TIMING_DEPENDENT_OUTCOMES and FAULTS[name].on_connect is None:
                assert sent == result.attempts
            assert after.outcome == "success"
            assert after.attempts == 1 or name in TIMING_DEPENDENT_OUTCOMES
            assert server.count()["acc_next"] == 1
            if result.error is not None:
                assert (result.error.__cause__, result.error.__context__) == (None, None)
                assert str(result.error).isprintable()

    run(main())


IDLE = [name for name, fault in FAULTS.items() if fault.on_push is not None]


@pytest.mark.parametrize("read", [True, False], ids=["read by the loop", "not read yet"])
@pytest.mark.parametrize("name", IDLE)
@pytest.mark.parametrize("change", [CUSTOM, ManagedProxy(country="US")], ids=["custom", "managed"])
def test_data_on_an_idle_connection_is_not_taken_for_the_next_response(
    name: str, read: bool, change: Any, session_to: Any
) -> None:
    """
    Such data is a late or injected response, so the connection must not be used.

    If an attempt fails because of that, its request was not sent, so the change was not applied.
    """
    observed: list[events.Event] = []

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server, retry=LONG_TIMEOUT, on_event=observed.append) as session:
                server.play(FAULTS[name])
                assert str(await call(session, "acc_bad")) == "success 1 -"
                server.play(None)
                server.push()
                wait_for_unread_data(session)
                for _ in range(20 if read else 0):  # the event loop reads the data in one of these iterations
                    await asyncio.sleep(0)

                after = await call(session, "acc_next", change)

            assert after.outcome == "success"
            assert server.count()["acc_next"] == 1
            ended = [event for event in observed if isinstance(event, events.AttemptEnded)]
            failed = [event.error for event in ended if event.error is not None]
            assert [(type(error), error.applied) for error in failed] in (
                [],
                [(errors.ConnectionLostError, errors.Applied.NO)],
            )

    run(main())


def test_session_works_after_refused_connections(session_to: Any) -> None:
    async def main() -> None:
        with FaultServer(listening=False) as server:
            async with session_to(server) as session:
                assert str(await call(session, "acc_bad")) == "ConnectError 2 no"
                server.listen()
                assert str(await call(session, "acc_next")) == "success 1 -"

    run(main())


@pytest.mark.parametrize("name", REDIRECTS)
def test_redirect_is_not_followed(name: str, session_to: Any) -> None:
    """The target of the redirect would receive the API key and the proxy's password."""
    status, location = REDIRECTS[name]

    async def main() -> None:
        with FaultServer() as server, FaultServer() as trap:
            target = location.format(trap=trap.port, server=server.port).encode()
            header = b"Refresh: 0; url=" + target if status == 200 else b"Location: " + target
            async with session_to(server) as session:
                server.play(sends_body(b"", status, header))
                result = await call(session, "acc_bad")
                server.play(None)
                after = await call(session, "acc_next")

            assert (str(result), str(after)) == ("AnswerError 1 unknown", "success 1 -")
            assert result.error is not None
            assert result.error.status == status
            assert trap.connections == 0
            assert [seen.account_id for seen in server.seen] == ["acc_bad", "acc_next"]

    run(main())


@pytest.mark.parametrize("name", COOKIES)
def test_cookies_of_a_response_are_not_sent_with_the_next_request(name: str, session_to: Any) -> None:
    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(FAULTS[name])
                await call(session, "acc_bad")
                await call(session, "acc_next")

            assert [seen.header("Cookie") for seen in server.seen] == [None] * len(server.seen)

    run(main())


def test_proxies_and_netrc_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_to: Any
) -> None:
    """They may be meant for other programs. A proxy would see the API key; .netrc could replace it."""
    (tmp_path / ".netrc").write_text(
        "machine localhost login u password p\nmachine 127.0.0.1 login u password p\n"
    )
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    async def main() -> None:
        with FaultServer() as server, FaultServer() as trap:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
            async with session_to(server) as session:
                assert str(await call(session, "acc_1")) == "success 1 -"

            assert trap.connections == 0
            [seen] = server.seen
            names = [line.split(b":")[0].decode() for line in seen.head.split(b"\r\n")[1:]]
            assert sorted(names) == [
                "Accept",
                "Accept-Encoding",
                "Content-Length",
                "Content-Type",
                "Host",
                "Idempotency-Key",
                "User-Agent",
                "X-API-KEY",
            ]
            assert seen.header("Accept-Encoding") == "identity"

    run(main())


@pytest.mark.parametrize(
    "name", ["silence after the request", "a dripping body", "endless 1xx", "silent connection"]
)
def test_connection_of_a_cancelled_call_is_not_reused(name: str, session_to: Any) -> None:
    """The next call would receive the rest of the response."""

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(FAULTS[name])
                task = asyncio.create_task(session.update_proxy("acc_bad", CUSTOM))
                while not server.connections or (name != "silent connection" and not server.seen):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                server.play(None)

                assert str(await call(session, "acc_next")) == "success 1 -"
                assert server.connections == 2

    run(main())


def test_retry_after_date_is_compared_with_the_date_header(session_to: Any) -> None:
    """The clock of the server may be wrong."""
    headers = b"Date: Sun, 06 Nov 1994 08:49:37 GMT", b"Retry-After: Sun, 06 Nov 1994 08:49:47 GMT"

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(sends_body(b"", 429, *headers))
                result = await call(session, "acc_bad")

        assert result.error is not None
        assert result.error.retry_after == 10.0

    run(main())


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file with the CA certificate that sessions trust."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_context(
    certificate: trustme.LeafCert, *, maximum_version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """Create a server's TLS context; with *maximum_version*, it accepts only that version and older ones."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if maximum_version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of old versions
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = maximum_version
            context.set_ciphers("ALL:@SECLEVEL=0")
    return context


async def _send_protocol_version_alert(connection: Connection) -> None:
    # Other servers send this alert; asyncio's closes the connection without it.
    await connection.reader.read(65536)
    await connection.send(bytes.fromhex("15 0301 0002 02 46"))
    await connection.close()


EXPIRED = datetime(2020, 1, 1, tzinfo=UTC)

TLS: dict[str, tuple[Callable[[trustme.CA], ssl.SSLContext], Fault | None, str]] = {
    "valid certificate": (lambda ca: server_context(ca.issue_cert("localhost")), None, "success 1 -"),
    "certificate of another host": (
        lambda ca: server_context(ca.issue_cert("other.example")),
        None,
        "TlsError 1 no",
    ),
    "certificate of subdomains": (
        lambda ca: server_context(ca.issue_cert("*.localhost")),
        None,
        "TlsError 1 no",
    ),
    "certificate of an unknown authority": (
        lambda ca: server_context(trustme.CA().issue_cert("localhost")),
        None,
        "TlsError 1 no",
    ),
    "expired certificate": (
        lambda ca: server_context(
            ca.issue_cert("localhost", not_before=EXPIRED - timedelta(days=1), not_after=EXPIRED)
        ),
        None,
        "TlsError 1 no",
    ),
    "certificate that is not valid yet": (
        lambda ca: server_context(
            ca.issue_cert("localhost", not_before=datetime.now(UTC) + timedelta(days=1))
        ),
        None,
        "TlsError 1 no",
    ),
    "only TLS 1.0": (
        lambda ca: server_context(ca.issue_cert("localhost"), maximum_version=ssl.TLSVersion.TLSv1),
        None,
        "ConnectError 2 no",
    ),
    "only TLS 1.1": (
        lambda ca: server_context(ca.issue_cert("localhost"), maximum_version=ssl.TLSVersion.TLSv1_1),
        None,
        "ConnectError 2 no",
    ),
    "protocol_version alert": (
        lambda ca: server_context(ca.issue_cert("localhost")),
        Fault(on_connect=_send_protocol_version_alert),
        "TlsError 1 no",
    ),
    "silence during the handshake": (
        lambda ca: server_context(ca.issue_cert("localhost")),
        CONNECTIONS["silent connection"],
        "AttemptTimeoutError 2 no",
    ),
    "plain HTTP": (
        lambda ca: server_context(ca.issue_cert("localhost")),
        CONNECTIONS["another protocol's greeting"],
        "TlsError 1 no",
    ),
    "closed during the handshake": (
        lambda ca: server_context(ca.issue_cert("localhost")),
        CONNECTIONS["closed before the request"],
        "ConnectError 2 no",
    ),
    "reset during the handshake": (
        lambda ca: server_context(ca.issue_cert("localhost")),
        CONNECTIONS["reset before the request"],
        "ConnectError 2 no",
    ),
}


@pytest.mark.parametrize("name", TLS)
def test_no_request_is_sent_over_a_connection_that_is_not_secure(
    name: str, authority: trustme.CA, trusted: str, session_to: Any
) -> None:
    """The request contains the API key."""
    make_context, fault, expected = TLS[name]

    async def main() -> None:
        with FaultServer(make_context(authority)) as server:
            async with session_to(server, ssl=trusted) as session:
                server.play(fault)
                result = await call(session, "acc_bad")
                assert str(result) == expected
                assert len(server.seen) == (result.outcome == "success")

                server.play(None)
                server.tls = server_context(authority.issue_cert("localhost"))
                assert str(await call(session, "acc_next")) == "success 1 -"

    run(main())


@pytest.mark.parametrize("name", ["an unsolicited response while idle", "closed while idle"])
def test_data_on_an_idle_tls_connection_is_not_taken_for_the_next_response(
    name: str, authority: trustme.CA, trusted: str, session_to: Any
) -> None:
    """Such data may also be a session ticket of TLS 1.3."""

    async def main() -> None:
        with FaultServer(server_context(authority.issue_cert("localhost"))) as server:
            async with session_to(server, retry=LONG_TIMEOUT, ssl=trusted) as session:
                server.play(FAULTS[name])
                assert str(await call(session, "acc_bad")) == "success 1 -"
                server.play(None)
                server.push()
                wait_for_unread_data(session)
                after = await call(session, "acc_next")

            assert after.outcome == "success"
            assert server.count()["acc_next"] == 1

    run(main())


def test_context_that_allows_tls_below_1_2_is_rejected() -> None:
    """TLS 1.0 and 1.1 are insecure."""
    context = ssl.create_default_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1

    with pytest.raises(errors.ConfigurationError, match=r"TLS below 1\.2"):
        PostPressSession(KEY, ssl=context)


# --- Concurrent calls -----------------------------------------------------------------------------


def test_faults_of_some_accounts_do_not_affect_concurrent_calls(session_to: Any) -> None:
    """Every third of 5,000 accounts has one or two faults; 200 requests are in flight at once."""
    faults = [
        FAULTS["reset after the request"],
        FAULTS["closed during the body"],
        sends_body(envelope("proxy_error", 502), 502),
        sends_body(b"<html>", 503),
        sends_body(b"", 429),
        FAULTS["closed during the status line"],
    ]
    accounts = [f"acc_{number}" for number in range(5000)]
    fault_counts = dict.fromkeys(accounts, 0) | {
        account: 1 + number % 2 for number, account in enumerate(accounts[::3])
    }
    policy = RetryPolicy(attempts=3, attempt_timeout=20.0, deadline=60.0, sleep=_no_wait)

    async def main() -> list[AccountPatched]:
        with FaultServer() as server:
            next_faults = itertools.cycle(faults)
            for account in accounts[::3]:
                server.script(account, list(itertools.islice(next_faults, fault_counts[account])))
            async with session_to(server, retry=policy, pace=Pace(in_flight=200, adaptive=False)) as session:
                done = await asyncio.gather(*(session.update_proxy(account, CUSTOM) for account in accounts))
            assert server.count() == {account: count + 1 for account, count in fault_counts.items()}
            return done

    with asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
        done = runner.run(main())
    assert {patched.account_id: len(patched.attempts) - 1 for patched in done} == fault_counts


# --- Random responses -----------------------------------------------------------------------------

TOKENS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 ",
        b"200",
        b"503",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b": ",
        b"Content-Length",
        b"Transfer-Encoding",
        b"chunked",
        b"52",
        b"0",
        b"5\r\n",
        b"Connection",
        b"close",
        b"upgrade",
        b"gzip",
        b"Content-Encoding",
        b"Set-Cookie",
        b"Retry-After",
        b"Location",
        b"HTTP/1.1 100 C\r\n\r\n",
        patched("acc_bad"),
        envelope("proxy_error", 502),
    ]
)
LINES = st.lists(TOKENS | st.binary(max_size=8), max_size=12).map(b"".join)
RESPONSES = (
    st.binary(max_size=200)
    | LINES
    | st.builds(
        lambda status, lines, body: (
            b"HTTP/1.1 %d X\r\n" % status + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body
        ),
        st.integers(100, 999),
        st.lists(LINES, max_size=4),
        st.binary(max_size=100) | st.just(patched("acc_bad")),
    )
)


@pytest.fixture(scope="module")
def call_with_response(session_to: Any) -> Iterator[Callable[[bytes], CallResult]]:
    """A function that makes a call to a server that sends these bytes and closes the connection."""
    with FaultServer() as server, asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
        session = session_to(server, retry=RetryPolicy(attempts=1, attempt_timeout=1.0, deadline=1.0))

        def call_once(data: bytes) -> CallResult:
            server.play(sends_and_closes(lambda _: data))
            return runner.run(call(session, "acc_bad"))

        yield call_once
        runner.run(session.aclose())


@settings(max_examples=300)
@given(data=RESPONSES)
@example(data=b"")
@example(data=response(200, patched("acc_bad")))
def test_any_response_is_a_success_or_a_postpress_error(
    call_with_response: Callable[[bytes], CallResult], data: bytes
) -> None:
    """`call` does not catch other exceptions, and checks the account of a success."""
    result = call_with_response(data)

    assert result.attempts == 1
    if result.outcome == "success":
        assert b"acc_bad" in data
