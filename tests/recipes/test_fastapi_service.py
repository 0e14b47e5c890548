"""The web service, asked over ASGI, with the API on loopback behind it."""

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed: `nox -s recipes` installs it")

from fastapi.testclient import TestClient

from postpress_async.sandbox import Fault
from postpress_async.sandbox.thread import SandboxThread
from tests.recipes.fastapi_service import app


@pytest.fixture
def client(postpress_sandbox: SandboxThread) -> Iterator[TestClient]:
    """The service from its start to its shutdown; the sandbox is there before, so its session finds it."""
    with TestClient(app) as running:
        yield running


def test_what_comes_back_for_each_kind_of_trouble(
    postpress_sandbox: SandboxThread, client: TestClient, shows
) -> None:
    """Whoever asks the service learns what to do; not what key we have, nor what it may not."""
    postpress_sandbox.script("acc_2", "errors/proxy_error", then=200)
    postpress_sandbox.script("acc_3", "errors/disconnected_account")
    postpress_sandbox.script("acc_4", "errors/resource_not_found")
    postpress_sandbox.script("acc_5", "errors/insufficient_privileges")
    postpress_sandbox.script("acc_6", Fault(type="errors/service_unavailable", retry_after=300))
    postpress_sandbox.script("acc_7", "errors/unexpected_error")
    told = []
    for account, country in [(f"acc_{number}", "US") for number in range(1, 8)] + [("acc_8", "Narnia")]:
        answer = client.put(f"/accounts/{account}/proxy", json={"country": country})
        retry_after = answer.headers.get("Retry-After")
        told.append(f"PUT /accounts/{account}/proxy -> {answer.status_code} {answer.text}")
        told[-1] += f" (Retry-After: {retry_after})" if retry_after else ""

    shows("fastapi_service", told)
    assert postpress_sandbox.proxy_of("acc_2") == {"country": "US"}
    assert postpress_sandbox.sends("acc_8") == 0


def test_a_key_that_is_refused_is_told_in_our_log_alone(
    postpress_sandbox: SandboxThread, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It is ours to mend, and nobody else's business."""
    postpress_sandbox.script("acc_1", "errors/missing_credentials")

    answer = client.put("/accounts/acc_1/proxy", json={"country": "US"})

    assert answer.json() == {"error": "internal", "applied": "no"}
    [record] = [record for record in caplog.records if record.name == "tests.recipes.fastapi_service"]
    assert record.levelname == "ERROR"
    assert "acc_1" in record.getMessage()


def test_a_service_that_shuts_down_leaves_no_session_open(postpress_sandbox: SandboxThread) -> None:
    """Its connections are closed with it, and a second start makes a new one."""
    for account in ("acc_1", "acc_2"):
        with TestClient(app) as client:
            assert client.put(f"/accounts/{account}/proxy", json={"country": "US"}).is_success

    assert postpress_sandbox.record.in_flight == 0
    assert postpress_sandbox.record.patched_accounts == {"acc_1": 1, "acc_2": 1}
