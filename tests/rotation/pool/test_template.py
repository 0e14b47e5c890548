"""Templates: a line for a gateway, whose user name gives each account a session of its own."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from postpress_async import CustomProxy, Fleet, ProxyPool, errors
from postpress_async.errors import Applied
from postpress_async.models import AccountPatched
from postpress_async.rotation import Halt, Outcome, PooledProxy, Rotation, State
from postpress_async.rotation._input import RotationInput
from postpress_async.rotation._pool import as_pooled
from postpress_async.rotation._pool._allocator import UNCONFIRMED, ProxyAllocator
from postpress_async.rotation._pool._proxy_list import read_lists
from postpress_async.rotation._proxy_text import read_proxy

LINE = "gw.example.net:7777:customer-{account_id}-cc-{country}-s{try}:hunter2"
LABEL = "customer-{account_id}-cc-{country}-s{try}@gw.example.net:7777"


def pool_of(*lines: str, **options: Any) -> ProxyPool:
    return ProxyPool([read_proxy(line) for line in lines], **options)


def template(line: str) -> PooledProxy:
    return as_pooled(read_proxy(line))


class Gateway:
    """
    Takes the place of a session's calls, and records the user names that each account tried.

    *dead* has the number of first attempts of an account that fail.
    """

    def __init__(self, dead: dict[str, int], error: Any = errors.ProxyError) -> None:
        self.usernames: defaultdict[str, list[str | None]] = defaultdict(list)
        self._dead = dead
        self._error = error

    async def __call__(self, account_id: str, change: Any, *_: object) -> AccountPatched:
        self.usernames[account_id].append(change.username)
        await asyncio.sleep(0)
        if len(self.usernames[account_id]) <= self._dead.get(account_id, 0):
            error = self._error(502, errors.Problem("errors/proxy_error"))
            error.applied = Applied.NO
            raise error
        return AccountPatched(account_id)


async def rotate(gateway: Gateway, changes: Any, pool: ProxyPool, **options: Any) -> dict[str, Outcome]:
    rows = RotationInput.of(changes, pooled=pool).rows
    options = {"in_flight": 20, "halt": Halt(failures="never"), **options}
    async with Rotation(gateway, rows, pool=pool, finite=True, **options) as rotation:
        return {outcome.account_id: outcome async for outcome in rotation}


# --- Filling in a template ---


@pytest.mark.parametrize(
    ("line", "username", "password"),
    [
        pytest.param(LINE, "customer-acc_1-cc-de-s2", "hunter2", id="user name"),
        pytest.param("gw.example:1:u:p_country-{Country}_{try}", "u", "p_country-de_2", id="password"),
        pytest.param("http://u-{account%20id}:p@gw.example:1", "u-acc_1", "p", id="URL"),
        pytest.param("gw.example:1:{user group}:p", "gold", "p", id="another column"),
    ],
)
def test_placeholders_are_filled_in(line, username, password) -> None:
    fields = {"country": "de", "usergroup": "gold"}

    proxy = template(line).change_for("acc_1", fields, 2)

    assert proxy.username == username
    assert proxy.password is not None
    assert proxy.password.reveal() == password


def test_braces_in_a_password_do_not_make_a_template() -> None:
    """A random password may contain braces. Only {account_id} or {try} make it a template."""
    pooled = template("h.example:80:u:a{bc}d")

    assert not pooled.is_template
    assert pooled.change_for("acc_1") == CustomProxy(
        host="h.example", port=80, username="u", password="a{bc}d"
    )


def test_braces_in_the_password_of_a_template_are_not_a_placeholder() -> None:
    """Otherwise the error for the missing column would show part of the password."""
    pooled = template("h.example:80:u-{account_id}:a{bc}d")

    assert pooled.placeholders == {"account_id"}
    assert pooled.change_for("acc_1") == CustomProxy(
        host="h.example", port=80, username="u-acc_1", password="a{bc}d"
    )


def test_label_of_a_template_is_the_template_without_the_password() -> None:
    assert template(LINE).label == LABEL


def test_template_is_never_full_or_quarantined() -> None:
    """The session of one account says nothing about those of other accounts."""
    pool = ProxyAllocator(pool_of(LINE, accounts_per_proxy=1))
    for number in range(UNCONFIRMED + 1):
        proxy = pool.give(f"acc_{number}")
        assert proxy is not None
        pool.failed(proxy, f"acc_{number}")

    assert (pool.available, pool.quarantined, pool.paused) == (1, 0, False)


def test_template_with_try_is_assigned_again_if_no_other_proxy_is_left() -> None:
    pool = ProxyAllocator(pool_of(LINE, LINE.replace("gw.", "gw2.")))
    tried: list[PooledProxy] = []

    while (proxy := pool.give("acc_1", but_not=tried)) is not None:
        tried.append(proxy)

    assert [proxy.proxy.host for proxy in tried] == ["gw.example.net", "gw2.example.net"] * 2


def test_template_without_try_is_not_assigned_again() -> None:
    """A second call would use the same session."""
    pool = pool_of("gw.example:1:u-{account_id}:p")
    [proxy] = pool

    assert ProxyAllocator(pool).give("acc_1", but_not=[proxy]) is None


# --- Rotations ---


async def test_each_failover_changes_only_the_session_of_its_account() -> None:
    """One template serves 10,000 accounts, some of which have up to five dead sessions."""
    accounts = [f"acc_{number}" for number in range(10_000)]
    dead = {account: number % 6 for number, account in enumerate(accounts) if number % 7 == 0}
    gateway, pool = Gateway(dead), pool_of("gw.example:1:c-{account_id}-s{try}:p", failovers=3)

    outcomes = await rotate(gateway, accounts, pool)

    for account, outcome in outcomes.items():
        failures = dead.get(account, 0)
        assert gateway.usernames[account] == [f"c-{account}-s{n}" for n in range(min(failures, 3) + 1)]
        assert outcome.state is (State.PATCHED if failures <= 3 else State.FAILED)
        assert outcome.assignment == "c-{account_id}-s{try}@gw.example:1"
    assert len(outcomes) == 10_000


async def test_refused_credentials_of_one_session_do_not_quarantine_the_template() -> None:
    gateway = Gateway({"acc_1": 9}, error=errors.InvalidProxyCredentialsError)

    outcomes = await rotate(
        gateway, ["acc_1", "acc_2", "acc_3"], pool_of("gw.example:1:c-{account_id}-{try}:p")
    )

    states = {account: str(outcome.state) for account, outcome in outcomes.items()}
    assert states == {"acc_1": "failed", "acc_2": "patched", "acc_3": "patched"}


async def test_columns_of_a_fleet_fill_in_a_template(tmp_path) -> None:
    """The column "country" belongs to the template, so it does not order a managed proxy."""
    (tmp_path / "fleet.csv").write_text("account_id,Country,note\nacc_1,us,x\nacc_2,de,y\n")
    gateway, pool = Gateway({"acc_2": 1}), pool_of(LINE)
    with Fleet.open(tmp_path / "fleet.csv", pooled=pool) as fleet:
        assert fleet.ignored_columns == ("note",)
        await rotate(gateway, fleet, pool)

    assert gateway.usernames == {
        "acc_1": ["customer-acc_1-cc-us-s0"],
        "acc_2": ["customer-acc_2-cc-de-s0", "customer-acc_2-cc-de-s1"],
    }


def test_fleet_without_a_column_of_the_template_is_refused(tmp_path) -> None:
    (tmp_path / "fleet.csv").write_text("account_id,county\nacc_1,us\n")

    with pytest.raises(errors.FleetError, match=r"has no column country, which the pool needs"):
        Fleet.open(tmp_path / "fleet.csv", pooled=pool_of(LINE))


def test_rows_with_an_empty_cell_for_a_template_are_reported_together_before_anything_is_sent(
    session, tmp_path
) -> None:
    (tmp_path / "fleet.csv").write_text(
        "account_id,country\n" + "".join(f"a{n},\n" for n in range(90)) + "b,us\n"
    )
    pool = pool_of(LINE)
    with (
        Fleet.open(tmp_path / "fleet.csv", pooled=pool) as fleet,
        pytest.raises(ValueError, match=r"90 lines \(2, 3, 4, 5, 6 and 85 more\), country: country missing"),
    ):
        session.rotate(fleet, pool=pool)


@pytest.mark.parametrize("cell", ["a\x1bb", "x" * 257], ids=["control character", "too long"])
def test_cell_that_no_user_name_can_contain_is_refused(session, tmp_path, cell) -> None:
    (tmp_path / "fleet.csv").write_text(f"account_id,country\nacc_1,{cell}\n")
    pool = pool_of(LINE)
    with (
        Fleet.open(tmp_path / "fleet.csv", pooled=pool) as fleet,
        pytest.raises(ValueError, match="country not usable"),
    ):
        session.rotate(fleet, pool=pool)


def test_pairs_cannot_use_a_template_with_columns(session) -> None:
    with pytest.raises(ValueError, match=r"a1: changes\[0\], country: country missing: .* \(2 changes\)"):
        session.rotate(["a1", "a2"], pool=pool_of(LINE))


@pytest.mark.parametrize(
    ("header", "row", "column"),
    [
        ("proxy", "gw.example:1:c-{account_id}:p", "proxy"),
        ("proxy", "gw.example:1:c:p-{Account_ID}-{try}", "proxy"),
        ("host,port,username", "gw.example,1,c-{ account id }-{try}", "username"),
    ],
)
def test_template_in_a_row_of_a_fleet_is_refused(tmp_path, header, row, column) -> None:
    """Only templates of a pool are filled in, so this one would be sent as it is."""
    (tmp_path / "fleet.csv").write_text(f"account_id,{header}\nacc_1,{row}\n")
    with Fleet.open(tmp_path / "fleet.csv") as fleet:
        [fault] = fleet.survey().faults

    assert (fault.first.column, fault.first.reason) == (column, "template in a row")


def test_template_is_read_from_a_list(tmp_path) -> None:
    (tmp_path / "list.txt").write_text(f"{LINE}\n{LINE.replace('hunter2', 'other')}\n")

    lists = read_lists([(None, tmp_path / "list.txt")], skip_bad=True)

    assert [as_pooled(entry.proxy).label for entry in lists.proxies] == [LABEL]
    assert [refusal.reason for refusal in lists.refused] == ["proxy already listed"]


def test_texts_of_a_template_contain_no_password() -> None:
    pool = pool_of("gw.example:1:c-{account_id}:hunter2-{try}")
    [pooled] = pool

    assert "hunter2" not in f"{pool!r} {pooled!r} {pooled.label} {pooled.change_for('acc_1')!r}"
