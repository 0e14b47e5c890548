"""
Encodes requests and decodes responses, without I/O.

Every response is checked. Its texts are cleaned before they become part of an error: control characters are
escaped, secrets of the request are masked, and the length is limited.
"""

import json
import json.encoder
import re
import time
from collections.abc import Callable, Iterator
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
"""Bytes of the largest response that is read. The API's responses have a few hundred."""

MAX_TEXT: Final = 1024
"""Characters of the longest text of a response that an error contains."""

_PATCHED: Final = b'{"object":"AccountPatched","account_id":"%b"}'
_SPACED: Final = b'{"object": "AccountPatched", "account_id": "%b"}'
"""The bytes of nearly every success. Only other bodies have to be parsed."""

_MAX_CLEANED: Final = 64 * MAX_TEXT
_URL_SAFE: Final = "-._~!$&'()*+,;=:@/?"
_ESCAPE: Final = re.compile(r"%[0-9A-F]{2}|\\u[0-9a-f]{4}")


def encode_request(account_id: str, change: ProxyChange, url: str, api_key: Secret) -> Request:
    """Encode the request that sets *change*; raise `FieldError` if the id cannot be part of a URL."""
    check_account_id(account_id)
    password = None if isinstance(change, ManagedProxy) else change.password
    return Request(account_id, url, _encode_json(body_of(change)).encode("ascii"), api_key, password)


def decode_response(
    response: Response, request: Request, attempts: tuple[Attempt, ...] = ()
) -> AccountPatched:
    """Return the success, with the history of *attempts*; or raise an `ApiError` or `AnswerError`."""
    if response.status == 200:
        problem = _find_mismatch(response.body, request.account_id)
        if problem is None:
            return AccountPatched(request.account_id, attempts)
        raise AnswerError(problem, 200)
    key, password = request.api_key, request.password
    raise _decode_error(response, (key,) if password is None else (key, password))


def _find_mismatch(body: bytes, account_id: str) -> str | None:
    # A separate function, so that no traceback has the parsed body: some tools print local variables.
    if body in (_PATCHED % (id_ := account_id.encode("ascii")), _SPACED % id_):
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
        return AnswerError("the API documents no success but 200", response.status)
    if response.status < 400:
        return AnswerError("a redirect, which is never followed", response.status)
    payload, _ = _parse_json(response.body)
    return ApiError.of(response.status, _decode_problem(payload, secrets), _seconds_to_wait(response))


def _seconds_to_wait(response: Response) -> float | None:
    if response.retry_after is None:
        return None
    # A date is read against the server's clock, which its Date header shows. Ours may be minutes off.
    sent = None if response.date is None else _read_date(response.date)
    return read_retry_after(response.retry_after, time.time() if sent is None else sent)


def read_retry_after(text: str, now: float) -> float | None:
    """
    Seconds to wait from *now* (Unix time), for a number or an HTTP date (RFC 9110, section 10.2.3).

    0.0 for a date in the past; None if *text* is invalid. Dates in other forms are accepted, too: a call
    gives up if it would have to wait for long.
    """
    if text.isascii() and text.isdecimal():
        return float(text)  # infinite if it is too large: the call gives up
    when = _read_date(text)
    return None if when is None else max(0.0, when - now)


def _read_date(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _decode_problem(payload: object, secrets: tuple[Secret, ...]) -> Problem:
    """Decode the error envelope of the reference or the quickstart; an empty `Problem` if it is neither."""
    if not isinstance(payload, dict):
        return Problem()
    if isinstance(inner := payload.get("error"), dict) and isinstance(code := inner.get("code"), str):
        code = code.removeprefix("errors/")
        payload = {
            "type": code and f"errors/{code}",
            "title": inner.get("message"),
            "instance": inner.get("request_id"),
        }
    type_ = payload.get("type")
    if not isinstance(type_, str) or not type_:
        return Problem()
    title, detail, instance = (
        clean(text, secrets) if isinstance(text, str) else None
        for text in (payload.get("title"), _as_text(payload.get("detail")), payload.get("instance"))
    )
    # A listed type is not a secret, even if it contains a password by chance. The text around it may be one.
    listed = listed_type(type_)
    if type_ != listed:
        type_ = clean(type_, secrets)
        if listed is not None and listed_type(type_) != listed:
            type_ = listed
    return Problem(type_, title or "", detail, instance)


def _as_text(detail: object) -> str | None:
    """Text as it is; None for null; otherwise compact JSON."""
    if detail is None or isinstance(detail, str):
        return detail
    try:
        return json.dumps(detail, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None


def clean(text: str, secrets: tuple[Secret, ...]) -> str:
    """Make *text* safe to print: secrets masked, all characters printable, at most `MAX_TEXT` characters."""
    forms = {form for secret in secrets for form in _written_forms(secret.reveal())} - {""}
    if len(text) > _MAX_CLEANED:
        # A secret that the cut splits would not be found, so drop what may be its first part.
        text = text[: _MAX_CLEANED - max(map(len, forms), default=0)]
    # The longest first: a key that contains a password would otherwise be masked only in part.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    # Cut before escaping too: an escape has up to ten characters.
    shown = printable(text[: MAX_TEXT + 1])
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def _written_forms(word: str) -> Iterator[str]:
    """The forms in which a response may repeat *word*: plain, URL-encoded and JSON-escaped."""
    if not word:
        return
    minimal = "".join(c if c.isalnum() or c in _URL_SAFE else quote(c, errors="replace") for c in word)
    encoded = [quote(word, safe=safe, errors="replace") for safe in ("", "!'()*", _URL_SAFE)]
    for url in (minimal, *encoded):
        yield url
        yield _ESCAPE.sub(lambda escape: escape[0].lower(), url)
    yield word
    yield json.dumps(word, ensure_ascii=False)[1:-1]
    yield json.dumps(word)[1:-1]
    yield _ESCAPE.sub(lambda escape: escape[0][:2] + escape[0][2:].upper(), json.dumps(word)[1:-1])


def _parse_json(body: bytes) -> tuple[object, str | None]:
    """Return the value, or None and the problem. An exception would hold the text, and its secrets."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None, "the response is not UTF-8"
    try:
        return _decode_json(text), None
    except (ValueError, RecursionError):  # malformed, a NaN, a duplicate name, 5,000 digits or brackets
        return None, "the response is not JSON" if text.strip() else "the response is empty"


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode_json: Final = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_no_constant).decode


def _make_json_encoder() -> Callable[[object], str]:
    """Make a faster `json.JSONEncoder.encode`, which takes half its time to make its C function each time."""
    encoder = json.JSONEncoder(separators=(",", ":"), check_circular=False)
    try:  # undocumented, so it may be missing or have other parameters
        chunks: Any = vars(json.encoder)["c_make_encoder"](
            None, encoder.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, True
        )
    except (KeyError, TypeError):
        return encoder.encode
    return lambda value: "".join(chunks(value, 0))


_encode_json: Final = _make_json_encoder()
