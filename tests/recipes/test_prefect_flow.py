"""The flow, run by Prefect itself against a database of its own in a temporary folder."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prefect", reason="Prefect is not installed: `nox -s recipes` installs it")

from prefect.testing.utilities import prefect_test_harness

from postpress_async.sandbox.thread import SandboxThread
from tests.recipes.prefect_flow import nightly, rotate_fleet

pytestmark = pytest.mark.filterwarnings("default")  # Prefect's own are not ours to mend


@pytest.fixture(scope="module", autouse=True)
def harness() -> Iterator[None]:
    with prefect_test_harness():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f"acc_{number},US\n" for number in range(60))
    (tmp_path / "fleet.csv").write_text("account_id,country\n" + rows)
    return tmp_path


async def test_a_flow_that_halts_is_retried_and_goes_on(
    postpress_sandbox: SandboxThread,
    folder: Path,
    shows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect's retry finds the journal of the try before it: what was settled is not sent again."""
    for number in range(8):  # eight of the canary's twenty are too many
        postpress_sandbox.script(f"acc_{number}", then="errors/disconnected_account")
    monkeypatch.setattr(rotate_fleet, "retry_delay_seconds", 0)

    states = await nightly(str(folder))

    told = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    told = [re.sub(r"\d\.\d s", "N s", line) for line in told if not line.startswith("acc_")]
    shows("prefect_flow", [*told, str(states)])
    assert postpress_sandbox.record.patched_accounts.total() == 52
    assert max(postpress_sandbox.sends(f"acc_{number}") for number in range(60)) == 1
