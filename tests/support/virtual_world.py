"""A session and a sandbox in virtual time, and what may hold a call of theirs up."""

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
    server: Server
    session: PostPressSession
    connector: Connector
    events: list[tuple[float, events.Event]]

    def call(self, account_id: str = "acc_x", retry: RetryPolicy | None = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.session.update_proxy(account_id, PROXY, retry=retry))

    def left(self) -> dict[str, int]:
        """What of the calls is still there."""
        line, pacer = self.session._context, self.session._context.pacer
        return {
            "in flight": pacer.in_flight,
            "waiting": pacer.waiting,
            "turns": len(line.locks._queues),
            "calls": line.tracker._calls,
            "waits": len(line.tracker._open),
            "connections": len(self.connector._acquired),
        }


@asynccontextmanager
async def world(
    pace: Pace = Pace(),  # noqa: B008
    connector: type[Connector] = Connector,
    **options: Any,
) -> AsyncIterator[World]:
    server, recorded = Server(keep_alive=1e9, latency=0.05), []
    made = connector()
    async with server, made:
        session = PostPressSession(
            server.api_key,
            connector=made,
            pace=pace,
            **{
                "base_url": server.url,
                "on_event": lambda event: recorded.append((now(), event)),
                **options,
            },
        )
        async with session:
            yield World(server, session, made, recorded)


def now() -> float:
    return asyncio.get_running_loop().time()


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def played(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return played


class Drip(asyncio.Protocol):
    """Answers a byte a second, for ever."""

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


class Far(Connector):
    """A host to which a connection takes a minute."""

    async def _wrap_create_connection(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(60)
        return await super()._wrap_create_connection(*args, **options)


async def silent(at: World) -> None:
    await at.server.outage("silent")


async def answers_504_after_a_second(at: World) -> None:
    await at.server.outage("504")


async def refuses_connections(at: World) -> None:
    await at.server.outage("refused")


async def long_retry_after(at: World) -> None:
    at.server.faults.script("acc_x", *[Fault(type=OVERLOADED, retry_after=4)] * 99)


async def backs_off(at: World) -> None:
    at.server.faults.script("acc_x", *[Fault(type="errors/provider_error")] * 99)


async def behind_a_stuck_call(at: World) -> None:
    at.server.faults.script("acc_x", "hang")
    at.call("acc_x", LONG)
    await asyncio.sleep(0.1)


async def no_slot_free(at: World) -> None:
    for number in range(2):
        at.server.faults.script(f"acc_{number}", "hang")
        at.call(f"acc_{number}", LONG)
    await asyncio.sleep(0.1)


async def gate_shut(at: World) -> None:
    await at.server.outage("503")
    for number in range(30):
        at.call(f"acc_{number}", LONG)
    await asyncio.sleep(10)
    assert at.session._context.pacer.paused


TWO, HUNDRED = Pace(in_flight=2), Pace()
HOLDS = [
    (silent, HUNDRED),
    (answers_504_after_a_second, HUNDRED),
    (refuses_connections, HUNDRED),
    (long_retry_after, HUNDRED),
    (behind_a_stuck_call, HUNDRED),
    (no_slot_free, TWO),
    (gate_shut, HUNDRED),
    (backs_off, HUNDRED),
]
Hold = Callable[[World], Coroutine[Any, Any, None]]


@asynccontextmanager
async def dripping(**options: Any) -> AsyncIterator[World]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        drip = await asyncio.get_running_loop().create_server(Drip, sock=listening)
        host, port = listening.getsockname()
        async with world(base_url=f"http://{host}:{port}/v1", **options) as at:
            yield at
        drip.close()


async def end_others(but: asyncio.Task[Any] | None = None) -> None:
    """Cancel what `hold` began, and let it go."""
    names = {task for task in asyncio.all_tasks() if "update_proxy" in repr(task.get_coro())} - {but}
    for task in names:
        task.cancel()
    await asyncio.gather(*names, return_exceptions=True)
