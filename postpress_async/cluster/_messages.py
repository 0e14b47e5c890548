"""
What the coordinator and the workers send each other: shards of calls, reports, and errors.

Reports pass through the scheduler, which keeps them and may show them. They contain numbers and error types,
but no account ids, proxies or texts of the API. The complete errors are in the result of a shard's task.
"""

import json
import pickle
from typing import Final, NamedTuple, TypeAlias

from attrs import field, frozen
from distributed.protocol.pickle import dumps

from postpress_async._converter import own_converter
from postpress_async.errors import AnswerError, ApiError, PostPressError, Problem
from postpress_async.models import ProxyChange

TOPIC: Final = "postpress-async"
"""Dask topic of all reports. The scheduler keeps each topic for ever, so rotations share a single one."""

_ACCOUNT_ID: Final = "\0"  # stands for the account id in a packed error


# --- From the coordinator to a worker ---


@frozen
class RemoteCall:
    """One update that a worker carries out."""

    number: int  # identifies the call in reports
    account_id: str
    change: ProxyChange
    max_strikes: int  # number of proxy errors after which the call ends; 0 for no limit
    key_prefix: str  # start of its idempotency keys
    key_generation: int  # number of idempotency keys that were used before
    in_doubt: bool  # whether an earlier request may have applied the change


@frozen
class Shard:
    """The calls of one Dask task. Its repr shows nothing of them, because Dask logs it if the task fails."""

    token: str  # identifies the rotation
    process: str  # `local_directory` of the worker, which Dask creates for each process
    key: str  # of the Dask task
    _calls: str = field(repr=False)  # JSON

    @classmethod
    def of(cls, token: str, process: str, calls: list[RemoteCall]) -> "Shard":
        packed = own_converter.unstructure(calls, list[RemoteCall])
        return cls(token, process, f"{token}-{calls[0].number}", json.dumps(packed))

    def calls(self) -> list[RemoteCall]:
        return own_converter.structure(json.loads(self._calls), list[RemoteCall])


# --- From a worker to the coordinator ---


class PauseChanged(NamedTuple):
    """The worker's circuit breaker opened (True) or closed (False)."""

    paused: bool


class AttemptFailed(NamedTuple):
    call_number: int
    error: bytes  # see `pack_error`


class RetryPlanned(NamedTuple):
    """A failed attempt will be followed by another one. Sent only if the caller observes events."""

    call_number: int
    attempt: int  # number of the attempt that failed
    wait: float  # seconds until the next one
    error: bytes  # see `pack_error`


class BackoffChanged(NamedTuple):
    """A call started (True) or ended (False) a backoff."""

    call_number: int
    backing_off: bool


class NewKeyNeeded(NamedTuple):
    """A call waits until the journal has stored that it uses its next idempotency key."""

    call_number: int


class CallEnded(NamedTuple):
    call_number: int
    attempts: int
    elapsed: float  # seconds from the start of its first attempt to the end of its last one
    error: bytes | None  # see `pack_error`; None if the account was patched
    is_resumable: bool  # whether the retry policy would have made another attempt after the error


Report: TypeAlias = PauseChanged | AttemptFailed | RetryPlanned | BackoffChanged | NewKeyNeeded | CallEnded


def pack_error(error: PostPressError, account_id: str) -> bytes:
    """Pickle *error* without the account id, and without the API's texts, which may be about the account."""
    attributes = {**vars(error), "account_id": None}
    args = error.args
    if isinstance(error, ApiError):
        instance = error.instance and error.instance.replace(account_id, _ACCOUNT_ID)
        attributes |= {"title": "", "detail": None, "instance": instance}
        args = error.status, Problem(type=error.type), error.retry_after
    elif isinstance(error, AnswerError):
        args = "the response is invalid", error.status
    else:
        args = tuple(str(arg).replace(account_id, _ACCOUNT_ID) for arg in args)
    return pickle.dumps((type(error), args, attributes))


def unpack_error(packed: bytes, account_id: str) -> PostPressError:
    error_class, args, attributes = pickle.loads(packed)  # noqa: S301 - from a worker, which runs our code anyway
    error: PostPressError = error_class(
        *(arg.replace(_ACCOUNT_ID, account_id) if isinstance(arg, str) else arg for arg in args)
    )
    vars(error).update(attributes, account_id=account_id)
    if isinstance(error, ApiError) and error.instance:
        error.instance = error.instance.replace(_ACCOUNT_ID, account_id)
    return error


def make_picklable(error: BaseException) -> BaseException:
    """Return *error*, or a `RuntimeError` with its text if *error* cannot be pickled and unpickled."""
    try:
        pickle.loads(dumps(error))  # noqa: S301 - our own
    except Exception:  # raised by the error's class, which is the caller's
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
