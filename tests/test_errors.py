"""The errors: all types of the reference, and the attributes of each."""

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

PAGE = (DATA / "update-account-proxy.txt").read_text("utf-8")


def listed() -> list[tuple[str, int]]:
    """Every type of the page with the status of its heading."""
    found, status = [], 0
    for line in PAGE.splitlines():
        if heading := re.match(r"(\d{3}) [A-Z]", line):
            status = int(heading[1])
        if entry := re.search(r"(errors/\w+) - ", line):
            found.append((entry[1], status))
    return found


# A copy of the classes' scopes, on purpose: a changed scope has to be changed here as well.
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


def answered(status: int, type_: str) -> errors.ApiError:
    """The error that such an answer becomes."""
    return refusal(
        status, f'{{"type": "{type_}", "title": "A title", "status": {status}, "instance": "req_1"}}'
    )


def refusal(status: int, body: str) -> errors.ApiError:
    """The error that an answer with this body becomes."""
    with pytest.raises(errors.ApiError) as caught:
        decode_response(Response(status, body.encode()), make_request())
    return caught.value


def test_the_page_lists_34_types() -> None:
    """A copy of the page that lost a line would make the tests below prove less."""
    assert len(listed()) == len(dict(listed())) == 34
    assert set(errors.BY_TYPE) == set(dict(listed()))


@pytest.mark.parametrize(("type_", "status"), listed())
def test_each_type_arrives_as_its_class(type_: str, status: int) -> None:
    """Scope, retryability and what was applied hang on the class, and a job acts on them."""
    error = answered(status, type_)
    scope = SCOPES.get(type_, SCOPE_OF_STATUS.get(status, Scope.SERVICE))

    assert type(error) is errors.BY_TYPE[type_]
    assert isinstance(error, errors.BY_STATUS[status])
    assert isinstance(error, errors.ApiError)
    assert (error.type, error.status, error.title, error.instance) == (type_, status, "A title", "req_1")
    assert error.scope is scope
    assert error.retryable is (type_ in RETRIED)
    assert error.applied is (Applied.UNKNOWN if type_ in MAY_BE_APPLIED else Applied.NO)


@pytest.mark.parametrize(("type_", "error"), errors.BY_TYPE.items())
def test_an_error_is_named_after_its_type(type_: str, error: type) -> None:
    """From a type in a log to the class in the source, with no look-up."""
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
        pytest.param(503, "errors/proxy_error", "UnavailableError", True, "unknown", id="both say retry"),
        pytest.param(
            500, "errors/proxy_error", "InternalServerError", False, "unknown", id="the status says no"
        ),
        pytest.param(
            502, "errors/invalid_parameters", "BadGatewayError", False, "unknown", id="the type says no"
        ),
        pytest.param(400, "errors/service_unavailable", "BadRequestError", False, "no", id="a 400 after all"),
        pytest.param(
            404, "errors/key_missing", "NotFoundError", False, "no", id="the quickstart's elsewhere"
        ),
        pytest.param(401, "errors/key_missing", "KeyMissingError", False, "no", id="the quickstart's own"),
    ],
)
def test_the_status_decides_where_the_type_does_not_fit(
    status: int, type_: str, kind: str, retried: bool, applied: str
) -> None:
    """New types appear without notice; a client that raises on them, or believes them, breaks."""
    error = answered(status, type_)

    assert type(error).__name__ == kind
    assert error.type == type_
    assert error.retryable is retried
    assert error.applied == applied


@pytest.mark.parametrize("status", [401, 429, 500, 502, 503, 504])
def test_an_answer_without_an_envelope_is_its_status_s_class(status: int) -> None:
    """A gateway's HTML page in front of the API: 502, 503, 504 and 429 pass, a 500 may have been applied."""
    with pytest.raises(errors.ApiError) as caught:
        decode_response(Response(status, b"<html>no</html>"), make_request())

    assert type(caught.value) is errors.BY_STATUS[status]
    assert caught.value.retryable is (status in {429, 502, 503, 504})
    assert caught.value.applied is (Applied.NO if status in {401, 429} else Applied.UNKNOWN)


@pytest.mark.parametrize(
    "body", ["", '{"type": "errors/brand_new", "title": "A title"}'], ids=["bare", "unlisted type"]
)
@pytest.mark.parametrize("status", [403, 405, 407, 409, 411, 413, 414, 415, 417, 422, 431])
def test_a_refusal_that_the_page_does_not_list_applied_nothing(status: int, body: str) -> None:
    """Recorded as unknown, the account would be sent again every night."""
    error = refusal(status, body)

    assert type(error) is errors.ApiError
    assert error.applied is Applied.NO
    assert not error.retryable


def test_a_conflict_with_a_type_that_may_have_been_applied_is_unknown() -> None:
    """A 409 alone does not say what the conflict is with; its type may."""
    assert answered(409, "errors/unexpected_error").applied is Applied.UNKNOWN
    assert answered(409, "errors/invalid_request").applied is Applied.NO


@pytest.mark.parametrize(
    ("type_", "scope"),
    [
        pytest.param("", Scope.SERVICE, id="bare"),
        pytest.param("errors/brand_new", Scope.SERVICE, id="unlisted type"),
        pytest.param("errors/invalid_credentials", Scope.SERVICE, id="an account's type"),
        pytest.param("errors/insufficient_privileges", Scope.KEY, id="a key's type"),
    ],
)
def test_a_403_is_the_key_only_if_its_type_says_so(type_: str, scope: Scope) -> None:
    """A gateway refuses with 403 too, and a rotation stops at once at an error of scope KEY."""
    assert answered(403, type_).scope is scope


@pytest.mark.parametrize("status", [405, 409, 413, 415, 422])
def test_an_unlisted_refusal_is_about_the_request(status: int) -> None:
    """Another account, proxy or key would get the same answer to such a request."""
    assert refusal(status, "").scope is Scope.REQUEST


@pytest.mark.parametrize("type_", ["proxy_error", "https://errors.example.com/v2/errors/proxy_error"])
def test_a_type_is_known_by_its_last_path_segment(type_: str) -> None:
    """A pool replaces the proxy only if the error is known to be of scope PROXY."""
    error = answered(502, type_)

    assert type(error) is errors.ProxyError
    assert error.scope is Scope.PROXY
    assert error.applied is Applied.NO


@pytest.mark.parametrize(
    "type_", ["proxy_error", "errors/proxy_error", "https://errors.example.com/proxy_error"]
)
def test_each_spelling_of_a_type_has_the_same_code(type_: str) -> None:
    """Journals, reports and metrics count by the code; the error keeps what came."""
    error = answered(502, type_)

    assert error.code == "errors/proxy_error"
    assert error.type == type_
    assert str(error).startswith("errors/proxy_error (HTTP 502): A title.")


def test_a_type_that_nobody_lists_keeps_its_spelling_in_the_code() -> None:
    """The type may come from a gateway in front of the API."""
    assert answered(502, "https://gateway.example.com/problems/down").code == (
        "https://gateway.example.com/problems/down"
    )


def every_error() -> list[errors.PostPressError]:
    made: list[errors.PostPressError] = [
        kind(kind.status or 418, errors.Problem(type_, "A title", "A detail", "req_9"), 3.0)
        for type_, kind in {**errors.BY_TYPE, **errors.BY_CODE}.items()
    ]
    made += [kind("a fact") for kind in errors.TransportError.__subclasses__()]
    made += [errors.AnswerError("a fact", 200), errors.DeadlineError("a fact")]
    made += [errors.ConfigurationError("a fact"), errors.SessionClosedError("a fact")]
    made += [errors.FleetError("a fact"), errors.JournalError("a fact")]
    for error in made:
        error.account_id = "acc_1"
        error.attempts = (Attempt(1, 1.0, 0.25, "errors/proxy_error", 502, 1.0), Attempt(2, 2.0, 0.25))
    return made


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: errors.PostPressError) -> None:
    """A process pool hangs on an exception that does not unpickle."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_an_error_says_what_an_operator_needs_at_three_in_the_morning() -> None:
    """The account, the type, how often it was tried, and the id to quote to support."""
    error = answered(502, "errors/proxy_error")
    error.account_id = "acc_1"
    error.attempts = (Attempt(1, 0.0, 0.5, wait=1.0), Attempt(2, 1.5, 0.5))

    assert str(error) == (
        "acc_1: errors/proxy_error (HTTP 502): A title. Quote instance req_1 to support. 2 attempts in 2.0 s."
    )


def test_error_messages_are_sentences() -> None:
    """A fact that ended without a full stop ran into the number of attempts."""
    error = errors.ConnectError("no connection to localhost: Connection refused")
    error.account_id = "acc_1"
    error.attempts = (Attempt(1, 0.0, 0.5, wait=1.5), Attempt(2, 2.0, 0.5))
    error.applied = Applied.UNKNOWN

    assert str(error) == (
        "acc_1: no connection to localhost: Connection refused. 2 attempts in 2.5 s. "
        "The change may have been applied."
    )


def test_a_single_fact_is_left_as_it_is() -> None:
    """A program puts it into a sentence of its own."""
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
def test_a_401_says_that_it_may_be_the_api_key(type_: str, advice: str) -> None:
    assert f"{type_} (HTTP 401): A title. {advice} Quote" in str(answered(401, type_))


def test_a_proxy_that_refuses_its_password_says_nothing_about_the_api_key() -> None:
    assert "API key" not in str(answered(401, "errors/invalid_proxy_credentials"))
