"""The sandbox server over plain HTTP: the rules of the API reference, injected faults, and its life cycle."""

import asyncio
import functools
import io
import json
import random
import re
import selectors
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, ParamSpec

import aiohttp
import pytest
from yarl import URL

from postpress_async.sandbox._catalogue import TYPES
from postpress_async.sandbox._faults import Fault, Faults, handles_normally
from postpress_async.sandbox._limits import TokenBucket
from postpress_async.sandbox._server import Server
from tests.support import DATA

API_REFERENCE = DATA / "update-account-proxy.txt"
KEY = {"X-API-KEY": "pp_test_sandbox"}
US = {"country": "US"}
CUSTOM = {
    "proxy": {
        "protocol": "https",
        "host": "proxy.example.com",
        "port": 8080,
        "username": "proxyuser",
        "password": "s3cret",
    }
}
P = ParamSpec("P")


def reference_errors() -> list[tuple[str, int, str, str]]:
    """The type, status, title and detail of each error in the text of the API reference."""
    errors, status, title = [], 0, ""
    for line in API_REFERENCE.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"(\d{3}) (\D+?)\d+ types$", line):
            status, title = int(heading[1]), heading[2]
        elif error := re.match(r"\W*(errors/\w+) - (.+)$", line):
            errors.append((error[1], status, title, error[2]))
    return errors


class SkippingSelector(selectors.DefaultSelector):
    """Advances a virtual clock instead of waiting for a timer."""

    now = 0.0  # seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Check the sockets first. Time passes only if none of them is ready."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0.001)  # the kernel needs some real time to deliver data over loopback
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time and real sockets."""

    def __init__(self) -> None:
        self.skipping = SkippingSelector()
        super().__init__(self.skipping)

    def time(self) -> float:
        """Virtual seconds since the loop was created."""
        return self.skipping.now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on a `VirtualLoop`."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    """The time of the running event loop."""
    return asyncio.get_running_loop().time()


async def time_passes(seconds: float) -> None:
    """Let virtual time pass, without really waiting."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await asyncio.sleep(seconds)


class Reply(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)

    @property
    def type(self) -> str:
        """The error type, after checking the envelope's fields and status."""
        assert self.json["status"] == self.status
        assert set(self.json) == {"title", "detail", "instance", "type", "status"}
        return str(self.json["type"])


class Api(NamedTuple):
    """A server and a plain HTTP client."""

    server: Server
    client: aiohttp.ClientSession

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | io.BytesIO | AsyncIterator[bytes] = b'{"country": "US"}',
        headers: Mapping[str, str] = KEY,
    ) -> Reply:
        """Send a request to *path* under the server's URL, without escaping it."""
        async with self.client.request(
            method,
            URL(self.server.url + path, encoded=True),
            data=body,
            headers={"Content-Type": "application/json", **headers},
            allow_redirects=False,
        ) as response:
            return Reply(response.status, await response.read(), response.headers)

    async def patch(self, account_id: str = "acc_1", change: object = US, key: str | None = None) -> Reply:
        """Send the request of the API reference, with an Idempotency-Key unless *key* is None."""
        headers = KEY if key is None else KEY | {"Idempotency-Key": key}
        return await self.send(
            "PATCH", f"/accounts/{account_id}", body=json.dumps(change).encode(), headers=headers
        )


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Api]:
    """A started server and its client; both are closed at the end."""
    connector = aiohttp.TCPConnector(limit=0)
    async with Server(**options) as server, aiohttp.ClientSession(connector=connector) as client:
        yield Api(server, client)


@pytest.fixture(autouse=True)
def _aiohttp_logs_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An exception in the server is visible only in aiohttp's log, because the client just gets a 500."""
    yield
    assert [record for record in caplog.get_records("call") if record.name.startswith("aiohttp")] == []


# The rules of the API reference


async def test_a_success_has_the_body_of_the_api_reference() -> None:
    async with running() as api:
        reply = await api.patch("acc_01HXYZ4QK3WJ8FN3M6QH7TZ8GR", CUSTOM)

        assert reply.status == 200
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.json == {"object": "AccountPatched", "account_id": "acc_01HXYZ4QK3WJ8FN3M6QH7TZ8GR"}


async def test_proxy_of_returns_the_body_last_applied() -> None:
    """Tests can check what the client sent, including the password."""
    async with running() as api:
        await api.patch("acc_1", US)
        await api.patch("acc_1", CUSTOM)

        assert api.server.record.proxy_of("acc_1") == CUSTOM
        assert api.server.record.proxy_of("acc_2") is None
        assert api.server.record.patched_accounts == {"acc_1": 2}


async def test_every_order_of_a_managed_proxy_is_counted() -> None:
    """Managed proxies may be billed, so the count must reveal a client that sends an order twice."""
    async with running() as api:
        await api.patch("acc_1", US)
        await api.patch("acc_1", US)
        await api.patch("acc_1", {"ip": "203.0.113.42"})
        await api.patch("acc_1", CUSTOM)

        assert api.server.record.managed_handed_out == 3


@pytest.mark.parametrize(
    ("headers", "type_"),
    [
        pytest.param({}, "errors/missing_credentials", id="none"),
        pytest.param({"X-API-KEY": ""}, "errors/missing_credentials", id="empty"),
        pytest.param({"Authorization": "Basic cHA6"}, "errors/missing_credentials", id="not Bearer"),
        pytest.param({"X-API-KEY": "pp_test_other"}, "errors/invalid_credentials", id="wrong"),
        pytest.param({"Authorization": "Bearer no"}, "errors/invalid_credentials", id="wrong Bearer"),
        pytest.param(
            {"X-API-KEY": "no", "Authorization": "Bearer pp_test_sandbox"},
            "errors/invalid_credentials",
            id="X-API-KEY before Bearer",
        ),
        pytest.param(
            {"X-API-KEY": "", "Authorization": "Bearer pp_test_sandbox"},
            "errors/missing_credentials",
            id="an empty X-API-KEY before Bearer",
        ),
    ],
)
async def test_a_request_without_a_valid_key_is_rejected(headers: dict[str, str], type_: str) -> None:
    """A missing key and a wrong key have different error types."""
    async with running() as api:
        reply = await api.send("PATCH", "/accounts/acc_1", headers=headers)

        assert (reply.status, reply.type) == (401, type_)
        assert api.server.record.proxy_of("acc_1") is None


async def test_the_key_may_be_a_bearer_token() -> None:
    """The quickstart documents both forms."""
    async with running(api_key="pp_live_1") as api:
        reply = await api.send("PATCH", "/accounts/acc_1", headers={"Authorization": "Bearer pp_live_1"})

        assert reply.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [
        pytest.param("PATCH", "/accounts", 404, "errors/resource_not_found", id="no id"),
        pytest.param("PATCH", "/accounts/", 404, "errors/resource_not_found", id="an empty id"),
        pytest.param("PATCH", "/accounts/acc_1/proxy", 404, "errors/resource_not_found", id="too deep"),
        pytest.param("GET", "/proxies", 404, "errors/resource_not_found", id="another path"),
        pytest.param("GET", "/accounts/acc_1", 405, "errors/method_not_allowed", id="GET"),
        pytest.param("PUT", "/accounts/acc_1", 405, "errors/method_not_allowed", id="PUT"),
        pytest.param("PATCH", "/accounts/a%20b", 404, "errors/invalid_resource_identifier", id="a space"),
        pytest.param("PATCH", "/accounts/a%2Fb", 404, "errors/invalid_resource_identifier", id="a slash"),
        pytest.param("PATCH", "/accounts/%C3%A4", 404, "errors/invalid_resource_identifier", id="a letter ä"),
        pytest.param("PATCH", "/accounts/a%", 400, "errors/unescaped_characters", id="a bare percent"),
        pytest.param("PATCH", "/accounts/{id}", 400, "errors/unescaped_characters", id="bare braces"),
    ],
)
async def test_wrong_path_or_method_is_rejected(method: str, path: str, status: int, type_: str) -> None:
    """A client that builds a wrong URL must get an error."""
    async with running() as api:
        reply = await api.send(method, path)

        assert (reply.status, reply.type) == (status, type_)


@pytest.mark.parametrize(
    ("path", "account_id"),
    [
        pytest.param("/accounts/acc_1?port=8443", "acc_1", id="a query"),
        pytest.param("/accounts/acc%5F1", "acc_1", id="percent-encoded"),
        pytest.param("/accounts/a.B-9~_", "a.B-9~_", id="all unreserved characters"),
    ],
)
async def test_equivalent_paths_name_the_same_account(path: str, account_id: str) -> None:
    """RFC 3986 defines which spellings are equivalent; ``?port=N`` appears in the quickstart."""
    async with running() as api:
        reply = await api.send("PATCH", path)

        assert reply.json["account_id"] == account_id


async def test_an_account_that_is_not_listed_does_not_exist() -> None:
    """A well-formed id may still be unknown."""
    async with running(accounts=["acc_1"]) as api:
        known, unknown = await api.patch("acc_1"), await api.patch("acc_2")

        assert known.status == 200
        assert (unknown.status, unknown.type) == (404, "errors/resource_not_found")
        assert api.server.record.sends("acc_2") == 1


def custom(**fields: object) -> dict[str, object]:
    """The body for a custom proxy, with changed fields. A field is omitted if its value is `...`."""
    proxy = CUSTOM["proxy"] | fields
    return {"proxy": {name: value for name, value in proxy.items() if value is not ...}}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({}, "missing_parameters", id="an empty object"),
        pytest.param([], "malformed_request", id="an array"),
        pytest.param(None, "malformed_request", id="null"),
        pytest.param({"country": "US", "colour": 1}, "invalid_parameters", id="unknown field"),
        pytest.param(custom(scheme="http"), "invalid_parameters", id="unknown field of the proxy"),
        pytest.param(CUSTOM | US, "invalid_request", id="proxy and country"),
        pytest.param(CUSTOM | {"ip": "203.0.113.42"}, "invalid_request", id="proxy and ip"),
        pytest.param({"proxy": None}, "invalid_parameters", id="proxy null"),
        pytest.param({"proxy": "http://h:1"}, "invalid_parameters", id="proxy a string"),
        pytest.param({"proxy": {}}, "missing_parameters", id="proxy empty"),
        pytest.param(custom(host=...), "missing_parameters", id="no host"),
        pytest.param(custom(host=""), "invalid_parameters", id="host empty"),
        pytest.param(custom(host=None), "invalid_parameters", id="host null"),
        pytest.param(custom(host=1), "invalid_parameters", id="host a number"),
        pytest.param(custom(port=...), "missing_parameters", id="no port"),
        pytest.param(custom(port="8080"), "invalid_parameters", id="port a string"),
        pytest.param(custom(port=None), "invalid_parameters", id="port null"),
        pytest.param(custom(port=True), "invalid_parameters", id="port true"),
        pytest.param(custom(port=False), "invalid_parameters", id="port false"),
        pytest.param(custom(port=8080.5), "invalid_parameters", id="port 8080.5"),
        pytest.param(custom(port=0), "invalid_parameters", id="port 0"),
        pytest.param(custom(port=-1), "invalid_parameters", id="port -1"),
        pytest.param(custom(port=65536), "invalid_parameters", id="port 65536"),
        pytest.param(custom(protocol="socks4"), "invalid_parameters", id="protocol socks4"),
        pytest.param(custom(protocol="HTTP"), "invalid_parameters", id="protocol in capitals"),
        pytest.param(custom(protocol=None), "invalid_parameters", id="protocol null"),
        pytest.param(custom(protocol=["http"]), "invalid_parameters", id="protocol an array"),
        pytest.param(custom(username=None), "invalid_parameters", id="username null"),
        pytest.param(custom(username=7), "invalid_parameters", id="username a number"),
        pytest.param(custom(password=None), "invalid_parameters", id="password null"),
        pytest.param(custom(password=7), "invalid_parameters", id="password a number"),
        pytest.param({"country": "USA"}, "invalid_parameters", id="country of 3"),
        pytest.param({"country": ""}, "invalid_parameters", id="country empty"),
        pytest.param({"country": None}, "invalid_parameters", id="country null"),
        pytest.param({"country": ["U", "S"]}, "invalid_parameters", id="country of 2, but an array"),
        pytest.param({"ip": "203.0.113.256"}, "invalid_parameters", id="ip out of range"),
        pytest.param({"ip": "2001:db8::1"}, "invalid_parameters", id="ip of version 6"),
        pytest.param({"ip": None}, "invalid_parameters", id="ip null"),
        pytest.param({"ip": 3405803818}, "invalid_parameters", id="ip a number"),
    ],
)
async def test_a_body_that_breaks_a_rule_is_rejected(change: object, error: str) -> None:
    """Each broken rule of the API reference gives a 400, and nothing is applied."""
    async with running() as api:
        reply = await api.patch("acc_1", change)

        assert (reply.status, reply.type) == (400, f"errors/{error}")
        assert api.server.record.proxy_of("acc_1") is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(custom(protocol=..., username=..., password=...), id="host and port"),
        pytest.param(custom(protocol="http"), id="http"),
        pytest.param(custom(protocol="socks5"), id="socks5"),
        pytest.param(custom(port=1), id="port 1"),
        pytest.param(custom(port=65535), id="port 65535"),
        pytest.param(custom(port=8080.0), id="port 8080.0, one number in JSON"),
        pytest.param(custom(username="", password=""), id="empty username and password"),
        pytest.param({"ip": "203.0.113.42"}, id="ip"),
        pytest.param({"country": "US", "ip": "203.0.113.42"}, id="country and ip"),
    ],
)
async def test_a_valid_body_is_applied(change: object) -> None:
    """The sandbox must not enforce rules that the API reference does not have."""
    async with running() as api:
        reply = await api.patch("acc_1", change)

        assert reply.status == 200
        assert api.server.record.proxy_of("acc_1") == change


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="incomplete"),
        pytest.param(b"country=US", id="a form"),
        pytest.param(b'{"country": NaN}', id="NaN"),
        pytest.param(b'{"country": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b"[" * 60_000, id="too deep"),
    ],
)
async def test_a_body_that_is_not_json_is_malformed(body: bytes) -> None:
    """Python's json also accepts text that is not JSON."""
    async with running() as api:
        reply = await api.send("PATCH", "/accounts/acc_1", body=body)

        assert (reply.status, reply.type) == (400, "errors/malformed_request")


async def test_a_body_requires_the_content_type_of_json() -> None:
    """Many frameworks require it, so a client that forgets it should fail here."""
    async with running() as api:
        reply = await api.send("PATCH", "/accounts/acc_1", headers=KEY | {"Content-Type": "text/plain"})

        assert (reply.status, reply.type) == (400, "errors/malformed_request")


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in chunks, so that the request has no Content-Length."""
    for start in range(0, len(body), 16 * 1024):
        yield body[start : start + 16 * 1024]


@pytest.mark.parametrize("size", [64 * 1024 + 1, 2 * 1024 * 1024], ids=["a byte too many", "2 MiB"])
@pytest.mark.parametrize("as_body", [io.BytesIO, in_chunks], ids=["with Content-Length", "in chunks"])
async def test_a_body_over_64_kib_is_too_large(size: int, as_body: Callable[[bytes], Any]) -> None:
    """A body of exactly 64 KiB is accepted."""

    def body_of(total: int) -> Any:
        """A valid body of *total* bytes."""
        padding = total - len(json.dumps(custom(username="")))
        return as_body(json.dumps(custom(username="u" * padding)).encode())

    async with running() as api:
        rejected = await api.send("PATCH", "/accounts/acc_1", body=body_of(size))
        accepted = await api.send("PATCH", "/accounts/acc_2", body=body_of(64 * 1024))

        assert (rejected.status, rejected.type) == (400, "errors/content_too_large")
        assert accepted.status == 200


async def test_every_error_has_its_own_instance() -> None:
    """The instance identifies the error to support. It is a counter, so that runs can be repeated exactly."""
    async with running() as api:
        replies = [await api.patch("acc_1", {}) for _ in range(2)]

        assert [reply.json["instance"] for reply in replies] == ["req_000000000001", "req_000000000002"]


async def test_the_quickstarts_envelope_can_be_selected() -> None:
    """The codes of this envelope are the types without ``errors/``, except for a missing key."""
    async with running(envelope="quickstart") as api:
        invalid = await api.patch("acc_1", {"country": "USA"})
        keyless = await api.send("PATCH", "/accounts/acc_1", headers={})

        assert invalid.json == {
            "error": {
                "code": "invalid_parameters",
                "message": "country must be a string of 2 characters.",
                "request_id": "req_000000000001",
            }
        }
        assert (keyless.status, keyless.json["error"]["code"]) == (401, "key_missing")


async def test_an_error_does_not_contain_the_password() -> None:
    """Error details end up in logs."""
    async with running() as api:
        reply = await api.patch("acc_1", custom(password=["s3cret"]))

        assert b"s3cret" not in reply.body


# Scripts


def test_the_catalogue_matches_the_api_reference() -> None:
    """All 34 types were copied by hand."""
    reference = {type_: (status, title, detail) for type_, status, title, detail in reference_errors()}

    assert len(reference) == 34
    assert reference == TYPES


@pytest.mark.parametrize(("type_", "status", "title", "detail"), reference_errors())
async def test_a_scripted_type_is_sent_once_as_the_api_reference_lists_it(
    type_: str, status: int, title: str, detail: str
) -> None:
    """The next request of the account is handled normally."""
    faults = Faults()
    faults.script("acc_1", type_)
    async with running(faults=faults) as api:
        reply, after = await api.patch("acc_1"), await api.patch("acc_1")

        assert (reply.status, reply.type) == (status, type_)
        assert (reply.json["title"], reply.json["detail"]) == (title, detail)
        assert after.status == 200
        assert api.server.record.patched_accounts == {"acc_1": 1}


async def test_a_script_is_consumed_in_order_by_its_account() -> None:
    """Scripts are appended, do not affect other accounts, and are not consumed by invalid requests."""
    faults = Faults()
    faults.script("acc_1", 200, "errors/proxy_error")
    faults.script("acc_1", "errors/no_channel")
    async with running(faults=faults) as api:
        other = await api.patch("acc_2")
        statuses = [(await api.patch("acc_1", change)).status for change in (US, {}, CUSTOM, CUSTOM, CUSTOM)]

        assert other.status == 200
        assert statuses == [200, 400, 502, 503, 200]


@pytest.mark.parametrize("response", ["dropped", "errors/brand_new", 503])
def test_an_invalid_response_leaves_the_script_unchanged(response: str | int) -> None:
    """A typing error in a script must not look like a response of the API."""
    faults = Faults()

    with pytest.raises(ValueError, match="type"):
        faults.script("acc_1", "drop", response)

    assert handles_normally(faults.draw("acc_1", 1))


@pytest.mark.parametrize(("word", "applied"), [("drop", 0), ("lost", 1)])
async def test_a_dropped_connection_hides_whether_the_change_was_applied(word: str, applied: int) -> None:
    """The client sees the same in both cases. Only the record shows the difference."""
    faults = Faults()
    faults.script("acc_1", word)
    async with running(faults=faults) as api:
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.patch("acc_1")

        assert api.server.record.patched_accounts["acc_1"] == applied
        assert api.server.record.unanswered == 1
        assert (await api.patch("acc_1")).status == 200


@in_virtual_time
async def test_a_hanging_request_ends_only_when_the_client_disconnects() -> None:
    """The client gets no response within an hour."""
    faults = Faults()
    faults.script("acc_1", "hang")
    async with running(faults=faults) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600 - 1):
                await api.patch("acc_1")
        await api.patch("acc_2")

        assert api.server.record.in_flight == 0
        assert api.server.record.patched_accounts == {"acc_2": 1}


async def test_a_raw_response_is_sent_unchanged() -> None:
    """Gateways do not use the API's envelope."""
    faults = Faults()
    fault = Fault(status=502, headers={"Content-Type": "text/html"}, body=b"<html>", retry_after="soon")
    faults.script("acc_1", fault)
    async with running(faults=faults) as api:
        reply = await api.patch("acc_1")

        assert (reply.status, reply.body) == (502, b"<html>")
        assert (reply.headers["Content-Type"], reply.headers["Retry-After"]) == ("text/html", "soon")
        assert api.server.record.patched_accounts == {}


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
async def test_headers_of_a_fault_replace_the_usual_ones(name) -> None:
    faults = Faults()
    faults.script("acc_1", Fault(status=502, headers={name: "text/html"}))
    async with running(faults=faults) as api:
        reply = await api.patch("acc_1")

    types = [value for header, value in reply.headers.items() if header.lower() == "content-type"]
    assert types == ["text/html"]


@pytest.mark.parametrize(
    "settings", [{"cut": True}, {"body": b"{}"}, {"headers": {"Date": "today"}}, {"retry_after": 1}]
)
def test_fault_whose_settings_would_have_no_effect_is_rejected(settings) -> None:
    with pytest.raises(ValueError, match="require a type or a status"):
        Fault(**settings)


def test_type_that_is_a_keyword_of_scripts_is_not_suggested_for_a_fault() -> None:
    with pytest.raises(ValueError, match="'drop' is not an error type of the API;"):
        Fault(type="drop")


async def test_a_type_may_be_sent_with_another_status() -> None:
    """Envelope and HTTP status may differ, and a type may be unknown."""
    faults = Faults()
    faults.script("acc_1", Fault(type="errors/proxy_error", status=400))
    faults.script("acc_1", Fault(type="errors/brand_new", status=422))
    async with running(faults=faults) as api:
        differing, new = await api.patch(), await api.patch()

        assert (differing.status, differing.json["status"]) == (400, 502)
        assert (new.status, new.type) == (422, "errors/brand_new")


async def test_a_response_may_be_cut_off() -> None:
    """The body is shorter than its Content-Length, although the change was applied."""
    faults = Faults()
    faults.script("acc_1", Fault(status=200, body=b'{"object": 1}', cut=True, executes=True))
    async with running(faults=faults) as api:
        with pytest.raises(aiohttp.ClientPayloadError):
            await api.patch("acc_1")

        assert api.server.record.patched_accounts == {"acc_1": 1}


@in_virtual_time
async def test_cutting_off_the_response_of_a_disconnected_client_logs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A disconnection is not an error of the server, so a user's test must not show a traceback."""
    faults = Faults()
    faults.script("acc_1", Fault(status=200, body=b'{"object": 1}', cut=True, latency=60.0))
    async with running(faults=faults) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await api.patch("acc_1")
        await time_passes(60)

        assert api.server.record.in_flight == 0
    assert caplog.records == []


@in_virtual_time
async def test_the_latencies_of_server_and_fault_are_added() -> None:
    """A simulated gateway has only the fault's latency. A rejection has no latency."""
    faults = Faults()
    faults.script("acc_1", Fault(latency=2.0), Fault(type="errors/proxy_error", latency=3.0))
    faults.script("acc_1", Fault(type="errors/request_timeout", latency=4.0, executes=True))
    faults.script("acc_1", Fault(status=502, latency=5.0))
    async with running(faults=faults, latency=0.5) as api:
        latencies = []
        for change in (US, US, {}, US, US, US):
            sent_at = now()
            await api.patch("acc_1", change)
            latencies.append(now() - sent_at)

        assert latencies == pytest.approx([2.5, 3.5, 0.0, 4.5, 5.0, 0.5], abs=0.05)


# Idempotency-Key


@pytest.mark.parametrize("script", [200, "errors/provider_error"], ids=["a success", "an error"])
async def test_a_repeated_key_gets_the_same_response_and_executes_nothing(script: str | int) -> None:
    """Even `instance` is the same. Errors of an execution are also stored."""
    faults = Faults()
    faults.script("acc_1", script)
    async with running(faults=faults) as api:
        first, again = await api.patch(key="k"), await api.patch(key="k")

        assert (again.status, again.body) == (first.status, first.body)
        assert api.server.record.replayed == 1
        assert api.server.record.managed_handed_out == (first.status == 200)


async def test_the_same_key_may_be_used_for_another_account() -> None:
    """A client may number its calls separately for each account."""
    async with running() as api:
        await api.patch("acc_1", key="k")
        await api.patch("acc_2", CUSTOM, key="k")

        assert api.server.record.patched_accounts == {"acc_1": 1, "acc_2": 1}


async def test_a_key_cannot_be_reused_for_another_body() -> None:
    """The stored response belongs to the first body."""
    async with running() as api:
        await api.patch(key="k")
        reply = await api.patch(change=CUSTOM, key="k")

        assert (reply.status, reply.type) == (400, "errors/invalid_parameters")
        assert "Idempotency-Key" in reply.json["detail"]
        assert api.server.record.proxy_of("acc_1") == US


async def test_storing_errors_can_be_turned_off() -> None:
    """The quickstart does not say whether errors are stored, so clients are tested with both."""
    faults = Faults()
    faults.script("acc_1", "errors/provider_error")
    async with running(faults=faults, stores_errors=False) as api:
        statuses = [(await api.patch(key="k")).status for _ in range(3)]

        assert statuses == [500, 200, 200]
        assert api.server.record.replayed == 1


@pytest.mark.parametrize(
    "type_", ["errors/too_many_requests", "errors/service_unavailable", "errors/no_channel"]
)
async def test_a_rejection_before_the_execution_is_not_stored(type_: str) -> None:
    """Nothing was executed with this key yet."""
    faults = Faults()
    faults.script("acc_1", type_)
    async with running(faults=faults) as api:
        await api.patch(key="k")

        assert (await api.patch(key="k")).status == 200


async def test_a_lost_response_is_replayed_for_its_key() -> None:
    """The purpose of the header is that the change is not applied twice."""
    faults = Faults()
    faults.script("acc_1", "lost")
    async with running(faults=faults) as api:
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.patch(key="k")
        reply = await api.patch(key="k")

        assert reply.status == 200
        assert api.server.record.managed_handed_out == 1


@in_virtual_time
async def test_a_repeated_key_waits_for_the_execution_in_progress() -> None:
    """A client that times out and retries must not cause a second, concurrent execution."""
    async with running(latency=10.0) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await api.patch(key="k")
        first, second = await asyncio.gather(api.patch(key="k"), api.patch(key="k"))

        assert first.body == second.body
        assert now() == pytest.approx(10.0, abs=0.05)
        assert api.server.record.managed_handed_out == 1
        assert api.server.record.replayed == 2


async def test_the_oldest_stored_response_is_dropped_first() -> None:
    """The store has a maximum size."""
    async with running(stored=2) as api:
        for key in "abc":
            await api.patch(key=key)
        for key in "bc":
            await api.patch(key=key)
        assert api.server.record.replayed == 2
        await api.patch(key="a")

        assert api.server.record.replayed == 2
        assert api.server.record.managed_handed_out == 4


# Rate limit, capacity and dead proxies


def test_a_token_bucket_refills_at_its_rate_up_to_the_burst() -> None:
    """After an idle hour, the bucket holds no more tokens than the burst."""
    time = 0.0
    bucket = TokenBucket(rate=2.0, burst=3, clock=lambda: time)

    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    time = 0.25
    assert bucket.take() == 0.25
    time = 0.5
    assert [bucket.take() for _ in range(2)] == [0.0, 0.5]
    time = 3600.0
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("rate", "burst", "message"),
    [
        (0.0, 20, "rate must be above 0, got 0.0"),
        (-1.0, 20, "rate must be above 0, got -1.0"),
        (1.0, 0, "burst must be at least 1, got 0"),
    ],
)
def test_a_token_bucket_that_never_fills_is_rejected(rate: float, burst: int, message: str) -> None:
    """Every request would get a 429."""
    with pytest.raises(ValueError, match=message):
        TokenBucket(rate, burst, float)


@pytest.mark.parametrize(("rate", "retry_after"), [(10.0, "1"), (0.4, "3")])
async def test_above_the_rate_limit_the_response_is_429_until_retry_after(
    rate: float, retry_after: str
) -> None:
    """Retry-After is rounded up to whole seconds, after which there is a token again."""
    time = 100.0
    async with running(rate=rate, burst=2, clock=lambda: time) as api:
        replies = [await api.patch() for _ in range(3)]
        time += int(retry_after)

        assert [reply.status for reply in replies] == [200, 200, 429]
        assert replies[2].type == "errors/too_many_requests"
        assert replies[2].json["title"] == "Too Many Requests"
        assert replies[2].headers["Retry-After"] == retry_after
        assert (await api.patch()).status == 200


async def test_retry_after_can_be_left_out() -> None:
    """The quickstart does not mention the header."""
    async with running(rate=1.0, burst=1, clock=lambda: 0.0, retry_after=False) as api:
        await api.patch()
        reply = await api.patch()

        assert reply.status == 429
        assert "Retry-After" not in reply.headers


async def test_requests_with_an_invalid_key_do_not_count_against_the_rate_limit() -> None:
    """The rate limit belongs to the valid key."""
    async with running(rate=1.0, burst=1, clock=lambda: 0.0) as api:
        await api.send("PATCH", "/accounts/acc_1", headers={"X-API-KEY": "other"})

        assert (await api.patch()).status == 200


@in_virtual_time
async def test_above_capacity_and_queue_the_response_is_503_at_once() -> None:
    """Of ten requests, two are executed, three wait, and five are rejected. Ten more requests repeat this."""
    async with running(capacity=2, queue=3, latency=1.0) as api:
        responses = []  # the time and the status

        async def send(number: int) -> None:
            reply = await api.patch(f"acc_{number}", key="k")
            responses.append((round(now()), reply.status))

        await asyncio.gather(*map(send, range(10)))
        assert Counter(responses) == {(0, 503): 5, (1, 200): 2, (2, 200): 2, (3, 200): 1}
        await asyncio.gather(*map(send, range(10, 20)))

        assert Counter(responses[10:]) == {(3, 503): 5, (4, 200): 2, (5, 200): 2, (6, 200): 1}
        assert api.server.record.by_type == {"errors/service_unavailable": 10}


@in_virtual_time
async def test_most_in_flight_includes_queued_requests() -> None:
    """Tests compare this number with the client's concurrency limit."""
    async with running(capacity=2, queue=8, latency=1.0) as api:
        await asyncio.gather(*(api.patch(f"acc_{number}") for number in range(7)))
        await api.patch("acc_7")

        assert api.server.record.most_in_flight == 7
        assert api.server.record.in_flight == 0


@pytest.mark.parametrize(
    "dead",
    [
        pytest.param({"proxy.example.com:8080"}, id="by name"),
        pytest.param(lambda proxy: proxy["username"] == "proxyuser", id="by predicate"),
    ],
)
@in_virtual_time
async def test_a_dead_proxy_gets_a_502_and_is_not_applied(dead: Any) -> None:
    """The response takes as long as a success, and other proxies still work."""
    async with running(dead_proxies=dead, latency=2.0) as api:
        reply = await api.patch("acc_1", CUSTOM)
        alive = await api.patch("acc_2", custom(port=8081, username="other"))

        assert (reply.status, reply.type) == (502, "errors/proxy_error")
        assert alive.status == 200
        assert now() == pytest.approx(4.0, abs=0.05)
        assert api.server.record.proxy_of("acc_1") is None


# Profiles


async def outcomes(profile: Any, seed: int, order: list[str]) -> dict[str, list[object]]:
    """Send a request for each account id in *order*. Return the statuses or exceptions of each account."""
    results: dict[str, list[object]] = {}
    async with running(faults=Faults(profile, seed), clock=lambda: 0.0) as api:
        for account_id in order:
            try:
                reply = await api.patch(account_id)
            except aiohttp.ClientError as error:
                results.setdefault(account_id, []).append(type(error))
            else:
                results.setdefault(account_id, []).append(reply.status)
    return results


@pytest.mark.parametrize("profile", ["flaky", "hostile"])
async def test_a_seed_gives_the_same_faults_in_any_order(profile: str) -> None:
    """Faults depend on the account and the number of its request, so concurrency does not change them."""
    order = [f"acc_{number}" for number in range(60)] * 4
    shuffled = random.Random(7).sample(order, len(order))

    first, second = await outcomes(profile, 3, order), await outcomes(profile, 3, shuffled)
    other = await outcomes(profile, 4, order)

    assert first == second
    assert first != other


def test_a_seed_gives_the_same_faults_on_every_machine() -> None:
    """Python's hash is different in each process and must not be used."""
    faults = Faults("hostile", seed=1)
    requests_with_fault = [nth for nth in range(1, 41) if not handles_normally(faults.draw("acc_1", nth))]

    assert requests_with_fault == [2, 5, 13, 31, 35, 36, 37]


def test_flaky_has_the_documented_shares_of_faults() -> None:
    """Half of the timeouts and half of the dropped connections are executed."""
    faults = Faults("flaky", seed=5)
    drawn = [faults.draw(f"acc_{number}", nth) for number in range(20_000) for nth in (1, 2, 3)]
    counts = Counter((fault.type, fault.ends, fault.executes) for fault in drawn)
    share = {kind: count / len(drawn) for kind, count in counts.items()}

    assert share["errors/resource_not_found", "answered", False] == pytest.approx(0.01, rel=0.2)
    assert share["errors/provider_error", "answered", False] == pytest.approx(0.02, rel=0.1)
    assert share["errors/service_unavailable", "answered", False] == pytest.approx(0.01, rel=0.1)
    assert share["errors/request_timeout", "answered", False] == pytest.approx(0.005, rel=0.2)
    assert share["errors/request_timeout", "answered", True] == pytest.approx(0.005, rel=0.2)
    assert share[None, "dropped", False] == pytest.approx(0.0025, rel=0.2)
    assert share[None, "dropped", True] == pytest.approx(0.0025, rel=0.2)


def test_an_account_that_is_missing_in_flaky_stays_missing() -> None:
    """Retries do not help."""
    faults = Faults("flaky", seed=5)
    names = [f"acc_{number}" for number in range(1000)]
    missing = [name for name in names if faults.draw(name, 1).type == "errors/resource_not_found"]

    assert len(missing) == 16
    assert {faults.draw(name, nth).type for name in missing for nth in range(2, 50)} == {
        "errors/resource_not_found"
    }


def test_the_default_profile_has_no_faults() -> None:
    assert all(handles_normally(Faults().draw("acc_1", nth)) for nth in range(1, 1000))


def test_overloaded_rejects_more_requests_under_more_load() -> None:
    """A client that slows down gets fewer errors."""
    faults = Faults("overloaded", seed=5)

    def types(executing: int) -> Counter[str | None]:
        return Counter(faults.draw(f"acc_{n}", 1, executing=executing).type for n in range(1000))

    assert types(30) == {None: 1000}
    assert 300 < types(65)[None] < 700
    assert set(types(100)) == {"errors/too_many_requests", "errors/service_unavailable"}


@in_virtual_time
async def test_the_load_is_the_number_of_executing_requests() -> None:
    """Sequential requests all succeed, but 200 concurrent ones are too many."""
    async with running(faults=Faults("overloaded", seed=5)) as api:
        sequential = [(await api.patch(f"acc_{number}")).status for number in range(100)]
        concurrent = await asyncio.gather(*(api.patch(f"acc_{number}") for number in range(200)))
        statuses = Counter(reply.status for reply in concurrent)

        assert set(sequential) == {200}
        assert set(statuses) == {200, 429, 503}
        assert 30 < statuses[200] < 100


@in_virtual_time
async def test_the_outage_profile_has_one_outage_with_a_start_and_an_end() -> None:
    """The outage is relative to the first request, not to the start of the server."""
    async with running(faults=Faults("outage", seed=5)) as api:
        await time_passes(1000)
        failed_at, results = [], Counter[object]()
        while now() < 1040:
            try:
                result: object = (await api.patch()).status
            except aiohttp.ClientConnectionError as error:
                result = type(error)
            if result != 200:
                failed_at.append(now() - 1000)
                results[result] += 1
            await time_passes(0.1)

        assert 1 < failed_at[0] < 3.2
        assert 11 < failed_at[-1] < 23
        assert len(failed_at) == pytest.approx((failed_at[-1] - failed_at[0]) / 0.1, rel=0.05)
        assert results[503] > len(failed_at) / 2
        assert api.server.record.unanswered == len(failed_at) - results[503] > 0


def test_hostile_sends_every_kind_of_malformed_response() -> None:
    """A fifth of the requests have a fault, and the others are handled normally."""
    faults = Faults("hostile", seed=5)
    drawn = [faults.draw("acc_1", nth) for nth in range(1, 2001)]
    faulty = [fault for fault in drawn if not handles_normally(fault)]

    assert len(faulty) / len(drawn) == pytest.approx(0.2, rel=0.15)
    assert {fault.status for fault in faulty} == {None, 200, 307, 422, 502}
    assert {fault.ends for fault in faulty} == {"answered", "dropped"}
    assert any(fault.cut for fault in faulty)
    assert any(fault.body.endswith(b"NaN}") for fault in faulty)
    assert any(b"acc_somebody_else" in fault.body for fault in faulty)
    assert any(len(fault.body) > 256 * 1024 for fault in faulty)
    assert any(fault.status == 200 and not fault.body for fault in faulty)


def test_an_unknown_profile_is_rejected() -> None:
    """The message lists the valid names."""
    with pytest.raises(ValueError, match="one of steady, flaky, overloaded, outage, hostile, got 'unknown'"):
        Faults("unknown")  # type: ignore[arg-type]


# Simulated outages


@pytest.mark.parametrize(
    ("kind", "status", "content_type", "latency"),
    [
        pytest.param("503", 503, "application/json", 0.0, id="503"),
        pytest.param("503-html", 503, "text/html", 0.0, id="503 in HTML"),
        pytest.param("504", 504, "application/json", 1.0, id="504"),
    ],
)
@in_virtual_time
async def test_an_outage_rejects_all_requests_until_recover(
    kind: Any, status: int, content_type: str, latency: float
) -> None:
    """The API key is not even checked, and nothing is applied."""
    async with running() as api:
        await api.server.outage(kind)
        reply = await api.send("PATCH", "/accounts/acc_1", headers={})
        elapsed = now()
        await api.server.recover()
        after = await api.patch()

        assert (reply.status, reply.headers["Content-Type"]) == (status, content_type)
        assert elapsed == pytest.approx(latency, abs=0.05)
        assert after.status == 200
        assert api.server.record.patched_accounts == {"acc_1": 1}


@in_virtual_time
async def test_refused_aborts_connections_until_recover_on_the_same_port() -> None:
    """Requests that are already executing continue, and only their responses are lost."""
    async with running(latency=10.0) as api:
        url = api.server.url
        executing = asyncio.create_task(api.patch("acc_1", key="k"))
        await time_passes(1)
        await api.server.outage("refused")
        with pytest.raises(aiohttp.ClientConnectionError):
            await executing
        for _ in range(3):
            with pytest.raises(aiohttp.ClientConnectorError):
                await api.patch("acc_2")
        await time_passes(60)
        await api.server.recover()
        again = await api.patch("acc_1", key="k")

        assert api.server.url == url
        assert again.status == 200
        assert api.server.record.sends("acc_2") == 0
        assert api.server.record.patched_accounts == {"acc_1": 1}


@pytest.mark.parametrize("iterations", range(8))
@in_virtual_time
async def test_refused_closes_a_connection_that_is_being_accepted(iterations: int) -> None:
    """The outage may begin in any loop iteration of the connection's setup."""
    async with running() as api:
        url = URL(api.server.url)
        connecting = asyncio.create_task(asyncio.open_connection(url.host, url.port))
        for _ in range(iterations):
            await asyncio.sleep(0)
        await api.server.outage("refused")
        with suppress(ConnectionError):  # the kernel may also refuse or reset the connection
            reader, writer = await connecting
            try:
                assert await reader.read() == b""
            finally:
                writer.close()
                await writer.wait_closed()

        assert now() < 1


@in_virtual_time
async def test_a_request_to_a_silent_server_is_never_answered() -> None:
    """The request stays open even after recover, although later requests get responses."""
    async with running() as api:
        await api.server.outage("silent")
        silenced = asyncio.create_task(api.patch("acc_1"))
        await time_passes(60)
        await api.server.recover()
        await time_passes(60)

        assert not silenced.done()
        assert (await api.patch("acc_2")).status == 200
        silenced.cancel()
        await asyncio.gather(silenced, return_exceptions=True)


@in_virtual_time
async def test_a_slow_server_takes_a_multiple_of_its_latency() -> None:
    """This outage also replaces an earlier outage of another kind."""
    async with running(latency=1.0) as api:
        await api.server.outage("refused")
        await api.server.outage("slow", factor=7.0)
        await api.patch()
        slow_latency = now()
        await api.server.recover()
        await api.patch()

        assert slow_latency == pytest.approx(7.0, abs=0.05)
        assert now() - slow_latency == pytest.approx(1.0, abs=0.05)


# Life cycle


@in_virtual_time
async def test_a_change_is_applied_even_if_its_client_disconnects() -> None:
    """A client's timeout does not stop a real server either."""
    async with running(latency=10.0) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await api.patch("acc_1", CUSTOM)
        assert api.server.record.proxy_of("acc_1") is None
        await time_passes(10)

        assert api.server.record.proxy_of("acc_1") == CUSTOM
        assert api.server.record.in_flight == 0


@in_virtual_time
async def test_an_incomplete_body_changes_nothing() -> None:
    """The client disconnects before it has sent the whole body."""
    async with running() as api:
        url = URL(api.server.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = "PATCH /v1/accounts/acc_1 HTTP/1.1\r\nHost: h\r\nX-API-KEY: pp_test_sandbox\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{{".encode())
        await time_passes(1)
        assert api.server.record.in_flight == 1
        writer.close()
        await writer.wait_closed()
        await time_passes(1)

        assert api.server.record.in_flight == 0
        assert api.server.record.unanswered == 1
        assert api.server.record.patched_accounts == {}


async def test_a_compressed_body_is_malformed() -> None:
    """The API reference does not mention compression."""
    async with running() as api:
        headers = KEY | {"Content-Encoding": "deflate"}
        reply = await api.send(
            "PATCH", "/accounts/acc_1", body=zlib.compress(b'{"ip": "1.1.1.1"}'), headers=headers
        )

        assert (reply.status, reply.type) == (400, "errors/malformed_request")


async def test_exception_in_the_predicate_gives_a_500_to_all_requests_with_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mistake in a user's predicate appears in the log, and no request hangs."""
    async with running(dead_proxies=lambda proxy: proxy["no such field"]) as api:
        replies = await asyncio.gather(*(api.patch("acc_1", CUSTOM, key="k") for _ in range(3)))

        assert [reply.status for reply in replies] == [500, 500, 500]
    assert "no such field" in caplog.text
    caplog.clear()


@in_virtual_time
async def test_closing_ends_all_requests_at_once() -> None:
    """Hanging, executing and queued requests end, no task is left, and a second close has no effect."""
    faults = Faults()
    faults.script("acc_1", "hang")
    tasks_before = asyncio.all_tasks()
    async with aiohttp.ClientSession() as client:
        server = Server(faults=faults, latency=1000.0, capacity=1, queue=1)
        await server.start()
        api = Api(server, client)
        requests = [asyncio.create_task(api.patch(f"acc_{n}")) for n in (1, 2, 3)]
        await time_passes(1)
        assert server.record.in_flight == 3
        await server.aclose()
        await server.aclose()
        results = await asyncio.gather(*requests, return_exceptions=True)

        assert [isinstance(result, aiohttp.ClientConnectionError) for result in results] == [True] * 3
        assert now() < 2
        assert server.record.in_flight == 0
        assert server.record.patched_accounts == {}
        with pytest.raises(aiohttp.ClientConnectorError):
            await api.patch()
    await time_passes(1)
    assert asyncio.all_tasks() == tasks_before


async def test_a_server_can_be_started_only_once() -> None:
    """A second start would leave the first socket open. Before the first start, there is no URL."""
    server = Server()
    with pytest.raises(RuntimeError, match="not started"):
        server.url  # noqa: B018 - reading it raises
    async with server:
        with pytest.raises(RuntimeError, match="started before"):
            await server.start()


async def test_the_server_listens_on_the_given_port() -> None:
    """While another server uses the port, `start` raises OSError."""
    async with running() as other:
        port = URL(other.server.url).port
        assert port is not None
        with pytest.raises(OSError, match=str(port)):
            await Server().start(port=port)
    server = Server()
    await server.start(port=port)
    await server.aclose()

    assert server.url == f"http://127.0.0.1:{port}/v1"


@in_virtual_time
async def test_an_idle_connection_is_closed_after_keep_alive() -> None:
    """The default is an hour. Clients are also tested with servers that close connections early."""
    async with running() as default, running(keep_alive=5.0) as short:
        for api, expected_connections in ((default, 1), (short, 2)):
            opened: list[object] = []
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(functools.partial(_append, opened))
            connector = aiohttp.TCPConnector(keepalive_timeout=10_000)
            async with aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as client:
                for _ in range(2):
                    await Api(api.server, client).patch()
                    await time_passes(1800)
            assert len(opened) == expected_connections


async def _append(opened: list[object], *event: object) -> None:
    opened.append(event)


async def test_the_totals_of_the_record_contain_no_secret() -> None:
    """The totals are printed and appear in reports."""
    faults = Faults()
    faults.script("acc_2", "errors/proxy_error", "drop")
    async with running(faults=faults) as api:
        await api.patch("acc_1", CUSTOM, key="k")
        await api.patch("acc_1", CUSTOM, key="k")
        await api.patch("acc_1", US)
        await api.patch("acc_2", US)
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.patch("acc_2", US)
        record = api.server.record

        assert record.as_dict() == {
            "requests": 5,
            "by_status": {"200": 3, "502": 1},
            "by_type": {"errors/proxy_error": 1},
            "unanswered": 1,
            "patched_accounts": 1,
            "applied": 2,
            "managed_handed_out": 1,
            "replayed": 1,
            "most_in_flight": 1,
        }
        assert json.loads(json.dumps(record.as_dict())) == record.as_dict()
        assert [record.sends(account_id) for account_id in ("acc_1", "acc_2", "acc_3")] == [3, 2, 0]
