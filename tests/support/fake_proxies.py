"""HTTP and SOCKS proxies on loopback, and servers that fail like dead proxies."""

import asyncio
import base64
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Credentials: TypeAlias = Collection[tuple[str, str]]
"""Accepted pairs of user name and password. Without any, no credentials are required."""


@asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Handle connections with *handler*, and yield the port. At the end of the block, they are closed."""
    tasks: set[asyncio.Task[object] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
        finally:
            tasks.discard(asyncio.current_task())
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls, backlog=1_000)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        open_tasks = [task for task in tasks if task is not None]
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


# --- Working proxies -----------------------------------------------------------------------------


def http_proxy(accepted: Credentials = (), established: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Handler:
    """Return a proxy for CONNECT, which sends *established* once it has connected to the target."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        tokens = [base64.b64encode(f"{user}:{password}".encode()).decode() for user, password in accepted]
        if tokens and not any(f"Proxy-Authorization: Basic {token}\r\n" in head for token in tokens):
            # Repeat the credentials in the response, because tests check that they are not shown.
            writer.write(f"HTTP/1.1 407 {head.rpartition('Basic ')[2].strip()}\r\n\r\n".encode())
            return
        host, _, port = head.split()[1].rpartition(":")
        await _relay(reader, writer, host.strip("[]"), int(port), established)

    return handle


def socks_proxy(accepted: Credentials = ()) -> Handler:
    """Return a SOCKS 5 proxy (RFC 1928), with user names and passwords if *accepted* has any (RFC 1929)."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        method = 2 if accepted else 0  # user name and password, or no authentication
        writer.write(bytes([5, method if method in methods else 255]))  # 255 means no acceptable method
        if method not in methods:
            return
        if accepted:
            await reader.readexactly(1)
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            are_wrong = (user.decode(), password.decode()) not in accepted
            writer.write(bytes([1, are_wrong]))
            if are_wrong:
                return
        address_type = (await reader.readexactly(4))[3]
        if address_type == 1:  # IPv4; otherwise a host name
            host = socket.inet_ntoa(await reader.readexactly(4))
        else:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        [port] = struct.unpack("!H", await reader.readexactly(2))
        await _relay(reader, writer, host, port, b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")

    return handle


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, established: bytes
) -> None:
    target_reader, target_writer = await asyncio.open_connection(host, port)
    try:
        for byte in established:  # TCP may deliver any number of bytes at once, even a single one
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))
    finally:
        target_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


# --- Servers that fail ---------------------------------------------------------------------------


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read and never respond."""
    await reader.read()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Abort the connection with a TCP reset after the first byte."""
    await reader.read(1)
    no_linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.transport.abort()


def answer(*replies: bytes, close: bool = True) -> Handler:
    """Return a server that sends the next of *replies* when it receives data, and finally closes or waits."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.read(65_536)
            writer.write(reply)
            await writer.drain()
        if not close:
            await reader.read()

    return handle


def web_server(status: str, page: str = "<html>") -> Handler:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n\r\n"
    return answer((head + page).encode())
