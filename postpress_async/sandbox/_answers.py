"""The server's responses: success, errors in their envelope, and the raw responses of faults."""

import json
from collections.abc import Mapping
from contextlib import suppress
from http.client import responses
from typing import Final, Literal, NamedTuple

from aiohttp import web
from attrs import define

from postpress_async.sandbox._catalogue import TYPES, UNLISTED, ErrorEntry
from postpress_async.sandbox._faults import Fault

Envelope = Literal["page", "quickstart"]

_JSON: Final = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """A response to send. *type* is its error type; with *cut*, only the first half of the body is sent."""

    status: int
    body: bytes
    type: str | None = None
    headers: Mapping[str, str] = _JSON
    cut: bool = False


def success(account_id: str) -> Answer:
    # No character of an account id needs escaping in JSON.
    return Answer(200, b'{"object": "AccountPatched", "account_id": "%b"}' % account_id.encode())


@define(eq=False)
class Errors:
    """Creates error responses. Their ``instance`` counts up from ``req_000000000001``."""

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
    ) -> Answer:
        """Create an error in its envelope, which keeps the status of a known type, whatever *status* is."""
        self._count += 1
        instance = f"req_{self._count:012d}"
        unknown = ErrorEntry(status or 500, responses.get(status or 500, "Error"), "")
        entry = TYPES.get(type_) or UNLISTED.get(type_) or unknown
        detail = entry.detail if detail is None else detail
        content: dict[str, object] = {"title": entry.title, "detail": detail, "instance": instance}
        content |= {"type": type_, "status": entry.status}
        if self._envelope == "quickstart":
            code = "key_missing" if type_ == "errors/missing_credentials" else type_.removeprefix("errors/")
            content = {"error": {"code": code, "message": detail, "request_id": instance}}
        all_headers = _JSON if headers is None else {**_JSON, **headers}
        return Answer(status or entry.status, json.dumps(content).encode(), type_, all_headers, cut)

    def from_fault(self, fault: Fault) -> Answer:
        headers = dict(fault.headers)
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        if fault.type is not None:
            return self.make(fault.type, status=fault.status, headers=headers, cut=fault.cut)
        return Answer(fault.status or 200, fault.body, None, {**_JSON, **headers}, fault.cut)


async def write(request: web.BaseRequest, answer: Answer | None) -> web.StreamResponse:
    """Send the answer; None closes the connection without a response."""
    if answer is None:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # aiohttp requires a response, although it can no longer send it
    if not answer.cut:
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    with suppress(ConnectionError):  # the client has disconnected
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
