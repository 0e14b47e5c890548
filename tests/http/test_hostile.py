"""
A hostile network: whatever is on the other end, a call ends in time, in order, and in one of our errors.

`fault_server` has the misdeeds by name; here is what becomes of each. Each has a session of its own, and
after it the same session is asked for something sensible, which it has to do as if nothing had been.
"""

import asyncio
import gc
import importlib
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
    Fault,
    FaultServer,
    Wire,
    answer,
    body_of,
    envelope,
    patched,
)

T = TypeVar("T")

pytestmark = [pytest.mark.usefixtures("transport"), pytest.mark.slow]

OWN = CustomProxy(host="proxy.example.com", port=8080, password="hunter2")
DEADLINE = 1.0
STATM = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")

PURE = HttpResponseParser is HttpResponseParserPy
"""Whether aiohttp's parser is the one in Python: it is where ``AIOHTTP_NO_EXTENSIONS`` is set."""

FACTORY: Callable[[], asyncio.AbstractEventLoop] | None = None
if os.environ.get("POSTPRESS_TEST_LOOP") == "uvloop":
    FACTORY = importlib.import_module("uvloop").new_event_loop


async def _at_once(_: float) -> None:
    """In place of a wait."""


POLICY = RetryPolicy(attempts=2, attempt_timeout=0.25, deadline=DEADLINE, sleep=_at_once)
PACE = Pace(adaptive=False)  # one call after the other shows no trend


# --- What the client may cost ---------------------------------------------------------------------


class Watch(selectors.DefaultSelector):
    """
    A selector that measures, whenever the loop comes round to it.

    Attributes:
        longest: The most CPU time, in seconds, that the loop's thread took from one turn to the next.
        resident: Bytes of memory of the process, every 5 ms or so, over all of this file's loops.
    """

    resident: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        self._since = time.thread_time()
        self._due = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.longest = max(self.longest, time.thread_time() - self._since)
        found = super().select(timeout)
        if time.monotonic() > self._due:
            self._due = time.monotonic() + 0.005
            self.note_memory()
        self._since = time.thread_time()
        return found

    @classmethod
    def note_memory(cls) -> None:
        cls.resident.append(int(STATM.read_text().split()[1]) * PAGE if STATM.exists() else 0)


def run(main: Awaitable[T]) -> T:
    """The result of *main*, in a loop that no turn of which took 100 ms of CPU."""
    watch = Watch()

    async def awaited() -> T:
        return await main

    if FACTORY is not None:  # a loop without a selector of Python's, and so without a watch
        with asyncio.Runner(loop_factory=FACTORY) as runner:
            Watch.note_memory()
            result = runner.run(awaited())
        Watch.note_memory()
        return result
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        result = runner.run(awaited())
    # A tracer, as of coverage, costs as much again, and so does a parser in Python.
    assert watch.longest < (0.1 if sys.gettrace() is None and not PURE else 0.3)
    return result


def wait_unread(session: PostPressSession) -> None:
    """Hold the loop up until something has arrived on the idle connection that it has not read."""
    transport: Any = session._context.transport
    connector = transport._session.connector if hasattr(transport, "_session") else transport._connector
    [[(protocol, _)]] = connector._conns.values()
    poll = select.poll()
    poll.register(protocol.transport.get_extra_info("socket"), select.POLLIN)
    assert poll.poll(5_000)


@pytest.fixture(scope="module", autouse=True)
def memory(transport: str) -> Iterator[None]:
    """No fault, nor all of them together, takes more than 32 MiB; the first is where it is counted from."""
    Watch.resident.clear()
    gc.collect()
    gc.freeze()  # what other tests left is not looked at on the loop's time
    yield
    assert max(Watch.resident) - Watch.resident[0] < 32 << 20


# --- What becomes of each fault -------------------------------------------------------------------


@frozen
class Met:
    """What came of a call: the class of its error or ``value``, its attempts, what was applied."""

    outcome: str
    attempts: int
    applied: str = "-"
    error: errors.PostPressError | None = None

    def __str__(self) -> str:
        return f"{self.outcome} {self.attempts} {self.applied}"


async def meet(session: PostPressSession, account_id: str, change: Any = OWN) -> Met:
    began = time.monotonic()
    try:
        done = await session.update_proxy(account_id, change)
    except errors.PostPressError as error:
        met = Met(type(error).__name__, len(error.attempts), error.applied, error)
    else:
        assert done == AccountPatched(account_id)
        met = Met("value", len(done.attempts))
    assert time.monotonic() - began < DEADLINE + 0.5
    return met


# The class, the attempts made, what was applied; then the faults that end so.
OUTCOMES = {
    "AnswerError 1 unknown": """
        length too short | length zero | length negative | length with a
        plus | length in hexadecimal | length with an underscore | length of words | length empty |
        length beyond 64 bits | length of 5,000 digits | two lengths that differ | two lengths that
        agree | a list of lengths | length and chunks | a chunk's size that is no number | a chunk's
        size that is negative | a chunk's size beyond 64 bits | a chunk longer than its size | a bad
        chunk after a good one | a bad chunk, later | endless chunks | endless trailers |
        endless trailers, later |
        an unknown transfer coding |
        garbage after the body | a mebibyte after the body | HTTP/1.1 without a length, cut short |
        HTTP/0.9 | HTTP/2 | HTTP/9.9 in the status line | ICY in the status line | a reason of 100 KiB |
        a 101 | 200 headers | 20,000 headers | endless headers | a header of 64 KiB | an endless header
        | an endless header's name | an endless status line | a NUL in a header | a bare CR in a header
        | a header without a colon | a header without a name | a space before the colon | 1 GiB
        announced | an endless body | 256 KiB and a byte | a gzip bomb | a deflate bomb | a brotli bomb
        | an invalid zstd body | gzip twice | UTF-16 | UTF-16 that says so | UTF-7 | a byte-order mark |
        not UTF-8 | 100,000 lists deep | 40,000 objects deep | 20,000 digits | 250,000 digits | NaN | a
        name twice | a list | text | HTML | empty | white space | cut in JSON | twice | another object |
        another account | no account | no object | an error's envelope with a 200 | a 201 | a 202 | a
        204 | a 204 with a body | a 205 | a 206 | a status of two digits | a status of four digits | a
        status of 0 | a status below 100 | a status that is negative | a status of words
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
        silent accept | endless 1xx | silence after the request | silence in the headers | silence
        in the body | length too long | chunks without an end | an endless chunk's extension |
        HTTP/1.1 without a length, kept open | dripping 1xx | dripping headers | 1 GiB announced and
        not sent | a body that drips
    """,
    "BadGatewayError 1 unknown": """
        both envelopes
    """,
    "BadGatewayError 2 unknown": """
        a success's body with a 502 | an envelope without a type | closed in an error's body
    """,
    "BadRequestError 1 no": """
        an unknown type | a type that passes under a 400
    """,
    "ConnectionLostError 2 unknown": """
        reset after the request | closed after the request | half-open | closed in the status line |
        closed in a header | closed after the headers | closed in the body |
        reset in the headers | reset in the body | length too long, then closed |
        chunks cut short
    """,
    "GatewayTimeoutError 2 unknown": """
        a 504
    """,
    "InternalServerError 1 unknown": """
        a type under another status
    """,
    "KeyMissingError 1 no": """
        the other envelope's own code
    """,
    "NotSupportedError 1 no": """
        a 501
    """,
    "ProviderError 2 no": """
        the other envelope
    """,
    "ProxyError 2 no": """
        a status in the envelope that disagrees | an envelope without a title | another request's
        detail, of 200 KiB | terminal escapes in the detail
    """,
    "ServiceUnavailableError 1 no": """
        Retry-After: 1 | Retry-After: 120 | Retry-After: 121 | Retry-After: 5,000 digits | Retry-After:
        a date far ahead | Retry-After: two that agree | Retry-After: 8 KiB of blanks
    """,
    "ServiceUnavailableError 2 no": """
        Retry-After: 0 | Retry-After: negative | Retry-After: a fraction | Retry-After: an exponent |
        Retry-After: NaN | Retry-After: infinity | Retry-After: Arabic digits | Retry-After: hexadecimal
        | Retry-After: empty | Retry-After: a word | Retry-After: a unit | Retry-After: a date in the
        past | Retry-After: a date of RFC 850 | Retry-After: a date of asctime | Retry-After: an impossible
        day | Retry-After: another zone | Retry-After: two that differ | Retry-After: a list
    """,
    "TooManyRequestsError 1 no": """
        a 429 cut short
    """,
    "TooManyRequestsError 2 no": """
        a 429
    """,
    "UnauthorizedError 1 no": """
        a 401 that wants Basic | a 401 cut short | a 401 whose connection is reset | a 401 whose body never
        comes | a 401 whose body drips | a 401 with endless chunks | a 401 with a bad chunk | a 401 with a
        bad chunk, later | a 401 with a chunk longer than its size | a 401 with garbage after the body |
        a 401 that is not UTF-8 | a 401 said to be gzip, and is not
    """,
    "UnavailableError 2 unknown": """
        1 GiB announced with an error | 300 KiB with an error | HTML with a 503 | an unknown type with a 503 |
        a cookie with an error
    """,
    "value 1 -": """
        closed while idle | reset while idle | an unasked answer while
        idle | an unasked refusal while idle | an unasked 408 while idle | unasked garbage while idle |
        half an unasked answer while idle | chunks, as they should be | trailers | chunks packed with
        gzip | a line break after the body | a second answer after the body | HTTP/1.0 with a length |
        HTTP/1.0 with a length, kept open | HTTP/1.0 without a length | HTTP/1.1 without a length |
        HTTP/2.0 in the status line | no reason | a reason that is not ASCII | line feeds alone | a 100
        first | a 103 first | a hundred 1xx first | 2,000 1xx first | a folded header | a header that
        is not ASCII | 256 KiB exactly | said to be gzip, and is not | charset punycode | charset idna |
        charset unknown | 20,000 digits after a point | a float out of range | 60,000 numbers | 20,000
        names | a wrong content type | a cookie | a hundred cookies | an invalid cookie | cookies
        that are slow to read
    """,
}

# What decides these is which of the two is quicker by a hair.
RACES = {
    "reset before the request": {
        "ConnectError 2 no",
        "ConnectError 2 unknown",
        "ConnectionLostError 2 no",
        "ConnectionLostError 2 unknown",
    },
    "closed before the request": {"ConnectionLostError 2 no", "ConnectionLostError 2 unknown"},
    "an answer before the request": {"value 1 -", "value 2 -", "ConnectionLostError 2 no"},
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


# The Python parser waits for the end of a line that the C parser refuses at once, or lets pass what is
# harmless: an answer is the account's own all the same, and nothing that comes after it is believed.
PURE_OUTCOMES = {
    "another protocol's greeting": RACES["another protocol's greeting"]
    | {"AttemptTimeoutError 2 unknown", "ConnectionLostError 2 unknown"},
    "length beyond 64 bits": {"AttemptTimeoutError 2 unknown"},
    "a chunk's size beyond 64 bits": {"AttemptTimeoutError 2 unknown"},
    "an endless chunk's extension": {"AnswerError 1 unknown"},
    "garbage after the body": {"value 1 -"},
    "a line break after the body": {"AnswerError 1 unknown"},
    "HTTP/0.9": {"ConnectionLostError 2 unknown"},
    "HTTP/2": {"ConnectionLostError 2 unknown"},
    "HTTP/9.9 in the status line": {"value 1 -"},
    "2,000 1xx first": {"value 1 -", "value 2 -", "AttemptTimeoutError 2 unknown"},  # it is slower, too
}


# In Python's development mode aiohttp's parsers forgive less.
STRICT_OUTCOMES = {
    "line feeds alone": {"AnswerError 1 unknown"},
    "a folded header": {"AnswerError 1 unknown"},
    "a wrong content type": {"AnswerError 1 unknown"},
    "HTML with a 503": {"AnswerError 1 unknown"},
    "charset punycode": {"AnswerError 1 unknown"},
    "charset idna": {"AnswerError 1 unknown"},
    "charset unknown": {"AnswerError 1 unknown"},
    "2,000 1xx first": {"value 1 -", "value 2 -", "AttemptTimeoutError 2 unknown"},  # it is slower, too
}


EXPECTED = (
    {name: {met} for met, names in OUTCOMES.items() for name in " ".join(names.split()).split(" | ")}
    | RACES
    | (PURE_OUTCOMES if PURE else {})
    | (STRICT_OUTCOMES if sys.flags.dev_mode else {})
)


@pytest.fixture(name="session_to", scope="module")
def session_to_server(transport: Any) -> Callable[..., PostPressSession]:
    """A function that makes a session to a server, with each transport in turn."""

    def session_to(server: FaultServer, **options: Any) -> PostPressSession:
        options = {"retry": POLICY, "pace": PACE, **options}
        return PostPressSession(KEY, base_url=server.url, transport=transport, **options)

    return session_to


def test_each_fault_has_its_outcome() -> None:
    """A fault that nobody looks at proves nothing; the task was a hundred."""
    assert set(EXPECTED) == set(FAULTS)
    assert len(FAULTS) >= 100


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_in_time_in_one_of_our_errors_and_leaves_nothing(name: str, session_to: Any) -> None:
    """The class tells what happened, the attempts were worth it, and the next call knows nothing of it."""

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(FAULTS[name])
                met = await meet(session, "acc_bad")
                sent = server.count()["acc_bad"]
                server.play(None)
                after = await meet(session, "acc_next")

            assert str(met) in EXPECTED[name]
            if name not in RACES and FAULTS[name].before is None:
                assert sent == met.attempts
            assert after.outcome == "value"
            assert after.attempts == 1 or name in RACES
            assert server.count()["acc_next"] == 1
            if met.error is not None:
                assert (met.error.__cause__, met.error.__context__) == (None, None)
                assert str(met.error).isprintable()

    run(main())


IDLE = [name for name, fault in FAULTS.items() if fault.after is not None]


@pytest.mark.parametrize("noticed", [True, False], ids=["read by the loop", "not read yet"])
@pytest.mark.parametrize("name", IDLE)
@pytest.mark.parametrize("change", [OWN, ManagedProxy(country="US")], ids=["custom", "managed"])
def test_nothing_that_came_over_an_idle_connection_is_an_answer(
    name: str, noticed: bool, change: Any, session_to: Any
) -> None:
    """Such data is a late or injected response; a request that was not sent is known as not sent."""
    began: list[Any] = []

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server, on_event=began.append) as session:
                server.play(FAULTS[name])
                assert str(await meet(session, "acc_bad")) == "value 1 -"
                server.play(None)
                server.push()
                wait_unread(session)
                while noticed and began.count(None) < 20:  # turns of the loop
                    began.append(None)
                    await asyncio.sleep(0)

                after = await meet(session, "acc_next", change)

            assert after.outcome == "value"
            assert server.count()["acc_next"] == 1
            ended = [event for event in began if isinstance(event, events.AttemptEnded)]
            failed = [event.error for event in ended if event.error is not None]
            assert [(type(error), error.applied) for error in failed] in (
                [],
                [(errors.ConnectionLostError, errors.Applied.NO)],
            )

    run(main())


def test_a_refused_connection_was_never_sent_anything(session_to: Any) -> None:
    """The same session works once the server listens."""

    async def main() -> None:
        with FaultServer(listening=False) as server:
            async with session_to(server) as session:
                assert str(await meet(session, "acc_bad")) == "ConnectError 2 no"
                server.listen()
                assert str(await meet(session, "acc_next")) == "value 1 -"

    run(main())


@pytest.mark.parametrize("name", REDIRECTS)
def test_a_redirect_is_never_followed(name: str, session_to: Any) -> None:
    """The redirect's target would get the API key and the proxy's password."""
    status, location = REDIRECTS[name]

    async def main() -> None:
        with FaultServer() as server, FaultServer() as trap:
            where = location.format(trap=trap.port, home=server.port).encode()
            line = b"Refresh: 0; url=" + where if status == 200 else b"Location: " + where
            async with session_to(server) as session:
                server.play(body_of(b"", status, line))
                met = await meet(session, "acc_bad")
                server.play(None)
                after = await meet(session, "acc_next")

            assert (str(met), str(after)) == ("AnswerError 1 unknown", "value 1 -")
            assert met.error is not None
            assert met.error.status == status
            assert trap.connections == 0
            assert [seen.account_id for seen in server.seen] == ["acc_bad", "acc_next"]

    run(main())


@pytest.mark.parametrize("name", COOKIES)
def test_a_cookie_does_not_come_back(name: str, session_to: Any) -> None:
    """The session does not send cookies of a server or gateway back."""

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(FAULTS[name])
                await meet(session, "acc_bad")
                await meet(session, "acc_next")

            assert [seen.header("Cookie") for seen in server.seen] == [None] * len(server.seen)

    run(main())


def test_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_to: Any
) -> None:
    """A proxy or a netrc that was meant for other programs would see the key, or replace it."""
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
                assert str(await meet(session, "acc_1")) == "value 1 -"

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
    "name", ["silence after the request", "a body that drips", "endless 1xx", "silent accept"]
)
def test_a_call_that_is_cancelled_leaves_no_connection_half_read(name: str, session_to: Any) -> None:
    """Otherwise the next call would get its response."""

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(FAULTS[name])
                call = asyncio.create_task(session.update_proxy("acc_bad", OWN))
                while not server.connections or (name != "silent accept" and not server.seen):
                    await asyncio.sleep(0)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                server.play(None)

                assert str(await meet(session, "acc_next")) == "value 1 -"
                assert server.connections == 2

    run(main())


def test_a_server_whose_clock_is_wrong_asks_for_the_same_wait(session_to: Any) -> None:
    """A Retry-After of 10 s ahead of the answer's own Date is 10 s, on both transports."""
    lines = b"Date: Sun, 06 Nov 1994 08:49:37 GMT", b"Retry-After: Sun, 06 Nov 1994 08:49:47 GMT"

    async def main() -> None:
        with FaultServer() as server:
            async with session_to(server) as session:
                server.play(body_of(b"", 429, *lines))
                met = await meet(session, "acc_bad")

        assert met.error is not None
        assert met.error.retry_after == 10.0

    run(main())


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file that a session is given."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def serving(certificate: trustme.LeafCert, *, at_most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if at_most is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = at_most
            context.set_ciphers("ALL:@SECLEVEL=0")
    return context


async def _no_common_version(wire: Wire) -> None:
    # asyncio's own server, where TLS 1.0 is all it has, ends the connection without this.
    await wire.reader.read(65536)
    await wire.send(bytes.fromhex("15 0301 0002 02 46"))
    wire.close()


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

TLS: dict[str, tuple[Callable[[trustme.CA], ssl.SSLContext], Fault | None, str]] = {
    "as it should be": (lambda ca: serving(ca.issue_cert("localhost")), None, "value 1 -"),
    "another host's": (lambda ca: serving(ca.issue_cert("other.example")), None, "TlsError 1 no"),
    "a parent domain's": (lambda ca: serving(ca.issue_cert("*.localhost")), None, "TlsError 1 no"),
    "of an authority nobody knows": (
        lambda ca: serving(trustme.CA().issue_cert("localhost")),
        None,
        "TlsError 1 no",
    ),
    "expired": (
        lambda ca: serving(
            ca.issue_cert("localhost", not_before=LONG_AGO, not_after=LONG_AGO + timedelta(days=1))
        ),
        None,
        "TlsError 1 no",
    ),
    "not valid yet": (
        lambda ca: serving(ca.issue_cert("localhost", not_before=datetime.now(UTC) + timedelta(days=1))),
        None,
        "TlsError 1 no",
    ),
    "TLS 1.0 alone": (
        lambda ca: serving(ca.issue_cert("localhost"), at_most=ssl.TLSVersion.TLSv1),
        None,
        "ConnectError 2 no",
    ),
    "TLS 1.1 alone": (
        lambda ca: serving(ca.issue_cert("localhost"), at_most=ssl.TLSVersion.TLSv1_1),
        None,
        "ConnectError 2 no",
    ),
    "an alert that there is no common version": (
        lambda ca: serving(ca.issue_cert("localhost")),
        Fault(before=_no_common_version),
        "TlsError 1 no",
    ),
    "a stalled handshake": (
        lambda ca: serving(ca.issue_cert("localhost")),
        CONNECTIONS["silent accept"],
        "AttemptTimeoutError 2 no",
    ),
    "plain HTTP": (
        lambda ca: serving(ca.issue_cert("localhost")),
        CONNECTIONS["another protocol's greeting"],
        "TlsError 1 no",
    ),
    "closed in the handshake": (
        lambda ca: serving(ca.issue_cert("localhost")),
        CONNECTIONS["closed before the request"],
        "ConnectError 2 no",
    ),
    "reset in the handshake": (
        lambda ca: serving(ca.issue_cert("localhost")),
        CONNECTIONS["reset before the request"],
        "ConnectError 2 no",
    ),
}


@pytest.mark.parametrize("name", TLS)
def test_a_connection_is_secure_or_is_not_used(
    name: str, authority: trustme.CA, trusted: str, session_to: Any
) -> None:
    """No byte of a request, and so no key, before the other side has shown who it is."""
    make, fault, expected = TLS[name]

    async def main() -> None:
        with FaultServer(make(authority)) as server:
            async with session_to(server, ssl=trusted) as session:
                server.play(fault)
                met = await meet(session, "acc_bad")
                assert str(met) == expected
                assert len(server.seen) == (met.outcome == "value")

                server.play(None)
                server.tls = serving(authority.issue_cert("localhost"))
                assert str(await meet(session, "acc_next")) == "value 1 -"

    run(main())


@pytest.mark.parametrize("name", ["an unasked answer while idle", "closed while idle"])
def test_an_idle_connection_over_tls_is_held_to_the_same(
    name: str, authority: trustme.CA, trusted: str, session_to: Any
) -> None:
    """Session tickets of TLS 1.3 are not taken for responses."""

    async def main() -> None:
        with FaultServer(serving(authority.issue_cert("localhost"))) as server:
            async with session_to(server, ssl=trusted) as session:
                server.play(FAULTS[name])
                assert str(await meet(session, "acc_bad")) == "value 1 -"
                server.play(None)
                server.push()
                wait_unread(session)
                after = await meet(session, "acc_next")

            assert after.outcome == "value"
            assert server.count()["acc_next"] == 1

    run(main())


def test_a_context_that_allows_old_tls_is_refused() -> None:
    """TLS 1.0 and 1.1 can be read on the way; nothing turns the minimum version off."""
    context = ssl.create_default_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1

    with pytest.raises(errors.ConfigurationError, match=r"TLS below 1\.2"):
        PostPressSession(KEY, ssl=context)


# --- Many at once ---------------------------------------------------------------------------------


def test_under_a_mixed_load_each_account_is_patched_after_its_own_faults(session_to: Any) -> None:
    """Nothing of one call is kept for another: 5,000 accounts, a third with a fault or two, 200 at once."""
    faults = [
        FAULTS["reset after the request"],
        FAULTS["closed in the body"],
        body_of(envelope("proxy_error", 502), 502),
        body_of(b"<html>", 503),
        body_of(b"", 429),
        FAULTS["closed in the status line"],
    ]
    accounts = [f"acc_{number}" for number in range(5000)]
    due = {account: number // 3 % 2 + 1 if number % 3 == 0 else 0 for number, account in enumerate(accounts)}
    policy = RetryPolicy(attempts=3, attempt_timeout=20.0, deadline=60.0, sleep=_at_once)

    async def main() -> list[AccountPatched]:
        with FaultServer() as server:
            for number, account in enumerate(accounts):
                if due[account]:
                    server.script(account, [faults[(number + n) % len(faults)] for n in range(due[account])])
            async with session_to(server, retry=policy, pace=Pace(in_flight=200, adaptive=False)) as session:
                done = await asyncio.gather(*(session.update_proxy(account, OWN) for account in accounts))
            assert server.count() == {account: due[account] + 1 for account in accounts}
            return done

    with asyncio.Runner(loop_factory=FACTORY) as runner:
        done = runner.run(main())
    assert [patched.account_id for patched in done] == accounts
    assert [len(patched.attempts) for patched in done] == [due[account] + 1 for account in accounts]


# --- Anything -------------------------------------------------------------------------------------

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
ANSWERS = (
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
def anyhow(session_to: Any) -> Iterator[Callable[[bytes], Met]]:
    """What comes of a call that is answered with these bytes and an end; one session for all."""
    with FaultServer() as server, asyncio.Runner(loop_factory=FACTORY) as runner:
        session = session_to(server, retry=RetryPolicy(attempts=1, attempt_timeout=1.0, deadline=1.0))

        async def ask(data: bytes) -> Met:
            async def play(wire: Wire) -> None:
                await wire.send(data)
                wire.close()

            server.play(Fault(instead=play))
            return await meet(session, "acc_bad")

        yield lambda data: runner.run(ask(data))
        runner.run(session.aclose())


@settings(max_examples=300)
@given(data=ANSWERS)
@example(data=b"")
@example(data=answer(200, patched("acc_bad")))
def test_any_bytes_are_a_value_or_an_error_of_ours(anyhow: Callable[[bytes], Met], data: bytes) -> None:
    """`meet` lets every other exception through, and takes no other account for this one."""
    met = anyhow(data)

    assert met.attempts == 1
    if met.outcome == "value":
        assert b'"acc_bad"' in data or b"acc_bad" in data
