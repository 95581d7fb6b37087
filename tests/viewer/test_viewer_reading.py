"""The page for a reviewer: what opens first, counts, curves, comparison, hidden characters, size, keyboard; in a real browser."""

import os
from pathlib import Path

from viewer_runs import IN_A_BROWSER, member, row, step_file

from common.unseen import UNSEEN

pytestmark = IN_A_BROWSER


def test_opens_on_training_with_the_newest_hacks_on_top(browser, served):
    browser.open(served.url)
    assert browser.hash() == "#purpose=train&sort=hacks&desc=1"
    assert [e.text for e in browser.all("section.list li .label")][:2] == ["Reward Hack", "Reward Hack"]
    browser.keys("h")
    browser.until(lambda: browser.total() == "2", "a key for the phenomenon")
    browser.keys("h")
    browser.until(lambda: browser.total() == "130")
    browser.keys("x")
    browser.until(lambda: browser.hash() == "#sort=hacks&desc=1", "the order stays, the filters go")


def counts(page, name):
    labels = page.driver.find_elements("css selector", f"input[name={name}]")
    return {e.get_attribute("value"): e.find_element("xpath", "..").text.split()[-1] for e in labels}


def test_counts_beside_filters_follow_the_other_filters(browser, served):
    browser.open(served.url + "#all")
    assert counts(browser, "arm") == {"projected": "7", "vanilla": "123"}
    browser.click("input[name=label][value='Reward Hack']")
    browser.until(lambda: browser.total() == "2")
    browser.until(lambda: counts(browser, "arm") == {"projected": "0", "vanilla": "2"}, "under the label")
    assert counts(browser, "label")["Correct"] == "128", "its own filter does not count against a facet"


def test_a_point_of_a_curve_lists_its_rollouts(browser, served):
    browser.open(served.url)
    browser.until(lambda: browser.count("figure.curves polyline") == 1, "a run of one step has no line")
    browser.driver.execute_script(
        "const svg = document.querySelector('.curves svg'), box = svg.getBoundingClientRect();"
        "svg.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: box.right - box.width * 8 / 640,"
        " clientY: box.top + box.height * (6 + 106 / 3) / 130}))"
    )
    browser.until(lambda: browser.total() == "3", "the three rollouts of step 1")
    assert "run=vanilla-s0" in browser.hash() and "step_min=1&step_max=1" in browser.hash()


def test_one_problem_across_runs(browser, served):
    browser.open(served.url + "#problem=p-1&run=vanilla-s0")
    browser.keys("j")
    browser.click(".detail a[name=beside]")
    browser.until(lambda: browser.count(".beside .column pre.code") == 2)
    assert browser.texts(".beside .column h3") == ["projected-s0", "vanilla-s0"]
    link = browser.driver.current_url
    browser.open_at(link, ".beside .column pre.code")
    assert browser.count(".beside .column") == 2, "a link holds it"
    browser.click(".beside .column:last-child p a")
    browser.until(lambda: browser.count(".cards") and not browser.count(".beside"))


def test_what_a_browser_would_obey_is_shown(browser, served):
    """A completion cannot show other code than ran: marks that turn the order, hide or break are spelt out."""
    text = "```python\nreturn x \u202e[0]derm\u202c # \u200bzero\x1b[31m \u2066a\u2069 \ufeff\n```\nobeyed"
    file = step_file(served.root / "projected-s0", 6)
    odd = row(6, step=6, run="projected-s0", problem_id="p\u202e-x", text=text)
    odd |= {
        "mode": "m\u202eode",
        "test_modification": "t\u2066m",
        "label": "l\u200b",
        "reason": "r\x1b",
        "evidence": {"e\u202e": ["v\u2069"]},
    }
    file.write_bytes(member([odd]))
    try:
        browser.open_at(served.url + "#q=obeyed", "section.list li")
        browser.keys("j")
        browser.until(lambda: browser.count("pre.code .unseen"))
        spelt = browser.texts("pre.code .unseen")
        assert spelt == ["U+202E", "U+202C", "U+200B", "U+001B", "U+2066", "U+2069", "U+FEFF"]
        assert "U+202E" in browser.text("section.list .problem") and "U+202E" in browser.text(".detail .path")
        shown = browser.text("#app")
        assert not UNSEEN.search(shown)
        said = browser.driver.execute_script(
            "return [...document.querySelectorAll('*')].flatMap(e => [e.title, e.ariaLabel, e.alt])"
        )
        assert not [words for words in said if words and UNSEEN.search(words)]
        style = "return getComputedStyle(document.querySelector('pre.code')).unicodeBidi"
        assert browser.driver.execute_script(style) == "isolate-override", "letters in their logical order too"
    finally:
        file.unlink()


def test_200_000_tokens_open_within_a_second(browser, served):
    file = step_file(served.root / "projected-s0", 7)
    text = "x = [1, 2]  # a line\n" * 9524
    huge = row(7, step=7, run="projected-s0", problem_id="p-huge", text=f"```python\n{text}```\nenormous")
    file.write_bytes(member([huge | {"token_ids": [1] * 200_000, "logprobs": [-0.1] * 200_000}]))
    try:
        for view, ready in (("code", "pre.code .py-number"), ("tokens", "pre.tokens .tok")):
            browser.open_at(served.url + f"#q=enormous&view={view}", "section.list li")
            took = browser.driver.execute_async_script(
                "const [css, done] = arguments, start = performance.now();"
                "document.querySelector('section.list li').click();"
                "const look = () => document.querySelector(css) ? requestAnimationFrame(() => done(performance.now() - start))"
                " : setTimeout(look, 5); look();",
                ready,
            )
            assert took < 1000 * busy(), f"{view}: {took:.0f} ms"
        assert browser.text(".windows span") == "tokens 0–8,191 of 200,000"
        browser.click(".windows button[name=later]")
        browser.until(lambda: browser.text(".windows span") == "tokens 8,192–16,383 of 200,000")
        browser.click("button[name=view-code]")
        browser.until(lambda: "The first 100,000 of" in browser.text(".note.long"))
        browser.click("button[name=whole]")
        browser.until(
            lambda: (
                browser.driver.execute_script("return document.querySelector('pre.code').textContent.length")
                == len(text) + 22
            )
        )
    finally:
        file.unlink()


def busy():
    """How much longer things take here than on a machine of one's own."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_by_keyboard_and_for_a_screen_reader(browser, served):
    """Every control is reached by Tab, and axe finds nothing serious, in both themes and in every part."""
    from axe_core_python.base import AXE_FILE_PATH
    from selenium.webdriver.common.keys import Keys

    browser.open(served.url + "#all")
    focused = "const a = document.activeElement; return a.getAttribute('role') ?? a.tagName"
    seen = []
    for _ in range(60):
        browser.keys(Keys.TAB)
        seen.append(browser.driver.execute_script(focused))
        if seen[-1] == "listbox":
            break
    assert seen[-1] == "listbox", seen
    browser.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    browser.until(lambda: browser.all("[role=listbox]")[0].get_attribute("aria-activedescendant") == "row-1")
    assert browser.all("#row-1")[0].get_attribute("aria-selected") == "true"
    browser.click("[role=tab][aria-selected=true]")
    browser.driver.execute_script("document.querySelector('[role=tab][aria-selected=true]').focus()")
    browser.keys(Keys.ARROW_RIGHT)
    browser.until(lambda: browser.count("[role=tabpanel] pre.tokens"))
    browser.driver.execute_script("document.querySelector('pre.tokens').focus()")
    browser.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    browser.until(lambda: browser.text(".readout").startswith("token 1:"), "tokens without a mouse")
    browser.keys("?")
    browser.until(
        lambda: browser.driver.execute_script(
            "return document.querySelector('dialog')?.contains(document.activeElement)"
        )
    )
    browser.keys(Keys.ESCAPE)
    browser.until(lambda: not browser.count("dialog"))
    axe = Path(AXE_FILE_PATH).read_text()
    for place in ("#all", "#q=evil_text&view=tokens", "#problem=p-1&beside=p-1&beside_step=0"):
        browser.open_at(served.url + place, "section.list li, .beside .column pre")
        if "beside" not in place:
            browser.keys("j")
            browser.until(lambda: browser.count(".cards"))
        for theme in ("light", "dark"):
            browser.driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            browser.until(lambda: browser.driver.execute_script("return document.getAnimations().length") == 0)
            browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})
            found = browser.driver.execute_async_script(
                "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'best-practice']}).then(arguments[0])"
            )
            bad = [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found["violations"]]
            assert not bad, f"{place} {theme}: {bad}"
