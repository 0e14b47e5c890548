"""The sandbox server, spoken to in raw HTTP: what the API's page says, and what may go wrong."""

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
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import aiohttp
import pytest
from yarl import URL

from postpress_async.sandbox.faults import TYPES, Fault, Faults
from postpress_async.sandbox.limits import Bucket
from postpress_async.sandbox.server import Server

PAGE = Path(__file__).parent / "data" / "update-account-proxy.txt"
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


def listed_on_the_page() -> list[tuple[str, int, str, str]]:
    """Type, status, title and detail of every error, read from the page's text."""
    found, status, title = [], 0, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"(\d{3}) (\D+?)\d+ types$", line):
            status, title = int(heading[1]), heading[2]
        elif error := re.match(r"\W*(errors/\w+) - (.+)$", line):
            found.append((error[1], status, title, error[2]))
    return found


class SkippingSelector(selectors.DefaultSelector):
    """Where a loop would sit and wait for a timer, its clock jumps to it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Sockets first; time passes only while all of them are quiet."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0.001)  # the kernel's own time to carry a byte over loopback
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose hours take milliseconds, on real sockets."""

    def __init__(self) -> None:
        self.skipping = SkippingSelector()
        super().__init__(self.skipping)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.skipping.now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on a `VirtualLoop`."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


async def time_passes(seconds: float) -> None:
    """Virtually: no test waits."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await asyncio.sleep(seconds)


class Reply(NamedTuple):
    """An answer, read to its end."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def said(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def type(self) -> str:
        """The type of the error, with its status proved to be the envelope's."""
        assert self.said["status"] == self.status
        assert set(self.said) == {"title", "detail", "instance", "type", "status"}
        return str(self.said["type"])


class Api(NamedTuple):
    """A server, and a client that knows nothing of it but HTTP."""

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
        """A request under the server's url, as it is."""
        async with self.client.request(
            method,
            URL(self.server.url + path, encoded=True),
            data=body,
            headers={"Content-Type": "application/json", **headers},
            allow_redirects=False,
        ) as answer:
            return Reply(answer.status, await answer.read(), answer.headers)

    async def patch(self, account_id: str = "acc_1", change: object = US, key: str | None = None) -> Reply:
        """The page's request, with an Idempotency-Key where one is given."""
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
    """A handler that broke down would show itself there, and else only as one more 500."""
    yield
    assert [record for record in caplog.get_records("call") if record.name.startswith("aiohttp")] == []


# What the page promises


async def test_a_change_is_answered_as_the_page_shows() -> None:
    """Two fields, the object's name and the account's id; nothing else."""
    async with running() as api:
        reply = await api.patch("acc_01HXYZ4QK3WJ8FN3M6QH7TZ8GR", CUSTOM)

        assert reply.status == 200
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.said == {"object": "AccountPatched", "account_id": "acc_01HXYZ4QK3WJ8FN3M6QH7TZ8GR"}


async def test_the_body_last_applied_is_the_accounts_proxy() -> None:
    """A test asks the server what the client really asked for, to the password."""
    async with running() as api:
        await api.patch("acc_1", US)
        await api.patch("acc_1", CUSTOM)

        assert api.server.record.proxy_of("acc_1") == CUSTOM
        assert api.server.record.proxy_of("acc_2") is None
        assert api.server.record.patched_accounts == {"acc_1": 2}


async def test_each_managed_change_hands_out_a_proxy() -> None:
    """They may be billed: a client that sends one twice must show up in the count."""
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
async def test_a_request_without_the_right_key_is_refused(headers: dict[str, str], type_: str) -> None:
    """No key and a wrong key are two types on the page."""
    async with running() as api:
        reply = await api.send("PATCH", "/accounts/acc_1", headers=headers)

        assert (reply.status, reply.type) == (401, type_)
        assert api.server.record.proxy_of("acc_1") is None


async def test_a_bearer_token_is_a_key_too() -> None:
    """The quickstart allows both."""
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
async def test_only_the_pages_path_and_method_exist(method: str, path: str, status: int, type_: str) -> None:
    """A client that builds a wrong URL must not get through."""
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
async def test_other_spellings_of_the_path_are_the_same_account(path: str, account_id: str) -> None:
    """What RFC 3986 calls the same is the same, and ``?port=N`` is the quickstart's."""
    async with running() as api:
        reply = await api.send("PATCH", path)

        assert reply.said["account_id"] == account_id


async def test_only_listed_accounts_exist_where_accounts_are_listed() -> None:
    """An id may be well-formed and of nobody."""
    async with running(accounts=["acc_1"]) as api:
        known, unknown = await api.patch("acc_1"), await api.patch("acc_2")

        assert known.status == 200
        assert (unknown.status, unknown.type) == (404, "errors/resource_not_found")
        assert api.server.record.sends("acc_2") == 1


def custom(**fields: object) -> dict[str, object]:
    """A custom proxy's body with these fields set, or left out where they are `...`."""
    proxy = CUSTOM["proxy"] | fields
    return {"proxy": {name: value for name, value in proxy.items() if value is not ...}}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({}, "missing_parameters", id="nothing"),
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
async def test_a_body_that_breaks_a_rule_is_refused(change: object, error: str) -> None:
    """Each rule of the page by itself: 400, nothing applied."""
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
async def test_a_body_within_the_rules_is_applied(change: object) -> None:
    """A fake that refuses too much would teach the client rules that the page does not have."""
    async with running() as api:
        reply = await api.patch("acc_1", change)

        assert reply.status == 200
        assert api.server.record.proxy_of("acc_1") == change


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="broken off"),
        pytest.param(b"country=US", id="a form"),
        pytest.param(b'{"country": NaN}', id="NaN"),
        pytest.param(b'{"country": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b"[" * 60_000, id="too deep"),
    ],
)
async def test_a_body_that_is_no_json_is_malformed(body: bytes) -> None:
    """Python reads more than JSON; the API would not."""
    async with running() as api:
        reply = await api.send("PATCH", "/accounts/acc_1", body=body)

        assert (reply.status, reply.type) == (400, "errors/malformed_request")


async def test_a_body_must_be_declared_as_json() -> None:
    """Frameworks read no JSON without its Content-Type, and a client that forgot it should learn so here."""
    async with running() as api:
        reply = await api.send("PATCH", "/accounts/acc_1", headers=KEY | {"Content-Type": "text/plain"})

        assert (reply.status, reply.type) == (400, "errors/malformed_request")


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """A body of no announced length."""
    for start in range(0, len(body), 16 * 1024):
        yield body[start : start + 16 * 1024]


@pytest.mark.parametrize("size", [64 * 1024 + 1, 2 * 1024 * 1024], ids=["a byte too many", "2 MiB"])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
async def test_a_body_over_64_kib_is_too_large(size: int, announced: bool) -> None:
    """However it comes; and at 64 KiB it is still taken."""
    empty = json.dumps(custom(username="")).encode()
    body = json.dumps(custom(username="u" * (size - len(empty)))).encode()
    fits = json.dumps(custom(username="u" * (64 * 1024 - len(empty)))).encode()
    async with running() as api:
        refused = await api.send(
            "PATCH", "/accounts/acc_1", body=io.BytesIO(body) if announced else in_chunks(body)
        )
        taken = await api.send(
            "PATCH", "/accounts/acc_2", body=io.BytesIO(fits) if announced else in_chunks(fits)
        )

        assert (refused.status, refused.type) == (400, "errors/content_too_large")
        assert taken.status == 200


async def test_every_error_has_an_instance_of_its_own() -> None:
    """It is what one quotes to support; a counter, so that a run repeats."""
    async with running() as api:
        replies = [await api.patch("acc_1", {}) for _ in range(2)]

        assert [reply.said["instance"] for reply in replies] == ["req_000000000001", "req_000000000002"]


async def test_the_quickstarts_envelope_can_be_chosen() -> None:
    """Its codes are the types without ``errors/``, but for one."""
    async with running(envelope="quickstart") as api:
        invalid = await api.patch("acc_1", {"country": "USA"})
        keyless = await api.send("PATCH", "/accounts/acc_1", headers={})

        assert invalid.said == {
            "error": {
                "code": "invalid_parameters",
                "message": "country must be a string of 2 characters.",
                "request_id": "req_000000000001",
            }
        }
        assert (keyless.status, keyless.said["error"]["code"]) == (401, "key_missing")


async def test_a_refusal_does_not_repeat_the_password() -> None:
    """Details end up in logs."""
    async with running() as api:
        reply = await api.patch("acc_1", custom(password=["s3cret"]))

        assert b"s3cret" not in reply.body


# Scripts


def test_the_table_of_types_is_the_pages() -> None:
    """34 types, typed by hand: none forgotten, none misspelt."""
    page = {type_: (status, title, detail) for type_, status, title, detail in listed_on_the_page()}

    assert len(page) == 34
    assert page == TYPES


@pytest.mark.parametrize(("type_", "status", "title", "detail"), listed_on_the_page())
async def test_a_scripted_type_arrives_as_the_page_lists_it(
    type_: str, status: int, title: str, detail: str
) -> None:
    """Once; after it the account is as ever."""
    faults = Faults()
    faults.script("acc_1", type_)
    async with running(faults=faults) as api:
        reply, after = await api.patch("acc_1"), await api.patch("acc_1")

        assert (reply.status, reply.type) == (status, type_)
        assert (reply.said["title"], reply.said["detail"]) == (title, detail)
        assert after.status == 200
        assert api.server.record.patched_accounts == {"acc_1": 1}


async def test_a_script_is_used_up_in_order_by_its_account_alone() -> None:
    """Scripts add up, others are not touched, and an invalid request uses none up."""
    faults = Faults()
    faults.script("acc_1", 200, "errors/proxy_error")
    faults.script("acc_1", "errors/no_channel")
    async with running(faults=faults) as api:
        other = await api.patch("acc_2")
        statuses = [(await api.patch("acc_1", change)).status for change in (US, {}, CUSTOM, CUSTOM, CUSTOM)]

        assert other.status == 200
        assert statuses == [200, 400, 502, 503, 200]


@pytest.mark.parametrize("answer", ["dropped", "errors/brand_new", 503])
def test_what_cannot_be_scripted_is_refused(answer: str | int) -> None:
    """A slip in a script must not pass for an answer of the API."""
    faults = Faults()

    with pytest.raises(ValueError, match=r"type"):
        faults.script("acc_1", "drop", answer)
    assert faults.draw("acc_1", 1).is_none


@pytest.mark.parametrize(("word", "applied"), [("drop", 0), ("lost", 1)])
async def test_a_dropped_connection_tells_nothing_of_what_was_applied(word: str, applied: int) -> None:
    """The client sees the same in both cases; only the record knows."""
    faults = Faults()
    faults.script("acc_1", word)
    async with running(faults=faults) as api:
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.patch("acc_1")

        assert api.server.record.patched_accounts["acc_1"] == applied
        assert api.server.record.unanswered == 1
        assert (await api.patch("acc_1")).status == 200


@in_virtual_time
async def test_a_hanging_request_is_never_answered() -> None:
    """Not within an hour; and its handler ends when the client hangs up."""
    faults = Faults()
    faults.script("acc_1", "hang")
    async with running(faults=faults) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600 - 1):
                await api.patch("acc_1")
        await api.patch("acc_2")

        assert api.server.record.in_flight == 0
        assert api.server.record.patched_accounts == {"acc_2": 1}


async def test_a_raw_answer_is_sent_as_it_is() -> None:
    """Gateways know nothing of envelopes."""
    faults = Faults()
    fault = Fault(status=502, headers={"Content-Type": "text/html"}, body=b"<html>", retry_after="soon")
    faults.script("acc_1", fault)
    async with running(faults=faults) as api:
        reply = await api.patch("acc_1")

        assert (reply.status, reply.body) == (502, b"<html>")
        assert (reply.headers["Content-Type"], reply.headers["Retry-After"]) == ("text/html", "soon")
        assert api.server.record.patched_accounts == {}


async def test_a_type_may_come_under_another_status() -> None:
    """Envelope and HTTP status may disagree, and a type may be new."""
    faults = Faults()
    faults.script("acc_1", Fault(type="errors/proxy_error", status=400))
    faults.script("acc_1", Fault(type="errors/brand_new", status=422))
    async with running(faults=faults) as api:
        disagreeing, new = await api.patch(), await api.patch()

        assert (disagreeing.status, disagreeing.said["status"]) == (400, 502)
        assert (new.status, new.type) == (422, "errors/brand_new")


async def test_an_answer_may_break_off() -> None:
    """The headers promise more than comes, and the change was applied all the same."""
    faults = Faults()
    faults.script("acc_1", Fault(status=200, body=b'{"object": 1}', cut=True, executes=True))
    async with running(faults=faults) as api:
        with pytest.raises(aiohttp.ClientPayloadError):
            await api.patch("acc_1")

        assert api.server.record.patched_accounts == {"acc_1": 1}


@in_virtual_time
async def test_an_answer_that_breaks_off_may_have_no_reader(caplog: pytest.LogCaptureFixture) -> None:
    """Who hung up while it was waited for is no error of the server's, and no traceback in a user's test."""
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
async def test_latency_is_added_up() -> None:
    """The server's and the fault's, once each; a gateway has only its own, and a refusal none."""
    faults = Faults()
    faults.script("acc_1", Fault(latency=2.0), Fault(type="errors/proxy_error", latency=3.0))
    faults.script("acc_1", Fault(type="errors/request_timeout", latency=4.0, executes=True))
    faults.script("acc_1", Fault(status=502, latency=5.0))
    async with running(faults=faults, latency=0.5) as api:
        took = []
        for change in (US, US, {}, US, US, US):
            began = now()
            await api.patch("acc_1", change)
            took.append(now() - began)

        assert took == pytest.approx([2.5, 3.5, 0.0, 4.5, 5.0, 0.5], abs=0.05)


# Idempotency-Key


@pytest.mark.parametrize("script", [200, "errors/provider_error"], ids=["a success", "an error"])
async def test_a_replay_gets_the_very_same_answer_and_executes_nothing(script: str | int) -> None:
    """To the byte, `instance` included; errors are stored as well."""
    faults = Faults()
    faults.script("acc_1", script)
    async with running(faults=faults) as api:
        first, again = await api.patch(key="k"), await api.patch(key="k")

        assert (again.status, again.body) == (first.status, first.body)
        assert api.server.record.replayed == 1
        assert api.server.record.managed_handed_out == (first.status == 200)


async def test_the_same_key_is_another_for_another_account() -> None:
    """A client may number its calls anew for each account."""
    async with running() as api:
        await api.patch("acc_1", key="k")
        await api.patch("acc_2", CUSTOM, key="k")

        assert api.server.record.patched_accounts == {"acc_1": 1, "acc_2": 1}


async def test_a_key_is_not_good_for_another_body() -> None:
    """The first body's answer would be a lie about the second."""
    async with running() as api:
        await api.patch(key="k")
        reply = await api.patch(change=CUSTOM, key="k")

        assert (reply.status, reply.type) == (400, "errors/invalid_parameters")
        assert "Idempotency-Key" in reply.said["detail"]
        assert api.server.record.proxy_of("acc_1") == US


async def test_errors_are_not_stored_where_that_is_turned_off() -> None:
    """The quickstart leaves it open, so a client is tested against both."""
    faults = Faults()
    faults.script("acc_1", "errors/provider_error")
    async with running(faults=faults, stores_errors=False) as api:
        statuses = [(await api.patch(key="k")).status for _ in range(3)]

        assert statuses == [500, 200, 200]
        assert api.server.record.replayed == 1


@pytest.mark.parametrize(
    "type_", ["errors/too_many_requests", "errors/service_unavailable", "errors/no_channel"]
)
async def test_a_refusal_before_the_execution_is_not_stored(type_: str) -> None:
    """Nothing was begun under this key yet."""
    faults = Faults()
    faults.script("acc_1", type_)
    async with running(faults=faults) as api:
        await api.patch(key="k")

        assert (await api.patch(key="k")).status == 200


async def test_a_lost_answer_is_found_under_its_key() -> None:
    """What the header is for: the change is not carried out twice."""
    faults = Faults()
    faults.script("acc_1", "lost")
    async with running(faults=faults) as api:
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.patch(key="k")
        reply = await api.patch(key="k")

        assert reply.status == 200
        assert api.server.record.managed_handed_out == 1


@in_virtual_time
async def test_a_replay_waits_for_the_execution_under_way() -> None:
    """A client that timed out and asks again must not be executed beside itself."""
    async with running(latency=10.0) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await api.patch(key="k")
        first, second = await asyncio.gather(api.patch(key="k"), api.patch(key="k"))

        assert first.body == second.body
        assert now() == pytest.approx(10.0, abs=0.05)
        assert api.server.record.managed_handed_out == 1
        assert api.server.record.replayed == 2


async def test_the_oldest_stored_answer_is_forgotten_first() -> None:
    """Memory has an end."""
    async with running(stored=2) as api:
        for key in "abc":
            await api.patch(key=key)
        for key in "bc":
            await api.patch(key=key)
        assert api.server.record.replayed == 2
        await api.patch(key="a")

        assert api.server.record.replayed == 2
        assert api.server.record.managed_handed_out == 4


# Rate, capacity, proxies


def test_a_bucket_refills_at_its_rate_up_to_the_burst() -> None:
    """A burst, then one for each period; an hour of rest saves up no more than the burst."""
    time = 0.0
    bucket = Bucket(rate=2.0, burst=3, clock=lambda: time)

    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    time = 0.25
    assert bucket.take() == 0.25
    time = 0.5
    assert [bucket.take() for _ in range(2)] == [0.0, 0.5]
    time = 3600.0
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 20), (-1.0, 20), (1.0, 0)])
def test_a_bucket_that_never_fills_is_refused(rate: float, burst: int) -> None:
    """It would answer 429 for ever."""
    with pytest.raises(ValueError, match="above 0"):
        Bucket(rate, burst, float)


@pytest.mark.parametrize(("rate", "retry_after"), [(10.0, "1"), (0.4, "3")])
async def test_beyond_the_rate_it_is_429_until_retry_after(rate: float, retry_after: str) -> None:
    """Whole seconds, rounded up: then there is a token again."""
    time = 100.0
    async with running(rate=rate, burst=2, clock=lambda: time) as api:
        replies = [await api.patch() for _ in range(3)]
        time += int(retry_after)

        assert [reply.status for reply in replies] == [200, 200, 429]
        assert replies[2].type == "errors/too_many_requests"
        assert replies[2].said["title"] == "Too Many Requests"
        assert replies[2].headers["Retry-After"] == retry_after
        assert (await api.patch()).status == 200


async def test_retry_after_can_be_left_out() -> None:
    """The quickstart names no header."""
    async with running(rate=1.0, burst=1, clock=lambda: 0.0, retry_after=False) as api:
        await api.patch()
        reply = await api.patch()

        assert reply.status == 429
        assert "Retry-After" not in reply.headers


async def test_a_stranger_takes_nothing_from_the_keys_rate() -> None:
    """The bucket is the key's."""
    async with running(rate=1.0, burst=1, clock=lambda: 0.0) as api:
        await api.send("PATCH", "/accounts/acc_1", headers={"X-API-KEY": "other"})

        assert (await api.patch()).status == 200


@in_virtual_time
async def test_beyond_capacity_and_queue_it_is_503_at_once() -> None:
    """Two at once, three wait for their turn, and five of ten are refused; and so again later."""
    async with running(capacity=2, queue=3, latency=1.0) as api:
        ended = []

        async def timed(number: int) -> None:
            reply = await api.patch(f"acc_{number}", key="k")
            ended.append((round(now()), reply.status))

        await asyncio.gather(*map(timed, range(10)))
        assert Counter(ended) == {(0, 503): 5, (1, 200): 2, (2, 200): 2, (3, 200): 1}
        await asyncio.gather(*map(timed, range(10, 20)))

        assert Counter(ended[10:]) == {(3, 503): 5, (4, 200): 2, (5, 200): 2, (6, 200): 1}
        assert api.server.record.by_type == {"errors/service_unavailable": 10}


@in_virtual_time
async def test_the_most_in_flight_is_seen() -> None:
    """Those who wait in the queue count: the number is held against the client's own limit."""
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
async def test_a_dead_proxy_is_502_and_not_applied(dead: Any) -> None:
    """It takes as long as any change; other proxies are not touched."""
    async with running(dead_proxies=dead, latency=2.0) as api:
        reply = await api.patch("acc_1", CUSTOM)
        alive = await api.patch("acc_2", custom(port=8081, username="other"))

        assert (reply.status, reply.type) == (502, "errors/proxy_error")
        assert alive.status == 200
        assert now() == pytest.approx(4.0, abs=0.05)
        assert api.server.record.proxy_of("acc_1") is None


# Profiles


async def outcomes(profile: Any, seed: int, order: list[str]) -> dict[str, list[object]]:
    """What each account got, request for request, when they came in this order."""
    got: dict[str, list[object]] = {}
    async with running(faults=Faults(profile, seed), clock=lambda: 0.0) as api:
        for account_id in order:
            try:
                reply = await api.patch(account_id)
            except aiohttp.ClientError as error:
                got.setdefault(account_id, []).append(type(error))
            else:
                got.setdefault(account_id, []).append(reply.status)
    return got


@pytest.mark.parametrize("profile", ["flaky", "hostile"])
async def test_a_seed_repeats_whatever_the_interleaving(profile: str) -> None:
    """Chance hangs on the account and its request's number: concurrency must not change a run."""
    order = [f"acc_{number}" for number in range(60)] * 4
    shuffled = random.Random(7).sample(order, len(order))

    first, second = await outcomes(profile, 3, order), await outcomes(profile, 3, shuffled)
    other = await outcomes(profile, 4, order)

    assert first == second
    assert first != other


def test_a_seed_means_the_same_on_every_machine() -> None:
    """Not Python's hash, which is salted anew in each process."""
    faults = Faults("hostile", seed=1)
    faulty = [n for n in range(1, 41) if not faults.draw("acc_1", n).is_none]

    assert faulty == [2, 5, 13, 31, 35, 36, 37]


def test_flaky_keeps_its_shares() -> None:
    """2, 1, 1 and half a percent; half of the lost answers and of the late ones were executed."""
    faults = Faults("flaky", seed=5)
    drawn = [faults.draw(f"acc_{number}", nth) for number in range(20_000) for nth in (1, 2, 3)]
    share = {
        key: count / len(drawn) for key, count in Counter((f.type, f.ends, f.executes) for f in drawn).items()
    }

    assert share["errors/resource_not_found", "answered", False] == pytest.approx(0.01, rel=0.2)
    assert share["errors/provider_error", "answered", False] == pytest.approx(0.02, rel=0.1)
    assert share["errors/service_unavailable", "answered", False] == pytest.approx(0.01, rel=0.1)
    assert share["errors/request_timeout", "answered", False] == pytest.approx(0.005, rel=0.2)
    assert share["errors/request_timeout", "answered", True] == pytest.approx(0.005, rel=0.2)
    assert share[None, "dropped", False] == pytest.approx(0.0025, rel=0.2)
    assert share[None, "dropped", True] == pytest.approx(0.0025, rel=0.2)


def test_an_account_that_flaky_lost_is_lost_for_ever() -> None:
    """No retry helps it."""
    faults = Faults("flaky", seed=5)
    gone = [
        a for a in map("acc_{}".format, range(1000)) if faults.draw(a, 1).type == "errors/resource_not_found"
    ]

    assert gone
    assert all(faults.draw(a, nth).type == "errors/resource_not_found" for a in gone for nth in range(2, 50))


def test_steady_has_no_faults() -> None:
    """The profile to begin with."""
    assert all(Faults().draw("acc_1", nth).is_none for nth in range(1, 1000))


def test_an_overloaded_service_refuses_by_its_load() -> None:
    """Whoever slows down is served; that is what a client has to find out."""
    faults = Faults("overloaded", seed=5)

    def refused(executing: int) -> Counter[str | None]:
        return Counter(faults.draw(f"acc_{n}", 1, executing=executing).type for n in range(1000))

    assert refused(30) == {None: 1000}
    assert 300 < refused(65)[None] < 700
    assert set(refused(100)) == {"errors/too_many_requests", "errors/service_unavailable"}


@in_virtual_time
async def test_the_load_that_counts_is_what_is_being_executed() -> None:
    """One after the other all are served, and 200 at once are too many."""
    async with running(faults=Faults("overloaded", seed=5)) as api:
        alone = [(await api.patch(f"acc_{number}")).status for number in range(100)]
        crowd = await asyncio.gather(*(api.patch(f"acc_{number}") for number in range(200)))
        statuses = Counter(reply.status for reply in crowd)

        assert set(alone) == {200}
        assert set(statuses) == {200, 429, 503}
        assert 30 < statuses[200] < 100


@in_virtual_time
async def test_an_outage_comes_soon_and_goes() -> None:
    """Counted from the first request on the loop's clock, not from the server's start."""
    async with running(faults=Faults("outage", seed=5)) as api:
        await time_passes(1000)
        bad, seen = [], Counter[object]()
        while now() < 1040:
            try:
                result: object = (await api.patch()).status
            except aiohttp.ClientConnectionError as error:
                result = type(error)
            if result != 200:
                bad.append(now() - 1000)
                seen[result] += 1
            await time_passes(0.1)

        assert 1 < bad[0] < 3.2
        assert 11 < bad[-1] < 23
        assert len(bad) == pytest.approx((bad[-1] - bad[0]) / 0.1, rel=0.05)
        assert seen[503] > len(bad) / 2
        assert api.server.record.unanswered == len(bad) - seen[503] > 0


async def test_a_hostile_service_sends_all_sorts() -> None:
    """A fifth of all, each kind among them, and everything else as ever."""
    faults = Faults("hostile", seed=5)
    drawn = [faults.draw("acc_1", nth) for nth in range(1, 2001)]
    bad = [fault for fault in drawn if not fault.is_none]

    assert len(bad) / len(drawn) == pytest.approx(0.2, rel=0.15)
    assert {fault.status for fault in bad} == {None, 200, 307, 422, 502}
    assert {fault.ends for fault in bad} == {"answered", "dropped"}
    assert any(fault.cut for fault in bad)
    assert any(fault.body.endswith(b"NaN}") for fault in bad)
    assert any(b"acc_somebody_else" in fault.body for fault in bad)
    assert any(len(fault.body) > 256 * 1024 for fault in bad)
    assert any(fault.status == 200 and not fault.body for fault in bad)


def test_an_unknown_profile_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(ValueError, match="steady, flaky, overloaded, outage, hostile"):
        Faults("stormy")  # type: ignore[arg-type]


# Outages by hand


@pytest.mark.parametrize(
    ("kind", "status", "content_type", "takes"),
    [
        pytest.param("503", 503, "application/json", 0.0, id="503"),
        pytest.param("503-html", 503, "text/html", 0.0, id="503 in HTML"),
        pytest.param("504", 504, "application/json", 1.0, id="504"),
    ],
)
@in_virtual_time
async def test_an_outage_answers_for_all_until_it_recovers(
    kind: Any, status: int, content_type: str, takes: float
) -> None:
    """Before the key is looked at, and nothing is applied."""
    async with running() as api:
        await api.server.outage(kind)
        reply, took = await api.send("PATCH", "/accounts/acc_1", headers={}), now()
        await api.server.recover()
        after = await api.patch()

        assert (reply.status, reply.headers["Content-Type"]) == (status, content_type)
        assert took == pytest.approx(takes, abs=0.05)
        assert after.status == 200
        assert api.server.record.patched_accounts == {"acc_1": 1}


@in_virtual_time
async def test_a_refusing_server_cuts_all_off_and_comes_back_on_its_port() -> None:
    """What is being executed goes on; only its answer is lost."""
    async with running(latency=10.0) as api:
        url = api.server.url
        under_way = asyncio.create_task(api.patch("acc_1", key="k"))
        await time_passes(1)
        await api.server.outage("refused")
        with pytest.raises(aiohttp.ClientConnectionError):
            await under_way
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


@pytest.mark.parametrize("turns", range(8))
@in_virtual_time
async def test_no_connection_slips_into_a_refusing_server(turns: int) -> None:
    """Whichever turn of the loop it was being accepted in when the outage began."""
    async with running() as api:
        url = URL(api.server.url)
        connecting = asyncio.create_task(asyncio.open_connection(url.host, url.port))
        for _ in range(turns):
            await asyncio.sleep(0)
        await api.server.outage("refused")
        (end,) = await asyncio.gather(connecting, return_exceptions=True)
        if not isinstance(end, BaseException):  # connected, and to be cut off
            reader, writer = end
            (rest,) = await asyncio.gather(reader.read(), return_exceptions=True)
            assert rest == b"" or isinstance(rest, ConnectionError)
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        else:
            assert isinstance(end, ConnectionError)
        assert now() < 1


@in_virtual_time
async def test_a_silent_server_never_answers() -> None:
    """Not even after it recovered, for those who asked before."""
    async with running() as api:
        await api.server.outage("silent")
        asked_before = asyncio.create_task(api.patch("acc_1"))
        await time_passes(60)
        await api.server.recover()
        await time_passes(60)

        assert not asked_before.done()
        assert (await api.patch("acc_2")).status == 200
        asked_before.cancel()
        await asyncio.gather(asked_before, return_exceptions=True)


@in_virtual_time
async def test_a_slow_server_takes_a_multiple_of_its_latency() -> None:
    """And one kind of outage takes the place of another."""
    async with running(latency=1.0) as api:
        await api.server.outage("refused")
        await api.server.outage("slow", factor=7.0)
        await api.patch()
        slow = now()
        await api.server.recover()
        await api.patch()

        assert slow == pytest.approx(7.0, abs=0.05)
        assert now() - slow == pytest.approx(1.0, abs=0.05)


# The server's own life


@in_virtual_time
async def test_a_change_is_carried_out_though_its_client_hung_up() -> None:
    """A timeout of the client stops nothing on a real server."""
    async with running(latency=10.0) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await api.patch("acc_1", CUSTOM)
        assert api.server.record.proxy_of("acc_1") is None
        await time_passes(10)

        assert api.server.record.proxy_of("acc_1") == CUSTOM
        assert api.server.record.in_flight == 0


@in_virtual_time
async def test_a_client_may_hang_up_half_way_through_its_body() -> None:
    """Nothing came that could be carried out."""
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
    """The page knows of no compression."""
    async with running() as api:
        headers = KEY | {"Content-Encoding": "deflate"}
        reply = await api.send(
            "PATCH", "/accounts/acc_1", body=zlib.compress(b'{"ip": "1.1.1.1"}'), headers=headers
        )

        assert (reply.status, reply.type) == (400, "errors/malformed_request")


async def test_a_predicate_that_breaks_down_answers_whoever_waits(caplog: pytest.LogCaptureFixture) -> None:
    """A slip in a test's own predicate shows as a 500 and in the log, and not as a hang."""
    async with running(dead_proxies=lambda proxy: proxy["no such field"]) as api:
        replies = await asyncio.gather(*(api.patch("acc_1", CUSTOM, key="k") for _ in range(3)))

        assert [reply.status for reply in replies] == [500, 500, 500]
    assert "no such field" in caplog.text
    caplog.clear()


@in_virtual_time
async def test_closing_ends_everything_at_once() -> None:
    """What hangs, what executes and what waits: no task outlives the server, and closing twice is fine."""
    faults = Faults()
    faults.script("acc_1", "hang")
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession() as client:
        server = Server(faults=faults, latency=1000.0, capacity=1, queue=1)
        await server.start()
        api = Api(server, client)
        requests = [asyncio.create_task(api.patch(f"acc_{n}")) for n in (1, 2, 3)]
        await time_passes(1)
        assert server.record.in_flight == 3
        await server.aclose()
        await server.aclose()
        ended = await asyncio.gather(*requests, return_exceptions=True)

        assert [isinstance(end, aiohttp.ClientConnectionError) for end in ended] == [True] * 3
        assert now() < 2
        assert server.record.in_flight == 0
        assert server.record.patched_accounts == {}
        with pytest.raises(aiohttp.ClientConnectorError):
            await api.patch()
    await time_passes(1)
    assert asyncio.all_tasks() == before


async def test_a_server_is_started_once() -> None:
    """A second start would leave the first socket open; before the first there is no url."""
    server = Server()
    with pytest.raises(RuntimeError, match="not started"):
        server.url  # noqa: B018 - reading it raises
    async with server:
        with pytest.raises(RuntimeError, match="started before"):
            await server.start()


async def test_the_server_listens_where_it_is_told() -> None:
    """On a port that one knows beforehand, and on the other loopback where there is one."""
    async with running() as taken:
        port = URL(taken.server.url).port
        assert port is not None
        with pytest.raises(OSError, match=str(port)):
            await Server().start(port=port)
    server = Server()
    await server.start(port=port)
    await server.aclose()

    assert server.url == f"http://127.0.0.1:{port}/v1"


@in_virtual_time
async def test_an_idle_connection_is_kept_as_long_as_one_says() -> None:
    """For an hour if nothing is said; clients are also tested against servers that hang up early."""
    async with running() as patient, running(keep_alive=5.0) as hasty:
        for api, kept in ((patient, True), (hasty, False)):
            opened: list[object] = []
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(functools.partial(_note, opened))
            connector = aiohttp.TCPConnector(keepalive_timeout=10_000)
            async with aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as client:
                for _ in range(2):
                    await Api(api.server, client).patch()
                    await time_passes(1800)
            assert len(opened) == (1 if kept else 2)


async def _note(opened: list[object], *event: object) -> None:
    opened.append(event)


async def test_the_records_totals_hold_no_secret() -> None:
    """They are printed and put into reports."""
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
