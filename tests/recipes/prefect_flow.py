"""
A nightly rotation as a Prefect flow: ``python prefect_flow.py`` serves it and runs it at 2:00 every night.

The journal records completed accounts, so a retry by Prefect resumes the run, however it ended.
For Airflow, use the body of `rotate_fleet` in an ``@task``.
"""

from pathlib import Path

from prefect import flow, task
from prefect.logging import get_run_logger

from postpress_async import Fleet, Pace, PostPressSession, RetryPolicy
from postpress_async.rotation import Halt, State

HOURS_BETWEEN_RUNS = 20
"""A new run starts if the latest one is complete and started at least this long ago."""


class RotationIncompleteError(Exception):
    """The run ended before its last account. Run it again with the same journal."""


@task(retries=2, retry_delay_seconds=600)
async def rotate_fleet(fleet: Path, journal: Path, rate: float | None = None) -> dict[str, int]:
    """
    Update the proxies of all accounts of *fleet*, and return the number of accounts by state.

    If the task is cancelled, its requests in flight have an unknown outcome. The journal records that, and
    the next start sends them again with the same idempotency keys.
    """
    log = get_run_logger()
    halt = Halt(failures="20%", canary=20)
    with Fleet.open(fleet) as rows:
        async with PostPressSession(pace=Pace(rate=rate), retry=RetryPolicy(attempts=6)) as session:
            rotation = session.rotate(rows, journal=journal, halt=halt, every=HOURS_BETWEEN_RUNS * 3600)
            async with rotation:
                async for outcome in rotation:
                    if outcome.state is not State.PATCHED:
                        log.warning("%s: %s (%s)", outcome.account_id, outcome.error_type, outcome.state)
    summary = rotation.summary
    log.info("%s", summary)
    if summary.halted or summary.stopped or summary.states[State.UNKNOWN]:
        raise RotationIncompleteError(summary.halted or str(summary))
    return {str(state): summary.states[state] for state in State}


@flow
async def nightly(folder: str, rate: float | None = None) -> dict[str, int]:
    """Rotate ``fleet.csv`` in *folder*. The journal of all nights is in the same folder."""
    states: dict[str, int] = await rotate_fleet(
        Path(folder, "fleet.csv"), Path(folder, "rotation.sqlite3"), rate
    )
    return states


if __name__ == "__main__":
    nightly.serve(name="nightly", cron="0 2 * * *", parameters={"folder": "/var/lib/postpress"})
