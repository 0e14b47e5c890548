"""Calls, rotations and fleets accept plain data as a change, and invalid data raises an error with advice."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import pandas
import pytest

from postpress_async import CustomProxy, ManagedProxy, PostPressSession, ProxyChange, Secret, converter
from postpress_async._converter import as_change
from postpress_async.models import FieldError
from postpress_async.rotation import Fleet, Row, State
from postpress_async.sandbox import Sandbox

US = ManagedProxy(country="US")
HOST_AND_PORT = CustomProxy(host="h", port=1)
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, protocol="socks5", username="u", password="hunter2")
CHANGE: Any = ProxyChange  # mypy has no type for a union as a value


def error_of(make: Callable[[], object]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        make()
    return caught.value


@pytest.mark.parametrize(
    ("data", "change"),
    [
        ({"country": "us"}, US),
        ({"ip": "203.0.113.42"}, ManagedProxy(ip="203.0.113.42")),
        ({"country": "US", "ip": None, "proxy": None}, US),
        ({"proxy": {"host": "h", "port": 1}}, HOST_AND_PORT),
        ({"proxy": {"host": "h", "port": 1, "protocol": None}, "ip": None}, HOST_AND_PORT),
        (
            {"proxy": {"host": "h", "port": 1, "password": Secret("p")}},
            CustomProxy(host="h", port=1, password="p"),
        ),
        ({"proxy": CUSTOM}, CUSTOM),
        (CUSTOM, CUSTOM),
        (US, US),
    ],
)
def test_plain_data_is_structured_as_a_change(data: Any, change: ProxyChange) -> None:
    assert as_change(data) == change
    assert converter.structure(data, CHANGE) == change


PLAIN_FORMS = 'write {"country": "US"} or {"proxy": {"host": "proxy.example.com", "port": 8080}}'
ALL_FORMS = f'{PLAIN_FORMS}, ManagedProxy(country="US") or CustomProxy(host=..., port=...)'
INVALID = [
    pytest.param("US", f"change not a proxy: {ALL_FORMS}, not str", id="country"),
    pytest.param(
        "socks5://u:hunter2@h:1", "change not a proxy: for a URL, write CustomProxy.from_url(url)", id="URL"
    ),
    pytest.param(None, f"change not a proxy: {ALL_FORMS}, not NoneType", id="None"),
    pytest.param(["hunter2"], f"change not a proxy: {ALL_FORMS}, not list", id="list"),
    pytest.param(ManagedProxy, f"change not a proxy: {ALL_FORMS}, not the class ManagedProxy", id="class"),
    pytest.param({}, f"no proxy and no country: {PLAIN_FORMS}", id="empty"),
    pytest.param({"country": None}, f"no proxy and no country: {PLAIN_FORMS}", id="null"),
    pytest.param({"contry": "US"}, f"unknown key: contry is not a field: {PLAIN_FORMS}", id="misspelt"),
    pytest.param({"host": "h", "port": 1}, f"unknown key: host is not a field: {PLAIN_FORMS}", id="flat"),
    pytest.param(
        {"u:hunter2@h": 1}, f"unknown key: one key is not a field: {PLAIN_FORMS}", id="value as key"
    ),
    pytest.param({1: 2}, f"unknown key: one key is not a field: {PLAIN_FORMS}", id="number as key"),
    pytest.param({"proxy": {}}, "host missing: CustomProxy requires host and port", id="empty proxy"),
    pytest.param(
        {"proxy": "http://u:hunter2@h:1"},
        "proxy not a mapping: for a URL, write CustomProxy.from_url(url)",
        id="URL in proxy",
    ),
    pytest.param({"proxy": ["hunter2"]}, f"proxy not a mapping: {ALL_FORMS}, not list", id="list in proxy"),
    pytest.param(
        {"proxy": {"host": "h", "port": 1}, "ip": "1.2.3.4"},
        "custom and managed mixed: give either proxy, or country and ip, not both",
        id="mixed",
    ),
    pytest.param({"country": "UK"}, "country not assigned: use GB instead of UK", id="UK"),
]


@pytest.mark.parametrize(("data", "message"), INVALID)
def test_error_of_an_invalid_change_says_what_to_write(data: Any, message: str) -> None:
    error = error_of(lambda: as_change(data))

    assert str(error) == str(error_of(lambda: converter.structure(data, CHANGE))) == message
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(("data", "message"), INVALID)
async def test_invalid_change_in_a_call_or_a_collection_is_rejected_before_sending(
    data: Any, message: str
) -> None:
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(FieldError) as call_error:
            await session.update_proxy("acc_1", data)
        with pytest.raises(FieldError) as many_error:
            await session.update_many({"acc_1": US, "acc_2": data})
        for changes in ({"acc_1": US, "acc_2": data}, [("acc_1", US), ("acc_2", data)]):
            with pytest.raises(FieldError) as rotate_error:
                session.rotate(changes)
            assert str(rotate_error.value) == str(many_error.value)

    assert str(call_error.value) == message
    assert str(many_error.value).startswith("acc_2: changes[1]")
    assert str(many_error.value).endswith(message)
    assert sandbox.record.requests == 0


async def test_invalid_change_in_a_stream_becomes_an_outcome_with_an_error() -> None:
    """A stream cannot be checked before the rotation starts, and one row must not stop the others."""
    changes: Any = iter([("acc_1", "US"), ("acc_2", {"country": "US"})])

    async with Sandbox() as sandbox, sandbox.session() as session, session.rotate(changes) as rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}

    assert outcomes["acc_2"].state is State.PATCHED
    assert outcomes["acc_1"].state is State.SKIPPED
    assert str(outcomes["acc_1"].error) == (
        f"acc_1: not sent: changes[0], change: change not a proxy: {ALL_FORMS}, not str"
    )


async def test_all_methods_of_a_session_send_plain_data() -> None:
    custom: dict[str, Any] = {"proxy": {"host": "h", "port": 1, "password": "p"}}
    managed = {"country": "US"}

    async with Sandbox() as sandbox, sandbox.session() as session:
        await session.update_proxy("acc_1", custom)
        await session.update_many({"acc_2": custom, "acc_3": managed})
        async with session.rotate([("acc_4", custom), ("acc_5", managed)]) as rotation:
            await rotation.run()

    proxies = [sandbox.proxy_of(f"acc_{number}") for number in range(1, 6)]
    assert proxies == [custom, custom, managed, custom, managed]


@pytest.mark.parametrize("name", ["country", "ip", "proxy", "host"])
async def test_error_of_a_field_passed_as_a_keyword_says_what_to_write(name: str) -> None:
    async with PostPressSession("k") as session:
        update_proxy: Any = session.update_proxy
        with pytest.raises(TypeError) as caught:
            await update_proxy("acc_1", **{name: "US"})

    assert str(caught.value) == f"update_proxy has no argument {name}: {PLAIN_FORMS} as the change"
    assert caught.value.__context__ is None


async def test_other_wrong_arguments_raise_python_s_own_error() -> None:
    async with PostPressSession("k") as session:
        update_proxy: Any = session.update_proxy
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'change'"):
            await update_proxy("acc_1")


def test_update_proxy_is_mocked_as_a_coroutine_function() -> None:
    mock = create_autospec(PostPressSession, instance=True)

    assert isinstance(mock.update_proxy, AsyncMock)
    names = ["self", "account_id", "change", "retry", "idempotency_key"]
    assert list(inspect.signature(PostPressSession.update_proxy).parameters) == names


def test_plain_data_in_a_json_lines_fleet_is_the_same_change(tmp_path: Path) -> None:
    all_fields = {"host": "h", "port": 1, "protocol": "socks5h", "username": "u", "password": "p@ss"}
    changes: list[dict[str, Any]] = [
        {"country": "us"},
        {"ip": "1.2.3.4"},
        {"country": "US", "ip": "1.2.3.4", "proxy": None},
        {"proxy": {"host": "h", "port": 1}, "ip": None},
        {"proxy": all_fields},
    ]
    lines = [json.dumps({"account_id": f"acc_{number}", **change}) for number, change in enumerate(changes)]
    path = tmp_path / "fleet.jsonl"
    path.write_text("\n".join(lines))

    with Fleet.open(path) as fleet:
        rows = list(fleet.rows())

    assert [row.change for row in rows if isinstance(row, Row)] == [as_change(change) for change in changes]


def test_default_change_of_a_fleet_may_be_plain_data() -> None:
    frame = pandas.DataFrame({"account_id": ["acc_1"]})

    (row,) = Fleet.of(frame, default={"country": "us"}).rows()

    assert row == Row(0, 1, "acc_1", US)
    with pytest.raises(ValueError, match="change not a proxy"):
        Fleet.of(frame, default="US")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
