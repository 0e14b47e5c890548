"""The pools of proxies for the accounts of a rotation; `_allocator` assigns them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, Self, TypeAlias, TypedDict, Unpack, get_args

from attrs import frozen

from postpress_async._fields import printable
from postpress_async.models import CustomProxy, ProxyChange
from postpress_async.rotation._outcome import MANAGED
from postpress_async.rotation._pool._proxy_list import RefusedLine, Source, identity, read_lists
from postpress_async.rotation._template import OWN_NAMES, TRY, fill_in, placeholders

Assign: TypeAlias = Literal["round-robin", "sticky"]


@frozen
class PooledProxy:
    """
    A proxy of a pool.

    Attributes:
        proxy: The change for the account.
        label: Its name in logs, journals and reports, such as ``user3@p003.example.net:3128``: user name,
            host and port, which are unique in a pool. Never contains the password.
        placeholders: The names in a template, such as ``account_id``; empty for any other proxy.
    """

    proxy: CustomProxy
    label: str
    placeholders: frozenset[str] = frozenset()

    @property
    def is_template(self) -> bool:
        """Whether each account gets a session of its own, whose failure says nothing about other accounts."""
        return bool(self.placeholders)

    def change_for(
        self, account_id: str, fields: Mapping[str, str] | None = None, failovers: int = 0
    ) -> CustomProxy:
        """Return the proxy for an account whose row has *fields*, after this number of *failovers*."""
        if not self.placeholders:
            return self.proxy
        values = {**(fields or {}), "account_id": account_id, TRY: str(failovers)}
        return fill_in(self.proxy, values)


def as_pooled(proxy: CustomProxy) -> PooledProxy:
    """Create the label of *proxy*, and find its placeholders. Raises `ValueError` for another type."""
    if not isinstance(proxy, CustomProxy):
        kind = type(proxy).__name__
        raise ValueError(f"proxies must be CustomProxy, got {kind}: ProxyPool.read reads a list as text")
    return PooledProxy(proxy, _label(proxy), placeholders(proxy))


def _label(proxy: CustomProxy) -> str:
    """The label of *proxy*. It does not change if its list is sorted or shortened, or gets new passwords."""
    host, port, user = identity(proxy)
    host = f"[{host}]" if ":" in host else host
    # A user name may contain control characters, such as the one that reverses text in a terminal.
    user = f"{printable(user)}@" if user else ""
    return f"{user}{host}:{port}"


def assignment_of(change: ProxyChange) -> str:
    """The `Outcome.assignment` of an account that gets this *change*."""
    if isinstance(change, CustomProxy):
        return _label(change)
    return MANAGED + " ".join(part for part in (change.country, change.ip) if part)


class PoolOptions(TypedDict, total=False):
    """The options of `ProxyPool` and `ProxyPool.read`."""

    assign: Assign
    accounts_per_proxy: int | None
    failovers: int
    cool_down: float


class ProxyPool:
    """
    Distinct proxies for the accounts of a rotation.

    A pool does not change. Each rotation that uses it keeps its own counts of accounts and failures. With a
    journal, a quarantine continues in the next run.

    There are two strategies. Both skip proxies that are quarantined or full:

    - ``round-robin``: The accounts get the proxies in turn. A resumed run continues where the journal ends: a
      proxy with more accounts than the others is skipped until the others have as many.
    - ``sticky``: Rendezvous hashing. An account keeps its proxy from run to run, in any order of proxies and
      accounts: it gets the available proxy that ranks first by a hash of its id and of the proxy's host,
      port and user name. Removing a proxy moves only its accounts. If more accounts rank a proxy first than
      it can have, those that came first keep it.

    Args:
        proxies: At least one. Host, port and user name together must be unique. A user name with
            placeholders, such as ``customer-{account_id}-cc-{country}-s{try}``, makes a template: each
            account gets a proxy with its id, the columns of its row, and its number of failovers. A template
            is never full or quarantined, because the session of one account says nothing about the others.
        assign: The strategy.
        accounts_per_proxy: Maximum number of accounts per proxy; None for no limit. Templates have no limit.
        failovers: Maximum number of further proxies that an account can get after its first.
        cool_down: Seconds for which a proxy is quarantined after it failed for two accounts that were then
            patched with other proxies. After that time, one account probes the proxy with one request. Each
            failed probe doubles the time, up to 24 hours. This is also the maximum number of seconds for
            which accounts wait if most proxies fail at the same time.

    Attributes:
        refusals: Invalid and duplicate lines of the lists.
        ignored_columns: Unused columns of lists that are tables, by the name of the list.
        assign: The argument. The same holds for *accounts_per_proxy*, *failovers* and *cool_down*.

    Raises:
        ValueError: There is no proxy, there are duplicates, or an argument is out of range.
    """

    def __init__(
        self,
        proxies: Iterable[CustomProxy | PooledProxy],
        *,
        assign: Assign = "round-robin",
        accounts_per_proxy: int | None = None,
        failovers: int = 3,
        cool_down: float = 1800.0,
    ) -> None:
        if accounts_per_proxy is not None and accounts_per_proxy < 1:
            raise ValueError(f"accounts_per_proxy must be 1 or more, or None, got {accounts_per_proxy}")
        if failovers < 0:
            raise ValueError(f"failovers must be 0 or more, got {failovers}")
        if not cool_down > 0:
            raise ValueError(f"cool_down must be a number of seconds above 0, got {cool_down!r}")
        if assign not in get_args(Assign):
            raise ValueError(f'assign must be "round-robin" or "sticky", got {assign!r}')
        self.refusals: tuple[RefusedLine, ...] = ()
        self.ignored_columns: Mapping[str, tuple[str, ...]] = {}
        self.assign: Final = assign
        self.accounts_per_proxy: Final = accounts_per_proxy
        self.failovers: Final = failovers
        self.cool_down: Final = cool_down
        self._proxies: Final = [p if isinstance(p, PooledProxy) else as_pooled(p) for p in proxies]
        labels = Counter(pooled.label for pooled in self._proxies)
        if not labels:
            raise ValueError("a pool needs at least one proxy")
        if len(labels) < len(self._proxies):
            raise ValueError(f"{labels.most_common(1)[0][0]} occurs twice: list each proxy once")

    @classmethod
    def read(
        cls, source: Source, *more: Source, skip_bad: bool = False, **options: Unpack[PoolOptions]
    ) -> Self:
        """
        Read a pool from one or more lists.

        A line is ``host:port``, ``host:port:user:password``, ``user:password@host:port`` or a URL. A list can
        also be a CSV table with a header.

        Args:
            source: Path of a list, or ``-`` for standard input.
            more: Further lists.
            skip_bad: Skip lines that are invalid, or repeat a proxy of any list; see `refusals`.
            options: The other arguments of `ProxyPool`.

        Raises:
            FleetError: A list cannot be read, is empty, or has invalid lines.
            ValueError: An option is out of range.
        """
        lists = read_lists([(None, name) for name in (source, *more)], skip_bad=skip_bad)
        pool = cls([as_pooled(entry.proxy) for entry in lists.proxies], **options)
        pool.refusals, pool.ignored_columns = tuple(lists.refused), lists.ignored_columns
        return pool

    def __len__(self) -> int:
        return len(self._proxies)

    def __iter__(self) -> Iterator[PooledProxy]:
        return iter(self._proxies)

    @property
    def digest(self) -> bytes:
        """
        SHA-256 of everything that determines the assignment: the proxies and the options.

        It depends on passwords, so do not store it without hashing it again with a salt.
        """
        rows = [
            [p.host, p.port, p.protocol, p.username, p.password and p.password.reveal()]
            for p in (pooled.proxy for pooled in self._proxies)
        ]
        if self.assign == "sticky":  # the order of the list does not matter
            rows.sort(key=json.dumps)
        # None takes the place of an option that older versions had: the digest must equal theirs, so that
        # their journals still recognize the pool.
        facts = [self.assign, None, self.accounts_per_proxy, rows]
        return hashlib.sha256(json.dumps(facts).encode()).digest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row that the pool's templates need."""
        names = frozenset[str]().union(*(pooled.placeholders for pooled in self._proxies))
        return tuple(sorted(names - OWN_NAMES))

    def __repr__(self) -> str:
        return f"<ProxyPool {self.assign}: {len(self)} proxies>"
