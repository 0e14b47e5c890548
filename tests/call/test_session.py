"""Updates of single accounts: requests, responses, retries, idempotency keys, and closing the session."""

import asyncio
import copy
import gc
import json
import pickle
import subprocess
import sys
import tracemalloc
from typing import Any

import aiohttp
import pytest
import tenacity
from attrs import evolve
from yarl import URL

from postpress_async import (
    AccountPatched,
    CustomProxy,
    ManagedProxy,
    PostPressSession,
    RetryPolicy,
    errors,
    events,
)
from postpress_async.errors import Applied
from postpress_async.pace import Pace
from postpress_async.sandbox import Fault, Sandbox
from tests.support import KEY
from tests.support.virtual_world import in_virtual_time, now, world

BASE = "https://api.postpress.ai/v1"
ENDPOINT = f"{BASE}/accounts/acc_01"
PATCHED = {"object": "AccountPatched", "account_id": "acc_01"}
US = ManagedProxy(country="US")
OWN = CustomProxy(host="proxy.example.com", port=8080)


def envelope(type_: str, status: int | None, instance: str | None = None) -> dict[str, Any]:
    return {"type": f"errors/{type_}", "title": "A title", "status": status, "instance": instance}


def requests_to(api: Any) -> list[Any]:
    """The requests that aioresponses received, oldest first."""
    return [request for requests in api.requests.values() for request in requests]


def keys_of(api: Any) -> list[str]:
    """The idempotency keys of these requests."""
    return [request.kwargs["headers"]["Idempotency-Key"] for request in requests_to(api)]


async def test_request_is_the_one_in_the_reference(api, session) -> None:
    """The body has only the fields that were set."""
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", CustomProxy(host="h.example", port=1, password="p"))

    [(method, url)] = api.requests
    [request] = requests_to(api)
    assert (method, url) == ("PATCH", URL(ENDPOINT))
    assert request.kwargs["headers"]["X-API-KEY"] == KEY
    body = await request.kwargs["data"].as_bytes()
    assert json.loads(body) == {"proxy": {"host": "h.example", "port": 1, "password": "p"}}


async def test_result_has_all_attempts(api, session) -> None:
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    result = await session.update_proxy("acc_01", US)

    assert result == AccountPatched("acc_01")
    assert [(attempt.number, attempt.error, attempt.status) for attempt in result.attempts] == [
        (1, "errors/proxy_error", 502),
        (2, None, 200),
    ]


async def test_proxy_error_is_retried_after_at_most_half_a_second(api, session, naps) -> None:
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    assert await session.update_proxy("acc_01", US) == AccountPatched("acc_01")
    assert len(naps) == 1
    assert 0 <= naps[0] <= 0.5


@pytest.mark.parametrize("type_", errors.BY_TYPE)
async def test_retryable_types_get_four_attempts_and_other_types_one(api, session, type_) -> None:
    kind = errors.BY_TYPE[type_]
    api.patch(ENDPOINT, status=kind.status, payload=envelope(type_[7:], kind.status), repeat=True)

    with pytest.raises(kind) as caught:
        await session.update_proxy("acc_01", OWN)

    retried = type_[7:] in {
        "proxy_error",
        "provider_error",
        "network_down",
        "request_timeout",
        "service_unavailable",
    }
    assert len(requests_to(api)) == len(caught.value.attempts) == (4 if retried else 1)
    assert caught.value.account_id == "acc_01"


@pytest.mark.parametrize(
    ("response", "attempts"),
    [
        pytest.param({"status": 429, "payload": envelope("too_many_requests", 429)}, 4, id="a 429"),
        pytest.param({"status": 502, "body": "<html>Bad gateway</html>"}, 4, id="a bare 502 with HTML"),
        pytest.param({"status": 503, "payload": envelope("brand_new", 503)}, 4, id="an unlisted 503"),
        pytest.param({"status": 400, "payload": envelope("brand_new", 400)}, 1, id="an unlisted 400"),
        pytest.param({"status": 500, "body": ""}, 1, id="a bare 500"),
        pytest.param({"status": 408, "body": ""}, 4, id="a 408"),
        pytest.param({"status": 200, "body": ""}, 1, id="an empty 200"),
        pytest.param({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, 1, id="a redirect"),
        pytest.param({"exception": aiohttp.ServerDisconnectedError()}, 4, id="a lost connection"),
    ],
)
async def test_responses_that_the_reference_does_not_list_are_retried_if_http_says_so(
    api, session, response, attempts
) -> None:
    """Gateways respond in place of the API, and connections break."""
    api.patch(ENDPOINT, repeat=True, **response)

    with pytest.raises(errors.PostPressError) as caught:
        await session.update_proxy("acc_01", OWN)

    assert len(requests_to(api)) == len(caught.value.attempts) == attempts


async def test_wait_is_not_shorter_than_the_retry_after(api, session, naps) -> None:
    api.patch(ENDPOINT, status=429, headers={"Retry-After": "7"})
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    assert naps == [7.0]


async def test_call_fails_at_once_if_the_retry_after_exceeds_the_deadline(api, session, naps) -> None:
    """The error has the seconds, for callers that can wait longer."""
    api.patch(ENDPOINT, status=503, headers={"Retry-After": "121"}, payload=envelope("network_down", 503))

    with pytest.raises(errors.NetworkDownError) as caught:
        await session.update_proxy("acc_01", US)

    assert naps == []
    assert caught.value.retry_after == 121.0


async def test_backoff_that_a_test_does_not_sleep_counts_against_the_deadline(api, naps, policy) -> None:
    """So a test sees as many attempts as a program that sleeps."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502), repeat=True)
    short_deadline = evolve(policy, attempts=50, deadline=8.0, wait=tenacity.wait_fixed(2.0))

    async with PostPressSession(KEY, retry=short_deadline) as session:
        with pytest.raises(errors.ProxyError) as caught:
            await session.update_proxy("acc_01", OWN)

    assert naps == [2.0, 2.0, 2.0]
    assert len(caught.value.attempts) == 4


@in_virtual_time
async def test_backoff_that_was_slept_counts_only_once_against_the_deadline() -> None:
    """The loop's clock includes the backoff already, in virtual time too."""
    short_deadline = RetryPolicy(attempts=50, deadline=8.0, wait=tenacity.wait_fixed(2.0))
    async with world(retry=short_deadline) as simulated:
        simulated.server.faults.script("acc_x", *["errors/proxy_error"] * 50)
        with pytest.raises(errors.ProxyError) as caught:
            await simulated.call()

    assert len(caught.value.attempts) == 4


# --- Idempotency keys ---


async def test_attempt_after_a_lost_connection_reuses_the_key(api, session) -> None:
    """If the API applied the change, it replays its stored response instead of applying the change again."""
    api.patch(ENDPOINT, exception=aiohttp.ServerDisconnectedError())
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    first, second = keys_of(api)
    assert first == second


@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
async def test_attempt_after_an_error_response_has_a_new_key(api, session, change) -> None:
    """For the old key, the API would replay the stored error response."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", change)

    first, second = keys_of(api)
    assert first != second


@pytest.mark.parametrize(("change", "same"), [(US, True), (OWN, False)], ids=["managed", "custom"])
async def test_only_a_managed_change_keeps_its_key_after_a_response_that_leaves_it_in_doubt(
    api, session, change, same
) -> None:
    """A new key might assign and bill a second managed proxy. Setting a custom proxy twice does no harm."""
    api.patch(ENDPOINT, status=504, payload=envelope("request_timeout", 504))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", change)

    first, second = keys_of(api)
    assert (first == second) is same


async def test_replayed_error_response_ends_a_managed_change_in_doubt(api, session) -> None:
    """The API would replay the same response to every further attempt."""
    api.patch(ENDPOINT, status=504, payload=envelope("request_timeout", 504, "req_1"), repeat=True)

    with pytest.raises(errors.RequestTimeoutError) as caught:
        await session.update_proxy("acc_01", US)

    assert len(requests_to(api)) == 2
    assert caught.value.applied is Applied.UNKNOWN


@pytest.mark.parametrize(
    ("status", "type_"), [(503, "service_unavailable"), (502, "proxy_error")], ids=["503", "502"]
)
async def test_managed_change_in_doubt_keeps_its_key_after_an_error_response(
    api, session, status, type_
) -> None:
    """A gateway may have sent the error response, which then says nothing about the earlier request."""
    api.patch(ENDPOINT, exception=aiohttp.ServerDisconnectedError())
    api.patch(ENDPOINT, status=status, payload=envelope(type_, status, "req_1"))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    first, second, third = keys_of(api)
    assert first == second == third


@pytest.mark.parametrize("instance", ["", "-", "/v1/accounts/acc_01", "req_1", None])
async def test_503s_after_a_lost_response_never_assign_a_second_managed_proxy(
    sandbox, policy, instance
) -> None:
    """Whatever `instance` the 503s have, a new key might assign a second proxy."""
    busy = Fault(
        status=503,
        headers={"Content-Type": "application/json"},
        body=json.dumps(envelope("service_unavailable", 503, instance)).encode(),
    )
    sandbox.script("acc_1", "lost", busy, busy)

    async with sandbox.session(retry=policy) as session:
        await session.update_proxy("acc_1", US)

    assert sandbox.record.managed_handed_out == 1


async def test_key_of_the_caller_is_sent_with_every_attempt(api, session) -> None:
    """The caller may pass a key so that a job can be started twice."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US, idempotency_key="order-17")

    assert keys_of(api) == ["order-17", "order-17"]


async def test_without_idempotency_no_key_is_sent(api, policy) -> None:
    api.patch(ENDPOINT, payload=PATCHED)

    async with PostPressSession(KEY, retry=policy, idempotency=False) as session:
        await session.update_proxy("acc_01", US)

    assert "Idempotency-Key" not in requests_to(api)[0].kwargs["headers"]


async def test_outcome_is_unknown_if_any_attempt_may_have_applied_the_change(api, session) -> None:
    """The 404 says that the second request was not applied, but the first one may have been."""
    api.patch(ENDPOINT, status=504, payload=envelope("request_timeout", 504))
    api.patch(ENDPOINT, status=404, payload=envelope("resource_not_found", 404))

    with pytest.raises(errors.ResourceNotFoundError) as caught:
        await session.update_proxy("acc_01", OWN)

    assert caught.value.applied is Applied.UNKNOWN


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\nb", 7])
async def test_idempotency_key_that_cannot_be_a_header_is_rejected_before_sending(api, session, key) -> None:
    with pytest.raises(ValueError, match="idempotency_key must be 1 to 255"):
        await session.update_proxy("acc_01", US, idempotency_key=key)
    assert not api.requests


# --- Connections and concurrent calls ---


async def test_retry_after_a_lost_response_does_not_assign_a_second_proxy(
    sandbox, policy, transport: Any
) -> None:
    sandbox.script("acc_1", "lost")  # applies the change and drops the connection

    async with sandbox.session(retry=policy, transport=transport) as session:
        result = await session.update_proxy("acc_1", US)

    assert [attempt.error for attempt in result.attempts] == ["ConnectionLostError", None]
    assert sandbox.record.managed_handed_out == 1


async def test_without_idempotency_a_managed_change_is_not_retried_after_a_lost_response(
    sandbox, policy, transport: Any
) -> None:
    sandbox.script("acc_1", "lost")

    async with sandbox.session(retry=policy, idempotency=False, transport=transport) as session:
        with pytest.raises(errors.ConnectionLostError) as caught:
            await session.update_proxy("acc_1", US)

    assert caught.value.applied is Applied.UNKNOWN
    assert sandbox.record.sends("acc_1") == 1


async def test_refused_connection_is_retried_and_applies_nothing(
    policy, naps, unused_tcp_port, transport: Any
) -> None:
    async with PostPressSession(
        KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}", retry=policy, transport=transport
    ) as session:
        with pytest.raises(errors.ConnectError) as caught:
            await session.update_proxy("acc_1", US)

    assert caught.value.applied is Applied.NO
    assert len(naps) == 3


@in_virtual_time
async def test_attempt_without_a_response_times_out(transport: Any) -> None:
    once = RetryPolicy(attempt_timeout=5.0, attempts=1)
    async with world(retry=once, transport=transport) as simulated:
        simulated.server.faults.script("acc_x", "hang")  # keeps the connection open and sends nothing
        with pytest.raises(errors.AttemptTimeoutError) as caught:
            await simulated.call()

        assert now() == pytest.approx(5.0)
    assert caught.value.applied is Applied.UNKNOWN


@in_virtual_time
async def test_deadline_covers_all_attempts_and_waits(transport: Any) -> None:
    """The third attempt has no more than the seconds that are left."""
    policy = RetryPolicy(attempt_timeout=30.0, deadline=80.0, wait=tenacity.wait_fixed(2.0))
    async with world(retry=policy, transport=transport) as simulated:
        simulated.server.faults.script("acc_x", *["hang"] * 4)
        with pytest.raises(errors.AttemptTimeoutError) as caught:
            await simulated.call()

        assert now() == pytest.approx(80.0)
    assert [attempt.elapsed for attempt in caught.value.attempts] == pytest.approx([30.0, 30.0, 16.0])


async def test_two_updates_of_one_account_never_overlap(sandbox, transport: Any) -> None:
    """The change of the last call is applied last, even if the first call needs several attempts."""
    sandbox.script("acc_1", "errors/provider_error", "errors/provider_error", 200, 200)
    quick = RetryPolicy(first_wait=0.001)

    async with sandbox.session(retry=quick, transport=transport) as session:
        first = asyncio.create_task(session.update_proxy("acc_1", OWN))
        await asyncio.sleep(0)
        second = asyncio.create_task(session.update_proxy("acc_1", US))
        other = asyncio.create_task(session.update_proxy("acc_2", US))
        await asyncio.gather(first, second, other)

    assert sandbox.proxy_of("acc_1") == {"country": "US"}
    assert len(first.result().attempts) == 3
    assert len(second.result().attempts) == 1


async def test_thousand_concurrent_calls_get_their_own_results(sandbox, transport: Any) -> None:
    accounts = [f"acc_{number}" for number in range(1000)]
    for account in accounts[::3]:
        sandbox.script(account, "errors/proxy_error")
    quick = RetryPolicy(first_wait=0.0001)

    async with sandbox.session(retry=quick, transport=transport) as session:
        results = await asyncio.gather(*(session.update_proxy(account, US) for account in accounts))

    assert [result.account_id for result in results] == accounts
    assert [len(result.attempts) for result in results] == [2, 1, 1] * 333 + [2]


async def test_pace_alone_limits_the_requests_in_flight(transport: Any) -> None:
    """The connection pool has no lower limit."""
    async with (
        Sandbox(latency=0.01) as sandbox,
        sandbox.session(pace=Pace(in_flight=7), transport=transport) as session,
    ):
        await asyncio.gather(*(session.update_proxy(f"acc_{n}", US) for n in range(50)))

    assert sandbox.record.most_in_flight == 7


# --- Memory, closing and event loops ---


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer, such as coverage's, takes memory too")
async def test_waiting_call_takes_less_than_2450_bytes(transport: Any) -> None:
    """A hundred thousand calls may wait at once."""
    calls = 5_000
    async with PostPressSession(KEY, pace=Pace(in_flight=1, adaptive=False), transport=transport) as session:
        assert session._context.pacer.try_acquire()  # so that all calls wait
        # The first call also allocates what all calls share, so it is not measured.
        first = asyncio.create_task(session.update_proxy("acc_first", US))
        await asyncio.sleep(0)
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tasks = [asyncio.create_task(session.update_proxy(f"acc_{n}", US)) for n in range(calls)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert session._context.pacer.waiting == calls + 1
        for task in (first, *tasks):
            task.cancel()
        await asyncio.gather(first, *tasks, return_exceptions=True)

    assert (after - before) / calls < 2_450


async def test_closed_session_rejects_calls_and_may_be_closed_again(sandbox) -> None:
    session = sandbox.session()
    await session.update_proxy("acc_1", US)
    await session.aclose()
    await session.aclose()

    with pytest.raises(errors.SessionClosedError, match="create a new one"):
        await session.update_proxy("acc_1", US)
    assert repr(session) == "<PostPressSession closed>"


async def test_closing_ends_all_open_calls(sandbox, transport: Any) -> None:
    """Calls in flight, in backoff, or waiting for a permit or the account's lock raise a PostPressError."""
    sandbox.script("acc_1", "hang")
    sandbox.script("acc_2", "errors/network_down")
    session = sandbox.session(
        pace=Pace(in_flight=1), retry=RetryPolicy(first_wait=60.0, wait=lambda _: 60.0), transport=transport
    )
    backing_off = asyncio.create_task(session.update_proxy("acc_2", US))
    while not sandbox.record.by_status[503]:
        await asyncio.sleep(0)
    in_flight = asyncio.create_task(session.update_proxy("acc_1", US))
    waits_for_lock = asyncio.create_task(session.update_proxy("acc_1", US))
    waits_for_permit = asyncio.create_task(session.update_proxy("acc_3", US))
    while sandbox.record.requests < 2:
        await asyncio.sleep(0)

    await session.aclose(timeout=0.01)

    calls = (backing_off, in_flight, waits_for_lock, waits_for_permit)
    raised = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error).__name__ for error in raised] == [
        "NetworkDownError",
        "ConnectionLostError",
        "SessionClosedError",
        "SessionClosedError",
    ]


async def test_closing_waits_for_requests_in_flight(transport: Any) -> None:
    async with Sandbox(latency=0.02) as sandbox:
        session = sandbox.session(transport=transport)
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        closing = asyncio.create_task(session.aclose(timeout=5.0))
        await asyncio.sleep(0)
        assert repr(session) == "<PostPressSession closed>"
        await closing

        assert await call == AccountPatched("acc_1")


def test_session_belongs_to_the_first_event_loop_that_uses_it(transport: Any) -> None:
    """It may be created outside of a loop. In a second loop, its connections would fail."""
    session = PostPressSession(
        KEY, base_url="http://127.0.0.1:1", retry=RetryPolicy(attempts=1), transport=transport
    )

    async def use() -> None:
        await session.update_proxy("acc_1", US)

    async def use_and_close() -> None:
        try:
            await use()
        finally:
            await session.aclose()

    with pytest.raises(errors.ConnectError):
        asyncio.run(use())
    with pytest.raises(errors.ConfigurationError, match="one session per loop"):
        asyncio.run(use_and_close())


async def test_closing_ends_a_call_that_waits_for_a_silent_server(transport: Any) -> None:
    """Even if the connector is the caller's own, which stays open."""
    accepted: list[asyncio.StreamWriter] = []
    silent_server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent_server.sockets[0].getsockname()[1]
    async with aiohttp.TCPConnector() as connector:
        session = PostPressSession(
            KEY, base_url=f"http://127.0.0.1:{port}", connector=connector, transport=transport
        )
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not accepted:
            await asyncio.sleep(0)
        await session.aclose(timeout=0.0)

        with pytest.raises(errors.ConnectionLostError, match="session was closed"):
            await call
    silent_server.close()
    for writer in accepted:
        writer.close()
        await writer.wait_closed()


async def test_call_fails_if_the_caller_closed_the_connector(sandbox, transport: Any) -> None:
    connector = aiohttp.TCPConnector()
    async with sandbox.session(connector=connector, transport=transport) as session:
        await session.update_proxy("acc_1", US)
        await connector.close()

        with pytest.raises(errors.PostPressError):
            await session.update_proxy("acc_1", US)


async def test_session_does_not_close_the_caller_s_connector(sandbox, transport: Any) -> None:
    connector = aiohttp.TCPConnector()
    async with sandbox.session(connector=connector, transport=transport) as session:
        await session.update_proxy("acc_1", US)

    assert not connector.closed
    await connector.close()


async def test_cancelled_call_releases_its_permit_lock_and_connection(sandbox, transport: Any) -> None:
    """So the next call for the same account succeeds."""
    sandbox.script("acc_1", "hang")
    async with sandbox.session(pace=Pace(in_flight=1), transport=transport) as session:
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        assert await session.update_proxy("acc_1", US) == AccountPatched("acc_1")


# --- Events ---


async def test_observer_that_raises_gets_all_events_and_does_not_fail_the_call(
    sandbox, policy, transport: Any
) -> None:
    sandbox.script("acc_1", "errors/proxy_error")
    seen: list[str] = []

    def observe(event: object) -> None:
        seen.append(type(event).__name__)
        raise RuntimeError("a bug in the observer")

    async with sandbox.session(retry=policy, on_event=observe, transport=transport) as session:
        await session.update_proxy("acc_1", US)

    attempt = ["AttemptStarted", "AttemptEnded"]
    assert seen == ["CallStarted", *attempt, "RetryScheduled", *attempt, "CallEnded"]


async def test_url_of_an_event_has_the_base_url_s_query_after_the_account_id(sandbox, policy) -> None:
    """The base URL of the API's quickstart has a query."""
    urls: list[str] = []
    port = sandbox.url.split(":")[2].split("/")[0]

    def observe(event: object) -> None:
        if isinstance(event, events.CallStarted):
            urls.append(event.url)

    base = f"{sandbox.url}?port={port}"
    async with PostPressSession(sandbox.api_key, base_url=base, retry=policy, on_event=observe) as session:
        await session.update_proxy("acc_1", US)

    assert urls == [f"{sandbox.url}/accounts/acc_1?port={port}"]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["session", "lean"])
def test_unclosed_session_warns_as_soon_as_its_last_reference_is_gone(transport: str) -> None:
    """With a reference cycle, the warning would come at the next garbage collection, in unrelated code."""
    program = """
import asyncio, gc, logging, sys, warnings
from postpress_async import ManagedProxy, RetryPolicy, errors
from postpress_async.sandbox import Sandbox

async def main():
    async with Sandbox() as sandbox:
        sandbox.script("acc_1", "errors/proxy_error", "errors/disconnected_account")
        session = sandbox.session(retry=RetryPolicy(first_wait=0.001), transport=sys.argv[1])
        try:
            await session.update_proxy("acc_1", ManagedProxy(country="US"))
        except errors.DisconnectedAccountError:
            pass
        await session.update_proxy("acc_2", ManagedProxy(country="US"))
        del session
        print(messages[:1])

messages = []
gc.disable()
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
warnings.simplefilter("always", ResourceWarning)
warnings.showwarning = lambda message, *location: messages.append(str(message).split(" <")[0])
asyncio.run(main())
"""
    command = [sys.executable, "-c", program, transport]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    warnings = {"session": "['Unclosed client session']", "lean": "['Unclosed connector']"}
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", warnings[transport])


@pytest.mark.parametrize(
    "duplicate", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda function: function.__name__
)
def test_session_cannot_be_pickled_or_copied(duplicate) -> None:
    with pytest.raises(TypeError, match="a session cannot be pickled or copied: create a new one"):
        duplicate(PostPressSession(KEY))
