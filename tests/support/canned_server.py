"""
A server in a process of its own that responds to every PATCH with a success.

It does as little as possible, so that benchmarks measure the client. It finds the end of the headers, skips
the body, and sends ``{"object":"AccountPatched","account_id":...}`` without spaces, as JavaScript would.
"""

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Date: Mon, 23 Nov 2026 08:00:00 GMT\r\nServer: canned\r\n\r\n"
)
BODY = b'{"object":"AccountPatched","account_id":"%b"}'


class CannedProtocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            _, _, after_length_name = head.lower().partition(b"\r\ncontent-length:")
            length = int(after_length_name.split(b"\r\n", 1)[0] or 0)
            end_of_request = end + len(b"\r\n\r\n") + length
            if len(self._buffer) < end_of_request:
                return
            self._buffer = self._buffer[end_of_request:]
            path = head.split(b" ", 2)[1]
            body = BODY % path.rsplit(b"/", 1)[1]
            self._transport.write(HEAD % len(body) + body)


def _serve(listening: socket.socket, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop

        new_loop = uvloop.new_event_loop

    async def serve_forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(CannedProtocol, sock=listening, backlog=2048)
        if core is not None:
            # Never let the server sleep. Waking it would cost about 10 us of the client's core, but less for
            # clients that write several requests at once. With a server on another machine, it costs nothing.
            def stay_awake() -> None:
                loop.call_soon(stay_awake)

            stay_awake()
        await server.serve_forever()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve_forever())


@contextmanager
def canned_server(core: int | None) -> Iterator[str]:
    """Run the server in another process and yield its base URL. It only uses *core*, unless that is None."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_serve, args=(listening, core), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            process.terminate()
            process.join()


def two_cores() -> tuple[int, int] | None:
    """Return a core for the client and one for the server, or None if the system does not offer two."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else None
