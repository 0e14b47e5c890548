"""The report in Chromium: on wide and narrow screens, in dark mode, and in print."""

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
from tests.support import HOSTILE_TEXT
from tests.support.journals import NIGHT, outcome, write

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Without Chromium, the tests are skipped on a contributor's machine, but fail in CI.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and os.environ.get("CI") != "true",
        reason="chromium or chromedriver is missing: apt-get install chromium chromium-driver",
    ),
]


class Browser:
    """Chromium without a window."""

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
        self.execute(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.execute("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.driver.get(page.as_uri())

    def execute(self, command: str, **parameters: Any) -> dict[str, Any]:
        """Execute a command of the Chrome DevTools Protocol."""
        result: dict[str, Any] = self.driver.execute_cdp_cmd(command, parameters)
        return result

    def run_script(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def find_one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, selector: str) -> WebElement:
        """Wait until an element is shown, because the page unpacks the list after it is loaded."""

        def first_shown(_: object) -> WebElement | None:
            return next((element for element in self.find_all(selector) if element.is_displayed()), None)

        return WebDriverWait(self.driver, 20).until(first_shown)  # type: ignore[return-value]

    def log(self) -> list[Any]:
        """The messages in the console since the last call."""
        return list(self.driver.get_log("browser"))  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Chromium, whose console must be empty after the test."""
    yield chromium
    assert chromium.log() == []


def write_page(folder: Path, outcomes: Any, **run_facts: object) -> Path:
    path = folder / "report.html"
    with JournalView(write(folder / "run.sqlite3", outcomes, **run_facts)) as view, path.open("wb") as file:
        write_report(view, file, NIGHT + 3_600)
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report of 1,000 accounts. 250 of them failed, with two kinds of errors."""
    outcomes = []
    for ordinal in range(1_000):
        if ordinal % 4 != 0:
            outcomes.append(outcome(ordinal, elapsed=0.1 + ordinal / 500, assignment=f"line {ordinal % 20}"))
        elif ordinal % 8 != 0:
            outcomes.append(outcome(ordinal, State.FAILED, assignment="line 3"))
        else:
            proxy_error = {"error_type": "errors/proxy_error", "scope": Scope.PROXY, "instance": None}
            outcomes.append(
                outcome(
                    ordinal,
                    State.FAILED,
                    elapsed=float(ordinal),
                    attempts=8,
                    assignment="line 7",
                    **proxy_error,
                )
            )
    return write_page(tmp_path, outcomes, total=1_000)


def column(browser: Browser, number: int) -> list[str]:
    """The texts in a column of the list. Columns are numbered from 1."""
    script = (
        f"return [...document.querySelectorAll('.list tbody td:nth-child({number})')].map(e => e.innerText)"
    )
    texts: list[str] = browser.run_script(script)
    return texts


# --- The charts ---


def test_page_opens_without_errors_or_requests(browser, page) -> None:
    browser.open(page)

    assert browser.find_one("h1").text == "750 of 1,000 accounts patched"
    assert browser.run_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize(("width", "shown", "hidden"), [(1280, "wide", "narrow"), (390, "narrow", "wide")])
def test_only_the_charts_for_the_width_of_the_screen_are_shown(browser, page, width, shown, hidden) -> None:
    browser.open(page, width=width)

    charts = browser.find_all(f".chart.{shown}")
    assert len(charts) == 3
    assert all(chart.is_displayed() for chart in charts)
    assert not any(chart.is_displayed() for chart in browser.find_all(f".chart.{hidden}"))
    for chart in charts:
        bars = chart.find_elements(By.CSS_SELECTOR, "[aria-roledescription=bar]")
        assert bars
        assert max(bar.size["height"] for bar in bars) > 5
        colours = [bar.value_of_css_property("fill") for bar in bars]
        assert all(colour.startswith("rgb(") for colour in colours)  # so the CSS variables are defined


def test_tooltip_of_a_bar_has_its_number(browser, page) -> None:
    browser.open(page)
    bar = browser.find_one(".chart.wide [aria-roledescription=bar]")

    browser.run_script("document.querySelector('.chart.wide').scrollIntoView()")
    webdriver.ActionChains(browser.driver).move_to_element(bar).perform()

    assert browser.wait("#tip").text == "errors/proxy_error: 125 accounts"


# --- The list ---


def test_list_can_be_filtered_by_words(browser, page) -> None:
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


def test_list_can_be_filtered_by_error(browser, page) -> None:
    browser.open(page)
    browser.wait(".tools")
    state, error = (Select(select) for select in browser.find_all(".tools select"))

    error.select_by_visible_text("errors/proxy_error")

    assert browser.find_one(".count").text == "125 of 250 match"
    assert [option.text for option in state.options] == ["every state", "failed"]


def test_list_is_sorted_by_the_numbers_within_texts(browser, page) -> None:
    """Accounts without an instance come last in both directions, so they are not on the first page."""
    browser.open(page)
    browser.wait(".tools")
    buttons = browser.find_all(".list th button")
    attempts, instance = buttons[4], buttons[6]

    attempts.click()
    assert column(browser, 5) == ["1"] * 100
    attempts.click()
    assert column(browser, 5) == ["8"] * 100
    assert browser.find_one(".list th:nth-child(5)").get_dom_attribute("aria-sort") == "descending"

    instance.click()
    ascending = [int(text.removeprefix("req_")) for text in column(browser, 7)]
    instance.click()
    descending = [int(text.removeprefix("req_")) for text in column(browser, 7)]
    assert (ascending, descending) == (sorted(ascending), sorted(descending, reverse=True))
    assert ascending[:2] == [4, 12]  # compared as texts, 100 would come before 12
    assert descending[:2] == [996, 988]

    buttons[0].click()
    assert column(browser, 1)[:3] == ["2", "6", "10"]


def test_list_has_pages(browser, page) -> None:
    browser.open(page)
    browser.wait(".pages")
    previous, next_ = browser.find_all(".pages button")

    assert not previous.is_enabled()
    next_.click()
    next_.click()
    assert browser.find_one(".pages span").text == "page 3 of 3"
    assert len(column(browser, 1)) == 50
    assert not next_.is_enabled()


def test_filtering_100_000_accounts_takes_less_than_two_seconds(browser, tmp_path) -> None:
    """The list is filtered after each letter that is typed."""
    page = write_page(tmp_path, (outcome(n, State.FAILED) for n in range(100_000)))
    browser.open(page)
    browser.wait(".tools")

    milliseconds = browser.run_script(
        "const search = document.querySelector('.tools input'); search.value = 'acc_09999';"
        "const began = performance.now(); search.dispatchEvent(new Event('input'));"
        "return performance.now() - began"
    )

    assert browser.find_one(".count").text == "10 of 100,000 match"
    assert milliseconds < 2_000  # usually about 50, but a busy machine is slower


def test_browser_that_cannot_unpack_the_list_shows_its_first_accounts_and_a_message(browser, page) -> None:
    script = browser.execute(
        "Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.DecompressionStream"
    )
    try:
        browser.open(page)
        assert "too old" in browser.wait(".count").text
        assert len(column(browser, 1)) == 100
    finally:
        browser.execute("Page.removeScriptToEvaluateOnNewDocument", **script)


def test_browser_without_scripts_shows_the_first_accounts(browser, page) -> None:
    browser.execute("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert len(browser.find_all(".list tbody tr")) == 100
        assert browser.find_one("noscript").text == "Without scripts, the first 100 are shown."
    finally:
        browser.execute("Emulation.setScriptExecutionDisabled", value=False)


# --- Phones, dark mode and print ---


def test_page_does_not_scroll_horizontally_on_a_phone(browser, page) -> None:
    browser.open(page, width=390)
    browser.wait(".tools")

    assert browser.run_script("return document.documentElement.scrollWidth") == 390
    assert len(browser.find_all(".list tbody tr")) == 20
    label = "return getComputedStyle(document.querySelector('.list td:nth-child(2)'), '::before').content"
    assert browser.run_script(label) == '"account id"'


def lightness(colour: str) -> float:
    """The lightness of an rgb() colour, from 0 for black to 1 for white."""
    red, green, blue = (int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3])
    return (red + green + blue) / (3 * 255)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_charts_have_enough_contrast_in_light_and_dark_mode(browser, page, scheme) -> None:
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


def test_page_is_printed_on_white_and_without_controls(browser, page) -> None:
    browser.open(page, scheme="dark", media="print")
    WebDriverWait(browser.driver, 20).until(lambda _: browser.find_all(".list th button"))  # tools exist

    assert lightness(browser.find_one("body").value_of_css_property("background-color")) == 1.0
    assert not browser.find_one(".tools").is_displayed()
    assert all(chart.is_displayed() for chart in browser.find_all(".chart.wide"))
    printed = base64.b64decode(browser.execute("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert printed.startswith(b"%PDF")


# --- Hostile text ---


def test_hostile_text_is_shown_as_text_in_the_list_and_the_tooltip(browser, tmp_path) -> None:
    texts = {
        "account_id": HOSTILE_TEXT,
        "error_type": HOSTILE_TEXT,
        "instance": HOSTILE_TEXT,
        "assignment": HOSTILE_TEXT,
    }
    outcomes = [outcome(n, State.FAILED, elapsed=9.0, **texts) for n in range(3)]
    browser.open(write_page(tmp_path, outcomes, halted=HOSTILE_TEXT))
    browser.wait(".tools")

    for number in (2, 4, 7, 8):
        assert column(browser, number) == [HOSTILE_TEXT] * 3
    assert len(browser.find_all("script")) == 2
    assert browser.find_all("img") == []
    browser.run_script("document.querySelector('.chart.wide').scrollIntoView()")
    bar = browser.find_one(".chart.wide [aria-roledescription=bar]")
    webdriver.ActionChains(browser.driver).move_to_element(bar).perform()
    assert browser.wait("#tip").text == f"{HOSTILE_TEXT}: 3 accounts"


def test_content_security_policy_stops_an_injected_script(chromium, page) -> None:
    """The policy protects the page if a text is ever not escaped."""
    text = page.read_text("utf-8")
    page.write_text(text.replace("<main>", "<main><script>document.title = 'injected'</script>"), "utf-8")
    chromium.open(page)

    assert chromium.driver.title != "injected"
    assert "Content Security Policy" in str(chromium.log())
