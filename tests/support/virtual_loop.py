"""
An event loop with virtual time and a virtual network, for an aiohttp client and server in one process.

If no callback is ready, the time jumps to the next timer. `async-solipsism` does the same, but checks all
sockets in each iteration of the loop, which is too slow for 1,000 connections. This loop has no sockets: a
write calls `data_received` of the other side in the next iteration.
"""

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiohttp

T = TypeVar("T")
Address = tuple[str, int]


class DeadLockError(Exception):
    """No callback is ready and no timer is set, so the tasks would wait for ever."""


class _VirtualClock(selectors.SelectSelector):
    """Advances the virtual time instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise DeadLockError
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """
    An event loop whose virtual time starts at 0.

    Attributes:
        timers: Number of timers set so far.
    """

    def __init__(self) -> None:
        self._virtual_clock = _VirtualClock()
        self.timers = 0
        self._listening: dict[Address, _Listening] = {}
        super().__init__(self._virtual_clock)

    def time(self) -> float:
        return self._virtual_clock.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        sock: socket.socket,
        **_options: Any,
    ) -> asyncio.AbstractServer:
        """Listen on the virtual network. *sock* only reserves its address."""
        listening = _Listening(self._listening, sock, protocol_factory)
        self._listening[listening.address] = listening
        return listening

    async def connect(
        self, protocol_factory: Callable[[], Any], address: Address
    ) -> tuple["_End", asyncio.Protocol]:
        """Connect to a server of this loop. Raises `ConnectionRefusedError` if none listens on *address*."""
        await asyncio.sleep(0)
        if address not in self._listening:
            raise ConnectionRefusedError(111, "Connection refused")
        client, server = _End(self, protocol_factory()), _End(self, self._listening[address].accept())
        client.peer, server.peer = server, client
        server.protocol.connection_made(server)
        client.protocol.connection_made(client)
        return client, client.protocol


class _Listening(asyncio.AbstractServer):
    """The server that `create_server` returns."""

    def __init__(
        self, register: dict[Address, "_Listening"], sock: socket.socket, accept: Callable[[], Any]
    ) -> None:
        self.address: Address = sock.getsockname()[:2]
        self.accept = accept
        self._register = register
        self._sock = sock

    def close(self) -> None:
        """Accept no more connections."""
        self._register.pop(self.address, None)
        self._sock.close()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def is_serving(self) -> bool:
        return self.address in self._register

    async def start_serving(self) -> None:
        """Do nothing: the server listens from the start."""

    async def serve_forever(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def wait_closed(self) -> None:
        """Do nothing: open connections are not waited for."""


class _End(asyncio.Transport):
    """One end of a connection. The other end receives written data in the next iteration of the loop."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.peer = self
        self.protocol = protocol
        self._loop = loop
        self._closing = False
        self._paused = False
        self._buffer: list[bytes | None] = []  # received while paused; None for the end of the stream

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._loop.call_soon(self.peer.arrive, bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._loop.call_soon(self.peer.arrive, None)  # after all written data
            self.lose(None)

    def abort(self) -> None:
        if not self._closing:
            self._loop.call_soon(self.peer.lose, ConnectionResetError(104, "Connection reset by peer"))
            self.lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        buffered, self._buffer = self._buffer, []
        for data in buffered:
            self._loop.call_soon(self.arrive, data)

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def arrive(self, data: bytes | None) -> None:
        """Receive data of the other end; None for the end of the stream."""
        if self._closing:
            return
        if self._paused:
            self._buffer.append(data)
        elif data is not None:
            self.protocol.data_received(data)
        elif not self.protocol.eof_received():
            self.close()

    def lose(self, error: Exception | None) -> None:
        """Close this end, with the error that its protocol gets, if any."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self.protocol.connection_lost, error)


class Connector(aiohttp.TCPConnector):
    """aiohttp's connection pool on the virtual network of a `VirtualLoop`."""

    def __init__(self) -> None:
        super().__init__(limit=0)

    async def _wrap_create_connection(  # type: ignore[override]
        self, factory: Any, *, addr_infos: Any, req: Any, client_error: Any, **_options: Any
    ) -> Any:
        assert isinstance(self._loop, VirtualLoop)
        try:
            return await self._loop.connect(factory, addr_infos[0][4][:2])
        except OSError as error:
            raise client_error(req.connection_key, error) from error


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in virtual time, and return its result. Raises `DeadLockError` if it can never end."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    except DeadLockError:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
        raise
    finally:
        loop.close()
