"""
A web service that gives accounts new proxies: ``uvicorn fastapi_service:app``.

One session lasts as long as the service: its connections, its pace and its pauses are those of all requests.
"""

import logging
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

# Whoever asks us hangs up after 30 s: an answer that comes later is an answer to nobody.
POLICY = RetryPolicy(deadline=20.0, attempt_timeout=8.0)

# What went wrong, as the one who asked us sees it. A refused API key is ours to mend, not theirs.
STATUSES: Mapping[Scope, int] = {
    Scope.REQUEST: 422,
    Scope.ACCOUNT: 409,
    Scope.PROXY: 502,
    Scope.KEY: 500,
    Scope.SERVICE: 503,
}


class State(TypedDict):
    """What the service keeps while it runs."""

    postpress: PostPressSession


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
    # At shutdown, uvicorn first lets requests end; what is still under way then gets five seconds more.
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
    account_id: str, wanted: NewProxy, session: Annotated[PostPressSession, Depends(postpress)]
) -> dict[str, Any]:
    done = await session.update_proxy(account_id, ManagedProxy(country=wanted.country))
    return {"account_id": done.account_id, "attempts": len(done.attempts)}


@app.exception_handler(FieldError)
async def refuse(_request: Request, error: FieldError) -> JSONResponse:
    """Known before a byte was sent: the account's id or the country is none."""
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.exception_handler(PostPressError)
async def tell(_request: Request, error: PostPressError) -> JSONResponse:
    """Every error of a call. Its text names account and instance, and has no secret: fit for the log."""
    match error:
        case errors.NotFoundError():
            status = 404
        case errors.DeadlineError() | errors.AttemptTimeoutError() | errors.GatewayTimeoutError():
            status = 504
        case errors.InternalServerError():  # perhaps applied: "try again later" would be bad advice
            status = 502
        case errors.SessionClosedError():  # we are being shut down: another of us will answer
            status = 503
        case _:
            status = STATUSES[error.scope]
    log.log(logging.ERROR if error.scope is Scope.KEY else logging.WARNING, "%s", error)
    body: dict[str, Any] = {"error": "internal" if error.scope is Scope.KEY else error.code}
    body["applied"] = error.applied.value  # "unknown": ask again, or look, before taking it for undone
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(round(error.retry_after or 5))
    return JSONResponse(body, status, headers)
