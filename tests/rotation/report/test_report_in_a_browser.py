"""The report in Chromium: on a desktop and a phone, in dark mode, and printed."""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from postpress_async.errors import Scope
from postpress_async.rotation import State
from postpress_async.rotation.journal._reading import JournalView
from postpress_async.rotation.report import write_report
from tests.rotation.report.test_report import NASTY
from tests.support.journals import NIGHT, outcome, write

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# On a contributor's machine it may be missing; where the project decides, it may not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and os.environ.get("CI") != "true",
        reason="no chromium and chromedriver here: apt-get install chromium chromium-driver",
    ),
]


class Browser:
    """Chromium without a window, and whatever it complains of."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for name in (
            *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
            *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{name}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light", media: str = "") -> None:
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.do("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.driver.get(page.as_uri())

    def do(self, command: str, **words: Any) -> dict[str, Any]:
        words |= {"mobile": words["width"] < 600} if "width" in words else {}
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(command, words)
        return answer

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def find_one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, selector: str) -> WebElement:
        """The element, once it is shown: the list is unpacked after the page is there."""
        waiting = WebDriverWait(self.driver, 20)
        return waiting.until(lambda driver: next((e for e in self.all(selector) if e.is_displayed()), None))  # type: ignore[return-value]

    def complaints(self) -> list[Any]:
        return list(self.driver.get_log("browser"))  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """One that has nothing to complain of when the test is done."""
    yield chromium
    assert chromium.complaints() == []


def written(folder: Path, outcomes: Any, **run_entries: object) -> Path:
    path = folder / "report.html"
    with JournalView(write(folder / "run.sqlite3", outcomes, **run_entries)) as view, path.open("wb") as file:
        write_report(view, file, NIGHT + 3_600)
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """1,000 accounts, of which 250 failed in two ways."""
    outcomes = []
    for n in range(1_000):
        if n % 4:
            outcomes.append(outcome(n, elapsed=0.1 + n / 500, assignment=f"line {n % 20}"))
        elif n % 8:
            outcomes.append(outcome(n, State.FAILED, assignment="line 3"))
        else:
            dead = {"error_type": "errors/proxy_error", "scope": Scope.PROXY, "instance": None}
            outcomes.append(
                outcome(n, State.FAILED, elapsed=float(n), attempts=8, assignment="line 7", **dead)
            )
    return written(tmp_path, outcomes, total=1_000)


def column(browser: Browser, number: int) -> list[str]:
    """The texts of a column of the list, from 1, as it stands."""
    script = (
        f"return [...document.querySelectorAll('.list tbody td:nth-child({number})')].map(e => e.innerText)"
    )
    texts: list[str] = browser.run(script)
    return texts


# --- The charts ---


def test_the_page_opens_without_errors_or_requests(browser, page) -> None:
    """The page must work without a network."""
    browser.open(page)

    assert browser.find_one("h1").text == "750 of 1,000 accounts patched"
    assert browser.run("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize(("width", "drawn", "other"), [(1280, "wide", "narrow"), (390, "narrow", "wide")])
def test_the_charts_are_drawn(browser, page, width, drawn, other) -> None:
    """Each chart has bars with a size and a colour; the drawing for the other width is hidden."""
    browser.open(page, width=width)

    charts = browser.all(f".chart.{drawn}")
    assert len(charts) == 3
    assert all(chart.is_displayed() for chart in charts)
    assert not any(chart.is_displayed() for chart in browser.all(f".chart.{other}"))
    for chart in charts:
        bars = chart.find_elements(By.CSS_SELECTOR, "[aria-roledescription=bar]")
        assert bars
        assert max(bar.size["height"] for bar in bars) > 5
        assert {bar.value_of_css_property("fill")[:4] for bar in bars} == {"rgb("}


def test_each_bar_says_what_it_stands_for(browser, page) -> None:
    """A height is a guess; the number is beside the pointer."""
    browser.open(page)
    bar = browser.find_one(".chart.wide [aria-roledescription=bar]")

    browser.run("document.querySelector('.chart.wide').scrollIntoView()")
    webdriver.ActionChains(browser.driver).move_to_element(bar).perform()

    assert browser.wait("#tip").text == "errors/proxy_error: 125 accounts"


# --- The list ---


def test_the_list_can_be_filtered(browser, page) -> None:
    browser.open(page)
    search = browser.wait(".tools input")
    assert len(column(browser, 1)) == 100

    search.send_keys("PROXY_error acc_00001")

    assert set(column(browser, 4)) == {"errors/proxy_error"}
    assert column(browser, 2) == ["acc_000016"]
    assert browser.find_one(".count").text == "1 of 250 match"

    search.clear()
    search.send_keys("no such thing")
    assert column(browser, 1) == []
    assert browser.find_one(".count").text == "0 of 250 match"


def test_the_list_can_be_narrowed_to_one_error(browser, page) -> None:
    browser.open(page)
    browser.wait(".tools")
    state, error = (Select(select) for select in browser.all(".tools select"))

    error.select_by_visible_text("errors/proxy_error")

    assert browser.find_one(".count").text == "125 of 250 match"
    assert [option.text for option in state.options] == ["every state", "failed"]


def test_the_list_can_be_sorted_by_every_column(browser, page) -> None:
    """Numbers as numbers, those in texts too; what is missing comes last, both ways."""
    browser.open(page)
    browser.wait(".tools")
    attempts, instance = browser.all(".list th button")[4:7:2]

    attempts.click()
    assert column(browser, 5) == ["1"] * 100
    attempts.click()
    assert column(browser, 5) == ["8"] * 100
    assert browser.find_one(".list th:nth-child(5)").get_dom_attribute("aria-sort") == "descending"

    instance.click()
    up = [int(text.removeprefix("req_")) for text in column(browser, 7)]
    instance.click()
    down = [int(text.removeprefix("req_")) for text in column(browser, 7)]
    assert (up, down) == (sorted(up), sorted(down, reverse=True))
    assert up[:2] == [4, 12]  # as people count: as text, 100 came before 12
    assert down[:2] == [996, 988]

    browser.all(".list th button")[0].click()
    assert column(browser, 1)[:3] == ["2", "6", "10"]


def test_the_list_has_pages(browser, page) -> None:
    browser.open(page)
    browser.wait(".pages")
    back, on = browser.all(".pages button")

    assert not back.is_enabled()
    on.click()
    on.click()
    assert browser.find_one(".pages span").text == "page 3 of 3"
    assert len(column(browser, 1)) == 50
    assert not on.is_enabled()


def test_a_hundred_thousand_accounts_are_filtered_at_once(browser, tmp_path) -> None:
    """A table that hangs for each letter is not used."""
    page = written(tmp_path, (outcome(n, State.FAILED) for n in range(100_000)))
    browser.open(page)
    browser.wait(".tools")

    took = browser.run(
        "const search = document.querySelector('.tools input'); search.value = 'acc_09999';"
        "const began = performance.now(); search.dispatchEvent(new Event('input'));"
        "return performance.now() - began"
    )

    assert browser.find_one(".count").text == "10 of 100,000 match"
    assert took < 2_000  # some 50 ms; a busy machine is slower


def test_without_what_unpacks_the_list_its_beginning_is_shown(browser, page) -> None:
    """An old browser shows a message instead of an empty table."""
    script = browser.do(
        "Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.DecompressionStream"
    )
    try:
        browser.open(page)
        assert "too old" in browser.wait(".count").text
        assert len(column(browser, 1)) == 100
    finally:
        browser.do("Page.removeScriptToEvaluateOnNewDocument", **script)


def test_without_scripts_the_beginning_is_shown(browser, page) -> None:
    browser.do("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert len(browser.all(".list tbody tr")) == 100
        assert browser.find_one("noscript").text == "Without scripts, the first 100 are shown."
    finally:
        browser.do("Emulation.setScriptExecutionDisabled", value=False)


# --- A phone, the dark, paper ---


def test_the_page_fits_a_phone(browser, page) -> None:
    """The page does not scroll horizontally."""
    browser.open(page, width=390)
    browser.wait(".tools")

    assert browser.run("return document.documentElement.scrollWidth") == 390
    assert len(browser.all(".list tbody tr")) == 20
    name = "return getComputedStyle(document.querySelector('.list td:nth-child(2)'), '::before').content"
    assert browser.run(name) == '"account id"'


def lightness(colour: str) -> float:
    red, green, blue = (int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3])
    return (red + green + blue) / 765


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_day_and_by_night(browser, page, scheme) -> None:
    """Text, lines and bars take their colours from the scheme, the drawings included."""
    browser.open(page, scheme=scheme)
    browser.wait(".tools")

    paper = lightness(browser.find_one("body").value_of_css_property("background-color"))
    assert (paper > 0.9) if scheme == "light" else (paper < 0.2)
    for selector in ("body", "h1", ".note", ".list td", ".plain td"):
        colour = browser.find_one(selector).value_of_css_property("color")
        assert abs(lightness(colour) - paper) > 0.4, selector
    for selector in (".chart.wide text", ".chart.wide [aria-roledescription=bar]"):
        assert abs(lightness(browser.find_one(selector).value_of_css_property("fill")) - paper) > 0.2, (
            selector
        )


def test_it_is_printed_on_white_without_what_only_a_screen_needs(browser, page) -> None:
    browser.open(page, scheme="dark", media="print")

    assert lightness(browser.find_one("body").value_of_css_property("background-color")) == 1.0
    assert not browser.find_one(".tools").is_displayed()
    assert all(chart.is_displayed() for chart in browser.all(".chart.wide"))
    printed = base64.b64decode(browser.do("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert printed.startswith(b"%PDF")


# --- What comes from outside ---


def test_hostile_text_stays_text(browser, tmp_path) -> None:
    """In each column, in the charts, beside the pointer: shown as it is, and run nowhere."""
    texts = {"account_id": NASTY, "error_type": NASTY, "instance": NASTY, "assignment": NASTY}
    outcomes = [outcome(n, State.FAILED, elapsed=9.0, **texts) for n in range(3)]
    browser.open(written(tmp_path, outcomes, halted=NASTY))
    browser.wait(".tools")

    for number in (2, 4, 7, 8):
        assert column(browser, number) == [NASTY] * 3
    assert len(browser.all("script")) == 2
    assert browser.all("img") == []
    browser.run("document.querySelector('.chart.wide').scrollIntoView()")
    bar = browser.find_one(".chart.wide [aria-roledescription=bar]")
    webdriver.ActionChains(browser.driver).move_to_element(bar).perform()
    assert browser.wait("#tip").text == f"{NASTY}: 3 accounts"


def test_the_page_s_policy_would_stop_a_script_that_got_in(chromium, page) -> None:
    """A second wall, should an escape ever be missed."""
    text = page.read_text("utf-8")
    page.write_text(text.replace("<main>", "<main><script>document.title = 'taken'</script>"), "utf-8")
    chromium.open(page)

    assert chromium.driver.title != "taken"
    assert "Content Security Policy" in str(chromium.complaints())
