"""
A web service that updates the proxies of accounts: ``uvicorn fastapi_service:app``.

All requests share one session, with its connections, its concurrency limit and its circuit breaker.
"""

import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from postpress_async import ManagedProxy, PostPressError, PostPressSession, RetryPolicy, errors
from postpress_async.errors import Scope
from postpress_async.models import FieldError

log = logging.getLogger(__name__)

# Our clients disconnect after 30 s, so the deadline must be shorter.
POLICY = RetryPolicy(deadline=20.0, attempt_timeout=8.0)

# The HTTP status for our client. 500 for a rejected API key, because the client cannot fix that.
STATUSES: Mapping[Scope, int] = {
    Scope.REQUEST: 422,
    Scope.ACCOUNT: 409,
    Scope.PROXY: 502,
    Scope.KEY: 500,
    Scope.SERVICE: 503,
}


class State(TypedDict):
    """The state of the running service."""

    postpress: PostPressSession


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
    # At shutdown, uvicorn waits for open requests, at most for its --timeout-graceful-shutdown. Calls that
    # are still running then get five more seconds.
    async with PostPressSession(retry=POLICY) as session:
        yield {"postpress": session}


app = FastAPI(lifespan=lifespan)


def postpress(request: Request) -> PostPressSession:
    session: PostPressSession = request.state.postpress
    return session


class NewProxy(BaseModel):
    country: str


@app.put("/accounts/{account_id}/proxy")
async def put_proxy(
    account_id: str, body: NewProxy, session: Annotated[PostPressSession, Depends(postpress)]
) -> dict[str, Any]:
    result = await session.update_proxy(account_id, ManagedProxy(country=body.country))
    return {"account_id": result.account_id, "attempts": len(result.attempts)}


@app.exception_handler(FieldError)
async def invalid_field(_request: Request, error: FieldError) -> JSONResponse:
    """The account id or the country is invalid, and nothing was sent."""
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.exception_handler(PostPressError)
async def failed_call(_request: Request, error: PostPressError) -> JSONResponse:
    """The call failed. The error's text contains no secret, so it can be logged."""
    match error:
        case errors.NotFoundError():
            status = 404
        case errors.DeadlineError() | errors.AttemptTimeoutError() | errors.GatewayTimeoutError():
            status = 504
        case errors.InternalServerError():  # not 503: the change may have been applied
            status = 502
        case errors.SessionClosedError():  # this process is shutting down; the client should retry
            status = 503
        case _:
            status = STATUSES[error.scope]
    log.log(logging.ERROR if error.scope is Scope.KEY else logging.WARNING, "%s", error)
    body: dict[str, Any] = {"error": "internal" if error.scope is Scope.KEY else error.code}
    body["applied"] = error.applied.value  # if "unknown", the client should retry or check the account
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(math.ceil(error.retry_after or 5))
    return JSONResponse(body, status, headers)
