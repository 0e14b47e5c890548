"""
A server on loopback with named protocol faults.

It uses plain streams, because HTTP libraries refuse to send most of these faults. It runs in its own thread,
so that its CPU time does not count as the client's. `FAULTS` is the catalogue, and `FaultServer.play` selects
the fault of the next requests. Without a fault, requests get a valid response.
"""

import asyncio
import json
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Self, TypeVar

from attrs import define, frozen

T = TypeVar("T")

SCALE = 20_000  # lines in a flood, more than a client should process


@frozen
class Seen:
    """A received request."""

    head: bytes
    body: bytes

    @property
    def account_id(self) -> str:
        return self.head.split(b" ", 2)[1].split(b"?")[0].rsplit(b"/", 1)[-1].decode()

    def header(self, name: str) -> str | None:
        """The value of the first header *name*; None without such a header."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


@define
class Wire:
    """A connection, as faults use it; *account_id* is that of the current request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    account_id: str = ""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def flood(self, data: bytes) -> None:
        """Send *data* repeatedly until the client disconnects."""
        while True:
            await self.send(data)
            await asyncio.sleep(0)

    async def drip(self, data: bytes, seconds: float = 0.02) -> None:
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(seconds)

    async def silence(self) -> None:
        """Send nothing until the client disconnects."""
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """Close the connection with a RST instead of a FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Play = Callable[[Wire], Awaitable[None]]


@frozen
class Fault:
    """
    A fault of the server.

    Attributes:
        before: Called when a connection is accepted, instead of reading a request.
        instead: Called instead of sending a valid response.
        after: Called by `FaultServer.push`, after a valid response.
    """

    before: Play | None = None
    instead: Play | None = None
    after: Play | None = None


# --- Responses -----------------------------------------------------------------------------------


def patched(account_id: str) -> bytes:
    return json.dumps({"object": "AccountPatched", "account_id": account_id}).encode()


def envelope(type_: str, status: int, **more: Any) -> bytes:
    return json.dumps({"type": f"errors/{type_}", "title": "A title", "status": status, **more}).encode()


def answer(status: int | str, body: bytes, *lines: bytes, length: object = None) -> bytes:
    """A complete response; *length* replaces the true Content-Length."""
    count = str(len(body) if length is None else length).encode()
    head = [f"HTTP/1.1 {status} X".encode(), b"Content-Type: application/json", b"Content-Length: " + count]
    return b"\r\n".join([*head, *lines, b"", b""]) + body


def proper(account_id: str) -> bytes:
    return answer(200, patched(account_id))


def bare(head: bytes, body: bytes = b"") -> bytes:
    return head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body


def chunked(body: bytes, *lines: bytes, status: int = 200) -> bytes:
    head = [b"HTTP/1.1 %d X" % status, b"Transfer-Encoding: chunked", *lines, b"", b""]
    return b"\r\n".join(head) + body


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def says(write: Callable[[bytes], bytes]) -> Fault:
    """A fault that sends what *write* makes of a valid body, and keeps the connection open."""

    async def play(wire: Wire) -> None:
        await wire.send(write(patched(wire.account_id)))

    return Fault(instead=play)


def closes(write: Callable[[bytes], bytes]) -> Fault:
    """A fault that sends what *write* makes of a valid body, and closes the connection."""

    async def play(wire: Wire) -> None:
        await wire.send(write(patched(wire.account_id)))
        wire.close()

    return Fault(instead=play)


def body_of(body: bytes | Callable[[bytes], bytes], status: int = 200, *lines: bytes) -> Fault:
    """A fault only in the body."""
    return says(lambda true: answer(status, body(true) if callable(body) else body, *lines))


def headers(*lines: bytes, status: int = 200) -> Fault:
    """A valid response with these additional headers."""
    return says(lambda true: answer(status, true, *lines))


def status_line(line: bytes) -> Fault:
    return says(lambda true: line + b"\r\nContent-Length: %d\r\n\r\n" % len(true) + true)


def retry_after(*values: bytes) -> Fault:
    body = envelope("service_unavailable", 503)
    return body_of(body, 503, *(b"Retry-After:" + value for value in values))


# --- Faults with their own behaviour -----------------------------------------------------------------


async def _reset(wire: Wire) -> None:
    wire.reset()


async def _close(wire: Wire) -> None:
    wire.close()


async def _silence(wire: Wire) -> None:
    await wire.silence()


async def _half_open(wire: Wire) -> None:
    wire.writer.write_eof()
    await wire.silence()


async def _greeting(wire: Wire) -> None:
    """A response before the request, with the right account id."""
    await wire.send(proper("acc_bad"))
    await wire.silence()


async def _garbage_greeting(wire: Wire) -> None:
    await wire.send(b"220 mail.example.com ESMTP\r\n")
    await wire.silence()


async def _unasked_answer(wire: Wire) -> None:
    await wire.send(proper("acc_next"))


async def _unasked_refusal(wire: Wire) -> None:
    await wire.send(answer(404, envelope("resource_not_found", 404)))


async def _unasked_408(wire: Wire) -> None:
    await wire.send(answer(408, b"", b"Connection: close"))
    wire.close()


async def _unasked_garbage(wire: Wire) -> None:
    await wire.send(b"\x00\xff garbage")


async def _unasked_half(wire: Wire) -> None:
    await wire.send(proper("acc_next")[:40])


async def _bad_chunk(wire: Wire) -> None:
    await asyncio.sleep(0.01)  # so that the client reads the next chunk separately
    await wire.send(b"zz\r\n")


async def _trailers(wire: Wire) -> None:
    await asyncio.sleep(0.01)
    await wire.flood(b"X-T: a\r\n" * 5_000)


def sends_then(write: Callable[[bytes], bytes], then: Play) -> Fault:
    async def play(wire: Wire) -> None:
        await wire.send(write(patched(wire.account_id)))
        await then(wire)

    return Fault(instead=play)


def floods(write: Callable[[bytes], bytes], more: bytes) -> Fault:
    async def play(wire: Wire) -> None:
        await wire.send(write(patched(wire.account_id)))
        await wire.flood(more)

    return Fault(instead=play)


def drips(write: Callable[[bytes], bytes]) -> Fault:
    async def play(wire: Wire) -> None:
        await wire.drip(write(patched(wire.account_id)))

    return Fault(instead=play)


# 64 MiB of zeros, compressed with deflate twice: the first time takes half a second.
_DEFLATE_TWICE = bytes.fromhex(
    "eddc3d6a42511485d12b2a88017f0a2b1b876123d114a92db416076069ad10d26712a953056ced328398ce01040b09a9c427"
    "be61dcb3d6107679387cbffb4a25a5b47dbb7e9c1acd04000000646efbf352bd1f03d2a0f87e9ece01000080dc2ddbad5a79"
    "14b82cfa137300000040f65e47c34ef92170deac6ae600000080ecf5fe8fe3f216f0557c7667f600000080ec1d0403000000"
    "2014c1000000008845300000000062110c000000806004030000002016c1000000008845300000000062110c000000806004"
    "030000002016c10000000088e57d341cdc1f033a7fc5faf1a99e0000008864f77003"
)
_DEFLATE = zlib.decompress(_DEFLATE_TWICE, wbits=-15)
_GZIP = b"\x1f\x8b\x08\0\0\0\0\0\2\3" + _DEFLATE + bytes.fromhex("ed30ebb200000004")  # CRC and length
_ZLIB = b"\x78\xda" + _DEFLATE + bytes.fromhex("3c000001")

# 64 MiB of zeros, compressed with brotli.
_BROTLI = bytes.fromhex(
    "cbffff3ff82700e2b14020f7fe8fffff7ff04f00c4611180eefd1fffffffe09f0088c30200ddfb3ffeffffc13f0110870500"
    "baf77ffcffff837f02200e0b0074effff8ffff07ff04401c1600e8defff1ffff0ffe0980382c00d0bdffe3ffff1ffc130071"
    "5800a07bff37"
)


def _packed(coding: bytes, body: bytes) -> Fault:
    return says(lambda _: answer(200, body, b"Content-Encoding: " + coding))


_BIG = b"a" * 65536
_OK = b"HTTP/1.1 200 OK\n"
_LONG_NUMBER = b"9" * 20_000


CONNECTIONS: dict[str, Fault] = {
    "reset before the request": Fault(before=_reset),
    "closed before the request": Fault(before=_close),
    "silent accept": Fault(before=_silence),
    "an answer before the request": Fault(before=_greeting),
    "another protocol's greeting": Fault(before=_garbage_greeting),
    "reset after the request": Fault(instead=_reset),
    "closed after the request": Fault(instead=_close),
    "silence after the request": Fault(instead=_silence),
    "half-open": Fault(instead=_half_open),
    "closed in the status line": closes(lambda _: b"HTTP/1.1 20"),
    "closed in a header": closes(lambda _: bare(_OK + b"Content-Le")[:-4]),
    "closed after the headers": closes(lambda true: answer(200, b"", length=len(true))),
    "closed in the body": closes(lambda true: answer(200, true[:-5], length=len(true))),
    "closed in an error's body": closes(lambda true: answer(502, true[:-5], length=len(true))),
    "reset in the headers": sends_then(lambda _: b"HTTP/1.1 200 OK\r\nContent-", _reset),
    "reset in the body": sends_then(lambda true: answer(200, true[:-5], length=len(true)), _reset),
    "silence in the headers": sends_then(lambda _: b"HTTP/1.1 200 OK\r\nContent-", _silence),
    "silence in the body": sends_then(lambda true: answer(200, true[:-5], length=len(true)), _silence),
    "closed while idle": Fault(after=_close),
    "reset while idle": Fault(after=_reset),
    "an unasked answer while idle": Fault(after=_unasked_answer),
    "an unasked refusal while idle": Fault(after=_unasked_refusal),
    "an unasked 408 while idle": Fault(after=_unasked_408),
    "unasked garbage while idle": Fault(after=_unasked_garbage),
    "half an unasked answer while idle": Fault(after=_unasked_half),
}

FRAMING: dict[str, Fault] = {
    "length too long": sends_then(lambda true: answer(200, true, length=len(true) + 9), _silence),
    "length too long, then closed": closes(lambda true: answer(200, true, length=len(true) + 9)),
    "length too short": says(lambda true: answer(200, true, length=len(true) - 9)),
    "length zero": says(lambda true: answer(200, true, length=0)),
    "length negative": says(lambda true: answer(200, true, length=-1)),
    "length with a plus": says(lambda true: answer(200, true, length=f"+{len(true)}")),
    "length in hexadecimal": says(lambda true: answer(200, true, length=hex(len(true)))),
    "length with an underscore": says(lambda true: answer(200, true, length="5_1")),
    "length of words": says(lambda true: answer(200, true, length="many")),
    "length empty": says(lambda true: answer(200, true, length="")),
    "length beyond 64 bits": says(lambda true: answer(200, true, length=2**65)),
    "length of 5,000 digits": says(lambda true: answer(200, true, length="9" * 5000)),
    "two lengths that differ": headers(b"Content-Length: 9"),
    "two lengths that agree": says(lambda true: answer(200, true, b"Content-Length: %d" % len(true))),
    "a list of lengths": says(lambda true: answer(200, true, length=f"{len(true)}, {len(true)}")),
    "length and chunks": says(
        lambda true: answer(200, chunk(true) + b"0\r\n\r\n", b"Transfer-Encoding: chunked", length=5)
    ),
    "chunks, as they should be": says(lambda true: chunked(chunk(true[:9]) + chunk(true[9:]) + b"0\r\n\r\n")),
    "a chunk's size that is no number": says(lambda true: chunked(b"zz\r\n" + true + b"\r\n0\r\n\r\n")),
    "a chunk's size that is negative": says(lambda true: chunked(b"-5\r\n" + true + b"\r\n0\r\n\r\n")),
    "a chunk's size beyond 64 bits": says(lambda true: chunked(b"f" * 17 + b"\r\n" + true)),
    "a chunk longer than its size": says(lambda true: chunked(b"5\r\n" + true + b"\r\n0\r\n\r\n")),
    "a bad chunk after a good one": says(lambda true: chunked(chunk(true[:9]) + b"zz\r\nx\r\n")),
    "a bad chunk, later": sends_then(lambda _: chunked(chunk(b" ")), _bad_chunk),
    "chunks without an end": sends_then(lambda true: chunked(chunk(true)), _silence),
    "chunks cut short": closes(lambda true: chunked(chunk(true))),
    "endless chunks": floods(lambda _: chunked(b""), chunk(_BIG)),
    "endless chunks of one byte": floods(lambda _: chunked(b""), chunk(b" ") * 10_000),
    "an endless chunk's extension": floods(lambda _: chunked(b"1;"), _BIG),
    "endless trailers": floods(lambda true: chunked(chunk(true) + b"0\r\n"), b"X-T: a\r\n" * 5_000),
    "endless trailers, later": sends_then(lambda true: chunked(chunk(true) + b"0\r\n"), _trailers),
    "trailers": says(lambda true: chunked(chunk(true) + b"0\r\nX-T: a\r\n\r\n")),
    "an unknown transfer coding": says(
        lambda true: bare(_OK + b"Transfer-Encoding: magic\nContent-Length: %d" % len(true), true)
    ),
    "chunks packed with gzip": says(
        lambda true: bare(_OK + b"Transfer-Encoding: gzip, chunked", chunk(true) + b"0\r\n\r\n")
    ),
    "garbage after the body": says(lambda true: answer(200, true) + b"garbage"),
    "a line break after the body": says(lambda true: answer(200, true) + b"\r\n"),
    "a second answer after the body": says(lambda true: answer(200, true) + proper("acc_next")),
    "a mebibyte after the body": says(lambda true: answer(200, true) + b"x" * (1 << 20)),
    "HTTP/1.0 with a length": closes(
        lambda true: bare(b"HTTP/1.0 200 OK\nContent-Length: %d" % len(true), true)
    ),
    "HTTP/1.0 with a length, kept open": says(
        lambda true: bare(b"HTTP/1.0 200 OK\nContent-Length: %d" % len(true), true)
    ),
    "HTTP/1.0 without a length": closes(lambda true: bare(b"HTTP/1.0 200 OK", true)),
    "HTTP/1.1 without a length": closes(lambda true: bare(b"HTTP/1.1 200 OK", true)),
    "HTTP/1.1 without a length, cut short": closes(lambda true: bare(b"HTTP/1.1 200 OK", true[:-5])),
    "HTTP/1.1 without a length, kept open": sends_then(lambda true: bare(b"HTTP/1.1 200 OK", true), _silence),
    "HTTP/0.9": closes(lambda true: true),
    "HTTP/2": closes(lambda _: b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)),
    "HTTP/2.0 in the status line": status_line(b"HTTP/2.0 200 OK"),
    "HTTP/9.9 in the status line": status_line(b"HTTP/9.9 200 OK"),
    "ICY in the status line": status_line(b"ICY 200 OK"),
    "no reason": status_line(b"HTTP/1.1 200"),
    "a reason of 100 KiB": status_line(b"HTTP/1.1 200 " + b"a" * 100_000),
    "a reason that is not ASCII": status_line(b"HTTP/1.1 200 \xff\xfe"),
    "line feeds alone": says(lambda true: b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(true) + true),
    "a 100 first": says(lambda true: b"HTTP/1.1 100 Continue\r\n\r\n" + answer(200, true)),
    "a 103 first": says(lambda true: b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + answer(200, true)),
    "a hundred 1xx first": says(lambda true: b"HTTP/1.1 102 P\r\n\r\n" * 100 + answer(200, true)),
    "2,000 1xx first": says(lambda true: b"HTTP/1.1 102 P\r\n\r\n" * 2_000 + answer(200, true)),
    "endless 1xx": floods(lambda _: b"", b"HTTP/1.1 102 P\r\n\r\n" * 5_000),
    "dripping 1xx": drips(lambda _: b"HTTP/1.1 102 P\r\n\r\n" * 100),
    "a 101": sends_then(
        lambda _: bare(b"HTTP/1.1 101 Switching\nUpgrade: websocket\nConnection: upgrade"), _silence
    ),
    "200 headers": headers(*(b"X-%d: a" % n for n in range(200))),
    "20,000 headers": headers(*(b"X-%d: a" % n for n in range(SCALE))),
    "endless headers": floods(lambda _: b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 10_000),
    "a header of 64 KiB": headers(b"X-Big: " + _BIG),
    "an endless header": floods(lambda _: b"HTTP/1.1 200 OK\r\nX-Big: ", _BIG),
    "an endless header's name": floods(lambda _: b"HTTP/1.1 200 OK\r\nX", _BIG),
    "an endless status line": floods(lambda _: b"HTTP/1.1 200 ", _BIG),
    "a folded header": headers(b"X-Folded: a\r\n b"),
    "a NUL in a header": headers(b"X-Nul: a\x00b"),
    "a bare CR in a header": headers(b"X-Cr: a\rb"),
    "a header that is not ASCII": headers(b"X-Odd: \xff\xfe"),
    "a header without a colon": headers(b"nonsense"),
    "a header without a name": headers(b": nonsense"),
    "a space before the colon": headers(b"X-Space : a"),
    "dripping headers": drips(lambda true: answer(200, true)),
}

BODIES: dict[str, Fault] = {
    "1 GiB announced": floods(lambda _: answer(200, b"", length=1 << 30), _BIG),
    "1 GiB announced with an error": floods(lambda _: answer(503, b"", length=1 << 30), _BIG),
    "1 GiB announced and not sent": sends_then(lambda _: answer(200, b"{", length=1 << 30), _silence),
    "an endless body": floods(lambda _: bare(b"HTTP/1.1 200 OK"), _BIG),
    "256 KiB exactly": body_of(lambda true: true + b" " * (256 * 1024 - len(true))),
    "256 KiB and a byte": body_of(lambda true: true + b" " * (256 * 1024 + 1 - len(true))),
    "300 KiB with an error": body_of(b" " * 300_000, 503),
    "a 401 cut short": closes(lambda _: answer(401, b'{"type": "err', length=99)),
    "a 401 whose connection is reset": sends_then(lambda _: answer(401, b"{", length=99), _reset),
    "a 401 whose body never comes": sends_then(lambda _: answer(401, b"", length=99), _silence),
    "a 401 whose body drips": sends_then(
        lambda _: answer(401, b"", length=99), lambda wire: wire.drip(b"x" * 50)
    ),
    "a 401 with endless chunks": floods(lambda _: chunked(b"", status=401), chunk(_BIG)),
    "a 401 with a bad chunk": says(lambda _: chunked(b"zz\r\nx\r\n", status=401)),
    "a 401 with a bad chunk, later": sends_then(lambda _: chunked(chunk(b" "), status=401), _bad_chunk),
    "a 401 with a chunk longer than its size": says(lambda _: chunked(b"1\r\nxyz\r\n", status=401)),
    "a 401 with garbage after the body": says(lambda _: answer(401, b"") + b"garbage"),
    "a 401 that is not UTF-8": body_of(b'{"type": "errors/wrong_account\xff"}', 401),
    "a 401 said to be gzip, and is not": body_of(b"{}", 401, b"Content-Encoding: gzip"),
    "a 429 cut short": closes(lambda _: answer(429, b"", b"Retry-After: 1", length=99)),
    "a body that drips": sends_then(
        lambda true: answer(200, b"", length=len(true)), lambda w: w.drip(b"x" * 50)
    ),
    "a gzip bomb": _packed(b"gzip", _GZIP),
    "a deflate bomb": _packed(b"deflate", _ZLIB),
    "a brotli bomb": _packed(b"br", _BROTLI),
    "an invalid zstd body": _packed(b"zstd", b"\x28\xb5\x2f\xfd" + bytes(100)),
    "gzip twice": _packed(b"gzip, gzip", zlib.compress(_GZIP, wbits=31)),
    "said to be gzip, and is not": headers(b"Content-Encoding: gzip"),
    "charset punycode": body_of(
        lambda true: true[:-1] + b', "x": "' + b"a-" * 125_000 + b'"}',
        200,
        b"Content-Type: application/json; charset=punycode",
    ),
    "charset idna": headers(b"Content-Type: application/json; charset=idna"),
    "charset unknown": headers(b"Content-Type: application/json; charset=klingon"),
    "UTF-16": body_of(lambda true: true.decode().encode("utf-16"), 200),
    "UTF-16 that says so": body_of(
        lambda true: true.decode().encode("utf-16"), 200, b"Content-Type: application/json; charset=utf-16"
    ),
    "UTF-7": body_of(lambda true: true.replace(b"{", b"+AHs-"), 200),
    "a byte-order mark": body_of(lambda true: b"\xef\xbb\xbf" + true),
    "not UTF-8": body_of(lambda true: true[:-1] + b', "x": "\xff"}'),
    "100,000 lists deep": body_of(
        lambda true: true[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ),
    "40,000 objects deep": body_of(b'{"a":' * 40_000),
    "20,000 digits": body_of(lambda true: true[:-1] + b', "x": ' + _LONG_NUMBER + b"}"),
    "250,000 digits": body_of(lambda true: true[:-1] + b', "x": ' + b"9" * 250_000 + b"}"),
    "20,000 digits after a point": body_of(lambda true: true[:-1] + b', "x": 0.' + _LONG_NUMBER + b"}"),
    "a float out of range": body_of(lambda true: true[:-1] + b', "x": 1e999}'),
    "NaN": body_of(lambda true: true[:-1] + b', "x": NaN}'),
    "a name twice": body_of(lambda true: true[:-1] + b', "object": "AccountPatched"}'),
    "60,000 numbers": body_of(lambda true: true[:-1] + b', "x": [' + b"1," * 60_000 + b"1]}"),
    "20,000 names": body_of(lambda true: true[:-1] + b"".join(b',"%d":1' % n for n in range(SCALE)) + b"}"),
    "a wrong content type": body_of(lambda true: true, 200, b"Content-Type: image/png"),
    "a list": body_of(lambda true: b"[" + true + b"]"),
    "text": body_of(b'"AccountPatched"'),
    "HTML": body_of(b"<html><body>Welcome to the WiFi</body></html>", 200, b"Content-Type: text/html"),
    "HTML with a 503": body_of(b"<html><h1>503</h1></html>", 503, b"Content-Type: text/html"),
    "empty": body_of(b""),
    "white space": body_of(b" \r\n\t "),
    "cut in JSON": body_of(lambda true: true[:-5]),
    "twice": body_of(lambda true: true + true),
}

MEANING: dict[str, Fault] = {
    "another object": body_of(lambda true: true.replace(b"AccountPatched", b"Account")),
    "another account": body_of(patched("acc_other")),
    "no account": body_of(b'{"object": "AccountPatched"}'),
    "no object": body_of(lambda true: true.replace(b"object", b"objekt")),
    "an error's envelope with a 200": body_of(envelope("proxy_error", 502)),
    "a success's body with a 502": body_of(lambda true: true, 502),
    "an unknown type": body_of(envelope("brand_new", 400), 400),
    "an unknown type with a 503": body_of(envelope("brand_new", 503), 503),
    "a type under another status": body_of(envelope("proxy_error", 502), 500),
    "a type that passes under a 400": body_of(envelope("service_unavailable", 503), 400),
    "a status in the envelope that disagrees": body_of(envelope("proxy_error", 200), 502),
    "an envelope without a title": body_of(b'{"type": "errors/proxy_error"}', 502),
    "an envelope without a type": body_of(b'{"title": "x", "status": 502}', 502),
    "the other envelope": body_of(b'{"error": {"code": "provider_error", "message": "m"}}', 500),
    "the other envelope's own code": body_of(b'{"error": {"code": "key_missing"}}', 401),
    "both envelopes": body_of(
        b'{"type": "errors/proxy_error", "error": {"code": "resource_not_found"}}', 502
    ),
    "another request's detail, of 200 KiB": body_of(envelope("proxy_error", 502, detail="x" * 200_000), 502),
    "terminal escapes in the detail": body_of(envelope("proxy_error", 502, detail="\x1b[2J\r\nroot#"), 502),
    "a 201": body_of(lambda true: true, 201),
    "a 202": body_of(lambda true: true, 202),
    "a 204": says(lambda _: b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a 204 with a body": body_of(lambda true: true, 204),
    "a 205": body_of(b"", 205),
    "a 206": body_of(lambda true: true, 206, b"Content-Range: bytes 0-50/51"),
    "a 401 that wants Basic": body_of(b"", 401, b"WWW-Authenticate: Basic realm=x"),
    "a 407": body_of(b"", 407, b"Proxy-Authenticate: Basic realm=x"),
    "a 408": body_of(b"", 408),
    "a 413": body_of(b"", 413),
    "a 417": body_of(b"", 417),
    "a 418": body_of(b"", 418),
    "a 421": body_of(b"", 421),
    "a 425": body_of(b"", 425),
    "a 426": body_of(b"", 426, b"Upgrade: h2c"),
    "a 429": body_of(b"", 429),
    "a 501": body_of(b"", 501),
    "a 504": body_of(b"", 504),
    "a 511": body_of(b"<html>log in</html>", 511),
    "a 599": body_of(b"", 599),
    "a 600": body_of(lambda true: true, 600),
    "a 999": body_of(lambda true: true, 999),
    "a status of two digits": status_line(b"HTTP/1.1 20 OK"),
    "a status of four digits": status_line(b"HTTP/1.1 2000 OK"),
    "a status of 0": status_line(b"HTTP/1.1 000 OK"),
    "a status below 100": status_line(b"HTTP/1.1 042 OK"),
    "a status that is negative": status_line(b"HTTP/1.1 -200 OK"),
    "a status of words": status_line(b"HTTP/1.1 OK OK"),
}

COOKIES: dict[str, Fault] = {
    "a cookie": headers(b"Set-Cookie: sid=1; Path=/"),
    "a hundred cookies": headers(*(b"Set-Cookie: c%d=%s; Path=/" % (n, b"a" * 1000) for n in range(100))),
    "an invalid cookie": headers(b'Set-Cookie: ="; ;;; \xff'),
    "cookies that are slow to read": headers(*(b"Set-Cookie: " + b'a="\\' * 2000 for _ in range(100))),
    "a cookie with an error": headers(b"Set-Cookie: sid=1; Path=/", status=503),
}

RETRY_AFTERS: dict[str, Fault] = {
    f"Retry-After: {name}": retry_after(*values)
    for name, values in {
        "0": [b" 0"],
        "1": [b" 1"],
        "120": [b" 120"],
        "121": [b" 121"],
        "negative": [b" -1"],
        "a fraction": [b" 1.5"],
        "an exponent": [b" 1e3"],
        "NaN": [b" nan"],
        "infinity": [b" inf"],
        "5,000 digits": [b" " + b"9" * 5000],
        "Arabic digits": [" ٣".encode()],
        "hexadecimal": [b" 0x10"],
        "empty": [b""],
        "a word": [b" soon"],
        "a unit": [b" 5s"],
        "a date in the past": [b" Sun, 06 Nov 1994 08:49:37 GMT"],
        "a date far ahead": [b" Fri, 31 Dec 9999 23:59:59 GMT"],
        "a date of RFC 850": [b" Sunday, 06-Nov-94 08:49:37 GMT"],
        "a date of asctime": [b" Sun Nov  6 08:49:37 1994"],
        "an impossible day": [b" Mon, 31 Feb 2025 08:49:37 GMT"],
        "another zone": [b" Sun, 06 Nov 1994 08:49:37 CEST"],
        "two that agree": [b" 1", b" 1"],
        "two that differ": [b" 1", b" 100"],
        "a list": [b" 1, 100"],
        "8 KiB of blanks": [b" " * 8000 + b"1"],
    }.items()
}

FAULTS = {**CONNECTIONS, **FRAMING, **BODIES, **MEANING, **COOKIES, **RETRY_AFTERS}
"""All faults that need neither a second server nor a certificate, by name."""

REDIRECTS = {
    f"a {status} {name}": (status, where)
    for status in (300, 301, 302, 303, 304, 305, 307, 308)
    for name, where in {
        "elsewhere": "http://127.0.0.1:{trap}/v1/accounts/acc_bad",
    }.items()
} | {
    "a 307 without a place": (307, ""),
    "a 307 to itself": (307, "http://127.0.0.1:{home}/v1/accounts/acc_bad"),
    "a 307 to another account": (307, "/v1/accounts/acc_next"),
    "a 307 with a user name": (307, "http://u:p@127.0.0.1:{trap}/"),
    "a 307 without a scheme": (307, "//127.0.0.1:{trap}/"),
    "a 307 to a file": (307, "file:///etc/passwd"),
    "a 307 to no URL": (307, "http://[::1"),
    "a refresh": (200, "http://127.0.0.1:{trap}/"),
}
"""Status and Location; *trap* is the port of a server that must get no request."""


# --- The server -----------------------------------------------------------------------------------


class FaultServer:
    """
    A server with faults on a free port of loopback, in its own thread.

    Attributes:
        seen: All complete requests, oldest first.
        connections: Number of accepted connections.
        tls: TLS context of new connections, or None. `Fault.before` is called before the handshake.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, listening: bool = True) -> None:
        self.seen: list[Seen] = []
        self.secure = tls is not None
        self.connections = 0
        self.tls = tls
        self._server: asyncio.Server | None = None
        self._pending: tuple[Play, Wire] | None = None
        self._always: Fault | None = None
        self._scripts: dict[str, list[Fault]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._listening = listening
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault server", daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://localhost:{self.port}/v1"

    def play(self, fault: Fault | None) -> None:
        """Use *fault* for all requests from now on; None means valid responses."""
        self._always = fault

    def script(self, account_id: str, faults: Iterable[Fault]) -> None:
        """Use one of *faults* for each of the next requests for *account_id*."""
        self._scripts[account_id] = list(faults)[::-1]

    def count(self) -> Counter[str]:
        """Number of requests by account."""
        return Counter(seen.account_id for seen in self.seen)

    def listen(self) -> None:
        """Accept connections, which are refused before."""
        self._run(self._start())

    def __enter__(self) -> Self:
        self._thread.start()
        if self._listening:
            self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5.0)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket, backlog=512)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        wire = Wire(reader, writer)
        try:
            await self._talk(wire)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _talk(self, wire: Wire) -> None:
        if (fault := self._always) is not None and fault.before is not None:
            await fault.before(wire)
            return
        if self.tls is not None:
            await wire.writer.start_tls(self.tls)
        while True:
            head = await wire.reader.readuntil(b"\r\n\r\n")
            seen = Seen(head[:-4], b"")
            body = await wire.reader.readexactly(int(seen.header("Content-Length") or 0))
            seen = Seen(head[:-4], body)
            self.seen.append(seen)
            wire.account_id = seen.account_id
            fault = self._next(seen.account_id)
            if fault is not None and fault.after is not None:
                self._pending = fault.after, wire  # called by `push`
            if fault is not None and fault.instead is not None:
                await fault.instead(wire)
            else:
                await wire.send(proper(seen.account_id))
            if wire.writer.is_closing():
                return

    def push(self) -> None:
        """Run the *after* of the last fault now."""
        assert self._pending is not None
        (after, wire), self._pending = self._pending, None
        self._run(self._await(after(wire)))

    async def _await(self, work: Awaitable[None]) -> None:
        await work
        await asyncio.sleep(0)  # a transport closes in the next iteration of the loop

    def _next(self, account_id: str) -> Fault | None:
        if self._always is not None:
            return self._always
        script = self._scripts.get(account_id)
        return script.pop() if script else None
