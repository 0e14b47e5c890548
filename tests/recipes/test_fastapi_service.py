"""The web service responds to its clients. The sandbox takes the place of the API."""

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed: `nox -s recipes` installs it")

from fastapi.testclient import TestClient

from postpress_async.sandbox import Fault, SandboxThread
from tests.recipes.fastapi_service import app


@pytest.fixture
def client(postpress_sandbox: SandboxThread) -> Iterator[TestClient]:
    """A client of the running service, which gets the sandbox's URL and API key from the environment."""
    with TestClient(app) as client:
        yield client


def test_response_to_each_kind_of_error(
    postpress_sandbox: SandboxThread, client: TestClient, assert_output
) -> None:
    postpress_sandbox.script("acc_2", "errors/proxy_error", then=200)
    postpress_sandbox.script("acc_3", "errors/disconnected_account")
    postpress_sandbox.script("acc_4", "errors/resource_not_found")
    postpress_sandbox.script("acc_5", "errors/insufficient_privileges")
    postpress_sandbox.script("acc_6", Fault(type="errors/service_unavailable", retry_after=300))
    postpress_sandbox.script("acc_7", "errors/unexpected_error")
    lines = []
    for account, country in [(f"acc_{number}", "US") for number in range(1, 8)] + [("acc_8", "Narnia")]:
        response = client.put(f"/accounts/{account}/proxy", json={"country": country})
        retry_after = response.headers.get("Retry-After")
        lines.append(f"PUT /accounts/{account}/proxy -> {response.status_code} {response.text}")
        lines[-1] += f" (Retry-After: {retry_after})" if retry_after else ""

    assert_output("fastapi_service", lines)
    assert postpress_sandbox.proxy_of("acc_2") == {"country": "US"}
    assert postpress_sandbox.sends("acc_8") == 0


def test_error_about_the_api_key_is_logged_and_not_shown_to_the_client(
    postpress_sandbox: SandboxThread, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    postpress_sandbox.script("acc_1", "errors/missing_credentials")

    response = client.put("/accounts/acc_1/proxy", json={"country": "US"})

    assert response.json() == {"error": "internal", "applied": "no"}
    [record] = [record for record in caplog.records if record.name == "tests.recipes.fastapi_service"]
    assert record.levelname == "ERROR"
    assert "acc_1" in record.getMessage()


def test_service_can_be_started_again_after_a_shutdown(postpress_sandbox: SandboxThread) -> None:
    """Each start has its own session."""
    for account in ("acc_1", "acc_2"):
        with TestClient(app) as client:
            assert client.put(f"/accounts/{account}/proxy", json={"country": "US"}).is_success

    assert postpress_sandbox.record.in_flight == 0
    assert postpress_sandbox.record.patched_accounts == {"acc_1": 1, "acc_2": 1}
