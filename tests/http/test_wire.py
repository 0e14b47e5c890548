"""Requests are encoded, and responses decoded, without an event loop or mocks."""

import json
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import StrEnum
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from attrs import frozen
from hypothesis import example, given
from hypothesis import strategies as st

from postpress_async import errors
from postpress_async._http.codec import (
    MAX_TEXT,
    clean,
    decode_response,
)
from postpress_async._http.transport import Response
from postpress_async.models import (
    AccountPatched,
    CustomProxy,
    FieldError,
    ManagedProxy,
    ProxyChange,
    ProxyProtocol,
)
from postpress_async.secret import Secret
from tests.support import KEY as TEST_KEY
from tests.support.reference_body import reference_body
from tests.support.wire import encoded, make_request

KEY = Secret(TEST_KEY)
PASSWORD = Secret("hunter2/€")
REQUEST = make_request(password=PASSWORD.reveal())
PATCHED = b'{"object": "AccountPatched", "account_id": "acc_1"}'


class Name(StrEnum):
    """A subclass of str, as in the values of some settings libraries."""

    USER = "u"


def decode(status: int, body: bytes, retry_after: str | None = None) -> AccountPatched:
    return decode_response(Response(status, body, retry_after), REQUEST)


def decode_error(status: int, body: bytes | object, retry_after: str | None = None) -> errors.ApiError:
    """Return the `ApiError` for a response. A *body* other than bytes is encoded as JSON."""
    encoded_body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(errors.ApiError) as caught:
        decode(status, encoded_body, retry_after)
    return caught.value


def decode_answer_error(status: int, body: bytes) -> errors.AnswerError:
    with pytest.raises(errors.AnswerError) as caught:
        decode(status, body)
    return caught.value


# --- Requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        pytest.param(ManagedProxy(country="us"), {"country": "US"}, id="country"),
        pytest.param(ManagedProxy(ip="203.0.113.42"), {"ip": "203.0.113.42"}, id="ip"),
        pytest.param(
            ManagedProxy(country="US", ip="203.0.113.42"),
            {"country": "US", "ip": "203.0.113.42"},
            id="country and ip",
        ),
        pytest.param(
            CustomProxy(host="h", port=80), {"proxy": {"host": "h", "port": 80}}, id="host and port"
        ),
        pytest.param(
            CustomProxy(host="h", port=80, protocol="socks5"),
            {"proxy": {"host": "h", "port": 80, "protocol": "socks5"}},
            id="protocol",
        ),
        pytest.param(
            CustomProxy(host="h", port=80, username="u"),
            {"proxy": {"host": "h", "port": 80, "username": "u"}},
            id="user",
        ),
        pytest.param(
            CustomProxy(host="h", port=80, password="hunter2"),
            {"proxy": {"host": "h", "port": 80, "password": "hunter2"}},
            id="password",
        ),
        pytest.param(
            CustomProxy(host="h", port=80, username="", password=""),
            {"proxy": {"host": "h", "port": 80, "username": "", "password": ""}},
            id="empty user and password",
        ),
        pytest.param(
            CustomProxy(host="::1", port=80, protocol="https", username="ü", password="🔑"),
            {"proxy": {"host": "::1", "port": 80, "protocol": "https", "username": "ü", "password": "🔑"}},
            id="everything",
        ),
    ],
)
def test_body_has_no_fields_that_the_caller_did_not_set(change: ProxyChange, fields: dict[str, Any]) -> None:
    """The API might not treat a null like a missing field."""
    request = encoded(change)

    assert json.loads(request.body) == fields
    assert request.account_id == "acc_1"
    assert request.body.isascii()


def test_port_is_sent_as_an_integer() -> None:
    """The bytes are compared, because Python treats 8080 and 8080.0 as equal."""
    assert b'"port":8080}' in encoded(CustomProxy(host="h", port=8080)).body


def test_repr_of_a_request_or_response_shows_no_password_and_no_body() -> None:
    """Tracebacks with local variables and test reports print requests and responses."""
    request = encoded(CustomProxy(host="h", port=1, password="hunter2"))

    assert request.password == Secret("hunter2")
    assert "hunter2" not in repr(request)
    assert "hunter2" not in repr(Response(200, b"hunter2"))
    assert encoded(ManagedProxy(country="US")).password is None


@pytest.mark.parametrize("account_id", ["", "..", "a/b", "a b", "ä"])
def test_account_id_that_would_need_escaping_in_a_url_is_rejected(account_id: str) -> None:
    with pytest.raises(FieldError):
        encoded(ManagedProxy(country="US"), account_id)


def test_username_of_a_subclass_of_str_is_sent_as_a_string() -> None:
    """The model accepts the value, so encoding it must not fail."""
    change = CustomProxy(host="h", port=1, username=Name.USER)

    assert json.loads(encoded(change).body)["proxy"]["username"] == "u"


@frozen
class Session:
    """The value of a field of `GatewayProxy`."""

    minutes: int = 10
    sticky: bool = True


@frozen(kw_only=True)
class GatewayProxy(CustomProxy):
    """A subclass with fields of every kind: required, optional, secret and nested."""

    region: str
    token: Secret | None = None
    session: Session = Session()
    tags: tuple[str, ...] = ()


@frozen(kw_only=True)
class CityProxy(ManagedProxy):
    """A subclass with one more field."""

    city: str | None = None


def random_change(random: Random) -> ProxyChange:
    """Create a change of a random class with random fields."""

    def text() -> str:
        alphabet = [*'aZ09 "\\/<&@:%', "ü", "€", "🔑", "\u2028", "\u0600", "\U0010ffff"]
        return "".join(random.choices(alphabet, k=random.randrange(20)))

    def maybe(value: Any) -> Any:
        return value if random.random() < 0.5 else None

    if random.random() < 0.3:
        country, ip = random.choice("US us DE xk BR".split()), f"203.0.113.{random.randrange(256)}"
        managed = random.choice([{"country": country}, {"ip": ip}, {"country": country, "ip": ip}])
        return random.choice([ManagedProxy(**managed), CityProxy(**managed, city=maybe(text()))])
    fields: dict[str, Any] = {
        "host": random.choice(
            ["h", "proxy.example.com", "203.0.113.1", "2001:db8::1", "xn--bcher-kva.example."]
        ),
        "port": random.randrange(1, 65536),
        "protocol": maybe(random.choice([*ProxyProtocol, "https", "socks5h"])),
        "username": maybe(random.choice([text(), Name.USER])),
        "password": maybe(random.choice([text(), Secret(text())])),
    }
    if random.random() < 0.7:
        return CustomProxy(**fields)
    session = random.choice([Session(), Session(minutes=5), Session(sticky=False)])
    token = maybe(Secret(text()))
    return GatewayProxy(
        **fields, region=text(), token=token, session=session, tags=maybe(("a", text())) or ()
    )


def test_random_changes_are_encoded_like_by_the_reference_implementation() -> None:
    """
    A new version of the package must produce the same bytes as earlier versions.

    It may repeat an earlier version's request with the same idempotency key, and the API may compare the two
    bodies.
    """
    random = Random(15)
    for _ in range(10_000):
        change = random_change(random)

        assert encoded(change).body == reference_body(change), change


def test_change_of_a_subclass_is_sent_with_its_additional_fields() -> None:
    """If the API accepts a new field, callers can send it before the package supports it."""

    @frozen(kw_only=True)
    class Sticky(CustomProxy):
        minutes: int = 10

    @frozen(kw_only=True)
    class ByCity(ManagedProxy):
        city: str | None = None

    sticky = encoded(Sticky(host="h", port=80, password="p", minutes=5))
    city = encoded(ByCity(country="US", city="Boston"))

    assert json.loads(sticky.body) == {"proxy": {"host": "h", "port": 80, "password": "p", "minutes": 5}}
    assert sticky.password == Secret("p")
    assert json.loads(city.body) == {"country": "US", "city": "Boston"}


# --- Successes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(PATCHED, id="as in the reference"),
        pytest.param(PATCHED.replace(b" ", b""), id="without spaces"),
        pytest.param(PATCHED.replace(b": ", b":"), id="with a space only after the comma"),
        pytest.param(b'{"account_id":"acc_1","object":"AccountPatched"}', id="in the other order"),
        pytest.param(b'\r\n\t {"object": "AccountPatched", "account_id": "acc_1"}\n', id="space around it"),
        pytest.param(
            b'{"object": "AccountPatched", "account_id": "acc_1", "new": [1, null]}', id="a new field"
        ),
        pytest.param(b'{"object": "AccountPatched", "account_id": "acc\\u005f1"}', id="escaped"),
    ],
)
def test_200_that_confirms_the_account_is_a_success(body: bytes) -> None:
    """The API may write the JSON differently, or add fields."""
    assert decode(200, body) == AccountPatched("acc_1")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="spaces"),
        pytest.param(b"OK", id="text"),
        pytest.param(b"<html><body>Welcome to the hotel's WiFi</body></html>", id="a captive portal's page"),
        pytest.param(b"null", id="null"),
        pytest.param(b"true", id="true"),
        pytest.param(b'"AccountPatched"', id="string"),
        pytest.param(b"[" + PATCHED + b"]", id="in a list"),
        pytest.param(b"{}", id="empty object"),
        pytest.param(b'{"object": "AccountPatched"}', id="no id"),
        pytest.param(b'{"account_id": "acc_1"}', id="no object name"),
        pytest.param(b'{"object": "Account", "account_id": "acc_1"}', id="another object"),
        pytest.param(b'{"object": "accountpatched", "account_id": "acc_1"}', id="object in lower case"),
        pytest.param(b'{"object": ["AccountPatched"], "account_id": "acc_1"}', id="object in a list"),
        pytest.param(b'{"object": "AccountPatched", "account_id": "acc_2"}', id="another account"),
        pytest.param(b'{"object": "AccountPatched", "account_id": "ACC_1"}', id="id in upper case"),
        pytest.param(b'{"object": "AccountPatched", "account_id": ""}', id="empty id"),
        pytest.param(b'{"object": "AccountPatched", "account_id": null}', id="null id"),
        pytest.param(b'{"object": "AccountPatched", "account_id": 1}', id="id is a number"),
        pytest.param(b'{"object": "AccountPatched", "account_id": ["acc_1"]}', id="id in a list"),
        pytest.param(b'{"data": ' + PATCHED + b"}", id="wrapped"),
        pytest.param(PATCHED[:-1], id="truncated"),
        pytest.param(PATCHED + PATCHED, id="two objects"),
        pytest.param(PATCHED + b"x", id="text after the object"),
        pytest.param(b"\xef\xbb\xbf" + PATCHED, id="byte-order mark"),
        pytest.param(PATCHED.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(PATCHED[:-1] + b', "x": "\xff"}', id="not UTF-8"),
        pytest.param(PATCHED[:-1] + b', "x": "\xed\xa0\x80"}', id="a surrogate as UTF-8"),
        pytest.param(PATCHED[:-1] + b', "account_id": "acc_1"}', id="duplicate name"),
        pytest.param(PATCHED[:-1] + b', "x": {"y": 1, "y": 2}}', id="duplicate name in a nested object"),
        pytest.param(PATCHED[:-1] + b', "x": NaN}', id="NaN"),
        pytest.param(PATCHED[:-1] + b', "x": -Infinity}', id="infinity"),
        pytest.param(PATCHED[:-1] + b', "x": ' + b"9" * 20_000 + b"}", id="20,000 digits"),
        pytest.param(
            PATCHED[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 nested lists"
        ),
        pytest.param(b'{"a":' * 40_000, id="40,000 nested objects"),
        pytest.param(b'{"object": "AccountPatched", "account_id": "' + b"a" * 250_000 + b'"}', id="huge id"),
        pytest.param(b'{"type": "errors/proxy_error", "title": "x", "status": 502}', id="an error envelope"),
    ],
)
def test_200_that_does_not_confirm_the_account_is_an_error(body: bytes) -> None:
    """An account that is wrongly recorded as patched would keep a dead proxy."""
    error = decode_answer_error(200, body)

    assert error.status == 200
    assert not error.retryable
    assert error.applied is errors.Applied.UNKNOWN
    assert (error.__cause__, error.__context__) == (None, None)
    assert len(str(error)) < 200


@pytest.mark.parametrize("status", [-1, 0, 100, 199, 201, 202, 204, 206, 226, 299])
def test_status_below_300_other_than_200_is_an_error(status: int) -> None:
    """The API documents only 200. For example, a 202 would not mean that the change was made."""
    error = decode_answer_error(status, PATCHED)

    assert error.status == status
    assert not error.retryable
    assert error.applied is errors.Applied.UNKNOWN


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
def test_redirect_is_an_error(status: int) -> None:
    """Following it would send the API key to another server."""
    error = decode_answer_error(status, PATCHED)

    assert error.status == status
    assert "redirect" in str(error)
    assert not error.retryable


# --- Error responses -----------------------------------------------------------------------------


def test_error_has_the_texts_of_the_reference_s_envelope() -> None:
    error = decode_error(
        502,
        {
            "type": "errors/proxy_error",
            "title": "Bad gateway",
            "detail": "The proxy in use is not working.",
            "instance": "req_1",
            "status": 502,
            "new": 1,
        },
    )

    assert type(error) is errors.ProxyError
    assert (error.title, error.detail, error.instance) == (
        "Bad gateway",
        "The proxy in use is not working.",
        "req_1",
    )
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize("code", ["invalid_parameters", "errors/invalid_parameters"])
def test_quickstart_s_envelope_is_decoded_to_the_same_error(code: str) -> None:
    """The API's documentation shows two envelopes. Callers should not have to distinguish them."""
    error = decode_error(400, {"error": {"code": code, "message": "No port", "request_id": "req_1"}})

    assert type(error) is errors.InvalidParametersError
    assert error.type == "errors/invalid_parameters"
    assert (error.title, error.detail, error.instance) == ("No port", None, "req_1")


def test_code_that_only_the_quickstart_lists_has_its_own_class() -> None:
    error = decode_error(401, {"error": {"code": "key_missing"}})

    assert type(error) is errors.KeyMissingError
    assert (error.title, error.detail, error.instance) == ("", None, None)


@pytest.mark.parametrize(
    ("envelope", "title", "detail", "instance"),
    [
        pytest.param({}, "", None, None, id="only the type"),
        pytest.param({"title": None, "detail": None, "instance": None}, "", None, None, id="nulls"),
        pytest.param({"title": 5, "instance": {"id": 1}}, "", None, None, id="number and object"),
        pytest.param({"title": True, "instance": False}, "", None, None, id="true and false"),
        pytest.param({"title": "", "detail": "", "instance": ""}, "", "", "", id="empty strings"),
        pytest.param({"title": "x", "status": "502"}, "x", None, None, id="status is a string"),
        pytest.param({"title": "x", "status": 200}, "x", None, None, id="another status"),
        pytest.param({"title": "x", "error": "y"}, "x", None, None, id="additional error string"),
        pytest.param(
            {"title": "x", "error": {"message": "y"}}, "x", None, None, id="additional error without a code"
        ),
        pytest.param(
            {"title": "x", "error": {"code": 5}}, "x", None, None, id="additional error with a number as code"
        ),
    ],
)
def test_missing_or_invalid_fields_do_not_affect_the_others(
    envelope: dict[str, Any], title: str, detail: str | None, instance: str | None
) -> None:
    """The type alone determines the class of the error."""
    error = decode_error(502, {"type": "errors/proxy_error", **envelope})

    assert type(error) is errors.ProxyError
    assert (error.title, error.detail, error.instance) == (title, detail, instance)
    assert str(error)


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        pytest.param(["no port", "no host"], '["no port","no host"]', id="list"),
        pytest.param({"port": ["must be a number"]}, '{"port":["must be a number"]}', id="object"),
        pytest.param([{"loc": "Zürich"}], '[{"loc":"Zürich"}]', id="not ASCII"),
        pytest.param([], "[]", id="empty list"),
        pytest.param(1.5, "1.5", id="number"),
        pytest.param(False, "false", id="false"),
        pytest.param({"a\u202e": "\n"}, '{"a\\u202e":"\\n"}', id="control characters"),
    ],
)
def test_detail_that_is_not_a_string_becomes_compact_json(detail: object, text: str) -> None:
    """Many validation libraries write a list or object of the invalid fields to it."""
    error = decode_error(400, {"type": "errors/invalid_parameters", "title": "x", "detail": detail})

    assert error.detail == text


def test_detail_that_is_not_a_string_is_masked_and_shortened_like_a_string() -> None:
    envelope: dict[str, Any] = {"type": "errors/invalid_parameters", "title": "x"}

    masked = decode_error(400, {**envelope, "detail": {"sent": ["hunter2/€", KEY.reveal()]}}).detail
    shortened = decode_error(400, {**envelope, "detail": ["x" * 5000]}).detail

    assert masked == '{"sent":["***","***"]}'
    assert shortened is not None
    assert len(shortened) == MAX_TEXT


def test_detail_that_is_nested_too_deeply_to_write_as_json_is_omitted() -> None:
    """Python's JSON decoder accepts slightly deeper nesting than its encoder."""
    for depth in range(800, 1000):
        body = b'{"type": "errors/proxy_error", "title": "x", "detail": ' + b"[" * depth + b"]" * depth + b"}"

        assert isinstance(decode_error(502, body), errors.BadGatewayError), depth


@pytest.mark.parametrize(
    ("password", "shown"),
    [
        ("errors.example.com", "https://***/errors/proxy_error"),
        ("errors", "https://***.example.com/***/proxy_error"),
        ("proxy", "errors/proxy_error"),
        ("/", "errors/proxy_error"),
        ("com/errors/proxy_error", "errors/proxy_error"),
    ],
)
def test_listed_type_in_a_url_is_recognized_even_if_it_contains_the_password(
    password: str, shown: str
) -> None:
    """The password is masked in the rest of the URL, but not in the listed type."""
    type_ = "https://errors.example.com/errors/proxy_error"
    body = json.dumps({"type": type_, "title": "x"}).encode()

    with pytest.raises(errors.ProxyError) as caught:
        decode_response(Response(502, body), make_request(password=password))

    assert caught.value.type == shown


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html><h1>502 Bad Gateway</h1></html>", id="a gateway's page"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"7", id="number"),
        pytest.param(b"{}", id="empty object"),
        pytest.param(b'{"message": "Internal server error"}', id="another API's envelope"),
        pytest.param(b'{"type": "", "title": "x"}', id="empty type"),
        pytest.param(b'{"type": null, "title": "x"}', id="null type"),
        pytest.param(b'{"type": 502, "title": "x"}', id="type is a number"),
        pytest.param(b'{"type": ["errors/proxy_error"]}', id="type in a list"),
        pytest.param(b'{"error": {"code": null}}', id="null code"),
        pytest.param(b'{"error": {"code": ""}}', id="empty code"),
        pytest.param(b'{"error": {}}', id="error without a code"),
        pytest.param(b'{"error": "proxy_error"}', id="error is a string"),
        pytest.param(b'{"type": "errors/proxy_error", "type": "errors/no_channel"}', id="two types"),
        pytest.param(b'{"type": "errors/proxy_error", "x": NaN}', id="NaN"),
        pytest.param(b'{"type": "errors/proxy_error", "x": ' + b"9" * 20_000 + b"}", id="20,000 digits"),
        pytest.param(b'{"type": "errors/proxy_error", "x": ' + b"[" * 100_000, id="100,000 nested lists"),
        pytest.param(b'{"type": "errors/proxy_error"\xff}', id="not UTF-8"),
        pytest.param(b"\x00" * 1000, id="null characters"),
    ],
)
def test_error_response_without_an_envelope_is_classified_by_its_status(body: bytes) -> None:
    """For example, a gateway in front of the API may send an HTML page."""
    error = decode_error(502, body)

    assert type(error) is errors.BadGatewayError
    assert (error.type, error.title, error.detail, error.instance) == ("", "", None, None)
    assert error.retryable
    assert error.applied is errors.Applied.UNKNOWN
    assert error.code == "BadGatewayError"
    assert "no error envelope (HTTP 502)" in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


# --- Retry-After ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("-7", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ],
)
@pytest.mark.parametrize("status", [400, 429, 502, 503])
def test_error_has_the_seconds_of_retry_after(status: int, header: str | None, seconds: float | None) -> None:
    assert decode_error(status, b"", header).retry_after == seconds


def test_retry_after_date_is_compared_with_the_local_clock_without_a_date_header() -> None:
    header = format_datetime(datetime.fromtimestamp(time.time() + 3600, UTC), usegmt=True)

    seconds = decode_error(503, b"", header).retry_after
    assert seconds is not None
    assert 3500 < seconds <= 3600


@pytest.mark.parametrize(
    "skew", [-300, 0, 300], ids=["server's clock behind", "same time", "server's clock ahead"]
)
def test_retry_after_date_is_compared_with_the_date_header(skew: float) -> None:
    """If the clocks differ by minutes, the local clock would turn 10 s into no wait or a very long one."""
    now = time.time() + skew
    date, retry_after = (
        format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True) for seconds in (now, now + 10)
    )

    with pytest.raises(errors.UnavailableError) as caught:
        decode_response(Response(503, b"", retry_after, date), REQUEST)

    assert caught.value.retry_after == 10.0


@pytest.mark.parametrize("date", ["", "yesterday", "7"])
def test_retry_after_date_is_compared_with_the_local_clock_if_the_date_header_is_invalid(date: str) -> None:
    header = format_datetime(datetime.fromtimestamp(time.time() + 3600, UTC), usegmt=True)

    with pytest.raises(errors.UnavailableError) as caught:
        decode_response(Response(503, b"", header, date), REQUEST)

    assert caught.value.retry_after == pytest.approx(3600, abs=100)


def test_retry_after_in_seconds_does_not_depend_on_the_date_header() -> None:
    with pytest.raises(errors.UnavailableError) as caught:
        decode_response(Response(503, b"", "7", "Sun, 06 Nov 1994 08:49:37 GMT"), REQUEST)

    assert caught.value.retry_after == 7.0


# --- Cleaning texts of responses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("Bad gateway", "Bad gateway", id="plain"),
        pytest.param("", "", id="empty"),
        pytest.param("Прокси недоступен, 代理, é", "Прокси недоступен, 代理, é", id="other languages"),
        pytest.param("a\nb\r\tc", "a\\nb\\r\\tc", id="line breaks and a tab"),
        pytest.param("a\x00b\x1b[31mc\x7f", "a\\x00b\\x1b[31mc\\x7f", id="terminal control sequence"),
        pytest.param("\x9b31m", "\\x9b31m", id="terminal control sequence of one character"),
        pytest.param("a\u202eb\u2066c\u200f", "a\\u202eb\\u2066c\\u200f", id="bidirectional controls"),
        pytest.param("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85", id="Unicode line breaks"),
        pytest.param("a\u200bb\ufeffc\u00ad", "a\\u200bb\\ufeffc\\xad", id="zero-width characters"),
        pytest.param("a\ud800b", "a\\ud800b", id="half of a surrogate pair"),
        pytest.param("\U000e0041\U0010ffff", "\\U000e0041\\U0010ffff", id="tag and last code point"),
        pytest.param('it\'s "quoted"', 'it\'s "quoted"', id="quotes"),
    ],
)
def test_characters_that_are_not_printable_are_escaped(text: str, cleaned: str) -> None:
    """Logs and terminals show the text, which could forge log lines or control the terminal."""
    assert clean(text, ()) == cleaned


@pytest.mark.parametrize("secret", ["hunter2", "p@ss/wörd €", "a b", "100%", "€", "a\u202eb"])
@pytest.mark.parametrize(
    "encode", [str, lambda secret: quote(secret, safe="")], ids=["plain", "percent-encoded"]
)
def test_secret_is_masked_anywhere_in_a_text(secret: str, encode: Any) -> None:
    """The API may repeat what it received, for example the proxy as a URL."""
    written = encode(secret)
    text = f"{written} http://u:{written}@h:80 {written}"

    assert clean(text, (Secret(secret),)) == "*** http://u:***@h:80 ***"


@pytest.mark.parametrize(
    ("password", "written"),
    [
        pytest.param("p@ss/word", "p%40ss%2fword", id="percent-encoded in lower case"),
        pytest.param("p@ss(word)!", "p%40ss(word)!", id="percent-encoded by encodeURIComponent"),
        pytest.param("pass wörd", "pass%20wörd", id="only required characters percent-encoded"),
        pytest.param('pass"word', 'pass\\"word', id="escaped for JSON"),
        pytest.param("passwörd", "passw\\u00f6rd", id="escaped for ASCII-only JSON"),
    ],
)
def test_secret_is_masked_in_every_common_encoding(password: str, written: str) -> None:
    assert clean(f'could not use {{"password": "{written}"}}', (Secret(password),)) == (
        'could not use {"password": "***"}'
    )


@pytest.mark.parametrize("order", [1, -1], ids=["longer first", "shorter first"])
def test_api_key_that_contains_the_password_is_masked_completely(order: int) -> None:
    secrets = (Secret("pp_live_hunter2_9d1f"), Secret("hunter2"))[::order]

    assert clean("pp_live_hunter2_9d1f and hunter2", secrets) == "*** and ***"


def test_masking_a_long_password_in_a_long_text_takes_less_than_a_second_of_cpu_time() -> None:
    """Meanwhile, the event loop is blocked. The text nearly matches the password everywhere."""
    text = ("a" * 1_999 + "b") * 125
    started = time.process_time()

    clean(text, (Secret("a" * 2_000),))

    assert time.process_time() - started < 1.0


def test_empty_password_masks_nothing() -> None:
    """The empty string occurs between any two characters, so replacing it would insert masks everywhere."""
    assert clean("text", (Secret(""),)) == "text"


def test_password_that_consists_of_the_mask_s_character_is_masked() -> None:
    assert set(clean("a*b", (Secret("*"), Secret("hunter2")))) == {"a", "*", "b"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 250_000, id="plain"),
        pytest.param("\x00" * 250_000, id="characters with short escapes"),
        pytest.param("\U0010ffff" * 50_000, id="characters with long escapes"),
        pytest.param("x" * 1023 + "\n", id="escape at the limit"),
        pytest.param("hunter2" * 30_000, id="secrets"),
    ],
)
def test_long_text_is_shortened(text: str) -> None:
    """Exceptions, logs and journals would otherwise hold a gateway's whole HTML page."""
    cleaned = clean(text, (Secret("hunter2"),))

    assert len(cleaned) <= MAX_TEXT == 1024
    assert "hunter2" not in cleaned


def test_text_of_the_maximum_length_is_not_shortened() -> None:
    assert clean("x" * 1024, ()) == "x" * 1024


@pytest.mark.parametrize(
    "text",
    ["x" * 1025, "x" * 250_000, "\x00" * 500],
    ids=["one character too long", "much too long", "too long if escaped"],
)
def test_shortened_text_ends_with_an_ellipsis(text: str) -> None:
    assert clean(text, ())[-1] == "…"


def test_secret_at_the_maximum_length_is_masked_completely() -> None:
    """The text must be shortened after masking: the first half of a password would not be found."""
    cleaned = clean("x" * 1020 + "hunter2" + "y" * 100, (Secret("hunter2"),))

    assert "hun" not in cleaned


@pytest.mark.parametrize("offset", range(0, 250, 50))
def test_no_part_of_a_secret_remains_in_a_text_that_repeats_it(offset: int) -> None:
    """Masking shortens this text from 77 kB to about 1 kB, so its end is shown."""
    password = "".join(chr(ord("A") + index % 26) for index in range(256))

    assert set(clean("." * offset + password * 300, (Secret(password),))) <= {".", "*", "…"}


@given(
    text=st.lists(st.text(max_size=5) | st.sampled_from(["hunter2", "%E2%82%AC", "€", "\x1b", "pp_key"])).map(
        "".join
    ),
    secrets=st.lists(st.sampled_from(["hunter2", "unte", "€", "pp_key", "pp_key_hunter2", ""]), max_size=4),
)
def test_cleaned_text_is_printable_short_and_without_secrets(text: str, secrets: list[str]) -> None:
    """The secrets may overlap."""
    cleaned = clean(text, tuple(map(Secret, secrets)))

    assert cleaned.isprintable()
    assert len(cleaned) <= MAX_TEXT
    assert not any(secret in cleaned or quote(secret, safe="") in cleaned for secret in secrets if secret)


MAKE_BODY: list[Any] = [
    lambda text: {"type": "errors/proxy_error", "title": text, "detail": text, "instance": text},
    lambda text: {"type": text, "title": "x"},
    lambda text: {"error": {"code": text, "message": text, "request_id": text}},
    lambda text: {"object": "AccountPatched", "account_id": text},
    lambda text: text,
]


@pytest.mark.parametrize(
    "make_body", MAKE_BODY, ids=["texts", "type", "quickstart", "another account", "no envelope"]
)
@pytest.mark.parametrize("status", [200, 201, 302, 400, 401, 418, 502])
@pytest.mark.parametrize("secret", [KEY, PASSWORD], ids=["key", "password"])
def test_no_error_contains_a_secret_of_the_response(make_body: Any, status: int, secret: Secret) -> None:
    text = f"a {secret.reveal()} b {quote(secret.reveal(), safe='')} c"
    with pytest.raises(errors.PostPressError) as caught:
        decode(status, json.dumps(make_body(text)).encode())

    shown = f"{caught.value} {caught.value!r} {caught.value.args} {vars(caught.value)} {caught.value.code}"
    assert secret.reveal() not in shown
    assert quote(secret.reveal(), safe="") not in shown


@pytest.mark.parametrize("password", ["proxy", "errors", "error", "_", "/", "errors/proxy_error"])
def test_listed_type_is_recognized_even_if_it_contains_the_password(password: str) -> None:
    """Masking part of the type would prevent classifying the error."""
    body = b'{"type": "errors/proxy_error", "title": "x"}'
    with pytest.raises(errors.ProxyError):
        decode_response(Response(502, body), make_request(password=password))


@pytest.mark.parametrize("password", ["key", "missing", "errors", "_"])
def test_quickstart_s_own_code_is_recognized_even_if_it_contains_the_password(password: str) -> None:
    body = b'{"error": {"code": "key_missing"}}'
    with pytest.raises(errors.KeyMissingError):
        decode_response(Response(401, body), make_request(password=password))


# --- Random responses ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["AccountPatched", "acc_1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3)
            | st.sampled_from(
                "object account_id type title detail instance status error code message request_id".split()
            ),
            inner | st.sampled_from(sorted(errors.BY_TYPE)),
            max_size=6,
        )
    ),
    max_leaves=20,
)
BODIES = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()) | st.just(PATCHED)


@given(
    status=st.sampled_from([200, *errors.BY_STATUS]) | st.integers(-1, 1000),
    body=BODIES,
    retry_after=st.none() | st.text(max_size=40) | st.sampled_from(["5", "Sun Nov  6 08:49:37 1994"]),
)
@example(status=200, body=PATCHED, retry_after=None)
def test_any_response_is_decoded_to_a_result_or_a_postpress_error(
    status: int, body: bytes, retry_after: str | None
) -> None:
    """Callers never have to handle another exception."""
    try:
        outcome: AccountPatched | errors.PostPressError = decode(status, body, retry_after)
    except errors.PostPressError as error:
        outcome = error

    if isinstance(outcome, AccountPatched):
        assert status == 200
        assert json.loads(body)["account_id"] == outcome.account_id == "acc_1"
    else:
        assert outcome.status == status
        assert str(outcome).isprintable()
        assert (outcome.__cause__, outcome.__context__) == (None, None)
