"""
The proxies that the accounts of a rotation get theirs from.

A pool knows which proxy each account is to have, which proxies are full and which have failed. It has
no loop and no clock: state changes only inside a call, so tasks share it without a lock.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from secrets import randbits
from typing import Final, Literal, Self, TypeAlias, TypedDict, Unpack

from attrs import frozen

from postpress_async.errors import FleetError
from postpress_async.models import CustomProxy
from postpress_async.rotation._faults import Faults
from postpress_async.rotation.pool._assign import Assignment, Random, RoundRobin, Sticky
from postpress_async.rotation.pool._proxy_list import Known, RefusedLine, Source, identity, read_list

Assign: TypeAlias = Literal["round-robin", "sticky", "random"]

_LINE: Final = re.compile(r"line [0-9]+ ")  # labels of older journals began with it


@frozen
class PooledProxy:
    """
    A proxy of a pool.

    Attributes:
        proxy: The change that an account gets.
        label: What logs, journal and report call it, such as ``user3@p003.example.net:3128``: user name,
            host and port, which tell it from all others of a pool; never its password.
    """

    proxy: CustomProxy
    label: str

    @classmethod
    def of(cls, proxy: CustomProxy) -> Self:
        """
        *proxy* with its label.

        The label is made of what makes a proxy the same as another (`identity`), in one spelling. So it stays
        the same if a list is sorted, cut, joined with another, or gets new passwords.
        """
        host, port, user = identity(proxy)
        host = f"[{host}]" if ":" in host else host
        user = f"{user}@" if user else ""
        # A user name may hold what would turn a terminal's line around.
        user = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in user)
        return cls(proxy, f"{user}{host}:{port}")


class PoolOptions(TypedDict, total=False):
    """What `ProxyPool` and `ProxyPool.read` both take."""

    assign: Assign
    seed: int | None
    accounts_per_proxy: int | None
    failovers: int


class ProxyPool:
    """
    Proxies for the accounts of a rotation, each proxy once.

    The ways to assign, where a proxy is open while it is neither quarantined nor full:

    - ``round-robin``: the k-th account asked for gets the k-th proxy, over and over. A proxy that is
      not open is passed over. A resumed run goes on where the journal left off: a proxy that has more
      accounts than the others is passed over until they have as many.
    - ``sticky``: an account keeps its proxy from run to run, in whatever order proxies and accounts
      come. Each account ranks all proxies, by hashes of its id and of their host, port and user name,
      and gets the first that is open. Taking one proxy out moves the accounts that had it and no
      other. Which accounts a full proxy turns away depends on who came first.
    - ``random``: eight proxies are drawn for each account from *seed* and its id alone, and it gets
      the first that is open, or else the next open one in the list. A resumed run draws the same.

    Args:
        proxies: At least one. Of those with the same host, port and user name there may be only one.
        assign: One of the three.
        seed: Only ``random`` uses it; drawn where None, and then kept as the attribute `seed`.
        accounts_per_proxy: The most accounts that have one proxy at a time; None for any number.
        failovers: How many further proxies an account gets after its first.

    Attributes:
        refusals: Lines of the lists that are not in the pool.
        ignored_columns: For each list that is a table, as it was named: columns that are not used.
        failovers: As given.
        seed: As given, or drawn.

    Raises:
        ValueError: There is no proxy, one comes twice, or an argument is out of range.
    """

    def __init__(
        self,
        proxies: Iterable[CustomProxy | PooledProxy],
        *,
        assign: Assign = "round-robin",
        seed: int | None = None,
        accounts_per_proxy: int | None = None,
        failovers: int = 3,
    ) -> None:
        if accounts_per_proxy is not None and accounts_per_proxy < 1:
            raise ValueError("accounts_per_proxy is 1 or more, or None for any number")
        if failovers < 0:
            raise ValueError("failovers is 0 or more")
        self.refusals: tuple[RefusedLine, ...] = ()
        self.ignored_columns: Mapping[str, tuple[str, ...]] = {}
        self.failovers: Final = failovers
        self.seed: Final = randbits(32) if seed is None else seed
        self._cap: Final = accounts_per_proxy
        self._proxies: Final = [p if isinstance(p, PooledProxy) else PooledProxy.of(p) for p in proxies]
        self._places: Final = {pooled.label: place for place, pooled in enumerate(self._proxies)}
        self._accounts: Final = [0] * len(self._proxies)
        self._quarantine: Final[set[int]] = set()
        self._full = 0  # of those that are not in quarantine
        self._failed_first: Final[dict[int, str]] = {}  # the one account that a proxy has failed
        self._left: Final[set[int]] = set()  # and whether that account has gone on to another
        self._assign: Final = assign
        self._assignment: Final = self._make_assignment(assign)

    def _make_assignment(self, assign: Assign) -> Assignment:
        first: dict[tuple[str, int, str], str] = {}
        for pooled in self._proxies:
            label = first.setdefault(identity(pooled.proxy), pooled.label)
            if label is not pooled.label:
                raise ValueError(f"{pooled.label} is the same proxy as {label}: give each proxy once")
        if not first:
            raise ValueError("a pool needs at least one proxy")
        if len(self._places) < len(self._proxies):
            raise ValueError("two proxies have the same label: a label tells one proxy from all others")
        if assign == "round-robin":
            return RoundRobin(len(self))
        if assign == "random":
            return Random(len(self), self.seed)
        if assign == "sticky":
            return Sticky(["\0".join(map(str, key)) for key in first])
        raise ValueError(f'assign is "round-robin", "sticky" or "random", not {assign!r}')

    @classmethod
    def read(
        cls, source: Source, *more: Source, skip_bad: bool = False, **options: Unpack[PoolOptions]
    ) -> Self:
        """
        One pool of all proxies in the lists *source* and *more*: each a path, or ``-`` for standard input.

        Their forms are those of `proxy_list`. With *skip_bad*, lines that are no proxy, or one that is listed
        before, be it in another list, are left out; `refusals` has them.

        Raises:
            FleetError: A list cannot be read, has no proxy, or has lines that are refused.
            ValueError: An option is out of range.
        """
        known: Known = {}
        lists = [read_list(one, known) for one in (source, *more)]
        for listed in lists:
            name = f"the list of proxies in {listed.name}"
            if listed.refused and not (skip_bad and known):
                faults = Faults[RefusedLine]()
                for refusal in listed.refused:
                    faults.add(refusal)
                told = [f"\n  {fault.sentence()}" for fault in faults]
                if faults.unlisted:
                    told.append(f"\n  {faults.unlisted:,} more lines have other faults")
                lines = "1 line" if faults.count == 1 else f"{faults.count:,} lines"
                raise FleetError(f"{name} has {lines} that cannot be used:{''.join(told)}")
            if not listed.proxies and not listed.refused:
                raise FleetError(f"{name} is empty: give one proxy a line")
        pool = cls([PooledProxy.of(entry.proxy) for listed in lists for entry in listed.proxies], **options)
        pool.refusals = tuple(refusal for listed in lists for refusal in listed.refused)
        pool.ignored_columns = {listed.name: listed.ignored_columns for listed in lists}
        return pool

    def __len__(self) -> int:
        return len(self._proxies)

    def __iter__(self) -> Iterator[PooledProxy]:
        return iter(self._proxies)

    @property
    def digest(self) -> bytes:
        """
        SHA-256 over what decides which account gets which proxy: the proxies, and how they are assigned.

        It is made with passwords, and only fit to be hashed again with a salt.
        """
        rows = [
            [p.host, p.port, p.protocol, p.username, p.password and p.password.reveal()]
            for p in (pooled.proxy for pooled in self._proxies)
        ]
        if self._assign == "sticky":  # the order of the list does not matter
            rows.sort(key=json.dumps)
        seed = self.seed if self._assign == "random" else None
        return hashlib.sha256(json.dumps([self._assign, seed, self._cap, rows]).encode()).digest()

    @property
    def quarantined(self) -> int:
        """How many proxies are out for the rest of the run."""
        return len(self._quarantine)

    @property
    def available(self) -> int:
        """How many proxies are neither quarantined nor full; at 0 the pool has run dry."""
        return len(self) - len(self._quarantine) - self._full

    def give(self, account_id: str, *, but_not: Collection[PooledProxy] = ()) -> PooledProxy | None:
        """
        The proxy that the account is to get.

        Args:
            account_id: The account.
            but_not: The proxies it had before. It does not get them again, and where one of them has
                failed it (see `failed`), its place there is free for another account.

        Returns:
            None where no proxy is left for this account: all are quarantined, full or in *but_not*, or
            *but_not* shows that it had its `failovers`.
        """
        tried = {self._place(pooled) for pooled in but_not}
        for place in tried:
            self._leave(place, account_id)
        if len(tried) > self.failovers:
            return None
        chosen = self._assignment.choose(account_id, tried)
        if chosen is None:
            return None
        self._take(chosen, 1)
        return self._proxies[chosen]

    def failed(self, proxy: PooledProxy, account_id: str, *, credentials: bool = False) -> bool:
        """
        Record that *proxy* failed the account that has it.

        Two different accounts with none between that it `worked` for, or one whose *credentials* for the
        proxy were refused, quarantine it. Were they counted over a whole night, errors that pass would take
        out good proxies: with one error in ten, 21 of 25 over 5,000 accounts; so, one.
        The account still has the proxy, and may try again, until `give` is asked for another.

        Returns:
            Whether this call put it into quarantine.
        """
        place = self._place(proxy)
        if place in self._quarantine:
            return False
        if self._failed_first.setdefault(place, account_id) == account_id and not credentials:
            return False
        self._full -= self._is_full(place)
        self._quarantine.add(place)
        self._assignment.mark(place, is_open=False)
        return True

    def worked(self, proxy: PooledProxy) -> None:
        """An account was patched with *proxy*: what it failed before was a passing error."""
        place = self._place(proxy)
        if place not in self._quarantine:
            self._failed_first.pop(place, None)
            self._left.discard(place)

    def take_back(self, proxy: PooledProxy) -> None:
        """An account that was given *proxy* did not get it, for no fault of the proxy's: a place is free."""
        place = self._place(proxy)
        if place not in self._quarantine:
            self._take(place, -1)

    def in_quarantine(self, proxy: PooledProxy) -> bool:
        """Whether it is out for the rest of the run, so that trying it again is no use."""
        return self._place(proxy) in self._quarantine

    def resume(self, given: Mapping[str, int]) -> None:
        """
        Count accounts that have their proxies from an earlier run.

        They count towards *accounts_per_proxy*, and ``round-robin`` goes on where that run left off.

        Args:
            given: For each label, how many accounts. Labels that the lists no longer have are passed over.
        """
        counts: dict[int, int] = {}
        for label, accounts in given.items():
            place = self._places.get(label, self._places.get(_LINE.sub("", label, 1)))
            if place is not None and place not in self._quarantine:
                self._take(place, accounts)
                counts[place] = counts.get(place, 0) + accounts
        if isinstance(self._assignment, RoundRobin):
            self._assignment.resume(counts)

    def __repr__(self) -> str:
        counts = f"{len(self)} proxies, {self.available} available, {self.quarantined} quarantined"
        return f"<ProxyPool {self._assign}: {counts}>"

    def _place(self, proxy: PooledProxy) -> int:
        place = self._places.get(proxy.label)
        if place is None:
            raise ValueError(f"{proxy.label} is not of this pool")
        return place

    def _is_full(self, place: int) -> bool:
        return self._cap is not None and self._accounts[place] >= self._cap

    def _take(self, place: int, accounts: int) -> None:
        """Count *accounts* more, or fewer where it is negative, for a proxy that is not in quarantine."""
        was_full = self._is_full(place)
        self._accounts[place] += accounts
        if (full := self._is_full(place)) != was_full:
            self._full += full - was_full
            self._assignment.mark(place, is_open=not full)

    def _leave(self, place: int, account_id: str) -> None:
        """Free the account's place at a proxy that failed it; once, however often it is asked."""
        # A proxy that failed two is in quarantine and has no places, so one account and one mark are enough.
        if place in self._quarantine or place in self._left:
            return
        if self._failed_first.get(place) == account_id:
            self._left.add(place)
            self._take(place, -1)
