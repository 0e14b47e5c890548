"""
What makes each field of the API valid.

The page only says string, number and length; the rest is ours, so that a mistake in a fleet of a
million rows is told before a byte is sent. Every refusal is a `FieldError`.
The functions named after a field are attrs validators; `models` hangs them on its fields.
"""

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from postpress_async import _countries
from postpress_async.secret import Secret

if TYPE_CHECKING:
    from attrs import Attribute

# The reference says only "string"; these are RFC 3986's unreserved characters, which no path,
# gateway or log can read as anything but themselves.
_ACCOUNT_ID = re.compile(r"[A-Za-z0-9._~-]{1,256}")
LONGEST_CREDENTIAL = 16_384
"""Characters of a user name or password; the API gives no limit, and no proxy takes nearly as many."""

# No proxy protocol can carry a control character; half of a surrogate pair cannot be sent as UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_PLAIN_HOST = re.compile(r"(?:[A-Za-z0-9]{1,63}\.)*[A-Za-z]{1,63}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


class FieldError(ValueError):
    """
    A value that the API would not take, found before a byte is sent.

    Attributes:
        field: The field at fault, as the API names it; None where no single one is.
        reason: The fact in a few words, such as ``port out of range``.
    """

    def __init__(self, field: str | None, reason: str, advice: str) -> None:
        super().__init__(field, reason, advice)
        self.field = field
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.reason}: {self.advice}"


def check_account_id(account_id: str) -> str:
    """
    *account_id*, if it can stand in a URL as it is.

    Raises:
        FieldError: It is empty, ``.`` or ``..``, over 256 characters, or has any but ``A-Z a-z 0-9 . _ ~ -``.
    """
    if not isinstance(account_id, str):
        advice = f"it is a string, not {type(account_id).__name__}"
        raise FieldError("account_id", "account_id not text", advice)
    if not account_id:
        raise FieldError("account_id", "account_id missing", "give the id of the account to update")
    if account_id in {".", ".."} or not _ACCOUNT_ID.fullmatch(account_id):
        advice = "an id is 1 to 256 of A-Z a-z 0-9 . _ ~ - and neither . nor .."
        raise FieldError("account_id", "account_id not allowed", advice)
    return account_id


def split_host_port(place: str) -> tuple[str, int]:
    """
    Host and port of ``host:port`` or ``[IPv6]:port``.

    Raises:
        FieldError: One of them is missing, or the port is not written in the digits 0 to 9.
    """
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise FieldError("host", "host not an IPv6 address", "write it as [2001:db8::1]:8080")
        port = rest[1:]
    else:
        host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
        if ":" in host:
            raise FieldError("host", "host not an IPv6 address", "put brackets around it: [2001:db8::1]:8080")
    return host, read_port(port)


def percent_decoded(text: str) -> str:
    # Not errors="strict": its exception holds the text, and a password must be on no exception's chain.
    # What is not UTF-8 becomes a lone surrogate, which the field refuses.
    return unquote(text, errors="surrogateescape")


def read_port(text: str) -> int:
    """
    The number that *text* writes in the digits 0 to 9; its range is checked by `CustomProxy`.

    Raises:
        FieldError: It is empty, or anything else than such digits.
    """
    if not text:
        raise FieldError("port", "port missing", "give a whole number from 1 to 65535")
    if not (text.isascii() and text.isdecimal()):
        raise FieldError("port", "port not an integer", "it is a whole number from 1 to 65535")
    return int(text) if len(text) <= 9 else 10**9


def upper_country(value: str) -> str:
    # Checked before it is upper-cased: "ß" and "ﬁ" are one character each and become SS and FI.
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z]{2}", value):
        raise FieldError("country", "country is two letters", "give an ISO 3166-1 alpha-2 code, such as US")
    return value.upper()


def check_host(host: str) -> None:
    """Raise `FieldError` unless *host* is a host name, an IPv4 or a bare IPv6 address, and nothing more."""
    if isinstance(host, str) and len(host) <= 253 and _PLAIN_HOST.fullmatch(host):
        return  # most are, and a fleet has a million of them
    if not isinstance(host, str):
        raise FieldError("host", "host not text", f"it is a string, not {type(host).__name__}")
    if not host:
        raise FieldError("host", "host missing", "give the proxy's host name or address")
    if "://" in host:
        raise FieldError("host", "host has a scheme", "give the scheme as the protocol, and the host alone")
    if any(character.isspace() for character in host):
        raise FieldError("host", "host has a space", "a host name has none; was another column pasted here?")
    if ":" in host:
        _check_ipv6(host)
        return
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdecimal() and not _is_ipv4(host):
        raise FieldError("host", "host not an IPv4 address", "it is four numbers from 0 to 255")
    if len(host.removesuffix(".")) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        advice = "give letters, digits, hyphens and dots; an international name in its xn-- form"
        raise FieldError("host", "host not a host name", advice)


def _check_ipv6(host: str) -> None:
    if host.startswith("[") and host.endswith("]"):
        raise FieldError("host", "host has brackets", "give an IPv6 address bare, such as 2001:db8::1")
    if "%" in host:
        raise FieldError("host", "host has a zone", "a zone means nothing on another machine")
    if host.count(":") > 1 and not host.startswith("[") and not _is_ipv6(host):
        raise FieldError("host", "host not an IPv6 address", "give it bare, such as 2001:db8::1")
    if not _is_ipv6(host):
        raise FieldError("host", "host has a port", "give the port by itself, and the host alone")


# These answer, rather than raise: the text could be a pasted password, and `ipaddress` quotes it in
# its exception, which would stay on the chain of ours.
def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def host(_instance: object, _attribute: "Attribute[str]", value: str) -> None:
    check_host(value)


def port(_instance: object, _attribute: "Attribute[int]", value: int) -> None:
    if type(value) is not int:  # True is an int, and 8080.0 is equal to one
        raise FieldError("port", "port not an integer", "it is a whole number from 1 to 65535")
    if not 1 <= value <= 65535:
        # Not shown: where a URL lost its @, this is a password of digits.
        raise FieldError("port", "port out of range", "it is a whole number from 1 to 65535")


def username(_instance: object, _attribute: "Attribute[str | None]", value: str | None) -> None:
    if value is not None:
        _check_credential("username", value)


def password(_instance: object, _attribute: "Attribute[Secret | None]", value: Secret | None) -> None:
    if value is not None:
        _check_credential("password", value.reveal())


def _check_credential(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise FieldError(name, f"{name} not text", f"it is a string, not {type(text).__name__}")
    if len(text) > LONGEST_CREDENTIAL:
        raise FieldError(name, f"{name} too long", f"it has at most {LONGEST_CREDENTIAL:,} characters")
    if (unfit := _UNFIT.search(text)) is None:
        return
    if unfit[0] > "\x7f":
        raise FieldError(name, f"{name} is not Unicode", "it has half of a surrogate pair; read it as UTF-8")
    raise FieldError(name, f"{name} has a control character", "was a line break or a tab pasted with it?")


def country(_instance: object, _attribute: "Attribute[str | None]", value: str | None) -> None:
    if value is not None and value not in _countries.KNOWN:
        meant = _countries.MISTAKEN.get(value)
        advice = f"{value} is written {meant}" if meant else f"ISO 3166-1 has no {value}"
        raise FieldError("country", "country not assigned", advice)


def ip(_instance: object, _attribute: "Attribute[str | None]", value: str | None) -> None:
    # The address class takes numbers and bytes too, and the API does not.
    if value is not None and not (isinstance(value, str) and _is_ipv4(value)):
        advice = "give four numbers from 0 to 255, such as 203.0.113.42"
        raise FieldError("ip", "ip not an IPv4 address", advice)
