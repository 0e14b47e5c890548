"""The API reference's rules for the path, the account id and the body of a request."""

import json
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Any, Final, NoReturn, TypeAlias
from urllib.parse import unquote

Json: TypeAlias = dict[str, Any]
_Rules: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], str]]

MAX_BODY_SIZE: Final = 64 * 1024  # bytes; the API reference names the error but no limit

_PREFIX: Final = "/v1/accounts/"
_ACCOUNT_ID: Final = re.compile(r"[A-Za-z0-9._~-]+")
_SEGMENT: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*")  # RFC 3986, section 3.3


class RequestError(Exception):
    """Ends a request with an error type of the API. *detail* replaces the type's default detail."""

    def __init__(self, type: str, detail: str | None = None) -> None:  # noqa: A002 - the API's word
        super().__init__(type, detail)
        self.type = type
        self.detail = detail


def account_segment(raw_path: str) -> str | None:
    """The path's last segment, still escaped; None if the path is not ``/v1/accounts/{id}``."""
    path = raw_path.partition("?")[0]  # the quickstart has a query, ?port=N
    segment = path[len(_PREFIX) :]
    return segment if path.startswith(_PREFIX) and segment and "/" not in segment else None


def is_account_id(account_id: object) -> bool:
    return isinstance(account_id, str) and _ACCOUNT_ID.fullmatch(account_id) is not None


def read_account_id(segment: str) -> str:
    """Percent-decode the account id; raise `RequestError` with a 400 or 404 if the id is not well-formed."""
    if _ACCOUNT_ID.fullmatch(segment):
        return segment
    if not _SEGMENT.fullmatch(segment):
        raise RequestError("errors/unescaped_characters")
    account_id = unquote(segment)
    if not _ACCOUNT_ID.fullmatch(account_id):
        raise RequestError("errors/invalid_resource_identifier")
    return account_id


def read_change(raw: bytes, content_type: str) -> Json:
    """Parse the body and check its fields; raise `RequestError` with the most specific 400 error type."""
    if content_type != "application/json":
        raise RequestError("errors/malformed_request", f"The body is {content_type}, not application/json.")
    try:
        body = json.loads(raw.decode(), parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise RequestError("errors/malformed_request", "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise RequestError("errors/malformed_request", "The body is not a JSON object.")
    _check(body, _BODY, "")
    if not body:
        raise RequestError("errors/missing_parameters", "Give a proxy, or a country and/or an ip.")
    if "proxy" in body and len(body) > 1:
        raise RequestError("errors/invalid_request", "Give either a proxy, or a country and/or an ip.")
    return body


def _reject_constant(name: str) -> NoReturn:
    # Python's json accepts NaN and Infinity, which are not JSON.
    raise ValueError(name)


def _check(fields: Json, rules: _Rules, where: str) -> None:
    for name, value in fields.items():
        if name not in rules:
            raise RequestError("errors/invalid_parameters", f"{where}{name} is not a parameter.")
        holds, rule = rules[name]
        if not holds(value):
            # Do not show the value, which may be a password.
            raise RequestError("errors/invalid_parameters", f"{where}{name} must be {rule}.")


def _is_proxy(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    _check(value, _PROXY, "proxy.")
    for name in ("host", "port"):
        if name not in value:
            raise RequestError("errors/missing_parameters", f"proxy.{name} is missing.")
    return True


def _is_port(value: object) -> bool:
    # JSON has one type of number, so 8080.0 is a port. True is an int in Python but not a number in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 1 <= value <= 65535 and value == int(value)


def _is_ipv4(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(IPv4Address(value))
    except ValueError:
        return False


def _is_string(value: object) -> bool:
    return isinstance(value, str)


_BODY: Final[_Rules] = {
    "proxy": (_is_proxy, "an object"),
    "country": (lambda value: _is_string(value) and len(value) == 2, "a string of 2 characters"),
    "ip": (_is_ipv4, "an IPv4 address"),
}
_PROXY: Final[_Rules] = {
    "host": (lambda value: _is_string(value) and value != "", "a string that is not empty"),
    "port": (_is_port, "a whole number from 1 to 65535"),
    "protocol": (
        lambda value: _is_string(value) and value in ("https", "http", "socks5"),
        "one of https, http, socks5",
    ),
    "username": (_is_string, "a string"),
    "password": (_is_string, "a string"),
}
