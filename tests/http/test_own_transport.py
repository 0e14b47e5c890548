"""Transports that a user implements, to use another HTTP client or to fake the API in tests."""

import ssl
from typing import Any

import aiohttp
import pytest

from postpress_async import CustomProxy, PostPressSession, Request, Response, RetryPolicy, errors
from postpress_async.errors import Applied
from postpress_async.sandbox import Sandbox
from tests.support import KEY

CUSTOM = CustomProxy(host="proxy.example.com", port=8080, password="hunter2")
PATCHED = b'{"object":"AccountPatched","account_id":"acc_1"}'


class FakeTransport:
    """Returns or raises *results*, one after another, and records the requests and their idempotency keys."""

    def __init__(self, *results: Response | Exception) -> None:
        self.results = list(results)
        self.sent: list[tuple[Request, str | None]] = []
        self.closed = False

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        self.sent.append((request, idempotency_key))
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def aclose(self) -> None:
        self.closed = True


class OtherClientTransport:
    """Sends requests with another HTTP client, using only the attributes of `Request`."""

    def __init__(self) -> None:
        self.client = aiohttp.ClientSession()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        headers = request.headers(idempotency_key)
        async with self.client.patch(request.url, data=request.body, headers=headers) as response:
            return Response(response.status, await response.read(), response.headers.get("Retry-After"))

    async def aclose(self) -> None:
        await self.client.close()


async def test_session_retries_decodes_the_response_and_closes_the_transport() -> None:
    transport = FakeTransport(errors.ConnectError("no connection"), Response(200, PATCHED))
    policy = RetryPolicy(first_wait=0.001)
    async with PostPressSession(
        KEY, base_url="http://[::1]/v1", transport=transport, retry=policy
    ) as session:
        patched = await session.update_proxy("acc_1", CUSTOM)

    assert len(patched.attempts) == 2
    assert transport.closed
    (request, key), (repeated_request, repeated_key) = transport.sent
    assert request is repeated_request
    assert request.url == "http://[::1]/v1/accounts/acc_1"
    assert key == repeated_key


@pytest.mark.parametrize("error_class", [errors.ConnectionLostError, errors.AttemptTimeoutError])
async def test_applied_is_unknown_unless_the_transport_sets_it(
    error_class: type[errors.TransportError],
) -> None:
    """The caller must not believe that nothing was changed if the transport does not know."""
    transport = FakeTransport(error_class("no response"))
    async with PostPressSession(KEY, transport=transport, retry=RetryPolicy(attempts=1)) as session:
        with pytest.raises(error_class) as caught:
            await session.update_proxy("acc_1", CUSTOM)

    assert caught.value.applied is Applied.UNKNOWN
    assert "hunter2" not in repr(transport.sent)
    assert KEY not in repr(transport.sent)


async def test_request_has_everything_that_the_api_requires() -> None:
    async with (
        Sandbox(accounts=["acc_1"]) as sandbox,
        sandbox.session(transport=OtherClientTransport()) as session,
    ):
        results = await session.update_many({"acc_1": CUSTOM, "acc_2": CUSTOM})

        assert (len(results.patched), len(results.failed)) == (1, 1)
        proxy = sandbox.proxy_of("acc_1")
        assert proxy is not None
        assert proxy["proxy"]["password"] == "hunter2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"transport": "quick"},
            'transport must be "session", "lean" or an object with the methods send and',
        ),
        ({"transport": FakeTransport}, "transport must be"),
        ({"transport": object()}, "transport must be"),
        ({"transport": ["lean"]}, "transport must be"),
        ({"transport": FakeTransport(), "ssl": ssl.create_default_context()}, "ssl requires transport="),
        ({"transport": FakeTransport(), "trust_env": True}, "trust_env requires transport="),
        ({"transport": FakeTransport(), "connector": object()}, "connector requires transport="),
        (
            {"ssl": ssl.create_default_context(), "connector": object()},
            "ssl cannot be combined with connector",
        ),
    ],
    ids=["unknown name", "class", "no methods", "list", "ssl", "trust_env", "connector", "connector and ssl"],
)
def test_invalid_transport_or_option_is_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=message):
        PostPressSession(KEY, **options)
