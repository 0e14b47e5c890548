"""`update_many`: every account has an outcome, in the order of the input, within the deadline."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from postpress_async import (
    CustomProxy,
    ManagedProxy,
    Pace,
    PostPressSession,
    ProxyPool,
    Results,
    RetryPolicy,
    errors,
)
from postpress_async.errors import Applied
from postpress_async.models import FieldError
from postpress_async.rotation import State
from postpress_async.sandbox import Sandbox
from tests.support.rotations import assert_nothing_left_open
from tests.support.virtual_world import in_virtual_time, now
from tests.support.virtual_world import world as virtual_world

US, DE = ManagedProxy(country="US"), ManagedProxy(country="DE")
PROXY = CustomProxy(host="p0.example.net", port=8080)
ACCOUNTS = [f"acc_{number}" for number in range(50)]


# --- Outcomes within the deadline ---


async def test_fifty_accounts_are_updated_with_one_call() -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        results = await session.update_many(dict.fromkeys(ACCOUNTS, US))
        assert results.ok
        assert results["acc_7"].state == "patched"

    assert list(results) == ACCOUNTS
    assert sandbox.record.requests == 50


@in_virtual_time
async def test_failing_and_hanging_accounts_do_not_affect_the_others() -> None:
    """The call returns at its deadline although one account hangs."""
    async with virtual_world() as (server, session, _, _):
        server.faults.script("acc_3", "errors/disconnected_account")
        server.faults.script("acc_4", "errors/resource_not_found")
        server.faults.script("acc_5", *["hang"] * 9)

        results = await session.update_many(dict.fromkeys(ACCOUNTS, US), deadline=2)

        assert 2.0 <= now() < 2.1
    assert list(results) == ACCOUNTS
    assert len(results.patched) == 47
    assert [(outcome.account_id, type(outcome.error)) for outcome in results.failed] == [
        ("acc_3", errors.DisconnectedAccountError),
        ("acc_4", errors.ResourceNotFoundError),
    ]
    [hanging] = results.unknown
    assert (hanging.account_id, hanging.applied) == ("acc_5", Applied.UNKNOWN)
    assert isinstance(hanging.error, errors.AttemptTimeoutError)
    assert not results.ok
    assert repr(results) == "<Results: 47 patched, 2 failed, 1 unknown>"


@in_virtual_time
async def test_accounts_not_sent_at_the_deadline_are_skipped() -> None:
    """Two accounts at a time take 0.05 s each. After 0.12 s, four are patched and two are in flight."""
    async with virtual_world(Pace(adaptive=False)) as (server, session, _, _):
        results = await session.update_many(dict.fromkeys(ACCOUNTS, US), deadline=0.12, in_flight=2)

        assert now() == pytest.approx(0.12, abs=0.01)
        assert server.record.requests == 6
    assert len(results.patched) == 4
    assert len(results.unknown) == 2
    assert len(results.skipped) == 44
    for outcome in results.skipped:
        assert isinstance(outcome.error, errors.DeadlineError)
        assert str(outcome.error) == f"{outcome.account_id}: the deadline passed before the change was sent"
        assert outcome.applied is Applied.NO


@in_virtual_time
async def test_account_in_backoff_at_the_deadline_has_its_last_error() -> None:
    """`update_proxy` raises the same error when its deadline passes in backoff."""
    policy = RetryPolicy(wait=lambda _: 30.0)
    async with virtual_world(retry=policy) as (server, session, _, _):
        server.faults.script("acc_1", "errors/proxy_error")

        results = await session.update_many({"acc_1": US, "acc_2": US}, deadline=5)

        assert now() < 5.1
    assert results["acc_1"].state is State.FAILED
    assert isinstance(results["acc_1"].error, errors.ProxyError)
    assert results["acc_2"].state is State.PATCHED


@in_virtual_time
async def test_without_a_deadline_each_account_has_the_deadline_of_the_retry_policy() -> None:
    """Unlike a rotation, the call does not wait for hours until an outage ends."""
    policy = RetryPolicy(attempts=1000, deadline=60.0)
    async with virtual_world(retry=policy) as (server, session, _, _):
        server.faults.script("acc_1", *["errors/service_unavailable"] * 1000)

        results = await session.update_many({"acc_1": US, "acc_2": US})

        assert now() < 61
    assert isinstance(results["acc_1"].error, errors.ServiceUnavailableError)
    assert results["acc_2"].state is State.PATCHED


async def test_retry_policy_of_the_call_overrides_that_of_the_session() -> None:
    async with Sandbox() as sandbox, sandbox.session(retry=RetryPolicy(attempts=4)) as session:
        sandbox.script("acc_1", *["errors/proxy_error"] * 4)

        results = await session.update_many({"acc_1": US}, retry=RetryPolicy(attempts=1))

    assert results["acc_1"].attempts == 1
    assert sandbox.record.requests == 1


@pytest.mark.parametrize("strategy", ["retry", "wait", "stop", "before_sleep"])
@in_virtual_time
async def test_error_of_a_retry_strategy_is_raised_without_an_exception_group(strategy: str) -> None:
    """The call first waits until the requests in flight are completed."""

    def fail(_retry_state: object) -> Any:
        raise KeyError("mistake")

    options: dict[str, Any] = {strategy: fail}
    async with virtual_world() as (server, session, _, _):
        server.faults.script("acc_3", "errors/service_unavailable")
        server.faults.script("acc_4", "errors/service_unavailable")

        with pytest.raises(KeyError, match="mistake"):
            await session.update_many(dict.fromkeys(ACCOUNTS, US), retry=RetryPolicy(**options))

        assert server.record.in_flight == 0


async def test_accounts_get_working_proxies_of_the_pool() -> None:
    pool = ProxyPool([CustomProxy(host=f"p{number}.example.net", port=8080) for number in range(3)])
    async with Sandbox(dead_proxies={"p0.example.net:8080"}) as sandbox:
        policy = RetryPolicy(first_wait=0.001, max_wait=0.001)
        async with sandbox.session(retry=policy) as session:
            results = await session.update_many(["acc_1", "acc_2", ("acc_3", US)], pool=pool)

    assert results.ok
    assert sandbox.proxy_of("acc_3") == {"country": "US"}
    for account in ("acc_1", "acc_2"):
        assert (sandbox.proxy_of(account) or {})["proxy"]["host"] in {"p1.example.net", "p2.example.net"}


# --- Errors ---


async def test_raise_for_failures_raises_one_group_with_all_errors() -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", "errors/invalid_parameters")
        sandbox.script("acc_2", "errors/resource_not_found")
        results = await session.update_many(dict.fromkeys(ACCOUNTS, US))

    with pytest.raises(ExceptionGroup, match="2 of 50 accounts were not patched") as caught:
        results.raise_for_failures()
    assert [type(error) for error in caught.value.exceptions] == [
        errors.InvalidParametersError,
        errors.ResourceNotFoundError,
    ]
    assert [str(error)[:6] for error in caught.value.exceptions] == ["acc_1:", "acc_2:"]


async def test_raise_for_failures_does_nothing_if_all_accounts_were_patched() -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        (await session.update_many({"acc_1": US})).raise_for_failures()


async def test_refused_api_key_ends_the_call_and_every_account_has_an_error() -> None:
    async with Sandbox() as sandbox:
        async with PostPressSession("pp_wrong_key", base_url=sandbox.url) as session:
            results = await session.update_many(dict.fromkeys(ACCOUNTS, US), in_flight=2)

    assert list(results) == ACCOUNTS
    assert not results.patched
    assert all(outcome.error is not None for outcome in results.values())
    assert sandbox.record.requests <= 21  # the first 20 responses prove that the key is refused
    assert "check the API key" in str(results["acc_49"].error)


async def test_account_given_twice_with_the_same_change_is_sent_once() -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        results = await session.update_many([("acc_1", US), ("acc_2", US), ("acc_1", US)])

    assert list(results) == ["acc_1", "acc_2"]
    assert sandbox.record.requests == 2


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        pytest.param(
            [("acc_0", US), ("acc_1", US), ("acc_1", DE)], {}, "acc_1 occurs twice with different", id="twice"
        ),
        pytest.param({"acc_1": "US"}, {}, "change", id="text instead of a change"),
        pytest.param({"acc/1": US}, {}, "account_id", id="invalid account id"),
        pytest.param({"acc_1": None}, {}, "change", id="no change and no pool"),
        pytest.param({"acc_1": US}, {"deadline": 0}, "deadline must be a number of seconds", id="deadline 0"),
        pytest.param({"acc_1": US}, {"deadline": float("nan")}, "deadline must be", id="deadline nan"),
        pytest.param({"acc_1": US}, {"in_flight": 0}, "in_flight must be a whole number", id="in_flight 0"),
        pytest.param(
            {"acc_1": US}, {"deadline": "5"}, "deadline must be a number of seconds", id="text deadline"
        ),
        pytest.param({"acc_1": US}, {"retry": 3}, "retry must be a RetryPolicy", id="number of retries"),
        pytest.param(["acc_1"], {"pool": [PROXY]}, "pool must be a ProxyPool, got list", id="list as pool"),
        pytest.param(
            {"acc_1": US}, {"pool": ProxyPool([PROXY])}, "no account would use the pool", id="unused pool"
        ),
        pytest.param("acc_1", {"pool": ProxyPool([PROXY])}, "got str: put it into a list", id="one id"),
        pytest.param(5, {}, "iterable of pairs, got int", id="number"),
        pytest.param(
            {"acc_0": US, "acc_1": "US"}, {}, r"acc_1: changes\[1\], change", id="names the account"
        ),
    ],
)
async def test_invalid_input_is_rejected_before_anything_is_sent(
    changes: Any, options: dict[str, Any], message: str
) -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match=message):
            await session.update_many(changes, **options)

    assert sandbox.record.requests == 0


async def test_error_of_an_invalid_change_names_the_account_and_the_field() -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(FieldError) as caught:
            await session.update_many({"acc_1": US, "acc_2": {"country": "XX"}})

    error = caught.value
    assert (error.account_id, error.field, error.reason) == ("acc_2", "country", "country not assigned")
    assert str(error).startswith("acc_2: changes[1], country: country not assigned: ")
    assert sandbox.record.requests == 0


async def test_twenty_disconnected_accounts_do_not_count_as_a_refused_api_key() -> None:
    """Their 401 is about the account, so the remaining accounts are sent."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        for account in ACCOUNTS[:20]:
            sandbox.script(account, "errors/disconnected_account")
        results = await session.update_many(dict.fromkeys(ACCOUNTS, US), in_flight=5)

    assert len(results.failed) == 20
    assert len(results.patched) == len(ACCOUNTS) - 20


async def test_no_changes_give_no_results() -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        results = await session.update_many({})

    assert (dict(results), results.ok) == ({}, True)


async def test_asynchronous_iterable_is_rejected_because_all_results_are_kept_in_memory() -> None:
    async def async_pairs() -> Any:
        yield "acc_1", US

    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match="got async_generator: use rotate for it"):
            await session.update_many(async_pairs())  # pyright: ignore[reportArgumentType]


async def test_rotate_rejects_a_single_id_and_a_pool_of_another_type() -> None:
    """The characters of the id would be taken for account ids."""
    session = PostPressSession("pp_key")
    with pytest.raises(ValueError, match="got str: put it into a list"):
        session.rotate("acc_1", pool=ProxyPool([PROXY]))
    with pytest.raises(ValueError, match="pool must be a ProxyPool, got list"):
        session.rotate(["acc_1"], pool=[PROXY])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- Cancellation and closing ---


@in_virtual_time
async def test_cancelled_call_leaves_no_task_or_connection_open() -> None:
    async with virtual_world() as world:
        world.server.faults.script("acc_1", *["hang"] * 9)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await world.session.update_many(dict.fromkeys(ACCOUNTS, US))
        await asyncio.sleep(0)

        assert_nothing_left_open(world)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "rotation-worker"]


async def test_call_on_a_closed_session_raises() -> None:
    async with Sandbox() as sandbox:
        session = sandbox.session()
        await session.aclose()
        with pytest.raises(errors.SessionClosedError):
            await session.update_many({"acc_1": US})


@in_virtual_time
async def test_closing_the_session_ends_the_call_with_an_error_for_each_unpatched_account() -> None:
    async with virtual_world() as (server, session, _, _):
        server.faults.script("acc_1", *["hang"] * 9)
        call = asyncio.create_task(session.update_many(dict.fromkeys(ACCOUNTS, US), in_flight=1))
        await asyncio.sleep(1)
        await session.aclose(timeout=1)

        results = await call

    patched, in_flight, *not_sent = results.values()
    assert patched.state is State.PATCHED
    assert in_flight.state is State.UNKNOWN
    assert isinstance(in_flight.error, errors.ConnectionLostError)
    assert {outcome.state for outcome in not_sent} == {State.SKIPPED}
    assert all(outcome.error is not None for outcome in not_sent)


# --- Outcomes that the caller did not iterate over ---


@in_virtual_time
async def test_rotation_ended_by_a_timeout_keeps_the_outcomes_that_were_not_consumed() -> None:
    async with virtual_world(Pace(adaptive=False)) as (server, session, _, _):
        server.faults.script("acc_2", *["hang"] * 9)
        changes = [(account, US) for account in ACCOUNTS[:6]]
        with suppress(TimeoutError):
            async with asyncio.timeout(1), session.rotate(changes, in_flight=3) as rotation:
                first = await anext(rotation)
                await asyncio.sleep(10)

    assert first.account_id == "acc_0"
    unconsumed = {outcome.account_id: outcome for outcome in rotation.summary.unconsumed}
    assert unconsumed["acc_1"].state is State.PATCHED
    assert unconsumed["acc_2"].state is State.UNKNOWN
    assert unconsumed["acc_2"].error is not None
    assert rotation.summary.total == 1 + len(unconsumed)


async def test_outcomes_of_accounts_that_were_not_sent_have_an_error() -> None:
    """Here, an invalid row and an account for which no proxy is left."""
    pool = ProxyPool([CustomProxy(host="p0.example.net", port=8080)], accounts_per_proxy=1)

    accounts: Any = iter(["acc_1", "acc_2", "acc 3", ("acc_4", US)])

    async with Sandbox() as sandbox, sandbox.session() as session:
        async with session.rotate(accounts, pool=pool) as rotation:
            outcomes = {outcome.ordinal: outcome async for outcome in rotation}

    assert [outcomes[n].state for n in range(4)] == ["patched", "skipped", "skipped", "patched"]
    assert str(outcomes[1].error) == "acc_2: not sent: no proxy left"
    assert isinstance(outcomes[2].error, errors.NotSentError)
    assert outcomes[2].error.scope is errors.Scope.REQUEST


def test_results_cannot_be_changed() -> None:
    results = Results({})

    assert not hasattr(results, "__setitem__")
    assert repr(results) == "<Results: empty>"
