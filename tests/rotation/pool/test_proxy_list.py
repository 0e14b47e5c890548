"""Lists of proxies: every form of a line is read, and refusals of invalid lines contain no password."""

import csv
import io
import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async import CustomProxy
from postpress_async.errors import FleetError
from postpress_async.rotation._pool._proxy_list import ListedProxy, ProxyLists, RefusedLine, read_lists
from tests.support import DATA

LIST = DATA / "proxies.txt"
EXPECTED: list[dict[str, Any]] = json.loads((DATA / "proxies-expected.json").read_text(encoding="utf-8"))
PASSWORD = "hunter2-seldom"

deterministic = settings(derandomize=True, deadline=None, database=None)


def read_lines(lines: Iterable[str]) -> list[ListedProxy | RefusedLine]:
    """The proxies and refusals of a list, in the order of its lines."""
    lists = ProxyLists()
    lists.add(lines)
    items: list[ListedProxy | RefusedLine] = [*lists.proxies, *lists.refused]
    return sorted(items, key=lambda item: item.line)


def read_one(*lines: str) -> ListedProxy | RefusedLine:
    """The proxy or refusal of the last of *lines*."""
    return read_lines(lines)[-1]


def proxy_of(*lines: str) -> CustomProxy:
    """The proxy of the last of *lines*, which must be valid."""
    item = read_one(*lines)
    assert isinstance(item, ListedProxy), str(item)
    return item.proxy


def refusal_of(*lines: str) -> RefusedLine:
    """The refusal of the last of *lines*, which must be invalid."""
    item = read_one(*lines)
    assert isinstance(item, RefusedLine)
    return item


# --- A whole list ---


@pytest.fixture(scope="module")
def sellers_list() -> dict[int, ListedProxy | RefusedLine]:
    listed = read_lists([(None, LIST)], skip_bad=True)
    items: list[ListedProxy | RefusedLine] = [*listed.proxies, *listed.refused]
    return {item.line: item for item in items}


def test_each_line_of_a_sellers_list_has_the_expected_proxy_or_refusal(
    sellers_list: dict[int, ListedProxy | RefusedLine],
) -> None:
    for expected in EXPECTED:
        item, proxy = sellers_list[expected["line"]], expected["proxy"]

        if isinstance(item, RefusedLine):
            assert (item.line, item.reason) == (expected["line"], proxy.get("bad"))
        else:
            assert (item.line, item.proxy) == (expected["line"], CustomProxy(**proxy))


def test_comments_and_blank_lines_are_skipped_but_counted(
    sellers_list: dict[int, ListedProxy | RefusedLine],
) -> None:
    assert sorted(sellers_list) == [expected["line"] for expected in EXPECTED]


# --- The forms of a line ---

FULL = CustomProxy(host="h.example", port=8080, username="u", password="p")


@pytest.mark.parametrize(
    ("line", "proxy"),
    [
        ("h.example:8080", CustomProxy(host="h.example", port=8080)),
        ("h.example:8080/", CustomProxy(host="h.example", port=8080)),
        ("h.example:8080:u:p", FULL),
        ("h.example:8080:u:", CustomProxy(host="h.example", port=8080, username="u")),
        ("u:p@h.example:8080", FULL),
        ("u:p@h.example:8080/", FULL),
        ("u@h.example:8080", CustomProxy(host="h.example", port=8080, username="u")),
        (
            "me@x.example:p@h.example:80",
            CustomProxy(host="h.example", port=80, username="me@x.example", password="p"),
        ),
        (
            "SOCKS5://u:p%40@h.example:80/",
            CustomProxy(host="h.example", port=80, protocol="socks5", username="u", password="p@"),
        ),
        ("u:p%40@h.example:80", CustomProxy(host="h.example", port=80, username="u", password="p%40")),
        (
            "h.example:80:u:a:b@c#d/e%41/",
            CustomProxy(host="h.example", port=80, username="u", password="a:b@c#d/e%41/"),
        ),
        ("[2001:db8::1]:80", CustomProxy(host="2001:db8::1", port=80)),
        ("[2001:db8::1]:80:u:p", CustomProxy(host="2001:db8::1", port=80, username="u", password="p")),
        ("u:p@[2001:db8::1]:80", CustomProxy(host="2001:db8::1", port=80, username="u", password="p")),
        ("http://[2001:db8::1]:80", CustomProxy(host="2001:db8::1", port=80, protocol="http")),
        (" \th.example:8080:u:p \r\n", FULL),
    ],
)
def test_line_may_have_any_of_the_forms(line: str, proxy: CustomProxy) -> None:
    """Percent-encoding is decoded only in a URL. In any other form, the password is taken literally."""
    assert proxy_of(line) == proxy


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("p1.example:80:u:p@w:90", "p1.example"),
        ("[::1]:80:u:p@w:90", "::1"),
        ("192.0.2.1:80:u:p@w:90", "192.0.2.1"),
        ("user:80:x:y@p1.example:90", "p1.example"),
        ("user:80:x:y@[::1]:90", "::1"),
        ("us!er.x:80:x:y@p1.example:90", "p1.example"),
        ("p1.example:80:u:p@w.example:99999", "p1.example"),
    ],
)
def test_line_with_two_possible_forms_is_read_as_the_one_with_a_clear_host(line: str, host: str) -> None:
    """A dot or brackets show which end of the line is the host."""
    assert proxy_of(line).host == host


@pytest.mark.parametrize("line", ["p1.example:80:u:pw@p2.example:90", "p1:80:u:pw@p2:90"])
def test_line_with_two_equally_likely_forms_is_refused(line: str) -> None:
    """After a wrong guess, part of the password would be sent as a host name."""
    refusal = refusal_of(line)

    assert refusal.reason == "form ambiguous"
    assert "URL" in refusal.advice


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ("h.example", "port", "port missing"),
        ("h.example:", "port", "port missing"),
        ("u:p@h.example", "port", "port missing"),
        ("h.example:0", "port", "port out of range"),
        ("h.example:65536:u:p", "port", "port out of range"),
        ("h.example:65536:u:p@w", "port", "port out of range"),
        ("h.example:8O80:u:p", "port", "port not an integer"),
        ("h.example::u:p", "port", "port missing"),
        ("u:p:h.example:80", None, "form unknown"),
        ("h.example:٨٠:u:p", "port", "port not an integer"),
        ("h.example:80:u", "password", "password missing"),
        (":80", "host", "host missing"),
        ("u:p@:80", "host", "host missing"),
        ("h!x:80", "host", "host not a host name"),
        ("1.2.3.400:80:u:p", "host", "host not an IPv4 address"),
        ("2001:db8::1:8080", "host", "host not an IPv6 address"),
        ("2001:db8:0:0:0:0:0:1:8080", "host", "host not an IPv6 address"),
        ("u:p@2001:db8::1:8080", "host", "host not an IPv6 address"),
        ("[2001:db8::1:80", "host", "host not an IPv6 address"),
        ("socks4://h.example:80", "protocol", "protocol unknown"),
        ("http://h.example:80/path", "port", "port not an integer"),
        ("h.example:80:u:p\tw", "password", "password has a control character"),
        ("192.0.2.1,8080,u,p", None, "columns not named"),
    ],
)
def test_refusal_of_a_line_has_its_number_field_and_reason(line: str, field: str, reason: str) -> None:
    refusal = refusal_of("# bought today", line)

    assert (refusal.line, refusal.column, refusal.reason) == (2, field, reason)
    assert refusal.advice


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ("http://gw.example:8000:user:pw", "SCHEME://user:password@host:port, or host:port:user:password"),
        ("socks5://[2001:db8::1]:8000:user:p@ss", "SCHEME://user:password@host:port"),
        ("http://gw:8000:user:pw", "SCHEME://user:password@host:port"),
        ("user:pw:gw.example:8000", "write user:password@host:port"),
        ("gw.example:8000@user:pw", "write user:password@host:port"),
        ("gw.example 8000 user pw", "put colons between the parts: host:port:user:password"),
        ("192.0.2.1;8000;user;pw", "put colons between the parts"),
        ("192.0.2.1:8000 user:pw", "write host:port:user:password"),
    ],
)
def test_refusal_of_an_unknown_form_names_the_form_that_was_probably_meant(line: str, form: str) -> None:
    refusal = refusal_of(line)

    assert (refusal.column, refusal.reason) == (None, "form unknown")
    assert form in refusal.advice


def test_text_of_a_refusal_is_a_sentence() -> None:
    assert (
        str(refusal_of("", "h:99999"))
        == "line 2, port: port out of range: must be a whole number from 1 to 65535"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("h.example:80", "http://H.Example.:80"),
        ("[2001:db8::0]:80", "[2001:DB8:0::]:80"),
        ("u:p@h.example:80", "h.example:80:u:another"),
    ],
)
def test_duplicate_proxy_is_refused(first: str, second: str) -> None:
    """A duplicate would get twice as many accounts, and an account could fail over to the same proxy."""
    refusal = refusal_of("", first, second)

    assert refusal.reason == "proxy already listed"
    assert str(refusal).startswith("line 3: proxy already listed on line 2: list each proxy once")


def test_proxies_that_differ_in_the_user_name_are_different_proxies() -> None:
    """Sellers encode the exit node in the user name, with the same host and port."""
    lines = ["h.example:80", "h.example:80:u-1:p", "h.example:80:u-2:p", "h.example:81", "H.example:81:U-1:p"]
    assert all(isinstance(item, ListedProxy) for item in read_lines(lines))


# --- CSV ---


@pytest.mark.parametrize(
    "lines",
    [
        ["host,port,protocol,username,password", "h.example,8080,,u,p"],
        ["PASSWORD, UserName ,Port,Host", "p,u,8080,h.example"],
        ['"host";"port";"username";"password"', 'h.example;8080;"u";p'],
        ["host\tport\tusername\tpassword\tcity", "h.example\t8080\tu\tp\tParis"],
        ["# of today", "", "ip,port,user,pass", "# first", ",,,", "h.example,8080,u,p"],
        ["proxy", "h.example:8080:u:p"],
        ["city,proxy", '"Paris, FR",u:p@h.example:8080'],
        ["host,port,username,password", "h.example,8080,u,p,,"],
    ],
)
def test_columns_of_a_table_may_have_any_order_and_case(lines: list[str]) -> None:
    assert proxy_of(*lines) == FULL


@pytest.mark.parametrize(
    "header",
    [
        "Type,IP,Port,Login,Pass",
        "Scheme,Address,Port,Username,Password",
        "proxy_type;proxy_ip;proxy_port;proxy_login;proxy_pass",
        "Protocol,Hostname,Port Number,User,pwd",
        "protocol,server,port,user name,passwd",
        "Protocols,Endpoint,Proxy Port,usr,psw",
        "proxy type,gateway,port,auth user,auth password",
    ],
)
def test_columns_of_a_table_may_have_names_that_sellers_use(header: str) -> None:
    """If an unknown name made the list lose its protocol or user name, every account would fail."""
    delimiter = ";" if ";" in header else ","

    proxy = proxy_of(header, delimiter.join(["SOCKS5", "h.example", "8080", "u", "p"]))

    assert proxy == CustomProxy(host="h.example", port=8080, protocol="socks5", username="u", password="p")


def test_usual_column_name_has_priority_over_a_sellers_name() -> None:
    """Next to a protocol, "type" has another meaning. Next to a host, "ip" is the exit address."""
    lists = ProxyLists()

    lists.add(["host,ip,port,protocol,type", "h.example,203.0.113.7,80,http,residential"], "list.csv")

    [entry] = lists.proxies
    assert entry.proxy == CustomProxy(host="h.example", port=80, protocol="http")
    assert lists.ignored_columns == {"list.csv": ("ip", "type")}


@pytest.mark.parametrize("word", ["socks5h", "socks", "SOCKS5H", "Socks"])
def test_other_names_of_socks5_are_recognized(word: str) -> None:
    """socks5h is a name that curl uses."""
    expected = CustomProxy(host="h.example", port=80, protocol="socks5")

    assert proxy_of(f"{word}://h.example:80") == expected
    assert proxy_of("host,port,protocol", f"h.example,80,{word}") == expected


def test_ipv6_address_in_a_cell_may_have_brackets() -> None:
    proxies = [proxy_of("host,port", f"{host},80") for host in ("2001:db8::1", "[2001:db8::1]")]
    assert {proxy.host for proxy in proxies} == {"2001:db8::1"}


def test_spaces_in_a_table_are_removed_except_in_passwords() -> None:
    proxy = proxy_of("host,port,username,password", ' h.example , 80 , u ," a,""b "\r\n')
    assert proxy == CustomProxy(host="h.example", port=80, username="u", password=' a,"b ')


@pytest.mark.parametrize(
    ("header", "row", "field", "reason"),
    [
        ("host,port,password", 'h.example,80,"p', None, "quotes not closed"),
        ("host,port,password", "h.example,80,p,w", None, "more cells than columns"),
        ("host,port,password", "h.example,,p", "port", "port missing"),
        ("host,port,password", ",80,p", "host", "host missing"),
        ("host,port,protocol", "h.example,80,ftp", "protocol", "protocol unknown"),
        ("host,port", "h.example:80,80", "host", "host has a port"),
        ("host,port", "http://h.example,80", "host", "host has a scheme"),
        ("proxy,password", "h.example:80,p", None, "proxy given twice"),
        ("proxy,port", "h.example", "port", "port missing"),
    ],
)
def test_invalid_row_is_refused_and_the_next_row_is_read(
    header: str, row: str, field: str, reason: str
) -> None:
    """A quote that is not closed ends with its line, so it does not affect the next proxy."""
    refusal = refusal_of(header, row)

    assert (refusal.line, refusal.column, refusal.reason) == (2, field, reason)
    following = proxy_of(header, row, "p.example:1" if "proxy" in header else "p.example,1")
    assert following.host == "p.example"


def test_header_with_two_names_of_one_column_is_refused() -> None:
    with pytest.raises(FleetError, match="line 2 has the column username twice"):
        read_lines(["", "host,port,user,username", "h.example,80,a,b"])


# --- Files ---


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_byte_order_mark_and_line_ends_of_all_platforms_are_recognized(tmp_path: Path, line_end: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(line_end.join(["\ufeffh.example:80:u:p", "", "bad"]).encode())

    listed = read_lists([(None, path)], skip_bad=True)

    assert [entry.line for entry in listed.proxies] == [1]
    assert [refusal.line for refusal in listed.refused] == [3]


def test_list_can_be_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may be the output of curl for a seller's API."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfh.example:80\n")))

    listed = read_lists([(None, "-")])

    assert [entry.proxy for entry in listed.proxies] == [CustomProxy(host="h.example", port=80)]
    assert listed.refused == []


@pytest.mark.parametrize("content", [b"h.example:80\n\0\0", b"h.example:80:u:\xff" + PASSWORD.encode()])
def test_error_for_a_list_that_is_not_text_does_not_show_its_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)

    with pytest.raises(FleetError, match="UTF-8") as caught:
        read_lists([(None, path)])

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_error_for_a_missing_list_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"list\.txt"):
        read_lists([(None, tmp_path / "list.txt")])


@pytest.mark.parametrize("form", ["u:{}@h.example:80", "http://u:{}@h.example:80", "h.example:80:u:{}"])
def test_error_for_a_proxy_in_place_of_a_path_does_not_show_it(form: str) -> None:
    """The error for a missing file would name its path, which here contains a password."""
    with pytest.raises(FleetError, match="not a proxy") as caught:
        read_lists([(None, form.format(PASSWORD))])

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


# --- Generated lists ---

# Hosts have a dot or brackets, but user names and passwords have neither. So no line has two possible forms.
HOSTS = st.one_of(
    st.from_regex(r"[a-z][a-z0-9]{0,8}\.(example|test)", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
PORTS = st.integers(1, 65535)
SPECIAL = st.sampled_from(":@#/%,;\"' 0189")
TEXT = st.text(SPECIAL | st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=".["), min_size=1)
# With the underscore, a user name is not the scheme of a URL, and "#" is not at the beginning of a line.
USERNAMES = TEXT.map(lambda text: "u_" + text.replace(":", "") + "_")
PASSWORDS = TEXT.filter(lambda text: text == text.strip())
PROXIES = st.builds(CustomProxy, host=HOSTS, port=PORTS, username=USERNAMES, password=PASSWORDS)
WITH_PROTOCOL = st.builds(
    CustomProxy,
    host=HOSTS,
    port=PORTS,
    protocol=st.sampled_from(["http", "https", "socks5"]),
    username=st.none() | TEXT,
    password=st.none() | TEXT,
)


def address(proxy: CustomProxy) -> str:
    """Host and port, as in a line."""
    return f"[{proxy.host}]:{proxy.port}" if ":" in proxy.host else f"{proxy.host}:{proxy.port}"


def password(proxy: CustomProxy) -> str:
    return "" if proxy.password is None else proxy.password.reveal()


@deterministic
@given(proxy=PROXIES)
def test_any_proxy_written_as_host_port_user_password_is_read_back(proxy: CustomProxy) -> None:
    """The password extends to the end of the line, so it may contain colons."""
    assert proxy_of(f"  {address(proxy)}:{proxy.username}:{password(proxy)}\r\n") == proxy


@deterministic
@given(proxy=PROXIES)
def test_any_proxy_written_as_user_password_at_host_port_is_read_back(proxy: CustomProxy) -> None:
    """The password extends to the last "@", so it may contain others."""
    assert proxy_of(f"{proxy.username}:{password(proxy)}@{address(proxy)}\n") == proxy


@deterministic
@given(proxy=WITH_PROTOCOL, upper=st.booleans(), slash=st.sampled_from(["", "/"]))
def test_any_proxy_written_as_a_url_is_read_back(proxy: CustomProxy, upper: bool, slash: str) -> None:
    """In a URL, any character can be escaped."""
    scheme = str(proxy.protocol).upper() if upper else str(proxy.protocol)
    credentials = f"{quote(proxy.username or '', safe='')}:{quote(password(proxy), safe='')}"

    assert proxy_of(f"{scheme}://{credentials}@{address(proxy)}{slash}") == proxy


@deterministic
@given(
    proxies=st.lists(WITH_PROTOCOL, min_size=1, max_size=5, unique_by=lambda p: (p.host, p.port)),
    columns=st.permutations(["Host", "PORT", "protocol", "UserName", "password", "city"]),
)
def test_any_proxies_written_as_csv_are_read_back(proxies: list[CustomProxy], columns: list[str]) -> None:
    """Spaces around user names are removed, but not those around passwords."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    expected = []
    for proxy in proxies:
        username = (proxy.username or "").strip()
        secret = "" if password(proxy).isspace() else password(proxy)
        cells = ["" if cell is None else cell for cell in (proxy.host, proxy.port, proxy.protocol)]
        names = ["Host", "PORT", "protocol", "UserName", "password", "city"]
        writer.writerow(dict(zip(names, [*cells, username, secret, "Paris"], strict=True)))
        expected.append(
            CustomProxy(
                host=proxy.host,
                port=proxy.port,
                protocol=proxy.protocol,
                username=username or None,
                password=secret or None,
            )
        )

    lines = file.getvalue().split("\r\n")

    assert [getattr(item, "proxy", item) for item in read_lines(lines)] == expected


@deterministic
@given(
    before=st.text(
        st.sampled_from(':@/[]#,."h18% \t') | st.characters(exclude_categories=["Cs"]), max_size=12
    ),
    after=st.text(
        st.sampled_from(':@/[]#,."h18% \t') | st.characters(exclude_categories=["Cs"]), max_size=12
    ),
    header=st.sampled_from(["", "host,port,username,password", "proxy"]),
)
def test_no_refusal_shows_text_of_its_line(before: str, after: str, header: str) -> None:
    """Any part of an invalid line may be a password."""
    secret = "73519284620"  # digits, because a port out of range may be a password

    for item in read_lines([header, before + secret + after]):
        if isinstance(item, RefusedLine):
            assert secret not in str(item) + repr(item)
