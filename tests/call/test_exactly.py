"""
Any text as an account id, key, proxy or base URL is either sent unchanged, or rejected before sending.

Requests go over a real socket to a server that records their bytes. So these tests notice a library that
changes a value on the way: a dropped line break, a resolved dot in a path, an undone escape.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator

import pytest
from attrs import frozen
from hypothesis import example, given
from hypothesis import strategies as st

from postpress_async import CustomProxy, ManagedProxy, PostPressSession, RetryPolicy
from postpress_async.errors import ConfigurationError
from postpress_async.models import FieldError
from tests.support import KEY
from tests.support.fault_server import FaultServer, SeenRequest

US = ManagedProxy(country="US")
ONCE = RetryPolicy(attempts=1)

# Any characters, or those with a meaning in URLs and headers, or that look like others.
ODD = st.text(st.characters()) | st.text("\r\n\t \0:/\\?#@[]%.~-_&=+;,\"'<>éß٣\u200b\ud800", max_size=12)
PLAIN = st.text("aZ09._~-", min_size=1, max_size=20)
ANY = ODD | PLAIN | st.tuples(PLAIN, ODD, PLAIN).map("".join)
HEADERS = 8
"""Headers of each request; one more would be injected by a line break."""


@frozen
class Api:
    """A recording server, a session for it, and a function that runs a coroutine."""

    server: FaultServer
    run: Callable[[Awaitable[object]], object]
    session: PostPressSession

    def take_request(self) -> SeenRequest:
        """Remove and return the only recorded request."""
        [request] = self.server.seen
        self.server.seen.clear()
        return request

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with FaultServer() as server, asyncio.Runner() as runner:

        async def wait_for(awaitable: Awaitable[object]) -> object:
            return await awaitable

        session = PostPressSession(KEY, base_url=server.url, retry=ONCE)
        yield Api(server, lambda awaitable: runner.run(wait_for(awaitable)), session)
        runner.run(session.aclose())


@given(account_id=ANY)
@example(account_id="a/../../admin")
@example(account_id="acc_1\r\nX-Evil: 1")
@example(account_id="%2e%2e")
def test_account_id_is_sent_unchanged_or_rejected(api: Api, account_id: str) -> None:
    """A changed path could select another account or another endpoint."""
    try:
        api.run(api.session.update_proxy(account_id, US))
    except FieldError:
        assert api.server.seen == []
        return

    request_line, *_ = api.take_request().head.split(b"\r\n")
    assert request_line == f"PATCH /v1/accounts/{account_id} HTTP/1.1".encode("ascii")


@given(key=ANY)
@example(key="k\r\nX-Evil: 1")
@example(key=" k")
@example(key="ké")
def test_api_key_and_idempotency_key_are_sent_unchanged_or_rejected(api: Api, key: str) -> None:
    async def call(api_key: str, idempotency_key: str) -> None:
        async with PostPressSession(api_key, base_url=api.origin, retry=ONCE) as session:
            await session.update_proxy("acc_1", US, idempotency_key=idempotency_key)

    for header, api_key, idempotency_key in (("X-API-KEY", key, "i"), ("Idempotency-Key", KEY, key)):
        try:
            api.run(call(api_key, idempotency_key))
        except (ConfigurationError, ValueError):
            assert api.server.seen == []
            continue
        headers = api.take_request().head.split(b"\r\n")[1:]
        assert f"{header}: {key}".encode("ascii") in headers
        assert len(headers) == HEADERS


@given(
    host=ANY | st.ip_addresses().map(str) | st.from_regex(r"[a-z]{1,9}\.example", fullmatch=True),
    username=ANY | st.none(),
    password=ANY | st.none(),
)
@example(host="proxy.example.com", username='"},"country":"US', password="\\")
def test_proxy_is_sent_unchanged_or_rejected(
    api: Api, host: str, username: str | None, password: str | None
) -> None:
    try:
        proxy = CustomProxy(host=host, port=1, username=username, password=password)
    except FieldError:
        return
    api.run(api.session.update_proxy("acc_1", proxy))

    fields = {"host": host, "port": 1, "username": username, "password": password}
    assert json.loads(api.take_request().body) == {
        "proxy": {name: value for name, value in fields.items() if value is not None}
    }


@given(path=ANY | st.lists(PLAIN, max_size=4).map("/".join))
@example(path="v1/../admin")
@example(path="v1/./x")
@example(path="a%2Fb/%7e")
@example(path="v1?port=8080")
@example(path="a//b")
@example(path="é b")
@example(path="v1\r\n")
@example(path="?")
def test_path_of_the_base_url_is_sent_unchanged_or_rejected(api: Api, path: str) -> None:
    async def call() -> None:
        async with PostPressSession(KEY, base_url=f"{api.origin}/{path}", retry=ONCE) as session:
            await session.update_proxy("acc_1", US)

    try:
        api.run(call())
    except ConfigurationError:
        assert api.server.seen == []
        return

    base_path, question_mark, query = f"/{path}".partition("?")
    target = f"{base_path.rstrip('/')}/accounts/acc_1{question_mark}{query}"
    request_line, *headers = api.take_request().head.split(b"\r\n")
    assert request_line == f"PATCH {target} HTTP/1.1".encode("ascii")
    assert f"Host: 127.0.0.1:{api.server.port}".encode() in headers


@given(
    url=st.tuples(st.sampled_from(["http://", "https://"]), ANY, st.sampled_from(["", "/v1"])).map("".join)
)
def test_api_key_is_sent_only_to_the_host_that_the_base_url_shows(url: str) -> None:
    """URL parsers disagree about the host of an ambiguous URL, so such a URL is rejected."""
    try:
        session = PostPressSession(KEY, base_url=url)
    except ConfigurationError:
        return

    parsed = session._context.transport._base_url  # type: ignore[attr-defined]
    host, _, port = re.split("[/?]", url.partition("://")[2])[0].partition(":")
    if not host.startswith("["):
        assert parsed.raw_host == host.lower()
        assert parsed.explicit_port == (int(port) if port else None)
