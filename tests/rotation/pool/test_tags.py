"""Pools with tags: an account gets only proxies of its own tag."""

import asyncio
import random
import zlib
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async import CustomProxy, Fleet, ManagedProxy, ProxyPool, errors
from postpress_async.errors import Applied, FleetError
from postpress_async.models import AccountPatched
from postpress_async.rotation import Halt, Outcome, Rotation, RotationSummary, Row, State
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation._input import RotationInput
from postpress_async.rotation._pool._proxy_list import read_lists
from postpress_async.rotation._pool._tags import argument_of, digest_of, make_pools, pools_of
from tests.support.fleet_forms import FORMS, Form

TAGS = ("US", "DE", "FR")


def pool(tag: str, count: int = 2, **options: Any) -> ProxyPool:
    proxies = [CustomProxy(host=f"{tag.lower()}{n}.example.net", port=80) for n in range(count)]
    return ProxyPool(proxies, **options)


def pools(*tags: str, **options: Any) -> dict[str, ProxyPool]:
    return {tag: pool(tag, **options) for tag in tags}


def write_fleet(folder: Path, tags: list[str], header: str = "account_id,country") -> Path:
    path = folder / "fleet.csv"
    path.write_text("\n".join([header, *(f"acc_{n},{tag}" for n, tag in enumerate(tags))]) + "\n")
    return path


class FakeApi:
    """
    Takes the place of a session's calls, and records the hosts that each account tried.

    *fails* is a function of account and host, which returns the error class of a failure, or None.
    """

    def __init__(self, fails: Any) -> None:
        self.hosts: defaultdict[str, list[str]] = defaultdict(list)
        self._fails = fails

    async def __call__(self, account_id: str, change: Any, *_: object) -> AccountPatched:
        self.hosts[account_id].append(change.host)
        await asyncio.sleep(0)
        if error_class := self._fails(account_id, change.host):
            error = error_class(502, errors.Problem("errors/proxy_error"))
            error.applied = Applied.NO
            raise error
        return AccountPatched(account_id)


async def rotate(
    api: FakeApi, changes: Any, tagged: Any, journal: Path | None = None, limit: int | None = None
) -> tuple[dict[str, Outcome], RotationSummary]:
    rows = RotationInput.of(changes, pooled=tagged)
    opener = rows.journal_opener(
        journal, target="t", on_unknown="retry", on_failed="retry", in_flight=10, pools=pools_of(tagged)
    )
    rotation = Rotation(
        api,
        rows.rows,
        in_flight=10,
        journal=opener,
        finite=True,
        total=rows.total,
        halt=Halt(failures="never"),
        pool=tagged,
        limit=limit,
    )
    async with rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}
    return outcomes, rotation.summary


def works(*_: object) -> None:
    """For `FakeApi`: every proxy works."""


# --- Choosing the pool ---


async def test_tag_of_a_pair_chooses_its_pool() -> None:
    api, own_proxy = FakeApi(works), CustomProxy(host="own.example.net", port=1)
    changes = {"acc_1": "US", "acc_2": " de ", "acc_3": own_proxy}

    outcomes, _ = await rotate(api, changes, pools("US", "DE"))

    assert api.hosts == {
        "acc_1": ["us0.example.net"],
        "acc_2": ["de0.example.net"],
        "acc_3": ["own.example.net"],
    }
    assert outcomes["acc_2"].assignment == "de0.example.net:80"


@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items()])
def test_column_of_a_fleet_chooses_the_pool_in_every_form(form: Form, tmp_path) -> None:
    """The column "country" does not order managed proxies then. A template may use a column of numbers."""
    values = {
        "id": ["a", "b", "c"],
        "Country": ["us", "DE", None],
        "proxy": [None, None, "h.example:80"],
        "Group": [1, 2, 3],
    }
    template = CustomProxy(host="gw.example", port=1, username="c-{group}")
    tagged = {"US": pool("US"), "DE": ProxyPool([template])}

    with form(values, tmp_path, None, pooled=tagged, pool_by="country") as fleet:
        rows = list(fleet.rows())

    assert all(isinstance(row, Row) for row in rows)
    assert [(row.account_id, row.change, row.tag, row.fields) for row in rows if isinstance(row, Row)] == [
        ("a", None, "US", {"country": "us", "group": "1"}),
        ("b", None, "DE", {"country": "DE", "group": "2"}),
        ("c", CustomProxy(host="h.example", port=80), None, None),
    ]


async def test_failover_stays_within_the_tag_and_quarantine_is_summed(tmp_path) -> None:
    api = FakeApi(lambda _, host: errors.InvalidProxyCredentialsError if host[2] == "0" else None)
    fleet = Fleet.open(write_fleet(tmp_path, ["US", "DE"] * 3, "account_id,pool"), pooled=pools("US", "DE"))

    with fleet:
        outcomes, summary = await rotate(api, fleet, pools("US", "DE"))

    assert {outcome.state for outcome in outcomes.values()} == {State.PATCHED}
    assert summary.quarantined == 2
    assert {host[:2] for n in (0, 2, 4) for host in api.hosts[f"acc_{n}"]} == {"us"}
    assert {host[:2] for n in (1, 3, 5) for host in api.hosts[f"acc_{n}"]} == {"de"}


async def test_update_many_accepts_tags_as_changes(sandbox, session) -> None:
    results = await session.update_many({"acc_1": "US", "acc_2": "DE"}, pool=pools("US", "DE"))

    assert [outcome.assignment for outcome in results.values()] == [
        "us0.example.net:80",
        "de0.example.net:80",
    ]


# --- Errors ---


def test_rows_whose_tag_has_no_pool_are_reported_together_before_anything_is_sent(session, tmp_path) -> None:
    path = write_fleet(tmp_path, ["US"] * 5 + ["fr"] * 3000 + [""] * 2)
    tagged = pools("US", "DE")

    with (
        Fleet.open(path, pooled=tagged, pool_by="country") as fleet,
        pytest.raises(ValueError, match=r"fleet\.csv") as caught,
    ):
        session.rotate(fleet, pool=tagged)

    assert str(caught.value) == (
        "fleet.csv: 3,000 lines (7, 8, 9, 10, 11 and 2,995 more), country: no pool for FR: "
        "add such a pool, or name one of DE, US; "
        "2 lines (3007, 3008), country: country missing: it must name a pool, such as DE, US"
    )


def test_proxy_in_the_place_of_a_tag_is_not_shown(session) -> None:
    """It may contain a password."""
    with pytest.raises(ValueError, match="no pool for this tag: ") as caught:
        session.rotate({"acc_1": "http://user:hunter2@proxy.example:80"}, pool=pools("US"))

    assert "hunter2" not in str(caught.value).lower()


def test_pairs_whose_tag_has_no_pool_are_reported_together(session) -> None:
    changes = {"acc_0": "US", **{f"acc_{n}": "FR" for n in range(1, 1001)}}

    with pytest.raises(ValueError, match=r"acc_1: changes\[1\], pool: no pool for FR: .* \(1,000 changes\)"):
        session.rotate(changes, pool=pools("US"))


def test_pair_without_a_tag_is_refused(session) -> None:
    with pytest.raises(ValueError, match=r"acc_1: .* pool missing: it must name a pool, such as US"):
        session.rotate(["acc_1"], pool=pools("US"))


def test_tag_is_not_a_valid_change_if_there_are_no_pools(session) -> None:
    with pytest.raises(ValueError, match="acc_1"):
        session.rotate({"acc_1": "US"})


def test_fleet_without_the_column_for_the_tag_is_refused(tmp_path) -> None:
    path = write_fleet(tmp_path, ["US"])

    with pytest.raises(FleetError, match=r"fleet\.csv has no column pool, which the pool needs"):
        Fleet.open(path, pooled=pools("US"))


@pytest.mark.parametrize("by", ["", " - ", "Account ID", "proxy", "pass"])
def test_column_that_has_another_meaning_cannot_choose_the_pool(tmp_path, by) -> None:
    """Tags are shown in messages, so they must not be passwords."""
    path = write_fleet(tmp_path, ["US"])

    with pytest.raises(ValueError, match="rename the column in the fleet"):
        Fleet.open(path, pooled=pools("US"), pool_by=by)


def test_template_cannot_use_a_column_that_describes_the_proxy_of_a_row(tmp_path) -> None:
    """Otherwise the proxy in a row would lose its user name, because the pool uses the column."""
    template = ProxyPool([CustomProxy(host="gw", port=1, username="{account_id}-{user}")])
    path = write_fleet(tmp_path, ["h"], "account_id,host")

    with pytest.raises(ValueError, match="the column 'username' has a fixed meaning"):
        Fleet.open(path, pooled=template)


@pytest.mark.parametrize("pooled", [True, pool("US")], ids=["pool without templates", "single pool"])
def test_fleet_that_was_opened_for_another_pool_is_refused(session, tmp_path, pooled) -> None:
    """The pool decides how columns are read, such as whether "country" orders a managed proxy."""
    path = write_fleet(tmp_path, [""])

    with Fleet.open(path, pooled=pooled) as fleet, pytest.raises(ValueError, match="opened for another pool"):
        session.rotate(fleet, pool=pools("US"))


@pytest.mark.parametrize(
    ("tagged", "sentence"),
    [
        ({}, "at least one ProxyPool"),
        ({"US": "us.txt"}, r"pool\['US'\] must be a ProxyPool, got str"),
        ({"US": pool("US"), " us": pool("DE")}, "each pool needs a tag of its own, got ' us'"),
        ({None: pool("US")}, "each pool needs a tag of its own, got None"),
        ({" ": pool("US")}, "each pool needs a tag of its own"),
        ({"US": pool("US"), "DE": pool("US")}, r"us0\.example\.net:80 is in the pools US and DE: remove it"),
        (["US"], "pool must be a ProxyPool, got list"),
    ],
)
def test_pools_that_cannot_be_used_are_refused(session, tagged, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        session.rotate({"acc_1": "US"}, pool=tagged)


def test_pools_that_no_account_would_use_are_refused(session) -> None:
    with pytest.raises(ValueError, match="no account would use the pool"):
        session.rotate({"acc_1": ManagedProxy(country="US")}, pool=pools("US"))


# --- Lists with tags ---


def test_table_is_split_into_pools_by_its_column(tmp_path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("Country,IP,Port,Type\nus,192.0.2.1,80,SOCKS5h\nDE,192.0.2.2,80,http\nUS,192.0.2.3,80,\n")

    lists = read_lists([(None, path)], by="country")

    tagged = make_pools(lists.proxies)
    assert {tag: [pooled.label for pooled in tagged[tag]] for tag in tagged} == {
        "US": ["192.0.2.1:80", "192.0.2.3:80"],
        "DE": ["192.0.2.2:80"],
    }
    assert lists.ignored_columns == {str(path): ()}


def test_list_with_a_tag_needs_no_column_for_it(tmp_path) -> None:
    (tmp_path / "us.txt").write_text("h.example:80\n")
    (tmp_path / "others.csv").write_text("country,host,port\nDE,h.example,81\n,h.example,82\n")

    lists = read_lists(
        [("US", tmp_path / "us.txt"), (None, tmp_path / "others.csv")], by="country", skip_bad=True
    )

    assert [(entry.tag, entry.proxy.port) for entry in lists.proxies] == [("US", 80), ("DE", 81)]
    [refusal] = lists.refused
    assert (refusal.line, refusal.column, refusal.reason) == (3, "country", "country missing")


def test_list_with_neither_tag_nor_column_is_refused(tmp_path) -> None:
    (tmp_path / "us.txt").write_text("h.example:80\n")

    with pytest.raises(FleetError, match=r"us\.txt has no column country with the tags of its proxies"):
        read_lists([(None, tmp_path / "us.txt")], by="country")


def test_proxy_with_two_tags_is_refused(tmp_path) -> None:
    for name in ("us.txt", "de.txt"):
        (tmp_path / name).write_text("h.example:80:u:p\n")

    with pytest.raises(
        FleetError, match=r"line 1: proxy already listed on line 1 of .*us\.txt: a proxy belongs to one"
    ):
        read_lists([("US", tmp_path / "us.txt"), ("DE", tmp_path / "de.txt")])


def test_digest_of_pools_depends_on_their_tags_but_not_on_their_order() -> None:
    us, de = pool("US"), pool("DE")

    assert digest_of(pools_of(us)) == us.digest
    assert digest_of(pools_of({"US": us, "DE": de})) == digest_of(pools_of({"de": de, "us": us}))
    assert digest_of(pools_of({"US": us, "DE": de})) != digest_of(pools_of({"US": de, "DE": us}))
    assert digest_of({}) == b""


def test_digest_of_a_fleet_depends_on_the_tags(tmp_path) -> None:
    tagged = pools("US", "DE")

    def digest(tag: str) -> bytes:
        with Fleet.open(write_fleet(tmp_path, [tag]), pooled=tagged, pool_by="country") as fleet:
            return reader_of(fleet).rows_digest

    assert digest("US") != digest("DE")


# --- Whole rotations ---


def failure(seed: int, share: float) -> Any:
    """A function for `FakeApi`, which fails for this share of accounts and hosts, chosen by *seed*."""

    def fails(account_id: str, host: str) -> Any:
        chance = zlib.crc32(f"{seed} {account_id} {host}".encode()) / 2**32
        return errors.ProxyError if chance < share else None

    return fails


@settings(max_examples=40, deadline=None)
@given(
    tags=st.lists(st.sampled_from(TAGS), min_size=1, max_size=25),
    counts=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    assign=st.sampled_from(["round-robin", "sticky"]),
    limits=st.lists(st.integers(1, 12), max_size=3),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 99),
)
def test_no_account_gets_a_proxy_of_another_tag(tags, counts, assign, limits, share, seed) -> None:
    """This holds for any failures, and for a run that is resumed several times."""

    async def resume_until_complete() -> None:
        with TemporaryDirectory() as folder:
            path = write_fleet(Path(folder), tags)
            for number, limit in enumerate([*limits, None]):
                tagged = {
                    tag: pool(tag, count, assign=assign, accounts_per_proxy=20)
                    for tag, count in zip(TAGS, counts, strict=True)
                }
                api = FakeApi(failure(seed + number, share))
                with Fleet.open(path, pooled=tagged, pool_by="country") as fleet:
                    outcomes, _ = await rotate(api, fleet, tagged, Path(folder, "journal"), limit)
                for account, hosts in api.hosts.items():
                    tag = tags[int(account.removeprefix("acc_"))]
                    assert {host[:2].upper() for host in hosts} == {tag}
                    assert outcomes[account].assignment == f"{hosts[-1]}:80"

    asyncio.run(resume_until_complete())


@pytest.mark.slow
def test_100_000_accounts_get_proxies_of_their_country_from_three_lists(tmp_path) -> None:
    """The run is resumed twice, and one in twenty pairs of account and proxy fails."""
    countries = ["US", "DE", "FR", "GB", "IT", "ES", "NL", "PL", "SE", "NO", "BR", "JP"]
    generator = random.Random(5)
    tags = generator.choices(countries, weights=range(1, 13), k=100_000)
    path = write_fleet(tmp_path, tags)
    headers = ("IP;Port;Login;Pass;Country", "country,protocol,host,port,username", "Proxy\tCountry Code")
    lines = [
        [f"{c.lower()}{n}.a.example;80;u;p;{c}" for c in countries for n in range(9)],
        [f"{c.lower()},http,{c.lower()}{n}.b.example,80,u" for c in countries for n in range(5)],
        [f"{c.lower()}{n}.c.example:80:u:p\t{c}" for c in countries for n in range(7)],
    ]
    for number, (header, rows) in enumerate(zip(headers, lines, strict=True)):
        generator.shuffle(rows)
        (tmp_path / f"{number}.csv").write_text("\n".join([header, *rows]))
    sent: set[str] = set()
    used: defaultdict[str, set[str]] = defaultdict(set)

    async def runs() -> RotationSummary:
        for number, limit in enumerate([30_000, 30_000, None]):
            sources = [(None, tmp_path / f"{n}.csv") for n in range(3)]
            tagged: Any = argument_of(make_pools(read_lists(sources, by="country").proxies))
            api = FakeApi(failure(number, 0.05))
            with closing(Fleet.open(path, pooled=tagged, pool_by="country")) as fleet:
                _, summary = await rotate(api, fleet, tagged, tmp_path / "journal", limit)
            for account, hosts in api.hosts.items():
                sent.add(account)
                tag = tags[int(account.removeprefix("acc_"))]
                assert {host[:2].upper() for host in hosts} == {tag}, account
                used[tag].update(hosts)
        return summary

    summary = asyncio.run(runs())

    assert summary.states[State.PATCHED] > 99_000
    assert len(sent) == 100_000
    assert {tag: len(hosts) for tag, hosts in used.items()} == dict.fromkeys(countries, 21)
