"""Invalid or unsafe API keys, base URLs and certificates are rejected when the session is created."""

import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async._settings import BASE_URL, make_tls, read_api_key, read_base_url
from postpress_async.errors import ConfigurationError
from postpress_async.secret import Secret

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUPwvbCfp0S0/AYJailsZ5zT92dO4wCgYIKoZIzj0EAwIw
IjEgMB4GA1UEAwwXVGVzdCBvZiBwb3N0cHJlc3MtYXN5bmMwIBcNMjYxMTIzMDU0
ODIwWhgPMjEyNjEwMzAwNTQ4MjBaMCIxIDAeBgNVBAMMF1Rlc3Qgb2YgcG9zdHBy
ZXNzLWFzeW5jMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEdf7LY6LNP3ieZswJ
q7raWUVvfy3571nKDKjMBNGFB+jt5QhVc1b5ExtCnW8FAtuxIBReLLcpP9SLfkB/
yCDe0aNTMFEwHQYDVR0OBBYEFJHtNWgJ38VGm7xxpi/uW1XsYqZaMB8GA1UdIwQY
MBaAFJHtNWgJ38VGm7xxpi/uW1XsYqZaMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZI
zj0EAwIDSAAwRQIhALDUEYHNRAwV//mypJ4tXIT06vJ7G8NV7Fr1/COLRVwSAiA7
q7CnI7mPx5ImCoZ5JtBcoJzvM9RksPRFgyhTcSBxlA==
-----END CERTIFICATE-----
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without settings, so that a test can add its own."""
    monkeypatch.delenv("POSTPRESS_API_KEY", raising=False)
    monkeypatch.delenv("POSTPRESS_BASE_URL", raising=False)
    return monkeypatch


# --- Keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("api_key", ["pp_live_1", Secret("pp_live_1")], ids=["text", "secret"])
def test_key_argument_overrides_the_environment(
    api_key: str | Secret, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("POSTPRESS_API_KEY", "pp_live_2")

    assert read_api_key(api_key) == Secret("pp_live_1")


def test_key_is_read_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("POSTPRESS_API_KEY", "pp_live_2")

    assert read_api_key(None) == Secret("pp_live_2")


@pytest.mark.parametrize("api_key", [None, "", Secret("")], ids=["None", "empty", "empty secret"])
@pytest.mark.parametrize("variable", [None, ""], ids=["variable not set", "variable empty"])
def test_missing_api_key_is_rejected(
    api_key: str | Secret | None, variable: str | None, environment: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        environment.setenv("POSTPRESS_API_KEY", variable)

    with pytest.raises(ConfigurationError, match="POSTPRESS_API_KEY"):
        read_api_key(api_key)


@pytest.mark.parametrize("api_key", ["", Secret("")], ids=["empty", "empty secret"])
def test_empty_key_argument_is_not_replaced_by_the_key_in_the_environment(
    api_key: str | Secret, environment: pytest.MonkeyPatch
) -> None:
    """The caller meant another key, which may belong to another workspace."""
    environment.setenv("POSTPRESS_API_KEY", "pp_live_2")

    with pytest.raises(ConfigurationError):
        read_api_key(api_key)


@pytest.mark.parametrize(
    "form",
    [
        "{}\n",
        "{}\r\nX-Evil: 1",
        " {}",
        "{} ",
        "a{}\tb",
        "{}é",
        "{}\x00",
        "{}\x7f",
        "{}\u200b",
        "“{}”",
        "{}\ud800",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("kind", [str, Secret], ids=["text", "secret"])
def test_key_that_cannot_be_a_header_is_rejected(form: str, kind: Any) -> None:
    """A line break would inject a header. Spaces and curly quotes are copied along by accident."""
    with pytest.raises(ConfigurationError, match="copy it again") as caught:
        read_api_key(kind(form.format("hunter2")))

    assert "hunter2" not in repr(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize("api_key", [b"hunter2", 42, ["hunter2"]], ids=lambda key: type(key).__name__)
def test_key_of_another_type_is_rejected_and_not_shown(api_key: Any) -> None:
    """The value may contain the key."""
    with pytest.raises(ConfigurationError, match=type(api_key).__name__) as caught:
        read_api_key(api_key)

    assert "hunter2" not in repr(caught.value)


# --- Base URLs -----------------------------------------------------------------------------------


def test_default_base_url_is_the_postpress_api() -> None:
    assert str(read_base_url(None)) == BASE_URL == "https://api.postpress.ai/v1"


def test_base_url_is_the_argument_or_the_variable_or_the_default(environment: pytest.MonkeyPatch) -> None:
    """An empty variable counts as not set."""
    environment.setenv("POSTPRESS_BASE_URL", "https://eu.example.com/v1")
    assert str(read_base_url(None)) == "https://eu.example.com/v1"
    assert str(read_base_url("https://us.example.com/v1")) == "https://us.example.com/v1"

    environment.setenv("POSTPRESS_BASE_URL", "")
    assert str(read_base_url(None)) == BASE_URL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("https://example.com/v1", "https://example.com/v1", id="no final slash"),
        pytest.param("https://example.com/v1/", "https://example.com/v1", id="slash at the end"),
        pytest.param("https://example.com/v1//", "https://example.com/v1", id="slashes at the end"),
        pytest.param("https://example.com", "https://example.com", id="no path"),
        pytest.param("https://example.com/", "https://example.com", id="a slash alone"),
        pytest.param("HTTPS://Example.COM/v1", "https://example.com/v1", id="upper case"),
        pytest.param("https://example.com:8443/v1", "https://example.com:8443/v1", id="port"),
        pytest.param("https://example.com:443/v1", "https://example.com/v1", id="default port"),
        pytest.param("https://Example.com:443", "https://example.com", id="default port, no path"),
        pytest.param("http://localhost:80/v1", "http://localhost/v1", id="default port of http"),
        pytest.param("https://203.0.113.42/v1", "https://203.0.113.42/v1", id="address"),
        pytest.param(
            "https://xn--bcher-kva.example/v1", "https://xn--bcher-kva.example/v1", id="international"
        ),
        pytest.param("https://[2001:db8::1]:8443/v1", "https://[2001:db8::1]:8443/v1", id="IPv6"),
        pytest.param("https://example.com/a%2Fb/v1/", "https://example.com/a%2Fb/v1", id="escaped path"),
        pytest.param(
            "https://example.com/v1?port=8080", "https://example.com/v1?port=8080", id="port in the query"
        ),
        pytest.param(
            "https://example.com/v1/?port=8080",
            "https://example.com/v1?port=8080",
            id="slash before the query",
        ),
    ],
)
def test_base_url_is_normalized_and_has_no_final_slash(text: str, expected: str) -> None:
    assert str(read_base_url(text)) == expected


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "127.255.255.255", "[::1]", "[0:0:0:0:0:0:0:1]"],
)
@pytest.mark.parametrize("port", ["", ":8080"], ids=["no port", "port"])
def test_http_to_this_machine_is_accepted(host: str, port: str) -> None:
    """The sandbox has no certificate, and its requests do not leave the machine."""
    assert read_base_url(f"http://{host}{port}/v1").scheme == "http"


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("api.postpress.ai", id="the API itself"),
        pytest.param("0.0.0.0", id="every address of this machine"),
        pytest.param("192.168.1.10", id="a machine of the local network"),
        pytest.param("128.0.0.1", id="the first address after the loopback network"),
        pytest.param("[::]", id="every IPv6 address of this machine"),
        pytest.param("[::2]", id="the first address after the IPv6 loopback"),
        pytest.param("localhost.example.com", id="a name that begins with localhost"),
        pytest.param("example.localhost.com", id="a name that contains localhost"),
        pytest.param("127.0.0.1.example.com", id="a name that begins with a loopback address"),
        pytest.param("127.0.0.1@example.com", id="a loopback address as the user name"),
        pytest.param("localhost:80@example.com", id="localhost as the user name"),
        pytest.param("localhost%2eexample.com", id="an escaped dot"),
        pytest.param("2130706433", id="an address as one number"),
        pytest.param("127.1", id="a short address"),
        pytest.param("0177.0.0.1", id="an octal address"),
    ],
)
def test_http_to_another_machine_is_rejected(host: str) -> None:
    """Anyone on the network path could read the API key."""
    with pytest.raises(ConfigurationError, match="http"):
        read_base_url(f"http://{host}/v1")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="empty"),
        pytest.param("api.postpress.ai/v1", id="no scheme"),
        pytest.param("//api.postpress.ai/v1", id="scheme left out"),
        pytest.param("/v1", id="a path alone"),
        pytest.param("https://", id="no host"),
        pytest.param("https:///v1", id="no host, a path"),
        pytest.param("https:api.postpress.ai", id="no slashes"),
        pytest.param("ftp://example.com", id="another scheme"),
        pytest.param("file:///etc/passwd", id="a file"),
        pytest.param("javascript:alert(1)", id="a script"),
        pytest.param("https://example.com:99999/v1", id="port too high"),
        pytest.param("https://example.com:port/v1", id="port that is not a number"),
        pytest.param("https://[::1/v1", id="bracket not closed"),
        pytest.param("https://exa mple.com/v1", id="space in the host"),
        pytest.param("https://example.com\x00/v1", id="null character in the host"),
        pytest.param("https://@example.com/v1", id="an empty user name"),
        pytest.param("https://a..b/v1", id="an empty label"),
        pytest.param("https://.../v1", id="dots alone"),
        pytest.param(f"https://{'a' * 64}.example/v1", id="a label of 64"),
        pytest.param("https://-a.example/v1", id="a label that begins with a hyphen"),
        pytest.param("https://999.1.1.1/v1", id="an invalid address"),
        pytest.param("https://[]@example.com", id="empty brackets"),
        pytest.param("https://example.com/v1?", id="an empty query"),
        pytest.param("https://example.com/v1#", id="an empty fragment"),
        pytest.param("https://bücher.example/v1", id="a host that is not ASCII"),
        pytest.param("https://example.com/v1/é", id="a path that is not ASCII"),
        pytest.param("https://example.com/v1\n", id="line break at the end"),
        pytest.param(" https://example.com/v1", id="space before"),
        pytest.param("https://exa\tmple.com/v1", id="a tab that would be dropped"),
        pytest.param("https://example.com/v1/../admin", id="dots in the path"),
        pytest.param("https://example.com/%7Eme", id="an escape that would be undone"),
        pytest.param("https://example.com/a%zz", id="an invalid escape"),
        pytest.param("https://user@example.com/v1", id="user name"),
        pytest.param("https://user:hunter2@example.com/v1", id="user name and password"),
        pytest.param("https://:hunter2@example.com/v1", id="password"),
        pytest.param("https://example.com/v1#part", id="fragment"),
        pytest.param("https://example.com/v1?x=1", id="another query"),
        pytest.param("https://example.com/v1?port=8080&x=1", id="port and another query"),
        pytest.param("https://example.com/v1?port=80&port=81", id="two ports"),
        pytest.param("https://example.com/v1?port=", id="empty port"),
        pytest.param("https://example.com/v1?port", id="port without a value"),
        pytest.param("https://example.com/v1?port=http", id="port that is not a number in the query"),
        pytest.param("https://example.com/v1?port=-1", id="negative port in the query"),
        pytest.param("https://example.com/v1?port=٨٠", id="port in digits that are not ASCII"),
        pytest.param("https://example.com/v1?port=0", id="port 0 in the query"),
        pytest.param("https://example.com/v1?port=65536", id="port too high in the query"),
        pytest.param("https://example.com/v1?Port=80", id="port in upper case"),
        pytest.param(b"https://example.com/v1", id="bytes"),
        pytest.param(42, id="number"),
    ],
)
def test_invalid_base_url_is_rejected_and_its_password_is_not_shown(url: Any) -> None:
    """The message shows a valid base URL."""
    with pytest.raises(ConfigurationError, match=re.escape(BASE_URL)) as caught:
        read_base_url(url)

    assert "hunter2" not in repr(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param(
            "api.example.com/v1",
            "the base URL is not an https:// address; write https://HOST[:PORT][/PATH], such as "
            "https://api.postpress.ai/v1",
            id="no scheme",
        ),
        pytest.param(
            "http://api.example.com/v1",
            "the base URL is http, so the key could be read on the network; "
            "write https://HOST[:PORT][/PATH], such as https://api.postpress.ai/v1, "
            'or pass allow_http=("api.example.com",) for a test server',
            id="http",
        ),
        pytest.param(
            "https://bücher.example/a b",
            "the base URL is not in its normalized form; "
            "write https://xn--bcher-kva.example/a%20b (the default is https://api.postpress.ai/v1)",
            id="not ASCII",
        ),
        pytest.param(
            "https://example.com:0443/v1",
            "the base URL is not in its normalized form; write https://example.com/v1 (the default is "
            "https://api.postpress.ai/v1)",
            id="a port with a leading zero",
        ),
    ],
)
def test_message_about_a_base_url_says_what_is_wrong_and_what_to_write(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_base_url(url)

    assert str(caught.value) == message


@given(text=st.text() | st.text("htps:/[]@?#%.127localhost&=").map("http://{}".format))
def test_any_text_is_a_base_url_or_raises_configuration_error(text: str) -> None:
    try:
        url = read_base_url(text)
    except ConfigurationError:
        return

    assert url.scheme in {"https", "http"}
    assert url.host
    assert not url.raw_path.endswith("/") or url.raw_path == "/"


# --- Certificates --------------------------------------------------------------------------------


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """A file with one certificate."""
    path = tmp_path / "ca.pem"
    path.write_text(CERTIFICATE, "ascii")
    return path


def test_certificates_are_checked_by_default() -> None:
    """Otherwise anyone on the network path could read the API key."""
    context = make_tls(None)

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
def test_only_the_certificates_of_a_pem_file_are_trusted(kind: Any, pem: Path) -> None:
    context = make_tls(kind(pem))

    assert len(context.get_ca_certs()) == 1
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_context_that_checks_certificates_is_used_unchanged() -> None:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # some systems allow older versions by default

    assert make_tls(context) is context


def unchecked_name() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    return context


def optional_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(ssl._create_unverified_context, id="checks nothing"),
        pytest.param(unchecked_name, id="accepts any host name"),
        pytest.param(optional_certificate, id="accepts a server without a certificate"),
        pytest.param(lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), id="is for servers"),
    ],
)
def test_context_that_does_not_check_certificates_is_rejected(make: Any) -> None:
    """Anyone on the network path could read the API key."""
    with pytest.raises(ConfigurationError, match="does not check certificates"):
        make_tls(make())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("missing.pem", None, id="no file"),
        pytest.param(".", None, id="a directory"),
        pytest.param("empty.pem", b"", id="an empty file"),
        pytest.param("text.pem", b"hello\n", id="a file without certificates"),
        pytest.param("binary.pem", bytes(range(256)), id="a binary file"),
        pytest.param("cut.pem", CERTIFICATE[:200].encode(), id="a certificate cut short"),
    ],
)
def test_error_about_unreadable_certificates_names_the_file(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        make_tls(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [False, True], ids=str)
def test_ssl_must_not_be_a_bool(value: Any) -> None:
    """In aiohttp, ``ssl=False`` turns verification off."""
    with pytest.raises(ConfigurationError, match="ssl must be a context or the path of a PEM file"):
        make_tls(value)
