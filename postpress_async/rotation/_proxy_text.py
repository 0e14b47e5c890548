"""
Parses a proxy written as text: a line of a proxy list, or a cell of the column ``proxy``.

The forms are ``host:port``, ``host:port:user:password``, ``user:password@host:port`` and a URL, with IPv6
addresses in brackets. Only URLs are percent-decoded; in the other forms a password is used unchanged.
"""

import re
from typing import Final

from postpress_async._fields import is_host, read_port, split_host_port
from postpress_async.models import CustomProxy, FieldError

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FOUR_PARTS: Final = re.compile(r"(\[[^]]*\]|[^:@]+):([0-9]+):([^:]*):(.*)", re.DOTALL)
_FORMS: Final = "write host:port, host:port:user:password, user:password@host:port or a URL"

_HOST: Final = r"(?P<host>\[[^]]+\]|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)"
_HOST_WITH_DOT: Final = _HOST.replace(")*)", ")+)")  # the dot shows that it is not a user name
# Frequent mistakes, and advice that names the correct form.
_MISTAKES: Final = {
    re.compile(pattern, re.DOTALL): advice
    for pattern, advice in {
        _SCHEME.pattern + _HOST + r":[0-9]+:[^:]+:.+": "write SCHEME://user:password@host:port, or "
        "host:port:user:password without the scheme",
        rf"[^:@]+:[^:@]+:{_HOST_WITH_DOT}:[0-9]+": "write user:password@host:port",
        rf"{_HOST}:[0-9]+@[^:@]+:.+": "write user:password@host:port",
        rf"{_HOST}[\s;|]+[0-9]+(?:[\s;|].*)?": "put colons between the parts: host:port:user:password",
        rf"{_HOST}:[0-9]+[\s;|,]+[^:]+:.+": "write host:port:user:password",
    }.items()
}


def read_proxy(text: str) -> CustomProxy:
    """
    Parse a proxy in any form.

    ``a:1:b@c:2`` matches two forms: the host is ``a`` or ``c``. The host is the one that has a dot or is an
    IPv6 address. If that is true of both or neither, the text is refused, because otherwise part of a
    password might be used as a host.
    """
    text = text.strip()
    try:
        return CustomProxy.from_url(text) if _SCHEME.match(text) else _read_without_scheme(text)
    except FieldError:
        for mistake, advice in _MISTAKES.items():
            if (match := mistake.fullmatch(text)) and is_host(without_brackets(match["host"])):
                raise FieldError(None, "form unknown", advice) from None
        raise


def custom_proxy(host: str, port: int, username: str, password: str, protocol: str = "") -> CustomProxy:
    """Create a proxy from texts, which may be empty except for *host*."""
    return CustomProxy(
        host=host,
        port=port,
        protocol=protocol.lower() or None,
        username=username or None,
        password=password or None,
    )


def without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host


def _read_without_scheme(text: str) -> CustomProxy:
    if text.count(":") > 1 and (is_host(text) or is_host(text.rpartition(":")[0])):
        raise FieldError("host", "host not an IPv6 address", "put brackets around it: [2001:db8::1]:8080")
    credentials, at, address = text.rpartition("@")
    address = address.removesuffix("/")
    four = _FOUR_PARTS.fullmatch(text)
    if four and at and _is_address(address) and not _has_four_parts(four[1], address):
        four = None  # the text is user:password@host:port
    if four:
        host, port, username, password = four.groups()
        return custom_proxy(without_brackets(host), read_port(port), username, password)
    if at:
        username, _, password = credentials.partition(":")
        return custom_proxy(*split_host_port(address), username, password)
    _check_may_be_address(text)
    return custom_proxy(*split_host_port(address), "", "")


def _has_four_parts(host: str, address: str) -> bool:
    """Whether a text that matches both forms is ``host:port:user:password``, not ``user:password@host``."""
    if not is_host(without_brackets(host)):
        return False
    host_is_complete, address_is_complete = (bool(re.search(r"[.\[]", text)) for text in (host, address))
    if host_is_complete == address_is_complete:
        raise FieldError(None, "form ambiguous", "write it as a URL: http://user:password@host:port")
    return host_is_complete


def _check_may_be_address(text: str) -> None:
    """Raise `FieldError` if *text*, which contains no ``@``, cannot be ``host:port``."""
    parts = text.split(":")
    if text.startswith("[") or len(parts) < 3:
        if "," in text and len(parts) == 1:
            raise FieldError(None, "columns not named", "name them in the first line: host,port,...")
        return
    if not parts[1]:
        raise FieldError("port", "port missing", _FORMS)
    if not (parts[1].isascii() and parts[1].isdecimal()):
        raise FieldError("port", "port not an integer", _FORMS)
    advice = "write host:port:user:password, or user@host:port without a password"
    raise FieldError("password", "password missing", advice)


def _is_address(text: str) -> bool:
    try:
        custom_proxy(*split_host_port(text), "", "")
    except FieldError:
        return False
    return True
