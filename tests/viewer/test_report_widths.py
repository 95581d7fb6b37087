"""The committed organism's report in a real Chromium: on a phone, on paper, by keyboard."""

import shutil

import pytest

from experiments.report import build

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="bash deploy/fetch_chromium.sh installs them",
)
PX = 96 / 25.4  # CSS pixels a millimetre
PORTRAIT, LANDSCAPE = (210 - 2 * 12) * PX, (297 - 2 * 9) * PX  # A4 within the page's own margins
BOXES = """return [...document.querySelectorAll(".scroll")].map(b => ({
    inner: b.scrollWidth, outer: b.clientWidth, tab: b.tabIndex, name: b.ariaLabel, picture: !!b.querySelector("img"),
    flow: getComputedStyle(b).overflowX, shadow: getComputedStyle(b).backgroundImage, wide: !!b.closest(".wide"),
    first: [...b.querySelectorAll("td.first")].slice(0, 1).map(c => getComputedStyle(c).position)[0] ?? ""}))"""


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The report, opened; `show(width, medium)` lays it out anew."""
    out = tmp_path_factory.mktemp("report")
    assert build.main(["--from-csv", "docs/results/organism", "--out", str(out)]) == 0
    browser.driver.get(f"file://{out}/report.html")

    def show(width, medium="screen"):
        size = {"width": int(width), "height": 844, "deviceScaleFactor": 1, "mobile": False}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium})
        return browser.driver.execute_script

    yield show
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_is_as_wide_as_the_screen_and_wider_tables_scroll_visibly(page, width):
    script = page(width)
    assert script("return document.documentElement.scrollWidth") <= width
    boxes = script(BOXES)
    wider = [box for box in boxes if box["inner"] > box["outer"]]
    assert len(boxes) > 8 and wider
    for box in wider:
        assert box["flow"] == "auto" and box["tab"] == 0 and box["name"], box  # with arrow keys too
        assert box["shadow"].count("gradient") == 4
        assert box["picture"] or box["first"] in ("sticky", ""), box  # the arm stays in sight beside its numbers
    assert script("return getComputedStyle(document.querySelector('.scroll'), '::-webkit-scrollbar').height") != "auto"


@pytest.mark.parametrize(("width", "wide"), [(PORTRAIT, False), (LANDSCAPE, True)])
def test_on_paper_nothing_is_cut(page, width, wide):
    """A4 portrait; the table of runs, with its 29 columns, on landscape pages of its own."""
    boxes = [box for box in page(width, "print")(BOXES) if box["wide"] == wide]
    assert boxes
    for box in boxes:
        assert box["flow"] == "visible" and box["inner"] <= width + 1, box


def test_one_mode_of_the_evaluation_stands_together_across_arms(page):
    modes = page(1280)(
        """return [...document.querySelectorAll("#evaluation + .scroll tr td:nth-child(2)")].map(c => c.innerText)"""
    )
    assert len(set(modes)) == 4
    assert [m for i, m in enumerate(modes) if i == 0 or m != modes[i - 1]] == list(dict.fromkeys(modes))


def test_links_are_told_from_text_by_more_than_colour(page):
    bare = page(1280)("""return [...document.querySelectorAll("main a")].filter(a =>
        !getComputedStyle(a).textDecorationLine.includes("underline")).map(a => a.innerText)""")
    assert bare == []
