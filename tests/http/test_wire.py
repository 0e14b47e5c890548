"""Values to bytes, and bytes to values or errors, without a loop or a mock."""

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
    _make_json_encoder,
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
    """A str by inheritance, as settings libraries have them."""

    USER = "u"


def read(status: int, body: bytes, retry_after: str | None = None) -> AccountPatched:
    return decode_response(Response(status, body, retry_after), REQUEST)


def refused(status: int, body: bytes | object, retry_after: str | None = None) -> errors.ApiError:
    """The error that the answer becomes; a *body* that is not bytes is written as JSON."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(errors.ApiError) as caught:
        read(status, written, retry_after)
    return caught.value


def unbelieved(status: int, body: bytes) -> errors.AnswerError:
    with pytest.raises(errors.AnswerError) as caught:
        read(status, body)
    return caught.value


# --- What is sent --------------------------------------------------------------------------------


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
def test_only_what_was_given_is_sent(change: ProxyChange, fields: dict[str, Any]) -> None:
    """A null or a default could mean something else to the API."""
    request = encoded(change)

    assert json.loads(request.body) == fields
    assert request.account_id == "acc_1"
    assert request.body.isascii()


def test_a_port_is_sent_as_a_number() -> None:
    """The page says number; json.loads would not tell 8080 from 8080.0."""
    assert b'"port":8080}' in encoded(CustomProxy(host="h", port=8080)).body


def test_a_request_masks_its_password_and_shows_no_body() -> None:
    """A request is printed in a traceback's locals and in test reports."""
    request = encoded(CustomProxy(host="h", port=1, password="hunter2"))

    assert request.password == Secret("hunter2")
    assert "hunter2" not in repr(request)
    assert "hunter2" not in repr(Response(200, b"hunter2"))
    assert encoded(ManagedProxy(country="US")).password is None


@pytest.mark.parametrize("account_id", ["", "..", "a/b", "a b", "ä"])
def test_an_id_that_cannot_stand_in_a_url_is_refused(account_id: str) -> None:
    """Before a byte is sent."""
    with pytest.raises(FieldError):
        encoded(ManagedProxy(country="US"), account_id)


@pytest.mark.parametrize("username", [Name.USER, Secret("u")], ids=["str by inheritance", "secret"])
def test_what_the_model_takes_can_be_sent(username: Any) -> None:
    """A value that was checked must not fail later, in a call, with an error of another library."""
    try:
        change = CustomProxy(host="h", port=1, username=username)
    except FieldError:
        return

    assert json.loads(encoded(change).body)["proxy"]["username"] == "u"


@frozen
class Session:
    """A value of a subclass's field, with a default."""

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
    """A change of a random class with random fields."""

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


def test_bodies_of_random_changes_have_the_same_bytes_as_ever() -> None:
    """A server may compare the bodies of two requests with one key, also of two versions of this package."""
    random = Random(15)
    for _ in range(10_000):
        change = random_change(random)

        assert encoded(change).body == reference_body(change), change


def test_a_change_of_the_caller_s_own_class_is_sent_with_all_its_fields() -> None:
    """Fields that the API accepts later can be sent without a new version."""

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


# --- A 200 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(PATCHED, id="as the page shows it"),
        pytest.param(PATCHED.replace(b" ", b""), id="without a space"),
        pytest.param(PATCHED.replace(b": ", b":"), id="with a space after the comma alone"),
        pytest.param(b'{"account_id":"acc_1","object":"AccountPatched"}', id="in the other order"),
        pytest.param(b'\r\n\t {"object": "AccountPatched", "account_id": "acc_1"}\n', id="spaces around"),
        pytest.param(
            b'{"object": "AccountPatched", "account_id": "acc_1", "new": [1, null]}', id="a new field"
        ),
        pytest.param(b'{"object": "AccountPatched", "account_id": "acc\\u005f1"}', id="escaped"),
    ],
)
def test_a_200_for_this_account_is_a_success(body: bytes) -> None:
    """Fields that are new are no reason to fail: APIs grow."""
    assert read(200, body) == AccountPatched("acc_1")


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
        pytest.param(b'{"account_id": "acc_1"}', id="no object"),
        pytest.param(b'{"object": "Account", "account_id": "acc_1"}', id="another object"),
        pytest.param(b'{"object": "accountpatched", "account_id": "acc_1"}', id="object in lower case"),
        pytest.param(b'{"object": ["AccountPatched"], "account_id": "acc_1"}', id="object in a list"),
        pytest.param(b'{"object": "AccountPatched", "account_id": "acc_2"}', id="another account"),
        pytest.param(b'{"object": "AccountPatched", "account_id": "ACC_1"}', id="id in upper case"),
        pytest.param(b'{"object": "AccountPatched", "account_id": ""}', id="empty id"),
        pytest.param(b'{"object": "AccountPatched", "account_id": null}', id="null id"),
        pytest.param(b'{"object": "AccountPatched", "account_id": 1}', id="id that is a number"),
        pytest.param(b'{"object": "AccountPatched", "account_id": ["acc_1"]}', id="id in a list"),
        pytest.param(b'{"data": ' + PATCHED + b"}", id="wrapped"),
        pytest.param(PATCHED[:-1], id="cut short"),
        pytest.param(PATCHED + PATCHED, id="twice"),
        pytest.param(PATCHED + b"x", id="something after"),
        pytest.param(b"\xef\xbb\xbf" + PATCHED, id="byte-order mark"),
        pytest.param(PATCHED.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(PATCHED[:-1] + b', "x": "\xff"}', id="not UTF-8"),
        pytest.param(PATCHED[:-1] + b', "x": "\xed\xa0\x80"}', id="a surrogate as UTF-8"),
        pytest.param(PATCHED[:-1] + b', "account_id": "acc_1"}', id="a name twice"),
        pytest.param(PATCHED[:-1] + b', "x": {"y": 1, "y": 2}}', id="a name twice, deeper"),
        pytest.param(PATCHED[:-1] + b', "x": NaN}', id="NaN"),
        pytest.param(PATCHED[:-1] + b', "x": -Infinity}', id="infinity"),
        pytest.param(PATCHED[:-1] + b', "x": ' + b"9" * 20_000 + b"}", id="20,000 digits"),
        pytest.param(
            PATCHED[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 lists deep"
        ),
        pytest.param(b'{"a":' * 40_000, id="40,000 objects deep"),
        pytest.param(b'{"object": "AccountPatched", "account_id": "' + b"a" * 250_000 + b'"}', id="huge"),
        pytest.param(
            b'{"type": "errors/proxy_error", "title": "x", "status": 502}', id="an error's envelope"
        ),
    ],
)
def test_a_200_that_cannot_be_true_is_no_success(body: bytes) -> None:
    """An account that is wrongly recorded as patched would keep a dead proxy."""
    error = unbelieved(200, body)

    assert error.status == 200
    assert not error.retryable
    assert error.applied is errors.Applied.UNKNOWN
    assert (error.__cause__, error.__context__) == (None, None)
    assert len(str(error)) < 200


@pytest.mark.parametrize("status", [-1, 0, 100, 199, 201, 202, 204, 206, 226, 299])
def test_a_success_that_is_not_200_is_not_believed(status: int) -> None:
    """A 202 would mean "later", a 204 "I say nothing": neither is what the page documents."""
    error = unbelieved(status, PATCHED)

    assert error.status == status
    assert not error.retryable
    assert error.applied is errors.Applied.UNKNOWN


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
def test_a_redirect_is_an_error(status: int) -> None:
    """Followed, it would carry the key to wherever it points."""
    error = unbelieved(status, PATCHED)

    assert error.status == status
    assert "redirect" in str(error)
    assert not error.retryable


# --- Error answers -------------------------------------------------------------------------------


def test_the_reference_s_envelope_is_kept_whole() -> None:
    """Title, detail and instance are kept, which support asks for."""
    error = refused(
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
def test_the_quickstart_s_envelope_becomes_the_same_error(code: str) -> None:
    """One API, two shapes: a caller should not have to know which one came."""
    error = refused(400, {"error": {"code": code, "message": "No port", "request_id": "req_1"}})

    assert type(error) is errors.InvalidParametersError
    assert error.type == "errors/invalid_parameters"
    assert (error.title, error.detail, error.instance) == ("No port", None, "req_1")


def test_the_quickstart_s_own_code_is_its_class() -> None:
    """Only there is it written that no key arrived."""
    error = refused(401, {"error": {"code": "key_missing"}})

    assert type(error) is errors.KeyMissingError
    assert (error.title, error.detail, error.instance) == ("", None, None)


@pytest.mark.parametrize(
    ("envelope", "title", "detail", "instance"),
    [
        pytest.param({}, "", None, None, id="the type alone"),
        pytest.param({"title": None, "detail": None, "instance": None}, "", None, None, id="nulls"),
        pytest.param({"title": 5, "instance": {"id": 1}}, "", None, None, id="other kinds"),
        pytest.param({"title": True, "instance": False}, "", None, None, id="true and false"),
        pytest.param({"title": "", "detail": "", "instance": ""}, "", "", "", id="empty"),
        pytest.param({"title": "x", "status": "502"}, "x", None, None, id="a status that is text"),
        pytest.param({"title": "x", "status": 200}, "x", None, None, id="another status"),
        pytest.param({"title": "x", "error": "y"}, "x", None, None, id="an error beside it"),
        pytest.param(
            {"title": "x", "error": {"message": "y"}}, "x", None, None, id="an error without a code"
        ),
        pytest.param(
            {"title": "x", "error": {"code": 5}}, "x", None, None, id="an error whose code is a number"
        ),
    ],
)
def test_a_field_that_is_missing_or_odd_leaves_the_rest(
    envelope: dict[str, Any], title: str, detail: str | None, instance: str | None
) -> None:
    """The type determines the class; no other field may prevent reading it."""
    error = refused(502, {"type": "errors/proxy_error", **envelope})

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
        pytest.param({"a\u202e": "\n"}, '{"a\\u202e":"\\n"}', id="what could deceive a reader"),
    ],
)
def test_a_detail_that_is_not_text_is_kept_as_compact_json(detail: object, text: str) -> None:
    """Validators list there what is wrong with each field."""
    error = refused(400, {"type": "errors/invalid_parameters", "title": "x", "detail": detail})

    assert error.detail == text


def test_a_detail_that_is_not_text_is_masked_and_capped_like_text() -> None:
    """Inside an object, a password is still a password."""
    form: dict[str, Any] = {"type": "errors/invalid_parameters", "title": "x"}

    masked = refused(400, {**form, "detail": {"sent": ["hunter2/€", KEY.reveal()]}}).detail
    capped = refused(400, {**form, "detail": ["x" * 5000]}).detail

    assert masked == '{"sent":["***","***"]}'
    assert capped is not None
    assert len(capped) == MAX_TEXT


def test_without_an_encoder_in_c_bodies_are_the_same(monkeypatch) -> None:
    """The encoder in C is undocumented, and PyPy has none."""
    value = {"country": "US", "proxy": {"host": "é", "port": 1}}
    with_c = _make_json_encoder()(value)
    monkeypatch.setattr(json.encoder, "c_make_encoder", None)

    assert _make_json_encoder()(value) == with_c


def test_a_detail_that_is_nested_deeply_is_an_error_of_ours() -> None:
    """The reader and the writer of JSON each have a limit; one depth or two can be read and not written."""
    for depth in range(800, 1000):
        body = b'{"type": "errors/proxy_error", "title": "x", "detail": ' + b"[" * depth + b"]" * depth + b"}"

        assert isinstance(refused(502, body), errors.BadGatewayError), depth


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
def test_a_type_written_as_a_url_is_known_whatever_the_password(password: str, shown: str) -> None:
    """The password is masked in the text around the type, and does not hide the type itself."""
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
        pytest.param(b'{"type": 502, "title": "x"}', id="type that is a number"),
        pytest.param(b'{"type": ["errors/proxy_error"]}', id="type in a list"),
        pytest.param(b'{"error": {"code": null}}', id="null code"),
        pytest.param(b'{"error": {"code": ""}}', id="empty code"),
        pytest.param(b'{"error": {}}', id="error without a code"),
        pytest.param(b'{"error": "proxy_error"}', id="error that is text"),
        pytest.param(b'{"type": "errors/proxy_error", "type": "errors/no_channel"}', id="the type twice"),
        pytest.param(b'{"type": "errors/proxy_error", "x": NaN}', id="NaN"),
        pytest.param(b'{"type": "errors/proxy_error", "x": ' + b"9" * 20_000 + b"}", id="20,000 digits"),
        pytest.param(b'{"type": "errors/proxy_error", "x": ' + b"[" * 100_000, id="100,000 lists deep"),
        pytest.param(b'{"type": "errors/proxy_error"\xff}', id="not UTF-8"),
        pytest.param(b"\x00" * 1000, id="null characters"),
    ],
)
def test_an_error_without_an_envelope_is_its_status_s(body: bytes) -> None:
    """Gateways in front of the API do not know its envelopes or the proxies."""
    error = refused(502, body)

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
def test_retry_after_is_on_the_error(status: int, header: str | None, seconds: float | None) -> None:
    """The policy waits at least that long; if it gives up, the error says when to come back."""
    assert refused(status, b"", header).retry_after == seconds


def test_a_retry_after_that_is_a_date_counts_from_now() -> None:
    """The system's clock decides, because the value is a date."""
    header = format_datetime(datetime.fromtimestamp(time.time() + 3600, UTC), usegmt=True)

    seconds = refused(503, b"", header).retry_after
    assert seconds is not None
    assert 3500 < seconds <= 3600


@pytest.mark.parametrize(
    "skew", [-300, 0, 300], ids=["server's clock behind", "same clock", "server's ahead"]
)
def test_a_date_is_read_against_the_answer_s_own_date(skew: float) -> None:
    """Read by another clock, a wait of 10 s is no wait at all, or so long that the call gives up."""
    now = time.time() + skew
    sent, until = (format_datetime(datetime.fromtimestamp(t, UTC), usegmt=True) for t in (now, now + 10))

    with pytest.raises(errors.UnavailableError) as caught:
        decode_response(Response(503, b"", until, sent), REQUEST)

    assert caught.value.retry_after == 10.0


@pytest.mark.parametrize("date", ["", "yesterday", "7"])
def test_a_date_that_cannot_be_read_leaves_the_system_s_clock(date: str) -> None:
    """An unreadable date is ignored."""
    header = format_datetime(datetime.fromtimestamp(time.time() + 3600, UTC), usegmt=True)

    with pytest.raises(errors.UnavailableError) as caught:
        decode_response(Response(503, b"", header, date), REQUEST)

    assert caught.value.retry_after == pytest.approx(3600, abs=100)


def test_seconds_do_not_depend_on_the_answer_s_date() -> None:
    """The seconds count from the arrival of the response."""
    with pytest.raises(errors.UnavailableError) as caught:
        decode_response(Response(503, b"", "7", "Sun, 06 Nov 1994 08:49:37 GMT"), REQUEST)

    assert caught.value.retry_after == 7.0


# --- Text from outside ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("Bad gateway", "Bad gateway", id="plain"),
        pytest.param("", "", id="empty"),
        pytest.param("Прокси недоступен, 代理, é", "Прокси недоступен, 代理, é", id="other languages"),
        pytest.param("a\nb\r\tc", "a\\nb\\r\\tc", id="line breaks, which forge a line of a log"),
        pytest.param("a\x00b\x1b[31mc\x7f", "a\\x00b\\x1b[31mc\\x7f", id="terminal's control sequences"),
        pytest.param("\x9b31m", "\\x9b31m", id="control sequence in one character"),
        pytest.param("a\u202eb\u2066c\u200f", "a\\u202eb\\u2066c\\u200f", id="bidirectional controls"),
        pytest.param("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85", id="line breaks of Unicode"),
        pytest.param("a\u200bb\ufeffc\u00ad", "a\\u200bb\\ufeffc\\xad", id="characters of no width"),
        pytest.param("a\ud800b", "a\\ud800b", id="half of a surrogate pair"),
        pytest.param("\U000e0041\U0010ffff", "\\U000e0041\\U0010ffff", id="tags and the end of Unicode"),
        pytest.param('it\'s "quoted"', 'it\'s "quoted"', id="quotes"),
    ],
)
def test_what_could_deceive_a_reader_is_escaped(text: str, cleaned: str) -> None:
    """The text reaches logs and terminals, and any server may have written it."""
    assert clean(text, ()) == cleaned


@pytest.mark.parametrize("secret", ["hunter2", "p@ss/wörd €", "a b", "100%", "€", "a\u202eb"])
@pytest.mark.parametrize(
    "write", [str, lambda secret: quote(secret, safe="")], ids=["plain", "percent-encoded"]
)
def test_a_secret_is_masked_wherever_it_stands(secret: str, write: Any) -> None:
    """An API likes to repeat what it was sent; and proxies stand in messages as URLs."""
    written = write(secret)
    text = f"{written} http://u:{written}@h:80 {written}"

    assert clean(text, (Secret(secret),)) == "*** http://u:***@h:80 ***"


@pytest.mark.parametrize(
    ("password", "written"),
    [
        pytest.param("p@ss/word", "p%40ss%2fword", id="percent-encoded in lower case"),
        pytest.param("p@ss(word)!", "p%40ss(word)!", id="percent-encoded as encodeURIComponent does"),
        pytest.param("pass wörd", "pass%20wörd", id="percent-encoded where it must be"),
        pytest.param('pass"word', 'pass\\"word', id="in JSON"),
        pytest.param("passwörd", "passw\\u00f6rd", id="in JSON, as it was sent"),
    ],
)
def test_a_secret_is_masked_however_it_was_escaped(password: str, written: str) -> None:
    """There is more than one right way to escape it, and the API chooses: also that of our own body."""
    assert clean(f'could not use {{"password": "{written}"}}', (Secret(password),)) == (
        'could not use {"password": "***"}'
    )


@pytest.mark.parametrize("order", [1, -1], ids=["longer first", "shorter first"])
def test_a_secret_that_is_a_part_of_another_leaves_no_pieces(order: int) -> None:
    """A password that the key happens to hold would cut the key in two and leave both halves."""
    secrets = (Secret("pp_live_hunter2_9d1f"), Secret("hunter2"))[::order]

    assert clean("pp_live_hunter2_9d1f and hunter2", secrets) == "*** and ***"


def test_masking_a_long_password_does_not_hold_up_the_loop() -> None:
    """One hostile answer to one call would stop all the others; the processor's time, as nothing is slept."""
    text = ("a" * 1_999 + "b") * 125
    began = time.process_time()

    clean(text, (Secret("a" * 2_000),))
    assert time.process_time() - began < 1.0


def test_a_secret_that_is_empty_masks_nothing() -> None:
    """An empty password is allowed, and would match between any two characters."""
    assert clean("text", (Secret(""),)) == "text"


def test_a_secret_that_is_a_star_is_masked_and_the_text_still_ends() -> None:
    """The mask is made of what is masked."""
    assert set(clean("a*b", (Secret("*"), Secret("hunter2")))) == {"a", "*", "b"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 250_000, id="plain"),
        pytest.param("\x00" * 250_000, id="of characters that are escaped"),
        pytest.param("\U0010ffff" * 50_000, id="of characters that are escaped at length"),
        pytest.param("x" * 1023 + "\n", id="escaped at the end"),
        pytest.param("hunter2" * 30_000, id="of secrets"),
    ],
)
def test_a_long_text_is_cut(text: str) -> None:
    """A gateway's page is not put whole in an exception, a log and a journal's row."""
    cleaned = clean(text, (Secret("hunter2"),))

    assert len(cleaned) <= MAX_TEXT == 1024
    assert "hunter2" not in cleaned


def test_a_text_of_the_greatest_length_is_kept() -> None:
    """The edge belongs to what is kept."""
    assert clean("x" * 1024, ()) == "x" * 1024


@pytest.mark.parametrize(
    "text", ["x" * 1025, "x" * 250_000, "\x00" * 500], ids=["one over", "far over", "by escapes"]
)
def test_a_text_that_was_cut_says_so(text: str) -> None:
    """Who reads half a sentence should know that there was more."""
    assert clean(text, ())[-1] == "…"


def test_a_secret_over_the_cut_leaves_no_half() -> None:
    """Cut first and masked after, half a password would be none that is looked for."""
    cleaned = clean("x" * 1020 + "hunter2" + "y" * 100, (Secret("hunter2"),))

    assert "hun" not in cleaned


@given(
    text=st.lists(st.text(max_size=5) | st.sampled_from(["hunter2", "%E2%82%AC", "€", "\x1b", "pp_key"])).map(
        "".join
    ),
    secrets=st.lists(st.sampled_from(["hunter2", "unte", "€", "pp_key", "pp_key_hunter2", ""]), max_size=4),
)
def test_cleaned_text_is_printable_short_and_without_secrets(text: str, secrets: list[str]) -> None:
    """This holds for any text and secrets, even overlapping ones."""
    cleaned = clean(text, tuple(map(Secret, secrets)))

    assert cleaned.isprintable()
    assert len(cleaned) <= MAX_TEXT
    assert not any(secret in cleaned or quote(secret, safe="") in cleaned for secret in secrets if secret)


FORMS: list[Any] = [
    lambda text: {"type": "errors/proxy_error", "title": text, "detail": text, "instance": text},
    lambda text: {"type": text, "title": "x"},
    lambda text: {"error": {"code": text, "message": text, "request_id": text}},
    lambda text: {"object": "AccountPatched", "account_id": text},
    lambda text: text,
]


@pytest.mark.parametrize("form", FORMS, ids=["texts", "type", "quickstart", "another account", "no envelope"])
@pytest.mark.parametrize("status", [200, 201, 302, 400, 401, 418, 502])
@pytest.mark.parametrize("secret", [KEY, PASSWORD], ids=["key", "password"])
def test_no_error_repeats_a_secret(form: Any, status: int, secret: Secret) -> None:
    """The secret may be in any field of the response, for any error."""
    text = f"a {secret.reveal()} b {quote(secret.reveal(), safe='')} c"
    with pytest.raises(errors.PostPressError) as caught:
        read(status, json.dumps(form(text)).encode())

    shown = f"{caught.value} {caught.value!r} {caught.value.args} {vars(caught.value)} {caught.value.code}"
    assert secret.reveal() not in shown
    assert quote(secret.reveal(), safe="") not in shown


@pytest.mark.parametrize("password", ["proxy", "errors", "error", "_", "/", "errors/proxy_error"])
def test_a_listed_type_is_known_whatever_the_password(password: str) -> None:
    """A password that is a part of the type's name would else hide the class, and with it what to do."""
    body = b'{"type": "errors/proxy_error", "title": "x"}'
    with pytest.raises(errors.ProxyError):
        decode_response(Response(502, body), make_request(password=password))


@pytest.mark.parametrize("password", ["key", "missing", "errors", "_"])
def test_the_quickstart_s_own_type_is_known_whatever_the_password(password: str) -> None:
    """The same for the type that only the quickstart lists, and that stops a rotation."""
    body = b'{"error": {"code": "key_missing"}}'
    with pytest.raises(errors.KeyMissingError):
        decode_response(Response(401, body), make_request(password=password))


# --- Anything ------------------------------------------------------------------------------------

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
def test_any_answer_is_a_value_or_an_error_of_ours(status: int, body: bytes, retry_after: str | None) -> None:
    """Whatever a server or gateway sends, callers need to handle only one kind of exception."""
    try:
        outcome: AccountPatched | errors.PostPressError = read(status, body, retry_after)
    except errors.PostPressError as error:
        outcome = error

    if isinstance(outcome, AccountPatched):
        assert status == 200
        assert json.loads(body)["account_id"] == outcome.account_id == "acc_1"
    else:
        assert outcome.status == status
        assert str(outcome).isprintable()
        assert (outcome.__cause__, outcome.__context__) == (None, None)
