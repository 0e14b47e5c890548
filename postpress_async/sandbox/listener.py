"""The listening socket and the connections behind it: opened, cut off, opened again on the same port."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# A client may open thousands of connections in one turn of a loop that it shares with the server.
_BACKLOG: Final = 4096


class Listener(web.Server):
    """
    aiohttp's low-level server on one port.

    One path needs no router, and aiohttp's would unquote the account id.

    Args:
        keep_alive: Seconds after which an idle connection is closed.
    """

    def __init__(self, handle: Handle, host: str, port: int, keep_alive: float) -> None:
        # Compressed bodies stay as they come, no JSON: aiohttp would log each one that it cannot read.
        super().__init__(handle, access_log=None, keepalive_timeout=keep_alive, auto_decompress=False)
        self._runner = web.ServerRunner(self, handle_signals=False, shutdown_timeout=0.1)
        self._host = host
        self._port = port
        self._open = False
        self._socket: socket.socket | None = None
        self._hung: dict[RequestHandler, asyncio.Future[None]] = {}

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:PORT``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def open(self) -> None:
        """Listen, on the same port as the last time."""
        if self._runner.server is None:
            await self._runner.setup()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        self._port = self._socket.getsockname()[1]
        self._open = True
        await web.SockSite(self._runner, self._socket, backlog=_BACKLOG).start()

    async def cut_off(self) -> None:
        """Abort all connections and accept none until `open`."""
        self._open = False
        # asyncio loses a connection for good, neither served nor closed, if the socket is closed between
        # its accept and the turn after: so accept no more, let a turn pass, and close then.
        if self._socket is not None:
            with suppress(NotImplementedError):  # a loop without readers
                asyncio.get_running_loop().remove_reader(self._socket)
            await asyncio.sleep(0)
            self._socket = None
        for site in self._runner.sites:
            await site.stop()
        for handler in self.connections:
            if handler.transport is not None:
                handler.transport.abort()

    async def aclose(self) -> None:
        """Cut off, for good."""
        await self.cut_off()
        await self._runner.cleanup()

    async def gone(self, request: web.BaseRequest) -> None:
        """Wait until the request's client has hung up."""
        if request.transport is not None:
            self._hung[request.protocol] = hung = asyncio.get_running_loop().create_future()
            await hung

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Called by aiohttp."""
        super().connection_made(handler, transport)
        if not self._open:  # accepted in the very turn in which `cut_off` was called
            transport.abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Called by aiohttp."""
        super().connection_lost(handler, exc)
        hung = self._hung.pop(handler, None)
        if hung is not None and not hung.done():
            hung.set_result(None)
