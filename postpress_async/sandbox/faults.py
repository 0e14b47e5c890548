"""
Who gets which fault: the profiles that deal them out, and scripts for one account.

Chance is a function of the seed, the account and how many of its requests came before, never of
the order in which accounts come. So a run repeats whatever the interleaving.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

from attrs import field, frozen

from postpress_async.sandbox.page import TYPES, UNLISTED, Listed
from postpress_async.sandbox.rules import is_account_id

__all__ = ["TYPES", "UNLISTED", "Fault", "Faults", "Listed", "Profile"]


Profile = Literal["steady", "flaky", "overloaded", "outage", "hostile"]


@frozen(kw_only=True)
class Fault:
    """
    What happens to one request. `Fault()` is no fault: the request goes its normal way.

    Attributes:
        type: Answer with this type's envelope. One that is not listed needs a *status* beside it.
        status: Answer with this HTTP status: alone over *body* as it is, beside *type* over the envelope
            (whose own status stays the type's, so the two may disagree).
        headers: Sent with the answer, beside or instead of the usual ones.
        body: The bytes of a raw answer; the Content-Type is JSON unless *headers* say otherwise.
        cut: The answer breaks off half way and the connection closes.
        latency: Seconds on top of the server's own.
        retry_after: Written into Retry-After as it is.
        executes: Carry the change out first, whatever is answered then. A normal request always does.
        ends: Whether the request is answered, its connection dropped, or neither, ever.

    Raises:
        ValueError: The type is not listed and there is no status.
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
            raise ValueError(
                f"{self.type!r} is not a type that the API lists{_meant(self.type)}: "
                "one of your own needs a Fault with a status"
            )

    @property
    def is_none(self) -> bool:
        """Whether the request is answered as ever, if perhaps later."""
        return self.type is None and self.status is None and self.ends == "answered"

    @property
    def is_outcome(self) -> bool:
        """
        Whether the error is what the execution came to, and not said in front of it.

        A 429 or a 503 refuses before anything is begun, and raw answers come from a gateway.
        """
        if self.type is None or self.executes or self.ends != "answered":
            return False
        return (self.status or (TYPES.get(self.type) or UNLISTED[self.type]).status) not in (429, 503)


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
_LATE: Final = Fault(type="errors/request_timeout", executes=True)
_TOO_MANY: Final = Fault(type="errors/too_many_requests", retry_after=1)
_NOT_FOUND: Final = Fault(type="errors/resource_not_found")


def _chances(*names: object) -> tuple[float, float]:
    """Two numbers in [0, 1), the same for ever for the same names."""
    digest = blake2b("\0".join(map(str, names)).encode(), digest_size=16).digest()
    # 53 bits: a float holds no more, and rounding up would give 1.0.
    first, second = int.from_bytes(digest[:8]) >> 11, int.from_bytes(digest[8:]) >> 11
    return first / 2**53, second / 2**53


class _Moment(NamedTuple):
    """All that a profile may look at."""

    seed: int
    account_id: str
    chance: float
    choice: float
    elapsed: float
    executing: int


def _steady(_: _Moment) -> Fault:
    return NONE


def _flaky(now: _Moment) -> Fault:
    if _chances(now.seed, now.account_id)[0] < 0.01:
        return _NOT_FOUND
    # Half of the timeouts come from a gateway that lost patience with a change that was carried out.
    for below, fault in (
        (0.02, _PROVIDER_ERROR),
        (0.03, _SERVICE_UNAVAILABLE),
        (0.035, _REQUEST_TIMEOUT),
        (0.04, _LATE),
        (0.0425, DROP),
        (0.045, LOST),
    ):
        if now.chance < below:
            return fault
    return NONE


def _overloaded(now: _Moment) -> Fault:
    # A refusal that does not depend on the load would teach a client to stand still: here fewer at
    # once are answered sooner, and up to 30 none is refused.
    if now.chance < (now.executing - 30) / 70:
        return _TOO_MANY if now.choice < 0.3 else _SERVICE_UNAVAILABLE
    return Fault(latency=0.05 * (1 + now.executing / 30))


def _outage(now: _Moment) -> Fault:
    early, length = _chances(now.seed)
    begins = 1 + 2 * early
    if not begins <= now.elapsed < begins + 10 + 10 * length:
        return NONE
    if now.choice < 0.15:
        return DROP
    return _MAINTENANCE if now.choice < 0.4 else _SERVICE_UNAVAILABLE


def _hostile(now: _Moment) -> Fault:
    if now.chance >= 0.2:
        return NONE
    patched = {"object": "AccountPatched", "account_id": now.account_id}
    said = json.dumps(patched).encode()
    other = json.dumps(patched | {"account_id": "acc_somebody_else"}).encode()
    answers = (
        _BAD_GATEWAY,
        Fault(status=200, executes=True),
        Fault(status=200, executes=True, body=other),
        Fault(status=200, executes=True, body=json.dumps(patched | {"object": "Account"}).encode()),
        Fault(status=200, executes=True, body=said[:-1] + b', "score": NaN}'),
        Fault(status=200, executes=True, body=b"[]"),
        Fault(status=200, executes=True, body=said[:-2] + b'\xff"}'),
        Fault(status=200, executes=True, body=said, cut=True),
        Fault(status=200, executes=True, body=said[:-1] + b" " * (300 * 1024) + b"}"),
        # A client that follows it shows up as a 404 in the record.
        Fault(status=307, headers={"Location": "/elsewhere"}),
        Fault(type="errors/brand_new", status=422),
        Fault(type="errors/service_unavailable", retry_after="soon"),
        DROP,
        LOST,
    )
    return answers[int(now.choice * len(answers))]


_PROFILES: Final[Mapping[str, Callable[[_Moment], Fault]]] = {
    "steady": _steady,
    "flaky": _flaky,
    "overloaded": _overloaded,
    "outage": _outage,
    "hostile": _hostile,
}


class Faults:
    """
    Deals each request its fault: the account's script first, and after that the profile.

    - ``steady``: none.
    - ``flaky``: 2% provider_error, 1% service_unavailable, 1% request_timeout (half of them executed),
      0.5% dropped connections (half of them executed); 1% of the accounts do not exist, for ever.
    - ``overloaded``: slower the more is executing; beyond 30 at once some, beyond 100 all get 503 or 429.
    - ``outage``: from 1 to 3 s after the first request, and for 10 to 20 s, nothing but 503s (a quarter
      of them HTML pages) and dropped connections.
    - ``hostile``: a fifth of the answers are malformed, impossible or missing; most of these were executed.

    Args:
        profile: One of the above.
        seed: Other seed, other chances.

    Raises:
        ValueError: There is no such profile.
    """

    def __init__(self, profile: Profile = "steady", seed: int = 0) -> None:
        if not isinstance(profile, str) or profile not in _PROFILES:
            raise ValueError(f"no profile {profile!r}: it is one of {', '.join(_PROFILES)}")
        self.profile = profile
        self.seed = seed
        self._fault = _PROFILES[profile]
        self._scripts: dict[str, deque[Fault]] = {}
        self._then: dict[str, Fault] = {}

    def script(
        self, account_id: str, *answers: str | int | Fault, then: str | int | Fault | None = None
    ) -> None:
        """
        Say what the account's next requests get: one answer each, after those scripted before.

        Args:
            answers: Each a type (``errors/proxy_error``: the page's status, title and detail); 200 for
                the normal way; ``drop`` (connection closed before the change is carried out), ``lost``
                (closed after it), ``hang`` (never answered); or a `Fault`.
            then: What every request after those gets, however many come, in place of the last *then*.
                Where none was ever said, it is the profile's again.

        Raises:
            ValueError: One of them is none of these, or no account has such an id; nothing is scripted then.
        """
        faults, last = read_script(account_id, answers, then)
        if last is not None:
            self._then[account_id] = last
        self._scripts.setdefault(account_id, deque()).extend(faults)

    def draw(self, account_id: str, nth: int, *, elapsed: float = 0.0, executing: int = 0) -> Fault:
        """
        The fault of the account's *nth* request; uses up one entry of its script, if it has one.

        Args:
            nth: How many requests of this account came so far, this one included.
            elapsed: Seconds since the first request of all.
            executing: How many requests are being executed now.
        """
        if script := self._scripts.get(account_id):
            return script.popleft()
        if self._then and account_id in self._then:
            return self._then[account_id]
        if self.profile == "steady":
            return NONE
        chances = _chances(self.seed, account_id, nth)
        return self._fault(_Moment(self.seed, account_id, *chances, elapsed, executing))


def read_script(
    account_id: str, answers: Iterable[str | int | Fault], then: str | int | Fault | None
) -> tuple[list[Fault], Fault | None]:
    """
    The faults that `Faults.script` is told of.

    Raises:
        ValueError: One of them is none, or no account can have this id.
    """
    if not is_account_id(account_id):
        raise ValueError(f"an account's id is of A-Z a-z 0-9 . _ ~ - and nothing else, not {account_id!r}")
    return [_scripted(answer) for answer in answers], None if then is None else _scripted(then)


def _scripted(answer: object) -> Fault:
    if isinstance(answer, Fault):
        return answer
    if isinstance(answer, str):
        return _WORDS.get(answer) or Fault(type=answer)
    if answer == 200 and type(answer) is int:
        return NONE
    if type(answer) is int:
        types = [type_ for type_, listed in TYPES.items() if listed.status == answer]
        better = f"a type, such as {types[0]!r}, or " if types else ""
        raise ValueError(f"{answer} alone says too little: script {better}Fault(status={answer})")
    kind = type(answer).__name__
    raise ValueError(f"an answer is a type as text, 200, 'drop', 'lost', 'hang' or a Fault, not a {kind}")


def _meant(word: str) -> str:
    """What to say of the type or the word that *word* is nearly."""
    near = get_close_matches(word, [*TYPES, *UNLISTED, *_WORDS], n=1) or [
        type_ for type_ in TYPES if type_.endswith(f"/{word}")
    ]
    return f" (did you mean {near[0]!r}?)" if near else ""
