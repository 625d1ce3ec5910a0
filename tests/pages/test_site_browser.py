"""The site in a real browser: sorting, filtering, comparing, reading aloud, small screens, no script, no network.

Needs Debian's chromium; the Python packages are in the extra `pages`.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from report_records import costs, failed, field, of, record, save
from site_pages import read_site

from mmbench import site_verb
from mmbench.site_serve import server_of
from mmbench.site_verb import build_site

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
KINDS = ("index.html", "methods.html", "cases.html", "trials.html", "compare.html", "methods/lora-qv.html")
KINDS += ("cases/noise-to-both.html", "tables/synthetic-av_cavmae-tiny.html")
MANY = 1000


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"no {CHROMIUM}; on Debian: apt-get install --no-install-recommends chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", *QUIET])
        yield started
        started.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows, a failed one, odd names; with plots and samples."""
    odd = ("<b>bold</b>", "\u202eright to left \u05d0\u05d1", "long-" * 80, "unbroken" * 40)
    rows = [*field(2), *(record(name, values=of(90 - i, 60, 70, 50), costs=costs(1000)) for i, name in enumerate(odd))]
    rows.append(failed("lora-qv", "diverged", "the loss became NaN " * 20, seed=5, trial_regime="mixed"))
    folder = tmp_path_factory.mktemp("pages")
    build_site(save(folder / "runs", rows), folder / "site")
    return folder / "site"


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand rows."""
    folder = tmp_path_factory.mktemp("many")
    rows = [record(f"row-{i:04d}", values=of(i * 7919 % 1000 / 10, 60, 70, 50)) for i in range(MANY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_verb, "write_plots", lambda board, out: ())
        patch.setattr(site_verb, "MANY", MANY + 1)  # else a process of its own draws
        build_site(save(folder / "runs", rows), folder / "site", samples=False)
    return folder / "site"


class Watched:
    """A page whose errors, warnings and outside requests are collected."""

    def __init__(self, context: BrowserContext, allowed: str = "file:") -> None:
        self.page = context.new_page()
        self.seen: list[str] = []
        self.page.on("console", lambda message: self.seen.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        self.page.on("request", lambda request: self._requested(request.url, allowed))

    def _requested(self, url: str, allowed: str) -> None:
        if not url.startswith((allowed, "data:")):
            self.seen.append(f"request: {url}")

    def open(self, path: Path, fragment: str = "") -> Page:
        self.page.goto(path.as_uri() + fragment)
        return self.page


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport=WIDE)
    yield opened
    opened.close()


@pytest.fixture
def watched(context: BrowserContext) -> Iterator[Watched]:
    page = Watched(context)
    yield page
    assert page.seen == []


def column(page: Page, number: int) -> list[str]:
    """Texts of a column of the first table, as shown."""
    script = """n => [...document.querySelector('table.data').tBodies[0].rows].filter(row => !row.hidden)
        .map(row => row.cells[n].innerText.trim())"""
    texts: list[str] = page.evaluate(script, number)
    return texts


def numbers(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) if re.match(r"-?\d", text) else math.nan for text in texts]


def test_every_page_opens_without_a_complaint(site: Path, watched: Watched) -> None:
    for name in read_site(site):
        watched.open(site / name)
        assert watched.page.title().endswith("quickstart"), name
    assert watched.seen == []


def test_pages_served_on_loopback_work_the_same(site: Path, context: BrowserContext) -> None:
    with server_of(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            watched = Watched(context, allowed=address)
            watched.page.goto(address)
            watched.page.get_by_role("link", name="Compare", exact=True).click()
            watched.page.locator("#comparison table").first.wait_for()
            assert watched.seen == []
        finally:
            server.shutdown()
            thread.join()


def test_links_lead_on_and_back(site: Path, watched: Watched) -> None:
    page = watched.open(site / "index.html")
    page.get_by_role("row").get_by_role("link", name="lora-qv", exact=True).first.click()
    assert page.locator("h1").inner_text() == "lora-qv"
    page.get_by_role("link", name="synthetic-av, mixed, seed 0").click()
    assert page.locator("h1").inner_text() == "lora-qv, mixed, seed 0"
    page.get_by_role("link", name="noise-to-both").first.click()
    assert page.locator("h1").inner_text() == "noise-to-both"
    page.get_by_role("navigation").get_by_role("link", name="Overview").click()
    assert page.locator("h1").inner_text() == "quickstart"


def test_a_click_sorts_and_another_turns_round(site: Path, watched: Watched) -> None:
    page = watched.open(site / "index.html")
    head = page.locator("table.data").first.locator("th", has_text="noise-to-vision")
    for direction, reverse in (("descending", True), ("ascending", False)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = numbers(column(page, 4))
        known = [value for value in values if not math.isnan(value)]
        assert len(known) > 10 and known == sorted(known, reverse=reverse)
        assert all(math.isnan(value) for value in values[len(known) :]) and len(values) > len(known)
    page.locator("table.data").first.locator("th").first.get_by_role("button").click()
    assert page.locator("table.data").first.locator("[aria-sort]").count() == 1
    names = [name.partition("\u2020")[0] for name in column(page, 0)]
    assert names[0] == "<b>bold</b>" and names.index("lora-qv") > names.index("linear-probe")


def test_filters_narrow_and_say_how_far(site: Path, watched: Watched) -> None:
    page = watched.open(site / "index.html")
    bar = page.locator(".filter").first
    everything = len(column(page, 0))
    bar.get_by_label("Filter").fill("LORA")
    assert column(page, 0) and all(name.startswith("lora-qv") for name in column(page, 0))
    assert bar.get_by_role("status").inner_text() == f"{len(column(page, 0))} of {everything} rows"
    bar.get_by_label("Regime").select_option("mixed")
    assert len(column(page, 0)) == 1
    bar.get_by_label("Filter").fill("no such row")
    assert column(page, 0) == []
    bar.get_by_label("Filter").fill("")
    bar.get_by_label("Regime").select_option("")
    assert len(column(page, 0)) == everything


def test_two_rows_side_by_side(site: Path, watched: Watched) -> None:
    page = watched.open(site / "compare.html")
    page.get_by_label("A", exact=True).select_option("full-finetune, mixed")
    page.get_by_label("B", exact=True).select_option("linear-probe, mixed")
    first = page.locator("#comparison table").first
    cells = first.locator("tr", has_text="noise-to-both").locator("td").all_inner_texts()
    # Two seeds: 70 and 55 percent, less 0.7 and as they are.
    assert numbers([cell.replace("\u2212", "-") for cell in cells[:3]]) == pytest.approx([69.65, 54.65, -15], abs=0.06)
    assert "A, full-finetune, mixed, is ahead in" in page.locator("#verdict").inner_text()
    address = page.url
    page.get_by_role("button", name="Swap").click()
    assert page.get_by_label("A", exact=True).locator("option:checked").inner_text() == "linear-probe, mixed"
    page.goto("about:blank")
    page.goto(address)
    assert page.get_by_label("B", exact=True).locator("option:checked").inner_text() == "linear-probe, mixed"
    page.get_by_label("A", exact=True).select_option(label="<b>bold</b>, clean")
    assert page.locator("#comparison b, #verdict b").count() == 0


def test_a_method_page_leads_to_its_comparison(site: Path, watched: Watched) -> None:
    page = watched.open(site / "methods" / "lora-qv.html")
    page.get_by_role("link", name="Compare it").click()
    assert page.get_by_label("A", exact=True).locator("option:checked").inner_text().startswith("lora-qv")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_serious(browser: Browser, site: Path, scheme: Any, view: Any) -> None:
    context = browser.new_context(viewport=view, color_scheme=scheme)
    page = context.new_page()
    trial = next(site.glob("trials/*.html")).relative_to(site).as_posix()
    for name in (*KINDS, trial):
        page.goto((site / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = Axe().run(page).response["violations"]
        told = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
        assert told == [], name
    context.close()


def test_a_phone_never_scrolls_sideways(browser: Browser, site: Path) -> None:
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    for name in read_site(site):
        page.goto((site / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
    context.close()


def test_without_a_script_everything_can_be_read(browser: Browser, site: Path) -> None:
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert page.locator("table.data").first.is_visible() and page.locator(".filter, thead button").count() == 0
    page.get_by_role("link", name=re.compile("^Accuracy on .* informed track$")).first.click()
    assert page.url.endswith("#synthetic-av_cavmae-tiny_informed")
    page.goto((site / "compare.html").as_uri())
    assert "needs JavaScript" in page.locator("main").inner_text()
    assert not page.locator("form").is_visible()
    page.get_by_text("All methods").click()
    page.get_by_role("link", name="lora-qv", exact=True).click()
    assert page.locator("h1").inner_text() == "lora-qv"
    context.close()


def test_the_keyboard_reaches_everything(site: Path, watched: Watched) -> None:
    page = watched.open(site / "index.html")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.inner_text() == "Skip to the content" and focused.is_visible()
    page.keyboard.press("Enter")
    assert page.locator(":focus").get_attribute("id") == "main"
    button = page.locator("table.data").first.locator("th").nth(2).get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("[aria-sort=descending]").count() == 1
    outline = button.evaluate("b => getComputedStyle(b).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2


def test_a_thousand_rows_sort_at_once(many: Path, watched: Watched) -> None:
    page = watched.open(many / "index.html")
    assert len(column(page, 0)) == MANY
    # Seconds of the page's own thread from the click to the finished layout, which other work on the machine does not
    # lengthen; the best of five.
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy_seconds() -> float:
        found = session.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in found if metric["name"] == "TaskDuration"))

    spent = []
    for _ in range(5):
        before = busy_seconds()
        page.evaluate(
            "() => { document.querySelectorAll('table.data thead button')[2].click(); document.body.offsetHeight; }"
        )
        spent.append(busy_seconds() - before)
    print(f"a page of {MANY} rows sorts in {1000 * min(spent):.0f} ms")
    assert min(spent) < 0.2
    assert numbers(column(page, 2))[:2] == [99.9, 99.8]
