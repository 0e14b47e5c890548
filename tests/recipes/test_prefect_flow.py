"""The flow resumes a halted run, and each night is a new run. Prefect uses a temporary database."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prefect", reason="Prefect is not installed: `nox -s recipes` installs it")

from prefect.testing.utilities import prefect_test_harness

from postpress_async.sandbox import SandboxThread
from tests.recipes import prefect_flow
from tests.recipes.prefect_flow import nightly, rotate_fleet

pytestmark = pytest.mark.filterwarnings("default")  # Prefect's own warnings must not fail the test


@pytest.fixture(scope="module", autouse=True)
def harness() -> Iterator[None]:
    with prefect_test_harness():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f"acc_{number},US\n" for number in range(60))
    (tmp_path / "fleet.csv").write_text("account_id,country\n" + rows)
    return tmp_path


async def test_halted_run_is_resumed_by_prefect_s_retry(
    postpress_sandbox: SandboxThread,
    folder: Path,
    assert_output,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completed accounts are not sent again."""
    for number in range(8):  # 8 of the 20 canary accounts fail, which is more than 20%
        postpress_sandbox.script(f"acc_{number}", then="errors/disconnected_account")
    monkeypatch.setattr(rotate_fleet, "retry_delay_seconds", 0)

    states = await nightly(str(folder))

    lines = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    lines = [re.sub(r"\d\.\d s", "N s", line) for line in lines if not line.startswith("acc_")]
    assert_output("prefect_flow", [*lines, str(states)])
    assert postpress_sandbox.record.patched_accounts.total() == 52
    assert max(postpress_sandbox.sends(f"acc_{number}") for number in range(60)) == 1


async def test_second_start_sends_nothing_in_the_same_night_and_all_accounts_in_the_next(
    postpress_sandbox: SandboxThread, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nightly(str(folder))
    await nightly(str(folder))

    assert {postpress_sandbox.sends(f"acc_{number}") for number in range(60)} == {1}

    monkeypatch.setattr(prefect_flow, "HOURS_BETWEEN_RUNS", 0)  # as if the next night had come
    states = await nightly(str(folder))

    assert states["patched"] == 60
    assert {postpress_sandbox.sends(f"acc_{number}") for number in range(60)} == {2}
