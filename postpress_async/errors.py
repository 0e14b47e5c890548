"""
All errors. Three attributes of an error say how to handle it:

- `scope`: what failed: the request, the account, the proxy, the API key or the service.
- `retryable`: whether the default policy retries it.
- `applied`: NO if the account was certainly not changed, otherwise UNKNOWN.

The defaults of an error response are SERVICE, False and UNKNOWN. The line of its class sets other values::

    PostPressError
    ├── ApiError                    an error response of the API; each status has a subclass for each type
    │   ├── BadRequestError         400
    │   ├── UnauthorizedError       401
    │   ├── NotFoundError           404
    │   ├── TooManyRequestsError    429
    │   ├── InternalServerError     500
    │   ├── NotSupportedError       501
    │   ├── BadGatewayError         502
    │   ├── UnavailableError        503
    │   └── GatewayTimeoutError     504
    ├── TransportError              no response
    │   ├── ConnectError            nothing was sent
    │   ├── ConnectionLostError
    │   ├── AttemptTimeoutError
    │   └── TlsError                nothing was sent, and it is not retried
    ├── AnswerError                 an invalid response
    ├── DeadlineError               the deadline passed before anything was sent
    ├── BusyError                   more calls wait than `Pace.max_waiting` allows
    ├── SupersededError             a newer update of the account was made before this one was sent
    ├── ConfigurationError          the session's arguments cannot be used
    │   └── SessionClosedError
    └── RotationError               a rotation cannot start or continue
        ├── NotSentError            the account was not sent
        ├── ClusterError            the cluster is gone, or has no usable worker
        ├── FleetError              the input cannot be read
        └── JournalError            the journal is invalid, or belongs to another rotation
            └── JournalNotWritableError    the journal cannot be written

Classes are named after their types: ``errors/proxy_error`` is `ProxyError`. An invalid change raises
`postpress_async.models.FieldError`, a `ValueError`, before any call is made.
"""

# Type checkers treat `X as X` as a re-export.
# isort: off
from postpress_async._error_base import (
    BY_CODE as BY_CODE,
    BY_STATUS as BY_STATUS,
    BY_TYPE as BY_TYPE,
    RETRYABLE_STATUSES as RETRYABLE_STATUSES,
    ApiError as ApiError,
    Applied as Applied,
    PostPressError as PostPressError,
    Problem as Problem,
    Scope as Scope,
)
# isort: on


class BadRequestError(ApiError, status=400, scope=Scope.REQUEST, applied=Applied.NO):
    """400: the request body is invalid or lacks a required field."""


class InvalidParametersError(BadRequestError, type="errors/invalid_parameters"):
    """A parameter is invalid or missing. See the detail, and fix the change."""


class MissingParametersError(BadRequestError, type="errors/missing_parameters"):
    """A parameter is missing. See the detail, and fix the change."""


class InvalidRequestError(BadRequestError, type="errors/invalid_request"):
    """A parameter, or a combination of parameters, is invalid. Fix the change."""


class MalformedRequestError(BadRequestError, type="errors/malformed_request"):
    """The provider rejected the request. Report it to support with the `instance`."""


class ContentTooLargeError(BadRequestError, type="errors/content_too_large"):
    """The request body is too large for the provider. Shorten the user name or password."""


class TooManyCharactersError(BadRequestError, type="errors/too_many_characters"):
    """A field exceeds the provider's limit of characters. Shorten it."""


class UnescapedCharactersError(BadRequestError, type="errors/unescaped_characters"):
    """The path has unescaped characters. Account ids that could cause this are rejected before sending."""


class LimitTooHighError(BadRequestError, type="errors/limit_too_high"):
    """A pagination limit is too high. The reference lists it for all endpoints, but this one has no pages."""


class UnauthorizedError(ApiError, status=401, scope=Scope.ACCOUNT, applied=Applied.NO):
    """401: credentials are missing, expired or invalid: usually those of the account, not the API key."""


class MissingCredentialsError(UnauthorizedError, type="errors/missing_credentials", scope=Scope.KEY):
    """The request has no credentials. Check the API key."""


class MultipleSessionsError(UnauthorizedError, type="errors/multiple_sessions"):
    """LinkedIn limits sessions on this Recruiter account. Connect it by cookie."""


class InvalidCheckpointSolutionError(UnauthorizedError, type="errors/invalid_checkpoint_solution"):
    """A checkpoint was not passed. "Retry" in its detail means to sign in again, not to repeat this call."""


class InvalidProxyCredentialsError(
    UnauthorizedError, type="errors/invalid_proxy_credentials", scope=Scope.PROXY
):
    """The proxy rejects its user name or password. Correct them, or use another proxy."""


class CheckpointError(UnauthorizedError, type="errors/checkpoint_error"):
    """The account has a checkpoint that cannot be resolved here. Reconnect the account."""


class InvalidCredentialsError(UnauthorizedError, type="errors/invalid_credentials"):
    """The account's credentials are invalid. Reconnect the account."""


class ExpiredCredentialsError(UnauthorizedError, type="errors/expired_credentials"):
    """The account's credentials have expired. Reconnect the account."""


class InsufficientPrivilegesError(UnauthorizedError, type="errors/insufficient_privileges", scope=Scope.KEY):
    """The scopes of the API key do not include this operation. It is a 401 in the reference, not a 403."""


class DisconnectedAccountError(UnauthorizedError, type="errors/disconnected_account"):
    """The account is disconnected from its provider. Reconnect it."""


class DisconnectedFeatureError(UnauthorizedError, type="errors/disconnected_feature"):
    """The service behind the account is disconnected. Reconnect it."""


class InvalidCredentialsButValidAccountImapError(
    UnauthorizedError, type="errors/invalid_credentials_but_valid_account_imap"
):
    """The account is valid but its mail credentials are not. Correct them."""


class ExpiredLinkError(UnauthorizedError, type="errors/expired_link"):
    """A connection link has expired. Generate a new one."""


class WrongAccountError(UnauthorizedError, type="errors/wrong_account"):
    """The credentials belong to another account. Reconnect with the right ones."""


class KeyMissingError(UnauthorizedError, code="key_missing", scope=Scope.KEY):
    """The API received no key; a proxy on the way may drop it. Listed only in the API's quickstart."""


class NotFoundError(ApiError, status=404, scope=Scope.ACCOUNT, applied=Applied.NO):
    """404: no account of this workspace has this id."""


class ResourceNotFoundError(NotFoundError, type="errors/resource_not_found"):
    """The account does not exist. Check the id, and whether the key belongs to its workspace."""


class InvalidResourceIdentifierError(NotFoundError, type="errors/invalid_resource_identifier"):
    """The id is invalid. Check it."""


class TooManyRequestsError(ApiError, status=429, retryable=True, applied=Applied.NO):
    """429: the rate limit of the API key's tier was exceeded. Documented only in the API's quickstart."""


class InternalServerError(ApiError, status=500):
    """500: an error at PostPress or upstream; the outcome is unknown."""


class UnexpectedError(InternalServerError, type="errors/unexpected_error"):
    """An unexpected error. Check the account before you send the change again."""


class ProviderError(InternalServerError, type="errors/provider_error", retryable=True, applied=Applied.NO):
    """The provider has operational problems. Often temporary: retry."""


class AuthenticationIntentError(
    InternalServerError, type="errors/authentication_intent_error", scope=Scope.ACCOUNT
):
    """The sign-in of the account was stopped after a failure. Start it again."""


class NotSupportedError(ApiError, status=501, scope=Scope.ACCOUNT, applied=Applied.NO):
    """501: proxy updates are not supported for this account's provider."""


class FeatureNotImplementedError(NotSupportedError, type="errors/feature_not_implemented"):
    """The provider of this account does not support proxy updates yet. Leave the account out."""


class BadGatewayError(ApiError, status=502):
    """502: a gateway got no valid response, from the proxy or from a server of PostPress."""


class ProxyError(
    BadGatewayError, type="errors/proxy_error", scope=Scope.PROXY, retryable=True, applied=Applied.NO
):
    """The proxy is not working. Often temporary: retry, then use another proxy."""


class UnavailableError(ApiError, status=503):
    """503: PostPress cannot handle the request for now."""


class NoClientSessionError(UnavailableError, type="errors/no_client_session", applied=Applied.NO):
    """No client session is running for the account. Try again later, or reconnect the account."""


class NoChannelError(UnavailableError, type="errors/no_channel", applied=Applied.NO):
    """There is no channel to the client session. Try again later, or reconnect the account."""


class NoHandlerError(UnavailableError, type="errors/no_handler", applied=Applied.NO):
    """No handler exists for this request. Report it to support with the `instance`."""


class NetworkDownError(UnavailableError, type="errors/network_down", retryable=True, applied=Applied.NO):
    """The network of the server is down. Temporary: retry."""


class ServiceUnavailableError(
    UnavailableError, type="errors/service_unavailable", retryable=True, applied=Applied.NO
):
    """The service is unavailable. Temporary: retry."""


class GatewayTimeoutError(ApiError, status=504):
    """504: the provider did not respond in time; the outcome is unknown."""


class RequestTimeoutError(GatewayTimeoutError, type="errors/request_timeout", retryable=True):
    """The request timed out upstream. Retry; if it persists, report it to support with the `instance`."""


# --- No response, or an invalid one --------------------------------------------------------------


class TransportError(PostPressError):
    """There was no response."""

    retryable = True


class ConnectError(TransportError):
    """No connection could be opened, so nothing was sent. Check the base URL, DNS and firewall."""


class ConnectionLostError(TransportError):
    """The connection was lost before the response was complete. `applied` is NO if nothing was sent."""

    applied: Applied = Applied.UNKNOWN


class AttemptTimeoutError(TransportError):
    """No response within the attempt's timeout. `applied` is NO if nothing was sent."""

    applied: Applied = Applied.UNKNOWN


class TlsError(TransportError):
    """The TLS handshake failed: an untrusted certificate, or no common protocol. Not retried."""

    retryable = False


class AnswerError(PostPressError):
    """
    An invalid response, which is never treated as a success.

    The response is a redirect, or not HTTP (then `status` is None), or has a success status but names another
    account, is not JSON, or is too large. The call is retried only if `RETRYABLE_STATUSES` has the status.
    """

    applied: Applied = Applied.UNKNOWN

    def __init__(self, fact: str, status: int | None) -> None:
        super().__init__(fact, status)
        self.status: int | None = status
        self.retryable: bool = status in RETRYABLE_STATUSES

    def _fact(self) -> str:
        return f"{self.args[0]}." if self.status is None else f"{self.args[0]} (HTTP {self.status})."


class DeadlineError(PostPressError):
    """
    The call sent nothing: its deadline passed while it waited, or its rotation was stopped.

    `applied` is UNKNOWN only if an earlier run may have sent the change.
    """


class SupersededError(PostPressError):
    """
    A newer update of the account was made while this one waited, so this one was not sent.

    Only sessions with ``same_account="latest"`` raise it.
    """

    scope = Scope.ACCOUNT


class BusyError(PostPressError):
    """
    `Pace.max_waiting` calls wait already, so the change was not sent. Try again later, or shed load.

    Calls of a rotation never raise this error.
    """

    scope = Scope.SERVICE


# --- Sessions and rotations ----------------------------------------------------------------------


class ConfigurationError(PostPressError):
    """The session cannot be used: no API key, an invalid argument, or a different event loop."""

    scope = Scope.REQUEST


class SessionClosedError(ConfigurationError):
    """The session was closed and cannot be reopened. Create a new one."""


class RotationError(PostPressError):
    """A rotation cannot start or continue."""

    scope = Scope.REQUEST


class NotSentError(RotationError):
    """
    The account was not sent: its row is invalid, no proxy was left, or the rotation ended first.

    `applied` is UNKNOWN if an earlier run may have sent the account without recording a response.
    """


class ClusterError(RotationError):
    """The cluster cannot be reached, was lost, or has no usable worker."""


class FleetError(RotationError):
    """The input of the rotation cannot be read, or has rejected rows."""


class JournalError(RotationError):
    """The file is not a journal, is damaged, or belongs to another input or target."""


class JournalNotWritableError(JournalError):
    """The journal cannot be written: it is in use, read-only or deleted, or the disk is full."""
