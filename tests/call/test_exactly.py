"""
Any text as an id, key, proxy or URL is sent exactly as given, or refused and not sent.

Over a real socket, to a server that keeps the bytes as they came: what a library between would change on
the way (a line break dropped, a dot resolved, an escape undone) is seen here.
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

# Anything; what delimits in a URL or a header; and what looks like what is meant.
ODD = st.text(st.characters()) | st.text("\r\n\t \0:/\\?#@[]%.~-_&=+;,\"'<>éß٣\u200b\ud800", max_size=12)
PLAIN = st.text("aZ09._~-", min_size=1, max_size=20)
ANY = ODD | PLAIN | st.tuples(PLAIN, ODD, PLAIN).map("".join)


@frozen
class Api:
    """The server, and a way to wait for a call."""

    server: FaultServer
    wait: Callable[[Awaitable[object]], object]
    session: PostPressSession

    def new(self) -> SeenRequest:
        """The one request that came since the last time."""
        [seen] = self.server.seen
        self.server.seen.clear()
        return seen

    @property
    def target(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with FaultServer() as server, asyncio.Runner() as runner:

        async def awaited(what: Awaitable[object]) -> object:
            return await what

        session = PostPressSession(KEY, base_url=server.url, retry=ONCE)
        yield Api(server, lambda what: runner.run(awaited(what)), session)
        runner.run(session.aclose())


@given(account_id=ANY)
@example(account_id="a/../../admin")
@example(account_id="acc_1\r\nX-Evil: 1")
@example(account_id="%2e%2e")
def test_any_text_is_an_account_id_as_it_is_or_is_not_sent(api: Api, account_id: str) -> None:
    """Another path would be another account's, or another endpoint."""
    try:
        api.wait(api.session.update_proxy(account_id, US))
    except FieldError:
        assert api.server.seen == []
        return

    line, *_ = api.new().head.split(b"\r\n")
    assert line == f"PATCH /v1/accounts/{account_id} HTTP/1.1".encode("ascii")


@given(key=ANY)
@example(key="k\r\nX-Evil: 1")
@example(key=" k")
@example(key="ké")
def test_any_text_is_a_key_as_it_is_or_is_not_sent(api: Api, key: str) -> None:
    """Both of them: the API's, and the one that makes a request the same as another."""

    async def ask(api_key: str, idempotency_key: str) -> None:
        async with PostPressSession(api_key, base_url=api.target, retry=ONCE) as session:
            await session.update_proxy("acc_1", US, idempotency_key=idempotency_key)

    for name, api_key, idempotency_key in (("X-API-KEY", key, "i"), ("Idempotency-Key", KEY, key)):
        try:
            api.wait(ask(api_key, idempotency_key))
        except (ConfigurationError, ValueError):
            assert api.server.seen == []
            continue
        lines = api.new().head.split(b"\r\n")[1:]
        assert f"{name}: {key}".encode("ascii") in lines
        assert len(lines) == 8


@given(
    host=ANY | st.ip_addresses().map(str) | st.from_regex(r"[a-z]{1,9}\.example", fullmatch=True),
    username=ANY | st.none(),
    password=ANY | st.none(),
)
@example(host="proxy.example.com", username='"},"country":"US', password="\\")
def test_any_text_is_a_part_of_a_proxy_as_it_is_or_is_not_sent(
    api: Api, host: str, username: str | None, password: str | None
) -> None:
    """A proxy that is not quite the one that was meant fails later, on an account that had one."""
    try:
        own = CustomProxy(host=host, port=1, username=username, password=password)
    except FieldError:
        return
    api.wait(api.session.update_proxy("acc_1", own))

    given_ = {"host": host, "port": 1, "username": username, "password": password}
    assert json.loads(api.new().body) == {
        "proxy": {name: value for name, value in given_.items() if value is not None}
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
def test_any_text_is_a_base_url_s_path_as_it_is_or_is_not_sent(api: Api, path: str) -> None:
    """The server receives the path exactly as it was configured."""

    async def ask() -> None:
        async with PostPressSession(KEY, base_url=f"{api.target}/{path}", retry=ONCE) as session:
            await session.update_proxy("acc_1", US)

    try:
        api.wait(ask())
    except ConfigurationError:
        assert api.server.seen == []
        return

    before, mark, query = path.partition("?")
    base = f"/{before}".rstrip("/")
    line, *lines = api.new().head.split(b"\r\n")
    assert line == f"PATCH {base}/accounts/acc_1{mark}{query} HTTP/1.1".encode("ascii")
    assert f"Host: 127.0.0.1:{api.server.port}".encode() in lines


@given(
    url=st.tuples(st.sampled_from(["http://", "https://"]), ANY, st.sampled_from(["", "/v1"])).map("".join)
)
def test_a_key_goes_to_the_host_that_is_written_and_to_no_other(url: str) -> None:
    """URL parsers differ in what they take for the host, so ambiguous URLs are refused."""
    try:
        session = PostPressSession(KEY, base_url=url)
    except ConfigurationError:
        return

    read = session._context.transport._base_url  # type: ignore[attr-defined] # the one there is here
    host, _, port = re.split("[/?]", url.partition("://")[2])[0].partition(":")
    if not host.startswith("["):
        assert read.raw_host == host.lower()
        assert read.explicit_port == (int(port) if port else None)
