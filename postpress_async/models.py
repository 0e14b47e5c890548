"""
The values the API takes and gives, and what makes one valid.

A wrong one cannot be built: each refusal is a `FieldError`, a `ValueError` that names the field,
the fact and what would be right, and never shows a password.
"""

from enum import StrEnum
from typing import Self, TypeAlias

from attrs import field, frozen
from attrs.converters import optional as or_none

from postpress_async import _fields
from postpress_async._fields import FieldError as FieldError
from postpress_async.secret import Secret


class ProxyProtocol(StrEnum):
    """How to talk to a proxy of your own."""

    HTTPS = "https"
    HTTP = "http"
    SOCKS5 = "socks5"


# curl's socks5h only says who resolves host names, and sellers write socks for the version that is in use.
_PROTOCOLS: dict[str, ProxyProtocol] = {
    **{protocol: protocol for protocol in ProxyProtocol},
    "socks5h": ProxyProtocol.SOCKS5,
    "socks": ProxyProtocol.SOCKS5,
}


# These take None themselves: a fleet has millions of both, and attrs' `optional` is one more call for each.
def _to_protocol(value: ProxyProtocol | str | None) -> ProxyProtocol | None:
    if value is None:
        return None
    protocol = _PROTOCOLS.get(value) if isinstance(value, str) else None
    if protocol is None:
        raise FieldError("protocol", "protocol unknown", "it is one of https, http, socks5")
    return protocol


def _to_secret(value: Secret | str | None) -> Secret | None:
    if value is None or isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise FieldError("password", "password not text", f"it is a string, not {type(value).__name__}")
    return Secret(value)


@frozen(kw_only=True)
class CustomProxy:
    """
    A proxy of your own.

    Attributes:
        host: Host name, IPv4 or bare IPv6 address; neither scheme nor port.
        port: TCP port, from 1 to 65535.
        protocol: One of https, http, socks5; socks5h and socks mean socks5. Left to the API if None; it
            documents no default.
        username: Sent only where given.
        password: Sent only where given, and never part of the repr.

    Raises:
        FieldError: A field is not as said above.
    """

    host: str = field(validator=_fields.host)
    port: int = field(validator=_fields.port)
    protocol: ProxyProtocol | None = field(default=None, converter=_to_protocol)
    username: str | None = field(default=None, validator=_fields.username)
    password: Secret | None = field(default=None, converter=_to_secret, validator=_fields.password)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        The proxy that *url* names, such as ``socks5://user:p%40ss@proxy.example.com:1080``.

        User name and password are percent-decoded as UTF-8. Everything before the last ``@`` belongs to
        them, so a password whose ``@``, ``/`` or ``#`` was left unescaped is read as it was meant.

        Raises:
            FieldError: There is no scheme, host or port, or there is a path, query or fragment.
        """
        scheme, mark, rest = url.strip().partition("://")
        if not mark:
            raise FieldError("protocol", "protocol missing", "write https://, http:// or socks5:// first")
        credentials, at, place = rest.rpartition("@")
        username, colon, password = credentials.partition(":")
        host, port = _fields.split_host_port(place.removesuffix("/"))
        return cls(
            host=host,
            port=port,
            protocol=_to_protocol(scheme.lower()),
            username=_fields.percent_decoded(username) if at and username else None,
            password=_fields.percent_decoded(password) if colon and password else None,
        )


@frozen(kw_only=True)
class ManagedProxy:
    """
    A proxy of PostPress's own, chosen by country, by the country of an address, or both.

    Attributes:
        country: An assigned ISO 3166-1 alpha-2 code or XK, in either case; kept in upper case.
        ip: A dotted IPv4 address from which the API infers the country.

    Raises:
        FieldError: A field is not as said above, or neither is given.
    """

    country: str | None = field(
        default=None, converter=or_none(_fields.upper_country), validator=_fields.country
    )
    ip: str | None = field(default=None, validator=_fields.ip)

    def __attrs_post_init__(self) -> None:
        if self.country is None and self.ip is None:
            raise FieldError(None, "nothing asked for", "a managed proxy needs a country, an ip, or both")


ProxyChange: TypeAlias = CustomProxy | ManagedProxy


@frozen
class Attempt:
    """
    One try at one call, as the history of its answer or of its error tells it.

    Attributes:
        number: 1 for the first.
        began: Unix time at which it began to be sent, in seconds.
        elapsed: Seconds until its answer or its error.
        error: The API's type, such as ``errors/proxy_error``, or the error's class name; None on success.
        status: HTTP status of the answer; None if there was none.
        wait: Seconds that were waited after it before the next one; 0.0 after the last.
    """

    number: int
    began: float
    elapsed: float
    error: str | None = None
    status: int | None = None
    wait: float = 0.0


@frozen
class AccountPatched:
    """
    The API's word that an account has its new proxy.

    Attributes:
        account_id: The account asked for; any other id in an answer is an error.
        attempts: How it came about, the last one being the success. No part of equality.
    """

    account_id: str
    attempts: tuple[Attempt, ...] = field(default=(), eq=False, repr=False)
