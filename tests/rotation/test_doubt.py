"""Accounts whose change may have been applied: only a 200 settles the doubt."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from postpress_async import CustomProxy, Pace, PostPressSession, ProxyPool, RetryPolicy, errors
from postpress_async._call.tracker import WaitGroup
from postpress_async.rotation import Halt, Rotation, Row, State
from postpress_async.rotation._account_task import AccountContext, AccountTask
from postpress_async.rotation._outcome import KEY_EXPIRED
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._database import FIRST_WATERMARK
from postpress_async.sandbox import Fault, Sandbox
from tests.support import KEY
from tests.support.journals import crash_copy, crash_copy_after
from tests.support.rotations import US, query, run, run_and_cancel, settled_events
from tests.support.virtual_world import in_virtual_time
from tests.support.virtual_world import world as virtual_world

CUSTOM = CustomProxy(host="proxy.example.com", port=8080)
ONCE = RetryPolicy(attempts=1)
ACCOUNTS = [f"acc_{number}" for number in range(5)]

ERRORS: dict[str, str | Fault] = {
    "a wrong key": "errors/invalid_credentials",
    "an expired key": "errors/expired_credentials",
    "a key without the scope": "errors/insufficient_privileges",
    "a bad request": "errors/invalid_parameters",
    "a bare 400": Fault(status=400),
    "a bare 401": Fault(status=401),
    "a bare 403": Fault(status=403),
    "a bare 404": Fault(status=404),
    "an unknown account": "errors/resource_not_found",
    "not supported": "errors/feature_not_implemented",
}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def recorded_by_account(journal: Path) -> dict[str, tuple[str, str | None]]:
    """The recorded state and `applied` of each account."""
    rows = query(journal, "SELECT account_id, state, applied FROM outcomes")
    return {account: (state, applied) for account, state, applied in rows}


async def rotate(session: PostPressSession, journal: Path, change: Any = US, **options: Any) -> Rotation:
    options = {"halt": "never", **options}
    return await run(session.rotate(dict.fromkeys(ACCOUNTS, change), journal=journal, **options))


async def run_and_kill_in_flight(sandbox: Sandbox, journal: Path, change: Any = US) -> Path:
    """
    Return the journal of a run that is killed after the API has applied all changes, before any response.
    """
    for account in ACCOUNTS:
        sandbox.script(account, Fault(executes=True, ends="never"))
    async with sandbox.session() as session:
        task = asyncio.create_task(rotate(session, journal, change))
        copy = await crash_copy_after(task, sandbox.record, len(ACCOUNTS), journal)
    assert recorded_by_account(copy) == {}
    return copy


def error_without_idempotency(type_: str) -> Fault:
    """An error response, as from a gateway, that the API does not store under the idempotency key."""
    status = errors.BY_TYPE[type_].status
    return Fault(status=status, body=json.dumps({"title": "t", "type": type_, "status": status}).encode())


def script_errors_without_idempotency(sandbox: Sandbox, error: str | Fault) -> None:
    """Let the next request of each account get *error* from a gateway, which ignores idempotency keys."""
    for account in ACCOUNTS:
        sandbox.script(account, error_without_idempotency(error) if isinstance(error, str) else error)


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("error", ERRORS)
async def test_error_response_does_not_settle_the_doubt_about_a_managed_change(
    journal, error, retry_failed
) -> None:
    """After a fresh key, the API would hand out, and bill, a second managed proxy for each account."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal)
        script_errors_without_idempotency(sandbox, ERRORS[error])
        async with sandbox.session(retry=ONCE) as session:
            second = await rotate(session, copy)
            assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))
            assert second.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
        if retry_failed:
            script_errors_without_idempotency(sandbox, ERRORS[error])
            async with sandbox.session(retry=ONCE) as session:
                await rotate(session, copy, on_failed="retry")
            assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))
        async with sandbox.session(retry=ONCE) as session:
            last = await rotate(session, copy, on_failed="retry")

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


async def test_run_with_a_wrong_api_key_does_not_settle_the_doubt_of_a_killed_run(journal) -> None:
    """The API refuses the wrong API key before it looks up the idempotency key."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal)
        async with PostPressSession(KEY, base_url=sandbox.url, retry=ONCE) as wrong:
            await rotate(wrong, copy, accept_new_key=True)
        async with sandbox.session(retry=ONCE) as session:
            last = await rotate(session, copy, accept_new_key=True)

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


@pytest.mark.parametrize("error", ERRORS)
async def test_error_response_does_not_settle_the_doubt_about_a_custom_change(journal, error) -> None:
    """The error response of the second run says nothing about the request of the killed run."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal, CUSTOM)
        script_errors_without_idempotency(sandbox, ERRORS[error])
        async with sandbox.session(retry=ONCE) as session:
            await rotate(session, copy, CUSTOM)

    assert {applied for _, applied in recorded_by_account(copy).values()} == {"unknown"}


async def test_custom_change_in_doubt_gets_a_fresh_key_in_the_next_run(journal) -> None:
    """
    With the old key, the API would replay its stored 500 in every run, and the account would stay unknown.
    """
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        sandbox.script(ACCOUNTS[0], "errors/unexpected_error")
        await rotate(session, journal, CUSTOM)
        before = recorded_by_account(journal)[ACCOUNTS[0]]
        await rotate(session, journal, CUSTOM)

    assert before == ("unknown", "unknown")
    assert recorded_by_account(journal)[ACCOUNTS[0]][0] == "patched"


async def test_custom_change_refused_after_a_killed_run_is_failed_and_sent_again_only_on_request(
    journal,
) -> None:
    """Otherwise an account that no longer exists would be sent in every run."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal, CUSTOM)
        for account in ACCOUNTS:
            sandbox.script(account, "errors/resource_not_found", "errors/resource_not_found")
        async with sandbox.session(retry=ONCE) as session:
            forget_idempotency_keys(sandbox)
            await rotate(session, copy, CUSTOM)
            assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("failed", "unknown"))
            before = sandbox.record.requests
            await rotate(session, copy, CUSTOM)
            assert sandbox.record.requests == before
            await rotate(session, copy, CUSTOM, on_failed="retry")
            assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("failed", "unknown"))
            last = await rotate(session, copy, CUSTOM, on_failed="retry")

    assert last.summary.patched == len(ACCOUNTS)


@pytest.mark.parametrize("change", [US, CUSTOM], ids=["managed", "custom"])
@pytest.mark.parametrize("error_type", ["errors/disconnected_account", "errors/provider_error"])
async def test_error_response_does_not_settle_the_doubt_about_an_earlier_attempt_of_the_call(
    sandbox, policy, change, error_type
) -> None:
    """
    The first response was lost. The error response may come from a gateway that did not see that request.
    """
    sandbox.script("acc_1", "lost", then=error_without_idempotency(error_type))
    async with sandbox.session(retry=policy) as session:
        with pytest.raises(errors.ApiError) as caught:
            await session.update_proxy("acc_1", change)

    assert caught.value.applied is errors.Applied.UNKNOWN


async def test_unknown_outcome_of_this_run_is_not_failed_after_a_killed_run() -> None:
    """
    On a cluster, the error of the call may be the only sign of the doubt, without a report of its attempts.
    """

    async def fail(*_: object) -> Any:
        raise errors.UnexpectedError(500, errors.Problem("errors/unexpected_error"))

    row = Row(0, None, "acc_1", CUSTOM)
    context = AccountContext(
        update=fail,
        waits=WaitGroup(),
        pools={},
        on_backoff=bool,
        on_attempt_failed=bool,
        on_cancelled=bool,
    )
    keys = RowKeys.of("run", PendingRow(row, in_doubt_since=0.0), None)

    outcome = await AccountTask(context, row, keys).run()

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, errors.Applied.UNKNOWN)


async def test_used_key_is_not_sent_again_after_a_killed_run_that_did_not_reach_the_account(
    journal,
) -> None:
    """
    After the kill, the account is in doubt. With the used key, the API would replay the error response in
    every run.
    """
    async with Sandbox() as sandbox:
        sandbox.script("acc_1", "errors/provider_error")
        async with sandbox.session(retry=RetryPolicy(first_wait=60.0)) as session:
            async with session.rotate({"acc_1": US}, journal=journal) as rotation:
                while not rotation.retrying:
                    await asyncio.sleep(0)
                rotation.stop()
        assert recorded_by_account(journal) == {"acc_1": ("skipped", "no")}
        running = Journal(journal)
        copy = crash_copy(journal)
        await running.aclose()
        async with sandbox.session(retry=ONCE) as session:
            await run(session.rotate({"acc_1": US}, journal=copy))

    assert recorded_by_account(copy) == {"acc_1": ("patched", None)}
    assert sandbox.record.replayed == 0


# --- Accounts that are only reported ---


@pytest.mark.parametrize("idempotency", [True, False], ids=["with keys", "without keys"])
@pytest.mark.parametrize("change", [US, CUSTOM], ids=["managed", "custom"])
async def test_on_unknown_report_sends_no_account_of_a_killed_run(journal, change, idempotency) -> None:
    """A server that ignores idempotency keys would hand out a second proxy to each account."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal, change)
        async with sandbox.session(idempotency=idempotency) as session:
            last = await rotate(session, copy, change, on_unknown="report")

    assert [sandbox.sends(account) for account in ACCOUNTS] == [1] * len(ACCOUNTS)
    assert last.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
    assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))


async def test_accounts_that_are_only_reported_do_not_count_towards_the_limit_or_the_canary(journal) -> None:
    """
    After a kill, the accounts in doubt come first. They would fill the canary, which would then never pass.
    """
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal)
        changes = dict.fromkeys([*ACCOUNTS, *(f"more_{number}" for number in range(FIRST_WATERMARK))], US)
        async with sandbox.session() as session:
            halt = Halt(canary=2)
            rotation = await run(
                session.rotate(changes, journal=copy, on_unknown="report", limit=3, halt=halt)
            )

    assert rotation.summary.patched == 3
    assert [sandbox.sends(account) for account in ACCOUNTS] == [1] * len(ACCOUNTS)


async def test_accounts_of_a_killed_run_are_recorded_as_unknown_even_if_the_next_run_is_stopped(
    journal,
) -> None:
    """Otherwise the journal would have no outcome for them."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal)
        async with sandbox.session() as session:
            rotation = session.rotate(dict.fromkeys(ACCOUNTS, US), journal=copy)
            async with rotation:
                rotation.stop()
                await rotation.run()

    assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))


# --- Expired idempotency keys ---


def forget_idempotency_keys(sandbox: Sandbox) -> None:
    sandbox.server._idempotency._executions.clear()


def set_clock_ahead(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + hours * 3600)


@pytest.mark.parametrize("hours", [23, 25])
async def test_managed_change_of_a_killed_run_is_sent_again_only_within_the_key_lifetime(
    journal, monkeypatch, hours
) -> None:
    """Once the API has forgotten the idempotency key, it would hand out a second proxy."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal)
        set_clock_ahead(monkeypatch, hours)
        if hours > 24:
            forget_idempotency_keys(sandbox)
        async with sandbox.session() as session:
            last = await rotate(session, copy)

    if hours < 24:
        assert last.summary.states == {State.PATCHED: len(ACCOUNTS)}
        assert not last.summary.errors
    else:
        assert last.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
        assert last.summary.errors == {KEY_EXPIRED: len(ACCOUNTS)}
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


async def test_change_with_an_expired_key_is_reported_in_each_run_until_key_lifetime_is_longer(
    journal, monkeypatch
) -> None:
    """Reporting an account does not reset its age."""
    async with Sandbox() as sandbox:
        copy = await run_and_kill_in_flight(sandbox, journal)
        async with sandbox.session() as session:
            for _ in range(3):
                set_clock_ahead(monkeypatch, 25)
                last = await rotate(session, copy)
                assert last.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
                assert sandbox.record.requests == len(ACCOUNTS)
            assert recorded_by_account(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))
            last = await rotate(session, copy, key_lifetime=100 * 3600.0)

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)  # the sandbox never forgets a key


@pytest.mark.parametrize("change", [US, CUSTOM], ids=["managed", "custom"])
async def test_managed_change_with_an_expired_key_keeps_its_recorded_outcome(
    journal, monkeypatch, change
) -> None:
    """A custom change is sent again however old it is."""
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        for account in ACCOUNTS:
            sandbox.script(account, "lost")
        await rotate(session, journal, change)
        before = query(journal, "SELECT * FROM outcomes")
        set_clock_ahead(monkeypatch, 25)
        last = await rotate(session, journal, change)
        after = query(journal, "SELECT * FROM outcomes")

    if change is CUSTOM:
        assert last.summary.patched == len(ACCOUNTS)
    else:
        assert after == before
        assert last.summary.errors == {KEY_EXPIRED: len(ACCOUNTS)}


async def test_key_lifetime_of_a_skipped_account_starts_with_the_killed_run_that_sent_it(
    journal, monkeypatch
) -> None:
    """The time of the skipped outcome is not the time of the request."""
    async with Sandbox() as sandbox:
        async with sandbox.session() as session:
            await rotate(session, journal, limit=1)
        set_clock_ahead(monkeypatch, 30)
        for account in ACCOUNTS:
            sandbox.script(account, then=Fault(executes=True, ends="never"))
        async with sandbox.session() as session:
            task = asyncio.create_task(rotate(session, journal))
            copy = await crash_copy_after(task, sandbox.record, len(ACCOUNTS), journal)
        for account in ACCOUNTS:
            sandbox.script(account, then=200)
        set_clock_ahead(monkeypatch, 5)
        async with sandbox.session() as session:
            last = await rotate(session, copy)

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


async def test_key_lifetime_must_be_above_zero(sandbox, journal) -> None:
    async with sandbox.session() as session:
        with pytest.raises(ValueError, match="key_lifetime must be"):
            session.rotate({"acc_1": US}, journal=journal, key_lifetime=0)


# --- Cancellation ---


@in_virtual_time
async def test_accounts_that_got_only_503s_are_skipped_after_a_cancellation() -> None:
    """None of the accounts is in flight, and a 503 says that the change was not applied."""
    async with virtual_world(Pace(in_flight=10)) as world:
        await world.server.outage("503")
        rotation = world.session.rotate(dict.fromkeys((f"acc_{n}" for n in range(50)), US), in_flight=10)
        await run_and_cancel(rotation, lambda: world.session.paused and not world.server.record.in_flight)

        outcomes = settled_events(world).values()
        assert {(event.state, event.applied) for event in outcomes} == {(State.SKIPPED, errors.Applied.NO)}
        sent = [event for event in outcomes if event.attempts]
        assert {event.error_type for event in sent} == {"errors/service_unavailable"}
        assert len(sent) == len(world.server.record._sends)


@in_virtual_time
async def test_account_with_a_lost_response_is_unknown_after_a_cancellation() -> None:
    """The last response is a 503, but the first request may have been applied."""
    async with virtual_world(retry=RetryPolicy(wait=lambda _: 20.0)) as world:
        world.server.faults.script("acc_0", "lost", *["errors/service_unavailable"] * 9)
        rotation = world.session.rotate({"acc_0": US})
        await run_and_cancel(
            rotation, lambda: world.server.record.sends("acc_0") == 2 and rotation.retrying == 1
        )

        event = settled_events(world)[0]
        assert (event.state, event.applied) == (State.UNKNOWN, errors.Applied.UNKNOWN)


@in_virtual_time
async def test_proxy_of_an_account_that_got_only_503s_becomes_available_after_a_cancellation() -> None:
    pool = ProxyPool([CUSTOM], accounts_per_proxy=1)
    async with virtual_world(retry=RetryPolicy(wait=lambda _: 20.0)) as world:
        world.server.faults.script("acc_0", *["errors/service_unavailable"] * 9)
        rotation = world.session.rotate(["acc_0"], pool=pool)
        await run_and_cancel(rotation, lambda: rotation.retrying == 1)

        assert settled_events(world)[0].state is State.SKIPPED
    assert rotation._core.allocators[None].available == 1
