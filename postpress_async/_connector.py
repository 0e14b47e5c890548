"""How connections come about, and how one that does not is left behind."""

import asyncio
import socket
import ssl
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

_READ_AT_ONCE: Final = 32 * 1024
"""Bytes that a socket keeps for the event loop. 256 KiB of 1xx answers would take it 120 ms to read."""

_END_OF_HEAD: Final = b"\r\n\r\n"

_MADE: ContextVar[list[socket.socket]] = ContextVar("_MADE")
"""Sockets of the connection that is being made; its tasks see the same list."""


class Connector(aiohttp.TCPConnector):
    """
    As many connections as there are calls: the session's pace is the one limit.

    A second limit here would hold calls back unseen.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(limit=0, ssl=tls or True, socket_factory=_make_socket)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = partial(protocol, loop=self._loop)

    async def _wrap_create_connection(
        self, *args: Any, **options: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        """
        A connection; or none, and then nothing of it.

        uvloop closes a socket that was handed to it and broke, or was cancelled, before its transport was
        there; but the socket object is not told, and closes, when it is collected, whatever has its number
        by then: the connection of another call (MagicStack/uvloop#738).
        """
        made: list[socket.socket] = []
        token = _MADE.set(made)
        try:
            transport, protocol = await super()._wrap_create_connection(*args, **options)
            _read_little_at_once(transport)
            return transport, protocol
        except BaseException:
            # Those that were not handed over are closed by now. asyncio's transports own theirs.
            if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
                for one in made:
                    one.detach()
            raise
        finally:
            _MADE.reset(token)


class _Protocol(ResponseHandler):
    """A connection's protocol that knows the head of an answer before its body can be faulty."""

    def data_received(self, data: bytes) -> None:
        # aiohttp drops a head that came in one piece with a fault of the body. Only an answer that is not a
        # success is classified by its head, so a success is parsed in one go.
        if not data.startswith(b"HTTP/1.1 200") and (end := data.find(_END_OF_HEAD)) > 0:
            head, data = data[: end + len(_END_OF_HEAD)], data[end + len(_END_OF_HEAD) :]
            super().data_received(head)
            if not data:
                return
        super().data_received(data)


def _read_little_at_once(transport: asyncio.Transport) -> None:
    """
    Have asyncio make room for as much as can have arrived, and not for 256 KiB at each read.

    For those the C library may ask the system for memory and give it back, three system calls for an answer
    of a hundred bytes. uvloop has its own way.
    """
    over_tls: Any = getattr(transport, "_ssl_protocol", None)
    readers: tuple[Any, ...] = (transport, over_tls)
    for reader in readers:
        if hasattr(reader, "max_size"):
            reader.max_size = _READ_AT_ONCE


def _make_socket(place: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(*place[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_AT_ONCE)  # a hint, no promise
    _MADE.get().append(made)
    return made
