"""A listening socket that can be closed with all its connections, and reopened on the same port."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# A client in the same event loop may open thousands of connections before the server accepts any.
_BACKLOG: Final = 4096


class Listener(web.Server):
    """aiohttp's low-level server on one port, without aiohttp's router, which would unquote account ids."""

    def __init__(self, handle: Handle, host: str, port: int, keep_alive: float) -> None:
        # Without decompression, compressed bodies are rejected as invalid JSON. With decompression, aiohttp
        # would log each corrupt body.
        super().__init__(handle, access_log=None, keepalive_timeout=keep_alive, auto_decompress=False)
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None  # None if the server does not listen
        self._server: asyncio.Server | None = None
        self._disconnects: dict[RequestHandler, asyncio.Future[None]] = {}

    @property
    def origin(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def open(self) -> None:
        """Start to listen. After `cut_off`, the port stays the same."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        self._port = self._socket.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self, sock=self._socket, backlog=_BACKLOG)

    async def cut_off(self) -> None:
        """Abort all connections, and accept no new ones until `open`."""
        listening, self._socket = self._socket, None
        # If the socket closes in the loop iteration after an accept, asyncio loses that connection: it is
        # neither served nor closed. So stop accepting, wait one iteration, and only then close the socket.
        if listening is not None and self._server is not None:
            with suppress(NotImplementedError):  # some event loops do not support readers
                asyncio.get_running_loop().remove_reader(listening)
            await asyncio.sleep(0)
            self._server.close()
        for handler in self.connections:
            if handler.transport is not None:
                handler.transport.abort()

    async def wait_disconnected(self, request: web.BaseRequest) -> None:
        if request.transport is not None:
            disconnected = asyncio.get_running_loop().create_future()
            self._disconnects[request.protocol] = disconnected
            await disconnected

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self._socket is None:  # accepted in the loop iteration of `cut_off`
            transport.abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        disconnected = self._disconnects.pop(handler, None)
        if disconnected is not None and not disconnected.done():
            disconnected.set_result(None)
