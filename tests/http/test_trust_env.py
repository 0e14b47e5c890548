"""The options ``trust_env`` and ``allow_http``, and the base URL."""

import asyncio
import logging

import pytest

from postpress_async import ManagedProxy, PostPressSession, errors
from postpress_async._settings import read_base_url, target_of

US = ManagedProxy(country="US")


class HttpProxy(asyncio.Protocol):
    """An HTTP proxy that responds to each request itself, and adds the request line to *request_lines*."""

    def __init__(self, request_lines: list[bytes]) -> None:
        self.request_lines = request_lines

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.request_lines.append(data.split(b"\r\n", 1)[0])
        body = b'{"object":"AccountPatched","account_id":"acc_1"}'
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.mark.parametrize("trust_env", [True, False])
async def test_proxy_of_the_environment_is_used_only_with_trust_env(
    trust_env: bool, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    request_lines: list[bytes] = []
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: HttpProxy(request_lines), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        base_url = f"http://localhost:{unused_tcp_port}/v1"  # nothing listens there
        async with PostPressSession("pp_key", base_url=base_url, trust_env=trust_env) as session:
            results = await session.update_many({"acc_1": US}, deadline=0.5)

    assert results.ok is trust_env
    assert request_lines == ([f"PATCH {base_url}/accounts/acc_1 HTTP/1.1".encode()] if trust_env else [])


def test_trust_env_is_rejected_with_the_lean_transport() -> None:
    with pytest.raises(errors.ConfigurationError, match='trust_env requires transport="session"'):
        PostPressSession("pp_key", transport="lean", trust_env=True)


# --- allow_http ----------------------------------------------------------------------------------


def test_http_to_a_host_in_allow_http_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """For example, a mock of the API in a container network has a host name but no certificate."""
    with caplog.at_level(logging.WARNING, logger="postpress_async"):
        url = read_base_url("http://Mock:8080/v1", allow_http=("mock",))

    assert str(url) == "http://mock:8080/v1"
    assert caplog.messages == ["requests to mock are not encrypted: the API key can be read on the network"]
    assert target_of(url) == "http://mock:8080/v1"


@pytest.mark.parametrize("host", ["mock2", "mock.example.com", "example.com"])
def test_http_to_a_host_that_is_not_in_allow_http_is_rejected(host: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="is http, so the key could be read"):
        read_base_url(f"http://{host}/v1", allow_http=("mock",))


@pytest.mark.parametrize("host", ["mock:8080", "http://mock", "[::1]", "10.0.0.0/8", "*"])
def test_allow_http_rejects_entries_that_are_not_host_names(host: str) -> None:
    """They could never match."""
    with pytest.raises(
        errors.ConfigurationError, match="allow_http must be host names without scheme or port, got"
    ):
        read_base_url("http://mock:8080/v1", allow_http=(host,))


def test_allow_http_rejects_a_string() -> None:
    with pytest.raises(errors.ConfigurationError, match=r"write \('mock',\)"):
        read_base_url("http://mock/v1", allow_http="mock")


def test_https_and_loopback_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("https://api.example.com/v1", "http://127.0.0.1:8080/v1"):
        read_base_url(url, allow_http=("mock",))

    assert not caplog.messages


# --- The base URL --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        pytest.param("https://host.example:443/v1", "https://host.example/v1", id="https"),
        pytest.param("http://localhost:80/v1", "http://localhost/v1", id="http"),
    ],
)
def test_explicit_default_port_is_accepted_and_removed(url: str, normalized: str) -> None:
    assert str(read_base_url(url)) == normalized


def test_error_for_a_base_url_with_a_trailing_space_suggests_it_without_the_space() -> None:
    with pytest.raises(errors.ConfigurationError, match=r"write https://host\.example/v1 \(the default"):
        read_base_url("https://host.example/v1 ")
