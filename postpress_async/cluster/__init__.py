"""
The same rotation on many machines, by Dask distributed; it takes the extra ``distributed``.

`Cluster` is the face: it stands where a session would, and its rotations are used like a session's.
"""

import asyncio
import logging
import os
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Final, Literal, Self

from attrs import evolve

try:
    from dask import config
    from distributed import Client, LocalCluster
    from distributed.protocol.pickle import dumps
    from distributed.scheduler import KilledWorker
    from distributed.utils import get_ip
except ModuleNotFoundError as _error:
    if (_error.name or "").split(".")[0] not in {"dask", "distributed"}:
        raise
    raise ModuleNotFoundError(
        "a cluster requires Dask: pip install 'postpress-async[distributed]'", name=_error.name
    ) from None

from postpress_async import events
from postpress_async._safe_observer import SafeObserver
from postpress_async._settings import read_api_key, read_base_url, target_of
from postpress_async.cluster.conductor import ClusterRotation
from postpress_async.cluster.desk import Answer, Desk
from postpress_async.cluster.orders import Orders
from postpress_async.cluster.place import Place, read_certificates, write_certificates
from postpress_async.cluster.post import settle_shard
from postpress_async.errors import ClusterError, ConfigurationError
from postpress_async.pace import Pace
from postpress_async.retry import RetryPolicy
from postpress_async.rotation import Halt, ProxyPool
from postpress_async.rotation._input import Changes, RotationInput, check_count
from postpress_async.rotation._outcome import KEY_LIFETIME
from postpress_async.rotation._pool._tags import pools_of
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown
from postpress_async.secret import Secret

__all__ = ["Cluster", "ClusterRotation", "read_certificates", "write_certificates"]

THREADS: Final = 8
"""Shards that a worker of ours begins at once. They share its event loop: no thread is started for them."""

ANSWERS: Final = 10.0
"""Seconds in which a scheduler has to answer."""

# Of a cluster of our own. A failed task is not repeated by Dask, because the coordinator knows which of its
# accounts are completed. The dashboards are off, since anyone on the machine could open them.
_OURS: Final = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-ttl": "10s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


class Cluster:
    """
    Workers that carry rotations out, on this machine or many.

    It is entered with ``async with``, and its rotations with another one inside. A program that makes one of
    its own (``local:N``) does so under ``if __name__ == "__main__":``, since its workers import it.

    Args:
        place: ``local:N``, for N workers on this machine; or ``tls://HOST:PORT``, where a Dask scheduler is.
        certificates: The folder that `write_certificates` filled, for a scheduler that was started with it.
        api_key: Of workers on this machine; else the environment's ``POSTPRESS_API_KEY``. Workers elsewhere
            read it there.
        base_url: As `PostPressSession` has it.
        retry: As `PostPressSession` has it. Its functions, if it has any, run on the workers.
        pace: Of each worker; but for its rate, which all of them share.
        idempotency: As `PostPressSession` has it.
        transport: As `PostPressSession` has it.
        trust_env: As `PostPressSession` has it; each worker uses its own environment.
        on_event: Called with what all workers do, but for each single attempt.

    Raises:
        ConfigurationError: The place, its certificates, the key or the base URL cannot be used; or the retry
            policy cannot be sent.
    """

    def __init__(
        self,
        place: str,
        *,
        certificates: str | os.PathLike[str] | None = None,
        api_key: str | Secret | None = None,
        base_url: str | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable, as is the pace
        pace: Pace = Pace(),  # noqa: B008
        idempotency: bool = True,
        transport: Literal["session", "lean"] = "session",
        trust_env: bool = False,
        on_event: events.Observer | None = None,
    ) -> None:
        self._place: Final = Place.of(place)
        self._security: Final = self._place.security(certificates)
        url = read_base_url(base_url)
        self._target: Final = target_of(url)
        if not self._place.is_here and (api_key is not None or url.scheme == "http"):
            raise ConfigurationError(
                f"the workers of {place} are on other machines: each reads the API key from its own "
                "POSTPRESS_API_KEY, and the base URL must use https"
            )
        self._key: Final = read_api_key(api_key).reveal() if self._place.is_here else None
        watched = on_event is not None
        self._orders: Final = Orders(
            "", str(url), retry, pace, False, watched, transport, idempotency, trust_env
        )
        try:
            dumps(self._orders)
        except Exception as error:  # of whatever the caller's functions hold
            raise ConfigurationError(
                f"the retry policy cannot be sent to workers ({error}): its functions may only use values "
                "that can be pickled"
            ) from None
        self._observer: Final = None if on_event is None else SafeObserver(on_event)
        self._stack: Final = AsyncExitStack()
        self._client: Client | None = None
        self._desk: Desk | None = None
        self._rotation: ClusterRotation | None = None

    @property
    def paused(self) -> bool:
        """Whether all workers pause: the service is out."""
        return self._rotation is not None and self._rotation.paused

    def rotate(
        self,
        changes: Changes,
        *,
        journal: str | os.PathLike[str] | None = None,
        halt: str | int | Halt | None = None,
        pool: ProxyPool | Mapping[str, ProxyPool] | None = None,
        limit: int | None = None,
        on_unknown: OnUnknown = "retry",
        on_failed: OnFailed = "report",
        every: float | None = None,
        keep: int | None = None,
        on: Collection[str] | Selection = (),
        accept_new_key: bool = False,
        key_lifetime: float = KEY_LIFETIME,
    ) -> ClusterRotation:
        """
        A rotation of many accounts on the workers; the arguments are those of `PostPressSession.rotate`.

        A journal that one machine began can be gone on with here, and the other way round.

        Raises:
            ValueError: As for `PostPressSession.rotate`; or there are several pools, or templates.
        """
        check_count("limit", limit)
        if pool and (not isinstance(pool, ProxyPool) or any(pooled.is_template for pooled in pool)):
            raise ValueError("a cluster takes one pool without templates: for others, use one machine")
        given = RotationInput.of(changes, pooled=pool is not None).only(Selection.of(on))
        opener = given.journal_opener(
            journal,
            target=self._target,
            on_unknown=on_unknown,
            on_failed=on_failed,
            pools=pools_of(pool),
            every=every,
            keep=keep,
            api_key=None if self._key is None else Secret(self._key),  # workers elsewhere have their own
            accept_new_key=accept_new_key,
            key_lifetime=key_lifetime,
        )
        self._rotation = ClusterRotation(
            self,
            evolve(self._orders, pooled=pool is not None),
            self._key,
            given.rows,
            journal=opener,
            finite=given.finite,
            total=given.total,
            halt=Halt.of(halt),
            pool=pool,
            limit=limit,
            observer=self._observer,
        )
        return self._rotation

    # --- What a rotation needs; see `Carrier` ---

    async def workers(self) -> frozenset[str]:
        """The addresses of those that are there; `OSError` where the scheduler cannot be asked."""
        scheduler: Any = self._opened.scheduler
        return frozenset((await scheduler.identity())["workers"])

    async def carry(self, token: str, number: int, worker: str) -> None:
        """
        Have *worker* begin a shard. Nothing that Dask logs, shows or keeps of it tells of a row.

        Raises:
            OSError: The worker is lost.
        """
        assert self._desk is not None  # noqa: S101 - it is entered
        future = self._opened.submit(
            settle_shard,
            self._desk.address,
            token,
            number,
            key=f"postpress-{token[:8]}-{number}",
            workers=[worker],
            pure=False,
            retries=0,
        )
        try:
            error = await future.exception()  # not its result, which would have to be fetched from the worker
            lost = future.cancelled() or isinstance(error, KilledWorker)
        finally:
            future.release()
        if lost:
            raise OSError(f"{worker} is lost") from error
        if error is not None:
            raise error

    def attend(self, token: str, answer: Answer) -> None:
        """Have *answer* speak with the workers."""
        assert self._desk is not None  # noqa: S101 - it is entered
        self._desk.attend(token, answer)

    def dismiss(self, token: str) -> None:
        """Tell the workers that the rotation is over."""
        if self._desk is not None:
            self._desk.dismiss(token)

    @property
    def _opened(self) -> Client:
        if self._client is None:
            raise RuntimeError("the cluster is not started; use: async with Cluster(...) as cluster")
        return self._client

    async def __aenter__(self) -> Self:
        try:
            address = self._place.address or await self._start_our_own()
            self._client = await self._stack.enter_async_context(await self._reach(address))
            self._desk = Desk(self._our_host(), self._security)
            await self._desk.open()
            self._stack.push_async_callback(self._desk.aclose)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _reach(self, address: str) -> Any:
        client: Any = Client(address, security=self._security, asynchronous=True, timeout=ANSWERS)
        try:
            async with asyncio.timeout(1.5 * ANSWERS):  # its own does not count what is connected and silent
                await client
        except Exception as error:  # Dask raises many types if, say, a web server responds
            with suppress(Exception):
                await client.close()
            fact = str(error) or "it does not respond like a scheduler"
            raise ClusterError(
                f"no scheduler with our certificates responds at {address} ({fact}): check that it runs, and "
                "with the same certificates"
            ) from None
        return client

    def _our_host(self) -> str:
        """The address of this machine by which it reaches the scheduler, and workers reach it."""
        return "127.0.0.1" if self._place.is_here else str(get_ip(self._place.host))

    async def _start_our_own(self) -> str:
        self._stack.enter_context(config.set(_OURS))
        made = await self._stack.enter_async_context(
            LocalCluster(
                n_workers=self._place.workers,
                threads_per_worker=THREADS,
                asynchronous=True,
                host="127.0.0.1",
                protocol="tls://",
                security=self._security,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                preload=["postpress_async.cluster._shield"],
                memory_limit=0,
            )
        )
        return str(made.scheduler_address)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
