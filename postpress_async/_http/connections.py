"""aiohttp's connector with fixes, and the check before a connection is reused."""

import asyncio
import select
import socket
import ssl
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeGuard

import aiohttp
from aiohttp.client_proto import ResponseHandler

_READ_SIZE: Final = 32 * 1024
"""Bytes read at once. Parsing 256 KiB of 1xx responses would block the event loop for 120 ms."""

_END_OF_HEAD: Final = b"\r\n\r\n"

_NEW_SOCKETS: ContextVar[list[socket.socket]] = ContextVar("_NEW_SOCKETS")
"""Sockets of the connection that is being opened; all tasks of the attempt share the list."""


class Connector(aiohttp.TCPConnector):
    """A connector with aiohttp's defaults, but for what its comments say."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        # No limit: the session's pace limits concurrency, and could not see the delays of a second limit.
        super().__init__(limit=0, ssl=tls or True, socket_factory=_make_socket)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = partial(protocol, loop=self._loop)

    async def _wrap_create_connection(
        self, *args: Any, **options: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        """
        Open a connection, and leave no socket behind if that fails.

        If a connection fails or is cancelled before it has a transport, uvloop closes the descriptor but
        not the socket object. When that object is garbage-collected, it closes the descriptor again, which
        may by then be the connection of another call (MagicStack/uvloop#738).
        """
        new_sockets: list[socket.socket] = []
        token = _NEW_SOCKETS.set(new_sockets)
        try:
            transport, protocol = await super()._wrap_create_connection(*args, **options)
            _limit_read_size(transport)
            return transport, protocol
        except BaseException:
            # Sockets that uvloop never received are closed by now. asyncio's transports close their own.
            if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
                for new_socket in new_sockets:
                    new_socket.detach()
            raise
        finally:
            _NEW_SOCKETS.reset(token)


class _Protocol(ResponseHandler):
    """Parses the head of a response before its body."""

    def data_received(self, data: bytes) -> None:
        # If the head arrives together with a malformed body, aiohttp discards both. Only error responses are
        # classified by their head, so a success is parsed at once.
        if not data.startswith(b"HTTP/1.1 200") and (end := data.find(_END_OF_HEAD)) > 0:
            head, data = data[: end + len(_END_OF_HEAD)], data[end + len(_END_OF_HEAD) :]
            super().data_received(head)
            if not data:
                return
        super().data_received(data)


def _limit_read_size(transport: asyncio.Transport) -> None:
    """
    Reduce the buffer that asyncio allocates for each read, which is 256 KiB by default.

    For large buffers, the C library may request memory from the system and return it: three system calls for
    a response of a hundred bytes. uvloop allocates differently.
    """
    tls_protocol: Any = getattr(transport, "_ssl_protocol", None)
    readers: tuple[Any, ...] = (transport, tls_protocol)
    for reader in readers:
        if hasattr(reader, "max_size"):
            reader.max_size = _READ_SIZE


def _make_socket(address_info: tuple[Any, ...]) -> socket.socket:
    new_socket = socket.socket(*address_info[:3])
    # A hint: the kernel may choose another size.
    new_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_SIZE)
    _NEW_SOCKETS.get().append(new_socket)
    return new_socket


# --- Before a connection is reused ---------------------------------------------------------------


class UnusableConnectionError(aiohttp.ClientConnectionError):
    """The connection closed, or received data, before the request. No byte of the request was written."""


def is_reusable(protocol: ResponseHandler | None) -> TypeGuard[ResponseHandler]:
    """
    Whether an idle connection is open and nothing has arrived on it since the last response.

    aiohttp would treat such data as the response to the next request. It may be a late response to another
    account's request, or injected.
    """
    return (
        protocol is not None
        and (transport := protocol.transport) is not None
        and not transport.is_closing()
        and not protocol.should_close
        and not has_unread_data(transport)
    )


async def check_idle(protocol: ResponseHandler | None) -> ResponseHandler:
    """
    Let the event loop read from a connection that is not `is_reusable`, and return it if it is usable then.

    With TLS, the unread data may be a session ticket. Raises `UnusableConnectionError` otherwise.
    """
    transport = None if protocol is None else protocol.transport
    is_plain = transport is not None and transport.get_extra_info("ssl_object") is None
    if protocol is None or (is_plain and has_unread_data(transport)):
        raise UnusableConnectionError  # the start of a line would become the start of the next response
    # The loop reads in its next iteration, after the tasks that are due.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if protocol.should_close or not protocol.is_connected():
        raise UnusableConnectionError
    return protocol


def has_unread_data(transport: asyncio.BaseTransport | None) -> bool:
    """Whether data, or the end of the connection, has arrived but was not read by the event loop yet."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return False
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
