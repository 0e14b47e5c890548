"""What a session is given from outside: key, base URL, certificates. Checked once, before any call."""

import ipaddress
import os
import re
import ssl as tls
from pathlib import Path
from typing import Final

from yarl import URL

from postpress_async._fields import FieldError, check_host
from postpress_async.errors import ConfigurationError
from postpress_async.secret import Secret

BASE_URL: Final = "https://api.postpress.ai/v1"

_PARTS = re.compile(r"(?P<place>[a-z]+://[^/?#]*)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_PORT = re.compile(r"port=[0-9]{1,5}")


def read_api_key(given: str | Secret | None) -> Secret:
    """
    The key *given*, or the environment's ``POSTPRESS_API_KEY``.

    Raises:
        ConfigurationError: There is none, or it cannot be a header: it has a space, a line break, or
            anything else but visible ASCII. The message does not show it.
    """
    key = given if given is not None else os.environ.get("POSTPRESS_API_KEY")
    if not isinstance(key, str | Secret | None):
        raise ConfigurationError(f"an API key is text, not {type(key).__name__}")
    text = key.reveal() if isinstance(key, Secret) else key
    if not text:
        raise ConfigurationError("no API key: pass api_key, or set POSTPRESS_API_KEY")
    if not all("!" <= character <= "~" for character in text):
        raise ConfigurationError(
            "the API key has a space, a line break or a character that is not ASCII: copy it once more"
        )
    return Secret(text)


def read_base_url(given: str | None) -> URL:
    """
    The base URL *given*, the environment's ``POSTPRESS_BASE_URL``, or `BASE_URL`; without a last slash.

    Raises:
        ConfigurationError: It is no https (or http to this very machine), or has a user name, a
            fragment, or a query other than the quickstart's ``port=N``; or it has anything that would be
            sent otherwise than it is written.
    """
    text = given if given is not None else os.environ.get("POSTPRESS_BASE_URL") or BASE_URL
    try:
        url = URL(text)
    except (ValueError, TypeError, IndexError):  # the last for brackets with nothing in them
        url = URL()
    fault = _fault(url)
    if fault is None and not _is_plain(text, url):
        fault = (
            "has something that would be dropped or changed on its way, such as a space, a needless escape, "
            "dots, an empty part or other than ASCII"
        )
    if fault is not None:
        raise ConfigurationError(f"the base URL {fault}; PostPress's own is {BASE_URL}")
    return url.with_path(url.raw_path.rstrip("/"), encoded=True, keep_query=True)


def _fault(url: URL) -> str | None:
    if url.scheme not in {"https", "http"} or not url.raw_host or not _is_host(url.raw_host):
        return "is not an https:// address"
    if url.scheme == "http" and not _is_loopback(url.raw_host):
        return "is http: the key would cross the network readable; only this machine may be reached so"
    if url.user is not None or url.password is not None:
        return "has a user name or password: the API takes none there"
    if url.fragment:
        return "has a fragment (#...), which is never sent"
    if url.query_string and not (_PORT.fullmatch(url.query_string) and 1 <= int(url.query["port"]) <= 65535):
        return "has a query other than ?port=N, with N from 1 to 65535"
    return None


def target_of(base_url: URL) -> str:
    """Where the requests to *base_url* go, as a journal knows it again."""
    # All of this machine's ports are one: a sandbox has another one each time.
    return "this machine" if base_url.scheme == "http" else str(base_url)


def _is_plain(text: str, url: URL) -> bool:
    """Whether *url* is *text* as it was written, but for the case of its host, and how IPv6 is written."""
    mine, theirs = (_PARTS.fullmatch(one) for one in (text, str(url)))
    if mine is None or theirs is None or mine["rest"] != theirs["rest"]:
        return False
    return mine["place"].lower() == theirs["place"] or mine["place"].partition("://")[2].startswith("[")


def _is_host(text: str) -> bool:
    try:
        check_host(text)
    except FieldError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_tls(given: "tls.SSLContext | str | os.PathLike[str] | None") -> tls.SSLContext:
    """
    *given*, or a context that trusts the system's certificates, or those in the PEM file given.

    Raises:
        ConfigurationError: The file cannot be read, or the context does not check certificates.
    """
    if isinstance(given, tls.SSLContext):
        if given.verify_mode is not tls.CERT_REQUIRED or not given.check_hostname:
            raise ConfigurationError("the ssl context does not check certificates: the key would be anyone's")
        if given.minimum_version < tls.TLSVersion.TLSv1_2:
            raise ConfigurationError("the ssl context allows TLS below 1.2: set its minimum_version")
        return given
    if not isinstance(given, str | os.PathLike | None):
        raise ConfigurationError(f"ssl is a context, or a PEM file of certificates to trust; not {given!r}")
    try:
        context = tls.create_default_context(cafile=None if given is None else Path(given))
    except OSError as error:
        fact = error.strerror or "no certificate in it"
        raise ConfigurationError(
            f"the certificates in {os.fspath(given or '')} cannot be read: {fact}"
        ) from error
    context.minimum_version = tls.TLSVersion.TLSv1_2
    return context
