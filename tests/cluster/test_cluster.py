"""A rotation on a cluster, its parts one by one: who may be a cluster, what travels, who gets which rate."""

import asyncio
import pickle
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async import CustomProxy, ManagedProxy, Pace, ProxyPool, RetryPolicy, cluster
from postpress_async._version import __version__
from postpress_async.cluster import Cluster, conductor, crew
from postpress_async.cluster.channel import Inbox, Outbox
from postpress_async.cluster.conductor import ClusterRotation
from postpress_async.cluster.issuer import Issuer
from postpress_async.cluster.orders import Orders
from postpress_async.cluster.parcel import Sent, ended_of, note_of, pack, unpack
from postpress_async.cluster.place import Place, read_certificates, write_certificates
from postpress_async.errors import (
    Applied,
    ClusterError,
    ConfigurationError,
    JournalNotWritableError,
    Problem,
    ResourceNotFoundError,
)
from postpress_async.rotation import Halt, Outcome, Row, State
from postpress_async.rotation._input import Changes, RotationInput
from postpress_async.rotation._outcome import failed_outcome
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._pool import PooledProxy
from postpress_async.rotation._pool._allocator import ProxyAllocator
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._recovery import OnUnknown
from tests.support import KEY
from tests.support.journals import outcome, write

pytestmark = pytest.mark.slow

US = ManagedProxy(country="US")
PASSWORD = "s3cret-of-a-proxy"
OWN = CustomProxy(host="p.example.com", port=8080, protocol="socks5", username="u", password=PASSWORD)


# --- Who may be a cluster ---


@pytest.mark.parametrize("missing", ["dask", "distributed"])
def test_without_dask_it_says_what_to_install(missing: str) -> None:
    """In place of a module's name that is in no requirement."""
    program = f"import sys; sys.modules[{missing!r}] = None; import postpress_async.cluster"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'postpress-async[distributed]'" in done.stderr.splitlines()[-1]


def test_a_place_is_local_or_a_scheduler() -> None:
    assert Place.of("local:3") == Place(3)
    assert Place.of("tls://scheduler.example.com:8786").host == "scheduler.example.com"
    assert Place.of("tls://[2001:db8::1]:8786").host == "2001:db8::1"
    assert Place.of("tcp://127.0.0.1:8786").is_here
    assert not Place.of("tls://10.0.0.1:8786").is_here


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("local:0", "from 1 to"),
        ("local:", "from 1 to"),
        ("local:" + "9" * 5_000, "from 1 to"),  # more digits than Python makes a number of
        ("scheduler:8786", "not the address of a cluster"),
        ("tls://scheduler", "not the address of a cluster"),
        ("tls://scheduler:0", "not the address of a cluster"),
        ("tls://scheduler:8786/x", "not the address of a cluster"),
        ("ucx://scheduler:8786", "not the address of a cluster"),
        ("tcp://10.0.0.1:8786", "does not use TLS"),
        ("tcp://scheduler:8786", "does not use TLS"),
    ],
)
def test_any_other_place_is_refused(text: str, message: str) -> None:
    """A Dask port runs any code that is sent to it, and what we send has proxies' passwords."""
    with pytest.raises(ConfigurationError, match=message):
        Place.of(text)


def test_a_scheduler_elsewhere_needs_certificates(tmp_path: Path) -> None:
    cluster = Place.of("tls://10.0.0.1:8786")
    with pytest.raises(ConfigurationError, match="cluster-certificates"):
        cluster.security(None)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        cluster.security(tmp_path)

    write_certificates(tmp_path)

    assert cluster.security(tmp_path) is not None


def test_certificates_are_their_owner_s_alone_and_never_overwritten(tmp_path: Path) -> None:
    """A cluster that runs with them would not know the new ones."""
    folder = tmp_path / "certificates"
    for file in write_certificates(folder):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    read_certificates(folder)

    with pytest.raises(ConfigurationError, match="already exists"):
        write_certificates(folder)


@pytest.mark.parametrize(
    "response",
    [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", bytes(range(256))],
    ids=["nothing", "as a web server", "noise"],
)
async def test_server_that_is_not_a_scheduler_is_reported_in_one_sentence(
    response: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask makes anything of what it reads there, down to a MemoryError, and waits for ever on silence."""
    monkeypatch.setattr(cluster, "ANSWERS", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ClusterError, match="no scheduler with our certificates responds"):
            await Cluster(f"tcp://127.0.0.1:{port}", api_key=KEY).__aenter__()


def test_wrong_arguments_are_refused_as_a_session_refuses_them(tmp_path: Path) -> None:
    """Moving from one machine to many requires nothing new."""
    made = Cluster("local:1", api_key=KEY)
    wrong: list[dict[str, Any]] = [{"limit": 0}, {"on_failed": "repeat"}, {"on_unknown": "again"}]
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            made.rotate({}, journal=tmp_path / "j", **options)


def test_a_retry_policy_travels_with_its_functions_or_is_refused_at_once() -> None:
    """Not on the first worker, where it looked as if the worker were at fault."""
    lock = threading.Lock()
    Cluster("local:1", api_key=KEY, retry=RetryPolicy(wait=lambda state: 0.1 * state.attempt_number))

    with pytest.raises(ConfigurationError, match="retry policy cannot be sent"):
        Cluster("local:1", api_key=KEY, retry=RetryPolicy(stop=lambda _: lock.locked()))


# --- What travels ---


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=60))
def test_notes_come_once_and_in_order_over_connections_that_break(
    story: list[tuple[int, bool, bool]],
) -> None:
    """A question that is lost, or whose answer is, is asked again with the same notes and later ones."""
    outbox, inbox = Outbox(), Inbox()
    put, received = 0, list[int]()

    def send(*, arrives: bool, answered: bool) -> None:
        first, notes = outbox.first, outbox.parcel()
        if arrives:
            received.extend(number for (number,) in inbox.fresh(first, notes))
            if answered:
                outbox.has(inbox.count)

    for more, arrives, answered in story:
        for _ in range(more):
            outbox.put(put)
            put += 1
        send(arrives=arrives, answered=answered)
    send(arrives=True, answered=True)

    assert received == list(range(put))
    assert len(outbox) == 0


def test_a_row_arrives_as_it_was_sent() -> None:
    """Its marks too, of which its idempotency key is made, and what may have been applied."""
    pooled = PooledProxy.of(OWN)
    rows = [
        Sent(PendingRow(Row(0, 2, "acc_0", US))),
        Sent(
            PendingRow(Row(1, None, "acc_1", ManagedProxy(ip="203.0.113.42")), maybe_sent=True, generation=3)
        ),
        Sent(PendingRow(Row(2, 4, "acc_2", OWN), recorded=True)),
        Sent(PendingRow(Row(3, 5, "acc_3", None)), pooled),
    ]

    assert unpack(pack(rows)) == rows


def test_an_outcome_arrives_with_its_error_and_without_its_secrets() -> None:
    problem = Problem(type="errors/resource_not_found", title="no", detail=None, instance="req_1")
    error = ResourceNotFoundError.of(404, problem)
    outcome = failed_outcome(3, 4, "acc_3", error, 0.5)

    kind, number, ordinal, pickled = note_of(7, outcome)

    assert (kind, number, ordinal) == ("ended", 7, 3)
    assert str(ended_of(pickled).error) == str(error)
    assert ended_of(pickled).settled_at == outcome.settled_at


# --- Who gets which rate ---


@given(
    st.floats(0.5, 1e5),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2e5), st.booleans(), st.floats(0, 2)), max_size=80),
)
def test_granted_rates_never_add_up_to_more_than_the_rate(
    rate: float, story: list[tuple[int, float, bool, float]]
) -> None:
    """Workers join, fall silent, or want more: a share grows by what others have given up."""
    issuer, rates, now = Issuer(rate), dict[int, float](), 0.0
    for worker, used, wants, passed in story:
        now += passed
        rates[worker] = issuer.grant(str(worker), used, wants=wants, now=now)
        assert sum(rates.values()) <= rate * (1 + 1e-5)


def test_workers_that_want_all_share_evenly_and_one_that_does_not_leaves_the_rest() -> None:
    issuer = Issuer(1000.0)
    for _ in range(3):
        both = [issuer.grant(name, 0.0, wants=True, now=1.0) for name in "ab"]
    assert both == pytest.approx([500.0, 500.0], rel=0.01)

    for _ in range(3):
        idle, busy = (
            issuer.grant("a", 80.0, wants=False, now=2.0),
            issuer.grant("b", 0.0, wants=True, now=2.0),
        )
    assert idle == pytest.approx(100.0)
    assert busy == pytest.approx(900.0)


def test_a_silent_worker_keeps_its_even_split_until_it_is_lost() -> None:
    """It may be cut off from us and not from the API, and then falls back to just that."""
    issuer = Issuer(1000.0)
    for _ in range(3):
        issuer.grant("a", 10.0, wants=False, now=1.0)
        issuer.grant("b", 0.0, wants=True, now=1.0)

    issuer.grant("b", 0.0, wants=True, now=2.0)
    assert issuer.grant("b", 0.0, wants=True, now=2.0) == pytest.approx(500.0)

    issuer.leave("a")
    assert issuer.grant("b", 0.0, wants=True, now=2.1) == pytest.approx(1000.0)


# --- The coordinator, and a worker that is spoken by hand ---


class StubCarrier:
    """A cluster whose workers are *there*; it notes what each is to carry, and says no more."""

    def __init__(self, *there: str) -> None:
        self.there = set(there)
        self.carried: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.failing: dict[str, Exception] = {}
        self.answer: Any = None
        self.token = ""

    async def workers(self) -> frozenset[str]:
        return frozenset(self.there)

    async def carry(self, token: str, number: int, worker: str) -> None:
        if worker in self.failing:
            raise self.failing[worker]
        self.carried.put_nowait((worker, number))
        await asyncio.Event().wait()

    def attend(self, token: str, answer: Any) -> None:
        self.token, self.answer = token, answer

    def dismiss(self, token: str) -> None:
        assert token == self.token


class HandMade:
    """One worker's words."""

    def __init__(self, carrier: StubCarrier, address: str, peer: str = "p1") -> None:
        self.carrier = carrier
        self.address = address
        self.peer = peer
        self.inbox = Inbox()
        self.outbox = Outbox()

    async def ask(self, op: str, **facts: Any) -> Any:
        question = {"op": op, "token": self.carrier.token, "worker": self.address, "peer": self.peer, **facts}
        return await self.carrier.answer(question)

    async def hello(self, version: str = __version__) -> Any:
        return await self.ask("hello", version=version)

    async def shard(self, number: int) -> list[Sent]:
        answer = await self.ask("shard", number=number)
        return unpack(answer["rows"]) if "rows" in answer else []

    async def beat(self, *notes: tuple[Any, ...], shards: Iterable[int] = (), **facts: Any) -> Any:
        for note in notes:
            self.outbox.put(*note)
        state = {"resting": 0, "used": 0.0, "wants": False, "paused": False, "pauses": 0, **facts}
        answer = await self.ask(
            "beat",
            first=self.outbox.first,
            notes=self.outbox.parcel(),
            count=self.inbox.count,
            shards=list(shards),
            **state,
        )
        self.outbox.has(answer["count"])
        answer["notes"] = list(self.inbox.fresh(answer["first"], answer["notes"]))
        return answer


def patched(number: int, ordinal: int, proxy: str | None = None) -> tuple[Any, ...]:
    return ("patched", number, ordinal, 1, 0.1, 1e9, proxy)


@asynccontextmanager
async def rotation_of(
    carrier: StubCarrier,
    changes: Changes,
    *,
    journal: Path | None = None,
    pool: ProxyPool | None = None,
    on_unknown: OnUnknown = "retry",
) -> AsyncIterator[ClusterRotation]:
    found = RotationInput.of(changes, pooled=pool is not None)
    orders = Orders("", "https://api.example.com/v1", RetryPolicy(), Pace(), pool is not None, watched=False)
    rotation = ClusterRotation(
        carrier,
        orders,
        None,
        found.rows,
        journal=None if journal is None else lambda: Journal.open(journal, on_unknown=on_unknown),
        finite=found.finite,
        total=found.total,
        halt=Halt(),
        pool=pool,
        limit=None,
        observer=None,
    )
    async with rotation:
        yield rotation


async def test_rows_go_out_and_outcomes_come_back() -> None:
    """The numbers are those of one machine, though nothing was settled here."""
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US, "acc_1": OWN}) as rotation:
        worker, number = await carrier.carried.get()
        hand = HandMade(carrier, worker)
        orders = pickle.loads((await hand.hello())["orders"])
        rows = await hand.shard(number)
        await hand.beat(patched(number, 0), patched(number, 1), ("end", number))
        outcomes = [outcome async for outcome in rotation]

    assert orders.run != ""
    assert [sent.row.change for sent in rows] == [US, OWN]
    assert [(outcome.account_id, outcome.state) for outcome in outcomes] == [
        ("acc_0", State.PATCHED),
        ("acc_1", State.PATCHED),
    ]
    assert (rotation.summary.patched, rotation.summary.attempts) == (2, 2)


async def test_what_a_lost_worker_had_goes_to_another_in_doubt_and_under_its_last_key(tmp_path: Path) -> None:
    """Else a managed proxy is handed out twice, or a stored refusal answers for what was never tried."""
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US, "acc_1": US}, journal=tmp_path / "j") as rotation:
        _, number = await carrier.carried.get()
        first = HandMade(carrier, "w1")
        await first.hello()
        await first.shard(number)
        await first.beat(patched(number, 0), ("generation", number, 1, 2))
        while not (await first.beat())["notes"]:
            await asyncio.sleep(0)
        carrier.there = {"w2"}
        worker, again = await asyncio.wait_for(carrier.carried.get(), 10)
        second = HandMade(carrier, worker)
        await second.hello()
        [sent] = await second.shard(again)
        # It was only cut off, and comes back.
        answer = await first.beat(patched(number, 1), shards=[number])
        await second.beat(patched(again, 1), ("end", again))
        summary = await rotation.run()

    assert worker == "w2"
    assert (sent.row.account_id, sent.open.maybe_sent, sent.open.generation) == ("acc_1", True, 2)
    assert answer["recall"] == [number]
    assert summary.patched == 2


async def test_rows_go_out_only_as_far_as_the_journal_said_before(tmp_path: Path) -> None:
    """If the command dies, that is all that the next one has to tell what may have been sent."""
    carrier, path = StubCarrier("w1"), tmp_path / "j"
    changes = {f"acc_{number}": US for number in range(2_000)}
    beyond = []
    async with rotation_of(carrier, changes, journal=path) as rotation:
        hand = HandMade(carrier, "w1")
        running = asyncio.create_task(rotation.run())
        while rotation.summary.patched < len(changes):
            _, number = await carrier.carried.get()
            await hand.hello()
            ordinals = [sent.row.ordinal for sent in await hand.shard(number)]
            with closing(sqlite3.connect(path)) as connection:
                [(reached,)] = connection.execute("SELECT value FROM run WHERE name = 'reached'")
            beyond += [ordinal for ordinal in ordinals if ordinal >= reached]
            await hand.beat(*(patched(number, ordinal) for ordinal in ordinals), ("end", number))
            while rotation.summary.patched < len(changes) and carrier.carried.empty():
                await asyncio.sleep(0)
        await running

    assert beyond == []


async def test_a_shard_is_handed_over_once() -> None:
    """Dask may run a task a second time, elsewhere; the second run gets no rows."""
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US}) as rotation:
        worker, number = await carrier.carried.get()
        hand, other = HandMade(carrier, worker), HandMade(carrier, "w2", "p2")
        await hand.hello()
        assert len(await hand.shard(number)) == 1
        assert await hand.shard(number) == []
        assert await other.shard(number) == []
        await hand.beat(patched(number, 0), ("end", number))
        await rotation.run()


async def test_stopped_coordinator_does_not_blame_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z and fg: what they settled meanwhile they tell now, and nobody is to send it a second time."""
    asleep = 0.0
    monkeypatch.setattr(conductor, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + asleep))
    carrier = StubCarrier("w1", "w2")
    async with rotation_of(carrier, {"acc_0": US}) as rotation:
        worker, number = await carrier.carried.get()
        hand = HandMade(carrier, worker)
        await hand.hello()
        await hand.shard(number)
        asleep = 100.0
        rotation._look_for_losses()
        rotation._send_out(whole=False)
        await asyncio.sleep(0)
        assert carrier.carried.empty()
        asleep += crew.LOST
        rotation._looked_at += crew.LOST  # it looked all the while, and heard nothing
        rotation._look_for_losses()
        rotation._send_out(whole=False)
        again = await carrier.carried.get()
        rotation.stop()
        carrier.there.clear()

    assert again[1] == number + 1


async def test_a_worker_that_gave_the_command_up_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut off for more than half a minute: it speaks to nobody until it is given something to do."""
    later = 0.0
    monkeypatch.setattr(conductor, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + later))
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US}) as rotation:
        worker, number = await carrier.carried.get()
        hand = HandMade(carrier, worker)
        await hand.hello()
        await hand.shard(number)
        for seconds in (crew.LOST, conductor.AGAIN):
            later += seconds + 1
            rotation._looked_at += seconds + 1
            rotation._look_for_losses()
        _, again = await carrier.carried.get()
        rejoined = HandMade(carrier, worker, "p2")
        await rejoined.hello()
        assert await rejoined.shard(again) == []  # the worker's earlier connection has it
        _, last = await carrier.carried.get()
        [sent] = await rejoined.shard(last)
        await rejoined.beat(patched(last, 0), ("end", last))
        summary = await rotation.run()

    assert sent.open.maybe_sent
    assert summary.patched == 1


async def test_a_worker_of_another_version_is_refused() -> None:
    """Its engine may settle accounts otherwise."""
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US}) as rotation:
        worker, number = await carrier.carried.get()
        hand = HandMade(carrier, worker)
        answer = await hand.hello("0.0.1")
        await hand.hello()
        await hand.shard(number)
        await hand.beat(patched(number, 0), ("end", number))
        await rotation.run()

    assert "install the same version" in answer["refused"]


async def test_where_no_worker_can_work_the_rotation_ends_and_says_why() -> None:
    carrier = StubCarrier("w1")
    carrier.failing["w1"] = ConfigurationError("no API key: pass api_key, or set POSTPRESS_API_KEY")

    with pytest.raises(ClusterError, match="w1: no API key"):
        async with rotation_of(carrier, {"acc_0": US}) as rotation:
            await rotation.run()


async def test_one_worker_that_cannot_work_leaves_the_rows_to_the_others() -> None:
    carrier = StubCarrier("w1", "w2")
    carrier.failing["w1"] = ImportError("no module named postpress_async")
    async with rotation_of(carrier, {"acc_0": US}) as rotation:
        worker, number = await carrier.carried.get()
        hand = HandMade(carrier, worker)
        await hand.hello()
        await hand.shard(number)
        await hand.beat(patched(number, 0), ("end", number))
        await rotation.run()

    assert worker == "w2"


async def test_pause_found_by_one_worker_reaches_the_others() -> None:
    """They would each run into the outage by themselves."""
    carrier = StubCarrier("w1", "w2")
    async with rotation_of(carrier, {f"acc_{n}": US for n in range(100)}) as rotation:
        shards = dict([await carrier.carried.get(), await carrier.carried.get()])
        first, second = HandMade(carrier, "w1"), HandMade(carrier, "w2", "p2")
        for hand in (first, second):
            await hand.hello()
            await hand.shard(shards[hand.address])
        await first.beat(paused=True, pauses=1)
        notes = (await second.beat())["notes"]
        again = (await first.beat(paused=True, pauses=1))["notes"]
        rotation.stop()
        for hand in (first, second):
            await hand.beat(("end", shards[hand.address]))

    assert notes == [("pause",)]
    assert again == []


async def test_a_proxy_that_fails_two_accounts_anywhere_is_out_everywhere() -> None:
    """The pool is one, with its quarantine, its places and its turns."""
    proxies = [CustomProxy(host=f"p{n}.example.com", port=1, password=PASSWORD) for n in range(2)]
    bad, good = (PooledProxy.of(proxy).label for proxy in proxies)
    carrier = StubCarrier("w1", "w2")
    accounts = [f"acc_{n}" for n in range(100)]
    async with rotation_of(carrier, accounts, pool=ProxyPool(proxies)) as rotation:
        shards = dict([await carrier.carried.get(), await carrier.carried.get()])
        worker_1, worker_2 = HandMade(carrier, "w1"), HandMade(carrier, "w2", "p2")
        assigned = {}
        for hand in (worker_1, worker_2):
            await hand.hello()
            assigned[hand] = await hand.shard(shards[hand.address])
        first, second = assigned[worker_1][0], assigned[worker_2][0]
        assert first.pooled is not None
        assert first.pooled.label == bad
        await worker_1.beat(
            ("struck", shards["w1"], bad, first.account_id),
            ("worked", shards["w1"], good, first.account_id),
        )
        answer = await worker_2.beat(
            ("struck", shards["w2"], bad, second.account_id),
            ("worked", shards["w2"], good, second.account_id),
            ("wanted", shards["w2"], second.row.ordinal, [bad]),
        )
        notes = (await worker_1.beat())["notes"]
        rotation.stop()
        for hand in (worker_1, worker_2):
            await hand.beat(("end", shards[hand.address]))

    assert notes == [("out", bad)]
    assert answer["notes"][0] == ("out", bad)
    kind, _, ordinal, (label, _) = answer["notes"][1]
    assert (kind, ordinal, label) == ("given", second.row.ordinal, good)
    assert rotation.summary.quarantined == 1


async def test_stop_reaches_workers_and_unsent_rows_are_skipped() -> None:
    """What no worker came for was not sent; what one did come for and is silent about may have been."""
    carrier = StubCarrier("w1", "w2")
    async with rotation_of(carrier, {f"acc_{n}": US for n in range(100)}) as rotation:
        shards = dict([await carrier.carried.get(), await carrier.carried.get()])
        worker = HandMade(carrier, "w1")
        await worker.hello()
        rows = await worker.shard(shards["w1"])
        rotation.stop()
        answer = await worker.beat(shards=[shards["w1"]])
        await worker.beat(
            *(patched(shards["w1"], sent.row.ordinal) for sent in rows[:10]), ("end", shards["w1"])
        )
        carrier.there.clear()  # w2 never came

    assert answer["stop"] is True
    states = rotation.summary.states
    assert (states[State.PATCHED], states[State.UNKNOWN], states[State.SKIPPED]) == (10, 40, 50)


@pytest.mark.parametrize("begun", [False, True], ids=["nobody came for it", "a worker had not begun it"])
async def test_what_a_stop_leaves_keeps_its_spent_key(tmp_path: Path, begun: bool) -> None:
    """Else the next run sends it under a key that was answered, and takes that refusal for a new one."""
    path = tmp_path / "j"
    journal = Journal.open(path)
    spent = Outcome(0, None, "acc_0", State.SKIPPED, 2, applied=Applied.NO)
    journal.record(spent)
    journal.record(Outcome(1, None, "acc_1", State.SKIPPED, applied=Applied.NO))
    await journal.aclose()

    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US, "acc_1": US}, journal=path) as rotation:
        _, number = await carrier.carried.get()
        hand = HandMade(carrier, "w1")
        await hand.hello()
        if begun:
            await hand.shard(number)
        rotation.stop()
        if begun:
            await hand.beat(("unsent", number, [0, 1]), ("end", number))
        carrier.there.clear()

    assert rotation.summary.states == {State.SKIPPED: 2}
    again = Journal.open(path)
    assert [(account, state, sent) for _, (account, state, sent, *_) in again.entries()] == [
        ("acc_0", State.SKIPPED, True),
        ("acc_1", State.SKIPPED, False),
    ]
    await again.aclose()


def unknown_in_an_earlier_run(path: Path, *accounts: str) -> None:
    """Make the journal of a run on one machine whose accounts are unknown."""
    write(path, [outcome(n, State.UNKNOWN, account_id=account) for n, account in enumerate(accounts)])


async def test_an_account_in_doubt_for_which_no_proxy_is_left_stays_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run may have given it one: `skipped`, applied "no", would be false."""
    path = tmp_path / "j"
    unknown_in_an_earlier_run(path, "acc_0")
    monkeypatch.setattr(ProxyAllocator, "give", lambda *_: None)

    async with rotation_of(StubCarrier("w1"), ["acc_0"], journal=path, pool=ProxyPool([OWN])) as rotation:
        [outcome] = [outcome async for outcome in rotation]

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, Applied.UNKNOWN)


async def lose_a_shard(path: Path, *, on_unknown: OnUnknown, stop: bool) -> ClusterRotation:
    """A rotation whose only worker is lost with one account, and which ends without another worker."""
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US}, journal=path, on_unknown=on_unknown) as rotation:
        _, number = await carrier.carried.get()
        hand = HandMade(carrier, "w1")
        await hand.hello()
        await hand.shard(number)
        carrier.there = set()
        while rotation._hands["w1"].shards:
            await asyncio.sleep(0.01)
        if stop:
            rotation.stop()
        await asyncio.wait_for(rotation.run(), 10)
    return rotation


@pytest.mark.parametrize(
    ("on_unknown", "stop"),
    [
        pytest.param("retry", True, id="the run is stopped before another worker has it"),
        pytest.param("report", False, id="doubts are left to the operator"),
    ],
)
async def test_what_a_lost_worker_may_have_sent_and_no_other_sends_is_recorded_as_unknown(
    tmp_path: Path, on_unknown: OnUnknown, stop: bool
) -> None:
    """The next run would else take it for an account that nobody ever sent."""
    path = tmp_path / "j"
    rotation = await lose_a_shard(path, on_unknown=on_unknown, stop=stop)

    assert rotation.summary.states == {State.UNKNOWN: 1}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT state, applied FROM outcomes").fetchall() == [
            ("unknown", "unknown")
        ]


async def test_a_host_that_no_worker_ever_reached_halts_the_rotation() -> None:
    """Each waits for the end of what looks like an outage; the coordinator sees no outcome."""
    carrier = StubCarrier("w1", "w2")
    async with rotation_of(carrier, {f"acc_{n}": US for n in range(100)}) as rotation:
        shards = dict([await carrier.carried.get(), await carrier.carried.get()])
        worker_1, worker_2 = HandMade(carrier, "w1"), HandMade(carrier, "w2")
        for hand in (worker_1, worker_2):
            await hand.hello()
            await hand.shard(shards[hand.address])
        first = await worker_1.beat(("unreachable", "no way"), shards=[shards["w1"]])
        second = await worker_2.beat(("unreachable", "none of 20 attempts"), shards=[shards["w2"]])
        for hand in (worker_1, worker_2):
            rows = range(50) if shards[hand.address] == 1 else range(50, 100)
            number = shards[hand.address]
            await hand.beat(("unsent", number, list(rows)), ("end", number))

    assert (first["stop"], second["stop"]) == (False, True)
    assert rotation.summary.halted == "none of 20 attempts"
    assert rotation.summary.states == {State.SKIPPED: 100}


async def test_a_worker_that_cannot_reach_the_host_halts_nothing_once_another_did() -> None:
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {"acc_0": US, "acc_1": US}) as rotation:
        worker, number = await carrier.carried.get()
        hand = HandMade(carrier, worker)
        await hand.hello()
        await hand.shard(number)
        await hand.beat(patched(number, 0), ("unreachable", "no way"), shards=[number])
        await hand.beat(patched(number, 1), ("end", number))
        summary = await rotation.run()

    assert (summary.halted, summary.patched) == (None, 2)


async def test_a_journal_that_cannot_be_written_ends_the_rotation_at_one_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word holds thousands of notes: one of them for each beat would take minutes."""
    account_ids: list[str] = []

    def fail(_: Journal, outcome: Outcome) -> None:
        account_ids.append(outcome.account_id)
        raise JournalNotWritableError("the disk is full")

    monkeypatch.setattr(Journal, "record", fail)

    async def rotate() -> None:
        carrier = StubCarrier("w1")
        changes = {f"acc_{n}": US for n in range(50)}
        async with rotation_of(carrier, changes, journal=tmp_path / "j") as rotation:
            _, number = await carrier.carried.get()
            hand = HandMade(carrier, "w1")
            await hand.hello()
            await hand.shard(number)
            unsent = ("unsent", number, list(range(20, 50)))
            await hand.beat(*(patched(number, ordinal) for ordinal in range(20)), unsent, ("end", number))
            await rotation.run()

    with pytest.raises(JournalNotWritableError):
        await rotate()

    assert account_ids == [f"acc_{n}" for n in range(20)]


async def test_rows_are_read_only_as_they_are_sent() -> None:
    """A window of shards: ten million rows never stand in memory, nor all that were settled."""
    read = 0

    def changes() -> Iterator[tuple[str, ManagedProxy]]:
        nonlocal read
        for number in range(10_000_000):
            read += 1
            yield f"acc_{number}", US

    carrier, ahead = StubCarrier("w1", "w2"), list[int]()
    async with rotation_of(carrier, changes()) as rotation:
        hands = {"w1": HandMade(carrier, "w1"), "w2": HandMade(carrier, "w2", "p2")}
        running = asyncio.create_task(rotation.run())
        while rotation.summary.patched < 20_000:
            worker, number = await carrier.carried.get()
            await hands[worker].hello()
            rows = await hands[worker].shard(number)
            ahead.append(read - rotation.summary.patched)
            notes = (patched(number, sent.row.ordinal) for sent in rows)
            await hands[worker].beat(*notes, ("end", number))
        rotation.stop()
        await asyncio.sleep(0)  # what was sent just now is carried too
        while not carrier.carried.empty():
            worker, number = carrier.carried.get_nowait()
            await hands[worker].beat(("end", number))
        await running

    assert max(ahead) <= 4 * conductor.SHARD  # what each worker has, and what waits for either


async def test_a_worker_gets_few_rows_until_it_is_seen_how_they_fare() -> None:
    """A key that is refused is not to be tried on thousands before the first answer is heard of."""
    carrier = StubCarrier("w1")
    async with rotation_of(carrier, {f"acc_{n}": US for n in range(10_000)}) as rotation:
        hand, sizes = HandMade(carrier, "w1"), []
        for _ in range(2):
            _, number = await carrier.carried.get()
            await hand.hello()
            assert carrier.carried.empty()
            rows = await hand.shard(number)
            sizes.append(len(rows))
            await hand.beat(*(patched(number, sent.row.ordinal) for sent in rows), ("end", number))
        _, number = await carrier.carried.get()
        sizes.append(len(await hand.shard(number)))
        rotation.stop()
        await hand.beat(("end", number))

    assert sizes == [conductor.SMALLEST, conductor.SMALLEST, conductor.SHARD]


async def test_rotation_left_at_once_ends_at_once() -> None:
    """A second Ctrl-C: what workers have is in doubt, and the next run asks under the same keys."""
    carrier = StubCarrier("w1")
    made: list[ClusterRotation] = []

    async def leave() -> None:
        async with rotation_of(carrier, {f"acc_{n}": US for n in range(100)}) as rotation:
            made.append(rotation)
            _, number = await carrier.carried.get()
            hand = HandMade(carrier, "w1")
            await hand.hello()
            await hand.shard(number)
            rotation._news.set()  # in the very turn in which it is cancelled
            raise KeyError

    with pytest.raises(KeyError):
        await leave()

    [rotation] = made
    assert rotation.summary.states == {State.UNKNOWN: 50, State.SKIPPED: 50}
    assert rotation.summary.elapsed < 5
