"""A wrong value cannot be built, and no refusal shows a password."""

import copy
import string
from collections.abc import Callable, Iterator
from enum import IntEnum
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
LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])  # 253 characters
IPV6 = ["::", "::1", "2001:db8::1", "2001:DB8:0:0:0:0:0:1", "::ffff:203.0.113.42", "fe80::1"]


class Eighty(IntEnum):
    """An int by inheritance, as settings libraries have them."""

    PORT = 8080


class Whole(int):
    """An int that prints as it likes."""

    def __str__(self) -> str:
        return "hunter2"


def refused(make: Callable[[], object]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        make()
    return caught.value


def refusal(make: Callable[[], object]) -> FieldError | None:
    """The refusal, where either outcome is right; any other exception fails the test."""
    try:
        make()
    except FieldError as error:
        return error
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and whatever hangs on it, which a traceback prints too."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def all_told(error: BaseException) -> str:
    """Everything that the error and its chain would show in a log."""
    return "\n".join(
        f"{one}\n{one!r}\n{one.args}\n{getattr(one, '__notes__', '')}\n{vars(one)}" for one in chain(error)
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
        pytest.param("1.2.3.4.example", id="begins like an address"),
        pytest.param("3com", id="begins with a digit"),
        pytest.param("a" * 63 + ".example.com", id="label of 63 characters"),
        pytest.param(LONGEST, id="253 characters"),
        pytest.param(LONGEST + ".", id="253 characters and the dot of the root"),
        pytest.param("203.0.113.42", id="IPv4"),
        pytest.param("0.0.0.0", id="lowest IPv4"),
        pytest.param("255.255.255.255", id="highest IPv4"),
        *(pytest.param(host, id=f"IPv6 {host}") for host in IPV6),
    ],
)
def test_a_host_is_taken_as_it_is(host: str) -> None:
    """Nothing is lost or mended: what a user reads in the fleet is what the API is told."""
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
        pytest.param("://", "host has a scheme", id="scheme's mark"),
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
        pytest.param("proxy\u00a0example.com", "host has a space", id="space that does not break"),
        pytest.param("proxy\texample.com", "host has a space", id="tab"),
        pytest.param("proxy\x00.example.com", "host not a host name", id="null character"),
        pytest.param("proxy\u200b.example.com", "host not a host name", id="space of no width"),
        pytest.param("bücher.example", "host not a host name", id="international, not encoded"),
        pytest.param("рroxy.example.com", "host not a host name", id="Cyrillic letter that looks Latin"),
        pytest.param("proxy。example。com", "host not a host name", id="ideographic full stop"),
        pytest.param("\ud800.example.com", "host not a host name", id="half of a surrogate pair"),
        pytest.param(LONGEST + "d", "host not a host name", id="254 characters"),
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
def test_a_host_that_is_no_host_is_refused(host: Any, reason: str) -> None:
    """A mistake in a fleet is found before the API changes half of it; the reason says which mistake."""
    error = refused(lambda: CustomProxy(host=host, port=8080))

    assert (error.field, error.reason) == ("host", reason)
    assert str(error) == f"{reason}: {error.advice}"
    assert error.advice


@pytest.mark.parametrize("host", ["::1::", "1:2:3:4:5:6:7:8:9", "12345::", "g::1", ":", "::1/64", "::1.2.3"])
def test_what_has_colons_is_an_ipv6_address_or_refused(host: str) -> None:
    """A colon means a port in one notation and a part of the address in the other: it must be clear."""
    assert refused(lambda: CustomProxy(host=host, port=8080)).field == "host"


@given(host=st.text(st.characters() | st.sampled_from(".:[]%-_ 0189afAF"), max_size=40))
def test_every_host_is_ascii_or_refused(host: str) -> None:
    """Whatever is pasted there: no other exception, and nothing that a URL would read in another way."""
    error = refusal(lambda: CustomProxy(host=host, port=8080))

    if error is None:
        assert set(host) <= set(string.ascii_letters + string.digits + "-._:")
    else:
        assert error.field == "host"


# --- Ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [1, 80, 8080, 65535])
def test_a_port_is_1_to_65535(port: int) -> None:
    """Both edges are ports."""
    assert CustomProxy(host="h", port=port).port == port


@pytest.mark.parametrize(
    "port", [0, -1, 65536, -(10**30), 10**30, 10**5000], ids="0 -1 65536 low high huge".split()
)
def test_a_port_out_of_range_is_refused(port: int) -> None:
    """Also one of more digits than Python agrees to print."""
    error = refused(lambda: CustomProxy(host="h", port=port))

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
        pytest.param(Eighty.PORT, id="IntEnum"),
        pytest.param(Whole(8080), id="subclass of int"),
    ],
)
def test_a_port_is_an_integer_and_nothing_like_one(port: Any) -> None:
    """JSON would write True as true, 8080.5 as it is, and a subclass as it pleases."""
    error = refused(lambda: CustomProxy(host="h", port=port))

    assert (error.field, error.reason) == ("port", "port not an integer")


# --- Protocols -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["https", "http", "socks5", *ProxyProtocol])
def test_a_protocol_is_one_of_the_page_s_three(protocol: str) -> None:
    """A string will do, and becomes the member."""
    made = CustomProxy(host="h", port=1, protocol=protocol)

    assert made.protocol is ProxyProtocol(protocol)


@pytest.mark.parametrize(
    "protocol", ["", "socks4", "socks6", "SOCKS5", "https ", "ftp", 5, True, b"http", ("http",)]
)
def test_an_unknown_protocol_is_refused(protocol: Any) -> None:
    """The API would refuse it too, after the account's row has been sent."""
    error = refused(lambda: CustomProxy(host="h", port=1, protocol=protocol))

    assert (error.field, error.reason) == ("protocol", "protocol unknown")
    assert "https, http, socks5" in str(error)


@pytest.mark.parametrize("protocol", [["http"], {"http": 1}, {"http"}], ids=["list", "object", "set"])
def test_a_protocol_that_cannot_be_hashed_is_refused_like_any_other(protocol: Any) -> None:
    """A row of JSON can hold a list in any field; it must be told as a bad row, not end the program."""
    error = refused(lambda: CustomProxy(host="h", port=1, protocol=protocol))

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
def test_a_credential_is_any_printable_text(field: str, text: str) -> None:
    """Sellers make user names that hold whole settings, and passwords that hold anything."""
    made = with_credential(field, text)

    kept = getattr(made, field)
    assert (kept.reveal() if isinstance(kept, Secret) else kept) == text


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("character", [*map(chr, range(32)), "\x7f"], ids=ascii)
@pytest.mark.parametrize("form", ["{}hunter2", "hun{}ter2", "hunter2{}"], ids=["before", "within", "after"])
def test_a_control_character_in_a_credential_is_refused(field: str, character: str, form: str) -> None:
    """A line break is what a careless paste leaves behind, and what splits a header in two."""
    error = refused(lambda: with_credential(field, form.format(character)))

    assert (error.field, error.reason) == (field, f"{field} has a control character")
    assert "hun" not in all_told(error)


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("half", [*map(chr, (0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xDCE9))], ids=ascii)
def test_half_of_a_surrogate_pair_in_a_credential_is_refused(field: str, half: str) -> None:
    """It is what reading a file in the wrong encoding leaves, and it cannot be sent as UTF-8."""
    error = refused(lambda: with_credential(field, f"hunter2{half}"))

    assert (error.field, error.reason) == (field, f"{field} is not Unicode")
    assert "hunter2" not in all_told(error)


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize(
    "odd", [b"hunter2", 12345678, True, ["hunter2"], {"hunter2": 1}], ids=lambda odd: type(odd).__name__
)
def test_a_credential_is_text(field: str, odd: Any) -> None:
    """A number in a fleet of JSON has lost its leading zeros already: better refused than wrong."""
    error = refused(lambda: with_credential(field, odd))

    assert (error.field, error.reason) == (field, f"{field} not text")
    assert "hunter2" not in all_told(error)
    assert "12345678" not in all_told(error)


def test_a_password_may_come_as_a_secret() -> None:
    """Whoever kept it as one need not reveal it, and it is checked all the same."""
    assert CustomProxy(host="h", port=1, password=Secret("hunter2")) == CustomProxy(
        host="h", port=1, password="hunter2"
    )
    assert refused(lambda: CustomProxy(host="h", port=1, password=Secret("hunter2\n"))).field == "password"


def test_a_proxy_does_not_show_its_password() -> None:
    """A value is printed in logs, test reports and debuggers; the rest of it is useful there."""
    for text in (repr(FULL), str(FULL), f"{FULL}", repr([FULL])):
        assert "hunter2" not in text
        assert "proxy.example.com" in text
        assert "***" in text


# --- Countries and addresses ---------------------------------------------------------------------


def taken(country: str) -> bool:
    error = refusal(lambda: ManagedProxy(country=country))
    assert error is None or (error.field, error.reason) == ("country", "country not assigned")
    return error is None


def test_249_assigned_codes_and_xk_are_countries() -> None:
    """A code that was left out of the table would be a country that nobody can be given."""
    pairs = {one + two for one, two in product(string.ascii_uppercase, repeat=2)}

    known = {pair for pair in pairs if taken(pair)}
    assert len(known - {"XK"}) == 249
    assert "XK" in known
    assert {"US", "GB", "GR", "DE", "SS", "CW", "BQ", "SX", "AX", "TL", "BL", "MF", "ME", "RS"} <= known


@pytest.mark.parametrize("country", "AN BU CS DD FX SU TP YU ZR".split())
def test_a_withdrawn_code_is_not_a_country(country: str) -> None:
    """Old tables still have them; ISO 3166-1 does not."""
    assert not taken(country)


@pytest.mark.parametrize("country", "AA QM QZ XA XX XZ ZZ EU AC TA IC EA DG CP UN AP".split())
def test_a_reserved_code_is_not_a_country(country: str) -> None:
    """Reserved, user-assigned or invented: no proxy stands there."""
    assert not taken(country)


@pytest.mark.parametrize("country", ["us", "Us", "uS", "US", "xk"])
def test_a_country_is_kept_in_upper_case(country: str) -> None:
    """Either case is meant the same, and the page shows upper case."""
    assert ManagedProxy(country=country).country == country.upper()


@pytest.mark.parametrize(("written", "meant"), [("uk", "GB"), ("UK", "GB"), ("el", "GR")])
def test_a_code_that_is_often_mistaken_is_told_right(written: str, meant: str) -> None:
    """The one mistake everybody makes, and the one answer that helps."""
    error = refused(lambda: ManagedProxy(country=written))

    assert error.reason == "country not assigned"
    assert meant in str(error)


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
        pytest.param("\ud83c\uddfa", id="half of surrogate pairs"),
        pytest.param("🇺🇸", id="flag"),
        pytest.param(1, id="number"),
        pytest.param(True, id="True"),
        pytest.param(b"US", id="bytes"),
        pytest.param(["U", "S"], id="list"),
    ],
)
def test_a_country_is_two_letters(country: Any) -> None:
    """Checked before it is upper-cased: some characters become two letters only then."""
    error = refused(lambda: ManagedProxy(country=country))

    assert (error.field, error.reason) == ("country", "country is two letters")


@pytest.mark.parametrize("ip", ["203.0.113.42", "0.0.0.0", "255.255.255.255", "1.2.3.4"])
def test_an_ip_is_four_numbers(ip: str) -> None:
    """As the page's example has it."""
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
def test_an_ip_that_is_no_ipv4_address_is_refused(ip: Any) -> None:
    """The page says IPv4, and takes a string."""
    error = refused(lambda: ManagedProxy(ip=ip))

    assert (error.field, error.reason) == ("ip", "ip not an IPv4 address")


def test_a_managed_proxy_may_have_country_and_ip() -> None:
    """The page says and/or."""
    both = ManagedProxy(country="us", ip="203.0.113.42")

    assert (both.country, both.ip) == ("US", "203.0.113.42")


@pytest.mark.parametrize("nothing", [{}, {"country": None}, {"ip": None}, {"country": None, "ip": None}])
def test_a_managed_proxy_asks_for_something(nothing: dict[str, None]) -> None:
    """An empty body is no request: what would the API do with it?"""
    error = refused(lambda: ManagedProxy(**nothing))

    assert error.field is None
    assert "a country, an ip, or both" in str(error)


@pytest.mark.parametrize("kind", [CustomProxy, ManagedProxy])
def test_a_custom_and_a_managed_proxy_cannot_be_mixed(kind: type) -> None:
    """There is no such value, so no check can be forgotten."""
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
        pytest.param("http://u:p/#?@h:80", "h", 80, "http", "u", "p/#?", id="reserved in the password"),
        pytest.param("http://u%3A:p%40ss@h:80", "h", 80, "http", "u:", "p@ss", id="percent-encoded"),
        pytest.param("http://u:p%C3%A4@h:80", "h", 80, "http", "u", "pä", id="percent-encoded UTF-8"),
        pytest.param("http://u:100%@h:80", "h", 80, "http", "u", "100%", id="bare percent sign"),
        pytest.param("http://u:a+b@h:80", "h", 80, "http", "u", "a+b", id="plus is a plus"),
        pytest.param("http://u:p@[2001:db8::1]:80", "2001:db8::1", 80, "http", "u", "p", id="IPv6"),
        pytest.param("http://203.0.113.42:080", "203.0.113.42", 80, "http", None, None, id="leading zero"),
    ],
)
def test_a_url_is_read_as_it_was_meant(
    url: str, host: str, port: int, protocol: str, username: str | None, password: str | None
) -> None:
    """Sellers hand out URLs, and few of them escape what a URL would need."""
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
        pytest.param("http://", "port", id="nothing"),
        pytest.param("http://u:hunter2@", "port", id="nothing but credentials"),
        pytest.param("http://u:hunter2@h:80/path", "port", id="path"),
        pytest.param("http://u:hunter2@h:80//", "port", id="two slashes at the end"),
        pytest.param("http://u:hunter2@h:80?q", "port", id="query"),
        pytest.param("http://u:hunter2@h:80#f", "port", id="fragment"),
        pytest.param("http://u:hunter2@::1:80", "host", id="IPv6 without brackets"),
        pytest.param("http://u:hunter2@[::1]", "port", id="IPv6 without a port"),
        pytest.param("http://u:hunter2@[::1]80", "host", id="IPv6 without a colon"),
        pytest.param("http://u:hunter2@[::1:80", "host", id="bracket not closed"),
        pytest.param("http://u:hunter2@[]:80", "host", id="empty brackets"),
        pytest.param("http://h:80:u:hunter2", "port", id="a seller's list with a scheme"),
        pytest.param("http://u:hunter2%0A@h:80", "password", id="encoded line break"),
        pytest.param("http://u%00:hunter2@h:80", "username", id="encoded null character"),
        pytest.param("http://u:hunter2%FF@h:80", "password", id="encoded Latin-1"),
        pytest.param("http://u:hunter2%ED%A0%80@h:80", "password", id="encoded surrogate"),
    ],
)
def test_a_url_that_is_no_proxy_is_refused(url: str, field: str) -> None:
    """Each with the field at fault, and none with what stood in it."""
    error = refused(lambda: CustomProxy.from_url(url))

    if "h:80:u" not in url:  # there, host and port are equally at fault
        assert error.field == field
    assert "hunter2" not in all_told(error)


@given(
    username=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
    password=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
    host=st.sampled_from(["h", "proxy.example.com.", "203.0.113.42", *IPV6]),
    port=st.integers(1, 65535),
)
def test_a_url_that_was_escaped_comes_back_whole(username: str, password: str, host: str, port: int) -> None:
    """Every credential can be written in a URL, whatever it holds."""
    quoted = ["".join(f"%{byte:02x}" for byte in text.encode()) for text in (username, password)]
    place = f"[{host}]" if ":" in host else host

    assert CustomProxy.from_url(f"http://{':'.join(quoted)}@{place}:{port}") == CustomProxy(
        host=host, port=port, protocol="http", username=username, password=password
    )


# --- No refusal shows a password -----------------------------------------------------------------

PLACES: dict[str, Callable[[Any], object]] = {
    "host": lambda word: CustomProxy(host=word, port=1),
    "host, with a port": lambda word: CustomProxy(host=f"u:{word}@h:80", port=1),
    "host, as IPv6": lambda word: CustomProxy(host=f"::{word}", port=1),
    "host, as IPv4": lambda word: CustomProxy(host=f"1.2.3.4{word}.5", port=1),
    "port": lambda word: CustomProxy(host="h", port=word),
    "protocol": lambda word: CustomProxy(host="h", port=1, protocol=word),
    "username": lambda word: CustomProxy(host="h", port=1, username=word),
    "password": lambda word: CustomProxy(host="h", port=1, password=word),
    "password, in a list": lambda word: with_credential("password", [word]),
    "password, as bytes": lambda word: with_credential("password", word.encode("utf-8", "replace")),
    "password beside a bad host": lambda word: CustomProxy(host="a b", port=1, password=word),
    "password beside a bad port": lambda word: CustomProxy(host="h", port=0, password=word),
    "password beside a bad protocol": lambda word: CustomProxy(host="h", port=1, protocol="x", password=word),
    "country": lambda word: ManagedProxy(country=word),
    "ip": lambda word: ManagedProxy(ip=word),
    "ip, nearly": lambda word: ManagedProxy(ip=f"1.2.3.{word}"),
    "account id": check_account_id,
    "URL": CustomProxy.from_url,
    "URL, as the scheme": lambda word: CustomProxy.from_url(f"{word}://h:80"),
    "URL, as the host": lambda word: CustomProxy.from_url(f"http://u:p@{word}:80"),
    "URL, as the port": lambda word: CustomProxy.from_url(f"http://u:{word}"),
    "URL, without a host": lambda word: CustomProxy.from_url(f"http://u:{word}@"),
    "URL, without a port": lambda word: CustomProxy.from_url(f"http://u:{word}@h"),
    "URL, with a bad port": lambda word: CustomProxy.from_url(f"http://u:{word}@h:99999"),
    "URL, with a bad host": lambda word: CustomProxy.from_url(f"http://u:{word}@[::1:80"),
    "URL, as in a seller's list": lambda word: CustomProxy.from_url(f"http://h:80:u:{word}"),
    "URL, as the user name": lambda word: CustomProxy.from_url(f"http://{word}@h:80"),
    "URL, as the path": lambda word: CustomProxy.from_url(f"http://h:80/{word}"),
    "URL, in brackets": lambda word: CustomProxy.from_url(f"http://[{word}]:80"),
}
ODD = st.text(st.characters() | st.sampled_from("\ud800\udcff\x00\n\x7f :@/[]%?#."), max_size=6)


@pytest.mark.parametrize("place", PLACES)
@given(before=ODD, after=ODD)
def test_no_refusal_shows_a_password(place: str, before: str, after: str) -> None:
    """Wherever it was pasted: not in the text, nor the arguments, nor on the chain of the exception."""
    error = refusal(lambda: PLACES[place](f"{before}hunter2{after}"))

    assert error is None or "hunter2" not in all_told(error)


@pytest.mark.parametrize("place", PLACES)
def test_no_refusal_shows_a_password_of_digits(place: str) -> None:
    """Many sellers hand out nothing but digits, and a column too few makes one the port."""
    error = refusal(lambda: PLACES[place]("83650274"))

    assert error is None or "83650274" not in all_told(error)


def test_a_refusal_has_nothing_on_its_chain() -> None:
    """The exceptions of `ipaddress` quote what they were given, and a traceback prints them."""
    for make in (
        lambda: CustomProxy(host="1.2.3.hunter2.4", port=1),
        lambda: CustomProxy(host="::hunter2", port=1),
        lambda: ManagedProxy(ip="hunter2"),
        lambda: CustomProxy.from_url("http://u:hunter2%FF@h:80"),
    ):
        error = refused(make)
        assert (error.__cause__, error.__context__) == (None, None)


# --- Account ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("account_id", ["acc_01HXYZ4QK3WJ8FN3M6QH7TZ8GR", "a", "...", "~.-_", "a" * 256])
def test_an_account_id_stands_in_a_url_as_it_is(account_id: str) -> None:
    """The page says string; these characters need no escape in any path."""
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
def test_an_account_id_that_would_change_the_url_is_refused(account_id: Any) -> None:
    """An id out of a file must not choose another endpoint."""
    assert refused(lambda: check_account_id(account_id)).field == "account_id"


# --- Values --------------------------------------------------------------------------------------

ATTEMPT = Attempt(1, 1.0, 0.25)
VALUES = [FULL, ManagedProxy(country="US"), ATTEMPT, AccountPatched("acc_1")]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_cannot_be_changed(value: Any) -> None:
    """It was checked when it was made, and tasks share it."""
    for name in (value.__attrs_attrs__[0].name, "brand_new"):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "x")
        with pytest.raises(FrozenInstanceError):
            delattr(value, name)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_copy_is_equal_and_hashes_the_same(value: Any) -> None:
    """Values are what they hold."""
    for twin in (copy.copy(value), copy.deepcopy(value), evolve(value)):
        assert twin == value
        assert hash(twin) == hash(value)


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
    """The password counts: a new one is another change."""
    assert evolve(FULL, **change) != FULL


def test_a_proxy_changed_by_evolve_is_checked_again() -> None:
    """The one way to alter a frozen value is no way around its rules."""
    assert refused(lambda: evolve(FULL, port=True)).field == "port"
    assert refused(lambda: evolve(FULL, password="a\nb")).field == "password"


def test_an_answer_is_equal_whatever_its_history() -> None:
    """How it came about is not what it says."""
    assert AccountPatched("acc_1", (ATTEMPT,)) == AccountPatched("acc_1")
    assert hash(AccountPatched("acc_1", (ATTEMPT,))) == hash(AccountPatched("acc_1"))
    assert AccountPatched("acc_1") != AccountPatched("acc_2")


@pytest.mark.parametrize("kind", [CustomProxy, ManagedProxy])
def test_a_change_is_made_of_named_fields(kind: type) -> None:
    """Five strings in a row are mixed up sooner or later."""
    with pytest.raises(TypeError, match="positional"):
        kind("proxy.example.com", 8080)
