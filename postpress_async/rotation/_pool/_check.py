"""
Checks whether proxies work: TCP, TLS for HTTPS proxies, and the handshake of HTTP CONNECT or SOCKS5.

This requires the extra ``check``. Results never contain text of a response, which could repeat a password.
"""

import asyncio
import errno
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final, Self, cast

import aiohappyeyeballs
from attrs import field, frozen
from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio.v2 import Proxy
from yarl import URL

from postpress_async._settings import make_tls
from postpress_async.models import CustomProxy, ProxyProtocol
from postpress_async.rotation._pool import PooledProxy

_MAX_RESPONSE: Final = 65_536  # bytes
_RESPONSE_WITH_BODY: Final = re.compile(
    rb"HTTP/1\.[01] 200\b.*^(content-length: *[1-9]|transfer-encoding:)", re.DOTALL | re.MULTILINE | re.I
)
"""A response to CONNECT with a body, which proxies must not send (RFC 9110, 9.3.6)."""
_NO_CONNECT: Final = {400, 404, 405, 501, *range(201, 400)}
"""Statuses of web servers that do not know CONNECT. Any other error is of a proxy that refuses the target."""


class CheckResult(StrEnum):
    WORKS = "works"
    NOT_CHECKED = "not-checked"  # does not count as a failure
    NAME_NOT_FOUND = "name-not-found"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    RESET = "reset"
    TLS_FAILED = "tls-failed"
    NOT_A_PROXY = "not-a-proxy"
    WRONG_CREDENTIALS = "wrong-credentials"
    TARGET_REFUSED = "target-refused"
    ECHO_FAILED = "echo-failed"


@frozen
class CheckedProxy:
    """The result of one check, without a secret."""

    proxy: str  # its label
    result: CheckResult
    detail: str = ""  # the reason if the proxy does not work
    elapsed: float = 0.0  # seconds
    exit_address: str | None = None  # the proxy's address as the echo URL sees it

    @property
    def is_failure(self) -> bool:
        return self.result not in {CheckResult.WORKS, CheckResult.NOT_CHECKED}


class _Stage(StrEnum):
    """What a check is waiting for. The value is the message if it waits in vain."""

    NAME = "the host name was not resolved"
    CONNECT = "no connection"
    TLS = "the TLS handshake was not completed"
    HANDSHAKE = "no response to the request for a connection"
    ECHO = "no response from the echo URL"


@frozen(kw_only=True)
class ProxyChecker:
    """Checks proxies by asking them for a connection to the host and port of a target."""

    target: URL  # nothing is sent to it unless `echo`
    echo: bool = False  # whether to request the target, whose response must contain the proxy's address
    deadline: float = 10.0  # seconds per check
    protocol: ProxyProtocol = ProxyProtocol.HTTP  # for proxies without a protocol
    tls: ssl.SSLContext = field(factory=lambda: make_tls(None), repr=False)

    async def check_all(
        self, proxies: Iterable[PooledProxy], in_flight: int, on_result: Callable[[CheckedProxy], None]
    ) -> None:
        """Check *proxies*, up to *in_flight* at the same time, and call *on_result* after each check."""
        remaining = iter(proxies)

        async def work() -> None:
            for pooled in remaining:
                on_result(await self.check(pooled))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def check(self, pooled: PooledProxy) -> CheckedProxy:
        """Check a proxy. Raises `OSError` if the process has too many open files."""
        protocol = pooled.proxy.protocol or self.protocol
        if pooled.is_template:
            detail = "it is a template, which depends on the account"
            return CheckedProxy(pooled.label, CheckResult.NOT_CHECKED, detail)
        started, connection = time.monotonic(), _Connection()
        result, detail, exit_address = CheckResult.WORKS, "", None
        try:
            async with asyncio.timeout(self.deadline):
                await self._connect(connection, pooled.proxy, protocol)
                if self.echo:
                    exit_address = await self._read_exit_address(connection)
        except (OSError, EOFError, ValueError, ProxyError) as error:
            if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
                raise
            result, detail = self._classify(error, connection, protocol)
        finally:
            connection.abort()
        elapsed = round(time.monotonic() - started, 3)
        return CheckedProxy(pooled.label, result, detail, elapsed, exit_address)

    async def _connect(self, connection: "_Connection", proxy: CustomProxy, protocol: ProxyProtocol) -> None:
        await connection.open(proxy.host, proxy.port)
        if protocol is ProxyProtocol.HTTPS:
            connection.stage = _Stage.TLS
            await connection.start_tls(self.tls, proxy.host)
        connection.stage = _Stage.HANDSHAKE
        is_socks = protocol is ProxyProtocol.SOCKS5
        username = proxy.username or ""
        password = proxy.password.reveal() if proxy.password else ""
        if not is_socks:  # python-socks encodes credentials as latin-1, and curl as UTF-8. Send UTF-8.
            username, password = (text.encode().decode("latin-1") for text in (username, password))
        kind = ProxyType.SOCKS5 if is_socks else ProxyType.HTTP
        forward = cast("Any", connection)
        client = Proxy(kind, proxy.host, proxy.port, username, password, rdns=True, forward=forward)
        timeout = self.deadline + 1  # never reached, because `check` ends at the deadline
        await client.connect(str(self.target.raw_host), self.target.port or 443, timeout=timeout)

    async def _read_exit_address(self, connection: "_Connection") -> str:
        connection.stage = _Stage.ECHO
        if self.target.scheme == "https":
            await connection.start_tls(self.tls, str(self.target.raw_host))
        request = f"GET {self.target.raw_path_qs} HTTP/1.1\r\nHost: {self.target.host_port_subcomponent}\r\n"
        await connection.write(f"{request}Accept: */*\r\nConnection: close\r\n\r\n".encode("ascii"))
        head, _, body = (await connection.read_all()).partition(b"\r\n\r\n")
        if not re.match(rb"HTTP/1\.[01] 200\b", head):
            raise ValueError("the echo URL does not respond with HTTP 200")
        for word in re.split(r"[\s\"',<>]+", body.decode("latin-1")):
            try:
                return str(ipaddress.ip_address(word))
            except ValueError:
                continue
        raise ValueError("the response of the echo URL contains no IP address")

    def _classify(
        self, error: Exception, connection: "_Connection", protocol: ProxyProtocol
    ) -> tuple[CheckResult, str]:
        """The result and its reason for an exception of `_connect` or `_read_exit_address`."""
        stage, result = connection.stage, CheckResult.UNREACHABLE
        if isinstance(error, ProxyError):
            return self._classify_reply(error, connection.reply, protocol)
        if isinstance(error, TimeoutError):
            results = {_Stage.NAME: CheckResult.NAME_NOT_FOUND, _Stage.TLS: CheckResult.TLS_FAILED}
            result = results.get(stage, CheckResult.TIMED_OUT)
            # Without an errno, it is the timeout of `check`, and otherwise of the operating system.
            detail = os.strerror(error.errno) if error.errno else f"{stage} within {self.deadline:g} s"
        elif isinstance(error, ssl.SSLError):
            result = CheckResult.TLS_FAILED
            detail = getattr(error, "verify_message", "") or str(error.reason).lower().replace("_", " ")
        elif stage is _Stage.NAME:
            result, detail = CheckResult.NAME_NOT_FOUND, getattr(error, "strerror", "") or f"{stage}"
        elif isinstance(error, ConnectionRefusedError):
            result, detail = CheckResult.REFUSED, os.strerror(errno.ECONNREFUSED)
        elif isinstance(error, ConnectionError | EOFError):
            result, detail = CheckResult.RESET, f"the connection was closed: {stage}"
        elif isinstance(error, OSError):
            detail = os.strerror(error.errno) if error.errno else "no address of the host can be reached"
        elif stage is _Stage.HANDSHAKE:  # a ValueError of python-socks, whose text may contain the password
            result = CheckResult.WRONG_CREDENTIALS
            detail = f"{protocol} cannot transmit this user name or password"
        else:
            detail = str(error)
        return (CheckResult.ECHO_FAILED if stage is _Stage.ECHO else result), detail

    def _classify_reply(
        self, error: ProxyError, reply: bytes, protocol: ProxyProtocol
    ) -> tuple[CheckResult, str]:
        code, is_socks = error.error_code, protocol is ProxyProtocol.SOCKS5
        # The text of an HTTP error contains the reason phrase of the response.
        detail = str(error) if is_socks else f"HTTP {code}"
        if code in {401, 407}:
            return CheckResult.WRONG_CREDENTIALS, detail
        # A refusal of the credentials (01 and a status) or of all methods of authentication (05 FF).
        if is_socks and code is None and len(reply) == 2 and reply[:1] in {b"\x01", b"\x05"}:
            return CheckResult.WRONG_CREDENTIALS, "the proxy did not accept the credentials"
        if code is None or (not is_socks and code in _NO_CONNECT):
            status = f" (HTTP {code})" if code else ""
            kind = "a SOCKS5" if is_socks else "an HTTP"
            return CheckResult.NOT_A_PROXY, f"the server does not respond like {kind} proxy{status}"
        return CheckResult.TARGET_REFUSED, f"no connection to {self.target.raw_host}: {detail}"


class _Connection:
    """
    A connection to a proxy, through which python-socks performs the handshake.

    python-socks could open the connection itself. But its errors do not say whether TCP, TLS or the handshake
    timed out, and it takes the first packet of an HTTP response for the whole response.
    """

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    stage: _Stage = _Stage.NAME  # what the check waits for
    reply: bytes = b""  # the latest reply of a SOCKS proxy

    async def open(self, host: str, port: int) -> None:
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self.stage = _Stage.CONNECT
        # Unlike asyncio, aiohappyeyeballs keeps the errno if all addresses fail for the same reason.
        sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=0.25)
        self._reader, self._writer = await asyncio.open_connection(sock=sock)

    async def start_tls(self, tls: ssl.SSLContext, host: str) -> None:
        # The check has its own deadline. asyncio's default timeout of 60 s could come first.
        await self._writer.start_tls(tls, server_hostname=host, ssl_handshake_timeout=86_400.0)

    async def connect(self, **_: object) -> Self:
        """Return the open connection when python-socks asks *forward* to connect to the proxy."""
        return self

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def read_exactly(self, count: int) -> bytes:
        self.reply = await self._reader.readexactly(count)
        return self.reply

    async def read(self) -> bytes:
        """Read the head of an HTTP response. Raises `ProxyError` if it is not the response of a proxy."""
        head = b""
        while b"\r\n\r\n" not in head:
            if not (chunk := await self._reader.read(_MAX_RESPONSE)):
                raise EOFError
            head += chunk
            if not head.startswith(b"HTTP/"[: len(head)]) or len(head) > _MAX_RESPONSE:
                raise ProxyError("not HTTP")
        if _RESPONSE_WITH_BODY.match(head):
            raise ProxyError("a page")
        return head

    async def read_all(self) -> bytes:
        data = b""
        while chunk := await self._reader.read(_MAX_RESPONSE - len(data)):
            data += chunk
        return data

    async def close(self) -> None:
        """Do nothing when python-socks calls this; `abort` closes the connection."""

    def abort(self) -> None:
        if hasattr(self, "_writer"):  # it is open
            self._writer.transport.abort()
