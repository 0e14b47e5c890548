"""Reads and validates a session's API key, base URL and certificates."""

import ipaddress
import logging
import os
import re
import ssl as tls
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from yarl import URL

from postpress_async._fields import is_host
from postpress_async.errors import ConfigurationError
from postpress_async.secret import Secret

BASE_URL: Final = "https://api.postpress.ai/v1"

_log = logging.getLogger("postpress_async.transport")
_PARTS = re.compile(r"(?P<origin>[a-z]+://[^/?#]*)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_PORT = re.compile(r"port=[0-9]{1,5}")


def read_api_key(api_key: str | Secret | None) -> Secret:
    """
    Return *api_key*, or the environment variable ``POSTPRESS_API_KEY``.

    Raises `ConfigurationError` if it is missing or is not visible ASCII. The message does not show it.
    """
    key = api_key if api_key is not None else os.environ.get("POSTPRESS_API_KEY")
    if not isinstance(key, str | Secret | None):
        raise ConfigurationError(f"api_key must be a string, got {type(key).__name__}")
    text = key.reveal() if isinstance(key, Secret) else key
    if not text:
        raise ConfigurationError("no API key: pass api_key, or set POSTPRESS_API_KEY")
    if not all("!" <= character <= "~" for character in text):
        raise ConfigurationError(
            "the API key has a space, a line break or a character that is not ASCII: copy it again"
        )
    return Secret(text)


def read_base_url(base_url: str | None, *, allow_http: Iterable[str] = ()) -> URL:
    """
    Return *base_url*, the environment variable ``POSTPRESS_BASE_URL``, or `BASE_URL`, without a final slash.

    Raises `ConfigurationError` if the URL is not https (or http to this machine or a host of *allow_http*);
    has a user name, a fragment, or a query other than the ``port=N`` of the API's quickstart; or is not
    written in the form in which it is sent.
    """
    text = base_url if base_url is not None else os.environ.get("POSTPRESS_BASE_URL") or BASE_URL
    try:
        url = URL(text)
    except (ValueError, TypeError, IndexError):  # yarl raises IndexError for empty brackets
        url = URL()
    if isinstance(allow_http, str):
        raise ConfigurationError(f"allow_http must be a collection of host names: write ({allow_http!r},)")
    http_hosts = {str(host).lower() for host in allow_http}
    if wrong := [host for host in http_hosts if not is_host(host)]:
        raise ConfigurationError(f"allow_http must be host names without scheme or port, got {wrong[0]!r}")
    if (problem := _problem_of(url, http_hosts)) is not None:
        raise ConfigurationError(f"the base URL {problem}")
    if not _is_normalized(text, url):
        advice = f"write {URL(text.strip())} (the default is {BASE_URL})"
        raise ConfigurationError(f"the base URL is not in its normalized form; {advice}")
    if url.scheme == "http" and not is_loopback(url.raw_host or ""):
        _log.warning("requests to %s are not encrypted: the API key can be read on the network", url.raw_host)
    return url.with_path(url.raw_path.rstrip("/"), encoded=True, keep_query=True)


_FORM: Final = f"write https://HOST[:PORT][/PATH], such as {BASE_URL}"


def _problem_of(url: URL, http_hosts: Collection[str]) -> str | None:
    if url.scheme not in {"https", "http"} or not url.raw_host or not is_host(url.raw_host):
        return f"is not an https:// address; {_FORM}"
    if url.scheme == "http" and not is_loopback(url.raw_host) and url.raw_host not in http_hosts:
        fix = f'{_FORM}, or pass allow_http=("{url.raw_host}",) for a test server'
        return f"is http, so the key could be read on the network; {fix}"
    if url.user is not None or url.password is not None:
        return f"has a user name or password, which the API does not accept; {_FORM}"
    if url.fragment:
        return f"has a fragment (#...), which is never sent; {_FORM}"
    if url.query_string and not (_PORT.fullmatch(url.query_string) and 1 <= int(url.query["port"]) <= 65535):
        return f"has a query other than ?port=N, with N from 1 to 65535; {_FORM}"
    return None


def target_of(base_url: URL) -> str:
    """The text that identifies *base_url* in a journal."""
    # All ports of this machine are the same target, because each sandbox listens on another port.
    is_local = base_url.scheme == "http" and is_loopback(base_url.raw_host or "")
    return "this machine" if is_local else str(base_url)


def _is_normalized(text: str, url: URL) -> bool:
    """Whether parsing *text* changed only the host's case, an IPv6 host's notation, or a default port."""
    written, parsed = (_PARTS.fullmatch(form) for form in (text, str(url)))
    if written is None or parsed is None or written["rest"] != parsed["rest"]:
        return False
    port = f":{url.port}"
    if written["origin"].lower().removesuffix(port) == parsed["origin"].removesuffix(port):
        return True
    return written["origin"].partition("://")[2].startswith("[")  # an IPv6 address


def is_loopback(host: str) -> bool:
    """Whether no other machine can reach *host*."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_tls(ssl: "tls.SSLContext | str | os.PathLike[str] | None") -> tls.SSLContext:
    """
    Return *ssl*, or a context that trusts the system's certificates or those in a PEM file.

    Raises `ConfigurationError` if the file cannot be read, or the context does not check certificates.
    """
    if isinstance(ssl, tls.SSLContext):
        if ssl.verify_mode is not tls.CERT_REQUIRED or not ssl.check_hostname:
            raise ConfigurationError("the ssl context does not check certificates: anyone could read the key")
        if ssl.minimum_version < tls.TLSVersion.TLSv1_2:
            raise ConfigurationError("the ssl context allows TLS below 1.2: set its minimum_version")
        return ssl
    if not isinstance(ssl, str | os.PathLike | None):
        raise ConfigurationError(f"ssl must be a context or the path of a PEM file, got {ssl!r}")
    try:
        tls_context = tls.create_default_context(cafile=None if ssl is None else Path(ssl))
    except OSError as error:
        fact = f"the certificates in {os.fspath(ssl or '')} cannot be read"
        raise ConfigurationError(f"{fact}: {error.strerror or 'no certificate in it'}") from error
    tls_context.minimum_version = tls.TLSVersion.TLSv1_2
    return tls_context
