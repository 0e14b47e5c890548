"""Follows the scheduler's list of workers, and notices when workers or the scheduler are lost."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from postpress_async.cluster._remote_worker import RemoteWorker

POLL_INTERVAL: Final = 0.5  # seconds between two requests for the scheduler's list of workers
RESPONSE_TIMEOUT: Final = 5.0  # seconds in which the scheduler or a worker must respond
HEARTBEAT_TIMEOUT: Final = 8.0  # seconds without a heartbeat after which a worker is lost
SCHEDULER_TIMEOUT: Final = 10.0  # seconds without a response of the scheduler after which the rotation ends
NO_WORKER_TIMEOUT: Final = 60.0  # seconds without a connected worker after which the rotation ends


class ClusterWatch:
    """Keeps the list of the workers to which *client*, a Dask client, is connected."""

    def __init__(self, client: Any) -> None:
        self.workers: Final[dict[str, RemoteWorker]] = {}  # all so far, by process; lost ones stay
        self._client: Final = client

    async def run(self, on_update: Callable[[], None], abort: Callable[[str], None]) -> None:
        """
        Request the list of workers again and again, until cancelled.

        Calls *on_update* after each update of `workers`, and *abort* with the reason if the rotation must end
        because the scheduler or all workers are lost.
        """
        clock = asyncio.get_running_loop().time
        suspended = 0.0  # seconds for which this process was suspended (Ctrl-Z); the timeouts exclude them
        responded_at = usable_at = clock()
        while True:
            started = clock()
            now = started - suspended
            with suppress(Exception):  # Dask raises many types
                async with asyncio.timeout(RESPONSE_TIMEOUT):
                    identity = await self._client.scheduler.identity()
                responded_at = now
                self._update(identity["workers"], now)
                on_update()
            if now - responded_at > SCHEDULER_TIMEOUT:
                abort("the cluster's scheduler does not respond any more: start it and its workers")
            elif any(worker.is_usable for worker in self.workers.values()):
                usable_at = now
            elif problem := self._problem_without_workers(now - usable_at):
                abort(f"the cluster has no usable worker ({problem}): fix that")
            await asyncio.sleep(POLL_INTERVAL)
            elapsed = clock() - started
            if elapsed > 2 * RESPONSE_TIMEOUT:  # more than a response and the sleep can take
                suspended += elapsed

    def _update(self, listed: dict[str, dict[str, Any]], now: float) -> None:
        """Update the workers from the scheduler's list, whose keys are their addresses."""
        for address, facts in listed.items():
            process = facts["local_directory"]
            worker = self.workers.setdefault(process, RemoteWorker(address, process))
            worker.on_listed(facts["last_seen"], now)
            worker.measure_speed(POLL_INTERVAL)
        processes = {facts["local_directory"] for facts in listed.values()}
        for worker in self.workers.values():
            if worker.process not in processes or now - worker.heard_at > HEARTBEAT_TIMEOUT:
                worker.lose()

    def _problem_without_workers(self, seconds: float) -> str | None:
        """Why no worker has been usable for *seconds*; None if one may still connect in time."""
        problems = [worker.problem for worker in self.workers.values() if not worker.is_lost]
        if problems:
            return problems[-1]
        return "no worker is connected" if seconds > NO_WORKER_TIMEOUT else None
