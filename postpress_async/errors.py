"""
Every error, and what each one tells: whose fault it is, whether to retry, what was applied.

    PostPressError
    ├── ApiError                    the API answered, and refused
    │   ├── BadRequestError         400
    │   ├── UnauthorizedError       401
    │   ├── NotFoundError           404
    │   ├── TooManyRequestsError    429
    │   ├── InternalServerError     500
    │   ├── NotSupportedError       501
    │   ├── BadGatewayError         502
    │   ├── UnavailableError        503
    │   └── GatewayTimeoutError     504    under each: a class for each type of the reference
    ├── TransportError              no answer came
    │   ├── ConnectError            and nothing was sent
    │   ├── ConnectionLostError
    │   ├── AttemptTimeoutError
    │   └── TlsError
    ├── AnswerError                 an answer came that cannot be true, or cannot be read
    ├── DeadlineError               the call's time was up before anything was sent
    ├── ConfigurationError          the session cannot work as it was made
    │   └── SessionClosedError
    └── RotationError               a rotation cannot begin, or cannot go on
        ├── ClusterError            its cluster is gone, or no worker of it can work
        ├── FleetError              its input cannot be read
        └── JournalError            its journal is none, or another rotation's
            └── JournalNotWritableError    or cannot be written: at the beginning, or under way

A class's name follows from its type: ``errors/proxy_error`` is `ProxyError`. The values that a model
refuses are `ValueError`s (`postpress_async.models.FieldError`), since they are known before any call.
"""

# "as" says that these are handed on: a reader finds every error here.
from postpress_async._error_base import (
    BY_CODE as BY_CODE,
)
from postpress_async._error_base import (
    BY_STATUS as BY_STATUS,
)
from postpress_async._error_base import (
    BY_TYPE as BY_TYPE,
)
from postpress_async._error_base import (
    RETRYABLE_STATUSES as RETRYABLE_STATUSES,
)
from postpress_async._error_base import (
    ApiError as ApiError,
)
from postpress_async._error_base import (
    Applied as Applied,
)
from postpress_async._error_base import (
    PostPressError as PostPressError,
)
from postpress_async._error_base import (
    Problem as Problem,
)
from postpress_async._error_base import (
    Scope as Scope,
)


class BadRequestError(ApiError, status=400, scope=Scope.REQUEST, applied=Applied.NO):
    """400: the request payload is invalid or misses a required field."""


class InvalidParametersError(BadRequestError, type="errors/invalid_parameters"):
    """A parameter is invalid or missing. The detail says which; mend the change."""


class MissingParametersError(BadRequestError, type="errors/missing_parameters"):
    """A parameter is missing. The detail says which; mend the change."""


class InvalidRequestError(BadRequestError, type="errors/invalid_request"):
    """A parameter, or a combination of them, is invalid. Mend the change."""


class MalformedRequestError(BadRequestError, type="errors/malformed_request"):
    """The provider rejected the request. Report it with the instance."""


class ContentTooLargeError(BadRequestError, type="errors/content_too_large"):
    """The payload is too large for the provider. Shorten the user name or password."""


class TooManyCharactersError(BadRequestError, type="errors/too_many_characters"):
    """A field exceeds the provider's limit of characters. Shorten it."""


class UnescapedCharactersError(BadRequestError, type="errors/unescaped_characters"):
    """The path has unescaped characters. Ids that could cause it are refused before they are sent."""


class LimitTooHighError(BadRequestError, type="errors/limit_too_high"):
    """A pagination limit is too high. Listed for every endpoint; this one has no pages."""


class UnauthorizedError(ApiError, status=401, scope=Scope.ACCOUNT, applied=Applied.NO):
    """401: credentials are missing, expired or invalid; mostly the account's own, not the API key."""


class MissingCredentialsError(UnauthorizedError, type="errors/missing_credentials", scope=Scope.KEY):
    """The request needs credentials it did not bring. Check the API key."""


class MultipleSessionsError(UnauthorizedError, type="errors/multiple_sessions"):
    """LinkedIn limits sessions on this Recruiter account. Connect it by cookie."""


class InvalidCheckpointSolutionError(UnauthorizedError, type="errors/invalid_checkpoint_solution"):
    """A checkpoint was not passed. Its "Retry" means a person's sign-in, not this call."""


class InvalidProxyCredentialsError(
    UnauthorizedError, type="errors/invalid_proxy_credentials", scope=Scope.PROXY
):
    """The proxy refuses its user name or password. Correct them, or take another proxy."""


class CheckpointError(UnauthorizedError, type="errors/checkpoint_error"):
    """The account waits at a checkpoint that cannot be resolved here. Reconnect the account."""


class InvalidCredentialsError(UnauthorizedError, type="errors/invalid_credentials"):
    """The account's credentials are invalid. Reconnect the account."""


class ExpiredCredentialsError(UnauthorizedError, type="errors/expired_credentials"):
    """The account's credentials have expired. Reconnect the account."""


class InsufficientPrivilegesError(UnauthorizedError, type="errors/insufficient_privileges", scope=Scope.KEY):
    """The API key's scopes do not cover this. 401, not 403: so the reference files it."""


class DisconnectedAccountError(UnauthorizedError, type="errors/disconnected_account"):
    """The account is disconnected from its provider. Reconnect it."""


class DisconnectedFeatureError(UnauthorizedError, type="errors/disconnected_feature"):
    """The service behind the account is disconnected. Reconnect it."""


class InvalidCredentialsButValidAccountImapError(
    UnauthorizedError, type="errors/invalid_credentials_but_valid_account_imap"
):
    """The account is valid and its mail credentials are not. Correct those."""


class ExpiredLinkError(UnauthorizedError, type="errors/expired_link"):
    """A connection link has expired. Generate a new one."""


class WrongAccountError(UnauthorizedError, type="errors/wrong_account"):
    """The credentials belong to another account. Reconnect with the right ones."""


class KeyMissingError(UnauthorizedError, code="key_missing", scope=Scope.KEY):
    """No API key arrived. Only the quickstart lists it; something on the way may drop the header."""


class NotFoundError(ApiError, status=404, scope=Scope.ACCOUNT, applied=Applied.NO):
    """404: the id matches no account of this workspace."""


class ResourceNotFoundError(NotFoundError, type="errors/resource_not_found"):
    """There is no such account. Check the id, and that the key is of its workspace."""


class InvalidResourceIdentifierError(NotFoundError, type="errors/invalid_resource_identifier"):
    """The id is not one that an account can have. Check the id."""


class TooManyRequestsError(ApiError, status=429, retryable=True, applied=Applied.NO):
    """429: over the rate of the key's tier. Not in the reference; the quickstart tells of the limit."""


class InternalServerError(ApiError, status=500):
    """500: something went wrong at PostPress or upstream; what was applied is unknown."""


class UnexpectedError(InternalServerError, type="errors/unexpected_error"):
    """Something went wrong. Look at the account before you send it again."""


class ProviderError(InternalServerError, type="errors/provider_error", retryable=True, applied=Applied.NO):
    """The provider has operational problems. Often passes."""


class AuthenticationIntentError(
    InternalServerError, type="errors/authentication_intent_error", scope=Scope.ACCOUNT
):
    """The account's sign-in was killed after a failure. Start it again from the beginning."""


class NotSupportedError(ApiError, status=501, scope=Scope.ACCOUNT, applied=Applied.NO):
    """501: proxy updates are not supported for this account's provider."""


class FeatureNotImplementedError(NotSupportedError, type="errors/feature_not_implemented"):
    """The provider of this account cannot do it yet. Leave the account out."""


class BadGatewayError(ApiError, status=502):
    """502: the proxy, or something in front of the API, could not be reached."""


class ProxyError(
    BadGatewayError, type="errors/proxy_error", scope=Scope.PROXY, retryable=True, applied=Applied.NO
):
    """The proxy in use does not work. Often passes; worth a retry, then another proxy."""


class UnavailableError(ApiError, status=503):
    """503: PostPress cannot handle the request for now."""


class NoClientSessionError(UnavailableError, type="errors/no_client_session", applied=Applied.NO):
    """No client session is running for the account. Try later, or reconnect it."""


class NoChannelError(UnavailableError, type="errors/no_channel", applied=Applied.NO):
    """There is no channel to the client session. Try later, or reconnect the account."""


class NoHandlerError(UnavailableError, type="errors/no_handler", applied=Applied.NO):
    """Nothing handles this request. Report it with the instance."""


class NetworkDownError(UnavailableError, type="errors/network_down", retryable=True, applied=Applied.NO):
    """The network is down on the server's side. Passes."""


class ServiceUnavailableError(
    UnavailableError, type="errors/service_unavailable", retryable=True, applied=Applied.NO
):
    """The service is unavailable for now. Passes."""


class GatewayTimeoutError(ApiError, status=504):
    """504: the provider did not answer in time; what was applied is unknown."""


class RequestTimeoutError(GatewayTimeoutError, type="errors/request_timeout", retryable=True):
    """The request timed out upstream. Retry; if it persists, report it with the instance."""


# --- No answer, or none to believe ---------------------------------------------------------------


class TransportError(PostPressError):
    """No answer came back."""

    retryable = True

    def __init__(self, fact: str) -> None:
        super().__init__(fact)


class ConnectError(TransportError):
    """No connection came about: nothing was sent. Check the base URL, DNS and firewall."""


class ConnectionLostError(TransportError):
    """The connection broke before the whole answer came. Its `applied` tells whether it had been sent."""


class AttemptTimeoutError(TransportError):
    """The attempt's time was up without an answer. Its `applied` tells whether it had been sent."""


class TlsError(TransportError):
    """No secure connection: a certificate that cannot be trusted, or no common protocol. Not retried."""

    retryable = False


class AnswerError(PostPressError):
    """
    An answer that cannot be true or cannot be read: never taken for a success.

    It is a redirect; or a success that names another account, is not JSON or is too large; or it is not
    HTTP, and then `status` is None. Retried only if its status would be.
    """

    applied: Applied = Applied.UNKNOWN

    def __init__(self, fact: str, status: int | None) -> None:
        super().__init__(fact, status)
        self.status: int | None = status
        self.retryable: bool = status in RETRYABLE_STATUSES

    def _fact(self) -> str:
        return f"{self.args[0]}." if self.status is None else f"{self.args[0]} (HTTP {self.status})."


class DeadlineError(PostPressError):
    """The call's deadline passed while it waited for its turn: nothing was sent."""


# --- Not about one answer ------------------------------------------------------------------------


class ConfigurationError(PostPressError):
    """The session cannot work as it was made: no key, a wrong base URL, another event loop."""

    scope = Scope.REQUEST


class SessionClosedError(ConfigurationError):
    """The session was closed, and does not reopen. Make a new one."""


class RotationError(PostPressError):
    """A rotation cannot begin, or cannot go on."""

    scope = Scope.REQUEST


class ClusterError(RotationError):
    """The cluster cannot be reached, went away, or has no worker that can work."""


class FleetError(RotationError):
    """The rotation's input cannot be read, or has rows that were refused."""


class JournalError(RotationError):
    """The journal is of another input or target, damaged, or not one of ours."""


class JournalNotWritableError(JournalError):
    """The journal cannot be written: in use, read-only, deleted under way, or the disk is full."""
