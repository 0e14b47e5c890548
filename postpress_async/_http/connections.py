"""The connector, which is aiohttp's with fixes, and the check before a connection is reused."""

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
"""Maximum bytes per read. Parsing 256 KiB of 1xx responses would block the event loop for 120 ms."""

_END_OF_HEAD: Final = b"\r\n\r\n"

_NEW_SOCKETS: ContextVar[list[socket.socket]] = ContextVar("_NEW_SOCKETS")
"""
Sockets that were made for the connection that is being opened.

If a host has several addresses, aiohttp tries them in parallel tasks. They share the list.
"""


class Connector(aiohttp.TCPConnector):
    """aiohttp's connector without a connection limit, with smaller reads and a fix for uvloop."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        # The session's pace limits concurrency. It could not see the delays that a limit here would cause.
        super().__init__(limit=0, ssl=tls or True, socket_factory=_make_socket)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = partial(protocol, loop=self._loop)

    async def _wrap_create_connection(
        self, *args: Any, **options: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        """
        Open a connection, and leave no socket behind if that fails.

        If opening fails or is cancelled, uvloop closes the file descriptor but not the socket object. When
        that object is garbage-collected, it closes the descriptor again, which may by then belong to the
        connection of another call (MagicStack/uvloop#738).
        """
        new_sockets: list[socket.socket] = []
        token = _NEW_SOCKETS.set(new_sockets)
        try:
            transport, protocol = await super()._wrap_create_connection(*args, **options)
            _limit_read_size(transport)
            return transport, protocol
        except BaseException:
            # asyncio closes its socket objects. With uvloop, detach each object from the descriptor, which
            # uvloop closes. If uvloop has not received a socket, the socket is closed already.
            if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
                for new_socket in new_sockets:
                    new_socket.detach()
            raise
        finally:
            _NEW_SOCKETS.reset(token)


class _Protocol(ResponseHandler):
    """Parses the head of an error response before its body."""

    def data_received(self, data: bytes) -> None:
        # If the head arrives together with a malformed body, aiohttp discards both. The head of an error
        # response is enough to classify the error; a success needs its body, so it is parsed in one step.
        if not data.startswith(b"HTTP/1.1 200"):
            head, _, body = data.partition(_END_OF_HEAD)
            if head and body:
                super().data_received(head + _END_OF_HEAD)
                data = body
        super().data_received(data)


def _limit_read_size(transport: asyncio.Transport) -> None:
    """
    Reduce the buffer that asyncio allocates for each read, which is 256 KiB by default.

    The C library may request memory of that size from the system and return it after the read, which makes
    three system calls for a response of a hundred bytes. uvloop has no such buffer.
    """
    tls_protocol: Any = getattr(transport, "_ssl_protocol", None)
    readers: tuple[Any, ...] = (transport, tls_protocol)
    for reader in readers:
        if hasattr(reader, "max_size"):
            reader.max_size = _READ_SIZE


def _make_socket(address_info: tuple[Any, ...]) -> socket.socket:
    new_socket = socket.socket(*address_info[:3])
    # The kernel may choose another size.
    new_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_SIZE)
    _NEW_SOCKETS.get().append(new_socket)
    return new_socket


# --- The check before a connection is reused -----------------------------------------------------


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
    Let the event loop read from a connection that is not `is_reusable`; return it if it is usable afterwards.

    For example, the unread data of a TLS connection may be a session ticket. Raises `UnusableConnectionError`
    if the connection is closed or has received a response.
    """
    transport = None if protocol is None else protocol.transport
    is_plain = transport is not None and transport.get_extra_info("ssl_object") is None
    if protocol is None or (is_plain and has_unread_data(transport)):
        raise UnusableConnectionError  # the data would become part of the next response
    # After the first `sleep`, the event loop has polled the connection; after the second, it has read.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if protocol.should_close or not protocol.is_connected():
        raise UnusableConnectionError
    return protocol


def has_unread_data(transport: asyncio.BaseTransport | None) -> bool:
    """Whether data, or the end of the connection, has arrived that the event loop has not read yet."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return False
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
