# pyright: strict, reportUnknownArgumentType=true, reportUnknownMemberType=true, reportUnknownVariableType=true
"""
Code that mypy, pyright and pyrefly check, and that nothing runs.

It shows which types users get, and which mistakes are caught: an unnecessary ``ignore`` comment is an error,
so each comment proves that the type checkers reject its line.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol, assert_never, assert_type

import polars

from postpress_async import (
    AccountPatched,
    ApiError,
    CustomProxy,
    ManagedProxy,
    Outcome,
    PostPressError,
    PostPressSession,
    ProxyChange,
    ProxyChangeLike,
    Results,
    RetryPolicy,
    Rotation,
    RotationSummary,
    Secret,
    converter,
    errors,
    events,
)
from postpress_async.errors import Scope
from postpress_async.rotation import Fleet, Halt, State
from postpress_async.sandbox import Fault, Sandbox, SandboxThread


async def updates_and_rotations(session: PostPressSession, changes: dict[str, ProxyChange]) -> None:
    own = CustomProxy(host="h.example", port=8080, protocol="socks5", username="u", password="p")
    assert_type(await session.update_proxy("acc_1", own), AccountPatched)
    assert_type(await session.update_proxy("acc_1", ManagedProxy(country="US")), AccountPatched)
    async with session.rotate(changes, journal="run.sqlite3") as rotation:
        assert_type(rotation, Rotation)
        async for outcome in rotation:
            assert_type(outcome, Outcome)
    assert_type(rotation.summary, RotationSummary)
    async with session.rotate([("acc_1", own), ("acc_2", ManagedProxy(ip="203.0.113.42"))]) as rotation:
        assert_type(await rotation.run(), RotationSummary)
    async with session.rotate(polars.DataFrame({"account_id": ["acc_1"], "country": ["US"]})) as rotation:
        assert_type(await rotation.run(), RotationSummary)
    results = await session.update_many(changes, deadline=10.0)
    assert_type(results, Results)
    assert_type(results["acc_1"], Outcome)
    assert_type(results.failed, tuple[Outcome, ...])
    assert_type(await session.update_many([("acc_1", own)], in_flight=10), Results)
    results["acc_1"] = results["acc_2"]  # type: ignore[index] # pyright: ignore[reportIndexIssue]
    RetryPolicy(attempts=2, also_on=(errors.NoChannelError,), never_on=[errors.ProxyError])


class UpdatesProxies(Protocol):
    """The interface that a bot requires, so that its tests can pass a fake instead of a session."""

    async def update_proxy(self, account_id: str, change: ProxyChange) -> AccountPatched: ...


class OwnSession(PostPressSession):
    """A user's subclass that overrides `update_proxy`."""

    async def update_proxy(
        self,
        account_id: str,
        change: ProxyChangeLike,
        *,
        retry: RetryPolicy | None = None,
        idempotency_key: str | None = None,
    ) -> AccountPatched:
        return await super().update_proxy(account_id, change, retry=retry, idempotency_key=idempotency_key)


class OwnError(errors.DisconnectedAccountError):
    """A user's subclass of an error."""


async def caught_errors(session: UpdatesProxies) -> int:
    try:
        assert_type(await session.update_proxy("acc_1", ManagedProxy(country="US")), AccountPatched)
    except errors.DisconnectedAccountError:
        return 409
    except ApiError as error:
        assert_type(error.status, int)
        return error.status if error.status >= 500 else 400
    except PostPressError as error:
        assert_type(error.status, int | None)
        match error.scope:
            case Scope.REQUEST | Scope.ACCOUNT:
                return 400
            case Scope.PROXY | Scope.KEY | Scope.SERVICE:
                return 503
    return 200


def matched_outcomes(outcome: Outcome, change: ProxyChange) -> str:
    match outcome:
        case Outcome(error=errors.ProxyError() as error):
            assert_type(error.instance, str | None)
        case Outcome(error=ApiError(status=status, type=type_)):
            return f"{status + 1} {type_}"
        case Outcome(state=State.PATCHED, attempts=attempts):
            assert_type(attempts, int)
        case _:
            assert_type(outcome.state == "failed", bool)
    match outcome.state:
        case State.PATCHED | State.FAILED:
            pass
        case State.UNKNOWN | State.SKIPPED:
            pass
    match change:
        case CustomProxy(host=host, port=port):
            return f"{host}:{port}"
        case ManagedProxy(country=country):
            return country or ""


def matched_events(event: events.Event) -> float:
    match event:
        case events.CallStarted() | events.AttemptStarted() | events.PauseBegan() | events.ProxyQuarantined():
            return 0.0
        case events.LimitChanged(limit):
            return limit
        case events.RateChanged(rate):
            return rate or 0.0
        case events.RetryScheduled(account_id, number, wait, error):
            assert_type((account_id, number, wait, error), tuple[str, int, float, PostPressError])
            return wait
        case (
            events.CallEnded(elapsed=elapsed)
            | events.AttemptEnded(elapsed=elapsed)
            | events.PauseEnded(elapsed=elapsed)
            | events.AccountSettled(elapsed=elapsed)
        ):
            return elapsed
    assert_never(event)


async def sessions_and_sandboxes(seen: list[events.Event], sandbox: SandboxThread) -> None:
    for observer in (matched_events, seen.append, print):
        PostPressSession(on_event=observer, transport="lean", ssl=Path("ca.pem"))
    async with OwnSession(on_event=lambda event: print(event)) as own_session:
        assert_type(own_session, OwnSession)
        await caught_errors(own_session)
    sandbox.script("acc_1", "errors/proxy_error", 200, Fault(status=418), then="drop")
    async with Sandbox(profile="flaky", accounts={"acc_1"}) as served, served.session() as session:
        assert_type(session, PostPressSession)


async def rows() -> AsyncIterator[tuple[str, ProxyChange]]:
    yield "acc_1", ManagedProxy(country="US")


async def rotated_streams(session: PostPressSession) -> None:
    async with session.rotate(rows(), halt=Halt(failures="10%", canary=20)) as rotation:
        assert_type([outcome async for outcome in rotation], list[Outcome])
    async with session.rotate((f"acc_{n}", ManagedProxy(country="US")) for n in range(3)) as rotation:
        assert_type(await anext(rotation, None), Outcome | None)


async def plain_data(session: PostPressSession, payload: dict[str, Any], ids: list[str]) -> None:
    assert_type(await session.update_proxy("acc_1", {"country": "US"}), AccountPatched)
    custom = {"proxy": {"host": "proxy.example.com", "port": 8080}}
    assert_type(await session.update_proxy("acc_1", custom), AccountPatched)
    assert_type(await session.update_proxy("acc_1", payload), AccountPatched)
    assert_type(await session.update_many({"acc_1": {"country": "US"}, "acc_2": custom}), Results)
    assert_type(await session.update_many({id_: {"country": "US"} for id_ in ids}), Results)
    assert_type(await session.update_many((id_, {"country": "US"}) for id_ in ids), Results)
    assert_type(
        await session.update_many({"acc_1": {"ip": "203.0.113.42"}, "acc_2": ManagedProxy(country="US")}),
        Results,
    )
    session.rotate({"acc_1": {"country": "US"}})
    session.rotate([("acc_1", {"country": "US"}), ("acc_2", custom), ("acc_3", payload)])


def converted_data(data: dict[str, Any], outcome: Outcome) -> None:
    assert_type(converter.structure(data, CustomProxy), CustomProxy)
    line: dict[str, Any] = converter.unstructure(outcome)
    revealing = converter.copy()
    revealing.register_unstructure_hook(Secret, Secret.reveal)
    print(line, revealing.unstructure(data))


async def mistakes(session: PostPressSession) -> None:
    await session.update_proxy("acc_1", "US")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await session.update_proxy("acc_1", country="US")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await session.update_many([("acc_1", 5)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await session.update_proxy("acc_1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await session.update_proxy("acc_1", ManagedProxy("US"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CustomProxy(host="h.example")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CustomProxy(host="h.example", port="8080")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(attempts="4")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session.rotate([("acc_1", 5)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    session.rotate(polars.LazyFrame({"account_id": ["acc_1"]}))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Fleet.of([("acc_1", ManagedProxy(country="US"))])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AccountPatched("acc_1").account_id = "acc_2"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
