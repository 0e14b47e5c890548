"""
The base classes of all errors, and the classification of error responses.

The module `errors` defines the class of each status and type.
"""

from enum import StrEnum
from typing import Any

from attrs import frozen

from postpress_async.models import Attempt


class Scope(StrEnum):
    """What a failure is about, which decides how a rotation continues."""

    REQUEST = "request"
    """This request is invalid. A rotation records the account as failed and continues."""
    ACCOUNT = "account"
    """This account cannot be updated. A rotation records it as failed and continues."""
    PROXY = "proxy"
    """This proxy does not work. A rotation tries the next proxy of its pool."""
    KEY = "key"
    """The API key is rejected, so every other account would fail too. A rotation halts at once."""
    SERVICE = "service"
    """The service, or the network to it, has a problem. A rotation records the account and continues."""


class Applied(StrEnum):
    """Whether a failed call may have changed the account."""

    NO = "no"
    UNKNOWN = "unknown"


@frozen
class Problem:
    """The API's error envelope, with texts that `_http.codec` has sanitized."""

    type: str = ""
    title: str = ""
    detail: str | None = None
    instance: str | None = None


class PostPressError(Exception):
    """
    The base class of all errors.

    Attributes:
        scope: What the failure is about.
        retryable: Whether the default policy retries it.
        applied: Whether any attempt of the call may have applied the change.
        account_id: The account of the call; None if there was no call.
        attempts: All attempts of the call, oldest first.
        status: HTTP status of the response; None without a response.
        retry_after: Seconds of the response's Retry-After header; None if it had none.
    """

    scope: Scope = Scope.SERVICE
    retryable: bool = False
    applied: Applied = Applied.NO
    account_id: str | None = None
    attempts: tuple[Attempt, ...] = ()
    status: int | None = None
    retry_after: float | None = None

    @property
    def code(self) -> str:
        """The name in logs and journals: the API's type, otherwise the name of the class."""
        return type(self).__name__

    def __str__(self) -> str:
        fact = self._fact()
        if self.account_id is not None:
            fact = f"{self.account_id}: {fact}"
        more: list[str] = []
        if self.attempts:
            seconds = sum(attempt.elapsed + attempt.wait for attempt in self.attempts)
            attempts = "1 attempt" if len(self.attempts) == 1 else f"{len(self.attempts)} attempts"
            more.append(f"{attempts} in {seconds:.1f} s.")
        if self.applied is Applied.UNKNOWN:
            more.append("The change may have been applied.")
        if more and not fact.endswith("."):
            fact += "."
        return " ".join([fact, *more])

    def _fact(self) -> str:
        return super().__str__()


BY_STATUS: dict[int, type["ApiError"]] = {}
"""The class of each status that has one."""
BY_TYPE: dict[str, type["ApiError"]] = {}
"""The class of each type that the API's reference lists."""
BY_CODE: dict[str, type["ApiError"]] = {}
"""The class of each type that only the API's quickstart lists."""


class ApiError(PostPressError):
    """
    An error response. A response whose status has no subclass raises this class itself.

    Attributes:
        status: The HTTP status, never None.
        type: The type as received, which the API's reference need not list; empty if the body was not the
            API's error envelope. `code` is its normalized form.
        title: The short title.
        detail: The explanation, if any; compact JSON if it is not text.
        instance: The request's id, to quote to support; None if the response had none.
    """

    applied: Applied = Applied.UNKNOWN

    def __init_subclass__(
        cls,
        *,
        status: int | None = None,
        type: str | None = None,  # noqa: A002 - the API's own word
        code: str | None = None,
        scope: Scope | None = None,
        retryable: bool | None = None,
        applied: Applied | None = None,
        **more: Any,
    ) -> None:
        super().__init_subclass__(**more)
        if status is not None:
            BY_STATUS[status] = cls
        if type is not None:
            BY_TYPE[type] = cls
        if code is not None:
            BY_CODE[f"errors/{code}"] = cls
        facts = {"status": status, "scope": scope, "retryable": retryable, "applied": applied}
        for name, value in facts.items():
            if value is not None:  # otherwise inherited
                setattr(cls, name, value)

    def __init__(self, status: int, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(status, problem, retry_after)
        # Narrower than in the base class: an ApiError always has a status.
        self.status: int = status  # pyright: ignore[reportIncompatibleVariableOverride]
        self.retry_after: float | None = retry_after
        self.type: str = problem.type
        self.title: str = problem.title
        self.detail: str | None = problem.detail
        self.instance: str | None = problem.instance

    @classmethod
    def of(cls, status: int, problem: Problem, retry_after: float | None = None) -> "ApiError":
        """Create an error of the type's class if it belongs to *status*, otherwise of the status's class."""
        class_of_status = BY_STATUS.get(status, ApiError)
        name = listed_type(problem.type)
        class_of_type = None if name is None else BY_TYPE.get(name) or BY_CODE[name]
        if class_of_type is not None and status in BY_STATUS and issubclass(class_of_type, class_of_status):
            return class_of_type(status, problem, retry_after)
        error = class_of_status(status, problem, retry_after)
        # The type is unlisted, or belongs to another status: then both must allow a retry.
        error.retryable = status in RETRYABLE_STATUSES and (class_of_type is None or class_of_type.retryable)
        if class_of_status is ApiError and status < 500 and status not in {403, 408}:
            error.scope = Scope.REQUEST
        # A 403 with another type, or without one, may come from a gateway.
        if status == 403 and class_of_type is not None and class_of_type.scope is Scope.KEY:
            error.scope = Scope.KEY
        if status in REFUSING_STATUSES and (class_of_type is None or class_of_type.applied is Applied.NO):
            error.applied = Applied.NO
        return error

    @property
    def code(self) -> str:
        return listed_type(self.type) or self.type or type(self).__name__

    def _fact(self) -> str:
        parts = [f"{self.code if self.type else 'no error envelope'} (HTTP {self.status})"]
        parts += [text.rstrip(".") for text in (self.title, self.detail) if text]
        message = ": ".join(parts) + "."
        if self.status == 401 and self.scope is not Scope.PROXY:
            is_key = self.scope is Scope.KEY
            message += " Check the API key." if is_key else " If every account gets it, check the API key."
        if self.instance:
            message += f" Quote instance {self.instance} to support."
        return message


def listed_type(text: str) -> str | None:
    """
    Return *text* as the API's reference writes it, such as ``errors/proxy_error``; None if it is not listed.

    Only the last path segment is compared: the type may also be a bare name or a URL.
    """
    name = f"errors/{text.rstrip('/').rpartition('/')[2]}"
    return name if name in BY_TYPE or name in BY_CODE else None


REFUSING_STATUSES = frozenset({403, 405, 407, 409, 411, 413, 414, 415, 417, 422, 431})
"""
Statuses without a class of their own that, like 400, mean that the change was not applied.

Servers send them before they apply the method (RFC 9110, section 15.5; RFC 6585, section 5). 406, 410 and 418
are not included, because a gateway may send them for a request that it has forwarded.
"""

RETRYABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
"""Statuses that are retried if the response has no listed type. Gateways send them for any API."""
