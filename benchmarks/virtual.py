"""
A loop whose hours take milliseconds, and a network inside it, for aiohttp on both sides.

Time jumps to the next timer when nothing else is to be done. `async-solipsism` does that too, but scans
every socket in each turn of the loop, which 1,000 connections do not bear; here there is no socket, a
write is the other side's `data_received` in the next turn, and nothing is polled.
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
    """Nothing is ready and no timer is set: what the tasks wait for will never come."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting, lets the time pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise DeadLockError
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """
    A loop in virtual time, from 0.

    Attributes:
        timers: How many were set.
    """

    def __init__(self) -> None:
        self._jump = _Jump()
        self.timers = 0
        self._listening: dict[Address, _Listening] = {}
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

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
        """Listen inside; *sock*, bound outside, keeps its address from others and is never used."""
        listening = _Listening(self._listening, sock, protocol_factory)
        self._listening[listening.address] = listening
        return listening

    async def connect(
        self, protocol_factory: Callable[[], Any], address: Address
    ) -> tuple["_End", asyncio.Protocol]:
        """A connection to who listens there; ConnectionRefusedError where nobody does."""
        await asyncio.sleep(0)
        if address not in self._listening:
            raise ConnectionRefusedError(111, "Connection refused")
        here, there = _End(self, protocol_factory()), _End(self, self._listening[address].accept())
        here.peer, there.peer = there, here
        there.protocol.connection_made(there)
        here.protocol.connection_made(here)
        return here, here.protocol


class _Listening(asyncio.AbstractServer):
    """What `create_server` gives."""

    def __init__(
        self, register: dict[Address, "_Listening"], sock: socket.socket, accept: Callable[[], Any]
    ) -> None:
        self.address: Address = sock.getsockname()[:2]
        self.accept = accept
        self._register = register
        self._sock = sock

    def close(self) -> None:
        """Accept no more."""
        self._register.pop(self.address, None)
        self._sock.close()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def is_serving(self) -> bool:
        return self.address in self._register

    async def start_serving(self) -> None:
        """It does from the beginning."""

    async def serve_forever(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def wait_closed(self) -> None:
        """Connections are not waited for."""


class _End(asyncio.Transport):
    """One end of a connection: what is written is read at the other end in the loop's next turn."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.peer = self
        self.protocol = protocol
        self._loop = loop
        self._closing = False  # this end was closed, or is lost
        self._paused = False
        self._kept: list[bytes | None] = []  # came while paused; None is the end

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._loop.call_soon(self.peer.arrive, bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._loop.call_soon(self.peer.arrive, None)  # after all that was written
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
        kept, self._kept = self._kept, []
        for data in kept:
            self._loop.call_soon(self.arrive, data)

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def arrive(self, data: bytes | None) -> None:
        """The other end wrote that; None is the end."""
        if self._closing:
            return
        if self._paused:
            self._kept.append(data)
        elif data is not None:
            self.protocol.data_received(data)
        elif not self.protocol.eof_received():
            self.close()

    def lose(self, error: Exception | None) -> None:
        """The connection is no more."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self.protocol.connection_lost, error)


class Connector(aiohttp.TCPConnector):
    """aiohttp's own pool of connections, on the network inside a `VirtualLoop`."""

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
    """The result of *main* in virtual time; `DeadLockError` where it can never end."""
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
