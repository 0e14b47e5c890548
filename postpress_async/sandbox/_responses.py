"""The server's responses: success, errors in their envelope, and the raw responses of faults."""

import http.client
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from aiohttp import web
from attrs import define
from multidict import CIMultiDict

from postpress_async.sandbox._catalogue import TYPES, UNLISTED, ErrorEntry
from postpress_async.sandbox._faults import Fault

Envelope = Literal["page", "quickstart"]

_JSON: Final = {"Content-Type": "application/json"}


class Response(NamedTuple):
    """A response to send. *type* is its error type; with *cut*, only the first half of the body is sent."""

    status: int
    body: bytes
    type: str | None = None
    headers: Mapping[str, str] = _JSON
    cut: bool = False


def success(account_id: str) -> Response:
    # No character of an account id needs escaping in JSON.
    return Response(200, b'{"object": "AccountPatched", "account_id": "%b"}' % account_id.encode())


@define(eq=False)
class ErrorResponses:
    """Creates error responses, whose ``instance`` counts up from ``req_000000000001``."""

    _envelope: Envelope
    _count: int = 0

    def make(
        self,
        type_: str,
        detail: str | None = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        cut: bool = False,
    ) -> Response:
        """Create an error response. *status* is its HTTP status; the envelope has that of a known type."""
        self._count += 1
        instance = f"req_{self._count:012d}"
        unknown = ErrorEntry(status or 500, http.client.responses.get(status or 500, "Error"), "")
        entry = TYPES.get(type_) or UNLISTED.get(type_) or unknown
        detail = entry.detail if detail is None else detail
        content: dict[str, object] = {"title": entry.title, "detail": detail, "instance": instance}
        content |= {"type": type_, "status": entry.status}
        if self._envelope == "quickstart":
            code = "key_missing" if type_ == "errors/missing_credentials" else type_.removeprefix("errors/")
            content = {"error": {"code": code, "message": detail, "request_id": instance}}
        all_headers = _with_content_type(headers or {})
        return Response(status or entry.status, json.dumps(content).encode(), type_, all_headers, cut)

    def from_fault(self, fault: Fault) -> Response:
        headers = CIMultiDict(fault.headers)
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        if fault.type is not None:
            return self.make(fault.type, status=fault.status, headers=headers, cut=fault.cut)
        return Response(fault.status or 200, fault.body, None, _with_content_type(headers), fault.cut)


def _with_content_type(headers: Mapping[str, str]) -> Mapping[str, str]:
    merged = CIMultiDict(_JSON)
    merged.update(headers)
    return merged


async def deliver(request: web.BaseRequest, response: Response | None) -> web.StreamResponse:
    """Have aiohttp send *response*, or send its first half. None aborts the connection."""
    if response is None:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # aiohttp requires a response, although it can no longer send it
    if not response.cut:
        return web.Response(status=response.status, body=response.body, headers=response.headers)
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(response.body)
    with suppress(ConnectionError):  # the client has disconnected
        await stream.prepare(request)
        await stream.write(response.body[: len(response.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return stream
