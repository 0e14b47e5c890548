"""Plain data as a change: calls, rotations and fleets accept it, or say what to write instead."""

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
PLAIN = CustomProxy(host="h", port=1)
OWN = CustomProxy(host="proxy.example.com", port=8080, protocol="socks5", username="u", password="hunter2")
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
        ({"proxy": {"host": "h", "port": 1}}, PLAIN),
        ({"proxy": {"host": "h", "port": 1, "protocol": None}, "ip": None}, PLAIN),
        (
            {"proxy": {"host": "h", "port": 1, "password": Secret("p")}},
            CustomProxy(host="h", port=1, password="p"),
        ),
        ({"proxy": OWN}, OWN),
        (OWN, OWN),
        (US, US),
    ],
)
def test_plain_data_is_a_change(data: Any, change: ProxyChange) -> None:
    assert as_change(data) == change
    assert converter.structure(data, CHANGE) == change


FORMS = 'write {"country": "US"} or {"proxy": {"host": "proxy.example.com", "port": 8080}}'
MODELS = f'{FORMS}, ManagedProxy(country="US") or CustomProxy(host=..., port=...)'
WRONG = [
    pytest.param("US", f"change not a proxy: {MODELS}, not str", id="country"),
    pytest.param(
        "socks5://u:hunter2@h:1", "change not a proxy: for a URL, write CustomProxy.from_url(url)", id="URL"
    ),
    pytest.param(None, f"change not a proxy: {MODELS}, not NoneType", id="None"),
    pytest.param(["hunter2"], f"change not a proxy: {MODELS}, not list", id="list"),
    pytest.param(ManagedProxy, f"change not a proxy: {MODELS}, not the class ManagedProxy", id="class"),
    pytest.param({}, f"no proxy and no country: {FORMS}", id="empty"),
    pytest.param({"country": None}, f"no proxy and no country: {FORMS}", id="null"),
    pytest.param({"contry": "US"}, f"unknown key: contry is not a field: {FORMS}", id="misspelt"),
    pytest.param({"host": "h", "port": 1}, f"unknown key: host is not a field: {FORMS}", id="flat"),
    pytest.param({"u:hunter2@h": 1}, f"unknown key: one key is not a field: {FORMS}", id="value as key"),
    pytest.param({1: 2}, f"unknown key: one key is not a field: {FORMS}", id="number as key"),
    pytest.param({"proxy": {}}, "host missing: CustomProxy requires host and port", id="empty proxy"),
    pytest.param(
        {"proxy": "http://u:hunter2@h:1"},
        "proxy not a mapping: for a URL, write CustomProxy.from_url(url)",
        id="URL in proxy",
    ),
    pytest.param({"proxy": ["hunter2"]}, f"proxy not a mapping: {MODELS}, not list", id="list in proxy"),
    pytest.param(
        {"proxy": {"host": "h", "port": 1}, "ip": "1.2.3.4"},
        "custom and managed mixed: give either proxy, or country and ip, not both",
        id="mixed",
    ),
    pytest.param({"country": "UK"}, "country not assigned: use GB instead of UK", id="UK"),
]


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_wrong_change_says_what_to_write(data: Any, message: str) -> None:
    error = error_of(lambda: as_change(data))

    assert str(error) == str(error_of(lambda: converter.structure(data, CHANGE))) == message
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(("data", "message"), WRONG)
async def test_wrong_change_raises_before_anything_is_sent(data: Any, message: str) -> None:
    """In a single update, in several, and in a rotation of a collection."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match=": ") as single:
            await session.update_proxy("acc_1", data)
        with pytest.raises(ValueError, match=": ") as several:
            await session.update_many({"acc_1": US, "acc_2": data})
        for changes in ({"acc_1": US, "acc_2": data}, [("acc_1", US), ("acc_2", data)]):
            with pytest.raises(ValueError, match=": ") as rotation:
                session.rotate(changes)
            assert str(rotation.value) == str(several.value)

    assert str(single.value) == message
    assert str(several.value).startswith("acc_2: changes[1]")
    assert str(several.value).endswith(message)
    assert sandbox.record.requests == 0


async def test_wrong_change_in_a_stream_is_an_outcome_with_an_error() -> None:
    """A stream cannot be checked beforehand, and one row must not stop the others."""
    changes: Any = iter([("acc_1", "US"), ("acc_2", {"country": "US"})])

    async with Sandbox() as sandbox, sandbox.session() as session, session.rotate(changes) as rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}

    assert outcomes["acc_2"].state is State.PATCHED
    assert outcomes["acc_1"].state is State.SKIPPED
    assert str(outcomes["acc_1"].error) == (
        f"acc_1: not sent: changes[0], change: change not a proxy: {MODELS}, not str"
    )


async def test_plain_data_is_sent_by_every_call() -> None:
    custom, plain = {"proxy": {"host": "h", "port": 1, "password": "p"}}, {"country": "US"}

    async with Sandbox() as sandbox, sandbox.session() as session:
        await session.update_proxy("acc_1", custom)
        await session.update_many({"acc_2": custom, "acc_3": plain})
        async with session.rotate([("acc_4", custom), ("acc_5", plain)]) as rotation:
            await rotation.run()

    assert [sandbox.proxy_of(f"acc_{n}") for n in range(1, 6)] == [custom, custom, plain, custom, plain]


@pytest.mark.parametrize("name", ["country", "ip", "proxy", "host"])
async def test_field_as_a_keyword_says_what_to_write(name: str) -> None:
    async with PostPressSession("k") as session:
        update_proxy: Any = session.update_proxy
        with pytest.raises(TypeError) as caught:
            await update_proxy("acc_1", **{name: "US"})

    assert str(caught.value) == f"update_proxy has no argument {name}: {FORMS} as the change"
    assert caught.value.__context__ is None


async def test_other_wrong_arguments_have_python_s_own_message() -> None:
    async with PostPressSession("k") as session:
        update_proxy: Any = session.update_proxy
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'change'"):
            await update_proxy("acc_1")


def test_update_proxy_is_still_a_coroutine_function_for_mocks() -> None:
    mock = create_autospec(PostPressSession, instance=True)

    assert isinstance(mock.update_proxy, AsyncMock)
    names = ["self", "account_id", "change", "retry", "idempotency_key"]
    assert list(inspect.signature(PostPressSession.update_proxy).parameters) == names


def test_json_lines_row_with_plain_data_is_the_same_change(tmp_path: Path) -> None:
    """Plain data for `update_proxy` can be a line of a fleet."""
    full = {"host": "h", "port": 1, "protocol": "socks5h", "username": "u", "password": "p@ss"}
    changes: list[dict[str, Any]] = [
        {"country": "us"},
        {"ip": "1.2.3.4"},
        {"country": "US", "ip": "1.2.3.4", "proxy": None},
    ]
    changes += [{"proxy": {"host": "h", "port": 1}, "ip": None}, {"proxy": full}]
    path = tmp_path / "fleet.jsonl"
    path.write_text("\n".join(json.dumps({"account_id": f"acc_{n}", **it}) for n, it in enumerate(changes)))

    with Fleet.open(path) as fleet:
        rows = list(fleet.rows())

    assert [row.change for row in rows if isinstance(row, Row)] == [as_change(it) for it in changes]


def test_default_of_a_fleet_may_be_plain_data() -> None:
    frame = pandas.DataFrame({"account_id": ["acc_1"]})

    (row,) = Fleet.of(frame, default={"country": "us"}).rows()

    assert row == Row(0, 1, "acc_1", US)
    with pytest.raises(ValueError, match="change not a proxy"):
        Fleet.of(frame, default="US")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
