"""Requests for tests of transports and the codec, which need no session."""

from postpress_async._http.codec import encode_request
from postpress_async._http.transport import Request
from postpress_async.models import ProxyChange
from postpress_async.secret import Secret
from tests.support import KEY

URL = "https://api.postpress.ai/v1/accounts/acc_1"


def make_request(account_id: str = "acc_1", password: str | None = None, key: str = KEY) -> Request:
    """A request without a change; a response to it must not show its *password*."""
    return Request(account_id, URL, b"{}", Secret(key), None if password is None else Secret(password))


def encoded(change: ProxyChange, account_id: str = "acc_1") -> Request:
    """The request of a session with `KEY`."""
    return encode_request(account_id, change, URL, Secret(KEY))
