"""
Values to bytes, bytes to values or errors. No I/O: what goes in decides what comes out.

An answer is not believed before it has been checked, and no text of it reaches an error before it
has been cleaned: control characters are escaped, secrets of the request are masked, length is capped.
"""

import json
import re
import time
from collections.abc import Iterator
from functools import cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from attrs import define, field

from postpress_async._failure import listed_type
from postpress_async._fields import check_account_id
from postpress_async._retry_after import read_date, read_retry_after
from postpress_async.errors import AnswerError, ApiError, PostPressError, Problem
from postpress_async.models import AccountPatched, Attempt, CustomProxy, ManagedProxy, ProxyChange
from postpress_async.secret import MASK, Secret

if TYPE_CHECKING:
    from cattrs import Converter

MAX_ANSWER: Final = 256 * 1024
"""Bytes of the largest answer that is read. The API's are a few hundred."""

MAX_TEXT: Final = 1024
"""Characters of the longest text from outside that an error repeats."""

_PATCHED: Final = b'{"object":"AccountPatched","account_id":"%b"}'
_SPACED: Final = b'{"object": "AccountPatched", "account_id": "%b"}'
"""What a success is, nearly always, to the byte; only what is not has to be parsed to be judged."""

_ENOUGH: Final = 64 * MAX_TEXT  # more is not looked at
_URL_SAFE: Final = "-._~!$&'()*+,;=:@/?"
_LOWERED: Final = re.compile(r"%[0-9A-F]{2}|\\u[0-9a-f]{4}")


@define
class Request:
    """One PATCH, as bytes. *secrets* are masked in whatever the answer says."""

    account_id: str
    body: bytes = field(repr=False)
    secrets: tuple[Secret, ...] = ()


@define
class Answer:
    """The response: the status, the whole body, and the headers ``Retry-After`` and ``Date``."""

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None = field(default=None, repr=False)
    date: str | None = field(default=None, repr=False)


def patch_account(account_id: str, change: ProxyChange) -> Request:
    """
    The request that gives *account_id* its *change*; only fields that were given are in it.

    Raises:
        FieldError: The id cannot stand in a URL.
        TypeError: *change* is neither a `CustomProxy` nor a `ManagedProxy`.
    """
    check_account_id(account_id)
    if isinstance(change, CustomProxy):
        text = '{"proxy":' + (_custom(change) if type(change) is CustomProxy else _any(change)) + "}"
        secrets = (change.password,) if change.password is not None else ()
    elif isinstance(change, ManagedProxy):
        text, secrets = _managed(change) if type(change) is ManagedProxy else _any(change), ()
    else:
        raise TypeError(f"a change is a CustomProxy or a ManagedProxy, not {type(change).__name__}")
    return Request(account_id, text.encode("ascii"), secrets)


# Written by hand what `_any` would write, in a fifth of the time: a test compares the two.


def _custom(change: CustomProxy) -> str:
    text = f'{{"host":{_quoted(change.host)},"port":{change.port}'
    if change.protocol is not None:
        text += f',"protocol":"{change.protocol}"'
    if change.username is not None:
        text += f',"username":{_quoted(change.username)}'
    if change.password is not None:
        text += f',"password":{_quoted(change.password.reveal())}'
    return text + "}"


def _managed(change: ManagedProxy) -> str:
    if change.ip is None:
        return f'{{"country":"{change.country}"}}'
    if change.country is None:
        return f'{{"ip":{_quoted(change.ip)}}}'
    return f'{{"country":"{change.country}","ip":{_quoted(change.ip)}}}'


def _any(change: ProxyChange) -> str:
    """*change* of whatever class: one of the caller's own may have fields of its own."""
    return json.dumps(_converter().unstructure(change), separators=(",", ":"))


@cache
def _converter() -> "Converter":
    from cattrs import Converter  # by most programs not needed, and 6 ms of the import

    converter = Converter(omit_if_default=True)  # only what was given is sent
    converter.register_unstructure_hook(Secret, Secret.reveal)
    return converter


def read_patched(
    answer: Answer, request: Request, key: Secret, attempts: tuple[Attempt, ...] = ()
) -> AccountPatched:
    """
    The success that *answer* tells of, if it is one for this very request; *attempts* are how it came about.

    Raises:
        ApiError: The API refused; the class says what.
        AnswerError: It cannot be true or cannot be read.
    """
    if answer.status == 200:
        fault = _disbelief(answer.body, request.account_id)
        if fault is None:
            return AccountPatched(request.account_id, attempts)
        raise AnswerError(fault, 200)
    raise _read_error(answer, (key, *request.secrets))


def _disbelief(body: bytes, account_id: str) -> str | None:
    # A function of its own: what it reads is on no traceback, which some print with locals.
    if body in (_PATCHED % (id_ := account_id.encode("ascii")), _SPACED % id_):
        return None
    payload, fault = _read_json(body)
    if fault is not None:
        return fault
    if not isinstance(payload, dict) or payload.get("object") != "AccountPatched":
        return 'the answer is not an object "AccountPatched"'
    if payload.get("account_id") != account_id:
        return "the answer is about another account"
    return None


def _read_error(answer: Answer, secrets: tuple[Secret, ...]) -> PostPressError:
    if answer.status < 300:
        return AnswerError("the API documents no success but 200", answer.status)
    if answer.status < 400:
        return AnswerError("a redirect, which is never followed", answer.status)
    payload, _ = _read_json(answer.body)
    return ApiError.of(answer.status, _read_problem(payload, secrets), _seconds_to_wait(answer))


def _seconds_to_wait(answer: Answer) -> float | None:
    if answer.retry_after is None:
        return None
    now = time.time()
    # A date is of the server's clock, which its Date header shows; ours may be minutes off.
    sent = None if answer.date is None else read_date(answer.date, now)
    return read_retry_after(answer.retry_after, now if sent is None else sent)


def _read_problem(payload: object, secrets: tuple[Secret, ...]) -> Problem:
    """The envelope of the reference, or the quickstart's; an empty `Problem` where it is neither."""
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
    # A listed type is not a secret, even if a password happens to be a part of it; the text around it may be.
    listed = listed_type(type_)
    if type_ != listed:
        type_ = clean(type_, secrets)
        if listed is not None and listed_type(type_) != listed:
            type_ = listed
    return Problem(type_, title or "", detail, instance)


def _as_text(detail: object) -> str | None:
    """*detail* as it is if it is text; compact JSON of everything else but null."""
    if detail is None or isinstance(detail, str):
        return detail
    try:
        return json.dumps(detail, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None


def clean(text: str, secrets: tuple[Secret, ...]) -> str:
    """*text* from outside, fit to be printed: secrets masked, all printable, at most `MAX_TEXT` long."""
    forms = {form for secret in secrets for form in _written(secret.reveal())} - {""}
    if len(text) > _ENOUGH:
        # What stands over this cut may be the beginning of a secret, which would no longer be known.
        text = text[: _ENOUGH - max(map(len, forms), default=0)]
    # The longest first: a key that holds a password would else be left in pieces.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    # Cut before it is escaped too: an escape is up to ten characters for one.
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: MAX_TEXT + 1])
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def _written(word: str) -> Iterator[str]:
    """*word* in every form in which others write it: the API chooses how it repeats what it was sent."""
    if not word:
        return
    must = "".join(c if c.isalnum() or c in _URL_SAFE else quote(c, errors="replace") for c in word)
    encoded = [quote(word, safe=safe, errors="replace") for safe in ("", "!'()*", _URL_SAFE)]
    for url in (must, *encoded):
        yield url
        yield _LOWERED.sub(lambda escape: escape[0].lower(), url)
    yield word
    yield json.dumps(word, ensure_ascii=False)[1:-1]
    yield json.dumps(word)[1:-1]
    yield _LOWERED.sub(lambda escape: escape[0][:2] + escape[0][2:].upper(), json.dumps(word)[1:-1])


def _read_json(body: bytes) -> tuple[object, str | None]:
    """
    The value, or None and what is wrong with it.

    A fault is told, not raised: the exceptions of `json` and of decoding hold the whole text, and
    would stay on the chain of ours.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None, "the answer is not UTF-8"
    try:
        return _read(text), None
    except (ValueError, RecursionError):  # malformed, a NaN, a name twice, 5,000 digits, 5,000 brackets
        return None, "the answer is not JSON" if text.strip() else "the answer is empty"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands twice")
    return names


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_read: Final = json.JSONDecoder(object_pairs_hook=_each_once, parse_constant=_no_constant).decode
