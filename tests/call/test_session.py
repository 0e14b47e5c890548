"""One account: the request, the response, and retries in between."""

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
from tests.support.virtual_world import in_virtual_time, world

BASE = "https://api.postpress.ai/v1"
ENDPOINT = f"{BASE}/accounts/acc_01"
PATCHED = {"object": "AccountPatched", "account_id": "acc_01"}
US = ManagedProxy(country="US")
OWN = CustomProxy(host="proxy.example.com", port=8080)


def envelope(type_: str, status: int | None, instance: str | None = None) -> dict[str, Any]:
    return {"type": f"errors/{type_}", "title": "A title", "status": status, "instance": instance}


def sent(api: Any) -> list[Any]:
    """The requests that reached the transport's other end, oldest first."""
    return [call for calls in api.requests.values() for call in calls]


def keys(api: Any) -> list[str]:
    return [call.kwargs["headers"]["Idempotency-Key"] for call in sent(api)]


async def test_the_request_is_the_page_s(api, session) -> None:
    """Method, path, header and body, with nothing in it that was not given."""
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", CustomProxy(host="h.example", port=1, password="p"))

    [(method, url)] = api.requests
    [call] = sent(api)
    assert (method, url) == ("PATCH", URL(ENDPOINT))
    assert call.kwargs["headers"]["X-API-KEY"] == KEY
    body = await call.kwargs["data"].as_bytes()
    assert json.loads(body) == {"proxy": {"host": "h.example", "port": 1, "password": "p"}}


async def test_the_answer_is_a_value_with_its_history(api, session) -> None:
    """A caller that logs how it came about needs no second channel."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    done = await session.update_proxy("acc_01", US)

    assert done == AccountPatched("acc_01")
    assert [(a.number, a.error, a.status) for a in done.attempts] == [
        (1, "errors/proxy_error", 502),
        (2, None, 200),
    ]


async def test_a_dead_proxy_is_tried_again(api, session, naps) -> None:
    """A 502 proxy_error often passes: one wait, then the answer."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    assert await session.update_proxy("acc_01", US) == AccountPatched("acc_01")
    assert len(naps) == 1
    assert 0 <= naps[0] <= 0.5


@pytest.mark.parametrize("type_", errors.BY_TYPE)
async def test_a_type_is_retried_until_the_attempts_are_spent_or_not_at_all(api, session, type_) -> None:
    """The five that pass are worth four attempts; to send any other again is to get it again."""
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
    assert len(sent(api)) == len(caught.value.attempts) == (4 if retried else 1)
    assert caught.value.account_id == "acc_01"


@pytest.mark.parametrize(
    ("answer", "attempts"),
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
async def test_what_the_reference_does_not_list_is_retried_where_every_api_s_clients_do(
    api, session, answer, attempts
) -> None:
    """Gateways answer in front of the API, and connections break."""
    api.patch(ENDPOINT, repeat=True, **answer)

    with pytest.raises(errors.PostPressError) as caught:
        await session.update_proxy("acc_01", OWN)

    assert len(sent(api)) == len(caught.value.attempts) == attempts


async def test_a_retry_after_is_a_floor_under_the_wait(api, session, naps) -> None:
    """The wait is never shorter than the service asks for."""
    api.patch(ENDPOINT, status=429, headers={"Retry-After": "7"})
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    assert naps == [7.0]


async def test_a_retry_after_beyond_the_deadline_gives_up_at_once(api, session, naps) -> None:
    """Waiting would be useless; the error has the seconds, for callers that can wait longer."""
    api.patch(ENDPOINT, status=503, headers={"Retry-After": "121"}, payload=envelope("network_down", 503))

    with pytest.raises(errors.NetworkDownError) as caught:
        await session.update_proxy("acc_01", US)

    assert naps == []
    assert caught.value.retry_after == 121.0


async def test_seconds_that_were_recorded_and_not_slept_count_against_the_deadline(api, naps, policy) -> None:
    """Under a deadline of 8 s, a test sees the attempts that a program will make."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502), repeat=True)
    short = evolve(policy, attempts=50, deadline=8.0, wait=tenacity.wait_fixed(2.0))

    async with PostPressSession(KEY, retry=short) as session:
        with pytest.raises(errors.ProxyError) as caught:
            await session.update_proxy("acc_01", OWN)

    assert naps == [2.0, 2.0, 2.0]
    assert len(caught.value.attempts) == 4


@in_virtual_time
async def test_seconds_that_were_slept_count_once_against_the_deadline() -> None:
    """The loop's clock has moved by them already, in virtual time too."""
    short = RetryPolicy(attempts=50, deadline=8.0, wait=tenacity.wait_fixed(2.0))
    async with world(retry=short) as made:
        made.server.faults.script("acc_x", *["errors/proxy_error"] * 50)
        with pytest.raises(errors.ProxyError) as caught:
            await made.call()

    assert len(caught.value.attempts) == 4


# --- Idempotency keys ---


async def test_no_answer_means_the_same_key_again(api, session) -> None:
    """If it was done, the API tells so instead of doing it twice."""
    api.patch(ENDPOINT, exception=aiohttp.ServerDisconnectedError())
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    first, second = keys(api)
    assert first == second


@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
async def test_a_refusal_means_a_fresh_key(api, session, change) -> None:
    """Under the same key the API may replay the stored refusal for ever."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", change)

    first, second = keys(api)
    assert first != second


@pytest.mark.parametrize(("change", "same"), [(US, True), (OWN, False)], ids=["managed", "custom"])
async def test_an_answer_that_leaves_it_open_keeps_a_managed_change_s_key(api, session, change, same) -> None:
    """A second managed proxy is handed out, and billed; setting one's own twice is setting it once."""
    api.patch(ENDPOINT, status=504, payload=envelope("request_timeout", 504))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", change)

    first, second = keys(api)
    assert (first == second) is same


async def test_a_stored_answer_that_comes_back_ends_a_managed_change_as_unknown(api, session) -> None:
    """A replayed response is not a new attempt, so retrying cannot clear the doubt."""
    api.patch(ENDPOINT, status=504, payload=envelope("request_timeout", 504, "req_1"), repeat=True)

    with pytest.raises(errors.RequestTimeoutError) as caught:
        await session.update_proxy("acc_01", US)

    assert len(sent(api)) == 2
    assert caught.value.applied is Applied.UNKNOWN


async def test_a_refusal_after_a_doubt_keeps_a_managed_change_s_key(api, session) -> None:
    """The refusal may be a gateway's, which knows nothing of the request that may have been carried out."""
    api.patch(ENDPOINT, exception=aiohttp.ServerDisconnectedError())
    api.patch(ENDPOINT, status=503, payload=envelope("service_unavailable", 503, "req_1"))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    assert len(set(keys(api))) == 1


async def test_no_refusal_ends_the_doubt_about_a_managed_change_or_renews_its_key(api, session) -> None:
    """Any refusal may come from a gateway in front of the API."""
    api.patch(ENDPOINT, exception=aiohttp.ServerDisconnectedError())
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502, "req_1"))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US)

    first, second, third = keys(api)
    assert first == second == third


@pytest.mark.parametrize("instance", ["", "-", "/v1/accounts/acc_01", "req_1", None])
async def test_a_gateway_s_refusals_never_cost_a_second_managed_proxy(sandbox, policy, instance) -> None:
    """A 503 says nothing about the lost response, even if it repeats or has another instance."""
    busy = Fault(
        status=503,
        headers={"Content-Type": "application/json"},
        body=json.dumps(envelope("service_unavailable", 503, instance)).encode(),
    )
    sandbox.script("acc_1", "lost", busy, busy)

    async with sandbox.session(retry=policy) as session:
        await session.update_proxy("acc_1", US)

    assert sandbox.record.managed_handed_out == 1


async def test_a_caller_s_own_key_is_kept_for_every_attempt(api, session) -> None:
    """A caller that passes the key has a reason, such as a job that may be started twice."""
    api.patch(ENDPOINT, status=502, payload=envelope("proxy_error", 502))
    api.patch(ENDPOINT, payload=PATCHED)

    await session.update_proxy("acc_01", US, idempotency_key="order-17")

    assert keys(api) == ["order-17", "order-17"]


async def test_without_idempotency_no_key_is_sent(api, policy) -> None:
    api.patch(ENDPOINT, payload=PATCHED)

    async with PostPressSession(KEY, retry=policy, idempotency=False) as session:
        await session.update_proxy("acc_01", US)

    assert "Idempotency-Key" not in sent(api)[0].kwargs["headers"]


async def test_one_doubt_makes_the_whole_call_s_outcome_unknown(api, session) -> None:
    """The last refusal says nothing was applied by it; an earlier attempt may have been, all the same."""
    api.patch(ENDPOINT, status=504, payload=envelope("request_timeout", 504))
    api.patch(ENDPOINT, status=404, payload=envelope("resource_not_found", 404))

    with pytest.raises(errors.ResourceNotFoundError) as caught:
        await session.update_proxy("acc_01", OWN)

    assert caught.value.applied is Applied.UNKNOWN


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\nb", 7])
async def test_a_key_that_cannot_be_a_header_is_refused_before_a_byte_is_sent(api, session, key) -> None:
    with pytest.raises(ValueError, match="idempotency_key must be 1 to 255"):
        await session.update_proxy("acc_01", US, idempotency_key=key)
    assert not api.requests


# --- Over a real socket ---


async def test_lost_response_is_unknown_and_lost_request_is_retried(sandbox, policy, transport: Any) -> None:
    """`lost` carries the change out and drops the connection: the same key gets the stored success."""
    sandbox.script("acc_1", "lost")

    async with sandbox.session(retry=policy, transport=transport) as session:
        done = await session.update_proxy("acc_1", US)

    assert [attempt.error for attempt in done.attempts] == ["ConnectionLostError", None]
    assert sandbox.record.managed_handed_out == 1


async def test_without_idempotency_a_lost_answer_is_final(sandbox, policy, transport: Any) -> None:
    """The socket's twin of the test above: here the body was written."""
    sandbox.script("acc_1", "lost")

    async with sandbox.session(retry=policy, idempotency=False, transport=transport) as session:
        with pytest.raises(errors.ConnectionLostError) as caught:
            await session.update_proxy("acc_1", US)

    assert caught.value.applied is Applied.UNKNOWN
    assert sandbox.record.sends("acc_1") == 1


async def test_a_server_that_is_not_there_was_never_sent_anything(
    policy, naps, unused_tcp_port, transport: Any
) -> None:
    """A refused connection leaves no doubt."""
    async with PostPressSession(
        KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}", retry=policy, transport=transport
    ) as session:
        with pytest.raises(errors.ConnectError) as caught:
            await session.update_proxy("acc_1", US)

    assert caught.value.applied is Applied.NO
    assert len(naps) == 3


async def test_an_attempt_that_gets_no_answer_ends_by_itself(sandbox, transport: Any) -> None:
    """The connection stays open and silent; the attempt's timeout is the only way out."""
    sandbox.script("acc_1", "hang")

    async with sandbox.session(
        retry=RetryPolicy(attempt_timeout=0.05, attempts=1), transport=transport
    ) as session:
        with pytest.raises(errors.AttemptTimeoutError) as caught:
            await session.update_proxy("acc_1", US)

    assert caught.value.applied is Applied.UNKNOWN


async def test_the_deadline_covers_attempts_and_waits(sandbox, transport: Any) -> None:
    """A 30 s timeout that becomes 91 s with retries is a broken promise."""
    sandbox.script("acc_1", *["hang"] * 4)
    clock = asyncio.get_running_loop().time

    async with sandbox.session(
        retry=RetryPolicy(attempt_timeout=0.06, deadline=0.1, first_wait=0.001), transport=transport
    ) as session:
        began = clock()
        with pytest.raises(errors.AttemptTimeoutError) as caught:
            await session.update_proxy("acc_1", US)

    assert clock() - began < 0.2
    assert len(caught.value.attempts) == 2


async def test_two_updates_of_one_account_never_overlap(sandbox, transport: Any) -> None:
    """The last call made is the last applied, however slow the first one is."""
    sandbox.script("acc_1", "errors/provider_error", "errors/provider_error", 200, 200)
    fast = RetryPolicy(first_wait=0.001)

    async with sandbox.session(retry=fast, transport=transport) as session:
        first = asyncio.create_task(session.update_proxy("acc_1", OWN))
        await asyncio.sleep(0)
        second = asyncio.create_task(session.update_proxy("acc_1", US))
        other = asyncio.create_task(session.update_proxy("acc_2", US))
        await asyncio.gather(first, second, other)

    assert sandbox.proxy_of("acc_1") == {"country": "US"}
    assert len(first.result().attempts) == 3
    assert len(second.result().attempts) == 1


async def test_a_thousand_calls_each_get_their_own_answer(sandbox, transport: Any) -> None:
    """State shared between calls would mix their results."""
    accounts = [f"acc_{number}" for number in range(1000)]
    for account in accounts[::3]:
        sandbox.script(account, "errors/proxy_error")
    quick = RetryPolicy(first_wait=0.0001)

    async with sandbox.session(retry=quick, transport=transport) as session:
        done = await asyncio.gather(*(session.update_proxy(account, US) for account in accounts))

    assert [patched.account_id for patched in done] == accounts
    assert [len(patched.attempts) for patched in done] == [2, 1, 1] * 333 + [2]


async def test_no_more_are_in_flight_than_the_pace_allows(transport: Any) -> None:
    """The pool of connections is no second, hidden limit, and the pace is a real one."""
    async with (
        Sandbox(latency=0.01) as sandbox,
        sandbox.session(pace=Pace(in_flight=7), transport=transport) as session,
    ):
        await asyncio.gather(*(session.update_proxy(f"acc_{n}", US) for n in range(50)))

    assert sandbox.record.most_in_flight == 7


# --- Its life ---


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer, as of coverage, takes memory too")
async def test_a_call_that_waits_takes_little_memory(transport: Any) -> None:
    """A hundred thousand may wait at once. Each takes 2.3 KB; with the attempt's coroutines it was 4.3 KB."""
    calls = 5_000
    async with PostPressSession(KEY, pace=Pace(in_flight=1, adaptive=False), transport=transport) as session:
        assert session._context.pacer.try_acquire()
        warm = asyncio.create_task(session.update_proxy("acc_warm", US))
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
        for task in (warm, *tasks):
            task.cancel()
        await asyncio.gather(warm, *tasks, return_exceptions=True)

    assert (after - before) / calls < 2_450


async def test_a_closed_session_says_so_and_stays_closed(sandbox) -> None:
    session = sandbox.session()
    await session.update_proxy("acc_1", US)
    await session.aclose()
    await session.aclose()

    with pytest.raises(errors.SessionClosedError, match="create a new one"):
        await session.update_proxy("acc_1", US)
    assert repr(session) == "<PostPressSession closed>"


async def test_closing_leaves_no_call_hanging(sandbox, transport: Any) -> None:
    """Calls in flight, in backoff, or waiting for a permit or the lock end with a PostPressError."""
    sandbox.script("acc_1", "hang")
    sandbox.script("acc_2", "errors/network_down")
    session = sandbox.session(
        pace=Pace(in_flight=1), retry=RetryPolicy(first_wait=60.0, wait=lambda _: 60.0), transport=transport
    )
    backing_off = asyncio.create_task(session.update_proxy("acc_2", US))
    while not sandbox.record.by_status[503]:
        await asyncio.sleep(0)
    in_flight = asyncio.create_task(session.update_proxy("acc_1", US))
    turn = asyncio.create_task(session.update_proxy("acc_1", US))
    slot = asyncio.create_task(session.update_proxy("acc_3", US))
    while sandbox.record.requests < 2:
        await asyncio.sleep(0)

    await session.aclose(timeout=0.01)

    ended = await asyncio.gather(backing_off, in_flight, turn, slot, return_exceptions=True)
    assert [type(error).__name__ for error in ended] == [
        "NetworkDownError",
        "ConnectionLostError",
        "SessionClosedError",
        "SessionClosedError",
    ]


async def test_closing_waits_for_what_is_in_flight(transport: Any) -> None:
    async with Sandbox(latency=0.02) as sandbox:
        session = sandbox.session(transport=transport)
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        await session.aclose(timeout=5.0)

        assert await call == AccountPatched("acc_1")


def test_a_session_may_be_made_outside_the_loop_and_belongs_to_the_first(transport: Any) -> None:
    """Connections end with their loop; with a second loop they would raise 'Event loop is closed'."""
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


async def test_a_call_that_still_connects_ends_with_the_session(transport: Any) -> None:
    """A server that accepts and says nothing; here the caller's own connector stays open, too."""
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
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
    silent.close()
    for writer in accepted:
        writer.close()
        await writer.wait_closed()


async def test_connector_closed_by_the_caller_is_reported(sandbox, transport: Any) -> None:
    connector = aiohttp.TCPConnector()
    async with sandbox.session(connector=connector, transport=transport) as session:
        await session.update_proxy("acc_1", US)
        await connector.close()

        with pytest.raises(errors.PostPressError):
            await session.update_proxy("acc_1", US)


async def test_a_connector_of_the_caller_s_stays_theirs(sandbox, transport: Any) -> None:
    connector = aiohttp.TCPConnector()
    async with sandbox.session(connector=connector, transport=transport) as session:
        await session.update_proxy("acc_1", US)

    assert not connector.closed
    await connector.close()


async def test_cancelling_a_call_frees_all_it_held(sandbox, transport: Any) -> None:
    """The slot, the turn and the connection: the next call of the same account goes through."""
    sandbox.script("acc_1", "hang")
    async with sandbox.session(pace=Pace(in_flight=1), transport=transport) as session:
        call = asyncio.create_task(session.update_proxy("acc_1", US))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        assert await session.update_proxy("acc_1", US) == AccountPatched("acc_1")


# --- What can be watched ---


async def test_an_observer_sees_each_step_and_cannot_disturb_it(sandbox, policy, transport: Any) -> None:
    """An error in the user's logging must not fail a call."""
    sandbox.script("acc_1", "errors/proxy_error")
    seen: list[str] = []

    def observe(event: object) -> None:
        seen.append(type(event).__name__)
        raise RuntimeError("a mistake of the observer's")

    async with sandbox.session(retry=policy, on_event=observe, transport=transport) as session:
        await session.update_proxy("acc_1", US)

    attempt = ["AttemptStarted", "AttemptEnded"]
    assert seen == ["CallStarted", *attempt, "RetryScheduled", *attempt, "CallEnded"]


async def test_events_name_the_target_of_a_call(sandbox, policy) -> None:
    """The quickstart's base URL ends in a query, which follows the account id."""
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
def test_unclosed_session_warns_at_once(transport: str) -> None:
    """A cycle would put Python's warning off until a collection: into a later test, which did no wrong."""
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
    words = [sys.executable, "-c", program, transport]
    done = subprocess.run(words, capture_output=True, text=True, check=False)

    warned = {"session": "['Unclosed client session']", "lean": "['Unclosed connector']"}
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", warned[transport])


@pytest.mark.parametrize(
    "travel", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda function: function.__name__
)
def test_a_session_cannot_be_pickled_or_copied(travel) -> None:
    """A session has connections and a loop; the message says what to do instead."""
    with pytest.raises(TypeError, match="a session cannot be pickled or copied: create a new one"):
        travel(PostPressSession(KEY))
