# pyright: strict, reportUnknownArgumentType=true, reportUnknownMemberType=true, reportUnknownVariableType=true
"""
Claims about types, for mypy and pyright to read; nothing here is run.

A needless ignore is itself an error: each one says that a mistake is caught.
"""

from typing import assert_type

import polars

from postpress_async import (
    AccountPatched,
    CustomProxy,
    ManagedProxy,
    Outcome,
    PostPressSession,
    ProxyChange,
    RetryPolicy,
    Rotation,
    RotationSummary,
    errors,
)
from postpress_async.rotation import Fleet


async def what_users_write(session: PostPressSession, changes: dict[str, ProxyChange]) -> None:
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
    RetryPolicy(attempts=2, also_on=(errors.NoChannelError,), never_on=[errors.ProxyError])


async def what_users_mistake(session: PostPressSession) -> None:
    await session.update_proxy("acc_1", {"country": "US"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await session.update_proxy("acc_1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await session.update_proxy("acc_1", ManagedProxy("US"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CustomProxy(host="h.example")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CustomProxy(host="h.example", port="8080")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(attempts="4")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session.rotate([("acc_1", "US")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    session.rotate(polars.LazyFrame({"account_id": ["acc_1"]}))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Fleet.of([("acc_1", ManagedProxy(country="US"))])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AccountPatched("acc_1").account_id = "acc_2"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
