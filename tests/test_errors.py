"""The errors of all types in the API's reference, and how other responses are classified."""

import copy
import pickle
import re

import pytest

from postpress_async import errors
from postpress_async._http.codec import decode_response
from postpress_async._http.transport import Response
from postpress_async.errors import Applied, Scope
from postpress_async.models import Attempt
from tests.support import DATA
from tests.support.wire import make_request

REFERENCE = (DATA / "update-account-proxy.txt").read_text("utf-8")
"""The API's reference of the endpoint, as text."""


def types_in_reference() -> list[tuple[str, int]]:
    """Every type in the reference, with the status under which it is listed."""
    types, status = [], 0
    for line in REFERENCE.splitlines():
        if heading := re.match(r"(\d{3}) [A-Z]", line):
            status = int(heading[1])
        if entry := re.search(r"(errors/\w+) - ", line):
            types.append((entry[1], status))
    return types


# The expected scopes are repeated here, so that a scope cannot be changed by accident.
SCOPES = {
    "errors/missing_credentials": Scope.KEY,
    "errors/insufficient_privileges": Scope.KEY,
    "errors/proxy_error": Scope.PROXY,
    "errors/invalid_proxy_credentials": Scope.PROXY,
    "errors/authentication_intent_error": Scope.ACCOUNT,
    "errors/feature_not_implemented": Scope.ACCOUNT,
}
SCOPE_OF_STATUS = {400: Scope.REQUEST, 401: Scope.ACCOUNT, 404: Scope.ACCOUNT}
RETRIED = {
    "errors/proxy_error",
    "errors/provider_error",
    "errors/network_down",
    "errors/request_timeout",
    "errors/service_unavailable",
}
MAY_BE_APPLIED = {"errors/unexpected_error", "errors/authentication_intent_error", "errors/request_timeout"}


def error_of_type(status: int, type_: str) -> errors.ApiError:
    """The error of a response with the API's envelope."""
    return error_of_body(
        status, f'{{"type": "{type_}", "title": "A title", "status": {status}, "instance": "req_1"}}'
    )


def error_of_body(status: int, body: str) -> errors.ApiError:
    """The error of a response with any body."""
    with pytest.raises(errors.ApiError) as caught:
        decode_response(Response(status, body.encode()), make_request())
    return caught.value


def test_reference_lists_34_types_and_each_has_a_class() -> None:
    assert len(types_in_reference()) == len(dict(types_in_reference())) == 34
    assert set(errors.BY_TYPE) == set(dict(types_in_reference()))


@pytest.mark.parametrize(("type_", "status"), types_in_reference())
def test_response_with_a_listed_type_becomes_an_error_of_its_class(type_: str, status: int) -> None:
    """The class decides the scope, whether a retry makes sense, and what may have been applied."""
    error = error_of_type(status, type_)
    scope = SCOPES.get(type_, SCOPE_OF_STATUS.get(status, Scope.SERVICE))

    assert type(error) is errors.BY_TYPE[type_]
    assert isinstance(error, errors.BY_STATUS[status])
    assert isinstance(error, errors.ApiError)
    assert (error.type, error.status, error.title, error.instance) == (type_, status, "A title", "req_1")
    assert error.scope is scope
    assert error.retryable is (type_ in RETRIED)
    assert error.applied is (Applied.UNKNOWN if type_ in MAY_BE_APPLIED else Applied.NO)


@pytest.mark.parametrize(("type_", "error"), errors.BY_TYPE.items())
def test_error_class_is_named_after_its_type(type_: str, error: type) -> None:
    words = type_.removeprefix("errors/").removesuffix("_error").split("_")

    assert error.__name__ == "".join(map(str.title, words)) + "Error"
    assert getattr(errors, error.__name__) is error


@pytest.mark.parametrize(
    ("status", "type_", "kind", "retried", "applied"),
    [
        pytest.param(
            400, "errors/brand_new", "BadRequestError", False, "no", id="unlisted under a listed status"
        ),
        pytest.param(503, "errors/brand_new", "UnavailableError", True, "unknown", id="unlisted 503"),
        pytest.param(500, "errors/brand_new", "InternalServerError", False, "unknown", id="unlisted 500"),
        pytest.param(429, "errors/too_many_requests", "TooManyRequestsError", True, "no", id="429"),
        pytest.param(408, "errors/timeout", "ApiError", True, "unknown", id="408"),
        pytest.param(418, "errors/teapot", "ApiError", False, "unknown", id="unlisted status"),
        pytest.param(
            503, "errors/proxy_error", "UnavailableError", True, "unknown", id="status and type retryable"
        ),
        pytest.param(
            500, "errors/proxy_error", "InternalServerError", False, "unknown", id="only type retryable"
        ),
        pytest.param(
            502, "errors/invalid_parameters", "BadGatewayError", False, "unknown", id="only status retryable"
        ),
        pytest.param(
            400, "errors/service_unavailable", "BadRequestError", False, "no", id="400 with a type of 503"
        ),
        pytest.param(
            404, "errors/key_missing", "NotFoundError", False, "no", id="404 with a type of the quickstart"
        ),
        pytest.param(
            401, "errors/key_missing", "KeyMissingError", False, "no", id="401 with a type of the quickstart"
        ),
    ],
)
def test_status_decides_the_class_if_the_type_is_unlisted_or_belongs_to_another_status(
    status: int, type_: str, kind: str, retried: bool, applied: str
) -> None:
    """The API may add types without notice."""
    error = error_of_type(status, type_)

    assert type(error).__name__ == kind
    assert error.type == type_
    assert error.retryable is retried
    assert error.applied == applied


@pytest.mark.parametrize("status", [401, 429, 500, 502, 503, 504])
def test_response_without_an_envelope_becomes_an_error_of_its_status(status: int) -> None:
    """A gateway in front of the API may respond with an HTML page."""
    error = error_of_body(status, "<html>no</html>")

    assert type(error) is errors.BY_STATUS[status]
    assert error.retryable is (status in {429, 502, 503, 504})
    assert error.applied is (Applied.NO if status in {401, 429} else Applied.UNKNOWN)


@pytest.mark.parametrize(
    "body", ["", '{"type": "errors/brand_new", "title": "A title"}'], ids=["bare", "unlisted type"]
)
@pytest.mark.parametrize("status", [403, 405, 407, 409, 411, 413, 414, 415, 417, 422, 431])
def test_client_error_that_the_reference_does_not_list_applied_nothing(status: int, body: str) -> None:
    """If the outcome were unknown, every nightly run would send the account again."""
    error = error_of_body(status, body)

    assert type(error) is errors.ApiError
    assert error.applied is Applied.NO
    assert not error.retryable


def test_type_decides_whether_a_409_may_have_been_applied() -> None:
    assert error_of_type(409, "errors/unexpected_error").applied is Applied.UNKNOWN
    assert error_of_type(409, "errors/invalid_request").applied is Applied.NO


@pytest.mark.parametrize(
    ("type_", "scope"),
    [
        pytest.param("", Scope.SERVICE, id="bare"),
        pytest.param("errors/brand_new", Scope.SERVICE, id="unlisted type"),
        pytest.param("errors/invalid_credentials", Scope.SERVICE, id="type with the scope ACCOUNT"),
        pytest.param("errors/insufficient_privileges", Scope.KEY, id="type with the scope KEY"),
    ],
)
def test_403_has_the_scope_key_only_if_its_type_has_it(type_: str, scope: Scope) -> None:
    """A gateway may send a 403 too, and an error of scope KEY halts a rotation."""
    assert error_of_type(403, type_).scope is scope


@pytest.mark.parametrize("status", [405, 409, 413, 415, 422])
def test_unlisted_client_error_has_the_scope_request(status: int) -> None:
    """Another account, proxy or key would get the same response."""
    assert error_of_body(status, "").scope is Scope.REQUEST


@pytest.mark.parametrize("type_", ["proxy_error", "https://errors.example.com/v2/errors/proxy_error"])
def test_type_is_recognized_by_its_last_path_segment(type_: str) -> None:
    error = error_of_type(502, type_)

    assert type(error) is errors.ProxyError
    assert error.scope is Scope.PROXY
    assert error.applied is Applied.NO


@pytest.mark.parametrize(
    "type_", ["proxy_error", "errors/proxy_error", "https://errors.example.com/proxy_error"]
)
def test_code_is_the_same_for_all_spellings_of_a_type(type_: str) -> None:
    """Journals, reports and metrics count errors by their code."""
    error = error_of_type(502, type_)

    assert error.code == "errors/proxy_error"
    assert error.type == type_
    assert str(error).startswith("errors/proxy_error (HTTP 502): A title.")


def test_code_of_an_unlisted_type_is_the_type_as_received() -> None:
    type_ = "https://gateway.example.com/problems/down"

    assert error_of_type(502, type_).code == type_


def every_error() -> list[errors.PostPressError]:
    """Errors of all types and of several other classes, with the facts that a call adds."""
    every: list[errors.PostPressError] = [
        kind(kind.status or 418, errors.Problem(type_, "A title", "A detail", "req_9"), 3.0)
        for type_, kind in {**errors.BY_TYPE, **errors.BY_CODE}.items()
    ]
    every += [kind("a fact") for kind in errors.TransportError.__subclasses__()]
    every += [errors.AnswerError("a fact", 200), errors.DeadlineError("a fact")]
    every += [errors.ConfigurationError("a fact"), errors.SessionClosedError("a fact")]
    every += [errors.FleetError("a fact"), errors.JournalError("a fact")]
    for error in every:
        error.account_id = "acc_1"
        error.attempts = (Attempt(1, 1.0, 0.25, "errors/proxy_error", 502, 1.0), Attempt(2, 2.0, 0.25))
    return every


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_pickled_and_copied_errors_are_complete(error: errors.PostPressError) -> None:
    """A process pool hangs if an exception cannot be unpickled."""
    for duplicate in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(duplicate) is type(error)
        assert str(duplicate) == str(error)
        assert vars(duplicate) == vars(error)


def test_message_has_the_account_the_type_the_instance_and_the_attempts() -> None:
    error = error_of_type(502, "errors/proxy_error")
    error.account_id = "acc_1"
    error.attempts = (Attempt(1, 0.0, 0.5, wait=1.0), Attempt(2, 1.5, 0.5))

    assert str(error) == (
        "acc_1: errors/proxy_error (HTTP 502): A title. Quote instance req_1 to support. 2 attempts in 2.0 s."
    )


def test_message_of_several_facts_consists_of_sentences() -> None:
    error = errors.ConnectError("no connection to localhost: Connection refused")
    error.account_id = "acc_1"
    error.attempts = (Attempt(1, 0.0, 0.5, wait=1.5), Attempt(2, 2.0, 0.5))
    error.applied = Applied.UNKNOWN

    assert str(error) == (
        "acc_1: no connection to localhost: Connection refused. 2 attempts in 2.5 s. "
        "The change may have been applied."
    )


def test_message_of_a_single_fact_gets_no_full_stop() -> None:
    """So a program can make it a part of another sentence."""
    assert str(errors.DeadlineError("its deadline of 8 s passed")) == "its deadline of 8 s passed"


@pytest.mark.parametrize(
    ("type_", "advice"),
    [
        ("errors/invalid_credentials", "If every account gets it, check the API key."),
        ("errors/disconnected_account", "If every account gets it, check the API key."),
        ("errors/unlisted", "If every account gets it, check the API key."),
        ("errors/missing_credentials", "Check the API key."),
    ],
)
def test_message_of_a_401_advises_to_check_the_api_key(type_: str, advice: str) -> None:
    assert f"{type_} (HTTP 401): A title. {advice} Quote" in str(error_of_type(401, type_))


def test_message_about_proxy_credentials_does_not_mention_the_api_key() -> None:
    assert "API key" not in str(error_of_type(401, "errors/invalid_proxy_credentials"))
