"""
Validation of the API's fields.

The API reference gives only types and lengths. The stricter rules here find mistakes in a large fleet before
anything is sent. Every invalid value raises `FieldError`. The functions named after fields are the attrs
validators of `models`.
"""

import ipaddress
import re
from typing import Any, Self
from urllib.parse import unquote

from postpress_async import _countries

# The API reference says only "string". RFC 3986's unreserved characters need no escaping in a path.
_ACCOUNT_ID = re.compile(r"[A-Za-z0-9._~-]{1,256}")
LONGEST_CREDENTIAL = 16_384
"""Maximum characters of a user name or password. The API gives no limit; proxies accept far fewer."""

# No proxy protocol can transmit control characters, and lone surrogates cannot be encoded as UTF-8.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_PLAIN_HOST = re.compile(r"(?:[A-Za-z0-9]{1,63}\.)*[A-Za-z]{1,63}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PORT_RULE = "must be a whole number from 1 to 65535"


class FieldError(ValueError):
    """
    A value that the API would reject, found before anything is sent.

    Attributes:
        field: The API's name of the invalid field; None if the error is about several fields.
        reason: The fact in a few words, such as ``port out of range``.
        advice: The rule or the fix, such as ``must be a whole number from 1 to 65535``.
        account_id: The account whose change is invalid, if there are several changes; otherwise None.
    """

    def __init__(self, field: str | None, reason: str, advice: str) -> None:
        super().__init__(field, reason, advice)
        self.field = field
        self.reason = reason
        self.advice = advice
        self.account_id: str | None = None
        self._message = f"{reason}: {advice}"

    def __str__(self) -> str:
        return self._message

    def of_account(self, account_id: str | None, message: str) -> Self:
        """Set the account and the whole message, which says where the change is."""
        self.account_id, self._message = account_id, message
        return self


def check_account_id(account_id: str) -> str:
    """Return *account_id*, or raise `FieldError` if a URL would have to escape it."""
    if not isinstance(account_id, str):
        advice = f"must be a string, got {type(account_id).__name__}"
        raise FieldError("account_id", "account_id not text", advice)
    if not account_id:
        raise FieldError("account_id", "account_id missing", "give the id of the account")
    if account_id in {".", ".."} or not _ACCOUNT_ID.fullmatch(account_id):
        advice = "must be 1 to 256 of the characters A-Z a-z 0-9 . _ ~ - and neither . nor .."
        raise FieldError("account_id", "account_id not allowed", advice)
    return account_id


def split_host_port(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[IPv6]:port``; raise `FieldError` if a part is missing or malformed."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise FieldError("host", "host not an IPv6 address", "write it as [2001:db8::1]:8080")
        port = rest[1:]
    else:
        host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
        if ":" in host:
            raise FieldError("host", "host not an IPv6 address", "put brackets around it: [2001:db8::1]:8080")
    return host, read_port(port)


def percent_decoded(text: str) -> str:
    # The text may be a password, and the exception of errors="strict" would contain it. Instead, invalid
    # UTF-8 becomes lone surrogates, which the field's validator rejects.
    return unquote(text, errors="surrogateescape")


def read_port(text: str) -> int:
    """Return *text* as a number of any size; raise `FieldError` unless it consists of the digits 0 to 9."""
    if not text:
        raise FieldError("port", "port missing", "give a whole number from 1 to 65535")
    if not (text.isascii() and text.isdecimal()):
        raise FieldError("port", "port not an integer", _PORT_RULE)
    return int(text) if len(text) <= 9 else 10**9  # int() rejects very long texts; any invalid port will do


def upper_country(value: str) -> str:
    # Checked before upper-casing: "ß" and "ﬁ" are one character each and become SS and FI.
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z]{2}", value):
        raise FieldError("country", "country is two letters", "give an ISO 3166-1 alpha-2 code, such as US")
    return value.upper()


def check_host(host: str) -> None:
    """Raise `FieldError` unless *host* is a host name, an IPv4 address or an unbracketed IPv6 address."""
    if isinstance(host, str) and len(host) <= 253 and _PLAIN_HOST.fullmatch(host):
        return  # the fast path for most hosts
    if not isinstance(host, str):
        raise FieldError("host", "host not text", f"must be a string, got {type(host).__name__}")
    if not host:
        raise FieldError("host", "host missing", "give the proxy's host name or IP address")
    if "://" in host:
        advice = "put the scheme into protocol, and only the host into host"
        raise FieldError("host", "host has a scheme", advice)
    if any(character.isspace() for character in host):
        advice = "remove the space; check that no other column was pasted"
        raise FieldError("host", "host has a space", advice)
    if ":" in host:
        _check_ipv6(host)
        return
    name = host.removesuffix(".")
    labels = name.split(".")
    if labels[-1].isdecimal() and not _is_ip(host, 4):
        raise FieldError("host", "host not an IPv4 address", "must be four numbers from 0 to 255")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        advice = "use letters, digits, hyphens and dots; write an international name in its xn-- form"
        raise FieldError("host", "host not a host name", advice)


def is_host(text: str) -> bool:
    try:
        check_host(text)
    except FieldError:
        return False
    return True


def _check_ipv6(host: str) -> None:
    if host.startswith("[") and host.endswith("]"):
        raise FieldError("host", "host has brackets", "write the IPv6 address without them: 2001:db8::1")
    if "%" in host:
        raise FieldError("host", "host has a zone", "remove the zone; it has no meaning on another machine")
    if _is_ip(host, 6):
        return
    if host.count(":") > 1 and not host.startswith("["):
        raise FieldError("host", "host not an IPv6 address", "must be an address such as 2001:db8::1")
    raise FieldError("host", "host has a port", "put it into port, and only the host into host")


def _is_ip(text: str, version: int) -> bool:
    # The text may be a pasted password. `ipaddress` quotes it in its exception, which must not become the
    # context of a `FieldError`, so this function returns a bool.
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def host(_instance: object, _attribute: object, value: str) -> None:
    check_host(value)


def port(_instance: object, _attribute: object, value: int) -> None:
    if type(value) is not int:  # isinstance would accept True
        raise FieldError("port", "port not an integer", _PORT_RULE)
    if not 1 <= value <= 65535:
        # The value is not shown: if a URL lacks its @, the value may be a password made of digits.
        raise FieldError("port", "port out of range", _PORT_RULE)


def credential(_instance: object, attribute: Any, value: Any) -> None:
    """Validate the user name, which is a string, or the password, which is a `Secret`."""
    if value is None:
        return
    name = attribute.name
    text = value.reveal() if name == "password" else value
    if not isinstance(text, str):
        raise FieldError(name, f"{name} not text", f"must be a string, got {type(text).__name__}")
    if len(text) > LONGEST_CREDENTIAL:
        advice = f"must have at most {LONGEST_CREDENTIAL:,} characters, got {len(text):,}"
        raise FieldError(name, f"{name} too long", advice)
    if (forbidden := _FORBIDDEN.search(text)) is None:
        return
    if forbidden[0] > "\x7f":
        raise FieldError(name, f"{name} is not Unicode", "it has a lone surrogate; read the file as UTF-8")
    advice = "remove the line break, tab or control character"
    raise FieldError(name, f"{name} has a control character", advice)


def country(_instance: object, _attribute: object, value: str | None) -> None:
    if value is not None and value not in _countries.KNOWN:
        correct = _countries.MISTAKEN.get(value)
        advice = f"use {correct} instead of {value}" if correct else f"ISO 3166-1 does not assign {value}"
        raise FieldError("country", "country not assigned", advice)


def ip(_instance: object, _attribute: object, value: str | None) -> None:
    # `ipaddress` accepts int and bytes too; the API accepts only strings.
    if value is not None and not (isinstance(value, str) and _is_ip(value, 4)):
        advice = "must be four numbers from 0 to 255, such as 203.0.113.42"
        raise FieldError("ip", "ip not an IPv4 address", advice)


def counted(count: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun in singular or plural: ``1 account``, ``1,000 accounts``."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def printable(text: str) -> str:
    """Escape the characters of *text* that are not printable, such as those that control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
