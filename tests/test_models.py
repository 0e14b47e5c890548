"""An invalid value cannot be built, and no error shows a password."""

import copy
import string
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from itertools import product
from typing import Any

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from postpress_async._fields import check_account_id
from postpress_async.models import (
    AccountPatched,
    Attempt,
    CustomProxy,
    FieldError,
    ManagedProxy,
    ProxyProtocol,
)
from postpress_async.secret import Secret

FULL = CustomProxy(host="proxy.example.com", port=8080, protocol="socks5", username="u", password="hunter2")
LONGEST_HOST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])  # 253 characters
IPV6 = ["::", "::1", "2001:db8::1", "2001:DB8:0:0:0:0:0:1", "::ffff:203.0.113.42", "fe80::1"]


class Ports(IntEnum):
    """An enumeration whose members are ints, as settings libraries use it."""

    PROXY = 8080


class OddInt(int):
    """An int with its own text form."""

    def __str__(self) -> str:
        return "hunter2"


def error_of(make: Callable[[], object]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        make()
    return caught.value


def error_or_none(make: Callable[[], object]) -> FieldError | None:
    """The error, or None if the call succeeds; any other exception fails the test."""
    try:
        make()
    except FieldError as error:
        return error
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error*, its causes and its contexts, all of which a traceback prints."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def all_text(error: BaseException) -> str:
    """Everything that a log could show of the error and its chain."""
    return "\n".join(
        f"{link}\n{link!r}\n{link.args}\n{getattr(link, '__notes__', '')}\n{vars(link)}"
        for link in chain(error)
    )


# --- Hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("proxy.example.com", id="name"),
        pytest.param("localhost", id="one label"),
        pytest.param("a", id="one letter"),
        pytest.param("PROXY.Example.COM", id="upper case"),
        pytest.param("my_proxy.example.com", id="underscore"),
        pytest.param("_.example.com", id="nothing but an underscore"),
        pytest.param("proxy-1.example.com", id="hyphen"),
        pytest.param("xn--bcher-kva.example", id="international, encoded"),
        pytest.param("proxy.example.com.", id="trailing dot"),
        pytest.param("123.example.com", id="label of digits"),
        pytest.param("1.2.3.4.example", id="name with an address as prefix"),
        pytest.param("3com", id="first character a digit"),
        pytest.param("a" * 63 + ".example.com", id="label of 63 characters"),
        pytest.param(LONGEST_HOST, id="253 characters"),
        pytest.param(LONGEST_HOST + ".", id="253 characters and the dot of the root"),
        pytest.param("203.0.113.42", id="IPv4"),
        pytest.param("0.0.0.0", id="lowest IPv4"),
        pytest.param("255.255.255.255", id="highest IPv4"),
        *(pytest.param(host, id=f"IPv6 {host}") for host in IPV6),
    ],
)
def test_a_valid_host_is_kept_unchanged(host: str) -> None:
    """The API receives exactly what the fleet file says."""
    assert CustomProxy(host=host, port=8080).host == host


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        pytest.param("", "host missing", id="empty"),
        pytest.param(None, "host not text", id="none"),
        pytest.param(b"proxy.example.com", "host not text", id="bytes"),
        pytest.param(3232235777, "host not text", id="number"),
        pytest.param("http://proxy.example.com", "host has a scheme", id="scheme"),
        pytest.param("socks5://u:p@proxy.example.com:1080", "host has a scheme", id="whole URL"),
        pytest.param("://", "host has a scheme", id="scheme separator"),
        pytest.param("proxy.example.com:8080", "host has a port", id="port"),
        pytest.param("203.0.113.42:8080", "host has a port", id="port after IPv4"),
        pytest.param("[::1]:8080", "host has a port", id="port after IPv6 in brackets"),
        pytest.param("[::1]", "host has brackets", id="IPv6 in brackets"),
        pytest.param("fe80::1%eth0", "host has a zone", id="zone"),
        pytest.param("fe80::1%25eth0", "host has a zone", id="encoded zone"),
        pytest.param(" proxy.example.com", "host has a space", id="space before"),
        pytest.param("proxy.example.com ", "host has a space", id="space after"),
        pytest.param("proxy example.com", "host has a space", id="space within"),
        pytest.param("proxy.example.com\n", "host has a space", id="line break after"),
        pytest.param("203.0.113.42\n", "host has a space", id="line break after IPv4"),
        pytest.param("::1\n", "host has a space", id="line break after IPv6"),
        pytest.param("proxy\u00a0example.com", "host has a space", id="no-break space"),
        pytest.param("proxy\texample.com", "host has a space", id="tab"),
        pytest.param("proxy\x00.example.com", "host not a host name", id="null character"),
        pytest.param("proxy\u200b.example.com", "host not a host name", id="zero-width space"),
        pytest.param("bücher.example", "host not a host name", id="international, not encoded"),
        pytest.param("рroxy.example.com", "host not a host name", id="Cyrillic letter that looks Latin"),
        pytest.param("proxy。example。com", "host not a host name", id="ideographic full stop"),
        pytest.param("\ud800.example.com", "host not a host name", id="lone surrogate"),
        pytest.param(LONGEST_HOST + "d", "host not a host name", id="254 characters"),
        pytest.param("a" * 64 + ".example.com", "host not a host name", id="label of 64 characters"),
        pytest.param("proxy..example.com", "host not a host name", id="empty label within"),
        pytest.param(".example.com", "host not a host name", id="empty first label"),
        pytest.param("example.com..", "host not a host name", id="two trailing dots"),
        pytest.param(".", "host not a host name", id="a dot alone"),
        pytest.param("-proxy.example.com", "host not a host name", id="hyphen first"),
        pytest.param("proxy-.example.com", "host not a host name", id="hyphen last"),
        pytest.param("proxy.example.com/path", "host not a host name", id="path"),
        pytest.param("user@proxy.example.com", "host not a host name", id="user name"),
        pytest.param("proxy.example.com?x", "host not a host name", id="query"),
        pytest.param("*.example.com", "host not a host name", id="wildcard"),
        pytest.param("[proxy.example.com]", "host not a host name", id="name in brackets"),
        pytest.param("12345", "host not an IPv4 address", id="nothing but digits"),
        pytest.param("proxy.123", "host not an IPv4 address", id="last label of digits"),
        pytest.param("256.0.0.1", "host not an IPv4 address", id="number over 255"),
        pytest.param("1.2.3", "host not an IPv4 address", id="three numbers"),
        pytest.param("1.2.3.4.5", "host not an IPv4 address", id="five numbers"),
        pytest.param("203.0.113.042", "host not an IPv4 address", id="leading zero, octal to some"),
        pytest.param("0x7f.0.0.1", "host not an IPv4 address", id="hexadecimal, as inet_aton reads it"),
        pytest.param("٢٠٣.0.113.٤٢", "host not an IPv4 address", id="digits that are not ASCII"),
    ],
)
def test_an_invalid_host_is_rejected(host: Any, reason: str) -> None:
    """A mistake in a fleet is found before anything is sent, and the reason names the mistake."""
    error = error_of(lambda: CustomProxy(host=host, port=8080))

    assert (error.field, error.reason) == ("host", reason)
    assert str(error) == f"{reason}: {error.advice}"
    assert error.advice


@pytest.mark.parametrize("host", ["::1::", "1:2:3:4:5:6:7:8:9", "12345::", "g::1", ":", "::1/64", "::1.2.3"])
def test_a_host_with_colons_that_is_no_ipv6_address_is_rejected(host: str) -> None:
    """A colon may separate a port or belong to an address, so anything ambiguous is an error."""
    assert error_of(lambda: CustomProxy(host=host, port=8080)).field == "host"


@given(host=st.text(st.characters() | st.sampled_from(".:[]%-_ 0189afAF"), max_size=40))
def test_an_accepted_host_has_only_safe_characters(host: str) -> None:
    """Any text is either rejected with a FieldError or means the same in a URL."""
    error = error_or_none(lambda: CustomProxy(host=host, port=8080))

    if error is None:
        assert set(host) <= set(string.ascii_letters + string.digits + "-._:")
    else:
        assert error.field == "host"


# --- Ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [1, 80, 8080, 65535])
def test_a_port_from_1_to_65535_is_accepted(port: int) -> None:
    assert CustomProxy(host="h", port=port).port == port


@pytest.mark.parametrize(
    "port", [0, -1, 65536, -(10**30), 10**30, 10**5000], ids="0 -1 65536 low high huge".split()
)
def test_a_port_out_of_range_is_rejected(port: int) -> None:
    """10**5000 has more digits than Python converts to text, but must not raise another exception."""
    error = error_of(lambda: CustomProxy(host="h", port=port))

    assert (error.field, error.reason) == ("port", "port out of range")
    assert "1 to 65535" in str(error)
    assert len(str(error)) < 100


@pytest.mark.parametrize(
    "port",
    [
        pytest.param(True, id="True, which is 1"),
        pytest.param(8080.0, id="8080.0"),
        pytest.param(8080.5, id="8080.5"),
        pytest.param(float("nan"), id="not a number"),
        pytest.param("8080", id="text"),
        pytest.param(b"8080", id="bytes"),
        pytest.param(None, id="None"),
        pytest.param([8080], id="list"),
        pytest.param(Ports.PROXY, id="IntEnum"),
        pytest.param(OddInt(8080), id="subclass of int"),
    ],
)
def test_a_port_that_is_not_exactly_an_int_is_rejected(port: Any) -> None:
    """JSON would contain true for True and 8080.5 for 8080.5, and a subclass may print anything."""
    error = error_of(lambda: CustomProxy(host="h", port=port))

    assert (error.field, error.reason) == ("port", "port not an integer")


# --- Protocols -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["https", "http", "socks5", *ProxyProtocol])
def test_a_protocol_may_be_a_string_or_a_member(protocol: str) -> None:
    proxy = CustomProxy(host="h", port=1, protocol=protocol)

    assert proxy.protocol is ProxyProtocol(protocol)


@pytest.mark.parametrize(
    "protocol", ["", "socks4", "socks6", "SOCKS5", "https ", "ftp", 5, True, b"http", ("http",)]
)
def test_an_unknown_protocol_is_rejected(protocol: Any) -> None:
    """The API would reject it too, but only after the request was sent."""
    error = error_of(lambda: CustomProxy(host="h", port=1, protocol=protocol))

    assert (error.field, error.reason) == ("protocol", "protocol unknown")
    assert "https, http or socks5" in str(error)


@pytest.mark.parametrize("protocol", [["http"], {"http": 1}, {"http"}], ids=["list", "object", "set"])
def test_an_unhashable_protocol_is_rejected(protocol: Any) -> None:
    """A JSON row can hold a list in any field. It must count as an invalid row and not end the program."""
    error = error_of(lambda: CustomProxy(host="h", port=1, protocol=protocol))

    assert (error.field, error.reason) == ("protocol", "protocol unknown")


# --- User names and passwords --------------------------------------------------------------------


def with_credential(field: str, value: Any) -> CustomProxy:
    return CustomProxy(host="h", port=1, **{field: value})


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", ":@/?#[]%", "pässwörd", "пароль", "密码", "🔑", "a" * 10_000, '"\\'],
    ids="empty space spaces reserved accents Cyrillic Chinese emoji long quoted".split(),
)
def test_a_credential_may_have_any_printable_text(field: str, text: str) -> None:
    """Proxy providers put settings into user names, and any character into passwords."""
    proxy = with_credential(field, text)

    credential = getattr(proxy, field)
    assert (credential.reveal() if isinstance(credential, Secret) else credential) == text


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("form", ["{}hunter2", "hun{}ter2", "hunter2{}"], ids=["before", "within", "after"])
def test_a_control_character_in_a_credential_is_rejected(field: str, form: str) -> None:
    """Pasting often adds a line break, which could split a header in two."""
    for character in [*map(chr, range(32)), "\x7f"]:
        credential = form.format(character)
        error = error_of(partial(with_credential, field, credential))

        assert (error.field, error.reason) == (field, f"{field} has a control character"), credential
        assert "hun" not in all_text(error)


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("surrogate", [*map(chr, (0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xDCE9))], ids=ascii)
def test_a_lone_surrogate_in_a_credential_is_rejected(field: str, surrogate: str) -> None:
    """It comes from reading a file in the wrong encoding, and cannot be sent as UTF-8."""
    error = error_of(lambda: with_credential(field, f"hunter2{surrogate}"))

    assert (error.field, error.reason) == (field, f"{field} is not Unicode")
    assert "hunter2" not in all_text(error)


def test_a_secret_is_not_a_user_name() -> None:
    error = error_of(lambda: with_credential("username", Secret("hunter2")))

    assert (error.field, error.reason) == ("username", "username not text")


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize(
    "value", [b"hunter2", 12345678, True, ["hunter2"], {"hunter2": 1}], ids=lambda value: type(value).__name__
)
def test_a_credential_that_is_not_text_is_rejected(field: str, value: Any) -> None:
    """A number in JSON has already lost its leading zeros, so it would be the wrong password."""
    error = error_of(lambda: with_credential(field, value))

    assert (error.field, error.reason) == (field, f"{field} not text")
    assert "hunter2" not in all_text(error)
    assert "12345678" not in all_text(error)


def test_a_password_may_be_a_secret() -> None:
    """It need not be revealed to be passed on, and is validated like a string."""
    assert CustomProxy(host="h", port=1, password=Secret("hunter2")) == CustomProxy(
        host="h", port=1, password="hunter2"
    )
    assert error_of(lambda: CustomProxy(host="h", port=1, password=Secret("hunter2\n"))).field == "password"


def test_a_proxy_does_not_show_its_password() -> None:
    """Values are printed in logs, test reports and debuggers."""
    for text in (repr(FULL), str(FULL), f"{FULL}", repr([FULL])):
        assert "hunter2" not in text
        assert "proxy.example.com" in text
        assert "***" in text


# --- Countries and addresses ---------------------------------------------------------------------


def is_accepted(country: str) -> bool:
    error = error_or_none(lambda: ManagedProxy(country=country))
    assert error is None or (error.field, error.reason) == ("country", "country not assigned")
    return error is None


def test_249_assigned_codes_and_xk_are_accepted() -> None:
    """If the table lacked a code, nobody could request a proxy in that country."""
    pairs = {first + second for first, second in product(string.ascii_uppercase, repeat=2)}

    known = {pair for pair in pairs if is_accepted(pair)}
    assert len(known - {"XK"}) == 249
    assert "XK" in known
    assert {"US", "GB", "GR", "DE", "SS", "CW", "BQ", "SX", "AX", "TL", "BL", "MF", "ME", "RS"} <= known


@pytest.mark.parametrize("country", "AN BU CS DD FX SU TP YU ZR".split())
def test_a_withdrawn_code_is_rejected(country: str) -> None:
    """Old tables still have these codes, but ISO 3166-1 does not."""
    assert not is_accepted(country)


@pytest.mark.parametrize("country", "AA QM QZ XA XX XZ ZZ EU AC TA IC EA DG CP UN AP".split())
def test_a_reserved_code_is_rejected(country: str) -> None:
    """Reserved, user-assigned and invented codes name no country with proxies."""
    assert not is_accepted(country)


@pytest.mark.parametrize("country", ["us", "Us", "uS", "US", "xk"])
def test_a_country_is_stored_in_upper_case(country: str) -> None:
    """Both cases mean the same, and the API reference uses upper case."""
    assert ManagedProxy(country=country).country == country.upper()


@pytest.mark.parametrize(("written", "correct"), [("uk", "GB"), ("UK", "GB"), ("el", "GR")])
def test_the_error_names_the_right_code_for_a_common_mistake(written: str, correct: str) -> None:
    error = error_of(lambda: ManagedProxy(country=written))

    assert error.reason == "country not assigned"
    assert error.advice == f"use {correct} instead of {written.upper()}"


@pytest.mark.parametrize(
    "country",
    [
        pytest.param("", id="empty"),
        pytest.param("U", id="one letter"),
        pytest.param("USA", id="three letters"),
        pytest.param("ß", id="one character that is two in upper case"),
        pytest.param("ﬁ", id="ligature that is FI in upper case"),
        pytest.param("ﬀ", id="ligature"),
        pytest.param("ſe", id="long s, an S in upper case"),
        pytest.param("ＵＳ", id="full width"),
        pytest.param("U1", id="digit"),
        pytest.param("U ", id="space after"),
        pytest.param(" US", id="space before"),
        pytest.param("US\n", id="line break after"),
        pytest.param("\ud83c\uddfa", id="lone surrogates"),
        pytest.param("🇺🇸", id="flag"),
        pytest.param(1, id="number"),
        pytest.param(True, id="True"),
        pytest.param(b"US", id="bytes"),
        pytest.param(["U", "S"], id="list"),
    ],
)
def test_a_country_that_is_not_two_letters_is_rejected(country: Any) -> None:
    """The length is checked before upper-casing, which turns some single characters into two letters."""
    error = error_of(lambda: ManagedProxy(country=country))

    assert (error.field, error.reason) == ("country", "country is two letters")


@pytest.mark.parametrize("ip", ["203.0.113.42", "0.0.0.0", "255.255.255.255", "1.2.3.4"])
def test_an_ipv4_address_is_accepted(ip: str) -> None:
    """This is the form of the example in the API reference."""
    assert ManagedProxy(ip=ip).ip == ip


@pytest.mark.parametrize(
    "ip",
    [
        pytest.param("", id="empty"),
        pytest.param("203.0.113", id="three numbers"),
        pytest.param("203.0.113.42.1", id="five numbers"),
        pytest.param("203.0.113.256", id="over 255"),
        pytest.param("203.0.113.-1", id="negative"),
        pytest.param("203.0.113.042", id="leading zero"),
        pytest.param("203.0.113.0x2a", id="hexadecimal"),
        pytest.param("203.0.113.42 ", id="space after"),
        pytest.param("203.0.113.42\n", id="line break after"),
        pytest.param("203.0.113.42:80", id="port"),
        pytest.param("203.0.113.42/32", id="network"),
        pytest.param("203..113.42", id="empty number"),
        pytest.param("٢٠٣.0.113.42", id="digits that are not ASCII"),
        pytest.param("²03.0.113.42", id="superscript"),
        pytest.param("::1", id="IPv6"),
        pytest.param("::ffff:203.0.113.42", id="IPv4 within IPv6"),
        pytest.param("example.com", id="name"),
        pytest.param(3405803818, id="number"),
        pytest.param(True, id="True"),
        pytest.param(b"\xcb\x00\x71\x2a", id="four bytes"),
    ],
)
def test_an_ip_that_is_not_an_ipv4_address_is_rejected(ip: Any) -> None:
    """The API reference says IPv4, as a string."""
    error = error_of(lambda: ManagedProxy(ip=ip))

    assert (error.field, error.reason) == ("ip", "ip not an IPv4 address")


def test_a_managed_proxy_may_have_country_and_ip() -> None:
    """The API reference says and/or."""
    both = ManagedProxy(country="us", ip="203.0.113.42")

    assert (both.country, both.ip) == ("US", "203.0.113.42")


@pytest.mark.parametrize("fields", [{}, {"country": None}, {"ip": None}, {"country": None, "ip": None}])
def test_a_managed_proxy_requires_country_or_ip(fields: dict[str, None]) -> None:
    """The API reference does not say what an empty request body means."""
    error = error_of(lambda: ManagedProxy(**fields))

    assert error.field is None
    assert "a country, an ip, or both" in str(error)


@pytest.mark.parametrize("kind", [CustomProxy, ManagedProxy])
def test_a_custom_and_a_managed_proxy_cannot_be_mixed(kind: type) -> None:
    """Neither class has the other's fields."""
    with pytest.raises(TypeError, match="unexpected keyword"):
        kind(host="h", port=1, country="US")


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "protocol", "username", "password"),
    [
        pytest.param("http://h:80", "h", 80, "http", None, None, id="no credentials"),
        pytest.param("https://h:443/", "h", 443, "https", None, None, id="slash at the end"),
        pytest.param("socks5://u:p@h:1080", "h", 1080, "socks5", "u", "p", id="credentials"),
        pytest.param("SOCKS5://u:p@h:1080", "h", 1080, "socks5", "u", "p", id="scheme in upper case"),
        pytest.param("  http://h:80\n", "h", 80, "http", None, None, id="spaces around"),
        pytest.param("http://u@h:80", "h", 80, "http", "u", None, id="user name alone"),
        pytest.param("http://u:@h:80", "h", 80, "http", "u", None, id="empty password"),
        pytest.param("http://:p@h:80", "h", 80, "http", None, "p", id="password alone"),
        pytest.param("http://@h:80", "h", 80, "http", None, None, id="empty credentials"),
        pytest.param("http://u:a:b:c@h:80", "h", 80, "http", "u", "a:b:c", id="colons in the password"),
        pytest.param("http://u:p@s@h:80", "h", 80, "http", "u", "p@s", id="at sign in the password"),
        pytest.param("http://u:p/#?@h:80", "h", 80, "http", "u", "p/#?", id="reserved, unescaped"),
        pytest.param("http://u%3A:p%40ss@h:80", "h", 80, "http", "u:", "p@ss", id="percent-encoded"),
        pytest.param("http://u:p%C3%A4@h:80", "h", 80, "http", "u", "pä", id="percent-encoded UTF-8"),
        pytest.param("http://u:100%@h:80", "h", 80, "http", "u", "100%", id="bare percent sign"),
        pytest.param("http://u:a+b@h:80", "h", 80, "http", "u", "a+b", id="plus stays a plus"),
        pytest.param("http://u:p@[2001:db8::1]:80", "2001:db8::1", 80, "http", "u", "p", id="IPv6"),
        pytest.param("http://203.0.113.42:080", "203.0.113.42", 80, "http", None, None, id="leading zero"),
    ],
)
def test_from_url_reads_common_forms(
    url: str, host: str, port: int, protocol: str, username: str | None, password: str | None
) -> None:
    """Proxy providers hand out URLs, often without the escapes that a URL requires."""
    assert CustomProxy.from_url(url) == CustomProxy(
        host=host, port=port, protocol=protocol, username=username, password=password
    )


@pytest.mark.parametrize(
    ("url", "field"),
    [
        pytest.param("", "protocol", id="empty"),
        pytest.param("proxy.example.com:8080", "protocol", id="no scheme"),
        pytest.param("u:hunter2@h:80", "protocol", id="credentials and no scheme"),
        pytest.param("://u:hunter2@h:80", "protocol", id="empty scheme"),
        pytest.param("ftp://u:hunter2@h:80", "protocol", id="another scheme"),
        pytest.param("http:/u:hunter2@h:80", "protocol", id="one slash"),
        pytest.param("http://u:hunter2@h", "port", id="no port"),
        pytest.param("http://u:hunter2@h:", "port", id="empty port"),
        pytest.param("http://u:hunter2@h:0", "port", id="port 0"),
        pytest.param("http://u:hunter2@h:65536", "port", id="port 65536"),
        pytest.param("http://u:hunter2@h:" + "9" * 10_000, "port", id="port of 10,000 digits"),
        pytest.param("http://u:hunter2@h:-1", "port", id="negative port"),
        pytest.param("http://u:hunter2@h:8_0", "port", id="underscore in the port"),
        pytest.param("http://u:hunter2@h:８０", "port", id="port in full width"),
        pytest.param("http://u:hunter2@h:+80", "port", id="plus before the port"),
        pytest.param("http://u:hunter2@h:80 1", "port", id="space in the port"),
        pytest.param("http://u:hunter2@:80", "host", id="no host"),
        pytest.param("http://", "port", id="only a scheme"),
        pytest.param("http://u:hunter2@", "port", id="only credentials"),
        pytest.param("http://u:hunter2@h:80/path", "port", id="path"),
        pytest.param("http://u:hunter2@h:80//", "port", id="two slashes at the end"),
        pytest.param("http://u:hunter2@h:80?q", "port", id="query"),
        pytest.param("http://u:hunter2@h:80#f", "port", id="fragment"),
        pytest.param("http://u:hunter2@::1:80", "host", id="IPv6 without brackets"),
        pytest.param("http://u:hunter2@[::1]", "port", id="IPv6 without a port"),
        pytest.param("http://u:hunter2@[::1]80", "host", id="IPv6 without a colon"),
        pytest.param("http://u:hunter2@[::1:80", "host", id="bracket not closed"),
        pytest.param("http://u:hunter2@[]:80", "host", id="empty brackets"),
        pytest.param("http://h:80:u:hunter2", "host", id="host:port:user:password with a scheme"),
        pytest.param("http://u:hunter2%0A@h:80", "password", id="encoded line break"),
        pytest.param("http://u%00:hunter2@h:80", "username", id="encoded null character"),
        pytest.param("http://u:hunter2%FF@h:80", "password", id="encoded Latin-1"),
        pytest.param("http://u:hunter2%ED%A0%80@h:80", "password", id="encoded surrogate"),
    ],
)
def test_a_url_that_is_not_a_proxy_is_rejected(url: str, field: str) -> None:
    """The error names the invalid field, and does not show its text."""
    error = error_of(lambda: CustomProxy.from_url(url))

    assert error.field == field
    assert "hunter2" not in all_text(error)


@given(
    username=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
    password=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
    host=st.sampled_from(["h", "proxy.example.com.", "203.0.113.42", *IPV6]),
    port=st.integers(1, 65535),
)
def test_from_url_restores_escaped_credentials(username: str, password: str, host: str, port: int) -> None:
    """Any user name and password can be written in a URL."""
    quoted = ["".join(f"%{byte:02x}" for byte in text.encode()) for text in (username, password)]
    url_host = f"[{host}]" if ":" in host else host

    assert CustomProxy.from_url(f"http://{':'.join(quoted)}@{url_host}:{port}") == CustomProxy(
        host=host, port=port, protocol="http", username=username, password=password
    )


# --- No error shows a password -------------------------------------------------------------------

BUILDERS: dict[str, Callable[[Any], object]] = {
    # The place of a password that was put into the wrong field, and the call that gets it.
    "host": lambda text: CustomProxy(host=text, port=1),
    "host, with a port": lambda text: CustomProxy(host=f"u:{text}@h:80", port=1),
    "host, as IPv6": lambda text: CustomProxy(host=f"::{text}", port=1),
    "host, as IPv4": lambda text: CustomProxy(host=f"1.2.3.4{text}.5", port=1),
    "port": lambda text: CustomProxy(host="h", port=text),
    "protocol": lambda text: CustomProxy(host="h", port=1, protocol=text),
    "username": lambda text: CustomProxy(host="h", port=1, username=text),
    "password": lambda text: CustomProxy(host="h", port=1, password=text),
    "password, in a list": lambda text: with_credential("password", [text]),
    "password, as bytes": lambda text: with_credential("password", text.encode("utf-8", "replace")),
    "password beside a bad host": lambda text: CustomProxy(host="a b", port=1, password=text),
    "password beside a bad port": lambda text: CustomProxy(host="h", port=0, password=text),
    "password beside a bad protocol": lambda text: CustomProxy(host="h", port=1, protocol="x", password=text),
    "country": lambda text: ManagedProxy(country=text),
    "ip": lambda text: ManagedProxy(ip=text),
    "ip, nearly": lambda text: ManagedProxy(ip=f"1.2.3.{text}"),
    "account id": check_account_id,
    "URL": CustomProxy.from_url,
    "URL, as the scheme": lambda text: CustomProxy.from_url(f"{text}://h:80"),
    "URL, as the host": lambda text: CustomProxy.from_url(f"http://u:p@{text}:80"),
    "URL, as the port": lambda text: CustomProxy.from_url(f"http://u:{text}"),
    "URL, without a host": lambda text: CustomProxy.from_url(f"http://u:{text}@"),
    "URL, without a port": lambda text: CustomProxy.from_url(f"http://u:{text}@h"),
    "URL, with a bad port": lambda text: CustomProxy.from_url(f"http://u:{text}@h:99999"),
    "URL, with a bad host": lambda text: CustomProxy.from_url(f"http://u:{text}@[::1:80"),
    "URL, as host:port:user:password": lambda text: CustomProxy.from_url(f"http://h:80:u:{text}"),
    "URL, as the user name": lambda text: CustomProxy.from_url(f"http://{text}@h:80"),
    "URL, as the path": lambda text: CustomProxy.from_url(f"http://h:80/{text}"),
    "URL, in brackets": lambda text: CustomProxy.from_url(f"http://[{text}]:80"),
}
ODD_TEXT = st.text(st.characters() | st.sampled_from("\ud800\udcff\x00\n\x7f :@/[]%?#."), max_size=6)


@pytest.mark.parametrize("builder", BUILDERS)
@given(before=ODD_TEXT, after=ODD_TEXT)
def test_no_error_shows_a_password(builder: str, before: str, after: str) -> None:
    """Neither the message, the arguments nor the causes of the exception contain it."""
    error = error_or_none(lambda: BUILDERS[builder](f"{before}hunter2{after}"))

    if error is not None:  # some fields accept it
        assert "hunter2" not in all_text(error)


@pytest.mark.parametrize("builder", BUILDERS)
def test_no_error_shows_a_password_of_digits(builder: str) -> None:
    """Many passwords are numbers, and if a column is missing, one may be read as the port."""
    error = error_or_none(lambda: BUILDERS[builder]("83650274"))

    if error is not None:  # some fields accept it
        assert "83650274" not in all_text(error)


def test_an_error_has_no_cause_and_no_context() -> None:
    """The exceptions of `ipaddress` quote their argument, and a traceback prints the whole chain."""
    for make in (
        lambda: CustomProxy(host="1.2.3.hunter2.4", port=1),
        lambda: CustomProxy(host="::hunter2", port=1),
        lambda: ManagedProxy(ip="hunter2"),
        lambda: CustomProxy.from_url("http://u:hunter2%FF@h:80"),
    ):
        error = error_of(make)
        assert (error.__cause__, error.__context__) == (None, None)


# --- Account ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("account_id", ["acc_01HXYZ4QK3WJ8FN3M6QH7TZ8GR", "a", "...", "~.-_", "a" * 256])
def test_an_account_id_that_needs_no_escaping_is_accepted(account_id: str) -> None:
    """The API reference says only string. These characters are safe in every path."""
    assert check_account_id(account_id) == account_id


@pytest.mark.parametrize(
    "account_id",
    [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "a b",
        "a%2Fb",
        "a?b",
        "a#b",
        "a\n",
        "\n",
        "ä",
        "a" * 257,
        "\ud800",
        7,
        None,
        b"a",
    ],
    ids=lambda account_id: ascii(account_id)[:20],
)
def test_an_account_id_that_would_change_the_url_is_rejected(account_id: Any) -> None:
    """An id from a file must not select another endpoint."""
    assert error_of(lambda: check_account_id(account_id)).field == "account_id"


# --- Values --------------------------------------------------------------------------------------

ATTEMPT = Attempt(1, 1.0, 0.25)
VALUES = [FULL, ManagedProxy(country="US"), ATTEMPT, AccountPatched("acc_1")]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_cannot_be_changed(value: Any) -> None:
    """A change would bypass validation, and tasks share values."""
    for name in (value.__attrs_attrs__[0].name, "brand_new"):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "x")
        with pytest.raises(FrozenInstanceError):
            delattr(value, name)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_copy_is_equal_and_hashes_the_same(value: Any) -> None:
    for duplicate in (copy.copy(value), copy.deepcopy(value), evolve(value)):
        assert duplicate == value
        assert hash(duplicate) == hash(value)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "other"},
        {"port": 1},
        {"protocol": "http"},
        {"protocol": None},
        {"username": "v"},
        {"password": "q"},
    ],
    ids=str,
)
def test_proxies_that_differ_are_not_equal(change: dict[str, Any]) -> None:
    assert evolve(FULL, **change) != FULL


def test_evolve_validates_the_new_value() -> None:
    assert error_of(lambda: evolve(FULL, port=True)).field == "port"
    assert error_of(lambda: evolve(FULL, password="a\nb")).field == "password"


def test_results_with_different_attempts_are_equal() -> None:
    assert AccountPatched("acc_1", (ATTEMPT,)) == AccountPatched("acc_1")
    assert hash(AccountPatched("acc_1", (ATTEMPT,))) == hash(AccountPatched("acc_1"))
    assert AccountPatched("acc_1") != AccountPatched("acc_2")


@pytest.mark.parametrize("kind", [CustomProxy, ManagedProxy])
def test_a_proxy_accepts_only_keyword_arguments(kind: type) -> None:
    """Positional strings would be easy to mix up."""
    with pytest.raises(TypeError, match="positional"):
        kind("proxy.example.com", 8080)
