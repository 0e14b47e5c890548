"""A transport may be a user's object: over another HTTP client, or a fake in an application's tests."""

import ssl
from typing import Any

import aiohttp
import pytest

from postpress_async import CustomProxy, PostPressSession, Request, Response, RetryPolicy, errors
from postpress_async.errors import Applied
from postpress_async.sandbox import Sandbox
from tests.support import KEY

OWN = CustomProxy(host="proxy.example.com", port=8080, password="hunter2")
PATCHED = b'{"object":"AccountPatched","account_id":"acc_1"}'


class FakeTransport:
    """Gives one answer after the other, and keeps the requests with their idempotency keys."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[Request, str | None]] = []
        self.closed = False

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        self.sent.append((request, idempotency_key))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        self.closed = True


class OtherClient:
    """Sends by another HTTP client, which knows nothing but the request."""

    def __init__(self) -> None:
        self.client = aiohttp.ClientSession()

    async def send(self, request: Request, idempotency_key: str | None, timeout: float) -> Response:
        headers = request.headers(idempotency_key)
        async with self.client.patch(request.url, data=request.body, headers=headers) as answer:
            return Response(answer.status, await answer.read(), answer.headers.get("Retry-After"))

    async def aclose(self) -> None:
        await self.client.close()


async def test_session_retries_decodes_and_closes() -> None:
    transport = FakeTransport(errors.ConnectError("no connection"), Response(200, PATCHED))
    policy = RetryPolicy(first_wait=0.001)
    async with PostPressSession(
        KEY, base_url="http://[::1]/v1", transport=transport, retry=policy
    ) as session:
        patched = await session.update_proxy("acc_1", OWN)

    assert len(patched.attempts) == 2
    assert transport.closed
    (request, key), (again, same_key) = transport.sent
    assert request is again
    assert request.url == "http://[::1]/v1/accounts/acc_1"
    assert key == same_key


async def test_its_errors_say_what_was_applied() -> None:
    lost = errors.ConnectionLostError("lost")
    lost.applied = Applied.UNKNOWN
    transport = FakeTransport(lost)
    async with PostPressSession(KEY, transport=transport, retry=RetryPolicy(attempts=1)) as session:
        with pytest.raises(errors.ConnectionLostError) as caught:
            await session.update_proxy("acc_1", OWN)

    assert caught.value.applied is Applied.UNKNOWN
    assert "hunter2" not in repr(transport.sent)
    assert KEY not in repr(transport.sent)


async def test_request_has_all_that_the_api_needs() -> None:
    async with Sandbox(accounts=["acc_1"]) as sandbox, sandbox.session(transport=OtherClient()) as session:
        results = await session.update_many({"acc_1": OWN, "acc_2": OWN})

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
    ],
    ids=["unknown name", "class", "no methods", "list", "ssl", "trust_env", "connector"],
)
def test_unusable_transport_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=message):
        PostPressSession(KEY, **options)
