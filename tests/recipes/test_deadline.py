"""The recipe reports an outcome for every account, even at its deadline."""

import pytest

from postpress_async import ManagedProxy
from postpress_async.sandbox import SandboxThread
from tests.recipes.deadline import main

CHANGES = {f"acc_{number}": ManagedProxy(country="US") for number in range(1, 7)}


async def test_failed_account_does_not_affect_the_other_accounts(
    postpress_sandbox: SandboxThread, capsys: pytest.CaptureFixture[str], assert_output
) -> None:
    postpress_sandbox.script("acc_2", "errors/proxy_error", then=200)
    postpress_sandbox.script("acc_3", "errors/disconnected_account")
    postpress_sandbox.script("acc_4", "errors/unexpected_error")

    await main(CHANGES)

    assert_output("deadline", capsys.readouterr().out.splitlines())


async def test_outcome_is_unknown_if_a_request_has_no_response_at_the_deadline(
    postpress_sandbox: SandboxThread, capsys: pytest.CaptureFixture[str]
) -> None:
    postpress_sandbox.script("acc_1", then="hang")

    await main(CHANGES, seconds=0.5)

    assert capsys.readouterr().out.splitlines() == [
        "patched: acc_2 acc_3 acc_4 acc_5 acc_6",
        "unknown: acc_1 AttemptTimeoutError",
        "skipped:",
    ]
