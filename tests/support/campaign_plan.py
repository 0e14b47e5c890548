"""
What a sequence of the campaign does, drawn from its seed: a fleet, a service, and runs on one journal.

One to four runs meet troubles, and end in one of several ways; then runs on a healthy service end the
sequence. Each part has a generator of its own, so with another number of accounts the steps are similar.
"""

import random
from enum import StrEnum
from typing import Any, Final, get_args

from attrs import evolve, field, frozen

from postpress_async import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation import Halt
from postpress_async.rotation._pool import Assign
from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown
from tests.support.counting_server import GENERIC_TYPE, KEY_TYPE, Conditions, Gateway, Traits

COUNTRIES: Final = ("US", "DE", "GB", "JP")


class End(StrEnum):
    """How a run ends, unless it has ended by itself before."""

    NATURAL = "natural end"
    STOP = "stop"
    """The first Ctrl-C: what is in flight settles."""
    CANCEL = "cancellation"
    """The second Ctrl-C, or the end of the program around it: what is in flight is given up."""
    KILL = "kill"
    DISK_FULL = "full disk"


@frozen
class Account:
    """One row of the fleet; a *change* of None leaves it to the pool."""

    account_id: str
    change: ProxyChange | None

    @property
    def is_managed(self) -> bool:
        return isinstance(self.change, ManagedProxy)

    @property
    def body(self) -> dict[str, Any] | None:
        """What has to be sent for it; None if the pool decides."""
        change = self.change
        if change is None:
            return None
        if isinstance(change, ManagedProxy):
            return {"country": change.country}
        proxy: dict[str, Any] = {"host": change.host, "port": change.port}
        if change.username is not None and change.password is not None:
            proxy |= {"username": change.username, "password": change.password.reveal()}
        return {"proxy": proxy}


@frozen(kw_only=True)
class Step:
    """
    One run.

    Attributes:
        conditions: What its requests meet.
        end: How it ends.
        at: Requests of the run after which that happens; 0 for as soon as the journal is open.
        delay: Seconds after that request.
        stop_before_cancel: Whether a cancellation follows a stop, as the second Ctrl-C follows the first.
        rest: Seconds until the next run begins.
        limit: As `PostPressSession.rotate` takes it, like the next three.
        halt: When it stops by itself.
        in_flight: Accounts at once.
        on_failed: What becomes of accounts that failed before.
        attempts: Attempts for each call.
        on_unknown: As `rotate` takes it; None for that of the sequence.
        every: As `rotate` takes it, like the next two.
        keep: Number of runs to keep.
        on: Proxies whose accounts are taken; empty for all accounts.
        back: Which of the runs so far a rollback goes back to, from 0 for the oldest to 1 for the newest;
            None for no rollback.
        accounts: The fleet; None for that of the sequence.
        pool: The pool; None for that of the sequence.
        saved_as: How the fleet's file is saved: an index of `campaign_nights.SAVED`.
    """

    conditions: Conditions = field(factory=Conditions)
    end: End = End.NATURAL
    at: int = 0
    delay: float = 0.0
    stop_before_cancel: bool = False
    rest: float = 0.0
    limit: int | None = None
    halt: Halt = field(factory=lambda: Halt(failures="never"))
    in_flight: int = 20
    on_failed: OnFailed = "report"
    attempts: int = 4
    on_unknown: OnUnknown | None = None
    every: float | None = None
    keep: int | None = None
    on: tuple[str, ...] = ()
    back: float | None = None
    accounts: "tuple[Account, ...] | None" = None
    pool: tuple[CustomProxy, ...] | None = None
    saved_as: int = 0

    @property
    def takes_some(self) -> bool:
        """Whether it takes only some accounts."""
        return bool(self.on) or self.back is not None


@frozen(kw_only=True)
class Sequence:
    """
    Runs on one journal, and all that they share.

    Attributes:
        seed: What all of it was drawn from.
        accounts: The fleet.
        traits: What the service is like.
        steps: The runs, before those on a healthy service that end every sequence.
        idempotency: Whether requests carry an Idempotency-Key.
        on_unknown: What becomes of accounts in doubt.
        pool: Proxies for the rows that name no change; may be empty.
        assign: How the pool assigns them.
        accounts_per_proxy: The most accounts on one proxy; None for any number.
        from_file: Whether the fleet is a CSV file; otherwise it is a list of pairs.
        is_nights: Whether it ends with a run of all accounts that is due.
    """

    seed: int
    accounts: tuple[Account, ...]
    traits: Traits
    steps: tuple[Step, ...]
    idempotency: bool = True
    on_unknown: OnUnknown = "retry"
    pool: tuple[CustomProxy, ...] = ()
    assign: Assign = "round-robin"
    accounts_per_proxy: int | None = None
    from_file: bool = False
    is_nights: bool = False

    @property
    def bounds_doubles(self) -> bool:
        """Whether no account may get a second managed proxy: without keys, nothing in doubt is sent again."""
        return self.traits.honours_keys or not self.idempotency


def healthy(on_failed: OnFailed, *, on_unknown: OnUnknown | None = None) -> Step:
    """A run to its natural end on a service that works."""
    return Step(in_flight=40, on_failed=on_failed, on_unknown=on_unknown, rest=1000.0)


def small(*steps: Step, **other: Any) -> Sequence:
    """A sequence of thirty accounts on a service without troubles; its audit finds nothing."""
    changes = [ManagedProxy(country="US")] * 18
    own = [CustomProxy(host=f"own-{number}.example.net", port=3128) for number in range(6)]
    accounts = [Account(f"acc_{number:03}", new) for number, new in enumerate([*changes, *own, *[None] * 6])]
    pool = tuple(CustomProxy(host=f"p{number}.example.net", port=8080) for number in range(3))
    traits = Traits(unknown=frozenset({"acc_017"}))
    made = Sequence(
        seed=1, accounts=tuple(accounts), steps=steps, traits=traits, pool=pool, accounts_per_proxy=3
    )
    return evolve(made, **other)


def draw(seed: int, accounts: int | None = None) -> Sequence:
    """The sequence of this *seed*; with another number of *accounts* if given."""
    dice = random.Random(f"sequence {seed}")
    count = dice.randint(300, 500) if dice.random() < 0.04 else dice.randint(20, 150)
    count = accounts or count
    idempotency = dice.random() < 0.85
    on_unknown: OnUnknown = "report" if dice.random() < (0.15 if idempotency else 0.6) else "retry"
    honours_keys = dice.random() < (0.85 if idempotency else 0.5)
    stores_errors, looks_up_first = dice.random() < 0.5, dice.random() < 0.7
    assign: Assign = dice.choice(get_args(Assign))
    capped, from_file = dice.random() < 0.5, dice.random() < 0.15
    fleet, pool, dead = _fleet(random.Random(f"fleet {seed}"), count)
    ids = [account.account_id for account in fleet]
    steps = _steps(random.Random(f"steps {seed}"), ids)
    odd = random.Random(f"odd {seed}")
    unknown = frozenset(id_ for id_ in ids if odd.random() < 0.02)
    unsupported = frozenset(id_ for id_ in ids if odd.random() < 0.02) - unknown
    pooled = sum(account.change is None for account in fleet)
    living = sum(f"{proxy.host}:{proxy.port}" not in dead for proxy in pool)
    return Sequence(
        seed=seed,
        accounts=fleet,
        traits=Traits(
            honours_keys=honours_keys,
            stores_errors=stores_errors,
            looks_up_first=looks_up_first,
            unknown=unknown,
            unsupported=unsupported,
            dead_proxies=dead,
        ),
        steps=steps,
        idempotency=idempotency,
        on_unknown=on_unknown,
        pool=pool,
        assign=assign,
        # Room for a half more than there are: an account in doubt may hold a place at two proxies.
        accounts_per_proxy=-(-pooled * 3 // (2 * living)) + 1 if pool and capped else None,
        from_file=from_file,
    )


def _fleet(
    dice: random.Random, count: int
) -> tuple[tuple[Account, ...], tuple[CustomProxy, ...], frozenset[str]]:
    """The accounts, the pool, and which of all proxies are dead."""
    managed, custom, pooled = dice.choice([(1, 0, 0), (3, 1, 0), (2, 1, 1), (2, 1, 1), (1, 1, 3)])
    changes: list[ProxyChange | None] = []
    dead = set()
    for number, kind in enumerate(
        dice.choices(["managed", "custom", "pooled"], [managed, custom, pooled], k=count)
    ):
        if kind == "managed":
            changes.append(ManagedProxy(country=dice.choice(COUNTRIES)))
        elif kind == "custom":
            own = CustomProxy(
                host=f"own-{number}.example.net", port=3128, username="me", password=f"word-{number}"
            )
            changes.append(own)
            if dice.random() < 0.03:
                dead.add(f"{own.host}:{own.port}")
        else:
            changes.append(None)
    pool: tuple[CustomProxy, ...] = ()
    if None in changes:
        pool = tuple(
            CustomProxy(host=f"p{number}.example.net", port=8080) for number in range(dice.randint(5, 15))
        )
        dead |= {f"{proxy.host}:{proxy.port}" for proxy in pool[: dice.randint(0, len(pool) // 3)]}
    fleet = tuple(Account(f"acc_{number:03}", change) for number, change in enumerate(changes))
    return fleet, tuple(dice.sample(pool, len(pool))), frozenset(dead)


def _steps(dice: random.Random, ids: list[str]) -> tuple[Step, ...]:
    steps = []
    for number in range(dice.randint(1, 4)):
        ends = [End.KILL, End.NATURAL, End.STOP, End.CANCEL, End.DISK_FULL]
        halts = [Halt(failures="never"), Halt(), Halt(failures=dice.randint(3, 20))]
        halts.append(Halt(failures="30%", canary=dice.randint(3, 10)))
        step = Step(
            conditions=_conditions(dice, ids),
            end=dice.choices(ends, [40, 24, 12, 12, 12])[0],
            # Early more often than late: a later run has fewer accounts left.
            at=dice.choices([0, dice.randint(1, len(ids) // 3 + 1), dice.randint(1, len(ids))], [1, 5, 4])[0],
            delay=dice.choices([0.0, dice.uniform(0, 0.15), dice.uniform(0, 3)], [4, 4, 2])[0],
            stop_before_cancel=dice.random() < 0.5,
            rest=dice.choice([0.0, 0.0, 1.0, 100.0]),
            limit=dice.randint(1, len(ids)) if dice.random() < 0.2 else None,
            halt=dice.choices(halts, [55, 15, 20, 10])[0],
            in_flight=dice.randint(3, 60),
            on_failed="retry" if number and dice.random() < 0.25 else "report",
            attempts=dice.randint(1, 6),
        )
        steps.append(step)
    return tuple(steps)


def _conditions(dice: random.Random, ids: list[str]) -> Conditions:
    shares = "unreachable dropped unanswered throttled unavailable erring half_done slow".split()
    drawn: dict[str, Any] = {
        name: dice.uniform(0.01, 0.12) if dice.random() < 0.4 else 0.0 for name in shares
    }
    conditions = Conditions(**drawn, silent=dice.choice([0.0, 0.3]))
    chance = dice.random()
    error = KEY_TYPE if dice.random() < 0.6 else GENERIC_TYPE
    revoked_at = dice.randint(1, len(ids))
    if chance < 0.12:
        conditions = evolve(conditions, key_fails_after=0, key_error=error)
    elif chance < 0.24:
        conditions = evolve(conditions, key_fails_after=revoked_at, key_error=error)
    status = dice.choice([400, 401, 403, 404, 405, 502, 503, 200])
    gateway = Gateway(
        status=status,
        share=dice.choice([1.0, 1.0, 0.3]),
        # An outage is waited out for hours, so a page that looks like one ends after a while.
        seconds=dice.choice([1.0, 20.0]) if status in {502, 503} else dice.choice([1e9, 1e9, 1.0]),
    )
    if 0.24 <= chance < 0.44:
        conditions = evolve(conditions, gateway=gateway)
    share = dice.uniform(0.05, 0.3) if dice.random() < 0.25 else 0.0
    return evolve(conditions, disconnected=frozenset(id_ for id_ in ids if dice.random() < share))
