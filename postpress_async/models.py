"""
The values that the API accepts and returns.

An invalid value cannot be built: its constructor raises `FieldError`, a `ValueError` that names the field and
the rule. The message never shows a password.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, Self, TypeAlias

from attrs import Attribute, field, frozen
from attrs.converters import optional as or_none

from postpress_async import _fields
from postpress_async._fields import FieldError as FieldError
from postpress_async.secret import Secret


class ProxyProtocol(StrEnum):
    """How PostPress talks to a custom proxy."""

    HTTPS = "https"
    HTTP = "http"
    SOCKS5 = "socks5"


# curl writes socks5h for SOCKS5 if the proxy resolves host names. Some sellers write socks for SOCKS5.
_PROTOCOLS: dict[str, ProxyProtocol] = {
    **{protocol: protocol for protocol in ProxyProtocol},
    "socks5h": ProxyProtocol.SOCKS5,
    "socks": ProxyProtocol.SOCKS5,
}


# These converters handle None themselves: attrs' `optional` would add a call for each of millions of rows.
def _to_protocol(value: ProxyProtocol | str | None) -> ProxyProtocol | None:
    if value is None:
        return None
    protocol = _PROTOCOLS.get(value) if isinstance(value, str) else None
    if protocol is None:
        raise FieldError("protocol", "protocol unknown", "must be https, http or socks5")
    return protocol


def _to_secret(value: Secret | str | None) -> Secret | None:
    if value is None or isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise FieldError("password", "password not text", f"must be a string, got {type(value).__name__}")
    return Secret(value)


def _leave_password_to_converter(_: type, attributes: "list[Attribute[Any]]") -> "list[Attribute[Any]]":
    # A caller's own cattrs converter has no hook for `Secret`, and would reject every password. If the
    # attribute has no type, cattrs passes the value on unchanged, and `_to_secret` converts it.
    return [
        attribute.evolve(type=None) if attribute.name == "password" else attribute for attribute in attributes
    ]


@frozen(kw_only=True, field_transformer=_leave_password_to_converter)
class CustomProxy:
    """
    A proxy that you provide.

    Attributes:
        host: Host name, IPv4 address, or IPv6 address without brackets. No scheme and no port.
        port: TCP port, 1 to 65535.
        protocol: https, http or socks5 (socks5h and socks are accepted as socks5). Omitted from the request
            if None; the API documents no default.
        username: Omitted from the request if None.
        password: Omitted from the request if None; never shown in the repr.

    Raises:
        FieldError: A field is invalid; the message names the field and the rule.
    """

    host: str = field(validator=_fields.host)
    port: int = field(validator=_fields.port)
    protocol: ProxyProtocol | None = field(default=None, converter=_to_protocol)
    username: str | None = field(default=None, validator=_fields.credential)
    password: Secret | None = field(default=None, converter=_to_secret, validator=_fields.credential)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Parse a proxy URL such as ``socks5://user:p%40ss@proxy.example.com:1080``.

        User name and password are percent-decoded as UTF-8. They end at the last ``@``, so a password may
        contain ``@``, ``/`` or ``#`` unescaped.

        Raises:
            FieldError: The scheme, host or port is missing, or there is a path, query or fragment.
        """
        scheme, separator, rest = url.strip().partition("://")
        if not separator:
            raise FieldError("protocol", "protocol missing", "begin with https://, http:// or socks5://")
        credentials, _, host_port = rest.rpartition("@")
        username, _, password = credentials.partition(":")
        host, port = _fields.split_host_port(host_port.removesuffix("/"))
        return cls(
            host=host,
            port=port,
            protocol=_to_protocol(scheme.lower()),
            username=_fields.percent_decoded(username) if username else None,
            password=_fields.percent_decoded(password) if password else None,
        )


@frozen(kw_only=True)
class ManagedProxy:
    """
    A proxy that PostPress provides, chosen by country, by IP address, or both.

    Each request may assign a new proxy, and bill it. So if a request gets no response, it is sent again only
    with the same idempotency key.

    Attributes:
        country: An ISO 3166-1 alpha-2 code, or XK for Kosovo. Lower case is converted to upper case.
        ip: An IPv4 address such as ``203.0.113.42``, from which the API infers the country.

    Raises:
        FieldError: A field is invalid, or both are None.
    """

    country: str | None = field(
        default=None, converter=or_none(_fields.upper_country), validator=_fields.country
    )
    ip: str | None = field(default=None, validator=_fields.ip)

    def __attrs_post_init__(self) -> None:
        if self.country is None and self.ip is None:
            raise FieldError(
                None, "no country and no ip", "a managed proxy requires a country, an ip, or both"
            )


ProxyChange: TypeAlias = CustomProxy | ManagedProxy
"""The new proxy of an account: your own, or one that PostPress provides."""

ProxyChangeLike: TypeAlias = ProxyChange | Mapping[str, Any]
"""
A `ProxyChange`, or plain data as in the API's reference: ``{"country": "US"}``, ``{"ip": "203.0.113.42"}`` or
``{"proxy": {"host": "proxy.example.com", "port": 8080}}``. The fields and rules are those of the models.
"""


@frozen
class Attempt:
    """
    One attempt of a call, as recorded in the history of its result or error.

    Attributes:
        number: 1 for the first attempt.
        began: Unix time in seconds at which the attempt began.
        elapsed: Seconds from the beginning of the attempt to its response or error.
        error: The API's type, such as ``errors/proxy_error``; for an error without a type, the name of its
            class; None on success.
        status: HTTP status of the response; None if there was no response.
        wait: Seconds of backoff between this attempt and the next; 0.0 after the last one.
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
    The API's confirmation that an account has its new proxy.

    Attributes:
        account_id: The requested account. A response that names another account raises `AnswerError`.
        attempts: All attempts of the call; the last one succeeded. Ignored by ``==`` and ``hash``.
    """

    account_id: str
    attempts: tuple[Attempt, ...] = field(default=(), eq=False, repr=False)


@frozen(kw_only=True)
class SessionStats:
    """
    The state of a session's pace, for health checks and dashboards.

    Attributes:
        in_flight: Requests that have been sent and have no response yet.
        waiting: Calls that wait until the limits allow their next request.
        limit: The current concurrency limit.
        rate: The current rate limit in requests per second; None if the rate is not limited.
        breaker: State of the circuit breaker: ``"closed"``, ``"open"`` (all calls wait), or ``"half-open"``
            (all wait except probes, of which at least one is in flight).
    """

    in_flight: int
    waiting: int
    limit: int
    rate: float | None
    breaker: Literal["closed", "open", "half-open"]
