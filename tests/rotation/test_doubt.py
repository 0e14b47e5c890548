"""A change that may have been applied: only a 200 ends the doubt."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postpress_async import CustomProxy, ManagedProxy, Pace, PostPressSession, ProxyPool, RetryPolicy, errors
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
from tests.support.journals import killed, killed_in
from tests.support.rotations import run_and_cancel as cancel
from tests.support.rotations import settled_events as settled
from tests.support.virtual_world import World, in_virtual_time, world

US = ManagedProxy(country="US")
OWN = CustomProxy(host="proxy.example.com", port=8080)
ONCE = RetryPolicy(attempts=1)
ACCOUNTS = [f"acc_{number}" for number in range(5)]

REFUSALS: dict[str, str | Fault] = {
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


def rows_of(journal: Path) -> dict[str, tuple[str, str | None]]:
    """By account: the state and `applied` that the journal has."""
    with closing(sqlite3.connect(journal)) as connection:
        found = connection.execute("SELECT account_id, state, applied FROM outcomes")
        return {account: (state, applied) for account, state, applied in found}


async def rotate(session: PostPressSession, journal: Path, change: Any = US, **options: Any) -> Rotation:
    options = {"halt": "never", **options}
    rotation = session.rotate(dict.fromkeys(ACCOUNTS, change), journal=journal, **options)
    async with rotation:
        await rotation.run()
    return rotation


async def killed_in_flight(sandbox: Sandbox, journal: Path, change: Any = US) -> Path:
    """The journal of a run that was killed while all its accounts were in flight, and all were applied."""
    for account in ACCOUNTS:
        sandbox.script(account, Fault(executes=True, ends="never"))
    copy = journal
    async with sandbox.session() as session:
        task = asyncio.create_task(rotate(session, journal, change))
        copy = await killed_in(task, sandbox.record, len(ACCOUNTS), journal)
    assert rows_of(copy) == {}
    return copy


def gateway(type_: str) -> Fault:
    """A refusal in the API's envelope that is not stored under the request's key."""
    status = errors.BY_TYPE[type_].status
    return Fault(status=status, body=json.dumps({"title": "t", "type": type_, "status": status}).encode())


async def in_front_of(sandbox: Sandbox, refusal: str | Fault) -> None:
    """Have each account's next request refused by something in front of the API, which knows no keys."""
    for account in ACCOUNTS:
        sandbox.script(account, gateway(refusal) if isinstance(refusal, str) else refusal)


@pytest.mark.parametrize("between", ["nothing", "retry-failed"])
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_no_refusal_ends_the_doubt_about_a_managed_change(journal, refusal, between) -> None:
    """A fresh key after it would hand out, and bill, a second managed proxy for each account."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal)
        await in_front_of(sandbox, REFUSALS[refusal])
        async with sandbox.session(retry=ONCE) as session:
            second = await rotate(session, copy)
            assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))
            assert second.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
        if between == "retry-failed":
            await in_front_of(sandbox, REFUSALS[refusal])
            async with sandbox.session(retry=ONCE) as session:
                await rotate(session, copy, on_failed="retry")
            assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))
        async with sandbox.session(retry=ONCE) as session:
            last = await rotate(session, copy, on_failed="retry")

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


async def test_a_wrong_api_key_between_two_runs_costs_no_second_managed_proxy(journal) -> None:
    """The API refuses the wrong API key before it looks up the idempotency key."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal)
        async with PostPressSession(KEY, base_url=sandbox.url, retry=ONCE) as wrong:
            await rotate(wrong, copy, accept_new_key=True)
        async with sandbox.session(retry=ONCE) as session:
            last = await rotate(session, copy, accept_new_key=True)

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_custom_change_that_may_have_been_applied_is_never_recorded_as_not_applied(
    journal, refusal
) -> None:
    """The next run is refused, which says nothing of what the killed run sent."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal, OWN)
        await in_front_of(sandbox, REFUSALS[refusal])
        async with sandbox.session(retry=ONCE) as session:
            await rotate(session, copy, OWN)

    assert {applied for _, applied in rows_of(copy).values()} == {"unknown"}


async def test_a_custom_change_whose_key_has_a_stored_error_gets_a_fresh_key_in_the_next_run(journal) -> None:
    """The API would replay the stored 500 to the same key in every run, and the account stayed unknown."""
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        sandbox.script(ACCOUNTS[0], "errors/unexpected_error")
        await rotate(session, journal, OWN)
        before = rows_of(journal)[ACCOUNTS[0]]
        await rotate(session, journal, OWN)

    assert before == ("unknown", "unknown")
    assert rows_of(journal)[ACCOUNTS[0]][0] == "patched"


async def test_a_custom_change_that_is_refused_after_a_killed_run_is_failed_and_sent_again_on_demand(
    journal,
) -> None:
    """Not in every run, or an account that is gone would be asked for every night."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal, OWN)
        for account in ACCOUNTS:
            sandbox.script(account, "errors/resource_not_found", "errors/resource_not_found")
        async with sandbox.session(retry=ONCE) as session:
            sandbox.server._idempotency._executions.clear()  # the store of keys has forgotten the killed run
            await rotate(session, copy, OWN)
            assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("failed", "unknown"))
            before = sandbox.record.requests
            await rotate(session, copy, OWN)
            assert sandbox.record.requests == before
            await rotate(session, copy, OWN, on_failed="retry")
            assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("failed", "unknown"))
            last = await rotate(session, copy, OWN, on_failed="retry")

    assert last.summary.patched == len(ACCOUNTS)


@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
@pytest.mark.parametrize("refusal", ["errors/disconnected_account", "errors/provider_error"])
async def test_one_call_s_refusal_does_not_end_the_doubt_about_its_earlier_attempt(
    sandbox, policy, change, refusal
) -> None:
    """The earlier response was lost; the refusal may come from a gateway that did not see that attempt."""
    sandbox.script("acc_1", "lost", then=gateway(refusal))
    async with sandbox.session(retry=policy) as session:
        with pytest.raises(errors.ApiError) as caught:
            await session.update_proxy("acc_1", change)

    assert caught.value.applied is errors.Applied.UNKNOWN


async def test_unknown_outcome_of_this_run_is_not_failed_after_a_killed_run() -> None:
    """Even if only the call's error says so, and not the report of its attempt, as on a cluster."""

    async def unknown(*_: object) -> Any:
        raise errors.UnexpectedError(500, errors.Problem("errors/unexpected_error"))

    row = Row(0, None, "acc_1", OWN)
    context = AccountContext(
        update=unknown,
        waits=WaitGroup(),
        pools={},
        on_backoff=bool,
        on_attempt_failed=bool,
        on_cancelled=bool,
    )
    keys = RowKeys.of("run", PendingRow(row, maybe_sent=True), None)

    outcome = await AccountTask(context, row, keys).run()

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, errors.Applied.UNKNOWN)


async def test_a_spent_key_is_not_used_again_after_a_run_that_was_killed_before_it_came_to_the_account(
    journal,
) -> None:
    """The account is in doubt then, and its old key would replay the stored refusal for ever."""
    async with Sandbox() as sandbox:
        sandbox.script("acc_1", "errors/provider_error")
        async with sandbox.session(retry=RetryPolicy(first_wait=60.0)) as session:
            async with session.rotate({"acc_1": US}, journal=journal) as rotation:
                while not rotation.retrying:
                    await asyncio.sleep(0)
                rotation.stop()
        assert rows_of(journal) == {"acc_1": ("skipped", "no")}
        held = Journal.open(journal)
        copy = killed(journal)
        await held.aclose()
        async with sandbox.session(retry=ONCE) as session:
            async with session.rotate({"acc_1": US}, journal=copy) as rotation:
                await rotation.run()

    assert rows_of(copy) == {"acc_1": ("patched", None)}
    assert sandbox.record.replayed == 0


# --- What is left to the operator ---


@pytest.mark.parametrize("idempotency", [True, False], ids=["with keys", "without keys"])
@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
async def test_on_unknown_report_leaves_accounts_maybe_sent_by_a_dead_run(
    journal, change, idempotency
) -> None:
    """On a server that ignores keys, each of them would be handed out twice."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal, change)
        async with sandbox.session(idempotency=idempotency) as session:
            last = await rotate(session, copy, change, on_unknown="report")

    assert [sandbox.sends(account) for account in ACCOUNTS] == [1] * len(ACCOUNTS)
    assert last.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
    assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))


async def test_accounts_left_to_the_operator_use_up_neither_a_limit_nor_a_canary(journal) -> None:
    """After a kill, many of them come first: a canary of them would never end."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal)
        changes = dict.fromkeys([*ACCOUNTS, *(f"more_{number}" for number in range(FIRST_WATERMARK))], US)
        async with sandbox.session() as session:
            halt = Halt(canary=2)
            rotation = session.rotate(changes, journal=copy, on_unknown="report", limit=3, halt=halt)
            async with rotation:
                await rotation.run()

    assert rotation.summary.patched == 3
    assert [sandbox.sends(account) for account in ACCOUNTS] == [1] * len(ACCOUNTS)


async def test_accounts_maybe_sent_by_a_dead_run_are_recorded_if_the_next_run_ends_early(journal) -> None:
    """Otherwise the table would not mention the account."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal)
        async with sandbox.session() as session:
            rotation = session.rotate(dict.fromkeys(ACCOUNTS, US), journal=copy)
            async with rotation:
                rotation.stop()
                await rotation.run()

    assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))


# --- The unknown that ages ---


def later(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """Set the clock ahead, from now on."""
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + hours * 3600)


@pytest.mark.parametrize("hours", [23, 25])
async def test_managed_change_of_a_killed_run_is_sent_again_within_a_day(journal, monkeypatch, hours) -> None:
    """The API knows an idempotency key for a time; after it, a second proxy would be handed out."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal)
        later(monkeypatch, hours)
        if hours > 24:
            sandbox.server._idempotency._executions.clear()
        async with sandbox.session() as session:
            last = await rotate(session, copy)

    state, errors_ = (State.PATCHED, {}) if hours < 24 else (State.UNKNOWN, {KEY_EXPIRED: len(ACCOUNTS)})
    assert (last.summary.states, last.summary.errors) == ({state: len(ACCOUNTS)}, errors_)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


async def test_aged_unknown_change_is_reported_until_a_longer_lifetime_is_given(journal, monkeypatch) -> None:
    """Reporting an account does not reset its age."""
    async with Sandbox() as sandbox:
        copy = await killed_in_flight(sandbox, journal)
        async with sandbox.session() as session:
            for _ in range(3):
                later(monkeypatch, 25)
                last = await rotate(session, copy)
                assert last.summary.states == {State.UNKNOWN: len(ACCOUNTS)}
                assert sandbox.record.requests == len(ACCOUNTS)
            assert rows_of(copy) == dict.fromkeys(ACCOUNTS, ("unknown", "unknown"))
            last = await rotate(session, copy, key_lifetime=100 * 3600.0)

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)  # the sandbox knows the keys for ever


@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
async def test_outcome_that_stays_unknown_keeps_its_record(journal, monkeypatch, change) -> None:
    """A custom proxy is set again at any age."""
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        for account in ACCOUNTS:
            sandbox.script(account, "lost")
        await rotate(session, journal, change)
        with closing(sqlite3.connect(journal)) as connection:
            before = connection.execute("SELECT * FROM outcomes").fetchall()
        later(monkeypatch, 25)
        last = await rotate(session, journal, change)
        with closing(sqlite3.connect(journal)) as connection:
            after = connection.execute("SELECT * FROM outcomes").fetchall()

    if change is OWN:
        assert last.summary.patched == len(ACCOUNTS)
    else:
        assert after == before
        assert last.summary.errors == {KEY_EXPIRED: len(ACCOUNTS)}


async def test_row_that_a_dead_run_sent_after_an_earlier_one_skipped_it_is_as_old_as_the_dead_run(
    journal, monkeypatch
) -> None:
    """The time of the skipped outcome says nothing about the request."""
    async with Sandbox() as sandbox:
        async with sandbox.session() as session:
            await rotate(session, journal, limit=1)
        later(monkeypatch, 30)
        for account in ACCOUNTS:
            sandbox.script(account, then=Fault(executes=True, ends="never"))
        async with sandbox.session() as session:
            task = asyncio.create_task(rotate(session, journal))
            copy = await killed_in(task, sandbox.record, len(ACCOUNTS), journal)
        for account in ACCOUNTS:
            sandbox.script(account, then=200)
        later(monkeypatch, 5)
        async with sandbox.session() as session:
            last = await rotate(session, copy)

    assert last.summary.patched == len(ACCOUNTS)
    assert sandbox.record.managed_handed_out == len(ACCOUNTS)


async def test_lifetime_must_be_above_zero(sandbox, journal) -> None:
    async with sandbox.session() as session:
        with pytest.raises(ValueError, match="key_lifetime must be"):
            session.rotate({"acc_1": US}, journal=journal, key_lifetime=0)


# --- Cancelled ---


@in_virtual_time
async def test_a_rotation_that_is_cancelled_in_an_outage_records_what_was_only_refused_as_skipped() -> None:
    """Every answer was a 503, and nothing of these accounts is in flight: nothing was applied."""
    at: World
    async with world(Pace(in_flight=10)) as at:
        await at.server.outage("503")
        rotation = at.session.rotate(dict.fromkeys((f"acc_{n}" for n in range(50)), US), in_flight=10)
        await cancel(rotation, lambda: at.session.paused and not at.server.record.in_flight)

        outcomes = settled(at).values()
        assert {(event.state, event.applied) for event in outcomes} == {(State.SKIPPED, errors.Applied.NO)}
        refused = [event for event in outcomes if event.attempts]
        assert {event.error_type for event in refused} == {"errors/service_unavailable"}
        assert len(refused) == len(at.server.record._sends)


@in_virtual_time
async def test_a_rotation_that_is_cancelled_after_a_lost_answer_records_unknown() -> None:
    """A 503 came last, but the first request may have been applied."""
    at: World
    async with world(retry=RetryPolicy(wait=lambda _: 20.0)) as at:
        at.server.faults.script("acc_0", "lost", *["errors/service_unavailable"] * 9)
        rotation = at.session.rotate({"acc_0": US})
        await cancel(rotation, lambda: at.server.record.sends("acc_0") == 2 and bool(rotation.retrying))

        assert (settled(at)[0].state, settled(at)[0].applied) == (State.UNKNOWN, errors.Applied.UNKNOWN)


@in_virtual_time
async def test_a_proxy_is_free_again_if_its_account_was_only_refused() -> None:
    """The account was cancelled in backoff."""
    at: World
    pool = ProxyPool([OWN], accounts_per_proxy=1)
    async with world(retry=RetryPolicy(wait=lambda _: 20.0)) as at:
        at.server.faults.script("acc_0", *["errors/service_unavailable"] * 9)
        rotation = at.session.rotate(["acc_0"], pool=pool)
        await cancel(rotation, lambda: bool(rotation.retrying))

        assert settled(at)[0].state is State.SKIPPED
    assert rotation._core.allocators[None].available == 1
