"""Values of the header Retry-After: seconds, the three date formats of HTTP, and invalid ones."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async._http.codec import read_retry_after


def unix_time(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    """Return the Unix time of a date and time in UTC."""
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()


NOW = unix_time(2026, 11, 23, 12, 0, 0)


@pytest.fixture(params=["PST8PDT,M3.2.0,M11.1.0", "IST-5:30"], ids=["west of Greenwich", "east of Greenwich"])
def other_time_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the local time zone of the process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("1", 1.0), ("120", 120.0), ("0120", 120.0), ("00", 0.0), ("999999999", 999999999.0)],
)
def test_digits_are_seconds(text: str, seconds: float) -> None:
    assert read_retry_after(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1000000000", id="ten digits"),
        pytest.param("9" * 20, id="20 digits"),
        pytest.param("9" * 400, id="too large for a float"),
        pytest.param("9" * 5000, id="too long for int()"),
    ],
)
def test_very_large_number_is_not_ignored(text: str) -> None:
    """The call must give up instead of retrying early."""
    seconds = read_retry_after(text, NOW)

    assert seconds is not None
    assert seconds >= 1e9


def test_leading_zeros_of_a_number_are_allowed() -> None:
    assert read_retry_after("0000000005", NOW) == 5.0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Mon, 23 Nov 2026 12:01:30 GMT", id="IMF-fixdate"),
        pytest.param("Monday, 23-Nov-26 12:01:30 GMT", id="RFC 850"),
        pytest.param("Mon Nov 23 12:01:30 2026", id="asctime"),
    ],
)
def test_each_date_format_of_http_is_accepted(text: str) -> None:
    """Two are obsolete, but HTTP requires recipients to accept all three (RFC 9110, section 5.6.7)."""
    assert read_retry_after(text, NOW) == 90.0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", id="IMF-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", id="RFC 850"),
        pytest.param("Sun Nov  6 08:49:37 1994", id="asctime"),
    ],
)
def test_examples_of_the_rfc_are_the_same_time(text: str) -> None:
    """RFC 9110, section 5.6.7, writes the same time in three formats."""
    assert read_retry_after(text, unix_time(1994, 11, 6, 8, 49, 0)) == 37.0


@pytest.mark.usefixtures("other_time_zone")
@pytest.mark.parametrize(
    "text",
    ["Mon, 23 Nov 2026 12:01:30 GMT", "Monday, 23-Nov-26 12:01:30 GMT", "Mon Nov 23 12:01:30 2026"],
    ids=["IMF-fixdate", "RFC 850", "asctime"],
)
def test_date_is_in_utc_whatever_the_local_time_zone(text: str) -> None:
    assert read_retry_after(text, NOW) == 90.0


@pytest.mark.usefixtures("other_time_zone")
@pytest.mark.parametrize(
    ("text", "now"),
    [
        pytest.param("Sun, 08 Mar 2026 10:30:00 GMT", unix_time(2026, 3, 8, 10, 29), id="start"),
        pytest.param("Sun, 01 Nov 2026 09:30:00 GMT", unix_time(2026, 11, 1, 9, 29), id="end"),
    ],
)
def test_date_during_a_change_of_daylight_saving_time(text: str, now: float) -> None:
    """In the time zone PST8PDT, the first local time does not exist and the second exists twice."""
    assert read_retry_after(text, now) == 60.0


@pytest.mark.parametrize("name", "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
def test_names_of_all_months_are_recognized(name: str) -> None:
    month = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split().index(name) + 1

    assert read_retry_after(f"Mon, 15 {name} 2027 00:00:10 GMT", unix_time(2027, month, 15)) == 10.0
    assert read_retry_after(f"Monday, 15-{name}-27 00:00:10 GMT", unix_time(2027, month, 15)) == 10.0
    assert read_retry_after(f"Mon {name} 15 00:00:10 2027", unix_time(2027, month, 15)) == 10.0


@given(when=st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31)), now=st.floats(0, 4e9))  # noqa: DTZ001,RUF100
def test_any_date_that_the_standard_library_writes_is_read_exactly(when: datetime, now: float) -> None:
    moment = when.replace(microsecond=0, tzinfo=UTC)

    seconds = read_retry_after(format_datetime(moment, usegmt=True), now)
    assert seconds == max(0.0, moment.timestamp() - now)


@pytest.mark.parametrize(
    "text",
    ["Mon, 23 Nov 2026 11:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Sat, 01 Jan 0001 00:00:00 GMT"],
)
def test_date_in_the_past_is_0_seconds(text: str) -> None:
    assert read_retry_after(text, NOW) == 0.0


def test_fractions_of_a_second_of_the_current_time_count() -> None:
    assert read_retry_after("Mon, 23 Nov 2026 12:00:00 GMT", NOW) == 0.0
    assert read_retry_after("Mon, 23 Nov 2026 12:00:00 GMT", NOW - 0.25) == 0.25


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("Tue, 29 Feb 2028 00:00:05 GMT", 5.0, id="leap year"),
        pytest.param("Tuesday, 29-Feb-28 00:00:05 GMT", 5.0, id="leap year, RFC 850"),
        pytest.param("Tue Feb 29 00:00:05 2028", 5.0, id="leap year, asctime"),
        pytest.param("Mon, 29 Feb 2027 00:00:05 GMT", None, id="not a leap year"),
        pytest.param("Mon, 29 Feb 2100 00:00:05 GMT", None, id="2100 is not a leap year"),
        pytest.param("Tue, 29 Feb 2000 00:00:05 GMT", 0.0, id="2000 was a leap year"),
    ],
)
def test_29_february_is_valid_in_leap_years_only(text: str, seconds: float | None) -> None:
    assert read_retry_after(text, unix_time(2028, 2, 29)) == seconds


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(" ", id="space"),
        pytest.param("-1", id="negative"),
        pytest.param("+1", id="plus"),
        pytest.param("1.5", id="fraction"),
        pytest.param("1,5", id="decimal comma"),
        pytest.param("1e3", id="exponent"),
        pytest.param("0x10", id="hexadecimal"),
        pytest.param("1_000", id="underscore"),
        pytest.param("10s", id="unit"),
        pytest.param(" 10", id="space before"),
        pytest.param("10 ", id="space after"),
        pytest.param("10\n", id="line break after"),
        pytest.param("10, 20", id="two values"),
        pytest.param("١٠", id="Arabic digits"),
        pytest.param("１０", id="full-width digits"),
        pytest.param("²", id="superscript"),
        pytest.param("inf", id="infinity"),
        pytest.param("nan", id="not a number"),
        pytest.param("soon", id="word"),
        pytest.param("2026-11-23T12:01:30Z", id="ISO 8601"),
        pytest.param("Mon, 23 Nov 2026 12:01:30.5 GMT", id="fraction of a second"),
        pytest.param("Mon, 23 Nov 2026 24:00:00 GMT", id="hour 24"),
        pytest.param("Mon, 23 Nov 2026 12:60:00 GMT", id="minute 60"),
        pytest.param("Mon, 23 Nov 2026 12:00:61 GMT", id="second 61"),
        pytest.param("Mon, 00 Nov 2026 12:01:30 GMT", id="day 0"),
        pytest.param("Mon, 31 Nov 2026 12:01:30 GMT", id="31 November"),
        pytest.param("Mon, 32 Dec 2026 12:01:30 GMT", id="day 32"),
        pytest.param("Mon Nov  0 12:01:30 2026", id="asctime, day 0"),
    ],
)
def test_invalid_value_is_ignored(text: str) -> None:
    assert read_retry_after(text, NOW) is None


@given(text=st.text() | st.text("0123456789 :,-GMTonNv"), now=st.floats(0, 4e9))
def test_any_text_is_seconds_or_ignored_and_never_raises(text: str, now: float) -> None:
    seconds = read_retry_after(text, now)

    assert seconds is None or seconds >= 0.0
