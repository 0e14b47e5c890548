"""
A server on loopback that breaks the HTTP protocol in many ways, each of which has a name in `FAULTS`.

`FaultServer.play` selects the fault of the next requests. Without a fault, requests get a valid response.

The server uses plain streams, because HTTP libraries refuse to send most of these faults. It runs in its own
thread, so that the CPU time of the client's thread can be measured.
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

MANY = 20_000  # headers or JSON names, more than a client should accept


@frozen
class SeenRequest:
    """A received request; *head* has the request line and the headers."""

    head: bytes
    body: bytes

    @property
    def account_id(self) -> str:
        return self.head.split(b" ", 2)[1].split(b"?")[0].rsplit(b"/", 1)[-1].decode()

    def header(self, name: str) -> str | None:
        """Return the value of the first header *name*, or None."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


@define
class Connection:
    """A connection that a fault acts on. *account_id* is that of the last request."""

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

    async def send_slowly(self, data: bytes) -> None:
        """Send one byte every 20 ms."""
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(0.02)

    async def silence(self) -> None:
        """Send nothing until the client disconnects."""
        while await self.reader.read(65536):
            pass

    async def reset(self) -> None:
        """Close the connection with a RST instead of a FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()


Action = Callable[[Connection], Awaitable[None]]


@frozen
class Fault:
    """
    What the server does wrong.

    Attributes:
        on_connect: Called when a connection is accepted, instead of reading a request.
        on_request: Called instead of sending a valid response.
        on_push: Called by `FaultServer.push`, after a valid response.
    """

    on_connect: Action | None = None
    on_request: Action | None = None
    on_push: Action | None = None


# --- Responses -----------------------------------------------------------------------------------


def patched(account_id: str) -> bytes:
    return json.dumps({"object": "AccountPatched", "account_id": account_id}).encode()


def envelope(type_: str, status: int, **more: Any) -> bytes:
    return json.dumps({"type": f"errors/{type_}", "title": "A title", "status": status, **more}).encode()


def response(status: int | str, body: bytes, *lines: bytes, length: object = None) -> bytes:
    """Create a complete response with the additional header *lines*; *length* replaces the Content-Length."""
    content_length = str(len(body) if length is None else length).encode()
    head = [
        f"HTTP/1.1 {status} X".encode(),
        b"Content-Type: application/json",
        b"Content-Length: " + content_length,
    ]
    return b"\r\n".join([*head, *lines, b"", b""]) + body


def valid_response(account_id: str) -> bytes:
    return response(200, patched(account_id))


def raw_response(head: bytes, body: bytes = b"") -> bytes:
    """Create a response with *head*, after replacing its line feeds by CR LF, and with no other headers."""
    return head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body


def chunked(body: bytes, *lines: bytes, status: int = 200) -> bytes:
    head = [b"HTTP/1.1 %d X" % status, b"Transfer-Encoding: chunked", *lines, b"", b""]
    return b"\r\n".join(head) + body


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def sends(make_response: Callable[[bytes], bytes], then: Action | None = None) -> Fault:
    """
    Create a fault that sends a response and then calls *then*. By default, the connection stays open.

    *make_response* is called with a valid body and returns the bytes of the response.
    """

    async def on_request(connection: Connection) -> None:
        await connection.send(make_response(patched(connection.account_id)))
        if then is not None:
            await then(connection)

    return Fault(on_request=on_request)


def sends_and_closes(make_response: Callable[[bytes], bytes]) -> Fault:
    return sends(make_response, Connection.close)


def sends_endlessly(make_response: Callable[[bytes], bytes], more: bytes) -> Fault:
    """Create a fault that sends a response, and then *more* repeatedly."""
    return sends(make_response, lambda connection: connection.flood(more))


def sends_slowly(make_response: Callable[[bytes], bytes]) -> Fault:
    async def on_request(connection: Connection) -> None:
        await connection.send_slowly(make_response(patched(connection.account_id)))

    return Fault(on_request=on_request)


def sends_body(body: bytes | Callable[[bytes], bytes], status: int = 200, *lines: bytes) -> Fault:
    """
    Create a fault that sends *body* with a correct head, which has the additional header *lines*.

    If *body* is a function, it is called with a valid body and returns the body to send.
    """

    def make_response(valid_body: bytes) -> bytes:
        return response(status, body(valid_body) if callable(body) else body, *lines)

    return sends(make_response)


def sends_headers(*lines: bytes, status: int = 200) -> Fault:
    """Create a fault that sends a valid body with these additional headers."""
    return sends(lambda body: response(status, body, *lines))


def sends_status_line(line: bytes) -> Fault:
    return sends(lambda body: line + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def sends_retry_after(*values: bytes) -> Fault:
    body = envelope("service_unavailable", 503)
    return sends_body(body, 503, *(b"Retry-After:" + value for value in values))


# --- Actions of faults ---------------------------------------------------------------------------


async def _half_close(connection: Connection) -> None:
    connection.writer.write_eof()
    await connection.silence()


async def _response_before_the_request(connection: Connection) -> None:
    """Send a response with the account id that the request will have."""
    await connection.send(valid_response("acc_bad"))
    await connection.silence()


async def _smtp_greeting(connection: Connection) -> None:
    await connection.send(b"220 mail.example.com ESMTP\r\n")
    await connection.silence()


async def _unsolicited_response(connection: Connection) -> None:
    await connection.send(valid_response("acc_next"))


async def _unsolicited_404(connection: Connection) -> None:
    await connection.send(response(404, envelope("resource_not_found", 404)))


async def _unsolicited_408(connection: Connection) -> None:
    await connection.send(response(408, b"", b"Connection: close"))
    await connection.close()


async def _garbage(connection: Connection) -> None:
    await connection.send(b"\x00\xff garbage")


async def _half_of_an_unsolicited_response(connection: Connection) -> None:
    await connection.send(valid_response("acc_next")[:40])


async def _invalid_chunk(connection: Connection) -> None:
    await asyncio.sleep(0.01)  # so that the client reads the next chunk separately
    await connection.send(b"zz\r\n")


async def _endless_trailers(connection: Connection) -> None:
    await asyncio.sleep(0.01)
    await connection.flood(b"X-T: a\r\n" * 5_000)


# 64 MiB of zeros, compressed with deflate twice. Decompressing once is faster than compressing 64 MiB here.
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


def _sends_compressed(coding: bytes, body: bytes) -> Fault:
    return sends(lambda _: response(200, body, b"Content-Encoding: " + coding))


_BIG = b"a" * 65536
_OK = b"HTTP/1.1 200 OK\n"
_LONG_NUMBER = b"9" * 20_000


CONNECTIONS: dict[str, Fault] = {
    "reset before the request": Fault(on_connect=Connection.reset),
    "closed before the request": Fault(on_connect=Connection.close),
    "silent connection": Fault(on_connect=Connection.silence),
    "a response before the request": Fault(on_connect=_response_before_the_request),
    "another protocol's greeting": Fault(on_connect=_smtp_greeting),
    "reset after the request": Fault(on_request=Connection.reset),
    "closed after the request": Fault(on_request=Connection.close),
    "silence after the request": Fault(on_request=Connection.silence),
    "half-closed after the request": Fault(on_request=_half_close),
    "closed during the status line": sends_and_closes(lambda _: b"HTTP/1.1 20"),
    "closed during a header": sends_and_closes(lambda _: raw_response(_OK + b"Content-Le")[:-4]),
    "closed after the headers": sends_and_closes(lambda body: response(200, b"", length=len(body))),
    "closed during the body": sends_and_closes(lambda body: response(200, body[:-5], length=len(body))),
    "closed during the body of a 502": sends_and_closes(
        lambda body: response(502, body[:-5], length=len(body))
    ),
    "reset during the headers": sends(lambda _: b"HTTP/1.1 200 OK\r\nContent-", Connection.reset),
    "reset during the body": sends(lambda body: response(200, body[:-5], length=len(body)), Connection.reset),
    "silence during the headers": sends(lambda _: b"HTTP/1.1 200 OK\r\nContent-", Connection.silence),
    "silence during the body": sends(
        lambda body: response(200, body[:-5], length=len(body)), Connection.silence
    ),
    "closed while idle": Fault(on_push=Connection.close),
    "reset while idle": Fault(on_push=Connection.reset),
    "an unsolicited response while idle": Fault(on_push=_unsolicited_response),
    "an unsolicited 404 while idle": Fault(on_push=_unsolicited_404),
    "an unsolicited 408 while idle": Fault(on_push=_unsolicited_408),
    "garbage while idle": Fault(on_push=_garbage),
    "half of an unsolicited response while idle": Fault(on_push=_half_of_an_unsolicited_response),
}

FRAMING: dict[str, Fault] = {
    "length too long": sends(lambda body: response(200, body, length=len(body) + 9), Connection.silence),
    "length too long, then closed": sends_and_closes(lambda body: response(200, body, length=len(body) + 9)),
    "length too short": sends(lambda body: response(200, body, length=len(body) - 9)),
    "zero length": sends(lambda body: response(200, body, length=0)),
    "negative length": sends(lambda body: response(200, body, length=-1)),
    "length with a plus sign": sends(lambda body: response(200, body, length=f"+{len(body)}")),
    "length in hexadecimal": sends(lambda body: response(200, body, length=hex(len(body)))),
    "length with an underscore": sends(lambda body: response(200, body, length="5_1")),
    "length that is a word": sends(lambda body: response(200, body, length="many")),
    "empty length": sends(lambda body: response(200, body, length="")),
    "length beyond 64 bits": sends(lambda body: response(200, body, length=2**65)),
    "length of 5,000 digits": sends(lambda body: response(200, body, length="9" * 5000)),
    "two different lengths": sends_headers(b"Content-Length: 9"),
    "two equal lengths": sends(lambda body: response(200, body, b"Content-Length: %d" % len(body))),
    "a list of lengths": sends(lambda body: response(200, body, length=f"{len(body)}, {len(body)}")),
    "length and chunked encoding": sends(
        lambda body: response(200, chunk(body) + b"0\r\n\r\n", b"Transfer-Encoding: chunked", length=5)
    ),
    "valid chunks": sends(lambda body: chunked(chunk(body[:9]) + chunk(body[9:]) + b"0\r\n\r\n")),
    "a chunk size that is not a number": sends(lambda body: chunked(b"zz\r\n" + body + b"\r\n0\r\n\r\n")),
    "a negative chunk size": sends(lambda body: chunked(b"-5\r\n" + body + b"\r\n0\r\n\r\n")),
    "a chunk size beyond 64 bits": sends(lambda body: chunked(b"f" * 17 + b"\r\n" + body)),
    "a chunk longer than its size": sends(lambda body: chunked(b"5\r\n" + body + b"\r\n0\r\n\r\n")),
    "an invalid chunk after a valid one": sends(lambda body: chunked(chunk(body[:9]) + b"zz\r\nx\r\n")),
    "an invalid chunk, sent separately": sends(lambda _: chunked(chunk(b" ")), _invalid_chunk),
    "chunks without a last one": sends(lambda body: chunked(chunk(body)), Connection.silence),
    "chunks without a last one, then closed": sends_and_closes(lambda body: chunked(chunk(body))),
    "endless chunks": sends_endlessly(lambda _: chunked(b""), chunk(_BIG)),
    "endless chunks of one byte": sends_endlessly(lambda _: chunked(b""), chunk(b" ") * 10_000),
    "an endless chunk extension": sends_endlessly(lambda _: chunked(b"1;"), _BIG),
    "endless trailers": sends_endlessly(lambda body: chunked(chunk(body) + b"0\r\n"), b"X-T: a\r\n" * 5_000),
    "endless trailers, sent separately": sends(
        lambda body: chunked(chunk(body) + b"0\r\n"), _endless_trailers
    ),
    "trailers": sends(lambda body: chunked(chunk(body) + b"0\r\nX-T: a\r\n\r\n")),
    "an unknown transfer coding": sends(
        lambda body: raw_response(_OK + b"Transfer-Encoding: magic\nContent-Length: %d" % len(body), body)
    ),
    "chunks declared as gzip": sends(
        lambda body: raw_response(_OK + b"Transfer-Encoding: gzip, chunked", chunk(body) + b"0\r\n\r\n")
    ),
    "garbage after the body": sends(lambda body: response(200, body) + b"garbage"),
    "a line break after the body": sends(lambda body: response(200, body) + b"\r\n"),
    "a second response after the body": sends(lambda body: response(200, body) + valid_response("acc_next")),
    "1 MiB after the body": sends(lambda body: response(200, body) + b"x" * (1 << 20)),
    "HTTP/1.0 with a length": sends_and_closes(
        lambda body: raw_response(b"HTTP/1.0 200 OK\nContent-Length: %d" % len(body), body)
    ),
    "HTTP/1.0 with a length, kept open": sends(
        lambda body: raw_response(b"HTTP/1.0 200 OK\nContent-Length: %d" % len(body), body)
    ),
    "HTTP/1.0 without a length": sends_and_closes(lambda body: raw_response(b"HTTP/1.0 200 OK", body)),
    "HTTP/1.1 without a length": sends_and_closes(lambda body: raw_response(b"HTTP/1.1 200 OK", body)),
    "HTTP/1.1 without a length, truncated": sends_and_closes(
        lambda body: raw_response(b"HTTP/1.1 200 OK", body[:-5])
    ),
    "HTTP/1.1 without a length, kept open": sends(
        lambda body: raw_response(b"HTTP/1.1 200 OK", body), Connection.silence
    ),
    "HTTP/0.9": sends_and_closes(lambda body: body),
    "HTTP/2": sends_and_closes(lambda _: b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)),
    "HTTP/2.0 in the status line": sends_status_line(b"HTTP/2.0 200 OK"),
    "HTTP/9.9 in the status line": sends_status_line(b"HTTP/9.9 200 OK"),
    "ICY in the status line": sends_status_line(b"ICY 200 OK"),
    "no reason phrase": sends_status_line(b"HTTP/1.1 200"),
    "a reason phrase of 100 KiB": sends_status_line(b"HTTP/1.1 200 " + b"a" * 100_000),
    "a reason phrase that is not ASCII": sends_status_line(b"HTTP/1.1 200 \xff\xfe"),
    "line feeds without carriage returns": sends(
        lambda body: b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(body) + body
    ),
    "a 100 first": sends(lambda body: b"HTTP/1.1 100 Continue\r\n\r\n" + response(200, body)),
    "a 103 first": sends(lambda body: b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + response(200, body)),
    "a hundred 1xx first": sends(lambda body: b"HTTP/1.1 102 P\r\n\r\n" * 100 + response(200, body)),
    "2,000 1xx first": sends(lambda body: b"HTTP/1.1 102 P\r\n\r\n" * 2_000 + response(200, body)),
    "endless 1xx": sends_endlessly(lambda _: b"", b"HTTP/1.1 102 P\r\n\r\n" * 5_000),
    "dripping 1xx": sends_slowly(lambda _: b"HTTP/1.1 102 P\r\n\r\n" * 100),
    "a 101": sends(
        lambda _: raw_response(b"HTTP/1.1 101 Switching\nUpgrade: websocket\nConnection: upgrade"),
        Connection.silence,
    ),
    "200 headers": sends_headers(*(b"X-%d: a" % n for n in range(200))),
    "20,000 headers": sends_headers(*(b"X-%d: a" % n for n in range(MANY))),
    "endless headers": sends_endlessly(lambda _: b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 10_000),
    "a header of 64 KiB": sends_headers(b"X-Big: " + _BIG),
    "an endless header": sends_endlessly(lambda _: b"HTTP/1.1 200 OK\r\nX-Big: ", _BIG),
    "an endless header name": sends_endlessly(lambda _: b"HTTP/1.1 200 OK\r\nX", _BIG),
    "an endless status line": sends_endlessly(lambda _: b"HTTP/1.1 200 ", _BIG),
    "a folded header": sends_headers(b"X-Folded: a\r\n b"),
    "a NUL in a header": sends_headers(b"X-Nul: a\x00b"),
    "a bare CR in a header": sends_headers(b"X-Cr: a\rb"),
    "a header that is not ASCII": sends_headers(b"X-Odd: \xff\xfe"),
    "a header without a colon": sends_headers(b"nonsense"),
    "a header without a name": sends_headers(b": nonsense"),
    "a space before the colon": sends_headers(b"X-Space : a"),
    "dripping headers": sends_slowly(lambda body: response(200, body)),
}

BODIES: dict[str, Fault] = {
    "1 GiB announced and sent": sends_endlessly(lambda _: response(200, b"", length=1 << 30), _BIG),
    "1 GiB announced with an error": sends_endlessly(lambda _: response(503, b"", length=1 << 30), _BIG),
    "1 GiB announced and not sent": sends(lambda _: response(200, b"{", length=1 << 30), Connection.silence),
    "an endless body": sends_endlessly(lambda _: raw_response(b"HTTP/1.1 200 OK"), _BIG),
    "exactly 256 KiB": sends_body(lambda body: body + b" " * (256 * 1024 - len(body))),
    "256 KiB and one byte": sends_body(lambda body: body + b" " * (256 * 1024 + 1 - len(body))),
    "300 KiB with an error": sends_body(b" " * 300_000, 503),
    "a 401 closed during the body": sends_and_closes(lambda _: response(401, b'{"type": "err', length=99)),
    "a 401 reset during the body": sends(lambda _: response(401, b"{", length=99), Connection.reset),
    "a 401 with silence during the body": sends(lambda _: response(401, b"", length=99), Connection.silence),
    "a 401 with a dripping body": sends(
        lambda _: response(401, b"", length=99), lambda connection: connection.send_slowly(b"x" * 50)
    ),
    "a 401 with endless chunks": sends_endlessly(lambda _: chunked(b"", status=401), chunk(_BIG)),
    "a 401 with an invalid chunk": sends(lambda _: chunked(b"zz\r\nx\r\n", status=401)),
    "a 401 with an invalid chunk, sent separately": sends(
        lambda _: chunked(chunk(b" "), status=401), _invalid_chunk
    ),
    "a 401 with a chunk longer than its size": sends(lambda _: chunked(b"1\r\nxyz\r\n", status=401)),
    "a 401 with garbage after the body": sends(lambda _: response(401, b"") + b"garbage"),
    "a 401 that is not UTF-8": sends_body(b'{"type": "errors/wrong_account\xff"}', 401),
    "a 401 declared as gzip": sends_body(b"{}", 401, b"Content-Encoding: gzip"),
    "a 429 closed during the body": sends_and_closes(
        lambda _: response(429, b"", b"Retry-After: 1", length=99)
    ),
    "a dripping body": sends(
        lambda body: response(200, b"", length=len(body)),
        lambda connection: connection.send_slowly(b"x" * 50),
    ),
    "a gzip bomb": _sends_compressed(b"gzip", _GZIP),
    "a deflate bomb": _sends_compressed(b"deflate", _ZLIB),
    "a brotli bomb": _sends_compressed(b"br", _BROTLI),
    "an invalid zstd body": _sends_compressed(b"zstd", b"\x28\xb5\x2f\xfd" + bytes(100)),
    "gzip twice": _sends_compressed(b"gzip, gzip", zlib.compress(_GZIP, wbits=31)),
    "declared as gzip": sends_headers(b"Content-Encoding: gzip"),
    "charset punycode": sends_body(
        lambda body: body[:-1] + b', "x": "' + b"a-" * 125_000 + b'"}',
        200,
        b"Content-Type: application/json; charset=punycode",
    ),
    "charset idna": sends_headers(b"Content-Type: application/json; charset=idna"),
    "an unknown charset": sends_headers(b"Content-Type: application/json; charset=klingon"),
    "UTF-16": sends_body(lambda body: body.decode().encode("utf-16"), 200),
    "declared UTF-16": sends_body(
        lambda body: body.decode().encode("utf-16"),
        200,
        b"Content-Type: application/json; charset=utf-16",
    ),
    "UTF-7": sends_body(lambda body: body.replace(b"{", b"+AHs-"), 200),
    "a byte-order mark": sends_body(lambda body: b"\xef\xbb\xbf" + body),
    "not UTF-8": sends_body(lambda body: body[:-1] + b', "x": "\xff"}'),
    "100,000 nested lists": sends_body(
        lambda body: body[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ),
    "40,000 nested objects": sends_body(b'{"a":' * 40_000),
    "20,000 digits": sends_body(lambda body: body[:-1] + b', "x": ' + _LONG_NUMBER + b"}"),
    "250,000 digits": sends_body(lambda body: body[:-1] + b', "x": ' + b"9" * 250_000 + b"}"),
    "20,000 decimal places": sends_body(lambda body: body[:-1] + b', "x": 0.' + _LONG_NUMBER + b"}"),
    "a float out of range": sends_body(lambda body: body[:-1] + b', "x": 1e999}'),
    "NaN": sends_body(lambda body: body[:-1] + b', "x": NaN}'),
    "a duplicate name": sends_body(lambda body: body[:-1] + b', "object": "AccountPatched"}'),
    "60,000 numbers": sends_body(lambda body: body[:-1] + b', "x": [' + b"1," * 60_000 + b"1]}"),
    "20,000 names": sends_body(lambda body: body[:-1] + b"".join(b',"%d":1' % n for n in range(MANY)) + b"}"),
    "a wrong content type": sends_body(lambda body: body, 200, b"Content-Type: image/png"),
    "a list": sends_body(lambda body: b"[" + body + b"]"),
    "a JSON string": sends_body(b'"AccountPatched"'),
    "HTML": sends_body(b"<html><body>Welcome to the WiFi</body></html>", 200, b"Content-Type: text/html"),
    "HTML with a 503": sends_body(b"<html><h1>503</h1></html>", 503, b"Content-Type: text/html"),
    "an empty body": sends_body(b""),
    "only white space": sends_body(b" \r\n\t "),
    "truncated JSON": sends_body(lambda body: body[:-5]),
    "two JSON objects": sends_body(lambda body: body + body),
}

MEANING: dict[str, Fault] = {
    "another object name": sends_body(lambda body: body.replace(b"AccountPatched", b"Account")),
    "another account": sends_body(patched("acc_other")),
    "no account id": sends_body(b'{"object": "AccountPatched"}'),
    "no object name": sends_body(lambda body: body.replace(b"object", b"objekt")),
    "an error envelope with a 200": sends_body(envelope("proxy_error", 502)),
    "a success body with a 502": sends_body(lambda body: body, 502),
    "an unknown type": sends_body(envelope("brand_new", 400), 400),
    "an unknown type with a 503": sends_body(envelope("brand_new", 503), 503),
    "a type with another status": sends_body(envelope("proxy_error", 502), 500),
    "a retryable type with a 400": sends_body(envelope("service_unavailable", 503), 400),
    "another status in the envelope": sends_body(envelope("proxy_error", 200), 502),
    "an envelope without a title": sends_body(b'{"type": "errors/proxy_error"}', 502),
    "an envelope without a type": sends_body(b'{"title": "x", "status": 502}', 502),
    "the quickstart's envelope": sends_body(b'{"error": {"code": "provider_error", "message": "m"}}', 500),
    "the quickstart's own code": sends_body(b'{"error": {"code": "key_missing"}}', 401),
    "both envelopes": sends_body(
        b'{"type": "errors/proxy_error", "error": {"code": "resource_not_found"}}', 502
    ),
    "a detail of 200 KiB": sends_body(envelope("proxy_error", 502, detail="x" * 200_000), 502),
    "terminal escapes in the detail": sends_body(
        envelope("proxy_error", 502, detail="\x1b[2J\r\nroot#"), 502
    ),
    "a 201": sends_body(lambda body: body, 201),
    "a 202": sends_body(lambda body: body, 202),
    "a 204": sends(lambda _: b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a 204 with a body": sends_body(lambda body: body, 204),
    "a 205": sends_body(b"", 205),
    "a 206": sends_body(lambda body: body, 206, b"Content-Range: bytes 0-50/51"),
    "a 401 with WWW-Authenticate": sends_body(b"", 401, b"WWW-Authenticate: Basic realm=x"),
    "a 407": sends_body(b"", 407, b"Proxy-Authenticate: Basic realm=x"),
    "a 408": sends_body(b"", 408),
    "a 413": sends_body(b"", 413),
    "a 417": sends_body(b"", 417),
    "a 418": sends_body(b"", 418),
    "a 421": sends_body(b"", 421),
    "a 425": sends_body(b"", 425),
    "a 426": sends_body(b"", 426, b"Upgrade: h2c"),
    "a 429": sends_body(b"", 429),
    "a 501": sends_body(b"", 501),
    "a 504": sends_body(b"", 504),
    "a 511": sends_body(b"<html>log in</html>", 511),
    "a 599": sends_body(b"", 599),
    "a 600": sends_body(lambda body: body, 600),
    "a 999": sends_body(lambda body: body, 999),
    "a status of two digits": sends_status_line(b"HTTP/1.1 20 OK"),
    "a status of four digits": sends_status_line(b"HTTP/1.1 2000 OK"),
    "a status of 0": sends_status_line(b"HTTP/1.1 000 OK"),
    "a status below 100": sends_status_line(b"HTTP/1.1 042 OK"),
    "a negative status": sends_status_line(b"HTTP/1.1 -200 OK"),
    "a status that is a word": sends_status_line(b"HTTP/1.1 OK OK"),
}

COOKIES: dict[str, Fault] = {
    "a cookie": sends_headers(b"Set-Cookie: sid=1; Path=/"),
    "a hundred cookies": sends_headers(
        *(b"Set-Cookie: c%d=%s; Path=/" % (n, b"a" * 1000) for n in range(100))
    ),
    "an invalid cookie": sends_headers(b'Set-Cookie: ="; ;;; \xff'),
    "cookies that are slow to parse": sends_headers(*(b"Set-Cookie: " + b'a="\\' * 2000 for _ in range(100))),
    "a cookie with an error": sends_headers(b"Set-Cookie: sid=1; Path=/", status=503),
}

RETRY_AFTERS: dict[str, Fault] = {
    f"Retry-After: {name}": sends_retry_after(*values)
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
        "a date in 9999": [b" Fri, 31 Dec 9999 23:59:59 GMT"],
        "a date in RFC 850 format": [b" Sunday, 06-Nov-94 08:49:37 GMT"],
        "a date in asctime format": [b" Sun Nov  6 08:49:37 1994"],
        "a date that does not exist": [b" Mon, 31 Feb 2025 08:49:37 GMT"],
        "a date in another time zone": [b" Sun, 06 Nov 1994 08:49:37 CEST"],
        "two equal values": [b" 1", b" 1"],
        "two different values": [b" 1", b" 100"],
        "a list": [b" 1, 100"],
        "8 KiB of spaces": [b" " * 8000 + b"1"],
    }.items()
}

FAULTS = {**CONNECTIONS, **FRAMING, **BODIES, **MEANING, **COOKIES, **RETRY_AFTERS}
"""All faults that need neither a second server nor a certificate, by name."""

REDIRECTS = {
    f"a {status} to another server": (status, "http://127.0.0.1:{trap}/v1/accounts/acc_bad")
    for status in (300, 301, 302, 303, 304, 305, 307, 308)
} | {
    "a 307 with an empty location": (307, ""),
    "a 307 to the same URL": (307, "http://127.0.0.1:{server}/v1/accounts/acc_bad"),
    "a 307 to another account": (307, "/v1/accounts/acc_next"),
    "a 307 with a user name": (307, "http://u:p@127.0.0.1:{trap}/"),
    "a 307 without a scheme": (307, "//127.0.0.1:{trap}/"),
    "a 307 to a file": (307, "file:///etc/passwd"),
    "a 307 to an invalid URL": (307, "http://[::1"),
    "a 200 with a Refresh header": (200, "http://127.0.0.1:{trap}/"),
}
"""Status and location. *server* and *trap* are ports; the server at *trap* must not receive a request."""


# --- The server -----------------------------------------------------------------------------------


class FaultServer:
    """
    A server on a free port of loopback, in its own thread, that plays faults.

    Attributes:
        seen: All complete requests, oldest first.
        connections: Number of accepted connections.
        tls: TLS context of new connections, or None. `Fault.on_connect` is called before the handshake.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, listening: bool = True) -> None:
        self.seen: list[SeenRequest] = []
        self.secure = tls is not None
        self.connections = 0
        self.tls = tls
        self._server: asyncio.Server | None = None
        self._pending: tuple[Action, Connection] | None = None
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
        """Use *faults*, one after another, for the next requests for *account_id*."""
        self._scripts[account_id] = list(faults)[::-1]

    def count(self) -> Counter[str]:
        """Number of requests by account."""
        return Counter(seen.account_id for seen in self.seen)

    def listen(self) -> None:
        """Start to accept connections. Until then, they are refused."""
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
        connection = Connection(reader, writer)
        try:
            await self._handle_requests(connection)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _handle_requests(self, connection: Connection) -> None:
        if self._always is not None and self._always.on_connect is not None:
            await self._always.on_connect(connection)
            return
        if self.tls is not None:
            await connection.writer.start_tls(self.tls)
        while True:
            head = await connection.reader.readuntil(b"\r\n\r\n")
            request = SeenRequest(head.removesuffix(b"\r\n\r\n"), b"")
            body = await connection.reader.readexactly(int(request.header("Content-Length") or 0))
            request = SeenRequest(request.head, body)
            self.seen.append(request)
            connection.account_id = request.account_id
            fault = self._next_fault(request.account_id) or Fault()
            if fault.on_push is not None:
                self._pending = fault.on_push, connection
            if fault.on_request is not None:
                await fault.on_request(connection)
            else:
                await connection.send(valid_response(request.account_id))
            if connection.writer.is_closing():
                return

    def push(self) -> None:
        """Call `on_push` of the last fault now."""
        assert self._pending is not None
        (on_push, connection), self._pending = self._pending, None

        async def run() -> None:
            await on_push(connection)
            await asyncio.sleep(0)  # a transport closes in the next iteration of the loop

        self._run(run())

    def _next_fault(self, account_id: str) -> Fault | None:
        if self._always is not None:
            return self._always
        script = self._scripts.get(account_id)
        return script.pop() if script else None
