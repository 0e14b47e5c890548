"""The cattrs converter turns plain data into models, or errors with advice, and models into plain data."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import attrs
import cattrs
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from postpress_async import (
    CustomProxy,
    ManagedProxy,
    ProxyChange,
    Secret,
    converter,
    errors,
    events,
)
from postpress_async.errors import ApiError, Applied, Problem, Scope
from postpress_async.models import AccountPatched, Attempt, FieldError, ProxyProtocol
from postpress_async.rotation import Outcome, Results, RotationSummary, State
from postpress_async.rotation._outcome import count_outcome, failed_outcome
from tests.support.journals import patched_outcome
from tests.support.wire import encoded

US = ManagedProxy(country="US")
CUSTOM = CustomProxy(host="proxy.example.com", port=8080, protocol="socks5", username="u", password="hunter2")

CHANGE: Any = ProxyChange  # mypy has no type for a union as a value

revealing = converter.copy()
revealing.register_unstructure_hook(Secret, Secret.reveal)

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
CUSTOM_PROXIES = st.builds(
    CustomProxy,
    host=st.sampled_from(["h", "proxy.example.com", "203.0.113.1", "2001:db8::1"]),
    port=st.integers(1, 65535),
    protocol=st.none() | st.sampled_from(ProxyProtocol),
    username=st.none() | TEXT,
    password=st.none() | TEXT.filter(lambda text: text != "***"),
)
ADDRESS = st.ip_addresses(v=4).map(str)
COUNTRY = st.sampled_from(["US", "DE", "XK"])
MANAGED_PROXIES = st.one_of(
    st.builds(ManagedProxy, country=COUNTRY, ip=st.none() | ADDRESS), st.builds(ManagedProxy, ip=ADDRESS)
)
SECONDS = st.floats(0, 1e10)
ATTEMPTS = st.builds(
    Attempt,
    number=st.integers(1),
    began=SECONDS,
    elapsed=SECONDS,
    error=st.none() | TEXT,
    status=st.none() | st.integers(100, 599),
    wait=SECONDS,
)
RESULTS = st.builds(AccountPatched, account_id=TEXT, attempts=st.lists(ATTEMPTS, max_size=3).map(tuple))
OUTCOMES = st.builds(
    Outcome,
    ordinal=st.integers(0),
    line=st.none() | st.integers(1),
    account_id=TEXT,
    state=st.sampled_from(State),
    attempts=st.integers(0),
    status=st.none() | st.integers(100, 599),
    error_type=st.none() | TEXT,
    scope=st.none() | st.sampled_from(Scope),
    applied=st.none() | st.sampled_from(Applied),
    instance=st.none() | TEXT,
    elapsed=SECONDS,
    settled_at=SECONDS,
    assignment=st.none() | TEXT,
)


def through_json(value: object, kind: Any) -> Any:
    return revealing.structure(json.loads(json.dumps(revealing.unstructure(value, kind))), kind)


def error_of(make: Callable[[], object]) -> FieldError | None:
    try:
        make()
    except FieldError as error:
        return error
    return None


# --- Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        pytest.param(CustomProxy, CUSTOM_PROXIES, id="CustomProxy"),
        pytest.param(ManagedProxy, MANAGED_PROXIES, id="ManagedProxy"),
        pytest.param(ProxyChange, CUSTOM_PROXIES | MANAGED_PROXIES, id="ProxyChange"),
        pytest.param(Attempt, ATTEMPTS, id="Attempt"),
        pytest.param(AccountPatched, RESULTS, id="AccountPatched"),
        pytest.param(Outcome, OUTCOMES, id="Outcome"),
        pytest.param(ProxyProtocol, st.sampled_from(ProxyProtocol), id="ProxyProtocol"),
        pytest.param(Secret, TEXT.filter(lambda text: text != "***").map(Secret), id="Secret"),
    ],
)
@given(data=st.data())
def test_model_survives_a_round_trip_through_json(kind: Any, values: Any, data: st.DataObject) -> None:
    value = data.draw(values)

    restored = through_json(value, kind)

    assert restored == value
    # `AccountPatched` ignores its attempts in `==`.
    assert getattr(restored, "attempts", None) == getattr(value, "attempts", None)


def test_subclass_with_more_fields_survives_a_round_trip() -> None:
    @frozen(kw_only=True)
    class Sticky(CustomProxy):
        minutes: int = 10
        token: Secret | None = None

    sticky = Sticky(host="h", port=1, password="hunter2", minutes=5, token=Secret("t0ken"))

    assert through_json(sticky, Sticky) == sticky


@frozen
class Job:
    """A class of an application, with an optional change."""

    account_id: str
    change: ProxyChange | None = None


@pytest.mark.parametrize("change", [US, CUSTOM, None])
def test_optional_change_survives_a_round_trip(change: ProxyChange | None) -> None:
    job = Job("acc_1", change)
    plain = None if change is None else revealing.unstructure(change, CHANGE)

    assert revealing.unstructure(job) == {"account_id": "acc_1", "change": plain}
    assert through_json(job, Job) == job


def test_change_is_unstructured_as_in_the_reference() -> None:
    assert converter.unstructure(US, ProxyChange) == {"country": "US"}
    assert revealing.unstructure(CUSTOM, ProxyChange) == {
        "proxy": {
            "host": "proxy.example.com",
            "port": 8080,
            "protocol": "socks5",
            "username": "u",
            "password": "hunter2",
        }
    }


# --- Secrets --------------------------------------------------------------------------------------


def test_secrets_are_masked_unless_a_copy_reveals_them() -> None:
    assert converter.unstructure(CUSTOM)["password"] == "***"
    assert converter.unstructure({"key": Secret("hunter2"), "proxies": [CUSTOM]}) == {
        "key": "***",
        "proxies": [{**converter.unstructure(CUSTOM), "password": "***"}],
    }
    assert revealing.unstructure(CUSTOM)["password"] == "hunter2"


@pytest.mark.parametrize("kind", [CustomProxy, ProxyChange])
def test_masked_password_is_rejected(kind: Any) -> None:
    """Otherwise ``***`` would be sent as the password, and the proxy would reject it."""
    with pytest.raises(FieldError, match="password masked"):
        converter.structure(converter.unstructure(CUSTOM, kind), kind)


# --- Invalid data -----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda children: st.lists(children, max_size=2) | st.dictionaries(TEXT, children, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize(
    ("kind", "valid"),
    [
        pytest.param(CustomProxy, {"host": "h", "port": 1}, id="custom"),
        pytest.param(ManagedProxy, {"country": "US"}, id="managed"),
    ],
)
@given(data=st.data())
def test_values_are_checked_exactly_as_by_the_constructor(
    kind: Any, valid: dict[str, Any], data: st.DataObject
) -> None:
    """cattrs must not convert a value first, such as the text "8080" to a number."""
    names = st.sampled_from([field.name for field in attrs.fields(kind)])
    values = JSON | st.sampled_from(["8080", "http", "SOCKS5", "us", "1.2.3.4", 8080.0, True])
    fields = {**valid, **data.draw(st.dictionaries(names, values, min_size=1, max_size=2))}

    constructor_error = error_of(lambda: kind(**fields))
    structure_error = error_of(lambda: converter.structure(fields, kind))

    assert str(structure_error) == str(constructor_error)
    if constructor_error is None:
        assert converter.structure(fields, kind) == kind(**fields)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (CustomProxy, {"host": "h"}, "port missing: CustomProxy requires host and port"),
        (CustomProxy, {}, "host missing: CustomProxy requires host and port"),
        (
            CustomProxy,
            {"host": "h", "port": 1, "pasword": "hunter2"},
            "unknown key: pasword is not a field: the fields are host, port, protocol, username, password",
        ),
        (CustomProxy, "hunter2", "CustomProxy not a mapping: must be a mapping with host and port, got str"),
        (ManagedProxy, {"contry": "US"}, "unknown key: contry is not a field: the fields are country, ip"),
        (ManagedProxy, None, "ManagedProxy not a mapping: must be a mapping with its fields, got NoneType"),
        (AccountPatched, {}, "account_id missing: AccountPatched requires account_id"),
    ],
)
def test_missing_or_unknown_keys_are_named(kind: Any, data: Any, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        converter.structure(data, kind)

    assert str(caught.value) == message


# --- Errors, outcomes and events --------------------------------------------------------------------

ERROR = ApiError.of(502, Problem("errors/proxy_error", "Bad gateway", "It does not work.", "req_1"), 2.0)
ERROR.account_id = "acc_1"
ERROR.attempts = (Attempt(1, 1.0, 0.5, "errors/proxy_error", 502),)
ERROR_AS_PLAIN_DATA = {
    "message": str(ERROR),
    "code": "errors/proxy_error",
    "scope": "proxy",
    "retryable": True,
    "applied": "no",
    "account_id": "acc_1",
    "attempts": [
        {"number": 1, "began": 1.0, "elapsed": 0.5, "error": "errors/proxy_error", "status": 502, "wait": 0.0}
    ],
    "status": 502,
    "retry_after": 2.0,
    "type": "errors/proxy_error",
    "title": "Bad gateway",
    "detail": "It does not work.",
    "instance": "req_1",
}


def test_error_is_unstructured_with_all_its_attributes() -> None:
    assert json.loads(json.dumps(converter.unstructure(ERROR))) == ERROR_AS_PLAIN_DATA


def test_error_without_a_response_is_unstructured_without_an_envelope() -> None:
    data = converter.unstructure(errors.ConnectError("refused"))

    assert data["code"] == "ConnectError"
    assert data["status"] is None
    assert "title" not in data


def test_outcomes_and_events_are_unstructured_with_their_errors() -> None:
    outcome = failed_outcome(0, None, "acc_1", ERROR, 0.5)
    event = events.AttemptEnded("acc_1", 1, 0.5, 502, ERROR)

    assert json.loads(json.dumps(converter.unstructure(outcome)))["error"] == ERROR_AS_PLAIN_DATA
    assert json.loads(json.dumps(converter.unstructure(event)))["error"] == ERROR_AS_PLAIN_DATA


def test_results_and_summaries_are_unstructured() -> None:
    outcome = patched_outcome(0, None, "acc_1", 1, 0.5)
    summary = RotationSummary()
    count_outcome(summary, outcome)

    assert converter.unstructure(Results({"acc_1": outcome})) == {"acc_1": converter.unstructure(outcome)}
    assert json.loads(json.dumps(converter.unstructure(summary)))["states"] == {"patched": 1}


# --- Other converters --------------------------------------------------------------------------------


def test_global_cattrs_converter_structures_a_proxy_with_a_password() -> None:
    data = {
        "host": "proxy.example.com",
        "port": 8080,
        "protocol": "socks5",
        "username": "u",
        "password": "hunter2",
    }

    assert cattrs.structure(data, CustomProxy) == CUSTOM
    assert cattrs.structure(data, CHANGE) == CUSTOM
    assert "hunter2" not in str(cattrs.unstructure(CUSTOM))


@pytest.mark.slow
def test_hooks_on_the_public_converter_do_not_change_requests() -> None:
    program = (
        "from postpress_async import CustomProxy, Secret, converter;"
        "from tests.support.wire import encoded;"
        "converter.register_unstructure_hook(Secret, lambda secret: 'theirs');"
        "converter.register_unstructure_hook(str, str.upper);"
        "print(encoded(CustomProxy(host='h', port=1, password='p')).body)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(encoded(CustomProxy(host="h", port=1, password="p")).body)
