"""The page in a real browser: what is seen, what keys do, what a link holds, and that hostile text stays text."""

import json
from types import SimpleNamespace

import pytest
from viewer_runs import GOOD, HACK, HOSTILE, IN_A_BROWSER, member, row, step_file

pytestmark = IN_A_BROWSER


def test_filters_narrow_and_the_address_holds_them(browser, served):
    browser.open(served.url + "#all")
    assert browser.total() == "130" and browser.count("section.list li") == 50
    browser.click("input[name=arm][value=vanilla]")
    browser.until(lambda: browser.total() == "123", "one arm")
    browser.click("input[name=label][value='Reward Hack']")
    browser.until(lambda: browser.total() == "2", "one label")
    assert browser.hash() == "#arm=vanilla&label=Reward+Hack"
    browser.driver.back()
    browser.until(lambda: browser.total() == "123", "back")
    assert not browser.driver.find_element("css selector", "input[name=label][value='Reward Hack']").is_selected()
    browser.click("button[name=clear]")
    browser.until(lambda: browser.total() == "130", "cleared")
    assert browser.hash() == "#all" and not browser.complaints()


def test_a_link_is_the_whole_view(browser, served):
    browser.open(served.url + "#all")
    browser.click("input[name=label][value=Correct]")
    browser.until(lambda: browser.total() == "128")
    browser.driver.execute_script(
        "const s = document.querySelector('select[name=sort]'); s.value = 'advantage';"
        "s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    browser.until(lambda: "a +11.90" in browser.text("section.list li:nth-child(2)") + browser.text("section.list li"))
    browser.keys("j", "j", "v")
    browser.until(lambda: browser.count("pre.tokens"))
    link, path, shown = browser.driver.current_url, browser.text(".detail .path"), browser.text("pre.tokens")
    browser.open(link)
    browser.until(lambda: browser.text("pre.tokens") == shown)
    assert browser.text(".detail .path") == path and browser.total() == "128"
    assert browser.count("section.list li.chosen") == 1
    assert browser.driver.find_element("css selector", "input[name=label][value=Correct]").is_selected()
    assert browser.driver.find_element("css selector", "select[name=sort]").get_attribute("value") == "advantage"


def test_keys(browser, served):
    from selenium.webdriver.common.keys import Keys

    browser.open(served.url + "#run=vanilla-s0")
    browser.keys("j")
    browser.until(lambda: "completion 0" in browser.text(".detail .path"))
    browser.keys("j", Keys.ARROW_DOWN, "k")
    browser.until(lambda: "completion 1" in browser.text(".detail .path"))
    browser.keys("n")
    browser.until(lambda: browser.text(".range").startswith("51–100"))
    browser.keys("k")
    browser.until(lambda: browser.count("li.chosen") == 1)
    browser.keys("p")
    browser.until(lambda: browser.text(".range").startswith("1–50"))
    for _ in range(3):
        browser.keys("v")
    browser.keys("?")
    browser.until(lambda: browser.count("dialog.help"))
    browser.keys(Keys.ESCAPE)
    browser.until(lambda: not browser.count("dialog.help"))
    browser.keys("f")
    browser.until(lambda: browser.total() == "1", "forged only")
    browser.keys("x")
    browser.until(lambda: browser.total() == "130")
    browser.keys("/", "number_77", Keys.ENTER)
    browser.until(lambda: browser.total() == "1" and browser.texts(".snippet mark") == ["number_77"])
    browser.keys("j")
    browser.until(lambda: "number_77" in browser.text("pre.code"))
    browser.keys(Keys.ESCAPE)
    browser.until(lambda: not browser.count("li.chosen"))
    before = browser.driver.execute_script("return document.documentElement.dataset.theme")
    browser.keys("t")
    assert browser.driver.execute_script("return document.documentElement.dataset.theme") != before
    browser.keys("t")


def test_keys_go_on_over_the_end_of_a_page(browser, served):
    browser.open(served.url + "#run=vanilla-s0&offset=50")
    browser.keys("k")  # nothing chosen: the last of the page
    browser.until(lambda: browser.count("section.list li:last-child.chosen") and browser.count(".detail .path"))
    last = browser.text(".detail .path")
    browser.keys("j")
    browser.until(
        lambda: browser.text(".range").startswith("101–") and browser.count("section.list li:first-child.chosen")
    )
    browser.keys("k")
    browser.until(lambda: browser.text(".range").startswith("51–") and browser.text(".detail .path") == last)


def test_both_verdicts_and_a_forged_one_is_flagged(browser, served):
    browser.open(served.url + "#verdict=forged")
    browser.keys("j")
    browser.until(lambda: browser.count(".banner"))
    assert browser.texts(".card.verdict .big") == ["✓ correct", "✗ not correct"]
    assert browser.count("li .label.forged") == 1 and browser.count(".detail header .label.forged") == 1
    browser.open(served.url + "#label=Reward+Hack")
    browser.keys("j")
    browser.until(lambda: browser.count(".cards"))
    assert not browser.count(".banner") and "its own tests passed" in browser.text(".card.verdict")


def test_the_test_function_is_marked_and_the_code_is_whole(browser, served):
    browser.open(served.url + "#label=Reward+Hack&problem=p-1")
    browser.keys("j")
    browser.until(lambda: browser.count("pre.code .part-test"))
    assert browser.text("pre.code") == HACK
    assert browser.text("pre.code .part-test") == "    def run_tests(self):\n        pass\n"
    shade = browser.driver.execute_script(
        "return getComputedStyle(document.querySelector('.part-test')).backgroundColor"
    )
    assert shade not in ("rgba(0, 0, 0, 0)", "transparent")


def test_tokens_are_coloured_by_their_probability_with_a_legend(browser, served):
    browser.open(served.url + "#q=number_77&view=tokens")
    browser.keys("j")
    browser.until(lambda: browser.count("pre.tokens .tok"))
    text = browser.driver.execute_script(
        "return [...document.querySelectorAll('pre.tokens .tok:not(.silent)')].map(e => e.textContent).join('')"
    )
    assert text == f"{GOOD}\nnumber_77 é🙂"
    found = [e.get_attribute("class").split()[1] for e in browser.all("pre.tokens .tok")[:6]]
    assert found == [f"level-{i}" for i in range(6)]
    colours = browser.driver.execute_script(
        "const c = q => [...document.querySelectorAll(q)].slice(0, 6).map(e => getComputedStyle(e).backgroundColor);"
        "return [c('pre.tokens .tok'), c('.legend .tok')]"
    )
    assert colours[0] == colours[1] and len(set(colours[0])) == 6
    browser.click("pre.tokens .tok:nth-child(3)")
    browser.until(lambda: "log-prob -0.400" in browser.text(".readout") and "token 2: id" in browser.text(".readout"))
    assert browser.text("pre.tokens .silent") == "⟨256⟩"


def test_without_a_tokenizer_tokens_are_ids(browser, served):
    browser.open(served.url + "#run=projected-s0&view=tokens")
    browser.keys("j")
    browser.until(lambda: browser.texts("pre.tokens.chips .tok") == ["1", "2", "3"])
    assert "no tokenizer" in browser.text(".detail")


def assert_nothing_ran(browser):
    assert browser.driver.execute_script("return window.owned") is None
    assert browser.driver.title != "owned"
    assert browser.count("#app img") == browser.count("#app script") == 0
    assert not browser.complaints(), "nothing was even tried: the policy had nothing to refuse"


@pytest.mark.parametrize("view", ["code", "tokens", "prompt"])
def test_hostile_text_stays_text(browser, served, view):
    browser.open(served.url + f"#q=evil_text&view={view}")
    browser.keys("j")
    browser.until(lambda: browser.count(".detail pre"))
    shown = browser.text(".detail")
    assert shown.count("<script>document.title") >= 5 and "onerror=" in browser.text(".detail pre.code")
    assert HOSTILE in browser.text("section.list li"), "in the list too"
    browser.driver.execute_script("document.querySelector('input[name=q]').value = ''")
    assert_nothing_ran(browser)


def test_hostile_hits_and_addresses_stay_text(browser, served):
    browser.open(served.url + "#q=onerror&sort=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    browser.until(lambda: browser.count(".message.error"))
    browser.open(
        served.url
        + "#q=onerror&run=%3Cimg%20src%3Dx%20onerror%3D%22window.owned%3D1%22%3E&problem=%3Cscript%3E1%3C/script%3E"
    )
    browser.until(lambda: browser.count(".message.empty"))
    browser.open(served.url + "#q=onerror")
    browser.until(lambda: "onerror" in browser.texts(".snippet mark"))
    assert_nothing_ran(browser)


def test_the_policy_would_stop_what_slipped_through(browser, served):
    """The second wall: markup put into the page by force does nothing."""
    browser.open(served.url)
    browser.driver.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", HOSTILE)
    browser.driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.owned = 2'; document.body.append(s);"
        "const r = document.createElement('script'); r.src = 'https://example.org/x.js'; document.body.append(r)"
    )
    told = []

    def refused():
        told.extend(e for e in browser.driver.get_log("browser") if "Content Security Policy" in e["message"])
        return len(told) >= 3

    browser.until(refused, "an inline handler, an inline script and a foreign one")
    assert browser.driver.execute_script("return window.owned") is None


def test_empty_wrong_and_unanswered(browser, served):
    from selenium.webdriver.common.keys import Keys

    browser.open(served.url + "#q=nothing_has_this_word")
    assert "Nothing matches" in browser.text(".message.empty") and "130" in browser.text(".message.empty")
    browser.click(".message.empty button")
    browser.until(lambda: browser.total() == "130")
    browser.keys("/", '"open', Keys.ENTER)
    browser.until(lambda: "without a closing one" in browser.text(".message.error"))
    browser.open(served.url + "#at_run=vanilla-s0&at_group=gone&at_index=3")
    browser.until(lambda: "no completion 3" in browser.text(".detail .error"))
    browser.open(served.url + "#offset=5000")
    browser.until(lambda: "Beyond the end" in browser.text(".message.empty"))
    browser.open(served.url)
    browser.driver.execute_script("window.fetch = () => Promise.reject(new Error('away'))")
    browser.click("input[name=arm][value=vanilla]")
    browser.until(lambda: "does not answer" in browser.text("section.list .error"))


def test_a_narrow_window_shows_list_then_rollout(browser, served):
    browser.driver.set_window_size(500, 850)
    try:
        browser.open(served.url)
        visible = lambda css: browser.driver.find_element("css selector", css).is_displayed()  # noqa: E731
        assert visible("section.list") and not visible("article.detail") and not visible("aside")
        browser.click("button.fold")
        browser.until(lambda: visible("aside"))
        browser.click("button.fold")
        browser.click("section.list li")
        browser.until(lambda: visible("article.detail") and not visible("section.list"))
        wide = browser.driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert not wide, "nothing sticks out to the side"
        browser.click(".back")
        browser.until(lambda: visible("section.list"))
    finally:
        browser.driver.set_window_size(1400, 900)


def test_a_live_run_appears_and_damage_is_told(browser, served):
    browser.open(served.url)
    file = step_file(served.root / "projected-s0", 5)
    torn = member([row(1, step=5)])
    file.write_bytes(torn[: len(torn) // 2] + member([row(2, step=5, run="projected-s0"), {"no": "row"}]))
    browser.until(lambda: browser.total() == "131", "without a reload")
    browser.until(lambda: "skipped: 1 damaged part, 1 bad line" in browser.text(".skipped"))
    assert "projected-s0/rollouts/step_000005" in browser.all(".skipped")[0].get_attribute("title")
    file.unlink()
    browser.until(lambda: browser.total() == "130")


def like_a_run(path):
    """What export reads of an experiments.analysis.run_files.Run."""
    config = json.loads((path / "config.json").read_text())
    more = {"arm": config["arm"], "seed": 0, "preset": "demo", "status": SimpleNamespace(state="finished")}
    return SimpleNamespace(path=path, folder=path.name, config=config, **more)


def test_the_report_holds_the_page_as_files(browser, served, tmp_path):
    from experiments.viewer import export

    runs = [like_a_run(path) for path in sorted(served.root.glob("*-s0"))]
    for name, content in export.files(runs, limit=60).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    browser.open((tmp_path / "viewer" / "index.html").as_uri())
    assert "A sample:" in browser.text(".sample") and "of 130" in browser.text(".sample")
    shown = browser.total()
    browser.click("input[name=label][value='Reward Hack']")
    browser.until(lambda: browser.total() == "2" != shown)
    browser.keys("j")
    browser.until(lambda: browser.count(".part-test") or "evil_text" in browser.text("pre.code"))
    link = browser.driver.current_url
    browser.open(link)
    browser.until(lambda: browser.count(".cards") and browser.total() == "2")
    browser.open((tmp_path / "viewer" / "index.html").as_uri() + "#q=evil_text&view=tokens&sort=advantage&desc=1")
    browser.keys("j")
    browser.until(lambda: HOSTILE in browser.text("pre.tokens"))
    assert_nothing_ran(browser)
    loaded = browser.driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("file:") for name in loaded)
