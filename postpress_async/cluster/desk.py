"""Where the coordinator listens: workers come here for orders and rows, and bring what came of them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from distributed.comm.core import Comm, CommClosedError, listen
from distributed.security import Security

from postpress_async.errors import ClusterError

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

OVER: Final = {"over": True}

LAST_WORD: Final = 0.5
"""Seconds in which workers may still be told that it is over; each speaks every 50 ms."""


class Desk:
    """
    Listens on *host*, over TLS if there is *security*. Each request is answered by the rotation whose token
    it contains.

    Attributes:
        address: Where workers find it.
    """

    def __init__(self, host: str, security: Security | None) -> None:
        self._host: Final = host
        self._security: Final = security
        self._rotations: Final[dict[str, Answer]] = {}
        self._comms: Final[set[Comm]] = set()
        self._untold: Final[set[Comm]] = set()  # those whose worker thinks that a rotation goes on
        self._news: Final = asyncio.Event()
        self._listener: Any = None
        self.address: str = ""

    async def open(self) -> None:
        """
        Listen, on a port that is free.

        Raises:
            ClusterError: The host is not an address of this machine.
        """
        kind = "tcp" if self._security is None else "tls"
        host = f"[{self._host}]" if ":" in self._host else self._host
        options: dict[str, Any] = {} if self._security is None else self._security.get_listen_args("client")
        try:
            opening: Any = listen(f"{kind}://{host}:0", self._serve, **options)
            self._listener = await opening
        except OSError as error:
            raise ClusterError(
                f"{self._host} is not an address on which this machine can listen ({error.strerror or error})"
            ) from None
        self.address = self._listener.contact_address

    def attend(self, token: str, answer: Answer) -> None:
        """From now on *answer* is asked what workers of this rotation are to be told."""
        self._rotations[token] = answer

    def dismiss(self, token: str) -> None:
        """End the rotation: its workers learn it from the answer to their next request."""
        self._rotations.pop(token, None)

    async def _serve(self, comm: Any) -> None:
        self._comms.add(comm)
        try:
            while True:
                question = await comm.read()
                rotation = self._rotations.get(question["token"])
                if rotation is not None:
                    self._untold.add(comm)
                    await comm.write(await rotation(question))
                    continue
                await comm.write(OVER)
                self._untold.discard(comm)
                self._news.set()
        except (CommClosedError, OSError):
            pass  # it comes back, if it lives
        finally:
            self._comms.discard(comm)
            self._untold.discard(comm)
            self._news.set()
            comm.abort()

    async def aclose(self) -> None:
        """Listen no more, and hang up, once those who speak have been told that it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD):
                await self._none_of(self._untold)
        if self._listener is not None:
            self._listener.stop()
        for comm in tuple(self._comms):
            comm.abort()
        await self._none_of(self._comms)

    async def _none_of(self, comms: set[Comm]) -> None:
        while comms:
            self._news.clear()
            await self._news.wait()
