"""
Fault injection: profiles with random faults, and scripts for single accounts.

The random numbers of a request depend only on the seed, the account and the number of the request among those
of the account. So a run can be repeated even if the requests of different accounts interleave differently.
Faults of the profiles ``overloaded`` and ``outage`` also depend on the load or the time.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

from attrs import field, frozen

from postpress_async.sandbox._catalogue import TYPES, UNLISTED
from postpress_async.sandbox._rules import is_account_id

Profile = Literal["steady", "flaky", "overloaded", "outage", "hostile"]


@frozen(kw_only=True)
class Fault:
    """
    How the sandbox handles one request. With `Fault()`, it handles the request normally.

    Attributes:
        type: Respond with an error of this type. A custom type requires *status*.
        status: Respond with this HTTP status. Without *type*, *body* is sent unchanged. With *type*, the
            envelope keeps the type's own status.
        headers: Response headers, which are added to the usual headers or replace them.
        body: The raw response body; its Content-Type is JSON unless *headers* change it.
        cut: Send only the first half of the body, then close the connection.
        latency: Seconds added to the server's latency.
        retry_after: Value of Retry-After, sent unchanged.
        executes: Apply the change before responding, as for a normal request.
        ends: How the request ends: it is ``answered``, its connection is ``dropped``, or it ``never`` ends.

    Raises:
        ValueError: *type* is not a type of the API and there is no *status*, or a setting of the response has
            no effect because there is neither.
    """

    type: str | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict, hash=False)
    body: bytes = b""
    cut: bool = False
    latency: float = 0.0
    retry_after: int | str | None = None
    executes: bool = False
    ends: Literal["answered", "dropped", "never"] = "answered"

    def __attrs_post_init__(self) -> None:
        if not (self.type is None or self.status or self.type in TYPES or self.type in UNLISTED):
            raise ValueError(_unknown_type(self.type, _suggestion(self.type)))
        if handles_normally(self) and (self.headers or self.body or self.cut or self.retry_after is not None):
            raise ValueError("headers, body, cut and retry_after require a type or a status")


def handles_normally(fault: Fault) -> bool:
    """Whether the request is handled normally, possibly with added latency."""
    return fault.type is None and fault.status is None and fault.ends == "answered"


def is_outcome(fault: Fault) -> bool:
    """Whether the fault is an error of the execution itself: not a 429, 503 or raw response."""
    if fault.type is None or fault.executes or fault.ends != "answered":
        return False
    return (fault.status or (TYPES.get(fault.type) or UNLISTED[fault.type]).status) not in (429, 503)


NONE: Final = Fault()
DROP: Final = Fault(ends="dropped")
LOST: Final = Fault(ends="dropped", executes=True)
HANG: Final = Fault(ends="never")
_WORDS: Final = {"drop": DROP, "lost": LOST, "hang": HANG}

_HTML: Final = {"Content-Type": "text/html"}
_BAD_GATEWAY: Final = Fault(status=502, headers=_HTML, body=b"<html><h1>502 Bad Gateway</h1></html>")
_MAINTENANCE: Final = Fault(status=503, headers=_HTML, body=b"<html><h1>Back soon</h1></html>")
_PROVIDER_ERROR: Final = Fault(type="errors/provider_error")
_SERVICE_UNAVAILABLE: Final = Fault(type="errors/service_unavailable")
_REQUEST_TIMEOUT: Final = Fault(type="errors/request_timeout")
# As if a gateway stops waiting for the API, and the API then applies the change.
_APPLIED_TIMEOUT: Final = Fault(type="errors/request_timeout", executes=True)
_TOO_MANY: Final = Fault(type="errors/too_many_requests", retry_after=1)
_NOT_FOUND: Final = Fault(type="errors/resource_not_found")

# Numbers of executing requests in the profile "overloaded".
_NONE_FAIL_UP_TO: Final = 30
_ALL_FAIL_FROM: Final = 100

# The first fault whose number is above a random number from 0 to 1 is chosen.
_FLAKY: Final = (
    (0.02, _PROVIDER_ERROR),
    (0.03, _SERVICE_UNAVAILABLE),
    (0.035, _REQUEST_TIMEOUT),
    (0.04, _APPLIED_TIMEOUT),
    (0.0425, DROP),
    (0.045, LOST),
    (1.0, NONE),
)


def _chances(*names: object) -> tuple[float, float]:
    """Two pseudorandom numbers in [0, 1) that depend only on the names."""
    digest = blake2b("\0".join(map(str, names)).encode(), digest_size=16).digest()
    # A float holds 53 bits; with more, rounding could give 1.0.
    first, second = int.from_bytes(digest[:8]) >> 11, int.from_bytes(digest[8:]) >> 11
    return first / 2**53, second / 2**53


class _Draw(NamedTuple):
    """What a profile knows about a request."""

    seed: int
    account_id: str
    chance: float  # random number from 0 to 1 that decides whether there is a fault
    choice: float  # random number from 0 to 1 that decides which fault
    elapsed: float  # seconds since the first request
    executing: int  # number of requests that are being executed


def _flaky(draw: _Draw) -> Fault:
    if _chances(draw.seed, draw.account_id)[0] < 0.01:
        return _NOT_FOUND
    return next(fault for threshold, fault in _FLAKY if draw.chance < threshold)


def _overloaded(draw: _Draw) -> Fault:
    # The share of errors must depend on the load. Otherwise an adaptive client would learn to send nothing.
    excess = draw.executing - _NONE_FAIL_UP_TO
    if draw.chance < excess / (_ALL_FAIL_FROM - _NONE_FAIL_UP_TO):
        return _TOO_MANY if draw.choice < 0.3 else _SERVICE_UNAVAILABLE
    return Fault(latency=0.05 * (1 + draw.executing / _NONE_FAIL_UP_TO))


def _outage(draw: _Draw) -> Fault:
    start_chance, length_chance = _chances(draw.seed)
    start = 1 + 2 * start_chance
    end = start + 10 + 10 * length_chance
    if not start <= draw.elapsed < end:
        return NONE
    if draw.choice < 0.15:
        return DROP
    return _MAINTENANCE if draw.choice < 0.4 else _SERVICE_UNAVAILABLE


def _hostile(draw: _Draw) -> Fault:
    if draw.chance >= 0.2:
        return NONE
    patched = {"object": "AccountPatched", "account_id": draw.account_id}
    valid = json.dumps(patched).encode()
    other = json.dumps(patched | {"account_id": "acc_somebody_else"}).encode()
    faults = (
        _BAD_GATEWAY,
        Fault(status=200, executes=True),
        Fault(status=200, executes=True, body=other),
        Fault(status=200, executes=True, body=json.dumps(patched | {"object": "Account"}).encode()),
        Fault(status=200, executes=True, body=valid[:-1] + b', "score": NaN}'),
        Fault(status=200, executes=True, body=b"[]"),
        Fault(status=200, executes=True, body=valid[:-2] + b'\xff"}'),
        Fault(status=200, executes=True, body=valid, cut=True),
        Fault(status=200, executes=True, body=valid[:-1] + b" " * (300 * 1024) + b"}"),
        # A client that follows the redirect leaves a 404 in the record.
        Fault(status=307, headers={"Location": "/elsewhere"}),
        Fault(type="errors/brand_new", status=422),
        Fault(type="errors/service_unavailable", retry_after="soon"),
        DROP,
        LOST,
    )
    return faults[int(draw.choice * len(faults))]


_PROFILES: Final[Mapping[str, Callable[[_Draw], Fault]]] = {
    "steady": lambda _: NONE,
    "flaky": _flaky,
    "overloaded": _overloaded,
    "outage": _outage,
    "hostile": _hostile,
}


class Faults:
    """
    Chooses the fault of each request: the next one of the account's script, or else one of the profile.

    `Sandbox` describes the profiles.
    """

    def __init__(self, profile: Profile = "steady", seed: int = 0) -> None:
        if not isinstance(profile, str) or profile not in _PROFILES:
            raise ValueError(f"profile must be one of {', '.join(_PROFILES)}, got {profile!r}")
        self.profile = profile
        self.seed = seed
        self._choose = _PROFILES[profile]
        self._scripts: dict[str, deque[Fault]] = {}
        self._then: dict[str, Fault] = {}

    def script(
        self, account_id: str, *responses: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """Append responses to the script of an account, as `Sandbox.script` does; callable in any thread."""
        if not is_account_id(account_id):
            raise ValueError(f"account_id must consist of A-Z a-z 0-9 . _ ~ -, got {account_id!r}")
        # Check all responses before the script changes.
        faults = [_to_fault(response) for response in responses]
        if then is not None:
            self._then[account_id] = _to_fault(then)
        self._scripts.setdefault(account_id, deque()).extend(faults)

    def draw(self, account_id: str, nth: int, *, elapsed: float = 0.0, executing: int = 0) -> Fault:
        """Choose the fault of the account's *nth* request, and remove it from the account's script."""
        if script := self._scripts.get(account_id):
            return script.popleft()
        if (default := self._then.get(account_id)) is not None:
            return default
        if self.profile == "steady":
            return NONE
        chances = _chances(self.seed, account_id, nth)
        return self._choose(_Draw(self.seed, account_id, *chances, elapsed, executing))


def _to_fault(response: object) -> Fault:
    if isinstance(response, Fault):
        return response
    if isinstance(response, str):
        if response in _WORDS:
            return _WORDS[response]
        if response not in TYPES and response not in UNLISTED:
            raise ValueError(_unknown_type(response, _suggestion(response, *_WORDS)))
        return Fault(type=response)
    if type(response) is int:  # not a bool
        if response == 200:
            return NONE
        types = [type_ for type_, entry in TYPES.items() if entry.status == response]
        if not types:
            raise ValueError(f"no error type has the status {response}; script Fault(status={response})")
        advice = f"script a type such as {types[0]!r} or Fault(status={response})"
        raise ValueError(f"the status {response} is ambiguous; {advice}")
    kind = type(response).__name__
    raise ValueError(f"responses must be error types, 200, 'drop', 'lost', 'hang' or a Fault, got a {kind}")


def _unknown_type(word: str, suggestion: str) -> str:
    return (
        f"{word!r} is not an error type of the API{suggestion}; "
        "a custom type requires Fault(type=..., status=...)"
    )


def _suggestion(word: str, *keywords: str) -> str:
    """Return a hint at the error type, or one of *keywords*, that *word* resembles; or an empty text."""
    similar = get_close_matches(word, [*TYPES, *UNLISTED, *keywords], n=1) or [
        type_ for type_ in TYPES if type_.endswith(f"/{word}")
    ]
    return f" (did you mean {similar[0]!r}?)" if similar else ""
