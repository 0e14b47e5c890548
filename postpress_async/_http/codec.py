"""
Encodes requests and decodes responses, without I/O.

Every response is checked. Its texts are cleaned before an error contains them: secrets of the request are
masked, control characters are escaped, and the length is limited.
"""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

from postpress_async._converter import body_of
from postpress_async._error_base import listed_type
from postpress_async._fields import check_account_id, printable
from postpress_async._http.transport import Request, Response
from postpress_async.errors import AnswerError, ApiError, PostPressError, Problem
from postpress_async.models import AccountPatched, Attempt, ManagedProxy, ProxyChange
from postpress_async.secret import MASK, Secret

MAX_RESPONSE_SIZE: Final = 256 * 1024
"""Maximum number of bytes of a response. The API's responses have a few hundred."""

MAX_TEXT: Final = 1024  # maximum number of characters that an error contains of each text of a response

_COMPACT_SUCCESS: Final = b'{"object":"AccountPatched","account_id":"%b"}'
_SPACED_SUCCESS: Final = b'{"object": "AccountPatched", "account_id": "%b"}'
"""Nearly every success has one of these two bodies. Only other bodies are parsed."""

_URL_SAFE: Final = "-._~!$&'()*+,;=:@/?"
"""Characters that a URL may contain unencoded in its query (RFC 3986, section 3.4)."""

_ESCAPE: Final = re.compile(r"%[0-9A-F]{2}|\\u[0-9a-f]{4}")
"""An escaped character in a URL or in JSON, as `quote` and `json.dumps` write it."""


def encode_request(account_id: str, change: ProxyChange, url: str, api_key: Secret) -> Request:
    """Encode the request that makes *change*; raise `FieldError` if *account_id* is invalid."""
    check_account_id(account_id)
    password = None if isinstance(change, ManagedProxy) else change.password
    return Request(account_id, url, _encode_json(body_of(change)).encode("ascii"), api_key, password)


def decode_response(
    response: Response, request: Request, attempts: tuple[Attempt, ...] = ()
) -> AccountPatched:
    """Return the result of a success, with the call's *attempts*; raise an `ApiError` or `AnswerError`."""
    if response.status != 200:
        key, password = request.api_key, request.password
        raise _decode_error(response, (key,) if password is None else (key, password))
    problem = _find_mismatch(response.body, request.account_id)
    if problem is not None:
        raise AnswerError(problem, 200)
    return AccountPatched(request.account_id, attempts)


def _find_mismatch(body: bytes, account_id: str) -> str | None:
    """Return what is wrong with the body of a 200; None if it confirms the change of *account_id*."""
    # Errors are not raised here: their traceback would hold the parsed body, which some tools would print.
    id_bytes = account_id.encode("ascii")
    if body in (_COMPACT_SUCCESS % id_bytes, _SPACED_SUCCESS % id_bytes):
        return None
    payload, problem = _parse_json(body)
    if problem is not None:
        return problem
    if not isinstance(payload, dict) or payload.get("object") != "AccountPatched":
        return 'the response is not an object "AccountPatched"'
    if payload.get("account_id") != account_id:
        return "the response is about another account"
    return None


def _decode_error(response: Response, secrets: tuple[Secret, ...]) -> PostPressError:
    if response.status < 300:
        return AnswerError("the only success that the API documents is 200", response.status)
    if response.status < 400:
        return AnswerError("a redirect, which is never followed", response.status)
    payload, _ = _parse_json(response.body)
    return ApiError.of(response.status, _decode_problem(payload, secrets), _seconds_to_wait(response))


def _seconds_to_wait(response: Response) -> float | None:
    if response.retry_after is None:
        return None
    # A date in Retry-After is a time of the server's clock, which the Date header shows. The local clock may
    # be minutes off.
    server_time = None if response.date is None else _read_date(response.date)
    return read_retry_after(response.retry_after, time.time() if server_time is None else server_time)


def read_retry_after(text: str, now: float) -> float | None:
    """
    Return the seconds to wait from *now* (Unix time), or None if the value *text* of Retry-After is invalid.

    *text* is a number of seconds or an HTTP date (RFC 9110, section 10.2.3). A date in the past means 0.0.
    Other date formats are accepted too. A date that is misread cannot delay a call for long, because calls
    give up if the wait is too long.
    """
    if text.isascii() and text.isdecimal():
        return float(text)  # infinity if the number is too large for a float, so that the call gives up
    when = _read_date(text)
    return None if when is None else max(0.0, when - now)


def _read_date(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _decode_problem(payload: object, secrets: tuple[Secret, ...]) -> Problem:
    """
    Decode the error envelope of the API's reference or of its quickstart.

    Returns an empty `Problem` if *payload* is neither.
    """
    if not isinstance(payload, dict):
        return Problem()
    quickstart_error = payload.get("error")
    if isinstance(quickstart_error, dict) and isinstance(quickstart_error.get("code"), str):
        code = quickstart_error["code"].removeprefix("errors/")
        payload = {
            "type": f"errors/{code}" if code else "",
            "title": quickstart_error.get("message"),
            "instance": quickstart_error.get("request_id"),
        }
    type_ = payload.get("type")
    if not isinstance(type_, str) or not type_:
        return Problem()
    title, detail, instance = (
        clean(text, secrets) if isinstance(text, str) else None
        for text in (payload.get("title"), _as_text(payload.get("detail")), payload.get("instance"))
    )
    # A listed type is not masked, even if it contains the password by chance. If it is part of a longer text,
    # such as a URL, the rest of that text may contain a secret.
    listed = listed_type(type_)
    if type_ != listed:
        type_ = clean(type_, secrets)
        if listed is not None and listed_type(type_) != listed:
            type_ = listed
    return Problem(type_, title or "", detail, instance)


def _as_text(detail: object) -> str | None:
    """Return a string as it is, None for null, and any other value as compact JSON."""
    if detail is None or isinstance(detail, str):
        return detail
    try:
        return json.dumps(detail, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None


def clean(text: str, secrets: tuple[Secret, ...]) -> str:
    """Make *text* safe to print: secrets masked, all characters printable, at most `MAX_TEXT` characters."""
    forms = {form for secret in secrets for form in _written_forms(secret.reveal())} - {""}
    # Search the whole text (2 ms for 256 KiB): a cut could split a secret, whose first part would stay. Mask
    # the longest form first: if the API key contains the password, the rest of the key would stay otherwise.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    # Cut before escaping, so that no more is escaped than shown, and afterwards, because escapes are longer.
    shown = printable(text[: MAX_TEXT + 1])
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def _written_forms(secret: str) -> Iterator[str]:
    """Yield the forms in which a response may repeat *secret*: plain, URL-encoded and JSON-escaped."""
    if not secret:
        return
    # Encoders differ in which characters they encode.
    minimal = "".join(c if c.isalnum() or c in _URL_SAFE else quote(c, errors="replace") for c in secret)
    encoded = [quote(secret, safe=safe, errors="replace") for safe in ("", "!'()*", _URL_SAFE)]
    for url in (minimal, *encoded):
        yield url
        yield _ESCAPE.sub(lambda escape: escape[0].lower(), url)
    yield secret
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield _ESCAPE.sub(lambda escape: escape[0][:2] + escape[0][2:].upper(), json.dumps(secret)[1:-1])


def _parse_json(body: bytes) -> tuple[object, str | None]:
    """Return the value and None; or None and the problem, because an exception would hold the text."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None, "the response is not UTF-8"
    try:
        return _decode_json(text), None
    except (ValueError, RecursionError):  # also NaN, a duplicate name, a number too long, nesting too deep
        return None, "the response is not JSON" if text.strip() else "the response is empty"


def _reject_duplicate_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_encode_json: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode_json: Final = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_names, parse_constant=_reject_constant
).decode
