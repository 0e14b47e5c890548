"""A session and a sandbox in virtual time, and situations in which a call takes long."""

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from postpress_async import CustomProxy, Pace, PostPressSession, RetryPolicy, events
from postpress_async.sandbox._faults import Fault
from postpress_async.sandbox._server import Server
from tests.support.virtual_loop import Connector, run

PROXY = CustomProxy(host="proxy.example.com", port=8080)
OVERLOADED = "errors/service_unavailable"
LONG = RetryPolicy(deadline=1000.0, attempt_timeout=1000.0)


class World(NamedTuple):
    """
    A session and the sandbox to which it sends its requests.

    Attributes:
        server: The sandbox, on the virtual network.
        session: The session.
        connector: The session's connection pool.
        events: The events of the session, each with its virtual time.
    """

    server: Server
    session: PostPressSession
    connector: Connector
    events: list[tuple[float, events.Event]]

    def call(self, account_id: str = "acc_x", retry: RetryPolicy | None = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.session.update_proxy(account_id, PROXY, retry=retry))

    def left(self) -> dict[str, int]:
        """Number of each kind of resource that calls still use; all 0 once the calls have ended."""
        context = self.session._context
        return {
            "in flight": context.pacer.in_flight,
            "waiting": context.pacer.waiting,
            "locks": len(context.locks._queues),
            "calls": context.tracker._calls,
            "waits": len(context.tracker._open),
            "connections": len(self.connector._acquired),
        }


@asynccontextmanager
async def world(
    pace: Pace = Pace(),  # noqa: B008
    connector: type[Connector] = Connector,
    **options: Any,
) -> AsyncIterator[World]:
    """Open a session and a sandbox that takes 0.05 s for each request. *options* are those of the session."""
    server, pool = Server(keep_alive=1e9, latency=0.05), connector()
    recorded: list[tuple[float, events.Event]] = []
    async with server, pool:
        session = PostPressSession(
            server.api_key,
            connector=pool,
            pace=pace,
            **{
                "base_url": server.url,
                "on_event": lambda event: recorded.append((now(), event)),
                **options,
            },
        )
        async with session:
            yield World(server, session, pool, recorded)


def now() -> float:
    return asyncio.get_running_loop().time()


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate a coroutine test to run in a `VirtualLoop`."""

    @functools.wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return run_test


class DrippingServer(asyncio.Protocol):
    """A server that sends one byte of its response per second, without an end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        del data
        self.task = asyncio.create_task(self._drip())

    async def _drip(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
        )
        while not self.transport.is_closing():
            self.transport.write(b" ")
            await asyncio.sleep(1)


class SlowConnector(Connector):
    """Takes a minute to connect."""

    async def _wrap_create_connection(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(60)
        return await super()._wrap_create_connection(*args, **options)


async def silent(env: World) -> None:
    await env.server.outage("silent")


async def responds_504_after_a_second(env: World) -> None:
    await env.server.outage("504")


async def refuses_connections(env: World) -> None:
    await env.server.outage("refused")


async def long_retry_after(env: World) -> None:
    env.server.faults.script("acc_x", *[Fault(type=OVERLOADED, retry_after=4)] * 99)


async def errors_that_are_retried(env: World) -> None:
    env.server.faults.script("acc_x", *[Fault(type="errors/provider_error")] * 99)


async def behind_a_hanging_call(env: World) -> None:
    env.server.faults.script("acc_x", "hang")
    env.call("acc_x", LONG)
    await asyncio.sleep(0.1)


async def no_free_permit(env: World) -> None:
    for number in range(2):
        env.server.faults.script(f"acc_{number}", "hang")
        env.call(f"acc_{number}", LONG)
    await asyncio.sleep(0.1)


async def circuit_open(env: World) -> None:
    await env.server.outage("503")
    for number in range(30):
        env.call(f"acc_{number}", LONG)
    await asyncio.sleep(10)
    assert env.session._context.pacer.paused


Delay = Callable[[World], Coroutine[Any, Any, None]]
"""Causes a situation in which a call for the account ``acc_x`` takes long."""

DELAYS: list[tuple[Delay, Pace]] = [
    (silent, Pace()),
    (responds_504_after_a_second, Pace()),
    (refuses_connections, Pace()),
    (long_retry_after, Pace()),
    (behind_a_hanging_call, Pace()),
    (no_free_permit, Pace(in_flight=2)),
    (circuit_open, Pace()),
    (errors_that_are_retried, Pace()),
]
"""The situations, each with the pace of the session that it requires."""


@asynccontextmanager
async def dripping(**options: Any) -> AsyncIterator[World]:
    """Open a session whose requests go to a `DrippingServer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = await asyncio.get_running_loop().create_server(DrippingServer, sock=listener)
        host, port = listener.getsockname()
        async with world(base_url=f"http://{host}:{port}/v1", **options) as env:
            yield env
        server.close()


async def cancel_all_calls() -> None:
    """Cancel the calls of a `Delay`, and wait for their end."""
    calls = [task for task in asyncio.all_tasks() if "update_proxy" in repr(task.get_coro())]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
