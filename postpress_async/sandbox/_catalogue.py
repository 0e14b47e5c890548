"""The error types of the API reference, and two types for HTTP errors that the reference does not list."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class ErrorEntry(NamedTuple):
    """An error type. The API reference gives a detail for each type, but a title only for each status."""

    status: int
    title: str
    detail: str


_REFERENCE: Final = {
    (400, "Bad Request"): {
        "invalid_parameters": "One or more request parameters are invalid or missing.",
        "missing_parameters": "One or more request parameters are missing.",
        "invalid_request": "One or a combination of request parameters are invalid.",
        "malformed_request": "The given request has been rejected by the provider.",
        "content_too_large": "The request payload is too large for the provider.",
        "too_many_characters": "The provided content exceeds the character limit.",
        "unescaped_characters": "The request path contains unescaped characters.",
        "limit_too_high": "Pagination limit too high. See API reference for details.",
    },
    (401, "Unauthorized"): {
        "missing_credentials": "Some credentials are necessary to perform the request.",
        "multiple_sessions": "LinkedIn limits multiple sessions on certain Recruiter accounts. "
        "Use the cookie connection method.",
        "invalid_checkpoint_solution": "The checkpoint resolution did not pass successfully. Retry.",
        "invalid_proxy_credentials": "The provided proxy credentials are invalid.",
        "checkpoint_error": "The checkpoint does not appear to be resolvable.",
        "invalid_credentials": "The provided credentials are invalid.",
        "expired_credentials": "Credentials have expired. Reconnect the account.",
        "insufficient_privileges": "This resource is out of your API-key scopes.",
        "disconnected_account": "The account is disconnected from the provider service.",
        "disconnected_feature": "The service you're trying to reach is disconnected.",
        "invalid_credentials_but_valid_account_imap": "IMAP/SMTP credentials are invalid but the account "
        "is otherwise valid.",
        "expired_link": "This link has expired. Generate a new one.",
        "wrong_account": "The provided credentials do not match the correct account.",
    },
    (404, "Not Found"): {
        "resource_not_found": "The requested resource was not found.",
        "invalid_resource_identifier": "The provided identifier is not a valid account id.",
    },
    (500, "Internal Server Error"): {
        "unexpected_error": "Something went wrong.",
        "provider_error": "The provider is experiencing operational problems. Retry later.",
        "authentication_intent_error": "The current authentication intent was killed after failure. "
        "Start again from the beginning.",
    },
    (501, "Not Implemented"): {
        "feature_not_implemented": "Requested feature is planned but has not been implemented yet.",
    },
    (502, "Bad Gateway"): {
        "proxy_error": "The proxy in use is not working. Please try again.",
    },
    (503, "Service Unavailable"): {
        "no_client_session": "No client session is currently running.",
        "no_channel": "No channel to client session.",
        "no_handler": "Handler missing for that request.",
        "network_down": "Network is down on the server side. Retry shortly.",
        "service_unavailable": "Service temporarily unavailable. Retry later.",
    },
    (504, "Gateway Timeout"): {
        "request_timeout": "Request timed out. Retry, and contact support if it persists.",
    },
}

TYPES: Final[Mapping[str, ErrorEntry]] = {
    f"errors/{name}": ErrorEntry(status, title, detail)
    for (status, title), details in _REFERENCE.items()
    for name, detail in details.items()
}
"""The 34 types of the API reference."""

UNLISTED: Final[Mapping[str, ErrorEntry]] = {
    "errors/method_not_allowed": ErrorEntry(405, "Method Not Allowed", "This resource only accepts PATCH."),
    "errors/too_many_requests": ErrorEntry(
        429, "Too Many Requests", "The rate limit of this key is exceeded."
    ),
}
"""Types of the sandbox's own, because the API reference lists no types for these common HTTP errors."""
