"""What the server says: the page's success and error envelope, or what a fault puts in their place."""

import json
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Literal, NamedTuple

from aiohttp import web

from postpress_async.sandbox.faults import Fault
from postpress_async.sandbox.page import TYPES, UNLISTED, Listed

Form = Literal["page", "quickstart"]

_JSON: Final = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """An answer before it is written; *type* is its error's, and *cut* breaks it off half way."""

    status: int
    body: bytes
    type: str | None = None
    headers: Mapping[str, str] = _JSON
    cut: bool = False


def patched(account_id: str) -> Answer:
    """The page's 200."""
    # An id holds nothing that JSON would escape.
    return Answer(200, b'{"object": "AccountPatched", "account_id": "%b"}' % account_id.encode())


class Errors:
    """
    Makes error answers, each with an ``instance`` of its own: ``req_000000000001`` is the first.

    Args:
        form: The page's envelope, or the other one of the quickstart.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._made = 0

    def make(
        self,
        type_: str,
        detail: str | None = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        cut: bool = False,
    ) -> Answer:
        """
        An error in its envelope.

        Args:
            detail: Instead of the type's own.
            status: HTTP status instead of the type's own; the envelope keeps the type's, if it is known.
        """
        self._made += 1
        instance = f"req_{self._made:012d}"
        listed = TYPES.get(type_) or UNLISTED.get(type_) or _unknown(status or 500)
        detail = listed.detail if detail is None else detail
        if self._form == "page":
            said: dict[str, object] = {
                "title": listed.title,
                "detail": detail,
                "instance": instance,
                "type": type_,
                "status": listed.status,
            }
        else:
            code = "key_missing" if type_ == "errors/missing_credentials" else type_.removeprefix("errors/")
            said = {"error": {"code": code, "message": detail, "request_id": instance}}
        sent = _JSON if headers is None else {**_JSON, **headers}
        return Answer(status or listed.status, json.dumps(said).encode(), type_, sent, cut)

    def of(self, fault: Fault) -> Answer:
        """The answer of a fault that has one."""
        headers = dict(fault.headers)
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        if fault.type is not None:
            return self.make(fault.type, status=fault.status, headers=headers, cut=fault.cut)
        return Answer(fault.status or 200, fault.body, None, {**_JSON, **headers}, fault.cut)


def _unknown(status: int) -> Listed:
    try:
        return Listed(status, HTTPStatus(status).phrase, "")
    except ValueError:
        return Listed(status, "Error", "")


async def write(request: web.BaseRequest, answer: Answer | None) -> web.StreamResponse:
    """Send the answer; None drops the connection without one."""
    if answer is None:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # aiohttp asks for one, and finds that it cannot write it any more
    if not answer.cut:
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    half = web.StreamResponse(status=answer.status, headers=answer.headers)
    half.content_length = len(answer.body)
    with suppress(ConnectionError):  # the client hung up before
        await half.prepare(request)
        await half.write(answer.body[: len(answer.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return half
