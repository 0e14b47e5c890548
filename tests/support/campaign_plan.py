"""
Draws a sequence of the campaign from a seed: a fleet, a service, and runs on one journal.

One to four runs meet simulated failures and end in one of several ways. Runs on a healthy service then end
the sequence. Each part has its own random generator, so the steps are similar with another number of
accounts.
"""

import random
from enum import StrEnum
from typing import Any, Final, get_args

from attrs import evolve, field, frozen

from postpress_async import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation import Halt
from postpress_async.rotation._pool import Assign
from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown
from tests.support.counting_server import AMBIGUOUS_401_TYPE, API_KEY_TYPE, Conditions, Gateway, Traits

COUNTRIES: Final = ("US", "DE", "GB", "JP")


class End(StrEnum):
    """How a run ends, unless it ends by itself first."""

    NATURAL = "natural end"
    STOP = "stop"
    """The first Ctrl-C: the run waits for the requests in flight."""
    CANCEL = "cancellation"
    """The second Ctrl-C, or the end of the surrounding program: the run abandons the requests in flight."""
    KILL = "kill"
    DISK_FULL = "full disk"


@frozen
class Account:
    """One row of the fleet. If *change* is None, the pool chooses the proxy."""

    account_id: str
    change: ProxyChange | None

    @property
    def is_managed(self) -> bool:
        return isinstance(self.change, ManagedProxy)

    @property
    def body(self) -> dict[str, Any] | None:
        """The request body for this account; None if the pool chooses the proxy."""
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
        conditions: Simulated failures that the requests meet.
        end: How the run ends.
        after_requests: Number of requests of the run after which it ends; 0 for when the journal is open.
        delay: Seconds between that request and the end.
        stop_before_cancel: Whether a stop precedes a cancellation, as the first Ctrl-C precedes the second.
        pause: Seconds between the end of this run and the start of the next.
        limit: Argument of `PostPressSession.rotate`.
        halt: Argument of `rotate`.
        in_flight: Maximum number of accounts in flight.
        on_failed: Argument of `rotate`.
        attempts: Maximum number of attempts for each call.
        on_unknown: Argument of `rotate`; None for the sequence's `on_unknown`.
        every: Argument of `rotate`.
        keep: Argument of `rotate`.
        on: Proxies whose accounts the run covers; empty for all accounts.
        rollback_to: The run to which a rollback goes back, from 0 for the oldest to 1 for the newest; None if
            this is no rollback.
        accounts: The fleet; None for the fleet of the sequence.
        pool: The pool; None for the pool of the sequence.
        file_format: How the fleet's file is saved: an index of `campaign_nights.FILE_FORMATS`.
    """

    conditions: Conditions = field(factory=Conditions)
    end: End = End.NATURAL
    after_requests: int = 0
    delay: float = 0.0
    stop_before_cancel: bool = False
    pause: float = 0.0
    limit: int | None = None
    halt: Halt = field(factory=lambda: Halt(failures="never"))
    in_flight: int = 20
    on_failed: OnFailed = "report"
    attempts: int = 4
    on_unknown: OnUnknown | None = None
    every: float | None = None
    keep: int | None = None
    on: tuple[str, ...] = ()
    rollback_to: float | None = None
    accounts: "tuple[Account, ...] | None" = None
    pool: tuple[CustomProxy, ...] | None = None
    file_format: int = 0

    @property
    def is_partial(self) -> bool:
        """Whether the run covers only some accounts."""
        return bool(self.on) or self.rollback_to is not None


@frozen(kw_only=True)
class Sequence:
    """
    Runs on one journal, and everything that they share.

    Attributes:
        seed: The seed of all random choices.
        accounts: The fleet.
        traits: Properties of the service.
        steps: The runs, without those on a healthy service that end every sequence.
        idempotency: Whether requests carry an Idempotency-Key.
        on_unknown: What happens to accounts in doubt.
        pool: Proxies for the rows that name no change; may be empty.
        assign: How the pool assigns its proxies.
        accounts_per_proxy: Maximum number of accounts on one proxy; None for any number.
        from_file: Whether the fleet is a CSV file; otherwise it is a list of pairs.
        is_nights: Whether the sequence simulates several nights. It then ends with a new run that is due.
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
        """
        Whether no account may get a second managed proxy.

        Without idempotency keys, no managed change in doubt is sent again.
        """
        return self.traits.honours_keys or not self.idempotency


def healthy(on_failed: OnFailed, *, on_unknown: OnUnknown | None = None) -> Step:
    """A run to its natural end on a service without failures."""
    return Step(in_flight=40, on_failed=on_failed, on_unknown=on_unknown, pause=1000.0)


def small(*steps: Step, **other: Any) -> Sequence:
    """A sequence of thirty accounts on a service without failures. Its audit finds nothing."""
    managed = [ManagedProxy(country="US")] * 18
    custom = [CustomProxy(host=f"own-{number}.example.net", port=3128) for number in range(6)]
    changes = [*managed, *custom, *[None] * 6]
    accounts = [Account(f"acc_{number:03}", change) for number, change in enumerate(changes)]
    pool = tuple(CustomProxy(host=f"p{number}.example.net", port=8080) for number in range(3))
    traits = Traits(unknown=frozenset({"acc_017"}))
    sequence = Sequence(
        seed=1, accounts=tuple(accounts), steps=steps, traits=traits, pool=pool, accounts_per_proxy=3
    )
    return evolve(sequence, **other)


def draw(seed: int, accounts: int | None = None) -> Sequence:
    """Draw the sequence of this *seed*, with this number of *accounts* if given."""
    rng = random.Random(f"sequence {seed}")
    count = rng.randint(300, 500) if rng.random() < 0.04 else rng.randint(20, 150)
    count = accounts or count
    idempotency = rng.random() < 0.85
    on_unknown: OnUnknown = "report" if rng.random() < (0.15 if idempotency else 0.6) else "retry"
    honours_keys = rng.random() < (0.85 if idempotency else 0.5)
    stores_errors, looks_up_first = rng.random() < 0.5, rng.random() < 0.7
    assign: Assign = rng.choice(get_args(Assign))
    capped, from_file = rng.random() < 0.5, rng.random() < 0.15
    fleet, pool, dead = _fleet(random.Random(f"fleet {seed}"), count)
    ids = [account.account_id for account in fleet]
    steps = _steps(random.Random(f"steps {seed}"), ids)
    traits_rng = random.Random(f"odd {seed}")
    unknown = frozenset(account_id for account_id in ids if traits_rng.random() < 0.02)
    unsupported = frozenset(account_id for account_id in ids if traits_rng.random() < 0.02) - unknown
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
        # 1.5 times the necessary limit, because an account in doubt may count for two proxies.
        accounts_per_proxy=-(-pooled * 3 // (2 * living)) + 1 if pool and capped else None,
        from_file=from_file,
    )


def _fleet(
    rng: random.Random, count: int
) -> tuple[tuple[Account, ...], tuple[CustomProxy, ...], frozenset[str]]:
    """Draw the accounts, the pool, and the ``host:port`` of all dead proxies."""
    managed, custom, pooled = rng.choice([(1, 0, 0), (3, 1, 0), (2, 1, 1), (2, 1, 1), (1, 1, 3)])
    changes: list[ProxyChange | None] = []
    dead = set()
    for number, kind in enumerate(
        rng.choices(["managed", "custom", "pooled"], [managed, custom, pooled], k=count)
    ):
        if kind == "managed":
            changes.append(ManagedProxy(country=rng.choice(COUNTRIES)))
        elif kind == "custom":
            own = CustomProxy(
                host=f"own-{number}.example.net", port=3128, username="me", password=f"word-{number}"
            )
            changes.append(own)
            if rng.random() < 0.03:
                dead.add(f"{own.host}:{own.port}")
        else:
            changes.append(None)
    pool: tuple[CustomProxy, ...] = ()
    if None in changes:
        pool = tuple(
            CustomProxy(host=f"p{number}.example.net", port=8080) for number in range(rng.randint(5, 15))
        )
        dead |= {f"{proxy.host}:{proxy.port}" for proxy in pool[: rng.randint(0, len(pool) // 3)]}
    fleet = tuple(Account(f"acc_{number:03}", change) for number, change in enumerate(changes))
    return fleet, tuple(rng.sample(pool, len(pool))), frozenset(dead)


def _steps(rng: random.Random, ids: list[str]) -> tuple[Step, ...]:
    steps = []
    for number in range(rng.randint(1, 4)):
        ends = [End.KILL, End.NATURAL, End.STOP, End.CANCEL, End.DISK_FULL]
        halts = [Halt(failures="never"), Halt(), Halt(failures=rng.randint(3, 20))]
        halts.append(Halt(failures="30%", canary=rng.randint(3, 10)))
        step = Step(
            conditions=_conditions(rng, ids),
            end=rng.choices(ends, [40, 24, 12, 12, 12])[0],
            # Mostly early, because a later run has fewer accounts to send.
            after_requests=rng.choices(
                [0, rng.randint(1, len(ids) // 3 + 1), rng.randint(1, len(ids))], [1, 5, 4]
            )[0],
            delay=rng.choices([0.0, rng.uniform(0, 0.15), rng.uniform(0, 3)], [4, 4, 2])[0],
            stop_before_cancel=rng.random() < 0.5,
            pause=rng.choice([0.0, 0.0, 1.0, 100.0]),
            limit=rng.randint(1, len(ids)) if rng.random() < 0.2 else None,
            halt=rng.choices(halts, [55, 15, 20, 10])[0],
            in_flight=rng.randint(3, 60),
            on_failed="retry" if number and rng.random() < 0.25 else "report",
            attempts=rng.randint(1, 6),
        )
        steps.append(step)
    return tuple(steps)


def _conditions(rng: random.Random, ids: list[str]) -> Conditions:
    shares = "unreachable dropped unanswered throttled unavailable erring half_done slow".split()
    drawn: dict[str, Any] = {name: rng.uniform(0.01, 0.12) if rng.random() < 0.4 else 0.0 for name in shares}
    conditions = Conditions(**drawn, silent=rng.choice([0.0, 0.3]))
    chance = rng.random()
    error = API_KEY_TYPE if rng.random() < 0.6 else AMBIGUOUS_401_TYPE
    revoked_at = rng.randint(1, len(ids))
    if chance < 0.12:
        conditions = evolve(conditions, api_key_fails_after=0, api_key_error=error)
    elif chance < 0.24:
        conditions = evolve(conditions, api_key_fails_after=revoked_at, api_key_error=error)
    status = rng.choice([400, 401, 403, 404, 405, 502, 503, 200])
    gateway = Gateway(
        status=status,
        share=rng.choice([1.0, 1.0, 0.3]),
        # A rotation waits for hours for the end of an outage, so an error page that looks like one ends
        # earlier.
        seconds=rng.choice([1.0, 20.0]) if status in {502, 503} else rng.choice([1e9, 1e9, 1.0]),
    )
    if 0.24 <= chance < 0.44:
        conditions = evolve(conditions, gateway=gateway)
    share = rng.uniform(0.05, 0.3) if rng.random() < 0.25 else 0.0
    return evolve(
        conditions, disconnected=frozenset(account_id for account_id in ids if rng.random() < share)
    )
