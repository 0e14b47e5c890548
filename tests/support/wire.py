"""Requests for tests of the transports and the codec, which have no session."""

from postpress_async._http.codec import encode_request
from postpress_async._http.transport import Request
from postpress_async.models import ProxyChange
from postpress_async.secret import Secret
from tests.support import KEY

URL = "https://api.postpress.ai/v1/accounts/acc_1"


def make_request(account_id: str = "acc_1", password: str | None = None, key: str = KEY) -> Request:
    """Create a request whose body is empty JSON, although it has *password* as a secret to mask."""
    return Request(account_id, URL, b"{}", Secret(key), None if password is None else Secret(password))


def encoded(change: ProxyChange, account_id: str = "acc_1") -> Request:
    """Return the request that a session with `KEY` would send."""
    return encode_request(account_id, change, URL, Secret(KEY))
