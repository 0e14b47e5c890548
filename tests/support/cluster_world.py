"""A Dask scheduler and its workers as separate processes with TLS, for tests that kill them."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distributed import Client

from postpress_async.cluster import read_certificates, write_certificates
from postpress_async.sandbox import Sandbox

DASK_SETTINGS = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}


async def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """
    Wait until *condition* is true; raise `TimeoutError` after *seconds*.

    The condition is checked only a hundred times per second, because the workers need the CPU.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def free_port() -> int:
    """A port of this machine on which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def recorded_states(journal: Path) -> dict[str, str]:
    """The state of each account that the journal has recorded."""
    if not journal.exists():
        return {}
    connection = sqlite3.connect(journal)
    try:
        return dict(connection.execute("SELECT account_id, state FROM outcomes"))
    except sqlite3.OperationalError:  # the journal is being created
        return {}
    finally:
        connection.close()


class ClusterProcesses:
    """
    A Dask cluster whose processes keep their files in *folder*. ``async with`` kills them at its end.

    Attributes:
        journal: The journal of a rotation of ``fleet.csv`` in *folder*.
        scheduler: The scheduler that was started last.
        address: Address of that scheduler.
    """

    def __init__(
        self, folder: Path, sandbox: Sandbox, *, host: str = "127.0.0.1", logging: str = "critical"
    ) -> None:
        self.folder = folder
        self.journal = folder / "fleet.csv.rotation.sqlite3"
        self._logging = {"DASK_LOGGING__DISTRIBUTED": logging}
        self.host = host
        self.sandbox = sandbox
        self.scheduler: Process | None = None
        self.address = ""
        self._started: list[Process] = []
        self._certificate, self._key = write_certificates(folder / "certificates")

    async def __aenter__(self) -> Self:
        try:
            await self.start_scheduler()
        except BaseException:
            await self._kill_all()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kill_all()

    async def _kill_all(self) -> None:
        for process in self._started:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()

    async def start_scheduler(self) -> None:
        """Start a scheduler, and read its address."""
        file = self.folder / f"scheduler-{len(self._started)}.json"
        arguments = ["--host", self.host, "--port", "0", "--scheduler-file", str(file)]
        self.scheduler = await self._start("scheduler", *arguments, "--dashboard-address", f"{self.host}:0")

        def read_address() -> str:
            with suppress(OSError, ValueError):  # not written yet, or only in part
                self.address = json.loads(file.read_text())["address"]
            return self.address

        self.address = ""
        await wait_until(read_address)

    async def start_worker(
        self, *arguments: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> Process:
        """Start a worker, which connects some seconds later. *prefix* is the start of its command line."""
        local = ["--local-directory", str(self.folder / f"worker-{len(self._started)}")]
        common = ["--no-nanny", "--nthreads", "8", "--no-dashboard", "--memory-limit", "0", *local]
        key = {"POSTPRESS_API_KEY": self.sandbox.api_key}
        return await self._start(
            "worker", self.address, *common, *arguments, prefix=prefix, env=key | (env or {})
        )

    async def _start(
        self, role: str, *arguments: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> Process:
        tls = ["--tls-ca-file", self._certificate, "--tls-cert", self._certificate, "--tls-key", self._key]
        module = f"distributed.cli.dask_{role}"
        command = [*prefix, sys.executable, "-m", module, *arguments, *map(str, tls)]
        with (self.folder / f"{role}-{len(self._started)}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **DASK_SETTINGS, **self._logging, **(env or {})},
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def client(self) -> Any:
        """A Dask client of the scheduler."""
        security = read_certificates(self.folder / "certificates")
        return Client(self.address, security=security, asynchronous=True)

    def logs(self) -> bytes:
        """The output of the scheduler and the workers."""
        return b"".join(log.read_bytes() for log in self.folder.glob("*.log"))

    async def rotate(self, fleet: Path, *arguments: str, prefix: Sequence[str] = ()) -> Process:
        """Start the command ``rotate`` on this cluster. The caller reads its output."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("POSTPRESS_")}
        environment |= {"POSTPRESS_API_KEY": self.sandbox.api_key, "POSTPRESS_BASE_URL": self.sandbox.url}
        cluster = ["--cluster", self.address, "--certificates", str(self.folder / "certificates")]
        program = [sys.executable, "-m", "postpress_async"]
        command = [*prefix, *program, "rotate", str(fleet), *cluster, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=self.folder
        )
        self._started.append(process)
        return process


def write_fleet(folder: Path, accounts: int) -> tuple[Path, list[str]]:
    """Write a fleet whose accounts get managed proxies. Returns its path and the account ids."""
    account_ids = [f"acc_{number:06}" for number in range(accounts)]
    fleet = folder / "fleet.csv"
    fleet.write_text("account_id,country\n" + "".join(f"{account_id},US\n" for account_id in account_ids))
    return fleet, account_ids


def accounts_by_requests(sandbox: Sandbox, account_ids: Sequence[str]) -> Counter[int]:
    """How many accounts got one request, how many got two, and so on."""
    return Counter(sandbox.record.sends(account_id) for account_id in account_ids)
