"""
Rotations on many machines with Dask distributed; requires the extra ``distributed``.

A `Cluster` replaces the session. Its rotations have the same journal, summary and errors.
"""

import asyncio
import logging
import os
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, Literal, Self, TypeAlias, Unpack
from weakref import WeakSet

try:
    from dask import config
    from distributed import Client, LocalCluster
    from distributed.protocol.pickle import dumps
except ModuleNotFoundError as _error:
    if (_error.name or "").split(".")[0] not in {"dask", "distributed"}:
        raise
    raise ModuleNotFoundError(
        "a cluster requires Dask: pip install 'postpress-async[distributed]'", name=_error.name
    ) from None

from postpress_async import events
from postpress_async._safe_observer import SafeObserver
from postpress_async._settings import read_api_key, read_base_url, target_of
from postpress_async.cluster._address import ClusterAddress, read_certificates, write_certificates
from postpress_async.cluster._coordinator import TRIAL_WINDOW, Coordinator
from postpress_async.cluster._messages import TOPIC
from postpress_async.errors import ClusterError, ConfigurationError
from postpress_async.pace import Pace
from postpress_async.retry import RetryPolicy
from postpress_async.rotation import Rotation
from postpress_async.rotation._input import Changes, RotateOptions, make_rotation
from postpress_async.secret import Secret

__all__ = ["Cluster", "ClusterRotation", "read_certificates", "write_certificates"]

ClusterRotation: TypeAlias = Rotation
"""A rotation on a cluster."""

CONNECT_TIMEOUT: Final = 10.0  # seconds in which a scheduler must respond

# For a cluster that this process starts. It has no dashboards, which every user of the machine could open.
_LOCAL_CONFIG: Final = {
    "distributed.scheduler.worker-ttl": "10s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


class Cluster:
    """
    Workers that carry out rotations, on this machine or several.

    Enter it with ``async with``. A program that starts workers itself (``local:N``) must do so under
    ``if __name__ == "__main__":``, because the workers import the program.

    Args:
        address: ``local:N`` for N workers on this machine, or ``tls://HOST:PORT`` of a Dask scheduler.
        certificates: The directory that `write_certificates` filled, if the scheduler uses its files.
        api_key: API key of workers on this machine; if None, the environment variable ``POSTPRESS_API_KEY``.
            Workers of a running scheduler read the variable in their own environment.
        base_url: See `PostPressSession`.
        retry: See `PostPressSession`. The functions in it, if any, run on the workers.
        pace: Pace of each worker; but its rate is the limit of all workers together, in equal shares.
        idempotency: See `PostPressSession`.
        transport: See `PostPressSession`.
        trust_env: See `PostPressSession`; each worker uses its own environment.
        on_event: Called with the retries, pauses, quarantined proxies and completed accounts of all workers,
            but not with each attempt.

    Raises:
        ConfigurationError: The address, its certificates, the API key or the base URL cannot be used; or the
            retry policy cannot be pickled for the workers.
    """

    def __init__(
        self,
        address: str,
        *,
        certificates: str | os.PathLike[str] | None = None,
        api_key: str | Secret | None = None,
        base_url: str | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable, like Pace
        pace: Pace = Pace(),  # noqa: B008
        idempotency: bool = True,
        transport: Literal["session", "lean"] = "session",
        trust_env: bool = False,
        on_event: events.Observer | None = None,
    ) -> None:
        self._address: Final = ClusterAddress.parse(address)
        self._security: Final = self._address.security(certificates)
        url = read_base_url(base_url)
        self._target: Final = target_of(url)
        if self._address.scheduler is not None and api_key is not None:
            raise ConfigurationError(
                f"the workers of {address} have their own POSTPRESS_API_KEY: leave api_key out"
            )
        if not self._address.is_local and url.scheme == "http":
            raise ConfigurationError(f"the workers of {address} are on other machines: use an https base URL")
        self._key: Final = read_api_key(api_key) if self._address.scheduler is None else None
        self._settings: Final[dict[str, Any]] = {
            "pace": pace,
            "base_url": str(url),
            "retry": retry,
            "idempotency": idempotency,
            "transport": transport,
            "trust_env": trust_env,
        }
        if transport not in {"session", "lean"}:
            raise ConfigurationError(
                f'transport of a cluster must be "session" or "lean", got {transport!r}: its workers cannot '
                "share an object"
            )
        try:
            dumps(retry)
        except Exception as error:  # from pickling the caller's functions
            raise ConfigurationError(
                f"the retry policy cannot be sent to workers ({error}): its functions may only use values "
                "that can be pickled"
            ) from None
        self._observer: Final = None if on_event is None else SafeObserver(on_event)
        self._stack: Final = AsyncExitStack()
        self._client: Client | None = None
        self._coordinators: Final = WeakSet[Coordinator]()  # one for each open rotation

    @property
    def paused(self) -> bool:
        """Whether all workers send only probes, because the service is down."""
        return any(coordinator.paused for coordinator in self._coordinators)

    def rotate(self, changes: Changes, **options: Unpack[RotateOptions]) -> Rotation:
        """
        Create a rotation of many accounts on the workers; see `PostPressSession.rotate`.

        A run that started on a single machine can be resumed on a cluster, and vice versa.

        Args:
            changes: See `PostPressSession.rotate`.
            options: The options of `PostPressSession.rotate` except *in_flight*: on a cluster, it is the
                `Pace.in_flight` of each worker.

        Raises:
            ValueError: See `PostPressSession.rotate`.
        """
        if self._client is None:
            raise RuntimeError("the cluster is not started; use: async with Cluster(...) as cluster")
        coordinator = Coordinator(self._client, self._settings, self._observer)
        self._coordinators.add(coordinator)
        return make_rotation(
            coordinator.update,
            changes,
            in_flight=TRIAL_WINDOW,
            target=self._target,
            api_key=self._key,
            waits=coordinator.waits,
            observer=self._observer,
            executor=coordinator,
            **options,
        )

    def _on_event(self, event: tuple[float, dict[str, Any]]) -> None:
        for coordinator in self._coordinators:
            coordinator.on_event(event[1])

    async def __aenter__(self) -> Self:
        try:
            address = self._address.scheduler or await self._start_local()
            client: Any = await self._stack.enter_async_context(await self._connect(address))
            client.subscribe_topic(TOPIC, self._on_event)
            self._client = client
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _connect(self, address: str) -> Any:
        client: Any = Client(address, security=self._security, asynchronous=True, timeout=CONNECT_TIMEOUT)
        try:
            # Dask's timeout does not cover a server that accepts the connection and never responds.
            async with asyncio.timeout(1.5 * CONNECT_TIMEOUT):
                await client
        except Exception as error:  # Dask raises many types if, say, a web server responds
            with suppress(Exception):
                await client.close()
            reason = str(error) or "it does not respond like a scheduler"
            raise ClusterError(
                f"no scheduler responds at {address} ({reason}): check that it runs, and for tls:// that it "
                "uses the same certificates"
            ) from None
        return client

    async def _start_local(self) -> str:
        assert self._key is not None  # noqa: S101 - read in __init__, because the cluster is local
        self._stack.enter_context(config.set(_LOCAL_CONFIG))
        cluster = await self._stack.enter_async_context(
            LocalCluster(
                n_workers=self._address.workers,
                threads_per_worker=1,
                asynchronous=True,
                host="127.0.0.1",
                protocol="tls://",
                security=self._security,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                preload=["postpress_async.cluster._worker"],
                memory_limit=0,
                env={"POSTPRESS_API_KEY": self._key.reveal()},
            )
        )
        return str(cluster.scheduler_address)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
