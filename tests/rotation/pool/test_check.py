"""Checks of proxies: each failure is classified, and no result contains a secret."""

import asyncio
import errno
import socket
import ssl
import sys

import aiohappyeyeballs
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from postpress_async._cli.terminal import import_extra
from postpress_async.errors import ConfigurationError
from postpress_async.models import CustomProxy, ProxyProtocol
from postpress_async.rotation import PooledProxy
from postpress_async.rotation._pool import as_pooled
from postpress_async.rotation._pool._check import CheckedProxy, CheckResult, ProxyChecker
from tests.support.fake_proxies import (
    Handler,
    answer,
    closed_port,
    http_proxy,
    reset,
    serve,
    silent,
    socks_proxy,
    web_server,
)

SECRET = "hunter2"
CREDENTIALS = [("user", SECRET)]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def pooled(port: int, protocol: str | None = None, password: str | None = SECRET, **fields) -> PooledProxy:
    fields = {"host": "127.0.0.1", "username": "user" if password else None, **fields}
    return as_pooled(CustomProxy(port=port, protocol=protocol, password=password, **fields))


async def check(
    handler: Handler, protocol: str = "http", *, tls=None, password=SECRET, **settings
) -> CheckedProxy:
    """Check a proxy whose server is *handler*; the target accepts connections."""
    client = settings.pop("client_tls", None) or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with serve(silent) as target, serve(handler, tls) as port:
        settings = {"target": URL(f"http://127.0.0.1:{target}"), "deadline": 30.0, **settings}
        return await ProxyChecker(tls=client, **settings).check(pooled(port, protocol, password))


def finding(checked: CheckedProxy) -> tuple[CheckResult, str]:
    """The result and its detail, after a check that *checked* does not contain the password."""
    assert SECRET not in repr(checked)
    assert "aHVudGVyMg" not in repr(checked)  # in base64
    return checked.result, checked.detail


def test_error_without_python_socks_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    monkeypatch.delitem(sys.modules, "postpress_async.rotation._pool._check")

    with pytest.raises(ConfigurationError) as caught:
        import_extra("rotation._pool._check", "checking proxies", "check")
    assert str(caught.value) == "checking proxies requires python_socks: pip install 'postpress-async[check]'"


# --- Proxies that work ---


@pytest.mark.parametrize(
    ("protocol", "handler"),
    [
        pytest.param("http", http_proxy(CREDENTIALS), id="HTTP"),
        pytest.param("http", http_proxy(), id="HTTP without credentials"),
        pytest.param("socks5", socks_proxy(CREDENTIALS), id="SOCKS5"),
        pytest.param("socks5", socks_proxy(), id="SOCKS5 without credentials"),
    ],
)
async def test_proxy_that_connects_works_even_if_its_reply_arrives_in_pieces(protocol, handler) -> None:
    """The fake proxies send their replies byte by byte."""
    assert finding(await check(handler, protocol)) == ("works", "")


async def test_https_proxy_works(authority, client_tls) -> None:
    checked = await check(http_proxy(CREDENTIALS), "https", tls=server_tls(authority), client_tls=client_tls)

    assert finding(checked) == ("works", "")


async def test_protocol_of_the_checker_is_used_if_the_proxy_has_none() -> None:
    async with serve(silent) as target, serve(socks_proxy(CREDENTIALS)) as port:
        checker = ProxyChecker(target=URL(f"http://127.0.0.1:{target}"), protocol=ProxyProtocol.SOCKS5)

        assert (await checker.check(pooled(port))).result == "works"


async def test_password_is_sent_to_http_proxies_as_utf_8() -> None:
    credentials = [("user", "пароль")]

    assert finding(await check(http_proxy(credentials), password="пароль")) == ("works", "")


# --- Proxies that do not work ---

CLOSED = "the connection was closed: no response to the request for a connection"
NOT_HTTP = "the server does not respond like an HTTP proxy"

HTTP_FAILURES = {
    "wrong password": (http_proxy([("user", "other")]), "wrong-credentials", "HTTP 407"),
    "reset": (reset, "reset", CLOSED),
    "closed": (answer(b""), "reset", CLOSED),
    "half a response": (answer(b"HTTP/1.1 200 OK\r\n"), "reset", CLOSED),
    "no such page": (web_server("404 Not Found"), "not-a-proxy", f"{NOT_HTTP} (HTTP 404)"),
    "no CONNECT": (web_server("501 Not Implemented"), "not-a-proxy", f"{NOT_HTTP} (HTTP 501)"),
    "redirect": (web_server("301 Moved"), "not-a-proxy", f"{NOT_HTTP} (HTTP 301)"),
    "page": (web_server("200 OK"), "not-a-proxy", NOT_HTTP),
    "SSH": (answer(b"SSH-2.0-OpenSSH_9.2\r\n", close=False), "not-a-proxy", NOT_HTTP),
    "number in a banner": (answer(b"FTP 200 ready\r\n\r\n", close=False), "not-a-proxy", NOT_HTTP),
    "endless head": (answer(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000), "not-a-proxy", NOT_HTTP),
    "forbidden": (web_server("403 Forbidden"), "target-refused", "no connection to 127.0.0.1: HTTP 403"),
    "bad gateway": (web_server("502 Bad Gateway"), "target-refused", "no connection to 127.0.0.1: HTTP 502"),
}


@pytest.mark.parametrize(("handler", "result", "detail"), HTTP_FAILURES.values(), ids=HTTP_FAILURES)
async def test_failure_of_an_http_proxy_is_classified(handler, result, detail) -> None:
    assert finding(await check(handler)) == (result, detail)


SOCKS_FAILURES = {
    "wrong password": (socks_proxy([("user", "other")]), "wrong-credentials"),
    "reset": (reset, "reset"),
    "closed in the middle": (answer(b"\x05"), "reset"),
    "closed after the password": (answer(b"\x05\x02", b""), "reset"),
    "HTTP": (web_server("400 Bad Request"), "not-a-proxy"),
    "SOCKS4": (answer(b"\x00\x5b\x00\x00\x00\x00\x00\x00"), "not-a-proxy"),
    "target is unreachable": (answer(b"\x05\x00", b"\x05\x04\x00\x01"), "target-refused"),
    "target is not allowed": (answer(b"\x05\x00", b"\x05\x02\x00\x01"), "target-refused"),
}


@pytest.mark.parametrize(("handler", "result"), SOCKS_FAILURES.values(), ids=SOCKS_FAILURES)
async def test_failure_of_a_socks_proxy_is_classified(handler, result) -> None:
    assert finding(await check(handler, "socks5"))[0] == result


async def test_missing_credentials_for_a_socks_proxy_have_the_result_wrong_credentials() -> None:
    checked = await check(socks_proxy(CREDENTIALS), "socks5", password=None)

    assert finding(checked) == ("wrong-credentials", "the proxy did not accept the credentials")


async def test_password_that_socks_cannot_transmit_is_reported_without_it() -> None:
    """The error of python-socks contains the password."""
    checked = await check(socks_proxy(CREDENTIALS), "socks5", password=f"{SECRET}é")

    assert finding(checked) == ("wrong-credentials", "socks5 cannot transmit this user name or password")


async def test_closed_port_is_refused() -> None:
    checked = await ProxyChecker(target=URL("http://127.0.0.1:1")).check(pooled(closed_port()))

    assert finding(checked) == ("refused", "Connection refused")


def raiser(error: Exception):
    """A coroutine function that raises *error*."""

    async def raise_error(*_: object, **__: object) -> None:
        raise error

    return raise_error


async def check_named_host() -> CheckedProxy:
    return await ProxyChecker(target=URL("http://127.0.0.1:1")).check(pooled(80, host="p.example.net"))


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "the host name was not resolved"),
    ],
    ids=["unknown", "not a name"],
)
async def test_host_name_that_cannot_be_resolved_is_not_found(monkeypatch, error, detail) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", raiser(error), raising=False)

    assert finding(await check_named_host()) == ("name-not-found", detail)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (OSError(errno.ENETUNREACH, SECRET), "Network is unreachable"),
        (OSError(f"Multiple exceptions: {SECRET}"), "no address of the host can be reached"),
    ],
    ids=["no route", "several addresses"],
)
async def test_host_without_a_route_is_unreachable(monkeypatch, error, detail) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_addresses, raising=False)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", raiser(error))

    assert finding(await check_named_host()) == ("unreachable", detail)


async def no_addresses(*_: object, **__: object) -> list[object]:
    return []


@pytest.mark.parametrize("limit", [errno.EMFILE, errno.ENFILE], ids=["process", "system"])
async def test_lack_of_file_descriptors_is_an_error_and_not_a_result(monkeypatch, limit) -> None:
    """As a result, it would make every proxy seem dead."""
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_addresses, raising=False)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", raiser(OSError(limit, "")))
    checker = ProxyChecker(target=URL("http://127.0.0.1:1"))

    with pytest.raises(OSError, match=rf"\[Errno {limit}\]"):
        await checker.check_all([pooled(80), pooled(81)], 2, lambda checked: pytest.fail(f"{checked}"))


async def test_timeout_of_the_operating_system_is_not_called_the_deadline(monkeypatch) -> None:
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", raiser(OSError(errno.ETIMEDOUT, "")))
    checker = ProxyChecker(target=URL("http://127.0.0.1:1"), deadline=600.0)

    checked = await checker.check(pooled(80))

    assert finding(checked) == ("timed-out", "Connection timed out")


async def test_result_of_a_timeout_names_the_stage() -> None:
    """The checks run at the same time, because each takes its whole deadline."""
    accepts_credentials = answer(b"\x05\x02", b"\x01\x00", close=False)
    async with serve(silent) as port, serve(accepts_credentials) as accepting, serve(silent) as target:
        checker = ProxyChecker(target=URL(f"http://127.0.0.1:{target}"), deadline=0.5)
        proxies = [(port, "http"), (port, "socks5"), (port, "https"), (accepting, "socks5")]
        checks = await asyncio.gather(*(checker.check(pooled(*proxy)) for proxy in proxies))
        found = [finding(checked) for checked in checks]

    no_response = ("timed-out", "no response to the request for a connection within 0.5 s")
    no_tls = ("tls-failed", "the TLS handshake was not completed within 0.5 s")
    assert found == [no_response, no_response, no_tls, no_response]


async def test_certificate_of_an_unknown_authority_is_refused(authority) -> None:
    checked = await check(http_proxy(CREDENTIALS), "https", tls=server_tls(authority))

    assert finding(checked) == ("tls-failed", "unable to get local issuer certificate")


async def test_certificate_of_another_host_is_refused(authority, client_tls) -> None:
    tls = server_tls(authority, "other.example")
    result, detail = finding(await check(http_proxy(CREDENTIALS), "https", tls=tls, client_tls=client_tls))

    assert result == "tls-failed"
    assert detail.startswith("IP address mismatch")


async def test_https_proxy_that_does_not_speak_tls_has_the_result_tls_failed() -> None:
    result, detail = finding(await check(web_server("400 Bad Request"), "https"))

    assert (result, detail) == ("tls-failed", "wrong version number")


async def test_https_proxy_that_closes_the_connection_during_the_tls_handshake_is_reset() -> None:
    checked = await check(reset, "https")

    assert finding(checked) == ("reset", "the connection was closed: the TLS handshake was not completed")


async def test_template_is_not_checked() -> None:
    """Its user name depends on the account."""
    proxy = pooled(closed_port(), username="customer-{account_id}-s{try}")
    checked = await ProxyChecker(target=URL("http://127.0.0.1:1")).check(proxy)

    assert (checked.result, checked.is_failure) == ("not-checked", False)


REPLIES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.1 200 ", b"HTTP/1.1 407\r\n\r\n", b"\r\n\r\n", b"\x05\x02"]),
        st.sampled_from([b"\x05\x00", b"\x05\x00\x00\x03\x02\xff\xff\x00\x50", b"\x01\x00"]),
    ),
    max_size=4,
)


@given(replies=REPLIES, protocol=st.sampled_from(["http", "socks5"]))
def test_any_response_has_a_result_without_the_password(replies, protocol) -> None:
    async def main() -> None:
        result, detail = finding(await check(answer(b"".join(replies)), protocol))

        assert (result == "works") == (detail == "")

    asyncio.run(main())


# --- The exit address ---


def echo(text: str, status: str = "200 OK") -> Handler:
    """A service that responds with *text* to the expected request."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /ip?key=1 HTTP/1.1\r\nHost: 127.0.0.1:")
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        writer.write(f"{len(text):x}\r\n{text}\r\n0\r\n\r\n".encode())

    return handle


async def check_with_echo(
    service: Handler, protocol: str = "http", *, scheme="http", service_tls=None, tls=None, client=None
):
    """Check a proxy with the echo URL of *service*."""
    handler = socks_proxy(CREDENTIALS) if protocol == "socks5" else http_proxy(CREDENTIALS)
    async with serve(service, service_tls) as port, serve(handler, tls) as proxy:
        url = URL(f"{scheme}://127.0.0.1:{port}/ip?key=1")
        client = client or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        checker = ProxyChecker(target=url, echo=True, deadline=30.0, tls=client)
        return await checker.check(pooled(proxy, protocol))


@pytest.mark.parametrize("protocol", ["http", "https", "socks5"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_exit_address_is_read(protocol, scheme, authority, client_tls) -> None:
    tls = server_tls(authority)
    checked = await check_with_echo(
        echo("203.0.113.7\n"),
        protocol,
        scheme=scheme,
        service_tls=tls if scheme == "https" else None,
        tls=tls if protocol == "https" else None,
        client=client_tls,
    )

    assert finding(checked) == ("works", "")
    assert checked.exit_address == "203.0.113.7"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('{"ip": "203.0.113.7"}', "203.0.113.7"),
        ('{"origin":"2001:DB8::7"}', "2001:db8::7"),
        ("<p>203.0.113.7</p>", "203.0.113.7"),
    ],
)
async def test_exit_address_is_found_in_json_and_html(text, address) -> None:
    assert (await check_with_echo(echo(text))).exit_address == address


@pytest.mark.parametrize(
    ("service", "detail"),
    [
        pytest.param(
            echo(SECRET),
            "the response of the echo URL contains no IP address",
            id="no address in the response",
        ),
        pytest.param(
            echo("203.0.113.7", "500 Oops"), "the echo URL does not respond with HTTP 200", id="status 500"
        ),
        pytest.param(answer(b""), "the echo URL does not respond with HTTP 200", id="closed"),
    ],
)
async def test_echo_url_whose_response_has_no_address_is_a_failure(service, detail) -> None:
    checked = await check_with_echo(service)

    assert finding(checked) == ("echo-failed", detail)
    assert checked.exit_address is None


async def test_certificate_of_the_echo_url_is_checked(authority) -> None:
    """Otherwise a proxy could respond in place of the echo URL."""
    checked = await check_with_echo(echo("203.0.113.7"), scheme="https", service_tls=server_tls(authority))

    assert finding(checked) == ("echo-failed", "unable to get local issuer certificate")


# --- Checking several proxies ---


async def test_checks_run_at_the_same_time_up_to_the_limit() -> None:
    """The server responds only after as many connections as the limit have been opened."""
    limit_reached, peak, connected = asyncio.Event(), 0, 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal peak, connected
        connected += 1
        peak = max(peak, connected)
        if connected == 3:
            limit_reached.set()
        await limit_reached.wait()
        await reader.readuntil(b"\r\n\r\n")
        connected -= 1
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    results: list[CheckedProxy] = []
    async with serve(handle) as port:
        checker = ProxyChecker(target=URL("http://127.0.0.1:1"), deadline=30.0)
        proxies = [pooled(port, username=f"user{number}") for number in range(10)]
        await checker.check_all(proxies, 3, results.append)

    assert peak == 3
    assert {checked.proxy for checked in results} == {proxy.label for proxy in proxies}
    assert {checked.result for checked in results} == {"works"}
