"""Rows as they travel to a worker that asked for them, and outcomes on their way back."""

import json
import pickle
from collections.abc import Iterable
from typing import Any, Final

from attrs import evolve, frozen

from postpress_async._converter import own_converter
from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.rotation._outcome import Outcome, State, patched_outcome
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._pool import PooledProxy
from postpress_async.rotation._rows import Row

Plain = list[Any]


@frozen
class Sent:
    """
    A row of a shard.

    Attributes:
        open: The row, and what an earlier sending of it may have done.
        pooled: The proxy that the pool gives it; None where it has a change of its own.
    """

    open: PendingRow
    pooled: PooledProxy | None = None

    @property
    def row(self) -> Row:
        """The row itself; one that was refused is not sent."""
        row = self.open.row
        assert isinstance(row, Row)  # noqa: S101
        return row

    @property
    def account_id(self) -> str:
        """The account."""
        return self.row.account_id


def pack(rows: Iterable[Sent]) -> bytes:
    """*rows* as bytes. Passwords are in them: they travel over TLS, or within this machine."""
    return json.dumps([_plain(sent) for sent in rows]).encode()


def unpack(packed: bytes) -> list[Sent]:
    """What `pack` was given. It was checked when it was read: what the models refuse is a mistake."""
    return [_sent(*fields) for fields in json.loads(packed)]


def _plain(sent: Sent) -> Plain:
    taken = sent.open
    row = sent.row
    pooled = None if sent.pooled is None else [sent.pooled.label, plain_change(sent.pooled.proxy)]
    change = None if row.change is None else plain_change(row.change)
    marks = taken.maybe_sent, taken.recorded, taken.generation, taken.key
    return [row.ordinal, row.line, row.account_id, change, *marks, pooled]


def _sent(
    ordinal: int,
    line: int | None,
    account_id: str,
    change: dict[str, Any] | None,
    maybe_sent: bool,
    recorded: bool,
    generation: int,
    key: str | None,
    pooled: Plain | None,
) -> Sent:
    row = Row(ordinal, line, account_id, None if change is None else change_of(change))
    return Sent(PendingRow(row, maybe_sent, recorded, generation, key=key), pooled_of(pooled))


def plain_change(change: ProxyChange) -> dict[str, Any]:
    """*change* as plain values, its password among them."""
    kind = CustomProxy if isinstance(change, CustomProxy) else ManagedProxy
    fields: dict[str, Any] = own_converter.unstructure(change, kind)
    return fields


def change_of(fields: dict[str, Any]) -> ProxyChange:
    """The change of these plain values."""
    return CustomProxy(**fields) if "host" in fields else ManagedProxy(**fields)


def pooled_of(plain: Plain | None) -> PooledProxy | None:
    """The pool's proxy of a label and its plain values."""
    if plain is None:
        return None
    label, values = plain
    proxy = change_of(values)
    assert isinstance(proxy, CustomProxy)  # noqa: S101 - a pool has no others
    return PooledProxy(proxy, label)


PATCHED: Final = "patched"
ENDED: Final = "ended"


def note_of(number: int, outcome: Outcome) -> tuple[Any, ...]:
    """
    The note that says what came of an account of the shard of this *number*.

    Of one that was patched only what the coordinator does not know; the others come with their error, which
    holds no secret.
    """
    if outcome.state is State.PATCHED:
        fields = outcome.attempts, outcome.elapsed, outcome.settled_at, outcome.assignment
        return (PATCHED, number, outcome.ordinal, *fields)
    # The cause and the traceback of the error stay: neither is pickled.
    return (ENDED, number, outcome.ordinal, pickle.dumps(outcome))


def patched_of(row: Row, attempts: int, elapsed: float, settled_at: float, assignment: str | None) -> Outcome:
    """The outcome of an account that a worker says was patched."""
    outcome = patched_outcome(row.ordinal, row.line, row.account_id, attempts, elapsed, assignment)
    return evolve(outcome, settled_at=settled_at)


def ended_of(pickled: bytes) -> Outcome:
    """The outcome that a worker pickled."""
    outcome = pickle.loads(pickled)  # noqa: S301 - of a worker, which runs code that we send it
    assert isinstance(outcome, Outcome)  # noqa: S101
    return outcome
