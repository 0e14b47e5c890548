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
        ConfigurationError: It is not https (or http to this machine), or has a user name, a fragment, or a
            query other than the quickstart's ``port=N``; or some of it would be sent other than as it is
            written. The message shows the accepted form.
    """
    text = given if given is not None else os.environ.get("POSTPRESS_BASE_URL") or BASE_URL
    try:
        url = URL(text)
    except (ValueError, TypeError, IndexError):  # the last for brackets with nothing in them
        url = URL()
    if (fault := _fault(url)) is not None:
        raise ConfigurationError(f"the base URL {fault}")
    if not _is_plain(text, url):
        raise ConfigurationError(
            f"the base URL is not written as it is sent; write {url} (PostPress's own is {BASE_URL})"
        )
    return url.with_path(url.raw_path.rstrip("/"), encoded=True, keep_query=True)


_FORM: Final = f"write https://HOST[:PORT][/PATH], such as {BASE_URL}"


def _fault(url: URL) -> str | None:
    if url.scheme not in {"https", "http"} or not url.raw_host or not _is_host(url.raw_host):
        return f"is not an https:// address; {_FORM}"
    if url.scheme == "http" and not _is_loopback(url.raw_host):
        fact = "is http, and the key could be read on the network"
        return f"{fact}; {_FORM} (http:// is accepted for this machine only)"
    if url.user is not None or url.password is not None:
        return f"has a user name or password, which the API does not take; {_FORM}"
    if url.fragment:
        return f"has a fragment (#...), which is never sent; {_FORM}"
    if url.query_string and not (_PORT.fullmatch(url.query_string) and 1 <= int(url.query["port"]) <= 65535):
        return f"has a query other than ?port=N, with N from 1 to 65535; {_FORM}"
    return None


def target_of(base_url: URL) -> str:
    """Where the requests to *base_url* go, as a journal knows it again."""
    # All of this machine's ports are one: a sandbox has another one each time.
    return "this machine" if base_url.scheme == "http" else str(base_url)


def _is_plain(text: str, url: URL) -> bool:
    """
    Whether *url* is *text* as it was written.

    The case of its host, how IPv6 is written and a port that is the scheme's own make no difference.
    """
    mine, theirs = (_PARTS.fullmatch(one) for one in (text, str(url)))
    if mine is None or theirs is None or mine["rest"] != theirs["rest"]:
        return False
    port = f":{url.port}"
    if mine["place"].lower().removesuffix(port) == theirs["place"].removesuffix(port):
        return True
    return mine["place"].partition("://")[2].startswith("[")


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
