"""
A pool of proxies for the accounts of a rotation.

A pool decides which account gets which proxy, and tracks which proxies are full or quarantined. Its state
changes only in synchronous calls, so tasks can share it without a lock.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, Literal, Self, TypeAlias, TypedDict, Unpack

from attrs import frozen

from postpress_async._fields import printable
from postpress_async.models import CustomProxy, ProxyChange
from postpress_async.rotation._outcome import LINE_PREFIX, MANAGED
from postpress_async.rotation._pool._assign import Assignment, RoundRobin, Sticky
from postpress_async.rotation._pool._proxy_list import RefusedLine, Source, identity, read_lists
from postpress_async.rotation._pool._template import TRY, fill_in, placeholders

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
        """Whether each account gets a session of its own, which says nothing about those of others."""
        return bool(self.placeholders)

    def change_for(
        self, account_id: str, fields: Mapping[str, str] | None = None, failovers: int = 0
    ) -> CustomProxy:
        """Return the proxy for the account, whose row has these *fields*, after so many *failovers*."""
        if not self.placeholders:
            return self.proxy
        values = {**(fields or {}), "account_id": account_id, TRY: str(failovers)}
        return fill_in(self.proxy, values)

    @classmethod
    def of(cls, proxy: CustomProxy) -> Self:
        """
        Create the label of *proxy* from its `identity`.

        So the label does not change if a list is sorted or shortened, or gets new passwords.
        """
        host, port, user = identity(proxy)
        host = f"[{host}]" if ":" in host else host
        # A user name may contain control characters, such as the one that reverses text in a terminal.
        user = f"{printable(user)}@" if user else ""
        return cls(proxy, f"{user}{host}:{port}", placeholders(proxy))


def assignment_of(change: ProxyChange) -> str:
    """The `Outcome.assignment` of an account that gets this change."""
    if isinstance(change, CustomProxy):
        return PooledProxy.of(change).label
    return MANAGED + " ".join(part for part in (change.country, change.ip) if part)


class PoolOptions(TypedDict, total=False):
    """The options of `ProxyPool` and `ProxyPool.read`."""

    assign: Assign
    accounts_per_proxy: int | None
    failovers: int


class ProxyPool:
    """
    Distinct proxies for the accounts of a rotation.

    The strategies, both of which skip proxies that are quarantined or full:

    - ``round-robin``: the accounts get the proxies in turn. A resumed run continues where the journal ends: a
      proxy with more accounts than the others is skipped until they have as many.
    - ``sticky``: rendezvous hashing. An account keeps its proxy from run to run, in any order of proxies and
      accounts: it gets the available proxy that ranks first by a hash of its id and of the proxy's host,
      port and user name. Removing a proxy moves only its accounts. A proxy that fills up keeps the
      accounts that came first.

    Args:
        proxies: At least one. Host, port and user name together must be unique. A user name with
            placeholders, such as ``customer-{account_id}-cc-{country}-s{try}``, makes a template: each
            account gets a proxy with its id, the columns of its row, and its number of failovers. A template
            is never full or quarantined, because the session of one account says nothing about the others.
        assign: The strategy.
        accounts_per_proxy: Maximum number of accounts per proxy that is not a template; None for no limit.
        failovers: Maximum number of further proxies that an account can get after its first.

    Attributes:
        refusals: Invalid and duplicate lines of the lists.
        ignored_columns: Unused columns of lists that are tables, by the name of the list.
        failovers: See above.

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
    ) -> None:
        if accounts_per_proxy is not None and accounts_per_proxy < 1:
            raise ValueError(f"accounts_per_proxy must be 1 or more, or None, got {accounts_per_proxy}")
        if failovers < 0:
            raise ValueError(f"failovers must be 0 or more, got {failovers}")
        self.refusals: tuple[RefusedLine, ...] = ()
        self.ignored_columns: Mapping[str, tuple[str, ...]] = {}
        self.failovers: Final = failovers
        self._cap: Final = accounts_per_proxy
        self._proxies: Final = [p if isinstance(p, PooledProxy) else PooledProxy.of(p) for p in proxies]
        self._indices: Final = {pooled.label: index for index, pooled in enumerate(self._proxies)}
        self._accounts: Final = [0] * len(self._proxies)
        self._quarantine: Final[set[int]] = set()
        self._failed_first: Final[dict[int, str]] = {}  # the account for which each proxy has failed
        self._released: Final[set[int]] = set()  # proxies for which that account no longer counts
        self._assign: Final = assign
        self._assignment: Final = self._make_assignment(assign)

    def _make_assignment(self, assign: Assign) -> Assignment:
        first: dict[tuple[str, int, str], str] = {}
        for pooled in self._proxies:
            label = first.setdefault(identity(pooled.proxy), pooled.label)
            if label is not pooled.label:
                raise ValueError(f"{pooled.label} is the same proxy as {label}: list each proxy once")
        if not first:
            raise ValueError("a pool needs at least one proxy")
        if len(self._indices) < len(self._proxies):
            raise ValueError("two proxies have the same label: labels must be unique")
        if assign == "round-robin":
            return RoundRobin(len(self))
        if assign == "sticky":
            return Sticky(["\0".join(map(str, key)) for key in first])
        raise ValueError(f'assign must be "round-robin" or "sticky", got {assign!r}')

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
            options: See above.

        Raises:
            FleetError: A list cannot be read, is empty, or has invalid lines.
            ValueError: An option is out of range.
        """
        lists = read_lists([(None, name) for name in (source, *more)], skip_bad=skip_bad)
        pool = cls([PooledProxy.of(entry.proxy) for entry in lists.proxies], **options)
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
        if self._assign == "sticky":  # the order of the list does not matter
            rows.sort(key=json.dumps)
        # None stands for an option of older versions: without it, their journals would name another pool.
        return hashlib.sha256(json.dumps([self._assign, None, self._cap, rows]).encode()).digest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row that its templates contain."""
        names = frozenset[str]().union(*(pooled.placeholders for pooled in self._proxies))
        return tuple(sorted(names - {"account_id", TRY}))

    @property
    def quarantined(self) -> int:
        """Number of proxies that are quarantined for the rest of the run."""
        return len(self._quarantine)

    @property
    def available(self) -> int:
        """Number of proxies that are neither quarantined nor full; at 0 the pool is exhausted."""
        return sum(index not in self._quarantine and not self._is_full(index) for index in range(len(self)))

    def give(self, account_id: str, *, but_not: Collection[PooledProxy] = ()) -> PooledProxy | None:
        """
        Assign a proxy to the account.

        Args:
            account_id: The account.
            but_not: The proxies that it has had, in order. It does not get them again, and those that failed
                for it no longer count it as their account. If there is no other one, it gets a template with
                ``{try}`` again.

        Returns:
            The proxy; None if all are quarantined, full or in *but_not*, or the account has used up its
            `failovers`.
        """
        tried = {self._index(pooled) for pooled in but_not}
        for index in tried:
            self._release(index, account_id)
        if len(but_not) > self.failovers:
            return None
        chosen = self._assignment.choose(account_id, tried)
        if chosen is None:
            templates = [pooled for pooled in but_not if TRY in pooled.placeholders]
            return min(templates, key=templates.count, default=None)
        self._count(chosen, 1)
        return self._proxies[chosen]

    def failed(self, proxy: PooledProxy, account_id: str, *, credentials: bool = False) -> bool:
        """
        Record that *proxy* failed for its account.

        A proxy is quarantined if it fails for two different accounts without having `worked` in between, or
        if its *credentials* are refused. If a success did not reset this, transient errors would quarantine
        good proxies: with one error in ten, 21 of 25 over 5,000 accounts instead of one. The account keeps
        the proxy, and may retry with it, until it gets another from `give`.

        Returns:
            Whether this call quarantined the proxy.
        """
        index = self._index(proxy)
        if index in self._quarantine or proxy.is_template:
            return False
        if self._failed_first.setdefault(index, account_id) == account_id and not credentials:
            return False
        self._quarantine.add(index)
        self._assignment.mark(index, is_open=False)
        return True

    def worked(self, proxy: PooledProxy) -> None:
        """Record that an account was patched with *proxy*, so an earlier failure was transient."""
        index = self._index(proxy)
        if index not in self._quarantine:
            self._failed_first.pop(index, None)
            self._released.discard(index)

    def take_back(self, proxy: PooledProxy) -> None:
        """Undo `give`: the account did not get *proxy*, for a reason unrelated to the proxy."""
        index = self._index(proxy)
        if index not in self._quarantine:
            self._count(index, -1)

    def in_quarantine(self, proxy: PooledProxy) -> bool:
        """Whether *proxy* is quarantined for the rest of the run."""
        return self._index(proxy) in self._quarantine

    def resume(self, accounts_by_label: Mapping[str, int]) -> None:
        """
        Count accounts that got their proxies in an earlier run.

        They count towards `accounts_per_proxy`, and ``round-robin`` continues where that run ended.

        Args:
            accounts_by_label: Number of accounts by label. Labels that are not in the pool are ignored.
        """
        counts: dict[int, int] = {}
        for label, accounts in accounts_by_label.items():
            index = self._indices.get(label, self._indices.get(LINE_PREFIX.sub("", label, 1)))
            if index is not None and index not in self._quarantine:
                self._count(index, accounts)
                counts[index] = counts.get(index, 0) + accounts
        if isinstance(self._assignment, RoundRobin):
            self._assignment.resume(counts)

    def __repr__(self) -> str:
        counts = f"{len(self)} proxies, {self.available} available, {self.quarantined} quarantined"
        return f"<ProxyPool {self._assign}: {counts}>"

    def _index(self, proxy: PooledProxy) -> int:
        index = self._indices.get(proxy.label)
        if index is None:
            raise ValueError(f"{proxy.label} is not in this pool")
        return index

    def _is_full(self, index: int) -> bool:
        if self._cap is None or self._proxies[index].is_template:
            return False
        return self._accounts[index] >= self._cap

    def _count(self, index: int, accounts: int) -> None:
        """Add *accounts*, which may be negative, to the count of a proxy that is not quarantined."""
        was_full = self._is_full(index)
        self._accounts[index] += accounts
        if self._is_full(index) != was_full:
            self._assignment.mark(index, is_open=was_full)

    def _release(self, index: int, account_id: str) -> None:
        """Stop counting the account for a proxy that failed for it; no effect the second time."""
        # A proxy that fails for a second account is quarantined, so at most one account is released.
        if index in self._quarantine or index in self._released:
            return
        if self._failed_first.get(index) == account_id:
            self._released.add(index)
            self._count(index, -1)
